//! The table of all keys: in the docs, and of `train --keys`.

use super::{KEYS, Key, OnChange, Open, presets};
use model::Preset;
use std::collections::BTreeMap;

/// All keys as a table in Markdown: the values that a key takes, what the presets set, what another value does to a run that
/// goes on, and the meaning.
pub fn keys_as_markdown() -> String {
    let presets = Preset::ALL.map(|preset| (preset, presets::run(preset).settings()));
    let head = ["key", "values", "presets", "changed later", "meaning"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(KEYS.iter().map(|key| {
        let values =
            if key.open == Open::Yes { format!("{} or auto", key.kind) } else { key.kind.to_string() };
        let meaning = key.doc.replace('|', "\\|");
        [
            format!("`{}`", key.path),
            values,
            set_by(&presets, key),
            key.on_change().words().to_owned(),
            meaning,
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3].map(width);
    let line = |row: &[String; 5]| {
        let [first, values, presets, change, meaning] = row;
        let [a, b, c, d] = widths;
        format!("| {first:a$} | {values:b$} | {presets:c$} | {change:d$} | {meaning} |\n")
    };
    let rule = format!("|{}---|\n", widths.map(|width| "-".repeat(width + 2) + "|").concat());
    rows.iter()
        .enumerate()
        .map(|(number, row)| if number == 0 { line(row) + &rule } else { line(row) })
        .collect()
}

/// The value of a key in the presets: one if it is the same in all of them.
fn set_by(presets: &[(Preset, BTreeMap<String, String>)], key: &Key) -> String {
    let value = |settings: &BTreeMap<String, String>| {
        settings.get(key.path).map_or("auto", |value| value.trim_matches('"')).to_owned()
    };
    let values: Vec<String> = presets.iter().map(|(_, settings)| value(settings)).collect();
    if values.iter().all(|value| *value == values[0]) {
        return values[0].clone();
    }
    let each = presets.iter().zip(&values).map(|((preset, _), value)| format!("{preset} {value}"));
    each.collect::<Vec<_>>().join(", ")
}

impl OnChange {
    /// What a run that goes on does with another value.
    fn words(self) -> &'static str {
        match self {
            OnChange::Harmless => "taken",
            OnChange::HarmlessAtSameRates => "taken at the same rates so far, or `--accept-changes`",
            OnChange::HarmlessWithSameRows => "taken with as many rows a step, or `--accept-changes`",
            OnChange::HarmlessIfRefused => "taken where it was refuse, or `--accept-changes`",
            OnChange::Course => "`--accept-changes`",
            OnChange::Impossible => "wants a new run",
            OnChange::OfModel => unreachable!("what the model says was looked up"),
        }
    }
}
