//! The interpreter that runs judged programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

/// An interpreter, and what it must be able to read.
#[derive(Clone, Debug, Deserialize)]
pub struct Python {
    /// The program itself: no link, and none of the scripts that version managers put in its place.
    pub executable: PathBuf,
    /// `3.11.7`.
    pub version: String,
    /// Folders of its standard library and of the shared libraries that it has loaded.
    pub folders: Vec<PathBuf>,
}

/// How the interpreter is started: no user site, no `site`, no bytecode files, UTF-8 everywhere. Not `-I`, which would
/// also ignore [`HASH_SEED`]; the environment is empty and the harness takes the working folder off the path.
pub const FLAGS: [&str; 5] = ["-s", "-S", "-B", "-X", "utf8"];

/// The one environment variable of a judged program: without it the order of sets, and with it now and then a
/// verdict, would change from run to run.
pub const HASH_SEED: (&str, &str) = ("PYTHONHASHSEED", "0");

/// The oldest version that the benchmarks' solutions run on.
const OLDEST: (u32, u32) = (3, 8);

/// Asks an interpreter about itself.
const INTRODUCE: &str = r#"
import json, os, sys, sysconfig
folders = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
try:
    for line in open("/proc/self/maps"):
        path = line.rstrip("\n").split(None, 5)[5:]
        if path and ".so" in path[0] and os.path.isfile(path[0]):
            folders.add(os.path.dirname(os.path.realpath(path[0])))
except OSError:
    pass
print(json.dumps({
    "executable": os.path.realpath(sys.executable),
    "version": "%d.%d.%d" % sys.version_info[:3],
    "folders": sorted(folders),
}))
"#;

impl Python {
    /// The interpreter at `path`, or the `python3` of the command search path.
    ///
    /// # Errors
    /// If it cannot be started or is older than Python 3.8.
    pub fn find(path: Option<&Path>) -> Result<Python> {
        let program = match path {
            None => PathBuf::from("python3"),
            // A bare name is searched for; a path is the caller's and not that of the folder below.
            Some(name) if name.components().count() == 1 => name.to_owned(),
            Some(path) => std::path::absolute(path)?,
        };
        let doing = || format!("asking {} about itself", program.display());
        // From the root, so that no file of the working folder is imported.
        let output = Command::new(&program)
            .args(["-I", "-S", "-B", "-c", INTRODUCE])
            .current_dir("/")
            .output()
            .map_err(|error| anyhow!("{}: {error}; install Python 3 or give --python PATH", doing()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {} ({}); give another one with --python PATH", doing(), said.trim(), output.status);
        }
        let python: Python = serde_json::from_slice(&output.stdout).with_context(doing)?;
        let mut numbers = python.version.split('.').map(|part| part.parse().unwrap_or(0));
        let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if found < OLDEST {
            bail!(
                "{} is Python {}; judging wants {}.{} or newer: give one with --python PATH",
                python.executable.display(),
                python.version,
                OLDEST.0,
                OLDEST.1
            );
        }
        Ok(python)
    }
}
