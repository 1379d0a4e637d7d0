//! The trainer: run configuration, data, the step program, learning-rate schedule, checkpoints, metrics and signals.
//! Nothing but this crate, `prepare-data`, `dump-hlo` and `eval-humaneval` writes users' files, and whole files are written through
//! [`atomic`].

pub mod atomic;
mod changes;
pub mod checkpoint;
pub mod cli;
mod clock;
pub mod compiler;
pub mod config;
pub mod data;
pub mod decide;
pub mod device;
pub mod forecast;
pub mod identity;
pub mod lock;
pub mod machine;
mod mapped;
pub mod metrics;
mod numbers;
mod replay;
mod resume;
pub mod run;
pub mod run_folder;
pub mod sample;
pub mod scaling;
mod scene;
pub mod schedule;
mod session;
mod show;
pub mod signals;
pub mod state;
pub mod step;
mod validation;
pub mod watch;
