//! Drawing on the host, a task for each row of logits. XLA's CPU code takes as long for a draw as the model for its token:
//! many passes, one number after the other.

use super::{Sampling, TEMPERATURES};
use crate::cpu::exponential::{exp2, tanh};
use crate::cpu::scratch::{AlignedVec, LINE, ScratchPool};
use engine::random::threefry2x32;
use engine::{CallFrame, HostFunction};
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::{LN_2, LOG2_E};

pub(super) fn attributes(draw: &Sampling) -> Vec<i64> {
    vec![draw.cap.to_bits() as i64, draw.columns as i64]
}

impl HostFunction for Sampling {
    const NAME: &'static str = "sampling";

    fn call(CallFrame { attributes, operands, results, workers }: CallFrame<'_>) {
        let &[cap, columns] = attributes else { unreachable!("as the call was made") };
        let (cap, columns) = (f64::from_bits(cap as u64) as f32, columns as usize);
        let v = operands[0].shape()[1];
        let (keys, positions) = (operands[1].as_slice::<u32>(), operands[2].as_slice::<i32>());
        let (temperature, top_k, top_p) =
            (operands[3].as_slice::<f32>(), operands[4].as_slice::<i32>(), operands[5].as_slice::<f32>());
        let Ok([token, log_prob]) = <[_; 2]>::try_from(results) else { unreachable!("two results") };
        let rows = operands[0].as_slice::<f32>().chunks(v).enumerate();
        let items = rows.zip(token.into_slice::<i32>().iter_mut().zip(log_prob.into_slice::<f32>()));
        let spare = ScratchPool::new();
        workers.for_each(items.collect(), |((row, logits), (token, log_prob))| {
            let logits = Logits { row: &logits[..columns], all: v, cap };
            (*token, *log_prob) = match top_k[row] {
                1 => Arch::new().dispatch(Greedy { logits }),
                top_k => {
                    let random = Random {
                        key: [keys[2 * row], keys[2 * row + 1]],
                        position: positions[row] as u32,
                        temperature: temperature[row],
                        top_k: usize::try_from(top_k).ok().filter(|k| (1..columns).contains(k)),
                        top_p: Some(top_p[row]).filter(|&p| p < 1.0),
                    };
                    let len = v.next_multiple_of(2 * LINE);
                    spare.with(
                        || [(); 3].map(|()| AlignedVec::new(len)),
                        |[weights, race, depth]| {
                            Arch::new().dispatch(Race { logits, random, weights, race, depth })
                        },
                    )
                }
            };
        });
    }
}

/// A row of logits before the cap.
#[derive(Clone, Copy)]
pub(crate) struct Logits<'a> {
    /// Those that can be drawn.
    pub(crate) row: &'a [f32],
    /// How many there are with padding.
    pub(crate) all: usize,
    pub(crate) cap: f32,
}

/// What a row's probabilities are made with.
pub(crate) struct Summary {
    /// The first place of the greatest logit.
    place: usize,
    /// That logit after the cap, times log2(e).
    top: f32,
    /// `log2 sum 2^x` of all after the cap, times log2(e), less `top`.
    sum: f32,
}

impl Logits<'_> {
    #[inline(always)]
    pub(crate) fn summary<S: Simd>(&self, simd: S) -> Summary {
        let (vectors, rest) = S::as_simd_f32s(self.row);
        let mut tops = [simd.splat_f32s(f32::NEG_INFINITY); 4];
        for (i, &x) in vectors.iter().enumerate() {
            tops[i % 4] = simd.max_f32s(tops[i % 4], x);
        }
        let tops = tops.map(|top| simd.reduce_max_f32s(top));
        let greatest = tops.iter().chain(rest).fold(f32::NEG_INFINITY, |top, &x| top.max(x));
        let place = self.row.iter().position(|&x| x == greatest).unwrap_or(0);
        let top = self.capped(simd, simd.splat_f32s(greatest));
        // Four sums side by side: one alone would wait for its own additions.
        let mut sums = [simd.splat_f32s(0.0); 4];
        for (i, &x) in vectors.iter().enumerate() {
            sums[i % 4] = simd.add_f32s(sums[i % 4], exp2(simd, simd.sub_f32s(self.capped(simd, x), top)));
        }
        let mut last = 0.0;
        for &x in rest {
            let power = exp2(simd, simd.sub_f32s(self.capped(simd, simd.splat_f32s(x)), top));
            last += simd.reduce_max_f32s(power);
        }
        let sum = sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).sum::<f32>() + last;
        Summary { place, top: simd.reduce_max_f32s(top), sum: sum.log2() }
    }

    /// `cap tanh(x / cap)`, or x where cap is 0, times log2(e).
    #[inline(always)]
    fn capped<S: Simd>(&self, simd: S, x: S::f32s) -> S::f32s {
        let cap = self.cap;
        if cap == 0.0 {
            return simd.mul_f32s(x, simd.splat_f32s(LOG2_E));
        }
        let tanh = tanh(simd, simd.mul_f32s(x, simd.splat_f32s(cap.recip())));
        simd.mul_f32s(tanh, simd.splat_f32s(cap * LOG2_E))
    }

    /// A token, and the logarithm of its probability.
    #[inline(always)]
    pub(crate) fn drawn<S: Simd>(&self, simd: S, token: usize, summary: &Summary) -> (i32, f32) {
        let logit = simd.reduce_max_f32s(self.capped(simd, simd.splat_f32s(self.row[token])));
        (token as i32, (logit - summary.top - summary.sum) * LN_2)
    }
}

struct Greedy<'a> {
    logits: Logits<'a>,
}

impl WithSimd for Greedy<'_> {
    type Output = (i32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (i32, f32) {
        let summary = self.logits.summary(simd);
        self.logits.drawn(simd, summary.place, &summary)
    }
}

/// The numbers of a row's random draw.
#[derive(Clone, Copy)]
struct Random {
    key: [u32; 2],
    position: u32,
    temperature: f32,
    /// Where it leaves out a token.
    top_k: Option<usize>,
    /// Where it can leave out a token.
    top_p: Option<f32>,
}

struct Race<'a> {
    logits: Logits<'a>,
    random: Random,
    /// As many as there are logits with padding, rounded up to whole vectors.
    weights: &'a mut [f32],
    race: &'a mut [f32],
    /// How far each logit is below the greatest; infinite for padding.
    depth: &'a mut [f32],
}

impl WithSimd for Race<'_> {
    type Output = (i32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (i32, f32) {
        let Race { logits, random, weights, race, depth } = self;
        let summary = logits.summary(simd);
        weigh(simd, logits, summary.top, random.temperature, weights);
        fill_arrivals(simd, random.key, random.position, logits.all, race);
        let weight_vectors = S::as_simd_f32s(weights).0;
        for (race, &weight) in S::as_mut_simd_f32s(race).0.iter_mut().zip(weight_vectors) {
            *race = simd.div_f32s(weight, *race);
        }
        let Random { top_k, top_p, .. } = random;
        if (top_k, top_p) == (None, None) {
            let token = winner(simd, race).unwrap_or(summary.place);
            return logits.drawn(simd, token, &summary);
        }
        let columns = logits.row.len();
        depth[columns..].fill(f32::INFINITY);
        for (depth, logit) in depth.iter_mut().zip(logits.row) {
            *depth = logits.row[summary.place] - logit;
        }
        // How many tokens, and how much weight of theirs, must not stand before one.
        let count = top_k.map_or(f32::INFINITY, |k| k as f32);
        let sum = match (top_k, top_p) {
            (_, None) => f32::INFINITY,
            (None, Some(p)) => p * nearer(simd, depth, weights, f32::INFINITY).weight,
            (Some(_), Some(p)) => p * sum_of_first(simd, depth, weights, count),
        };
        // Ends: what is refused leaves the race. The first one is never refused; where logits are NaN, it may not be known.
        let token = loop {
            let Some(token) = winner(simd, race) else { break summary.place };
            let its_depth = depth[token];
            let Before { count: many, weight } = before(simd, depth, weights, token);
            if many < count && (weight < sum || weight == 0.0) {
                break token;
            }
            // And so does what follows it.
            for (id, (race, &depth)) in race.iter_mut().zip(&*depth).enumerate() {
                if depth > its_depth || (depth == its_depth && id >= token) {
                    *race = 0.0;
                }
            }
        };
        logits.drawn(simd, token, &summary)
    }
}

/// `exp((logit - greatest) / temperature)` of a row, zeros for padding. top: as in [`Summary`].
#[inline(always)]
fn weigh<S: Simd>(simd: S, logits: Logits<'_>, top: f32, temperature: f32, weights: &mut [f32]) {
    let columns = logits.row.len();
    weights[..columns].copy_from_slice(logits.row);
    let [coldest, hottest] = TEMPERATURES;
    let scale = temperature.clamp(coldest, hottest).recip();
    let (top, scale) = (simd.splat_f32s(top), simd.splat_f32s(scale));
    for x in S::as_mut_simd_f32s(weights).0 {
        *x = exp2(simd, simd.mul_f32s(simd.sub_f32s(logits.capped(simd, *x), top), scale));
    }
    weights[columns..].fill(0.0);
}

/// What stands before a token.
struct Before {
    count: f32,
    weight: f32,
}

/// The tokens whose depth is less than another.
#[inline(always)]
fn nearer<S: Simd>(simd: S, depth: &[f32], weights: &[f32], than: f32) -> Before {
    let (zero, one, than) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0), simd.splat_f32s(than));
    let mut counts = [zero; 4];
    let mut sums = [zero; 4];
    let vectors = S::as_simd_f32s(depth).0.iter().zip(S::as_simd_f32s(weights).0);
    for (i, (&depth, &weight)) in vectors.enumerate() {
        let nearer = simd.less_than_f32s(depth, than);
        counts[i % 4] = simd.add_f32s(counts[i % 4], simd.select_f32s(nearer, one, zero));
        sums[i % 4] = simd.add_f32s(sums[i % 4], simd.select_f32s(nearer, weight, zero));
    }
    let [count, weight] =
        [counts, sums].map(|sums| sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).sum());
    Before { count, weight }
}

/// The tokens with larger logits, and of the same logit those with lower ids.
#[inline(always)]
fn before<S: Simd>(simd: S, depth: &[f32], weights: &[f32], token: usize) -> Before {
    let Before { count, weight } = nearer(simd, depth, weights, depth[token]);
    let equal =
        depth[..token].iter().filter(|&&depth_of_other| depth_of_other == depth[token]).count() as f32;
    Before { count: count + equal, weight: weight + equal * weights[token] }
}

/// The first place of the largest in the race, if one has a weight: padding has none, nor have numbers that are NaN.
#[inline(always)]
fn winner<S: Simd>(simd: S, race: &[f32]) -> Option<usize> {
    let mut tops = [simd.splat_f32s(0.0); 4];
    for (i, &race) in S::as_simd_f32s(race).0.iter().enumerate() {
        tops[i % 4] = simd.max_f32s(tops[i % 4], race);
    }
    let top = tops.into_iter().map(|top| simd.reduce_max_f32s(top)).fold(0.0, f32::max);
    race.iter().position(|&race| race == top && top > 0.0)
}

/// The sum of the weights of the first `k` tokens. The depth of the last of them is found bit by bit.
#[inline(always)]
fn sum_of_first<S: Simd>(simd: S, depth: &[f32], weights: &[f32], k: f32) -> f32 {
    let mut last = 0;
    for bit in (0..31).rev() {
        let deeper = f32::from_bits(last + (1 << bit));
        // Bits that are no number are deeper than all.
        if !deeper.is_nan() && nearer(simd, depth, weights, deeper).count < k {
            last = deeper.to_bits();
        }
    }
    let last = f32::from_bits(last);
    let Before { count, weight } = nearer(simd, depth, weights, last);
    let weight_of_last = depth.iter().position(|&depth| depth == last).map_or(0.0, |place| weights[place]);
    weight + (k - count) * weight_of_last
}

/// The exponential numbers of `all` tokens at a position, and ones after them.
#[inline(always)]
fn fill_arrivals<S: Simd>(simd: S, key: [u32; 2], position: u32, all: usize, arrivals: &mut [f32]) {
    let half = all.div_ceil(2);
    arrivals[all..].fill(1.0);
    for first in (0..half).step_by(LINE) {
        let (mut low, mut high) = ([0; LINE], [0; LINE]);
        for (counter, (low, high)) in (first as u32..).zip(low.iter_mut().zip(&mut high)) {
            [*low, *high] = threefry2x32(key, [position, counter]);
        }
        for (words, start) in [(low, 0), (high, half)] {
            // In (0, 1), with all the precision that f32 has near 0.
            let mut x =
                words.map(|word| (word as f32 * 2f32.powi(-32)).clamp(2f32.powi(-33), 1.0 - 2f32.powi(-24)));
            for x in S::as_mut_simd_f32s(&mut x).0 {
                *x = arrival(simd, *x);
            }
            let end = (start + half).min(all);
            let place = &mut arrivals[(start + first).min(end)..end];
            let count = place.len().min(LINE);
            place[..count].copy_from_slice(&x[..count]);
        }
    }
}

/// `-ln(1 - u)` for u in (0, 1), within 3e-7 of it.
///
/// With w = 1 - u rounded: `-ln(w) u / (1 - w)`, which takes the rounding back. `ln(2^k (1 + t))`, with 1 + t in
/// `[sqrt(1/2), sqrt(2))`, is `k ln(2) + 2 artanh(t / (2 + t))`.
#[inline(always)]
fn arrival<S: Simd>(simd: S, u: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let w = simd.sub_f32s(one, u);
    // The bits of sqrt(1/2), such that the exponent counts from there; 127 more, lest it be negative.
    let moved =
        simd.sub_u32s(simd.transmute_u32s_f32s(w), simd.splat_u32s(0x3f35_04f3_u32.wrapping_sub(127 << 23)));
    let exponent = simd.wrapping_dyn_shr_u32s(moved, simd.splat_u32s(23));
    let bits = simd.sub_u32s(
        simd.transmute_u32s_f32s(w),
        simd.wrapping_dyn_shl_u32s(simd.sub_u32s(exponent, simd.splat_u32s(127)), simd.splat_u32s(23)),
    );
    // As the lowest bits of 2^23 a number stands as it is.
    let shifted = simd.transmute_f32s_u32s(simd.or_u32s(exponent, simd.splat_u32s(0x4b00_0000)));
    let k = simd.sub_f32s(shifted, simd.splat_f32s(8_388_608.0 + 127.0));
    let t = simd.sub_f32s(simd.transmute_f32s_u32s(bits), one);
    let s = simd.div_f32s(t, simd.add_f32s(t, simd.splat_f32s(2.0)));
    let square = simd.mul_f32s(s, s);
    let mut series = simd.splat_f32s(2.0 / 9.0);
    for coefficient in [2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0] {
        series = simd.mul_add_e_f32s(series, square, simd.splat_f32s(coefficient));
    }
    let ln = simd.mul_add_e_f32s(k, simd.splat_f32s(LN_2), simd.mul_f32s(series, s));
    let rounded = simd.sub_f32s(one, w);
    let whole = simd.div_f32s(simd.mul_f32s(simd.neg_f32s(ln), u), rounded);
    simd.select_f32s(simd.equal_f32s(rounded, simd.splat_f32s(0.0)), u, whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::Scalar;

    struct Arrivals<'a>(&'a mut [f32]);

    impl WithSimd for Arrivals<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for x in S::as_mut_simd_f32s(self.0).0 {
                *x = arrival(simd, *x);
            }
        }
    }

    #[test]
    fn arrivals_are_exact_from_the_first_to_the_last() {
        // Evenly between 0 and 1, and ever nearer to both.
        let even = (1..1 << 16).map(|i| i as f32 / (1 << 16) as f32);
        let early = (0..1 << 10).map(|i| 2f32.powf(-33.0 + 32.0 * i as f32 / (1 << 10) as f32));
        let late = (1..=24).map(|i| 1.0 - 2f32.powi(-i));
        let mut u: Vec<f32> = even.chain(early).chain(late).collect();
        u.resize(u.len().next_multiple_of(LINE), 0.5);
        for vectors in [true, false] {
            let mut found = u.clone();
            if vectors {
                Arch::new().dispatch(Arrivals(&mut found));
            } else {
                Scalar.vectorize(Arrivals(&mut found));
            }
            for (u, found) in u.iter().zip(found) {
                let wanted = -(-f64::from(*u)).ln_1p();
                assert!((f64::from(found) / wanted - 1.0).abs() < 3e-7, "{u}: {found}, not {wanted}");
            }
        }
    }
}
