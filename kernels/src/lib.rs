//! Fused operations. Each folder or file holds one kernel: attributes, reference, gradient, rules, portable form, and for
//! both attentions and SwiGLU the native form of the TPU.
//!
//! | kernel | reference | portable form | native form (TPU v6e) |
//! |---|---|---|---|
//! | [`DiffAttention`] | one block of all rows | blocks of rows up to the diagonal | forward and backward, `diff_attention/{forward,backward}.rs` |
//! | [`CachedAttention`] | plain ops | small products row by row, for XLA's CPU code | `cached_attention/native.rs` |
//! | [`SwiGlu`] | plain ops, which XLA fuses | the reference | forward, `swiglu/tiles.rs`; chosen only by name |
//! | [`ScaledLinear`] | plain ops, which XLA fuses | the reference | none |
//! | `row_dot`, for [`rms_scale`] and the gradients of scales | a product and a sum | on a TPU a product with ones | none |
//! | [`LinearCrossEntropy`] | all logits at once | chunks of tokens, loss and gradients in one visit | the portable form |
//!
//! A kernel's form is a pure function of its operands' types, the target and `kernels = "auto" | "portable" | "native" |
//! "reference"`. Native forms are written in the tile language of [`tile`], printed as Mosaic text, and run on the host by
//! its interpreter: evaluating a program that was lowered for a TPU runs the very kernels that the TPU would get.
//!
//! Axis letters: `b` sequences, `q` and `k` positions of queries and keys, `h` differential heads, `g` groups of heads
//! that share keys and values, `r` heads of a group, `t` the two maps, `d` width of a query or key, `e` width of a
//! value, `n` tokens, `m` model width, `i` hidden width of the MLP, `v` vocabulary.

mod cached_attention;
mod cross_entropy;
mod diff_attention;
mod dropout;
mod row_dot;
mod scaled_linear;
mod swiglu;
pub mod tile;

pub use cached_attention::CachedAttention;
pub use cross_entropy::{Gradients, LinearCrossEntropy};
pub use diff_attention::{DiffAttention, HeadNorm, Keys, ROWS, Tiling, document_starts, rotate};
pub use dropout::dropout_mask;
pub use scaled_linear::{ScaledLinear, rms_scale};
pub use swiglu::SwiGlu;

use engine::DType;

/// Sums, softmaxes and losses are computed in `f32`; in `f64` where the operands are (tests).
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
