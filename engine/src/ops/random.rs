//! Random numbers by counter: Threefry-2x32-20 as plain integer ops, equal on every platform and to
//! [`crate::random::threefry2x32`].

use crate::ir::Tensor;
use crate::random::{PARITY, ROTATIONS};

/// Twenty rounds of Threefry over counters; `u32` tensors of one shape, or scalars. Both words are random.
///
/// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
#[track_caller]
pub fn threefry<'f>(key: [Tensor<'f>; 2], counter: [Tensor<'f>; 2]) -> [Tensor<'f>; 2] {
    let schedule = [key[0], key[1], key[0] ^ key[1] ^ PARITY];
    let mut x = [counter[0] + schedule[0], counter[1] + schedule[1]];
    for block in 0..5 {
        for round in 0..4 {
            x[0] = x[0] + x[1];
            let distance = ROTATIONS[(block % 2) * 4 + round];
            let rotated = x[1].shift_left(distance) | x[1].shift_right_logical(32 - distance);
            x[1] = rotated ^ x[0];
        }
        x[0] = x[0] + schedule[(block + 1) % 3];
        x[1] = x[1] + (schedule[(block + 2) % 3] + (block as u32 + 1));
    }
    x
}
