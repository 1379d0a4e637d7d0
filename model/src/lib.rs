//! Diff-Llama-MTP as data: configuration, parameter tree, checkpoint names, initial values and counts.
//! It knows no file and no device. Its equations are on a page of their own: [`maths`].
//!
//! Axis letters of this crate: `V` vocabulary, `D` hidden, `L` layers, `H` attention heads as `config.json` counts
//! them, `K` key/value heads counted the same way, `d` width of one head, `I` MLP width, `N` positions.
//! In shape comments of the program, small letters: `b` sequences, `s` positions, `m` model width, `h` differential
//! heads, `g` groups of them, `d` width of a map, `e` width of a head's output, `i` hidden width, `n` = `b * s` tokens.
//!
//! # Adding a parameter
//! One entry in `params.rs`: name, shape, initial values, decay, name in checkpoints. Then `folded.rs` says in which form the
//! step reads it, and `forward.rs` and `decode/weights.rs` use that form. Optimiser, checkpoints, counts and tests follow from
//! the entry.
//!
//! # Adding a variant
//! For instance `qk_norm`, which took these places: a field of [`Config`] with what a missing one means (`config.rs`), its
//! use in training (`forward.rs`) and in decoding (`decode.rs`), its equation ([`maths`]), and its key for `train`. A field
//! that leaves the meaning of the weights as it is joins the list of [`config::Bearing::Run`]. Tests: a case each in
//! `gradients_are_finite_differences` (`tests/model/model.rs`) and of the cache against the full pass (`tests/model/decode.rs`).
//!
//! # Training and decoding
//! The block is written twice. In training it is a scan over stacked matrices, with dropout, and kernels whose gradients
//! keep little; in decoding it is one call, [`kernels::CachedBlock`], over matrices in panels, for a few tokens. What can be
//! shared without loss is: the folded weights, rotations, the norm of queries and keys, and the maths, by which the tests
//! hold both to the same log-probabilities.

pub mod config;
pub mod counts;
pub mod decode;
pub mod dropout;
pub mod folded;
pub mod forward;
mod init;
pub mod loss;
#[doc = include_str!("maths.md")]
pub mod maths {}
pub mod params;
pub mod rope;
mod tree;

pub use config::{Attention, Compute, Config, ConfigError, Preset, Yarn};
pub use dropout::Dropout;
pub use folded::{Folded, fold};
pub use forward::{Batch, Remat};
pub use init::{initial_params, initial_weights};
pub use loss::{Losses, token_log_probs};
pub use params::{Block, Decay, Diff, Entry, Init, Layout, Mtp, ParamSpec, Params, specs};
