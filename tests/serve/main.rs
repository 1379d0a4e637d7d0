//! The command `serve` as a process, on checkpoints of a run of a few steps.

mod clients;
mod completions;
mod limits;
mod llama;
mod process;
mod server;
