//! The fused kernels and the dropout masks.

mod dropout;
mod kernels;
mod native;
