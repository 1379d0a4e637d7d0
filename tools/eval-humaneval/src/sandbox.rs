//! The sandbox: what a judged program can reach, by level.
//!
//! A judged program is this program's own binary, started anew: `enter` takes every right away from the fresh,
//! single-threaded process and then replaces it by the interpreter. It is never a fork of the judging process, which
//! may have a plugin's threads and their locks.
//!
//! | | `full` | `partial` | `none` |
//! |---|---|---|---|
//! | network, other processes, signals | refused (seccomp) | refused (seccomp) | open |
//! | reading files | the interpreter's library, packages and shared libraries, the system's libraries, its own folder (landlock) | all that the user can read, of `/proc` too | open |
//! | size, times and owner of a file that is named | open | open | open |
//! | writing files | its own folder (landlock) | none (seccomp) | open |
//! | memory and environment of other processes | refused (landlock) | those of the judge refused, those of the user's others as the system has it | open |
//! | CPU time, memory, size of a file, open files | limited | limited | limited |
//! | environment | three settings of the judge | the same | the same |
//! | wall clock, threads, output, files in its folder | limited by the judge | limited by the judge | limited by the judge |
//!
//! A program can learn whether a file is there that it names, and how large it is: landlock does not know such questions,
//! and seccomp not which file one is about.
//!
//! A level is never assumed: before anything is judged, a program that tries each refused act is judged under it
//! ([`probe`]), and the level counts only if every act was refused.

mod files;
mod system_calls;

use crate::python::{FLAGS, HASH_SEED, ONE_THREAD, Python};
use clap::ValueEnum;
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit, setsid};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_no_new_privs};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// How much a judged program is kept from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// No network, no processes, no files but its own folder: landlock, seccomp and resource limits.
    Full,
    /// No network, no processes, no writing; but it can read the user's files: seccomp and resource limits.
    Partial,
    /// Resource limits only.
    None,
}

impl Level {
    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Level::Full => "full",
            Level::Partial => "partial",
            Level::None => "none",
        }
    }

    /// The levels below, the strongest one first, and what programs could do there.
    pub fn weaker(self) -> &'static [(Level, &'static str)] {
        const WEAKER: [(Level, &str); 2] = [
            (
                Level::Partial,
                "programs could read your files, and what /proc shows of your other processes, but not write, send or start anything",
            ),
            (Level::None, "programs could do whatever you can"),
        ];
        match self {
            Level::Full => &WEAKER,
            Level::Partial => &WEAKER[1..],
            Level::None => &[],
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Full => "full (landlock, seccomp, limits)",
            Level::Partial => "partial (seccomp, limits; programs can read your files)",
            Level::None => "none (limits only; programs can do what you can)",
        })
    }
}

/// What a judged program may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Seconds of CPU time, so that verdicts do not depend on what else the machine does.
    pub cpu_seconds: u64,
    /// Seconds from start to end, for programs that wait.
    pub wall_seconds: u64,
    /// Address space.
    pub memory_mib: u64,
}

/// Bytes of one file.
pub const FILE_BYTES: u64 = 4 << 20;
/// Open files.
const OPEN_FILES: u64 = 64;

/// What a fresh process needs to become the sandbox of one program; its one argument, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    level: Level,
    limits: Limits,
    executable: PathBuf,
    readable: Vec<PathBuf>,
    packages: Vec<PathBuf>,
    folder: PathBuf,
}

/// The first argument of a process that is to become a sandbox.
const MARK: &str = "--sandbox-child";

/// What the child says on its standard output, followed by the reason, if it could not restrict itself.
pub const REFUSED: u8 = b'S';

/// The command that runs `code` in a sandbox with its own `folder`, with pipes at all three standard descriptors.
///
/// # Errors
/// If the path of the folder is not UTF-8.
pub fn command(
    level: Level,
    limits: Limits,
    python: &Python,
    folder: &Path,
    code: &str,
) -> serde_json::Result<Command> {
    let plan = Plan {
        level,
        limits,
        executable: python.executable.clone(),
        readable: python.readable.clone(),
        packages: python.packages.clone(),
        folder: folder.to_owned(),
    };
    // Not the path of the binary: a rebuild may have replaced it since this process started.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(MARK)
        .arg(serde_json::to_string(&plan)?)
        .arg(code)
        .current_dir(folder)
        .env_clear()
        .envs([HASH_SEED, ONE_THREAD])
        .env("TMPDIR", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

/// If this process was started by [`command`]: becomes the interpreter, or says why not. Call it before all else.
pub fn become_child(arguments: &[OsString]) -> Option<ExitCode> {
    let [_, mark, plan, code] = arguments else { return None };
    if mark != MARK {
        return None;
    }
    let plan = serde_json::from_str(&plan.to_string_lossy()).map_err(|error| error.to_string());
    let Err(reason) = plan.and_then(|plan| enter(&plan, code));
    // Nobody is left to tell if the judge does not read.
    let _ = write!(std::io::stdout(), "{}{reason}", char::from(REFUSED));
    Some(ExitCode::FAILURE)
}

/// Restricts this process for good and replaces it by the interpreter.
fn enter(plan: &Plan, code: &OsString) -> Result<Infallible, String> {
    let named = |doing: &'static str| move |error: rustix::io::Errno| format!("{doing}: {error}");
    // A session of its own can be killed as a whole, and a judge that is killed takes its programs with it.
    setsid().map_err(named("starting a session"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(named("tying the process to its parent"))?;
    let Limits { cpu_seconds, memory_mib, .. } = plan.limits;
    let limits = [
        // At the first limit a signal says what happened, at the second one the process is killed.
        (Resource::Cpu, cpu_seconds, cpu_seconds + 1),
        (Resource::As, memory_mib << 20, memory_mib << 20),
        (Resource::Fsize, FILE_BYTES, FILE_BYTES),
        (Resource::Nofile, OPEN_FILES, OPEN_FILES),
        (Resource::Core, 0, 0),
    ];
    // Where no filter refuses processes. It binds everyone but root, and counts threads as processes.
    let no_process = (plan.level == Level::None).then_some((Resource::Nproc, 0, 0));
    for (resource, soft, hard) in limits.into_iter().chain(no_process) {
        setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) })
            .map_err(|error| format!("limiting {resource:?} to {soft}: {error}"))?;
    }
    drop_capabilities().map_err(named("giving up capabilities"))?;
    match plan.level {
        Level::Full => {
            files::restrict(&plan.executable, &plan.readable, &plan.folder)?;
            system_calls::restrict(system_calls::Writing::WhereFilesAllow)?;
        }
        Level::Partial => system_calls::restrict(system_calls::Writing::Nowhere)?,
        Level::None => {}
    }
    let error = Command::new(&plan.executable).args(FLAGS).arg("-c").arg(code).args(&plan.packages).exec();
    Err(format!("starting {}: {error}", plan.executable.display()))
}

/// Gives up what a judge that runs as root could do beyond its files, which includes to look into other processes.
fn drop_capabilities() -> rustix::io::Result<()> {
    let mut sets = capabilities(None)?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        *set &= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    }
    set_capabilities(None, sets)?;
    // Or the interpreter would get them back.
    set_no_new_privs(true)
}

/// A program that tries what the level refuses and fails unless every attempt is refused. `secrets` are files and
/// folders that the user can read.
pub fn probe(level: Level, secrets: &[&Path]) -> String {
    let anywhere = [
        ("writing", WRITE),
        ("connecting", CONNECT),
        ("forking", FORK),
        ("signalling", KILL),
        ("reading the judge's environment", JUDGE),
    ];
    let mut refused: Vec<(&str, String)> = match level {
        Level::Full | Level::Partial => anywhere.map(|(act, code)| (act, code.to_owned())).to_vec(),
        Level::None => Vec::new(),
    };
    if level == Level::Full {
        for path in secrets {
            refused.push((
                "reading",
                format!("os.close(os.open({}, os.O_RDONLY))", json!(path.to_string_lossy())),
            ));
        }
    }
    let mut program = String::from("import os, socket, math, re, collections, itertools, hashlib\n");
    for (act, code) in refused {
        // Python reads text as JSON writes it.
        let failure = json!(format!("{act} was not refused: {code}"));
        program.push_str(&format!(
            "try:\n    {code}\nexcept PermissionError:\n    pass\nelse:\n    raise RuntimeError({failure})\n"
        ));
    }
    program
}

/// A place beside its own folder, in the judge's folder.
const WRITE: &str = "os.close(os.open('../probe', os.O_CREAT | os.O_WRONLY))";
const CONNECT: &str = "socket.socket()";
/// A child, if one can be made, ends at once.
const FORK: &str = "os.fork() or os._exit(0)";
/// Signal 0 only asks whether one could be sent.
const KILL: &str = "os.kill(os.getppid(), 0)";
/// What the judge was started with.
const JUDGE: &str = "os.close(os.open('/proc/%d/environ' % os.getppid(), os.O_RDONLY))";
