//! A few rows times a matrix that is read once for all of them: where the time is that of the matrix's bytes.

use crate::PANEL;
use pulp::Simd;
use std::array;

/// Rows that share one reading of the matrix: their sums, two registers each, fit the processor's 32.
pub(crate) const ROWS_AT_ONCE: usize = 8;

/// Columns of a matrix, 16 of which lie side by side in each row: number c of row k is
/// `data[k * row + c / 16 * group + c % 16]`.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    data: &'a [f32],
    /// From a row to the next, a multiple of 16.
    row: usize,
    /// From 16 columns to the next, a multiple of 16.
    group: usize,
}

impl<'a> Columns<'a> {
    /// All columns of a row-major matrix whose rows are `stride` apart.
    pub(crate) fn row_major(data: &'a [f32], stride: usize) -> Columns<'a> {
        // Or the walk down a column would not move: a vector has at most 16 numbers.
        assert!(stride >= PANEL, "rows {stride} numbers apart");
        Columns { data, row: stride, group: PANEL }
    }

    /// All columns of a matrix of `rows` rows in panels, `[v/16, rows, 16]`.
    pub(crate) fn panels(data: &'a [f32], rows: usize) -> Columns<'a> {
        Columns { data, row: PANEL, group: rows * PANEL }
    }

    /// Those from `first` on, a multiple of 16.
    pub(crate) fn from(self, first: usize) -> Columns<'a> {
        Columns { data: &self.data[first / PANEL * self.group..], ..self }
    }
}

/// `y = x W`. x: at most [`ROWS_AT_ONCE`] rows of `depth` numbers each; y: as many rows, all of the width of W's columns, which
/// is a multiple of 16. A row's result does not depend on the rows beside it nor on how columns are divided.
#[inline(always)]
pub(crate) fn multiply<S: Simd>(simd: S, x: &[f32], depth: usize, w: Columns<'_>, y: Vec<&mut [f32]>) {
    match y.len() {
        0 => {}
        1 => multiply_rows::<S, 1>(simd, x, depth, w, y),
        2 => multiply_rows::<S, 2>(simd, x, depth, w, y),
        3 => multiply_rows::<S, 3>(simd, x, depth, w, y),
        4 => multiply_rows::<S, 4>(simd, x, depth, w, y),
        5 => multiply_rows::<S, 5>(simd, x, depth, w, y),
        6 => multiply_rows::<S, 6>(simd, x, depth, w, y),
        7 => multiply_rows::<S, 7>(simd, x, depth, w, y),
        ROWS_AT_ONCE => multiply_rows::<S, ROWS_AT_ONCE>(simd, x, depth, w, y),
        more => panic!("{more} rows at once; {ROWS_AT_ONCE} fit"),
    }
}

#[inline(always)]
fn multiply_rows<S: Simd, const R: usize>(
    simd: S,
    x: &[f32],
    depth: usize,
    w: Columns<'_>,
    y: Vec<&mut [f32]>,
) {
    let mut rows = y.into_iter().map(|row| S::as_mut_simd_f32s(row).0);
    let y: [&mut [S::f32s]; R] = array::from_fn(|_| rows.next().expect("as many rows as were counted"));
    let x: [&[f32]; R] = array::from_fn(|r| &x[r * depth..][..depth]);
    let mut product = Product { simd, x, w, y, column: 0 };
    // Sums in registers, 32 of them with the operands where vectors are widest. One row has eight sums, which is what the
    // additions' latency wants.
    if S::REGISTER_COUNT >= 32 {
        if R <= 2 {
            product.columns::<8>();
        }
        if R <= 4 {
            product.columns::<4>();
        }
        product.columns::<3>();
    }
    product.columns::<2>();
    product.columns::<1>();
}

struct Product<'a, S: Simd, const R: usize> {
    simd: S,
    x: [&'a [f32]; R],
    w: Columns<'a>,
    y: [&'a mut [S::f32s]; R],
    /// The first vector of columns that is not done.
    column: usize,
}

impl<S: Simd, const R: usize> Product<'_, S, R> {
    /// Columns, N vectors at once, as many as there are. Its loops are plain ones, as in `matrix.rs`.
    #[inline(always)]
    #[expect(
        clippy::needless_range_loop,
        clippy::manual_memcpy,
        reason = "plain loops keep the sums in registers"
    )]
    fn columns<const N: usize>(&mut self) {
        let Product { simd, x, w, ref mut y, ref mut column } = *self;
        let (vectors, lanes, depth) = (S::as_simd_f32s(w.data).0, S::F32_LANES, x[0].len());
        // Slices of one length, so that one check of bounds serves for all columns.
        let (row, reach) = (w.row / lanes, (depth - 1) * (w.row / lanes) + 1);
        while *column + N <= y[0].len() {
            let mut columns = [vectors; N];
            for n in 0..N {
                let first = (*column + n) * lanes;
                columns[n] = &vectors[(first / PANEL * w.group + first % PANEL) / lanes..][..reach];
            }
            let mut sums = [[simd.splat_f32s(0.0); N]; R];
            let (mut k, mut at) = (0, 0);
            while at < reach {
                for r in 0..R {
                    let x = simd.splat_f32s(x[r][k]);
                    for n in 0..N {
                        sums[r][n] = simd.mul_add_f32s(x, columns[n][at], sums[r][n]);
                    }
                }
                k += 1;
                at += row;
            }
            for r in 0..R {
                let y = &mut y[r][*column..][..N];
                for n in 0..N {
                    y[n] = sums[r][n];
                }
            }
            *column += N;
        }
    }
}

/// `y / sqrt(mean(y^2) + eps)` of rows of `width` numbers, in place.
#[inline(always)]
pub(crate) fn normalize<S: Simd>(simd: S, y: &mut [f32], width: usize, eps: f32) {
    for y in y.chunks_mut(width) {
        let squares = S::as_simd_f32s(y).0.iter();
        let squares = squares.fold(simd.splat_f32s(0.0), |sum, &y| simd.mul_add_f32s(y, y, sum));
        let factor = (simd.reduce_sum_f32s(squares) / width as f32 + eps).sqrt().recip();
        y.iter_mut().for_each(|y| *y *= factor);
    }
}
