//! Completions that are given in a file, one JSON object with `task_id` and `completion` a line.

use crate::problems::{Problems, objects, read_text, task_id};
use crate::results::Key;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;

/// One given completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its problem, and its number among those of the problem in the order of the file.
    pub key: Key,
    /// The completion.
    pub completion: String,
    /// All fields of its line, and `sample`.
    pub line: Map<String, Value>,
}

/// Reads given completions, and the blake3 of their file.
///
/// # Errors
/// If the file cannot be read, a line is not a completion of one of the problems, or there is none.
pub fn read(path: &Path, problems: &Problems) -> Result<(Vec<Sample>, String)> {
    let (text, blake3) = read_text(path)?;
    let index: HashMap<&str, usize> =
        problems.list.iter().map(|problem| problem.id.as_str()).zip(0..).collect();
    let mut counts = vec![0; problems.list.len()];
    let mut samples = Vec::new();
    for (place, mut line) in objects(&text).with_context(|| format!("reading {}", path.display()))? {
        let doing = || format!("reading {}, {place}", path.display());
        let id = task_id(line.get("task_id")).with_context(doing)?;
        let Some(&problem) = index.get(id.as_str()) else {
            bail!(
                "{}: {} has no problem `{id}`; its first one is `{}`: give the completions' own problems with --problems",
                doing(),
                problems.name,
                problems.list[0].id
            )
        };
        let completion = match line.get("completion") {
            Some(Value::String(text)) => text.clone(),
            Some(other) => bail!("{}: `completion` is {other}, wanted text", doing()),
            None => bail!("{}: `completion` is missing; wanted is the text that follows the prompt", doing()),
        };
        line.insert("sample".to_owned(), counts[problem].into());
        samples.push(Sample { key: (problem, counts[problem]), completion, line });
        counts[problem] += 1;
    }
    if samples.is_empty() {
        bail!("{} holds no completions; a line is {{\"task_id\": .., \"completion\": ..}}", path.display());
    }
    Ok((samples, blake3))
}
