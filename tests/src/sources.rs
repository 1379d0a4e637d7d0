//! Source text for tests.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use train::data::{PrepareOptions, PrepareProgress, TokenizerSource};

/// A small program, another one for each number.
pub fn program(number: usize) -> String {
    let body: String =
        (0..1 + number % 7).map(|line| format!("    total += x * {number} + {line}\n")).collect();
    format!("def function_{number}(x, total=0):\n    # größe {number}\n{body}    return total\n")
}

/// A line of JSON with a program.
pub fn json_line(number: usize) -> String {
    serde_json::json!({ "text": program(number) }).to_string()
}

/// `count` programs as JSON lines, written to `programs.jsonl`.
pub fn jsonl(folder: &Path, count: usize) -> PathBuf {
    let path = folder.join("programs.jsonl");
    fs::write(&path, (0..count).map(|i| json_line(i) + "\n").collect::<String>()).unwrap();
    path
}

/// A small preparation: a tokenizer of 320 tokens, a tenth held out, shards of 20,000 tokens, two threads.
pub fn preparation(input: PathBuf, out: PathBuf) -> PrepareOptions {
    let mut options = PrepareOptions::new(vec![input], out);
    options.tokenizer = TokenizerSource::Train(320);
    options.validation_fraction = 0.1;
    options.shard_tokens = 20_000;
    options.threads = 2;
    options
}

/// Never stops a preparation.
pub fn go(_: PrepareProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
