//! The shards of one split under construction: which are kept from an earlier run, which are made, and where each ends.

use std::fs;
use std::path::{Path, PathBuf};

use crate::atomic::{RealDisk, write_file};

use super::error::{DataError, Result};
use super::manifest::{ShardInfo, Split};
use super::parallel::in_parallel;
use super::shard_write::ShardWriter;

/// The state of one split.
pub(super) struct SplitWork {
    name: &'static str,
    /// Finished shards: those that an earlier run lists, then new ones.
    shards: Vec<ShardInfo>,
    /// Of each listed shard, whether its file is still as it was written.
    intact: Vec<bool>,
    /// The listed shard that the next document belongs to, and how many of its documents have come.
    listed: usize,
    met: u64,
    /// The hashes of all documents of the split so far.
    inputs: blake3::Hasher,
    open: Option<ShardWriter>,
    /// Shards made by this run.
    made: usize,
}

/// The shard that a document belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// One of an earlier run, whose file is there.
    Kept,
    /// One of an earlier run, whose file was lost or damaged.
    Lost(usize),
    /// One that is not listed.
    New,
}

impl SplitWork {
    /// earlier: what an earlier run lists; its files in `out` are read and compared with their hashes.
    pub(super) fn new(name: &'static str, earlier: Split, out: &Path, threads: usize) -> Self {
        let intact = in_parallel(&earlier.shards, threads, |shard| {
            let hash = |bytes: Vec<u8>| blake3::hash(&bytes).to_hex().as_str() == shard.blake3;
            fs::read(out.join(&shard.file)).is_ok_and(hash)
        });
        Self {
            name,
            shards: earlier.shards,
            intact,
            listed: 0,
            met: 0,
            inputs: blake3::Hasher::new(),
            open: None,
            made: 0,
        }
    }

    /// Files that an earlier run wrote and that are not as it wrote them.
    pub(super) fn lost(&self) -> impl Iterator<Item = String> {
        self.shards
            .iter()
            .zip(&self.intact)
            .filter(|(_, intact)| !**intact)
            .map(|(shard, _)| shard.file.clone())
    }

    /// How many shards of an earlier run are as it wrote them.
    pub(super) fn kept(&self) -> usize {
        self.intact.iter().filter(|intact| **intact).count()
    }

    /// How many shards this run has made.
    pub(super) fn made(&self) -> usize {
        self.made
    }

    /// Finds the shard of the next document. Everything that an earlier run lists must come again as it was.
    pub(super) fn home(&mut self, hash: &blake3::Hash, out: &Path) -> Result<Home> {
        let Some(&intact) = self.intact.get(self.listed) else { return Ok(Home::New) };
        self.inputs.update(hash.as_bytes());
        self.met += 1;
        let index = self.listed;
        let shard = &self.shards[index];
        if self.met == shard.documents {
            if shard.inputs_blake3 != self.inputs.finalize().to_hex().as_str() {
                return Err(DataError::InputsChanged(out.to_owned()));
            }
            self.met = 0;
            self.listed += 1;
        }
        Ok(if intact { Home::Kept } else { Home::Lost(index) })
    }

    /// Adds a document whose text has `bytes` bytes; true when that closed a shard, which it does at `shard_tokens` tokens.
    pub(super) fn push(
        &mut self,
        home: Home,
        hash: &blake3::Hash,
        ids: &[i32],
        bytes: u64,
        out: &Path,
        shard_tokens: u64,
    ) -> Result<bool> {
        if home == Home::New {
            self.inputs.update(hash.as_bytes());
        }
        let path = self.path(home, out);
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(ShardWriter::new().map_err(|e| parquet_error(&path, e))?),
        };
        open.push(ids, bytes).map_err(|e| parquet_error(&path, e))?;
        let full = match home {
            // A lost shard ends where it ended before: by its tokens, or at the end of all documents.
            Home::Lost(index) => open.documents == self.shards[index].documents,
            _ => open.tokens >= shard_tokens,
        };
        if full {
            self.close(home, out)?;
        }
        Ok(full)
    }

    /// Closes the last shard.
    pub(super) fn finish(&mut self, out: &Path) -> Result<()> {
        if self.listed < self.intact.len() {
            return Err(DataError::InputsChanged(out.to_owned()));
        }
        self.close(Home::New, out)
    }

    /// The finished shards.
    pub(super) fn split(&self) -> Split {
        let mut split = Split::default();
        self.shards.iter().for_each(|shard| split.push(shard.clone()));
        split
    }

    /// Documents and tokens of the shard that is not finished.
    pub(super) fn open(&self) -> (u64, u64) {
        self.open.as_ref().map_or((0, 0), |open| (open.documents, open.tokens))
    }

    fn path(&self, home: Home, out: &Path) -> PathBuf {
        let index = if let Home::Lost(index) = home { index } else { self.shards.len() };
        out.join(format!("{}-{index:05}.parquet", self.name))
    }

    fn close(&mut self, home: Home, out: &Path) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let path = self.path(home, out);
        let (documents, tokens, bytes) = (open.documents, open.tokens, open.bytes);
        let shard = open.finish().map_err(|e| parquet_error(&path, e))?;
        write_file(&RealDisk, &path, |w| w.write_all(&shard.file))
            .map_err(|e| DataError::io("write", &path, e))?;
        let inputs_blake3 = match home {
            Home::Lost(index) => self.shards[index].inputs_blake3.clone(),
            _ => self.inputs.finalize().to_hex().to_string(),
        };
        let info = ShardInfo {
            file: path.file_name().expect("made from a name").to_string_lossy().into_owned(),
            size: shard.file.len() as u64,
            blake3: blake3::hash(&shard.file).to_hex().to_string(),
            documents,
            tokens,
            bytes,
            inputs_blake3,
            row_groups: shard.row_groups,
        };
        match home {
            Home::Lost(index) => self.shards[index] = info,
            _ => self.shards.push(info),
        }
        self.made += 1;
        Ok(())
    }
}

/// The Parquet writer works in memory, so this is a document it cannot represent.
fn parquet_error(path: &Path, error: parquet::errors::ParquetError) -> DataError {
    DataError::Shard { path: path.to_owned(), reason: error.to_string() }
}
