//! The engine: a small autodiff IR that prints StableHLO and runs it through the PJRT C API.

mod host;
pub mod pjrt;
pub mod plugin;
pub mod random;
mod types;
mod wheel;

pub use host::{Element, Host};
pub use types::{DType, Type};
