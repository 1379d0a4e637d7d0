//! The native form of the CPU: a row's maps, softmaxes and values in one call, over the filled slots only.

use super::{CachedAttention, Sizes};
use crate::HeadNorm;
use crate::host::exponential::{exp2, tanh};
use crate::host::rows::{Columns, ROWS, multiply};
use engine::{DType, Frame, HostCall, HostFunction, Type};
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::LOG2_E;

/// Rows of scores (tokens times heads of a group) up to which this form is better than XLA's products.
const MOST_ROWS: usize = 4 * ROWS;

/// The call, if this form fits the sizes.
pub(super) fn call(kernel: &CachedAttention, args: &[Type], sizes: Sizes) -> Option<HostCall> {
    let Sizes { b, n, g, r, e, slots, key_maps, .. } = sizes;
    let fits = args[0].dtype == DType::F32 && n * r <= MOST_ROWS && slots % 16 == 0 && e % 32 == 0;
    let mut attributes = vec![g as i64, key_maps as i64, kernel.cap.to_bits() as i64];
    if let HeadNorm::Rms { eps } = kernel.norm {
        attributes.push(eps.to_bits() as i64);
    }
    let result = Type::f32([b, n, g * r, e]);
    fits.then(|| HostCall::new::<CachedAttention>(attributes, vec![result]))
}

impl HostFunction for CachedAttention {
    const NAME: &'static str = "cached_attention";

    fn call(Frame { attributes, operands, results, workers }: Frame<'_>) {
        let &[g, key_maps, cap, ref eps @ ..] = attributes else { unreachable!("as the call was made") };
        let [q, keys, values, visible, slot, lambda] = operands[..] else { unreachable!("six operands") };
        let &[b, n, h, _, d] = q.shape() else { unreachable!("[b, n, h, 2, d]") };
        let &[_, slots, half] = values.shape() else { unreachable!("[b*g*2, slots, e/2]") };
        let (g, key_maps) = (g as usize, key_maps as usize);
        let filled = slot.as_slice::<i32>()[0] as usize + n;
        let call = Call {
            sizes: Sizes { b, n, g, r: h / g, d, e: 2 * half, slots, key_maps },
            eps: eps.first().map(|&eps| f64::from_bits(eps as u64) as f32),
            cap: f64::from_bits(cap as u64) as f32,
            q: q.as_slice(),
            keys: keys.as_slice(),
            values: values.as_slice(),
            visible: visible.as_bools(),
            lambda: lambda.as_slice(),
            filled,
            used: filled.next_multiple_of(16),
        };
        let Some(y) = results.into_iter().next() else { unreachable!("one result") };
        let items = y.into_slice::<f32>().chunks_mut(n * h * 2 * half).enumerate().collect();
        workers.for_each(items, |(row, y)| Arch::new().dispatch(Row { call: &call, row, y }));
    }
}

struct Call<'a> {
    sizes: Sizes,
    /// Of the norm, if there is one.
    eps: Option<f32>,
    cap: f32,
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    visible: &'a [u8],
    lambda: &'a [f32],
    /// Slots up to the last token's.
    filled: usize,
    /// The same in whole vectors.
    used: usize,
}

/// One row of the batch.
struct Row<'a, 'b> {
    call: &'a Call<'a>,
    row: usize,
    y: &'b mut [f32],
}

impl WithSimd for Row<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Row { call, row, y } = self;
        let Sizes { n, g, r, d, e, slots, key_maps, .. } = call.sizes;
        let (rows, used, half) = (n * r, call.used, e / 2);
        // The lowest number, not minus infinity: a token that sees nothing must not become NaN.
        let hidden: Vec<f32> = (0..used)
            .map(|s| if s < call.filled && call.visible[row * slots + s] != 0 { 0.0 } else { f32::MIN })
            .collect();
        let scale = (d as f32).powf(-0.5);
        let (mut x, mut o) = (vec![0.0; rows * d], vec![0.0; rows * half]);
        let mut scores = [vec![0.0; rows * used], vec![0.0; rows * used]];
        for group in 0..g {
            for (t, scores) in scores.iter_mut().enumerate() {
                for (j, x) in x.chunks_mut(d).enumerate() {
                    let head = ((row * n + j / r) * g + group) * r + j % r;
                    let q = &call.q[(head * 2 + t) * d..][..d];
                    x.iter_mut().zip(q).for_each(|(x, q)| *x = q * scale);
                }
                let keys = &call.keys[((row * g + group) * key_maps + t % key_maps) * d * slots..];
                product(simd, &x, d, Columns { data: keys, stride: slots }, scores, used);
                for (j, scores) in scores.chunks_mut(used).enumerate() {
                    cap(simd, scores, call.cap);
                    scores[call.filled - n + j / r + 1..].fill(f32::MIN);
                    soften(simd, scores, &hidden);
                }
            }
            let [a, p2] = &mut scores;
            for (j, (a, p2)) in a.chunks_mut(used).zip(p2.chunks(used)).enumerate() {
                let head = ((row * n + j / r) * g + group) * r + j % r;
                let lambda = simd.splat_f32s(-call.lambda[head % call.lambda.len()]);
                let (a, p2) = (S::as_mut_simd_f32s(a).0, S::as_simd_f32s(p2).0);
                a.iter_mut().zip(p2).for_each(|(a, &p2)| *a = simd.mul_add_f32s(lambda, p2, *a));
            }
            for t in 0..2 {
                let values = &call.values[((row * g + group) * 2 + t) * slots * half..];
                product(simd, a, used, Columns { data: values, stride: half }, &mut o, half);
                for (j, o) in o.chunks(half).enumerate() {
                    y[(((j / r) * g + group) * r + j % r) * e + t * half..][..half].copy_from_slice(o);
                }
            }
        }
        if let Some(eps) = call.eps {
            for y in y.chunks_mut(e) {
                let squares = S::as_simd_f32s(y).0.iter();
                let squares = squares.fold(simd.splat_f32s(0.0), |sum, &y| simd.mul_add_f32s(y, y, sum));
                let factor = (simd.reduce_sum_f32s(squares) / e as f32 + eps).sqrt().recip();
                y.iter_mut().for_each(|y| *y *= factor);
            }
        }
    }
}

/// `y = x W` of any number of rows. x: rows of `depth` numbers, y: of `width`.
#[inline(always)]
fn product<S: Simd>(simd: S, x: &[f32], depth: usize, w: Columns<'_>, y: &mut [f32], width: usize) {
    for (x, y) in x.chunks(ROWS * depth).zip(y.chunks_mut(ROWS * width)) {
        multiply(simd, x, depth, w, y.chunks_mut(width).collect());
    }
}

/// `cap tanh(x / cap)`, unless cap is 0.
#[inline(always)]
fn cap<S: Simd>(simd: S, scores: &mut [f32], cap: f32) {
    if cap > 0.0 {
        let (cap, factor) = (simd.splat_f32s(cap), simd.splat_f32s(cap.recip()));
        for score in S::as_mut_simd_f32s(scores).0 {
            *score = simd.mul_f32s(tanh(simd, simd.mul_f32s(*score, factor)), cap);
        }
    }
}

/// Scores to probabilities. hidden: 0 where a slot is visible, else the lowest number.
#[inline(always)]
fn soften<S: Simd>(simd: S, scores: &mut [f32], hidden: &[f32]) {
    let (scores, hidden) = (S::as_mut_simd_f32s(scores).0, S::as_simd_f32s(hidden).0);
    let lowest = simd.splat_f32s(f32::MIN);
    let mut top = lowest;
    for (score, &hidden) in scores.iter_mut().zip(hidden) {
        *score = simd.max_f32s(simd.add_f32s(*score, hidden), lowest);
        top = simd.max_f32s(top, *score);
    }
    let (top, log2_e) = (simd.splat_f32s(simd.reduce_max_f32s(top)), simd.splat_f32s(LOG2_E));
    let mut sum = simd.splat_f32s(0.0);
    for score in scores.iter_mut() {
        *score = exp2(simd, simd.mul_f32s(simd.sub_f32s(*score, top), log2_e));
        sum = simd.add_f32s(sum, *score);
    }
    let factor = simd.splat_f32s(simd.reduce_sum_f32s(sum).recip());
    scores.iter_mut().for_each(|score| *score = simd.mul_f32s(*score, factor));
}
