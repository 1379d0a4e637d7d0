//! The interpreter that runs judged programs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use fetch::python;
use serde::Deserialize;

/// An interpreter, and what it must be able to read.
#[derive(Clone, Debug, Deserialize)]
pub struct Python {
    /// The program itself: no link, and none of the scripts that version managers put in its place.
    pub executable: PathBuf,
    /// `3.11.7`.
    pub version: String,
    /// Where the packages of its environment are: a virtual one's, if it was found as that.
    pub packages: Vec<PathBuf>,
    /// Folders of its standard library and packages, and each shared library that it loads from elsewhere.
    pub readable: Vec<PathBuf>,
}

/// How the interpreter is started: no user site, no `site`, no bytecode files, UTF-8 everywhere. Not `-I`, which would
/// also ignore [`HASH_SEED`]; the environment is empty and the harness takes the working folder off the path.
pub const FLAGS: [&str; 5] = ["-s", "-S", "-B", "-X", "utf8"];

/// Fixes the order of sets, on which some verdicts depend.
pub const HASH_SEED: (&str, &str) = ("PYTHONHASHSEED", "0");

/// Libraries of linear algebra start a thread for each core of the machine, and reserve memory for each of them.
pub const ONE_THREAD: (&str, &str) = ("OMP_NUM_THREADS", "1");

/// The oldest version that the benchmarks' solutions run on.
const OLDEST: (u32, u32) = (3, 8);

/// Asks a command which interpreter it starts. A virtual environment's is told by its place, so links stay.
const NAME: &str = "import sys; sys.stdout.buffer.write(sys.executable.encode('utf-8', 'surrogateescape'))";

/// Asks an interpreter about itself. Extension modules load their libraries from wherever they were built against:
/// each is loaded, and what has come into memory with them is named file by file.
const INTRODUCE: &str = r#"
import importlib, json, os, site, sys, sysconfig
library = os.path.realpath(sysconfig.get_path("stdlib"))
packages = [os.path.realpath(path) for path in site.getsitepackages() if os.path.isdir(path)]
readable = {library, os.path.realpath(sysconfig.get_path("platstdlib")), *packages}
answers = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for path in sys.path:
    if os.path.basename(path) == "lib-dynload" and os.path.isdir(path):
        readable.add(os.path.realpath(path))
        for name in sorted(os.listdir(path)):
            try:
                importlib.import_module(name.split(".")[0])
            except Exception:
                pass
try:
    for line in open("/proc/self/maps"):
        path = line.rstrip("\n").split(None, 5)[5:]
        if path and ".so" in path[0] and os.path.isfile(path[0]):
            readable.add(os.path.realpath(path[0]))
except OSError:
    pass
os.write(answers, json.dumps({
    "executable": os.path.realpath(sys.executable),
    "version": "%d.%d.%d" % sys.version_info[:3],
    "packages": packages,
    "readable": sorted(readable),
}).encode())
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
        // The environment may decide which interpreter it is, as with version managers. But the interpreter is asked about
        // itself with an empty environment, as judged programs have it: otherwise libraries that the environment preloads
        // or finds would become readable for nothing. From the root, so that no file of the working folder is imported.
        let mut ask = python::command(&program);
        let name = answer(&program, ask.args(["-S", "-B", "-c", NAME]).current_dir("/"))?;
        let executable = PathBuf::from(OsString::from_vec(name));
        let mut ask = python::command(&executable);
        let found = answer(&executable, ask.args(["-B", "-c", INTRODUCE]).current_dir("/").env_clear())?;
        let python: Python = serde_json::from_slice(&found)
            .with_context(|| format!("asking {} about itself", executable.display()))?;
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

/// What an interpreter answers.
fn answer(program: &Path, ask: &mut Command) -> Result<Vec<u8>> {
    let doing = || format!("asking {} about itself", program.display());
    let output = ask
        .stdin(Stdio::null())
        .output()
        .map_err(|error| anyhow!("{}: {error}; install Python 3 or give --python PATH", doing()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {} ({}); give another one with --python PATH", doing(), said.trim(), output.status);
    }
    Ok(output.stdout)
}
