//! Generation with a loaded checkpoint. [`Decoder`] continues text; below it, [`Rows`] continue token ids side by side, and
//! [`Generator`] holds weights on a device. The programs that run are built by `model::decode`.

mod checkpoint;
mod flags;
mod generator;
mod options;
mod pace;
mod rows;
mod scorer;
mod text;

pub use checkpoint::find_checkpoint;
pub use flags::{DeviceFlags, DrawFlags, SamplingFlags};
pub use generator::Generator;
pub use options::{Completion, Finish, Options, Piece, Prompt, Sampling, Speculation, Statistics};
pub use rows::{News, Prefilled, Rows, Score, Scoring, Settings, key};
pub use scorer::{Scorer, Scores};
pub use text::Text;

use anyhow::{Result, bail, ensure};
use engine::Host;
use model::{Config, Params};
use std::cmp::Reverse;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;
use train::checkpoint::{files, load_params};
use train::data::{FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, Tokenizer};
use train::device::Device;

/// How often the watcher of [`Decoder::complete`] is called, if the device is fast enough.
const PERIOD: Duration = Duration::from_millis(100);

/// A checkpoint on a device, ready to continue text.
pub struct Decoder {
    generator: Generator,
    tokenizer: Tokenizer,
    /// For each token of the vocabulary, whether it ends a completion: every token that is not text does.
    stops: Vec<bool>,
}

/// Reads configuration and weights of a checkpoint folder: one that a run has written, which is verified, or any folder
/// with `model.safetensors` and `config.json`.
///
/// # Errors
/// If there is no such checkpoint, or a file is damaged or missing. Each message says what to do.
pub fn load_model(checkpoint: &Path) -> Result<(Config, Params<Host>)> {
    ensure!(
        checkpoint.is_dir(),
        "there is no checkpoint folder {}; give one that a run has written, runs/<name>/checkpoints/step_<number>",
        checkpoint.display()
    );
    Ok(load_params(checkpoint)?)
}

/// Reads the tokenizer of a checkpoint folder.
///
/// # Errors
/// If there is none, or it has tokens that the model does not, or [`Tokenizer::open`] refuses it.
pub fn load_tokenizer(checkpoint: &Path, config: &Config) -> Result<Tokenizer> {
    let path = checkpoint.join(files::TOKENIZER);
    ensure!(
        path.exists(),
        "checkpoint {} has no {}: it was trained without one; put the tokenizer that made its data there",
        checkpoint.display(),
        files::TOKENIZER
    );
    let tokenizer = Tokenizer::open(&path)?;
    ensure!(
        tokenizer.vocab_size() <= config.num_tokens,
        "{} has {} tokens, but the model knows {}; it is not the tokenizer that the model was trained with",
        path.display(),
        tokenizer.vocab_size(),
        config.num_tokens
    );
    Ok(tokenizer)
}

impl Decoder {
    /// Loads a checkpoint's model and tokenizer onto the first device of a platform.
    ///
    /// # Errors
    /// As [`load_model`] and [`load_tokenizer`], or if the device does not take the weights.
    pub fn open(checkpoint: &Path, device: &DeviceFlags) -> Result<Decoder> {
        let (config, params) = load_model(checkpoint)?;
        let tokenizer = load_tokenizer(checkpoint, &config)?;
        let device = Device::open(&device.platform, device.kernels)?;
        let generator = Generator::new(device, &config, &params)?;
        let text = |id: i32| tokenizer.decode_bytes(&[id]).is_some();
        let stops = (0..config.vocab_size).map(|id| i32::try_from(id).is_ok_and(|id| !text(id))).collect();
        Ok(Decoder { generator, tokenizer, stops })
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        self.generator.config()
    }

    /// The checkpoint's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// A prompt to be continued, with random numbers of stream 0.
    ///
    /// # Errors
    /// If the text has no token.
    pub fn prompt(&self, text: &str) -> Result<Prompt> {
        let ids = self.tokenizer.encode(text)?;
        ensure!(!ids.is_empty(), "the prompt is empty; there is nothing to continue");
        Ok(Prompt { ids, stream: 0 })
    }

    /// A prompt for the text between `prefix` and `suffix` (fill in the middle), with random numbers of stream 0. The parts are in
    /// the order that training mostly uses: prefix, suffix, middle.
    ///
    /// # Errors
    /// If the tokenizer has no tokens for it.
    pub fn infill(&self, prefix: &str, suffix: &str) -> Result<Prompt> {
        let mark = |token| self.tokenizer.special(token, "marks a part of a text to be filled in");
        let mut ids = vec![mark(FIM_PREFIX)?];
        ids.extend(self.tokenizer.encode(prefix)?);
        ids.push(mark(FIM_SUFFIX)?);
        ids.extend(self.tokenizer.encode(suffix)?);
        ids.push(mark(FIM_MIDDLE)?);
        Ok(Prompt { ids, stream: 0 })
    }

    /// Continues every prompt `options.samples` times, `options.rows` completions at a time, longest prompts first.
    ///
    /// `watch` sees pieces of text as they come and every completion as soon as it is finished, in any order; it ends the
    /// work early with `Break`, and then only the finished completions are returned.
    ///
    /// Returns the completions in order of prompt and sample, and how long everything took. Equal prompts, streams and options
    /// give equal tokens whatever else is in the same call, but for rounding in matrix products of another height.
    ///
    /// # Errors
    /// If an option is out of range, a prompt is empty, or a prompt and the new tokens do not fit the model's context; the
    /// message names the prompt's index, and nothing has been generated then. Or if the model's logits become NaN, or the
    /// device fails.
    pub fn complete(
        &mut self,
        prompts: &[Prompt],
        options: &Options,
        watch: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<(Vec<Completion>, Statistics)> {
        self.check(prompts, options)?;
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|&prompt| Reverse(prompts[prompt].ids.len()));
        let longest = order.first().map_or(0, |&prompt| prompts[prompt].ids.len());
        let count = options.rows.min(prompts.len() * options.samples).max(1);
        let tokens = longest + options.max_new_tokens;
        let mut rows = Rows::new(&mut self.generator, count, tokens, &self.stops, options.speculation)?;
        let samples =
            order.iter().flat_map(|&prompt| (0..options.samples).map(move |sample| (prompt, sample)));
        let mut waiting = samples.peekable();
        let mut open: Vec<Option<Open>> = (0..count).map(|_| None).collect();
        let (mut finished, mut prompt_tokens) = (Vec::new(), 0);
        'steps: loop {
            while let Some(&(prompt, sample)) = waiting.peek() {
                let Prompt { ids, stream } = &prompts[prompt];
                let settings = Settings {
                    new_tokens: options.max_new_tokens,
                    sampling: options.sampling,
                    key: key(options.seed, *stream, sample as u32),
                    ..Settings::default()
                };
                let Some(row) = rows.admit(ids, settings)? else { break };
                open[row] = Some(Open::new(prompt, sample));
                prompt_tokens += if sample == 0 { ids.len() } else { 0 };
                waiting.next();
            }
            while rows.prefill()?.is_some() {}
            let news = rows.step(PERIOD)?;
            if news.is_empty() {
                break;
            }
            for news in news {
                let Some(text) = &mut open[news.row] else { continue };
                let done = text.push(&news, &self.tokenizer, &self.stops, options);
                let mut ended = text.show(watch, options, done);
                if done {
                    rows.retire(news.row);
                    if ended.is_continue() {
                        let completion = text.close();
                        ended = watch(Piece::Finished(&completion));
                        finished.push(completion);
                    }
                }
                if ended.is_break() {
                    break 'steps;
                }
            }
        }
        let took = Statistics { prompt_tokens, ..rows.statistics() };
        finished.sort_by_key(|completion| (completion.prompt, completion.sample));
        Ok((finished, took))
    }

    fn check(&self, prompts: &[Prompt], options: &Options) -> Result<()> {
        let positive = |name: &str, value: usize| -> Result<()> {
            ensure!(value > 0, "{name} is 0, but must be at least 1");
            Ok(())
        };
        positive("the number of samples", options.samples)?;
        positive("the number of new tokens", options.max_new_tokens)?;
        positive("the number of rows", options.rows)?;
        if let Sampling::Random { temperature, top_p, .. } = options.sampling {
            ensure!(
                temperature.is_finite() && temperature > 0.0,
                "the temperature is {temperature}, but must be positive; 0 on the command line means greedy"
            );
            ensure!(top_p > 0.0 && top_p <= 1.0, "top-p is {top_p}, but must be in (0, 1]");
        }
        ensure!(options.stop.iter().all(|stop| !stop.is_empty()), "a stop string is empty");
        let context = self.config().max_position_embeddings;
        for (i, Prompt { ids, .. }) in prompts.iter().enumerate() {
            ensure!(!ids.is_empty(), "prompt {i} is empty; there is nothing to continue");
            let unknown = |&&id: &&i32| usize::try_from(id).is_ok_and(|id| id < self.config().num_tokens);
            if let Some(id) = ids.iter().find(|id| !unknown(id)) {
                bail!("prompt {i} has token {id}, but the model knows {} tokens", self.config().num_tokens);
            }
            ensure!(
                ids.len() + options.max_new_tokens <= context,
                "prompt {i} has {} tokens and {} more are wanted, but the model's context is {context}; shorten the prompt or ask for at most {} new tokens",
                ids.len(),
                options.max_new_tokens,
                context.saturating_sub(ids.len())
            );
        }
        Ok(())
    }
}

/// A completion that is being written.
struct Open {
    prompt: usize,
    sample: usize,
    text: Text,
    ids: Vec<i32>,
    log_probs: Vec<f32>,
    finish: Finish,
}

impl Open {
    fn new(prompt: usize, sample: usize) -> Open {
        let (text, ids, log_probs) = Default::default();
        Open { prompt, sample, text, ids, log_probs, finish: Finish::Length }
    }

    /// Takes new tokens in; whether the completion is finished.
    fn push(&mut self, news: &News, tokenizer: &Tokenizer, stops: &[bool], options: &Options) -> bool {
        for (&token, score) in news.tokens.iter().zip(&news.scores) {
            self.log_probs.push(score.log_prob);
            if stops[token as usize] {
                self.finish = Finish::Token(token);
                return true;
            }
            self.ids.push(token);
            let bytes = tokenizer.decode_bytes(&[token]).unwrap_or_default();
            if self.text.push(&bytes, &options.stop) {
                let which = self.text.stopped_by().expect("a stop string was found");
                self.finish = Finish::Text(options.stop[which].clone());
                return true;
            }
        }
        news.finished
    }

    /// Passes on the text that is certain by now.
    fn show(
        &mut self,
        watch: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
        options: &Options,
        done: bool,
    ) -> ControlFlow<()> {
        let text = if done { self.text.rest() } else { self.text.news(&options.stop) };
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        watch(Piece::Text { prompt: self.prompt, sample: self.sample, text: &text })
    }

    fn close(&mut self) -> Completion {
        Completion {
            prompt: self.prompt,
            sample: self.sample,
            text: self.text.whole(),
            ids: std::mem::take(&mut self.ids),
            log_probs: std::mem::take(&mut self.log_probs),
            finish: self.finish.clone(),
        }
    }
}
