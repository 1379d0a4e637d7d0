//! The model: its numbers, decoding, and the programs that a TPU gets.

mod decode;
mod model;
mod parity;
mod tpu;
