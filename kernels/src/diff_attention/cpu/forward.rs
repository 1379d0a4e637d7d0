//! The forward pass: a task for each block of queries of a head, with the softmaxes' maxima and sums carried from tile to
//! tile of keys.

use super::*;

/// Where the results go.
#[derive(Debug)]
pub(super) struct Results<'a> {
    /// `[b, s, h e]`
    pub(super) y: &'a mut [f32],
    /// `P2 V`, `[b, h, e, s]`
    pub(super) o2: &'a mut [f32],
    /// `[b, h, 3, s]`: the logarithms of the two softmaxes' sums, and the norm's factor.
    pub(super) stats: &'a mut [f32],
}

/// Floats that `forward` needs for a while: the rotated keys.
pub(super) fn forward_scratch(p: &Attention) -> usize {
    p.rotated_keys() + LINE
}

/// y, O2 and the statistics. scratch: at least `forward_scratch` floats.
pub(super) fn forward(
    p: &Attention,
    workers: Workers<'_>,
    x: Arguments<'_>,
    results: Results<'_>,
    scratch: &mut [f32],
) {
    let keys = &mut aligned(scratch)[..p.rotated_keys()];
    x.rotate_keys(p, workers, keys);
    let (y_len, o2_len) = (p.seq * p.heads * p.value_dim, p.heads * p.value_dim * p.seq);
    let y = results.y.chunks_exact_mut(y_len);
    let o2 = results.o2.chunks_exact_mut(o2_len);
    let stats = results.stats.chunks_exact_mut(p.heads * 3 * p.seq);
    let sequences: Vec<_> =
        y.zip(o2).zip(stats).map(|((y, o2), stats)| Mutex::new(Results { y, o2, stats })).collect();
    let mut items = Vec::new();
    for queries in Positions::cover(0, p.seq, QUERIES) {
        for (b, results) in sequences.iter().enumerate() {
            items.extend((0..p.heads).map(|head| (queries, b, head, results)));
        }
    }
    // The longest first, so that none is left alone at the end.
    items.reverse();
    let spare = ScratchPool::new();
    workers.for_each(items, |(queries, b, head, results)| {
        let block = QueryBlock::new(p, &x, keys, b, head, queries);
        spare.with(
            || Scratch::new(p),
            |tiles| {
                let stats = Arch::new().dispatch(ForwardTask { block: &block, tiles });
                tiles.store(&block, &stats, &mut results.lock().expect("no task panicked"));
            },
        );
    });
}

/// What a task works in.
struct Scratch {
    /// The rotated queries times log2(e) and the scale, `[t, 64, d]`.
    q: AlignedVec,
    /// The same, `[t, d, 64]`.
    q_turned: AlignedVec,
    /// A map's logits, then their exponentials, `[keys, 64]`.
    scores: AlignedVec,
    /// The maps' values, `[e, 64]`; in the end O and O2.
    o: [AlignedVec; 2],
    /// `[64, e]`
    y: AlignedVec,
}

impl Scratch {
    fn new(p: &Attention) -> Scratch {
        let (d, e) = (p.head_dim, p.value_dim);
        Scratch {
            q: AlignedVec::new(2 * QUERIES * d),
            q_turned: AlignedVec::new(2 * d * QUERIES),
            scores: AlignedVec::new(KEYS * QUERIES),
            o: [AlignedVec::new(e * QUERIES), AlignedVec::new(e * QUERIES)],
            y: AlignedVec::new(QUERIES * e),
        }
    }
}

/// The statistics of a block's queries, in the order of the result.
type Stats = [[f32; QUERIES]; 3];

struct ForwardTask<'a> {
    block: &'a QueryBlock<'a>,
    tiles: &'a mut Scratch,
}

/// The softmax of one map, as far as its keys were seen.
struct Softmax {
    /// The largest logit times log2(e).
    top: [f32; QUERIES],
    /// Of the exponentials of the logits less the largest.
    sum: [f32; QUERIES],
}

impl WithSimd for ForwardTask<'_> {
    type Output = Stats;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Stats {
        let ForwardTask { block, tiles } = self;
        let p = block.p;
        block.load(&mut tiles.q, &mut tiles.q_turned);
        // Not minus infinity, of which the difference to itself is not a number.
        let softmax = || Softmax { top: [f32::MIN / 2.0; QUERIES], sum: [0.0; QUERIES] };
        let mut maps = [softmax(), softmax()];
        for o in &mut tiles.o {
            o.fill(0.0);
        }
        for tile in block.tiles() {
            let scores = &mut tiles.scores[..tile.len * QUERIES];
            let values = Left::by_columns(block.values(tile), p.width());
            for (t, (map, o)) in maps.iter_mut().zip(&mut tiles.o).enumerate() {
                block.scores(simd, t, tile, &tiles.q_turned, scores);
                map.add(simd, scores, o);
                // Ot += (Pt V)
                multiply(simd, values, scores, o, QUERIES, Onto::Sum);
            }
        }
        tiles.finish(simd, block, &maps)
    }
}

/// Vectors that are worked on together, so that one's latency is hidden by the others.
const TOGETHER: usize = 4;

impl Softmax {
    /// Replaces logits `[keys, 64]` by their exponentials, adds those to the sum, and makes `o` `[e, 64]` fit.
    #[inline(always)]
    #[expect(clippy::manual_memcpy, reason = "plain loops keep the sums in registers")]
    fn add<S: Simd>(&mut self, simd: S, scores: &mut [f32], o: &mut [f32]) {
        let width = QUERIES / S::F32_LANES;
        let scores = S::as_mut_simd_f32s(scores).0;
        let tops = S::as_mut_simd_f32s(&mut self.top).0;
        let sums = S::as_mut_simd_f32s(&mut self.sum).0;
        let mut factors = [0.0; QUERIES];
        let mut larger = false;
        let factor_vectors = S::as_mut_simd_f32s(&mut factors).0;
        for first in (0..width).step_by(TOGETHER) {
            let mut top = [tops[first]; TOGETHER];
            for i in 1..TOGETHER {
                top[i] = tops[first + i];
            }
            for row in scores.chunks_exact(width) {
                let row = &row[first..][..TOGETHER];
                for i in 0..TOGETHER {
                    top[i] = simd.max_f32s(top[i], row[i]);
                }
            }
            let mut sum = top;
            for i in 0..TOGETHER {
                let factor = exp2(simd, simd.sub_f32s(tops[first + i], top[i]));
                larger |= simd.reduce_min_f32s(factor) != 1.0;
                sum[i] = simd.mul_f32s(sums[first + i], factor);
                factor_vectors[first + i] = factor;
            }
            for row in scores.chunks_exact_mut(width) {
                let row = &mut row[first..][..TOGETHER];
                for i in 0..TOGETHER {
                    row[i] = exp2(simd, simd.sub_f32s(row[i], top[i]));
                    sum[i] = simd.add_f32s(sum[i], row[i]);
                }
            }
            for i in 0..TOGETHER {
                tops[first + i] = top[i];
                sums[first + i] = sum[i];
            }
        }
        if larger {
            scale_columns(simd, o, &factors);
        }
    }
}

/// Multiplies each column of `[e, 64]` by its factor.
#[inline(always)]
fn scale_columns<S: Simd>(simd: S, x: &mut [f32], factors: &[f32; QUERIES]) {
    let factors = S::as_simd_f32s(factors).0;
    for row in S::as_mut_simd_f32s(x).0.chunks_exact_mut(factors.len()) {
        for (x, factor) in row.iter_mut().zip(factors) {
            *x = simd.mul_f32s(*x, *factor);
        }
    }
}

impl Scratch {
    /// y, O2 and the statistics, of what the maps have summed.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, block: &QueryBlock<'_>, maps: &[Softmax; 2]) -> Stats {
        let e = block.p.value_dim;
        for (o, map) in self.o.iter_mut().zip(maps) {
            scale_columns(simd, o, &map.sum.map(f32::recip));
        }
        // O = O1 - lambda O2, in one rounding: a row of one key has O = v - lambda v, which nearly cancels.
        let [o, o2] = &mut self.o;
        let minus_lambda = block.lambdas().map(|lambda| -lambda);
        let minus_lambda = S::as_simd_f32s(&minus_lambda).0;
        let width = minus_lambda.len();
        let mut squares = [0.0; QUERIES];
        let sums = S::as_mut_simd_f32s(&mut squares).0;
        let rows = S::as_mut_simd_f32s(o).0.chunks_exact_mut(width);
        for (o, o2) in rows.zip(S::as_simd_f32s(o2).0.chunks_exact(width)) {
            for i in 0..width {
                o[i] = simd.mul_add_f32s(minus_lambda[i], o2[i], o[i]);
                sums[i] = simd.mul_add_e_f32s(o[i], o[i], sums[i]);
            }
        }
        let factor = match block.p.norm {
            HeadNorm::Rms { eps } => squares.map(|square| (square / e as f32 + eps as f32).sqrt().recip()),
            HeadNorm::None => [1.0; QUERIES],
        };
        scale_columns(simd, o, &factor);
        turn(o, QUERIES, &mut self.y);
        let lse = |map: &Softmax| std::array::from_fn(|i| LN_2 * map.top[i] + map.sum[i].ln());
        [lse(&maps[0]), lse(&maps[1]), factor]
    }

    /// Copies the block's part to the results of its sequence.
    fn store(&self, block: &QueryBlock<'_>, stats: &Stats, results: &mut Results<'_>) {
        let QueryBlock { p, head, queries, .. } = *block;
        let e = p.value_dim;
        let rows = results.y.chunks_exact_mut(p.heads * e).skip(queries.first);
        for (y, row) in self.y.chunks_exact(e).take(queries.len).zip(rows) {
            row[head * e..][..e].copy_from_slice(y);
        }
        let rows = results.o2[head * e * p.seq..].chunks_exact_mut(p.seq);
        for (o2, row) in self.o[1].chunks_exact(QUERIES).zip(rows) {
            row[queries.first..queries.end()].copy_from_slice(&o2[..queries.len]);
        }
        let rows = results.stats[head * 3 * p.seq..].chunks_exact_mut(p.seq);
        for (stats, row) in stats.iter().zip(rows) {
            row[queries.first..queries.end()].copy_from_slice(&stats[..queries.len]);
        }
    }
}
