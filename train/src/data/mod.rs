//! Data: from source text to Parquet shards ([`prepare()`]), and from shards to batches ([`Loader`]).
//!
//! Everything here is deterministic: the same input and options give the same bytes on disk, and the same data, options and
//! [`Position`] give the same rows in the same order, on any machine and with any number of threads.

mod bad;
mod bigram;
mod config;
mod dataset;
mod error;
mod feed;
mod fim;
mod folder;
mod lengths;
mod loader;
mod manifest;
mod pack;
mod parallel;
mod position;
mod prepare;
mod random;
mod shard;
mod shard_write;
mod source;
mod splits;
mod standard_library;
mod tokenizer;
mod words;

pub use bad::{BAD_LINES_FILE, BadLines};
pub use bigram::Bigram;
pub use config::{LongRows, Order, Packing, RowOptions};
pub use dataset::Dataset;
pub use error::{DataError, Result};
pub use lengths::RowLengths;
pub use loader::{Batch, EpochSize, Loader};
pub use manifest::{
    DATASET_FILE, DatasetInfo, FORMAT, InputInfo, Recipe, ShardInfo, Skipped, Split, TOKENIZER_FILE,
};
pub use pack::PADDING;
pub use position::Position;
pub use prepare::{PrepareOptions, PrepareProgress, PrepareSummary, TokenizerSource, prepare};
pub use standard_library::prepare_standard_library;
pub use tokenizer::{END_OF_TEXT, FIM_MIDDLE, FIM_PAD, FIM_PREFIX, FIM_SUFFIX, Tokenizer};
