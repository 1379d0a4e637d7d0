//! Finding the checkpoint that `--checkpoint` names.

use anyhow::{Context, Result, bail, ensure};
use program::esay;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use train::checkpoint::{Latest, files, first_good, latest_good, steps};
use train::run_folder::CHECKPOINTS;

/// The word for the newest checkpoint of all runs.
const LATEST: &str = "latest";
/// Where runs are, if nobody says otherwise.
const RUNS: &str = "runs";

/// The checkpoint's folder that `--checkpoint` names: itself a checkpoint's; that of a run or of its checkpoints, for the newest
/// good one in it; or the word `latest`, for the good checkpoint in `runs/` that was written last. Says on standard error
/// which one it took, and which damaged ones it passed over.
///
/// # Errors
/// If there is none, or `latest` is also the name of a folder here.
pub fn find_checkpoint(given: &Path) -> Result<PathBuf> {
    let latest = if given == Path::new(LATEST) {
        ensure!(
            !given.exists(),
            "there is a folder `{LATEST}` here: give ./{LATEST} if it is meant, or a run's folder for its newest checkpoint"
        );
        newest_of_all(Path::new(RUNS))?
    } else {
        ensure!(
            given.is_dir(),
            "there is no checkpoint folder {}; give a run's folder, runs/<name>, or one of its checkpoints, runs/<name>/checkpoints/step_<number>, or `{LATEST}`",
            given.display()
        );
        let inside = given.join(CHECKPOINTS);
        let root = if inside.is_dir() { &inside } else { given };
        if given.join(files::MODEL).exists() || (root == given && steps(given)?.is_empty()) {
            return Ok(given.to_path_buf());
        }
        latest_good(root)?
    };
    for (path, reason) in &latest.refused {
        esay!("passing over {}: {reason}", path.display());
    }
    let Some(good) = latest.good else {
        let place = if given == Path::new(LATEST) { Path::new(RUNS) } else { given };
        bail!("{} has no good checkpoint; give the folder that `train --out` named", place.display())
    };
    esay!("checkpoint {}", good.path().display());
    Ok(good.path().to_path_buf())
}

/// The good checkpoint of all runs in a folder that was written last. Steps of different runs cannot be compared: the time
/// of the manifest, which is written last, can.
fn newest_of_all(runs: &Path) -> Result<Latest> {
    let mut all: Vec<(SystemTime, PathBuf)> = Vec::new();
    let listing = || format!("looking for runs in {}; give a checkpoint's folder", runs.display());
    for run in fs::read_dir(runs).with_context(listing)? {
        let root = run.with_context(listing)?.path().join(CHECKPOINTS);
        let found = if root.is_dir() { steps(&root)? } else { Vec::new() };
        let written =
            |path: &PathBuf| fs::metadata(path.join(files::MANIFEST)).and_then(|file| file.modified());
        // A checkpoint without a manifest was never finished.
        all.extend(found.into_iter().filter_map(|(_, path)| Some((written(&path).ok()?, path))));
    }
    all.sort();
    Ok(first_good(all.into_iter().rev().map(|(_, path)| path)))
}
