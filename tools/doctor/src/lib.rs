//! `doctor`: one screen that says what this machine has and what is missing, each problem with the command that mends it. The
//! exit code is 0 if everything that is wanted works, else 1.
//!
//! It looks and tries, and changes nothing: no plugin is fetched. The sandbox's level is found by running
//! a program in it and seeing what it is refused. With the feature `trial` each plugin is loaded and used, in a process of its
//! own, so that a plugin that hangs or crashes is a line on the screen. Without the feature, doctor builds without anything
//! that may be missing here.

mod machine;
#[cfg(feature = "trial")]
mod trial;

use clap::Parser;
use eval_humaneval::judge::Judge;
use eval_humaneval::python::Python;
use eval_humaneval::sandbox::{self, Level, Limits};
use fetch::platform::{Cached, Error, Platform};
use fetch::wheel::{self, cache_folder};
use program::output;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Say what this machine has for training, and what it lacks. Exit code 1 if something that is wanted does not work.
#[derive(Parser)]
#[command(name = "doctor", version)]
struct Arguments {
    /// A platform that must work: cuda, tpu or the path of a plugin; may be repeated. cpu always must, and those with a device
    /// here
    #[arg(long, value_name = "NAME|PATH")]
    platform: Vec<String>,
    /// Folder of the runs, whose disk is looked at
    #[arg(long, value_name = "DIR", default_value = "runs")]
    out: PathBuf,
    /// Free GiB wanted for the runs; `train --plan` says how many a run takes
    #[arg(long, value_name = "GIB", default_value_t = 1.0)]
    room: f64,
}

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    /// Not working, but not asked for.
    Note,
    Problem,
}

/// One line of the screen.
struct Finding {
    state: State,
    subject: String,
    what: String,
    remedy: Option<String>,
}

impl Finding {
    fn good(subject: &str, what: impl Into<String>) -> Finding {
        Finding { state: State::Good, subject: subject.to_owned(), what: what.into(), remedy: None }
    }

    /// Something that is not as it should be, and what to do about it.
    fn bad(state: State, subject: &str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { state, subject: subject.to_owned(), what: what.into(), remedy: Some(remedy.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.state {
            State::Good => "ok",
            State::Note => "note",
            State::Problem => "PROBLEM",
        };
        write!(f, "{mark:<8} {:<9} {}", self.subject, self.what.replace('\n', " "))?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n{:<19}-> {remedy}", ""),
            None => Ok(()),
        }
    }
}

/// The whole program: the process's command line, screen and exit code.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let code = sandbox::become_child(&arguments);
    #[cfg(feature = "trial")]
    let code = code.or_else(|| trial::become_child(&arguments));
    if let Some(code) = code {
        return code;
    }
    let findings = examine(&program::arguments());
    let problems = findings.iter().filter(|finding| finding.state == State::Problem).count();
    let mut screen: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    screen += &match problems {
        0 if cfg!(feature = "trial") => "all that is wanted works\n".to_owned(),
        0 => "all that is wanted is here; `cargo run -p doctor --features trial` also tries the plugins\n"
            .to_owned(),
        1 => "1 problem\n".to_owned(),
        several => format!("{several} problems\n"),
    };
    output::write(format_args!("{screen}"));
    program::exit_code(Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

fn examine(arguments: &Arguments) -> Vec<Finding> {
    let mut findings = vec![machine::summary()];
    findings.extend(plugins(&arguments.platform));
    findings.push(machine::tpu_lock());
    findings.push(machine::python());
    findings.push(cache());
    findings.push(disk(
        "disk",
        "of the cache",
        cache_folder().ok().as_deref(),
        CACHE_ROOM,
        "set PYTHONLM_CACHE",
    ));
    findings.push(disk("disk", "of the runs", Some(&arguments.out), arguments.room, "give another --out"));
    findings.push(sandbox_level());
    findings
}

/// Free GiB of the cache's disk: the largest plugin packed and unpacked, and some executables.
const CACHE_ROOM: f64 = 1.0;

fn plugins(asked: &[String]) -> Vec<Finding> {
    let mut wanted = vec![(Platform::Cpu, State::Problem)];
    for (platform, files) in [(Platform::Tpu, machine::tpus()), (Platform::Cuda, machine::gpus())] {
        wanted.push((platform, if files.is_empty() { State::Note } else { State::Problem }));
    }
    let mut findings = Vec::new();
    let given = env::var("PJRT_PLUGIN_PATH").ok().filter(|path| !path.is_empty());
    for name in asked.iter().map(String::as_str).chain(given.as_deref()) {
        // The variable holds a path, whatever it looks like.
        let named =
            if Some(name) == given.as_deref() { Ok(Platform::Path(name.into())) } else { name.parse() };
        match named {
            Ok(platform) => {
                wanted.retain(|(known, _)| *known != platform);
                wanted.push((platform, State::Problem));
            }
            Err(error) => {
                findings.push(Finding::bad(
                    State::Problem,
                    "plugin",
                    error.to_string(),
                    "give --platform one of these",
                ));
            }
        }
    }
    findings.extend(wanted.iter().map(|(platform, bad)| plugin(platform, *bad)));
    findings
}

/// Looks at one plugin and tries it; `bad` is what a failure means.
fn plugin(platform: &Platform, bad: State) -> Finding {
    let subject = match platform {
        Platform::Path(_) => "plugin".to_owned(),
        named => named.to_string(),
    };
    let library = match platform.look() {
        Ok(Cached::Ready(library)) => library,
        Ok(Cached::Packed(package)) => {
            return Finding::good(
                &subject,
                format!("{} is here, unpacked at the first use", package.display()),
            );
        }
        Ok(Cached::Altered(library)) => {
            return Finding::bad(
                State::Problem,
                &subject,
                format!("{} was changed since it was unpacked", library.display()),
                format!("delete {}; the next use unpacks it again", library.display()),
            );
        }
        Ok(Cached::Absent { by_hand, file, folder }) => {
            let remedy = format!(
                "the first use fetches it; without a network run `{by_hand}` elsewhere and put {file} into {}",
                folder.display()
            );
            return Finding::bad(bad, &subject, "the plugin is not here yet", remedy);
        }
        Err(Error::Fetch(wheel::Error::Hash { wheel, path, found })) => {
            return Finding::bad(
                State::Problem,
                &subject,
                format!("{} has sha256 {found}, wanted {}", path.display(), wheel.sha256),
                format!("rm {}; the next use fetches it again", path.display()),
            );
        }
        Err(error) => {
            return Finding::bad(bad, &subject, error.to_string(), "set PJRT_PLUGIN_PATH to a plugin");
        }
    };
    try_plugin(platform, &subject, &library, bad)
}

#[cfg(feature = "trial")]
use trial::try_plugin;

#[cfg(not(feature = "trial"))]
fn try_plugin(_: &Platform, subject: &str, library: &Path, bad: State) -> Finding {
    match library.metadata() {
        Ok(data) => Finding::good(subject, format!("{}, {} MiB", library.display(), data.len() >> 20)),
        Err(error) => {
            let remedy = "give the path of a PJRT plugin";
            Finding::bad(bad, subject, format!("{}: {error}", library.display()), remedy)
        }
    }
}

fn cache() -> Finding {
    let folder = match cache_folder() {
        Ok(folder) => folder,
        Err(error) => {
            let remedy = "set PYTHONLM_CACHE to a folder";
            return Finding::bad(State::Problem, "cache", error.to_string(), remedy);
        }
    };
    let parts: Vec<String> = ["wheels", "unpacked", "executables", "plans", "data"]
        .iter()
        .map(|part| (part, machine::bytes_below(&folder.join(part))))
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(part, bytes)| format!("{part} {} MiB", bytes >> 20))
        .collect();
    let what =
        format!("{}: {}", folder.display(), if parts.is_empty() { "empty".into() } else { parts.join(", ") });
    match machine::try_writing(&folder) {
        Ok(()) => Finding::good("cache", what),
        Err(error) => {
            let remedy = "let it be written, or set PYTHONLM_CACHE to another folder";
            Finding::bad(State::Problem, "cache", format!("{what}; writing there: {error}"), remedy)
        }
    }
}

/// Free space of the disk that a folder is or will be on.
fn disk(subject: &str, of: &str, folder: Option<&Path>, wanted: f64, elsewhere: &str) -> Finding {
    let Some(folder) = folder else {
        return Finding::bad(State::Note, subject, format!("{of}: no folder is named"), elsewhere);
    };
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let there = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(disk) => {
            let free = (disk.f_bavail * disk.f_frsize) as f64 / (1u64 << 30) as f64;
            let what = format!("{free:.1} GiB free on the disk {of}, {}", there.display());
            if free >= wanted {
                return Finding::good(subject, what);
            }
            let remedy = format!("free some, or {elsewhere} on another disk");
            Finding::bad(State::Problem, subject, format!("{what}; wanted {wanted:.1} GiB"), remedy)
        }
        Err(error) => {
            let what = format!("asking for free space in {}: {error}", there.display());
            Finding::bad(State::Problem, subject, what, elsewhere)
        }
    }
}

/// The strongest level of the sandbox that works here.
fn sandbox_level() -> Finding {
    let limits = Limits { cpu_seconds: 5, wall_seconds: 30, memory_mib: 1024 };
    let weaker = "eval-humaneval then wants --sandbox; run it in a container or a machine of its own";
    let python = match Python::find(None) {
        Ok(python) => python,
        Err(error) => {
            return Finding::bad(State::Note, "sandbox", format!("{error:#}"), "install Python 3.8 or newer");
        }
    };
    let mut lacking = String::new();
    for level in [Level::Full, Level::Partial, Level::None] {
        match Judge::new(python.clone(), level, limits) {
            Ok(_) if level == Level::Full => return Finding::good("sandbox", level.to_string()),
            Ok(_) => return Finding::bad(State::Note, "sandbox", format!("{level}; {lacking}"), weaker),
            Err(error) if lacking.is_empty() => {
                lacking = format!("{error}").lines().next().unwrap_or_default().to_owned();
            }
            Err(_) => {}
        }
    }
    Finding::bad(State::Note, "sandbox", lacking, weaker)
}
