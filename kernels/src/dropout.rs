//! Dropout by counter: a random word of the row and one of the column, mixed. Nothing is stored, so that a backward pass
//! makes the same mask again, and every form of a kernel makes the same one.

use crate::tile::Vector;
use engine::{DType, Tensor, Type};

/// Two multiplications with a shift between: with one, rows and columns correlate ([`v6e`](crate::v6e)).
const MIX: [u32; 2] = [0x9E37_79B1, 0x85EB_CA77];
const SHIFT: u32 = 15;

/// Words below this are dropped.
fn threshold(rate: f64) -> u32 {
    (rate * 2f64.powi(32)).ceil() as u32
}

/// The factor of each element, `[n, width]` of `dtype`: 0 with probability `rate`, else `1 / (1 - rate)`. rows: `u32[n]`,
/// columns: `u32[width]`, random words.
pub fn dropout_mask<'f>(rows: Tensor<'f>, columns: Tensor<'f>, rate: f64, dtype: DType) -> Tensor<'f> {
    let shape = [rows.dim(0), columns.dim(0)];
    let row = rows.broadcast_in_dim(shape, &[0]);
    let mixed = (row ^ columns.broadcast_in_dim(shape, &[1])) * MIX[0];
    let bits = (mixed ^ mixed.shift_right_logical(SHIFT)) * MIX[1];
    let scale = rows.builder().full(Type::new(dtype, shape), 1.0 / (1.0 - rate));
    bits.ge(threshold(rate)).select(scale, 0.0)
}

/// [`dropout_mask`] of one column on the host: writes the factor of each row. rows: their random words.
#[inline(always)]
pub(crate) fn column_mask(rows: &[u32], column: u32, rate: f64, mask: &mut [f32]) {
    let (threshold, scale) = (threshold(rate), (1.0 / (1.0 - rate)) as f32);
    for (row, mask) in rows.iter().zip(mask) {
        let mixed = (row ^ column).wrapping_mul(MIX[0]);
        let bits = (mixed ^ (mixed >> SHIFT)).wrapping_mul(MIX[1]);
        *mask = if bits >= threshold { scale } else { 0.0 };
    }
}

/// [`dropout_mask`] in a tile, f32. rows: i32 `[n, 1]`, columns: i32 `[1, width]`, the words' bits.
pub(crate) fn tile_mask<'k>(rows: Vector<'k>, columns: Vector<'k>, rate: f64) -> Vector<'k> {
    let shape = [rows.shape()[0], columns.shape()[1]];
    let mixed = rows.along(&shape) ^ columns.along(&shape);
    let mixed = mixed.times_bits(MIX[0]);
    let bits = (mixed ^ mixed.shift_right_logical(SHIFT)).times_bits(MIX[1]);
    // Numbers with a sign are what can be compared: both sides move by half the range.
    let moved = |word: u32| f64::from((word ^ (1 << 31)) as i32);
    let keep = (bits ^ bits.same(f64::from(i32::MIN))).ge(bits.same(moved(threshold(rate))));
    let scale = keep.filled(DType::F32, 1.0 / (1.0 - rate));
    keep.select(scale, scale.same(0.0))
}
