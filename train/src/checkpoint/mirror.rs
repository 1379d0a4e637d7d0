//! Copies of checkpoints in another folder, such as a mounted drive: slower, without atomic renames, and all that is left
//! when the machine is gone. Copying is best effort and has a thread and a clock of its own: it may fail, and it may hang for
//! as long as it likes, and nothing waits for it but the end of a run, which says so.

use super::folder::{read_state, steps};
use super::manifest::whole;
use super::retention::superseded;
use super::store::{LOCK, check_room};
use super::{CheckpointError, Keep, Manifest, Retention, State, files, manifest};
use crate::atomic::{self, Disk, DiskFile};
use crate::config::MirrorDisk;
use crate::lock::{Held, Lock, LockError};
use crate::run_folder::{self, EVENTS, METRICS};
use program::quoted;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where a mirror keeps the run's records: numbers, plots and configuration.
pub const RECORDS: &str = "records";

/// Bytes that are read and written at a time, at most.
const PIECE: usize = 1 << 20;

/// How long the end of a run waits for a copy that does not move.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How long the end of a run waits for the thread to remove its lock, once there is nothing left to copy.
const LAST: Duration = Duration::from_secs(1);

/// A folder that checkpoints are copied to, and the thread that does it.
pub struct Mirror {
    root: PathBuf,
    left_by: Option<String>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Which copies are made when, and which are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copying {
    /// The copies that are kept.
    pub retention: Retention,
    /// Time from the beginning of one copy to that of the next; none: each checkpoint is copied as soon as may be.
    pub every: Option<Duration>,
    /// How long a drive may take to upload what it was given: a copy that is younger is neither removed nor counted among those
    /// that are kept.
    pub settle: Duration,
    /// Where the mirror may lie.
    pub disk: MirrorDisk,
    /// The run's folder, whose records are copied after each checkpoint.
    pub records: Option<PathBuf>,
}

/// What became of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It is complete.
    Whole {
        /// Its folder.
        path: PathBuf,
        /// Bytes of its files.
        bytes: u64,
        /// From the first byte to the mark.
        took: Duration,
    },
    /// The one before was still under way when a newer one came, which is copied instead.
    LeftOut(PathBuf),
    /// There is none, or its records are not all there.
    Failed {
        /// The checkpoint or the folder of records.
        what: PathBuf,
        /// Why.
        reason: String,
    },
}

/// How far a copy is. Every byte counts twice: it is written and read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyProgress {
    /// The checkpoint.
    pub from: PathBuf,
    /// Bytes written and read back.
    pub done: u64,
    /// Of so many.
    pub total: u64,
}

#[derive(Default)]
struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Default)]
struct Work {
    /// Oldest first; the newest is copied next.
    waiting: Vec<(PathBuf, Keep)>,
    under_way: Option<CopyProgress>,
    became: Vec<Copied>,
    /// No more will come: what waits is copied at once, and then the thread ends.
    closed: bool,
    /// The thread is at its end, and its lock is removed.
    ended: bool,
}

/// Says that the thread has ended, however it does.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.work().ended = true;
        self.0.changed.notify_all();
    }
}

impl Mirror {
    /// Opens a mirror of the checkpoints in `of`, which is made if its parent is there, and locks it against other runs.
    ///
    /// # Errors
    /// If it is `of` itself, another run has it open, it cannot be made, or the drive that it should lie on is not mounted as
    /// far as can be told: its parent is not there, or is an empty folder of the disk that the run is on; or it lies on that
    /// disk and must not ([`MirrorDisk::Mounted`]).
    pub fn open(
        disk: Arc<dyn Disk>,
        root: &Path,
        of: &Path,
        copying: Copying,
    ) -> Result<Mirror, CheckpointError> {
        check_mounted(root, of, copying.disk)?;
        // What is not there yet is no other folder's.
        let real = |path: &Path| path.canonicalize().ok();
        if real(root).is_some() && real(root) == real(of) {
            return Err(CheckpointError::MirrorOfItself { path: root.into() });
        }
        let lock = match Lock::take(root, LOCK, Held::Refuse) {
            Ok(lock) => Some(lock),
            Err(held @ LockError::Held { .. }) => return Err(CheckpointError::MirrorInUse(held)),
            // Some drives know no locks. The file is there all the same, see `check_there`.
            Err(LockError::System { .. }) if root.join(LOCK).exists() => None,
            Err(error) => return Err(CheckpointError::MirrorInUse(error)),
        };
        let left_by = lock.as_ref().and_then(Lock::left_by).map(ToString::to_string);
        let shared = Arc::new(Shared::default());
        let copier =
            Copier { disk: Drive(disk), root: root.into(), shared: Arc::clone(&shared), copying, lock };
        let ending = Ending(Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("mirror".into()).spawn(move || {
            let _ending = ending;
            copier.run();
        });
        let thread = thread.map_err(CheckpointError::read("starting the thread of the mirror", root))?;
        Ok(Mirror { root: root.into(), left_by, shared, thread: Some(thread) })
    }

    /// Where it lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The process of another machine that had it before and did not give it back. It may run still: a drive need not tell one
    /// machine of another's locks.
    pub fn left_by(&self) -> Option<&str> {
        self.left_by.as_deref()
    }

    /// What another thread offers checkpoints with.
    pub(super) fn offers(&self) -> Offers {
        Offers(Arc::clone(&self.shared))
    }

    /// What became of copies since the last call.
    pub fn became(&self) -> Vec<Copied> {
        std::mem::take(&mut self.shared.work().became)
    }

    /// Waits until all is copied. `watch` is asked some times a second whether to go on; a copy that has not moved for
    /// `patience` is given up too.
    pub fn finish(
        &mut self,
        patience: Duration,
        mut watch: impl FnMut(&CopyProgress) -> ControlFlow<&'static str>,
    ) {
        self.shared.close();
        if self.thread.take().is_none() {
            return;
        }
        let mut moved = (Instant::now(), None);
        while !self.shared.ends_within(Duration::from_millis(20)) {
            let now = self.shared.work().under_way.clone();
            if now.is_none() && moved.0.elapsed() > LAST {
                return;
            }
            if let Some(now) = &now {
                let given_up = match watch(now) {
                    ControlFlow::Break(why) => Some(why.to_owned()),
                    _ if moved.0.elapsed() > patience => {
                        Some(format!("nothing moved for {} s", patience.as_secs()))
                    }
                    _ => None,
                };
                if let Some(reason) = given_up {
                    let what = now.from.clone();
                    self.shared.work().became.push(Copied::Failed { what, reason });
                    // It may hang in the system for ever; it only reads here, and what it wrote bears no mark.
                    return;
                }
            }
            if moved.1 != now {
                moved = (Instant::now(), now);
            }
        }
    }
}

impl Drop for Mirror {
    /// Without [`finish`](Mirror::finish) the copy under way is given up with the process.
    fn drop(&mut self) {
        if self.thread.take().is_none() {
            return;
        }
        let mut work = self.shared.work();
        work.waiting.clear();
        let busy = work.under_way.is_some();
        drop(work);
        self.shared.close();
        if !busy {
            self.shared.ends_within(LAST);
        }
    }
}

/// Offers checkpoints to a mirror.
#[derive(Clone)]
pub(super) struct Offers(Arc<Shared>);

impl Offers {
    /// Has a checkpoint copied in its turn. Those that still wait are left out for it, but not ends of epochs.
    pub(super) fn offer(&self, checkpoint: &Path, keep: Keep) {
        let mut work = self.0.work();
        let (stay, left_out) = std::mem::take(&mut work.waiting)
            .into_iter()
            .partition(|(_, keep)| matches!(keep, Keep::EpochEnd(_)));
        work.waiting = stay;
        let left_out: Vec<(PathBuf, Keep)> = left_out;
        work.became.extend(left_out.into_iter().map(|(path, _)| Copied::LeftOut(path)));
        work.waiting.push((checkpoint.into(), keep));
        self.0.changed.notify_all();
    }

    /// Checkpoints that are being copied or wait for it: they must not be removed. After an offer, none that is older
    /// than it can be added.
    pub(super) fn spared(&self) -> Vec<PathBuf> {
        let work = self.0.work();
        let waiting = work.waiting.iter().map(|(path, _)| path.clone());
        work.under_way.iter().map(|progress| progress.from.clone()).chain(waiting).collect()
    }
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.work().closed = true;
        self.changed.notify_all();
    }

    /// Waits for the thread's end, but not longer than this; whether it has ended.
    fn ends_within(&self, patience: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.work(), patience, |work| !work.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// Waits for the next checkpoint to copy, not before `due`; none at the end.
    fn next(&self, due: Option<Instant>) -> Option<PathBuf> {
        let mut work = self.work();
        loop {
            let early = due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()));
            match work.waiting.last() {
                Some(_) if early.is_zero() || work.closed => {
                    let (from, _) = work.waiting.pop().expect("looked at above");
                    work.under_way = Some(CopyProgress { from: from.clone(), done: 0, total: 0 });
                    return Some(from);
                }
                None if work.closed => return None,
                Some(_) => {
                    let (guard, _) =
                        self.changed.wait_timeout(work, early).unwrap_or_else(PoisonError::into_inner);
                    work = guard;
                }
                None => work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn moved(&self, bytes: u64) {
        if let Some(progress) = &mut self.work().under_way {
            progress.done += bytes;
        }
    }
}

/// The thread's own.
struct Copier {
    disk: Drive,
    root: PathBuf,
    shared: Arc<Shared>,
    copying: Copying,
    lock: Option<Lock>,
}

impl Copier {
    fn run(self) {
        let (mut due, mut any) = (None, false);
        while let Some(from) = self.shared.next(due) {
            (due, any) = (self.copying.every.map(|every| Instant::now() + every), true);
            self.became(self.copy(&from));
        }
        if any && self.check_there().is_ok() {
            // What was recorded after the last checkpoint.
            let from = self.root.join(RECORDS);
            self.shared.work().under_way = Some(CopyProgress { from, done: 0, total: 0 });
            self.became(self.copy_records());
        }
    }

    fn became(&self, became: Vec<Copied>) {
        let mut work = self.shared.work();
        work.under_way = None;
        work.became.extend(became);
    }

    /// A drive that was unmounted leaves an empty folder: the file of the lock tells. And it says who came last.
    fn check_there(&self) -> Result<(), CheckpointError> {
        let path = self.root.join(LOCK);
        let doing = "looking for the mirror's lock (is the drive still mounted?)";
        fs::metadata(&path).map_err(CheckpointError::read(doing, &path))?;
        match self.lock.as_ref().and_then(Lock::taken_over) {
            Some(other) => {
                let (path, holder) = (self.root.clone(), other.to_string());
                Err(CheckpointError::MirrorTaken { path, holder })
            }
            None => Ok(()),
        }
    }

    fn copy_records(&self) -> Vec<Copied> {
        let Some(run) = &self.copying.records else { return Vec::new() };
        let what = self.root.join(RECORDS);
        let copied = copy_records(run, &self.disk, &what);
        copied.err().map(|error| Copied::Failed { what, reason: error.to_string() }).into_iter().collect()
    }

    fn copy(&self, from: &Path) -> Vec<Copied> {
        let start = Instant::now();
        let failed = |what: &Path, error: CheckpointError| Copied::Failed {
            what: what.into(),
            reason: error.to_string(),
        };
        let copied = self.check_there().and_then(|()| mirror(from, &self.disk, &self.root, &self.shared));
        let (path, manifest) = match copied {
            Ok(copied) => copied,
            Err(error) => return vec![failed(from, error)],
        };
        let bytes = manifest.files.values().map(|record| record.bytes).sum();
        let mut became = vec![Copied::Whole { path, bytes, took: start.elapsed() }];
        became.extend(self.copy_records());
        let pruned = read_state(from).and_then(|own| prune(&self.disk, &self.root, &self.copying, &own));
        became.extend(pruned.err().map(|error| failed(&self.root, error)));
        became
    }
}

/// Refuses a mirror whose drive is not mounted: it would be made on the disk that it is to outlive.
fn check_mounted(root: &Path, of: &Path, wanted: MirrorDisk) -> Result<(), CheckpointError> {
    let disk = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let disk_of = |path: &Path| std::path::absolute(path).ok()?.ancestors().find_map(disk);
    if wanted == MirrorDisk::Mounted && disk_of(root) == disk_of(of) {
        return Err(CheckpointError::MirrorNotMounted { path: root.into() });
    }
    if root.exists() {
        return Ok(());
    }
    let away = |reason: &'static str, parent: &Path| {
        let make = quoted(&root.display().to_string());
        Err(CheckpointError::MirrorAway { path: root.into(), parent: parent.into(), reason, make })
    };
    let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(mut inside) = fs::read_dir(parent) else { return away("is not there", parent) };
    if inside.next().is_none() && disk(parent) == disk_of(of) {
        return away("is an empty folder on the run's own disk", parent);
    }
    Ok(())
}

/// Whether two checkpoints are of one run, whose copies may be removed. One that was written before runs had names is told
/// by what it says instead.
fn same_run(copy: &State, own: &State) -> bool {
    match (&copy.run, &own.run) {
        (Some(copy), Some(own)) => copy.id == own.id,
        (Some(_), None) => false,
        (None, own_run) => {
            let init = own_run.as_ref().map_or(&own.init, |run| &run.init);
            (copy.seed, &copy.init, &copy.hashes) == (own.seed, init, &own.hashes)
        }
    }
}

/// Copies a checkpoint into another folder, where renaming need not be atomic: file by file, each compared with the manifest
/// while it is read and once more when it is read back. The state comes first, so that a copy that was cut off says whose it
/// is; the manifest comes last, as the mark that all is there.
///
/// # Errors
/// If there is no room, a file is damaged, copying fails, or a copy reads back differently; the copy then has no manifest and
/// is no checkpoint.
fn mirror(
    from: &Path,
    disk: &dyn Disk,
    root: &Path,
    shared: &Shared,
) -> Result<(PathBuf, Manifest), CheckpointError> {
    let manifest = manifest::read(from)?;
    let target = root.join(from.file_name().unwrap_or_default());
    if whole(&target).is_some() && manifest::read(&target).is_ok_and(|there| there == manifest) {
        return Ok((target, manifest));
    }
    let bytes = manifest.files.values().map(|record| record.bytes).sum();
    if let Some(progress) = &mut shared.work().under_way {
        progress.total = 2 * bytes;
    }
    disk.create_dir_all(&target).map_err(CheckpointError::read("creating the folder", &target))?;
    check_room(disk, root, bytes)?;
    let mark = target.join(files::MANIFEST);
    if mark.exists() {
        disk.remove_file(&mark).map_err(CheckpointError::read("removing", &mark))?;
    }
    let mut list: Vec<_> = manifest.files.iter().collect();
    list.sort_by_key(|(name, _)| *name != files::STATE);
    for (name, record) in list {
        let source = from.join(name);
        let mut file = File::open(&source).map_err(CheckpointError::read("opening", &source))?;
        let copy = target.join(name);
        let mut hasher = blake3::Hasher::new();
        atomic::write_file(disk, &copy, |out| {
            each_piece(&mut file, |piece| {
                hasher.update(piece);
                shared.moved(piece.len() as u64);
                out.write_all(piece)
            })
        })
        .map_err(CheckpointError::Write)?;
        let damaged = |path: &Path, reason: &str| {
            Err(CheckpointError::Damaged { path: path.into(), file: name.clone(), reason: reason.into() })
        };
        if hasher.finalize().to_hex().as_str() != record.blake3 {
            return damaged(from, "its hash is not the manifest's");
        }
        let mut hasher = blake3::Hasher::new();
        let read_back = File::open(&copy).and_then(|mut file| {
            each_piece(&mut file, |piece| {
                hasher.update(piece);
                shared.moved(piece.len() as u64);
                Ok(())
            })
        });
        read_back.map_err(CheckpointError::read("reading back", &copy))?;
        if hasher.finalize().to_hex().as_str() != record.blake3 {
            return damaged(&target, "the copy reads back differently");
        }
    }
    // A run that went back meanwhile has set it aside.
    if manifest::read(from)? != manifest {
        return Err(CheckpointError::NotThere { path: from.into() });
    }
    let text = manifest.to_json();
    atomic::write_file(disk, &mark, |out| out.write_all(text.as_bytes())).map_err(CheckpointError::Write)?;
    Ok((target, manifest))
}

fn each_piece(file: &mut File, mut use_it: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    // One byte at the least: an empty file is at its end.
    let mut piece = vec![0; (file.metadata()?.len() as usize).clamp(1, PIECE)];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(()),
            length => use_it(&piece[..length])?,
        }
    }
}

/// Copies what a run has recorded. Files of events, of which there is one a start, are copied when they have grown.
fn copy_records(run: &Path, disk: &dyn Disk, to: &Path) -> io::Result<()> {
    for name in run_folder::record_files(run)? {
        let (from, copy) = (run.join(&name), to.join(&name));
        let mut file = match File::open(&from) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let same = name.starts_with(EVENTS)
            && fs::metadata(&copy).ok().map(|there| there.len()) == Some(file.metadata()?.len());
        if !same {
            disk.create_dir_all(copy.parent().unwrap_or(to))?;
            atomic::write_file(disk, &copy, |out| each_piece(&mut file, |piece| out.write_all(piece)))?;
        }
    }
    Ok(())
}

/// Copies the records of a run back from its mirror to a machine that has none.
///
/// # Errors
/// If they cannot be read or written.
pub fn fetch_records(mirror: &Path, disk: &dyn Disk, run: &Path) -> io::Result<()> {
    let from = mirror.join(RECORDS);
    if run.join(METRICS).exists() || !from.is_dir() { Ok(()) } else { copy_records(&from, disk, run) }
}

/// Removes the run's own copies that are not kept, and what its own copies left that were cut off. What a drive may not have
/// uploaded yet must not be all there is when the machine is gone: it counts for nothing.
fn prune(disk: &dyn Disk, root: &Path, copying: &Copying, own: &State) -> Result<(), CheckpointError> {
    let settled =
        |path: &Path| copying.settle.is_zero() || age(path).is_some_and(|age| age >= copying.settle);
    let mut goes = superseded(root, copying.retention, |path, copy| same_run(copy, own) && settled(path))?;
    goes.extend(steps(root)?.into_iter().map(|(_, path)| path).filter(|path| {
        !path.join(files::MANIFEST).exists() && read_state(path).is_ok_and(|copy| same_run(&copy, own))
    }));
    for path in goes {
        // The mark first: what a crash leaves is then no checkpoint.
        let mark = path.join(files::MANIFEST);
        if mark.exists() {
            disk.remove_file(&mark).map_err(CheckpointError::read("removing", &mark))?;
        }
        // Emptied first, as drives with a bin count what is in it; but not the state, which says whose the rest is.
        for entry in fs::read_dir(&path).map_err(CheckpointError::read("listing", &path))? {
            let file = entry.map_err(CheckpointError::read("listing", &path))?.path();
            if !file.ends_with(files::STATE) {
                disk.create(&file).map_err(CheckpointError::read("emptying", &file))?;
            }
        }
        disk.remove_dir_all(&path).map_err(CheckpointError::read("removing", &path))?;
    }
    Ok(())
}

/// Time since a copy was marked as complete; none if the drive's clock is ahead or tells no time.
fn age(copy: &Path) -> Option<Duration> {
    fs::metadata(copy.join(files::MANIFEST)).ok()?.modified().ok()?.elapsed().ok()
}

/// A disk on which names need not be made durable: drives in user space refuse to sync a folder.
pub(crate) struct Drive(pub(crate) Arc<dyn Disk>);

impl Disk for Drive {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.create(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir_all(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match self.0.sync_dir(path) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir_all(path)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        self.0.available(path)
    }
}
