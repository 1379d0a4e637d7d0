//! Locks of folders that one process at a time writes: a run's checkpoints, their mirror, a data set in preparation. Such a
//! lock is one of the system on a file, so it ends with its process. The file says who holds it; one that was left behind
//! locks nothing. A drive that several machines have may not tell one of the other's locks: there the file alone says who
//! came last ([`Lock::left_by`], [`Lock::taken_over`]).

use crate::numbers::duration;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// What is written of a command at most, in characters.
const COMMAND: usize = 200;

/// A folder's lock, held until it is dropped. Then its file goes, and so do the folders that were made for it if nothing else
/// is in them.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    holder: Holder,
    /// What the file said before.
    before: Option<Holder>,
    /// Closing it ends the lock.
    _file: File,
}

/// What to do while another process holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Say who holds it.
    Refuse,
    /// Wait for its end.
    Wait,
}

/// A process that holds a lock, as it wrote of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pid: u32,
    /// A folder may be mounted on several machines.
    machine: String,
    /// Seconds since 1970.
    since: u64,
    command: String,
}

/// Why a folder could not be locked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LockError {
    /// Another process holds it.
    #[error("{folder} is in use by {holder}", folder = folder.display())]
    Held { folder: PathBuf, holder: String },
    /// The system refused, or knows no locks there.
    #[error("locking {path}: {error}", path = path.display())]
    System { path: PathBuf, error: io::Error },
}

/// A file of a lock, what this process wrote into it, and the folders that were made for it, the outermost first.
type Taken = (PathBuf, Holder, Vec<PathBuf>);

/// Those of this process.
static TAKEN: Mutex<Vec<Taken>> = Mutex::new(Vec::new());

impl Lock {
    /// Locks a folder by the file of a name in it. The folder is made if need be.
    ///
    /// # Errors
    /// If another process holds it, or the folder or the file cannot be made or locked.
    pub fn take(folder: &Path, name: &str, held: Held) -> Result<Lock, LockError> {
        let path = folder.join(name);
        let system = |error| LockError::System { path: path.clone(), error };
        let outwards = folder.ancestors().filter(|folder| !folder.as_os_str().is_empty());
        let mut made: Vec<PathBuf> = outwards.take_while(|folder| !folder.exists()).map(Into::into).collect();
        made.reverse();
        fs::create_dir_all(folder).map_err(system)?;
        let holder = Holder::this_process();
        let locked = locked_file(&path, held, folder).and_then(|mut file| {
            let mut before = String::new();
            let text = serde_json::to_string(&holder).expect("a struct of text and numbers") + "\n";
            let mut exchange = || {
                file.read_to_string(&mut before)?;
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(text.as_bytes())
            };
            exchange().map_err(system)?;
            Ok((file, serde_json::from_str(&before).ok()))
        });
        let (file, before) = locked.inspect_err(|_| remove_folders(&made))?;
        // Not before: the file might be another process's.
        taken().push((path.clone(), holder.clone(), made));
        Ok(Lock { path, holder, before, _file: file })
    }

    /// The process of another machine that left its file behind: it was killed, or holds the lock all the same.
    pub fn left_by(&self) -> Option<&Holder> {
        self.before.as_ref().filter(|before| before.machine != self.holder.machine)
    }

    /// The process that took the lock since, if there is one: one of another machine, which does not see this one.
    pub fn taken_over(&self) -> Option<Holder> {
        written_by(&self.path).filter(|now| *now != self.holder)
    }
}

/// Who a file says that holds its lock; none if it is not there, or just being written.
fn written_by(path: &Path) -> Option<Holder> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Opens the file and locks it, once more if the process before removes it meanwhile: a lock on it would be on nothing.
fn locked_file(path: &Path, held: Held, folder: &Path) -> Result<File, LockError> {
    let system = |error| LockError::System { path: path.into(), error };
    loop {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(system)?;
        match held {
            Held::Wait => file.lock().map_err(system)?,
            Held::Refuse => match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::Error(error)) => return Err(system(error)),
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    file.read_to_string(&mut text).map_err(system)?;
                    let holder = serde_json::from_str(&text).map(|holder: Holder| holder.to_string());
                    // Locked, but not yet written.
                    let holder = holder.unwrap_or_else(|_| "another process".to_owned());
                    return Err(LockError::Held { folder: folder.into(), holder });
                }
            },
        }
        let same = |there: fs::Metadata| {
            file.metadata().map(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
        };
        match fs::metadata(path).and_then(same) {
            Ok(true) => return Ok(file),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system(error)),
        }
    }
}

/// Removes what the locks of this process left in their folders, for an end without destructors.
pub(crate) fn clear() {
    std::mem::take(&mut *taken()).into_iter().for_each(remove);
}

/// Removes the file of a lock, unless it is another's by now, and the folders that were made for it.
fn remove((file, holder, made): Taken) {
    if written_by(&file).is_none_or(|now| now == holder) {
        // Best effort: a file that stays locks nothing.
        let _ = fs::remove_file(file);
    }
    remove_folders(&made);
}

/// Removes the folders that are empty, the innermost first.
fn remove_folders(made: &[PathBuf]) {
    made.iter().rev().take_while(|folder| fs::remove_dir(folder).is_ok()).for_each(drop);
}

fn taken() -> MutexGuard<'static, Vec<Taken>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut taken = taken();
        if let Some(own) = taken.iter().position(|(path, ..)| *path == self.path) {
            remove(taken.remove(own));
        }
    }
}

impl Holder {
    fn this_process() -> Holder {
        let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        let program = words.next().unwrap_or_default();
        let program =
            Path::new(&program).file_name().map_or(program.clone(), |name| name.to_string_lossy().into());
        let command: Vec<String> = [program].into_iter().chain(words).collect();
        Holder {
            pid: std::process::id(),
            machine: machine(),
            since: now(),
            command: command.join(" ").chars().take(COMMAND).collect(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if self.machine != machine() {
            write!(f, " of machine {}", self.machine)?;
        }
        write!(f, ", for {}: {}", duration(now().saturating_sub(self.since) as f64), self.command)
    }
}

/// This machine's name; empty where the system does not tell it in a file.
fn machine() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_hears_who_holds_it_and_a_stale_file_locks_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        let first = Lock::take(&inner, "lock", Held::Refuse).unwrap();
        let said = Lock::take(&inner, "lock", Held::Refuse).unwrap_err().to_string();
        assert!(
            said.contains(&format!("a/b is in use by process {}, for 0s: ", std::process::id())),
            "{said}"
        );
        drop(first);
        assert!(!folder.path().join("a").exists(), "what was made for the lock alone goes with it");

        // A process that was killed leaves its file.
        fs::create_dir_all(&inner).unwrap();
        let text = r#"{"pid":1,"machine":"elsewhere","since":0,"command":"train"}"#;
        fs::write(inner.join("lock"), text).unwrap();
        let holder: Holder = serde_json::from_str(text).unwrap();
        assert!(holder.to_string().starts_with("process 1 of machine elsewhere, for "), "{holder}");
        let second = Lock::take(&inner, "lock", Held::Refuse).unwrap();
        assert_eq!((second.left_by(), second.taken_over()), (Some(&holder), None));
        fs::write(inner.join("kept"), "").unwrap();
        drop(second);
        assert!(inner.join("kept").exists() && !inner.join("lock").exists());
    }

    #[test]
    fn a_machine_that_does_not_see_the_lock_is_seen_by_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path(), "lock", Held::Refuse).unwrap();
        assert_eq!((first.left_by(), first.taken_over()), (None, None));
        let path = folder.path().join("lock");
        // Just being written.
        fs::write(&path, "").unwrap();
        assert_eq!(first.taken_over(), None);
        let text = r#"{"pid":1,"machine":"elsewhere","since":0,"command":"train"}"#;
        fs::write(&path, text).unwrap();
        assert_eq!(first.taken_over(), Some(serde_json::from_str(text).unwrap()));
        drop(first);
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "it is another's");
    }

    #[test]
    fn waiting_ends_with_the_other_lock() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path(), "lock", Held::Refuse).unwrap();
        let path = folder.path().to_owned();
        let second = std::thread::spawn(move || Lock::take(&path, "lock", Held::Wait).map(drop));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap().unwrap();
    }
}
