//! The PJRT runtime: the only part of the engine that talks to a compiler or a device, and the only one with
//! `unsafe`.
//!
//! ```text
//! Plugin::load -> Client   -> Loaded (an Executable that runs) -> Buffer -> Host
//!              -> Topology -> Executable (statistics, serialised bytes; no device needed)
//! ```
//! A handle keeps what it stands on alive and destroys itself; [`Client::live`] counts what is left.
//!
//! # How a program is sharded
//! Found by experiment with the CPU plugin (API 0.81) and libtpu 0.0.52; `tests/engine/pjrt.rs` runs these on the
//! one and compiles them with the other.
//! * [`Partitioner::Shardy`], which to prefer: `sdy.mesh @mesh = <["x"=4]>` in the module,
//!   `{sdy.sharding = #sdy.sharding<@mesh, [{"x"}, {}]>}` on arguments and results, and inside
//!   `sdy.sharding_constraint %x <@mesh, [{"x"}, {}]> : tensor<8x8xf32>`. A part written for one device
//!   stands in
//!   `sdy.manual_computation(..) in_shardings=[..] out_shardings=[..] manual_axes={"x"} (..) {.. sdy.return ..}`.
//! * [`Partitioner::Gspmd`]: strings, `{mhlo.sharding = "{devices=[4,1]<=[4]}"}` on arguments and results, and
//!   inside `stablehlo.custom_call @Sharding(%x) {mhlo.sharding = "{devices=[4,1]<=[4]}"}`; `"{replicated}"`
//!   for all of it everywhere. A program with `sdy` in it does not compile this way, while both plugins
//!   take strings under Shardy.
//! * Replicas need neither: `stablehlo.all_reduce` over `replica_groups` and [`CompileOptions::replicated`].
//!
//! `mhlo.num_partitions` and `mhlo.num_replicas` on the module are not needed; the compile options say it.

#![allow(unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod buffer;
mod cache;
mod client;
mod device;
mod error;
mod event;
mod executable;
mod ffi;
mod handle;
mod loaded;
mod options;
mod plugin;
mod said;
mod text;
mod topology;
mod value;

pub use buffer::{Buffer, Transfer};
pub use cache::{ExecutableCache, Lookup};
pub use client::Client;
pub use device::{Device, DeviceDescription, MemoryStats};
pub use error::{Code, Error, Result};
pub use event::Event;
pub use executable::{Executable, MemoryUse, OptimizedProgram};
pub(crate) use ffi::{Handler, handler};
pub use handle::Live;
pub use loaded::{Arg, Loaded};
pub use options::{CompileOptions, Partitioner};
pub use plugin::Plugin;
pub use topology::Topology;
pub use value::Value;
