//! A machine whose state is a hash of all steps and of all that they were given, and what it tells of its life.

use anyhow::{Result, bail};
use engine::Host;
use model::initial_params;
use std::sync::{Arc, Mutex};
use tests::faults::{Fault, FaultyDisk};
use train::checkpoint::{Era, Progress};
use train::config::RunConfig;
use train::data::{Batch, Tokenizer};
use train::machine::{Content, HeldOutLosses, Machine};
use train::signals::Stop;
use train::state::{HostState, StepInputs};

/// Rows, by their number from the start, at which a step begins that leaves the weights as they were: with two rows a step
/// twice so many in a row that the run goes back, and one step alone.
pub(super) const BAD: [std::ops::Range<u64>; 3] = [24..30, 60..66, 80..82];

/// What one step was given and gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Launch {
    pub(super) step: u64,
    pub(super) row: u64,
    pub(super) learning_rate: u64,
    pub(super) largest_norm: u32,
    pub(super) loss: u64,
}

/// What happens to a machine.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// Its state is another from here on: a checkpoint's, with what that says, or one of weights alone.
    Loaded { state: u64, from: Option<Box<(Progress, Vec<Era>)>> },
    /// A step.
    Launched(Launch),
    /// Its state goes into a checkpoint.
    Staged,
}

/// One life of a run, as its machine saw it.
#[derive(Debug, Default)]
pub(super) struct Life {
    /// What it ran under; none if it did not come so far.
    pub(super) run: Option<RunConfig>,
    pub(super) events: Vec<Event>,
}

impl Life {
    pub(super) fn launches(&self) -> impl Iterator<Item = Launch> {
        self.events.iter().filter_map(|event| match event {
            Event::Launched(launch) => Some(*launch),
            Event::Loaded { .. } | Event::Staged => None,
        })
    }
}

/// What ends a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing.
    Finish,
    /// It is asked to stop at the launch of this number.
    Stop(u64),
    /// It is killed there.
    Kill(u64),
    /// What the disk does.
    Disk(Fault),
}

/// The machine.
pub(super) struct Hashed {
    pub(super) run: RunConfig,
    pub(super) state: u64,
    pub(super) life: Arc<Mutex<Life>>,
    pub(super) launched: u64,
    pub(super) end: End,
    pub(super) stop: Stop,
    pub(super) disk: FaultyDisk,
}

pub(super) fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().unwrap())
}

/// The state of weights that come without moments.
pub(super) fn of_weights(weights: u64) -> u64 {
    hash(&[&weights.to_le_bytes()])
}

/// The state behind a step that changes the weights, and what names the step if it does not.
pub(super) fn behind(state: u64, run: &RunConfig, inputs: StepInputs, ids: &[i32], segments: &[i32]) -> u64 {
    let bytes = |ids: &[i32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let numbers = [
        state,
        inputs.step,
        inputs.seed,
        inputs.learning_rate.to_bits(),
        u64::from(inputs.largest_norm.to_bits()),
        run.optimizer.weight_decay.to_bits(),
    ];
    let numbers = numbers.map(u64::to_le_bytes).concat();
    hash(&[&numbers, &bytes(ids), &bytes(segments)])
}

pub(super) fn is_bad(row: u64) -> bool {
    BAD.iter().any(|rows| rows.contains(&row))
}

fn part(word: u64) -> f64 {
    (word >> 12) as f64 / (1_u64 << 52) as f64
}

/// The norm of a step's gradient.
pub(super) fn norm(loss: u64) -> f64 {
    1.0 + part(loss.rotate_left(32))
}

impl Hashed {
    fn tell(&self, event: Event) {
        self.life.lock().unwrap().events.push(event);
    }
}

impl Machine for Hashed {
    type Pending = [f64; 7];

    fn load(&mut self, content: Content<'_>) -> Result<()> {
        let number = |embed: &Host| {
            let parts = embed.as_slice::<f32>()[..4].iter();
            parts.fold(0, |all, part| all << 16 | u64::from(part.to_bits() >> 8 & 0xffff))
        };
        let (state, from) = match content {
            // What comes from elsewhere begins with what its weights are.
            Content::Weights(weights) => (of_weights(number(&weights.next().unwrap())), None),
            Content::Checkpoint(from) => {
                let weights = number(&from.weights().next().unwrap()?);
                let half = from.optimizer_tensor("state")?.unwrap();
                let half = half.as_slice::<i32>();
                let state = u64::from(half[0] as u32) << 32 | u64::from(half[1] as u32);
                assert_eq!(weights, state, "weights and moments of one checkpoint");
                (state, Some((from.state().progress.clone(), from.state().settings.clone())))
            }
        };
        self.state = state;
        self.tell(Event::Loaded { state, from: from.map(Box::new) });
        Ok(())
    }

    fn step(&mut self, batch: &Batch, inputs: StepInputs) -> Result<[f64; 7]> {
        self.launched += 1;
        match self.end {
            End::Stop(at) if at == self.launched => self.stop.request(),
            End::Kill(at) if at == self.launched => {
                self.disk.crash();
                bail!("killed");
            }
            _ => {}
        }
        let next = behind(self.state, &self.run, inputs, &batch.ids, &batch.segments);
        let bad = is_bad(batch.position.rows);
        let loss = if bad { f64::NAN } else { 1.0 + part(next) };
        self.tell(Event::Launched(Launch {
            step: inputs.step,
            row: batch.position.rows,
            learning_rate: inputs.learning_rate.to_bits(),
            largest_norm: inputs.largest_norm.to_bits(),
            loss: next,
        }));
        if !bad {
            self.state = next;
        }
        let applied = f64::from(u8::from(!bad));
        Ok([loss, loss, loss, norm(next), applied, 30.0, 28.0])
    }

    fn read(&mut self, pending: [f64; 7]) -> Result<[f64; 7]> {
        Ok(pending)
    }

    fn to_host(&self) -> Result<HostState> {
        self.tell(Event::Staged);
        let mut params = initial_params(&self.run.model, 0);
        let mut embed = params.embed.to_f64();
        for (at, value) in embed[..4].iter_mut().enumerate() {
            // 16 bits in the middle of a number that is none of the special ones.
            let part = (self.state >> (48 - 16 * at)) as u16;
            *value = f64::from(f32::from_bits(0x3f00_0000 | u32::from(part) << 8 & 0x00ff_ff00));
        }
        params.embed = Host::from_f64(params.embed.ty().clone(), &embed);
        let halves = [(self.state >> 32) as u32 as i32, self.state as u32 as i32];
        Ok((params, vec![("state".into(), Host::new([2], &halves))]))
    }

    fn validate(&mut self, _: &Stop) -> Result<Option<HeldOutLosses>> {
        Ok(None)
    }

    fn held_out(&self) -> &[Batch] {
        &[]
    }

    fn sample(&self, _: &Tokenizer) -> Result<Option<String>> {
        Ok(None)
    }

    fn kind(&self) -> &str {
        "hash"
    }
}
