//! An open data folder: its shards, cut into chunks of bounded size, and its tokenizer.
//!
//! A folder is either one that `prepare-data` wrote (then `dataset.json` says what must be there) or any folder with
//! Parquet files that have a list column `input_ids`, in it or in its `train/` ([`super::folder`]). Files whose names
//! begin with `validation`, or those in `validation/` or `val/` beside `train/`, are the validation split; if there is
//! none, the last rows of the training split are held out.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{DataError, Result};
use super::folder::{self, Parts};
use super::manifest::{self, DATASET_FILE, DatasetInfo, PROGRESS_FILE, TOKENIZER_FILE};
use super::shard::{ReadError, Rows, Shard};
use super::tokenizer::{END_OF_TEXT, FIM_PAD, Tokenizer};

/// Larger row groups of foreign files are read in parts of about this many tokens, so that memory stays bounded. A part is
/// found by skipping the rows before it, which costs decoding them.
const CHUNK_TOKENS: u64 = 1 << 22;

/// Qwen2.5-Coder's ids, for folders that say nothing else.
const QWEN_END_OF_TEXT: i32 = 151_643;
const QWEN_PAD: i32 = 151_662;

/// Which part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// To train on.
    Train,
    /// Held out.
    Validation,
}

impl Part {
    /// The name in messages and file names.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Train => "training",
            Self::Validation => "validation",
        }
    }
}

/// A range of the rows of one row group: the unit of reading and of the coarse shuffle.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) shard: usize,
    pub(super) group: usize,
    rows: Range<u64>,
    /// The number of the first row, counted over all shards of the split: the document id of every draw.
    pub(super) first: u64,
    /// Tokens as the footer states them (a share of them, for a part of a row group).
    pub(super) tokens: u64,
}

impl Chunk {
    /// How many rows it has.
    pub(super) fn len(&self) -> u64 {
        self.rows.end - self.rows.start
    }
}

/// An open data folder.
pub struct Dataset {
    folder: PathBuf,
    info: Option<DatasetInfo>,
    tokenizer: Option<Arc<Tokenizer>>,
    shards: Vec<Shard>,
    train: Vec<Chunk>,
    validation: Vec<Chunk>,
    end_of_text: i32,
    pad: i32,
    vocabulary: usize,
    mark: u64,
    validation_fraction: f64,
}

impl Dataset {
    /// Opens a folder. Ids must be below `vocabulary` (the model's `num_tokens`); `validation_fraction` of the rows is held
    /// out if the folder has no validation split.
    pub fn open(folder: &Path, vocabulary: usize, validation_fraction: f64) -> Result<Self> {
        Self::open_ended_by(None, folder, vocabulary, validation_fraction)
    }

    /// The same. `end_of_text` is the token that ends a document, or its id: needed for rows that another program made, as
    /// nothing in them says it; it must not contradict `dataset.json`.
    pub fn open_ended_by(
        end_of_text: Option<&str>,
        folder: &Path,
        vocabulary: usize,
        validation_fraction: f64,
    ) -> Result<Self> {
        if !folder.is_dir() {
            return Err(DataError::NoFolder(folder.to_owned()));
        }
        let info: Option<DatasetInfo> = manifest::read(&folder.join(DATASET_FILE))?;
        if info.is_none() && folder.join(PROGRESS_FILE).exists() {
            return Err(DataError::Unfinished(folder.to_owned()));
        }
        if let Some(info) = &info {
            check_format(folder, info, vocabulary)?;
        }
        let parts = match &info {
            Some(info) => described(folder, info),
            None => folder::parts(folder)?,
        };
        // First: if there are no shards, a missing tokenizer is not what to complain of.
        let (train_shards, validation_shards) = open_shards(&parts, info.as_ref())?;
        if train_shards.is_empty() {
            return Err(DataError::NoRows { path: folder.to_owned(), split: Part::Train.name() });
        }
        let tokenizer = open_tokenizer(parts.tokenizer, info.as_ref())?;
        let found = Found { folder, info: info.as_ref(), tokenizer: tokenizer.as_ref(), vocabulary };
        let (said, pad) = found.special_ids(end_of_text)?;
        let other = end_of_text.filter(|_| info.is_none()).map(|_| said);
        let mark = mark(&train_shards, &validation_shards, other);
        let end_of_text = said;
        let mut train = chunks(&train_shards, 0);
        let mut validation = chunks(&validation_shards, train_shards.len());
        if validation.is_empty() {
            (train, validation) = hold_out(train, validation_fraction);
        }
        if train.is_empty() {
            return Err(DataError::NoRows { path: folder.to_owned(), split: Part::Train.name() });
        }
        let shards = train_shards.into_iter().chain(validation_shards).collect();
        let tokenizer = tokenizer.map(Arc::new);
        let folder = folder.to_owned();
        Ok(Self {
            folder,
            info,
            tokenizer,
            shards,
            train,
            validation,
            end_of_text,
            pad,
            vocabulary,
            mark,
            validation_fraction,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What `dataset.json` says, for prepared folders.
    pub fn info(&self) -> Option<&DatasetInfo> {
        self.info.as_ref()
    }

    /// The tokenizer, if the folder has one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// The id that ends every document.
    pub fn end_of_text(&self) -> i32 {
        self.end_of_text
    }

    /// The id that fills rows.
    pub fn pad(&self) -> i32 {
        self.pad
    }

    /// Whether there are rows to validate on.
    pub fn has_validation(&self) -> bool {
        !self.validation.is_empty()
    }

    /// Where the held-out rows come from, and whether `data.validation_fraction` decided it.
    pub fn held_out(&self) -> String {
        let count = |chunks: &[Chunk]| chunks.iter().map(Chunk::len).sum::<u64>();
        let (held, all) = (count(&self.validation), count(&self.validation) + count(&self.train));
        let fraction = self.validation_fraction;
        if self.validation.first().is_some_and(|chunk| self.train.iter().all(|c| c.shard != chunk.shard)) {
            let by = self.info.as_ref().map_or("files of its own".to_owned(), |info| {
                format!("prepare-data --validation-fraction {}", info.recipe.validation_fraction)
            });
            return format!(
                "{held} documents held out by {by}; data.validation_fraction = {fraction} does nothing here"
            );
        }
        match held {
            0 => format!("nothing of {all} documents (data.validation_fraction = {fraction})"),
            _ => format!("the last {held} of {all} documents (data.validation_fraction = {fraction})"),
        }
    }

    /// One more than the largest id that rows may hold.
    pub(super) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Names, sizes and row counts of the files, hashed: the same wherever the folder lies.
    pub(super) fn mark(&self) -> u64 {
        self.mark
    }

    /// The chunks of a part, in file order.
    pub(super) fn chunks(&self, part: Part) -> &[Chunk] {
        match part {
            Part::Train => &self.train,
            Part::Validation => &self.validation,
        }
    }

    /// Reads a chunk.
    pub(super) fn read(&self, chunk: &Chunk) -> std::result::Result<Rows, ReadError> {
        self.shards[chunk.shard].read(chunk.group, chunk.rows.clone(), self.vocabulary)
    }

    /// The file a chunk lies in.
    pub(super) fn path(&self, chunk: &Chunk) -> &Path {
        &self.shards[chunk.shard].path
    }

    /// A file whose rows are complete training rows.
    pub(super) fn complete_rows(&self) -> Option<&Path> {
        self.shards.iter().find(|s| s.has_labels()).map(|s| s.path.as_path())
    }

    /// A file whose rows have columns of segments or labels beside the ids.
    pub(super) fn rows_of_training(&self) -> Option<&Path> {
        self.shards.iter().find(|s| s.has_labels() || s.has_segments()).map(|s| s.path.as_path())
    }
}

fn check_format(folder: &Path, info: &DatasetInfo, vocabulary: usize) -> Result<()> {
    if info.recipe.format != manifest::FORMAT {
        let reason =
            format!("format {} is not {}, which this program reads", info.recipe.format, manifest::FORMAT);
        return Err(DataError::Description { path: folder.join(DATASET_FILE), reason });
    }
    if info.vocab_size > vocabulary {
        return Err(DataError::Vocabulary {
            path: folder.to_owned(),
            data: info.vocab_size,
            model: vocabulary,
        });
    }
    Ok(())
}

/// The parts of a prepared folder.
fn described(folder: &Path, info: &DatasetInfo) -> Parts {
    let paths = |split: &manifest::Split| split.shards.iter().map(|s| folder.join(&s.file)).collect();
    Parts {
        train: paths(&info.train),
        validation: paths(&info.validation),
        tokenizer: Some(folder.join(TOKENIZER_FILE)),
    }
}

fn open_tokenizer(path: Option<PathBuf>, info: Option<&DatasetInfo>) -> Result<Option<Tokenizer>> {
    let Some(path) = path else { return Ok(None) };
    let tokenizer = Tokenizer::open(&path)?;
    match info {
        Some(info) if info.recipe.tokenizer_blake3 != tokenizer.hash() => Err(DataError::TokenizerMismatch {
            path,
            found: tokenizer.hash().to_owned(),
            wanted: info.recipe.tokenizer_blake3.clone(),
        }),
        _ => Ok(Some(tokenizer)),
    }
}

/// What a folder says about its tokens.
struct Found<'a> {
    folder: &'a Path,
    info: Option<&'a DatasetInfo>,
    tokenizer: Option<&'a Tokenizer>,
    vocabulary: usize,
}

impl Found<'_> {
    /// The ids of the end of text and of padding: as asked for, from `dataset.json`, from the tokenizer, or Qwen's if the
    /// vocabulary has them.
    fn special_ids(&self, asked: Option<&str>) -> Result<(i32, i32)> {
        let asked = asked.map(|token| self.id(token).map(|id| (token, id))).transpose()?;
        if let Some(info) = self.info {
            return match asked {
                Some((token, id)) if id != info.end_of_text => Err(DataError::OtherEndOfText {
                    path: self.folder.to_owned(),
                    wanted: info.recipe.end_of_text.clone(),
                    found: token.to_owned(),
                }),
                _ => Ok((info.end_of_text, info.pad)),
            };
        }
        let end = match (asked, self.tokenizer) {
            (Some((_, id)), _) => id,
            (None, Some(tokenizer)) => tokenizer.end_of_text(END_OF_TEXT)?,
            (None, None) if self.vocabulary > QWEN_PAD as usize => return Ok((QWEN_END_OF_TEXT, QWEN_PAD)),
            (None, None) => return Err(self.unknown(END_OF_TEXT)),
        };
        Ok((end, self.tokenizer.and_then(|tokenizer| tokenizer.find_special(FIM_PAD)).unwrap_or(end)))
    }

    /// The id of a token that is given by its text or by its id.
    fn id(&self, token: &str) -> Result<i32> {
        match (token.parse::<usize>(), self.tokenizer) {
            (Ok(id), _) if id < self.vocabulary => Ok(id as i32),
            (Ok(_), _) => Err(DataError::Setting {
                name: "data.end_of_text",
                found: token.to_owned(),
                wanted: "a token, or an id below model.num_tokens",
            }),
            (Err(_), Some(tokenizer)) => tokenizer.end_of_text(token),
            (Err(_), None) => Err(self.unknown(token)),
        }
    }

    fn unknown(&self, token: &str) -> DataError {
        DataError::NoSpecial {
            path: self.folder.to_owned(),
            token: token.to_owned(),
            purpose: "ends every document",
            remedy: "copy the tokenizer.json that made the rows into the folder, or set data.end_of_text to its id".to_owned(),
        }
    }
}

/// The training and validation shards, each in order.
fn open_shards(parts: &Parts, info: Option<&DatasetInfo>) -> Result<(Vec<Shard>, Vec<Shard>)> {
    let open = |paths: &[PathBuf], split: Option<&manifest::Split>| -> Result<Vec<Shard>> {
        let described = |at: usize| split.map(|split| &split.shards[at]);
        paths.iter().enumerate().map(|(at, path)| Shard::open(path, described(at))).collect()
    };
    let (train, validation) = (info.map(|info| &info.train), info.map(|info| &info.validation));
    Ok((open(&parts.train, train)?, open(&parts.validation, validation)?))
}

fn chunks(shards: &[Shard], first_shard: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut first = 0;
    for (index, shard) in shards.iter().enumerate() {
        for (group, (rows, tokens)) in shard.row_groups().enumerate() {
            let parts = tokens.div_ceil(CHUNK_TOKENS).clamp(1, rows.max(1));
            for part in 0..parts {
                let range = rows * part / parts..rows * (part + 1) / parts;
                if !range.is_empty() {
                    let (rows, tokens) = (range, tokens / parts);
                    let length = rows.end - rows.start;
                    chunks.push(Chunk { shard: first_shard + index, group, rows, first, tokens });
                    first += length;
                }
            }
        }
    }
    chunks
}

/// Cuts the last rows off as the validation split: at least one, and never all.
fn hold_out(chunks: Vec<Chunk>, fraction: f64) -> (Vec<Chunk>, Vec<Chunk>) {
    let total: u64 = chunks.iter().map(Chunk::len).sum();
    if fraction <= 0.0 || total < 2 {
        return (chunks, Vec::new());
    }
    let kept = total - ((total as f64 * fraction).ceil() as u64).clamp(1, total - 1);
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for chunk in chunks {
        let cut = kept.saturating_sub(chunk.first).min(chunk.len());
        let share = |rows: u64| chunk.tokens * rows / chunk.len();
        let middle = chunk.rows.start + cut;
        if cut > 0 {
            train.push(Chunk { rows: chunk.rows.start..middle, tokens: share(cut), ..chunk.clone() });
        }
        if cut < chunk.len() {
            let (rows, tokens) = (middle..chunk.rows.end, share(chunk.len() - cut));
            validation.push(Chunk { rows, tokens, first: chunk.first + cut, ..chunk.clone() });
        }
    }
    (train, validation)
}

/// Of the shards, and of a token that ends documents though the folder does not say so.
fn mark(train: &[Shard], validation: &[Shard], end_of_text: Option<i32>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    if let Some(id) = end_of_text {
        hasher.update(&id.to_le_bytes());
    }
    for shards in [train, validation] {
        hasher.update(&(shards.len() as u64).to_le_bytes());
        for shard in shards {
            let name = shard.path.file_name().unwrap_or_default().as_encoded_bytes();
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name);
            hasher.update(&shard.size().to_le_bytes());
            for (rows, tokens) in shard.row_groups() {
                hasher.update(&rows.to_le_bytes());
                hasher.update(&tokens.to_le_bytes());
            }
        }
    }
    u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().expect("8 bytes"))
}
