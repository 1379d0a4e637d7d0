//! Training within one process: data, steps, checkpoints. Tests that start other processes are in `runs`: between fork and
//! exec a child holds whatever is locked here.

mod checkpoint;
mod courses;
mod data;
mod decide;
mod fuzzed;
mod long;
mod mirror;
mod rows;
mod step;
