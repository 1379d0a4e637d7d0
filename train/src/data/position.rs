//! Where in the data a run is.

use serde::{Deserialize, Serialize};

/// The next row to train on, in units that do not depend on devices, micro-batches or folders. Continuing from it gives
/// exactly the rows that an uninterrupted run would see. `Position::default()` is the beginning of any data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// A hash of the data and of the settings that decide their order; 0 at the beginning.
    pub mark: u64,
    /// How often the data were seen completely.
    pub epoch: u64,
    /// The window of the epoch.
    pub window: u64,
    /// The block of the window.
    pub block: u64,
    /// The row of the block.
    pub row: u64,
    /// The rows served in all, from the beginning of the first epoch.
    pub rows: u64,
}

impl Position {
    /// Whether it can be a position at all: no run gets that far, and counting on from it must not overflow.
    pub(super) fn is_possible(&self) -> bool {
        [self.epoch, self.window, self.block, self.row, self.rows].iter().all(|count| *count < 1 << 48)
    }

    /// Whether this is the beginning of any data.
    pub fn is_start(&self) -> bool {
        *self == Self::default()
    }
}
