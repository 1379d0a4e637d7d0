//! What is declared of a configuration key: its type and range, whether it may be left open, what a change of it does. From
//! that follows how a typed value is read, and which values are refused.

use super::{RunConfigError, Source};
use model::config::Bearing;
use std::fmt;
use std::ops::Bound::{self, Excluded, Included};
use std::ops::RangeBounds;
use toml::Value;

/// One configuration key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Path in the TOML file.
    pub path: &'static str,
    /// Type of the value, and its range.
    pub kind: Kind,
    /// Whether `"auto"` (or leaving it out) is an answer.
    pub open: Open,
    /// What another value does to a run that goes on.
    pub on_change: OnChange,
    /// Its meaning, in a line.
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

/// What another value of a key does to a run that goes on from a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnChange {
    /// The weights become what they would have become, but for rounding: the change is taken.
    Harmless,
    /// Harmless while no step so far would have had another learning rate, else another course.
    HarmlessAtSameRates,
    /// Harmless while a step has as many rows as before, else another course.
    HarmlessWithSameRows,
    /// Harmless if rows that are too long were refused before, so that there was none, or the same becomes of them;
    /// else another course.
    HarmlessIfRefused,
    /// From then on the weights differ from those of either run from its start: this wants `--accept-changes`.
    Course,
    /// The run cannot go on from the checkpoint: its tensors or its place in the data mean something else.
    Impossible,
    /// Impossible if [`Bearing`] says that the field decides the weights, else another course.
    OfModel,
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
        let inside = match (self.kind, value) {
            (Kind::Count(least, most), Value::Integer(n)) => (least..=most).contains(&n.unsigned_abs()),
            (Kind::Real(low, high), Value::Float(x)) => (low, high).contains(x),
            _ => true,
        };
        if inside {
            return Ok(());
        }
        // Rust's short form: TOML's writes 1e30 in full.
        let found = value.as_float().map_or_else(|| value.to_string(), |x| format!("{x:?}"));
        let wanted = self.kind.to_string();
        Err(RunConfigError::Value { key: self.path.into(), found, wanted, source_of: source.clone() })
    }

    /// What another value does: of a key of the model by what the model says of the field.
    pub(crate) fn on_change(&self) -> OnChange {
        let field = self.path.trim_start_matches("model.");
        match self.on_change {
            OnChange::OfModel => match Bearing::of(field.split('.').next().unwrap_or(field)) {
                Bearing::Weights => OnChange::Impossible,
                Bearing::Run => OnChange::Course,
            },
            other => other,
        }
    }
}

impl fmt::Display for Kind {
    /// The values that are taken: `from 1 to 64`, `in (0, 1]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Kind::Count(least, most) => write!(f, "from {least} to {most}"),
            Kind::Real(low, high) => {
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
                f.write_str(&format!("in {open}{low:?}, {high:?}{close}").replace(".0", ""))
            }
            Kind::Switch => f.write_str("true or false"),
            Kind::Text => f.write_str("text"),
        }
    }
}
