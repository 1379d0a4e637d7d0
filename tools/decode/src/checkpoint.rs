//! Finding the checkpoint that `--checkpoint` names.

use anyhow::{Context, Result, bail, ensure};
use program::esay;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use train::checkpoint::{Keep, Latest, best, files, first_good, latest_good, steps, whole};
use train::run_folder::CHECKPOINTS;

/// The word for the newest checkpoint.
const LATEST: &str = "latest";
/// The word for the one with the lowest validation loss.
const BEST: &str = "best";
/// What stands between a run and which of its checkpoints is meant.
const OF_RUN: char = '@';
/// Where runs are, if nobody says otherwise.
const RUNS: &str = "runs";

/// Which checkpoint of a run.
#[derive(Clone, Copy)]
enum Which {
    Newest,
    Best,
    /// The end of the epoch of this number, from 1.
    Epoch(u32),
}

/// The checkpoint's folder that `--checkpoint` names: itself a checkpoint's; that of a run or of its checkpoints, for
/// the newest good one in it; or `RUN@latest`, `RUN@best` (lowest validation loss) or `RUN@4` (the end of epoch 4),
/// where the run may be left out: then it is the one in `runs/` whose checkpoint was written last. Says on standard
/// error which one it took, and which damaged ones it passed over.
///
/// # Errors
/// If there is none, or a word that means one is also the name of a folder here.
pub fn find_checkpoint(given: &Path) -> Result<PathBuf> {
    let (run, which) = match word(given) {
        None => (Some(given.to_owned()), Which::Newest),
        Some((run, which)) => {
            ensure!(
                !given.exists(),
                "there is a folder `{}` here: give ./{0} if it is meant, or a run's folder for its newest checkpoint",
                given.display()
            );
            (run, which)
        }
    };
    let (latest, place) = match run {
        Some(run) => {
            ensure!(
                run.is_dir(),
                "there is no checkpoint folder {}; give a run's folder, runs/<name>, or one of its checkpoints, runs/<name>/checkpoints/step_<number>, or `{LATEST}`, `{BEST}` or the number of an epoch, of a run as runs/<name>{OF_RUN}{BEST}",
                run.display()
            );
            let inside = run.join(CHECKPOINTS);
            let root = if inside.is_dir() { inside } else { run.clone() };
            if run.join(files::MODEL).exists() || (root == run && steps(&run)?.is_empty()) {
                ensure!(
                    matches!(which, Which::Newest),
                    "{} is a checkpoint and not a run's folder; leave out what comes after the {OF_RUN}",
                    run.display()
                );
                return Ok(run);
            }
            (of_run(&root, which)?, run)
        }
        None => {
            let newest = newest_of_all(Path::new(RUNS))?;
            let root = newest.good.as_ref().and_then(|good| good.path().parent()).map(Path::to_owned);
            let latest = match (root, which) {
                (None, _) | (_, Which::Newest) => newest,
                (Some(root), _) => of_run(&root, which)?,
            };
            (latest, RUNS.into())
        }
    };
    for (path, reason) in &latest.refused {
        esay!("passing over {}: {reason}", path.display());
    }
    let Some(good) = latest.good else {
        bail!("{} has no good checkpoint; give the folder that `train --out` named", place.display())
    };
    esay!("checkpoint {}", good.path().display());
    Ok(good.path().to_path_buf())
}

/// What a text means that is no path: which checkpoint, and of which run, if it says that.
fn word(given: &Path) -> Option<(Option<PathBuf>, Which)> {
    let text = given.to_str()?;
    let (run, word) = match text.rsplit_once(OF_RUN) {
        Some(_) if given.exists() => return None,
        Some((run, word)) => (Some(run.into()), word),
        None => (None, text),
    };
    let which = match word {
        LATEST => Which::Newest,
        BEST => Which::Best,
        number => Which::Epoch(number.parse().ok()?),
    };
    Some((run, which))
}

/// A checkpoint of a run, by the folder of its checkpoints.
fn of_run(root: &Path, which: Which) -> Result<Latest> {
    let run = root.parent().unwrap_or(root).display();
    match which {
        Which::Newest => Ok(latest_good(root)?),
        Which::Best => match best(root)? {
            Some((path, validation)) => {
                esay!("validation loss {:.4} at step {}", validation.loss, validation.step);
                Ok(first_good([path]))
            }
            None => bail!(
                "{run} has no checkpoint with a validation loss; give {run}{OF_RUN}{LATEST}, or train with validation.batches above 0"
            ),
        },
        Which::Epoch(number) => {
            let end = |(_, path): (u64, PathBuf)| match whole(&path)?.keep {
                Keep::EpochEnd(epoch) => Some((epoch, path)),
                Keep::Rolling | Keep::Stop => None,
            };
            let ends: Vec<(u32, PathBuf)> = steps(root)?.into_iter().filter_map(end).collect();
            match ends.iter().rev().find(|(epoch, _)| *epoch == number) {
                Some((_, path)) => Ok(first_good([path.clone()])),
                None => {
                    let there: Vec<String> = ends.iter().map(|(epoch, _)| epoch.to_string()).collect();
                    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
                    bail!(
                        "{run} has no checkpoint of the end of epoch {number}; there are those of epochs: {there} (checkpoint.keep_epochs says how many are kept)"
                    )
                }
            }
        }
    }
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
