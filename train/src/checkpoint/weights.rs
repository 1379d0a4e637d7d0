//! Weights in the shapes in which they come: one safetensors file or shards with an index, with the model's names or with a
//! wrapper's prefix before each.

use super::{CheckpointError, TensorFile, files};
use engine::Host;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// What `torch.compile` and data-parallel wrappers put before every name.
const PREFIXES: [&str; 2] = ["_orig_mod.", "module."];

/// Buffers that some programs save and this one makes from the configuration.
const MADE: &str = ".rotary_emb.inv_freq";

/// The tensors of one file or of the shards of an index.
#[derive(Debug)]
pub(super) struct Weights {
    path: PathBuf,
    shards: Vec<TensorFile>,
    /// By the model's name: the shard that has it, and its name there.
    places: BTreeMap<String, (usize, String)>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens a safetensors file, or the shards of an index (a file whose name ends in `.json`).
    ///
    /// # Errors
    /// If a file cannot be opened or is no valid one, or the index names files outside of its folder or that are not there.
    pub(super) fn open(path: &Path) -> Result<Weights, CheckpointError> {
        let mut places = BTreeMap::new();
        let mut shards = Vec::new();
        if is_index(path) {
            let index = read_index(path)?;
            let names: BTreeSet<&String> = index.values().collect();
            for (number, name) in names.into_iter().enumerate() {
                let shard = TensorFile::open(&path.with_file_name(name))?;
                for (tensor, _) in index.iter().filter(|(_, file)| *file == name) {
                    places.insert(tensor.clone(), (number, tensor.clone()));
                }
                shards.push(shard);
            }
        } else {
            shards.push(TensorFile::open(path)?);
            places.extend(shards[0].names().into_iter().map(|name| (name.clone(), (0, name))));
        }
        let common = |places: &BTreeMap<String, _>| {
            let in_all = |prefix: &&str| places.keys().all(|name| name.starts_with(*prefix));
            PREFIXES.into_iter().find(in_all).filter(|_| !places.is_empty())
        };
        // One wrapper may be in another.
        while let Some(prefix) = common(&places) {
            places = places.into_iter().map(|(name, place)| (name[prefix.len()..].into(), place)).collect();
        }
        Ok(Weights { path: path.into(), shards, places })
    }

    /// Reads a tensor, if there is one of this name.
    ///
    /// # Errors
    /// If its element type is none of the engine's, the index names it and its shard does not have it, or reading fails.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Host>, CheckpointError> {
        let Some((shard, there)) = self.places.get(name) else { return Ok(None) };
        let shard = &self.shards[*shard];
        let found = shard.tensor(there)?;
        found.map(Some).ok_or_else(|| CheckpointError::NotTensors {
            path: self.path.clone(),
            reason: format!(
                "it says that `{there}` is in {}, which has no such tensor",
                shard.path().display()
            ),
        })
    }

    /// The model's names of all tensors, in alphabetical order, without those that it makes itself.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.places.keys().filter(|name| !name.ends_with(MADE))
    }

    /// Names of the tensors that the model makes itself.
    pub(super) fn left_out(&self) -> Vec<&str> {
        self.places.keys().map(String::as_str).filter(|name| name.ends_with(MADE)).collect()
    }

    /// The file or the index.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The weights' file in a folder, or the index of its shards.
pub(super) fn path_in(folder: &Path) -> PathBuf {
    let [one, index] = [files::MODEL, files::INDEX].map(|name| folder.join(name));
    if index.exists() && !one.exists() { index } else { one }
}

/// A safetensors file itself, or an index and its shards.
pub(super) fn files_of(path: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut files = vec![path.to_path_buf()];
    if is_index(path) {
        let shards: BTreeSet<String> = read_index(path)?.into_values().collect();
        files.extend(shards.into_iter().map(|name| path.with_file_name(name)));
    }
    Ok(files)
}

fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// Files by tensor, all of them in the index's own folder.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let text = fs::read(path).map_err(CheckpointError::read("reading", path))?;
    let not = |reason: String| CheckpointError::NotAnIndex { path: path.into(), reason };
    let Index { weight_map } = serde_json::from_slice(&text).map_err(|error| not(error.to_string()))?;
    let shards: BTreeSet<&String> = weight_map.values().collect();
    let plain = |name: &&String| {
        let mut parts = Path::new(name).components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
    };
    if let Some(name) = shards.iter().find(|name| !plain(name)) {
        return Err(not(format!("it names `{name}`, and shards lie beside their index")));
    }
    let missing: Vec<&str> =
        shards.iter().map(|name| name.as_str()).filter(|name| !path.with_file_name(name).exists()).collect();
    if !missing.is_empty() {
        return Err(not(format!("it names {}, not there; copy the missing files", missing.join(", "))));
    }
    Ok(weight_map)
}
