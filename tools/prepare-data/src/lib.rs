//! `prepare-data`: Python source to Parquet shards of token ids. The work is done by `train::data::prepare`.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use program::{arguments, esay, exit_code, say};
use signal_hook::consts::{SIGINT, SIGTERM};
use train::data::{
    BAD_LINES_FILE, BadLines, DataError, PrepareOptions, PrepareProgress, PrepareSummary, TokenizerSource,
    prepare,
};
use train::signals::INTERRUPTED;

/// Turn Python source into Parquet shards that `train --data DIR` reads.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Folder to write; the same command continues an interrupted run, and makes lost or damaged shards again
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Use this tokenizer.json: byte-level, without a normalizer or with NFC
    #[arg(long, value_name = "FILE", conflicts_with = "train_tokenizer")]
    tokenizer: Option<PathBuf>,
    /// Train a byte-level BPE with a vocabulary of this size on the training split
    #[arg(long, value_name = "N", default_value_t = 4096)]
    train_tokenizer: usize,
    /// Special token of the tokenizer that ends a document
    #[arg(long, value_name = "TOKEN", default_value = "<|endoftext|>")]
    end_of_text: String,
    /// Share of documents to hold out, chosen by the hash of their text
    #[arg(long, value_name = "X", default_value_t = 0.02)]
    validation_fraction: f64,
    /// Column with the text in JSON and Parquet inputs
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// What to do about a line, row or file that is no document: broken JSON, no text, unreadable
    #[arg(long, value_enum, default_value_t = OnBad::Skip)]
    bad_lines: OnBad,
    /// Largest share of bad lines, rows and files to skip; ten are skipped in any case. bad_lines.jsonl in DIR names each
    #[arg(long, value_name = "SHARE", default_value_t = 0.001)]
    max_bad_lines: f64,
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
    /// *.py, *.jsonl, *.ndjson, *.json (also .gz and .zst), *.parquet, or folders with them
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnBad {
    /// End at the first one
    Stop,
    /// Leave them out, and end when there are too many
    Skip,
}

/// Runs the program.
pub fn main() -> ExitCode {
    exit_code(run(arguments()))
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut options = PrepareOptions::new(arguments.inputs, arguments.out);
    options.tokenizer = match arguments.tokenizer {
        Some(path) => TokenizerSource::File(path),
        None => TokenizerSource::Train(arguments.train_tokenizer),
    };
    options.end_of_text = arguments.end_of_text;
    options.validation_fraction = arguments.validation_fraction;
    options.text_column = arguments.text_column;
    options.bad_lines = match arguments.bad_lines {
        OnBad::Stop => BadLines::Stop,
        OnBad::Skip => BadLines::Skip { most: arguments.max_bad_lines },
    };
    options.max_file_bytes = arguments.max_file_bytes;
    options.shard_tokens = arguments.shard_tokens;
    options.exclude = arguments.exclude;
    if let Some(threads) = arguments.threads {
        options.threads = threads;
    }
    let mut interrupt = Interrupt::on_signals().context("listening for signals")?;
    let mut screen = Screen::new();
    let done = prepare(&options, &mut |state| {
        screen.show(state);
        interrupt.after(state)
    });
    screen.clear();
    match done {
        Ok(summary) => report(&summary),
        Err(error @ DataError::Interrupted) => {
            esay!("{error}");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The first signal ends the work when the open shard is finished, the second one at once.
struct Interrupt {
    asked: Arc<AtomicBool>,
    /// The number of shards when the stop was first noticed.
    since: Option<usize>,
}

impl Interrupt {
    fn on_signals() -> io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal must find the flag that the first one set.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&asked))?;
            signal_hook::flag::register(signal, Arc::clone(&asked))?;
        }
        Ok(Self { asked, since: None })
    }

    fn after(&mut self, state: PrepareProgress) -> ControlFlow<()> {
        if !self.asked.load(Ordering::SeqCst) {
            return ControlFlow::Continue(());
        }
        let PrepareProgress::Tokenised { shards, open, .. } = state else { return ControlFlow::Break(()) };
        let since = *self.since.get_or_insert_with(|| {
            esay!("interrupted: stops when the open shard is finished; once more to stop at once");
            shards
        });
        if open == 0 || shards > since { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// How progress is shown.
enum Screen {
    /// On a terminal.
    Bar(ProgressBar),
    /// Elsewhere: a line now and then.
    Lines { total: u64, next: Instant },
}

/// The time between lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Screen {
    fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines { total: 0, next: Instant::now() };
        }
        let style =
            ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {msg}");
        Self::Bar(ProgressBar::new(0).with_style(style.expect("a correct template")))
    }

    fn show(&mut self, state: PrepareProgress) {
        let (read, what) = match state {
            PrepareProgress::Found { bytes, files } => {
                match self {
                    Self::Bar(bar) => bar.set_length(bytes),
                    Self::Lines { total, .. } => *total = bytes,
                }
                (0, format!("{files} files"))
            }
            PrepareProgress::TrainingTokenizer { bytes } => (bytes, "training the tokenizer".to_owned()),
            PrepareProgress::Tokenised { bytes, documents, tokens, .. } => {
                (bytes, format!("{documents} documents, {tokens} tokens"))
            }
        };
        match self {
            Self::Bar(bar) => {
                bar.set_position(read);
                bar.set_message(what);
            }
            Self::Lines { total, next } if Instant::now() >= *next => {
                *next = Instant::now() + LINE_EVERY;
                esay!("read {} of {}, {what}", HumanBytes(read), HumanBytes(*total));
            }
            Self::Lines { .. } => {}
        }
    }

    fn clear(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn report(summary: &PrepareSummary) {
    let info = &summary.info;
    for input in &info.inputs {
        let counts = [
            (input.python, "Python"),
            (input.json, "JSON"),
            (input.parquet, "Parquet"),
            (input.unreadable, "unreadable"),
            (input.other, "of other kinds, left out"),
        ];
        let counts: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, kind)| format!("{count} {kind}"))
            .collect();
        say!("read        {}: files {}", input.path, counts.join(", "));
    }
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
        "skipped     {} copies, {} not UTF-8, {} too large, {} empty, {} bad",
        skipped.duplicates,
        skipped.not_utf8,
        skipped.too_large,
        skipped.empty,
        skipped.bad
    );
    if let Some(first) = &summary.first_bad {
        say!("bad         the first: {first}; all: {}", summary.out.join(BAD_LINES_FILE).display());
    }
    say!("tokenizer   {} tokens, blake3 {}", info.vocab_size, &info.recipe.tokenizer_blake3[..16]);
    if let Some(asked) = info.recipe.trained_tokenizer.filter(|asked| *asked > info.vocab_size) {
        say!("            {asked} tokens were asked for: the text has no more pairs that come twice");
    }
    for note in &summary.tokenizer_notes {
        say!("            {note}");
    }
    say!(
        "{} in {:.1} s ({} shards kept from before)",
        summary.out.display(),
        summary.elapsed.as_secs_f64(),
        summary.kept_shards
    );
    if !summary.made_again.is_empty() {
        say!("made again, as lost or damaged: {}", summary.made_again.join(", "));
    }
    if info.validation.documents == 0 {
        say!("no document was held out: training will hold out the last rows instead");
    }
    say!("next: cargo run -p train -- --data {}", summary.out.display());
}
