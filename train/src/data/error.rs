//! What can go wrong with data, each with the file it concerns and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use super::position::Position;
use crate::lock::LockError;

/// The result of anything that reads or writes data.
pub type Result<T> = std::result::Result<T, DataError>;

/// A problem with the data, its preparation or a position in it.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The operating system refused.
    #[error("cannot {doing} {path}: {error}")]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The reason given. Not as a source: it is in the message already.
        error: io::Error,
    },
    /// The data folder is not there.
    #[error(
        "data folder {folder} does not exist; create it with `cargo run -p prepare-data -- --out {out} --train-tokenizer 4096 INPUT...` \
         or point `data.path` at an existing one",
        folder = .0.display(),
        out = quoted(.0)
    )]
    NoFolder(PathBuf),
    /// The data folder holds nothing to train on.
    #[error(
        "data folder {path} holds no {split} rows; fill it with `cargo run -p prepare-data -- --out {out} INPUT...` \
         or point `data.path` at a folder with Parquet shards",
        path = path.display(),
        out = quoted(path)
    )]
    NoRows {
        /// The folder.
        path: PathBuf,
        /// Which split was wanted.
        split: &'static str,
    },
    /// Preparation was interrupted.
    #[error(
        "data folder {0} is not finished: run the same prepare-data command again, it continues where it stopped"
    )]
    Unfinished(PathBuf),
    /// A shard is absent although `dataset.json` lists it.
    #[error(
        "shard {0} is listed in dataset.json but is not there; copy it back, or run the same prepare-data command again, \
         which makes it again"
    )]
    MissingShard(PathBuf),
    /// A shard has another size than when it was written.
    #[error(
        "shard {path} is {found} bytes, dataset.json says {wanted}: it is truncated or was replaced; \
         copy it again, or run the same prepare-data command again, which makes it again"
    )]
    ShardSize {
        /// The shard.
        path: PathBuf,
        /// Its size now.
        found: u64,
        /// Its size when it was written.
        wanted: u64,
    },
    /// A Parquet file has no readable footer.
    #[error(
        "{path} cannot be opened as Parquet ({reason}): it is truncated or damaged; copy it again or make it again"
    )]
    Footer {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// A column is absent or of another type.
    #[error("{path} has no column `{wanted}` of type {kind} (found: {found}); {remedy}")]
    Column {
        /// The file.
        path: PathBuf,
        /// The column's name.
        wanted: String,
        /// The type it should have.
        kind: &'static str,
        /// The columns that are there.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A token id that the model has no row for.
    #[error(
        "{path}, row {row}: token id {id} is outside the vocabulary of {vocabulary}; the data were made with another \
         tokenizer: prepare them again or set model.vocab_size and model.num_tokens to match"
    )]
    IdOutOfRange {
        /// The shard.
        path: PathBuf,
        /// The row in it.
        row: u64,
        /// The id.
        id: i64,
        /// How many ids there are.
        vocabulary: usize,
    },
    /// More row groups are damaged than are tolerated.
    #[error(
        "{path}, row group {group} is damaged ({reason}); {count} damaged row groups, allowed are {limit}: copy the \
         shard again, or set data.max_bad_row_groups = {count} or more to train without them"
    )]
    BadRowGroup {
        /// The shard.
        path: PathBuf,
        /// Which row group.
        group: usize,
        /// What is wrong with it.
        reason: String,
        /// How many were found in all.
        count: usize,
        /// How many are tolerated.
        limit: usize,
    },
    /// `tokenizer.json` is not the one that made the data.
    #[error(
        "{path} has hash {found}, dataset.json was made with {wanted}: put the original tokenizer.json back, or run the same \
         prepare-data command again, which writes it again"
    )]
    TokenizerMismatch {
        /// The tokenizer file.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// The hash in `dataset.json`.
        wanted: String,
    },
    /// The model's vocabulary is smaller than the data's.
    #[error(
        "the data in {path} use a vocabulary of {data} tokens, the model has {model}: set model.vocab_size (and \
         model.num_tokens) to at least {data} or prepare the data with a smaller tokenizer"
    )]
    Vocabulary {
        /// The data folder.
        path: PathBuf,
        /// Its vocabulary.
        data: usize,
        /// The model's.
        model: usize,
    },
    /// A tokenizer could not be read, trained or used.
    #[error(
        "cannot {doing} tokenizer {path}: {reason}; give a tokenizer.json of the `tokenizers` library, or let \
         prepare-data train one with --train-tokenizer 4096"
    )]
    Tokenizer {
        /// What was being done.
        doing: &'static str,
        /// The tokenizer's file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A tokenizer that changes text, or whose tokens are not bytes of text.
    #[error(
        "tokenizer {path} does not give text back: {kind} {text} becomes {back} ({parts}); take a byte-level tokenizer \
         without a normalizer or with NFC, such as those of GPT-2, Qwen, Llama 3, DeepSeek or StarCoder, or let \
         prepare-data train one with --train-tokenizer 4096"
    )]
    LossyTokenizer {
        /// The tokenizer's file.
        path: PathBuf,
        /// What kind of text it was tried with.
        kind: &'static str,
        /// The text.
        text: String,
        /// What it became.
        back: String,
        /// Of which parts the tokenizer is made.
        parts: String,
    },
    /// A special token is not in the vocabulary.
    #[error("{path} does not say the id of `{token}`, which {purpose}; {remedy}")]
    NoSpecial {
        /// The tokenizer or folder.
        path: PathBuf,
        /// The token.
        token: String,
        /// What it is needed for.
        purpose: &'static str,
        /// What to do.
        remedy: String,
    },
    /// A folder of a tokenizer in another form.
    #[error(
        "{folder} holds no tokenizer.json; write one there with `python3 -c \"from transformers import AutoTokenizer as A; \
         A.from_pretrained({quoted}).save_pretrained({quoted})\"`, or move that folder away",
        folder = .0.display(), quoted = format!("'{}'", .0.display())
    )]
    OtherTokenizer(PathBuf),
    /// `data.end_of_text` is not the token that ends the documents.
    #[error(
        "the documents in {path} end with `{wanted}`, as its dataset.json says, and not with data.end_of_text, `{found}`: leave \
         that key out, or prepare the data again"
    )]
    OtherEndOfText {
        /// The folder.
        path: PathBuf,
        /// The token that ends them.
        wanted: String,
        /// What the key says.
        found: String,
    },
    /// FIM cuts text, so it needs the tokenizer beside the data.
    #[error("FIM (data.fim_rate > 0) needs a tokenizer.json in {0}; copy it there or set data.fim_rate = 0")]
    FimNeedsTokenizer(PathBuf),
    /// Complete training rows cannot be packed again.
    #[error(
        "{0} holds complete training rows (it has a column `labels`): add --set data.packing=none, or in a file set \
         data.packing = \"none\""
    )]
    CompleteRows(PathBuf),
    /// A row that is longer than the training rows.
    #[error(
        "row {row} of the {split} split has {found} tokens, batch.seq is {seq}: add --set data.long_rows=split to make several \
         rows of such a one, --set data.long_rows=cut to leave out what is too much, or --set batch.seq={found}"
    )]
    RowLength {
        /// Which split.
        split: &'static str,
        /// The row, counted over all shards of the split.
        row: u64,
        /// Its length, with the end of the document where documents are packed.
        found: usize,
        /// The length of training rows.
        seq: usize,
    },
    /// Labels or segments that are not understood.
    #[error("row {row} of the {split} split: {reason}; remove the column or prepare the data again")]
    RowColumns {
        /// Which split.
        split: &'static str,
        /// The row, counted over all shards of the split.
        row: u64,
        /// What is wrong.
        reason: String,
    },
    /// A position that belongs to other data or other data settings.
    #[error(
        "the saved data position belongs to other data or data settings (mark {found:016x}, now {wanted:016x}): resume with \
         the same data folder, seed, batch.seq and data.* keys as before, or start a new run from the checkpoint with --init \
         and another --out"
    )]
    OtherPosition {
        /// The mark in the position.
        found: u64,
        /// The mark of this loader.
        wanted: u64,
    },
    /// A position with numbers that no run reaches.
    #[error("the saved data position is damaged: {0:?}; resume from an older checkpoint (--resume PATH)")]
    ImpossiblePosition(Position),
    /// The output folder belongs to another preparation.
    #[error(
        "{path} already holds a data set made with other options ({what}); choose another --out or delete that folder"
    )]
    OtherDataset {
        /// The folder.
        path: PathBuf,
        /// Which option differs.
        what: String,
    },
    /// The inputs are not those of the earlier run.
    #[error(
        "the inputs changed since {0} was begun; choose another --out or delete that folder and run again"
    )]
    InputsChanged(PathBuf),
    /// No such input, or one that is not understood.
    #[error(
        "input {path}: {reason}; inputs are *.py files, *.jsonl, *.ndjson and *.json (also .gz and .zst), *.parquet with a \
         text column, and folders with them"
    )]
    Input {
        /// The input.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing was left to train on.
    #[error("no documents in the inputs: {0}; give files or folders with Python source")]
    NoDocuments(String),
    /// Input that is no document, where none is borne.
    #[error("{0}; --bad-lines skip leaves such input out and counts it")]
    BadLine(String),
    /// More of the input is no document than is borne.
    #[error(
        "{bad} of {documents} lines, rows and files are bad; borne are {percent} % of them, or ten if that is more. The \
         first: {first}. All are listed in {report}: mend or remove them, or bear more with --max-bad-lines SHARE"
    )]
    BadLines {
        /// How many are bad.
        bad: u64,
        /// Of how many.
        documents: u64,
        /// How many are borne, in percent.
        percent: f64,
        /// The first one.
        first: String,
        /// The report.
        report: PathBuf,
    },
    /// Another process prepares the folder.
    #[error("{0}; wait for it to end, or choose another --out")]
    Locked(#[from] LockError),
    /// A shard that cannot be written.
    #[error("shard {path} cannot be made: {reason}; leave the largest documents out with --max-file-bytes")]
    Shard {
        /// The shard.
        path: PathBuf,
        /// What the encoder said.
        reason: String,
    },
    /// A description file of ours that cannot be understood.
    #[error(
        "{path} cannot be understood: {reason}; restore it, or delete it and run the same prepare-data command again"
    )]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An option out of range.
    #[error("{name} = {found}: must be {wanted}")]
    Setting {
        /// The option's name.
        name: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// `python3` cannot tell where its standard library is.
    #[error(
        "cannot ask {python} for its standard library: {reason}; install Python 3 or give data with --data DIR"
    )]
    Python {
        /// The program that was asked.
        python: String,
        /// What went wrong.
        reason: String,
    },
    /// The caller asked to stop.
    #[error("interrupted; finished shards are kept: run the same command again to continue")]
    Interrupted,
    /// The background thread ended without a message.
    #[error("the data thread stopped unexpectedly; this is a bug: please report the messages above")]
    ThreadGone,
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    program::quoted(&path.to_string_lossy())
}

impl DataError {
    /// An operating system error with its file.
    pub(super) fn io(doing: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), error }
    }
}
