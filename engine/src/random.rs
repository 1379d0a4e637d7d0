//! Threefry-2x32-20 on the host: the same counter-based stream that programs compute on a device.
//!
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011); known answers in the tests.

/// Rotation distances of the eight rounds that repeat.
pub(crate) const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];
/// The key schedule's parity constant.
pub(crate) const PARITY: u32 = 0x1BD1_1BDA;

/// Twenty rounds of Threefry over one counter: a bijection of `counter` for each `key`.
pub fn threefry2x32(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    let schedule = [key[0], key[1], key[0] ^ key[1] ^ PARITY];
    let mut x = [counter[0].wrapping_add(schedule[0]), counter[1].wrapping_add(schedule[1])];
    for block in 0..5 {
        for round in 0..4 {
            x[0] = x[0].wrapping_add(x[1]);
            x[1] = x[1].rotate_left(ROTATIONS[(block % 2) * 4 + round]) ^ x[0];
        }
        x[0] = x[0].wrapping_add(schedule[(block + 1) % 3]);
        x[1] = x[1].wrapping_add(schedule[(block + 2) % 3]).wrapping_add(block as u32 + 1);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::threefry2x32;

    /// The known answers of the Random123 distribution, which JAX reproduces too.
    #[test]
    fn known_answers() {
        assert_eq!(threefry2x32([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry2x32([!0, !0], [!0, !0]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(
            threefry2x32([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]),
            [0xc492_3a9c, 0x483d_f7a0]
        );
    }
}
