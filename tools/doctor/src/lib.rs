//! `doctor`: one screen that says what this machine has and what is missing, each problem with the command that mends it. The
//! exit code is 0 if everything that is wanted works, else 1.
//!
//! It looks and tries, and changes nothing: no plugin is fetched unless `--fetch` asks for that and nothing else. The
//! sandbox's level is found by running a program in it and seeing what it is refused. With the feature `trial` each plugin is
//! loaded and used, in a process of its own, so that a plugin that hangs or crashes is a line on the screen. Without the
//! feature, doctor builds without anything that may be missing here.

mod machine;
#[cfg(feature = "trial")]
mod trial;

use clap::Parser;
use eval_humaneval::judge::Judge;
use eval_humaneval::python::Python;
use eval_humaneval::sandbox::{self, Level, Limits};
use fetch::devices;
use fetch::platform::{Cached, Error, Platform, Purpose};
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
    /// Fetch all that the platforms need, of those named or else of cpu and of the devices here, and do nothing else
    #[arg(long)]
    fetch: bool,
    /// The folder below which the system's files are looked at, for tests
    #[arg(long, hide = true, default_value = "/")]
    root: PathBuf,
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
    let arguments: Arguments = program::arguments();
    let findings = if arguments.fetch { fetch(&arguments) } else { examine(&arguments) };
    let problems = findings.iter().filter(|finding| finding.state == State::Problem).count();
    let mut screen: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    screen += &match problems {
        0 if arguments.fetch => "all of it is here\n".to_owned(),
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
    let (wanted, mut findings) = wanted(arguments);
    findings.insert(0, machine::summary(&arguments.root));
    findings.extend(wanted.iter().map(|(platform, wanted)| plugin(platform, *wanted, &arguments.root)));
    findings.extend(machine::tpu_environment(&arguments.root, |name| env::var(name).ok()));
    findings.push(machine::tpu_lock(&arguments.root));
    findings.push(machine::python());
    findings.push(cache());
    findings.push(disk(
        "disk",
        "of the cache",
        cache_folder().ok().as_deref(),
        if devices::gpus(&arguments.root).is_empty() { CACHE_ROOM } else { CACHE_ROOM_FOR_CUDA },
        "set PYTHONLM_CACHE",
    ));
    findings.push(disk("disk", "of the runs", Some(&arguments.out), arguments.room, "give another --out"));
    findings.push(sandbox_level());
    findings
}

/// Free GiB of the cache's disk: the largest plugin packed and unpacked, and some executables.
const CACHE_ROOM: f64 = 1.0;

/// With the libraries of CUDA.
const CACHE_ROOM_FOR_CUDA: f64 = 6.0;

/// Why a platform is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// It must work, now.
    Now,
    /// There is a device for it, so it must work once it is fetched.
    ForDevice,
    No,
}

impl Wanted {
    /// What it means if a plugin does not work.
    fn broken(self) -> State {
        if self == Wanted::No { State::Note } else { State::Problem }
    }

    /// What it means if a plugin was not fetched yet.
    fn absent(self) -> State {
        if self == Wanted::Now { State::Problem } else { State::Note }
    }
}

/// The platforms to look at, and what is wrong with those that were asked for.
fn wanted(arguments: &Arguments) -> (Vec<(Platform, Wanted)>, Vec<Finding>) {
    let (asked, root) = (&arguments.platform, &arguments.root);
    let mut wanted = vec![(Platform::Cpu, Wanted::Now)];
    for (platform, files) in [(Platform::Tpu, devices::tpus(root)), (Platform::Cuda, devices::gpus(root))] {
        wanted.push((platform, if files.is_empty() { Wanted::No } else { Wanted::ForDevice }));
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
                wanted.push((platform, Wanted::Now));
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
    (wanted, findings)
}

/// Fetches what the platforms need.
fn fetch(arguments: &Arguments) -> Vec<Finding> {
    let (mut wanted, mut findings) = wanted(arguments);
    wanted.retain(|(platform, wanted)| match arguments.platform.is_empty() {
        true => *wanted != Wanted::No,
        false => arguments.platform.contains(&platform.to_string()),
    });
    findings.extend(wanted.iter().map(|(platform, _)| match platform.library(Purpose::Compute) {
        Ok(library) => Finding::good(&subject(platform), library.display().to_string()),
        Err(error) => {
            let text = error.to_string();
            let (what, remedy) = text.split_once('\n').unwrap_or((&text, "see what is wrong above"));
            Finding::bad(State::Problem, &subject(platform), what, remedy)
        }
    }));
    findings
}

fn subject(platform: &Platform) -> String {
    match platform {
        Platform::Path(_) => "plugin".to_owned(),
        named => named.to_string(),
    }
}

/// Looks at one plugin and tries it.
fn plugin(platform: &Platform, wanted: Wanted, root: &Path) -> Finding {
    let subject = subject(platform);
    let bad = wanted.broken();
    let purpose = match platform {
        Platform::Cuda if devices::gpus(root).is_empty() => Purpose::Compile,
        _ => Purpose::Compute,
    };
    let library = match platform.look(purpose) {
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
        Ok(Cached::Absent { wheels, by_hand, folder }) => {
            let what = match wheels.len() {
                1 => "the plugin is not here yet".to_owned(),
                several => format!("{several} packages of the plugin are not here yet"),
            };
            let remedy = format!(
                "`cargo run -p doctor -- --platform {platform} --fetch` fetches it, and so does the first use; without a network run `{by_hand}` elsewhere and put what it fetches into {}",
                folder.display()
            );
            return Finding::bad(wanted.absent(), &subject, what, remedy);
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
    try_plugin(platform, &subject, &library, bad, root)
}

#[cfg(feature = "trial")]
use trial::try_plugin;

#[cfg(not(feature = "trial"))]
fn try_plugin(_: &Platform, subject: &str, library: &Path, bad: State, _: &Path) -> Finding {
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
