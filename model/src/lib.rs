//! Diff-Llama-MTP as data: configuration, parameter tree, checkpoint names, initial values and counts.
//! It knows no file and no device.
//!
//! Axis letters of this crate: `V` vocabulary, `D` hidden, `L` layers, `H` attention heads as `config.json` counts
//! them, `K` key/value heads counted the same way, `d` width of one head, `I` MLP width, `N` positions.

pub mod config;
pub mod counts;
mod init;
pub mod params;
pub mod rope;

pub use config::{Attention, Compute, Config, ConfigError, Preset, Yarn};
pub use init::initial_params;
pub use params::{Block, Decay, Diff, Entry, Init, Layout, Mtp, ParamSpec, Params, specs};
