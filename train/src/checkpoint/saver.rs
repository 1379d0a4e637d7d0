//! [`Saver`]: checkpoints written by a thread while training goes on, and offered to a mirror.

use super::mirror::{Copied, CopyProgress, Mirror};
use super::{CheckpointError, Keep, Progress, Retention, Saved, Snapshot, Store, Verified, sound};
use program::esay;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Writes one checkpoint at a time in the background. In memory it holds that one snapshot and one transposed
/// matrix; call [`finish`](Saver::finish) before staging the next snapshot, and there is never a second one.
pub struct Saver {
    store: Arc<Store>,
    retention: Retention,
    mirror: Option<Mirror>,
    in_flight: Option<JoinHandle<Result<Saved, CheckpointError>>>,
}

impl Saver {
    /// A saver into a store, which is pruned after every checkpoint that has become durable. Each of those is offered to the
    /// mirror, if there is one; nothing here waits for the copy but [`finish_copies`](Saver::finish_copies).
    pub fn new(store: Store, retention: Retention, mirror: Option<Mirror>) -> Saver {
        Saver { store: Arc::new(store), retention, mirror, in_flight: None }
    }

    /// Where it writes to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The checkpoint to go back to, as [`sound`]: the store's, or the mirror's if the store has none, as on a new machine.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn sound(&self, before: u64, now: &Progress) -> Result<Option<Verified>, CheckpointError> {
        if let Some(good) = sound(self.store.root(), before, now)? {
            return Ok(Some(good));
        }
        // Best effort, as all that is in a mirror.
        Ok(self.mirror.as_ref().and_then(|mirror| sound(mirror.root(), before, now).ok().flatten()))
    }

    /// Waits for the checkpoint before, then starts writing this one. Returns the one before, if it was not returned yet.
    ///
    /// # Errors
    /// If the one before failed: this one is then **not** started, and the caller decides whether to try again.
    pub fn save(&mut self, snapshot: Snapshot) -> Result<Option<Saved>, CheckpointError> {
        let before = self.finish()?;
        let (store, retention) = (Arc::clone(&self.store), self.retention);
        let offers = self.mirror.as_ref().map(Mirror::offers);
        self.in_flight = Some(std::thread::spawn(move || {
            let mut saved = store.save(&snapshot)?;
            let keep = snapshot.state.keep;
            drop(snapshot);
            // Offered first: from then on the mirror takes none that is older.
            let spared = offers.map_or(Vec::new(), |offers| {
                offers.offer(&saved.path, keep);
                offers.spared()
            });
            saved.removed = store.prune(retention, &spared)?;
            Ok(saved)
        }));
        Ok(before)
    }

    /// The checkpoint in flight, if it is written by now; never waits.
    ///
    /// # Errors
    /// If it failed.
    pub fn poll(&mut self) -> Result<Option<Saved>, CheckpointError> {
        if self.in_flight.as_ref().is_some_and(JoinHandle::is_finished) { self.finish() } else { Ok(None) }
    }

    /// Waits for the checkpoint in flight. Call it before the end of a run.
    ///
    /// # Errors
    /// If it failed.
    pub fn finish(&mut self) -> Result<Option<Saved>, CheckpointError> {
        let Some(thread) = self.in_flight.take() else { return Ok(None) };
        match thread.join() {
            Ok(result) => result.map(Some),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                Err(CheckpointError::Panicked(text.unwrap_or_else(|| "no message".into())))
            }
        }
    }

    /// Offers the mirror a checkpoint of the store that an earlier start may not have copied.
    pub fn catch_up(&self, checkpoint: &Path, keep: Keep) {
        if let Some(mirror) = &self.mirror {
            mirror.offers().offer(checkpoint, keep);
        }
    }

    /// The copies that were made, left out or failed since the last call; never waits.
    pub fn copies(&self) -> Vec<Copied> {
        self.mirror.as_ref().map_or(Vec::new(), Mirror::became)
    }

    /// Waits for the copies, as [`Mirror::finish`], and removes what was kept for them. Call it after
    /// [`finish`](Saver::finish).
    ///
    /// # Errors
    /// If removing fails.
    pub fn finish_copies(
        &mut self,
        patience: Duration,
        watch: impl FnMut(&CopyProgress) -> ControlFlow<&'static str>,
    ) -> Result<(), CheckpointError> {
        let Some(mirror) = &mut self.mirror else { return Ok(()) };
        mirror.finish(patience, watch);
        let spared = mirror.offers().spared();
        self.store.prune(self.retention, &spared).map(drop)
    }
}

impl Drop for Saver {
    /// A run that ends early still gets its last checkpoint, or an error message.
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            esay!("error: {error}");
        }
    }
}
