//! Fused operations, one folder or file for each kernel. `mod.rs` holds what every kernel has: attributes, shapes, the
//! reference (its meaning in plain operations) and the gradient. A form made for a target has a file with the target's name:
//! `portable.rs`, `tpu.rs`, `cpu.rs`. [`gradients`] derives what the kernels compute, [`v6e`] says what the TPU's compiler
//! makes fast, and [`all`] is the list of kernels that tests walk.
//!
//! | kernel | reference | portable form | native form, TPU v6e | native form, CPU (f32) |
//! |---|---|---|---|---|
//! | [`DiffAttention`] | one block of all rows | blocks of rows up to the diagonal | forward and backward | forward and backward |
//! | [`CachedAttention`] | plain ops | on the CPU small products row by row | a few tokens | a few tokens |
//! | [`CachedBlock`] | plain ops and other kernels | the reference | none | up to 32 rows, matrices in panels |
//! | [`PackedLinear`] | plain ops | the reference | none | matrices in panels |
//! | [`Sampling`] | plain ops | the reference | none | all |
//! | [`LogProbs`] | plain ops | the reference | none | all |
//! | [`SwiGlu`] | plain ops, which XLA fuses | the reference | forward; only where `native` is asked for | backward |
//! | [`RmsNormLinear`] | plain ops, which XLA fuses | the reference | none | none |
//! | `row_dot`, for [`rms_scale`] and the gradients of scales | a product and a sum | on a TPU a product with ones | none | none |
//! | [`LinearCrossEntropy`] | all logits at once | chunks of tokens, loss and gradients in one visit | the portable form | the portable form |
//!
//! A kernel's form is a pure function of its operands' types, the target and the form that is wanted (`kernels = "auto" |
//! "portable" | "native" | "reference"`). `auto` takes the native form where there is one; a program for `native` kernels is
//! refused if none of them has one. No native form and no tiling is meant for a TPU that is no v6e.
//!
//! Native forms for the TPU are written in the language of [`tile`], which has the words of Pallas. They are printed as
//! Mosaic text and run on the host by an interpreter: evaluating a program that was lowered for a TPU runs the very kernels
//! that the TPU would get. Native forms for the CPU are functions of this process ([`engine::HostFunction`]), in vectors of
//! the processor's width and on XLA's threads; their results are the same bits for any number of threads. What they share is
//! in `cpu/`. They compute in f32: a bf16 model takes the portable forms on a CPU.
//!
//! # Adding a kernel
//! 1. A folder with `mod.rs`: a struct of attributes that implements [`engine::Kernel`]. No method has a default, so the
//!    compiler asks for each answer. The gradient's formula stands above its rule.
//! 2. `examples()` in the same file: arguments of each case that forms tell apart.
//! 3. Three lines here: the module, its name, the row in the table above; and one line in [`all`].
//!
//! From then on the tests compare all its forms on all targets, its gradient with the reference's, and compile its native
//! form for a v6e. Forms for a target come later, each a file of its own.
//!
//! What the native forms cost on a v6e, beside XLA's operations for the same maths: 8 sequences of 2048 in a layer of `1b`,
//! thousands of cycles by libtpu 0.0.52 without a TPU, 2026-11-23. P: static profile with what prepares the operands, which
//! counts a kernel's transfers and not XLA's; B: bundles of the kernel's schedule times their trips; E: the compiler's
//! estimate times the trips, which overstates elementwise work 2-4 times.
//!
//! | | native | XLA | vector memory of the kernel, KiB |
//! |---|---|---|---|
//! | attention forward (2026-11-29) | 935 P | 13,100 E | 66,600 |
//! | attention backward | 1,250 B | 16,200 E | 107,016 |
//! | SwiGLU of 16384 rows, with its down projection (2026-11-28) | 1,302 P | 1,310 P | 31,950 |
//! | SwiGLU with dropout | 1,473 P | 1,440 P | 22,220 |
//! | one token to a cache | 38 P | 17 P, and a transfer of the cache, 36 | 4,160 |
//! | two tokens to a cache | 39 P | 25 P, and the transfer | 4,160 |
//!
//! P, B and memory are what `cargo run -p kernels --example v6e -- [--parts] NAME` prints; E is `cargo run -p dump-hlo --
//! --preset 1b --set kernels=portable --program kernel:diff_attention --micro-batch 8 --seq 2048 --platform tpu:v6e:1x1
//! --stage optimized --format cycles`. How tiles were chosen is said where each kernel chooses.
//!
//! Axis letters: `b` sequences, `q` and `k` positions of queries and keys, `h` differential heads, `g` groups of heads
//! that share keys and values, `r` heads of a group, `t` the two maps, `d` width of a query or key, `e` width of a
//! value, `n` tokens, `m` model width, `i` hidden width of the MLP, `v` vocabulary.

mod cached_attention;
mod cached_block;
mod cpu;
mod cross_entropy;
mod diff_attention;
mod dropout;
mod example;
#[doc = include_str!("gradients.md")]
pub mod gradients {}
mod log_probs;
mod packed_linear;
mod qk_norm;
mod rms_norm_linear;
mod row_dot;
mod sampling;
mod swiglu;
pub mod tile;
#[doc = include_str!("v6e.md")]
pub mod v6e {}

pub use cached_attention::CachedAttention;
pub use cached_block::{CachedBlock, normalized, project};
pub use cross_entropy::{Gradients, LinearCrossEntropy};
pub use diff_attention::{BLOCK_ROWS, DiffAttention, HeadNorm, Keys, Tiling, document_starts, rotate};
pub use dropout::dropout_mask;
pub use example::{Example, Values};
pub use log_probs::{LogProbs, TOP};
pub use packed_linear::{PANEL, PackedLinear, panels};
pub use qk_norm::qk_norm;
pub use rms_norm_linear::{RmsNormLinear, rms_scale};
pub use sampling::Sampling;
pub use swiglu::SwiGlu;

use engine::DType;

/// At least one example of every kernel that a model calls; those that only gradients call come with theirs. A kernel is
/// covered as soon as its examples are listed here.
pub fn all() -> Vec<Example> {
    [
        diff_attention::examples(),
        cached_attention::examples(),
        cached_block::examples(),
        packed_linear::examples(),
        sampling::examples(),
        log_probs::examples(),
        swiglu::examples(),
        rms_norm_linear::examples(),
        row_dot::examples(),
        cross_entropy::examples(),
    ]
    .concat()
}

/// Sums, softmaxes and losses are computed in `f32`; in `f64` where the operands are (tests).
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
