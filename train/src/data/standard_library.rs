//! The data set of a first run: the Python standard library that this machine has.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::lock::Held;

use super::error::{DataError, Result};
use super::manifest::{DATASET_FILE, FORMAT};
use super::prepare::{
    PrepareOptions, PrepareProgress, PrepareSummary, TokenizerSource, lock, prepare_locked,
};

/// The vocabulary of the default tokenizer.
const VOCABULARY: usize = 4096;

/// Folders that are left out: installed packages, because the data should depend on the Python version alone; and tests,
/// which are 60 % of the bytes, in large part tables of numbers, strings and code points, and would teach a small model those
/// rather than code.
const EXCLUDED: [&str; 8] = [
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "lib-dynload",
    "ensurepip",
    "__pycache__",
];

/// What `python3` says about itself.
#[derive(Deserialize)]
struct Answer {
    version: String,
    stdlib: PathBuf,
}

/// Prepares the standard library into a folder in `cache`, named by Python's version and the options, unless that was done
/// before. Waits if another process is doing it. Returns the folder, and what was done if anything was.
pub fn prepare_standard_library(
    python: &str,
    cache: &Path,
    progress: &mut dyn FnMut(PrepareProgress) -> ControlFlow<()>,
) -> Result<(PathBuf, Option<PrepareSummary>)> {
    let answer = ask(python)?;
    let out = cache.join(format!("python-{}-bpe{VOCABULARY}-v{FORMAT}", answer.version));
    if out.join(DATASET_FILE).is_file() {
        return Ok((out, None));
    }
    let lock = lock(&out, Held::Wait)?;
    if out.join(DATASET_FILE).is_file() {
        return Ok((out, None));
    }
    let mut options = PrepareOptions::new(vec![answer.stdlib], out.clone());
    options.tokenizer = TokenizerSource::Train(VOCABULARY);
    options.exclude = EXCLUDED.map(str::to_owned).to_vec();
    options.validation_fraction = 0.05;
    let summary = prepare_locked(&options, &lock, progress)?;
    Ok((out, Some(summary)))
}

fn ask(python: &str) -> Result<Answer> {
    let fail = |reason: String| DataError::Python { python: python.to_owned(), reason };
    let script = "import json, platform, sysconfig; \
                  print(json.dumps({'version': platform.python_version(), 'stdlib': sysconfig.get_paths()['stdlib']}))";
    let output =
        fetch::python::command(python).args(["-c", script]).output().map_err(|e| fail(e.to_string()))?;
    if !output.status.success() {
        return Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| fail(format!("its answer is not understood: {e}")))
}
