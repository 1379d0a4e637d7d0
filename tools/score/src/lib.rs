//! `score`: log-probabilities of given token ids or text under a checkpoint. The work is done by the crate `decode`.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use decode::{DeviceFlags, Scorer, Scores, find_checkpoint, load_model, load_tokenizer};
use model::Config;
use program::output::{self, Reader};
use program::{arguments, esay, exit_code, with_large_pages};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use train::checkpoint::files;
use train::data::Tokenizer;
use train::device::Device;

/// Score token ids or text with a checkpoint. For each line of ids, or each file of text, one line of JSON on standard
/// output: {"logprobs": [of each next token], "mtp_logprobs": [of the token after it], "loss": nats}; where there is
/// nothing to predict, as in an empty file, the lists are empty and the loss is null. A summary goes to standard error.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Folder of a checkpoint, or of a run for its newest good one, RUN@best for the one with the lowest validation
    /// loss, or RUN@4 for the end of epoch 4; `latest`, `best` or `4` alone are of the run in runs/ that was written
    /// last
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// File of lines {"ids": [..], "segments": [..]}; segments, one number for each id, tell documents apart and may be left out
    #[arg(long, value_name = "FILE.jsonl", conflicts_with = "text", required_unless_present = "text")]
    ids: Option<PathBuf>,
    /// Files of text, each scored as one document
    #[arg(long, value_name = "FILE", num_args = 1..)]
    text: Vec<PathBuf>,
    /// Positions that text is scored in at a time [default: as many as the model was trained at]; more make its scores
    /// worse
    #[arg(long, value_name = "N", requires = "text")]
    window: Option<usize>,
    #[command(flatten)]
    device: DeviceFlags,
}

/// One line of --ids.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    ids: Vec<i32>,
    segments: Option<Vec<i32>>,
}

/// One line of output.
#[derive(Serialize)]
struct Scored<'a> {
    logprobs: &'a [f32],
    mtp_logprobs: &'a [f32],
    /// None if there is no target.
    loss: Option<f64>,
}

/// The whole program: the process's command line, messages and exit code.
pub fn main() -> ExitCode {
    with_large_pages();
    exit_code(run(&arguments()).map(|()| ExitCode::SUCCESS))
}

fn run(arguments: &Arguments) -> Result<()> {
    let checkpoint = &find_checkpoint(&arguments.checkpoint)?;
    let (config, params) = load_model(checkpoint)?;
    let has_tokenizer = checkpoint.join(files::TOKENIZER).exists();
    let tokenizer = match has_tokenizer || !arguments.text.is_empty() {
        true => Some(load_tokenizer(checkpoint, &config)?),
        false => None,
    };
    let device = Device::open(&arguments.device.platform, arguments.device.kernels)?;
    let mut scorer = Scorer::new(device, &config, &params)?;
    drop(params);
    let longest = config.max_position_embeddings;
    let window = arguments.window.unwrap_or(longest.min(config.trained_positions()));
    ensure!(
        (2..=longest).contains(&window),
        "--window is {window}, but must be at least 2 and at most the model's context, {longest}"
    );
    let mut total = Sums::default();
    if let Some(path) = &arguments.ids {
        let reading = || format!("reading {}", path.display());
        let file = File::open(path).with_context(reading)?;
        for (number, line) in (1..).zip(BufReader::new(file).lines()) {
            let line = line.with_context(reading)?;
            if line.trim().is_empty() {
                continue;
            }
            let here = || format!("{}, line {number}", path.display());
            let Line { ids, segments } = serde_json::from_str(&line).with_context(here)?;
            let segments = segments.unwrap_or_else(|| vec![0; ids.len()]);
            let scores = scorer.score(&ids, Some(&segments)).with_context(here)?;
            if show(&config, &tokenizer, &ids, &segments, &scores, &mut total)? != Reader::There {
                return Ok(());
            }
        }
        ensure!(total.main.targets > 0, "{} has no line with a token to predict", path.display());
    }
    for path in &arguments.text {
        let tokenizer_of_text = tokenizer.as_ref().expect("loaded for text");
        let ids = tokenizer_of_text.encode(&read_text(path)?)?;
        let scores = score_document(&mut scorer, &ids, window).with_context(|| path.display().to_string())?;
        if show(&config, &tokenizer, &ids, &vec![0; ids.len()], &scores, &mut total)? != Reader::There {
            return Ok(());
        }
    }
    ensure!(total.main.targets > 0, "none of the files has a token to predict: each has fewer than two");
    summary(&config, &total, tokenizer.is_some());
    Ok(())
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            bail!("{} is not UTF-8 text: byte {} is wrong", path.display(), error.utf8_error().valid_up_to())
        }
    }
}

/// Scores a document of any length. What does not fit one window is scored in windows that overlap by half, so that every
/// token but those of the first window sees at least half a window before it.
fn score_document(scorer: &mut Scorer, ids: &[i32], window: usize) -> Result<Scores> {
    let mut all = scorer.score(&ids[..ids.len().min(window)], None)?;
    let mut end = window;
    while end < ids.len() {
        let next = (end + window / 2).min(ids.len());
        let part = scorer.score(&ids[next - window..next], None)?;
        let new = next - end;
        all.log_probs.extend(&part.log_probs[part.log_probs.len() - new..]);
        if !part.mtp_log_probs.is_empty() {
            all.mtp_log_probs.extend(&part.mtp_log_probs[part.mtp_log_probs.len() - new..]);
        }
        end = next;
    }
    Ok(all)
}

/// Sum over targets.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    nats: f64,
    targets: usize,
}

impl Sum {
    /// Of the targets `by` tokens ahead that lie in the same document.
    fn of(log_probs: &[f32], segments: &[i32], by: usize) -> Sum {
        let mut sum = Sum::default();
        for (i, &log_prob) in log_probs.iter().enumerate() {
            if segments[i] == segments[i + by] {
                sum.nats -= f64::from(log_prob);
                sum.targets += 1;
            }
        }
        sum
    }

    fn add(&mut self, other: Sum) {
        self.nats += other.nats;
        self.targets += other.targets;
    }

    /// None without targets.
    fn mean(&self) -> Option<f64> {
        (self.targets > 0).then(|| self.nats / self.targets as f64)
    }
}

/// What the summary is made of.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    main: Sum,
    mtp: Sum,
    /// Lines or files without a target.
    empty: usize,
    /// Of the predicted tokens' text.
    bytes: usize,
}

impl Sums {
    /// The loss of training, in which a second head without targets counts nothing.
    fn loss(&self, config: &Config) -> Option<f64> {
        Some(self.main.mean()? + config.mtp_loss_weight * self.mtp.mean().unwrap_or(0.0))
    }
}

/// Writes the line of one document and adds it up.
fn show(
    config: &Config,
    tokenizer: &Option<Tokenizer>,
    ids: &[i32],
    segments: &[i32],
    scores: &Scores,
    total: &mut Sums,
) -> Result<Reader> {
    let (main, mtp) = (Sum::of(&scores.log_probs, segments, 1), Sum::of(&scores.mtp_log_probs, segments, 2));
    let sums = Sums { main, mtp, ..Sums::default() };
    let scored =
        Scored { logprobs: &scores.log_probs, mtp_logprobs: &scores.mtp_log_probs, loss: sums.loss(config) };
    let reader = output::write(format_args!("{}\n", serde_json::to_string(&scored)?));
    total.main.add(sums.main);
    total.mtp.add(sums.mtp);
    total.empty += usize::from(sums.main.targets == 0);
    if let Some(tokenizer) = tokenizer {
        let predicted = (1..ids.len()).filter(|&i| segments[i] == segments[i - 1]);
        total.bytes +=
            predicted.filter_map(|i| Some(tokenizer.decode_bytes(&[ids[i]])?.len())).sum::<usize>();
    }
    Ok(reader)
}

/// Sums up on standard error; something was scored.
fn summary(config: &Config, total: &Sums, has_tokenizer: bool) {
    esay!("tokens        {}", total.main.targets);
    if total.empty > 0 {
        esay!("left out      {} with fewer than two tokens, where nothing is predicted", total.empty);
    }
    if let (Some(loss), Some(main)) = (total.loss(config), total.main.mean()) {
        esay!("loss          {loss:.6} nats");
        esay!("next token    {main:.6} nats, perplexity {:.3}", main.exp());
    }
    if let Some(mtp) = total.mtp.mean() {
        esay!("one after it  {mtp:.6} nats, perplexity {:.3}", mtp.exp());
    }
    match (has_tokenizer, total.bytes) {
        (false, _) => esay!("bits a byte   unknown: the checkpoint has no tokenizer.json"),
        (true, 0) => esay!("bits a byte   unknown: no predicted token stands for text"),
        (true, bytes) => {
            let bits = total.main.nats / std::f64::consts::LN_2 / bytes as f64;
            esay!("bits a byte   {bits:.4} over {bytes} bytes");
        }
    }
}
