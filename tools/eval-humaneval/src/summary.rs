//! The scores of what was evaluated, as JSON, as CSV and as a table.

use crate::estimate::Estimate;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use train::atomic::{RealDisk, write_file};

/// What was evaluated, a checkpoint or a file of completions, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evaluated {
    /// Step of the checkpoint; published models do not say.
    pub step: Option<u64>,
    /// Tokens that training had seen by then.
    pub tokens_seen: Option<u64>,
    /// Name of the file with the verdicts.
    pub results: String,
    /// pass@k for each k.
    pub estimates: Vec<Estimate>,
    /// Whose problems: a benchmark's name.
    pub benchmark: String,
    /// Name of the checkpoint or the model.
    pub checkpoint: Option<String>,
    /// Temperature of drawing; 0 is greedy.
    pub temperature: Option<f64>,
    /// Top-p of drawing; none where nothing is drawn.
    pub top_p: Option<f64>,
    /// Completions of each problem: those of the problem with the fewest.
    pub samples: Option<u64>,
    /// Number of problems.
    pub problems: Option<u64>,
    /// Where the score is from.
    pub basis: Basis,
}

/// Where a score is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// Estimated here from the verdict on each completion.
    #[default]
    Verdicts,
    /// Another program says so.
    Stated,
}

impl Evaluated {
    /// The score by which checkpoints are compared: that of the first k.
    fn score(&self) -> f64 {
        self.estimates.first().map_or(0.0, |estimate| estimate.pass_at_k)
    }
}

/// The place of the highest score, the last one among equals. None if there is nothing.
pub fn best(evaluated: &[Evaluated]) -> Option<usize> {
    (0..evaluated.len()).max_by(|a, b| evaluated[*a].score().total_cmp(&evaluated[*b].score()))
}

/// Writes the scores as JSON for programs to read, and beside it as CSV.
///
/// # Errors
/// If they cannot be written.
pub fn write(
    path: &Path,
    evaluated: &[Evaluated],
    refused: &[Value],
    settings: &Map<String, Value>,
) -> Result<()> {
    let summary = json!({
        "best": best(evaluated).map(|best| &evaluated[best]),
        "evaluated": evaluated,
        "refused": refused,
        "settings": settings,
    });
    write_text(path, &(serde_json::to_string_pretty(&summary)? + "\n"))?;
    write_csv(&path.with_extension("csv"), evaluated)
}

/// Writes the scores as CSV.
///
/// # Errors
/// If they cannot be written.
pub fn write_csv(path: &Path, evaluated: &[Evaluated]) -> Result<()> {
    write_text(path, &csv(evaluated))
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    write_file(&RealDisk, path, |file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

/// A score as a person reads it: ` 12.20 ± 2.57 %`.
pub fn shown(estimate: &Estimate) -> String {
    let error = estimate.standard_error.map_or(String::new(), |error| format!(" ± {:.2}", 100.0 * error));
    format!("{:6.2}{error} %", 100.0 * estimate.pass_at_k)
}

/// The scores as a table, without columns in which nothing stands; `marked` is marked as the best one.
pub fn table(evaluated: &[Evaluated], marked: Option<usize>) -> String {
    let ks: BTreeSet<u64> =
        evaluated.iter().flat_map(|one| &one.estimates).map(|estimate| estimate.k).collect();
    let heads = ["results", "benchmark", "checkpoint", "step", "temperature", "top-p", "samples", "problems"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows[0].extend(ks.iter().map(|k| format!("pass@{k}")).chain([String::new()]));
    for (place, one) in evaluated.iter().enumerate() {
        let mut row = vec![
            one.results.clone(),
            one.benchmark.clone(),
            text(&one.checkpoint),
            text(&one.step),
            text(&one.temperature),
            text(&one.top_p),
            text(&one.samples),
            text(&one.problems),
        ];
        row.extend(ks.iter().map(|k| {
            let found = one.estimates.iter().find(|estimate| estimate.k == *k);
            found.map_or(String::new(), shown)
        }));
        row.push(match one.basis {
            _ if marked == Some(place) => "best".to_owned(),
            Basis::Verdicts => String::new(),
            Basis::Stated => "stated".to_owned(),
        });
        rows.push(row);
    }
    let columns = (0..rows[0].len()).filter(|column| rows[1..].iter().any(|row| !row[*column].is_empty()));
    let widths: Vec<(usize, usize)> = columns
        .map(|column| (column, rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = widths.iter().map(|&(column, width)| match column {
            // Names.
            0..3 => format!("{:<width$}", row[column]),
            _ => format!("{:>width$}", row[column]),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// The scores as CSV of RFC 4180: a line for each k.
fn csv(evaluated: &[Evaluated]) -> String {
    let heads = "results,benchmark,checkpoint,step,tokens_seen,temperature,top_p,samples,problems,k,pass_at_k,standard_error,basis";
    let mut out = format!("{heads}\r\n");
    for one in evaluated {
        for estimate in &one.estimates {
            let basis = match one.basis {
                Basis::Verdicts => "verdicts",
                Basis::Stated => "stated",
            };
            let fields = [
                one.results.clone(),
                one.benchmark.clone(),
                text(&one.checkpoint),
                text(&one.step),
                text(&one.tokens_seen),
                text(&one.temperature),
                text(&one.top_p),
                text(&one.samples),
                text(&one.problems),
                estimate.k.to_string(),
                estimate.pass_at_k.to_string(),
                text(&estimate.standard_error),
                basis.to_owned(),
            ];
            out += &fields.map(|field| field_of(&field)).join(",");
            out += "\r\n";
        }
    }
    out
}

/// A field of CSV, in quotes where it needs them.
fn field_of(text: &str) -> String {
    if text.contains(['"', ',', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

fn text(value: &Option<impl ToString>) -> String {
    value.as_ref().map_or(String::new(), ToString::to_string)
}
