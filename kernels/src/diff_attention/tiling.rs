//! Which tiles the native form uses: a pure function of the shapes.
//!
//! Static cycles of one layer and sequence of `1b` (6 heads, 2 groups, 2048 positions) by libtpu 0.0.52, 2026-11-22,
//! `cargo run -p kernels --example v6e attention`; what the profile takes for conditions that depend on documents is its own
//! affair, so the parts of the final schedule times their trips are given as well (without documents inside a tile):
//!
//! | tiles | pass | profile | parts |
//! |---|---|---|---|
//! | 512, 2 groups, 3 heads | forward | 104,201 (an eighth of a batch of 8) | about 100,000 |
//! | 512, 2 groups, 3 heads | backward | not finished in 20 minutes | about 157,000 |
//! | 512, 1 group, 3 heads | forward | 5 % more than the pair, each alone | |

use super::{DiffAttention, Tiling};

/// The longest sequence of which the heads of two groups fit into a core's memory together.
const LONGEST_PAIR: usize = 2048;

/// Tiles for sequences of `seq`; None if they are not made of blocks that the hardware likes.
pub(super) fn choose(kernel: &DiffAttention, seq: usize) -> Option<Tiling> {
    let block = [512, 256].into_iter().find(|&block| seq.is_multiple_of(block))?;
    // A row of a query fills the lanes of a register, so that its rotation stays within.
    if kernel.head_dim != 128 {
        return None;
    }
    let paired = seq <= LONGEST_PAIR && kernel.groups.is_multiple_of(2);
    Some(if paired {
        Tiling { block, groups: 2, heads: kernel.heads / kernel.groups }
    } else {
        Tiling { block, groups: 1, heads: 1 }
    })
}
