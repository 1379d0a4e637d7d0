//! What the system says about itself: processors, memory, device files, who holds them, Python, folders.

use crate::{Finding, State};
use fetch::python;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;

/// libtpu's own lock: one process at a time uses the TPU.
const LOCK: &str = "/tmp/libtpu_lockfile";

/// System, processors and memory.
pub(crate) fn summary() -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gib = |name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: f64 = line.trim_start_matches(':').split_whitespace().next()?.parse().ok()?;
        Some(kib / 1048576.0)
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = match (gib("MemTotal"), gib("MemAvailable")) {
        (Some(total), Some(free)) => format!("{total:.1} GiB of memory, {free:.1} GiB of it free"),
        _ => "memory unknown".to_owned(),
    };
    let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    Finding::good("machine", format!("{system}, {cores} cores, {memory}"))
}

/// Device files of TPUs.
pub(crate) fn tpus() -> Vec<PathBuf> {
    [numbered("/dev", "accel"), numbered("/dev/vfio", "")].concat()
}

/// Device files of NVIDIA GPUs.
pub(crate) fn gpus() -> Vec<PathBuf> {
    numbered("/dev", "nvidia")
}

fn numbered(folder: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_numbered = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u32>().is_ok())
    };
    entries.filter(is_numbered).collect()
}

/// Whether another process has the TPU.
pub(crate) fn tpu_lock() -> Finding {
    let lock = Path::new(LOCK);
    let mut holders: Vec<String> = Vec::new();
    for path in tpus().iter().map(PathBuf::as_path).chain([lock]) {
        holders
            .extend(open_in(path).into_iter().map(|process| format!("{process} holds {}", path.display())));
    }
    let here = !tpus().is_empty();
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
