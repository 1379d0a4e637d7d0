//! `prepare-data`: Python source to Parquet shards of token ids. The work is done by `train::data::prepare`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use train::data::{DataError, PrepareOptions, PrepareProgress, PrepareSummary, TokenizerSource, prepare};
use train::program::{arguments, exit_code};
use train::say;

/// Turn Python source into Parquet shards that `train --data DIR` reads.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Folder to write; the same command continues an interrupted run
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Use this tokenizer.json
    #[arg(long, value_name = "FILE", conflicts_with = "train_tokenizer")]
    tokenizer: Option<PathBuf>,
    /// Train a byte-level BPE with a vocabulary of this size on the training split
    #[arg(long, value_name = "N", default_value_t = 4096)]
    train_tokenizer: usize,
    /// Share of documents to hold out, chosen by the hash of their text
    #[arg(long, value_name = "X", default_value_t = 0.02)]
    validation_fraction: f64,
    /// Column with the text in JSONL and Parquet inputs
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// Skip longer documents
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    max_file_bytes: u64,
    /// Close a shard at this many tokens
    #[arg(long, value_name = "N", default_value_t = 1 << 24)]
    shard_tokens: u64,
    /// Do not enter folders of this name (may be repeated)
    #[arg(long, value_name = "NAME")]
    exclude: Vec<String>,
    /// Worker threads; the output does not depend on it [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// *.py files, folders with them, *.jsonl or *.parquet with a text column
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
}

fn main() -> ExitCode {
    exit_code(run(arguments()).map(|()| ExitCode::SUCCESS).map_err(Into::into))
}

fn run(arguments: Arguments) -> Result<(), DataError> {
    let mut options = PrepareOptions::new(arguments.inputs, arguments.out);
    options.tokenizer = match arguments.tokenizer {
        Some(path) => TokenizerSource::File(path),
        None => TokenizerSource::Train(arguments.train_tokenizer),
    };
    options.validation_fraction = arguments.validation_fraction;
    options.text_column = arguments.text_column;
    options.max_file_bytes = arguments.max_file_bytes;
    options.shard_tokens = arguments.shard_tokens;
    options.exclude = arguments.exclude;
    if let Some(threads) = arguments.threads {
        options.threads = threads;
    }
    let bar = ProgressBar::new(0);
    let style =
        ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {msg}");
    bar.set_style(style.expect("a correct template"));
    let summary = prepare(&options, &mut |state| {
        show(&bar, state);
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    report(&summary);
    Ok(())
}

fn show(bar: &ProgressBar, state: PrepareProgress) {
    match state {
        PrepareProgress::Found { files, bytes } => {
            bar.set_length(bytes);
            bar.set_message(format!("{files} files"));
        }
        PrepareProgress::TrainingTokenizer => bar.set_message("training the tokenizer"),
        PrepareProgress::Tokenised { bytes, documents, tokens } => {
            bar.set_position(bytes);
            bar.set_message(format!("{documents} documents, {tokens} tokens"));
        }
    }
}

fn report(summary: &PrepareSummary) {
    let info = &summary.info;
    for (name, split) in [("train", &info.train), ("validation", &info.validation)] {
        say!(
            "{name:<11} {:>10} documents {:>14} tokens {:>5} shards  {:.2} bytes a token",
            split.documents,
            split.tokens,
            split.shards.len(),
            split.bytes as f64 / split.tokens.max(1) as f64
        );
    }
    let skipped = info.skipped;
    say!(
        "skipped     {} copies, {} not UTF-8, {} too large, {} empty",
        skipped.duplicates,
        skipped.not_utf8,
        skipped.too_large,
        skipped.empty
    );
    say!("tokenizer   {} tokens, blake3 {}", info.vocab_size, &info.recipe.tokenizer_blake3[..16]);
    say!(
        "{} in {:.1} s ({} shards kept from before)",
        summary.out.display(),
        summary.elapsed.as_secs_f64(),
        summary.kept_shards
    );
    if info.validation.documents == 0 {
        say!("no document was held out: training will hold out the last rows instead");
    }
    say!("next: cargo run -p train -- --data {}", summary.out.display());
}
