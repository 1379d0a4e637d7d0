//! Fused operations. Each folder or file holds one kernel: attributes, reference, gradient, rules, portable form, and for
//! both attentions and SwiGLU the native form of the TPU. [`gradients`] derives what they compute, [`v6e`] says what the
//! TPU's compiler makes fast.
//!
//! | kernel | reference | portable form | native form, TPU v6e | native form, CPU (f32) |
//! |---|---|---|---|---|
//! | [`DiffAttention`] | one block of all rows | blocks of rows up to the diagonal | forward and backward, `diff_attention/{forward,backward}.rs` | forward and backward, `diff_attention/host/` |
//! | [`CachedAttention`] | plain ops | on the CPU small products row by row | a few tokens, `cached_attention/native.rs` | a few tokens, `cached_attention/host.rs` |
//! | [`CachedBlock`] | plain ops and the kernels that it is made of | the reference | none | up to 32 rows, matrices in panels |
//! | [`PackedLinear`] | plain ops | the reference | none | matrices in panels |
//! | [`Sampling`] | plain ops | the reference | none | all |
//! | [`SwiGlu`] | plain ops, which XLA fuses | the reference | forward, `swiglu/tiles.rs`; chosen only by name | backward, `swiglu/host.rs` |
//! | [`RmsNormLinear`] | plain ops, which XLA fuses | the reference | none | none |
//! | `row_dot`, for [`rms_scale`] and the gradients of scales | a product and a sum | on a TPU a product with ones | none | none |
//! | [`LinearCrossEntropy`] | all logits at once | chunks of tokens, loss and gradients in one visit | the portable form | the portable form |
//!
//! A kernel's form is a pure function of its operands' types, the target and `kernels = "auto" | "portable" | "native" |
//! "reference"`. A program for `native` kernels is refused if one of them has no such form, and `auto` takes it where there is
//! one. No native form and no tiling is meant for a TPU that is no v6e. Native forms for the TPU are written in the tile language of [`tile`], printed as Mosaic text, and run on
//! the host by its interpreter: evaluating a program that was lowered for a TPU runs the very kernels that the TPU would
//! get. Native forms for the CPU are functions of this process ([`engine::HostFunction`]), in vectors of the processor's
//! width and on XLA's threads; their results are the same bits for any number of threads. What they are made of is in
//! `host/`. They compute in f32: a bf16 model takes the portable forms on a CPU.
//!
//! What the native forms cost on a v6e, beside XLA's operations for the same maths: 8 sequences of 2048 in a layer of `1b`,
//! thousands of cycles by libtpu 0.0.52 without a TPU, 2026-11-23. P: static profile with what prepares the operands, which
//! counts a kernel's transfers and not XLA's; B: bundles of the kernel's schedule times their trips; E: the compiler's
//! estimate times the trips, which overstates elementwise work 2-4 times.
//!
//! | | native | XLA | vector memory of the kernel, KiB |
//! |---|---|---|---|
//! | attention forward | 810 P | 13,100 E | 65,620 |
//! | attention backward | 1,250 B | 16,200 E | 107,016 |
//! | SwiGLU of 16384 rows, with its down projection (2026-11-28) | 1,302 P | 1,310 P | 31,950 |
//! | SwiGLU with dropout | 1,473 P | 1,440 P | 22,220 |
//! | one token to a cache | 38 P | 17 P, and a transfer of the cache, 36 | 4,160 |
//! | two tokens to a cache | 39 P | 25 P, and the transfer | 4,160 |
//!
//! P, B and memory are what `cargo run -p kernels --example v6e -- [--parts] NAME` prints; E is `cargo run -p dump-hlo --
//! --preset 1b --set kernels=portable --program kernel:diff_attention --micro-batch 8 --seq 2048 --platform tpu:v6e:1x1
//! --stage optimized --format cycles`. How tiles were chosen stands beside each kernel's choice.
//!
//! Axis letters: `b` sequences, `q` and `k` positions of queries and keys, `h` differential heads, `g` groups of heads
//! that share keys and values, `r` heads of a group, `t` the two maps, `d` width of a query or key, `e` width of a
//! value, `n` tokens, `m` model width, `i` hidden width of the MLP, `v` vocabulary.

mod all;
mod cached_attention;
mod cached_block;
mod cpu;
mod cross_entropy;
mod diff_attention;
mod dropout;
#[doc = include_str!("gradients.md")]
pub mod gradients {}
mod packed_linear;
mod qk_norm;
mod rms_norm_linear;
mod row_dot;
mod sampling;
mod swiglu;
pub mod tile;
#[doc = include_str!("v6e.md")]
pub mod v6e {}

pub use all::{Example, Values, all};
pub use cached_attention::CachedAttention;
pub use cached_block::{CachedBlock, normalized, project};
pub use cross_entropy::{Gradients, LinearCrossEntropy};
pub use diff_attention::{BLOCK_ROWS, DiffAttention, HeadNorm, Keys, Tiling, document_starts, rotate};
pub use dropout::dropout_mask;
pub use packed_linear::{PANEL, PackedLinear, panels};
pub use qk_norm::qk_norm;
pub use rms_norm_linear::{RmsNormLinear, rms_scale};
pub use sampling::{Filter, Sampler, Sampling};
pub use swiglu::SwiGlu;

use engine::DType;

/// Sums, softmaxes and losses are computed in `f32`; in `f64` where the operands are (tests).
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
