//! Training: data, optimiser, checkpoints and the loop.

pub mod data;
