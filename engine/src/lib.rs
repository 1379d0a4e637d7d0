//! The engine: a small autodiff IR that prints StableHLO and runs it through the PJRT C API.

mod compiled;
mod eval;
mod grad;
mod host;
mod ir;
pub mod ops;
pub mod passes;
pub mod pjrt;
pub mod plugin;
mod program;
pub mod random;
mod text;
mod types;
mod wheel;

pub use compiled::Compiled;
pub use eval::{Array, Rounding, evaluate};
pub use grad::{grad, grad_into};
pub use host::{Element, Host};
pub use ir::{Builder, Func, Node, Tensor, Value};
pub use ops::collective::{Layout, Sharding};
pub use ops::control::Save;
pub use ops::elementwise::Operand;
pub use ops::kernel::{Backward, CustomCall, Kernel, KernelChoice, Lowering, Target};
pub use ops::random::threefry;
pub use ops::reduce::{Direction, Reduction};
pub use ops::scan::ScanOptions;
pub use ops::{Op, ShapeError};
pub use program::{Port, Program};
pub use text::Locations;
pub use types::{DType, Type};
