//! The programs for further tasks, as processes.

mod cases;
mod cli;
mod evaluation;
mod flags;
mod generate;
mod humaneval;
mod judging;
mod output;
mod see;
