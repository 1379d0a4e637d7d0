//! What the native forms of the CPU are made of: vectors of the processor's width, without unsafe code, through `pulp`.

pub(crate) mod exponential;
pub(crate) mod matrix;
pub(crate) mod rotation;
pub(crate) mod rows;
pub(crate) mod scratch;
