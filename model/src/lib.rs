//! Diff-Llama-MTP as data: configuration, parameter tree, checkpoint names, initial values and counts.
//! It knows no file and no device. Its equations are on a page of their own: [`maths`].
//!
//! Axis letters of this crate: `V` vocabulary, `D` hidden, `L` layers, `H` attention heads as `config.json` counts
//! them, `K` key/value heads counted the same way, `d` width of one head, `I` MLP width, `N` positions.
//! In shape comments of the program, small letters: `b` sequences, `s` positions, `m` model width, `h` differential
//! heads, `g` groups of them, `d` width of a map, `e` width of a head's output, `i` hidden width, `n` = `b * s` tokens.

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
pub use init::initial_params;
pub use loss::{Losses, token_log_probs};
pub use params::{Block, Decay, Diff, Entry, Init, Layout, Mtp, ParamSpec, Params, specs};
