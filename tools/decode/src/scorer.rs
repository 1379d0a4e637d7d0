//! [`Scorer`]: log-probabilities of given token ids.

use anyhow::{Context, Result, bail, ensure};
use engine::pjrt::{Arg, Buffer};
use engine::{Compiled, Host, Program, Type};
use model::decode::stretched;
use model::{Batch, Config, Params, fold, specs, token_log_probs};
use std::collections::HashMap;
use train::device::{CodeGeneration, Device};

/// Weights on a device, ready to score, and the programs that were needed so far.
pub struct Scorer {
    device: Device,
    config: Config,
    weights: Vec<Buffer>,
    programs: HashMap<Key, Compiled>,
}

/// Rows are padded to `length` positions; longer requests take other RoPE tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    length: usize,
    stretched: bool,
}

/// The scores of one row of ids.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Log-probability of token `i + 1` given those up to `i`, in nats.
    pub log_probs: Vec<f32>,
    /// Log-probability of token `i + 2` given those up to `i + 1` by the second head, which sees token `i + 1` but not
    /// what follows from it; empty without a second head.
    pub mtp_log_probs: Vec<f32>,
}

/// Shortest length that a program is compiled for; longer ones double.
const SHORTEST: usize = 64;

impl Scorer {
    /// Puts weights on a device.
    ///
    /// # Errors
    /// If they do not fit.
    pub fn new(device: Device, config: &Config, params: &Params<Host>) -> Result<Scorer> {
        let weights = params.iter().map(|(_, host)| device.put(host)).collect::<Result<Vec<Buffer>>>()?;
        Ok(Scorer { device, config: config.clone(), weights, programs: HashMap::new() })
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Scores one row of ids. `segments` says which document each id belongs to: one number for each id, not decreasing. What
    /// crosses the end of a document is not known from what stands before, and is scored as if its context were empty but for
    /// the tokens of the same document. A row of fewer than two ids has no scores.
    ///
    /// # Errors
    /// If there are more ids than the context, an id is not the model's, segments decrease or are not as many as ids, a
    /// log-probability is NaN or infinite, or the device fails.
    pub fn score(&mut self, ids: &[i32], segments: Option<&[i32]>) -> Result<Scores> {
        let context = self.config.max_position_embeddings;
        ensure!(ids.len() <= context, "{} ids do not fit the model's context of {context}", ids.len());
        let known = |&&id: &&i32| usize::try_from(id).is_ok_and(|id| id < self.config.num_tokens);
        if let Some(id) = ids.iter().find(|id| !known(id)) {
            bail!("id {id} is not one of the model's {} tokens", self.config.num_tokens);
        }
        let segments = segments.map_or_else(|| vec![0; ids.len()], <[i32]>::to_vec);
        ensure!(
            segments.len() == ids.len(),
            "{} segments for {} ids: one for each is needed",
            segments.len(),
            ids.len()
        );
        ensure!(
            segments.first().is_none_or(|&first| first >= 0) && segments.is_sorted(),
            "segments must start at 0 or more and not decrease along the row"
        );
        if ids.len() < 2 {
            return Ok(Scores::default());
        }
        let stretch = stretched(&self.config, ids.len());
        let length = ids.len().next_power_of_two().clamp(SHORTEST, context.max(SHORTEST));
        let key = Key { length, stretched: stretch != self.config };
        if !self.programs.contains_key(&key) {
            let program = score_program(&stretch, length);
            let (compiled, _) = self.device.compile(&program, CodeGeneration::Thorough)?;
            self.programs.insert(key, compiled);
        }
        let padded = |numbers: &[i32], padding: i32| {
            let mut row = numbers.to_vec();
            row.resize(length, padding);
            self.device.put(&Host::new([1, length], &row))
        };
        let inputs = [padded(ids, 0)?, padded(&segments, i32::MAX)?];
        let args = self.weights.iter().chain(&inputs).map(Arg::Keep);
        let results = self.programs[&key].run(args)?;
        // ahead: how many tokens before its target a prediction stands.
        let read = |buffer: &Buffer, ahead: usize| -> Result<Vec<f32>> {
            let log_probs =
                buffer.to_host().context("scoring")?.as_slice::<f32>()[..ids.len() - ahead].to_vec();
            if let Some(place) = log_probs.iter().position(|log_prob| !log_prob.is_finite()) {
                bail!(
                    "the log-probability of id {} of the row is {}: what the model computes is too large for {:?}; use an earlier checkpoint",
                    place + ahead,
                    log_probs[place],
                    self.config.dtype
                );
            }
            Ok(log_probs)
        };
        let log_probs = read(&results[0], 1)?;
        let mtp_log_probs = results.get(1).map_or(Ok(Vec::new()), |buffer| read(buffer, 2))?;
        Ok(Scores { log_probs, mtp_log_probs })
    }
}

/// Log-probabilities of both heads for one row of `length` ids.
fn score_program(config: &Config, length: usize) -> Program {
    Program::build("score", |f| {
        let params = specs(config).map(|name, spec| f.input(&format!("params.{name}"), spec.ty));
        let ty = Type::i32([1, length]);
        let batch = Batch { ids: f.input("ids", ty.clone()), segments: f.input("segments", ty) };
        let (next, after) = token_log_probs(config, &fold(config, &params), batch);
        f.output("log_probs", next.reshape([length - 1]));
        if let Some(after) = after {
            f.output("mtp_log_probs", after.reshape([length - 2]));
        }
    })
}
