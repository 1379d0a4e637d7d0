//! The `data.*` settings.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::{DataError, Result};
use super::pack::Packing;

/// The table `[data]` of a run's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// The data folder; none means the Python standard library.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Whether each epoch has its own order; `false` feeds rows in file order.
    pub shuffle: Order,
    /// The share of documents rearranged for fill in the middle.
    pub fim_rate: f64,
    /// The share of those in the order suffix, prefix, middle.
    pub fim_spm_rate: f64,
    /// How documents become rows.
    pub packing: Packing,
    /// The share of rows held out of folders without a validation split.
    pub validation_fraction: f64,
    /// How often the data are seen, for the default number of steps.
    pub epochs: f64,
    /// How many damaged row groups are left out before the run stops.
    pub max_bad_row_groups: usize,
    /// Documents are shuffled within windows of this many tokens, which are held in memory at 4 bytes each.
    pub window_tokens: u64,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: None,
            shuffle: Order::Shuffled,
            fim_rate: 0.5,
            fim_spm_rate: 0.1,
            packing: Packing::BestFit,
            validation_fraction: 0.02,
            epochs: 1.0,
            max_bad_row_groups: 0,
            window_tokens: 1 << 24,
        }
    }
}

impl DataConfig {
    /// The settings of rows of `seq` tokens.
    pub fn rows(&self, seq: usize, seed: u64) -> RowOptions {
        RowOptions {
            seq,
            packing: self.packing,
            order: self.shuffle,
            fim_rate: self.fim_rate,
            fim_spm_rate: self.fim_spm_rate,
            seed,
            max_bad_row_groups: self.max_bad_row_groups,
            window_tokens: self.window_tokens,
        }
    }
}

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

/// Everything that decides which rows are made, and in which order.
#[derive(Clone, Debug, PartialEq)]
pub struct RowOptions {
    /// Tokens a row.
    pub seq: usize,
    /// How documents become rows. With [`Packing::None`] there is no FIM: rows stand as they are.
    pub packing: Packing,
    /// Their order.
    pub order: Order,
    /// The share of documents rearranged for fill in the middle.
    pub fim_rate: f64,
    /// The share of those in the order suffix, prefix, middle.
    pub fim_spm_rate: f64,
    /// The seed of every draw.
    pub seed: u64,
    /// How many damaged row groups are left out before an error.
    pub max_bad_row_groups: usize,
    /// Documents are shuffled within windows of this many tokens.
    pub window_tokens: u64,
}

impl RowOptions {
    /// Refuses values out of range.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("data.fim_rate", self.fim_rate), ("data.fim_spm_rate", self.fim_spm_rate)] {
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

    /// Tokens of a block, the unit of packing: a small part of a window, but enough rows that the padded one does not count.
    pub(super) fn block_tokens(&self) -> u64 {
        (self.window_tokens / 16).max(64 * self.seq as u64)
    }
}
