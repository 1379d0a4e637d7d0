//! The model: its numbers, decoding, and the programs that a TPU gets.

mod bf16;
mod decode;
mod gpu;
mod model;
mod parity;
mod tpu;
