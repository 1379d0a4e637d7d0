//! Which checkpoints a run keeps, and how many that can be at once.

use super::folder::steps;
use super::manifest::whole;
use super::{CheckpointError, Keep, State};
use crate::config::{Checkpoints, RunConfig, ScheduleKind};
use crate::metrics::Validation;
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
    /// Those with the lowest validation loss: of each evaluation the first at or after it.
    pub keep_best: usize,
    /// Those of steps that are a multiple of this.
    pub keep_every: Option<u64>,
}

impl Retention {
    /// What a configuration says.
    pub fn of(config: &Checkpoints) -> Retention {
        let Checkpoints { keep_last, keep_epochs, keep_best, keep_every, .. } = *config;
        Retention { keep_last, keep_epochs, keep_best, keep_every }
    }
}

/// The most checkpoints that lie in a run's folder at once, if it ends at `steps`: those that are kept, the one that a
/// stop left, the one being written, and the one being copied to a mirror.
pub fn most_at_once(run: &RunConfig, steps: u64, epoch_rows: u64) -> u64 {
    let config = &run.checkpoint;
    let kept = Retention::of(config);
    let by_steps = steps.div_ceil(config.every);
    let rolling = match config.every_minutes {
        Some(_) => kept.keep_last as u64,
        None => by_steps.min(kept.keep_last as u64),
    };
    let epochs = (steps * run.batch.rows() as u64 / epoch_rows.max(1)).min(kept.keep_epochs as u64);
    let evaluations = if run.validation.batches > 0 { steps.div_ceil(run.validation.every) } else { 0 };
    let best = evaluations.min(kept.keep_best as u64);
    let multiples = kept.keep_every.map_or(0, |every| steps / every);
    // It outlives the rolling ones of the decay, if there is one before the end.
    let stable = u64::from(run.schedule.kind == ScheduleKind::Wsd && steps > config.every);
    rolling + epochs + best + multiples + stable + 2 + u64::from(config.mirror.is_some())
}

/// States, given by their age, that stand for an evaluation: of each the first at or after it. Of equal losses the
/// oldest comes first.
fn lowest_first(oldest_first: Vec<&State>) -> Vec<&State> {
    let evaluated = |state: &State| state.progress.evaluations.last.filter(|last| last.loss.is_finite());
    let mut found: Vec<(f64, &State)> = Vec::new();
    let mut before = None;
    for state in oldest_first {
        let Some(last) = evaluated(state) else { continue };
        if before.replace(last.step) != Some(last.step) {
            found.push((last.loss, state));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    found.into_iter().map(|(_, state)| state).collect()
}

/// The checkpoint of a folder with the lowest validation loss, and that loss: of each evaluation the first checkpoint
/// at or after it counts. Their bytes are not compared. None if none was evaluated.
///
/// # Errors
/// If the folder cannot be listed.
pub fn best(root: &Path) -> Result<Option<(PathBuf, Validation)>, CheckpointError> {
    let there: Vec<_> =
        steps(root)?.into_iter().filter_map(|(_, path)| Some((whole(&path)?, path))).collect();
    let Some((newest, _)) = there.iter().max_by_key(|(state, _)| state.progress.age()) else {
        return Ok(None);
    };
    let ours = there
        .iter()
        .map(|(state, _)| state)
        .filter(|state| newest.progress.continues(&state.progress) && state.progress.watch.bad_in_a_row == 0);
    let lowest = lowest_first(ours.collect()).into_iter().next();
    Ok(lowest.and_then(|lowest| {
        let (_, path) = there.iter().find(|(state, _)| std::ptr::eq(state, lowest))?;
        Some((path.clone(), lowest.progress.evaluations.last?))
    }))
}

/// Checkpoints of a folder that `retention` does not keep, oldest first, among those that are `ours`. The newest
/// `keep_last` and `keep_epochs`, and the `keep_best`, are counted without those that nothing goes back to: those that
/// were taken among bad steps, and where the run was asked to stop. Checkpoints that the run left when it went back,
/// which a mirror still holds, are not kept.
pub(super) fn superseded(
    root: &Path,
    retention: Retention,
    ours: impl Fn(&Path, &State) -> bool,
) -> Result<Vec<PathBuf>, CheckpointError> {
    let whole = steps(root)?.into_iter().filter_map(|(_, path)| Some((whole(&path)?, path)));
    let good: Vec<_> = whole.filter(|(state, path)| ours(path, state)).collect();
    let progress = good.iter().map(|(state, _)| &state.progress);
    let Some(newest) = progress.max_by_key(|progress| progress.age()).cloned() else {
        return Ok(Vec::new());
    };
    let (line, left): (Vec<_>, Vec<_>) =
        good.into_iter().partition(|(state, _)| newest.continues(&state.progress));
    let states = || line.iter().rev().map(|(state, _)| state);
    let sound = || states().filter(|state| state.progress.watch.bad_in_a_row == 0);
    let regular = || sound().filter(|state| state.keep != Keep::Stop);
    let stable = |state: &&State| state.phase == Phase::Stable;
    let stable = regular().find(stable).or_else(|| sound().find(stable)).map(|state| state.progress.step);
    let oldest_kept = regular().nth(retention.keep_last.max(1) - 1).map(|state| state.progress.step);
    let ends = regular().filter(|state| matches!(state.keep, Keep::EpochEnd(_)));
    let epochs: Vec<u64> = ends.take(retention.keep_epochs).map(|state| state.progress.step).collect();
    let oldest_first: Vec<&State> = regular().collect::<Vec<_>>().into_iter().rev().collect();
    let best: Vec<u64> = lowest_first(oldest_first)
        .into_iter()
        .take(retention.keep_best)
        .map(|state| state.progress.step)
        .collect();
    let goes = |(state, path): (State, PathBuf)| {
        let step = state.progress.step;
        let kept = step == newest.step
            || Some(step) == stable
            || state.keep != Keep::Stop
                && (oldest_kept.is_none_or(|oldest| step >= oldest)
                    || retention.keep_every.is_some_and(|every| step.is_multiple_of(every))
                    || epochs.contains(&step)
                    || best.contains(&step));
        (!kept).then_some(path)
    };
    Ok(left.into_iter().map(|(_, path)| path).chain(line.into_iter().filter_map(goes)).collect())
}
