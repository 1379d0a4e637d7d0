//! What decides which rows are made.

use serde::{Deserialize, Serialize};

use super::error::{DataError, Result};

/// The order of rows; `true` and `false` in configuration files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "bool", into = "bool")]
pub enum Order {
    /// As in the files.
    Files,
    /// Another permutation in each epoch, from the seed.
    #[default]
    Shuffled,
}

impl From<bool> for Order {
    fn from(shuffle: bool) -> Self {
        if shuffle { Self::Shuffled } else { Self::Files }
    }
}

impl From<Order> for bool {
    fn from(order: Order) -> Self {
        order == Order::Shuffled
    }
}

/// How documents become training rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// Each row begins with the next document and is filled with the longest ones that still fit; a document is split only
    /// when none fits.
    #[default]
    BestFit,
    /// Documents follow each other and are split wherever a row ends.
    Sequential,
    /// Every Parquet row is one training row as it stands, if it is not too long ([`LongRows`]).
    None,
}

/// What becomes of a row of the files, or a document, that is longer than a training row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LongRows {
    /// Several training rows.
    Split,
    /// Its beginning is one training row, the rest is left out.
    Cut,
    /// An error.
    Refuse,
}

impl Packing {
    /// What becomes of long rows if nobody says it.
    pub fn long_rows(self) -> LongRows {
        match self {
            Self::BestFit | Self::Sequential => LongRows::Split,
            Self::None => LongRows::Refuse,
        }
    }
}

/// Everything that decides which rows are made, and in which order.
#[derive(Clone, Debug, PartialEq)]
pub struct RowOptions {
    /// Tokens of a row.
    pub seq: usize,
    /// How documents become rows.
    pub packing: Packing,
    /// What becomes of those that are longer.
    pub long_rows: LongRows,
    /// Their order.
    pub order: Order,
    /// The share of pieces that are rearranged for fill-in-the-middle. A piece is the part of a document that lies in one row.
    /// With [`Packing::None`] only pieces with room for the marks are; rows with segments or labels of their own stay as they
    /// are.
    pub fim_rate: f64,
    /// The share of the rearranged pieces that are in the order suffix, prefix, middle.
    pub fim_spm_rate: f64,
    /// The seed of every random choice.
    pub seed: u64,
    /// How many damaged row groups are left out before an error.
    pub max_bad_row_groups: usize,
    /// Documents are shuffled within windows of this many tokens.
    pub window_tokens: u64,
}

impl RowOptions {
    /// Refuses values out of range.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("data.fim_rate", self.fim_rate), ("data.fim_spm", self.fim_spm_rate)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(DataError::Setting { name, found: value.to_string(), wanted: "between 0 and 1" });
            }
        }
        if self.seq < 2 {
            return Err(DataError::Setting {
                name: "batch.seq",
                found: self.seq.to_string(),
                wanted: "at least 2",
            });
        }
        Ok(())
    }

    /// Tokens of a block, the unit of packing: a small part of a window, but so many rows that the padding of the last one hardly counts.
    pub(super) fn block_tokens(&self) -> u64 {
        (self.window_tokens / 16).max(64 * self.seq as u64)
    }
}
