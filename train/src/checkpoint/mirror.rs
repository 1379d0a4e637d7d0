//! Copies of checkpoints in another folder, such as a mounted drive: slower, without atomic renames, and all that is left
//! when the machine is gone.

use super::manifest;
use super::store::{check_room, steps, superseded};
use super::{CheckpointError, FileRecord, Retention, Verified, files, verify};
use crate::atomic::{self, Disk};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Copies a checkpoint into another folder, where renaming need not be atomic: file by file, read back and compared, the
/// manifest last as the mark that all is there. Says where.
///
/// # Errors
/// If there is no room, copying fails, or a copy reads back differently; the copy then has no manifest and is no checkpoint.
pub fn mirror(checkpoint: &Verified, disk: &dyn Disk, root: &Path) -> Result<PathBuf, CheckpointError> {
    let from = checkpoint.path();
    let target = root.join(from.file_name().unwrap_or_default());
    if verify(&target).is_ok_and(|there| there.manifest() == checkpoint.manifest()) {
        return Ok(target);
    }
    disk.create_dir_all(&target).map_err(CheckpointError::read("creating the folder", &target))?;
    check_room(disk, root, checkpoint.manifest().files.values().map(|record| record.bytes).sum())?;
    let mark = target.join(files::MANIFEST);
    if mark.exists() {
        disk.remove_file(&mark).map_err(CheckpointError::read("removing", &mark))?;
    }
    for (name, FileRecord { blake3, .. }) in &checkpoint.manifest().files {
        let mut file = File::open(from.join(name)).map_err(CheckpointError::read("opening", from))?;
        let copy = target.join(name);
        atomic::write_file(disk, &copy, |out| io::copy(&mut file, out).map(drop))
            .map_err(CheckpointError::Write)?;
        if manifest::hash(&copy)? != *blake3 {
            let reason = "the copy reads back differently".into();
            return Err(CheckpointError::Damaged { path: target, file: name.clone(), reason });
        }
    }
    let text = checkpoint.manifest().to_json();
    atomic::write_file(disk, &mark, |out| out.write_all(text.as_bytes())).map_err(CheckpointError::Write)?;
    Ok(target)
}

/// Removes copies that `retention` does not keep, and what a copying that was cut off left behind.
pub(super) fn prune(disk: &dyn Disk, root: &Path, retention: Retention) -> Result<(), CheckpointError> {
    let mut goes = superseded(root, retention)?;
    goes.extend(
        steps(root)?.into_iter().map(|(_, path)| path).filter(|path| !path.join(files::MANIFEST).exists()),
    );
    for path in goes {
        // The mark first: what a crash leaves is then no checkpoint.
        let mark = path.join(files::MANIFEST);
        if mark.exists() {
            disk.remove_file(&mark).map_err(CheckpointError::read("removing", &mark))?;
        }
        disk.remove_dir_all(&path).map_err(CheckpointError::read("removing", &path))?;
    }
    Ok(())
}
