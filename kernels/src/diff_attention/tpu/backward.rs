//! The native backward kernel: scores computed again, all six gradients in one pass, sums over a group's heads on the chip.
//!
//! With `P = exp(S - LSE)`, `A = P1 - lambda P2`, `E1 = P1 (dA - D1)` and `E2 = lambda P2 (dA - D2)`, which is minus the
//! second map's gradient: `dV += A dO`, `dK += E Q`, `dQ += K E` for each tile ([`gradients`](crate::gradients)). The last two take E as the
//! factor that stays in the matrix unit, so that it is never transposed.

use super::{Inputs, IsScanned, ScannedArrays, Tables, Tile, TpuAttention, each_tile};
use crate::tile::{CostEstimate, GridSpec, KernelBuilder, Ref, Scalar, Slice, TileKernel, at};
use engine::{CustomCall, DType, InPlace, Type};
use std::f64::consts::{LN_2, LOG2_E};
use std::sync::Arc;

/// Scratch of one head in lockstep. Rows are keys, lanes queries.
struct Head {
    /// Scores of the two maps, and dA, of the tile in work: `[block, block]`.
    scores: [Ref; 2],
    da: Ref,
    /// A and E of the tile before, narrow.
    a: Ref,
    e: [Ref; 2],
    /// Gradient of the query block so far, turned, `[2, d, block]`.
    dq: Ref,
}

/// Columns of a result.
#[derive(Clone, Copy)]
struct Columns {
    result: Ref,
    first: usize,
}

impl Columns {
    /// Block `number` of blocks of `width` columns.
    fn block<'k>(self, k: &'k KernelBuilder, number: Scalar<'k>, width: usize) -> Slice<'k> {
        (number + k.index(self.first / width)).block(width)
    }
}

struct BackwardKernel<'t> {
    attention: &'t TpuAttention,
    inputs: Inputs,
    /// Blocks of the forward kernel's results, and dy: heads of the step.
    y: Ref,
    o2: Ref,
    stats: Ref,
    dy: Ref,
    /// Before a gradient is written, its place holds what is needed until then: dq's dO, dk's rotated keys.
    dq: Columns,
    dk: Columns,
    dv: Columns,
    /// D2 of each row, `[1, heads, 1, s]`.
    d2: Ref,
    /// Turned and rotated: `[groups, heads, 2, d, s]`, `[groups, 2, d, s]`, groups in lockstep.
    turned_q: Ref,
    turned_k: Ref,
    /// Sums: `[groups, 2, d, s]`, turned, and `[groups, s, e]`.
    sum_k: Ref,
    sum_v: Ref,
    /// LSE1, LSE2 to base 2, D1, D2: `[groups, heads, 4, s]`.
    rows: Ref,
    heads: Vec<Head>,
}

/// The call, which can read what the forward kernel left in place.
pub(super) fn call(attention: &TpuAttention) -> CustomCall {
    let attention = *attention;
    let qkv = attention.qkv_operands();
    let [y, _dy, o2, stats] = [0, 1, 2, 3].map(|i| qkv.end + i);
    let in_place = InPlace {
        operands: qkv.clone().chain([y, o2, stats]).collect(),
        results: Vec::new(),
        call: Arc::new(move |scanned| {
            let read = |operand: usize| IsScanned::from(scanned.operands.contains(&operand));
            let scanned = ScannedArrays {
                layers: scanned.length,
                qkv: read(qkv.start),
                y: read(y),
                o2: read(o2),
                stats: read(stats),
            };
            program(&TpuAttention { scanned, ..attention }).custom_call()
        }),
    };
    CustomCall { in_place: Some(in_place), ..program(&attention).custom_call() }
}

/// Operands: those of the forward kernel, then y, dy, O2 and statistics. Results: d qkv whole, or dq, dk and dv
/// ([`parts`]), then D2.
pub(super) fn program(attention: &TpuAttention) -> TileKernel {
    let &TpuAttention { batch, seq, heads, groups, d, e, tiling, narrow, .. } = attention;
    let mut spec = GridSpec::new("diff_attention_backward", &attention.grid());
    let inputs = Inputs::new(attention, &mut spec, Tables::Turned);
    let (steps, width) = (attention.steps(), tiling.groups * tiling.heads);
    let scanned = attention.scanned;
    let whole_rows = Type::new(narrow, [batch, seq, heads * e]);
    let [y, o2, stats] = attention.results();
    let mut rows_input = |array: Type, is_scanned: IsScanned| {
        spec.input(array, &[1, seq, width * e], |k, grid| {
            let sequence = inputs.sequence(k, grid[0], attention, is_scanned);
            vec![sequence, k.number(0), grid[1] * steps + grid[2]]
        })
    };
    let (y, dy) = (rows_input(y, scanned.y), rows_input(whole_rows.clone(), IsScanned::No));
    let mut heads_input = |array: Type, is_scanned: IsScanned| {
        spec.input(array.clone(), &[1, width, array.shape[2], seq], |k, grid| {
            let sequence = inputs.sequence(k, grid[0], attention, is_scanned);
            vec![sequence, grid[1] * steps + grid[2], k.number(0), k.number(0)]
        })
    };
    let o2 = heads_input(o2, scanned.o2);
    let stats = heads_input(stats, scanned.stats);
    let (dq, dk, dv) = if parts(attention) {
        let mut part = |columns: usize, block: usize, per_step: bool| {
            let result =
                spec.output(Type::new(narrow, [batch, seq, columns]), &[1, seq, block], |k, grid| {
                    vec![grid[0], k.number(0), if per_step { grid[1] * steps + grid[2] } else { grid[1] }]
                });
            Columns { result, first: 0 }
        };
        (
            part(heads * 2 * d, width * 2 * d, true),
            part(groups * 2 * d, tiling.groups * 2 * d, false),
            part(groups * e, tiling.groups * e, false),
        )
    } else {
        let qkv = attention.qkv();
        let result = spec
            .output(qkv.clone(), &[1, seq, qkv.shape[2]], |k, grid| vec![grid[0], k.number(0), k.number(0)]);
        let at = |first: usize| Columns { result, first };
        (at(0), at(2 * d * heads), at(2 * d * (heads + groups)))
    };
    let d2 = spec.output(Type::f32([batch, heads, 1, seq]), &[1, width, 1, seq], |k, grid| {
        vec![grid[0], grid[1] * steps + grid[2], k.number(0), k.number(0)]
    });
    let turned_q = spec.scratch(Type::new(narrow, [tiling.groups, tiling.heads, 2, d, seq]));
    let turned_k = spec.scratch(Type::new(narrow, [tiling.groups, 2, d, seq]));
    let sum_k = spec.scratch(Type::f32([tiling.groups, 2, d, seq]));
    let sum_v = spec.scratch(Type::f32([tiling.groups, seq, e]));
    let rows = spec.scratch(Type::f32([tiling.groups, tiling.heads, 4, seq]));
    let b = tiling.block;
    let head = |spec: &mut GridSpec| {
        let wide = |spec: &mut GridSpec| spec.scratch(Type::f32([b, b]));
        let small = |spec: &mut GridSpec| spec.scratch(Type::new(narrow, [b, b]));
        Head {
            scores: [wide(spec), wide(spec)],
            da: wide(spec),
            a: small(spec),
            e: [small(spec), small(spec)],
            dq: spec.scratch(Type::f32([2, d, b])),
        }
    };
    let in_lockstep = (0..tiling.groups).map(|_| head(&mut spec)).collect();
    let visible = (batch * heads * seq * (seq + b) / 2) as u64;
    spec.cost(CostEstimate {
        flops: visible * (12 * d + 4 * e) as u64,
        transcendentals: 2 * visible,
        bytes: (2 * attention.qkv().bytes() + 3 * whole_rows.bytes()) as u64,
    });
    let backward = BackwardKernel {
        attention,
        inputs,
        y,
        o2,
        stats,
        dy,
        dq,
        dk,
        dv,
        d2,
        turned_q,
        turned_k,
        sum_k,
        sum_v,
        rows,
        heads: in_lockstep,
    };
    spec.build(|k, grid| backward.code(k, grid))
}

/// Whether dq, dk and dv are results of their own: a step of the grid then writes only its own heads' columns. With all
/// heads in one step, d qkv is one result.
pub(super) fn parts(attention: &TpuAttention) -> bool {
    attention.tiling.groups < attention.groups || attention.steps() > 1
}

impl BackwardKernel<'_> {
    fn code<'k>(&self, k: &'k KernelBuilder, grid: &[Scalar<'k>]) {
        let row = grid[0].to_index();
        k.when(grid[2].is(0), || self.start_groups(k));
        self.start_heads(k);
        let start = Tile::start(k, &self.inputs, self.attention, row);
        let each = || 0..self.heads.len();
        each().for_each(|x| self.multiply(k, x, start));
        self.hide(k, row, start);
        each_tile(k, &self.inputs, self.attention, row, |step| {
            for x in each() {
                self.sum_up(k, x, step.before);
                self.weigh(k, x, step.now);
                self.multiply(k, x, step.after);
            }
            self.hide(k, row, step.after);
            k.when(step.first & k.index(0).lt(step.number), || self.finish_queries(k, step.before));
        });
        let end = Tile::end(k, self.attention);
        each().for_each(|x| self.sum_up(k, x, end));
        self.finish_queries(k, end);
        k.when(grid[2].is(self.attention.steps() - 1), || self.finish_groups(k));
    }

    /// Where a head's columns of dq are, `width` wide; `map` counts within.
    fn queries<'k>(&self, k: &'k KernelBuilder, x: usize, head: Scalar<'k>, map: Option<usize>) -> Slice<'k> {
        let head = head + k.index(x * self.attention.tiling.heads);
        match map {
            None => self.dq.block(k, head, self.attention.e),
            Some(t) => self.dq.block(k, head * 2 + k.index(t), self.attention.d),
        }
    }

    fn keys<'k>(&self, k: &'k KernelBuilder, x: usize, t: usize) -> Slice<'k> {
        self.dk.block(k, k.index(2 * x + t), self.attention.d)
    }

    /// Keys turned and rotated, both ways round; sums at zero.
    fn start_groups(&self, k: &KernelBuilder) {
        let &TpuAttention { d, e, tiling, narrow, .. } = self.attention;
        let block = tiling.block;
        k.fori_loop(k.index(0), k.index(self.attention.blocks()), |i| {
            let rows = i.block(block);
            for x in 0..tiling.groups {
                for t in 0..2 {
                    let turned = k.load(self.inputs.k[x], at![0, rows, t * d..(t + 1) * d]).transpose();
                    let halves = self.inputs.rotated(k, turned, i, 1.0, 1.0);
                    for (part, rotated) in halves.into_iter().enumerate() {
                        let half = part * d / 2..(part + 1) * d / 2;
                        k.store(self.turned_k, at![x, t, half, rows], rotated);
                    }
                    let back = k.load(self.turned_k, at![x, t, .., rows]).transpose();
                    k.store(self.dk.result, at![0, rows, self.keys(k, x, t)], back.convert(narrow));
                    k.store(self.sum_k, at![x, t, .., rows], k.full(Type::f32([d, block]), 0.0));
                }
                k.store(self.sum_v, at![x, rows, ..], k.full(Type::f32([block, e]), 0.0));
            }
        });
    }

    /// Queries turned and rotated; dO from dy; row statistics.
    ///
    /// `y = f O` with `f = 1 / sqrt(mean(O^2) + eps)`: `dO = f (dy - y mean(y dy))`, `D2 = rowsum(dO O2)` and
    /// `D1 = lambda D2 + rowsum(dO O) = lambda D2 + e eps f^2 mean(y dy)`.
    fn start_heads(&self, k: &KernelBuilder) {
        let &TpuAttention { d, e, eps, tiling, narrow, .. } = self.attention;
        let (block, blocks) = (tiling.block, self.attention.blocks());
        let lambda = self.inputs.lambda(k);
        k.fori_loop(k.index(0), k.index(tiling.heads * blocks), |number| {
            let (head, i) = (number / blocks, number % blocks);
            let rows = i.block(block);
            for x in 0..tiling.groups {
                for t in 0..2 {
                    let columns = (head * 2 + k.index(t)).block(d);
                    let turned = k.load(self.inputs.q[x], at![0, rows, columns]).transpose();
                    let halves = self.inputs.rotated(k, turned, i, 1.0, self.attention.scale());
                    for (part, rotated) in halves.into_iter().enumerate() {
                        let half = part * d / 2..(part + 1) * d / 2;
                        k.store(self.turned_q, at![x, head, t, half, rows], rotated);
                    }
                }
                let step_head = head + k.index(x * tiling.heads);
                let turned =
                    |array| k.load(array, at![0, rows, step_head.block(e)]).transpose().convert(DType::F32);
                let (y, dy) = (turned(self.y), turned(self.dy));
                let stat = |t: usize| k.load(self.stats, at![0, step_head, t..t + 1, rows]);
                let factor = stat(2);
                let mean = (y * dy).sum_rows() * (1.0 / e as f64);
                let d_out = (dy - y * mean.along(&[e, block])) * factor.along(&[e, block]);
                let o2 = k.load(self.o2, at![0, step_head, .., rows]).convert(DType::F32);
                let d2 = (d_out * o2).sum_rows();
                let d1 = d2 * lambda + mean * factor * factor * (e as f64 * eps);
                for (t, row) in [stat(0) * LOG2_E, stat(1) * LOG2_E, d1, d2].into_iter().enumerate() {
                    k.store(self.rows, at![x, head, t..t + 1, rows], row);
                }
                k.store(self.d2, at![0, step_head, .., rows], d2);
                let d_out = d_out.convert(narrow).transpose();
                k.store(self.dq.result, at![0, rows, self.queries(k, x, head, None)], d_out);
            }
        });
        for head in &self.heads {
            let nothing = k.full(Type::new(narrow, [block, block]), 0.0);
            for weights in [head.a, head.e[0], head.e[1]] {
                k.store(weights, at![.., ..], nothing);
            }
            k.store(head.dq, at![.., .., ..], k.full(Type::f32([2, d, block]), 0.0));
        }
    }

    /// The scores of a tile, and dA = V dO.
    fn multiply<'k>(&self, k: &'k KernelBuilder, x: usize, tile: Tile<'k>) {
        let block = self.attention.tiling.block;
        let (rows, columns) = (tile.j.block(block), tile.i.block(block));
        let nothing = k.full(Type::f32([block, block]), 0.0);
        for t in 0..2 {
            let keys = k.load(self.dk.result, at![0, rows, self.keys(k, x, t)]);
            let queries = k.load(self.turned_q, at![x, tile.head, t, .., columns]);
            let scores = k.matmul(keys, queries, nothing);
            let scores = match self.attention.cap2() {
                0.0 => scores,
                cap => (scores * (1.0 / cap)).tanh() * cap,
            };
            k.store(self.heads[x].scores[t], at![.., ..], scores);
        }
        let values = k.load(self.inputs.v[x], at![0, rows, ..]);
        let d_out = k.load(self.dq.result, at![0, columns, self.queries(k, x, tile.head, None)]);
        k.store(self.heads[x].da, at![.., ..], k.matmul_transposed(values, d_out, nothing));
    }

    fn hide<'k>(&self, k: &'k KernelBuilder, row: Scalar<'k>, tile: Tile<'k>) {
        let scores: Vec<_> =
            self.heads.iter().flat_map(|head| head.scores).map(|scores| (scores, None)).collect();
        self.inputs.hide(k, self.attention, row, (tile.j, tile.i), &scores);
    }

    /// A and E of a tile.
    fn weigh<'k>(&self, k: &'k KernelBuilder, x: usize, tile: Tile<'k>) {
        let block = self.attention.tiling.block;
        let head = &self.heads[x];
        let row = |t: usize| {
            k.load(self.rows, at![x, tile.head, t..t + 1, tile.i.block(block)]).along(&[block, block])
        };
        let scores = head.scores.map(|scores| k.load(scores, at![.., ..]));
        let p1 = (scores[0] - row(0)).exp2();
        let p2 = (scores[1] - row(1)).exp2() * self.inputs.lambda(k);
        let da = k.load(head.da, at![.., ..]);
        k.store(head.a, at![.., ..], p1 - p2);
        for (t, p) in [p1, p2].into_iter().enumerate() {
            let e = p * (da - row(2 + t));
            let e = match self.attention.cap2() {
                0.0 => e,
                cap => {
                    let tanh = scores[t].max(scores[t].same(-cap)) * (1.0 / cap);
                    e * (tanh.same(1.0) - tanh * tanh)
                }
            };
            k.store(head.e[t], at![.., ..], e);
        }
    }

    /// Adds what a tile contributes.
    fn sum_up<'k>(&self, k: &'k KernelBuilder, x: usize, tile: Tile<'k>) {
        let block = self.attention.tiling.block;
        let (rows, columns) = (tile.j.block(block), tile.i.block(block));
        let head = &self.heads[x];
        let d_out = k.load(self.dq.result, at![0, columns, self.queries(k, x, tile.head, None)]);
        let sum = k.load(self.sum_v, at![x, rows, ..]);
        k.store(self.sum_v, at![x, rows, ..], k.matmul(k.load(head.a, at![.., ..]), d_out, sum));
        for t in 0..2 {
            let e = k.load(head.e[t], at![.., ..]);
            let queries = k.load(self.turned_q, at![x, tile.head, t, .., columns]);
            let sum = k.load(self.sum_k, at![x, t, .., rows]);
            k.store(self.sum_k, at![x, t, .., rows], k.matmul_transposed(queries, e, sum));
            let keys = k.load(self.turned_k, at![x, t, .., rows]);
            let sum = k.load(head.dq, at![t, .., ..]);
            k.store(head.dq, at![t, .., ..], k.matmul(keys, e, sum));
        }
    }

    /// Writes dq of a query block and begins the next.
    fn finish_queries<'k>(&self, k: &'k KernelBuilder, tile: Tile<'k>) {
        let &TpuAttention { d, tiling, narrow, .. } = self.attention;
        for (x, head) in self.heads.iter().enumerate() {
            for (t, sign) in [1.0, -1.0].into_iter().enumerate() {
                let factor = sign / (d as f64).sqrt();
                let turned = k.load(head.dq, at![t, .., ..]);
                let halves = self.inputs.rotated(k, turned, tile.i, -1.0, factor);
                // Turned back through scratch: the halves are put together there.
                for (part, rotated) in halves.into_iter().enumerate() {
                    k.store(head.dq, at![t, part * d / 2..(part + 1) * d / 2, ..], rotated);
                }
                let back = k.load(head.dq, at![t, .., ..]).convert(narrow).transpose();
                let place = at![0, tile.i.block(tiling.block), self.queries(k, x, tile.head, Some(t))];
                k.store(self.dq.result, place, back);
                k.store(head.dq, at![t, .., ..], turned.same(0.0));
            }
        }
    }

    /// Writes dk and dv.
    fn finish_groups(&self, k: &KernelBuilder) {
        let &TpuAttention { d, e, tiling, narrow, .. } = self.attention;
        let block = tiling.block;
        k.fori_loop(k.index(0), k.index(self.attention.blocks()), |i| {
            let rows = i.block(block);
            for x in 0..tiling.groups {
                for (t, sign) in [1.0, -1.0].into_iter().enumerate() {
                    let turned = k.load(self.sum_k, at![x, t, .., rows]);
                    // The queries carry log2(e) / sqrt(d).
                    let halves = self.inputs.rotated(k, turned, i, -1.0, sign * LN_2);
                    for (part, rotated) in halves.into_iter().enumerate() {
                        k.store(self.sum_k, at![x, t, part * d / 2..(part + 1) * d / 2, rows], rotated);
                    }
                    let back = k.load(self.sum_k, at![x, t, .., rows]).convert(narrow).transpose();
                    k.store(self.dk.result, at![0, rows, self.keys(k, x, t)], back);
                }
                let columns = self.dv.block(k, k.index(x), e);
                k.store(self.dv.result, at![0, rows, columns], k.load(self.sum_v, at![x, rows, ..]));
            }
        });
    }
}
