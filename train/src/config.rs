//! The run configuration: one TOML file of known keys over a preset, with typed overrides on top. Every value knows
//! where it came from, and the resolved configuration is written into the run's folder with that as a comment.
//!
//! # All keys
//! `train --keys` prints this table. "Presets" is what a run begins with: `train` alone with `tiny`. A value `auto` is chosen
//! from model, data and device. "Changed later" is what a run that goes on does if the key has another value than before.
//!
#![doc = include_str!("config/keys.md")]
//!
//! # A new key
//! A line in its table in `config/tables.rs` declares it: type, value in preset `1b`, range, what a change does, meaning. That
//! value should mean what runs did before there was the key, as it is also what older checkpoints count as trained with. The
//! other presets follow in `config/presets.rs`, if they have another value. `BLESS=1 cargo test -p tests --test runs config::`
//! writes the table above anew. A key of the architecture is a field of [`model::Config`], and a line of `MODEL` in
//! `config/tables.rs`.

mod declare;
mod find;
mod keys;
mod presets;
mod reference;
mod tables;

pub(crate) use find::find;
pub use keys::{Key, Kind, OnChange, Open};
pub use reference::keys_as_markdown;
pub use tables::{
    BatchShape, Checkpoints, Data, Guard, KEYS, Log, MOST_STEPS, MirrorDisk, Optimizer, RunConfig,
    ScheduleConfig, ScheduleKind, Validation,
};

use model::Preset;
use model::config::Bearing;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A preset.
    Preset(Preset),
    /// The `config.json` beside the weights that a run starts from.
    Init(PathBuf),
    /// The configuration file.
    File(PathBuf),
    /// `--set`.
    Set,
    /// Another flag of the command line.
    Flag(&'static str),
    /// Chosen from model and data, for this reason.
    Auto(String),
}

/// One `key=value` from outside of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Path of the key.
    pub key: String,
    /// The value as it was typed.
    pub value: String,
    /// Who says so.
    pub source: Source,
}

/// A configuration and the origin of each value.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// The values.
    pub run: RunConfig,
    sources: BTreeMap<&'static str, Source>,
}

/// Why a run configuration is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunConfigError {
    /// The file is not there or not readable.
    #[error("reading the configuration {path}: {error}; --config wants a TOML file, --preset a name", path = path.display())]
    Read { path: PathBuf, error: std::io::Error },
    /// The file is not TOML.
    #[error("the configuration {path} is not TOML: {error}", path = path.display())]
    Toml { path: PathBuf, error: Box<toml::de::Error> },
    /// No such key.
    #[error("unknown key `{key}` ({source_of}); {hint}")]
    UnknownKey { key: String, source_of: Source, hint: String },
    /// `--set` without `=`.
    #[error("--set {0}: wants KEY=VALUE, such as --set optimizer.learning_rate=3e-4")]
    NotAnAssignment(String),
    /// A value of `--set` that begins with a quote and is no quoted text.
    #[error(
        "--set {key}: {value} begins with a quote, but is no text quoted as in TOML; close the quote or leave it out"
    )]
    Quote { key: String, value: String },
    /// The weights to start from are not there, or their `config.json` is not readable.
    #[error("--init: {0}")]
    Init(Box<dyn Error + Send + Sync>),
    /// A value of another type than the key's.
    #[error("`{key}` wants {wanted}, got {found} ({source_of})")]
    Type { key: &'static str, wanted: &'static str, found: String, source_of: Source },
    /// A value out of its range.
    #[error("`{key}` is {found}, but must be {wanted} ({source_of})")]
    Value { key: String, found: String, wanted: String, source_of: Source },
    /// A value that is no choice of the key.
    #[error("`{key}`: {wanted} ({source_of})")]
    Choice { key: &'static str, wanted: String, source_of: Source },
    /// A table that misses a key.
    #[error("run configuration: {0}")]
    Incomplete(String),
    /// The architecture is impossible, or the preset unknown.
    #[error("{0}; set it as model.<field>")]
    Model(model::ConfigError),
    /// Not one step's worth of data.
    #[error(
        "the data has {rows} rows ({tokens} tokens) over all epochs, but one step takes {per_step}; lower batch.micro, batch.accumulation or batch.seq, prepare more data, or set steps to go through it more often"
    )]
    TooLittleData { rows: u64, tokens: u64, per_step: u64 },
}

impl From<model::ConfigError> for RunConfigError {
    /// Not as a source: its text is in the message already.
    fn from(error: model::ConfigError) -> RunConfigError {
        RunConfigError::Model(error)
    }
}

/// Lays a file and overrides over a preset; the file's own `preset` key, if any, replaces the given one.
///
/// # Errors
/// The first unknown key, mistyped value or broken rule, with its origin and the nearest known key.
pub fn resolve(
    preset: Preset,
    file: Option<(&Path, &str)>,
    overrides: &[Override],
) -> Result<Resolved, RunConfigError> {
    resolve_over(preset, None, file, overrides)
}

/// The same, where the architecture of given weights replaces the preset's, unless the file names a preset.
pub(crate) fn resolve_over(
    preset: Preset,
    mut weights: Option<(&Path, &model::Config)>,
    file: Option<(&Path, &str)>,
    overrides: &[Override],
) -> Result<Resolved, RunConfigError> {
    let mut preset = preset;
    let mut from_file = Vec::new();
    if let Some((path, text)) = file {
        let mut table: Table = text
            .parse()
            .map_err(|error| RunConfigError::Toml { path: path.into(), error: Box::new(error) })?;
        if let Some(name) = table.remove("preset") {
            preset = name.as_str().map_or_else(|| name.to_string(), str::to_string).parse()?;
            weights = None;
        }
        flatten("", table, &mut from_file);
    }
    let mut values: BTreeMap<&'static str, (Value, Source)> = BTreeMap::new();
    let mut base = Vec::new();
    flatten("", Table::try_from(presets::run(preset)).expect("a run configuration is a table"), &mut base);
    let base = base.into_iter().map(|(key, value)| (key, value, Source::Preset(preset)));
    let architecture = weights.into_iter().flat_map(|(path, config)| {
        let fields = Table::try_from(config).expect("an architecture is a table");
        let bears = fields.into_iter().filter(|(field, _)| Bearing::of(field) == Bearing::Weights);
        bears.map(|(field, value)| (format!("model.{field}"), value, Source::Init(path.into())))
    });
    let source = file.map_or(Source::Set, |(path, _)| Source::File(path.into()));
    let from_file = from_file.into_iter().map(|(key, value)| (key, value, source.clone()));
    let mut assign = |name: &str, value: Value, source: Source| -> Result<(), RunConfigError> {
        if value.as_table().is_some_and(Table::is_empty) && find::is_table(name) {
            return Ok(());
        }
        let key = find(name).ok_or_else(|| RunConfigError::UnknownKey {
            key: name.into(),
            source_of: source.clone(),
            hint: find::hint(name),
        })?;
        match key.typed(value, &source)? {
            Some(value) => values.insert(key.path, (value, source)),
            None => values.remove(key.path),
        };
        Ok(())
    };
    for (name, value, source) in base.chain(architecture).chain(from_file) {
        assign(&name, value, source)?;
    }
    for Override { key, value, source } in overrides {
        assign(key, Value::String(value.clone()), source.clone())?;
    }
    let mut table = Table::new();
    for (path, (value, source)) in &values {
        find(path).expect("only known keys are assigned").check(value, source)?;
        insert(&mut table, path, value.clone());
    }
    let run =
        RunConfig::deserialize(table).map_err(|error| not_a_choice(preset, &values, error.message()))?;
    let sources = values.into_iter().map(|(path, (_, source))| (path, source)).collect();
    let resolved = Resolved { run, sources };
    resolved.validate()?;
    Ok(resolved)
}

/// The error about the value that is alone enough for the message of all together.
fn not_a_choice(
    preset: Preset,
    values: &BTreeMap<&'static str, (Value, Source)>,
    message: &str,
) -> RunConfigError {
    let refused = |path: &str, value: &Value| {
        // A message about a missing key does not have the value.
        if !value.as_str().is_some_and(|text| message.contains(text)) {
            return false;
        }
        let mut table = Table::try_from(presets::run(preset)).expect("a run configuration is a table");
        insert(&mut table, path, value.clone());
        RunConfig::deserialize(table).is_err_and(|error| error.message() == message)
    };
    let Some((key, (_, source))) = values.iter().find(|(path, (value, _))| refused(path, value)) else {
        return RunConfigError::Incomplete(message.into());
    };
    let auto = if find(key).is_some_and(|key| key.open == Open::Yes) { ", `auto`" } else { "" };
    RunConfigError::Choice { key, wanted: format!("{message}{auto}"), source_of: source.clone() }
}

impl Resolved {
    /// Who set a key.
    pub fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or_else(|| Source::Auto("left open".into()))
    }

    pub(crate) fn set_source(&mut self, key: &'static str, source: Source) {
        self.sources.insert(key, source);
    }

    /// The configuration as a TOML file that gives the same run again, each value with its origin and meaning.
    pub fn to_toml(&self) -> String {
        let mut leaves = Vec::new();
        flatten("", Table::try_from(&self.run).expect("a run configuration is a table"), &mut leaves);
        let leaves: BTreeMap<String, Value> = leaves.into_iter().collect();
        let mut text = String::from(
            "# The resolved configuration of this run; `train --config` on this file repeats it.\n",
        );
        let mut table = "";
        for key in KEYS {
            let (parent, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
            let value = leaves.get(key.path);
            if parent != table && (value.is_some() || !key.path.starts_with("model.rope_scaling")) {
                text.push_str(&format!("\n[{parent}]\n"));
                table = parent;
            }
            match value {
                Some(value) => {
                    text.push_str(&format!("{name} = {value} # {}. {}\n", self.source(key.path), key.doc));
                }
                None if key.path.starts_with("model.rope_scaling") => {}
                None => text.push_str(&format!("{name} = \"auto\" # {}\n", key.doc)),
            }
        }
        text
    }

    fn validate(&self) -> Result<(), RunConfigError> {
        let run = &self.run;
        run.model.validate()?;
        let rule = |holds: bool, key: &str, found: &dyn fmt::Display, wanted: &str| {
            if holds {
                return Ok(());
            }
            let source_of = self.source(key);
            Err(RunConfigError::Value {
                key: key.into(),
                found: found.to_string(),
                wanted: wanted.into(),
                source_of,
            })
        };
        // The second token of the MTP head is two positions ahead.
        let least = 2 + run.model.mtp_num_tokens;
        rule(run.batch.seq >= least, "batch.seq", &run.batch.seq, &format!("at least {least}"))?;
        let longest = run.model.max_position_embeddings;
        let wanted = format!("at most model.max_position_embeddings ({longest})");
        rule(run.batch.seq <= longest, "batch.seq", &run.batch.seq, &wanted)?;
        let BatchShape { micro, accumulation, seq } = run.batch;
        let rows = MOST_PLACES / (accumulation * seq);
        let wanted = format!(
            "at most {rows}: with batch.accumulation {accumulation} and batch.seq {seq} a step then has {MOST_PLACES} places"
        );
        rule(micro <= rows, "batch.micro", &micro, &wanted)?;
        rule(!run.platform.is_empty(), "platform", &"empty", "cpu, cuda, tpu or the path of a PJRT plugin")
    }
}

impl RunConfig {
    /// Each key's value as TOML; keys that are left open are not there.
    pub fn settings(&self) -> BTreeMap<String, String> {
        let mut leaves = Vec::new();
        flatten("", Table::try_from(self).expect("a run configuration is a table"), &mut leaves);
        leaves.into_iter().map(|(key, value)| (key, value.to_string())).collect()
    }

    /// The configuration that [`settings`](RunConfig::settings) wrote, here or in another version of this program: a key
    /// that is not known is left out, and one that was not known then is what it is here.
    pub(crate) fn with_settings(&self, settings: &BTreeMap<String, String>) -> Option<RunConfig> {
        let mut all = self.settings();
        all.retain(|key, _| find(key).is_none_or(|key| key.open == Open::No));
        all.extend(
            settings.iter().filter(|(key, _)| find(key).is_some()).map(|(k, v)| (k.clone(), v.clone())),
        );
        let mut table = Table::new();
        for (key, value) in all {
            insert(&mut table, &key, value.parse().ok()?);
        }
        RunConfig::deserialize(table).ok()
    }
}

/// No step has more places: they are numbered in 31 bits.
const MOST_PLACES: usize = i32::MAX as usize;

impl Override {
    /// Reads the text of a `--set`: `a.b=c`, or `a.b="c"` with the quotes of TOML.
    ///
    /// # Errors
    /// If there is no `=`, or a quote is not closed.
    pub fn parse(text: &str) -> Result<Override, RunConfigError> {
        let (key, value) =
            text.split_once('=').ok_or_else(|| RunConfigError::NotAnAssignment(text.into()))?;
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        let value = if value.starts_with(['"', '\'']) {
            match value.parse() {
                Ok(Value::String(text)) => text,
                _ => return Err(RunConfigError::Quote { key, value }),
            }
        } else {
            value
        };
        Ok(Override { key, value, source: Source::Set })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Preset(preset) => write!(f, "preset {preset}"),
            Source::Init(path) => write!(f, "--init {}", path.display()),
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Set => f.write_str("--set"),
            Source::Flag(flag) => f.write_str(flag),
            Source::Auto(reason) => write!(f, "auto: {reason}"),
        }
    }
}

/// Paths and values of all leaves; an empty table is one.
fn flatten(prefix: &str, table: Table, leaves: &mut Vec<(String, Value)>) {
    for (name, value) in table {
        let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) if !inner.is_empty() => flatten(&path, inner, leaves),
            leaf => leaves.push((path, leaf)),
        }
    }
}

/// Puts a leaf at its path.
fn insert(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(table.insert(path.into(), value)),
        Some((first, rest)) => match table.entry(first).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => insert(inner, rest, value),
            leaf => unreachable!("`{first}` is a table in every known key, got {leaf}"),
        },
    }
}
