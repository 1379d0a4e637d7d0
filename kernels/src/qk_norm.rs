//! The norm of queries and keys.

use crate::normalized;
use engine::Tensor;

/// Queries and keys over their root mean square, `x / sqrt(mean(x^2) + eps)` of each slice of width d, without a weight:
/// logits then stay within `sqrt(d)` of zero, however large the projections grow. It comes before the rotation, which keeps
/// lengths. Source: arXiv 2010.04245 and 2302.05442; with a root mean square: arXiv 2405.09818.
///
/// qkv: `[.., w]` as [`DiffAttention`](crate::DiffAttention) has it, whose first `columns` are those of queries and keys.
/// These are plain operations, one pass over qkv that XLA fuses, so that every form of the attention kernels can follow it.
pub fn qk_norm<'f>(qkv: Tensor<'f>, columns: usize, d: usize, eps: f64) -> Tensor<'f> {
    let (last, shape) = (qkv.rank() - 1, qkv.shape());
    let slices = [&shape[..last], &[columns / d, d]].concat();
    let rest = qkv.slice_axis(last, columns, shape[last]);
    let normed = normalized(qkv.slice_axis(last, 0, columns).reshape(slices), eps).convert(qkv.dtype());
    Tensor::concatenate(&[normed.reshape([&shape[..last], &[columns]].concat()), rest], last)
}
