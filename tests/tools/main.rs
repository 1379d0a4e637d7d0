//! The programs for further tasks, as processes.

mod cli;
mod generate;
mod humaneval;
mod output;
mod see;
