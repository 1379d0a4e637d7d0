//! Training: data, steps, checkpoints, plans, and runs that are killed, signalled and fed with damage.

mod cases;
mod checkpoint;
mod config;
mod crash;
mod data;
mod fuzzed;
mod hostile;
mod plan;
mod prepare;
mod resume;
mod signals;
mod step;
