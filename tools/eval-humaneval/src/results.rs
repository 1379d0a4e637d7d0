//! The results of an evaluation: a file of JSON lines, one a completion, written as verdicts come and put in order at
//! the end. The first line also holds every setting, and only an evaluation with the same settings goes on with it.

use crate::estimate::Tally;
use crate::judge::{Place, Verdict};
use crate::problems::{Problems, task_id};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use train::atomic::{RealDisk, write_file};

/// Names of the fields that are added to a line.
pub(crate) const SETTINGS: &str = "settings";
pub(crate) const PASSED: &str = "passed";
const REASON: &str = "reason";
const TESTS: &str = "tests";

/// Which completion: the index of its problem, and its number among those of the problem.
pub type Key = (usize, usize);

/// An open file of results.
#[derive(Debug)]
pub struct Results {
    path: PathBuf,
    file: File,
    settings: Value,
    lines: BTreeMap<Key, Map<String, Value>>,
}

impl Results {
    /// Creates the file, or goes on with one of the same settings; a last line that was cut off is dropped.
    ///
    /// # Errors
    /// If the file is of other settings or of something else, is in use, or cannot be written. It is then as it was.
    pub fn open(path: &Path, settings: Map<String, Value>, problems: &Problems) -> Result<Results> {
        let doing = || format!("opening the results {}", path.display());
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| anyhow!("{}: {error}; give another --out", doing()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("{} is in use by another evaluation; give this one its own --out", path.display())
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(doing),
        }
        let text = fs::read_to_string(path).with_context(doing)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let settings = Value::Object(settings);
        let mut results =
            Results { path: path.to_owned(), file: file.try_clone()?, settings, lines: BTreeMap::new() };
        let index: HashMap<&str, usize> =
            problems.list.iter().map(|problem| problem.id.as_str()).zip(0..).collect();
        for (number, line) in (1..).zip(text[..whole].lines()) {
            results.take(line, &index).map_err(|error| {
                let path = path.display();
                anyhow!("reading {path}, line {number}: {error:#}; move the file away or give another --out")
            })?;
        }
        if whole < text.len() {
            file.set_len(whole as u64).with_context(doing)?;
            file.flush().with_context(doing)?;
        }
        Ok(results)
    }

    /// Takes over a line of an earlier evaluation.
    fn take(&mut self, line: &str, problems: &HashMap<&str, usize>) -> Result<()> {
        let mut line: Map<String, Value> = serde_json::from_str(line).context("it is no JSON object")?;
        let found = line.shift_remove(SETTINGS);
        if self.lines.is_empty() {
            let Some(found) = found else { bail!("it is not the first line of an evaluation's results") };
            let (Value::Object(there), Value::Object(now)) = (&found, &self.settings) else {
                bail!("its settings are no JSON object")
            };
            let other: Vec<String> = now
                .keys()
                .chain(there.keys().filter(|name| !now.contains_key(*name)))
                .filter(|name| there.get(*name) != now.get(*name))
                .map(|name| {
                    format!("{name} is {} there and {} now", shown(there.get(name)), shown(now.get(name)))
                })
                .collect();
            if !other.is_empty() {
                bail!("its settings are other ones: {}", other.join(", "));
            }
        }
        let id = task_id(line.get("task_id"))?;
        let sample = line.get("sample").and_then(Value::as_u64);
        let (Some(&problem), Some(sample), Some(Value::Bool(_))) =
            (problems.get(id.as_str()), sample, line.get(PASSED))
        else {
            bail!("it is not a result of these problems")
        };
        self.lines.insert((problem, sample as usize), line);
        Ok(())
    }

    /// The completions that have their verdict.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.lines.keys().copied()
    }

    /// The number of them.
    pub fn judged(&self) -> usize {
        self.lines.len()
    }

    /// Those that passed.
    pub fn passed(&self) -> usize {
        self.lines.values().filter(|line| line[PASSED] == true).count()
    }

    /// Writes a line: the fields of a completion, its verdict, and where its tests ran.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(
        &mut self,
        key: Key,
        mut line: Map<String, Value>,
        verdict: Verdict,
        place: Place,
    ) -> Result<()> {
        let (passed, reason) = match verdict {
            Verdict::Passed => (true, "passed".to_owned()),
            Verdict::Failed(reason) => (false, reason),
        };
        line.insert(PASSED.to_owned(), passed.into());
        line.insert(REASON.to_owned(), reason.into());
        line.insert(TESTS.to_owned(), place.name().into());
        let first = self.lines.is_empty().then_some(&self.settings);
        let text = written(&line, first);
        self.lines.insert(key, line);
        // In one piece, so that what is cut off by a crash is one line.
        self.file.write_all(text.as_bytes()).with_context(|| format!("writing {}", self.path.display()))
    }

    /// Puts the lines in the order of the problems.
    ///
    /// # Errors
    /// If the file cannot be written; the lines are then all there in the order of their verdicts.
    pub fn finish(&mut self) -> Result<()> {
        let lines = self.lines.values().enumerate();
        write_file(&RealDisk, &self.path, |out| {
            for (i, line) in lines {
                out.write_all(written(line, (i == 0).then_some(&self.settings)).as_bytes())?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// The completions and passes of each of the first `problems` problems.
    pub fn tallies(&self, problems: usize) -> Vec<Tally> {
        let mut tallies = vec![Tally::default(); problems];
        for ((problem, _), line) in &self.lines {
            tallies[*problem].samples += 1;
            tallies[*problem].passed += u64::from(line[PASSED] == true);
        }
        tallies
    }

    /// The completions whose tests ran in one interpreter with them.
    pub fn together(&self) -> impl Iterator<Item = Key> {
        let together = self.lines.iter().filter(|(_, line)| line[TESTS] == Place::Together.name());
        together.map(|(key, _)| *key)
    }

    /// Problem and reason of every completion that failed.
    pub fn failed(&self) -> impl Iterator<Item = (Key, &str)> {
        let failed = self.lines.iter().filter(|(_, line)| line[PASSED] != true);
        failed.map(|(key, line)| (*key, line[REASON].as_str().unwrap_or_default()))
    }

    /// The kinds of failure, the most frequent one first: what stands before the particulars of each reason.
    pub fn failures(&self) -> Vec<(usize, String)> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, reason) in self.failed() {
            let kind =
                reason.split(": ").next().unwrap_or_default().split(" at line ").next().unwrap_or_default();
            *counts.entry(kind).or_default() += 1;
        }
        let mut kinds: Vec<_> = counts.into_iter().map(|(kind, count)| (count, kind.to_owned())).collect();
        kinds.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.cmp(y)));
        kinds
    }
}

fn written(line: &Map<String, Value>, settings: Option<&Value>) -> String {
    let mut line = line.clone();
    if let Some(settings) = settings {
        line.insert(SETTINGS.to_owned(), settings.clone());
    }
    Value::Object(line).to_string() + "\n"
}

fn shown(value: Option<&Value>) -> String {
    value.map_or("not set".to_owned(), Value::to_string)
}
