//! [`Rows`]: texts that are written side by side. Each is admitted, computed step by step and retired on its own; token ids
//! in, token ids out.

use crate::generator::{Generator, Wanted};
use crate::options::{Sampling, Speculation, Statistics};
use crate::pace::Choice;
use anyhow::{Context, Result, bail, ensure};
use engine::pjrt::{Arg, Buffer};
use engine::random::threefry2x32;
use engine::{DType, Host, Type};
use model::decode::{CHUNK, Ends, Matrices, Shape, TOKENS, cache_types, table_start};
use std::cmp::Reverse;
use std::time::{Duration, Instant};

/// Caches grow by this many slots, so that requests of similar lengths share their programs.
const SLOTS: usize = 256;
/// Slots beyond a row's text: a finished row's last token and a draft.
const BEYOND: usize = 1;

/// How a row is continued.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Tokens at most, at least 1.
    pub new_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The key of its random numbers: [`key`].
    pub key: [u32; 2],
}

impl Settings {
    /// Temperature, top-k and top-p as a step has them.
    fn numbers(&self) -> (f64, usize, f64) {
        match self.sampling {
            Sampling::Greedy => (1.0, 1, 1.0),
            Sampling::Random { temperature, top_k, top_p } => (temperature, top_k, top_p),
        }
    }
}

/// New tokens of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// Which row.
    pub row: usize,
    /// Its new tokens; a token that ends it is the last.
    pub tokens: Vec<i32>,
    /// Log-probability of each under the model itself.
    pub log_probs: Vec<f32>,
    /// Whether it is finished: by a token that ends it, or by its number of tokens.
    pub finished: bool,
}

/// A fixed number of rows and their cache.
///
/// What a row writes depends on its prompt and settings alone: its prompt is computed by itself, in pieces that begin at fixed
/// places, and what another row has computed of the same beginning is copied, which is the same bits.
pub struct Rows<'g> {
    generator: &'g mut Generator,
    shape: Shape,
    cache: Vec<Buffer>,
    /// Tokens that end a row, `bool[V]`.
    stops: Host,
    rows: Vec<Row>,
    /// Rows admitted so far.
    admitted: u64,
    choice: Choice,
    took: Statistics,
}

/// A row; a free one keeps its cache until it is admitted again.
#[derive(Clone, Debug)]
struct Row {
    taken: bool,
    /// When it was admitted.
    turn: u64,
    prompt: Vec<i32>,
    settings: Settings,
    /// Where its part of the RoPE tables begins.
    start: i32,
    /// While the prompt is computed, the slot is that of its next piece.
    end: Ends<i32>,
}

impl Row {
    /// Slots that a prompt fills; its last token is the first one that a step computes.
    fn last(&self) -> usize {
        self.prompt.len().saturating_sub(1)
    }

    fn is_ready(&self) -> bool {
        self.end.slot as usize >= self.last()
    }

    fn is_waiting(&self) -> bool {
        self.taken && !self.is_ready()
    }

    /// Tokens that the next step may write.
    fn left(&self) -> i32 {
        if self.is_ready() { self.end.left } else { 0 }
    }

    /// Slots of the cache that begin a prompt as well: all that it fills, or whole pieces.
    fn shared(&self, prompt: &[i32], start: i32) -> usize {
        let (own, last) = (&self.prompt[..self.last().min(self.end.slot as usize)], prompt.len() - 1);
        let same = own.iter().zip(&prompt[..last]).take_while(|(a, b)| a == b).count();
        match same {
            _ if self.start != start => 0,
            same if same == last => same,
            same => same / CHUNK * CHUNK,
        }
    }
}

impl<'g> Rows<'g> {
    /// Free rows, each with room for this many tokens, prompt and new ones. `stops`: the tokens that end a row, one entry for
    /// each of the vocabulary.
    ///
    /// # Errors
    /// If drafts are wanted of a model without a second head, or the cache does not fit the device.
    pub fn new(
        generator: &'g mut Generator,
        rows: usize,
        tokens: usize,
        stops: &[bool],
        speculation: Speculation,
    ) -> Result<Rows<'g>> {
        let has_head = generator.config().mtp_num_tokens > 0;
        ensure!(
            has_head || speculation != Speculation::On,
            "this model has no second head to draft with (mtp_num_tokens is 0); use --speculative off"
        );
        let device = generator.device();
        let slots = (tokens + BEYOND).next_multiple_of(SLOTS);
        let shape = Shape { rows, slots, matrices: Matrices::of(device.target()) };
        let mut cache = Vec::new();
        cache_types(generator.config(), shape).map(|_, ty| cache.push(device.put(&Host::zeros(ty))));
        let cache = cache.into_iter().collect::<Result<_>>().context("making room for keys and values")?;
        let bytes: Vec<u8> = stops.iter().map(|&stop| stop.into()).collect();
        let stops = Host::from_bytes(Type::new(DType::Bool, [bytes.len()]), &bytes);
        let free = Row {
            taken: false,
            turn: 0,
            prompt: Vec::new(),
            settings: Settings { new_tokens: 1, sampling: Sampling::Greedy, key: [0, 0] },
            start: 0,
            end: Ends { token: 0, slot: 0, draft: -1, left: 0 },
        };
        let (rows, choice) = (vec![free; rows], Choice::new(speculation, has_head));
        Ok(Rows { generator, shape, cache, stops, rows, admitted: 0, choice, took: Statistics::default() })
    }

    /// What everything took so far; prompts' tokens are not counted.
    pub fn statistics(&self) -> Statistics {
        self.took
    }

    /// Takes a free row for a prompt; None if there is none. Nothing is computed yet.
    ///
    /// # Errors
    /// If prompt and new tokens do not fit the model's context or a row.
    ///
    /// # Panics
    /// If the prompt is empty, or no token is wanted.
    pub fn admit(&mut self, prompt: &[i32], settings: Settings) -> Result<Option<usize>> {
        assert!(!prompt.is_empty() && settings.new_tokens > 0, "an empty prompt, or nothing to write");
        let (tokens, config) = (prompt.len() + settings.new_tokens, self.generator.config());
        let most = config.max_position_embeddings.min(self.shape.slots - BEYOND);
        ensure!(
            tokens <= most,
            "a prompt of {} tokens and {} new ones do not fit a row of {most}",
            prompt.len(),
            settings.new_tokens
        );
        let start = table_start(config, tokens) as i32;
        // The one that knows most of it; of those the one that was free for the longest time.
        let free = self.rows.iter().enumerate().filter(|(_, row)| !row.taken);
        let best = free.max_by_key(|(_, row)| (row.shared(prompt, start), Reverse(row.turn)));
        let Some((place, row)) = best else { return Ok(None) };
        self.admitted += 1;
        let end = Ends {
            token: prompt[prompt.len() - 1],
            slot: row.shared(prompt, start) as i32,
            draft: -1,
            left: settings.new_tokens as i32,
        };
        let prompt = prompt.to_vec();
        self.rows[place] = Row { taken: true, turn: self.admitted, prompt, settings, start, end };
        Ok(Some(place))
    }

    /// Frees a row, finished or not.
    pub fn retire(&mut self, row: usize) {
        let row = &mut self.rows[row];
        (row.taken, row.end.left) = (false, 0);
    }

    /// Computes a piece of the prompt that has waited for the longest time; false if none waits.
    ///
    /// # Errors
    /// If the device fails.
    pub fn prefill(&mut self) -> Result<bool> {
        let waiting = self.rows.iter().enumerate().filter(|(_, row)| row.is_waiting());
        let Some((place, row)) = waiting.min_by_key(|(_, row)| row.turn) else { return Ok(false) };
        let known = self.rows.iter().map(|other| other.shared(&row.prompt, row.start)).enumerate();
        let (source, known) = known.max_by_key(|&(_, known)| known).unwrap_or_default();
        let (done, last) = (row.end.slot as usize, row.last());
        let number = |x: usize| Host::scalar(x as i32);
        let (program, tables, inputs, end) = if known > done {
            (Wanted::Copy { shape: self.shape }, None, vec![number(source), number(place)], known)
        } else {
            let end = last.min(done + CHUNK);
            let mut ids = row.prompt[done..end].to_vec();
            // What follows the prompt is written over before anything attends to it.
            ids.resize(CHUNK, 0);
            let inputs = vec![number(place), Host::new([1, CHUNK], &ids), Host::new([1], &[done as i32])];
            let program = Wanted::Prefill { shape: self.shape, chunk: CHUNK };
            (program, Some(Host::new([1], &[row.start])), inputs, end)
        };
        let (start, _) = self.run(program, tables, &inputs)?;
        self.cache[0].ready()?.wait().context("computing a prompt")?;
        self.took.prefill += start.elapsed();
        self.rows[place].end.slot = end as i32;
        Ok(true)
    }

    /// Continues all rows whose prompts are computed by one token or, while there is time, by some more; none if there is no
    /// such row.
    ///
    /// # Errors
    /// If the model's logits become NaN, or the device fails.
    pub fn step(&mut self, time: Duration) -> Result<Vec<News>> {
        if self.rows.iter().all(|row| row.left() == 0) {
            return Ok(Vec::new());
        }
        let (drafts, passes) = self.choice.next(time);
        let program = Wanted::Tokens { shape: self.shape, drafts };
        let tables = self.ints(|row| row.start);
        let inputs = self.inputs(passes);
        let (start, results) = self.run(program, Some(tables), &inputs)?;
        let out = results.iter().map(Buffer::to_host).collect::<Result<Vec<Host>, _>>();
        let out = out.context("generating tokens")?;
        let elapsed = start.elapsed();
        let [tokens, log_probs, count, drafted, accepted, token, slot, draft, left] = &out[..] else {
            unreachable!("the program's outputs")
        };
        let sum = |host: &Host| host.as_slice::<i32>().iter().map(|&x| x as usize).sum::<usize>();
        self.took.decode += elapsed;
        self.took.new_tokens += sum(count);
        self.took.drafted += sum(drafted);
        self.took.accepted += sum(accepted);
        self.choice.learn(drafts, passes, sum(count), elapsed);
        let ends = Ends { token, slot, draft, left }.map(|_, host| host.as_slice::<i32>());
        let mut news = Vec::new();
        for (place, row) in self.rows.iter_mut().enumerate().filter(|(_, row)| row.left() > 0) {
            let new = place * TOKENS..place * TOKENS + count.as_slice::<i32>()[place] as usize;
            let log_probs = &log_probs.as_slice::<f32>()[new.clone()];
            if let Some(at) = log_probs.iter().position(|log_prob| log_prob.is_nan()) {
                bail!(
                    "the model's logits are NaN at new token {}: its weights are numbers, but what it computes from them is too large for {:?}; use an earlier checkpoint",
                    row.settings.new_tokens - row.end.left as usize + at,
                    self.generator.config().dtype
                );
            }
            row.end = ends.map(|_, numbers| numbers[place]);
            news.push(News {
                row: place,
                tokens: tokens.as_slice::<i32>()[new].to_vec(),
                log_probs: log_probs.to_vec(),
                finished: row.end.left == 0,
            });
        }
        Ok(news)
    }

    /// A number of each row.
    fn ints(&self, of: impl Fn(&Row) -> i32) -> Host {
        Host::new([self.rows.len()], &self.rows.iter().map(of).collect::<Vec<i32>>())
    }

    /// What a step is given beside weights, tables and cache.
    fn inputs(&self, passes: i32) -> [Host; 10] {
        let floats = |of: fn(&Row) -> f64| {
            Host::from_f64(Type::f32([self.rows.len()]), &self.rows.iter().map(of).collect::<Vec<f64>>())
        };
        let keys: Vec<u32> = self.rows.iter().flat_map(|row| row.settings.key).collect();
        [
            self.ints(|row| row.end.token),
            self.ints(|row| row.end.slot),
            self.ints(|row| row.end.draft),
            self.ints(Row::left),
            Host::new([self.rows.len(), 2], &keys),
            floats(|row| row.settings.numbers().0),
            self.ints(|row| i32::try_from(row.settings.numbers().1).unwrap_or(i32::MAX)),
            floats(|row| row.settings.numbers().2),
            self.stops.clone(),
            Host::scalar(passes),
        ]
    }

    /// Runs a program on the cache: when it began, compiling aside, and what it gives beside the cache. `tables`: for programs
    /// with the model, where each row's part of the RoPE tables begins.
    fn run(
        &mut self,
        program: Wanted,
        tables: Option<Host>,
        inputs: &[Host],
    ) -> Result<(Instant, Vec<Buffer>)> {
        self.generator.compile(program, &mut self.took)?;
        let start = Instant::now();
        let device = self.generator.device();
        let tables = tables.map(|host| device.put(&host)).transpose()?;
        let inputs = inputs.iter().map(|host| device.put(host)).collect::<Result<Vec<Buffer>>>()?;
        let mut args = tables.as_ref().map_or(Vec::new(), |start| self.generator.model(start));
        let leaves = self.cache.len();
        args.extend(self.cache.drain(..).map(Arg::Donate));
        args.extend(inputs.iter().map(Arg::Keep));
        let mut results = self.generator.run(program, args)?;
        self.cache = results.split_off(results.len() - leaves);
        Ok((start, results))
    }
}

/// The key of a row's random numbers.
pub fn key(seed: u64, stream: u32, sample: u32) -> [u32; 2] {
    threefry2x32([seed as u32, (seed >> 32) as u32], [stream, sample])
}
