//! Products of small matrices in f32, for kernels of the host that work on tiles in the cache. Every element of a product
//! is one chain of multiply-adds in the order of the inner dimension, so a row's result does not depend on the rows beside it.

use pulp::{Simd, WithSimd};

/// The left operand A: `A[m][k] = data[m * row + k * column]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    data: &'a [f32],
    /// From a row to the next.
    row: usize,
    /// From a column to the next.
    column: usize,
}

impl<'a> Left<'a> {
    /// A that lies by rows, the next `stride` after the last.
    pub(crate) fn by_rows(data: &'a [f32], stride: usize) -> Left<'a> {
        Left { data, row: stride, column: 1 }
    }

    /// A that lies by columns, the next `stride` after the last.
    pub(crate) fn by_columns(data: &'a [f32], stride: usize) -> Left<'a> {
        // Or the walk along a row would not move.
        assert!(stride > 0, "columns that lie in one place");
        Left { data, row: 1, column: stride }
    }
}

/// What a product is added to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onto {
    /// Nothing: `C = A B`.
    Zero,
    /// What is there: `C += A B`.
    Sum,
}

/// `C = A B` or `C += A B`. b: `[k, n]` and c: `[m, n]`, both contiguous; n a multiple of 16.
#[inline(always)]
pub(crate) fn multiply<S: Simd>(simd: S, a: Left<'_>, b: &[f32], c: &mut [f32], n: usize, onto: Onto) {
    // A function of its own, not a copy at each call.
    simd.vectorize(Multiply { a, b, c, n, onto });
}

struct Multiply<'a> {
    a: Left<'a>,
    b: &'a [f32],
    c: &'a mut [f32],
    n: usize,
    onto: Onto,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Multiply { a, b, c, n, onto } = self;
        let (b, c) = (S::as_simd_f32s(b).0, S::as_mut_simd_f32s(c).0);
        let width = n / S::F32_LANES;
        let mut product = Product { simd, a, b, c, width, depth: b.len() / width, onto };
        // Sums of 4 rows and 4 vectors leave room for the operands in 32 registers, those of 4 and 2 in 16.
        let mut column = 0;
        while S::REGISTER_COUNT >= 32 && column + 4 <= width {
            product.rows::<4>(column);
            column += 4;
        }
        while column + 2 <= width {
            product.rows::<2>(column);
            column += 2;
        }
        if column < width {
            product.rows::<1>(column);
        }
    }
}

/// A product in vectors. Its loops are plain ones, which are as fast in the dev profile: an iterator's adapter that is not
/// inlined there leaves the instructions of `S`, and a checked copy keeps what it copies in memory.
struct Product<'a, S: Simd> {
    simd: S,
    a: Left<'a>,
    b: &'a [S::f32s],
    c: &'a mut [S::f32s],
    /// Vectors of a row of B and C.
    width: usize,
    /// Rows of B.
    depth: usize,
    onto: Onto,
}

impl<S: Simd> Product<'_, S> {
    /// All rows of N vectors of C.
    #[inline(always)]
    fn rows<const N: usize>(&mut self, column: usize) {
        let rows = self.c.len() / self.width;
        let mut row = 0;
        while row + 4 <= rows {
            self.block::<4, N>(row, column);
            row += 4;
        }
        while row < rows {
            self.block::<1, N>(row, column);
            row += 1;
        }
    }

    /// M rows of N vectors of C.
    #[inline(always)]
    #[expect(
        clippy::needless_range_loop,
        clippy::manual_memcpy,
        reason = "plain loops keep the sums in registers"
    )]
    fn block<const M: usize, const N: usize>(&mut self, row: usize, column: usize) {
        let Product { simd, a, b, ref mut c, width, depth, onto } = *self;
        let c = &mut c[row * width + column..];
        let mut sums = [[simd.splat_f32s(0.0); N]; M];
        if onto == Onto::Sum {
            for m in 0..M {
                let c = &c[m * width..][..N];
                for n in 0..N {
                    sums[m][n] = c[n];
                }
            }
        }
        // Slices of one length, so that one check of bounds serves for all rows.
        let mut rows = [a.data; M];
        let reach = (depth - 1) * a.column + 1;
        for m in 0..M {
            rows[m] = &a.data[(row + m) * a.row..][..reach];
        }
        let (mut at, mut from) = (0, column);
        while at < reach {
            let b = &b[from..from + N];
            for m in 0..M {
                let a = simd.splat_f32s(rows[m][at]);
                for n in 0..N {
                    sums[m][n] = simd.mul_add_e_f32s(a, b[n], sums[m][n]);
                }
            }
            at += a.column;
            from += width;
        }
        for m in 0..M {
            let c = &mut c[m * width..][..N];
            for n in 0..N {
                c[n] = sums[m][n];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, Scalar};

    #[test]
    fn products_agree_with_direct_sums_and_rows_do_not_depend_on_others() {
        let value = |i: usize| (i * 37 % 101) as f32 / 101.0 - 0.5;
        for (m, k, n) in [(1, 1, 16), (4, 3, 48), (7, 64, 64), (9, 5, 112), (64, 64, 128), (6, 16, 240)] {
            let rows: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..k * n).map(|i| value(i + 5)).collect();
            // By columns, with something between them and nothing after the last.
            let stride = m + 3;
            let mut columns = vec![f32::NAN; (k - 1) * stride + m];
            for (i, &a) in rows.iter().enumerate() {
                columns[i % k * stride + i / k] = a;
            }
            for onto in [Onto::Zero, Onto::Sum] {
                let start = if onto == Onto::Zero { f32::NAN } else { 1.0 };
                let product = |a, rows: usize, vectors: bool| {
                    let mut c = vec![start; rows * n];
                    let op = Multiply { a, b: &b, c: &mut c, n, onto };
                    if vectors {
                        Arch::new().dispatch(op)
                    } else {
                        Scalar.vectorize(op)
                    }
                    c
                };
                let got = product(Left::by_rows(&rows, k), m, true);
                assert_eq!(got, product(Left::by_columns(&columns, stride), m, true));
                let plain = product(Left::by_rows(&rows, k), m, false);
                for (i, (got, plain)) in got.iter().zip(&plain).enumerate() {
                    let (row, column) = (i / n, i % n);
                    let sum: f64 =
                        (0..k).map(|j| f64::from(rows[row * k + j]) * f64::from(b[j * n + column])).sum();
                    let wanted = sum + if onto == Onto::Zero { 0.0 } else { 1.0 };
                    for x in [got, plain] {
                        assert!((f64::from(*x) - wanted).abs() < 1e-5, "{row} {column}: {x}, not {wanted}");
                    }
                }
                for (row, got) in got.chunks_exact(n).enumerate() {
                    assert_eq!(got, product(Left::by_rows(&rows[row * k..], k), 1, true));
                }
            }
        }
    }
}
