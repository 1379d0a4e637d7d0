//! Checkpoints: folders `step_00001000/` with `model.safetensors`, `optimizer.safetensors`, `state.json`,
//! `config.json`, `tokenizer.json` (if there is one) and `manifest.json`, which is written last and holds the size
//! and the hash of every other file. A folder without a valid manifest is not a checkpoint.

mod folder;
mod manifest;
mod mirror;
mod params;
mod reader;
mod retention;
mod saver;
mod store;
mod tensors;
mod weights;

pub use folder::steps;
pub use manifest::{FileRecord, Manifest, Verified, verify, whole};
pub(crate) use mirror::Drive;
pub use mirror::{Copied, CopyProgress, Copying, Mirror, PATIENCE, RECORDS, fetch_records};
pub use params::{read_params, write_params};
pub use reader::Reader;
pub use retention::{Retention, best, most_at_once};
pub use saver::Saver;
pub use store::{
    Candidate, Latest, Saved, Store, architecture, candidates, checkpoint_bytes, first_good, latest_before,
    latest_good, load, load_params, load_weights, newest_stable, newest_step, sound, weight_files,
};
pub use tensors::{TensorFile, write_tensors};

use crate::data::Position;
use crate::identity::Identity;
use crate::lock::LockError;
use crate::metrics::Validation;
use crate::schedule::Phase;
use crate::watch::Watch;
use engine::{Host, Type};
use model::config::Difference;
use model::{Config, Params};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Version of the folder's layout. [`OLDEST`] to this one are read; others are refused.
pub const FORMAT: u32 = 2;

/// The oldest layout that is read. Format 1 does not say which run wrote it and under which settings: a run that goes on
/// from it is given a name, and says that its settings are not compared.
pub const OLDEST: u32 = 1;

/// Names of the files of a checkpoint.
pub mod files {
    /// Master weights under their Hugging Face names, `[out, in]`.
    pub const MODEL: &str = "model.safetensors";
    /// In published folders: which shard holds which tensor.
    pub const INDEX: &str = "model.safetensors.index.json";
    /// The optimiser's tensors as the program holds them: stacked, `[in, out]`.
    pub const OPTIMIZER: &str = "optimizer.safetensors";
    /// Everything else that a run needs to go on.
    pub const STATE: &str = "state.json";
    /// The architecture.
    pub const CONFIG: &str = "config.json";
    /// The tokenizer, if the data came with one.
    pub const TOKENIZER: &str = "tokenizer.json";
    /// Sizes and hashes of the others.
    pub const MANIFEST: &str = "manifest.json";
}

/// `state.json`: what a run needs to go on beside its tensors, and which run wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`FORMAT`].
    pub format: u32,
    /// The run that wrote it; none in format 1.
    #[serde(default)]
    pub run: Option<Identity>,
    /// How far it has come.
    #[serde(flatten)]
    pub progress: Progress,
    /// The run's seed.
    pub seed: u64,
    /// In format 1: the weights that the run started from. Now a part of `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// The schedule's phase of the next step: only the stable phase can be branched from.
    pub phase: Phase,
    /// How long to keep the checkpoint.
    pub keep: Keep,
    /// All settings that the weights were trained under, oldest first; nothing in format 1.
    #[serde(default)]
    pub settings: Vec<Era>,
    /// blake3 of what the run depends on, by name (dataset, tokenizer, step program).
    pub hashes: BTreeMap<String, String>,
    /// Version of the program that wrote it.
    pub written_by: String,
}

/// How far a run has come: all that its next step depends on beside tensors and settings, and all that the loop counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps done; the next step's number, from 0.
    pub step: u64,
    /// Tokens that were trained on, repetitions included.
    pub tokens_seen: u64,
    /// The next row.
    pub data: Position,
    /// Gradient norms and bad steps so far.
    #[serde(default)]
    pub watch: Watch,
    /// The steps that the run went back to, in order. What it had done after each of them is no part of the run any more.
    #[serde(default)]
    pub turns: Vec<u64>,
    /// The step that it went back to, until a later step changes the weights: that checkpoint may itself be what is wrong.
    #[serde(default)]
    pub returned: Option<u64>,
    /// The last bad step that it went back for.
    #[serde(default)]
    pub failed_at: u64,
    /// How often it went back since it last got further than that.
    #[serde(default)]
    pub rollbacks: u64,
    /// What evaluations of held-out rows told.
    #[serde(default)]
    pub evaluations: Evaluations,
}

/// What evaluations of held-out rows told, those every `validation.every` steps and that of the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluations {
    /// The newest one.
    pub last: Option<Validation>,
    /// The newest one that was lower than the one before it here, by `validation.min_delta`.
    pub best: Option<Validation>,
    /// How many came after that.
    pub without_improvement: u64,
}

impl Evaluations {
    /// Counts an evaluation, once. A loss that is no number is not lower than any.
    pub(crate) fn count(&mut self, new: Validation, min_delta: f64) {
        if self.last.is_some_and(|last| last.step == new.step) {
            return;
        }
        self.last = Some(new);
        let lower = self.best.is_none_or(|best| new.loss < best.loss - min_delta) && new.loss.is_finite();
        if lower {
            (self.best, self.without_improvement) = (Some(new), 0);
        } else {
            self.without_improvement += 1;
        }
    }
}

impl Progress {
    /// Whether a run that has come this far is the continuation of what it was at `earlier`.
    pub fn continues(&self, earlier: &Progress) -> bool {
        let later = self.turns.strip_prefix(&earlier.turns[..]);
        later.is_some_and(|turns| turns.iter().chain([&self.step]).all(|step| earlier.step <= *step))
    }

    /// What orders the checkpoints of a run by age: after more turns, and among those of a later step.
    pub fn age(&self) -> (usize, u64) {
        (self.turns.len(), self.step)
    }
}

/// The settings from a step on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Era {
    /// The first step, from 0, that they hold for.
    pub from: u64,
    /// Each key's value as TOML; a key that is not there was left open.
    pub settings: BTreeMap<String, String>,
}

impl Era {
    /// Adds that these settings hold from a step on, if those before were others.
    pub(crate) fn begin(eras: &mut Vec<Era>, from: u64, settings: BTreeMap<String, String>) {
        if eras.last().is_none_or(|era| era.settings != settings) {
            eras.retain(|era| era.from < from);
            eras.push(Era { from, settings });
        }
    }
}

/// How long to keep a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Until newer ones replace it.
    Rolling,
    /// Longer: it ends the epoch of this number (from 1), and evaluations compare epochs.
    EpochEnd(u32),
    /// Until the next one: the run was asked to stop just there. It takes no other one's place, and nothing goes back to it
    /// while there are others, so that where a run goes back to does not depend on when it was stopped.
    Stop,
}

/// All of a run's state in main memory, staged for writing.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Master weights, f32.
    pub params: Params<Host>,
    /// The optimiser's tensors by name (`m.layers.q`), in any order.
    pub optimizer: Vec<(String, Host)>,
    /// Step, position and the like.
    pub state: State,
    /// The architecture.
    pub config: Config,
    /// Content of `tokenizer.json`.
    pub tokenizer: Option<Arc<[u8]>>,
}

/// A checkpoint read back.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Master weights, f32.
    pub params: Params<Host>,
    /// The optimiser's tensors by name, in alphabetical order.
    pub optimizer: Vec<(String, Host)>,
    /// Step, position and the like.
    pub state: State,
    /// The architecture that it was written with; it may differ from the asked one in fields of a run.
    pub config: Config,
}

/// Why a checkpoint could not be written, found or read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CheckpointError {
    /// Reading failed.
    #[error("{doing} {path}: {error}", path = path.display())]
    Read { doing: &'static str, path: PathBuf, error: io::Error },
    /// Writing failed; the message names step and path.
    #[error("writing a checkpoint: {0}; the previous checkpoint is untouched")]
    Write(io::Error),
    /// A file is not what the manifest says.
    #[error("checkpoint {path}: {file} is damaged: {reason}; use an older checkpoint", path = path.display())]
    Damaged { path: PathBuf, file: String, reason: String },
    /// Files that are whole, but not those that were written.
    #[error("checkpoint {path} was changed after it was written ({files}): a run goes on only from what it wrote, a new one takes such weights with --init and another --out", path = path.display())]
    Changed { path: PathBuf, files: String },
    /// Nothing to take weights from.
    #[error("{path}: there is no such checkpoint folder or safetensors file", path = path.display())]
    NotThere { path: PathBuf },
    /// A folder without the files of a checkpoint.
    #[error("{path} is not a checkpoint: {reason}; give a folder step_<number> that a run has written", path = path.display())]
    NotACheckpoint { path: PathBuf, reason: String },
    /// Weights of another architecture.
    #[error("checkpoint {path} belongs to another model: {list}; set the fields to the checkpoint's, or start anew in another --out with --resume never", path = path.display(), list = differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    OtherConfig { path: PathBuf, differences: Vec<Difference> },
    /// The file is no safetensors file.
    #[error("{path} is not a readable safetensors file: {reason}", path = path.display())]
    NotTensors { path: PathBuf, reason: String },
    /// The file says nothing usable about shards.
    #[error("{path} is not a usable index of shards: {reason}", path = path.display())]
    NotAnIndex { path: PathBuf, reason: String },
    /// An output head of its own, where the model's is its embedding.
    #[error("{path}: `lm_head.weight` is not `model.embed_tokens.weight`, but this model's head is its embedding (tie_word_embeddings); only tied weights can be taken", path = path.display())]
    UntiedHead { path: PathBuf },
    /// A tensor that the model needs is not there.
    #[error("{path} has no tensor `{name}`; it has {found} tensors of which {known} are this model's", path = path.display())]
    MissingTensor { path: PathBuf, name: String, found: usize, known: usize },
    /// A tensor of another type.
    #[error("{path}: tensor `{name}` is {found}, but this model wants {wanted}", path = path.display())]
    TensorType { path: PathBuf, name: String, found: String, wanted: Type },
    /// Weights that are no numbers.
    #[error("{path}: tensor `{name}` holds {number} (first at {at:?}, {count} in all), and everything computed with it would be NaN; use an older checkpoint", path = path.display())]
    NotFinite { path: PathBuf, name: String, number: f32, at: Vec<usize>, count: usize },
    /// Tensors that the model has no place for.
    #[error("{path} has tensors that this model does not: {names}", path = path.display())]
    ExtraTensors { path: PathBuf, names: String },
    /// Too little room, found before anything was written.
    #[error("no room for a checkpoint in {path}: it takes {needed_mib} MiB and a fifth more to be safe, {available_mib} MiB are free; free some, lower checkpoint.keep_last, or give another folder", path = path.display())]
    NoRoom { path: PathBuf, needed_mib: u64, available_mib: u64 },
    /// Too little room for all that a run keeps, found before its first step.
    #[error("no room for the checkpoints of this run in {path}: it keeps up to {count} of {each_mib} MiB at once, of which {there} are there, and {available_mib} MiB are free; free some, lower checkpoint.keep_last, checkpoint.keep_epochs or checkpoint.keep_best, raise checkpoint.keep_every, or give another folder", path = path.display())]
    NoRoomForAll { path: PathBuf, count: u64, each_mib: u64, there: u64, available_mib: u64 },
    /// The drive of the mirror is not mounted.
    #[error("checkpoint.mirror is {path}, but {parent} {reason}: mount the drive, or make the folder yourself with mkdir -p {make}", path = path.display(), parent = parent.display())]
    MirrorAway { path: PathBuf, parent: PathBuf, reason: &'static str, make: String },
    /// The mirror lies on the run's own disk and must not.
    #[error("checkpoint.mirror is {path}, on the disk that the run is on, and checkpoint.mirror_disk is mounted: mount the drive, or set checkpoint.mirror_disk=any", path = path.display())]
    MirrorNotMounted { path: PathBuf },
    /// Two runs with one mirror.
    #[error("checkpoint.mirror: {0}; give this run a mirror of its own")]
    MirrorInUse(LockError),
    /// Two machines with one mirror.
    #[error("checkpoint.mirror {path} was taken by {holder}, which does not see this run's lock: two machines cannot copy into one folder, stop one of them", path = path.display())]
    MirrorTaken { path: PathBuf, holder: String },
    /// The copy would lie where the original does.
    #[error("checkpoint.mirror is {path}, the run's own folder of checkpoints; give a folder on another disk", path = path.display())]
    MirrorOfItself { path: PathBuf },
    /// Written by another run than the folder's.
    #[error("checkpoint {path} was written by another run, {run}; it does not belong in this folder", path = path.display())]
    OtherRun { path: PathBuf, run: String },
    /// Two runs in one folder.
    #[error("{0}; wait for it to end, or give this run its own --out")]
    InUse(LockError),
    /// The writing thread panicked.
    #[error("the thread that writes checkpoints panicked: {0}; this is a bug of train")]
    Panicked(String),
}

impl CheckpointError {
    fn read(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
        let path = path.to_path_buf();
        move |error| CheckpointError::Read { doing, path, error }
    }
}
