//! One preparation at a time writes a folder. The lock is one of the system on a file, so it ends with its process.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::{DataError, Result};

const LOCK_FILE: &str = "prepare.lock";

/// Held while a folder is written.
pub(super) struct Lock {
    path: PathBuf,
    /// Closing it ends the lock.
    _file: File,
}

/// What to do while another process holds the lock.
#[derive(Clone, Copy)]
pub(super) enum Held {
    Refuse,
    Wait,
}

impl Lock {
    /// Locks a folder, which is created if need be.
    pub(super) fn take(folder: &Path, held: Held) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| DataError::io("create", folder, e))?;
        let path = folder.join(LOCK_FILE);
        let fail = |e: io::Error| DataError::io("lock", &path, e);
        loop {
            let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = open.map_err(fail)?;
            match held {
                Held::Wait => file.lock().map_err(fail)?,
                Held::Refuse => match file.try_lock() {
                    Ok(()) => {}
                    Err(TryLockError::Error(e)) => return Err(fail(e)),
                    Err(TryLockError::WouldBlock) => {
                        let mut holder = String::new();
                        file.read_to_string(&mut holder).map_err(fail)?;
                        let holder = holder.trim().to_owned();
                        return Err(DataError::Locked { folder: folder.to_owned(), holder });
                    }
                },
            }
            // The process before removes the file when it is done; then this lock is on nothing.
            let same = |there: fs::Metadata| {
                file.metadata().map(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
            };
            match fs::metadata(&path).and_then(same) {
                Ok(true) => {
                    file.set_len(0).map_err(fail)?;
                    writeln!(file, "{}", std::process::id()).map_err(fail)?;
                    return Ok(Self { path, _file: file });
                }
                Ok(false) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(fail(e)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If it stays, it locks nothing.
        let _ = fs::remove_file(&self.path);
    }
}
