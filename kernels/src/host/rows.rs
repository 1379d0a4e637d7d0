//! A few rows times a matrix that is read once for all of them: where the time is that of the matrix's bytes.

use pulp::Simd;
use std::array;

/// Rows that share one reading of the matrix: their sums, two registers each, fit the processor's 32.
pub(crate) const ROWS: usize = 8;

/// Columns of a matrix: the first element of row `k` is `data[k * stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

/// `y = x W`. x: at most [`ROWS`] rows of `depth` numbers each; y: as many rows, all of the width of W's columns, which
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
        ROWS => multiply_rows::<S, ROWS>(simd, x, depth, w, y),
        more => panic!("{more} rows at once; {ROWS} fit"),
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
    // Sums in registers, 32 of them with the operands where vectors are widest.
    if S::REGISTER_COUNT >= 32 {
        if R == 1 {
            product.columns::<16>();
        }
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
    /// Columns, N vectors at once, as many as there are.
    #[inline(always)]
    fn columns<const N: usize>(&mut self) {
        let Product { simd, x, w, ref mut y, ref mut column } = *self;
        while *column + N <= y[0].len() {
            let mut sums = [[simd.splat_f32s(0.0); N]; R];
            for k in 0..x[0].len() {
                let w = &w.data[k * w.stride + *column * S::F32_LANES..][..N * S::F32_LANES];
                let w = S::as_simd_f32s(w).0;
                for (x, sums) in x.iter().zip(&mut sums) {
                    let x = simd.splat_f32s(x[k]);
                    for (sum, &w) in sums.iter_mut().zip(w) {
                        *sum = simd.mul_add_f32s(x, w, *sum);
                    }
                }
            }
            for (y, sums) in y.iter_mut().zip(&sums) {
                y[*column..][..N].copy_from_slice(sums);
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
