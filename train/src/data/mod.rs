//! Data: from source text to Parquet shards ([`prepare`]), and from shards to batches ([`Loader`]).

mod atomic;
mod error;
mod manifest;
mod prepare;
mod random;
mod shard;
mod shard_write;
mod source;
mod standard_library;
mod tokenizer;

pub use error::{DataError, Result};
pub use manifest::{DATASET_FILE, DatasetInfo, FORMAT, Recipe, ShardInfo, Skipped, Split, TOKENIZER_FILE};
pub use prepare::{PrepareOptions, PrepareProgress, PrepareSummary, TokenizerSource, prepare};
pub use standard_library::prepare_standard_library;
pub use tokenizer::{END_OF_TEXT, FIM_MIDDLE, FIM_PAD, FIM_PREFIX, FIM_SUFFIX, Tokenizer};
