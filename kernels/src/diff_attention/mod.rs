//! Differential attention with what surrounds it: rotary embedding, `O = (softmax(S1) - lambda softmax(S2)) V`, causal and
//! within documents, heads of a group sharing keys and values, and the norm of each head's output. Source: arXiv
//! 2410.05258 eq. 1-3; the gradient: [`gradients`](crate::gradients).
//!
//! Everything is one kernel because on a TPU what stands between the projections is memory traffic: written as separate
//! operations, the rotations, the subtraction and the norm cost as much as the products ([`v6e`](crate::v6e)).

mod cpu;
mod portable;
mod tpu;

use crate::example::{ACTIVATIONS, Example, Values};
use crate::wide;
use engine::{Backward, Builder, Form, Func, Kernel, ShapeError, Target, Tensor, Type};
pub use portable::rotate;
pub use tpu::Tiling;

/// Which keys the two maps of a head see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Each map its own (arXiv 2410.05258).
    PerMap,
    /// Both the same (the second version of the architecture, huggingface.co/blog/microsoft/diff-attn-v2).
    Shared,
}

/// A norm of a head's vectors without a weight, which the caller's matrices have in them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadNorm {
    /// Divided by its root mean square, `O / sqrt(mean(O^2) + eps)`; the weight is the caller's.
    Rms {
        /// Added to the mean square.
        eps: f64,
    },
    /// Nothing.
    None,
}

/// Arguments: qkv `[b, s, w]`, the queries `(h, t, d)`, keys `(g, t, d)` or `(g, d)`, and values `(g, e)` of each token
/// side by side; cos and sin `[s, d/2]` of the rotation; lambda `[]` or `[b, s, h]`; starts `[b, s]` i32, the
/// position where each token's document begins. Tables and lambda are f32. A query sees the keys from its start to itself.
///
/// Results: y `[b, s, h e]` of qkv's type, and what the gradient needs besides: `O2 = P2 V` as `[b, h, e, s]`, and
/// statistics `[b, h, 3, s]` f32 of each row: the logarithms of the two softmaxes' sums, and the norm's factor.
#[derive(Clone, Debug)]
pub struct DiffAttention {
    /// Heads; each has two maps.
    pub heads: usize,
    /// Groups of heads that share keys and values.
    pub groups: usize,
    /// Width d of a query or key.
    pub head_dim: usize,
    /// Width e of a value.
    pub value_dim: usize,
    /// The maps' keys.
    pub keys: Keys,
    /// The norm of the heads' outputs.
    pub norm: HeadNorm,
    /// Soft cap of the logits, `cap tanh(x / cap)`; 0 is off.
    pub cap: f64,
    /// Rows of one block of the portable form.
    pub rows: usize,
    /// Tiles of the native form on a TPU; None leaves the choice to the table.
    pub tiling: Option<Tiling>,
}

/// Arguments: those of the forward kernel, its results, and dy `[b, s, h e]`. Results: the cotangents of qkv and lambda.
#[derive(Clone, Debug)]
struct DiffAttentionBackward {
    forward: DiffAttention,
}

/// Rows of a block of the portable form: longer ones waste work right of the diagonal, shorter ones make small matrix
/// products.
pub const BLOCK_ROWS: usize = 256;

/// Both architectures; two documents in each sequence.
pub(crate) fn examples() -> Vec<Example> {
    let example = |kernel: DiffAttention, seq: usize, lambda: Vec<usize>, native: &[Target]| {
        let width = kernel.widths().iter().sum();
        let table = Type::f32([seq, kernel.head_dim / 2]);
        let starts = (0..seq).map(|position| if position < seq / 3 { 0.0 } else { (seq / 3) as f64 });
        let args = vec![
            (Type::f32([1, seq, width]), ACTIVATIONS),
            (table.clone(), Values::Between(-1.0, 1.0)),
            (table, Values::Between(-1.0, 1.0)),
            (Type::f32(lambda), Values::Between(0.1, 0.9)),
            (Type::i32([1, seq]), Values::Given(starts.collect())),
        ];
        Example::new(kernel, args, &[0, 3], native)
    };
    let kernel = DiffAttention {
        heads: 2,
        groups: 1,
        head_dim: 128,
        value_dim: 256,
        keys: Keys::PerMap,
        norm: HeadNorm::Rms { eps: 1e-5 },
        cap: 0.0,
        rows: BLOCK_ROWS,
        tiling: None,
    };
    let second = DiffAttention {
        heads: 4,
        groups: 2,
        head_dim: 16,
        value_dim: 16,
        keys: Keys::Shared,
        norm: HeadNorm::None,
        cap: 5.0,
        rows: 8,
        ..kernel.clone()
    };
    vec![
        example(kernel, 256, vec![], &[Target::Cpu, Target::TpuV6e]),
        example(second, 29, vec![1, 29, 4], &[Target::Cpu]),
    ]
}

/// Where each token's document begins. segments: `[b, s]` i32, the document of each token; documents are contiguous.
pub fn document_starts<'f>(segments: Tensor<'f>) -> Tensor<'f> {
    let f = segments.builder();
    let ty = segments.ty();
    let [b, s] = ty.shape[..] else { panic!("document_starts: segments {ty}, not [b, s]") };
    let shifted = |x: Tensor<'f>, by: usize| x.slice_axis(1, 0, s - by);
    let before = |x: Tensor<'f>, by: usize| x.slice_axis(1, by, s);
    let same = before(segments, 1).eq(shifted(segments, 1)); // [b, s - 1]
    let position = f.iota(ty.clone(), 1);
    let begins = same.select(before(position, 1).zeros_like(), before(position, 1));
    let first = f.zeros(ty.with_shape([b, 1]));
    // The largest of all beginnings so far, by doubling.
    let mut starts = Tensor::concatenate(&[first, begins], 1);
    let mut by = 1;
    while by < s {
        let largest = before(starts, by).max(shifted(starts, by));
        starts = Tensor::concatenate(&[starts.slice_axis(1, 0, by), largest], 1);
        by *= 2;
    }
    starts
}

impl Keys {
    /// Maps with keys of their own.
    fn maps(self) -> usize {
        match self {
            Keys::PerMap => 2,
            Keys::Shared => 1,
        }
    }
}

/// Columns of q, k and v in qkv.
fn widths(heads: usize, groups: usize, head_dim: usize, value_dim: usize, keys: Keys) -> [usize; 3] {
    [2 * head_dim * heads, keys.maps() * head_dim * groups, value_dim * groups]
}

impl DiffAttention {
    fn key_maps(&self) -> usize {
        self.keys.maps()
    }

    /// Columns of q, k and v in qkv.
    fn widths(&self) -> [usize; 3] {
        widths(self.heads, self.groups, self.head_dim, self.value_dim, self.keys)
    }

    /// Sequences and their length.
    fn sizes(&self, args: &[Type]) -> Result<[usize; 2], ShapeError> {
        let complain = |wanted: String| Err(ShapeError(format!("wants {wanted}")));
        let [qkv, cos, sin, lambda, starts, ..] = args else {
            return complain("qkv, cos, sin, lambda and starts".to_owned());
        };
        let (heads, groups) = (self.heads, self.groups);
        if groups == 0 || heads % groups != 0 {
            return Err(ShapeError(format!("{heads} heads do not divide into {groups} groups")));
        }
        let width: usize = self.widths().iter().sum();
        let &[b, s, w] = &qkv.shape[..] else { return complain(format!("qkv [b, s, {width}]")) };
        if w != width || !qkv.dtype.is_float() {
            return complain(format!("qkv [b, s, {width}] of a float type"));
        }
        let wide = wide(qkv.dtype);
        let table = Type::new(wide, [s, self.head_dim / 2]);
        if *cos != table || *sin != table || !self.head_dim.is_multiple_of(2) {
            return complain(format!("cos and sin {table}, and an even head width"));
        }
        if lambda.dtype != wide || !(lambda.rank() == 0 || lambda.shape == [b, s, heads]) {
            return complain(format!("lambda {wide}[] or {wide}[{b},{s},{heads}]"));
        }
        if *starts != Type::i32([b, s]) {
            return complain(format!("starts i32[{b},{s}]"));
        }
        Ok([b, s])
    }

    fn results(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let [b, s] = self.sizes(args)?;
        let (h, e, qkv) = (self.heads, self.value_dim, &args[0]);
        let stats = Type::new(wide(qkv.dtype), [b, h, 3, s]);
        Ok(vec![qkv.with_shape([b, s, h * e]), qkv.with_shape([b, h, e, s]), stats])
    }

    fn attributes(&self) -> String {
        let DiffAttention { heads, groups, head_dim, value_dim, keys, norm, cap, rows, tiling } = self;
        format!(
            "heads={heads}, groups={groups}, head_dim={head_dim}, value_dim={value_dim}, keys={keys:?}, norm={norm:?}, \
             cap={cap}, rows={rows}, tiling={tiling:?}"
        )
    }
}

impl Kernel for DiffAttention {
    fn name(&self) -> String {
        format!("diff_attention({})", self.attributes())
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        if args.len() != 5 {
            return Err(ShapeError("wants qkv, cos, sin, lambda and starts".to_owned()));
        }
        self.results(args)
    }

    fn differentiable(&self) -> usize {
        1
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        portable::forward(self, args, args[0].dim(1))
    }

    fn vjp<'f>(
        &self,
        args: &[Tensor<'f>],
        results: &[Tensor<'f>],
        cts: &[Tensor<'f>],
        wanted: &[bool],
    ) -> Backward<'f> {
        let &[_, cos, sin, ..] = wanted else { unreachable!("checked when called") };
        if cos || sin {
            return Backward::OfReference("the backward kernel takes the rotation as a constant");
        }
        let f = args[0].builder();
        let operands: Vec<Tensor<'f>> = args.iter().chain(results).chain(&cts[..1]).copied().collect();
        let [qkv, lambda] = f.kernel(DiffAttentionBackward { forward: self.clone() }, &operands)[..] else {
            unreachable!("two results")
        };
        Backward::Grads(vec![Some(qkv), None, None, Some(lambda), None])
    }

    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }

    fn lower(&self, args: &[Type], target: Target, wanted: Option<Form>) -> Option<(Form, Func)> {
        let native = match target {
            Target::TpuV6e if Form::takes_native(wanted) => tpu::forward_func(self, args),
            Target::Cpu if Form::takes_native(wanted) => cpu::forward_func(self, args),
            _ => None,
        };
        Some(native.map_or_else(
            || {
                (
                    Form::Portable,
                    Func::build(args, |_: &Builder<'_>, args| portable::forward(self, args, self.rows)),
                )
            },
            |func| (Form::Native, func),
        ))
    }
}

impl Kernel for DiffAttentionBackward {
    fn name(&self) -> String {
        format!("diff_attention_backward({})", self.forward.attributes())
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let results = self.forward.results(args)?;
        if args.len() != 9 || args[5..8] != results[..] || args[8] != results[0] {
            return Err(ShapeError(format!("wants the results {results:?} and dy {}", results[0])));
        }
        Ok(vec![args[0].clone(), args[3].clone()])
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        portable::backward(&self.forward, args, args[0].dim(1))
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("second derivatives are not needed for training")
    }

    fn differentiable(&self) -> usize {
        2
    }

    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }

    fn lower(&self, args: &[Type], target: Target, wanted: Option<Form>) -> Option<(Form, Func)> {
        let forward = &self.forward;
        let native = match target {
            Target::TpuV6e if Form::takes_native(wanted) => tpu::backward_func(forward, args),
            Target::Cpu if Form::takes_native(wanted) => cpu::backward_func(forward, args),
            _ => None,
        };
        Some(native.map_or_else(
            || {
                (
                    Form::Portable,
                    Func::build(args, |_: &Builder<'_>, args| {
                        portable::backward(forward, args, forward.rows)
                    }),
                )
            },
            |func| (Form::Native, func),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::DType;

    #[test]
    fn shapes_are_checked_in_words() {
        let kernel = DiffAttention {
            heads: 3,
            groups: 2,
            head_dim: 8,
            value_dim: 16,
            keys: Keys::PerMap,
            norm: HeadNorm::None,
            cap: 0.0,
            rows: BLOCK_ROWS,
            tiling: None,
        };
        let table = Type::f32([4, 4]);
        let args =
            [Type::f32([1, 4, 112]), table.clone(), table, Type::scalar(DType::F32), Type::i32([1, 4])];
        let error = kernel.infer(&args).unwrap_err();
        assert_eq!(error.to_string(), "3 heads do not divide into 2 groups");
        let error = DiffAttention { heads: 4, ..kernel }.infer(&args).unwrap_err();
        assert_eq!(error.to_string(), "wants qkv [b, s, 128] of a float type");
    }
}
