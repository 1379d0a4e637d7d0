//! Finding and reading the inputs of a preparation, always in the same order.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::error::{DataError, Result};
use super::shard;

/// One input file.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A document of its own.
    Python(PathBuf),
    /// A document a line.
    Jsonl(PathBuf),
    /// A document a row.
    Parquet(PathBuf),
}

/// A document before it is looked at.
pub(super) enum Item {
    /// To be read from a file.
    File(PathBuf),
    /// Already read.
    Bytes(Vec<u8>),
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
}

/// Finds the input files: given files in the order given, the *.py files of a folder sorted by path. Hidden folders and
/// those named in `exclude` are not entered, symbolic links to folders are not followed.
pub(super) fn find(inputs: &[PathBuf], exclude: &[String]) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for input in inputs {
        let kind = fs::metadata(input)
            .map_err(|e| DataError::Input { path: input.clone(), reason: e.to_string() })?;
        if kind.is_dir() {
            let before = found.len();
            walk(input, exclude, &mut found)?;
            if found.len() == before {
                return Err(DataError::Input {
                    path: input.clone(),
                    reason: "no *.py files in this folder".to_owned(),
                });
            }
            continue;
        }
        found.push(match input.extension().and_then(|e| e.to_str()) {
            Some("py") => Source::Python(input.clone()),
            Some("jsonl") => Source::Jsonl(input.clone()),
            Some("parquet") => Source::Parquet(input.clone()),
            _ => {
                return Err(DataError::Input {
                    path: input.clone(),
                    reason: "not a kind of file that is read".to_owned(),
                });
            }
        });
    }
    Ok(found)
}

fn walk(folder: &Path, exclude: &[String], found: &mut Vec<Source>) -> Result<()> {
    let read = || -> std::io::Result<Vec<(std::ffi::OsString, fs::FileType)>> {
        fs::read_dir(folder)?.map(|entry| entry.and_then(|e| Ok((e.file_name(), e.file_type()?)))).collect()
    };
    let mut entries = read().map_err(|e| DataError::io("list", folder, e))?;
    entries.sort_by(|a, b| a.0.as_encoded_bytes().cmp(b.0.as_encoded_bytes()));
    for (name, kind) in entries {
        let path = folder.join(&name);
        let name = name.to_string_lossy();
        if kind.is_dir() {
            if !name.starts_with('.') && !exclude.iter().any(|e| *e == name) {
                walk(&path, exclude, found)?;
            }
        } else if name.ends_with(".py") && path.is_file() {
            found.push(Source::Python(path));
        }
    }
    Ok(())
}

impl Source {
    /// The file.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Python(path) | Self::Jsonl(path) | Self::Parquet(path) => path,
        }
    }

    /// Its documents in order.
    pub(super) fn items(&self, column: &str) -> Result<Box<dyn Iterator<Item = Result<Item>> + Send>> {
        match self {
            Self::Python(path) => Ok(Box::new(std::iter::once(Ok(Item::File(path.clone()))))),
            Self::Jsonl(path) => jsonl(path, column),
            Self::Parquet(path) => parquet(path, column),
        }
    }
}

impl Item {
    /// Reads the document, unless it is longer than `max_bytes`.
    pub(super) fn load(&self, max_bytes: u64) -> Result<Loaded> {
        let bytes = match self {
            Self::File(path) => {
                let size = fs::metadata(path).map_err(|e| DataError::io("read", path, e))?.len();
                if size > max_bytes {
                    return Ok(Loaded::TooLarge);
                }
                fs::read(path).map_err(|e| DataError::io("read", path, e))?
            }
            Self::Bytes(bytes) => bytes.clone(),
        };
        if bytes.len() as u64 > max_bytes {
            return Ok(Loaded::TooLarge);
        }
        Ok(match String::from_utf8(bytes) {
            Err(_) => Loaded::NotUtf8,
            Ok(text) if text.trim().is_empty() => Loaded::Empty,
            Ok(text) => Loaded::Text(text),
        })
    }

    /// The bytes that the document takes once it is loaded.
    pub(super) fn size(&self, max_bytes: u64) -> u64 {
        match self {
            Self::File(path) => fs::metadata(path).map_or(0, |m| m.len()).min(max_bytes),
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

fn jsonl(path: &Path, column: &str) -> Result<Box<dyn Iterator<Item = Result<Item>> + Send>> {
    let file = File::open(path).map_err(|e| DataError::io("open", path, e))?;
    let (path, column) = (path.to_owned(), column.to_owned());
    let items =
        BufReader::with_capacity(1 << 20, file).split(b'\n').enumerate().filter_map(move |(index, line)| {
            let line = match line {
                Ok(line) => line,
                Err(e) => return Some(Err(DataError::io("read", &path, e))),
            };
            if line.trim_ascii().is_empty() {
                return None;
            }
            let Ok(line) = String::from_utf8(line) else {
                // Not text: passed on as it is, so that it is counted with the others of its kind.
                return Some(Ok(Item::Bytes(vec![0xff])));
            };
            let bad = |reason: String| DataError::JsonLine {
                path: path.clone(),
                line: index + 1,
                reason,
                column: column.clone(),
            };
            Some(match serde_json::from_str::<Value>(&line) {
                Err(e) => Err(bad(e.to_string())),
                Ok(mut value) => match value.get_mut(&column).map(Value::take) {
                    Some(Value::String(text)) => Ok(Item::Bytes(text.into_bytes())),
                    Some(_) => Err(bad(format!("`{column}` is not a string"))),
                    None => {
                        let keys: Vec<_> =
                            value.as_object().map_or_else(Vec::new, |o| o.keys().cloned().collect());
                        Err(bad(format!("no `{column}`, only {keys:?}")))
                    }
                },
            })
        });
    Ok(Box::new(items))
}

fn parquet(path: &Path, column: &str) -> Result<Box<dyn Iterator<Item = Result<Item>> + Send>> {
    let bytes = shard::map(path)?;
    let fail = {
        let path = path.to_owned();
        move |reason: String| DataError::Footer { path: path.clone(), reason }
    };
    let metadata = shard::read_footer(&bytes).map_err(&fail)?;
    let fields = metadata.schema().fields();
    if !fields.iter().any(|f| f.name() == column && is_text(f.data_type())) {
        let remedy = if fields.iter().any(|f| f.name() == "input_ids") {
            "this file is tokenised already: train on its folder with --data (and data.packing = \"none\" if rows are complete)"
        } else {
            "name the column with the text with --text-column"
        };
        let found = shard::describe(&metadata);
        return Err(DataError::Column {
            path: path.to_owned(),
            wanted: column.to_owned(),
            kind: "text",
            found,
            remedy,
        });
    }
    let leaves = metadata.metadata().file_metadata().schema_descr().columns();
    let leaf = leaves.iter().position(|leaf| leaf.path().parts()[0] == column);
    let mask = ProjectionMask::leaves(metadata.metadata().file_metadata().schema_descr(), leaf);
    let mut batches = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata)
        .with_projection(mask)
        .with_batch_size(64)
        .build()
        .map_err(|e| fail(e.to_string()))?;
    let mut failed = false;
    let items = std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let next = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| batches.next()));
        let rows = match next {
            Ok(None) => return None,
            Ok(Some(Ok(batch))) => texts(batch.column(0)).into_iter().map(|b| Ok(Item::Bytes(b))).collect(),
            Ok(Some(Err(e))) => vec![Err(fail(e.to_string()))],
            Err(_) => vec![Err(fail("the Parquet decoder panicked".to_owned()))],
        };
        failed = rows.iter().any(Result::is_err);
        Some(rows)
    });
    Ok(Box::new(items.flatten()))
}

fn is_text(ty: &DataType) -> bool {
    matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Binary)
}

/// The values of a text column; a missing value is an empty document.
fn texts(column: &ArrayRef) -> Vec<Vec<u8>> {
    fn owned<'a>(values: impl Iterator<Item = Option<&'a [u8]>>) -> Vec<Vec<u8>> {
        values.map(|v| v.unwrap_or_default().to_vec()).collect()
    }
    match column.data_type() {
        DataType::Utf8 => owned(column.as_string::<i32>().iter().map(|v| v.map(str::as_bytes))),
        DataType::LargeUtf8 => owned(column.as_string::<i64>().iter().map(|v| v.map(str::as_bytes))),
        DataType::Utf8View => owned(column.as_string_view().iter().map(|v| v.map(str::as_bytes))),
        _ => owned(column.as_binary::<i32>().iter()),
    }
}
