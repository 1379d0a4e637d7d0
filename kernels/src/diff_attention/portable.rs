//! The portable form: blocks of query rows against the keys up to the block's end. A whole row of scores is there at once,
//! so the two maps are subtracted before the one product with V, and what lies right of the diagonal block is never
//! computed. The backward pass computes the scores again; the saved sums of the softmaxes spare it the two row reductions.

use super::{DiffAttention, HeadNorm};
use crate::wide;
use engine::{ScanOptions, Tensor, Type};

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
        let [q_width, k_width, v_width] = kernel.widths();
        let q = qkv.slice_axis(2, 0, q_width).reshape([b, s, h, 2, d]);
        let k = qkv.slice_axis(2, q_width, q_width + k_width).reshape([b, s, g, kernel.key_maps(), d]);
        let v = qkv.slice_axis(2, q_width + k_width, q_width + k_width + v_width).reshape([
            b,
            s,
            g,
            kernel.value_dim,
        ]);
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

/// Some query rows against the first keys.
struct QueryBlock<'f> {
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

impl<'f> QueryBlock<'f> {
    /// `first`: position of the first query, an i32 scalar. x: q, lambda and starts of the rows; k and v of the keys.
    fn new(kernel: &DiffAttention, first: Tensor<'f>, x: Operands<'f>) -> QueryBlock<'f> {
        let Operands { q, k, v, lambda, starts } = x;
        let (b, queries) = (q.dim(0), q.dim(1));
        let (g, r, d) = (kernel.groups, kernel.heads / kernel.groups, kernel.head_dim);
        let lambda = lambda.reshape([b, queries, g, r]).transpose(&[0, 2, 1, 3]); // [b, g, q, r]
        let scores = q.einsum_as("bqgrtd,bkgtd->bgtqrk", k, wide(q.dtype())) * (d as f64).powf(-0.5);
        let (scores, slope) = match kernel.cap {
            0.0 => (scores, None),
            cap => {
                let tanh = (scores * (1.0 / cap)).tanh();
                (tanh * cap, Some(1.0 - tanh * tanh))
            }
        };
        let mask = visible(first, starts, k.dim(1)).broadcast_in_dim(scores.shape(), &[0, 3, 5]);
        QueryBlock { q, k, v, lambda, scores: mask.select(scores, f64::NEG_INFINITY), slope }
    }

    /// One of the two maps, `[b, g, q, r, k]`.
    fn map(of: Tensor<'f>, t: usize) -> Tensor<'f> {
        let mut shape = of.shape();
        shape.remove(2);
        of.slice_axis(2, t, t + 1).reshape(shape)
    }

    /// `A = P1 - lambda P2`, subtracted before rounding: the difference cancels.
    fn difference(&self, p: Tensor<'f>) -> Tensor<'f> {
        let (p1, p2) = (QueryBlock::map(p, 0), QueryBlock::map(p, 1));
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
        let o2 = self.values(QueryBlock::map(p, 1)).convert(self.v.dtype()).transpose(&[0, 2, 3, 1]);
        let lse = (top + sum.log()).transpose(&[0, 1, 4, 2, 3]).reshape([b, h, 2, q]);
        let factor = factor.transpose(&[0, 2, 1]).reshape([b, h, 1, q]);
        [y, o2, Tensor::concatenate(&[lse, factor], 2)]
    }

    /// Cotangents of these rows of q (rotated) and lambda, and their contributions to k (rotated) and v, none of them rounded
    /// yet. y, dy `[b, q, h e]` and statistics `[b, h, 3, q]` of these rows.
    fn backward(&self, norm: HeadNorm, y: Tensor<'f>, stats: Tensor<'f>, dy: Tensor<'f>) -> [Tensor<'f>; 4] {
        let [b, queries, g, r, _, d] = self.q.shape()[..] else { unreachable!("six axes") };
        let e = self.v.dim(3);
        let (narrow, wide) = (self.q.dtype(), self.scores.dtype());
        let per_head = |x: Tensor<'f>| x.convert(wide).reshape([b, queries, g, r, e]);
        let (y, dy) = (per_head(y), per_head(dy));
        let stats = stats.reshape([b, g, r, 3, queries]).transpose(&[0, 1, 3, 4, 2]); // [b, g, 3, q, r]
        let lse = stats.slice_axis(2, 0, 2);
        let factor = QueryBlock::map(stats, 2).transpose(&[0, 2, 1, 3]); // [b, q, g, r]
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
        let dv = self.difference(p).convert(narrow).einsum_as("bgqrk,bqgre->bkge", d_out, wide);
        // dS1 = P1 (dA - D1), dS2 = -lambda P2 (dA - D2) with Dt = rowsum(Pt dA) = rowsum(dO Ot);
        // D1 - lambda D2 = rowsum(dO O); dlambda = -D2
        let d2 = (QueryBlock::map(p, 1) * da).sum(&[4]); // [b, g, q, r]
        let d1 = along_out + self.lambda * d2;
        let map = |x: Tensor<'f>| x.reshape([b, g, 1, queries, r]);
        let row_sums = Tensor::concatenate(&[map(d1), map(d2)], 2); // [b, g, t, q, r]
        let both = da.reshape([b, g, 1, queries, r, da.dim(4)]);
        let both = Tensor::concatenate(&[both, both], 2); // [b, g, t, q, r, k]
        let sign = Tensor::concatenate(&[map(d2.full_like(1.0)), map(-self.lambda)], 2);
        let ds = p * (both - row_sums.along(both, &[0, 1, 2, 3, 4])) * sign.along(p, &[0, 1, 2, 3, 4]);
        let ds = self.slope.map_or(ds, |slope| ds * slope);
        let ds = (ds * (d as f64).powf(-0.5)).convert(narrow);
        let dq = ds.einsum_as("bgtqrk,bkgtd->bqgrtd", self.k, wide);
        let dk = ds.einsum_as("bgtqrk,bqgrtd->bkgtd", self.q, wide);
        let d_lambda = (-d2).transpose(&[0, 2, 1, 3]).reshape([b, queries, g * r]);
        [dq, dk, dv, d_lambda]
    }
}

/// `[b, q, k]`: key between the query's start and the query. starts: `[b, q]`, of queries from `first` on.
fn visible<'f>(first: Tensor<'f>, starts: Tensor<'f>, keys: usize) -> Tensor<'f> {
    let ty = Type::i32([starts.dim(0), starts.dim(1), keys]);
    let per_query = |x: Tensor<'f>| x.broadcast_in_dim(ty.shape.clone(), &[0, 1]);
    let query = first.builder().iota(starts.ty(), 1) + first.along(starts, &[]);
    let key = first.builder().iota(ty.clone(), 2);
    key.ge(per_query(starts)) & key.le(per_query(query))
}

/// Parts of a sequence whose keys are cut off at one place, so that a loop can run over their blocks of rows: of four
/// parts, the keys after a block's last row that are multiplied nevertheless are an eighth of all pairs at most.
const PARTS: usize = 4;

/// Some blocks of rows, which read the keys up to the last one's end.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    /// Rows of a block.
    rows: usize,
    blocks: usize,
}

impl Part {
    fn end(self) -> usize {
        self.first + self.rows * self.blocks
    }

    /// Parts that cover a sequence, in its order.
    fn all(seq: usize, rows: usize) -> Vec<Part> {
        let (whole, rest) = (seq / rows, seq % rows);
        let blocks = whole.div_ceil(PARTS).max(1);
        let mut parts: Vec<Part> = (0..whole)
            .step_by(blocks)
            .map(|i| Part { first: i * rows, rows, blocks: blocks.min(whole - i) })
            .collect();
        if rest > 0 {
            parts.push(Part { first: whole * rows, rows: rest, blocks: 1 });
        }
        parts
    }

    /// Runs `body` for every block: it gets the position of the block's first row, the carry, the block's part of `rows`
    /// (each cut along the axis that is given) and `whole`, and returns the carry and results, which are put together
    /// along their own axes.
    fn walk<'f>(
        self,
        carry: &[Tensor<'f>],
        rows: &[(Tensor<'f>, usize)],
        whole: &[Tensor<'f>],
        axes: &[usize],
        body: impl for<'g> FnOnce(Tensor<'g>, &[Tensor<'g>], &[Tensor<'g>], &[Tensor<'g>]) -> [Vec<Tensor<'g>>; 2],
    ) -> [Vec<Tensor<'f>>; 2] {
        let f = whole[0].builder();
        let rows = rows.iter().map(|&(x, axis)| (x.slice_axis(axis, self.first, self.end()), axis));
        if self.blocks == 1 {
            let rows: Vec<Tensor<'f>> = rows.map(|(x, _)| x).collect();
            return body(f.scalar(self.first as i32), carry, &rows, whole);
        }
        let firsts = f.iota(Type::i32([self.blocks]), 0) * self.rows as i32 + self.first as i32;
        let xs: Vec<Tensor<'f>> =
            std::iter::once(firsts).chain(rows.map(|(x, axis)| cut(x, axis, self.blocks))).collect();
        let (carry, results) = f.scan(ScanOptions::over(self.blocks), carry, &xs, |g, carry, x| {
            let whole: Vec<Tensor<'_>> = whole.iter().map(|&x| g.capture(x)).collect();
            let [carry, results] = body(x[0], carry, &x[1..], &whole);
            (carry, results)
        });
        [carry, results.into_iter().zip(axes).map(|(x, &axis)| join(x, axis)).collect()]
    }
}

/// Cuts an axis into blocks and lays those along a new first axis.
fn cut(x: Tensor<'_>, axis: usize, blocks: usize) -> Tensor<'_> {
    let mut shape = x.shape();
    shape[axis] /= blocks;
    shape.insert(axis, blocks);
    let mut order: Vec<usize> = (0..shape.len()).collect();
    order.remove(axis);
    order.insert(0, axis);
    x.reshape(shape).transpose(&order)
}

/// Puts blocks along the first axis together along the axis that is `axis` without it.
fn join(x: Tensor<'_>, axis: usize) -> Tensor<'_> {
    let mut order: Vec<usize> = (1..x.rank()).collect();
    order.insert(axis, 0);
    let x = x.transpose(&order);
    let mut shape = x.shape();
    let blocks = shape.remove(axis);
    shape[axis] *= blocks;
    x.reshape(shape)
}

/// Of args as the kernel has them: y, O2 and the statistics. In blocks of `rows` queries.
pub(super) fn forward<'f>(kernel: &DiffAttention, args: &[Tensor<'f>], rows: usize) -> Vec<Tensor<'f>> {
    let x = Operands::new(kernel, args);
    let axes = [1, 3, 3];
    let mut parts: Vec<Vec<Tensor<'f>>> = Vec::new();
    for part in Part::all(args[0].dim(1), rows) {
        let keys = [x.k, x.v].map(|x| x.slice_axis(1, 0, part.end()));
        let row_operands = [x.q, x.lambda, x.starts].map(|x| (x, 1));
        let [_, results] = part.walk(&[], &row_operands, &keys, &axes, |first, _, rows, keys| {
            let x = Operands { q: rows[0], k: keys[0], v: keys[1], lambda: rows[1], starts: rows[2] };
            [vec![], QueryBlock::new(kernel, first, x).forward(kernel.norm).to_vec()]
        });
        parts.push(results);
    }
    together(&parts, &axes)
}

/// Of the backward kernel's args: the cotangents of qkv and lambda. In blocks of `rows` queries.
pub(super) fn backward<'f>(kernel: &DiffAttention, args: &[Tensor<'f>], rows: usize) -> Vec<Tensor<'f>> {
    let x = Operands::new(kernel, args);
    let (y, stats, dy) = (args[5], args[7], args[8]);
    let (b, s) = (y.dim(0), y.dim(1));
    // Sums of all blocks, rounded once, after the rotation.
    let mut sums = [x.k, x.v].map(|x| x.convert(wide(x.dtype())).zeros_like());
    let mut parts: Vec<Vec<Tensor<'f>>> = Vec::new();
    for part in Part::all(s, rows) {
        let end = part.end();
        let keys = [x.k, x.v].map(|x| x.slice_axis(1, 0, end));
        let row_operands = [(x.q, 1), (x.lambda, 1), (x.starts, 1), (y, 1), (stats, 3), (dy, 1)];
        let seen = sums.map(|sum| sum.slice_axis(1, 0, end));
        let [seen, results] = part.walk(&seen, &row_operands, &keys, &[1, 1], |first, sums, rows, keys| {
            let &[q, lambda, starts, y, stats, dy] = rows else { unreachable!("six of them") };
            let block =
                QueryBlock::new(kernel, first, Operands { q, k: keys[0], v: keys[1], lambda, starts });
            let [q, k, v, lambda] = block.backward(kernel.norm, y, stats, dy);
            [vec![sums[0] + k, sums[1] + v], vec![q, lambda]]
        });
        parts.push(results);
        for (sum, seen) in sums.iter_mut().zip(seen) {
            *sum = Tensor::concatenate(&[seen, sum.slice_axis(1, end, s)], 1);
        }
    }
    let [dk, dv] = sums;
    let [dq, d_lambda] = together(&parts, &[1, 1])[..] else { unreachable!("two results") };
    let dk = if kernel.key_maps() == 1 { dk.sum(&[3]) } else { dk };
    let (cos, minus_sin) = (args[1], -args[2]);
    let back = |x: Tensor<'f>, heads: usize, width: usize| {
        let x = x.reshape([b, s, heads, width / heads]);
        rotate(x, [cos, minus_sin]).reshape([b, s, width])
    };
    let [q_width, k_width, v_width] = kernel.widths();
    let dq = back(dq, 2 * kernel.heads, q_width);
    let dk = back(dk, kernel.key_maps() * kernel.groups, k_width);
    let d_qkv = Tensor::concatenate(&[dq, dk, dv.reshape([b, s, v_width])], 2);
    vec![d_qkv.convert(args[0].dtype()), if args[3].rank() == 0 { d_lambda.sum_all() } else { d_lambda }]
}

/// Results of all parts, each put together along its axis.
fn together<'f>(parts: &[Vec<Tensor<'f>>], axes: &[usize]) -> Vec<Tensor<'f>> {
    let gathered = |i: usize| parts.iter().map(|part| part[i]).collect::<Vec<_>>();
    axes.iter().enumerate().map(|(i, &axis)| Tensor::concatenate(&gathered(i), axis)).collect()
}
