//! Differential attention: `O = (softmax(S1) - lambda softmax(S2)) V`, causal and within documents, heads of a group
//! sharing keys and values. Source: arXiv 2410.05258 eq. 1; the gradient is SPEC 8.1.
//!
//! The portable form works on blocks of query rows against the keys up to the block's end: a whole row of scores is
//! there at once, so the two maps are subtracted before the one product with V, the backward pass needs nothing but
//! the operands, and what lies right of the diagonal block is never computed.

use crate::wide;
use engine::{Backward, Builder, Func, Kernel, KernelChoice, Lowering, ShapeError, Target, Tensor, Type};

/// Arguments: q `[b, s, h, 2, d]`, k `[b, s, g, 2, d]` (both after RoPE), v `[b, s, g, e]`, lambda `[]` or `[b, s, h]`
/// f32, segments `[b, s]` i32. Result: O `[b, s, h, e]` f32. A query sees the keys at or before it in its segment.
#[derive(Clone, Debug)]
pub struct DiffAttention {
    /// Soft cap of the logits, `cap tanh(x / cap)`; 0 is off.
    pub cap: f64,
    /// Rows of one block of the portable form.
    pub rows: usize,
}

/// Arguments: those of the forward kernel, then dO `[b, s, h, e]` f32. Results: the cotangents of q, k, v and lambda.
#[derive(Clone, Debug)]
struct DiffAttentionBackward {
    forward: DiffAttention,
}

struct Sizes {
    b: usize,
    s: usize,
    h: usize,
    g: usize,
    d: usize,
    e: usize,
}

impl DiffAttention {
    /// With blocks of 256 rows: longer ones waste work right of the diagonal, shorter ones make small matrix products.
    pub fn new(cap: f64) -> DiffAttention {
        DiffAttention { cap, rows: 256 }
    }

    fn sizes(&self, args: &[Type]) -> Result<Sizes, ShapeError> {
        let complain = |wanted: &str| Err(ShapeError(format!("wants {wanted}")));
        let [q, k, v, lambda, segments, ..] = args else { return complain("q, k, v, lambda and segments") };
        let &[b, s, h, 2, d] = &q.shape[..] else { return complain("q [b, s, h, 2, d]") };
        let &[kb, ks, g, 2, kd] = &k.shape[..] else { return complain("k [b, s, g, 2, d]") };
        let &[vb, vs, vg, e] = &v.shape[..] else { return complain("v [b, s, g, e]") };
        if (kb, ks, kd) != (b, s, d) || (vb, vs, vg) != (b, s, g) {
            return complain("q, k and v of one batch, length and head width");
        }
        if g == 0 || h % g != 0 {
            return Err(ShapeError(format!("{h} heads do not divide into {g} groups")));
        }
        if !q.dtype.is_float() || k.dtype != q.dtype || v.dtype != q.dtype {
            return complain("q, k and v of one float type");
        }
        let wide = wide(q.dtype);
        if lambda.dtype != wide || !(lambda.rank() == 0 || lambda.shape == [b, s, h]) {
            return Err(ShapeError(format!("wants lambda {wide}[] or {wide}[{b},{s},{h}]")));
        }
        if *segments != Type::i32([b, s]) {
            return Err(ShapeError(format!("wants segments i32[{b},{s}]")));
        }
        Ok(Sizes { b, s, h, g, d, e })
    }

    fn output(&self, args: &[Type]) -> Result<Type, ShapeError> {
        let Sizes { b, s, h, e, .. } = self.sizes(args)?;
        Ok(Type::new(wide(args[0].dtype), [b, s, h, e]))
    }
}

/// Query rows `rows.0..rows.1` against the keys before `rows.1`.
struct Block<'f> {
    /// `[b, q, g, r, 2, d]`
    q: Tensor<'f>,
    /// `[b, k, g, 2, d]`
    k: Tensor<'f>,
    /// `[b, k, g, e]`
    v: Tensor<'f>,
    /// `[b, g, q, r]`
    lambda: Tensor<'f>,
    /// The two maps, `[b, g, 2, q, r, k]`.
    p: Tensor<'f>,
    /// Derivative of the capped logit by the raw one, if there is a cap.
    slope: Option<Tensor<'f>>,
}

impl<'f> Block<'f> {
    fn new(kernel: &DiffAttention, args: &[Tensor<'f>], rows: (usize, usize)) -> Block<'f> {
        let types: Vec<Type> = args.iter().map(|arg| arg.ty()).collect();
        let sizes = kernel.sizes(&types).expect("checked when the kernel was called");
        let Sizes { b, h, g, d, .. } = sizes;
        let (queries, r) = (rows.1 - rows.0, h / g);
        let wide = wide(args[0].dtype());
        let q = args[0].slice_axis(1, rows.0, rows.1).reshape([b, queries, g, r, 2, d]);
        let k = args[1].slice_axis(1, 0, rows.1);
        let v = args[2].slice_axis(1, 0, rows.1);
        let lambda = per_token(args[3], &sizes).slice_axis(1, rows.0, rows.1); // [b, q, h]
        let lambda = lambda.reshape([b, queries, g, r]).transpose(&[0, 2, 1, 3]); // [b, g, q, r]

        let scores = q.einsum_as("bqgrtd,bkgtd->bgtqrk", k, wide) * (d as f64).powf(-0.5); // [b, g, t, q, r, k]
        let (scores, slope) = match kernel.cap {
            0.0 => (scores, None),
            cap => {
                let tanh = (scores * (1.0 / cap)).tanh();
                (tanh * cap, Some(1.0 - tanh * tanh))
            }
        };
        let mask = visible(args[4], rows).broadcast_in_dim(scores.shape(), &[0, 3, 5]);
        let scores = mask.select(scores, f64::NEG_INFINITY);
        // The diagonal is always visible, so no row is empty.
        let top = scores.reduce_max(&[5]).stop_gradient();
        let e = (scores - top.along(scores, &[0, 1, 2, 3, 4])).exp();
        let p = e / e.sum(&[5]).along(e, &[0, 1, 2, 3, 4]);
        Block { q, k, v, lambda, p, slope }
    }

    /// One of the two maps, `[b, g, q, r, k]`.
    fn map(&self, of: Tensor<'f>, t: usize) -> Tensor<'f> {
        let mut shape = of.shape();
        shape.remove(2);
        of.slice_axis(2, t, t + 1).reshape(shape)
    }

    /// `A = P1 - lambda P2`, subtracted before rounding: the difference cancels.
    fn difference(&self) -> Tensor<'f> {
        let (p1, p2) = (self.map(self.p, 0), self.map(self.p, 1));
        p1 - self.lambda.along(p1, &[0, 1, 2, 3]) * p2
    }

    /// `O = A V`, `[b, q, h, e]`.
    fn output(&self) -> Tensor<'f> {
        let a = self.difference();
        let o = a.convert(self.v.dtype()).einsum_as("bgqrk,bkge->bqgre", self.v, a.dtype());
        let [b, q, g, r, e] = o.shape()[..] else { unreachable!("five axes") };
        o.reshape([b, q, g * r, e])
    }

    /// Cotangents of this block's rows of q and lambda, and its contributions to k and v, given dO `[b, q, h, e]`.
    fn backward(&self, d_out: Tensor<'f>) -> [Tensor<'f>; 4] {
        let [b, queries, g, r, _, d] = self.q.shape()[..] else { unreachable!("six axes") };
        let e = d_out.dim(3);
        let (narrow, wide) = (self.q.dtype(), self.p.dtype());
        let d_out = d_out.reshape([b, queries, g, r, e]).convert(narrow);
        // dA = dO V^T, dV = A^T dO
        let da = d_out.einsum_as("bqgre,bkge->bgqrk", self.v, wide);
        let dv = self.difference().convert(narrow).einsum_as("bgqrk,bqgre->bkge", d_out, narrow);
        // dS1 = P1 (dA - D1), dS2 = -lambda P2 (dA - D2) with Dt = rowsum(Pt dA); dlambda = -D2
        let both = da.reshape([b, g, 1, queries, r, da.dim(4)]);
        let both = Tensor::concatenate(&[both, both], 2); // [b, g, t, q, r, k]
        let row_sums = (self.p * both).sum(&[5]); // [b, g, t, q, r]
        let ds = self.p * (both - row_sums.along(both, &[0, 1, 2, 3, 4]));
        let minus_lambda = -self.lambda;
        let ones = minus_lambda.full_like(1.0);
        let sign = Tensor::concatenate(&[ones, minus_lambda].map(|t| t.reshape([b, g, 1, queries, r])), 2);
        let ds = ds * sign.along(ds, &[0, 1, 2, 3, 4]);
        let ds = self.slope.map_or(ds, |slope| ds * slope);
        let ds = (ds * (d as f64).powf(-0.5)).convert(narrow);
        let dq = ds.einsum("bgtqrk,bkgtd->bqgrtd", self.k).reshape([b, queries, g * r, 2, d]);
        let dk = ds.einsum("bgtqrk,bqgrtd->bkgtd", self.q);
        let d_lambda = -self.map(row_sums.reshape([b, g, 2, queries, r, 1]), 1); // [b, g, q, r, 1]
        let d_lambda =
            d_lambda.reshape([b, g, queries, r]).transpose(&[0, 2, 1, 3]).reshape([b, queries, g * r]);
        [dq, dk, dv, d_lambda]
    }
}

/// lambda as `[b, s, h]`.
fn per_token<'f>(lambda: Tensor<'f>, sizes: &Sizes) -> Tensor<'f> {
    match lambda.rank() {
        0 => lambda.broadcast_in_dim([sizes.b, sizes.s, sizes.h], &[]),
        _ => lambda,
    }
}

/// `[b, q, k]`: key at or before the query, in its segment.
fn visible(segments: Tensor<'_>, rows: (usize, usize)) -> Tensor<'_> {
    let f = segments.builder();
    let b = segments.dim(0);
    let shape = [b, rows.1 - rows.0, rows.1];
    let of_query = segments.slice_axis(1, rows.0, rows.1).broadcast_in_dim(shape, &[0, 1]);
    let of_key = segments.slice_axis(1, 0, rows.1).broadcast_in_dim(shape, &[0, 2]);
    let causal = Tensor::lower_triangle(f, rows.1 - rows.0, rows.1, rows.0 as i32);
    of_query.eq(of_key) & causal.broadcast_in_dim(shape, &[1, 2])
}

/// Blocks of rows that cover a sequence.
fn blocks(s: usize, rows: usize) -> impl DoubleEndedIterator<Item = (usize, usize)> {
    (0..s.div_ceil(rows)).map(move |i| (i * rows, ((i + 1) * rows).min(s)))
}

/// How the blocks of a lowering are arranged.
#[derive(Clone, Copy)]
struct Blocks {
    rows: usize,
    /// Each block starts when the one before it has ended.
    in_turn: bool,
}

impl Blocks {
    fn of(rows: usize, target: Target) -> Blocks {
        // In turn, for libtpu starts blocks side by side and holds the scores of each: in the 1b step the attention's
        // part of the temporaries ended at 9.6 GiB, in turn at 8.8. Twice the rows: half as many unrolled blocks to
        // compile; what that saves is not measured yet.
        match target {
            Target::TpuV6e => Blocks { rows: 2 * rows, in_turn: true },
            Target::Cpu | Target::Cuda => Blocks { rows, in_turn: false },
        }
    }

    fn one(s: usize) -> Blocks {
        Blocks { rows: s, in_turn: false }
    }

    /// Arguments that are there when `after` is, and `after` itself.
    fn next<'f>(self, args: &[Tensor<'f>], after: &[Tensor<'f>]) -> (Vec<Tensor<'f>>, Vec<Tensor<'f>>) {
        if !self.in_turn || after.is_empty() {
            return (args.to_vec(), after.to_vec());
        }
        let mut tied = Tensor::optimization_barrier(&[args, after].concat());
        let after = tied.split_off(args.len());
        (tied, after)
    }
}

fn forward<'f>(kernel: &DiffAttention, args: &[Tensor<'f>], how: Blocks) -> Vec<Tensor<'f>> {
    let mut args = args.to_vec();
    let mut parts: Vec<Tensor<'f>> = Vec::new();
    for rows in blocks(args[0].dim(1), how.rows) {
        let last = parts.pop();
        let (next, after) = how.next(&args, last.as_slice());
        args = next;
        parts.extend(after);
        parts.push(Block::new(kernel, &args, rows).output());
    }
    vec![Tensor::concatenate(&parts, 1)]
}

fn backward<'f>(kernel: &DiffAttention, args: &[Tensor<'f>], how: Blocks) -> Vec<Tensor<'f>> {
    let mut args = args.to_vec();
    let (mut dq, mut d_lambda): (Vec<Tensor<'f>>, Vec<Tensor<'f>>) = Default::default();
    let mut sums: Option<[Tensor<'f>; 2]> = None;
    // From the last block, whose keys are all keys, so that the sums have their full length at once.
    for rows in blocks(args[0].dim(1), how.rows).rev() {
        let after: Vec<Tensor<'f>> = dq.pop().into_iter().chain(sums.into_iter().flatten()).collect();
        let (next, after) = how.next(&args, &after);
        args = next;
        if let [last, dk, dv] = after[..] {
            dq.push(last);
            sums = Some([dk, dv]);
        }
        let d_out = args[5].slice_axis(1, rows.0, rows.1);
        let [q, k, v, lambda] = Block::new(kernel, &args, rows).backward(d_out);
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
    let d_lambda = Tensor::concatenate(&d_lambda, 1); // [b, s, h]
    let d_lambda = if args[3].rank() == 0 { d_lambda.sum_all() } else { d_lambda };
    vec![Tensor::concatenate(&dq, 1), dk, dv, d_lambda]
}

/// Adds to the first rows (axis 1).
fn add_rows<'f>(sum: Tensor<'f>, part: Tensor<'f>) -> Tensor<'f> {
    let (all, some) = (sum.dim(1), part.dim(1));
    Tensor::concatenate(&[sum.slice_axis(1, 0, some) + part, sum.slice_axis(1, some, all)], 1)
}

impl Kernel for DiffAttention {
    fn name(&self) -> String {
        format!("diff_attention(cap={}, rows={})", self.cap, self.rows)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        if args.len() != 5 {
            return Err(ShapeError("wants q, k, v, lambda and segments".to_owned()));
        }
        Ok(vec![self.output(args)?])
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        forward(self, args, Blocks::one(args[0].dim(1)))
    }

    fn vjp<'f>(&self, args: &[Tensor<'f>], _: &[Tensor<'f>], cts: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        let f = args[0].builder();
        let operands: Vec<Tensor<'f>> = args.iter().chain(cts).copied().collect();
        let grads = f.kernel(DiffAttentionBackward { forward: self.clone() }, &operands);
        Backward::Grads(grads.into_iter().map(Some).chain([None]).collect())
    }

    fn lower(&self, args: &[Type], target: Target, _: KernelChoice) -> Lowering {
        let how = Blocks::of(self.rows, target);
        Lowering::Portable(Func::build(args, |_: &Builder<'_>, args| forward(self, args, how)))
    }
}

impl Kernel for DiffAttentionBackward {
    fn name(&self) -> String {
        format!("diff_attention_backward(cap={}, rows={})", self.forward.cap, self.forward.rows)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let output = self.forward.output(args)?;
        if args.len() != 6 || args[5] != output {
            return Err(ShapeError(format!("wants dO {output}")));
        }
        Ok(args[..4].to_vec())
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        backward(&self.forward, args, Blocks::one(args[0].dim(1)))
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("second derivatives are not needed for training")
    }

    fn lower(&self, args: &[Type], target: Target, _: KernelChoice) -> Lowering {
        let how = Blocks::of(self.forward.rows, target);
        Lowering::Portable(Func::build(args, |_: &Builder<'_>, args| backward(&self.forward, args, how)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::DType;

    #[test]
    fn shapes_are_checked_in_words() {
        let q = Type::f32([1, 4, 3, 2, 8]);
        let (k, v) = (Type::f32([1, 4, 2, 2, 8]), Type::f32([1, 4, 2, 16]));
        let args = [q, k, v, Type::scalar(DType::F32), Type::i32([1, 4])];
        let error = DiffAttention::new(0.0).infer(&args).unwrap_err();
        assert_eq!(error.to_string(), "3 heads do not divide into 2 groups");
    }
}
