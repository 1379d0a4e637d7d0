//! Every known key with its type and meaning: what overrides are typed by, what typing errors are compared with, and
//! the comments of the resolved configuration. The tests hold it equal to the fields of `RunConfig`.

use super::{RunConfigError, Source};
use crate::scaling::MOST_STEPS;
use std::ops::Bound::{self, Excluded, Included};
use std::ops::RangeBounds;
use toml::Value;

/// One configuration key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Path in the TOML file.
    pub path: &'static str,
    /// Type of the value.
    pub kind: Kind,
    /// Whether `"auto"` (or leaving it out) is an answer.
    pub open: Open,
    /// Its meaning in a few words.
    pub doc: &'static str,
}

/// Type of a value, and of a number its range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A whole number that is not negative: the least and the most.
    Count(u64, u64),
    /// A real number; whole ones are taken too.
    Real(Bound<f64>, Bound<f64>),
    /// `true` or `false`.
    Switch,
    /// Text: a name or a path.
    Text,
}

/// Whether a key may be left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// `"auto"` is an answer.
    Yes,
    /// There must be a value.
    No,
}

const fn key(path: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { path, kind, open: Open::No, doc }
}

const fn open(path: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { path, kind, open: Open::Yes, doc }
}

/// Any number of something that is neither stored nor computed with.
const ANY: Kind = Kind::Count(0, i64::MAX as u64);
/// Steps, or steps between two events.
const STEPS: Kind = Kind::Count(1, MOST_STEPS);
/// Things that each take memory, disk or time.
const THINGS: Kind = Kind::Count(1, 1 << 20);
/// The same, or none.
const THINGS_OR_NONE: Kind = Kind::Count(0, 1 << 20);
/// Widths of a model: products of three of them are counted in 64 bits.
const WIDTH: Kind = Kind::Count(1, 1 << 20);
/// Token ids, which are i32.
const IDS: Kind = Kind::Count(1, 1 << 30);
/// Rows, and places in a row.
const ROWS: Kind = Kind::Count(1, 1 << 20);
/// A share of a whole.
const SHARE: Kind = Kind::Real(Included(0.0), Included(1.0));
/// A share that leaves something.
const PROPER: Kind = Kind::Real(Included(0.0), Excluded(1.0));
/// What is computed with in f32, whose largest number is 3.4e38.
const POSITIVE: Kind = Kind::Real(Excluded(0.0), Included(1e38));
/// The same, or nothing.
const NOT_NEGATIVE: Kind = Kind::Real(Included(0.0), Included(1e38));
/// Two years, in minutes.
const MINUTES: Kind = Kind::Real(Excluded(0.0), Included(1e6));

/// All keys, in the order of the resolved file.
pub const KEYS: &[Key] = &[
    key("seed", ANY, "of initial values, dropout, shuffling and FIM"),
    open("steps", STEPS, "optimiser steps of the whole run"),
    key("platform", Kind::Text, "cpu, cuda, tpu or the path of a PJRT plugin"),
    key("kernels", Kind::Text, "auto, reference, portable or native"),
    open("remat", Kind::Text, "what the backward pass is given: selective (most), lean or full (least)"),
    key("model.hidden_size", WIDTH, "width of the residual stream"),
    key("model.num_hidden_layers", Kind::Count(1, 1 << 12), "blocks"),
    key("model.num_attention_heads", Kind::Count(1, 1 << 12), "heads; diff_v1 pairs them"),
    key("model.num_key_value_heads", Kind::Count(1, 1 << 12), "key/value heads; diff_v1 pairs them"),
    key("model.head_dim", Kind::Count(1, 1 << 16), "width of a query or key head"),
    key("model.intermediate_size", WIDTH, "width of the SwiGLU hidden layer"),
    key("model.vocab_size", IDS, "rows of the embedding, padding included"),
    key("model.num_tokens", IDS, "real tokens; later columns are masked"),
    key("model.max_position_embeddings", IDS, "longest sequence"),
    key("model.rope_theta", Kind::Real(Excluded(1.0), Included(1e38)), "RoPE base"),
    key("model.rms_norm_eps", POSITIVE, "in norms over the residual stream"),
    key("model.subln_eps", POSITIVE, "in the norm of a differential head"),
    key("model.attention", Kind::Text, "diff_v1 or diff_v2"),
    key("model.attention_logit_cap", NOT_NEGATIVE, "soft cap of attention logits, 0 = off"),
    key("model.final_logit_cap", NOT_NEGATIVE, "soft cap of vocabulary logits, 0 = off"),
    key("model.mtp_num_tokens", Kind::Count(0, 1), "tokens predicted beyond the next, 0 or 1"),
    key("model.mtp_loss_weight", NOT_NEGATIVE, "weight of the second head's loss"),
    key("model.tie_word_embeddings", Kind::Switch, "the head is the embedding"),
    key("model.dropout", PROPER, "at three sites of a block"),
    key("model.qk_norm", Kind::Switch, "divides queries and keys by their root mean square"),
    key("model.z_loss", NOT_NEGATIVE, "weight of logsumexp squared, 0 = off"),
    key("model.dtype", Kind::Text, "f32 or bf16 compute over f32 weights"),
    open("model.rope_scaling.rope_type", Kind::Text, "yarn"),
    open("model.rope_scaling.factor", Kind::Real(Included(1.0), Included(1e38)), "times the trained length"),
    open("model.rope_scaling.original_max_position_embeddings", IDS, "the trained length"),
    open("model.rope_scaling.beta_fast", POSITIVE, "turns above which a frequency stays"),
    open("model.rope_scaling.beta_slow", POSITIVE, "turns below which a frequency is divided"),
    open("model.rope_scaling.attention_factor", POSITIVE, "factor on cosine and sine"),
    open("data.path", Kind::Text, "folder of Parquet shards; auto: the Python standard library"),
    open("data.end_of_text", Kind::Text, "token that ends a document, or its id; auto: what the folder says"),
    key("data.shuffle", Kind::Switch, "shuffle documents every epoch"),
    key("data.fim_rate", SHARE, "part of the documents' pieces, one a row, for fill-in-the-middle"),
    key("data.fim_spm", SHARE, "part of those in suffix-prefix-middle order"),
    key("data.packing", Kind::Text, "best-fit, sequential or none"),
    key("data.validation_fraction", PROPER, "part of the files held out"),
    key("data.epochs", THINGS, "passes over the training split"),
    key(
        "data.max_bad_row_groups",
        Kind::Count(0, u32::MAX as u64),
        "damaged row groups to skip before stopping",
    ),
    key("batch.micro", ROWS, "sequences of a micro-batch"),
    key("batch.accumulation", Kind::Count(1, 1 << 16), "micro-batches of a step"),
    key("batch.seq", Kind::Count(2, 1 << 20), "tokens of a sequence"),
    open("optimizer.learning_rate", POSITIVE, "peak; auto: from the number of parameters"),
    key("optimizer.beta1", PROPER, "decay of the first moment"),
    key("optimizer.beta2", PROPER, "decay of the second moment"),
    key("optimizer.eps", POSITIVE, "added to the root of the second moment"),
    key("optimizer.weight_decay", NOT_NEGATIVE, "on projections only"),
    key("optimizer.clip", POSITIVE, "largest global norm of the gradient"),
    key("optimizer.first_moment", Kind::Text, "type in which it is kept: f32 or bf16"),
    key("schedule.kind", Kind::Text, "wsd or constant"),
    open("schedule.warmup_steps", Kind::Count(0, MOST_STEPS), "linear warmup"),
    key("schedule.decay_fraction", SHARE, "part of the steps that decays"),
    key("schedule.decay", Kind::Text, "linear, cosine or one_minus_sqrt"),
    key("schedule.floor", SHARE, "what is left at the end, as a part of the peak"),
    key("checkpoint.every", STEPS, "steps between two checkpoints"),
    open("checkpoint.every_minutes", MINUTES, "write one after so many minutes in any case"),
    key("checkpoint.keep_last", THINGS, "newest ones that are kept"),
    key("checkpoint.keep_epochs", THINGS_OR_NONE, "newest ends of epochs that are kept beside them"),
    open("checkpoint.keep_every", STEPS, "multiples of so many steps are kept for ever"),
    open("checkpoint.mirror", Kind::Text, "folder that each one is copied to, such as a mounted drive"),
    open("checkpoint.mirror_every_minutes", MINUTES, "from one copy to the next; auto: each one is copied"),
    open(
        "guard.spike_factor",
        Kind::Real(Excluded(1.0), Included(1e38)),
        "times the median gradient norm above which a step is thrown away",
    ),
    key("guard.bad_steps", STEPS, "bad steps in a row after which the run goes back to a checkpoint"),
    key("guard.rollbacks", ANY, "times it goes back without getting further before it stops"),
    key("validation.every", STEPS, "steps between two evaluations"),
    key("validation.batches", THINGS_OR_NONE, "micro-batches of an evaluation"),
    key("log.every", STEPS, "steps between two lines"),
];

/// The key of a path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether keys lie below a path.
pub(super) fn is_table(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// What to say about a path that is no key: the nearest one, by the whole path or by its last part.
pub(super) fn hint(path: &str) -> String {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_string();
    let distance = |key: &Key| {
        let whole = strsim::damerau_levenshtein(path, key.path);
        let end = strsim::damerau_levenshtein(&last(path), &last(key.path));
        // A right name in the wrong table is a better guess than a wrong name in the right one.
        whole.min(2 * end + usize::from(last(path) != path))
    };
    let nearest = KEYS.iter().min_by_key(|key| distance(key)).expect("there are keys");
    if distance(nearest) <= (path.len() / 3).max(2) {
        return format!("did you mean `{}`?", nearest.path);
    }
    let mut tables: Vec<_> =
        KEYS.iter().filter_map(|key| key.path.split_once('.')).map(|(table, _)| table).collect();
    tables.dedup();
    format!("the tables are {}; a run's config.toml lists every key", tables.join(", "))
}

impl Key {
    /// Checks a value from TOML, or reads one that was typed as text; none stands for `"auto"`.
    pub(super) fn typed(&self, value: Value, source: &Source) -> Result<Option<Value>, RunConfigError> {
        if self.open == Open::Yes && value.as_str() == Some("auto") {
            return Ok(None);
        }
        let typed_in = !matches!(source, Source::File(_) | Source::Init(_) | Source::Preset(_));
        let refuse = |value: &Value| RunConfigError::Type {
            key: self.path,
            wanted: match self.kind {
                Kind::Count(..) => "a whole number that is not negative",
                Kind::Real(..) => "a number",
                Kind::Switch => "true or false",
                Kind::Text => "text",
            },
            found: value.as_str().filter(|_| typed_in).map_or_else(|| value.to_string(), str::to_string),
            source_of: source.clone(),
        };
        let read = match (&value, typed_in) {
            (Value::String(text), true) => match self.kind {
                Kind::Count(..) => text.replace('_', "").parse().ok().map(Value::Integer),
                Kind::Real(..) => text.replace('_', "").parse().ok().map(Value::Float),
                Kind::Switch => text.parse().ok().map(Value::Boolean),
                Kind::Text => Some(value.clone()),
            },
            _ => Some(value.clone()),
        };
        match (self.kind, read) {
            (Kind::Count(..), Some(Value::Integer(n))) if n >= 0 => Ok(Some(Value::Integer(n))),
            (Kind::Real(..), Some(Value::Integer(n))) => Ok(Some(Value::Float(n as f64))),
            (Kind::Real(..), Some(number @ Value::Float(_)))
            | (Kind::Switch, Some(number @ Value::Boolean(_)))
            | (Kind::Text, Some(number @ Value::String(_))) => Ok(Some(number)),
            _ => Err(refuse(&value)),
        }
    }

    /// Refuses a number out of the key's range; value: of the key's type.
    pub(super) fn check(&self, value: &Value, source: &Source) -> Result<(), RunConfigError> {
        let wanted = match (self.kind, value) {
            (Kind::Count(least, most), Value::Integer(n)) if !(least..=most).contains(&n.unsigned_abs()) => {
                format!("from {least} to {most}")
            }
            (Kind::Real(low, high), Value::Float(x)) if !(low, high).contains(x) => {
                let (open, low) = match low {
                    Included(low) => ('[', low),
                    Excluded(low) => ('(', low),
                    Bound::Unbounded => unreachable!("every range has two ends"),
                };
                let (high, close) = match high {
                    Included(high) => (high, ']'),
                    Excluded(high) => (high, ')'),
                    Bound::Unbounded => unreachable!("every range has two ends"),
                };
                format!("in {open}{low:?}, {high:?}{close}").replace(".0", "")
            }
            _ => return Ok(()),
        };
        // Rust's short form: TOML's writes 1e30 in full.
        let found = value.as_float().map_or_else(|| value.to_string(), |x| format!("{x:?}"));
        Err(RunConfigError::Value { key: self.path.into(), found, wanted, source_of: source.clone() })
    }
}
