//! The block in one call, on threads that stay awake: eight short things, each of which waits for the last.

use super::{CachedBlock, Sizes};
use crate::HeadNorm;
use crate::PANEL;
use crate::cached_attention::{self, cpu as attention};
use crate::cpu::rotation::rotate;
use crate::cpu::rows::normalize;
use crate::packed_linear::{Then, linear};
use engine::{CallFrame, DType, HostCall, HostFunction, Type, Workers};
use pulp::{Arch, Simd, WithSimd};

/// Stands for the epsilon of a norm that is not there: the bits of a NaN.
const NO_NORM: i64 = -1;

/// Rows of x up to which the call is better than XLA's operations.
const MOST_ROWS: usize = 32;

/// Whether the call takes these sizes.
pub(super) fn fits(sizes: Sizes, args: &[Type]) -> bool {
    let Sizes { b, n, h, g, e, i, slots, .. } = sizes;
    let panels = args[3..7].iter().all(|w| w.rank() == 3) && i % PANEL == 0;
    let vectors = slots % 16 == 0 && e % 32 == 0;
    let few = b * n <= MOST_ROWS && n * (h / g) <= attention::MOST_ROWS;
    args[0].dtype == DType::F32 && panels && vectors && few
}

/// The call. Results: x after the block, and the new tokens' keys `[b*g*t, d, n]` and values `[b*g*2, n, e/2]`.
pub(super) fn call(kernel: &CachedBlock, sizes: Sizes) -> HostCall {
    let Sizes { b, n, m, g, t, d, e, .. } = sizes;
    let bits = |norm: HeadNorm| match norm {
        HeadNorm::Rms { eps } => eps.to_bits() as i64,
        HeadNorm::None => NO_NORM,
    };
    let attributes = vec![
        kernel.eps.to_bits() as i64,
        kernel.cap.to_bits() as i64,
        bits(kernel.qk_norm),
        bits(kernel.norm),
    ];
    let results = vec![Type::f32([b, n, m]), Type::f32([b * g * t, d, n]), Type::f32([b * g * 2, n, e / 2])];
    HostCall::new::<CachedBlock>(attributes, results)
}

impl HostFunction for CachedBlock {
    const NAME: &'static str = "cached_block";

    fn call(CallFrame { attributes, operands, results, workers }: CallFrame<'_>) {
        let float = |bits: i64| f64::from_bits(bits as u64) as f32;
        let &[eps, cap, qk_eps, head_eps] = attributes else { unreachable!("as the call was made") };
        let norm = |bits: i64| (bits != NO_NORM).then(|| float(bits));
        let [x, cos, sin, qkv, o, gate_up, down, keys, values, slot, ref lambda @ ..] = operands[..] else {
            unreachable!("ten operands, and lambda")
        };
        let (&[b, n, m], &[key_rows, d, slots]) = (x.shape(), keys.shape()) else {
            unreachable!("as checked")
        };
        let (g, e) = (values.shape()[0] / (2 * b), 2 * values.shape()[2]);
        let sizes =
            Sizes { b, n, m, h: o.shape()[1] / e, g, t: key_rows / (b * g), d, e, i: down.shape()[1], slots };
        let attention_sizes =
            cached_attention::Sizes { b, n, g, r: sizes.h / g, d, e, slots, key_maps: sizes.t };
        let attention = attention::Call {
            sizes: attention_sizes,
            eps: norm(head_eps),
            cap: float(cap),
            keys: keys.as_slice(),
            values: values.as_slice(),
            slot: slot.as_slice(),
        };
        let Ok([y, k, v]) = <[_; 3]>::try_from(results) else { unreachable!("three results") };
        let block = BlockCall {
            sizes,
            eps: float(eps),
            qk_eps: norm(qk_eps),
            x: x.as_slice(),
            tables: [cos.as_slice(), sin.as_slice()],
            matrices: [qkv, o, gate_up, down].map(|w| w.as_slice()),
            lambda: lambda.first().map(|lambda| lambda.as_slice()),
            attention,
        };
        let (y, k, v) = (y.into_slice(), k.into_slice(), v.into_slice());
        workers.awake(|workers| block.run(workers, y, k, v));
    }
}

/// The operands.
struct BlockCall<'a> {
    sizes: Sizes,
    eps: f32,
    /// That of queries and keys, if they are normed.
    qk_eps: Option<f32>,
    x: &'a [f32],
    /// Cosine and sine.
    tables: [&'a [f32]; 2],
    /// Wqkv, Wo, gate and up, down.
    matrices: [&'a [f32]; 4],
    /// Unless columns of Wqkv give it.
    lambda: Option<&'a [f32]>,
    attention: attention::Call<'a>,
}

impl BlockCall<'_> {
    fn run(&self, workers: Workers<'_>, y: &mut [f32], k: &mut [f32], v: &mut [f32]) {
        let Sizes { b, n, m, h, g, e, i, .. } = self.sizes;
        let [qkv, o, gate_up, down] = self.matrices;
        let (rows, width) = (b * n, qkv.len() / m);
        let normed = |x: &[f32]| {
            let mut normed = x.to_vec();
            Arch::new().dispatch(Normalize { x: &mut normed, width: m, eps: self.eps });
            normed
        };

        let mut projected = vec![0.0; rows * width];
        linear(workers, &normed(self.x), qkv, Then::Nothing, &mut projected, width);
        let mut heads = vec![0.0; rows * h * e];
        let mut tokens = projected.chunks(width).zip(heads.chunks_mut(h * e));
        let mut news = k.chunks_mut(k.len() / (b * g)).zip(v.chunks_mut(v.len() / (b * g)));
        let mut items = Vec::with_capacity(b * g);
        for row in 0..b {
            let first_item = items.len();
            let by_group = news.by_ref().take(g).enumerate();
            items.extend(by_group.map(|(group, (k, v))| Attend {
                block: self,
                row,
                group,
                tokens: Vec::with_capacity(n),
                k,
                v,
            }));
            for (qkv, heads) in tokens.by_ref().take(n) {
                let by_group = items[first_item..].iter_mut().zip(heads.chunks_mut(h / g * e));
                by_group.for_each(|(group, heads)| group.tokens.push((qkv, heads)));
            }
        }
        workers.for_each(items, |group| Arch::new().dispatch(group));
        let mut x = vec![0.0; rows * m];
        linear(workers, &heads, o, Then::Plus(self.x), &mut x, m);

        let mut hidden = vec![0.0; rows * i];
        linear(workers, &normed(&x), gate_up, Then::SwiGlu, &mut hidden, i);
        linear(workers, &hidden, down, Then::Plus(&x), y, m);
    }
}

/// Rows over their root mean square, in place.
struct Normalize<'a> {
    x: &'a mut [f32],
    width: usize,
    eps: f32,
}

impl WithSimd for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        normalize(simd, self.x, self.width, self.eps);
    }
}

/// Attention of one group, of a row of the batch.
struct Attend<'a, 'b> {
    block: &'a BlockCall<'a>,
    row: usize,
    group: usize,
    /// Of each token `[w]`, and its heads of the group, `[r, e]`.
    tokens: Vec<(&'a [f32], &'b mut [f32])>,
    /// `[t, d, n]`
    k: &'b mut [f32],
    /// `[2, n, e/2]`
    v: &'b mut [f32],
}

impl WithSimd for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Attend { block, row, group, tokens, k, v } = self;
        let Sizes { n, h, g, d, e, .. } = block.sizes;
        let [q_width, k_width, v_width] = block.sizes.widths();
        let r = h / g;
        let mut q = vec![0.0; n * q_width / g];
        let mut turned = vec![0.0; d];
        // Queries and keys of a token and the group, normed if they are to be.
        let mut normed = vec![0.0; (q_width + k_width) / g];
        let mut lambdas = vec![0.0; n * r];
        for (token, (qkv, _)) in tokens.iter().enumerate() {
            let angles = block.tables.map(|table| &table[(row * n + token) * (d / 2)..][..d / 2]);
            let (queries, rest) = qkv.split_at(q_width);
            let (keys, rest) = rest.split_at(k_width);
            let (values, own_lambda) = rest.split_at(v_width);
            let [queries, keys, values] =
                [queries, keys, values].map(|x| &x[group * (x.len() / g)..][..x.len() / g]);
            let (normed_queries, normed_keys) = normed.split_at_mut(q_width / g);
            normed_queries.copy_from_slice(queries);
            normed_keys.copy_from_slice(keys);
            if let Some(eps) = block.qk_eps {
                normalize(simd, normed_queries, d, eps);
                normalize(simd, normed_keys, d, eps);
            }
            for (x, q) in normed_queries.chunks(d).zip(q[token * q_width / g..][..q_width / g].chunks_mut(d))
            {
                rotate(x, angles, 1.0, q);
            }
            for (x, k) in normed_keys.chunks(d).zip(k.chunks_mut(d * n)) {
                rotate(x, angles, 1.0, &mut turned);
                turned.iter().zip(k.chunks_mut(n)).for_each(|(x, k)| k[token] = *x);
            }
            for (x, v) in values.chunks(e / 2).zip(v.chunks_mut(n * (e / 2))) {
                v[token * (e / 2)..][..e / 2].copy_from_slice(x);
            }
            if block.lambda.is_none() {
                let own = own_lambda[group * r..][..r].iter().map(|x| 1.0 / (1.0 + (-x).exp()));
                lambdas[token * r..][..r].iter_mut().zip(own).for_each(|(lambda, own)| *lambda = own);
            }
        }
        let by_token = tokens.into_iter().zip(q.chunks(q_width / g)).zip(lambdas.chunks(r));
        let tokens =
            by_token.map(|(((_, y), q), own)| attention::Token { q, lambda: block.lambda.unwrap_or(own), y });
        let new = Some(attention::New { keys: k, values: v });
        let attention =
            attention::Group { call: &block.attention, row, group, tokens: tokens.collect(), new };
        attention.with_simd(simd);
    }
}
