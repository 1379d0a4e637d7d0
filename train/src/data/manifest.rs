//! `dataset.json`: what a prepared folder holds, how it was made, and what every part of it must hash to.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::atomic::{RealDisk, write_file};

use super::error::{DataError, Result};
use super::tokenizer::END_OF_TEXT;

/// The description of a finished data set.
pub const DATASET_FILE: &str = "dataset.json";
/// The finished shards of a data set that is not finished.
pub(super) const PROGRESS_FILE: &str = "progress.json";
/// The tokenizer, copied beside the shards.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// The version of the folder's layout that this program writes and reads.
pub const FORMAT: u32 = 1;

/// The part of the options that decides the bytes of the output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The version of the layout.
    pub format: u32,
    /// The blake3 hash of `tokenizer.json`.
    pub tokenizer_blake3: String,
    /// How large a vocabulary was trained; `None` for a given tokenizer.
    pub trained_tokenizer: Option<usize>,
    /// The share of documents held out.
    pub validation_fraction: f64,
    /// The column with the text in JSONL and Parquet inputs.
    pub text_column: String,
    /// The special token that ends a document.
    #[serde(default = "end_of_text")]
    pub end_of_text: String,
    /// Longer documents are skipped.
    pub max_file_bytes: u64,
    /// Shards are closed at this many tokens.
    pub shard_tokens: u64,
    /// Folders that are not entered.
    pub exclude: Vec<String>,
}

/// The token that ends documents in data sets that do not say it.
fn end_of_text() -> String {
    END_OF_TEXT.to_owned()
}

/// A prepared data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// How it was made.
    pub recipe: Recipe,
    /// What it was made of, in order.
    #[serde(default)]
    pub inputs: Vec<InputInfo>,
    /// One more than the largest token id.
    pub vocab_size: usize,
    /// The id of the token that ends a document; rows do not contain it, the loader ends each document with it.
    pub end_of_text: i32,
    /// The id of `<|fim_pad|>`, or the end of a document in tokenizers without it.
    pub pad: i32,
    /// What was left out, and why.
    pub skipped: Skipped,
    /// To train on.
    pub train: Split,
    /// Held out.
    pub validation: Split,
}

/// An input and how many files were found in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputInfo {
    /// The file or folder, as the command line named it.
    pub path: String,
    /// Python files.
    pub python: u64,
    /// Files with JSON records.
    pub json: u64,
    /// Parquet files.
    pub parquet: u64,
    /// Files and folders that cannot be read.
    pub unreadable: u64,
    /// Files of other kinds, which are left out.
    pub other: u64,
}

/// One split of a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Its documents.
    pub documents: u64,
    /// Their tokens, without the end of each document.
    pub tokens: u64,
    /// The bytes of their text.
    pub bytes: u64,
    /// Its files, in order.
    pub shards: Vec<ShardInfo>,
}

impl Split {
    /// Adds a finished shard.
    pub(super) fn push(&mut self, shard: ShardInfo) {
        self.documents += shard.documents;
        self.tokens += shard.tokens;
        self.bytes += shard.bytes;
        self.shards.push(shard);
    }
}

/// One finished shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// The file's name in the folder.
    pub file: String,
    /// The file's size.
    pub size: u64,
    /// The blake3 hash of the file; empty in data sets of older versions, whose shards are made again rather than kept.
    #[serde(default)]
    pub blake3: String,
    /// Its rows.
    pub documents: u64,
    /// Its tokens.
    pub tokens: u64,
    /// The bytes of its documents' text.
    pub bytes: u64,
    /// A hash over the texts of all documents of the split up to the end of this shard: notices changed inputs.
    pub inputs_blake3: String,
    /// The first 64 bits of the blake3 hash of each row group: notices damage, which Parquet pages alone do not.
    pub row_groups: Vec<String>,
}

/// Documents that are not in the data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Exact copies of an earlier document.
    pub duplicates: u64,
    /// Not UTF-8.
    pub not_utf8: u64,
    /// Longer than allowed.
    pub too_large: u64,
    /// Nothing but white space.
    pub empty: u64,
    /// Lines, rows and files that are no documents.
    #[serde(default)]
    pub bad: u64,
}

/// What `progress.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) recipe: Recipe,
    pub(super) train: Split,
    pub(super) validation: Split,
}

/// Reads a description, `None` when there is none.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(DataError::io("read", path, e)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| DataError::Description { path: path.to_owned(), reason: e.to_string() })
}

/// Writes a description.
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_file(&RealDisk, path, |w| {
        serde_json::to_writer_pretty(&mut *w, value)?;
        w.write_all(b"\n")
    })
    .map_err(|e| DataError::io("write", path, e))
}

/// The check of a row group's bytes.
pub(super) fn row_group_check(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}
