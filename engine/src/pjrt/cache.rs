//! [`ExecutableCache`]: compiled programs on disk, so that a second start does not compile again, on another machine neither
//! if there is a drive that outlives this one.

use super::client::Client;
use super::error::Result;
use super::loaded::Loaded;
use super::options::CompileOptions;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use std::{env, io, process};

/// Compiled programs in a folder. An entry that is missing, damaged or refused by the plugin is compiled
/// again; a folder that cannot be written costs time and nothing else.
#[derive(Clone, Debug)]
pub struct ExecutableCache {
    folder: PathBuf,
    behind: Option<PathBuf>,
    limit: u64,
}

/// Whether the cache had the executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It was in the cache.
    Hit,
    /// It was compiled, and kept if the folder can be written and the plugin can serialise it.
    Miss,
    /// The cache's entry was no good; it was compiled again.
    Damaged,
}

/// Every entry starts with this and the blake3 of what follows the hash.
const MAGIC: &[u8; 8] = b"pjrtexe1";
const HEAD: usize = MAGIC.len() + blake3::OUT_LEN;

/// A file under a temporary name that is older was left by a process that was killed.
const LONGEST_WRITE: Duration = Duration::from_secs(3600);

/// Variables that change what the compilers make of the same text and options.
const COMPILER_VARIABLES: [&str; 2] = ["XLA_FLAGS", "LIBTPU_INIT_ARGS"];

impl ExecutableCache {
    /// A cache in `folder`, which need not exist; the entries that were not used for longest go when all
    /// together exceed `limit` bytes.
    pub fn new(folder: impl Into<PathBuf>, limit: u64) -> ExecutableCache {
        ExecutableCache { folder: folder.into(), behind: None, limit }
    }

    /// With a second folder behind the first, under the same limit: on a drive that is slow and outlives this machine. What
    /// the first one lacks is looked for there, and what there is here is written there, by a thread that nothing waits for.
    pub fn behind(self, folder: impl Into<PathBuf>) -> ExecutableCache {
        ExecutableCache { behind: Some(folder.into()), ..self }
    }

    /// Gets a program from the cache, or compiles it and keeps it there.
    ///
    /// # Errors
    /// If the program does not compile.
    pub fn compile(&self, client: &Client, text: &str, options: &CompileOptions) -> Result<(Loaded, Lookup)> {
        let name = format!("{}.exe", key(client, text, options)?);
        let mut lookup = Lookup::Miss;
        for folder in [Some(&self.folder), self.behind.as_ref()].into_iter().flatten() {
            let path = folder.join(&name);
            let Ok(entry) = fs::read(&path) else { continue };
            if let Some(loaded) = sound(&entry).and_then(|bytes| client.deserialize(bytes).ok()) {
                // What is used stays young, if the folder lets us say so.
                let _ = File::options()
                    .append(true)
                    .open(&path)
                    .and_then(|file| file.set_modified(SystemTime::now()));
                self.spread(&name, entry, folder);
                return Ok((loaded, Lookup::Hit));
            }
            lookup = Lookup::Damaged;
        }
        let loaded = client.compile(text, options)?;
        if let Ok(bytes) = loaded.serialize() {
            let mut entry = Vec::with_capacity(HEAD + bytes.len());
            entry.extend_from_slice(MAGIC);
            entry.extend_from_slice(blake3::hash(&bytes).as_bytes());
            entry.extend_from_slice(&bytes);
            // What cannot be kept is compiled again next time.
            let _ = keep(&self.folder, &name, &entry, self.limit);
            self.spread(&name, entry, &self.folder);
        }
        Ok((loaded, lookup))
    }

    /// Writes an entry that one folder has into the other.
    fn spread(&self, name: &str, entry: Vec<u8>, from: &Path) {
        let Some(behind) = &self.behind else { return };
        if from != self.folder {
            let _ = keep(&self.folder, name, &entry, self.limit);
            return;
        }
        let (behind, name, limit) = (behind.clone(), name.to_owned(), self.limit);
        std::thread::spawn(move || {
            if !fs::read(behind.join(&name)).is_ok_and(|there| there == entry) {
                let _ = keep(&behind, &name, &entry, limit);
            }
        });
    }
}

/// Writes an entry, whole or not at all.
fn keep(folder: &Path, name: &str, entry: &[u8], limit: u64) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let path = folder.join(name);
    // Processes and threads that compile the same program write different files, and the last rename
    // wins.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let part = path.with_extension(format!("{}-{number}.part", process::id()));
    fs::write(&part, entry)?;
    fs::rename(&part, &path)?;
    trim(folder, &path, limit)
}

/// Deletes the entries not used for longest while all together exceed the limit, but not the one just
/// written.
fn trim(folder: &Path, newest: &Path, limit: u64) -> io::Result<()> {
    let mut entries: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let data = entry.metadata()?;
        let is = |kind: &str| entry.path().extension().is_some_and(|extension| extension == kind);
        let age = data.modified()?.elapsed().unwrap_or_default();
        if is("part") && age > LONGEST_WRITE {
            fs::remove_file(entry.path())?;
        } else if is("exe") || is("part") {
            entries.push((data.modified()?, data.len(), entry.path()));
        }
    }
    entries.sort();
    let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in entries.iter().filter(|(_, _, path)| path != newest) {
        if total <= limit {
            break;
        }
        fs::remove_file(path)?;
        total -= bytes;
    }
    Ok(())
}

/// The bytes of an entry, if they are those that were written.
fn sound(entry: &[u8]) -> Option<&[u8]> {
    let (head, bytes) = entry.split_at_checked(HEAD)?;
    (head.starts_with(MAGIC) && head[MAGIC.len()..] == *blake3::hash(bytes).as_bytes()).then_some(bytes)
}

/// A hash of all that the compiled program depends on: of the plugin its bytes, not where it lies.
fn key(client: &Client, text: &str, options: &CompileOptions) -> Result<blake3::Hash> {
    let platform = client.platform_name()?;
    let mut parts = vec![
        text.as_bytes().to_vec(),
        options.to_bytes()?,
        client.plugin().build()?.as_bytes().to_vec(),
        // Of a GPU's driver the library does not tell.
        client.platform_version()?.into_bytes(),
        client.devices().first().map(|device| device.kind().as_bytes().to_vec()).unwrap_or_default(),
        client.devices().len().to_string().into_bytes(),
    ];
    if platform == "cpu" {
        // Machine code for this very processor, in a home folder that may be shared with another one.
        parts.push(processor().into_bytes());
    }
    for name in COMPILER_VARIABLES {
        parts.push(env::var_os(name).unwrap_or_default().into_encoded_bytes());
    }
    parts.push(platform.into_bytes());
    let mut hash = blake3::Hasher::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(&part);
    }
    Ok(hash.finalize())
}

/// The processor's model and features, as Linux lists them.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = text.split("\n\n").next().unwrap_or_default();
    let wanted =
        |line: &&str| ["model name", "flags", "Features", "CPU part"].iter().any(|key| line.starts_with(key));
    first.lines().filter(wanted).collect::<Vec<_>>().join("\n")
}
