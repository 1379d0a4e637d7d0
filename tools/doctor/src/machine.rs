//! What the system says about itself: processors, memory, limits, who holds a TPU and what the environment says of it, Python,
//! folders.

use crate::{Finding, State};
use fetch::{devices, python};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::process;

/// libtpu's own lock: one process at a time uses the TPU.
const LOCK: &str = "/tmp/libtpu_lockfile";

/// System, processors and memory: the machine's, or what control groups leave of them.
pub(crate) fn summary(root: &Path) -> Finding {
    let text = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let bytes = |name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: f64 = line.trim_start_matches(':').split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024.0)
    };
    let Limits { memory, processors } = limits(root);
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    let gib = |bytes: f64| format!("{:.1} GiB", bytes / (1u64 << 30) as f64);
    let limited = |limit: Option<f64>, all: f64, form: &dyn Fn(f64) -> String, what: &str| match limit {
        Some(limit) if limit < all => {
            format!("{} {what} (a control group's limit; the machine has {})", form(limit), form(all))
        }
        _ => format!("{} {what}", form(all)),
    };
    let memory = match (bytes("MemTotal"), bytes("MemAvailable")) {
        (Some(total), Some(free)) => {
            let free = free.min(memory.unwrap_or(free));
            format!("{}, {} of it free", limited(memory, total, &gib, "of memory"), gib(free))
        }
        _ => "memory unknown".to_owned(),
    };
    let cores = limited(processors, cores, &|cores| format!("{cores}"), "cores");
    let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    Finding::good("machine", format!("{system}, {cores}, {memory}"))
}

/// What this process may use at most.
#[derive(Debug, Default, PartialEq)]
struct Limits {
    /// Bytes.
    memory: Option<f64>,
    processors: Option<f64>,
}

/// The smallest limits of this process's control groups and of all above them, of version 2 or 1.
fn limits(root: &Path) -> Limits {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits = Limits::default();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let all = root.join("sys/fs/cgroup");
        let tops = match controllers {
            "" => vec![all.clone(), all.join("unified")],
            names => names.split(',').chain([names]).map(|name| all.join(name)).collect(),
        };
        // A path from outside of this container leads nowhere; what is mounted is then the container's own group.
        let names = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
        let below: PathBuf = names.collect();
        for folder in tops.iter().flat_map(|top| below.ancestors().map(|below| top.join(below))) {
            let number = |file: &str| -> Option<f64> {
                fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
            };
            let quota = fs::read_to_string(folder.join("cpu.max")).ok().and_then(|text| {
                let (quota, period) = text.trim().split_once(' ')?;
                Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
            });
            let quota = quota.or_else(|| {
                let quota = number("cpu.cfs_quota_us").filter(|&quota| quota > 0.0)?;
                Some(quota / number("cpu.cfs_period_us")?)
            });
            let memory = number("memory.max").or_else(|| number("memory.limit_in_bytes"));
            let smaller = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::min);
            limits.memory = smaller(limits.memory, memory);
            limits.processors = smaller(limits.processors, quota);
        }
    }
    limits
}

/// What the environment says to libtpu of the TPU that is here; nothing where none is.
pub(crate) fn tpu_environment(root: &Path, value: impl Fn(&str) -> Option<String>) -> Option<Finding> {
    if devices::tpus(root).is_empty() {
        return None;
    }
    let found: Vec<String> =
        (devices::V6E.iter()).filter_map(|(name, _)| Some(format!("{name}={}", value(name)?))).collect();
    let lacking: Vec<_> = devices::V6E.iter().filter(|(name, _)| value(name).is_none()).collect();
    let what = if found.is_empty() { "nothing is set".to_owned() } else { found.join(" ") };
    if lacking.is_empty() {
        return Some(Finding::good("tpu env", what));
    }
    let names: Vec<&str> = lacking.iter().map(|(name, _)| *name).collect();
    let mut what = format!("{what}; a v6e's notebook also has {}", names.join(" "));
    if let Some(why) = devices::metadata_query(root, |name| value(name).is_some()) {
        what += &format!("; {why}");
    }
    let known: Vec<String> =
        lacking.iter().filter_map(|(name, value)| Some(format!("{name}={}", (*value)?))).collect();
    let mut remedies = Vec::new();
    if !known.is_empty() {
        remedies.push(format!("on a v6e with one chip: `export {}`", known.join(" ")));
    }
    if let Some((own, _)) = lacking.iter().find(|(_, value)| value.is_none()) {
        remedies.push(format!("{own} is this machine's own: a notebook's cell `%env {own}` prints it"));
    }
    Some(Finding::bad(State::Note, "tpu env", what, remedies.join("; ")))
}

/// Whether another process has the TPU.
pub(crate) fn tpu_lock(root: &Path) -> Finding {
    let lock = Path::new(LOCK);
    let mut holders: Vec<String> = Vec::new();
    let tpus = devices::tpus(root);
    for path in tpus.iter().map(PathBuf::as_path).chain([lock]) {
        holders
            .extend(open_in(path).into_iter().map(|process| format!("{process} holds {}", path.display())));
    }
    let here = !tpus.is_empty();
    match (holders.is_empty(), lock.exists()) {
        (false, _) => {
            let state = if here { State::Problem } else { State::Note };
            let remedy = "wait for it or stop it: a TPU serves one process";
            Finding::bad(state, "tpu lock", holders.join("; "), remedy)
        }
        (true, true) => Finding::bad(
            State::Note,
            "tpu lock",
            format!("{LOCK} is there and no process that can be seen holds it"),
            format!("if a TPU run says that it is in use: rm {LOCK}"),
        ),
        (true, false) if here => Finding::good("tpu lock", "the TPU is free"),
        (true, false) => Finding::good("tpu lock", "none; no TPU is here"),
    }
}

/// The other processes that have a file open, as far as this user may look: `process 12 (train)`.
fn open_in(path: &Path) -> Vec<String> {
    let own = process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().into_string().ok());
    ids.filter(|id| *id != own && id.parse::<u32>().is_ok())
        .filter(|id| {
            let files = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
            files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target == path)
        })
        .map(|id| {
            let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            format!("process {id} ({})", name.trim())
        })
        .collect()
}

/// `python3` and its pip, which fetch plugins.
pub(crate) fn python() -> Finding {
    let ask = |args: &[&str]| match python::command("python3").args(args).output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(said.trim().lines().last().unwrap_or("it failed").to_owned())
        }
        Err(error) => Err(error.to_string()),
    };
    match (ask(&["--version"]), ask(&["-m", "pip", "--version"])) {
        (Ok(version), Ok(pip)) => {
            let pip: Vec<&str> = pip.split_whitespace().take(2).collect();
            Finding::good("python3", format!("{version}, {}", pip.join(" ")))
        }
        (Ok(version), Err(error)) => Finding::bad(
            State::Problem,
            "python3",
            format!("{version}, but no pip: {error}"),
            format!("plugins are fetched with it: {}", python::NO_PIP),
        ),
        (Err(error), _) => Finding::bad(
            State::Problem,
            "python3",
            format!("python3 could not be started: {error}"),
            "install Python 3 with pip: it fetches plugins, and its library is the default training data",
        ),
    }
}

/// Bytes of all files below a folder.
pub(crate) fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.filter_map(|entry| {
        let data = entry.metadata().ok()?;
        Some(if data.is_dir() { bytes_below(&entry.path()) } else { data.len() })
    });
    bytes.sum()
}

/// Writes and removes a small file in a folder, or in the nearest one above that exists.
pub(crate) fn try_writing(folder: &Path) -> io::Result<()> {
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let path = there.join(format!(".doctor-{}.tmp", process::id()));
    let written = fs::write(&path, [0; 4096]);
    match fs::remove_file(&path) {
        Err(error) if written.is_ok() => Err(error),
        _ => written,
    }
}
