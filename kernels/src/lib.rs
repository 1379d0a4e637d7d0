//! Fused operations. Each file holds one kernel: attributes, reference, gradient, rules, portable form.
//!
//! Axis letters: `b` sequences, `q` and `k` positions of queries and keys, `h` differential heads, `g` groups of heads
//! that share keys and values, `r` heads of a group, `t` the two maps, `d` width of a query or key, `e` width of a
//! value, `n` tokens, `m` model width, `i` hidden width of the MLP, `v` vocabulary.

mod cross_entropy;
mod diff_attention;
mod dropout;
mod swiglu;
pub mod tile;

pub use cross_entropy::{Gradients, LinearCrossEntropy};
pub use diff_attention::{DiffAttention, HeadNorm, Keys, ROWS, Tiling, document_starts};
pub use dropout::dropout_mask;
pub use swiglu::SwiGlu;

use engine::DType;

/// Sums, softmaxes and losses are computed in `f32`; in `f64` where the operands are (tests).
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
