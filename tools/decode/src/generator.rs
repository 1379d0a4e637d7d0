//! [`Generator`]: weights on a device and the programs that decode with them. Token ids in, token ids out.

use crate::options::{Sampling, Speculation, Statistics};
use anyhow::{Context, Result, bail, ensure};
use engine::pjrt::{Arg, Buffer};
use engine::random::threefry2x32;
use engine::{Compiled, DType, Host, Target, Type};
use model::decode::{
    Drafts, Ends, Matrices, Shape, TOKENS, cache_types, decoding_tables, prefill_program, prepare_program,
    spread_program, table_start, tokens_program,
};
use model::{Compute, Config, Params};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use train::device::{CodeGeneration, Device};

/// Weights on a device, ready to generate, and the programs that were needed so far.
pub struct Generator {
    device: Device,
    config: Config,
    weights: Vec<Buffer>,
    /// RoPE's cosines and sines, for requests of all lengths.
    tables: Vec<Buffer>,
    programs: HashMap<Wanted, Compiled>,
}

/// Which program of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wanted {
    Prefill { shape: Shape, chunk: usize },
    Spread { prompts: usize, shape: Shape },
    Tokens { shape: Shape, drafts: Drafts },
}

/// What is generated together: some prompts, and rows that each continue one of them.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// Token ids, at least one each.
    pub prompts: Vec<&'a [i32]>,
    /// For each row the index of its prompt, and the key of its random numbers. A row without a key generates nothing: it fills
    /// the shape that the program is compiled for.
    pub rows: Vec<(usize, Option<[u32; 2]>)>,
    /// Tokens of a row at most.
    pub new_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Tokens that end a row, one entry for each token of the vocabulary.
    pub stops: &'a [bool],
    /// Drafts by the second head.
    pub speculation: Speculation,
}

/// New tokens of one row.
#[derive(Clone, Copy, Debug)]
pub struct News<'a> {
    /// Index of the row.
    pub row: usize,
    /// Its new tokens; a token that ends it is the last.
    pub tokens: &'a [i32],
    /// Log-probability of each under the model itself.
    pub log_probs: &'a [f32],
    /// Whether it is finished: by a token that ends it, or by its number of tokens.
    pub finished: bool,
}

/// Lengths of the pieces in which prompts are computed: the first one that the longest prompt fits in, or the last one
/// again and again. A long piece makes good matrix products, a short one makes little waste.
const CHUNKS: [usize; 2] = [64, 256];
/// Caches grow by this many slots, so that requests of similar lengths share their programs.
const SLOTS: usize = 256;
/// How often the watcher is called, if the device is fast enough.
const PERIOD: Duration = Duration::from_millis(100);

impl Generator {
    /// Puts weights on a device.
    ///
    /// # Errors
    /// If they do not fit.
    pub fn new(device: Device, config: &Config, params: &Params<Host>) -> Result<Generator> {
        let mut config = config.clone();
        if device.target() == Target::Cpu {
            // XLA's code for CPUs widens bf16 weights at each use, which takes longer than reading f32.
            config.dtype = Compute::F32;
        }
        let prepare = prepare_program(&config, Matrices::of(device.target()));
        let (prepare, _) = device.compile(&prepare, CodeGeneration::Quick)?;
        let masters = params.iter().map(|(_, host)| device.put(host)).collect::<Result<Vec<Buffer>>>()?;
        let weights = prepare.run(masters.iter().map(Arg::Keep)).context("preparing the weights")?;
        let tables = decoding_tables(&config).iter().map(|host| device.put(host)).collect::<Result<_>>()?;
        Ok(Generator { device, config, weights, tables, programs: HashMap::new() })
    }

    /// The model's configuration; its type is the one that is computed in.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn program(&mut self, wanted: Wanted, took: &mut Statistics) -> Result<&Compiled> {
        if !self.programs.contains_key(&wanted) {
            let start = Instant::now();
            let program = match wanted {
                Wanted::Prefill { shape, chunk } => prefill_program(&self.config, shape, chunk),
                Wanted::Spread { prompts, shape } => spread_program(&self.config, prompts, shape),
                Wanted::Tokens { shape, drafts } => tokens_program(&self.config, shape, drafts),
            };
            let (compiled, _) = self.device.compile(&program, CodeGeneration::Thorough)?;
            self.programs.insert(wanted, compiled);
            took.compile += start.elapsed();
        }
        Ok(&self.programs[&wanted])
    }

    /// Weights, tables, and where in these each row begins: what every program takes first.
    fn model<'a>(&'a self, start: &'a Buffer) -> Vec<Arg<'a>> {
        self.weights.iter().chain(&self.tables).chain([start]).map(Arg::Keep).collect()
    }

    /// Computes the prompts.
    ///
    /// # Errors
    /// If prompts and new tokens do not fit the context, or the device fails.
    ///
    /// # Panics
    /// If a prompt is empty, or a row has no prompt.
    pub fn prefill(&mut self, batch: &Batch<'_>, took: &mut Statistics) -> Result<Prefilled> {
        let longest = batch.prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        assert!(batch.prompts.iter().all(|prompt| !prompt.is_empty()), "an empty prompt");
        ensure!(
            longest + batch.new_tokens <= self.config.max_position_embeddings,
            "a prompt of {longest} tokens and {} new ones do not fit the model's context of {}",
            batch.new_tokens,
            self.config.max_position_embeddings
        );
        let chunk = CHUNKS.into_iter().find(|&chunk| longest <= chunk).unwrap_or(CHUNKS[CHUNKS.len() - 1]);
        // The last token of a prompt is the loop's first one. A finished row's last pair of token and draft stands behind its
        // text.
        let padded = (longest - 1).next_multiple_of(chunk);
        let slots = padded.max(longest + batch.new_tokens + 1).next_multiple_of(SLOTS);
        let prompts = batch.prompts.len();
        let shape = Shape { rows: prompts, slots, matrices: Matrices::of(self.device.target()) };
        let program = Wanted::Prefill { shape, chunk };
        self.program(program, took)?;

        let start = Instant::now();
        let mut cache = Vec::new();
        cache_types(&self.config, shape).map(|_, ty| cache.push(self.device.put(&Host::zeros(ty))));
        let mut cache = cache.into_iter().collect::<Result<Vec<Buffer>>>()?;
        let table_starts: Vec<i32> = batch
            .prompts
            .iter()
            .map(|prompt| table_start(&self.config, prompt.len() + batch.new_tokens) as i32)
            .collect();
        let start_of_tables = self.device.put(&Host::new([prompts], &table_starts))?;
        for first in (0..padded).step_by(chunk) {
            // What follows a prompt is computed like any token, and written over before anything attends to it.
            let places = (0..prompts * chunk).map(|i| (i / chunk, first + i % chunk));
            let ids = places.map(|(row, slot)| batch.prompts[row].get(slot).copied().unwrap_or_default());
            let inputs = [
                Host::new([prompts, chunk], &ids.collect::<Vec<i32>>()),
                Host::new([prompts], &vec![first as i32; prompts]),
            ];
            let inputs = inputs.iter().map(|host| self.device.put(host)).collect::<Result<Vec<Buffer>>>()?;
            let mut args = self.model(&start_of_tables);
            args.extend(cache.drain(..).map(Arg::Donate));
            args.extend(inputs.iter().map(Arg::Keep));
            cache = self.programs[&program].run(args)?;
        }
        cache[0].ready()?.wait().context("computing the prompts")?;
        took.prefill += start.elapsed();
        took.prompt_tokens += batch.prompts.iter().map(|prompt| prompt.len()).sum::<usize>();
        Ok(Prefilled { cache, shape, table_starts })
    }

    /// Continues prefilled prompts: `watch` is told the new tokens of each row as they come, and ends a row with `Break`.
    ///
    /// # Errors
    /// If drafts are wanted of a model without a second head, its logits become NaN, or the device fails.
    pub fn generate(
        &mut self,
        batch: &Batch<'_>,
        prefilled: &Prefilled,
        took: &mut Statistics,
        watch: &mut dyn FnMut(News<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let has_head = self.config.mtp_num_tokens > 0;
        ensure!(
            has_head || batch.speculation != Speculation::On,
            "this model has no second head to draft with (mtp_num_tokens is 0); use --speculative off"
        );
        let rows = batch.rows.len();
        let shape = Shape { rows, ..prefilled.shape };
        let mut choice = Choice::new(batch.speculation, has_head);
        let mut cache = self.spread(batch, prefilled, shape, took)?;
        let constants = self.constants(batch)?;
        let starts: Vec<i32> = batch.rows.iter().map(|&(prompt, _)| prefilled.table_starts[prompt]).collect();
        let start_of_tables = self.device.put(&Host::new([rows], &starts))?;
        let of_prompts = |of: &dyn Fn(&[i32]) -> i32| -> Vec<i32> {
            batch.rows.iter().map(|&(prompt, _)| of(batch.prompts[prompt])).collect()
        };
        let mut ends = Ends {
            token: of_prompts(&|prompt| prompt[prompt.len() - 1]),
            slot: of_prompts(&|prompt| prompt.len() as i32 - 1),
            draft: vec![-1; rows],
            left: batch.rows.iter().map(|(_, key)| key.map_or(0, |_| batch.new_tokens as i32)).collect(),
        };
        while ends.left.iter().any(|&left| left > 0) {
            let (drafts, passes) = choice.next();
            let program = Wanted::Tokens { shape, drafts };
            self.program(program, took)?;
            let start = Instant::now();
            let before: Vec<usize> = ends.left.iter().map(|&left| batch.new_tokens - left as usize).collect();
            let mut given = Vec::new();
            ends.map(|_, numbers| given.push(self.device.put(&Host::new([rows], &numbers))));
            let given = given.into_iter().collect::<Result<Vec<Buffer>>>()?;
            let passes_now = self.device.put(&Host::scalar(passes))?;
            let mut args = self.model(&start_of_tables);
            args.extend(cache.drain(..).map(Arg::Donate));
            args.extend(given.iter().chain(&constants).chain([&passes_now]).map(Arg::Keep));
            let mut results = self.programs[&program].run(args)?;
            cache = results.split_off(9);
            let out = results.iter().map(Buffer::to_host).collect::<Result<Vec<Host>, _>>();
            let out = out.context("generating tokens")?;
            let elapsed = start.elapsed();
            let [tokens, log_probs, count, drafted, accepted, token, slot, draft, left] = &out[..] else {
                unreachable!("the program's outputs")
            };
            let sum = |host: &Host| host.as_slice::<i32>().iter().map(|&x| x as usize).sum::<usize>();
            took.decode += elapsed;
            took.new_tokens += sum(count);
            took.drafted += sum(drafted);
            took.accepted += sum(accepted);
            choice.learn(drafts, passes, sum(count), elapsed);
            ends = Ends { token, slot, draft, left }.map(|_, host| host.as_slice::<i32>().to_vec());
            let count = count.as_slice::<i32>();
            for (row, left) in ends.left.iter_mut().enumerate().filter(|&(row, _)| count[row] > 0) {
                let new = row * TOKENS..row * TOKENS + count[row] as usize;
                let log_probs = &log_probs.as_slice::<f32>()[new.clone()];
                if let Some(place) = log_probs.iter().position(|log_prob| log_prob.is_nan()) {
                    bail!(
                        "the model's logits are NaN at new token {}: its weights are numbers, but what it computes from them is too large for {:?}; use an earlier checkpoint",
                        before[row] + place,
                        self.config.dtype
                    );
                }
                let tokens = &tokens.as_slice::<i32>()[new];
                let news = News { row, tokens, log_probs, finished: *left == 0 };
                if watch(news).is_break() {
                    *left = 0;
                }
            }
        }
        Ok(())
    }

    /// The loop's cache: rows of samples from rows of prompts.
    fn spread(
        &mut self,
        batch: &Batch<'_>,
        prefilled: &Prefilled,
        shape: Shape,
        took: &mut Statistics,
    ) -> Result<Vec<Buffer>> {
        let program = Wanted::Spread { prompts: prefilled.shape.rows, shape };
        self.program(program, took)?;
        let start = Instant::now();
        let sources: Vec<i32> = batch.rows.iter().map(|&(prompt, _)| prompt as i32).collect();
        let sources = self.device.put(&Host::new([sources.len()], &sources))?;
        let cache = self.programs[&program].run(prefilled.cache.iter().chain([&sources]).map(Arg::Keep))?;
        took.prefill += start.elapsed();
        Ok(cache)
    }

    /// Inputs of the loop that do not change: keys, temperature, top_k, top_p, stops.
    fn constants(&self, batch: &Batch<'_>) -> Result<Vec<Buffer>> {
        let keys: Vec<u32> = batch.rows.iter().flat_map(|(_, key)| key.unwrap_or_default()).collect();
        let (temperature, top_k, top_p) = match batch.sampling {
            Sampling::Greedy => (1.0, 1, 1.0),
            Sampling::Random { temperature, top_k, top_p } => (temperature, top_k, top_p),
        };
        let rows = batch.rows.len();
        let stops: Vec<u8> = batch.stops.iter().map(|&stop| stop.into()).collect();
        let hosts = [
            Host::new([rows, 2], &keys),
            Host::new([rows], &vec![temperature as f32; rows]),
            Host::new([rows], &vec![i32::try_from(top_k).unwrap_or(i32::MAX); rows]),
            Host::new([rows], &vec![top_p as f32; rows]),
            Host::from_bytes(Type::new(DType::Bool, [stops.len()]), &stops),
        ];
        hosts.iter().map(|host| self.device.put(host)).collect()
    }
}

/// Computed prompts, from which any number of rows can start.
pub struct Prefilled {
    cache: Vec<Buffer>,
    shape: Shape,
    /// For each prompt, where its part of the RoPE tables begins.
    table_starts: Vec<i32>,
}

/// The key of a row's random numbers.
pub fn key(seed: u64, stream: u32, sample: u32) -> [u32; 2] {
    threefry2x32([seed as u32, (seed >> 32) as u32], [stream, sample])
}

/// Which of the two loops runs next, and for how long. Both give the same tokens, so changing between them in the middle of a
/// text changes only the speed.
struct Choice {
    /// The loops to choose from; the first one that is not measured yet is next.
    candidates: Vec<Pace>,
}

struct Pace {
    drafts: Drafts,
    /// Calls so far. The first one is not counted, because it finds cold caches.
    calls: u32,
    tokens: usize,
    passes: i32,
    time: Duration,
}

/// Calls of each loop that `auto` measures.
const MEASURED: u32 = 3;

impl Choice {
    fn new(speculation: Speculation, has_head: bool) -> Choice {
        let candidates = match speculation {
            Speculation::Auto if has_head => &[Drafts::Off, Drafts::SecondHead][..],
            Speculation::On => &[Drafts::SecondHead],
            Speculation::Auto | Speculation::Off => &[Drafts::Off],
        };
        let new = |&drafts| Pace { drafts, calls: 0, tokens: 0, passes: 0, time: Duration::ZERO };
        Choice { candidates: candidates.iter().map(new).collect() }
    }

    /// The loop and its iterations.
    fn next(&mut self) -> (Drafts, i32) {
        if let [.., _, _] = self.candidates[..]
            && self.candidates.iter().all(|pace| pace.calls >= MEASURED)
        {
            let speed = |pace: &Pace| pace.tokens as f64 / pace.time.as_secs_f64();
            self.candidates.sort_by(|a, b| speed(b).total_cmp(&speed(a)));
            self.candidates.truncate(1);
        }
        let unmeasured = self.candidates.iter().find(|pace| pace.calls < MEASURED);
        let pace = unmeasured.unwrap_or(&self.candidates[0]);
        let most = match pace.drafts {
            Drafts::Off => TOKENS as i32,
            Drafts::SecondHead => TOKENS as i32 / 2,
        };
        let passes = match pace.calls {
            0 => 1,
            1 => 4,
            _ => (PERIOD.as_secs_f64() / (pace.time.as_secs_f64() / f64::from(pace.passes))) as i32,
        };
        (pace.drafts, passes.clamp(1, most))
    }

    fn learn(&mut self, drafts: Drafts, passes: i32, tokens: usize, took: Duration) {
        let Some(pace) = self.candidates.iter_mut().find(|pace| pace.drafts == drafts) else { return };
        pace.calls += 1;
        if pace.calls > 1 {
            pace.tokens += tokens;
            pace.passes += passes;
            pace.time += took;
        }
    }
}
