//! Exponential functions of whole vectors.

use pulp::Simd;
use std::f32::consts::LN_2;

/// `2^x` for x up to 126, within two units in the last place; 0 below -126.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding 1.5 2^23 rounds x to an integer, which then stands in the lowest bits of the sum.
    let shift = simd.splat_f32s(12_582_912.0);
    let shifted = simd.add_f32s(x, shift);
    let rest = simd.sub_f32s(x, simd.sub_f32s(shifted, shift));
    // The minimax polynomial of 2^rest on [-1/2, 1/2], with an error of 8e-8 in f32: attention's differences enlarge it.
    let mut power = simd.splat_f32s(1.534_581_1e-4);
    for coefficient in [1.339_993_1e-3, 9.618_489e-3, 5.550_328_6e-2, 0.240_226_46, LN_2, 1.0] {
        power = simd.mul_add_e_f32s(power, rest, simd.splat_f32s(coefficient));
    }
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(power), exponent));
    // In this order, what is not a number stays so.
    let small = simd.less_than_f32s(x, simd.splat_f32s(-126.0));
    simd.select_f32s(small, simd.splat_f32s(0.0), power)
}

/// `tanh(x)`, within 2e-7 of it.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let (zero, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
    // (1 - u) / (1 + u) with u = exp(-2 |x|), and the sign of x.
    let below = simd.min_f32s(simd.sub_f32s(zero, x), x);
    let u = exp2(simd, simd.mul_f32s(below, simd.splat_f32s(2.0 * std::f32::consts::LOG2_E)));
    let size = simd.div_f32s(simd.sub_f32s(one, u), simd.add_f32s(one, u));
    simd.select_f32s(simd.less_than_f32s(x, zero), simd.sub_f32s(zero, size), size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, Scalar, WithSimd};

    /// 2^x and tanh(x) in place of x and itself.
    struct Both<'a>([&'a mut [f32]; 2]);

    impl WithSimd for Both<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let [powers, tangents] = self.0.map(|x| S::as_mut_simd_f32s(x).0);
            for x in powers {
                *x = exp2(simd, *x);
            }
            for x in tangents {
                *x = tanh(simd, *x);
            }
        }
    }

    fn both(x: &[f32]) -> [[Vec<f32>; 2]; 2] {
        [true, false].map(|vectors| {
            let mut results = [x.to_vec(), x.to_vec()];
            let op = Both(results.each_mut().map(|x| &mut x[..]));
            if vectors {
                Arch::new().dispatch(op)
            } else {
                Scalar.vectorize(op)
            }
            results
        })
    }

    #[test]
    fn powers_are_as_exact_as_their_numbers() {
        let x: Vec<f32> = (0..1 << 20).map(|i| 2.0 - 128.0 * (i as f32 / (1 << 20) as f32)).collect();
        for [powers, tangents] in both(&x) {
            for ((x, power), tanh) in x.iter().zip(powers).zip(tangents) {
                let wanted = f64::from(*x).exp2();
                let error = (f64::from(power) / wanted - 1.0).abs();
                assert!(error < 1.6e-7, "2^{x}: {power}, not {wanted}");
                let wanted = f64::from(*x).tanh();
                assert!((f64::from(tanh) - wanted).abs() < 2e-7, "tanh {x}: {tanh}, not {wanted}");
            }
        }
    }

    #[test]
    fn the_ends_are_exact() {
        let mut x = vec![0.0; 16];
        x[..5].copy_from_slice(&[f32::NEG_INFINITY, -1e30, -126.001, f32::NAN, -0.0]);
        for [powers, tangents] in both(&x) {
            assert_eq!(powers[..3], [0.0; 3]);
            assert!(powers[3].is_nan() && tangents[3].is_nan());
            assert_eq!(powers[4..], [1.0; 12]);
            assert_eq!(tangents[..2], [-1.0; 2]);
            assert_eq!(tangents[4..], [0.0; 12]);
        }
    }
}
