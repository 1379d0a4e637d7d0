//! Which tiles the native form uses: a pure function of the shapes.

use super::{DiffAttention, Tiling};

/// The two kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    Backward,
}

/// Tiles for sequences of `seq`; None if they are not made of blocks that the hardware likes.
pub(super) fn choose(kernel: &DiffAttention, seq: usize, pass: Pass) -> Option<Tiling> {
    let block = [512, 256].into_iter().find(|block| seq % block == 0)?;
    if kernel.head_dim % 128 != 0 {
        return None;
    }
    let per_group = kernel.heads / kernel.groups;
    let _ = pass;
    // Two heads in lockstep as long as all heads of their groups fit into the core's memory.
    Some(if seq <= 2048 && kernel.groups % 2 == 0 {
        Tiling { block, groups: 2, heads: per_group }
    } else {
        Tiling { block, groups: 1, heads: 1 }
    })
}
