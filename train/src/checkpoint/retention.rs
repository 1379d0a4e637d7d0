//! Which checkpoints a run keeps, and how many that can be at once.

use super::store::{steps, whole};
use super::{CheckpointError, Keep, State};
use crate::config::{Checkpoints, RunConfig, ScheduleKind};
use crate::schedule::Phase;
use std::path::{Path, PathBuf};

/// Which checkpoints are kept. The newest one of the stable phase always is: longer training goes on from there, not from
/// weights whose rate has decayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest ones.
    pub keep_last: usize,
    /// The newest ends of epochs.
    pub keep_epochs: usize,
    /// Those of steps that are a multiple of this.
    pub keep_every: Option<u64>,
}

impl Retention {
    /// What a configuration says.
    pub fn of(config: &Checkpoints) -> Retention {
        let Checkpoints { keep_last, keep_epochs, keep_every, .. } = *config;
        Retention { keep_last, keep_epochs, keep_every }
    }
}

/// The most checkpoints that lie in a run's folder at once, if it ends at `steps`: those that are kept, the one being written,
/// and the one being copied to a mirror.
pub fn most_at_once(run: &RunConfig, steps: u64, epoch_rows: u64) -> u64 {
    let config = &run.checkpoint;
    let kept = Retention::of(config);
    let by_steps = steps.div_ceil(config.every);
    let rolling = match config.every_minutes {
        Some(_) => kept.keep_last as u64,
        None => by_steps.min(kept.keep_last as u64),
    };
    let epochs = (steps * run.batch.rows() as u64 / epoch_rows.max(1)).min(kept.keep_epochs as u64);
    let multiples = kept.keep_every.map_or(0, |every| steps / every);
    // It outlives the rolling ones of the decay, if there is one before the end.
    let stable = u64::from(run.schedule.kind == ScheduleKind::Wsd && steps > config.every);
    rolling + epochs + multiples + stable + 1 + u64::from(config.mirror.is_some())
}

/// Checkpoints of a folder that `retention` does not keep, oldest first, among those that are `ours`. The newest `keep_last`
/// and `keep_epochs` are counted without those that were taken among bad steps, which nothing goes back to.
pub(super) fn superseded(
    root: &Path,
    retention: Retention,
    ours: impl Fn(&State) -> bool,
) -> Result<Vec<PathBuf>, CheckpointError> {
    let whole = steps(root)?.into_iter().filter_map(|(step, path)| Some((step, whole(&path)?, path)));
    let good: Vec<_> = whole.filter(|(_, state, _)| ours(state)).collect();
    let sound = || good.iter().rev().filter(|(_, state, _)| state.watch.bad_in_a_row == 0);
    let stable = sound().find(|(_, state, _)| state.phase == Phase::Stable).map(|(step, ..)| *step);
    let Some(oldest_kept) = sound().nth(retention.keep_last.max(1) - 1).map(|(step, ..)| *step) else {
        return Ok(Vec::new());
    };
    let ends = sound().filter(|(_, state, _)| state.keep != Keep::Rolling);
    let epochs: Vec<u64> = ends.take(retention.keep_epochs).map(|(step, ..)| *step).collect();
    let goes = |(step, _, path): (u64, State, PathBuf)| {
        let multiple = retention.keep_every.is_some_and(|every| step.is_multiple_of(every));
        let kept = step >= oldest_kept || multiple || Some(step) == stable || epochs.contains(&step);
        (!kept).then_some(path)
    };
    Ok(good.into_iter().filter_map(goes).collect())
}
