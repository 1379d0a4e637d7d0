//! Judging: one solution in one sandbox, and many of them on all cores.
//!
//! A solution has passed only if its tests ran to their end in an interpreter that it cannot touch (`apart`). Some
//! problems cannot be judged so: their tests pass functions, look at objects, or in another way need what is not plain
//! data. Whether a problem is one of them is decided by its own solution, not by a completion: if that passes
//! in one interpreter with the tests and not apart from them, the completions are judged like that (`together`), and
//! counted; so are those that are in doubt where a problem has no solution of its own. In one interpreter, as in every
//! harness of these benchmarks, a program that was written against the harness can pass without being right.
//!
//! No verdict depends on what else the machine does. A program that was kept waiting for long, or killed for want of
//! memory, is judged again with no other beside it, and if that does not help there is an error, not a failure.

mod apart;
mod folder;
mod process;
mod together;

use crate::problem::Problem;
use crate::python::Python;
use crate::sandbox::{self, Level, Limits};
use anyhow::{Context, Result, bail};
use process::{Clock, Process, Time};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::collections::HashMap;
use std::env;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::{NamedTempFile, TempDir};

/// Bytes that a program may print; they are read and dropped.
const OUTPUT_BYTES: usize = 16 << 20;
/// How often clock and folder are looked at.
const TICK: Duration = Duration::from_millis(20);
/// CPU time after which an interpreter of tests is replaced; its limit is higher than a solution's by this much.
const TESTER_SECONDS: u64 = 1;

/// The verdict on a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its tests ran to their end.
    Passed,
    /// They did not, for this reason.
    Failed(String),
}

/// Where the tests of a solution run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In an interpreter of their own.
    Apart,
    /// In that of the solution.
    Together,
}

impl Place {
    /// What it is called in results.
    pub fn name(self) -> &'static str {
        match self {
            Place::Apart => "apart",
            Place::Together => "together",
        }
    }
}

/// Judges programs at one level, with the same limits and interpreter.
#[derive(Debug)]
pub struct Judge {
    python: Python,
    level: Level,
    limits: Limits,
    folder: TempDir,
    count: AtomicU64,
    /// By the problem's name: where its completions are judged, if one was in doubt.
    places: Mutex<HashMap<String, Place>>,
    /// Held shared by all workers that judge, or alone by one that must have the machine for itself.
    alone: RwLock<()>,
}

impl Judge {
    /// A judge at `level`, after a look at whether this machine really has it. From now on other processes of the user
    /// cannot look into this one.
    ///
    /// # Errors
    /// If it does not: the message says why, and which level there is. Or if the interpreter does not start.
    pub fn new(python: Python, level: Level, limits: Limits) -> Result<Judge> {
        set_dumpable_behavior(DumpableBehavior::NotDumpable).context("closing this process to others")?;
        let folder = tempfile::Builder::new()
            .prefix("eval-humaneval-")
            .tempdir()
            .context("creating a temporary folder for the programs; set TMPDIR to another one")?;
        let mut judge = Judge {
            python,
            level,
            limits,
            folder,
            count: AtomicU64::new(0),
            places: Mutex::default(),
            alone: RwLock::default(),
        };
        let Some(reason) = judge.missing()? else { return Ok(judge) };
        for (weaker, means) in level.weaker() {
            judge.level = *weaker;
            if judge.missing()?.is_none() {
                let (wanted, weaker) = (level.name(), weaker.name());
                bail!(
                    "the sandbox `{wanted}` is not to be had on this machine: {reason}\nwhat there is: {means}; --sandbox {weaker} accepts that, better only in a container or a machine of its own"
                );
            }
        }
        bail!("judging a program that does nothing: {reason}")
    }

    /// What the level lacks here, if anything.
    fn missing(&self) -> Result<Option<String>> {
        let laid = self.folder.path().join("secret");
        fs::write(&laid, "a secret").with_context(|| format!("writing {}", laid.display()))?;
        // A home that cannot be written to can still be read.
        let home = env::home_dir().filter(|home| home.to_str().is_some() && home.is_dir());
        let in_home = home.as_ref().and_then(|home| NamedTempFile::new_in(home).ok());
        let mut secrets = vec![Path::new("/"), &laid];
        secrets.extend(home.as_deref());
        secrets.extend(in_home.as_ref().map(NamedTempFile::path));
        Ok(match self.together(&sandbox::probe(self.level, &secrets))? {
            Outcome::Passed => None,
            Outcome::Failed { reason, .. } | Outcome::Impossible(reason) | Outcome::Disturbed(reason) => {
                Some(reason)
            }
        })
    }

    /// The level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Where the completions of a problem are judged, of which one has failed in doubt.
    fn place(&self, worker: &mut Worker<'_>, problem: &Problem) -> Result<Place> {
        let known = |places: &Mutex<HashMap<String, Place>>| {
            places.lock().unwrap_or_else(PoisonError::into_inner).get(&problem.id).copied()
        };
        if let Some(place) = known(&self.places) {
            return Ok(place);
        }
        let Some(canonical) = &problem.canonical else { return Ok(Place::Together) };
        let solution = problem.solution(canonical);
        let passes_apart = matches!(worker.apart(problem, &solution)?, Outcome::Passed);
        let whole = problem.program(&solution);
        // A solution that passes nowhere says nothing.
        let place = if !passes_apart && matches!(worker.together(&whole)?, Outcome::Passed) {
            Place::Together
        } else {
            Place::Apart
        };
        self.places.lock().unwrap_or_else(PoisonError::into_inner).insert(problem.id.clone(), place);
        Ok(place)
    }

    /// Starts an interpreter.
    fn start(&self, harness: &str, limits: Limits) -> Result<Process> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.path().join(number.to_string());
        fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let command = sandbox::command(self.level, limits, &self.python, &folder, harness)
            .with_context(|| format!("{}; set TMPDIR to another folder", folder.display()))?;
        Process::start(command, folder).context("starting a sandbox")
    }

    fn together(&self, program: &str) -> Result<Outcome> {
        let mut process = self.start(together::HARNESS, self.limits)?;
        together::judge(self, &mut process, program).context("judging a program")
    }

    /// The outcome of a program that has ended without one.
    fn ended(&self, process: &mut Process) -> io::Result<Outcome> {
        if !process.has_started {
            return Ok(Outcome::Impossible(process.not_started()?));
        }
        Ok(match process.how(self.level, self.limits)? {
            Ok(how) => Outcome::failed(format!("{how} before its tests ended")),
            Err(disturbed) => Outcome::Disturbed(disturbed),
        })
    }
}

/// Judges one solution after the other.
#[derive(Debug)]
pub struct Worker<'j> {
    judge: &'j Judge,
    /// The interpreter of the tests, which all solutions share. It runs nothing of them, and starting it takes time.
    tester: Option<Process>,
}

impl<'j> Worker<'j> {
    /// A worker of a judge. It belongs to the thread that judges first: interpreters end with the thread that started
    /// them.
    pub fn new(judge: &'j Judge) -> Worker<'j> {
        Worker { judge, tester: None }
    }

    /// Judges a solution of a problem, and says where.
    ///
    /// # Errors
    /// If the machine cannot run it or the tests need what is not there, which says nothing about the solution.
    pub fn judge(&mut self, problem: &Problem, solution: &str) -> Result<(Verdict, Place)> {
        let apart = match problem.functions.is_empty() {
            true => None,
            false => Some(self.apart(problem, solution)?),
        };
        let (outcome, place) = match apart {
            Some(Outcome::Failed { doubt: Some(_), .. })
                if self.judge.place(self, problem)? == Place::Together =>
            {
                (self.together(&problem.program(solution))?, Place::Together)
            }
            Some(outcome) => (outcome, Place::Apart),
            None => (self.together(&problem.program(solution))?, Place::Together),
        };
        match outcome {
            Outcome::Passed => Ok((Verdict::Passed, place)),
            Outcome::Failed { reason, .. } => Ok((Verdict::Failed(reason), place)),
            Outcome::Impossible(reason) | Outcome::Disturbed(reason) => bail!(reason),
        }
    }

    fn together(&mut self, program: &str) -> Result<Outcome> {
        self.undisturbed(|worker| worker.judge.together(program))
    }

    fn apart(&mut self, problem: &Problem, solution: &str) -> Result<Outcome> {
        self.undisturbed(|worker| {
            let judge = worker.judge;
            let solver = judge.start(apart::SOLVER, judge.limits)?;
            let mut tester = match worker.tester.take() {
                Some(tester) => tester,
                None => {
                    let cpu_seconds = judge.limits.cpu_seconds + TESTER_SECONDS;
                    judge.start(apart::TESTER, Limits { cpu_seconds, ..judge.limits })?
                }
            };
            let mut trial = apart::Trial::new(judge, problem, solution, solver, &mut tester);
            let outcome = trial.watch().context("judging a program")?;
            if trial.is_tester_idle() && tester.cpu_time() < Duration::from_secs(TESTER_SECONDS) {
                worker.tester = Some(tester);
            }
            Ok(outcome)
        })
    }

    /// Judges again, with no other program beside it, a program that the machine disturbed.
    fn undisturbed(&mut self, run: impl Fn(&mut Self) -> Result<Outcome>) -> Result<Outcome> {
        let first = {
            let _beside_others = self.judge.alone.read().unwrap_or_else(PoisonError::into_inner);
            run(self)?
        };
        let Outcome::Disturbed(_) = first else { return Ok(first) };
        self.tester = None;
        let _alone = self.judge.alone.write().unwrap_or_else(PoisonError::into_inner);
        match run(self)? {
            Outcome::Disturbed(reason) => bail!(
                "{reason}, and again with no other one beside it: the machine is too busy or too small; free some of it, or lower --memory-mib"
            ),
            outcome => Ok(outcome),
        }
    }
}

/// Judges all solutions that `produce` submits, `workers` at a time and while it still produces; each verdict goes to
/// `record` with the label of its solution, in any order. `produce` is told to stop when something failed.
///
/// # Errors
/// The first of `produce`, of `record`, or of a program that could not be judged.
pub fn judge_all<'p, T: Send>(
    judge: &Judge,
    workers: usize,
    produce: impl FnOnce(&mut dyn FnMut(&'p Problem, String, T) -> ControlFlow<()>) -> Result<()>,
    record: impl FnMut(T, Verdict, Place) -> Result<()> + Send,
) -> Result<()> {
    let (sender, receiver) = mpsc::channel::<(&Problem, String, T)>();
    let receiver = Mutex::new(receiver);
    let recorder = Mutex::new((record, Ok(())));
    let failed = AtomicBool::new(false);
    let work = || {
        let mut worker = Worker::new(judge);
        loop {
            let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((problem, solution, label)) = next else { return };
            if failed.load(Ordering::Relaxed) {
                continue;
            }
            let verdict = worker.judge(problem, &solution);
            let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
            let (record, result) = &mut *recorder;
            if result.is_ok() {
                *result = verdict.and_then(|(verdict, place)| record(label, verdict, place));
                failed.store(result.is_err(), Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        // Dropped when producing ends, in whatever way: then the workers come to their end.
        let sender = sender;
        for _ in 0..workers {
            scope.spawn(work);
        }
        produce(&mut |problem, solution, label| match sender.send((problem, solution, label)) {
            Ok(()) if !failed.load(Ordering::Relaxed) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        })
    })?;
    recorder.into_inner().unwrap_or_else(PoisonError::into_inner).1
}

/// How a process ended.
enum Outcome {
    Passed,
    Failed {
        reason: String,
        /// Why a right solution might have failed too.
        doubt: Option<String>,
    },
    /// No program can be judged so, for this reason.
    Impossible(String),
    /// The machine disturbed it.
    Disturbed(String),
}

impl Outcome {
    fn failed(reason: impl Into<String>) -> Outcome {
        Outcome::Failed { reason: reason.into(), doubt: None }
    }
}

/// Watches what a program uses up.
struct Watch {
    clock: Clock,
    looked: Instant,
}

impl Watch {
    fn new(processes: &[&Process]) -> Watch {
        Watch { clock: Clock::new(processes), looked: Instant::now() }
    }

    /// The outcome of a program that uses too much. The time of `others` counts as its own.
    fn look(&mut self, judge: &Judge, program: &Process, others: &[&Process]) -> Option<Outcome> {
        if program.printed_bytes > OUTPUT_BYTES {
            return Some(Outcome::failed(format!("printed more than {} MiB", OUTPUT_BYTES >> 20)));
        }
        if self.looked.elapsed() < TICK {
            return None;
        }
        self.looked = Instant::now();
        let processes = [&[program], others].concat();
        let seconds = judge.limits.wall_seconds;
        match self.clock.look(&processes, judge.limits) {
            Time::Left => program.greedy().map(Outcome::failed),
            Time::Up if !program.has_started => {
                Some(Outcome::Impossible(format!("the interpreter did not start within {seconds} s")))
            }
            Time::Up => Some(Outcome::failed(format!("did not end within {seconds} s"))),
            Time::Disturbed => Some(Outcome::Disturbed(format!(
                "a program had so little of the machine that {} s were not enough for {seconds} s of its time",
                10 * seconds
            ))),
        }
    }
}

/// What an interpreter says about an exception. Whoever says it, the words around it are the judge's.
struct Words {
    /// Why the tests might have failed though the solution is right; said by the tests only.
    doubt: Option<String>,
    name: String,
    line: Option<usize>,
    said: String,
}

impl Words {
    fn from_tests(content: &[u8]) -> Words {
        let text = String::from_utf8_lossy(content);
        let mut parts = text.splitn(4, '\n');
        let mut part = || text_of(parts.next().unwrap_or_default());
        Words {
            doubt: Some(part()).filter(|doubt| !doubt.is_empty()),
            name: part(),
            line: part().parse().ok(),
            said: part(),
        }
    }

    fn from_program(content: &[u8]) -> Words {
        Words { doubt: None, ..Words::from_tests(content) }
    }

    /// The reason of a failure, for a program of which a line may be to blame.
    fn reason(&self, program: &str) -> String {
        let Words { doubt, name, line, said } = self;
        match (name.as_str(), doubt) {
            ("NotPlainData", Some(doubt)) => return doubt.clone(),
            ("SystemExit", _) => return format!("exited by SystemExit({said}) before its tests ended"),
            _ => {}
        }
        let is_name = !name.is_empty() && name.chars().all(|c| c == '_' || c.is_alphanumeric());
        let mut reason = if is_name { name.clone() } else { "raised an exception without a name".to_owned() };
        if !said.is_empty() {
            reason += &format!(": {said}");
        }
        let blamed = line.and_then(|line| Some((line, program.split('\n').nth(line.checked_sub(1)?)?)));
        if let Some((line, source)) = blamed {
            let source: String = source.trim().chars().take(200).collect();
            reason += &format!(" at line {line}: {}", text_of(&source));
        }
        reason
    }
}

/// What a program said, fit for a terminal.
fn text_of(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
