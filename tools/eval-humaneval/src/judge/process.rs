//! One interpreter in a sandbox of its own, and its pipes.

use super::folder;
use crate::sandbox::{Level, Limits, REFUSED};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::{Duration, Instant};

/// Bytes of the output that are kept, for the case that the interpreter does not start.
const KEPT_BYTES: usize = 4 << 10;
/// Bytes of a message at most.
const MESSAGE_BYTES: usize = 16 << 20;
/// Bytes before its content: a letter and the length.
const HEADER: usize = 5;
/// Bytes that are read in one go, and that a process can have left in its pipes: no system has longer ones.
const BLOCK_BYTES: usize = 1 << 16;
const LEFT_BYTES: usize = 2 * (1 << 20);
/// Threads that a program may have at the same time.
const THREADS: usize = 64;

/// What an interpreter says; the letters are those of the harness.
pub(super) struct Message {
    pub(super) letter: u8,
    pub(super) content: Vec<u8>,
}

/// An interpreter. It ends, and its folder goes, with this.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pid: Pid,
    folder: PathBuf,
    source: Option<ChildStdin>,
    unsent: Vec<u8>,
    answers: Option<ChildStdout>,
    output: Option<ChildStderr>,
    received: Vec<u8>,
    /// Whether it has sent a message: the interpreter runs.
    pub(super) has_started: bool,
    /// The beginning of what was printed.
    printed: Vec<u8>,
    /// Bytes that were printed.
    pub(super) printed_bytes: usize,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a command with pipes at its standard descriptors.
    pub(super) fn start(mut command: Command, folder: PathBuf) -> io::Result<Process> {
        let mut child = command.spawn()?;
        let source = child.stdin.take();
        if let Some(pipe) = &source {
            // A program that does not read must not keep the judge from looking at its clock.
            fcntl_setfl(pipe, OFlags::NONBLOCK)?;
        }
        Ok(Process {
            pid: Pid::from_child(&child),
            answers: child.stdout.take(),
            output: child.stderr.take(),
            child,
            folder,
            source,
            unsent: Vec::new(),
            received: Vec::new(),
            has_started: false,
            printed: Vec::new(),
            printed_bytes: 0,
            ended: None,
        })
    }

    /// Sends a message as soon as the process reads.
    pub(super) fn send(&mut self, letter: u8, content: &[u8]) {
        self.unsent.push(letter);
        self.unsent.extend((content.len() as u32).to_le_bytes());
        self.unsent.extend(content);
    }

    /// The next message.
    ///
    /// # Errors
    /// If what was received is not one.
    pub(super) fn message(&mut self) -> Result<Option<Message>, String> {
        let [letter, length @ ..] = &self.received[..] else { return Ok(None) };
        let (letter, Some(length)) = (*letter, length.first_chunk()) else { return Ok(None) };
        if letter == REFUSED {
            return Ok(None);
        }
        let length = u32::from_le_bytes(*length) as usize;
        if length > MESSAGE_BYTES {
            return Err(format!("answered with more than {} MiB", MESSAGE_BYTES >> 20));
        }
        if self.received.len() < HEADER + length {
            return Ok(None);
        }
        let content = self.received[HEADER..HEADER + length].to_vec();
        self.received.drain(..HEADER + length);
        self.has_started = true;
        Ok(Some(Message { letter, content }))
    }

    /// Reads what a process that has ended left in its pipe.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        // Without a sandbox, something may be left that goes on writing.
        let mut left = LEFT_BYTES;
        while left > 0 && exchange(&mut [self], Duration::ZERO)? {
            left = left.saturating_sub(BLOCK_BYTES);
        }
        Ok(())
    }

    /// Why the interpreter did not start, for a process that has ended without a message.
    pub(super) fn not_started(&mut self) -> io::Result<String> {
        let status = self.end()?;
        Ok(match &self.received[..] {
            [REFUSED, reason @ ..] => String::from_utf8_lossy(reason).into_owned(),
            _ => {
                let said = String::from_utf8_lossy(&self.printed);
                format!("the interpreter did not start ({status}): {}", said.trim())
            }
        })
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(self.ended.is_some() || waitid(WaitId::Pid(self.pid), options)?.is_some())
    }

    /// Kills it with all that it started, as far as that is still in its group, and says how it ended.
    pub(super) fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        // Both fail if nothing is left to kill. Not after it was waited for: its number may be that of another then.
        let _ = kill_process_group(self.pid, Signal::KILL);
        let _ = self.child.kill();
        let status = self.child.wait()?;
        self.ended = Some(status);
        Ok(status)
    }

    /// How a process ended by itself: a reason for a failure, or an error if something else ended it.
    pub(super) fn how(&mut self, level: Level, limits: Limits) -> io::Result<Result<String, String>> {
        let seconds = limits.cpu_seconds;
        let used = self.cpu_time();
        let status = self.end()?;
        Ok(match (status.signal().map(Signal::from_named_raw), status.code()) {
            (Some(Some(Signal::XCPU)), _) => Ok(format!("used up its {seconds} s of CPU time")),
            // The second limit, for programs that ignore the first one. In a sandbox they cannot kill themselves.
            (Some(Some(Signal::KILL)), _) if used.as_secs() >= seconds => {
                Ok(format!("was killed, using more than {seconds} s of CPU time,"))
            }
            (Some(Some(Signal::KILL)), _) if level != Level::None => {
                Err("a program was killed, as the system does it when memory runs short".to_owned())
            }
            (None, Some(code)) => Ok(format!("exited with code {code}")),
            _ => Ok(format!("was ended by {status}")),
        })
    }

    /// Why it uses too much of what the system has no limit for, if it does.
    pub(super) fn greedy(&self) -> Option<String> {
        let threads = fs::read_dir(self.proc("task")).map_or(0, Iterator::count);
        if threads > THREADS {
            return Some(format!("started more than {THREADS} threads"));
        }
        folder::crowded(&self.folder, self.pid)
    }

    /// CPU time so far, also of a process that has ended and was not yet waited for.
    pub(super) fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(self.proc("stat")).unwrap_or_default();
        // The name before may hold anything. Of what follows, user and system time are number 11 and 12.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// Time for which its threads were ready but had no core: the cost of the machine's load.
    fn kept_waiting(&self) -> Duration {
        let tasks = fs::read_dir(self.proc("task")).into_iter().flatten().flatten();
        let waits = tasks.filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
        });
        Duration::from_nanos(waits.sum())
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.as_raw_nonzero().to_string()).join(name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.end();
        // What cannot be removed now goes with the whole folder at the end, or stays with the system's other litter.
        let _ = folder::remove(&self.folder);
    }
}

/// The ends of a process's three pipes.
#[derive(Clone, Copy)]
enum Pipe {
    Source,
    Answers,
    Output,
}

/// Sends to processes and reads from them what can be sent and read, after waiting for it at most so long; false if there
/// was nothing. A pipe that has come to its end is closed; a program may close all and go on.
pub(super) fn exchange(processes: &mut [&mut Process], timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
    let mut places = Vec::new();
    let mut fds = Vec::new();
    for (i, process) in processes.iter().enumerate() {
        let source = process.source.as_ref().filter(|_| !process.unsent.is_empty()).map(AsFd::as_fd);
        let answers = process.answers.as_ref().map(AsFd::as_fd);
        let output = process.output.as_ref().map(AsFd::as_fd);
        for (pipe, fd, flags) in [
            (Pipe::Source, source, PollFlags::OUT),
            (Pipe::Answers, answers, PollFlags::IN),
            (Pipe::Output, output, PollFlags::IN),
        ] {
            if let Some(fd) = fd {
                places.push((i, pipe));
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            }
        }
    }
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready = places.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
    let ready: Vec<(usize, Pipe)> = ready.map(|(place, _)| *place).collect();
    let mut block = [0; BLOCK_BYTES];
    for (i, pipe) in &ready {
        let process = &mut *processes[*i];
        match pipe {
            Pipe::Source => {
                let Some(pipe) = &mut process.source else { continue };
                match pipe.write(&process.unsent) {
                    Ok(count) => drop(process.unsent.drain(..count)),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    // It may be gone already, which shows elsewhere.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => process.source = None,
                    Err(error) => return Err(error),
                }
            }
            Pipe::Answers => {
                let read = process.answers.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut block))?;
                process.received.extend(&block[..read]);
                if read == 0 {
                    process.answers = None;
                }
            }
            Pipe::Output => {
                let read = process.output.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut block))?;
                let room = KEPT_BYTES.saturating_sub(process.printed.len());
                process.printed.extend(&block[..read.min(room)]);
                process.printed_bytes += read;
                if read == 0 {
                    process.output = None;
                }
            }
        }
    }
    Ok(!ready.is_empty())
}

/// The time of processes, from start to end but for what the machine's load has cost them.
pub(super) struct Clock {
    started: Instant,
    waited: Duration,
}

/// What a clock shows.
pub(super) enum Time {
    Left,
    /// It took longer than it may.
    Up,
    /// It had so little of the machine for so long that there is no verdict.
    Disturbed,
}

impl Clock {
    pub(super) fn new(processes: &[&Process]) -> Clock {
        Clock { started: Instant::now(), waited: waited(processes) }
    }

    pub(super) fn look(&self, processes: &[&Process], limits: Limits) -> Time {
        let limit = Duration::from_secs(limits.wall_seconds);
        let elapsed = self.started.elapsed();
        if elapsed < limit {
            return Time::Left;
        }
        if elapsed - waited(processes).saturating_sub(self.waited).min(elapsed) >= limit {
            return Time::Up;
        }
        if elapsed >= 10 * limit { Time::Disturbed } else { Time::Left }
    }
}

fn waited(processes: &[&Process]) -> Duration {
    processes.iter().map(|process| process.kept_waiting()).sum()
}
