//! `train`: trains a Python code model. Without arguments, a small one on the Python standard library.

use clap::Parser;
use std::process::ExitCode;
use train::cli::Cli;
use train::run::{Outcome, run};

/// Exit code of a run that a signal stopped and that saved its state: run the same command again (EX_TEMPFAIL).
const INTERRUPTED: u8 = 75;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
