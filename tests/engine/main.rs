//! The engine: operations, gradients, programs, their text, the PJRT runtime, and what the tests themselves are made of.

mod gradients;
mod harness;
mod host_calls;
mod memory;
mod ops;
mod pjrt;
mod programs;
mod sharding;
mod stablehlo;
