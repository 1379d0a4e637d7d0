//! Source text to Parquet shards of token ids.
//!
//! The same input and options give the same bytes, whatever the number of threads and however often the work was
//! interrupted: documents are read and tokenised in parallel, but everything that depends on their order (copies, the split,
//! where a shard ends) is decided by one thread in input order. After an interruption the inputs are read again, which is
//! cheap, but documents of finished shards are not tokenised again; a hash over their texts notices changed inputs, and one
//! over the files notices lost and damaged shards, which are made again.

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::atomic::{RealDisk, write_file};
use crate::lock::{Held, Lock};

use super::bad::{BadLines, Tally};
use super::error::{DataError, Result};
use super::manifest::{
    self, DATASET_FILE, DatasetInfo, InputInfo, PROGRESS_FILE, Progress, Recipe, Skipped, Split,
    TOKENIZER_FILE,
};
use super::parallel::{cores, in_parallel};
use super::source::{self, BytesRead, Item, Loaded, Source};
use super::splits::{Home, SplitWork};
use super::tokenizer::{self, END_OF_TEXT, FIM_PAD, Tokenizer};

/// How many documents, and how many bytes of text, are worked on at a time.
const BATCH_DOCUMENTS: usize = 1024;
const BATCH_BYTES: u64 = 32 << 20;
/// The name of the lock in the folder.
const LOCK_FILE: &str = "prepare.lock";
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
    /// The special token that ends a document.
    pub end_of_text: String,
    /// What is done about input that is no document.
    pub bad_lines: BadLines,
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
    /// The defaults: a trained tokenizer of 4096 tokens, 2 % held out, files up to 1 MiB, shards of 16 Mi tokens, up to 0.1 %
    /// of bad lines, all cores.
    pub fn new(inputs: Vec<PathBuf>, out: PathBuf) -> Self {
        Self {
            inputs,
            out,
            tokenizer: TokenizerSource::Train(4096),
            validation_fraction: 0.02,
            text_column: "text".to_owned(),
            end_of_text: END_OF_TEXT.to_owned(),
            bad_lines: BadLines::Skip { most: 0.001 },
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
    TrainingTokenizer {
        /// Bytes of the input files read so far; all of them before the longer part of the work.
        bytes: u64,
    },
    /// Documents were tokenised and written, or found in finished shards.
    Tokenised {
        /// Bytes of the input files read so far.
        bytes: u64,
        /// Documents kept so far.
        documents: u64,
        /// Tokens so far.
        tokens: u64,
        /// Shards made so far.
        shards: usize,
        /// Documents in shards that are not finished, whose work is lost when the preparation is stopped now.
        open: u64,
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
    /// Shards that an earlier run had finished and that were lost or damaged: they were made again.
    pub made_again: Vec<String>,
    /// What a user should know about the tokenizer.
    pub tokenizer_notes: Vec<String>,
    /// The first of the inputs that were no documents; all are in [`BAD_LINES_FILE`](super::BAD_LINES_FILE).
    pub first_bad: Option<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Prepares a data set. `progress` is told how far it is and may stop it; finished shards are kept then.
///
/// # Errors
/// If an option is out of range, an input cannot be found, more of the inputs are no documents than is tolerated, another
/// process is at work on the same folder, or the folder holds something else.
pub fn prepare(
    options: &PrepareOptions,
    progress: &mut dyn FnMut(PrepareProgress) -> ControlFlow<()>,
) -> Result<PrepareSummary> {
    check(options)?;
    prepare_locked(options, &lock(&options.out, Held::Refuse)?, progress)
}

fn check(options: &PrepareOptions) -> Result<()> {
    let refuse = |name, found: String, wanted| Err(DataError::Setting { name, found, wanted });
    if !(0.0..1.0).contains(&options.validation_fraction) {
        let found = options.validation_fraction.to_string();
        return refuse("--validation-fraction", found, "at least 0 and less than 1");
    }
    if options.shard_tokens == 0 {
        return refuse("--shard-tokens", "0".to_owned(), "at least 1");
    }
    if options.max_file_bytes > LARGEST_DOCUMENT {
        return refuse("--max-file-bytes", options.max_file_bytes.to_string(), "at most 2^30");
    }
    if let BadLines::Skip { most } = options.bad_lines
        && !(0.0..=1.0).contains(&most)
    {
        return refuse("--max-bad-lines", most.to_string(), "between 0 and 1");
    }
    if matches!(options.tokenizer, TokenizerSource::Train(_)) && options.end_of_text != END_OF_TEXT {
        let wanted =
            "<|endoftext|> for a tokenizer that is trained; others belong to a --tokenizer that has them";
        return refuse("--end-of-text", options.end_of_text.clone(), wanted);
    }
    Ok(())
}

/// Locks a folder for a preparation.
pub(super) fn lock(folder: &Path, held: Held) -> Result<Lock> {
    Ok(Lock::take(folder, LOCK_FILE, held)?)
}

/// [`prepare`], once the folder is locked and the options are checked.
pub(super) fn prepare_locked(
    options: &PrepareOptions,
    _lock: &Lock,
    progress: &mut dyn FnMut(PrepareProgress) -> ControlFlow<()>,
) -> Result<PrepareSummary> {
    let began = Instant::now();
    let (sources, inputs) = source::find(&options.inputs, &options.exclude, &options.text_column)?;
    let bytes = sources.iter().map(Source::size).sum();
    tell(progress, PrepareProgress::Found { files: sources.len(), bytes })?;
    let earlier = Earlier::read(&options.out)?;
    let (tokenizer, end_of_text, recipe) = obtain_tokenizer(options, &sources, bytes, &earlier, progress)?;
    if !earlier.complete {
        // Written before the first shard, so that a folder with some of the shards is never taken for a finished one.
        let (train, validation) = (earlier.train.clone(), earlier.validation.clone());
        let begun = Progress { recipe: recipe.clone(), train, validation };
        manifest::write(&options.out.join(PROGRESS_FILE), &begun)?;
    }
    let split = |name, split| SplitWork::new(name, split, &options.out, options.threads);
    let splits = [split("train", earlier.train), split("validation", earlier.validation)];
    let kept_shards = splits.iter().map(SplitWork::kept).sum();
    let made_again = splits.iter().flat_map(SplitWork::lost).collect();
    let mut work = Work {
        options,
        recipe,
        complete: earlier.complete,
        splits,
        seen: HashSet::new(),
        skipped: Skipped::default(),
        tally: Tally::new(options.bad_lines, &options.out)?,
        read: BytesRead::default(),
    };
    for batch in batches(&sources, options, &work.read.clone()) {
        work.batch(batch, &tokenizer)?;
        tell(progress, work.progress())?;
    }
    let first_bad = work.tally.first();
    let info = work.finish(&tokenizer, end_of_text, inputs)?;
    Ok(PrepareSummary {
        out: options.out.clone(),
        info,
        kept_shards,
        made_again,
        tokenizer_notes: tokenizer.notes().to_vec(),
        first_bad,
        elapsed: began.elapsed(),
    })
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
        end_of_text: options.end_of_text.clone(),
        max_file_bytes: options.max_file_bytes,
        shard_tokens: options.shard_tokens,
        exclude: options.exclude.clone(),
    }
}

/// What an earlier run left in the output folder.
#[derive(Default)]
struct Earlier {
    recipe: Option<Recipe>,
    /// A finished data set.
    complete: bool,
    train: Split,
    validation: Split,
}

impl Earlier {
    fn read(out: &Path) -> Result<Self> {
        if let Some(info) = manifest::read::<DatasetInfo>(&out.join(DATASET_FILE))? {
            let DatasetInfo { recipe, train, validation, .. } = info;
            return Ok(Self { recipe: Some(recipe), complete: true, train, validation });
        }
        let Some(progress) = manifest::read::<Progress>(&out.join(PROGRESS_FILE))? else {
            return Ok(Self::default());
        };
        let Progress { recipe, train, validation } = progress;
        // Begun, but no shard is made yet: other options spoil nothing.
        if train.shards.is_empty() && validation.shards.is_empty() {
            return Ok(Self::default());
        }
        Ok(Self { recipe: Some(recipe), complete: false, train, validation })
    }

    /// Refuses a folder with another data set.
    fn check(&self, out: &Path, recipe: &Recipe) -> Result<()> {
        let Some(earlier) = self.recipe.as_ref().filter(|earlier| *earlier != recipe) else { return Ok(()) };
        let what = if earlier.tokenizer_blake3 == recipe.tokenizer_blake3 {
            format!("{earlier:?} then, {recipe:?} now")
        } else {
            "another tokenizer".to_owned()
        };
        Err(DataError::OtherDataset { path: out.to_owned(), what })
    }
}

/// Reads or trains the tokenizer and puts its file into the output folder, if that may hold it. Returns it with the id of the
/// token that ends a document.
fn obtain_tokenizer(
    options: &PrepareOptions,
    sources: &[Source],
    bytes: u64,
    earlier: &Earlier,
    progress: &mut dyn FnMut(PrepareProgress) -> ControlFlow<()>,
) -> Result<(Tokenizer, i32, Recipe)> {
    let copy = options.out.join(TOKENIZER_FILE);
    let (json, name) = match &options.tokenizer {
        TokenizerSource::File(path) => (fs::read(path).map_err(|e| DataError::io("read", path, e))?, path),
        TokenizerSource::Train(size) => {
            // A tokenizer that was lost or changed is trained again, as a shard is made again.
            let made = |recipe: &&Recipe| recipe.trained_tokenizer == Some(*size);
            let whole = |json: &Vec<u8>| {
                let hash = blake3::hash(json).to_hex();
                earlier.recipe.as_ref().filter(made).is_some_and(|r| r.tokenizer_blake3 == hash.as_str())
            };
            match fs::read(&copy).ok().filter(whole) {
                Some(json) => (json, &copy),
                None => (train_tokenizer(options, sources, bytes, *size, progress)?, &copy),
            }
        }
    };
    let tokenizer = Tokenizer::from_json(&json, name)?;
    let end_of_text = tokenizer.end_of_text(&options.end_of_text)?;
    let recipe = recipe(options, tokenizer.hash().to_owned());
    earlier.check(&options.out, &recipe)?;
    write_file(&RealDisk, &copy, |w| w.write_all(&json)).map_err(|e| DataError::io("write", &copy, e))?;
    Ok((tokenizer, end_of_text, recipe))
}

/// Trains on the training split; of large inputs, on documents chosen by their hash. The work is done by other threads, so
/// that this one can tell how far it is.
fn train_tokenizer(
    options: &PrepareOptions,
    sources: &[Source],
    bytes: u64,
    size: usize,
    progress: &mut dyn FnMut(PrepareProgress) -> ControlFlow<()>,
) -> Result<Vec<u8>> {
    let share = TOKENIZER_BYTES as f64 / bytes.max(1) as f64;
    let read = BytesRead::default();
    let stop = AtomicBool::new(false);
    let work = || {
        let mut tally = Tally::new(options.bad_lines, &options.out)?;
        let mut failure = None;
        let mut seen = HashSet::new();
        let texts = sources
            .iter()
            .flat_map(|source| source.items(&options.text_column, &read))
            .take_while(|_| !stop.load(Ordering::Relaxed))
            .map_while(|item| {
                let met = match item.load(options.max_file_bytes) {
                    Loaded::Bad(bad) => tally.meet_bad(bad).map(|()| None),
                    loaded => {
                        tally.meet();
                        Ok(if let Loaded::Text(text) = loaded { Some(text) } else { None })
                    }
                };
                met.map_err(|e| failure = Some(e)).ok()
            })
            .flatten()
            .filter(|text| {
                let hash = blake3::hash(text.as_bytes());
                let word = |at: usize| hash_fraction(&hash.as_bytes()[at..at + 8]);
                word(8) < share && word(0) >= options.validation_fraction && seen.insert(short(&hash))
            });
        let counted = tokenizer::count(texts, size)?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        if stop.load(Ordering::Relaxed) {
            return Err(DataError::Interrupted);
        }
        tokenizer::learn(counted)
    };
    std::thread::scope(|scope| {
        let worker = scope.spawn(work);
        while !worker.is_finished() {
            let state = PrepareProgress::TrainingTokenizer { bytes: read.load(Ordering::Relaxed) };
            if progress(state).is_break() {
                stop.store(true, Ordering::Relaxed);
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Groups documents into batches of bounded size.
fn batches<'a>(
    sources: &'a [Source],
    options: &'a PrepareOptions,
    read: &'a BytesRead,
) -> impl Iterator<Item = Vec<Item>> + 'a {
    let mut items = sources.iter().flat_map(|source| source.items(&options.text_column, read));
    std::iter::from_fn(move || {
        let (mut batch, mut held) = (Vec::new(), 0);
        while batch.len() < BATCH_DOCUMENTS && held < BATCH_BYTES {
            let Some(item) = items.next() else { break };
            held += item.size(options.max_file_bytes);
            batch.push(item);
        }
        (!batch.is_empty()).then_some(batch)
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
    tally: Tally,
    read: BytesRead,
}

impl Work<'_> {
    fn batch(&mut self, batch: Vec<Item>, tokenizer: &Tokenizer) -> Result<()> {
        let batch: Vec<_> = batch.into_iter().map(|item| Mutex::new(Some(item))).collect();
        let loaded = in_parallel(&batch, self.options.threads, |item| {
            let item = item.lock().expect("not poisoned").take().expect("each is taken once");
            match item.load(self.options.max_file_bytes) {
                Loaded::Text(text) => (Some(blake3::hash(text.as_bytes())), Loaded::Text(text)),
                other => (None, other),
            }
        });
        let mut wanted = Vec::new();
        for document in loaded {
            let (hash, text) = match document {
                (Some(hash), Loaded::Text(text)) => (hash, text),
                (_, other) => {
                    self.skip(other)?;
                    continue;
                }
            };
            self.tally.meet();
            if !self.seen.insert(short(&hash)) {
                self.skipped.duplicates += 1;
                continue;
            }
            let split = usize::from(hash_fraction(&hash.as_bytes()[..8]) < self.options.validation_fraction);
            match self.splits[split].home(&hash, &self.options.out)? {
                Home::Kept => {}
                Home::New if self.complete => {
                    return Err(DataError::InputsChanged(self.options.out.clone()));
                }
                home => wanted.push((split, home, hash, text)),
            }
        }
        let ids = in_parallel(&wanted, self.options.threads, |(.., text)| tokenizer.encode(text));
        for ((split, home, hash, text), ids) in wanted.iter().zip(ids) {
            let PrepareOptions { out, shard_tokens, .. } = self.options;
            let bytes = text.len() as u64;
            let closed = self.splits[*split].push(*home, hash, &ids?, bytes, out, *shard_tokens)?;
            if closed && !self.complete {
                let [train, validation] = self.splits.each_ref().map(SplitWork::split);
                let progress = Progress { recipe: self.recipe.clone(), train, validation };
                manifest::write(&self.options.out.join(PROGRESS_FILE), &progress)?;
            }
        }
        Ok(())
    }

    /// Counts what is not in the data set.
    fn skip(&mut self, loaded: Loaded) -> Result<()> {
        match loaded {
            Loaded::Text(_) => unreachable!("text is not skipped"),
            Loaded::Bad(bad) => return self.tally.meet_bad(bad),
            Loaded::NotUtf8 => self.skipped.not_utf8 += 1,
            Loaded::TooLarge => self.skipped.too_large += 1,
            Loaded::Empty => self.skipped.empty += 1,
        }
        self.tally.meet();
        Ok(())
    }

    fn progress(&self) -> PrepareProgress {
        let [train, validation] = self.splits.each_ref().map(SplitWork::split);
        let [(a, x), (b, y)] = self.splits.each_ref().map(SplitWork::open);
        PrepareProgress::Tokenised {
            bytes: self.read.load(Ordering::Relaxed),
            documents: train.documents + validation.documents + a + b,
            tokens: train.tokens + validation.tokens + x + y,
            shards: self.splits.iter().map(SplitWork::made).sum(),
            open: a + b,
        }
    }

    /// Closes the open shards and writes `dataset.json`, which makes the folder a data set.
    fn finish(
        mut self,
        tokenizer: &Tokenizer,
        end_of_text: i32,
        inputs: Vec<InputInfo>,
    ) -> Result<DatasetInfo> {
        for split in &mut self.splits {
            split.finish(&self.options.out)?;
        }
        let [train, validation] = self.splits.each_ref().map(SplitWork::split);
        let skipped = Skipped { bad: self.tally.bad(), ..self.skipped };
        if train.documents == 0 {
            let s = skipped;
            let mut why = format!(
                "{} not UTF-8, {} too large, {} empty, {} held out, {} bad",
                s.not_utf8, s.too_large, s.empty, validation.documents, s.bad
            );
            if let Some(first) = self.tally.first() {
                why += &format!(" (the first: {first})");
            }
            return Err(DataError::NoDocuments(why));
        }
        let info = DatasetInfo {
            recipe: self.recipe,
            inputs,
            vocab_size: tokenizer.vocab_size(),
            end_of_text,
            pad: tokenizer.find_special(FIM_PAD).unwrap_or(end_of_text),
            skipped,
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
