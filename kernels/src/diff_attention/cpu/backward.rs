//! The backward pass ([`gradients`](crate::gradients)): the scores are computed again, tile by tile. A task takes a run of a sequence's queries and
//! all heads of a group, and sums the cotangents of the keys and values it sees for itself; what the runs give is added in
//! their order, so no result depends on the threads.

use super::*;

/// What the forward pass left, in the layouts of `Results`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saved<'a> {
    /// `[b, s, h e]`
    pub(super) y: &'a [f32],
    /// `[b, h, e, s]`
    pub(super) o2: &'a [f32],
    /// `[b, h, 3, s]`
    pub(super) stats: &'a [f32],
}

/// Where the cotangents go.
#[derive(Debug)]
pub(super) struct Cotangents<'a> {
    /// `[b, s, w]`
    pub(super) qkv: &'a mut [f32],
    /// One float, or `[b, s, h]` where lambda is per row.
    pub(super) lambda: &'a mut [f32],
}

/// Runs that all sequences and groups are cut into, where they are few: each costs memory for its sums.
const RUNS: usize = 16;
/// Runs of one sequence.
const RUNS_OF_SEQUENCE: usize = 4;

/// Queries with about as many visible keys as other runs have, and where their sums lie.
#[derive(Clone, Copy)]
struct Run {
    queries: Positions,
    /// From the first of the sequence's and group's sums.
    offset: usize,
}

impl Run {
    /// The runs of a sequence and a group, and the floats of their sums.
    fn all(p: &Attention) -> (Vec<Run>, usize) {
        let count = (RUNS / (p.batch * p.groups)).clamp(1, RUNS_OF_SEQUENCE);
        let blocks = p.seq.div_ceil(QUERIES);
        let (mut runs, mut first, mut offset) = (Vec::new(), 0, 0);
        for i in 1..=count {
            // The pairs of queries and keys grow with the square of the position.
            let end = (blocks as f64 * (i as f64 / count as f64).sqrt()).round() as usize * QUERIES;
            let end = end.min(p.seq);
            if end > first {
                let run = Run { queries: Positions { first, len: end - first }, offset };
                runs.push(run);
                offset += run.sums(p);
                first = end;
            }
        }
        (runs, offset)
    }

    /// Floats of the run's sums: of the keys `[t, end, d]`, then of the values `[end, e]`.
    fn sums(&self, p: &Attention) -> usize {
        self.queries.end() * (p.key_maps() * p.head_dim + p.value_dim)
    }
}

/// Floats that `backward` needs for a while: the rotated keys, the runs' sums, and lambda's cotangent by rows.
pub(super) fn backward_scratch(p: &Attention) -> usize {
    p.rotated_keys() + p.batch * p.groups * Run::all(p).1 + p.batch * p.seq * p.heads + LINE
}

/// The cotangents of qkv and lambda. dy: `[b, s, h e]`; scratch: at least `backward_scratch` floats.
pub(super) fn backward(
    p: &Attention,
    workers: Workers<'_>,
    x: Arguments<'_>,
    saved: Saved<'_>,
    dy: &[f32],
    results: Cotangents<'_>,
    scratch: &mut [f32],
) {
    let (runs, group_len) = Run::all(p);
    let (keys, rest) = aligned(scratch).split_at_mut(p.rotated_keys());
    let (sums, rest) = rest.split_at_mut(p.batch * p.groups * group_len);
    x.rotate_keys(p, workers, keys);
    let Cotangents { qkv, lambda } = results;
    let lambda_rows = match x.lambda {
        Lambda::Scalar(_) => &mut rest[..p.batch * p.seq * p.heads],
        Lambda::PerRow(_) => &mut *lambda,
    };

    let by_sequence =
        qkv.chunks_exact_mut(p.seq * p.width()).zip(lambda_rows.chunks_exact_mut(p.seq * p.heads));
    let sequences: Vec<_> = by_sequence.map(|(qkv, lambda)| Mutex::new(Cotangents { qkv, lambda })).collect();
    let mut items = Vec::new();
    for (i, mut sums) in sums.chunks_exact_mut(group_len).enumerate() {
        for run in &runs {
            let (run_sums, rest) = sums.split_at_mut(run.sums(p));
            items.push((i / p.groups, i % p.groups, run, run_sums));
            sums = rest;
        }
    }
    let spare = ScratchPool::new();
    let given = Given { p, x: &x, keys, saved, dy };
    workers.for_each(items, |(b, group, run, sums)| {
        spare.with(
            || Scratch::new(p),
            |tiles| {
                let results = &sequences[b];
                Arch::new().dispatch(BackwardTask { given: &given, b, group, run, sums, results, tiles });
            },
        );
    });
    drop(sequences);

    let items: Vec<_> = qkv
        .chunks_exact_mut(p.seq * p.width())
        .enumerate()
        .flat_map(|(b, qkv)| {
            let positions = Positions::cover(0, p.seq, KEYS);
            positions
                .zip(qkv.chunks_mut(KEYS * p.width()))
                .map(move |(positions, qkv)| (b, positions.first, qkv))
        })
        .collect();
    workers.for_each(items, |(b, first, qkv)| {
        let sums = &sums[b * p.groups * group_len..][..p.groups * group_len];
        Arch::new().dispatch(AddRuns { p, x: &x, runs: &runs, sums, first, qkv });
    });
    if let Lambda::Scalar(_) = x.lambda {
        lambda[0] = rest[..p.batch * p.seq * p.heads].iter().map(|&row| f64::from(row)).sum::<f64>() as f32;
    }
}

/// Writes the cotangents of some keys and values: the sums of all runs that see them, and of the keys what they were before
/// the rotation.
struct AddRuns<'a> {
    p: &'a Attention,
    x: &'a Arguments<'a>,
    runs: &'a [Run],
    /// Those of one sequence, for each group.
    sums: &'a [f32],
    /// Position of the first key.
    first: usize,
    /// `[keys, w]`
    qkv: &'a mut [f32],
}

impl WithSimd for AddRuns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let AddRuns { p, x, runs, sums, first, qkv } = self;
        let (d, e, maps) = (p.head_dim, p.value_dim, p.key_maps());
        let [q_width, k_width, _] = p.widths();
        let group_len = sums.len() / p.groups;
        for (token, position) in qkv.chunks_exact_mut(p.width()).zip(first..) {
            let (key_columns, value_columns) = token[q_width..].split_at_mut(k_width);
            for (group, sums) in sums.chunks_exact(group_len).enumerate() {
                for t in 0..maps {
                    let dk = &mut key_columns[(group * maps + t) * d..][..d];
                    add(dk, runs, position, |run| {
                        &sums[run.offset + (t * run.queries.end() + position) * d..][..d]
                    });
                    // The queries in the sums carry log2(e).
                    rotate_back(dk, x.angles(p, position), LN_2);
                }
                let dv = &mut value_columns[group * e..][..e];
                add(dv, runs, position, |run| {
                    &sums[run.offset + maps * d * run.queries.end() + position * e..][..e]
                });
            }
        }
    }
}

/// The sum of what the runs that see the key at `position` have for it.
#[inline(always)]
fn add<'a>(result: &mut [f32], runs: &[Run], position: usize, part: impl Fn(&Run) -> &'a [f32]) {
    result.fill(0.0);
    for run in runs.iter().filter(|run| position < run.queries.end()) {
        for (result, part) in result.iter_mut().zip(part(run)) {
            *result += part;
        }
    }
}

/// What all tasks read.
struct Given<'a> {
    p: &'a Attention,
    x: &'a Arguments<'a>,
    keys: &'a [f32],
    saved: Saved<'a>,
    dy: &'a [f32],
}

struct BackwardTask<'a, 'r> {
    given: &'a Given<'a>,
    b: usize,
    group: usize,
    run: &'a Run,
    sums: &'a mut [f32],
    results: &'a Mutex<Cotangents<'r>>,
    tiles: &'a mut Scratch,
}

/// What a block needs besides keys and values, and its tiles.
struct Scratch {
    /// The rotated queries times log2(e) and the scale, `[t, 64, d]`.
    q: AlignedVec,
    /// The same, `[t, d, 64]`.
    q_turned: AlignedVec,
    /// `[64, e]`
    d_out: AlignedVec,
    /// `[e, 64]`
    d_out_turned: AlignedVec,
    /// Sums of the queries' cotangents, `[t, 64, d]`.
    dq: AlignedVec,
    /// The maps' logits, then their cotangents: `[keys, 64]` each.
    scores: [AlignedVec; 2],
    /// dA, then A: `[keys, 64]`.
    a: AlignedVec,
}

/// What belongs to each query of a block.
struct PerQuery {
    /// The logarithms to base 2 of the softmaxes' sums.
    lse: [[f32; QUERIES]; 2],
    /// D1 and D2.
    row_sums: [[f32; QUERIES]; 2],
    lambda: [f32; QUERIES],
}

impl WithSimd for BackwardTask<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let BackwardTask { given, b, group, run, sums, results, tiles } = self;
        let p = given.p;
        let (d, heads_per_group) = (p.head_dim, p.heads / p.groups);
        sums.fill(0.0);
        let (dk, dv) = sums.split_at_mut(p.key_maps() * run.queries.end() * d);
        for queries in Positions::cover(run.queries.first, run.queries.end(), QUERIES) {
            for head in group * heads_per_group..(group + 1) * heads_per_group {
                let block = QueryBlock::new(p, given.x, given.keys, b, head, queries);
                let per_query = tiles.load(simd, &block, given);
                for tile in block.tiles() {
                    tiles.differentiate(simd, &block, tile, &per_query);
                    tiles.add_to_keys(simd, &block, tile, dk, dv);
                }
                tiles.store(&block, &per_query, &mut results.lock().expect("no task panicked"));
            }
        }
    }
}

impl Scratch {
    fn new(p: &Attention) -> Scratch {
        let (d, e) = (p.head_dim, p.value_dim);
        Scratch {
            q: AlignedVec::new(2 * QUERIES * d),
            q_turned: AlignedVec::new(2 * d * QUERIES),
            d_out: AlignedVec::new(QUERIES * e),
            d_out_turned: AlignedVec::new(e * QUERIES),
            dq: AlignedVec::new(2 * QUERIES * d),
            scores: [AlignedVec::new(KEYS * QUERIES), AlignedVec::new(KEYS * QUERIES)],
            a: AlignedVec::new(KEYS * QUERIES),
        }
    }

    /// Loads the block's queries and cotangents.
    #[inline(always)]
    fn load<S: Simd>(&mut self, simd: S, block: &QueryBlock<'_>, given: &Given<'_>) -> PerQuery {
        let QueryBlock { p, b, head, queries, .. } = *block;
        let e = p.value_dim;
        block.load(&mut self.q, &mut self.q_turned);
        self.dq.fill(0.0);

        let block_rows = |x: &[f32]| {
            let mut rows = [0.0; QUERIES];
            rows[..queries.len].copy_from_slice(&x[queries.first..queries.end()]);
            rows
        };
        let stats = &given.saved.stats[(b * p.heads + head) * 3 * p.seq..][..3 * p.seq];
        let factor = block_rows(&stats[2 * p.seq..]);
        let mut along_out = [0.0; QUERIES];
        // y = f O with f = 1 / sqrt(mean(O^2) + eps):  dO = f (dy - y mean(y dy)), and then
        // rowsum(dO O) = e eps f^2 mean(y dy), because mean(y^2) = 1 - eps f^2.
        for (i, d_out) in self.d_out.chunks_exact_mut(e).take(queries.len).enumerate() {
            let first = ((b * p.seq + queries.first + i) * p.heads + head) * e;
            let (y, dy) = (&given.saved.y[first..][..e], &given.dy[first..][..e]);
            let mean = dot(y, dy) / e as f32;
            match p.norm {
                HeadNorm::Rms { eps } => {
                    for ((d_out, y), dy) in d_out.iter_mut().zip(y).zip(dy) {
                        *d_out = (dy - y * mean) * factor[i];
                    }
                    along_out[i] = mean * factor[i] * factor[i] * (e as f64 * eps) as f32;
                }
                HeadNorm::None => {
                    d_out.copy_from_slice(dy);
                    along_out[i] = mean * e as f32;
                }
            }
        }
        self.d_out[queries.len * e..].fill(0.0);
        turn(&self.d_out, e, &mut self.d_out_turned);

        // D2 = rowsum(dO O2);  D1 = rowsum(dO O) + lambda D2. D2 is summed as the product dO V^T is: of a row of one key, where
        // O2 = V, it is dA to the bit, and dS2 is zero however large dO.
        let lambda = block.lambdas();
        let mut d2 = [0.0; QUERIES];
        let sums = S::as_mut_simd_f32s(&mut d2).0;
        let o2 = given.saved.o2[(b * p.heads + head) * e * p.seq..].chunks_exact(p.seq);
        for (d_out, o2) in self.d_out_turned.chunks_exact(QUERIES).zip(o2) {
            let o2 = block_rows(o2);
            let (d_out, o2) = (S::as_simd_f32s(d_out).0, S::as_simd_f32s(&o2).0);
            for i in 0..sums.len() {
                sums[i] = simd.mul_add_e_f32s(o2[i], d_out[i], sums[i]);
            }
        }
        let d1 = std::array::from_fn(|i| along_out[i] + lambda[i] * d2[i]);
        let lse = [0, 1].map(|t| block_rows(&stats[t * p.seq..]).map(|lse| lse * LOG2_E));
        PerQuery { lse, row_sums: [d1, d2], lambda }
    }

    /// A and the cotangents of the logits, of a tile of keys.
    #[inline(always)]
    fn differentiate<S: Simd>(
        &mut self,
        simd: S,
        block: &QueryBlock<'_>,
        tile: Positions,
        per_query: &PerQuery,
    ) {
        let len = tile.len * QUERIES;
        for (t, scores) in self.scores.iter_mut().enumerate() {
            block.scores(simd, t, tile, &self.q_turned, &mut scores[..len]);
        }
        // dA = dO V^T
        let values = Left::by_rows(block.values(tile), block.p.width());
        multiply(simd, values, &self.d_out_turned, &mut self.a[..len], QUERIES, Onto::Zero);

        let vectors = |x| S::as_simd_f32s(x).0;
        let [lse1, lse2] = per_query.lse.each_ref().map(|x| vectors(x));
        let [d1, d2] = per_query.row_sums.each_ref().map(|x| vectors(x));
        let lambda = vectors(&per_query.lambda);
        let width = lambda.len();
        let [s1, s2] = &mut self.scores;
        let [s1, s2, a] = [s1, s2, &mut self.a].map(|x| S::as_mut_simd_f32s(&mut x[..len]).0);
        let rows = s1.chunks_exact_mut(width).zip(s2.chunks_exact_mut(width)).zip(a.chunks_exact_mut(width));
        let cap = block.p.cap;
        for ((s1, s2), a) in rows {
            for i in 0..width {
                let slopes = [s1[i], s2[i]];
                // A = P1 - lambda P2
                let p1 = exp2(simd, simd.sub_f32s(s1[i], lse1[i]));
                let p2 = simd.mul_f32s(lambda[i], exp2(simd, simd.sub_f32s(s2[i], lse2[i])));
                let da = a[i];
                a[i] = simd.sub_f32s(p1, p2);
                // dS1 = P1 (dA - D1), dS2 = -lambda P2 (dA - D2)
                s1[i] = simd.mul_f32s(p1, simd.sub_f32s(da, d1[i]));
                s2[i] = simd.mul_f32s(p2, simd.sub_f32s(d2[i], da));
                if cap != 0.0 {
                    s1[i] = simd.mul_f32s(s1[i], slope(simd, slopes[0], cap));
                    s2[i] = simd.mul_f32s(s2[i], slope(simd, slopes[1], cap));
                }
            }
        }
    }

    /// Adds a tile's cotangents to those of the keys `[t, end, d]`, the values `[end, e]` and the block's queries.
    #[inline(always)]
    fn add_to_keys<S: Simd>(
        &mut self,
        simd: S,
        block: &QueryBlock<'_>,
        tile: Positions,
        dk: &mut [f32],
        dv: &mut [f32],
    ) {
        let (d, e, maps) = (block.p.head_dim, block.p.value_dim, block.p.key_maps());
        let map_len = dk.len() / maps;
        // dV = A^T dO
        let dv = &mut dv[tile.first * e..][..tile.len * e];
        multiply(simd, Left::by_rows(&self.a, QUERIES), &self.d_out, dv, e, Onto::Sum);
        for (t, ds) in self.scores.iter().enumerate() {
            let query_range = t * QUERIES * d..(t + 1) * QUERIES * d;
            // dKt = dSt^T Qt
            let dk = &mut dk[t.min(maps - 1) * map_len + tile.first * d..][..tile.len * d];
            multiply(simd, Left::by_rows(ds, QUERIES), &self.q[query_range.clone()], dk, d, Onto::Sum);
            // dQt = dSt Kt
            multiply(
                simd,
                Left::by_columns(ds, QUERIES),
                block.key_tile(t, tile),
                &mut self.dq[query_range],
                d,
                Onto::Sum,
            );
        }
    }

    /// Rotates the queries' cotangents back and copies the block's part to the results of its sequence.
    fn store(&mut self, block: &QueryBlock<'_>, per_query: &PerQuery, results: &mut Cotangents<'_>) {
        let QueryBlock { p, x, head, queries, .. } = *block;
        let d = p.head_dim;
        for i in 0..queries.len {
            let position = queries.first + i;
            for (t, dq) in self.dq.chunks_exact_mut(QUERIES * d).enumerate() {
                let dq = &mut dq[i * d..][..d];
                rotate_back(dq, x.angles(p, position), p.scale());
                results.qkv[position * p.width() + (2 * head + t) * d..][..d].copy_from_slice(dq);
            }
            results.lambda[position * p.heads + head] = -per_query.row_sums[1][i];
        }
    }
}

/// Derivative of a capped logit by the raw one, `1 - (s / cap)^2`. score: s times log2(e), or minus infinity.
#[inline(always)]
fn slope<S: Simd>(simd: S, score: S::f32s, cap: f32) -> S::f32s {
    let tanh = simd.mul_f32s(score, simd.splat_f32s(LN_2 / cap));
    let tanh = simd.max_f32s(tanh, simd.splat_f32s(-1.0));
    simd.sub_f32s(simd.splat_f32s(1.0), simd.mul_f32s(tanh, tanh))
}

/// In sixteen chains, which a compiler may put into vectors.
#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0; LINE];
    for (x, y) in x.chunks_exact(LINE).zip(y.chunks_exact(LINE)) {
        for i in 0..LINE {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum()
}
