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
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
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
/// Bytes of all answers; nothing that is longer is one.
const ANSWER_BYTES: usize = 1000;
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
            .and_then(|mut trial| {
                let seen = trial.watch(program);
                let status = end(&mut child)?;
                seen?.map_or_else(|| trial.conclude(status), Ok)
            })
            .context("judging a program");
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

/// Kills a process with all that it started, as far as that is still in its group, and says how it ended. It must not
/// have been waited for before: its number could by then be that of another process.
fn end(child: &mut Child) -> std::io::Result<ExitStatus> {
    // Both fail if nothing is left to kill.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.kill();
    child.wait()
}

/// One process while it is watched.
struct Trial<'f> {
    process: Pid,
    folder: &'f Path,
    limits: Limits,
    deadline: Instant,
    source: ChildStdin,
    answers: Option<ChildStdout>,
    output: Option<ChildStderr>,
    /// All that was answered.
    answered: Vec<u8>,
    /// The beginning of what was printed.
    printed: Vec<u8>,
    /// Bytes that were printed.
    printed_bytes: usize,
    /// Sent after the tests.
    nonce: Option<[u8; 16]>,
}

impl<'f> Trial<'f> {
    fn new(child: &mut Child, folder: &'f Path, limits: Limits) -> std::io::Result<Trial<'f>> {
        let Some(source) = child.stdin.take() else {
            return Err(std::io::Error::other("the process has no pipes"));
        };
        Ok(Trial {
            process: Pid::from_child(child),
            folder,
            limits,
            deadline: Instant::now() + Duration::from_secs(limits.wall_seconds),
            source,
            answers: child.stdout.take(),
            output: child.stderr.take(),
            answered: Vec::new(),
            printed: Vec::new(),
            printed_bytes: 0,
            nonce: None,
        })
    }

    /// Watches the process until there is an outcome, or until it has ended by itself.
    fn watch(&mut self, program: &str) -> std::io::Result<Option<Outcome>> {
        let length = (program.len() as u64).to_le_bytes();
        send(&mut self.source, &length)?;
        send(&mut self.source, program.as_bytes())?;
        let mut looked = Instant::now();
        loop {
            self.read(TICK)?;
            if let Some(verdict) = self.standing()? {
                return Ok(Some(Outcome::Verdict(verdict)));
            }
            if self.printed_bytes > OUTPUT_BYTES {
                return Ok(Some(failed(format!("printed more than {} MiB", OUTPUT_BYTES >> 20))));
            }
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if waitid(WaitId::Pid(self.process), options)?.is_some() {
                return Ok(None);
            }
            let now = Instant::now();
            if now >= self.deadline {
                let reason = format!("did not end within {} s", self.limits.wall_seconds);
                return Ok(Some(match self.answered.first() {
                    Some(_) => failed(reason),
                    None => Outcome::NotStarted(format!("the interpreter {reason}")),
                }));
            }
            if now - looked >= TICK {
                looked = now;
                if let Some(reason) = crowded(self.folder) {
                    return Ok(Some(failed(reason)));
                }
            }
        }
    }

    /// The outcome of a process that has ended.
    fn conclude(&mut self, status: ExitStatus) -> std::io::Result<Outcome> {
        // Without a sandbox, something may be left that goes on writing.
        while self.read(Duration::ZERO)? && self.printed_bytes <= OUTPUT_BYTES {}
        if let Some(verdict) = self.standing()? {
            return Ok(Outcome::Verdict(verdict));
        }
        Ok(match &self.answered[..] {
            [sandbox::REFUSED, reason @ ..] => Outcome::Refused(text(reason)),
            [] => {
                let said = String::from_utf8_lossy(&self.printed);
                Outcome::NotStarted(format!("the interpreter did not start ({status}): {}", said.trim()))
            }
            [_, b'F', reason @ ..] if !reason.is_empty() => failed(text(reason)),
            [_, b'F'] => failed(format!("raised an exception; describing it, it {}", self.how(status))),
            _ => failed(format!("{} before its tests ended", self.how(status))),
        })
    }

    /// Reads what has been written, waiting for it at most so long; false if there was nothing. A pipe that has come
    /// to its end is closed; a program may close both and go on.
    fn read(&mut self, timeout: Duration) -> std::io::Result<bool> {
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
        let pipes = [self.answers.as_ref().map(AsFd::as_fd), self.output.as_ref().map(AsFd::as_fd)];
        let mut fds: Vec<PollFd<'_>> =
            pipes.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let [answers, output] = pipes.map(|pipe| pipe.is_some() && ready.next() == Some(true));
        let mut block = [0; 1 << 16];
        if let Some(pipe) = self.answers.as_mut().filter(|_| answers) {
            let read = pipe.read(&mut block)?;
            keep(&mut self.answered, &block[..read], ANSWER_BYTES);
            if read == 0 {
                self.answers = None;
            }
        }
        if let Some(pipe) = self.output.as_mut().filter(|_| output) {
            let read = pipe.read(&mut block)?;
            keep(&mut self.printed, &block[..read], KEPT_BYTES);
            self.printed_bytes += read;
            if read == 0 {
                self.output = None;
            }
        }
        Ok(answers || output)
    }

    /// Looks at the answers, and sends the nonce when the tests have ended.
    fn standing(&mut self) -> std::io::Result<Option<Verdict>> {
        let forged = Some(Verdict::Failed("wrote to the pipe of its own verdict".to_owned()));
        let [b'R', b'E', echo @ ..] = &self.answered[..] else {
            return Ok(match &self.answered[..] {
                [] | [b'R'] | [b'R', b'F', ..] | [sandbox::REFUSED, ..] => None,
                _ => forged,
            });
        };
        let nonce = match self.nonce {
            Some(nonce) => nonce,
            // Whatever came along with the claim was not the answer to it.
            None if !echo.is_empty() => return Ok(forged),
            None => {
                let mut nonce = [0; 16];
                getrandom(&mut nonce, GetRandomFlags::empty())?;
                self.nonce = Some(nonce);
                send(&mut self.source, &nonce)?;
                nonce
            }
        };
        Ok(match (echo == nonce, nonce.starts_with(echo)) {
            (true, _) => Some(Verdict::Passed),
            (false, true) => None,
            (false, false) => forged,
        })
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

/// What a program said, fit for a terminal.
fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Keeps bytes up to a limit.
fn keep(kept: &mut Vec<u8>, bytes: &[u8], limit: usize) {
    let room = limit.saturating_sub(kept.len());
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
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
