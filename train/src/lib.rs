//! The trainer: run configuration, data, the step program, learning-rate schedule, checkpoints, metrics and signals.
//!
//! # The way of a run
//! ```text
//! cli ── config ── scene ── decide ── resume ── machine ── session ─┬─ checkpoint ── mirror
//!          │         │         │                   │          │      └─ metrics
//!          │         │         └ begin where?      │          └ the loop
//!          │         └ data, scaling: how long,    └ device, step, state:
//!          └ every key, declared once  how fast      one step as one program
//! ```
//! | module | holds |
//! |---|---|
//! | [`cli`], [`config`] | the command line; every configuration key, with a table of all of them |
//! | [`data`] | from text to shards, from shards to rows |
//! | [`scaling`], [`schedule`] | values that follow from model and data; the learning rate over steps |
//! | [`decide`], `resume`, `changes` | where a command begins; how it takes up a checkpoint; settings that changed since |
//! | [`run`], `scene`, `session` | a run from top to bottom; what it has before it begins; its loop |
//! | [`step`], [`state`], [`machine`], [`device`] | the step program with its equations; what it changes on the device; the device |
//! | [`checkpoint`], [`run_folder`], [`identity`], [`lock`] | what is written, under which names, by which run, by one process at a time |
//! | [`metrics`], `show`, `replay`, [`sample`] | what a person sees |
//! | [`forecast`], [`compiler`] | `--plan`: what a run takes, from programs that are compiled and not run |
//! | [`atomic`], `disks`, [`signals`], [`watch`] | files that appear whole; drives; being asked to stop; bad steps |
//!
//! # Invariants
//! **Invariant:** nothing but this crate, `prepare-data`, `dump-hlo` and `eval-humaneval` writes users' files, and whole files
//! are written through [`atomic`].
//!
//! **Invariant:** a run that is stopped and started again trains as if it had not stopped, bit for bit: all that a step depends
//! on is in a checkpoint ([`checkpoint::State`]).
//!
//! **Invariant:** a run's folder and mirror belong to one run ([`identity`]), and no other writes into them.
//!
//! **Invariant:** only [`decide`] chooses where a command begins, from facts that were read before.
//!
//! # Adding things
//! | to add | touch |
//! |---|---|
//! | a configuration key | its line in `config/tables.rs`; the presets that differ, in `config/presets.rs`; the code that uses it; the table in the docs with `BLESS=1` ([`config`]) |
//! | a kind of input for `prepare-data` | a file in `data/source/` that gives the documents in order; `Kind` in `data/source.rs`; its count in `InputInfo`, `data/manifest.rs`; the name in the help and the summary of `tools/prepare-data`; cases in `tests/train/data.rs` and `tests/runs/prepare.rs` |
//! | a number in `metrics.jsonl` | a field of [`metrics::Train`], with a serde default so that older files are read; its scalar in [`metrics::Recorder::train`]; the place in `session.rs` that knows it |
//! | a flag of `train` | a field of [`cli::Cli`]; the compiler then asks for its place in [`cli::Cli::command`]; README |
//! | a tool | `tools/NAME` with `src/lib.rs`, whose `main` begins with `program::arguments` and ends with `program::exit_code`, and `src/main.rs`; its line in the workspace's `Cargo.toml`; for the tests a program in `tests/NAME.rs`, its `[[bin]]` in `tests/Cargo.toml`, its line in `PROGRAMS` in `tests/tools/main.rs`, which tries help, pipes and full disks; README |

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
mod disks;
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
