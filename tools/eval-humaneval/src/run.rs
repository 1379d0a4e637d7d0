//! From the command line to the score.

use crate::cli::Arguments;
use crate::estimate::{Estimate, estimate, usual};
use crate::generate::{HandOver, Prompts};
use crate::harnesses;
use crate::judge::{Judge, judge_all};
use crate::problem::Problem;
use crate::problems::{Format, Problems, StopStyle, cut};
use crate::python::{FLAGS, HASH_SEED, ONE_THREAD, Python};
use crate::results::{Key, Results};
use crate::samples;
use crate::sandbox::{self, Limits};
use crate::summary::{self, Evaluated};
use anyhow::{Context, Result, bail};
use decode::{Decoder, Options, Sampling, SamplingFlags, Speculation, find_checkpoint};
use indicatif::{ProgressBar, ProgressStyle};
use program::{esay, exit_code, say, with_large_pages};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use train::checkpoint::{State, files, steps, weight_files};
use train::run_folder::CHECKPOINTS;

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = sandbox::become_child(&arguments) {
        return code;
    }
    with_large_pages();
    exit_code(run(&program::arguments()))
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !arguments.summarize.is_empty() {
        return tabulate(&arguments.summarize, &arguments.k, arguments.out.as_deref());
    }
    let evaluation = Evaluation::new(arguments)?;
    if let Some(path) = &arguments.samples_file {
        evaluation.given(path)
    } else if let Some(path) = &arguments.checkpoint {
        evaluation.checkpoint(&find_checkpoint(path)?)
    } else if let Some(path) = &arguments.run {
        evaluation.run(path)
    } else {
        evaluation.canonical()
    }
}

/// Prints the scores in files of results.
fn tabulate(paths: &[PathBuf], k: &[u64], out: Option<&Path>) -> Result<ExitCode> {
    if let Some(out) = out.filter(|out| out.extension().is_none_or(|extension| extension != "csv")) {
        bail!(
            "--out is {}, but with --summarize it is the table: give a name that ends in .csv",
            out.display()
        );
    }
    let mut evaluated = Vec::new();
    for path in paths {
        evaluated.extend(harnesses::read(path, k)?);
    }
    say!("{}", summary::table(&evaluated, None).trim_end());
    if let Some(out) = out {
        summary::write_csv(out, &evaluated)?;
        say!("summary   {}", out.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// What every way of evaluating has in common.
struct Evaluation<'a> {
    arguments: &'a Arguments,
    /// The ways of drawing, at least one.
    sweep: Vec<SamplingFlags>,
    problems: Problems,
    stop_style: StopStyle,
    stop: &'static [&'static str],
    python: Python,
    judge: Judge,
    workers: usize,
}

/// A completion that is being judged.
type Label = (Key, Map<String, Value>);

impl<'a> Evaluation<'a> {
    fn new(arguments: &'a Arguments) -> Result<Evaluation<'a>> {
        let mut problems = match &arguments.problems {
            Some(path) => Problems::file(path)?,
            None => Problems::human_eval()?,
        };
        if let Some(first) = arguments.first {
            problems.list.truncate(usize::try_from(first)?);
        }
        let stop_style = arguments.generation.stop_style.unwrap_or(StopStyle::usual(problems.format));
        let Some(stop) = stop_style.strings(problems.format) else {
            bail!(
                "the stop strings `openai` are for HumanEval, and {} is like MBPP: give --stop-style bigcode or evalplus",
                problems.name
            )
        };
        let sweep = arguments.generation.sweep();
        if arguments.checkpoint.is_some() || arguments.run.is_some() {
            check_generation(&sweep, arguments.generation.samples, &arguments.k)?;
        }
        let judging = &arguments.judging;
        let python = Python::find(judging.python.as_deref())?;
        let judge = Judge::new(python.clone(), judging.sandbox, judging.limits())?;
        esay!("sandbox   {}; Python {}", judge.level(), python.version);
        esay!("problems  {} of {}", problems.list.len(), problems.name);
        let workers = match judging.workers {
            Some(workers) => usize::try_from(workers)?,
            None => thread::available_parallelism().map_or(1, usize::from),
        };
        Ok(Evaluation { arguments, sweep, problems, stop_style, stop, python, judge, workers })
    }

    /// Judges the completions of a file.
    fn given(&self, path: &Path) -> Result<ExitCode> {
        let given = samples::read(path, &self.problems, self.arguments.max_bad_lines)?;
        let mut counts = vec![0; self.problems.list.len()];
        for sample in &given.samples {
            counts[sample.key.0] += 1;
        }
        let k = self.k(&counts, &format!("{} has", path.display()))?;
        let mut settings = self.settings("file");
        settings.extend(object(json!({
            "samples_file": name_of(path),
            "samples_blake3": given.blake3,
            "bad_lines": given.bad_lines.len(),
            "cleaned": given.cleaned,
        })));
        let out = self.arguments.out.clone().unwrap_or_else(|| path.with_extension("results.jsonl"));
        let results = Results::open(&out, settings.clone(), &self.problems)?;
        let results = self.judge(results, given.samples.len(), |done, submit| {
            for sample in given.samples.iter().filter(|sample| !done.contains(&sample.key)) {
                if submit(sample.key, sample.solution.clone(), sample.line.clone()).is_break() {
                    break;
                }
            }
            Ok(())
        })?;
        for bad_line in &given.bad_lines {
            say!("left out  {bad_line}");
        }
        if given.cleaned > 0 {
            say!("cleaned   {} completions of Markdown and tokens that end a text", given.cleaned);
        }
        let evaluated = Evaluated { results: name_of(&out), ..self.report(&results, &k) };
        summary::write(&out.with_extension(SUMMARY_EXTENSION), &[evaluated], &[], &settings)?;
        say!("results   {}", out.display());
        Ok(ExitCode::SUCCESS)
    }

    /// Judges the problems' own solutions.
    fn canonical(&self) -> Result<ExitCode> {
        let solutions: Vec<&str> = self.problems.list.iter().map(canonical).collect::<Result<_>>()?;
        let k = self.k(&vec![1; self.problems.list.len()], "--canonical has")?;
        let mut settings = self.settings("canonical");
        settings.extend(self.stop_settings());
        // Kept only if the command line names a file for them.
        let folder = tempfile::tempdir().context("creating a temporary folder; set TMPDIR to another one")?;
        let out = self.arguments.out.clone().unwrap_or_else(|| folder.path().join("canonical.jsonl"));
        let results = Results::open(&out, settings, &self.problems)?;
        let results = self.judge(results, self.problems.list.len(), |done, submit| {
            for ((problem, solution), i) in self.problems.list.iter().zip(&solutions).zip(0..) {
                let completion = cut(solution, self.stop);
                let line =
                    [("task_id", json!(problem.id)), ("sample", json!(0)), ("completion", json!(completion))];
                let line = line.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
                if !done.contains(&(i, 0)) && submit((i, 0), problem.solution(completion), line).is_break() {
                    break;
                }
            }
            Ok(())
        })?;
        self.report(&results, &k);
        for ((problem, _), reason) in results.failed() {
            say!("{}: {reason}", self.problems.list[problem].id);
        }
        let (passed, all) = (results.passed(), self.problems.list.len());
        say!("{passed} of {all} solutions pass");
        Ok(if passed == all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn decoder(&self, checkpoint: &Path) -> Result<Decoder> {
        Decoder::open(checkpoint, &self.arguments.generation.device)
    }

    /// Evaluates one checkpoint.
    fn checkpoint(&self, path: &Path) -> Result<ExitCode> {
        let out = match &self.arguments.out {
            Some(out) => out.clone(),
            None => PathBuf::from(format!("{}_{}.jsonl", self.benchmark(), name_of(path))),
        };
        let step = state(path).map(|state| state.progress.step);
        let evaluated = self.swept(&mut self.decoder(path)?, path, step, &out)?;
        let summary = out.with_extension(SUMMARY_EXTENSION);
        summary::write(&summary, &evaluated, &[], &self.common_settings())?;
        if let [one] = &evaluated[..] {
            say!("results   {}", out.with_file_name(&one.results).display());
        } else {
            say!("{}", summary::table(&evaluated, summary::best(&evaluated)).trim_end());
            say!("summary   {}", summary.display());
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Evaluates the checkpoints of a run, oldest first.
    fn run(&self, run: &Path) -> Result<ExitCode> {
        let folder = run.join(CHECKPOINTS);
        let found = if folder.is_dir() { steps(&folder)? } else { Vec::new() };
        if found.is_empty() {
            bail!("{} has no checkpoints: give the folder that `train --out` named", run.display());
        }
        let out =
            self.arguments.out.clone().unwrap_or_else(|| run.join(format!("eval_{}", self.benchmark())));
        fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
        let settings = self.common_settings();
        let (mut evaluated, mut refused) = (Vec::new(), Vec::new());
        let count = found.len();
        for (step, path) in found {
            say!("checkpoint {}", path.display());
            match self.decoder(&path) {
                Ok(mut decoder) => {
                    let results = out.join(format!("{}.jsonl", name_of(&path)));
                    evaluated.extend(self.swept(&mut decoder, &path, Some(step), &results)?);
                }
                // A damaged one does not keep the others from being evaluated.
                Err(error) => {
                    esay!("left out: {error:#}");
                    refused.push(json!({ "step": step, "reason": format!("{error:#}") }));
                }
            }
            summary::write(&out.join(SUMMARY), &evaluated, &refused, &settings)?;
        }
        if evaluated.is_empty() {
            bail!("none of the checkpoints of {} could be evaluated", run.display())
        }
        say!("{}", summary::table(&evaluated, summary::best(&evaluated)).trim_end());
        say!("summary   {}", out.join(SUMMARY).display());
        if refused.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        bail!("{} of {count} checkpoints could not be evaluated", refused.len())
    }

    /// Evaluates a checkpoint with each way of drawing, whose results lie beside `out`, or in it if there is one way.
    fn swept(
        &self,
        decoder: &mut Decoder,
        path: &Path,
        step: Option<u64>,
        out: &Path,
    ) -> Result<Vec<Evaluated>> {
        let weights = weights_blake3(path)?;
        let tokens_seen = state(path).map(|state| state.progress.tokens_seen);
        let mut evaluated = Vec::new();
        for drawing in &self.sweep {
            let out = match &self.sweep[..] {
                [_] => out.to_owned(),
                _ => beside(out, drawing),
            };
            if self.sweep.len() > 1 {
                say!("drawing   {}", out.display());
            }
            let of_checkpoint = [("checkpoint", name_of(path)), ("weights_blake3", weights.clone())];
            evaluated.push(Evaluated {
                step,
                tokens_seen,
                results: name_of(&out),
                checkpoint: Some(name_of(path)),
                temperature: Some(drawing.temperature),
                top_p: (drawing.temperature > 0.0).then_some(drawing.top_p),
                ..self.generated(decoder, drawing, of_checkpoint, &out)?
            });
        }
        Ok(evaluated)
    }

    /// Generates and judges what is missing of results.
    fn generated(
        &self,
        decoder: &mut Decoder,
        drawing: &SamplingFlags,
        of_checkpoint: [(&str, String); 2],
        out: &Path,
    ) -> Result<Evaluated> {
        let generation = &self.arguments.generation;
        let samples = usize::try_from(generation.samples)?;
        let wanted = generation.max_new_tokens.map(usize::try_from).transpose()?;
        let prompts = Prompts::new(decoder, &self.problems, wanted)?;
        let options = Options {
            sampling: drawing.sampling(),
            seed: drawing.draw.seed,
            samples,
            max_new_tokens: prompts.max_new_tokens,
            stop: self.stop.iter().map(|string| (*string).to_owned()).collect(),
            speculation: speculation(drawing),
            rows: usize::try_from(generation.rows)?,
        };
        let mut settings = self.settings_of_checkpoints(drawing);
        settings.insert("max_new_tokens".to_owned(), options.max_new_tokens.into());
        settings.extend(of_checkpoint.map(|(name, value)| (name.to_owned(), value.into())));
        let results = Results::open(out, settings, &self.problems)?;
        let total = samples * self.problems.list.len();
        let mut statistics = None;
        let results = self.judge(results, total, |done, submit| {
            let missing = |key| !done.contains(&key);
            statistics = Some(prompts.complete(decoder, &self.problems, &options, missing, submit)?);
            Ok(())
        })?;
        if let Some(statistics) = statistics.filter(|statistics| statistics.new_tokens > 0) {
            esay!(
                "generated {} tokens, {:.0} tokens/s{}",
                statistics.new_tokens,
                statistics.tokens_per_second(),
                statistics
                    .acceptance()
                    .map_or(String::new(), |a| format!(", {:.0} % of drafts accepted", 100.0 * a))
            );
        }
        if results.judged() < total {
            bail!(
                "{} of {total} completions have a verdict; the same command goes on with {}",
                results.judged(),
                out.display()
            );
        }
        let k = self.k(&vec![generation.samples; self.problems.list.len()], "--samples gives")?;
        Ok(self.report(&results, &k))
    }

    /// Judges what `produce` submits and writes the verdicts into the results. `produce` gets the keys that are done already.
    fn judge<'s>(
        &'s self,
        mut results: Results,
        total: usize,
        produce: impl FnOnce(&HashSet<Key>, HandOver<'_>) -> Result<()>,
    ) -> Result<Results> {
        let done: HashSet<Key> = results.keys().collect();
        let bar = ProgressBar::new(total as u64).with_position(done.len() as u64);
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} judged, {msg} passed, ETA {eta}");
        bar.set_style(style.expect("a correct template"));
        if !done.is_empty() {
            esay!("going on   {} of {total} completions have their verdict", done.len());
        }
        let record = |(key, line): Label, verdict, place| {
            results.add(key, line, verdict, place)?;
            bar.set_message(results.passed().to_string());
            bar.inc(1);
            Ok(())
        };
        let produce = |submit: &mut dyn FnMut(&'s Problem, String, Label) -> ControlFlow<()>| {
            produce(&done, &mut |key, solution, line| {
                submit(&self.problems.list[key.0], solution, (key, line))
            })
        };
        judge_all(&self.judge, self.workers, produce, record)?;
        bar.finish_and_clear();
        results.finish()?;
        Ok(results)
    }

    /// Prints the score.
    fn report(&self, results: &Results, k: &[u64]) -> Evaluated {
        say!("judged    {} completions, {} passed", results.judged(), results.passed());
        let together: Vec<Key> = results.together().collect();
        if !together.is_empty() {
            let mut ids: Vec<&str> =
                together.iter().map(|(problem, _)| self.problems.list[*problem].id.as_str()).collect();
            ids.dedup();
            say!(
                "together  {} of them in one interpreter with their tests, which a program written for it can pass: {}",
                together.len(),
                ids.join(", ")
            );
        }
        let failures = results.failures();
        if !failures.is_empty() {
            let kinds: Vec<String> = failures.iter().take(5).map(|(n, kind)| format!("{n} {kind}")).collect();
            let more = if failures.len() > 5 { ", .." } else { "" };
            say!("failures  {}{more}", kinds.join(", "));
        }
        let tallies = results.tallies(self.problems.list.len());
        let estimates: Vec<Estimate> = k.iter().filter_map(|k| estimate(&tallies, *k)).collect();
        for one in &estimates {
            say!("pass@{:<4} {}", one.k, summary::shown(one));
        }
        if let Some(empty) = tallies.iter().position(|tally| tally.samples == 0) {
            let without = tallies.iter().filter(|tally| tally.samples == 0).count();
            say!(
                "pass@k is not defined: {without} of {} problems have no completion, the first one is {}",
                tallies.len(),
                self.problems.list[empty].id
            );
        }
        Evaluated {
            estimates,
            benchmark: self.problems.name.clone(),
            samples: tallies.iter().map(|tally| tally.samples).min(),
            problems: Some(tallies.len() as u64),
            ..Evaluated::default()
        }
    }

    /// The k to estimate for, with so many completions of each problem.
    fn k(&self, counts: &[u64], who: &str) -> Result<Vec<u64>> {
        let fewest = counts.iter().zip(&self.problems.list).min_by_key(|(count, _)| **count);
        let (fewest, id) = fewest.map_or((0, ""), |(count, problem)| (*count, problem.id.as_str()));
        if let Some(k) = self.arguments.k.iter().find(|k| **k > fewest) {
            bail!(
                "pass@{k} needs at least {k} completions of every problem, and {who} {fewest} of {id}: lower --k, or give more completions"
            );
        }
        if self.arguments.k.is_empty() {
            return Ok(usual(fewest));
        }
        Ok(self.arguments.k.clone())
    }

    /// The settings of every evaluation.
    fn settings(&self, completions: &str) -> Map<String, Value> {
        let Limits { cpu_seconds, wall_seconds, memory_mib } = self.arguments.judging.limits();
        let environment = [HASH_SEED, ONE_THREAD].map(|(name, value)| format!("{name}={value}"));
        object(json!({
            "program": concat!("eval-humaneval ", env!("CARGO_PKG_VERSION")),
            "problems": self.problems.name,
            "problems_blake3": self.problems.blake3,
            "problem_count": self.problems.list.len(),
            "completions": completions,
            "sandbox": self.judge.level(),
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "memory_mib": memory_mib,
            "python": self.python.version,
            "python_flags": FLAGS.join(" "),
            "python_environment": environment.join(" "),
        }))
    }

    fn stop_settings(&self) -> Map<String, Value> {
        object(json!({ "stop_style": format!("{:?}", self.stop_style).to_lowercase(), "stop": self.stop }))
    }

    /// Those that hold for every checkpoint.
    fn settings_of_checkpoints(&self, drawing: &SamplingFlags) -> Map<String, Value> {
        let generation = &self.arguments.generation;
        let mut settings = self.settings("checkpoint");
        settings.extend(self.stop_settings());
        settings.extend(object(json!({
            "samples": generation.samples,
            "temperature": drawing.temperature,
            "top_p": drawing.top_p,
            "top_k": drawing.draw.top_k,
            "seed": drawing.draw.seed,
            "rows": generation.rows,
            "speculative": format!("{:?}", speculation(drawing)).to_lowercase(),
            "platform": generation.device.platform,
            "kernels": generation.device.form(),
        })));
        settings
    }

    /// Those that all results of a summary share.
    fn common_settings(&self) -> Map<String, Value> {
        let all: Vec<_> = self.sweep.iter().map(|drawing| self.settings_of_checkpoints(drawing)).collect();
        let mut common = all[0].clone();
        common.retain(|name, value| all.iter().all(|settings| settings.get(name) == Some(value)));
        common
    }

    /// A short name for files.
    fn benchmark(&self) -> String {
        match (&self.arguments.problems, self.problems.format) {
            (None, Format::HumanEval) => "humaneval".to_owned(),
            _ => self.problems.name.split('.').next().unwrap_or_default().to_owned(),
        }
    }
}

/// Name of the summary of a run.
const SUMMARY: &str = "eval_summary.json";
/// What takes the place of `jsonl` in the name of any other summary, which lies beside the results.
const SUMMARY_EXTENSION: &str = "summary.json";

/// The place of the results of one way of drawing among several: `out_t0.2_p0.95.jsonl` for `out.jsonl`.
fn beside(out: &Path, drawing: &SamplingFlags) -> PathBuf {
    let part = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let mut name = format!("{}_t{}", part(out.file_stem()), drawing.temperature);
    if drawing.temperature > 0.0 {
        name += &format!("_p{}", drawing.top_p);
    }
    if let Some(extension) = out.extension() {
        name += &format!(".{}", part(Some(extension)));
    }
    out.with_file_name(name)
}

/// Whether drafts are used may be measured for greedy completions, which do not change by it. Random ones must follow from the
/// seed alone.
fn speculation(drawing: &SamplingFlags) -> Speculation {
    match drawing.sampling() {
        Sampling::Greedy => Speculation::Auto,
        Sampling::Random { .. } => Speculation::Off,
    }
}

/// Refuses what can be refused before a checkpoint is loaded.
fn check_generation(sweep: &[SamplingFlags], samples: u64, k: &[u64]) -> Result<()> {
    sweep.iter().try_for_each(SamplingFlags::check)?;
    if samples > 1 && sweep.iter().any(|drawing| drawing.sampling() == Sampling::Greedy) {
        bail!(
            "--samples is {samples}, but with --temperature 0 all completions of a problem are equal: give --temperature (0.2 is usual for pass@1, 0.8 for pass@10 and pass@100), or --samples 1"
        );
    }
    if let Some(k) = k.iter().find(|k| **k > samples) {
        bail!(
            "pass@{k} needs at least {k} completions of every problem: give --samples {k} or more, or lower --k"
        );
    }
    Ok(())
}

/// The hash of a checkpoint's weights as they are now; the manifest may be of other ones, if someone replaced them.
fn weights_blake3(checkpoint: &Path) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    for path in weight_files(checkpoint)? {
        fs::File::open(&path)
            .and_then(|file| hash.update_reader(file).map(drop))
            .with_context(|| format!("reading {}", path.display()))?;
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// The state of training at a checkpoint; published models have none.
fn state(checkpoint: &Path) -> Option<State> {
    serde_json::from_slice(&fs::read(checkpoint.join(files::STATE)).ok()?).ok()
}

/// A problem's own solution.
fn canonical(problem: &Problem) -> Result<&str> {
    let solution = problem.canonical.as_deref();
    solution.with_context(|| format!("{} has no solution of its own, which --canonical judges", problem.id))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}
