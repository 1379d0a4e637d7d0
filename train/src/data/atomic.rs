//! The one place through which this module writes files: a reader sees the old file or the new one, never a part.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::error::{DataError, Result};

/// The temporary name beside `path`; a left-over one is overwritten by the next attempt.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// Writes `path` through a temporary name: fsync, rename, fsync of the folder.
pub(super) fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create(temporary(path))?);
        write(&mut file)?;
        file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        fs::rename(temporary(path), path)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    };
    attempt().map_err(|source| {
        // A full disk is the usual reason; the part that was written only makes it worse.
        let _ = fs::remove_file(temporary(path));
        DataError::io("write", path, source)
    })
}
