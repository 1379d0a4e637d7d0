//! Differential attention on the host, in f32: tiles of keys against blocks of queries, in vectors. Scores are computed
//! transposed, `[keys, queries]`: what belongs to a query is then one lane of a vector, so that no row is ever reduced
//! across lanes, and keys and values enter all products by rows, as they lie in memory.

mod backward;
mod call;
mod forward;

use super::{HeadNorm, Keys};
use crate::cpu::exponential::{exp2, tanh};
use crate::cpu::matrix::{Left, Onto, multiply};
use crate::cpu::rotation::{rotate, rotate_back};
use crate::cpu::scratch::{AlignedVec, LINE, ScratchPool, aligned, turn};
pub(super) use call::{backward_func, forward_func};
use engine::Workers;
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::{LN_2, LOG2_E};
use std::sync::Mutex;

/// Queries of a block, and the width of its score tiles.
const QUERIES: usize = 64;
/// Keys of a tile.
const KEYS: usize = 64;

/// Sizes and options, as in [`DiffAttention`](super::DiffAttention).
#[derive(Clone, Copy, Debug)]
struct Attention {
    /// Sequences b.
    batch: usize,
    /// Their length s.
    seq: usize,
    /// Heads h; each has two maps.
    heads: usize,
    /// Groups g of heads that share keys and values.
    groups: usize,
    /// Width d of a query or key, a multiple of 16.
    head_dim: usize,
    /// Width e of a value, a multiple of 16.
    value_dim: usize,
    /// The maps' keys.
    keys: Keys,
    /// The norm of the heads' outputs.
    norm: HeadNorm,
    /// Soft cap of the logits; 0 is off.
    cap: f32,
}

/// The weight of the second map.
#[derive(Clone, Copy, Debug)]
enum Lambda<'a> {
    /// One for all.
    Scalar(f32),
    /// `[b, s, h]`
    PerRow(&'a [f32]),
}

/// The arguments of the forward pass.
#[derive(Clone, Copy, Debug)]
struct Arguments<'a> {
    /// `[b, s, w]`: queries `(h, t, d)`, keys `(g, t, d)` or `(g, d)`, values `(g, e)`.
    qkv: &'a [f32],
    /// `[s, d/2]`
    cos: &'a [f32],
    /// `[s, d/2]`
    sin: &'a [f32],
    /// The weight of the second map.
    lambda: Lambda<'a>,
    /// `[b, s]`: where each token's document begins.
    starts: &'a [i32],
}

impl Attention {
    fn key_maps(&self) -> usize {
        self.keys.maps()
    }

    /// Columns of q, k and v in qkv.
    fn widths(&self) -> [usize; 3] {
        super::widths(self.heads, self.groups, self.head_dim, self.value_dim, self.keys)
    }

    /// Columns of qkv.
    fn width(&self) -> usize {
        self.widths().iter().sum()
    }

    /// Floats of the rotated keys, `[b, g, t, s, d]`.
    fn rotated_keys(&self) -> usize {
        self.batch * self.groups * self.key_maps() * self.seq * self.head_dim
    }

    /// What a logit is multiplied by.
    fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }
}

/// The positions of a block of queries or a tile of keys.
#[derive(Clone, Copy)]
struct Positions {
    first: usize,
    len: usize,
}

impl Positions {
    /// Spans of `len` that cover the positions from `first` to before `end`.
    fn cover(first: usize, end: usize, len: usize) -> impl Iterator<Item = Positions> {
        (first..end).step_by(len).map(move |first| Positions { first, len: len.min(end - first) })
    }

    fn end(self) -> usize {
        self.first + self.len
    }
}

impl<'a> Arguments<'a> {
    /// cos and sin of a position, `[d/2]`.
    #[inline(always)]
    fn angles(&self, p: &Attention, position: usize) -> [&'a [f32]; 2] {
        let half = p.head_dim / 2;
        [self.cos, self.sin].map(|x| &x[position * half..][..half])
    }

    /// A token's columns of qkv.
    #[inline(always)]
    fn token(&self, p: &Attention, b: usize, position: usize) -> &'a [f32] {
        &self.qkv[(b * p.seq + position) * p.width()..][..p.width()]
    }

    /// Lambda of a head's query.
    fn lambda(&self, p: &Attention, b: usize, position: usize, head: usize) -> f32 {
        match self.lambda {
            Lambda::Scalar(lambda) => lambda,
            Lambda::PerRow(lambda) => lambda[(b * p.seq + position) * p.heads + head],
        }
    }

    /// Writes the rotated keys of all sequences, `[b, g, t, s, d]`.
    fn rotate_keys(&self, p: &Attention, workers: Workers<'_>, keys: &mut [f32]) {
        let (d, maps) = (p.head_dim, p.key_maps());
        let [q_width, ..] = p.widths();
        let mut items = Vec::new();
        for (i, keys) in keys.chunks_exact_mut(p.seq * d).enumerate() {
            let (b, map) = (i / (p.groups * maps), i % (p.groups * maps));
            // Enough of them that a task is worth its start.
            let positions = Positions::cover(0, p.seq, 4 * KEYS);
            items.extend(
                positions
                    .zip(keys.chunks_mut(4 * KEYS * d))
                    .map(|(positions, keys)| (b, map, positions.first, keys)),
            );
        }
        workers.for_each(items, |(b, map, first, keys)| {
            Arch::new().dispatch(RotateKeys { p, x: self, b, first, column: q_width + map * d, keys });
        });
    }
}

/// Rotates some of a sequence's keys.
struct RotateKeys<'a> {
    p: &'a Attention,
    x: &'a Arguments<'a>,
    b: usize,
    /// Position of the first key.
    first: usize,
    /// Where a key begins in its token.
    column: usize,
    /// `[keys, d]`
    keys: &'a mut [f32],
}

impl WithSimd for RotateKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let RotateKeys { p, x, b, first, column, keys } = self;
        for (key, position) in keys.chunks_exact_mut(p.head_dim).zip(first..) {
            let token = x.token(p, b, position);
            rotate(&token[column..][..p.head_dim], x.angles(p, position), 1.0, key);
        }
    }
}

/// A block of queries of one sequence.
struct QueryBlock<'a> {
    p: &'a Attention,
    x: &'a Arguments<'a>,
    /// `[t, s, d]`: the rotated keys of the group.
    keys: &'a [f32],
    b: usize,
    head: usize,
    queries: Positions,
    /// Where each query's document begins; what lies beyond the sequence sees everything.
    starts: [i32; QUERIES],
}

impl<'a> QueryBlock<'a> {
    /// keys: those of all groups.
    fn new(
        p: &'a Attention,
        x: &'a Arguments<'a>,
        keys: &'a [f32],
        b: usize,
        head: usize,
        queries: Positions,
    ) -> QueryBlock<'a> {
        let group = b * p.groups + head / (p.heads / p.groups);
        let group_len = p.key_maps() * p.seq * p.head_dim;
        let mut starts = [0; QUERIES];
        starts[..queries.len].copy_from_slice(&x.starts[b * p.seq + queries.first..][..queries.len]);
        QueryBlock { p, x, keys: &keys[group * group_len..][..group_len], b, head, queries, starts }
    }

    /// The tiles of keys that a query of the block sees.
    fn tiles(&self) -> impl Iterator<Item = Positions> + use<> {
        let first = self.starts[..self.queries.len].iter().min().map_or(0, |&start| start as usize);
        Positions::cover(first / KEYS * KEYS, self.queries.end(), KEYS)
    }

    /// The rotated queries times log2(e) and the scale, by rows `[t, 64, d]`, with zeros beyond the sequence, and by
    /// columns `[t, d, 64]`.
    #[inline(always)]
    fn load(&self, q: &mut [f32], turned: &mut [f32]) {
        let d = self.p.head_dim;
        let scale = self.p.scale() * LOG2_E;
        let maps = q.chunks_exact_mut(QUERIES * d).zip(turned.chunks_exact_mut(d * QUERIES));
        for (t, (q, turned)) in maps.enumerate() {
            for (i, q) in q.chunks_exact_mut(d).take(self.queries.len).enumerate() {
                let position = self.queries.first + i;
                let token = self.x.token(self.p, self.b, position);
                rotate(&token[(2 * self.head + t) * d..][..d], self.x.angles(self.p, position), scale, q);
            }
            q[self.queries.len * d..].fill(0.0);
            turn(q, d, turned);
        }
    }

    /// Lambda of each query.
    fn lambdas(&self) -> [f32; QUERIES] {
        let mut lambdas = [0.0; QUERIES];
        for (i, lambda) in lambdas.iter_mut().enumerate().take(self.queries.len) {
            *lambda = self.x.lambda(self.p, self.b, self.queries.first + i, self.head);
        }
        lambdas
    }

    /// Rotated keys of map `t` in a tile, `[keys, d]`.
    #[inline(always)]
    fn key_tile(&self, t: usize, tile: Positions) -> &'a [f32] {
        let (d, seq) = (self.p.head_dim, self.p.seq);
        let map = t.min(self.p.key_maps() - 1);
        &self.keys[(map * seq + tile.first) * d..][..tile.len * d]
    }

    /// Values of a tile, `[keys, e]` with rows as far apart as those of qkv.
    #[inline(always)]
    fn values(&self, tile: Positions) -> &'a [f32] {
        let p = self.p;
        let [q_width, k_width, _] = p.widths();
        let column = q_width + k_width + self.head / (p.heads / p.groups) * p.value_dim;
        &self.x.qkv[(self.b * p.seq + tile.first) * p.width() + column..]
    }

    /// Logits of map `t` times log2(e), `[keys, 64]`, with what is hidden at minus infinity. turned: the rotated queries
    /// `[t, d, 64]`, times log2(e) and the scale.
    #[inline(always)]
    fn scores<S: Simd>(&self, simd: S, t: usize, tile: Positions, turned: &[f32], scores: &mut [f32]) {
        let d = self.p.head_dim;
        let keys = Left::by_rows(self.key_tile(t, tile), d);
        multiply(simd, keys, &turned[t * d * QUERIES..][..d * QUERIES], scores, QUERIES, Onto::Zero);
        if self.p.cap != 0.0 {
            let inside = simd.splat_f32s(LN_2 / self.p.cap);
            let outside = simd.splat_f32s(self.p.cap * LOG2_E);
            for score in S::as_mut_simd_f32s(scores).0 {
                *score = simd.mul_f32s(tanh(simd, simd.mul_f32s(*score, inside)), outside);
            }
        }
        if self.hides(tile) {
            self.hide(tile, scores);
        }
    }

    /// Whether a query does not see all of a tile.
    fn hides(&self, tile: Positions) -> bool {
        let last = self.starts[..self.queries.len].iter().max().map_or(0, |&start| start as usize);
        tile.end() > self.queries.first + 1 || tile.first < last
    }

    /// Sets the scores `[keys, 64]` of hidden keys to minus infinity.
    #[inline(always)]
    fn hide(&self, tile: Positions, scores: &mut [f32]) {
        for (j, scores) in scores.chunks_exact_mut(QUERIES).enumerate() {
            let key = (tile.first + j) as i32;
            let before = key - self.queries.first as i32;
            for (i, (score, start)) in scores.iter_mut().zip(&self.starts).enumerate() {
                let visible = key >= *start && i as i32 >= before;
                *score = if visible { *score } else { f32::NEG_INFINITY };
            }
        }
    }
}
