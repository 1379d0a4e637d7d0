//! The native forward kernel: two online softmaxes over key blocks.

use super::{
    HIDDEN, Inputs, IsScanned, LANES, ScannedArrays, Step, Tables, Tile, TpuAttention, each_tile,
    rotated_rows,
};
use crate::tile::{CostEstimate, GridSpec, KernelBuilder, Ref, Scalar, TileKernel, Vector, at};
use engine::{CustomCall, InPlace, Type};
use std::f64::consts::LN_2;
use std::sync::Arc;

/// Scratch of one map of one head: the running softmax of the query block in work. Rows are keys, lanes queries.
struct Map {
    /// Scores of the tile in work, `[block, block]`.
    scores: Ref,
    /// Largest score of eight rows of keys each, `[8, block]`.
    highest: Ref,
    /// Of the tile before, `[block, block]` narrow: the second map's weights `2^(score - top)`, and in the first map's place
    /// the difference.
    weights: Ref,
    /// What the output so far is worth now that the top has risen, `[1, block]`.
    decay: Ref,
    /// Largest score so far, `[1, block]`, and before this tile.
    top: Ref,
    top_before: Ref,
    /// Sums of weights so far, of eight rows each, `[8, block]`, and before this tile.
    sum: Ref,
    sum_before: Ref,
    /// Output so far, `[e, block]`: the second map's, and in the first map's place the difference's.
    out: Ref,
}

impl Map {
    fn new(spec: &mut GridSpec, attention: &TpuAttention) -> Map {
        let b = attention.tiling.block;
        let mut scratch = |rows: usize| spec.scratch(Type::f32([rows, b]));
        Map {
            scores: scratch(b),
            highest: scratch(8),
            decay: scratch(1),
            top: scratch(1),
            top_before: scratch(1),
            sum: scratch(8),
            sum_before: scratch(8),
            out: scratch(attention.e),
            weights: spec.scratch(Type::new(attention.narrow, [b, b])),
        }
    }
}

/// Rows that are rotated at a time: what leaves their cosines and sines in registers.
const ROTATED_ROWS: usize = 64;

/// Rows of a tile whose weights are made at a time, from the scores a second time: kept from the first, they would leave the
/// registers (3135 bundles a tile of two heads instead of 2929).
const WEIGHED_ROWS: usize = 64;

struct ForwardKernel<'t> {
    attention: &'t TpuAttention,
    inputs: Inputs,
    /// `[1, s, heads e]`, `[1, heads, e, s]`, `[1, heads, 3, s]`, heads of the step.
    y: Ref,
    o2: Ref,
    stats: Ref,
    /// Rotated: `[groups, heads, 2, s, d]`, `[groups, 2, s, d]`; and values turned, `[groups, e, s]`; groups in lockstep.
    q: Ref,
    k: Ref,
    v: Ref,
    /// By group and map.
    maps: Vec<[Map; 2]>,
    /// By group: `c = lambda l1 / l2` of the sums so far, `[1, block]`.
    ratios: Vec<Ref>,
    /// By group: what of the second map's output the first one's takes as c changes, `[1, block]`.
    mixes: Vec<Ref>,
}

/// Operands: those of [`TpuAttention::operands`] with qkv once for each block spec. Results: y, O2, statistics.
pub(super) fn program(attention: &TpuAttention) -> TileKernel {
    let &TpuAttention { batch, seq, heads, d, e, tiling, narrow, .. } = attention;
    let mut spec = GridSpec::new("diff_attention", &attention.grid());
    let inputs = Inputs::new(attention, &mut spec, Tables::Rows);
    let (steps, width) = (attention.steps(), tiling.groups * tiling.heads);
    let scanned = attention.scanned;
    let [y, o2, stats] = attention.results();
    let y = spec.output(y, &[1, seq, width * e], |k, grid| {
        let sequence = inputs.sequence(k, grid[0], attention, scanned.y);
        vec![sequence, k.number(0), grid[1] * steps + grid[2]]
    });
    if scanned.y == IsScanned::Yes {
        spec.alias();
    }
    let mut per_head = |ty: Type, is_scanned: IsScanned| {
        let result = spec.output(ty.clone(), &[1, width, ty.shape[2], seq], |k, grid| {
            let sequence = inputs.sequence(k, grid[0], attention, is_scanned);
            vec![sequence, grid[1] * steps + grid[2], k.number(0), k.number(0)]
        });
        if is_scanned == IsScanned::Yes {
            spec.alias();
        }
        result
    };
    let o2 = per_head(o2, scanned.o2);
    let stats = per_head(stats, scanned.stats);
    let q = spec.scratch(Type::new(narrow, [tiling.groups, tiling.heads, 2, seq, d]));
    let k = spec.scratch(Type::new(narrow, [tiling.groups, 2, seq, d]));
    let v = spec.scratch(Type::new(narrow, [tiling.groups, e, seq]));
    let maps = (0..tiling.groups).map(|_| [(); 2].map(|()| Map::new(&mut spec, attention))).collect();
    let mut rows = || (0..tiling.groups).map(|_| spec.scratch(Type::f32([1, tiling.block]))).collect();
    let (ratios, mixes) = (rows(), rows());
    let visible = (batch * heads * seq * (seq + tiling.block) / 2) as u64;
    spec.cost(CostEstimate {
        flops: visible * 4 * (d + e) as u64,
        transcendentals: 2 * visible,
        bytes: (attention.qkv().bytes() + 2 * batch * seq * heads * e * narrow.size()) as u64,
    });
    let forward = ForwardKernel { attention, inputs, y, o2, stats, q, k, v, maps, ratios, mixes };
    spec.build(|k, grid| forward.code(k, grid))
}

/// The call, which can read qkv and write its results in place.
pub(super) fn call(attention: &TpuAttention) -> CustomCall {
    let attention = *attention;
    let in_place = InPlace {
        operands: attention.qkv_operands().collect(),
        results: vec![0, 1, 2],
        call: Arc::new(move |scanned| {
            let written = |result: usize| IsScanned::from(scanned.results.contains(&result));
            let scanned = ScannedArrays {
                layers: scanned.length,
                qkv: IsScanned::from(!scanned.operands.is_empty()),
                y: written(0),
                o2: written(1),
                stats: written(2),
            };
            program(&TpuAttention { scanned, ..attention }).custom_call()
        }),
    };
    CustomCall { in_place: Some(in_place), ..program(&attention).custom_call() }
}

impl ForwardKernel<'_> {
    fn code<'k>(&self, k: &'k KernelBuilder, grid: &[Scalar<'k>]) {
        let row = grid[0].to_index();
        self.rotate(k, grid[2]);
        // What the last step leaves is as good as zeros: a query block's first tile lets it decay to nothing. Only NaN stays,
        // and spreads to the sequences after it; a training step with NaN is not applied anyway.
        k.when(grid[0].is(0) & grid[1].is(0) & grid[2].is(0), || {
            let b = self.attention.tiling.block;
            for map in self.maps.iter().flatten() {
                k.store(map.out, at![.., ..], k.full(Type::f32([self.attention.e, b]), 0.0));
                k.store(map.decay, at![.., ..], k.full(Type::f32([1, b]), 1.0));
                k.store(map.weights, at![.., ..], k.full(Type::f32([b, b]), 0.0));
                k.store(map.top, at![.., ..], k.full(Type::f32([1, b]), HIDDEN));
                k.store(map.sum, at![.., ..], k.full(Type::f32([8, b]), 0.0));
            }
            for &row in self.ratios.iter().chain(&self.mixes) {
                k.store(row, at![.., ..], k.full(Type::f32([1, b]), 0.0));
            }
        });
        let start = Tile::start(k, &self.inputs, self.attention, row);
        for x in 0..self.maps.len() {
            for t in 0..2 {
                self.multiply(k, x, t, start);
            }
        }
        self.hide(k, row, start);
        each_tile(k, &self.inputs, self.attention, row, |step| {
            for x in 0..self.maps.len() {
                self.sum_up(k, x, step.before.j);
                self.soften(k, x, &step);
                for t in 0..2 {
                    self.multiply(k, x, t, step.after);
                }
            }
            self.hide(k, row, step.after);
            k.when(step.first & k.index(0).lt(step.number), || self.finish(k, step.before, Sums::Before));
        });
        let end = Tile::end(k, self.attention);
        for x in 0..self.maps.len() {
            self.sum_up(k, x, end.j);
        }
        self.finish(k, end, Sums::Now);
    }

    /// Rotates the step's queries, and with a group's first step its keys; turns its values. In one loop, for the turning
    /// keeps the lanes' shifters busy and the rotation the arithmetic: 1741 bundles a block instead of 1928.
    fn rotate<'k>(&self, k: &'k KernelBuilder, step: Scalar<'k>) {
        let &TpuAttention { d, tiling, .. } = self.attention;
        let block = tiling.block;
        let height = block.min(ROTATED_ROWS);
        k.fori_loop(k.index(0), k.index(self.attention.blocks()), |i| {
            k.when(step.is(0), || {
                let rows = i.block(block);
                for (x, &values) in self.inputs.v.iter().enumerate() {
                    k.store(self.v, at![x, .., rows], k.load(values, at![0, rows, ..]).transpose());
                }
            });
            for r in 0..block / height {
                let rows = (i * (block / height) + k.index(r)).block(height);
                let maps = || (0..tiling.groups).flat_map(|x| [(x, 0), (x, 1)]);
                k.when(step.is(0), || {
                    let tables = self.inputs.tables(k, rows, 1.0);
                    for (x, t) in maps() {
                        let keys = k.load(self.inputs.k[x], at![0, rows, t * d..(t + 1) * d]);
                        k.store(self.k, at![x, t, rows, ..], rotated_rows(keys, tables));
                    }
                });
                let tables = self.inputs.tables(k, rows, self.attention.scale());
                for head in 0..tiling.heads {
                    for (x, t) in maps() {
                        let columns = (head * 2 + t) * d..(head * 2 + t + 1) * d;
                        let queries = k.load(self.inputs.q[x], at![0, rows, columns]);
                        k.store(self.q, at![x, head, t, rows, ..], rotated_rows(queries, tables));
                    }
                }
            }
        });
    }

    /// The scores of a tile.
    fn multiply<'k>(&self, k: &'k KernelBuilder, x: usize, t: usize, tile: Tile<'k>) {
        let block = self.attention.tiling.block;
        let keys = k.load(self.k, at![x, t, tile.j.block(block), ..]);
        let queries = k.load(self.q, at![x, tile.head, t, tile.i.block(block), ..]);
        let scores = k.matmul_transposed(keys, queries, k.full(Type::f32([block, block]), 0.0));
        let scores = match self.attention.cap2() {
            0.0 => scores,
            cap => (scores * (1.0 / cap)).tanh() * cap,
        };
        let map = &self.maps[x][t];
        k.store(map.scores, at![.., ..], scores);
        k.store(map.highest, at![.., ..], scores.fold_max());
    }

    fn hide<'k>(&self, k: &'k KernelBuilder, row: Scalar<'k>, tile: Tile<'k>) {
        let scores: Vec<_> = self.maps.iter().flatten().map(|map| (map.scores, Some(map.highest))).collect();
        self.inputs.hide(k, self.attention, row, (tile.j, tile.i), &scores);
    }

    /// Turns scores into weights: those of the second map, and those of the difference. A query block's first tile forgets
    /// what came before: its top starts anew, the old output decays to nothing.
    ///
    /// With W the weights and l their sums so far, the kernel sums `U = (W1 - c W2) V` with `c = lambda l1 / l2`, whose end is
    /// l1 O: the difference is taken before it is rounded for the product. When c changes, `U` becomes `U + (c - c') O2'`.
    fn soften<'k>(&self, k: &'k KernelBuilder, x: usize, step: &Step<'k>) {
        let block = self.attention.tiling.block;
        let maps = &self.maps[x];
        let [(top1, decay1, sum1), (top2, decay2, sum2)] = maps.each_ref().map(|map| {
            let scores = k.load(map.scores, at![.., ..]);
            let before = k.load(map.top, at![.., ..]);
            k.store(map.top_before, at![.., ..], before);
            let before = step.first.choose_vector(before.same(HIDDEN), before);
            let top = before.max(k.load(map.highest, at![.., ..]).max_rows());
            let decay = (before - top).exp2();
            k.store(map.top, at![.., ..], top);
            let weights = (scores - top.along(&[block, block])).exp2();
            let sum = k.load(map.sum, at![.., ..]);
            k.store(map.sum_before, at![.., ..], sum);
            let sum = sum * decay.along(&[8, block]) + weights.fold_sum();
            k.store(map.sum, at![.., ..], sum);
            k.store(map.decay, at![.., ..], decay);
            (top, decay, sum.sum_rows())
        });
        let before = k.load(self.ratios[x], at![.., ..]);
        let ratio = sum1 / sum2 * self.inputs.lambda(k);
        k.store(self.ratios[x], at![.., ..], ratio);
        k.store(self.mixes[x], at![.., ..], before * decay1 - ratio * decay2);
        let height = block.min(WEIGHED_ROWS);
        for r in 0..block / height {
            let rows = r * height..(r + 1) * height;
            let weights = |map: &Map, top: Vector<'k>| {
                (k.load(map.scores, at![rows.clone(), ..]) - top.along(&[height, block])).exp2()
            };
            let (weights1, weights2) = (weights(&maps[0], top1), weights(&maps[1], top2));
            let difference = weights1 - weights2 * ratio.along(&[height, block]);
            k.store(maps[0].weights, at![rows.clone(), ..], difference);
            k.store(maps[1].weights, at![rows.clone(), ..], weights2);
        }
    }

    /// Adds the weighted values of key block `j`.
    fn sum_up<'k>(&self, k: &'k KernelBuilder, x: usize, j: Scalar<'k>) {
        let (e, block) = (self.attention.e, self.attention.tiling.block);
        let values = k.load(self.v, at![x, .., j.block(block)]);
        let row = |row: Ref| k.load(row, at![.., ..]).along(&[e, block]);
        let [first, second] = &self.maps[x];
        let out2 = k.load(second.out, at![.., ..]);
        let out1 = k.load(first.out, at![.., ..]) * row(first.decay) + out2 * row(self.mixes[x]);
        k.store(first.out, at![.., ..], k.matmul(values, k.load(first.weights, at![.., ..]), out1));
        let out2 = out2 * row(second.decay);
        k.store(second.out, at![.., ..], k.matmul(values, k.load(second.weights, at![.., ..]), out2));
    }

    /// Writes the results of a query block, a register's width of queries at a time: then the difference of the outputs
    /// stays in registers between its squares and its product (756 bundles a block of two heads instead of 925).
    ///
    /// The first map's output is `U = O1' - lambda (l1 / l2) O2'` of the outputs before division by their sums l: `O = U / l1`.
    fn finish<'k>(&self, k: &'k KernelBuilder, tile: Tile<'k>, sums: Sums) {
        let &TpuAttention { e, eps, narrow, tiling, .. } = self.attention;
        let width = tiling.block.min(LANES);
        for (x, maps) in self.maps.iter().enumerate() {
            let head = tile.head + k.index(x * tiling.heads);
            for c in 0..tiling.block / width {
                let lanes = c * width..(c + 1) * width;
                let rows = (tile.i * (tiling.block / width) + k.index(c)).block(width);
                let [sum1, sum2] = [0, 1].map(|t| {
                    let sum = match sums {
                        Sums::Before => maps[t].sum_before,
                        Sums::Now => maps[t].sum,
                    };
                    k.load(sum, at![.., lanes.clone()]).sum_rows()
                });
                let [u, out2] = [0, 1].map(|t| k.load(maps[t].out, at![.., lanes.clone()]));
                let share = |sum: Vector<'k>| sum.same(1.0) / sum;
                let whole = |row: Vector<'k>| row.along(&[e, width]);
                let (share1, share2) = (share(sum1), share(sum2));
                k.store(self.o2, at![0, head, .., rows], out2 * whole(share2));
                let mean = (u * u).sum_rows() * share1 * share1 * (1.0 / e as f64);
                let factor = (mean + eps).rsqrt();
                let y = (u * whole(share1 * factor)).convert(narrow).transpose();
                k.store(self.y, at![0, rows, head.block(e)], y);
                for (t, sum) in [sum1, sum2].into_iter().enumerate() {
                    let top = match sums {
                        Sums::Before => maps[t].top_before,
                        Sums::Now => maps[t].top,
                    };
                    let lse = (k.load(top, at![.., lanes.clone()]) + sum.log2()) * LN_2;
                    k.store(self.stats, at![0, head, t..t + 1, rows], lse);
                }
                k.store(self.stats, at![0, head, 2..3, rows], factor);
            }
        }
    }
}

/// Which sums belong to the query block that is finished.
#[derive(Clone, Copy)]
enum Sums {
    /// The next block's first tile has been softened already.
    Before,
    /// No tile came after it.
    Now,
}
