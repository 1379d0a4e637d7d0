//! How far found numbers are from wanted ones. One rule for all tests: NaN, and an infinity that was not wanted, are an
//! infinite error, which no tolerance allows.

/// What rounding to `f32` may change of a number, as a part of it. A tolerance is a number of these: of roundings one after
/// the other, and the root of the number of terms of a sum that is added up in another order.
pub const F32: f64 = 1.0 / (1 << 24) as f64;

/// The same of `f64`.
pub const F64: f64 = f64::EPSILON / 2.0;

/// Largest error, as a part of the largest number that was wanted. If all of those are 0, everything else is infinitely far.
///
/// # Panics
/// If there are not as many numbers as were wanted.
#[track_caller]
pub fn error(found: &[f64], wanted: &[f64]) -> f64 {
    error_beside(found, wanted, 0.0)
}

/// [`error`] where numbers come about as differences of larger ones: a part of `scale`, if that is larger than what was
/// wanted.
///
/// # Panics
/// If there are not as many numbers as were wanted.
#[track_caller]
pub fn error_beside(found: &[f64], wanted: &[f64], scale: f64) -> f64 {
    assert_eq!(found.len(), wanted.len(), "as many numbers as were wanted");
    // What is infinite has no distance: it was found where it was wanted, or it was not.
    let top = wanted.iter().filter(|x| x.is_finite()).fold(scale, |top, x| top.max(x.abs()));
    let worst = largest(found.iter().zip(wanted).map(|(a, b)| if a == b { 0.0 } else { a - b }));
    if worst == 0.0 { 0.0 } else { worst / top }
}

/// The largest of some numbers without their signs; infinite if one of them is NaN, which `f64::max` passes over.
pub fn largest(numbers: impl IntoIterator<Item = f64>) -> f64 {
    numbers.into_iter().fold(0.0, |top, x| if x.is_nan() { f64::INFINITY } else { top.max(x.abs()) })
}

/// Prints [`error`], so that `--nocapture` gives the table, and holds it to `tolerance`.
///
/// # Panics
/// If the error is larger.
#[track_caller]
pub fn assert_close(what: &str, found: &[f64], wanted: &[f64], tolerance: f64) {
    assert_small(what, error(found, wanted), tolerance);
}

/// Prints an error and holds it to `tolerance`.
///
/// # Panics
/// If the error is larger, or no number.
#[track_caller]
pub fn assert_small(what: &str, error: f64, tolerance: f64) {
    println!("{what:<32} {error:.1e} of {tolerance:.1e}");
    assert!(error <= tolerance, "{what}: the error is {error:e}, allowed is {tolerance:e}");
}

/// The derivative of a function at 0 by central differences. None where the function is not smooth within reach: then
/// two steps give two values.
///
/// The differences over one, two and three steps h together are exact for polynomials of degree 6; of others they leave
/// out h^6 f^(7) / 140, with h = 2^-13 below 1e-12 of f' as long as f has no singularity within 0.02. The rounding of f,
/// 2^-53 of its largest intermediate value, is divided by h as well: 2e-12 of that value.
pub fn slope(f: impl Fn(f64) -> f64) -> Option<f64> {
    let over = |h: f64| {
        let pair = |steps: f64| f(steps * h) - f(-steps * h);
        (45.0 * pair(1.0) - 9.0 * pair(2.0) + pair(3.0)) / (60.0 * h)
    };
    let h = 2f64.powi(-13);
    let (fine, coarse) = (over(h), over(2.0 * h));
    (largest([fine - coarse]) <= SLOPE * (1.0 + fine.abs())).then_some(fine)
}

/// What may lie between a derivative and [`slope`], as a part of one more than the derivative.
pub const SLOPE: f64 = 1e-9;
