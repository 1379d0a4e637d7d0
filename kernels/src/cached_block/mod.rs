//! A block of the model for a few new tokens against a cache of keys and values: between its matrices decoding does little,
//! and what it does waits for all that went before. On the CPU one call does the block, with threads that stay awake for
//! it.

mod cpu;

use crate::example::{ACTIVATIONS, Example, Values};
use crate::packed_linear::{self, PANEL, PackedLinear};
use crate::{CachedAttention, HeadNorm, qk_norm, rotate, wide};
use engine::{Backward, DType, Form, Func, Kernel, ShapeError, Target, Tensor, Type};

/// Arguments: x `[b, n, m]`, the residual stream of n new tokens; cos and sin of their positions, `[b, n, d/2]` f32; the
/// matrices with their norms in them, all `[in, out]` or in panels as [`PackedLinear`] has them: Wqkv `[m, w]`, Wo `[h*e, m]`, gate and
/// up side by side `[m, 2*i]`, down `[i, m]`; keys `[b*g*t, d, slots]` and values `[b*g*2, slots, e/2]` of the tokens before, t = 2 or 1 where the two maps
/// share their keys; slot `[b]` i32, that of each row's first new token, at most `slots - n`; and after
/// heads with a norm lambda, an f32 scalar. Without a norm the last h columns of Wqkv give lambda, through a sigmoid.
/// Columns of Wqkv: queries (h, 2, d), keys (g, t, d), values (g, e).
///
/// Results: x after the block, and keys and values with the new tokens'. Source: arXiv 2410.05258 eq. 1-5 with a cache.
#[derive(Clone, Debug)]
pub struct CachedBlock {
    /// Of the norms before attention and before the MLP.
    pub eps: f64,
    /// The norm of queries and keys before their rotation ([`qk_norm`](crate::qk_norm)).
    pub qk_norm: HeadNorm,
    /// The norm of the heads' outputs.
    pub norm: HeadNorm,
    /// Soft cap of attention's logits, `cap tanh(x / cap)`; 0 is off.
    pub cap: f64,
}

/// Extents, by the crate's axis letters.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    b: usize,
    n: usize,
    m: usize,
    h: usize,
    g: usize,
    /// Maps with keys of their own.
    t: usize,
    d: usize,
    e: usize,
    i: usize,
    slots: usize,
}

impl Sizes {
    /// Columns of queries, keys and values.
    fn widths(self) -> [usize; 3] {
        let Sizes { h, g, t, d, e, .. } = self;
        [h * 2 * d, g * t * d, g * e]
    }
}

impl CachedBlock {
    fn sizes(&self, args: &[Type]) -> Result<Sizes, ShapeError> {
        let [x, cos, sin, qkv, o, gate_up, down, keys, values, slot, lambda @ ..] = args else {
            return Err(ShapeError("wants x, cos, sin, four matrices, a cache and slot".to_owned()));
        };
        let (&[b, n, m], &[key_rows, d, slots], &[value_rows, _, half]) =
            (&x.shape[..], &keys.shape[..], &values.shape[..])
        else {
            return Err(ShapeError(
                "wants x [b, n, m], keys [b*g*t, d, slots], values [b*g*2, slots, e/2]".into(),
            ));
        };
        let (g, e) = (value_rows / (2 * b).max(1), 2 * half);
        let matrix = |name: &str, w: &Type, rows: usize| match packed_linear::columns(w, rows) {
            Some(columns) if w.dtype == x.dtype => Ok(columns),
            _ => Err(ShapeError(format!("{name} {w} does not map rows of {} {}", rows, x.dtype))),
        };
        let inner = matrix("gate and up", gate_up, m)? / 2;
        let t = key_rows / (b * g).max(1);
        let width = matrix("qkv", qkv, m)?;
        // Columns of a head's queries, and with them of its own lambda.
        let head_width = 2 * d + usize::from(self.norm == HeadNorm::None);
        let h = width.saturating_sub(g * (t * d + e)) / head_width.max(1);
        let sizes = Sizes { b, n, m, h, g, t, d, e, i: inner, slots };
        let exact = width == h * head_width + g * (t * d + e) && h > 0;
        if !exact || matrix("o", o, h * e)? != m || matrix("down", down, inner)? != m {
            return Err(ShapeError(format!(
                "qkv {qkv}, o {o} and down {down} do not fit x {x} and keys {keys}"
            )));
        }
        let table = Type::f32([b, n, d / 2]);
        if *cos != table || *sin != table {
            return Err(ShapeError(format!("wants cos and sin {table}")));
        }
        let wide = wide(x.dtype);
        let lambda = match (self.norm, lambda) {
            (HeadNorm::None, []) => Type::new(wide, [b, n, h]),
            (HeadNorm::Rms { .. }, [lambda]) => lambda.clone(),
            _ => return Err(ShapeError("wants lambda if, and only if, heads have a norm".to_owned())),
        };
        // What attention asks of its own operands.
        let q = x.with_shape([b, n, h, 2, d]);
        self.attention().infer(&[q, keys.clone(), values.clone(), slot.clone(), lambda])?;
        Ok(sizes)
    }

    fn attention(&self) -> CachedAttention {
        CachedAttention { norm: self.norm, cap: self.cap, block: None }
    }
}

/// Both architectures, two new tokens, with a norm of queries and keys and without; matrices in panels.
pub(crate) fn examples() -> Vec<Example> {
    let example = |qk_norm: HeadNorm, norm: HeadNorm, t: usize| {
        let (b, n, m, h, g, d, i, slots) = (2, 2, 48, 2, 1, 16, 64, 32);
        let e = 2 * d * t;
        let lambda = if norm == HeadNorm::None { 16 } else { 0 };
        let h = if lambda == 0 { h } else { lambda };
        let width = h * 2 * d + g * (t * d + e) + lambda;
        let panels = |rows: usize, columns: usize| {
            (Type::f32([columns / PANEL, rows, PANEL]), Values::Between(-0.3, 0.3))
        };
        let table = || (Type::f32([b, n, d / 2]), Values::Between(-1.0, 1.0));
        let mut args = vec![
            (Type::f32([b, n, m]), ACTIVATIONS),
            table(),
            table(),
            panels(m, width),
            panels(h * e, m),
            panels(m, 2 * i),
            panels(i, m),
            (Type::f32([b * g * t, d, slots]), ACTIVATIONS),
            (Type::f32([b * g * 2, slots, e / 2]), ACTIVATIONS),
            (Type::i32([b]), Values::Given(vec![20.0, 0.0])),
        ];
        if norm != HeadNorm::None {
            args.push((Type::f32([]), Values::Given(vec![0.3])));
        }
        Example::new(CachedBlock { eps: 1e-6, qk_norm, norm, cap: 0.0 }, args, &[], &[Target::Cpu])
    };
    let rms = HeadNorm::Rms { eps: 1e-5 };
    vec![example(HeadNorm::None, rms, 2), example(rms, rms, 2), example(rms, HeadNorm::None, 1)]
}

impl Kernel for CachedBlock {
    fn name(&self) -> String {
        let CachedBlock { eps, qk_norm, norm, cap } = self;
        format!("cached_block(eps={eps:e}, qk_norm={qk_norm:?}, norm={norm:?}, cap={cap})")
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        self.sizes(args)?;
        Ok([0, 7, 8].map(|i| args[i].clone()).to_vec())
    }

    /// `Y = X + Attention(Norm(X))`, `X' = Y + MLP(Norm(Y))`.
    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let types: Vec<Type> = args.iter().map(|arg| arg.ty()).collect();
        let sizes = self.sizes(&types).expect("checked when called");
        let (x, gate_up, down) = (args[0], args[5], args[6]);
        let (attended, keys, values) = self.attended(sizes, args, normalized(x, self.eps).convert(x.dtype()));
        let x = x + attended;
        let both = project(normalized(x, self.eps).convert(x.dtype()), gate_up, wide(x.dtype()));
        let (g, u) = (both.slice_axis(2, 0, sizes.i), both.slice_axis(2, sizes.i, 2 * sizes.i));
        let hidden = (g * g.logistic() * u).convert(x.dtype());
        vec![x + project(hidden, down, x.dtype()), keys, values]
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("nothing is trained through a cache")
    }

    fn differentiable(&self) -> usize {
        3
    }

    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }

    fn lower(&self, args: &[Type], target: Target, wanted: Option<Form>) -> Option<(Form, Func)> {
        let wanted = target == Target::Cpu && Form::takes_native(wanted);
        let sizes = self.sizes(args).expect("checked when called");
        if !wanted || !cpu::fits(sizes, args) {
            return None;
        }
        Some((
            Form::Native,
            Func::build(args, |f, args| {
                let [y, k, v] = f.host_call(cpu::call(self, sizes), args)[..] else {
                    unreachable!("three results")
                };
                let (keys, values) = written([args[7], args[8]], [k, v], args[9]);
                vec![y, keys, values]
            }),
        ))
    }
}

impl CachedBlock {
    /// Attention between its projections, and the cache with the new tokens. x: `[b, n, m]`, normed.
    fn attended<'f>(
        &self,
        sizes: Sizes,
        args: &[Tensor<'f>],
        x: Tensor<'f>,
    ) -> (Tensor<'f>, Tensor<'f>, Tensor<'f>) {
        let Sizes { b, n, h, g, t, d, e, .. } = sizes;
        let &[_, cos, sin, qkv, o, _, _, keys, values, slot, ..] = args else { unreachable!("checked") };
        let [q_width, k_width, v_width] = sizes.widths();
        let qkv = project(x, qkv, x.dtype()); // [b, n, w]
        let qkv = match self.qk_norm {
            HeadNorm::Rms { eps } => qk_norm(qkv, q_width + k_width, d, eps),
            HeadNorm::None => qkv,
        };
        let part = |start: usize, width: usize| qkv.slice_axis(2, start, start + width);
        let k = rotate(part(q_width, k_width).reshape([b, n, g, t, d]), [cos, sin]); // [b, n, g, t, d]
        let k = k.transpose(&[0, 2, 3, 4, 1]).reshape([b * g * t, d, n]);
        let v = part(q_width + k_width, v_width).reshape([b, n, g, 2, e / 2]).transpose(&[0, 2, 3, 1, 4]);
        let (keys, values) = written([keys, values], [k, v.reshape([b * g * 2, n, e / 2])], slot);
        let q = rotate(part(0, q_width).reshape([b, n, h, 2, d]), [cos, sin]); // [b, n, h, 2, d]
        let lambda = args.get(10).copied();
        let lambda = lambda
            .unwrap_or_else(|| part(q_width + k_width + v_width, h).convert(wide(x.dtype())).logistic());
        let out = x.builder().kernel(self.attention(), &[q, keys, values, slot, lambda])[0]; // [b, n, h, e]
        (project(out.convert(x.dtype()).reshape([b, n, h * e]), o, x.dtype()), keys, values)
    }
}

/// The cache with new keys `[b*g*t, d, n]` and values `[b*g*2, n, e/2]`, each row's from its slot on.
fn written<'f>(
    [mut keys, mut values]: [Tensor<'f>; 2],
    [k, v]: [Tensor<'f>; 2],
    slot: Tensor<'f>,
) -> (Tensor<'f>, Tensor<'f>) {
    let (f, b) = (slot.builder(), slot.dim(0));
    let number = |i: usize| f.scalar(i as i32);
    for row in 0..b {
        let slot = slot.slice_axis(0, row, row + 1).reshape([]);
        let of_row = |x: Tensor<'f>| {
            let count = x.dim(0) / b;
            (x.slice_axis(0, row * count, (row + 1) * count), number(row * count))
        };
        let ((k, key_row), (v, value_row)) = (of_row(k), of_row(v));
        keys = keys.dynamic_update_slice(k, &[key_row, number(0), slot]);
        values = values.dynamic_update_slice(v, &[value_row, slot, number(0)]);
    }
    (keys, values)
}

/// `x / sqrt(mean(x^2) + eps)` over the last axis, f32. The sum of squares is a product, which XLA's CPU code does in one
/// pass; a sum over that many it cuts into two.
pub fn normalized(x: Tensor<'_>, eps: f64) -> Tensor<'_> {
    let last = x.rank() - 1;
    let others: Vec<usize> = (0..last).collect();
    let wide = x.convert(wide(x.dtype()));
    let rows = wide.reshape([wide.ty().elements() / x.dim(last), x.dim(last)]);
    let squares = rows.einsum("xm,xm->x", rows).reshape(&x.shape()[..last]);
    let scale = (squares * (1.0 / x.dim(last) as f64) + eps).rsqrt();
    wide * scale.along(wide, &others)
}

/// x `[b, n, m]`, W as [`PackedLinear`] has it -> `[b, n, v]` of the result's type: the rows of new tokens times a matrix.
pub fn project<'f>(x: Tensor<'f>, w: Tensor<'f>, result: DType) -> Tensor<'f> {
    let [b, n, m] = x.shape()[..] else { panic!("x {} is not [b, n, m]", x.ty()) };
    let y = x.builder().kernel(PackedLinear { result }, &[x.reshape([b * n, m]), w])[0];
    y.reshape([b, n, y.dim(1)])
}
