//! A disk that fails on request: the k-th operation once, or that one and all after it with the loss of what was not
//! synced (a crash), or every write from it on (a full disk). What a crash loses is decided here, so nothing is really
//! synced.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use train::atomic::{Disk, DiskFile, RealDisk};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation of this number (from 0) reports an input/output error; later ones work.
    Once(usize),
    /// The process dies at the operation of this number: it and all later ones fail, files that were not synced lose
    /// their second half, and a new name in a folder that was not synced is forgotten.
    Crash(usize),
    /// The disk is full from the operation of this number on: no file is created, a write stores its first half and fails.
    FullFrom(usize),
    /// The disk says that it has room for so many bytes.
    Room(u64),
    /// Nothing: operations are only counted.
    None,
}

/// A [`RealDisk`] with one planned fault.
#[derive(Clone, Debug)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    operations: usize,
    crashed: bool,
    unsynced: Vec<PathBuf>,
    renamed: Vec<(PathBuf, PathBuf)>,
}

struct FaultyFile {
    disk: FaultyDisk,
    path: PathBuf,
    file: Box<dyn DiskFile>,
}

impl FaultyDisk {
    /// A disk with a fault ahead.
    pub fn new(fault: Fault) -> FaultyDisk {
        let (unsynced, renamed) = (Vec::new(), Vec::new());
        let state = State { fault, operations: 0, crashed: false, unsynced, renamed };
        FaultyDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// Operations so far, failed ones included.
    pub fn operations(&self) -> usize {
        self.state.lock().expect("no operation panics").operations
    }

    /// The process dies now: as at [`Fault::Crash`].
    pub fn crash(&self) {
        self.change(|state| {
            state.fault = Fault::Crash(state.operations);
            state.crashed = true;
            state.lose_what_was_not_synced();
        });
    }

    /// Whether the disk is full at the operation just counted.
    fn full(&self) -> bool {
        let state = self.state.lock().expect("no operation panics");
        matches!(state.fault, Fault::FullFrom(k) if k < state.operations)
    }

    /// Counts an operation; an error if it is the one to fail.
    fn pass(&self) -> io::Result<()> {
        let mut state = self.state.lock().expect("no operation panics");
        let number = state.operations;
        state.operations += 1;
        match state.fault {
            Fault::Once(k) if k == number => Err(io::Error::other("injected input/output error")),
            Fault::Crash(k) if k <= number => {
                if !state.crashed {
                    state.crashed = true;
                    state.lose_what_was_not_synced();
                }
                Err(io::Error::other("injected crash"))
            }
            _ => Ok(()),
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no operation panics"));
    }
}

impl State {
    fn lose_what_was_not_synced(&mut self) {
        for (from, to) in self.renamed.drain(..).rev() {
            // Only a new name can be forgotten here: what a replaced one held is gone on the real disk below.
            let _ = std::fs::rename(to, from);
        }
        for path in self.unsynced.drain(..) {
            if let Ok(file) = std::fs::OpenOptions::new().write(true).open(&path) {
                let length = file.metadata().map_or(0, |metadata| metadata.len());
                let _ = file.set_len(length / 2);
            }
        }
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.pass()?;
        if self.full() {
            return Err(no_space());
        }
        let file = RealDisk.create(path)?;
        self.change(|state| state.unsynced.push(path.into()));
        Ok(Box::new(FaultyFile { disk: self.clone(), path: path.into(), file }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.create_dir_all(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass()?;
        let new = !to.exists();
        RealDisk.rename(from, to)?;
        self.change(|state| {
            if new {
                state.renamed.push((from.into(), to.into()));
            }
        });
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        self.change(|state| state.renamed.retain(|(_, to)| to.parent() != Some(path)));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealDisk.remove_dir_all(path)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        match self.state.lock().expect("no operation panics").fault {
            Fault::Room(bytes) => Ok(bytes),
            _ => RealDisk.available(path),
        }
    }
}

fn no_space() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "injected: no space left on device")
}

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.pass()?;
        if self.disk.full() {
            self.file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(no_space());
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl DiskFile for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.pass()?;
        self.disk.change(|state| state.unsynced.retain(|path| *path != self.path));
        Ok(())
    }
}
