//! `manifest.json`: which files belong to a checkpoint, how long they are and what they hash to.

use super::folder::{own_step, read_state};
use super::{CheckpointError, FORMAT, OLDEST, State, TensorFile, files};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Every other file of the folder by name.
    pub files: BTreeMap<String, FileRecord>,
    /// blake3 of `files`: a damaged manifest accuses itself and not the file whose hash was hit.
    pub seal: String,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Length in bytes.
    pub bytes: u64,
    /// blake3 in hexadecimal.
    pub blake3: String,
}

/// A checkpoint whose every byte was compared with its manifest.
#[derive(Clone, Debug)]
pub struct Verified {
    path: PathBuf,
    manifest: Manifest,
    state: State,
}

/// Compares every file of a checkpoint with the manifest.
///
/// # Errors
/// If there is no manifest, or a file is missing, has another length or another hash: the file is named. And if the whole
/// folder bears another step's name. Damage keeps a file's length or leaves a part of it; one that is whole and has another
/// length was replaced: the folder is then [`Changed`](CheckpointError::Changed), if nothing in it is damaged.
pub fn verify(path: &Path) -> Result<Verified, CheckpointError> {
    let manifest = read(path)?;
    let mut changed = Vec::new();
    for (name, record) in &manifest.files {
        let damaged = |reason| CheckpointError::Damaged { path: path.into(), file: name.clone(), reason };
        let file = path.join(name);
        let found = fs::metadata(&file).map_err(|error| damaged(error.to_string()))?.len();
        if found != record.bytes {
            let reason = format!("it has {found} bytes, the manifest says {}", record.bytes);
            if !is_whole(&file) {
                return Err(damaged(reason));
            }
            changed.push(format!("{name}: {reason}"));
            continue;
        }
        let found = hash(&file)?;
        if found != record.blake3 {
            return Err(damaged(format!("its blake3 is {found}, the manifest says {}", record.blake3)));
        }
    }
    if !changed.is_empty() {
        return Err(CheckpointError::Changed { path: path.into(), files: changed.join(", ") });
    }
    let state = read_state(path)?;
    if own_step(path).is_some_and(|step| step != state.progress.step) {
        let reason = format!("it is of step {}, which is not the folder's name", state.progress.step);
        return Err(CheckpointError::Damaged { path: path.into(), file: files::STATE.into(), reason });
    }
    Ok(Verified { path: path.into(), manifest, state })
}

/// Whether a file is complete by its own format.
fn is_whole(path: &Path) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => TensorFile::open(path).is_ok(),
        _ => fs::read(path).is_ok_and(|text| serde_json::from_slice::<serde_json::Value>(&text).is_ok()),
    }
}

/// The manifest of a checkpoint, itself valid and listing the files that must be there; they are not opened.
pub(super) fn read(path: &Path) -> Result<Manifest, CheckpointError> {
    let not = |reason: String| CheckpointError::NotACheckpoint { path: path.into(), reason };
    let file = path.join(files::MANIFEST);
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(not(format!("there is no {}", files::MANIFEST)));
        }
        Err(error) => return Err(CheckpointError::Read { doing: "reading", path: file, error }),
    };
    let damaged =
        |reason| CheckpointError::Damaged { path: path.into(), file: files::MANIFEST.into(), reason };
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if !(OLDEST..=FORMAT).contains(&manifest.format) {
        return Err(damaged(format!(
            "it has format {}, this program reads {OLDEST} to {FORMAT}",
            manifest.format
        )));
    }
    if manifest.seal != seal(&manifest.files) {
        return Err(damaged("its seal does not match its content".into()));
    }
    for name in [files::MODEL, files::OPTIMIZER, files::STATE, files::CONFIG] {
        if !manifest.files.contains_key(name) {
            return Err(not(format!("its manifest does not list {name}")));
        }
    }
    Ok(manifest)
}

/// The state of a checkpoint that has all its files at their full length: the cheap look, without hashing.
pub fn whole(path: &Path) -> Option<State> {
    let manifest = read(path).ok()?;
    let complete = manifest.files.iter().all(|(name, record)| {
        fs::metadata(path.join(name)).is_ok_and(|metadata| metadata.len() == record.bytes)
    });
    if complete { read_state(path).ok() } else { None }
}

impl Manifest {
    /// A manifest of these files.
    pub fn new(files: BTreeMap<String, FileRecord>) -> Manifest {
        let seal = seal(&files);
        Manifest { format: FORMAT, files, seal }
    }

    /// The text of `manifest.json`.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a manifest has only string keys") + "\n"
    }
}

impl Verified {
    /// The checkpoint's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its `state.json`.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// A writer that knows what went through it.
pub(super) struct Hashing<'w> {
    out: &'w mut dyn Write,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<'w> Hashing<'w> {
    pub(super) fn new(out: &'w mut dyn Write) -> Hashing<'w> {
        Hashing { out, hasher: blake3::Hasher::new(), bytes: 0 }
    }

    pub(super) fn record(&self) -> FileRecord {
        FileRecord { bytes: self.bytes, blake3: self.hasher.finalize().to_hex().to_string() }
    }
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Bytes that are read at a time to be hashed: enough for all cores.
const PIECE: usize = 8 << 20;

/// blake3 of a file in hexadecimal, on all cores.
fn hash(path: &Path) -> Result<String, CheckpointError> {
    let mut hasher = blake3::Hasher::new();
    let mut all = || {
        let mut file = File::open(path)?;
        let mut piece = Vec::with_capacity(PIECE.min(file.metadata()?.len() as usize));
        loop {
            piece.clear();
            if Read::by_ref(&mut file).take(PIECE as u64).read_to_end(&mut piece)? == 0 {
                return Ok(());
            }
            hasher.update_rayon(&piece);
        }
    };
    all().map_err(CheckpointError::read("reading", path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn seal(files: &BTreeMap<String, FileRecord>) -> String {
    let text = serde_json::to_string(files).expect("names are strings");
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
