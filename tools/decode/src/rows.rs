//! [`Rows`]: texts that are written side by side. Each is admitted, computed step by step and retired on its own; token ids
//! in, token ids out.

use crate::generator::{Generator, Wanted};
use crate::options::{Sampling, Speculation, Statistics};
use crate::pace::Choice;
use anyhow::{Context, Result, bail, ensure};
use engine::pjrt::{Arg, Buffer};
use engine::random::threefry2x32;
use engine::{DType, Host, Type};
use model::decode::{CHUNK, Ends, Matrices, Shape, TOKENS, TOP, TopTokens, cache_types, table_start};
use std::cmp::Reverse;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Caches grow by this many slots, so that requests of similar lengths share their programs.
const SLOTS: usize = 256;
/// Slots beyond a row's text: a finished row's last token and a draft.
const BEYOND: usize = 1;

/// How a row is continued.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Tokens at most; with 0 the prompt is computed and nothing written.
    pub new_tokens: usize,
    /// Tokens at least: before, what ends a row does not.
    pub min_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The key of its random numbers: [`key`].
    pub key: [u32; 2],
    /// Which scores are wanted beside new tokens' log-probabilities.
    pub scoring: Scoring,
}

/// Which scores of a row are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scoring {
    /// Log-probabilities of new tokens.
    #[default]
    New,
    /// And the most probable tokens beside each of them.
    NewTop,
    /// And both of the prompt's tokens. The prompt is computed from its first token on: nothing is copied for it, or from it.
    PromptTop,
}

impl Default for Settings {
    /// Greedy, and no token is wanted.
    fn default() -> Settings {
        let (sampling, scoring) = (Sampling::Greedy, Scoring::New);
        Settings { new_tokens: 0, min_tokens: 0, sampling, key: [0, 0], scoring }
    }
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
    /// The score of each.
    pub scores: Vec<Score>,
    /// Whether it is finished: by a token that ends it, or by its number of tokens.
    pub finished: bool,
}

/// What the model itself says of a token, without temperature and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Its log-probability, in nats.
    pub log_prob: f32,
    /// The most probable tokens at its place with their log-probabilities, the first one first, if they are wanted. The token
    /// itself has the same bits here.
    pub top: Vec<(i32, f32)>,
}

/// A piece of a prompt that was computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefilled {
    /// Which row.
    pub row: usize,
    /// Scores of the tokens after each one of the piece, the prompt's last one among them, if they are wanted.
    pub scores: Vec<Score>,
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
    stops: Buffer,
    rows: Vec<Row>,
    /// Rows admitted so far.
    admitted: u64,
    /// For 1, 2, up to 4, up to 8 and so on rows that are continued together: drafts cost more where the step is no longer bound
    /// by reading weights.
    choices: Vec<Choice>,
    /// Of the loop with the most probable tokens, which is the same with drafts and without: it has none.
    choice_with_top: Choice,
    took: Statistics,
}

/// A row; a free one keeps its cache until it is admitted again.
#[derive(Clone, Debug)]
struct Row {
    taken: bool,
    /// Whether steps leave it as it is.
    paused: bool,
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
        if self.is_ready() && !self.paused { self.end.left } else { 0 }
    }

    /// Slots of the cache that begin a prompt as well: all that it fills, or whole pieces.
    fn shared(&self, prompt: &[i32], start: i32) -> usize {
        let (own, last) = (&self.prompt[..self.last().min(self.end.slot as usize)], prompt.len() - 1);
        let same = own.iter().zip(&prompt[..last]).take_while(|(a, b)| a == b).count();
        match same {
            _ if self.start != start || self.settings.scoring == Scoring::PromptTop => 0,
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
        let stops = device.put(&Host::from_bytes(Type::new(DType::Bool, [bytes.len()]), &bytes))?;
        let free = Row {
            taken: false,
            paused: false,
            turn: 0,
            prompt: Vec::new(),
            settings: Settings::default(),
            start: 0,
            end: Ends { token: 0, slot: 0, draft: -1, left: 0 },
        };
        let rows = vec![free; rows];
        let choices = (0..=occupancy(rows.len())).map(|_| Choice::new(speculation, has_head)).collect();
        let choice_with_top = Choice::new(Speculation::Off, has_head);
        let took = Statistics::default();
        Ok(Rows { generator, shape, cache, stops, rows, admitted: 0, choices, choice_with_top, took })
    }

    /// Compiles every program that a row may need, so that no text waits for one.
    ///
    /// # Errors
    /// If one does not compile.
    pub fn compile(&mut self) -> Result<()> {
        let shape = self.shape;
        let mut all = vec![Wanted::Copy { shape }];
        for (top, choice) in [(TopTokens::Off, &self.choices[0]), (TopTokens::On, &self.choice_with_top)] {
            all.push(Wanted::Prefill { shape, chunk: CHUNK, top });
            all.extend(choice.candidates().map(|drafts| Wanted::Tokens { shape, drafts, top }));
        }
        all.into_iter().try_for_each(|program| self.generator.compile(program, &mut self.took))
    }

    /// Bytes of keys and values of all rows.
    pub fn cache_bytes(&self) -> usize {
        let mut bytes = 0;
        cache_types(self.generator.config(), self.shape).map(|_, ty| bytes += ty.bytes());
        bytes
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
    /// If the prompt is empty.
    pub fn admit(&mut self, prompt: &[i32], settings: Settings) -> Result<Option<usize>> {
        assert!(!prompt.is_empty(), "an empty prompt");
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
        let known = |row: &Row| match settings.scoring {
            Scoring::New | Scoring::NewTop => row.shared(prompt, start),
            Scoring::PromptTop => 0,
        };
        let best = free.max_by_key(|(_, row)| (known(row), Reverse(row.turn)));
        let Some((place, row)) = best else { return Ok(None) };
        self.admitted += 1;
        let end = Ends {
            token: prompt[prompt.len() - 1],
            slot: known(row) as i32,
            draft: -1,
            left: settings.new_tokens as i32,
        };
        let prompt = prompt.to_vec();
        self.rows[place] =
            Row { taken: true, paused: false, turn: self.admitted, prompt, settings, start, end };
        Ok(Some(place))
    }

    /// Frees a row, finished or not.
    pub fn retire(&mut self, row: usize) {
        let row = &mut self.rows[row];
        (row.taken, row.end.left) = (false, 0);
    }

    /// Lets steps leave a row as it is, until it is resumed.
    pub fn pause(&mut self, row: usize) {
        self.rows[row].paused = true;
    }

    /// Undoes [`Rows::pause`].
    pub fn resume(&mut self, row: usize) {
        self.rows[row].paused = false;
    }

    /// Whether a row's prompt is computed.
    pub fn is_ready(&self, row: usize) -> bool {
        self.rows[row].is_ready()
    }

    /// How many tokens of a row's prompt are computed, or were known when it was admitted.
    pub fn known(&self, row: usize) -> usize {
        self.rows[row].last().min(self.rows[row].end.slot as usize)
    }

    /// Computes a piece of the prompt that has waited for the longest time, or copies what another row has of it; None if none
    /// waits.
    ///
    /// # Errors
    /// If log-probabilities that are wanted are NaN, or the device fails.
    pub fn prefill(&mut self) -> Result<Option<Prefilled>> {
        let waiting = self.rows.iter().enumerate().filter(|(_, row)| row.is_waiting());
        let Some((place, row)) = waiting.min_by_key(|(_, row)| row.turn) else { return Ok(None) };
        let known = |other: &Row| match row.settings.scoring {
            Scoring::New | Scoring::NewTop => other.shared(&row.prompt, row.start),
            Scoring::PromptTop => 0,
        };
        let (source, known) =
            self.rows.iter().map(known).enumerate().max_by_key(|&(_, known)| known).unwrap_or_default();
        let (done, last) = (row.end.slot as usize, row.last());
        if known > done {
            let inputs = [source, place].map(|x| Host::scalar(x as i32));
            let (start, _) = self.run(Wanted::Copy { shape: self.shape }, None, &inputs)?;
            self.finish_prefill(start, place, known)?;
            return Ok(Some(Prefilled { row: place, scores: Vec::new() }));
        }
        let end = last.min(done + CHUNK);
        let piece = |tokens: &[i32]| {
            let mut piece = tokens.to_vec();
            // What follows the prompt is written over before anything attends to it.
            piece.resize(CHUNK, 0);
            piece
        };
        let mut inputs = vec![
            Host::scalar(place as i32),
            Host::new([1, CHUNK], &piece(&row.prompt[done..end])),
            Host::new([1], &[done as i32]),
        ];
        let top = match row.settings.scoring {
            Scoring::New | Scoring::NewTop => TopTokens::Off,
            Scoring::PromptTop => TopTokens::On,
        };
        if top == TopTokens::On {
            inputs.push(Host::new([CHUNK], &piece(&row.prompt[done + 1..=end])));
        }
        let program = Wanted::Prefill { shape: self.shape, chunk: CHUNK, top };
        let tables = Host::new([1], &[row.start]);
        let (start, results) = self.run(program, Some(tables), &inputs)?;
        self.finish_prefill(start, place, end)?;
        let results = results.iter().map(Buffer::to_host).collect::<Result<Vec<Host>, _>>();
        let scores = match &results.context("scoring a prompt")?[..] {
            [log_probs, top @ ..] if !top.is_empty() => scores(log_probs, top, 0..end - done),
            _ => Vec::new(),
        };
        self.check(&scores, |at| format!("token {} of a prompt", done + 1 + at))?;
        Ok(Some(Prefilled { row: place, scores }))
    }

    /// The end of a piece that began at a time: waits for it.
    fn finish_prefill(&mut self, start: Instant, row: usize, end: usize) -> Result<()> {
        self.cache[0].ready()?.wait().context("computing a prompt")?;
        self.took.prefill += start.elapsed();
        self.rows[row].end.slot = end as i32;
        Ok(())
    }

    fn check(&self, scores: &[Score], place: impl Fn(usize) -> String) -> Result<()> {
        match scores.iter().position(|score| score.log_prob.is_nan()) {
            None => Ok(()),
            Some(at) => bail!(
                "the model's logits are NaN at {}: its weights are numbers, but what it computes from them is too large for {:?}; use an earlier checkpoint",
                place(at),
                self.generator.config().dtype
            ),
        }
    }

    /// Continues all rows whose prompts are computed by one token or, while there is time, by some more; none if there is no
    /// such row.
    ///
    /// # Errors
    /// If the model's logits become NaN, or the device fails.
    pub fn step(&mut self, time: Duration) -> Result<Vec<News>> {
        let busy = self.rows.iter().filter(|row| row.left() > 0).count();
        if busy == 0 {
            return Ok(Vec::new());
        }
        let with_top = self.rows.iter().any(|row| row.left() > 0 && row.settings.scoring > Scoring::New);
        let (choice, top) = match with_top {
            false => (&mut self.choices[occupancy(busy)], TopTokens::Off),
            true => (&mut self.choice_with_top, TopTokens::On),
        };
        let (drafts, passes) = choice.next(time);
        let program = Wanted::Tokens { shape: self.shape, drafts, top };
        let tables = self.ints(|row| row.start);
        let inputs = self.inputs(passes);
        let (start, results) = self.run(program, Some(tables), &inputs)?;
        let out = results.iter().map(Buffer::to_host).collect::<Result<Vec<Host>, _>>();
        let out = out.context("generating tokens")?;
        let elapsed = start.elapsed();
        let [tokens, log_probs, count, drafted, accepted, top @ .., token, slot, draft, left] = &out[..]
        else {
            unreachable!("the program's outputs")
        };
        let sum = |host: &Host| host.as_slice::<i32>().iter().map(|&x| x as usize).sum::<usize>();
        self.took.decode += elapsed;
        self.took.new_tokens += sum(count);
        self.took.drafted += sum(drafted);
        self.took.accepted += sum(accepted);
        let choice = if with_top { &mut self.choice_with_top } else { &mut self.choices[occupancy(busy)] };
        choice.learn(drafts, passes, sum(count), elapsed);
        let ends = Ends { token, slot, draft, left }.map(|_, host| host.as_slice::<i32>());
        let mut news = Vec::new();
        for place in 0..self.rows.len() {
            if self.rows[place].left() == 0 {
                continue;
            }
            let new = place * TOKENS..place * TOKENS + count.as_slice::<i32>()[place] as usize;
            let scores = scores(log_probs, top, new.clone());
            let Row { settings, end, .. } = &self.rows[place];
            let first = settings.new_tokens - end.left as usize;
            self.check(&scores, |at| format!("new token {}", first + at))?;
            let row = &mut self.rows[place];
            row.end = ends.map(|_, numbers| numbers[place]);
            let tokens = tokens.as_slice::<i32>()[new].to_vec();
            news.push(News { row: place, tokens, scores, finished: row.end.left == 0 });
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
            self.ints(|row| (row.prompt.len() + row.settings.min_tokens) as i32),
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
        if let Wanted::Tokens { .. } = program {
            args.push(Arg::Keep(&self.stops));
        }
        let leaves = self.cache.len();
        args.extend(self.cache.drain(..).map(Arg::Donate));
        args.extend(inputs.iter().map(Arg::Keep));
        let mut results = self.generator.run(program, args)?;
        self.cache = results.split_off(results.len() - leaves);
        Ok((start, results))
    }
}

/// Scores at these places of `log_probs`, with those of the most probable tokens, if there are any.
fn scores(log_probs: &Host, top: &[Host], places: Range<usize>) -> Vec<Score> {
    let top_of = |place: usize| match top {
        [tokens, log_probs] => {
            let of_place = place * TOP..(place + 1) * TOP;
            let tokens = tokens.as_slice::<i32>()[of_place.clone()].iter().copied();
            tokens.zip(log_probs.as_slice::<f32>()[of_place].iter().copied()).collect()
        }
        _ => Vec::new(),
    };
    let of = |place: usize| Score { log_prob: log_probs.as_slice::<f32>()[place], top: top_of(place) };
    places.map(of).collect()
}

/// Which of [`Rows`]' choices is that of a number of rows: the logarithm to base 2, rounded up.
fn occupancy(rows: usize) -> usize {
    rows.next_power_of_two().ilog2() as usize
}

/// The key of a row's random numbers.
pub fn key(seed: u64, stream: u32, sample: u32) -> [u32; 2] {
    threefry2x32([seed as u32, (seed >> 32) as u32], [stream, sample])
}
