//! The trainer.
pub mod step;
