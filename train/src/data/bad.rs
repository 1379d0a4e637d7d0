//! What is done about input that is no document: it is counted, named in a report, and tolerated up to a limit.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::error::{DataError, Result};

/// The report, in the folder that is prepared: a JSON object a line with file, line or row, and reason.
pub const BAD_LINES_FILE: &str = "bad_lines.jsonl";

/// This many are tolerated however few documents there are: one bad line of a small file should not end the work.
const ALWAYS_BORNE: u64 = 10;

/// What is done about lines, rows and files that are no documents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BadLines {
    /// The first bad one ends the work.
    Stop,
    /// They are left out, up to this share of all documents met so far (and up to ten in any case).
    Skip {
        /// The share.
        most: f64,
    },
}

/// Input that is no document.
#[derive(Clone, Debug)]
pub(super) struct Bad {
    pub(super) path: PathBuf,
    pub(super) place: Place,
    pub(super) reason: String,
    /// How many documents are lost with it.
    pub(super) documents: u64,
}

/// Where in a file; counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Whole,
    Line(u64),
    Row(u64),
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match self.place {
            Place::Whole => {}
            Place::Line(line) => write!(f, ", line {line}")?,
            Place::Row(row) => write!(f, ", row {row}")?,
        }
        write!(f, ": {}", self.reason)
    }
}

/// Counts documents and bad input, in the order of the inputs.
pub(super) struct Tally {
    policy: BadLines,
    report: PathBuf,
    file: Option<BufWriter<File>>,
    documents: u64,
    bad: u64,
    first: Option<Bad>,
}

impl Tally {
    /// Counts from 0, and removes the report of an earlier run in `out`.
    pub(super) fn new(policy: BadLines, out: &Path) -> Result<Self> {
        let report = out.join(BAD_LINES_FILE);
        match fs::remove_file(&report) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(DataError::io("remove", &report, e));
            }
            _ => {}
        }
        Ok(Self { policy, report, file: None, documents: 0, bad: 0, first: None })
    }

    /// Counts a document.
    pub(super) fn meet(&mut self) {
        self.documents += 1;
    }

    /// Counts bad input; an error if there is more of it than is tolerated.
    pub(super) fn meet_bad(&mut self, bad: Bad) -> Result<()> {
        let BadLines::Skip { most } = self.policy else {
            return Err(DataError::BadLine(bad.to_string()));
        };
        self.write(&bad).map_err(|e| DataError::io("write", &self.report, e))?;
        self.bad += bad.documents;
        self.documents += bad.documents;
        let first = self.first.get_or_insert(bad);
        if self.bad > ALWAYS_BORNE.max((most * self.documents as f64) as u64) {
            return Err(DataError::BadLines {
                bad: self.bad,
                documents: self.documents,
                percent: most * 100.0,
                first: first.to_string(),
                report: self.report.clone(),
            });
        }
        Ok(())
    }

    /// How many documents were lost.
    pub(super) fn bad(&self) -> u64 {
        self.bad
    }

    /// The first one that was left out.
    pub(super) fn first(&self) -> Option<String> {
        self.first.as_ref().map(Bad::to_string)
    }

    /// Each one is on disk before it is counted, so that the report is whole if the work ends here.
    fn write(&mut self, bad: &Bad) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(BufWriter::new(File::create(&self.report)?)),
        };
        let mut line = serde_json::json!({ "file": bad.path.to_string_lossy() });
        match bad.place {
            Place::Whole => {}
            Place::Line(at) => line["line"] = at.into(),
            Place::Row(at) => line["row"] = at.into(),
        }
        line["reason"] = bad.reason.as_str().into();
        writeln!(file, "{line}")?;
        file.flush()
    }
}
