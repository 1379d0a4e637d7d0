//! The fused kernels and the dropout masks.

mod all;
mod dropout;
mod kernels;
mod native;
mod qk_norm;
