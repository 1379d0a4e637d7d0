//! `eval-humaneval`: completions of HumanEval and MBPP problems, generated from a checkpoint or given in a file, judged
//! in a [`sandbox`] and counted as pass@k.
//!
//! The way of a completion: [`problems`] (the prompt; nothing is stripped from it) -> [`generate`] or [`samples`] (the
//! [`code`] alone of each given text) -> [`judge`] (the solution in one process, its tests in another one) -> [`results`] (a
//! line of JSON) -> [`estimate`] -> [`summary`]. Results that other programs wrote begin at [`harnesses`].
//!
//! **Invariant:** a program has passed only if its tests ran to their end, where it cannot touch them; the results say where
//! that was not so.
//!
//! **Invariant:** no verdict depends on the machine's load: time is CPU time, or that of a clock that stands still while a
//! program waits for a core.
//!
//! **Invariant:** no score is printed for problems with too few completions.
//!
//! **Invariant:** the level of a sandbox is what it was seen to refuse, not what was asked for.
//!
//! Without the feature `command` the crate is the judge and its sandbox alone.

#[cfg(feature = "command")]
mod cli;
#[cfg(feature = "command")]
pub mod code;
#[cfg(feature = "command")]
pub mod estimate;
#[cfg(feature = "command")]
pub mod generate;
#[cfg(feature = "command")]
pub mod harnesses;
#[cfg(feature = "command")]
pub mod json;
pub mod judge;
pub mod problem;
#[cfg(feature = "command")]
pub mod problems;
pub mod python;
#[cfg(feature = "command")]
pub mod results;
#[cfg(feature = "command")]
mod run;
#[cfg(feature = "command")]
pub mod samples;
pub mod sandbox;
#[cfg(feature = "command")]
pub mod summary;

#[cfg(feature = "command")]
pub use run::main;
