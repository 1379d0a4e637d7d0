//! The engine: formulas in Rust are differentiated, printed as StableHLO, compiled through the PJRT C API and run.
//!
//! # The tour
//! This is `engine/examples/tour.rs`; `cargo run --example tour -p engine` runs it.
//! ```
#![doc = include_str!("../examples/tour.rs")]
//! ```
//!
//! # Four nouns
//! They never convert silently.
//!
//! | noun | is |
//! |---|---|
//! | [`Type`] | element type and shape: no data |
//! | [`Tensor`] | a value in a function under construction: no data either, a handle that reads like a number |
//! | [`Host`] | a type and its bytes in main memory |
//! | [`pjrt::Buffer`] | memory on a device |
//!
//! # The way of a program
//! ```text
//! Program::build ── ir: an arena of nodes ── grad ── passes::lower ── text ── pjrt ── Compiled::run
//!        │              operands first,        one rule    a form for       StableHLO,    a client's devices,
//!        │              equal nodes once       for each    each kernel,     the cache's   or a topology that
//!        └ named inputs and outputs            op          constants        key           is not there
//! ```
//! | file | holds |
//! |---|---|
//! | `ir.rs` | [`Func`], the finished function; [`Builder`] and [`Tensor`], the one under construction |
//! | `program.rs` | [`Program`]: a main function with named ports, donation and sharding |
//! | `ops/` | the operations, one file for each family: shape, gradient, text and meaning of each stand together |
//! | `grad.rs` | [`grad`] and [`grad_into`]: one walk from the last node to the first |
//! | `passes/` | [`passes::select`], [`passes::simplify`], [`passes::verify`], and the pass for TPUs that lets kernels in a scan read and write the scanned arrays in place |
//! | `text.rs` | the printer |
//! | `eval.rs` | [`evaluate`]: what a program means, in `f64`; slow, and the oracle of the tests |
//! | `compiled.rs` | [`Compiled`]: a program on its devices |
//! | `work.rs` | [`work::Work`]: the operations of a program, how often each runs, and their floating point operations |
//! | `hlo/` | [`hlo::Hlo`]: a program as a compiler left it, read from its text: instructions, cycles, roofline |
//! | `pjrt/` | the plugin, its clients and topologies, executables, buffers, the cache on disk, calls from programs back into this process; all `unsafe` is here |
//! | `gpu.rs` | [`gpu::Gpu`]: GPUs that are not there, as XLA's compiler must be told of them |
//! | `plugin.rs` | a platform's plugin, opened; the crate `fetch` knows which one that is, fetches and verifies it |
//!
//! `ops`, `ir`, `grad`, `eval` and `text` know each other: an op is a node of the IR, and its rules build, differentiate,
//! evaluate and print. Nothing else in the crate depends in a circle.
//!
//! Loops and calls ([`Builder::scan`], [`Builder::call`], [`Builder::cond`], [`Builder::while_loop`]) take a closure
//! that builds their body in a function of its own. The borrow checker and [`Builder::capture`] see to it that no value
//! crosses unnoticed. A scan's gradient keeps what the body's [`Save`] policy names.
//!
//! # Invariants
//! **Invariant:** operands precede users, so that every pass is one loop.
//!
//! **Invariant:** equal pure nodes of one function exist once.
//!
//! **Invariant:** a body is closed; what it takes from outside are its parameters.
//!
//! **Invariant:** equal programs print equal text, whatever the order of hash maps or threads; the text is the key of
//! the executable cache.
//!
//! **Invariant:** no kernel is known by name; a [`Kernel`] brings its reference, its gradient and its lowerings.
//!
//! **Invariant:** no op has a default rule, and no match over ops a default branch that hides a missing answer.
//!
//! **Invariant:** outside `pjrt` and `plugin` there is no global state, clock, file or environment variable.
//!
//! **Invariant:** errors in a program panic at the author's line with op, operand types and reason; whatever depends on
//! files, plugins and devices is a `Result`.
//!
//! # Adding an op
//! Do existing ops express it? If not: an attribute struct and a builder in its family's file in `ops/`, and one word in
//! the list of `ops/mod.rs`. The compiler then asks for the four rules: the result types, the gradient (its formula as a
//! comment), the text, and the meaning. One row in `tests/engine/ops.rs` compares them with each other and with the CPU plugin;
//! `BLESS=1 cargo test -p tests --test engine stablehlo` writes new golden text, whose difference is to be read.

mod compiled;
mod eval;
pub mod gpu;
mod grad;
pub mod hlo;
mod host;
mod host_function;
mod ir;
pub mod ops;
pub mod passes;
pub mod pjrt;
pub mod plugin;
mod program;
pub mod random;
mod text;
mod types;
pub mod work;

pub use compiled::{Compiled, faithful};
pub use eval::{Array, Rounding, evaluate};
pub use grad::{grad, grad_into};
pub use host::{Element, Host, View, ViewMut};
pub use host_function::{CallFrame, HostFunction, Workers};
pub use ir::{Builder, Func, Node, Port, Tensor, Value};
pub use ops::collective::Sharding;
pub use ops::control::Save;
pub use ops::elementwise::Operand;
pub use ops::host_call::HostCall;
pub use ops::kernel::{Backward, CustomCall, Form, InPlace, Interpreter, Kernel, Scanned, Target};
pub use ops::random::threefry;
pub use ops::reduce::{Direction, Reduction};
pub use ops::scan::ScanOptions;
pub use ops::{Op, ShapeError};
pub use program::Program;
pub use text::Locations;
pub use types::{DType, Type};
