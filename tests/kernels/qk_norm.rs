//! The norm of queries and keys.

use engine::Tensor;
use kernels::qk_norm;
use tests::{gradient_of, property, sample, seeds};

/// Some rows of queries, keys and values: two slices of width d are normed, the rest is not.
fn normed<'f>(case: &tests::Case<'f>) -> (Tensor<'f>, Tensor<'f>, usize) {
    let [b, s, d, rest] = case.dims::<4>();
    let qkv = case.x([b, s, 2 * d + rest]);
    (qkv, qk_norm(qkv, 2 * d, d, 1e-3), d)
}

/// Of a slice of the last axis.
fn mean_square<'f>(x: Tensor<'f>, first: usize, d: usize) -> Tensor<'f> {
    let last = x.rank() - 1;
    let slice = x.slice_axis(last, first, first + d);
    (slice * slice).sum(&[last]) * (1.0 / d as f64)
}

#[test]
fn its_gradient_is_that_of_finite_differences() {
    property(48, &seeds(), |(seed, extent)| {
        gradient_of(seed, extent, |case| case.out(normed(case).1)).check(seed);
    });
}

#[test]
fn slices_have_unit_mean_squares_and_the_rest_is_as_it_was() {
    property(24, &seeds(), |(seed, extent)| {
        let sample = sample(seed, extent, |case| {
            let (qkv, y, d) = normed(case);
            let last = qkv.rank() - 1;
            let width = qkv.dim(last);
            for first in [0, d] {
                let (before, after) = (mean_square(qkv, first, d), mean_square(y, first, d));
                case.out(after - before / (before + 1e-3));
            }
            case.out(y.slice_axis(last, 2 * d, width) - qkv.slice_axis(last, 2 * d, width));
        });
        for result in tests::evaluated(&sample.program, &sample.args) {
            // The factor is squared and multiplied back: three roundings of f64, in numbers of at most 1.
            assert!(result.floats().iter().all(|x| x.abs() < 4.0 * f64::EPSILON * 2.0), "{result:?}");
        }
    });
}
