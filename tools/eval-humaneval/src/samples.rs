//! Completions that are given in a file, in the forms in which programs write them:
//!
//! * JSON lines or a JSON list with `task_id` and `completion`, which follows the problem's prompt: HumanEval's;
//! * the same with `solution`, a whole program: EvalPlus's;
//! * a JSON list of the lists of each problem's whole programs, in the order of the problems: BigCode's.
//!
//! What models write around their code is not judged: see [`code`].

use crate::code::code;
use crate::json::{elements, parse};
use crate::problems::{Problems, read_bytes, task_id};
use crate::results::Key;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// One given completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its problem, and its number among those of the problem in the order of the file.
    pub key: Key,
    /// The solution that is judged.
    pub solution: String,
    /// All fields of its line, `sample`, and `judged` if that is not all of the text.
    pub line: Map<String, Value>,
}

/// The completions of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// Those that could be read, at least one.
    pub samples: Vec<Sample>,
    /// How many of them had something around their code.
    pub cleaned: usize,
    /// What is wrong with the lines that are left out, each with its place.
    pub bad_lines: Vec<String>,
    /// blake3 of the file as it is stored.
    pub blake3: String,
}

/// Reads given completions. Up to `max_bad_lines` lines that hold none are left out.
///
/// # Errors
/// If the file cannot be read, has more bad lines or no completion, or belongs to other problems.
pub fn read(path: &Path, problems: &Problems, max_bad_lines: usize) -> Result<Given> {
    let doing = || format!("reading {}", path.display());
    let (bytes, blake3) = read_bytes(path)?;
    let index: HashMap<&str, usize> =
        problems.list.iter().map(|problem| problem.id.as_str()).zip(0..).collect();
    let mut given = Given { samples: Vec::new(), cleaned: 0, bad_lines: Vec::new(), blake3 };
    let mut counts = vec![0; problems.list.len()];
    for (place, line) in lines(&bytes, problems).with_context(doing)? {
        let (id, text, mut line) = match line.and_then(completion) {
            Ok(completion) => completion,
            Err(error) => {
                given.bad_lines.push(format!("{place}: {error:#}"));
                continue;
            }
        };
        let Some(&number) = index.get(id.as_str()) else {
            bail!(
                "{}, {place}: {} has no problem `{id}`; its first one is `{}`: give the completions' own problems with --problems",
                doing(),
                problems.name,
                problems.list[0].id
            )
        };
        let problem = &problems.list[number];
        let (given_text, judged, solution) = match &text {
            Text::Completion(text) => (text, code(text), problem.solution(code(text))),
            Text::Solution(text) => (text, code(text), format!("{}\n", code(text))),
        };
        line.insert("sample".to_owned(), counts[number].into());
        if judged != given_text {
            given.cleaned += 1;
            line.insert("judged".to_owned(), judged.into());
        }
        given.samples.push(Sample { key: (number, counts[number]), solution, line });
        counts[number] += 1;
    }
    if given.bad_lines.len() > max_bad_lines {
        let count = given.bad_lines.len();
        let more = if count > SHOWN { "; .." } else { "" };
        bail!(
            "{}, {}{more}; a completion that is left out changes pass@k: mend the file, or allow it with --max-bad-lines {count}",
            doing(),
            given.bad_lines[..count.min(SHOWN)].join("; ")
        );
    }
    if given.samples.is_empty() {
        bail!(
            "{} holds no completions; a line is {{\"task_id\": .., \"completion\": ..}} or {{\"task_id\": .., \"solution\": ..}}",
            path.display()
        );
    }
    Ok(given)
}

/// Bad lines that a message names.
const SHOWN: usize = 5;

/// Which part of a program a line gives.
enum Text {
    /// What follows the prompt.
    Completion(String),
    /// All of it.
    Solution(String),
}

/// Problem, text and fields of a line.
fn completion(line: Map<String, Value>) -> Result<(String, Text, Map<String, Value>)> {
    let id = task_id(line.get("task_id"))?;
    let text = |name: &str, value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        other => bail!("`{name}` is {other}, wanted text"),
    };
    let text = match (line.get(COMPLETION), line.get(SOLUTION)) {
        (Some(value), None) => Text::Completion(text(COMPLETION, value)?),
        (None, Some(value)) => Text::Solution(text(SOLUTION, value)?),
        (Some(_), Some(_)) => {
            bail!("it has both `completion` and `solution`; wanted is the one to be judged")
        }
        (None, None) => bail!(
            "`completion` is missing; wanted is the text that follows the prompt, or the whole program as `solution`"
        ),
    };
    Ok((id, text, line))
}

const COMPLETION: &str = "completion";
const SOLUTION: &str = "solution";

/// A line's place for messages, and its fields or why it has none.
type Line = (String, Result<Map<String, Value>>);

/// The lines of a file, or the elements of its list. Empty lines are none.
fn lines(bytes: &[u8], problems: &Problems) -> Result<Vec<Line>> {
    if bytes.trim_ascii_start().starts_with(b"[") {
        let text = str::from_utf8(bytes).context(NO_TEXT)?;
        let list = elements(text).context("a JSON list was wanted; its brackets are not in pairs")?;
        if list.iter().any(|element| element.starts_with('[')) {
            return by_problem(&list, problems);
        }
        return Ok((1..).zip(list).map(|(i, text)| (format!("element {i}"), object(text))).collect());
    }
    let lines = (1..).zip(bytes.split(|byte| *byte == b'\n'));
    let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    let read = |line| str::from_utf8(line).context(NO_TEXT).and_then(object);
    Ok(lines.map(|(i, line)| (format!("line {i}"), read(line))).collect())
}

const NO_TEXT: &str = "it is no text in UTF-8";

fn object(text: &str) -> Result<Map<String, Value>> {
    parse(text).and_then(serde_json::from_value).context("a JSON object was wanted")
}

/// The elements of a list of lists, of which each belongs to a problem.
fn by_problem(list: &[&str], problems: &Problems) -> Result<Vec<Line>> {
    if list.len() != problems.list.len() {
        bail!(
            "it holds a list for each of {} problems, and {} has {}: give the completions' own problems with --problems, or as many of them with --first",
            list.len(),
            problems.name,
            problems.list.len()
        );
    }
    let mut lines = Vec::new();
    for (problem, (i, programs)) in problems.list.iter().zip((1..).zip(list)) {
        let programs = elements(programs).with_context(|| format!("element {i} is no list of programs"))?;
        lines.extend((1..).zip(programs).map(|(j, program)| {
            let fields = |program| {
                let fields = [("task_id", json!(problem.id)), (SOLUTION, program)];
                fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
            };
            let line = parse(program).context("text was wanted").map(fields);
            (format!("element {i}, program {j}"), line)
        }));
    }
    Ok(lines)
}
