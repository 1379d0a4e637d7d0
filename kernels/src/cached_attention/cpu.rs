//! The native form of the CPU: maps, softmaxes and values in one call, over the filled slots only; a task for each group of
//! a row.

use super::{CachedAttention, Sizes};
use crate::HeadNorm;
use crate::cpu::exponential::{exp2, tanh};
use crate::cpu::rows::{Columns, ROWS_AT_ONCE, multiply, normalize};
use engine::{CallFrame, DType, Func, HostCall, HostFunction, Type};
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::LOG2_E;

/// Rows of scores (tokens times heads of a group) up to which this form is better than XLA's products.
pub(crate) const MOST_ROWS: usize = 4 * ROWS_AT_ONCE;

/// The kernel on the CPU; None if the native form does not cover it.
pub(super) fn func(kernel: &CachedAttention, args: &[Type]) -> Option<Func> {
    let Sizes { b, n, g, r, e, slots, key_maps, .. } =
        CachedAttention::sizes(args).expect("checked when called");
    let covered = args[0].dtype == DType::F32 && n * r <= MOST_ROWS && slots % 16 == 0 && e % 32 == 0;
    let mut attributes = vec![g as i64, key_maps as i64, kernel.cap.to_bits() as i64];
    if let HeadNorm::Rms { eps } = kernel.norm {
        attributes.push(eps.to_bits() as i64);
    }
    let result = Type::f32([b, n, g * r, e]);
    let call = || HostCall::new::<CachedAttention>(attributes, vec![result]);
    covered.then(|| Func::build(args, |f, args| f.host_call(call(), args)))
}

impl HostFunction for CachedAttention {
    const NAME: &'static str = "cached_attention";

    fn call(CallFrame { attributes, operands, results, workers }: CallFrame<'_>) {
        let &[g, key_maps, cap, ref eps @ ..] = attributes else { unreachable!("as the call was made") };
        let [q, keys, values, slot, lambda] = operands[..] else { unreachable!("five operands") };
        let &[b, n, h, _, d] = q.shape() else { unreachable!("[b, n, h, 2, d]") };
        let &[_, slots, half] = values.shape() else { unreachable!("[b*g*2, slots, e/2]") };
        let (g, key_maps) = (g as usize, key_maps as usize);
        let call = Call {
            sizes: Sizes { b, n, g, r: h / g, d, e: 2 * half, slots, key_maps },
            eps: eps.first().map(|&eps| f64::from_bits(eps as u64) as f32),
            cap: f64::from_bits(cap as u64) as f32,
            keys: keys.as_slice(),
            values: values.as_slice(),
            slot: slot.as_slice(),
        };
        let (q, lambda) = (q.as_slice::<f32>(), lambda.as_slice::<f32>());
        let Some(y) = results.into_iter().next() else { unreachable!("one result") };
        let mut tokens = y.into_slice::<f32>().chunks_mut(h * 2 * half).enumerate();
        let r = h / g;
        let mut items = Vec::with_capacity(b * g);
        for row in 0..b {
            let first_item = items.len();
            items.extend((0..g).map(|group| Group {
                call: &call,
                row,
                group,
                tokens: Vec::with_capacity(n),
                new: None,
            }));
            for (token, y) in tokens.by_ref().take(n) {
                let q = q[token * h * 2 * d..][..h * 2 * d].chunks(r * 2 * d);
                let lambda = |group: usize| match lambda.len() {
                    1 => lambda,
                    _ => &lambda[token * h + group * r..][..r],
                };
                for (group, (q, y)) in q.zip(y.chunks_mut(r * 2 * half)).enumerate() {
                    items[first_item + group].tokens.push(Token { q, lambda: lambda(group), y });
                }
            }
        }
        workers.for_each(items, |group| Arch::new().dispatch(group));
    }
}

/// What the tasks have in common.
pub(crate) struct Call<'a> {
    pub(crate) sizes: Sizes,
    /// Of the norm, if there is one.
    pub(crate) eps: Option<f32>,
    pub(crate) cap: f32,
    /// The cache.
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
    /// That of each row's first new token.
    pub(crate) slot: &'a [i32],
}

/// Keys and values of new tokens, which are not in the cache, of one group of a row.
#[derive(Clone, Copy)]
pub(crate) struct New<'a> {
    /// `[maps, d, n]`
    pub(crate) keys: &'a [f32],
    /// `[2, n, e/2]`
    pub(crate) values: &'a [f32],
}

/// The heads of one group, of a row of the batch: a task.
pub(crate) struct Group<'a, 'b> {
    pub(crate) call: &'a Call<'a>,
    pub(crate) row: usize,
    pub(crate) group: usize,
    pub(crate) tokens: Vec<Token<'a, 'b>>,
    pub(crate) new: Option<New<'a>>,
}

/// A token's part of a group.
pub(crate) struct Token<'a, 'b> {
    /// `[r, 2, d]`, rotated.
    pub(crate) q: &'a [f32],
    /// One number, or `[r]`.
    pub(crate) lambda: &'a [f32],
    /// `[r, e]`
    pub(crate) y: &'b mut [f32],
}

impl WithSimd for Group<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Group { call, row, group, mut tokens, new } = self;
        let Sizes { n, g, r, d, e, slots, key_maps, .. } = call.sizes;
        let slot = call.slot[row] as usize;
        let (rows, used, half) = (n * r, (slot + n).next_multiple_of(16), e / 2);
        let scale = (d as f32).powf(-0.5);
        let (mut x, mut o) = (vec![0.0; rows * d], vec![0.0; rows * half]);
        let mut scores = [vec![0.0; rows * used], vec![0.0; rows * used]];
        let mut own = vec![0.0; rows * n];
        for (t, scores) in scores.iter_mut().enumerate() {
            for (j, x) in x.chunks_mut(d).enumerate() {
                let q = &tokens[j / r].q[(j % r * 2 + t) * d..][..d];
                x.iter_mut().zip(q).for_each(|(x, q)| *x = q * scale);
            }
            let map = t % key_maps;
            let keys = &call.keys[((row * g + group) * key_maps + map) * d * slots..];
            product(simd, &x, d, Columns::row_major(keys, slots), scores, used);
            for (j, scores) in scores.chunks_mut(used).enumerate() {
                if let Some(new) = new {
                    let scores = &mut scores[slot..][..n];
                    scores.fill(0.0);
                    for (x, keys) in x[j * d..][..d].iter().zip(new.keys[map * d * n..].chunks(n)) {
                        scores.iter_mut().zip(keys).for_each(|(score, key)| *score += x * key);
                    }
                }
                cap(simd, scores, call.cap);
                scores[slot + j / r + 1..].fill(f32::MIN);
                soften(simd, scores);
            }
        }
        let [a, p2] = &mut scores;
        for (j, (a, p2)) in a.chunks_mut(used).zip(p2.chunks(used)).enumerate() {
            let lambda = tokens[j / r].lambda;
            let lambda = simd.splat_f32s(-lambda[j % r % lambda.len()]);
            let (vectors, p2) = (S::as_mut_simd_f32s(a).0, S::as_simd_f32s(p2).0);
            vectors.iter_mut().zip(p2).for_each(|(a, &p2)| *a = simd.mul_add_f32s(lambda, p2, *a));
            if new.is_some() {
                let a = &mut a[slot..][..n];
                own[j * n..][..n].copy_from_slice(a);
                a.fill(0.0);
            }
        }
        for t in 0..2 {
            let values = &call.values[((row * g + group) * 2 + t) * slots * half..];
            product(simd, a, used, Columns::row_major(values, half), &mut o, half);
            for (j, o) in o.chunks_mut(half).enumerate() {
                if let Some(new) = new {
                    let values = new.values[t * n * half..].chunks(half);
                    for (a, values) in own[j * n..][..n].iter().zip(values) {
                        o.iter_mut().zip(values).for_each(|(o, value)| *o += a * value);
                    }
                }
                tokens[j / r].y[j % r * e + t * half..][..half].copy_from_slice(o);
            }
        }
        if let Some(eps) = call.eps {
            tokens.iter_mut().for_each(|token| normalize(simd, token.y, e, eps));
        }
    }
}

/// `y = x W` of any number of rows. x: rows of `depth` numbers, y: of `width`.
#[inline(always)]
fn product<S: Simd>(simd: S, x: &[f32], depth: usize, w: Columns<'_>, y: &mut [f32], width: usize) {
    for (x, y) in x.chunks(ROWS_AT_ONCE * depth).zip(y.chunks_mut(ROWS_AT_ONCE * width)) {
        multiply(simd, x, depth, w, y.chunks_mut(width).collect());
    }
}

/// `cap tanh(x / cap)`, unless cap is 0.
#[inline(always)]
fn cap<S: Simd>(simd: S, scores: &mut [f32], cap: f32) {
    if cap > 0.0 {
        let (cap, factor) = (simd.splat_f32s(cap), simd.splat_f32s(cap.recip()));
        for score in S::as_mut_simd_f32s(scores).0 {
            *score = simd.mul_f32s(tanh(simd, simd.mul_f32s(*score, factor)), cap);
        }
    }
}

/// Scores to probabilities.
#[inline(always)]
fn soften<S: Simd>(simd: S, scores: &mut [f32]) {
    let scores = S::as_mut_simd_f32s(scores).0;
    let top = scores.iter().fold(simd.splat_f32s(f32::MIN), |top, &score| simd.max_f32s(top, score));
    let (top, log2_e) = (simd.splat_f32s(simd.reduce_max_f32s(top)), simd.splat_f32s(LOG2_E));
    let mut sum = simd.splat_f32s(0.0);
    for score in scores.iter_mut() {
        *score = exp2(simd, simd.mul_f32s(simd.sub_f32s(*score, top), log2_e));
        sum = simd.add_f32s(sum, *score);
    }
    let factor = simd.splat_f32s(simd.reduce_sum_f32s(sum).recip());
    scores.iter_mut().for_each(|score| *score = simd.mul_f32s(*score, factor));
}
