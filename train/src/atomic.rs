//! How this program writes files: under a temporary name, synced, renamed, and the folder synced. After a crash at any point
//! the old content is there or the new one, never a mixture. Every operation goes through [`Disk`], so that tests can make each
//! of them fail.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The operations of a file system that are used.
pub trait Disk: Send + Sync {
    /// Creates or empties a file for writing.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Creates a folder and its parents.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Renames a file or folder; a file at the target is replaced at once.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and all in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Bytes that can still be written below a folder.
    fn available(&self, path: &Path) -> io::Result<u64>;
}

/// A file open for writing.
pub trait DiskFile: Write + Send {
    /// Makes the content durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// Small writes are collected up to this many bytes.
const BUFFER: usize = 1 << 16;

/// The suffix of names that are not durable yet. Whatever has it after a crash is litter.
pub const TEMPORARY: &str = ".tmp";

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::create(path)?))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // An opened folder is synced like a file; its parent's name is empty for a relative path of one part.
        File::open(if path.as_os_str().is_empty() { Path::new(".") } else { path })?.sync_all()
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl DiskFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Replaces or creates a file with what `write` writes.
///
/// # Errors
/// Whatever fails, with the step and the path in the message; the old file is then still there.
pub fn write_file(
    disk: &dyn Disk,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary(path);
    let parent = path.parent().unwrap_or(Path::new(""));
    let attempt = || {
        write_new(disk, &temporary, write)?;
        disk.rename(&temporary, path).map_err(|e| named(e, "renaming to", path))?;
        disk.sync_dir(parent).map_err(|e| named(e, "syncing the folder", parent))
    };
    attempt().inspect_err(|_| {
        // Best effort: a temporary name is litter in any case.
        let _ = disk.remove_file(&temporary);
    })
}

/// Creates or empties a file, and makes durable what `write` writes, in however small pieces.
fn write_new<T>(
    disk: &dyn Disk,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<T>,
) -> io::Result<T> {
    let file = disk.create(path).map_err(|e| named(e, "creating", path))?;
    let mut out = BufWriter::with_capacity(BUFFER, file);
    let result = write(&mut out).map_err(|e| named(e, "writing", path))?;
    let mut file = out.into_inner().map_err(|e| named(e.into_error(), "writing", path))?;
    file.sync().map_err(|e| named(e, "syncing", path))?;
    Ok(result)
}

/// Writes a whole folder so that it appears at once: files go into `<name>.tmp`, which is renamed at the end.
/// Dropped without [`commit`](AtomicDir::commit), it leaves nothing.
pub struct AtomicDir<'d> {
    disk: &'d dyn Disk,
    temporary: PathBuf,
    target: PathBuf,
}

impl<'d> AtomicDir<'d> {
    /// Begins a folder; its parent is created if needed.
    ///
    /// # Errors
    /// If the temporary folder cannot be made.
    pub fn begin(disk: &'d dyn Disk, target: &Path) -> io::Result<AtomicDir<'d>> {
        let dir = AtomicDir { disk, temporary: temporary(target), target: target.into() };
        if dir.temporary.exists() {
            disk.remove_dir_all(&dir.temporary).map_err(|e| named(e, "removing", &dir.temporary))?;
        }
        disk.create_dir_all(&dir.temporary).map_err(|e| named(e, "creating the folder", &dir.temporary))?;
        Ok(dir)
    }

    /// Writes one file of the folder and makes it durable.
    ///
    /// # Errors
    /// Whatever fails, with the step and the path in the message.
    pub fn file<T>(&self, name: &str, write: impl FnOnce(&mut dyn Write) -> io::Result<T>) -> io::Result<T> {
        write_new(self.disk, &self.temporary.join(name), write)
    }

    /// Gives the folder its name. A folder that has the name already goes to [`replaced`] first and is removed last,
    /// so that one of the two can be found at every moment.
    ///
    /// # Errors
    /// Whatever fails, with the step and the path in the message.
    pub fn commit(self) -> io::Result<()> {
        let disk = self.disk;
        let parent = self.target.parent().unwrap_or(Path::new(""));
        disk.sync_dir(&self.temporary).map_err(|e| named(e, "syncing the folder", &self.temporary))?;
        let old = replaced(&self.target);
        if self.target.exists() {
            disk.rename(&self.target, &old).map_err(|e| named(e, "setting aside", &self.target))?;
        }
        disk.rename(&self.temporary, &self.target).map_err(|e| named(e, "renaming to", &self.target))?;
        disk.sync_dir(parent).map_err(|e| named(e, "syncing the folder", parent))?;
        if old.exists() {
            disk.remove_dir_all(&old).map_err(|e| named(e, "removing", &old))?;
        }
        Ok(())
    }
}

impl Drop for AtomicDir<'_> {
    fn drop(&mut self) {
        if self.temporary.exists() {
            // Best effort: a temporary name is litter in any case.
            let _ = self.disk.remove_dir_all(&self.temporary);
        }
    }
}

/// Removes a folder so that a crash leaves either all of it or only litter under a temporary name.
///
/// # Errors
/// Whatever fails, with the step and the path in the message.
pub fn remove_dir(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let temporary = temporary(path);
    disk.rename(path, &temporary).map_err(|e| named(e, "removing", path))?;
    disk.remove_dir_all(&temporary).map_err(|e| named(e, "removing", &temporary))
}

/// Where a folder waits while another one takes its name.
pub fn replaced(target: &Path) -> PathBuf {
    with_suffix(target, ".replaced.tmp")
}

fn temporary(path: &Path) -> PathBuf {
    with_suffix(path, TEMPORARY)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().expect("a path that is written has a name").to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

fn named(error: io::Error, doing: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{doing} {}: {error}", path.display()))
}
