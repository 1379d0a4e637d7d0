//! Exponential functions of whole vectors.

use pulp::Simd;

/// `2^x` for x up to 126, within two units in the last place; 0 below -126.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding 1.5 2^23 rounds x to an integer, which then stands in the lowest bits of the sum.
    let shift = simd.splat_f32s(12_582_912.0);
    let shifted = simd.add_f32s(x, shift);
    let rest = simd.sub_f32s(x, simd.sub_f32s(shifted, shift));
    // The minimax polynomial of 2^rest on [-1/2, 1/2], with an error of 1.6e-7.
    let coefficients = [0.009_675_541, 0.055_507_13, 0.240_221_2, 0.693_146_94, 1.0];
    let power = coefficients.into_iter().fold(simd.splat_f32s(0.001_327_647_2), |sum, coefficient| {
        simd.mul_add_e_f32s(sum, rest, simd.splat_f32s(coefficient))
    });
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(power), exponent));
    let large = simd.greater_than_or_equal_f32s(x, simd.splat_f32s(-126.0));
    simd.select_f32s(large, power, simd.splat_f32s(0.0))
}

/// `tanh(x)`, within 2e-7 of it.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // (1 - u) / (1 + u) with u = exp(-2 |x|), and the sign of x.
    let one = simd.splat_f32s(1.0);
    let u = exp2(simd, simd.mul_f32s(simd.abs_f32s(x), simd.splat_f32s(-2.0 * std::f32::consts::LOG2_E)));
    let size = simd.div_f32s(simd.sub_f32s(one, u), simd.add_f32s(one, u));
    simd.or_f32s(size, simd.and_f32s(x, simd.splat_f32s(-0.0)))
}
