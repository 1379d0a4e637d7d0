//! Judging: one program in one sandbox, and many of them on all cores.
//!
//! A program has passed only if its tests ran to their end. What shows it is not an exit code and not anything that is
//! printed: after the last test the harness says so on a pipe of its own, and must then repeat a random number that
//! is sent only now. Leaving early by whatever exit, by a signal, by `exec` or with a printed claim is a failure.
//!
//! The limit of this: the program shares its interpreter with the tests, as in every harness of these benchmarks. One
//! that was written against this very harness can find the pipe and play the harness's part, and one that returns an
//! object equal to everything passes any comparison. Neither happens by accident, and neither gets out of the sandbox.

use crate::python::Python;
use crate::sandbox::{self, Level, Limits};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What the interpreter runs.
const HARNESS: &str = include_str!("harness.py");

/// Bytes that a program may print; they are read and dropped.
const OUTPUT_BYTES: usize = 16 << 20;
/// Bytes of the output that are kept, for the case that the interpreter does not start.
const KEPT_BYTES: usize = 4 << 10;
/// Bytes that a program may keep in its folder, and files.
const FOLDER_BYTES: u64 = 32 << 20;
const FOLDER_FILES: usize = 1000;
/// Bytes of a reason.
const REASON_BYTES: usize = 1000;
/// How often clock and folder are looked at.
const TICK: Duration = Duration::from_millis(20);

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its tests ran to their end.
    Passed,
    /// They did not, for this reason.
    Failed(String),
}

/// Judges programs at one level, with the same limits and interpreter.
#[derive(Debug)]
pub struct Judge {
    python: Python,
    level: Level,
    limits: Limits,
    folder: TempDir,
    count: AtomicU64,
}

impl Judge {
    /// A judge at `level`, after a look at whether this machine really has it.
    ///
    /// # Errors
    /// If it does not: the message says why, and which level there is. Or if the interpreter does not start.
    pub fn new(python: Python, level: Level, limits: Limits) -> Result<Judge> {
        let folder = tempfile::Builder::new()
            .prefix("eval-humaneval-")
            .tempdir()
            .context("creating a temporary folder for the programs; set TMPDIR to another one")?;
        let mut judge = Judge { python, level, limits, folder, count: AtomicU64::new(0) };
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
        Ok(match self.run(&sandbox::probe(self.level))? {
            Outcome::Verdict(Verdict::Passed) => None,
            Outcome::Verdict(Verdict::Failed(reason)) => Some(reason),
            Outcome::Refused(reason) | Outcome::NotStarted(reason) => Some(reason),
        })
    }

    /// The level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Runs a program in a sandbox of its own.
    ///
    /// # Errors
    /// If the machine cannot start it, which says nothing about the program.
    pub fn judge(&self, program: &str) -> Result<Verdict> {
        match self.run(program)? {
            Outcome::Verdict(verdict) => Ok(verdict),
            Outcome::Refused(reason) | Outcome::NotStarted(reason) => bail!(reason),
        }
    }

    fn run(&self, program: &str) -> Result<Outcome> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.path().join(number.to_string());
        fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let mut command = sandbox::command(self.level, self.limits, &self.python, &folder, HARNESS)
            .with_context(|| format!("{}; set TMPDIR to another folder", folder.display()))?;
        let mut child = command.spawn().context("starting a sandbox")?;
        let outcome = Trial::new(&mut child, &folder, self.limits)
            .and_then(|mut trial| trial.run(program))
            .context("judging a program");
        end(&mut child);
        // What cannot be removed now goes with the whole folder at the end, or stays with the system's other litter.
        let _ = fs::remove_dir_all(&folder);
        outcome
    }
}

/// Judges all programs that `produce` submits, `workers` at a time and while it still produces; each verdict goes to
/// `record` with the label of its program, in any order. `produce` is told to stop when something failed.
///
/// # Errors
/// The first of `produce`, of `record`, or of a program that could not be started.
pub fn judge_all<T: Send>(
    judge: &Judge,
    workers: usize,
    produce: impl FnOnce(&mut dyn FnMut(String, T) -> ControlFlow<()>) -> Result<()>,
    record: impl FnMut(T, Verdict) -> Result<()> + Send,
) -> Result<()> {
    let (sender, receiver) = mpsc::channel::<(String, T)>();
    let receiver = Mutex::new(receiver);
    let recorder = Mutex::new((record, Ok(())));
    let failed = AtomicBool::new(false);
    let work = || {
        loop {
            let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((program, label)) = next else { return };
            if failed.load(Ordering::Relaxed) {
                continue;
            }
            let verdict = judge.judge(&program);
            let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
            let (record, result) = &mut *recorder;
            if result.is_ok() {
                *result = verdict.and_then(|verdict| record(label, verdict));
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
        produce(&mut |program, label| match sender.send((program, label)) {
            Ok(()) if !failed.load(Ordering::Relaxed) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        })
    })?;
    recorder.into_inner().unwrap_or_else(PoisonError::into_inner).1
}

/// What became of a process.
enum Outcome {
    Verdict(Verdict),
    /// The sandbox could not be set up.
    Refused(String),
    /// The interpreter did not come as far as the program.
    NotStarted(String),
}

/// Kills a process with all that it started, as far as that is still in its group.
fn end(child: &mut Child) {
    // Both fail if nothing is left to kill.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.kill();
    let _ = child.wait();
}

/// One process while it is watched.
struct Trial<'c> {
    child: &'c mut Child,
    folder: &'c Path,
    limits: Limits,
    deadline: Instant,
    source: ChildStdin,
    answers: ChildStdout,
    output: ChildStderr,
    /// All that was answered.
    answered: Vec<u8>,
    /// The beginning of what was printed.
    printed: Vec<u8>,
    /// Bytes that were printed.
    printed_bytes: usize,
    /// Sent after the tests.
    nonce: Option<[u8; 16]>,
}

/// What a look at the answers says.
enum Standing {
    Open,
    Passed,
    /// Something else than the harness wrote them.
    Forged,
}

impl<'c> Trial<'c> {
    fn new(child: &'c mut Child, folder: &'c Path, limits: Limits) -> std::io::Result<Trial<'c>> {
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(source), Some(answers), Some(output)) = pipes else {
            return Err(std::io::Error::other("the process has no pipes"));
        };
        let deadline = Instant::now() + Duration::from_secs(limits.wall_seconds);
        Ok(Trial {
            child,
            folder,
            limits,
            deadline,
            source,
            answers,
            output,
            answered: Vec::new(),
            printed: Vec::new(),
            printed_bytes: 0,
            nonce: None,
        })
    }

    fn run(&mut self, program: &str) -> std::io::Result<Outcome> {
        let length = (program.len() as u64).to_le_bytes();
        send(&mut self.source, &length)?;
        send(&mut self.source, program.as_bytes())?;
        let (mut answers_open, mut output_open) = (true, true);
        let mut looked = Instant::now();
        loop {
            if answers_open || output_open {
                let mut fds = Vec::with_capacity(2);
                if answers_open {
                    fds.push(PollFd::new(&self.answers, PollFlags::IN));
                }
                if output_open {
                    fds.push(PollFd::new(&self.output, PollFlags::IN));
                }
                let tick = Timespec { tv_sec: 0, tv_nsec: TICK.as_nanos() as i64 };
                match poll(&mut fds, Some(&tick)) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
                let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
                let answers_ready = answers_open && ready.next() == Some(true);
                let output_ready = output_open && ready.next() == Some(true);
                if answers_ready {
                    answers_open = self.read_answers()?;
                }
                if output_ready {
                    output_open = self.read_output()?;
                }
            } else {
                // A program may close its descriptors and go on.
                thread::sleep(TICK / 20);
            }
            match self.standing()? {
                Standing::Open => {}
                Standing::Passed => return Ok(Outcome::Verdict(Verdict::Passed)),
                Standing::Forged => return Ok(failed("wrote to the pipe of its own verdict")),
            }
            if self.printed_bytes > OUTPUT_BYTES {
                return Ok(failed(format!("printed more than {} MiB", OUTPUT_BYTES >> 20)));
            }
            if let Some(status) = self.child.try_wait()? {
                while answers_open && self.ready_now()? {
                    answers_open = self.read_answers()?;
                }
                return Ok(match self.standing()? {
                    Standing::Passed => Outcome::Verdict(Verdict::Passed),
                    Standing::Forged => failed("wrote to the pipe of its own verdict"),
                    Standing::Open => self.ended(status),
                });
            }
            let now = Instant::now();
            if now >= self.deadline {
                let reason = format!("did not end within {} s", self.limits.wall_seconds);
                return Ok(match self.answered.first() {
                    Some(_) => failed(reason),
                    None => Outcome::NotStarted(format!("the interpreter {reason}")),
                });
            }
            if now - looked >= TICK {
                looked = now;
                if let Some(reason) = crowded(self.folder) {
                    return Ok(failed(reason));
                }
            }
        }
    }

    /// Whether there is something to be read of the answers, or their end.
    fn ready_now(&self) -> std::io::Result<bool> {
        let mut fds = [PollFd::new(&self.answers, PollFlags::IN)];
        Ok(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
    }

    /// Reads what is there; false at the end.
    fn read_answers(&mut self) -> std::io::Result<bool> {
        let mut block = [0; 4096];
        let read = self.answers.read(&mut block)?;
        // Nothing that is long is an answer.
        let room = (2 * REASON_BYTES).saturating_sub(self.answered.len());
        self.answered.extend_from_slice(&block[..read.min(room)]);
        Ok(read > 0)
    }

    fn read_output(&mut self) -> std::io::Result<bool> {
        let mut block = [0; 1 << 16];
        let read = self.output.read(&mut block)?;
        self.printed_bytes += read;
        let room = KEPT_BYTES.saturating_sub(self.printed.len());
        self.printed.extend_from_slice(&block[..read.min(room)]);
        Ok(read > 0)
    }

    /// Looks at the answers, and sends the nonce when the tests have ended.
    fn standing(&mut self) -> std::io::Result<Standing> {
        let [b'R', b'E', echo @ ..] = &self.answered[..] else {
            return Ok(match &self.answered[..] {
                [] | [b'R'] | [b'R', b'F', ..] | [sandbox::REFUSED, ..] => Standing::Open,
                _ => Standing::Forged,
            });
        };
        let nonce = match self.nonce {
            Some(nonce) => nonce,
            // Whatever came along with the claim was not the answer to it.
            None if !echo.is_empty() => return Ok(Standing::Forged),
            None => {
                let mut nonce = [0; 16];
                getrandom(&mut nonce, GetRandomFlags::empty())?;
                self.nonce = Some(nonce);
                send(&mut self.source, &nonce)?;
                nonce
            }
        };
        Ok(match (echo == nonce, nonce.starts_with(echo)) {
            (true, _) => Standing::Passed,
            (false, true) => Standing::Open,
            (false, false) => Standing::Forged,
        })
    }

    /// The outcome of a process that ended by itself without passing.
    fn ended(&self, status: ExitStatus) -> Outcome {
        match &self.answered[..] {
            [sandbox::REFUSED, reason @ ..] => Outcome::Refused(text(reason)),
            [] => {
                let said = String::from_utf8_lossy(&self.printed);
                Outcome::NotStarted(format!("the interpreter did not start ({status}): {}", said.trim()))
            }
            [_, b'F', reason @ ..] if !reason.is_empty() => failed(text(reason)),
            [_, b'F'] => failed(format!("raised an exception; describing it, it {}", self.how(status))),
            _ => failed(format!("{} before its tests ended", self.how(status))),
        }
    }

    fn how(&self, status: ExitStatus) -> String {
        let seconds = self.limits.cpu_seconds;
        match (status.signal().map(Signal::from_named_raw), status.code()) {
            (Some(Some(Signal::XCPU)), _) => format!("used up its {seconds} s of CPU time"),
            // The second limit, for programs that ignore the first one. In a sandbox they cannot kill themselves.
            (Some(Some(Signal::KILL)), _) => {
                format!(
                    "was killed, using more than {seconds} s of CPU time or the last of the machine's memory,"
                )
            }
            (None, Some(code)) => format!("exited with code {code}"),
            _ => format!("was ended by {status}"),
        }
    }
}

fn failed(reason: impl Into<String>) -> Outcome {
    Outcome::Verdict(Verdict::Failed(reason.into()))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(REASON_BYTES)]).into_owned()
}

/// Sends to a process that may be gone already, which shows elsewhere.
fn send(pipe: &mut ChildStdin, bytes: &[u8]) -> std::io::Result<()> {
    match pipe.write_all(bytes) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Why the folder of a program is too full, if it is. A folder that cannot be listed has the program's own doing.
fn crowded(folder: &Path) -> Option<String> {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(folder).ok()?.flatten() {
        files += 1;
        bytes += entry.metadata().map_or(0, |data| data.len());
        if files > FOLDER_FILES {
            return Some(format!("made more than {FOLDER_FILES} files"));
        }
        if bytes > FOLDER_BYTES {
            return Some(format!("wrote more than {} MiB of files", FOLDER_BYTES >> 20));
        }
    }
    None
}
