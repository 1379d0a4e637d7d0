//! Locks of folders that one process at a time writes: a run's checkpoints, their mirror, a data set in preparation. Such a
//! lock is one of the system on a file, so it ends with its process. The file says who holds it; a file that a killed process
//! left locks nothing.

use crate::numbers::duration;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
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

/// The files of this process's locks, each with the folders that were made for it, the outermost first.
static TAKEN: Mutex<Vec<(PathBuf, Vec<PathBuf>)>> = Mutex::new(Vec::new());

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
        let locked = locked_file(&path, held, folder).and_then(|mut file| {
            let text = serde_json::to_string(&Holder::this_process()).expect("a struct of text and numbers");
            file.set_len(0).and_then(|()| writeln!(file, "{text}")).map_err(system)?;
            Ok(file)
        });
        let file = locked.inspect_err(|_| remove_folders(&made))?;
        // Not before: the file might be another process's.
        taken().push((path.clone(), made));
        Ok(Lock { path, _file: file })
    }
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
    for (file, made) in std::mem::take(&mut *taken()) {
        // Best effort: a file that stays locks nothing.
        let _ = fs::remove_file(file);
        remove_folders(&made);
    }
}

/// Removes the folders that are empty, the innermost first.
fn remove_folders(made: &[PathBuf]) {
    made.iter().rev().take_while(|folder| fs::remove_dir(folder).is_ok()).for_each(drop);
}

fn taken() -> MutexGuard<'static, Vec<(PathBuf, Vec<PathBuf>)>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut taken = taken();
        if let Some(own) = taken.iter().position(|(path, _)| *path == self.path) {
            let (path, made) = taken.remove(own);
            let _ = fs::remove_file(path);
            remove_folders(&made);
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
        fs::write(inner.join("kept"), "").unwrap();
        drop(second);
        assert!(inner.join("kept").exists() && !inner.join("lock").exists());
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
