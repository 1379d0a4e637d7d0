//! Files of records that grow at their end. A run goes on when one cannot be written: what belongs there waits in memory for
//! the next time.

use program::esay;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file of records.
pub(super) struct Appended {
    path: PathBuf,
    /// What a new file begins with.
    head: Vec<u8>,
    /// Whole records that are not in the file yet.
    waiting: Vec<u8>,
    /// Bytes of the file that are whole records.
    length: u64,
    failing: bool,
}

impl Appended {
    /// A file that may be there already, and is made by the first record if not.
    pub(super) fn new(path: PathBuf, head: Vec<u8>) -> Appended {
        let length = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Appended { path, head, waiting: Vec::new(), length, failing: false }
    }

    /// What is not in the file yet.
    pub(super) fn waiting(&self) -> &[u8] {
        &self.waiting
    }

    /// Appends a record. Says when writing begins to fail and when it works again.
    pub(super) fn append(&mut self, record: &[u8]) -> Option<String> {
        self.waiting.extend_from_slice(record);
        let path = self.path.clone();
        let path = path.display();
        match self.write() {
            Err(error) if std::mem::replace(&mut self.failing, true) => drop(error),
            Err(error) => {
                return Some(format!(
                    "NOT WRITTEN: {path}: {error}; training goes on, and what belongs there waits in memory"
                ));
            }
            Ok(State::BegunAnew) => {
                self.failing = false;
                return Some(format!("{path} was removed and is begun anew"));
            }
            Ok(State::AsBefore) if std::mem::replace(&mut self.failing, false) => {
                return Some(format!("{path} is written again, nothing is missing"));
            }
            Ok(State::AsBefore) => {}
        }
        None
    }

    /// Replaces the file's content by these whole records. If `write` cannot do it, they wait for the next record.
    pub(super) fn replace(
        &mut self,
        records: Vec<u8>,
        write: impl FnOnce(&Path, &[u8]) -> io::Result<()>,
    ) -> Option<String> {
        let bytes = records.len() as u64;
        match write(&self.path, &records) {
            Ok(()) => {
                (self.length, self.waiting) = (bytes, Vec::new());
                None
            }
            Err(_) => {
                (self.length, self.waiting) = (0, records);
                self.append(b"")
            }
        }
    }

    fn write(&mut self) -> io::Result<State> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        let there = file.metadata()?.len();
        let anew = there == 0 && self.length > 0;
        if there > self.length && self.failing {
            // A record that a full disk cut.
            file.set_len(self.length)?;
        }
        let from = file.metadata()?.len();
        // One write, so that a crash tears at most the last record.
        let bytes = if from == 0 { [&self.head[..], &self.waiting].concat() } else { self.waiting.clone() };
        if let Err(error) = file.write_all(&bytes) {
            self.length = from;
            // Tried again before the next record.
            let _ = file.set_len(from);
            return Err(error);
        }
        self.waiting.clear();
        self.length = from + bytes.len() as u64;
        Ok(if anew { State::BegunAnew } else { State::AsBefore })
    }
}

impl Drop for Appended {
    fn drop(&mut self) {
        if !self.waiting.is_empty() {
            let (path, bytes) = (self.path.display(), self.waiting.len());
            esay!("error: {path} lacks the last {bytes} bytes of records, which could not be written");
        }
    }
}

/// Whether a file was still there.
enum State {
    AsBefore,
    BegunAnew,
}
