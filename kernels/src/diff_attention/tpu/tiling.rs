//! Which tiles the native form uses: a pure function of the shapes.
//!
//! One layer and sequence of `1b` (6 heads, 2 groups) by libtpu 0.0.52, 2026-11-23 (forward 2026-11-29), `cargo run -p kernels --example v6e --
//! --parts attention`: bundles of the final schedule times their trips, without documents and without what moves before
//! the first block and after the last (about 3,400 forward and 5,300 backward, an eighth of a batch of 8).
//!
//! | positions | block, groups, heads | forward | a tile | MiB | backward | a tile | MiB |
//! |---|---|---|---|---|---|---|---|
//! | 2048 | **512, 2, 3** | 111,900 | 2929 for 2 heads | 65 | 156,300 | 3887 for 2 heads | 105 |
//! | 2048 | 512, 1, 3 | 120,100 | 1575 | 33 | 163,600 | 2037 | 54 |
//! | 2048 | 512, 1, 1 | 124,900 | 1575 | 19 | 170,700 | 2033 | 31 |
//! | 2048 | 256, 2, 3 | 111,700 | 836 for 2 heads | 58 | 165,200 | 1176 for 2 heads | 96 |
//! | 8192 | **512, 1, 1** | 1,384,800 | 1575 | 58 | 1,822,000 | 2037 | 104 |
//!
//! MiB are of vector memory. XLA's operations for the portable form take 1,640,000 cycles forward and 2,030,000 backward by
//! the compiler's own estimate, which overstates elementwise work 2-4 times (2048; an eighth of 8 sequences).
//!
//! A tile in which a document begins takes 381 bundles a head more forward and 366 backward; tiles before a query's
//! document are skipped. The profile, which simulates the whole grid with its transfers and takes conditions that depend
//! on documents for what it likes, says 925,221 cycles for 8 sequences forward, 115,653 each (2048; 512, 2, 3); that of the
//! backward kernel did not finish in 20 minutes.
//!
//! Forward, a tile's weights are visited twice, because the two maps are subtracted before they are rounded, by a ratio that
//! is known after the first visit. With each map's weights rounded for a product of its own it was 2320 bundles and 99,955
//! cycles, and y wrong by 8 % in rows that look everywhere.

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
