//! Every key of the configuration, declared once: its place, type, value in preset `1b`, range, what a change of it does to a
//! run that goes on, and its meaning.

use super::declare::{Closed, table};
use super::{Key, Kind, OnChange, Open};
use crate::data::{LongRows, Order, Packing, RowOptions};
use crate::schedule::Curve;
use engine::{Form, Type};
use model::{Compute, Preset, Remat};
use serde::{Deserialize, Serialize};
use std::ops::Bound::{Excluded, Included};
use std::path::PathBuf;

/// No run has more steps: the program counts its updates in 31 bits.
pub const MOST_STEPS: u64 = i32::MAX as u64;

/// Any number: of what is neither stored nor computed with.
const ANY: Kind = Kind::Count(0, i64::MAX as u64);
/// Steps, or steps between two events.
const STEPS: Kind = Kind::Count(1, MOST_STEPS);
/// Steps, or none.
const STEPS_OR_NONE: Kind = Kind::Count(0, MOST_STEPS);
/// Things that each take memory, disk or time.
const THINGS: Kind = Kind::Count(1, 1 << 20);
/// The same, or none.
const THINGS_OR_NONE: Kind = Kind::Count(0, 1 << 20);
/// Damaged parts of files.
const DAMAGED: Kind = Kind::Count(0, u32::MAX as u64);
/// Widths of a model: products of three of them are counted in 64 bits.
const WIDTH: Kind = Kind::Count(1, 1 << 20);
/// Blocks and heads of a model.
const PARTS: Kind = Kind::Count(1, 1 << 12);
/// Token ids, which are i32.
const IDS: Kind = Kind::Count(1, 1 << 30);
/// Rows of a micro-batch.
const ROWS: Kind = Kind::Count(1, 1 << 20);
/// Micro-batches of a step.
const MICRO_BATCHES: Kind = Kind::Count(1, 1 << 16);
/// Places in a row: one more than what is predicted.
const PLACES: Kind = Kind::Count(2, 1 << 20);
/// A share of a whole.
const SHARE: Kind = Kind::Real(Included(0.0), Included(1.0));
/// A share that leaves something.
const PROPER: Kind = Kind::Real(Included(0.0), Excluded(1.0));
/// What is computed with in f32, whose largest number is 3.4e38.
const POSITIVE: Kind = Kind::Real(Excluded(0.0), Included(1e38));
/// The same, or nothing.
const NOT_NEGATIVE: Kind = Kind::Real(Included(0.0), Included(1e38));
/// A factor that makes larger.
const FACTOR: Kind = Kind::Real(Excluded(1.0), Included(1e38));
/// At most two years.
const MINUTES: Kind = Kind::Real(Excluded(0.0), Included(1e6));
/// Names and paths.
const TEXT: Kind = Kind::Text;
/// `true` or `false`.
const SWITCH: Kind = Kind::Switch;

table! {
    /// Everything that decides a run. The keys of the TOML file are the fields' paths.
    #[derive(Clone)]
    pub struct RunConfig in "" {
        /// Seed of initial values, dropout, shuffling and FIM
        seed: u64 = 0, ANY, Impossible;
        /// Optimiser steps of the whole run; auto: from data and epochs
        steps: Option<u64> = None, STEPS, HarmlessAtSameRates;
        /// Device: cpu, cuda, tpu or the path of a PJRT plugin
        platform: String = "cpu".into(), TEXT, Harmless;
        /// Form of the fused kernels: reference, portable or native; auto: the fastest that the device has
        kernels: Option<Form> = None, TEXT, Harmless;
        /// What the backward pass is given instead of computing it again: selective (most), lean or full (least);
        /// auto: as much as memory holds
        remat: Option<Remat> = None, TEXT, Harmless;
        tables {
            /// The architecture.
            model: model::Config = model::Config::preset(Preset::OneB);
            /// Where tokens come from.
            data: Data = Data::default();
            /// The shape of a step's batch.
            batch: BatchShape = BatchShape::default();
            /// AdamW.
            optimizer: Optimizer = Optimizer::default();
            /// The learning rate over steps.
            schedule: ScheduleConfig = ScheduleConfig::default();
            /// When checkpoints are written and which are kept.
            checkpoint: Checkpoints = Checkpoints::default();
            /// What is done about steps that come out bad.
            guard: Guard = Guard::default();
            /// When the held-out split is evaluated.
            validation: Validation = Validation::default();
            /// What is printed when.
            log: Log = Log::default();
        }
    }
}

/// The keys of `[model]`, whose struct, defaults and rules are [`model::Config`]'s. What a change of one does is said by
/// [`model::config::Bearing`].
const MODEL: &[Key] = &[
    key("model.hidden_size", WIDTH, "Width of the residual stream"),
    key("model.num_hidden_layers", PARTS, "Blocks"),
    key("model.num_attention_heads", PARTS, "Heads; diff_v1 pairs them"),
    key("model.num_key_value_heads", PARTS, "Key/value heads; diff_v1 pairs them"),
    key("model.head_dim", Kind::Count(1, 1 << 16), "Width of a query or key head"),
    key("model.intermediate_size", WIDTH, "Width of the SwiGLU hidden layer"),
    key("model.vocab_size", IDS, "Rows of the embedding, padding included"),
    key("model.num_tokens", IDS, "Real tokens; later columns are masked"),
    Key { on_change: OnChange::Harmless, ..key("model.max_position_embeddings", IDS, "Longest sequence") },
    key("model.rope_theta", FACTOR, "RoPE base"),
    key("model.rms_norm_eps", POSITIVE, "Added to the mean square in norms over the residual stream"),
    key("model.subln_eps", POSITIVE, "Added to the mean square in the norm of a differential head"),
    key("model.attention", TEXT, "Differential attention: diff_v1 or diff_v2"),
    key("model.qk_norm", SWITCH, "Queries and keys are divided by their root mean square"),
    key("model.attention_logit_cap", NOT_NEGATIVE, "Soft cap of attention logits, 0 = off"),
    key("model.final_logit_cap", NOT_NEGATIVE, "Soft cap of vocabulary logits, 0 = off"),
    key("model.mtp_num_tokens", Kind::Count(0, 1), "Tokens predicted beyond the next, 0 or 1"),
    key("model.mtp_loss_weight", NOT_NEGATIVE, "Weight of the second head's loss"),
    key("model.tie_word_embeddings", SWITCH, "The head is the embedding"),
    key("model.dropout", PROPER, "Probability to drop at three sites of a block"),
    key("model.z_loss", NOT_NEGATIVE, "Weight of logsumexp squared, 0 = off"),
    key("model.dtype", TEXT, "Compute type over f32 weights: f32 or bf16"),
    open("model.rope_scaling.rope_type", TEXT, "Extension of the context: yarn"),
    open("model.rope_scaling.factor", Kind::Real(Included(1.0), Included(1e38)), "Times the trained length"),
    open("model.rope_scaling.original_max_position_embeddings", IDS, "The trained length"),
    open("model.rope_scaling.beta_fast", POSITIVE, "Turns above which a frequency stays"),
    open("model.rope_scaling.beta_slow", POSITIVE, "Turns below which a frequency is divided"),
    open("model.rope_scaling.attention_factor", POSITIVE, "Factor on cosine and sine"),
];

const fn key(path: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { path, kind, open: Open::No, on_change: OnChange::OfModel, doc }
}

const fn open(path: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { open: Open::Yes, ..key(path, kind, doc) }
}

table! {
    /// Where tokens come from and how rows are made of them.
    #[derive(Clone)]
    pub struct Data in "data." {
        /// Folder of Parquet shards; auto: the Python standard library, prepared into the cache
        path: Option<PathBuf> = None, TEXT, Harmless;
        /// Token that ends a document, or its id; auto: what dataset.json says, else <|endoftext|>
        end_of_text: Option<String> = None, TEXT, Impossible;
        /// Shuffle documents every epoch, or take them in the order of the files
        shuffle: Order = Order::Shuffled, SWITCH, Impossible;
        /// Part of the documents' pieces, each what one row has of a document, that become fill-in-the-middle examples
        fim_rate: f64 = 0.5, SHARE, Impossible;
        /// Part of those in suffix-prefix-middle order
        fim_spm: f64 = 0.1, SHARE, Impossible;
        /// How documents become rows: best-fit, sequential or none
        packing: Packing = Packing::BestFit, TEXT, Impossible;
        /// What becomes of a row or document longer than batch.seq: split, cut or refuse; auto: refuse with packing
        /// none, else split
        long_rows: Option<LongRows> = None, TEXT, HarmlessIfRefused;
        /// Part of the files that is held out
        validation_fraction: f64 = 0.01, PROPER, Impossible;
        /// Passes over the training split
        epochs: u32 = 4, THINGS, Harmless;
        /// Damaged row groups that are skipped and counted before the run stops
        max_bad_row_groups: u32 = 0, DAMAGED, Harmless;
    }
}

table! {
    /// The shape of a step's batch: `[accumulation, micro, seq]`.
    #[derive(Clone, Copy, Eq)]
    pub struct BatchShape in "batch." {
        /// Sequences of a micro-batch
        micro: usize = 8, ROWS, HarmlessWithSameRows;
        /// Micro-batches of a step
        accumulation: usize = 8, MICRO_BATCHES, HarmlessWithSameRows;
        /// Tokens of a sequence
        seq: usize = 2048, PLACES, Course;
    }
}

table! {
    /// AdamW with decoupled weight decay on projections, and clipping by global norm.
    #[derive(Clone, Copy)]
    pub struct Optimizer in "optimizer." {
        /// Peak learning rate; auto: from the number of parameters
        learning_rate: Option<f64> = None, POSITIVE, HarmlessAtSameRates;
        /// Decay of the first moment
        beta1: f64 = 0.9, PROPER, Course;
        /// Decay of the second moment
        beta2: f64 = 0.95, PROPER, Course;
        /// Added to the root of the second moment
        eps: f64 = 1e-8, POSITIVE, Course;
        /// Weight decay of a step, times the learning rate; on projections only
        weight_decay: f64 = 0.1, NOT_NEGATIVE, Course;
        /// Largest global norm of a step's gradient; a longer one is scaled down to it
        clip: f64 = 1.0, POSITIVE, Course;
        /// Type in which the first moment is kept: f32 or bf16
        // Two bytes a parameter less in bf16; the second moment, whose root divides, stays f32.
        first_moment: Compute = Compute::Bf16, TEXT, Impossible;
    }
}

table! {
    /// The learning rate over steps.
    #[derive(Clone, Copy)]
    pub struct ScheduleConfig in "schedule." {
        /// Form: wsd (warmup, stable, decay) or constant
        kind: ScheduleKind = ScheduleKind::Wsd, TEXT, HarmlessAtSameRates;
        /// Steps of linear warmup; auto: from the number of steps
        warmup_steps: Option<u64> = None, STEPS_OR_NONE, HarmlessAtSameRates;
        /// Part of the steps that decays
        decay_fraction: f64 = 0.1, SHARE, HarmlessAtSameRates;
        /// Curve of the decay: linear, cosine or one_minus_sqrt
        decay: Curve = Curve::OneMinusSqrt, TEXT, HarmlessAtSameRates;
        /// What is left of the rate at the end, as a part of the peak
        floor: f64 = 0.0, SHARE, HarmlessAtSameRates;
    }
}

table! {
    /// When checkpoints are written and which are kept.
    #[derive(Clone)]
    pub struct Checkpoints in "checkpoint." {
        /// Steps between two checkpoints
        every: u64 = 1000, STEPS, Harmless;
        /// Minutes after which one is written in any case; auto: never
        every_minutes: Option<f64> = Some(15.0), MINUTES, Harmless;
        /// Newest ones that are kept
        keep_last: usize = 3, THINGS, Harmless;
        /// Newest ends of epochs that are kept beside them, for evaluations to compare
        // All of the epochs of 1b; of a small data set, whose epochs are short, no more than fit on a disk.
        keep_epochs: usize = 4, THINGS_OR_NONE, Harmless;
        /// Checkpoints with the lowest validation loss that are kept beside them: of each evaluation the first one at
        /// or after it
        keep_best: usize = 0, THINGS_OR_NONE, Harmless;
        /// Checkpoints of steps that are a multiple of this are kept for ever; auto: none
        keep_every: Option<u64> = None, STEPS, Harmless;
        /// Folder that each one is copied to, such as a mounted drive; auto: none
        mirror: Option<PathBuf> = None, TEXT, Harmless;
        /// Minutes from the beginning of one copy to that of the next, which is then of the newest checkpoint;
        /// auto: each one is copied if the drive keeps up
        mirror_every_minutes: Option<f64> = None, MINUTES, Harmless;
        /// Minutes after which a copy counts as uploaded: until then none goes on its account, and it does not go itself;
        /// auto: at once
        mirror_settle_minutes: Option<f64> = None, MINUTES, Harmless;
        /// Disk that the mirror may lie on: any, or mounted, which refuses the run's own disk
        mirror_disk: MirrorDisk = MirrorDisk::Any, TEXT, Harmless;
    }
}

table! {
    /// What is done about steps that come out bad: those whose loss or gradient is not finite or is a spike. Such a step
    /// leaves weights and optimiser as they were.
    #[derive(Clone, Copy)]
    pub struct Guard in "guard." {
        /// A gradient norm of more than this times the median of recent steps is a spike; auto: none is
        spike_factor: Option<f64> = Some(30.0), FACTOR, Course;
        /// Bad steps in a row after which the run goes back to the last good checkpoint and skips the bad rows
        bad_steps: u64 = 10, STEPS, Course;
        /// Times that it goes back without getting further before it stops
        rollbacks: u64 = 3, ANY, Harmless;
    }
}

table! {
    /// When the held-out split is evaluated.
    #[derive(Clone, Copy)]
    pub struct Validation in "validation." {
        /// Steps between two evaluations
        every: u64 = 1000, STEPS, Harmless;
        /// Micro-batches of an evaluation, or fewer if the split has fewer; 0 turns evaluation off
        batches: u64 = 64, THINGS_OR_NONE, Harmless;
        /// Evaluations in a row without a lower loss after which the run ends early; auto: it never does
        patience: Option<u64> = None, THINGS, Harmless;
        /// Nats by which a loss must be lower than the lowest before to count as lower
        min_delta: f64 = 0.0, NOT_NEGATIVE, Harmless;
    }
}

table! {
    /// What is printed when.
    #[derive(Clone, Copy, Eq)]
    pub struct Log in "log." {
        /// Steps between two lines of metrics
        every: u64 = 10, STEPS, Harmless;
    }
}

/// The keys of each table, in the order of the resolved file.
const TABLES: [&[Key]; 10] = [
    RunConfig::KEYS,
    MODEL,
    Data::KEYS,
    BatchShape::KEYS,
    Optimizer::KEYS,
    ScheduleConfig::KEYS,
    Checkpoints::KEYS,
    Guard::KEYS,
    Validation::KEYS,
    Log::KEYS,
];

/// All keys, in the order of the resolved file.
pub const KEYS: &[Key] = &joined::<{ count() }>();

const fn count() -> usize {
    let (mut count, mut table) = (0, 0);
    while table < TABLES.len() {
        count += TABLES[table].len();
        table += 1;
    }
    count
}

const fn joined<const N: usize>() -> [Key; N] {
    let mut keys = [MODEL[0]; N];
    let (mut at, mut table) = (0, 0);
    while table < TABLES.len() {
        let (from, mut place) = (at, 0);
        while place < TABLES[table].len() {
            keys[from + place] = TABLES[table][place];
            place += 1;
        }
        at += place;
        table += 1;
    }
    keys
}

/// Which disk a mirror may lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MirrorDisk {
    /// Any.
    Any,
    /// Another one than the run's: where a drive should be mounted, nothing is written while it is not.
    Mounted,
}

/// The form of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Warmup, stable, decay.
    Wsd,
    /// Warmup, then constant.
    Constant,
}

impl Data {
    /// The settings of rows of `seq` tokens.
    pub fn rows(&self, seq: usize, seed: u64) -> RowOptions {
        RowOptions {
            seq,
            packing: self.packing,
            long_rows: self.long_rows.unwrap_or(self.packing.long_rows()),
            order: self.shuffle,
            fim_rate: self.fim_rate,
            fim_spm_rate: self.fim_spm,
            seed,
            max_bad_row_groups: self.max_bad_row_groups as usize,
            window_tokens: WINDOW_TOKENS,
        }
    }
}

/// Documents are shuffled within windows of this many tokens: 64 MiB in memory, and all of a small data set.
const WINDOW_TOKENS: u64 = 1 << 24;

impl BatchShape {
    /// Tokens of one optimiser step.
    pub fn tokens(&self) -> u64 {
        (self.rows() * self.seq) as u64
    }

    /// Rows of one optimiser step.
    pub fn rows(&self) -> usize {
        self.micro * self.accumulation
    }

    /// Type of a step's ids and segments, `[accumulation, micro, seq]` i32.
    pub fn ids(&self) -> Type {
        Type::i32([self.accumulation, self.micro, self.seq])
    }
}
