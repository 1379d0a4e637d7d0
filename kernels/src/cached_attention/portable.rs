//! The plain form, and the one for XLA's CPU code.

use super::{CachedAttention, Sizes};
use crate::{HeadNorm, wide};
use engine::{Tensor, Type};

/// Of args as the kernel has them. `product`: `[x, q, k] x [x, k, w] -> [x, q, w]`, f32.
pub(super) fn attention<'f>(
    kernel: &CachedAttention,
    args: &[Tensor<'f>],
    product: fn(Tensor<'f>, Tensor<'f>) -> Tensor<'f>,
) -> Tensor<'f> {
    let types: Vec<Type> = args.iter().map(|arg| arg.ty()).collect();
    let Sizes { b, n, g, r, d, e, slots, key_maps } =
        CachedAttention::sizes(&types).expect("checked when called");
    let &[q, keys, values, slot, lambda] = args else { unreachable!("checked when called") };
    let f = q.builder();
    // Maps with keys of their own are apart, maps that share them stand side by side.
    let q = q.reshape([b, n, g, r, 2, d]).transpose(&[0, 2, 4, 1, 3, 5]);
    let q = q.reshape([b * g * key_maps, 2 / key_maps * n * r, d]);
    let scores = product(q, keys) * (d as f64).powf(-0.5); // [b*g*maps, .., slots]
    let scores = scores.reshape([b, g, 2, n, r, slots]);
    let cap = kernel.cap;
    let scores = if cap > 0.0 { (scores * (1.0 / cap)).tanh() * cap } else { scores };
    let ty = Type::i32([b, n, slots]);
    let token = f.iota(ty.clone(), 1);
    let seen = f.iota(ty, 2).le(token + slot.along(token, &[0]));
    let scores = seen.along(scores, &[0, 3, 5]).select(scores, f64::from(f32::MIN));
    let top = scores.reduce_max(&[5]).stop_gradient();
    let p = (scores - top.along(scores, &[0, 1, 2, 3, 4])).exp();
    let p = p / p.sum(&[5]).along(p, &[0, 1, 2, 3, 4]);
    let map = |t: usize| p.slice_axis(2, t, t + 1).reshape([b, g, n, r, slots]);
    let (p1, p2) = (map(0), map(1));
    let lambda = match lambda.rank() {
        0 => lambda.broadcast_in_dim(p2.shape(), &[]),
        _ => lambda.reshape([b, n, g, r]).transpose(&[0, 2, 1, 3]).along(p2, &[0, 1, 2, 3]),
    };
    let a = (p1 - lambda * p2).convert(values.dtype()); // subtracted before it is rounded: the difference cancels
    let a = a.broadcast_in_dim([b, g, 2, n, r, slots], &[0, 1, 3, 4, 5]).reshape([b * g * 2, n * r, slots]);
    let out = product(a, values).reshape([b, g, 2, n, r, e / 2]);
    let out = out.transpose(&[0, 3, 1, 4, 2, 5]).reshape([b, n, g * r, e]);
    match kernel.norm {
        HeadNorm::Rms { eps } => out * rms_factor(out, eps).along(out, &[0, 1, 2]),
        HeadNorm::None => out,
    }
}

/// `1 / sqrt(mean(x^2) + eps)` over the last axis of `[b, n, h, e]`. The sum of squares is a product, which XLA's CPU code
/// does in one pass; a sum over that many it cuts into two.
fn rms_factor(x: Tensor<'_>, eps: f64) -> Tensor<'_> {
    let [b, n, h, e] = x.shape()[..] else { unreachable!("[b, n, h, e]") };
    let rows = x.reshape([b * n * h, e]);
    let squares = rows.einsum("xe,xe->x", rows).reshape([b, n, h]);
    (squares * (1.0 / e as f64) + eps).rsqrt()
}

/// In one piece.
pub(super) fn product<'f>(a: Tensor<'f>, b: Tensor<'f>) -> Tensor<'f> {
    a.einsum_as("xqk,xkw->xqw", b, wide(a.dtype()))
}

/// Rows up to which a product is done row by row.
const FEW: usize = 8;

/// A few rows one by one: XLA's CPU code for a vector times a matrix reads the matrix as it lies, that for two matrices
/// repacks the larger one first, which takes longer than reading it for every row.
pub(super) fn product_by_rows<'f>(a: Tensor<'f>, b: Tensor<'f>) -> Tensor<'f> {
    let [x, q, k] = a.shape()[..] else { unreachable!("[x, q, k]") };
    if q > FEW {
        return product(a, b);
    }
    let row = |i: usize| {
        let row = a.slice_axis(1, i, i + 1).reshape([x, k]);
        row.einsum_as("xk,xkw->xw", b, wide(a.dtype())).reshape([x, 1, b.dim(2)])
    };
    Tensor::concatenate(&(0..q).map(row).collect::<Vec<Tensor<'f>>>(), 1)
}
