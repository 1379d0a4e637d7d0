//! Linear cross-entropy: the loss of `h W^T` against target tokens, and both gradients in the same visit, so that the
//! logits of all tokens never exist at once and are never computed twice.
//!
//! The portable form works on chunks of tokens with unnormalised probabilities. With y the capped logit, e = exp(y), s the
//! sum of e in a row, t the target, w the weight and z the factor of `lse^2`, `lse = log(s)`:
//!
//! ```text
//! dz_j = w dy_j/dz_j  e_j (1 + 2 z lse) / s                                          j != t
//! dz_t = w dy_t/dz_t (e_t (1 + 2 z lse) / s - 1) = -w dy_t/dz_t (s - e_t - 2 z lse e_t) / s =: -c
//! ```
//!
//! `q = e dy/dz`, rounded to the compute type, is the one matrix that both products read, and what is per token moves to
//! rows of width m: with `r = w (1 + 2 z lse) / s` it is `dh = r (q W) - (c + r q_t) W[t]`, `dW = q^T (r h)` and rows
//! `-(c h + q_t (r h))` scattered at t. The target's column is taken out again as it went in, rounding included: where a
//! token is predicted with confidence e_t/s is nearly 1, and its rounding larger than all that the token contributes. To leave
//! it out of q instead, the pass that makes q would read the targets: on a v6e 3 % of a step of `1b`.
//!
//! What is taken out has to be the same number to the bit, and a row dot of h and W[t] sums in another order than the
//! product. But a target with more than half of s is the largest logit of its row, whose maximum the pass knows: y_t is
//! that, and e_t and q_t follow from it by the operations that made them before. (Where rounding decides between half and
//! less, the largest other one is as near to y_t.) Then `s - e_t` is exact, and what is left is the rounding of s and of
//! `q W`, sums over columns in f32: of v columns at most `2^-24 sqrt(2 v) w |dy_t/dz_t W[t]|`, however small dh is. That is
//! 0.4 % of dh at 1 - p = 5e-4 for 512 columns. Checked against automatic differentiation by the tests.

use crate::example::{ACTIVATIONS, Example, Values};
use crate::wide;
use engine::{Backward, Builder, DType, Form, Func, Kernel, ScanOptions, ShapeError, Target, Tensor, Type};

/// Which gradients are computed beside the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradients {
    /// None.
    Without,
    /// That of h and that of W.
    With,
    /// That of h, and that of W added to a sum of many calls while it is made: W is given with its gradient stopped. A sum
    /// of its own for each call would be written as zeros, read, and added: for the vocabulary of `1b` 1 % of a step each.
    Into,
}

/// Arguments: h `[n, m]`, W `[v, m]` of one float type, targets `[n]` i32, weights `[n]` f32 (0 where there is no
/// target; their normalisation is the caller's), and for [`Gradients::Into`] the sum `[v, m]` f32. Results: the weighted
/// sum of `lse - z_t + z_loss lse^2`, a scalar f32, and with gradients dh `[n, m]` and dW `[v, m]` or the new sum, both
/// for a cotangent of 1.
#[derive(Clone, Debug)]
pub struct LinearCrossEntropy {
    /// Soft cap of the logits, `cap tanh(x / cap)`; 0 is off.
    pub cap: f64,
    /// Columns from here on are padding: they count in no sum.
    pub columns: usize,
    /// Weight of the squared log-sum-exp.
    pub z_loss: f64,
    /// Whether gradients are computed.
    pub gradients: Gradients,
}

/// Largest cap whose logits need no shift before exp: then exp(y) lies within 2^-64 and 2^64. That is half of the exponents
/// of f32 and bf16; the other half is left to the sum over the vocabulary, the weights and h.
const UNSHIFTED: f64 = 44.0; // < 64 ln 2

/// Tokens of one chunk of the portable form: enough for the products to hide the sums' traffic, few enough for the
/// logits to stay small (151808 columns, 1024 tokens: 0.6 GB in f32).
fn chunk_of(target: Target) -> usize {
    match target {
        // By libtpu's estimate the pass over the f32 sum of dW does not hide behind a product of 1024 tokens: 87
        // Mcycles for 16384 tokens, 66 with 2048; with 64 MiB of on-chip memory for an operation 60 with 2048 and 52
        // with 4096: the table in [`v6e`](crate::v6e).
        Target::TpuV6e => 4096,
        // Logits of 256 tokens of `bench` and their cotangent take 8 MiB, of 1024 they were the largest arrays of its step.
        Target::Cpu => 256,
        Target::Cuda | Target::OtherTpu => 1024,
    }
}

impl LinearCrossEntropy {
    fn check(&self, args: &[Type]) -> Result<(), ShapeError> {
        let [h, w, targets, weights, sum @ ..] = args else {
            return Err(ShapeError("wants h, W, targets and weights".to_owned()));
        };
        let fits = h.rank() == 2
            && w.rank() == 2
            && h.shape[1] == w.shape[1]
            && h.dtype == w.dtype
            && h.dtype.is_float();
        if !fits {
            return Err(ShapeError("wants h [n, m] and W [v, m] of one float type".to_owned()));
        }
        let n = h.shape[0];
        let wide = wide(h.dtype);
        if *targets != Type::i32([n]) || *weights != Type::new(wide, [n]) {
            return Err(ShapeError(format!("wants targets i32[{n}] and weights {wide}[{n}]")));
        }
        let wanted = match self.gradients {
            Gradients::Into => vec![w.with_dtype(wide)],
            Gradients::With | Gradients::Without => vec![],
        };
        if sum != wanted {
            return Err(ShapeError(format!("wants {wanted:?} after the weights")));
        }
        if self.columns == 0 || self.columns > w.shape[0] {
            return Err(ShapeError(format!("{} columns of {}", self.columns, w.shape[0])));
        }
        Ok(())
    }

    /// The logit before the factor that [`LinearCrossEntropy::logit`] applies: `tanh(z / cap)`.
    fn bounded<'f>(&self, z: Tensor<'f>) -> Tensor<'f> {
        if self.cap > 0.0 { (z * (1.0 / self.cap)).tanh() } else { z }
    }

    /// The capped logit.
    fn logit<'f>(&self, x: Tensor<'f>) -> Tensor<'f> {
        if self.cap > 0.0 { x * self.cap } else { x }
    }

    /// `a dy/dz`.
    fn times_slope<'f>(&self, a: Tensor<'f>, x: Tensor<'f>) -> Tensor<'f> {
        if self.cap > 0.0 { a * (1.0 - x * x) } else { a }
    }

    /// `x` in real columns, `other` in padding.
    fn real<'f>(&self, x: Tensor<'f>, other: f64) -> Tensor<'f> {
        if self.columns == x.dim(1) {
            return x;
        }
        let column = x.builder().iota(x.ty().with_dtype(DType::I32), 1);
        column.lt(self.columns as i32).select(x, other)
    }

    /// Loss of a chunk, and with gradients its rows of dh, and dW added to `dw`.
    fn chunk<'f>(
        &self,
        h: Tensor<'f>,
        w: Tensor<'f>,
        targets: Tensor<'f>,
        weights: Tensor<'f>,
        dw: Option<Tensor<'f>>,
    ) -> (Tensor<'f>, Option<[Tensor<'f>; 2]>) {
        let (narrow, wide) = (h.dtype(), wide(h.dtype()));
        let x = self.bounded(h.einsum_as("nm,vm->nv", w, wide)); // [n, v]
        let real = self.real(x, f64::NEG_INFINITY);
        let largest = real.reduce_max(&[1]);
        // No shift where none is needed: the logits are visited once less.
        let unshifted = self.cap > 0.0 && self.cap <= UNSHIFTED;
        let top = if unshifted { largest.zeros_like() } else { self.logit(largest) };
        let exp = |x: Tensor<'f>, top: Tensor<'f>| (self.logit(x) - top).exp();
        let e = exp(real, top.along(x, &[0]));
        let sum = e.sum(&[1]);
        let rows = w.gather(targets); // [n, m]
        let x_target = self.bounded((h.convert(wide) * rows.convert(wide)).sum(&[1]));
        // As the pass over all columns had it.
        let x_target = (exp(x_target, top) * 2.0).gt(sum).select(largest, x_target);
        let e_target = exp(x_target, top);
        let lse = sum.log() + top;
        let loss = sum.log() - (self.logit(x_target) - top) + lse * lse * self.z_loss;
        let loss = (weights * loss).sum(&[0]);
        let Some(dw) = dw else { return (loss, None) };
        // Without the pins libtpu stores q in f32 and rounds it in both products' loops, and XLA reads the others before
        // they were rounded.
        let [q] = Tensor::materialized([self.times_slope(e, x).convert(narrow)]);
        let [q_target] = Tensor::materialized([self.times_slope(e_target, x_target).convert(narrow)]);
        let q_target = q_target.convert(wide);
        let r = weights * (1.0 + lse * (2.0 * self.z_loss)) / sum;
        let c = weights * (sum - e_target - e_target * lse * (2.0 * self.z_loss)) / sum;
        let c = self.times_slope(c, x_target);
        let along_h = |x: Tensor<'f>| x.along(rows, &[0]);
        let [scaled] = Tensor::materialized([(h.convert(wide) * along_h(r)).convert(narrow)]);
        let dh =
            q.einsum_as("nv,vm->nm", w, wide) * along_h(r) - along_h(c + r * q_target) * rows.convert(wide);
        let dw = dw + q.einsum_as("nv,nm->vm", scaled, wide);
        let target_rows = along_h(c) * h.convert(wide) + along_h(q_target) * scaled.convert(wide);
        let dw = dw.scatter_add(targets, -target_rows);
        (loss, Some([dh.convert(narrow), dw]))
    }

    fn portable<'f>(&self, f: &'f Builder<'f>, args: &[Tensor<'f>], chunk: usize) -> Vec<Tensor<'f>> {
        let &[h, w, targets, weights, ref sum @ ..] = args else {
            unreachable!("checked when the kernel was called")
        };
        let (n, m) = (h.dim(0), h.dim(1));
        let chunk = (1..=chunk.min(n)).rev().find(|size| n % size == 0).unwrap_or(n);
        let dw = match self.gradients {
            Gradients::Without => None,
            Gradients::With => Some(f.zeros(w.ty().with_dtype(weights.dtype()))),
            Gradients::Into => Some(sum[0]),
        };
        let finished = |dw: Tensor<'f>| if sum.is_empty() { dw.convert(w.dtype()) } else { dw };
        if chunk == n {
            let (loss, grads) = self.chunk(h, w, targets, weights, dw);
            return match grads {
                Some([dh, dw]) => vec![loss, dh, finished(dw)],
                None => vec![loss],
            };
        }
        let count = n / chunk;
        let xs =
            [h.reshape([count, chunk, m]), targets.reshape([count, chunk]), weights.reshape([count, chunk])];
        let zero = f.zeros(Type::scalar(weights.dtype()));
        let carry: Vec<Tensor<'f>> = std::iter::once(zero).chain(dw).collect();
        let (sums, parts) = f.scan(ScanOptions::over(count), &carry, &xs, |g, carry, x| {
            let (loss, grads) = self.chunk(x[0], g.capture(w), x[1], x[2], carry.get(1).copied());
            let mut next = vec![carry[0] + loss];
            next.extend(grads.map(|[_, dw]| dw));
            (next, grads.into_iter().map(|[dh, _]| dh).collect())
        });
        let mut results = vec![sums[0]];
        if dw.is_some() {
            results.extend([parts[0].reshape([n, m]), finished(sums[1])]);
        }
        results
    }
}

/// The loss alone, with both gradients, and with one that is added to a sum; padding columns among them.
pub(crate) fn examples() -> Vec<Example> {
    let (n, m, v, columns) = (8, 24, 50, 47);
    let example = |gradients: Gradients| {
        let mut args = vec![
            (Type::f32([n, m]), ACTIVATIONS),
            (Type::f32([v, m]), ACTIVATIONS),
            (Type::i32([n]), Values::Between(0.0, columns as f64 - 1.0)),
            (Type::f32([n]), Values::Between(0.0, 1.0)),
        ];
        if gradients == Gradients::Into {
            args.push((Type::f32([v, m]), ACTIVATIONS));
        }
        let kernel = LinearCrossEntropy { cap: 30.0, columns, z_loss: 1e-3, gradients };
        let wrt: &[usize] = match gradients {
            Gradients::Without => &[],
            Gradients::With => &[0, 1],
            Gradients::Into => &[0],
        };
        Example::new(kernel, args, wrt, &[])
    };
    [Gradients::Without, Gradients::With, Gradients::Into].map(example).to_vec()
}

impl Kernel for LinearCrossEntropy {
    fn name(&self) -> String {
        let LinearCrossEntropy { cap, columns, z_loss, gradients } = self;
        format!(
            "linear_cross_entropy(cap={cap}, columns={columns}, z_loss={z_loss}, gradients={gradients:?})"
        )
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        self.check(args)?;
        let loss = Type::scalar(wide(args[0].dtype));
        Ok(match self.gradients {
            Gradients::Without => vec![loss],
            Gradients::With => vec![loss, args[0].clone(), args[1].clone()],
            Gradients::Into => vec![loss, args[0].clone(), args[4].clone()],
        })
    }

    /// All logits at once, and the gradient as the textbook writes it.
    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let &[h, w, targets, weights, ref into @ ..] = args else {
            unreachable!("checked when the kernel was called")
        };
        let (n, v) = (h.dim(0), w.dim(0));
        let x = self.bounded(h.einsum_as("nm,vm->nv", w, wide(h.dtype())));
        let y = self.real(self.logit(x), f64::NEG_INFINITY);
        let top = y.reduce_max(&[1]).stop_gradient();
        let e = (y - top.along(y, &[0])).exp();
        let sum = e.sum(&[1]);
        let lse = sum.log() + top;
        let f = h.builder();
        let hot = f.iota(Type::i32([n, v]), 1).eq(targets.broadcast_in_dim([n, v], &[0]));
        let y_target = hot.select(y, 0.0).sum(&[1]);
        let loss = (weights * (lse - y_target + lse * lse * self.z_loss)).sum(&[0]);
        if self.gradients == Gradients::Without {
            return vec![loss];
        }
        // dz = (P (1 + 2 z lse) - onehot) w dy/dz, subtracted in f32: what is left of a confident token's 1 - p is exact to 6e-8,
        // as are the other tokens' parts of the sums that it is added to.
        let p = e / sum.along(e, &[0]) * (1.0 + lse * (2.0 * self.z_loss)).along(e, &[0]);
        let dy = (p - hot.convert(p.dtype())) * weights.along(p, &[0]);
        let dz = self.times_slope(dy, x).convert(h.dtype());
        let dw = match into {
            [] => dz.einsum("nv,nm->vm", h),
            into => into[0] + dz.einsum_as("nv,nm->vm", h, weights.dtype()),
        };
        vec![loss, dz.einsum("nv,vm->nm", w), dw]
    }

    fn vjp<'f>(
        &self,
        _: &[Tensor<'f>],
        results: &[Tensor<'f>],
        cts: &[Tensor<'f>],
        wanted: &[bool],
    ) -> Backward<'f> {
        let scaled = |grad: Tensor<'f>| Some(grad * cts[0].convert(grad.dtype()));
        match (self.gradients, wanted) {
            (Gradients::With, [_, _, _, false]) => {
                Backward::Grads(vec![scaled(results[1]), scaled(results[2]), None, None])
            }
            (Gradients::Into, [_, false, _, false, false]) => {
                Backward::Grads(vec![scaled(results[1]), None, None, None, None])
            }
            _ => {
                Backward::OfReference("the loss alone was asked for, or a gradient that was not made with it")
            }
        }
    }

    fn differentiable(&self) -> usize {
        1
    }

    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }

    fn lower(&self, args: &[Type], target: Target, _: Option<Form>) -> Option<(Form, Func)> {
        Some((Form::Portable, Func::build(args, |f, args| self.portable(f, args, chunk_of(target)))))
    }
}
