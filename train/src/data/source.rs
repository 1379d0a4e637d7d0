//! Finding and reading the inputs of a preparation, always in the same order.

mod json;
mod parquet;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bad::{Bad, Place};
use super::error::{DataError, Result};
use super::manifest::InputInfo;

/// How many bytes of the input files were read, whoever reads them.
pub(super) type BytesRead = Arc<AtomicU64>;

/// The documents of a file, and what stands where a document should be.
pub(super) type Items = Box<dyn Iterator<Item = Item> + Send>;

/// One input file.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// A document of its own.
    Python,
    /// A document a line, or an element of one array.
    Json,
    /// A document a row.
    Parquet,
    /// A file or folder that cannot be read, and why.
    Unreadable(String),
}

/// A document before it is looked at.
pub(super) enum Item {
    /// To be read from a file.
    File(PathBuf),
    /// Already read.
    Bytes(Vec<u8>),
    /// Not one.
    Bad(Bad),
}

/// A document after it was looked at.
pub(super) enum Loaded {
    /// Good text.
    Text(String),
    /// Not UTF-8.
    NotUtf8,
    /// Longer than allowed.
    TooLarge,
    /// Nothing but white space.
    Empty,
    /// Not a document.
    Bad(Bad),
}

/// Finds the input files: files in the order of the command line, the files of a folder sorted by path. Hidden folders and those
/// named in `exclude` are not entered, symbolic links to folders are not followed. Of a folder's `*.json` files, which are
/// mostly settings, those are read whose first record has `column`; files of other kinds are counted.
pub(super) fn find(
    inputs: &[PathBuf],
    exclude: &[String],
    column: &str,
) -> Result<(Vec<Source>, Vec<InputInfo>)> {
    let mut all = Vec::new();
    let mut infos = Vec::new();
    for input in inputs {
        let fail = |reason: String| DataError::Input { path: input.clone(), reason };
        let kind = fs::metadata(input).map_err(|e| fail(e.to_string()))?;
        let mut found = Vec::new();
        let mut info = InputInfo { path: input.display().to_string(), ..InputInfo::default() };
        if kind.is_dir() {
            walk(input, exclude, column, &mut found, &mut info.other);
            if found.is_empty() {
                return Err(fail(format!(
                    "nothing to read in this folder, {} files of other kinds",
                    info.other
                )));
            }
        } else {
            let kind = Kind::of(input).ok_or_else(|| fail("not a kind of file that is read".to_owned()))?;
            found.push(Source { path: input.clone(), kind });
        }
        for source in &found {
            match source.kind {
                Kind::Python => info.python += 1,
                Kind::Json => info.json += 1,
                Kind::Parquet => info.parquet += 1,
                Kind::Unreadable(_) => info.unreadable += 1,
            }
        }
        all.extend(found);
        infos.push(info);
    }
    Ok((all, infos))
}

fn walk(folder: &Path, exclude: &[String], column: &str, found: &mut Vec<Source>, other: &mut u64) {
    let read = || -> std::io::Result<Vec<(std::ffi::OsString, fs::FileType)>> {
        fs::read_dir(folder)?.map(|entry| entry.and_then(|e| Ok((e.file_name(), e.file_type()?)))).collect()
    };
    let mut entries = match read() {
        Ok(entries) => entries,
        Err(e) => {
            let kind = Kind::Unreadable(format!("the folder cannot be listed: {e}"));
            return found.push(Source { path: folder.to_owned(), kind });
        }
    };
    entries.sort_by(|a, b| a.0.as_encoded_bytes().cmp(b.0.as_encoded_bytes()));
    for (name, kind) in entries {
        let path = folder.join(&name);
        let name = name.to_string_lossy();
        if kind.is_dir() {
            if !name.starts_with('.') && !exclude.iter().any(|e| *e == name) {
                walk(&path, exclude, column, found, other);
            }
            continue;
        }
        match Kind::of(&path).filter(|_| path.is_file()) {
            Some(Kind::Json) if json::may_be_settings(&path) && !json::begins_with_text(&path, column) => {
                *other += 1;
            }
            Some(kind) => found.push(Source { path, kind }),
            None => *other += 1,
        }
    }
}

impl Kind {
    /// The kind that a file's name says.
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        if name.ends_with(".py") {
            return Some(Self::Python);
        }
        if name.ends_with(".parquet") {
            return Some(Self::Parquet);
        }
        json::is_named(&name).then_some(Self::Json)
    }
}

impl Source {
    /// The size of the file.
    pub(super) fn size(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |m| if m.is_file() { m.len() } else { 0 })
    }

    /// Its documents in order.
    pub(super) fn items(&self, column: &str, read: &BytesRead) -> Items {
        match &self.kind {
            Kind::Python => {
                read.fetch_add(self.size(), Ordering::Relaxed);
                Box::new(std::iter::once(Item::File(self.path.clone())))
            }
            Kind::Json => json::items(&self.path, column, read),
            Kind::Parquet => parquet::items(&self.path, column, read),
            Kind::Unreadable(reason) => {
                let bad = Bad {
                    path: self.path.clone(),
                    place: Place::Whole,
                    reason: reason.clone(),
                    documents: 1,
                };
                Box::new(std::iter::once(Item::Bad(bad)))
            }
        }
    }
}

impl Item {
    /// Reads the document, unless it is longer than `max_bytes`.
    pub(super) fn load(self, max_bytes: u64) -> Loaded {
        let bytes = match self {
            Self::Bad(bad) => return Loaded::Bad(bad),
            Self::Bytes(bytes) => bytes,
            Self::File(path) => {
                let large = |m: fs::Metadata| m.len() > max_bytes;
                match fs::metadata(&path)
                    .map(large)
                    .and_then(|large| (!large).then(|| fs::read(&path)).transpose())
                {
                    Ok(None) => return Loaded::TooLarge,
                    Ok(Some(bytes)) => without_mark(bytes),
                    Err(e) => {
                        let reason = format!("cannot be read: {e}");
                        return Loaded::Bad(Bad { path, place: Place::Whole, reason, documents: 1 });
                    }
                }
            }
        };
        if bytes.len() as u64 > max_bytes {
            return Loaded::TooLarge;
        }
        match String::from_utf8(bytes) {
            Err(_) => Loaded::NotUtf8,
            Ok(text) if text.trim().is_empty() => Loaded::Empty,
            Ok(text) => Loaded::Text(text),
        }
    }

    /// The bytes that the document takes once it is loaded.
    pub(super) fn size(&self, max_bytes: u64) -> u64 {
        match self {
            Self::File(path) => fs::metadata(path).map_or(0, |m| m.len()).min(max_bytes),
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Bad(_) => 0,
        }
    }
}

/// What some editors put before text to say that it is UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

fn without_mark(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    bytes
}
