//! Source text to Parquet shards of token ids.
//!
//! The same input and options give the same bytes, whatever the number of threads and however often the work was
//! interrupted: documents are read and tokenised in parallel, but everything that depends on their order (copies, the split,
//! where a shard ends) is decided by one thread in input order. After an interruption the inputs are read again, which is
//! cheap, but documents of finished shards are not tokenised again; a hash over their texts notices changed inputs.

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::atomic::{RealDisk, write_file};

use super::error::{DataError, Result};
use super::manifest::{
    self, DATASET_FILE, DatasetInfo, PROGRESS_FILE, Progress, Recipe, ShardInfo, Skipped, Split,
    TOKENIZER_FILE,
};
use super::parallel::{cores, in_parallel};
use super::shard_write::ShardWriter;
use super::source::{self, Item, Loaded, Source};
use super::tokenizer::{self, END_OF_TEXT, FIM_PAD, Tokenizer};

/// How many documents, and how many bytes of text, are worked on at a time.
const BATCH_DOCUMENTS: usize = 1024;
const BATCH_BYTES: u64 = 32 << 20;
/// A row group, whose offsets have 31 bits, must be able to hold any document.
const LARGEST_DOCUMENT: u64 = 1 << 30;
/// A tokenizer is trained on about this many bytes: more text changes small vocabularies little.
const TOKENIZER_BYTES: u64 = 256 << 20;

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// A `tokenizer.json`.
    File(PathBuf),
    /// Trained on the training split, with a vocabulary of this size.
    Train(usize),
}

/// What to prepare and how.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Files and folders with text.
    pub inputs: Vec<PathBuf>,
    /// The folder to write.
    pub out: PathBuf,
    /// The tokenizer.
    pub tokenizer: TokenizerSource,
    /// The share of documents to hold out, chosen by the hash of their text.
    pub validation_fraction: f64,
    /// The column with the text in JSONL and Parquet inputs.
    pub text_column: String,
    /// Longer documents are skipped.
    pub max_file_bytes: u64,
    /// A shard is closed at this many tokens.
    pub shard_tokens: u64,
    /// Names of folders that are not entered.
    pub exclude: Vec<String>,
    /// How many threads work; it does not change the output.
    pub threads: usize,
}

impl PrepareOptions {
    /// The defaults: a trained tokenizer of 4096 tokens, 2 % held out, files up to 1 MiB, shards of 16 Mi tokens, all cores.
    pub fn new(inputs: Vec<PathBuf>, out: PathBuf) -> Self {
        Self {
            inputs,
            out,
            tokenizer: TokenizerSource::Train(4096),
            validation_fraction: 0.02,
            text_column: "text".to_owned(),
            max_file_bytes: 1 << 20,
            shard_tokens: 1 << 24,
            exclude: Vec::new(),
            threads: cores(),
        }
    }
}

/// How far a preparation is.
#[derive(Clone, Copy, Debug)]
pub enum PrepareProgress {
    /// Input files were found.
    Found {
        /// How many.
        files: usize,
        /// Their size together.
        bytes: u64,
    },
    /// The tokenizer is being trained.
    TrainingTokenizer,
    /// Documents were tokenised and written, or found in finished shards.
    Tokenised {
        /// Bytes of input read so far.
        bytes: u64,
        /// Documents kept so far.
        documents: u64,
        /// Tokens so far.
        tokens: u64,
    },
}

/// What a preparation did.
#[derive(Clone, Debug)]
pub struct PrepareSummary {
    /// The folder.
    pub out: PathBuf,
    /// What it holds.
    pub info: DatasetInfo,
    /// Shards that an earlier run had finished.
    pub kept_shards: usize,
    /// How long it took.
    pub elapsed: Duration,
}

/// Prepares a data set. `progress` is told how far it is and may stop it; finished shards are kept then.
pub fn prepare(
    options: &PrepareOptions,
    progress: &mut dyn FnMut(PrepareProgress) -> ControlFlow<()>,
) -> Result<PrepareSummary> {
    let began = Instant::now();
    if !(0.0..1.0).contains(&options.validation_fraction) {
        let found = options.validation_fraction.to_string();
        return Err(DataError::Setting {
            name: "--validation-fraction",
            found,
            wanted: "at least 0 and less than 1",
        });
    }
    if options.shard_tokens == 0 {
        return Err(DataError::Setting {
            name: "--shard-tokens",
            found: "0".to_owned(),
            wanted: "at least 1",
        });
    }
    if options.max_file_bytes > LARGEST_DOCUMENT {
        let found = options.max_file_bytes.to_string();
        return Err(DataError::Setting { name: "--max-file-bytes", found, wanted: "at most 2^30" });
    }
    let sources = source::find(&options.inputs, &options.exclude)?;
    let size = |s: &Source| fs::metadata(s.path()).map_or(0, |m| m.len());
    let bytes = sources.iter().map(size).sum();
    tell(progress, PrepareProgress::Found { files: sources.len(), bytes })?;
    fs::create_dir_all(&options.out).map_err(|e| DataError::io("create", &options.out, e))?;
    let earlier = Earlier::read(&options.out)?;
    let tokenizer = obtain_tokenizer(options, &sources, bytes, &earlier, progress)?;
    let recipe = recipe(options, tokenizer.hash().to_owned());
    earlier.check(&options.out, &recipe)?;
    let end_of_text = tokenizer.special(END_OF_TEXT, "ends every document")?;

    let kept_shards = earlier.train.shards.len() + earlier.validation.shards.len();
    let mut work = Work {
        options,
        recipe,
        complete: earlier.complete.is_some(),
        splits: [SplitWork::new("train", earlier.train), SplitWork::new("validation", earlier.validation)],
        seen: HashSet::new(),
        skipped: Skipped::default(),
        input_bytes: 0,
    };
    for batch in batches(&sources, options) {
        work.batch(&batch?, &tokenizer)?;
        tell(progress, work.progress())?;
    }
    let info = work.finish(&tokenizer, end_of_text)?;
    Ok(PrepareSummary { out: options.out.clone(), info, kept_shards, elapsed: began.elapsed() })
}

fn tell(progress: &mut dyn FnMut(PrepareProgress) -> ControlFlow<()>, state: PrepareProgress) -> Result<()> {
    if progress(state).is_break() { Err(DataError::Interrupted) } else { Ok(()) }
}

fn recipe(options: &PrepareOptions, tokenizer_blake3: String) -> Recipe {
    Recipe {
        format: manifest::FORMAT,
        tokenizer_blake3,
        trained_tokenizer: match options.tokenizer {
            TokenizerSource::File(_) => None,
            TokenizerSource::Train(size) => Some(size),
        },
        validation_fraction: options.validation_fraction,
        text_column: options.text_column.clone(),
        max_file_bytes: options.max_file_bytes,
        shard_tokens: options.shard_tokens,
        exclude: options.exclude.clone(),
    }
}

/// What an earlier run left in the output folder.
#[derive(Default)]
struct Earlier {
    recipe: Option<Recipe>,
    complete: Option<DatasetInfo>,
    train: Split,
    validation: Split,
}

impl Earlier {
    fn read(out: &Path) -> Result<Self> {
        if let Some(info) = manifest::read::<DatasetInfo>(&out.join(DATASET_FILE))? {
            let (train, validation) = (info.train.clone(), info.validation.clone());
            return Ok(Self { recipe: Some(info.recipe.clone()), complete: Some(info), train, validation });
        }
        let Some(progress) = manifest::read::<Progress>(&out.join(PROGRESS_FILE))? else {
            return Ok(Self::default());
        };
        Ok(Self {
            recipe: Some(progress.recipe),
            complete: None,
            train: progress.train,
            validation: progress.validation,
        })
    }

    /// Refuses a folder with another data set, or one whose shards were touched.
    fn check(&self, out: &Path, recipe: &Recipe) -> Result<()> {
        let Some(earlier) = &self.recipe else { return Ok(()) };
        if earlier != recipe {
            let what = if earlier.tokenizer_blake3 == recipe.tokenizer_blake3 {
                format!("{earlier:?} then, {recipe:?} now")
            } else {
                "another tokenizer".to_owned()
            };
            return Err(DataError::OtherDataset { path: out.to_owned(), what });
        }
        for shard in self.train.shards.iter().chain(&self.validation.shards) {
            let path = out.join(&shard.file);
            let found = fs::metadata(&path).map_err(|_| DataError::MissingShard(path.clone()))?.len();
            if found != shard.size {
                return Err(DataError::ShardSize { path, found, wanted: shard.size });
            }
        }
        Ok(())
    }
}

/// Reads or trains the tokenizer and puts its file into the output folder.
fn obtain_tokenizer(
    options: &PrepareOptions,
    sources: &[Source],
    bytes: u64,
    earlier: &Earlier,
    progress: &mut dyn FnMut(PrepareProgress) -> ControlFlow<()>,
) -> Result<Tokenizer> {
    let copy = options.out.join(TOKENIZER_FILE);
    let (json, name) = match &options.tokenizer {
        TokenizerSource::File(path) => (fs::read(path).map_err(|e| DataError::io("read", path, e))?, path),
        TokenizerSource::Train(size) => {
            if earlier.recipe.as_ref().is_some_and(|r| r.trained_tokenizer == Some(*size)) {
                return Tokenizer::open(&copy);
            }
            tell(progress, PrepareProgress::TrainingTokenizer)?;
            (train_tokenizer(options, sources, bytes, *size)?, &copy)
        }
    };
    let tokenizer = Tokenizer::from_json(&json, name)?;
    earlier.check(&options.out, &recipe(options, tokenizer.hash().to_owned()))?;
    write_file(&RealDisk, &copy, |w| w.write_all(&json)).map_err(|e| DataError::io("write", &copy, e))?;
    Ok(tokenizer)
}

/// Trains on the training split; of large inputs, on documents chosen by their hash.
fn train_tokenizer(options: &PrepareOptions, sources: &[Source], bytes: u64, size: usize) -> Result<Vec<u8>> {
    let share = TOKENIZER_BYTES as f64 / bytes.max(1) as f64;
    let failure = Mutex::new(None);
    let mut seen = HashSet::new();
    let texts = sources
        .iter()
        .flat_map(|source| match source.items(&options.text_column) {
            Ok(items) => items,
            Err(e) => Box::new(std::iter::once(Err(e))),
        })
        .map(|item| item?.load(options.max_file_bytes))
        .map_while(|loaded| loaded.map_err(|e| *failure.lock().expect("not poisoned") = Some(e)).ok())
        .filter_map(|loaded| match loaded {
            Loaded::Text(text) => Some(text),
            _ => None,
        })
        .filter(|text| {
            let hash = blake3::hash(text.as_bytes());
            let word = |at: usize| hash_fraction(&hash.as_bytes()[at..at + 8]);
            word(8) < share && word(0) >= options.validation_fraction && seen.insert(short(&hash))
        });
    let json = tokenizer::train(texts, size);
    match failure.into_inner().expect("not poisoned") {
        Some(failure) => Err(failure),
        None => json,
    }
}

/// Groups documents into batches of bounded size.
fn batches<'a>(
    sources: &'a [Source],
    options: &'a PrepareOptions,
) -> impl Iterator<Item = Result<Vec<Item>>> + 'a {
    let mut items = sources.iter().flat_map(move |source| match source.items(&options.text_column) {
        Ok(items) => items,
        Err(e) => Box::new(std::iter::once(Err(e))),
    });
    std::iter::from_fn(move || {
        let (mut batch, mut held) = (Vec::new(), 0);
        while batch.len() < BATCH_DOCUMENTS && held < BATCH_BYTES {
            match items.next() {
                None => break,
                Some(Err(e)) => return Some(Err(e)),
                Some(Ok(item)) => {
                    held += item.size(options.max_file_bytes);
                    batch.push(item);
                }
            }
        }
        (!batch.is_empty()).then_some(Ok(batch))
    })
}

/// The first 8 bytes of a hash as a fraction of 1.
fn hash_fraction(bytes: &[u8]) -> f64 {
    let word = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    word as f64 / 2f64.powi(64)
}

/// Half of a hash: enough to tell documents apart, and half the memory for a large corpus.
fn short(hash: &blake3::Hash) -> [u8; 16] {
    hash.as_bytes()[..16].try_into().expect("16 bytes")
}

/// The state of a preparation under way.
struct Work<'a> {
    options: &'a PrepareOptions,
    recipe: Recipe,
    /// The folder was finished before; nothing may be added to it.
    complete: bool,
    /// To train on, and held out.
    splits: [SplitWork; 2],
    seen: HashSet<[u8; 16]>,
    skipped: Skipped,
    input_bytes: u64,
}

impl Work<'_> {
    fn batch(&mut self, batch: &[Item], tokenizer: &Tokenizer) -> Result<()> {
        let loaded = in_parallel(batch, self.options.threads, |item| {
            item.load(self.options.max_file_bytes).map(|loaded| match loaded {
                Loaded::Text(text) => (Some(blake3::hash(text.as_bytes())), Loaded::Text(text)),
                other => (None, other),
            })
        });
        let mut wanted = Vec::new();
        for document in loaded {
            let (hash, text) = match document? {
                (Some(hash), Loaded::Text(text)) => (hash, text),
                (_, skipped) => {
                    self.skip(&skipped);
                    continue;
                }
            };
            self.input_bytes += text.len() as u64;
            if !self.seen.insert(short(&hash)) {
                self.skipped.duplicates += 1;
                continue;
            }
            let split = usize::from(hash_fraction(&hash.as_bytes()[..8]) < self.options.validation_fraction);
            if self.splits[split].meet(&hash, &self.options.out)? {
                continue;
            }
            if self.complete {
                return Err(DataError::InputsChanged(self.options.out.clone()));
            }
            wanted.push((split, hash, text));
        }
        let ids = in_parallel(&wanted, self.options.threads, |(_, _, text)| tokenizer.encode(text));
        for ((split, hash, text), ids) in wanted.iter().zip(ids) {
            let closes = self.splits[*split].push(hash, &ids?, text.len() as u64, self.options)?;
            if closes {
                let [train, validation] = self.splits.each_ref().map(|s| s.done.clone());
                let progress = Progress { recipe: self.recipe.clone(), train, validation };
                manifest::write(&self.options.out.join(PROGRESS_FILE), &progress)?;
            }
        }
        Ok(())
    }

    fn skip(&mut self, loaded: &Loaded) {
        match loaded {
            Loaded::Text(_) => {}
            Loaded::NotUtf8 => self.skipped.not_utf8 += 1,
            Loaded::TooLarge => self.skipped.too_large += 1,
            Loaded::Empty => self.skipped.empty += 1,
        }
    }

    fn progress(&self) -> PrepareProgress {
        let sum = |of: fn(&SplitWork) -> u64| self.splits.iter().map(of).sum();
        PrepareProgress::Tokenised {
            bytes: self.input_bytes,
            documents: sum(|s| s.done.documents + s.open.as_ref().map_or(0, |o| o.documents)),
            tokens: sum(|s| s.done.tokens + s.open.as_ref().map_or(0, |o| o.tokens)),
        }
    }

    /// Closes the open shards and writes `dataset.json`, which makes the folder a data set.
    fn finish(mut self, tokenizer: &Tokenizer, end_of_text: i32) -> Result<DatasetInfo> {
        for split in &mut self.splits {
            if split.met_shards < split.earlier {
                return Err(DataError::InputsChanged(self.options.out.clone()));
            }
            split.close(&self.options.out)?;
        }
        let [train, validation] = self.splits.map(|s| s.done);
        if train.documents == 0 {
            let s = self.skipped;
            let why = format!(
                "{} not UTF-8, {} too large, {} empty, {} held out",
                s.not_utf8, s.too_large, s.empty, validation.documents
            );
            return Err(DataError::NoDocuments(why));
        }
        let info = DatasetInfo {
            recipe: self.recipe,
            vocab_size: tokenizer.vocab_size(),
            end_of_text,
            pad: tokenizer.find_special(FIM_PAD).unwrap_or(end_of_text),
            skipped: self.skipped,
            train,
            validation,
        };
        manifest::write(&self.options.out.join(DATASET_FILE), &info)?;
        let progress = self.options.out.join(PROGRESS_FILE);
        match fs::remove_file(&progress) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(DataError::io("remove", &progress, e)),
            _ => Ok(info),
        }
    }
}

/// The state of one split.
struct SplitWork {
    name: &'static str,
    /// Finished shards; the first `earlier` of them are of an earlier run.
    done: Split,
    earlier: usize,
    /// How many of the earlier shards were met again in full, and how many documents of the next one.
    met_shards: usize,
    met_documents: u64,
    /// The hashes of all documents of the split so far.
    inputs: blake3::Hasher,
    open: Option<ShardWriter>,
}

impl SplitWork {
    fn new(name: &'static str, done: Split) -> Self {
        let earlier = done.shards.len();
        Self {
            name,
            done,
            earlier,
            met_shards: 0,
            met_documents: 0,
            inputs: blake3::Hasher::new(),
            open: None,
        }
    }

    /// Whether the next document lies in a finished shard of an earlier run.
    fn meet(&mut self, hash: &blake3::Hash, out: &Path) -> Result<bool> {
        if self.met_shards == self.earlier {
            return Ok(false);
        }
        self.inputs.update(hash.as_bytes());
        self.met_documents += 1;
        let shard = &self.done.shards[self.met_shards];
        if self.met_documents == shard.documents {
            if shard.inputs_blake3 != self.inputs.finalize().to_hex().as_str() {
                return Err(DataError::InputsChanged(out.to_owned()));
            }
            self.met_documents = 0;
            self.met_shards += 1;
        }
        Ok(true)
    }

    /// Adds a document; true when that closed a shard.
    fn push(
        &mut self,
        hash: &blake3::Hash,
        ids: &[i32],
        bytes: u64,
        options: &PrepareOptions,
    ) -> Result<bool> {
        self.inputs.update(hash.as_bytes());
        let file = options.out.join(self.file());
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(ShardWriter::new().map_err(|e| parquet_error(&file, e))?),
        };
        open.push(ids, bytes).map_err(|e| parquet_error(&file, e))?;
        if open.tokens < options.shard_tokens {
            return Ok(false);
        }
        self.close(&options.out)?;
        Ok(true)
    }

    fn file(&self) -> String {
        format!("{}-{:05}.parquet", self.name, self.done.shards.len())
    }

    fn close(&mut self, out: &Path) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let file = self.file();
        let path = out.join(&file);
        let (documents, tokens, bytes) = (open.documents, open.tokens, open.bytes);
        let shard = open.finish().map_err(|e| parquet_error(&path, e))?;
        write_file(&RealDisk, &path, |w| w.write_all(&shard.file))
            .map_err(|e| DataError::io("write", &path, e))?;
        self.done.push(ShardInfo {
            file,
            size: shard.file.len() as u64,
            documents,
            tokens,
            bytes,
            inputs_blake3: self.inputs.finalize().to_hex().to_string(),
            row_groups: shard.row_groups,
        });
        Ok(())
    }
}

/// The Parquet writer works in memory, so this is a document it cannot represent.
fn parquet_error(path: &Path, error: parquet::errors::ParquetError) -> DataError {
    DataError::Description { path: path.to_owned(), reason: error.to_string() }
}
