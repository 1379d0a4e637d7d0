//! What lies in a run's folder, by name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder of its checkpoints, each a folder named by its [`step`].
pub const CHECKPOINTS: &str = "checkpoints";

/// The resolved configuration.
pub const CONFIG: &str = "config.toml";

/// The folder of its settings: a file for each time that they changed, named by the first [`step`] under them.
pub const SETTINGS: &str = "configs";

/// Which run it is, and how it began; in its mirror too.
pub const IDENTITY: &str = "run.json";

/// The record of all numbers.
pub const METRICS: &str = "metrics.jsonl";

/// The record of steps that left the weights as they were. It is never cut: a run that went back keeps it.
pub const BAD_STEPS: &str = "bad_steps.jsonl";

/// The plot of the losses.
pub const PLOT: &str = "loss.svg";

/// The folder of TensorBoard's files.
pub const EVENTS: &str = "tensorboard";

/// What every name of a step begins with.
pub(crate) const STEP: &str = "step_";

/// The name of what belongs to a step: `step_00001000`.
pub fn step(step: u64) -> String {
    format!("{STEP}{step:08}")
}

/// The records of a run and its configuration, by their paths in its folder; not all need be there.
///
/// # Errors
/// If the folder of events or of settings is there and cannot be listed.
pub(crate) fn record_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names: Vec<PathBuf> = [METRICS, BAD_STEPS, PLOT, CONFIG].map(PathBuf::from).into();
    for inner in [EVENTS, SETTINGS] {
        if folder.join(inner).is_dir() {
            for entry in fs::read_dir(folder.join(inner))? {
                names.push(Path::new(inner).join(entry?.file_name()));
            }
        }
    }
    Ok(names)
}
