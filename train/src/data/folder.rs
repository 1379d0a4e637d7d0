//! Where the parts of a data folder lie that another program wrote: shards in the folder itself, or in `train/` with
//! `validation/` or `val/` and `tokenizer/` beside it. Such a folder and its `train/` are the same data.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::error::{DataError, Result};
use super::manifest::TOKENIZER_FILE;

/// The folder of the training shards.
const TRAIN: &str = "train";
/// The folder of the held-out shards, in the order in which they are looked for.
const HELD_OUT: [&str; 2] = ["validation", "val"];
/// The folder of a tokenizer, such as Hugging Face's libraries write.
const TOKENIZER: &str = "tokenizer";

/// Shards, sorted by name, and the tokenizer's file, if there is one.
pub(super) struct Parts {
    pub(super) train: Vec<PathBuf>,
    pub(super) validation: Vec<PathBuf>,
    pub(super) tokenizer: Option<PathBuf>,
}

/// Looks into a folder without `dataset.json`.
pub(super) fn parts(folder: &Path) -> Result<Parts> {
    let mut own = shards(folder)?;
    let outer = match own.is_empty() {
        true => folder.join(TRAIN).is_dir().then(|| folder.to_owned()),
        // By its real name: `.` may be the folder of the training shards.
        false => folder.canonicalize().is_ok_and(|real| real.ends_with(TRAIN)).then(|| folder.join("..")),
    };
    if own.is_empty()
        && let Some(outer) = &outer
    {
        own = shards(&outer.join(TRAIN))?;
    }
    let held_out_by_name =
        |path: &PathBuf| path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"validation"));
    let (mut validation, train): (Vec<_>, Vec<_>) = own.into_iter().partition(held_out_by_name);
    for name in HELD_OUT {
        let beside = outer.as_ref().map(|outer| outer.join(name)).filter(|beside| beside.is_dir());
        if let (true, Some(beside)) = (validation.is_empty(), beside) {
            validation = shards(&beside)?;
        }
    }
    Ok(Parts { train, validation, tokenizer: tokenizer(folder, outer.as_deref())? })
}

fn tokenizer(folder: &Path, outer: Option<&Path>) -> Result<Option<PathBuf>> {
    for place in [Some(folder), outer].into_iter().flatten() {
        let inner = place.join(TOKENIZER);
        for path in [place.join(TOKENIZER_FILE), inner.join(TOKENIZER_FILE)] {
            if path.exists() {
                return Ok(Some(path));
            }
        }
        if inner.is_dir() {
            return Err(DataError::OtherTokenizer(inner));
        }
    }
    Ok(None)
}

/// The Parquet files of a folder.
fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>) {
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        entries => entries.map_err(|e| DataError::io("list", folder, e))?,
    };
    let mut paths: Vec<PathBuf> = entries
        .into_iter()
        .map(|e| e.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "parquet"))
        .collect();
    paths.sort();
    Ok(paths)
}
