//! [`Store`]: the folder of a run's checkpoints. One process at a time writes into it; anyone may read.

use super::folder::{own_config, own_step, steps, steps_with_suffix};
use super::manifest::{self, Hashing, Verified, verify, whole};
use super::params::{params_file_bytes, params_of, write_params};
use super::reader::Reader;
use super::retention::superseded;
use super::tensors::{file_bytes, write_tensors};
use super::weights::{self, Weights};
use super::{CheckpointError, Keep, Loaded, Manifest, Progress, Retention, Snapshot, State, files};
use crate::atomic::{self, AtomicDir, Disk, TEMPORARY};
use crate::lock::{Held, Lock};
use crate::run_folder;
use crate::schedule::Phase;
use engine::{Host, Type};
use model::{Config, Params, specs};
use program::esay;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The folder of a run's checkpoints, open for writing.
pub struct Store {
    pub(super) disk: Arc<dyn Disk>,
    root: PathBuf,
    _lock: Lock,
}

/// A checkpoint that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its folder.
    pub path: PathBuf,
    /// Its step.
    pub step: u64,
    /// Bytes of all its files but the manifest.
    pub bytes: u64,
    /// Time from the first byte to the synced name.
    pub took: Duration,
    /// Older checkpoints that were removed afterwards.
    pub removed: Vec<PathBuf>,
}

/// The newest good checkpoint, and the newer ones that are not good.
#[derive(Debug, Default)]
pub struct Latest {
    /// The newest one whose every byte is right.
    pub good: Option<Verified>,
    /// Newer ones that are damaged, with the reason, newest first.
    pub refused: Vec<(PathBuf, CheckpointError)>,
}

/// Name of the lock that keeps two runs apart.
pub(super) const LOCK: &str = ".lock";

/// What is added to the name of a checkpoint that a run left when it went back.
const SET_ASIDE: &str = ".set-aside";

impl Store {
    /// Opens or creates the folder, locks it against other runs, and clears what a crash left. A folder that was
    /// made for it goes with it if nothing was saved.
    ///
    /// # Errors
    /// If it cannot be written to, or another run has it open.
    pub fn open(disk: Arc<dyn Disk>, root: &Path) -> Result<Store, CheckpointError> {
        let lock = Lock::take(root, LOCK, Held::Refuse).map_err(CheckpointError::InUse)?;
        let store = Store { disk, root: root.into(), _lock: lock };
        store.recover()?;
        Ok(store)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a checkpoint so that it appears complete or not at all.
    ///
    /// # Errors
    /// If there is no room for it, or writing fails; the folder's checkpoints are then what they were.
    pub fn save(&self, snapshot: &Snapshot) -> Result<Saved, CheckpointError> {
        let start = Instant::now();
        let optimizer: Vec<_> =
            snapshot.optimizer.iter().map(|(name, host)| (name.clone(), host.ty().clone())).collect();
        let tokenizer = snapshot.tokenizer.as_ref().map_or(0, |bytes| bytes.len() as u64);
        self.check_room(checkpoint_bytes(&snapshot.config, &optimizer, tokenizer))?;
        let step = snapshot.state.progress.step;
        let path = self.root.join(run_folder::step(step));
        let bytes = self.write(snapshot, &path).map_err(CheckpointError::Write)?;
        Ok(Saved { path, step, bytes, took: start.elapsed(), removed: Vec::new() })
    }

    /// Removes checkpoints that `retention` does not keep, oldest first, and says which; not those that are `spared`, of which
    /// copies are made. Damaged ones are left for a person to look at and do not count as kept.
    ///
    /// # Errors
    /// If removing fails; what was not removed is still whole.
    pub fn prune(&self, retention: Retention, spared: &[PathBuf]) -> Result<Vec<PathBuf>, CheckpointError> {
        let mut removed = superseded(&self.root, retention, |_, _| true)?;
        removed.retain(|path| !spared.contains(path));
        for path in &removed {
            atomic::remove_dir(&*self.disk, path).map_err(CheckpointError::Write)?;
        }
        Ok(removed)
    }

    /// Sets all checkpoints of later steps aside under another name, so that no start finds them.
    ///
    /// # Errors
    /// If the folder cannot be read or a name cannot be changed.
    pub fn set_aside(&self, after: u64) -> Result<(), CheckpointError> {
        for (_, path) in steps(&self.root)?.into_iter().filter(|(step, _)| *step > after) {
            let mut name = path.file_name().unwrap_or_default().to_os_string();
            name.push(SET_ASIDE);
            let aside = path.with_file_name(name);
            if aside.exists() {
                self.disk.remove_dir_all(&aside).map_err(CheckpointError::read("removing", &aside))?;
            }
            self.disk.rename(&path, &aside).map_err(CheckpointError::read("setting aside", &path))?;
        }
        self.disk.sync_dir(&self.root).map_err(CheckpointError::read("syncing the folder", &self.root))
    }

    /// Whether there is room for a run that keeps up to `count` checkpoints of so many bytes at once, those that are there
    /// among them; asked before its first step.
    ///
    /// # Errors
    /// If there is not.
    pub fn check_room_for_all(&self, count: u64, bytes: u64) -> Result<(), CheckpointError> {
        let there = steps(&self.root)?.len() as u64;
        let available = self.available()?;
        // The next one is written before any is removed.
        if available < count.saturating_sub(there).max(1) * bytes + bytes / 5 {
            let (each_mib, available_mib) = (bytes.div_ceil(1 << 20), available >> 20);
            let path = self.root.clone();
            return Err(CheckpointError::NoRoomForAll { path, count, each_mib, there, available_mib });
        }
        Ok(())
    }

    fn available(&self) -> Result<u64, CheckpointError> {
        self.disk.available(&self.root).map_err(CheckpointError::read("asking for free space in", &self.root))
    }

    /// Whether there is room for a checkpoint of so many bytes and a fifth more; asked before each save.
    ///
    /// # Errors
    /// If there is not.
    pub fn check_room(&self, needed: u64) -> Result<(), CheckpointError> {
        check_room(&*self.disk, &self.root, needed)
    }

    /// Copies a checkpoint from a slower disk, each file compared with the manifest while it is read. It appears complete or
    /// not at all.
    ///
    /// # Errors
    /// If there is no room, a file is damaged, or reading or writing fails.
    pub fn fetch(&self, from: &Path) -> Result<PathBuf, CheckpointError> {
        let manifest = manifest::read(from)?;
        self.check_room(manifest.files.values().map(|record| record.bytes).sum())?;
        let target = self.root.join(from.file_name().unwrap_or_default());
        let dir = AtomicDir::begin(&*self.disk, &target).map_err(CheckpointError::Write)?;
        for (name, record) in &manifest.files {
            let source = from.join(name);
            let mut file = File::open(&source).map_err(CheckpointError::read("opening", &source))?;
            let copied = dir.file(name, |out| {
                let mut out = Hashing::new(out);
                io::copy(&mut file, &mut out).map_err(|error| {
                    io::Error::new(error.kind(), format!("copying {}: {error}", source.display()))
                })?;
                Ok(out.record())
            });
            if copied.map_err(CheckpointError::Write)? != *record {
                let reason = "its hash is not the manifest's".into();
                return Err(CheckpointError::Damaged { path: from.into(), file: name.clone(), reason });
            }
        }
        let text = manifest.to_json();
        dir.file(files::MANIFEST, |out| out.write_all(text.as_bytes())).map_err(CheckpointError::Write)?;
        dir.commit().map_err(CheckpointError::Write)?;
        Ok(target)
    }

    fn write(&self, snapshot: &Snapshot, path: &Path) -> io::Result<u64> {
        let dir = AtomicDir::begin(&*self.disk, path)?;
        let mut records = BTreeMap::new();
        let mut add = |name: &str, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>| {
            let record = dir.file(name, |out| {
                let mut out = Hashing::new(out);
                write(&mut out)?;
                Ok(out.record())
            })?;
            records.insert(name.to_string(), record);
            io::Result::Ok(())
        };
        add(files::MODEL, &mut |out| write_params(out, &snapshot.config, &snapshot.params))?;
        let mut optimizer: Vec<&(String, Host)> = snapshot.optimizer.iter().collect();
        optimizer.sort_by(|(a, _), (b, _)| a.cmp(b));
        let types: Vec<_> = optimizer.iter().map(|(name, host)| (name.clone(), host.ty().clone())).collect();
        add(files::OPTIMIZER, &mut |out| {
            write_tensors(out, &[], &types, |i| Cow::Borrowed(optimizer[i].1.bytes()))
        })?;
        let state = serde_json::to_string_pretty(&snapshot.state).map_err(io::Error::other)? + "\n";
        add(files::STATE, &mut |out| out.write_all(state.as_bytes()))?;
        add(files::CONFIG, &mut |out| out.write_all(snapshot.config.to_json().as_bytes()))?;
        if let Some(tokenizer) = &snapshot.tokenizer {
            add(files::TOKENIZER, &mut |out| out.write_all(tokenizer))?;
        }
        let bytes = records.values().map(|record| record.bytes).sum();
        let manifest = Manifest::new(records).to_json();
        dir.file(files::MANIFEST, |out| out.write_all(manifest.as_bytes()))?;
        dir.commit()?;
        Ok(bytes)
    }

    /// After a crash: a checkpoint that was set aside gets its name back unless its successor is whole; all other
    /// temporary names go.
    fn recover(&self) -> Result<(), CheckpointError> {
        for (_, path) in steps_with_suffix(&self.root, ".replaced.tmp")? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let target = path.with_file_name(name.trim_end_matches(".replaced.tmp"));
            if whole(&target).is_none() && whole(&path).is_some() {
                if target.exists() {
                    self.disk.remove_dir_all(&target).map_err(CheckpointError::Write)?;
                }
                self.disk.rename(&path, &target).map_err(CheckpointError::Write)?;
            }
        }
        for entry in fs::read_dir(&self.root).map_err(CheckpointError::read("listing", &self.root))? {
            let path = entry.map_err(CheckpointError::read("listing", &self.root))?.path();
            if path.to_string_lossy().ends_with(TEMPORARY) {
                let removed = if path.is_dir() {
                    self.disk.remove_dir_all(&path)
                } else {
                    self.disk.remove_file(&path)
                };
                removed.map_err(CheckpointError::Write)?;
            }
        }
        Ok(())
    }
}

/// Bytes of a checkpoint's tensors and tokenizer: all of it but some kilobytes.
pub fn checkpoint_bytes(config: &Config, optimizer: &[(String, Type)], tokenizer: u64) -> u64 {
    params_file_bytes(config) + file_bytes(&[], optimizer) + tokenizer
}

pub(super) fn check_room(disk: &dyn Disk, folder: &Path, needed: u64) -> Result<(), CheckpointError> {
    let available =
        disk.available(folder).map_err(CheckpointError::read("asking for free space in", folder))?;
    if available < needed + needed / 5 {
        let (needed_mib, available_mib) = (needed.div_ceil(1 << 20), available >> 20);
        return Err(CheckpointError::NoRoom { path: folder.into(), needed_mib, available_mib });
    }
    Ok(())
}

/// The checkpoint to go back to when steps come out bad: the newest good one of a folder, of a step before `before`, that was
/// not itself taken among bad steps and that `now` continues. One that was taken where the run was asked to stop counts only
/// if there is no other.
///
/// # Errors
/// If the folder cannot be read.
pub fn sound(root: &Path, before: u64, now: &Progress) -> Result<Option<Verified>, CheckpointError> {
    let usable = |(step, path): (u64, PathBuf)| {
        let state = whole(&path).filter(|state| state.progress.watch.bad_in_a_row == 0)?;
        (step < before && now.continues(&state.progress)).then_some((state.keep != Keep::Stop, step, path))
    };
    let mut all: Vec<_> = steps(root)?.into_iter().filter_map(usable).collect();
    all.sort();
    Ok(first_good(all.into_iter().rev().map(|(.., path)| path)).good)
}

/// A checkpoint's folder, looked at without opening the weights: its state if all its files are there at full length, or what
/// is wrong with it.
pub type Candidate = (PathBuf, Result<State, CheckpointError>);

/// All checkpoints of a folder, newest first. A folder that does not exist has none.
///
/// # Errors
/// If the folder cannot be listed.
pub fn candidates(root: &Path) -> Result<Vec<Candidate>, CheckpointError> {
    if !root.exists() {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    let mut turns = 0;
    // A damaged checkpoint has only its step to be sorted by.
    for (step, path) in steps(root)? {
        let state = whole(&path).ok_or(()).or_else(|()| verify(&path).map(|good| good.state().clone()));
        if let Ok(state) = &state {
            turns = state.progress.turns.len();
        }
        all.push(((turns, step), path, state));
    }
    all.sort_by_key(|(age, ..)| std::cmp::Reverse(*age));
    Ok(all.into_iter().map(|(_, path, state)| (path, state)).collect())
}

/// The newest checkpoint of a folder whose every byte is right. A folder that does not exist has none.
///
/// # Errors
/// If the folder cannot be listed.
pub fn latest_good(root: &Path) -> Result<Latest, CheckpointError> {
    latest_before(root, u64::MAX)
}

/// The newest checkpoint of a step before `before` whose every byte is right.
///
/// # Errors
/// If the folder cannot be listed.
pub fn latest_before(root: &Path, before: u64) -> Result<Latest, CheckpointError> {
    let newest_first = candidates(root)?.into_iter().map(|(path, _)| path);
    Ok(first_good(newest_first.filter(|path| own_step(path).is_some_and(|step| step < before))))
}

/// The first of these folders that is a checkpoint whose every byte is right, and why those before it are not.
pub fn first_good(folders: impl IntoIterator<Item = PathBuf>) -> Latest {
    let mut latest = Latest::default();
    for path in folders {
        match verify(&path) {
            Ok(good) => {
                latest.good = Some(good);
                break;
            }
            Err(error) => latest.refused.push((path, error)),
        }
    }
    latest
}

/// The newest good checkpoint of the stable phase, which a run of more steps can go on from.
///
/// # Errors
/// If the folder cannot be listed.
pub fn newest_stable(root: &Path) -> Result<Option<Verified>, CheckpointError> {
    let stable = |state: State| state.phase == Phase::Stable && state.progress.watch.bad_in_a_row == 0;
    let mut all = steps(root)?.into_iter().rev().filter(|(_, path)| whole(path).is_some_and(stable));
    Ok(all.find_map(|(_, path)| verify(&path).ok()))
}

/// The step of a folder's newest checkpoint, which is not opened and may be damaged.
///
/// # Errors
/// If the folder cannot be listed.
pub fn newest_step(root: &Path) -> Result<Option<u64>, CheckpointError> {
    Ok(if root.exists() { steps(root)?.last().map(|(step, _)| *step) } else { None })
}

/// Reads a whole checkpoint as [`Reader`] does.
///
/// # Errors
/// If the weights belong to another architecture, or a file does not hold what its name says.
pub fn load(checkpoint: &Verified, config: &Config) -> Result<Loaded, CheckpointError> {
    let reader = Reader::open(checkpoint, config)?;
    let weights = reader.weights().collect::<Result<Vec<_>, _>>()?;
    let mut optimizer = Vec::new();
    for name in reader.optimizer_names() {
        if let Some(host) = reader.optimizer_tensor(&name)? {
            optimizer.push((name, host));
        }
    }
    let params = specs(config).with_leaves(weights);
    Ok(Loaded { params, optimizer, state: reader.state().clone(), config: reader.config().clone() })
}

/// Configuration and weights alone, as generation and evaluation need them: from a checkpoint's folder, which is
/// verified, or from a `model.safetensors` with a `config.json` beside it.
///
/// # Errors
/// If the checkpoint is damaged or the files are not there.
pub fn load_params(path: &Path) -> Result<(Config, Params<Host>), CheckpointError> {
    let config = architecture(path)?.ok_or_else(|| CheckpointError::NotACheckpoint {
        path: path.into(),
        reason: format!("there is no {} beside it", files::CONFIG),
    })?;
    let params = load_weights(path, &config)?;
    Ok((config, params))
}

/// The architecture of what [`load_weights`] reads; none for a safetensors file without `config.json` beside it.
///
/// # Errors
/// If nothing is there, a folder has no `config.json`, or the file is not readable.
pub fn architecture(path: &Path) -> Result<Option<Config>, CheckpointError> {
    if !path.exists() {
        return Err(CheckpointError::NotThere { path: path.into() });
    }
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    match (folder.join(files::CONFIG).exists(), path.is_dir()) {
        (true, _) => own_config(folder).map(Some),
        (false, false) => Ok(None),
        (false, true) => Err(CheckpointError::NotACheckpoint {
            path: path.into(),
            reason: format!("there is no {}", files::CONFIG),
        }),
    }
}

/// Weights of an architecture from a folder or a file: a run's own checkpoint, which is verified, or what others publish,
/// in one safetensors file or in shards with an index. What is left out and what was changed is said on standard error.
///
/// # Errors
/// If a file is damaged, not there, or holds another model.
pub fn load_weights(path: &Path, config: &Config) -> Result<Params<Host>, CheckpointError> {
    // Published models have no manifest, and there is nothing to compare them with.
    if path.join(files::MANIFEST).exists() {
        match verify(path) {
            Err(changed @ CheckpointError::Changed { .. }) => esay!("note: {changed}"),
            verified => drop(verified?),
        }
    }
    let file = if path.is_dir() { weights::path_in(path) } else { path.to_path_buf() };
    let weights = Weights::open(&file)?;
    let params = params_of(&weights, config)?;
    if let [first, more @ ..] = &weights.left_out()[..] {
        let more = if more.is_empty() { String::new() } else { format!(" and {} like it", more.len()) };
        esay!("note: {}: `{first}`{more} left out: the configuration says them", file.display());
    }
    Ok(params)
}

/// The files that hold a folder's weights: one, or an index and its shards.
///
/// # Errors
/// If the index is not readable or its shards are not there.
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    weights::files_of(&weights::path_in(folder))
}
