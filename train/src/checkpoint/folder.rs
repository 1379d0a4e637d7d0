//! A checkpoint's folder by its name and its small files; whether they are right is not looked at here.

use super::{CheckpointError, FORMAT, OLDEST, State, files};
use crate::run_folder::STEP;
use model::Config;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) fn own_config(folder: &Path) -> Result<Config, CheckpointError> {
    let path = folder.join(files::CONFIG);
    let text = fs::read_to_string(&path).map_err(CheckpointError::read("reading", &path))?;
    Config::from_json(&text)
        .map_err(|error| CheckpointError::NotACheckpoint { path: folder.into(), reason: error.to_string() })
}

pub(super) fn read_state(folder: &Path) -> Result<State, CheckpointError> {
    let path = folder.join(files::STATE);
    let text = fs::read(&path).map_err(CheckpointError::read("reading", &path))?;
    let damaged =
        |reason| CheckpointError::Damaged { path: folder.into(), file: files::STATE.into(), reason };
    let state: State = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if !(OLDEST..=FORMAT).contains(&state.format) {
        let reason = format!("it has format {}, this program reads {OLDEST} to {FORMAT}", state.format);
        return Err(damaged(reason));
    }
    Ok(state)
}

/// The step that a folder's name claims, if it is a checkpoint's name.
pub(super) fn own_step(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(STEP)?.parse().ok()
}

/// Steps and folders of all names `step_<number>`, oldest first; whether they are whole is not looked at.
///
/// # Errors
/// If the folder cannot be listed.
pub fn steps(root: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    steps_with_suffix(root, "")
}

pub(super) fn steps_with_suffix(root: &Path, suffix: &str) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(CheckpointError::read("listing", root))? {
        let entry = entry.map_err(CheckpointError::read("listing", root))?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix(STEP)?.strip_suffix(suffix)?.parse().ok());
        if let Some(step) = step {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}
