//! Results that are there, in the forms in which programs write them:
//!
//! * JSON lines with `task_id` and `passed`: this program's, whose first line has the settings, and HumanEval's;
//! * `{"eval": {"HumanEval/0": [{"base_status": "pass", "plus_status": "fail"}]}}`: EvalPlus's;
//! * `{"humaneval": {"pass@1": 0.3}, "config": {..}}`: those of BigCode's harness, which states scores alone;
//! * `{"results": {"humaneval": {"pass@1,create_test": 0.3}}}`: lm-eval's, which does so too;
//! * `{"evaluated": [..]}`: this program's summary.
//!
//! From verdicts pass@k is estimated here, by the same [`estimate`] for all.

use crate::estimate::{Estimate, Tally, estimate, usual};
use crate::json::parse;
use crate::problems::{objects, read_bytes, task_id};
use crate::results::{PASSED, SETTINGS};
use crate::summary::{Basis, Evaluated};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

type Object = Map<String, Value>;

/// What a message says that a file should be.
const WANTED: &str = "wanted are JSON lines with `task_id` and `passed`, EvalPlus's `eval`, scores `pass@1` by task as BigCode's harness and lm-eval write them, or a summary of this program";

/// What a file says about one evaluation or several. `k` are those of pass@k; if it is empty, the usual ones that there are
/// completions for, or all that the file states.
///
/// # Errors
/// If the file cannot be read, is of no known form, ends before its evaluation does, or does not suffice for a k.
pub fn read(path: &Path, k: &[u64]) -> Result<Vec<Evaluated>> {
    let doing = || format!("reading the results {}", path.display());
    let (bytes, _) = read_bytes(path)?;
    let text = String::from_utf8(bytes).context("it is no text in UTF-8").with_context(doing)?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    of_text(&text, &name, k).with_context(doing)
}

fn of_text(text: &str, name: &str, k: &[u64]) -> Result<Vec<Evaluated>> {
    let whole = parse(text).ok().and_then(|value| serde_json::from_value::<Object>(value).ok());
    let mut found = match &whole {
        Some(whole) if whole.contains_key("eval") => evalplus(whole, k)?,
        Some(whole) if whole.contains_key("evaluated") => own_summary(whole, k)?,
        Some(whole) if !whole.contains_key("task_id") => stated(whole, k)?,
        _ => vec![lines(text, k)?],
    };
    for one in found.iter_mut().filter(|one| one.results.is_empty()) {
        one.results = name.to_owned();
    }
    Ok(found)
}

/// Completions and passes of each problem.
type Tallies = BTreeMap<String, Tally>;

fn count(tallies: &mut Tallies, id: String, passed: bool) {
    let tally = tallies.entry(id).or_default();
    tally.samples += 1;
    tally.passed += u64::from(passed);
}

/// What verdicts say about the problems that have some.
fn judged(tallies: &Tallies, k: &[u64]) -> Result<Evaluated> {
    let list: Vec<Tally> = tallies.values().copied().collect();
    let fewest = list.iter().map(|tally| tally.samples).min().unwrap_or(0);
    let k = if k.is_empty() { usual(fewest) } else { k.to_vec() };
    let estimates = k.into_iter().map(|k| {
        estimate(&list, k).with_context(|| {
            format!(
                "pass@{k} needs at least {k} completions of every problem, and one has {fewest}: lower --k"
            )
        })
    });
    let first = tallies.keys().next().map_or("", String::as_str);
    Ok(Evaluated {
        estimates: estimates.collect::<Result<_>>()?,
        benchmark: first.rsplit_once('/').map_or("", |(name, _)| name).to_owned(),
        samples: Some(fewest),
        problems: Some(list.len() as u64),
        ..Evaluated::default()
    })
}

/// HumanEval's lines and ours.
fn lines(text: &str, k: &[u64]) -> Result<Evaluated> {
    let mut tallies = Tallies::new();
    let mut settings = None;
    for (place, mut line) in objects(text).context(WANTED)? {
        let id = task_id(line.get("task_id")).with_context(|| format!("{place}: {WANTED}"))?;
        let Some(Value::Bool(passed)) = line.get(PASSED) else {
            bail!("{place}: `passed` is missing or not true or false; {WANTED}")
        };
        count(&mut tallies, id, *passed);
        if let Some(Value::Object(found)) = line.shift_remove(SETTINGS) {
            settings = Some(found);
        }
    }
    ensure!(!tallies.is_empty(), "it holds no results; {WANTED}");
    let Some(settings) = settings else { return judged(&tallies, k) };
    let verdicts: u64 = tallies.values().map(|tally| tally.samples).sum();
    let problems = settings.get("problem_count").and_then(Value::as_u64).unwrap_or(0);
    // A file of given completions has as many of a problem as it has.
    let wanted =
        settings.get("samples").and_then(Value::as_u64).map_or(verdicts, |samples| samples * problems);
    ensure!(
        tallies.len() as u64 == problems && verdicts == wanted,
        "it has {verdicts} verdicts on {} of {problems} problems: the command that wrote it goes on with it",
        tallies.len()
    );
    let name = |key: &str| settings.get(key).and_then(Value::as_str).map(str::to_owned);
    let checkpoint = name("checkpoint");
    Ok(Evaluated {
        step: checkpoint.as_ref().and_then(|name| name.strip_prefix("step_")?.parse().ok()),
        benchmark: name("problems").unwrap_or_default(),
        checkpoint,
        ..drawn(judged(&tallies, k)?, &settings)
    })
}

/// Adds how completions were drawn, as the object says that holds the settings.
fn drawn(evaluated: Evaluated, settings: &Object) -> Evaluated {
    let number = |key: &str| settings.get(key).and_then(Value::as_f64);
    let greedy = settings.get("do_sample") == Some(&Value::Bool(false));
    let temperature = if greedy { Some(0.0) } else { number("temperature") };
    Evaluated {
        temperature,
        top_p: number("top_p").filter(|_| temperature.is_none_or(|temperature| temperature > 0.0)),
        ..evaluated
    }
}

/// EvalPlus's verdicts: by the benchmark's own tests, and by those together with its additional ones.
fn evalplus(whole: &Object, k: &[u64]) -> Result<Vec<Evaluated>> {
    let form = "wanted is {\"eval\": {task_id: [{\"base_status\": \"pass\", \"plus_status\": \"pass\"}]}}";
    let Value::Object(problems) = &whole["eval"] else { bail!("`eval` is no object; {form}") };
    let (mut base, mut plus) = (Tallies::new(), Tallies::new());
    for (id, verdicts) in problems {
        let Value::Array(verdicts) = verdicts else { bail!("{id} has no list of verdicts; {form}") };
        for verdict in verdicts {
            let status = |name: &str| verdict.get(name).and_then(Value::as_str);
            let passed = status("base_status").with_context(|| format!("{id}: {form}"))? == "pass";
            count(&mut base, id.clone(), passed);
            // With --base-only there is none.
            if let Some(status) = status("plus_status") {
                count(&mut plus, id.clone(), passed && status == "pass");
            }
        }
    }
    ensure!(!base.is_empty(), "it holds no verdicts; {form}");
    let sum = |tallies: &Tallies| tallies.values().map(|tally| tally.samples).sum::<u64>();
    ensure!(
        plus.is_empty() || sum(&plus) == sum(&base),
        "`plus_status` is there for {} of {} completions; {form}",
        sum(&plus),
        sum(&base)
    );
    let mut found = vec![judged(&base, k)?];
    if !plus.is_empty() {
        let evaluated = judged(&plus, k)?;
        found.push(Evaluated { benchmark: format!("{}+", evaluated.benchmark), ..evaluated });
    }
    Ok(found)
}

/// Scores by task, of BigCode's harness and of lm-eval.
fn stated(whole: &Object, k: &[u64]) -> Result<Vec<Evaluated>> {
    let object = |name: &str| whole.get(name).and_then(Value::as_object);
    let nothing = Object::new();
    let config = object("config").unwrap_or(&nothing);
    let mut found = Vec::new();
    for (task, scores) in object("results").unwrap_or(whole) {
        let mut estimates = Vec::new();
        let Value::Object(scores) = scores else { continue };
        for (name, score) in scores {
            let (Some(k), Some(pass_at_k)) = (stated_k(name), score.as_f64()) else { continue };
            ensure!(
                (0.0..=1.0).contains(&pass_at_k),
                "{task}: {name} is {pass_at_k}, wanted a number from 0 to 1"
            );
            // `pass@1,create_test` has its error in `pass@1_stderr,create_test`.
            let error = name.split_once(',').map(|(score, filter)| format!("{score}_stderr,{filter}"));
            let standard_error = error.and_then(|name| scores.get(&name)?.as_f64());
            estimates.push(Estimate { k, pass_at_k, standard_error });
        }
        if estimates.is_empty() {
            continue;
        }
        let count = |key: &str| config.get(key).and_then(Value::as_u64);
        let problems = object("n-samples").and_then(|tasks| tasks.get(task)?.get("effective")?.as_u64());
        let model = ["model_name", "model"]
            .into_iter()
            .find_map(|key| whole.get(key).or_else(|| config.get(key)).and_then(Value::as_str));
        let evaluated = Evaluated {
            estimates,
            benchmark: task.clone(),
            checkpoint: model.map(str::to_owned),
            samples: count("n_samples"),
            problems: problems.or_else(|| count("limit")),
            basis: Basis::Stated,
            ..Evaluated::default()
        };
        found.push(of_these(drawn(evaluated, config), k).with_context(|| task.clone())?);
    }
    ensure!(!found.is_empty(), "{WANTED}");
    Ok(found)
}

/// The k in the name of a score: `pass@1`, and lm-eval's `pass@1,create_test` and `pass_at_1,none`.
fn stated_k(name: &str) -> Option<u64> {
    let score = name.split_once(',').map_or(name, |(score, _)| score);
    score.strip_prefix("pass@").or_else(|| score.strip_prefix("pass_at_"))?.parse().ok()
}

/// A summary that this program wrote.
fn own_summary(whole: &Object, k: &[u64]) -> Result<Vec<Evaluated>> {
    let found: Vec<Evaluated> = serde_json::from_value(whole["evaluated"].clone())
        .with_context(|| format!("`evaluated`: {WANTED}"))?;
    ensure!(!found.is_empty(), "nothing was evaluated; {WANTED}");
    found.into_iter().map(|one| of_these(Evaluated { basis: Basis::Stated, ..one }, k)).collect()
}

/// The same with the scores for these k alone; with all if there are none.
fn of_these(mut evaluated: Evaluated, k: &[u64]) -> Result<Evaluated> {
    if let Some(k) = k.iter().find(|k| evaluated.estimates.iter().all(|estimate| estimate.k != **k)) {
        bail!("pass@{k} is not stated: lower --k, or leave it out for all that are");
    }
    evaluated.estimates.retain(|estimate| k.is_empty() || k.contains(&estimate.k));
    evaluated.estimates.sort_by_key(|estimate| estimate.k);
    Ok(evaluated)
}
