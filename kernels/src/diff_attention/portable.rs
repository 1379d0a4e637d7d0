//! The portable form: blocks of query rows against the keys up to the block's end. A whole row of scores is there at once,
//! so the two maps are subtracted before the one product with V, and what lies right of the diagonal block is never
//! computed. The backward pass computes the scores again; the saved sums of the softmaxes spare it the two row reductions.

use super::{DiffAttention, HeadNorm};
use crate::wide;
use engine::{Target, Tensor, Type};

/// The operands of the products, in the narrow type: after the rotation.
struct Operands<'f> {
    /// `[b, s, g, r, t, d]`
    q: Tensor<'f>,
    /// `[b, s, g, t, d]`
    k: Tensor<'f>,
    /// `[b, s, g, e]`
    v: Tensor<'f>,
    /// `[b, s, h]`
    lambda: Tensor<'f>,
    /// `[b, s]`
    starts: Tensor<'f>,
}

impl<'f> Operands<'f> {
    fn new(kernel: &DiffAttention, args: &[Tensor<'f>]) -> Operands<'f> {
        let &[qkv, cos, sin, lambda, starts, ..] = args else { unreachable!("checked when called") };
        let (b, s) = (qkv.dim(0), qkv.dim(1));
        let (h, g, d) = (kernel.heads, kernel.groups, kernel.head_dim);
        let [of_q, of_k, of_v] = kernel.widths();
        let q = qkv.slice_axis(2, 0, of_q).reshape([b, s, h, 2, d]);
        let k = qkv.slice_axis(2, of_q, of_q + of_k).reshape([b, s, g, kernel.key_maps(), d]);
        let v = qkv.slice_axis(2, of_q + of_k, of_q + of_k + of_v).reshape([b, s, g, kernel.value_dim]);
        let k = rotate(k, [cos, sin]).reshape([b, s, g, kernel.key_maps(), d]);
        Operands {
            q: rotate(q, [cos, sin]).reshape([b, s, g, h / g, 2, d]),
            k: match kernel.key_maps() {
                1 => k.reshape([b, s, g, d]).broadcast_in_dim([b, s, g, 2, d], &[0, 1, 2, 4]),
                _ => k,
            },
            v,
            lambda: if lambda.rank() == 0 { lambda.broadcast_in_dim([b, s, h], &[]) } else { lambda },
            starts,
        }
    }

    fn list(&self) -> [Tensor<'f>; 5] {
        [self.q, self.k, self.v, self.lambda, self.starts]
    }

    fn from_list(list: &[Tensor<'f>]) -> Operands<'f> {
        let &[q, k, v, lambda, starts] = list else { unreachable!("five of them") };
        Operands { q, k, v, lambda, starts }
    }
}

/// Rotates the two halves of the last axis by the angle of the position, in the tables' type. x: `[b, s, .., d]`; cos and
/// sin: `[s, d/2]`, or `[b, s, d/2]` where rows have positions of their own. Source: arXiv 2104.09864.
pub fn rotate<'f>(x: Tensor<'f>, [cos, sin]: [Tensor<'f>; 2]) -> Tensor<'f> {
    let last = x.rank() - 1;
    let half = x.dim(last) / 2;
    let wide = x.convert(cos.dtype());
    let (x1, x2) = (wide.slice_axis(last, 0, half), wide.slice_axis(last, half, 2 * half));
    let axes = if cos.rank() == 2 { &[1, last][..] } else { &[0, 1, last] };
    let (cos, sin) = (cos.along(x1, axes), sin.along(x1, axes));
    Tensor::concatenate(&[x1 * cos - x2 * sin, x2 * cos + x1 * sin], last).convert(x.dtype())
}

/// Query rows `rows.0..rows.1` against the keys before `rows.1`.
struct Block<'f> {
    /// `[b, q, g, r, t, d]`
    q: Tensor<'f>,
    /// `[b, k, g, t, d]`
    k: Tensor<'f>,
    /// `[b, k, g, e]`
    v: Tensor<'f>,
    /// `[b, g, q, r]`
    lambda: Tensor<'f>,
    /// Logits of the two maps with what is hidden at minus infinity, `[b, g, t, q, r, k]`.
    scores: Tensor<'f>,
    /// Derivative of the capped logit by the raw one, if there is a cap.
    slope: Option<Tensor<'f>>,
}

impl<'f> Block<'f> {
    fn new(kernel: &DiffAttention, x: &Operands<'f>, rows: (usize, usize)) -> Block<'f> {
        let (b, queries) = (x.q.dim(0), rows.1 - rows.0);
        let (g, r, d) = (kernel.groups, kernel.heads / kernel.groups, kernel.head_dim);
        let q = x.q.slice_axis(1, rows.0, rows.1);
        let k = x.k.slice_axis(1, 0, rows.1);
        let v = x.v.slice_axis(1, 0, rows.1);
        let lambda = x.lambda.slice_axis(1, rows.0, rows.1); // [b, q, h]
        let lambda = lambda.reshape([b, queries, g, r]).transpose(&[0, 2, 1, 3]); // [b, g, q, r]
        let wide = wide(q.dtype());
        let scores = q.einsum_as("bqgrtd,bkgtd->bgtqrk", k, wide) * (d as f64).powf(-0.5); // [b, g, t, q, r, k]
        let (scores, slope) = match kernel.cap {
            0.0 => (scores, None),
            cap => {
                let tanh = (scores * (1.0 / cap)).tanh();
                (tanh * cap, Some(1.0 - tanh * tanh))
            }
        };
        let mask = visible(x.starts, rows).broadcast_in_dim(scores.shape(), &[0, 3, 5]);
        Block { q, k, v, lambda, scores: mask.select(scores, f64::NEG_INFINITY), slope }
    }

    /// One of the two maps, `[b, g, q, r, k]`.
    fn map(of: Tensor<'f>, t: usize) -> Tensor<'f> {
        let mut shape = of.shape();
        shape.remove(2);
        of.slice_axis(2, t, t + 1).reshape(shape)
    }

    /// `A = P1 - lambda P2`, subtracted before rounding: the difference cancels.
    fn difference(&self, p: Tensor<'f>) -> Tensor<'f> {
        let (p1, p2) = (Block::map(p, 0), Block::map(p, 1));
        p1 - self.lambda.along(p1, &[0, 1, 2, 3]) * p2
    }

    /// A map's values, `[b, q, h, e]`. a: `[b, g, q, r, k]`.
    fn values(&self, a: Tensor<'f>) -> Tensor<'f> {
        let o = a.convert(self.v.dtype()).einsum_as("bgqrk,bkge->bqgre", self.v, a.dtype());
        let [b, q, g, r, e] = o.shape()[..] else { unreachable!("five axes") };
        o.reshape([b, q, g * r, e])
    }

    /// These rows of the results: y `[b, q, h e]`, O2 `[b, h, e, q]`, statistics `[b, h, 3, q]`.
    fn forward(&self, norm: HeadNorm) -> [Tensor<'f>; 3] {
        // The diagonal is always visible, so no row is empty.
        let top = self.scores.reduce_max(&[5]).stop_gradient();
        let e = (self.scores - top.along(self.scores, &[0, 1, 2, 3, 4])).exp();
        let sum = e.sum(&[5]); // [b, g, t, q, r]
        let p = e / sum.along(e, &[0, 1, 2, 3, 4]);
        let o = self.values(self.difference(p)); // [b, q, h, e]
        let [b, q, h, e] = o.shape()[..] else { unreachable!("four axes") };
        let factor = match norm {
            HeadNorm::Rms { eps } => ((o * o).mean(&[3]) + eps).rsqrt(), // [b, q, h]
            HeadNorm::None => o.full_like(1.0).slice_axis(3, 0, 1).reshape([b, q, h]),
        };
        let y = (o * factor.along(o, &[0, 1, 2])).convert(self.v.dtype()).reshape([b, q, h * e]);
        let o2 = self.values(Block::map(p, 1)).convert(self.v.dtype()).transpose(&[0, 2, 3, 1]);
        let lse = (top + sum.log()).transpose(&[0, 1, 4, 2, 3]).reshape([b, h, 2, q]);
        let factor = factor.transpose(&[0, 2, 1]).reshape([b, h, 1, q]);
        [y, o2, Tensor::concatenate(&[lse, factor], 2)]
    }

    /// Cotangents of these rows of q (rotated) and lambda, and their contributions to k (rotated) and v. y, dy
    /// `[b, q, h e]` and statistics `[b, h, 3, q]` of these rows.
    fn backward(&self, norm: HeadNorm, y: Tensor<'f>, stats: Tensor<'f>, dy: Tensor<'f>) -> [Tensor<'f>; 4] {
        let [b, queries, g, r, _, d] = self.q.shape()[..] else { unreachable!("six axes") };
        let e = self.v.dim(3);
        let (narrow, wide) = (self.q.dtype(), self.scores.dtype());
        let per_head = |x: Tensor<'f>| x.convert(wide).reshape([b, queries, g, r, e]);
        let (y, dy) = (per_head(y), per_head(dy));
        let stats = stats.reshape([b, g, r, 3, queries]).transpose(&[0, 1, 3, 4, 2]); // [b, g, 3, q, r]
        let lse = stats.slice_axis(2, 0, 2);
        let factor = Block::map(stats, 2).transpose(&[0, 2, 1, 3]); // [b, q, g, r]
        let mean = (y * dy).mean(&[4]);
        // y = f O with f = 1 / sqrt(mean(O^2) + eps):  dO = f (dy - y mean(y dy)), and then
        // rowsum(dO O) = e eps f^2 mean(y dy), because mean(y^2) = 1 - eps f^2.
        let (d_out, along_out) = match norm {
            HeadNorm::Rms { eps } => (
                (dy - y * mean.along(y, &[0, 1, 2, 3])) * factor.along(y, &[0, 1, 2, 3]),
                mean * factor * factor * (e as f64 * eps),
            ),
            HeadNorm::None => (dy, mean * e as f64),
        };
        let along_out = along_out.transpose(&[0, 2, 1, 3]); // [b, g, q, r]
        let d_out = d_out.convert(narrow);
        let p = (self.scores - lse.along(self.scores, &[0, 1, 2, 3, 4])).exp(); // [b, g, t, q, r, k]
        // dA = dO V^T, dV = A^T dO
        let da = d_out.einsum_as("bqgre,bkge->bgqrk", self.v, wide);
        let dv = self.difference(p).convert(narrow).einsum_as("bgqrk,bqgre->bkge", d_out, narrow);
        // dS1 = P1 (dA - D1), dS2 = -lambda P2 (dA - D2) with Dt = rowsum(Pt dA) = rowsum(dO Ot);
        // D1 - lambda D2 = rowsum(dO O); dlambda = -D2
        let d2 = (Block::map(p, 1) * da).sum(&[4]); // [b, g, q, r]
        let d1 = along_out + self.lambda * d2;
        let map = |x: Tensor<'f>| x.reshape([b, g, 1, queries, r]);
        let row_sums = Tensor::concatenate(&[map(d1), map(d2)], 2); // [b, g, t, q, r]
        let both = da.reshape([b, g, 1, queries, r, da.dim(4)]);
        let both = Tensor::concatenate(&[both, both], 2); // [b, g, t, q, r, k]
        let sign = Tensor::concatenate(&[map(d2.full_like(1.0)), map(-self.lambda)], 2);
        let ds = p * (both - row_sums.along(both, &[0, 1, 2, 3, 4])) * sign.along(p, &[0, 1, 2, 3, 4]);
        let ds = self.slope.map_or(ds, |slope| ds * slope);
        let ds = (ds * (d as f64).powf(-0.5)).convert(narrow);
        let dq = ds.einsum("bgtqrk,bkgtd->bqgrtd", self.k);
        let dk = ds.einsum("bgtqrk,bqgrtd->bkgtd", self.q);
        let d_lambda = (-d2).transpose(&[0, 2, 1, 3]).reshape([b, queries, g * r]);
        [dq, dk, dv, d_lambda]
    }
}

/// `[b, q, k]`: key between the query's start and the query.
fn visible(starts: Tensor<'_>, rows: (usize, usize)) -> Tensor<'_> {
    let f = starts.builder();
    let shape = [starts.dim(0), rows.1 - rows.0, rows.1];
    let start = starts.slice_axis(1, rows.0, rows.1).broadcast_in_dim(shape, &[0, 1]);
    let causal = Tensor::lower_triangle(f, rows.1 - rows.0, rows.1, rows.0 as i32);
    f.iota(Type::i32(shape), 2).ge(start) & causal.broadcast_in_dim(shape, &[1, 2])
}

/// Blocks of rows that cover a sequence.
fn blocks(s: usize, rows: usize) -> impl DoubleEndedIterator<Item = (usize, usize)> {
    (0..s.div_ceil(rows)).map(move |i| (i * rows, ((i + 1) * rows).min(s)))
}

/// How the blocks of a lowering are arranged.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    rows: usize,
    /// Each block starts when the one before it has ended.
    in_turn: bool,
}

impl Blocks {
    pub(super) fn of(rows: usize, target: Target) -> Blocks {
        // In turn, for libtpu starts blocks side by side and holds the scores of each: in the 1b step the attention's
        // part of the temporaries ended at 9.6 GiB, in turn at 8.8. Twice the rows: half as many unrolled blocks to
        // compile; what that saves is not measured yet.
        match target {
            Target::TpuV6e => Blocks { rows: 2 * rows, in_turn: true },
            Target::Cpu | Target::Cuda => Blocks { rows, in_turn: false },
        }
    }

    pub(super) fn one(s: usize) -> Blocks {
        Blocks { rows: s, in_turn: false }
    }

    /// Operands that are there when `after` is, and `after` itself.
    fn next<'f>(self, x: Operands<'f>, after: &[Tensor<'f>]) -> (Operands<'f>, Vec<Tensor<'f>>) {
        if !self.in_turn || after.is_empty() {
            return (x, after.to_vec());
        }
        let mut tied = Tensor::optimization_barrier(&[&x.list()[..], after].concat());
        let after = tied.split_off(x.list().len());
        (Operands::from_list(&tied), after)
    }
}

/// Of args as the kernel has them: y, O2 and the statistics.
pub(super) fn forward<'f>(kernel: &DiffAttention, args: &[Tensor<'f>], how: Blocks) -> Vec<Tensor<'f>> {
    let mut x = Operands::new(kernel, args);
    let mut parts: Vec<[Tensor<'f>; 3]> = Vec::new();
    for rows in blocks(args[0].dim(1), how.rows) {
        let last = parts.pop();
        let (next, after) = how.next(x, last.as_ref().map_or(&[], |last| &last[..]));
        x = next;
        parts.extend(<[Tensor<'f>; 3]>::try_from(after).ok());
        parts.push(Block::new(kernel, &x, rows).forward(kernel.norm));
    }
    let join = |i: usize, axis: usize| {
        Tensor::concatenate(&parts.iter().map(|part| part[i]).collect::<Vec<_>>(), axis)
    };
    vec![join(0, 1), join(1, 3), join(2, 3)]
}

/// Of the backward kernel's args: the cotangents of qkv and lambda.
pub(super) fn backward<'f>(kernel: &DiffAttention, args: &[Tensor<'f>], how: Blocks) -> Vec<Tensor<'f>> {
    let mut x = Operands::new(kernel, args);
    let (y, stats, dy) = (args[5], args[7], args[8]);
    let (mut dq, mut d_lambda): (Vec<Tensor<'f>>, Vec<Tensor<'f>>) = Default::default();
    let mut sums: Option<[Tensor<'f>; 2]> = None;
    // From the last block, whose keys are all keys, so that the sums have their full length at once.
    for rows in blocks(y.dim(1), how.rows).rev() {
        let after: Vec<Tensor<'f>> = dq.pop().into_iter().chain(sums.into_iter().flatten()).collect();
        let (next, after) = how.next(x, &after);
        x = next;
        if let [last, dk, dv] = after[..] {
            dq.push(last);
            sums = Some([dk, dv]);
        }
        let of_rows = |x: Tensor<'f>, axis: usize| x.slice_axis(axis, rows.0, rows.1);
        let block = Block::new(kernel, &x, rows);
        let [q, k, v, lambda] = block.backward(kernel.norm, of_rows(y, 1), of_rows(stats, 3), of_rows(dy, 1));
        dq.push(q);
        d_lambda.push(lambda);
        sums = Some(match sums {
            None => [k, v],
            Some([dk, dv]) => [add_rows(dk, k), add_rows(dv, v)],
        });
    }
    dq.reverse();
    d_lambda.reverse();
    let [dk, dv] = sums.expect("at least one block");
    let dk = if kernel.key_maps() == 1 { dk.sum(&[3]) } else { dk };
    let (b, s) = (y.dim(0), y.dim(1));
    let (cos, minus_sin) = (args[1], -args[2]);
    let back = |x: Tensor<'f>, heads: usize, width: usize| {
        let x = x.reshape([b, s, heads, width / heads]);
        rotate(x, [cos, minus_sin]).reshape([b, s, width])
    };
    let [of_q, of_k, of_v] = kernel.widths();
    let dq = back(Tensor::concatenate(&dq, 1), 2 * kernel.heads, of_q);
    let dk = back(dk, kernel.key_maps() * kernel.groups, of_k);
    let d_qkv = Tensor::concatenate(&[dq, dk, dv.reshape([b, s, of_v])], 2);
    let d_lambda = Tensor::concatenate(&d_lambda, 1); // [b, s, h]
    vec![d_qkv, if args[3].rank() == 0 { d_lambda.sum_all() } else { d_lambda }]
}

/// Adds to the first rows (axis 1).
fn add_rows<'f>(sum: Tensor<'f>, part: Tensor<'f>) -> Tensor<'f> {
    let (all, some) = (sum.dim(1), part.dim(1));
    Tensor::concatenate(&[sum.slice_axis(1, 0, some) + part, sum.slice_axis(1, some, all)], 1)
}
