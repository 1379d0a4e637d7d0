//! Which run it is: `run.json`, written into its folder and its mirror before its first step, and part of each of its
//! checkpoints.

use crate::atomic::{self, Disk};
use crate::run_folder::IDENTITY;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The name of one run, drawn at random: the same command in two folders makes two runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub String);

/// A run and how it began. By this the same command finds it again, on another machine too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its name.
    pub id: RunId,
    /// Its folder, as the command line named it.
    pub out: PathBuf,
    /// The weights of `--init`, of this run or of the one that it branched from, as the command line named them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// The checkpoint that it began at; none if it began at step 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

/// The checkpoint of another run that a run began at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// As the command line named it.
    pub path: PathBuf,
    /// The run that wrote it; none if it was written before runs had names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Its step.
    pub step: u64,
    /// Of a branch: the steps of its decay, which begins at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay: Option<u64>,
}

impl RunId {
    /// A new name.
    pub fn draw() -> RunId {
        // Both keys of the standard library's hasher come from the system's random numbers.
        let words = [(); 2].map(|()| RandomState::new().hash_one((SystemTime::now(), std::process::id())));
        RunId(words.map(|word| format!("{word:016x}")).concat())
    }
}

impl fmt::Display for RunId {
    /// The first letters, which are enough to tell runs apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..8).unwrap_or(&self.0))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.out.display(), self.id)?;
        if let Some(init) = &self.init {
            write!(f, ", from the weights of {}", init.display())?;
        }
        match &self.parent {
            None => {}
            Some(Parent { path, decay: None, .. }) => write!(f, ", begun at {}", path.display())?,
            Some(Parent { path, decay: Some(steps), .. }) => {
                write!(f, ", a branch of {} that decays over {steps} steps", path.display())?;
            }
        }
        f.write_str(")")
    }
}

impl Identity {
    /// The run that a folder says it belongs to; none if it says nothing.
    ///
    /// # Errors
    /// If the file is there and is not readable.
    pub fn read(folder: &Path) -> io::Result<Option<Identity>> {
        let path = folder.join(IDENTITY);
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("reading {}: {error}", path.display()));
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| named(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(named(error)),
        }
    }

    /// Writes it into a folder, which is made if need be.
    ///
    /// # Errors
    /// If writing fails.
    pub fn write(&self, disk: &dyn Disk, folder: &Path) -> io::Result<()> {
        disk.create_dir_all(folder)?;
        let text = serde_json::to_string_pretty(self)? + "\n";
        atomic::write_file(disk, &folder.join(IDENTITY), |out| out.write_all(text.as_bytes()))
    }

    /// The steps of its decay, if it is a branch.
    pub fn decay(&self) -> Option<u64> {
        self.parent.as_ref().and_then(|parent| parent.decay)
    }
}

/// Whether two paths are spelled alike, but for `.` and doubled slashes.
pub(crate) fn same_spelling(a: &Path, b: &Path) -> bool {
    let plain = |path: &Path| {
        path.components().filter(|part| *part != std::path::Component::CurDir).collect::<PathBuf>()
    };
    plain(a) == plain(b)
}
