//! [`Saver`]: checkpoints written by a thread while training goes on.

use super::mirror::{self, mirror};
use super::{CheckpointError, Retention, Saved, Snapshot, Store, verify};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Writes one checkpoint at a time in the background. In memory it holds that one snapshot and one transposed
/// matrix; call [`finish`](Saver::finish) before staging the next snapshot, and there is never a second one.
pub struct Saver {
    store: Arc<Store>,
    retention: Retention,
    mirror: Option<PathBuf>,
    in_flight: Option<JoinHandle<Result<Saved, CheckpointError>>>,
}

impl Saver {
    /// A saver into a store, which is pruned after every checkpoint that has become durable. With a `mirror`, each one is
    /// copied there afterwards, and the copies are pruned alike.
    ///
    /// # Errors
    /// If the mirror is the store itself, or no folder can be made there.
    pub fn new(
        store: Store,
        retention: Retention,
        mirror: Option<PathBuf>,
    ) -> Result<Saver, CheckpointError> {
        if let Some(path) = &mirror {
            store.disk.create_dir_all(path).map_err(CheckpointError::read("creating the folder", path))?;
            let real = |path: &Path| path.canonicalize().map_err(CheckpointError::read("looking for", path));
            if real(path)? == real(store.root())? {
                return Err(CheckpointError::MirrorOfItself { path: path.clone() });
            }
        }
        Ok(Saver { store: Arc::new(store), retention, mirror, in_flight: None })
    }

    /// Where it writes to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Waits for the checkpoint before, then starts writing this one and returns what became of the one before.
    ///
    /// # Errors
    /// If the one before failed: this one is then **not** started, and the caller decides whether to try again.
    pub fn save(&mut self, snapshot: Snapshot) -> Result<Option<Saved>, CheckpointError> {
        let before = self.finish()?;
        let (store, retention, copies) = (Arc::clone(&self.store), self.retention, self.mirror.clone());
        self.in_flight = Some(std::thread::spawn(move || {
            let mut saved = store.save(&snapshot)?;
            drop(snapshot);
            saved.removed = store.prune(retention)?;
            // A drive that is full or away must not end the run: the checkpoint itself is safe, and the next one tries again.
            saved.mirrored = copies.map(|root| {
                verify(&saved.path)
                    .and_then(|good| mirror(&good, &*store.disk, &root))
                    .and_then(|copy| mirror::prune(&*store.disk, &root, retention).map(|()| copy))
                    .map_err(|error| error.to_string())
            });
            Ok(saved)
        }));
        Ok(before)
    }

    /// What became of the checkpoint in flight, if it is done; never waits.
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
}

impl Drop for Saver {
    /// A run that ends early still gets its last checkpoint, and hears of it if not.
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            eprintln!("error: {error}");
        }
    }
}
