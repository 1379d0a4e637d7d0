//! The programs for further tasks, as processes.

mod cases;
mod cli;
mod evaluation;
mod flags;
mod generate;
mod humaneval;
mod judging;
mod notebook;
mod output;
mod readme;
mod see;
mod summary;

/// Every program by its package, and where the tests have it.
const PROGRAMS: [(&str, &str); 8] = [
    ("train", env!("CARGO_BIN_EXE_trainer")),
    ("prepare-data", env!("CARGO_BIN_EXE_preparer")),
    ("generate", env!("CARGO_BIN_EXE_generate-text")),
    ("score", env!("CARGO_BIN_EXE_score-tokens")),
    ("serve", env!("CARGO_BIN_EXE_server")),
    ("eval-humaneval", env!("CARGO_BIN_EXE_evaluator")),
    ("doctor", env!("CARGO_BIN_EXE_doctor-screen")),
    ("dump-hlo", env!("CARGO_BIN_EXE_dump-program")),
];
