//! The folder of a judged program: how much is in it, and how it is removed.

use crate::sandbox::FILE_BYTES;
use rustix::process::Pid;
use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes that a program may keep in files, and files and folders that it may make.
const BYTES: u64 = 32 << 20;
const FILES: usize = 1000;

/// Why a program keeps too much in its folder, if it does. It may change while it is looked at.
pub(super) fn crowded(folder: &Path, process: Pid) -> Option<String> {
    let (mut files, mut bytes) = (0, held(folder, process));
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error)
                if matches!(error.kind(), ErrorKind::InvalidFilename | ErrorKind::PermissionDenied) =>
            {
                return Some(format!("made a folder that cannot be looked into ({error})"));
            }
            Err(_) => continue,
        };
        for entry in entries.flatten() {
            files += 1;
            if files > FILES {
                return Some(format!("made more than {FILES} files"));
            }
            let Ok(data) = entry.metadata() else { continue };
            if data.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += data.len();
            }
        }
    }
    (bytes > BYTES).then(|| format!("wrote more than {} MiB of files", BYTES >> 20))
}

/// Bytes of the files that a process has removed from its folder and still has open or in its memory.
fn held(folder: &Path, process: Pid) -> u64 {
    let process = PathBuf::from(format!("/proc/{}", process.as_raw_nonzero()));
    let mut files: HashMap<u64, u64> = HashMap::new();
    for entry in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
        if let Ok(data) = fs::metadata(entry.path())
            && data.is_file()
            && data.nlink() == 0
        {
            files.insert(data.ino(), data.len());
        }
    }
    let folder = folder.to_string_lossy();
    for line in fs::read_to_string(process.join("maps")).unwrap_or_default().lines() {
        if line.ends_with(" (deleted)") && line.contains(&*folder) {
            // The size of such a file is not to be had, but its limit is.
            let file = line.split_ascii_whitespace().nth(4).and_then(|number| number.parse().ok());
            files.entry(file.unwrap_or_default()).or_insert(FILE_BYTES);
        }
    }
    files.values().sum()
}

/// Removes a folder. The folders in it, however deep they are, are brought up first: no path gets long.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    let (mut count, mut folders) = (0, vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                count += 1;
                let up = folder.with_extension(count.to_string());
                fs::rename(entry.path(), &up)?;
                folders.push(up);
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir(next)?;
    }
    Ok(())
}
