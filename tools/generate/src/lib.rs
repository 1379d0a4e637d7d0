//! `generate`: continues Python source, or fills a hole in it, with a checkpoint. The work is done by the crate `decode`.

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use decode::{
    Completion, Decoder, DeviceFlags, Finish, Options, Piece, SamplingFlags, Speculation, Statistics,
    find_checkpoint,
};
use indicatif::{ProgressBar, ProgressStyle};
use program::output::{self, Reader};
use program::{arguments, esay, exit_code, say, with_large_pages};
use serde_json::json;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

/// Continue Python source with a checkpoint. Without --prompt or --prompt-file, the prompt is read from standard input.
/// Text is printed as it comes; speed is reported on standard error.
#[derive(Parser)]
#[command(version, mut_arg("temperature", |temperature| temperature.default_value("0.8")))]
struct Arguments {
    /// Folder of a checkpoint, or of a run for its newest good one, RUN@best for the one with the lowest validation
    /// loss, or RUN@4 for the end of epoch 4; `latest`, `best` or `4` alone are of the run in runs/ that was written
    /// last
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Text to continue
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// File with the text to continue
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Write what stands between the prompt and this text
    #[arg(long, value_name = "TEXT")]
    suffix: Option<String>,
    /// Most tokens to write [default: 256, or what is left of the context]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Texts to write
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: usize,
    /// Write this many and keep the --samples ones with the highest mean log-probability of a token
    #[arg(long, value_name = "N")]
    best_of: Option<usize>,
    /// End before this text (may be repeated); \n is a new line in it, \t a tab, and \\ a backslash
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Let the second head draft tokens that the model checks; auto measures what is faster. The text is the same.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Speculative::Auto)]
    speculative: Speculative,
    /// One JSON object a line for each text instead of the text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceFlags,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Speculative {
    Auto,
    On,
    Off,
}

/// Most tokens to write, by default.
const NEW_TOKENS: usize = 256;

/// The whole program: the process's command line, messages and exit code.
pub fn main() -> ExitCode {
    with_large_pages();
    exit_code(run(&arguments()).map(|()| ExitCode::SUCCESS))
}

fn run(arguments: &Arguments) -> Result<()> {
    let candidates = arguments.best_of.unwrap_or(arguments.samples);
    check(arguments, candidates)?;
    let stop = arguments.stop.iter().map(|text| unescaped(text)).collect::<Result<Vec<String>>>()?;
    let text = prompt(arguments)?;
    ensure!(
        !text.is_empty() || arguments.suffix.is_some(),
        "the prompt is empty; give the beginning of a text, or a --suffix to write what stands before it"
    );
    let mut decoder = Decoder::open(&find_checkpoint(&arguments.checkpoint)?, &arguments.device)?;
    let prompt = match &arguments.suffix {
        Some(suffix) => decoder.infill(&text, suffix)?,
        None => decoder.prompt(&text)?,
    };
    let context = decoder.config().max_position_embeddings;
    ensure!(
        prompt.ids.len() < context,
        "the prompt has {} tokens, but the model's context is {context}; shorten it",
        prompt.ids.len()
    );
    let left = context - prompt.ids.len();
    let new_tokens = arguments.max_new_tokens.unwrap_or(NEW_TOKENS.min(left));
    ensure!(
        new_tokens <= left,
        "the prompt has {} tokens and --max-new-tokens is {new_tokens}, but the model's context is {context}; ask for at most {left}",
        prompt.ids.len()
    );
    let options = Options {
        sampling: arguments.sampling.sampling(),
        seed: arguments.sampling.draw.seed,
        samples: candidates,
        max_new_tokens: new_tokens,
        stop,
        speculation: match arguments.speculative {
            Speculative::Auto => Speculation::Auto,
            Speculative::On => Speculation::On,
            Speculative::Off => Speculation::Off,
        },
        ..Options::default()
    };

    let streams = candidates == 1 && !arguments.json;
    let bar = if streams { ProgressBar::hidden() } else { ProgressBar::new(candidates as u64) };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} texts, {msg} bytes, {elapsed}");
    bar.set_style(style.expect("a correct template"));
    let mut bytes = 0;
    let (mut texts, took) = decoder.complete(&[prompt], &options, &mut |piece| {
        match piece {
            Piece::Text { text, .. } if streams => {
                output::write(format_args!("{text}"));
            }
            Piece::Text { text, .. } => {
                bytes += text.len();
                bar.set_message(bytes.to_string());
            }
            Piece::Finished(_) => bar.inc(1),
        }
        match output::reader() {
            Reader::There => ControlFlow::Continue(()),
            Reader::Gone | Reader::Lost => ControlFlow::Break(()),
        }
    })?;
    bar.finish_and_clear();
    finish(arguments, &mut texts, streams);
    if output::reader() == Reader::There {
        report(&took, &texts);
    }
    Ok(())
}

/// Refuses numbers out of range before anything is loaded.
fn check(arguments: &Arguments, candidates: usize) -> Result<()> {
    for (name, value) in [
        ("--max-new-tokens", arguments.max_new_tokens),
        ("--samples", Some(arguments.samples)),
        ("--best-of", arguments.best_of),
    ] {
        ensure!(value != Some(0), "{name} is 0, but must be at least 1");
    }
    ensure!(
        candidates >= arguments.samples,
        "--best-of {candidates} cannot leave --samples {}; it must be at least as many",
        arguments.samples
    );
    arguments.sampling.check()?;
    ensure!(arguments.stop.iter().all(|stop| !stop.is_empty()), "--stop wants some text");
    Ok(())
}

/// A text of the command line with what its escapes stand for: a shell hands `'\n'` over as two characters.
fn unescaped(text: &str) -> Result<String> {
    let (mut plain, mut rest) = (String::new(), text.chars());
    while let Some(character) = rest.next() {
        plain.push(match character {
            '\\' => match rest.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('\\') => '\\',
                _ => bail!(
                    "--stop {text}: after a backslash, n stands for a new line, t for a tab, and a backslash for itself"
                ),
            },
            other => other,
        });
    }
    Ok(plain)
}

fn prompt(arguments: &Arguments) -> Result<String> {
    let (from, bytes) = match (&arguments.prompt, &arguments.prompt_file) {
        (Some(text), _) => return Ok(text.clone()),
        (None, Some(path)) => {
            let bytes =
                fs::read(path).with_context(|| format!("reading the prompt from {}", path.display()))?;
            (path.display().to_string(), bytes)
        }
        (None, None) => {
            let mut stdin = io::stdin().lock();
            if stdin.is_terminal() {
                esay!("reading the prompt from standard input; Ctrl-D ends it");
            }
            let mut bytes = Vec::new();
            stdin.read_to_end(&mut bytes).context("reading the prompt from standard input")?;
            ("standard input".to_owned(), bytes)
        }
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => bail!(
            "the prompt from {from} is not UTF-8 text: byte {} is wrong",
            error.utf8_error().valid_up_to()
        ),
    }
}

/// Prints the texts that were not printed as they came, the best first.
fn finish(arguments: &Arguments, texts: &mut Vec<Completion>, streamed: bool) {
    if streamed {
        if !texts.first().is_some_and(|text| text.text.ends_with('\n')) {
            say!();
        }
        return;
    }
    if arguments.best_of.is_some() {
        texts.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        texts.truncate(arguments.samples);
    }
    for (i, text) in texts.iter().enumerate() {
        if arguments.json {
            say!("{}", json(text));
            continue;
        }
        if texts.len() > 1 {
            say!("--- {} of {}, {:.3} nats a token", i + 1, texts.len(), -mean(text));
        }
        say!("{}", text.text.strip_suffix('\n').unwrap_or(&text.text));
    }
}

/// Mean log-probability of a completion's tokens.
fn mean(text: &Completion) -> f64 {
    text.log_probs.iter().map(|&x| f64::from(x)).sum::<f64>() / text.log_probs.len() as f64
}

fn json(text: &Completion) -> serde_json::Value {
    let (finish, stop) = match &text.finish {
        Finish::Token(id) => ("token", json!(id)),
        Finish::Text(stop) => ("stop", json!(stop)),
        Finish::Length => ("length", json!(null)),
    };
    json!({
        "sample": text.sample,
        "text": text.text,
        "finish": finish,
        "stop": stop,
        "mean_log_prob": mean(text),
        "ids": text.ids,
        "log_probs": text.log_probs,
    })
}

fn report(took: &Statistics, texts: &[Completion]) {
    let ended = match texts {
        [text] => match &text.finish {
            Finish::Token(_) => "; ended by itself",
            Finish::Text(_) => "; ended before a stop text",
            Finish::Length => "; cut at --max-new-tokens",
        },
        _ => "",
    };
    esay!(
        "{} tokens in {:.2} s, {:.1} tokens/s{ended}",
        took.new_tokens,
        took.decode.as_secs_f64(),
        took.tokens_per_second()
    );
    esay!(
        "prompt of {} tokens in {:.2} s, programs ready in {:.2} s",
        took.prompt_tokens,
        took.prefill.as_secs_f64(),
        took.compile.as_secs_f64()
    );
    match took.acceptance() {
        Some(share) => {
            esay!("the second head drafted {} tokens, {:.1} % were accepted", took.drafted, 100.0 * share)
        }
        None => esay!("no drafts"),
    }
}
