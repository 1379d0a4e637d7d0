//! The native form: one pass over the cache's blocks, with two online softmaxes for each group of heads.
//!
//! The queries of a group are one matrix: heads and tokens of the first map, then those of the second, each map's rows
//! filled up to whole registers. Where the maps have keys of their own, these lie below one another in the cache, and the
//! queries stand in the blocks of a diagonal: then both maps' scores are one product, whose depth fills the matrix unit.
//! Scores lie with slots along lanes. Blocks after a sequence's last filled slot are neither fetched nor computed.

use super::{CachedAttention, Sizes};
use crate::HeadNorm;
use crate::tile::{CostEstimate, DimensionSemantics, GridSpec, KernelBuilder, Ref, Scalar, TileKernel, at};
use engine::{DType, Func, Tensor, Type};
use std::f64::consts::LOG2_E;

/// What is done to a hidden score: finite, because infinities would meet in a difference.
const HIDDEN: f64 = -1e30;

/// Queries of a map, `n r`, that the native form takes at most: scores of more do not stay in registers.
const MOST_QUERIES: usize = 16;

/// Rows and columns of a register.
const SUBLANES: usize = 8;
const LANES: usize = 128;

/// A kernel's shapes and block.
#[derive(Clone, Copy, Debug)]
struct TpuCachedAttention {
    sizes: Sizes,
    norm: HeadNorm,
    cap: f64,
    narrow: DType,
    /// Slots of a block.
    block: usize,
    /// Rows of a map's queries: `n r`, filled up to whole registers.
    rows: usize,
}

/// What the kernel addresses: blocks of one sequence and some of its slots, and scratch.
struct Refs {
    /// Block of the last slot that a sequence's tokens see, `[b]`.
    last_block: Ref,
    /// Last slot that each query sees, `[1, 2 rows, 1]`.
    last_slot: Ref,
    /// `[1, g, rows, 1]`
    lambda: Ref,
    /// `[1, g, 2 rows, maps d]`
    q: Ref,
    /// `[g, maps d, block]`
    keys: Ref,
    /// Of each group the halves, `[1, block, e/2]`: of one piece each, which makes the plainest transfers.
    values: Vec<Ref>,
    /// `[1, g, 2, rows, e/2]`
    y: Ref,
    /// Scratch: the largest score so far and the sum of weights, `[g, 2 rows, 1]` each, and the output so far, in two
    /// halves of its width, `[g, 2, 2 rows, e/2]`.
    top: Ref,
    sum: Ref,
    out: Ref,
}

/// The kernel on a TPU; None if the native form does not cover it.
pub(super) fn func(kernel: &CachedAttention, args: &[Type]) -> Option<Func> {
    let attention = TpuCachedAttention::new(kernel, args)?;
    Some(Func::build(args, |f, args| {
        let y = f.custom_call(attention.kernel().custom_call(), &attention.operands(args));
        vec![attention.result(y[0])]
    }))
}

impl TpuCachedAttention {
    /// args: those of the kernel. None if the native form does not cover them.
    fn new(kernel: &CachedAttention, args: &[Type]) -> Option<TpuCachedAttention> {
        let sizes = CachedAttention::sizes(args).ok()?;
        let block = kernel.block.or_else(|| choose(sizes))?;
        let narrow = args[0].dtype;
        let covered = sizes.slots.is_multiple_of(block)
            && sizes.n * sizes.r <= MOST_QUERIES
            && matches!(narrow, DType::Bf16 | DType::F32);
        let rows = (sizes.n * sizes.r).next_multiple_of(SUBLANES);
        covered.then_some(TpuCachedAttention {
            sizes,
            norm: kernel.norm,
            cap: kernel.cap,
            narrow,
            block,
            rows,
        })
    }

    /// The operands of [`TpuCachedAttention::kernel`], from the kernel's arguments.
    fn operands<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let &[q, keys, values, slot, lambda] = args else { unreachable!("checked when called") };
        let f = q.builder();
        let Sizes { b, n, g, r, d, slots, key_maps, .. } = self.sizes;
        let filling = self.rows - n * r;
        let q = q.reshape([b, n, g, r, 2, d]).transpose(&[0, 2, 4, 1, 3, 5]).reshape([b, g, 2, n * r, d]);
        let q = q.pad(0.0, &[0; 5], &[0, 0, 0, filling, 0]);
        let q = match key_maps {
            1 => q,
            _ => {
                let map = |t: usize| q.slice_axis(2, t, t + 1);
                let first = map(0).pad(0.0, &[0; 5], &[0, 0, 0, 0, d]);
                Tensor::concatenate(&[first, map(1).pad(0.0, &[0, 0, 0, 0, d], &[0; 5])], 2)
            }
        };
        let token = f.iota(Type::i32([b, 2, self.rows]), 2) / r as i32;
        let lambda = match lambda.rank() {
            0 => lambda.broadcast_in_dim([b, g, n * r], &[]),
            _ => lambda.reshape([b, n, g, r]).transpose(&[0, 2, 1, 3]).reshape([b, g, n * r]),
        };
        let mut operands = vec![
            (slot + (n - 1) as i32) / self.block as i32,
            (token + slot.along(token, &[0])).reshape([b, 2 * self.rows, 1]),
            lambda.pad(0.0, &[0; 3], &[0, 0, filling]).reshape([b, g, self.rows, 1]),
            q.reshape([b, g, 2 * self.rows, key_maps * d]),
            keys.reshape([b * g, key_maps * d, slots]),
        ];
        operands.extend(vec![values; 2 * g]);
        operands
    }

    /// The kernel's result, from that of [`TpuCachedAttention::kernel`].
    fn result<'f>(&self, y: Tensor<'f>) -> Tensor<'f> {
        let Sizes { b, n, g, r, e, .. } = self.sizes;
        let y = y.slice_axis(3, 0, n * r).reshape([b, g, 2, n, r, e / 2]);
        y.transpose(&[0, 3, 1, 4, 2, 5]).reshape([b, n, g * r, e])
    }

    /// Operands: last blocks, last slots, lambda, queries, keys, and values for each of their block specs. Result: y
    /// `[b, g, 2, rows, e/2]` f32.
    fn kernel(&self) -> TileKernel {
        let &TpuCachedAttention { sizes, narrow, block, rows, .. } = self;
        let Sizes { b, n, g, r, d, e, slots, key_maps } = sizes;
        let steps = slots / block;
        let mut spec = GridSpec::new(
            "cached_attention",
            &[(b, DimensionSemantics::Arbitrary), (steps, DimensionSemantics::Arbitrary)],
        );
        let last_block = spec.scalar_prefetch(b);
        let last_slot = spec.input(Type::i32([b, 2 * rows, 1]), &[1, 2 * rows, 1], |k, grid| {
            vec![grid[0], k.number(0), k.number(0)]
        });
        let lambda = spec.input(Type::f32([b, g, rows, 1]), &[1, g, rows, 1], sequence_block);
        let depth = key_maps * d;
        let q = Type::new(narrow, [b, g, 2 * rows, depth]);
        let q = spec.input(q, &[1, g, 2 * rows, depth], sequence_block);
        let keys = Type::new(narrow, [b * g, depth, slots]);
        let keys = spec.input(keys, &[g, depth, block], |k, grid| {
            vec![grid[0], k.number(0), filled(k, last_block, grid)]
        });
        spec.left_in_place();
        let values = Type::new(narrow, [b * g * 2, slots, e / 2]);
        let values = (0..2 * g).map(|i| {
            let half = spec.input(values.clone(), &[1, block, e / 2], |k, grid| {
                let place = grid[0] * (2 * g) + k.number(i as i32);
                vec![place, filled(k, last_block, grid), k.number(0)]
            });
            spec.left_in_place();
            half
        });
        let values = values.collect();
        let y = spec.output(Type::f32([b, g, 2, rows, e / 2]), &[1, g, 2, rows, e / 2], |k, grid| {
            vec![grid[0], k.number(0), k.number(0), k.number(0), k.number(0)]
        });
        let [top, sum] = [(); 2].map(|()| spec.scratch(Type::f32([g, 2 * rows, 1])));
        let out = spec.scratch(Type::f32([g, 2, 2 * rows, e / 2]));
        let refs = Refs { last_block, last_slot, lambda, q, keys, values, y, top, sum, out };
        let scores = b * g * r * n * 2 * slots;
        spec.cost(CostEstimate {
            flops: (2 * scores * (d + e)) as u64,
            transcendentals: scores as u64,
            bytes: (b * g * slots * (key_maps * d + e) * narrow.size()) as u64,
        });
        spec.build(|k, grid| self.code(k, grid, &refs))
    }

    fn code<'k>(&self, k: &'k KernelBuilder, grid: &[Scalar<'k>], refs: &Refs) {
        let (j, last) = (grid[1], k.scalar(refs.last_block, &[grid[0].to_index()]));
        let groups = 0..self.sizes.g;
        k.when(j.is(0), || {
            let shape = [self.sizes.g, 2 * self.rows, 1];
            k.store(refs.top, at![.., .., ..], k.full(Type::f32(shape), HIDDEN));
            k.store(refs.sum, at![.., .., ..], k.full(Type::f32(shape), 0.0));
            let shape = [self.sizes.g, 2, 2 * self.rows, self.sizes.e / 2];
            k.store(refs.out, at![.., .., .., ..], k.full(Type::f32(shape), 0.0));
        });
        k.when(j.le(last), || groups.clone().for_each(|x| self.attend(k, j, refs, x)));
        k.when(j.eq(last), || groups.for_each(|x| self.finish(k, refs, x)));
    }

    /// Adds block `j` of slots to what group `x` has seen.
    fn attend<'k>(&self, k: &'k KernelBuilder, j: Scalar<'k>, refs: &Refs, x: usize) {
        let shape = [2 * self.rows, self.block];
        let half = [2 * self.rows, self.sizes.e / 2];
        let nothing = k.full(Type::f32(shape), 0.0);
        let q = k.load(refs.q, at![0, x, .., ..]);
        // In powers of two.
        let scores = k.matmul(q, k.load(refs.keys, at![x, .., ..]), nothing);
        let scores = scores * (LOG2_E / (self.sizes.d as f64).sqrt());
        let scores = match self.cap * LOG2_E {
            0.0 => scores,
            cap => (scores * (1.0 / cap)).tanh() * cap,
        };
        let last = k.load(refs.last_slot, at![0, .., ..]) - j * self.block;
        let visible = k.iota(&shape, 1).le(last.along(&shape));
        let scores = visible.select(scores, scores.same(HIDDEN));
        let before = k.load(refs.top, at![x, .., ..]);
        let top = before.max(scores.max_columns());
        let decay = (before - top).exp2();
        let weights = (scores - top.along(&shape)).exp2();
        k.store(refs.top, at![x, .., ..], top);
        let sum = k.load(refs.sum, at![x, .., ..]);
        k.store(refs.sum, at![x, .., ..], sum * decay + weights.sum_columns());
        let weights = weights.convert(self.narrow);
        for h in 0..2 {
            let out = k.load(refs.out, at![x, h, .., ..]) * decay.along(&half);
            let values = k.load(refs.values[2 * x + h], at![0, .., ..]);
            k.store(refs.out, at![x, h, .., ..], k.matmul(weights, values, out));
        }
    }

    /// Writes what group `x` has seen: `O = O1 / l1 - lambda O2 / l2` of the outputs and sums so far.
    fn finish(&self, k: &KernelBuilder, refs: &Refs, x: usize) {
        let half = [self.rows, self.sizes.e / 2];
        let sum = k.load(refs.sum, at![x, .., ..]);
        let share = sum.same(1.0) / sum;
        let lambda = k.load(refs.lambda, at![0, x, .., ..]);
        let maps = [0..self.rows, self.rows..2 * self.rows];
        let out = [0, 1].map(|h| {
            let out = k.load(refs.out, at![x, h, .., ..]);
            let [out1, out2] = maps.clone().map(|map| out.rows(map.clone()) * share.rows(map).along(&half));
            out1 - out2 * lambda.along(&half)
        });
        let factor = match self.norm {
            HeadNorm::Rms { eps } => {
                let [squares1, squares2] = out.map(|out| (out * out).sum_columns());
                ((squares1 + squares2) * (1.0 / self.sizes.e as f64) + eps).rsqrt()
            }
            HeadNorm::None => lambda.same(1.0),
        };
        for (h, out) in out.into_iter().enumerate() {
            k.store(refs.y, at![0, x, h, .., ..], out * factor.along(&half));
        }
    }
}

/// A sequence's part of `[b, .., .., ..]`.
fn sequence_block<'k>(k: &'k KernelBuilder, grid: &[Scalar<'k>]) -> Vec<Scalar<'k>> {
    vec![grid[0], k.number(0), k.number(0), k.number(0)]
}

/// The step's block, or the sequence's last one with a filled slot: what stays in place is not fetched again.
fn filled<'k>(k: &'k KernelBuilder, last_block: Ref, grid: &[Scalar<'k>]) -> Scalar<'k> {
    let last = k.scalar(last_block, &[grid[0].to_index()]);
    grid[1].le(last).choose(grid[1], last)
}

/// The most slots of a block. One layer of `1b`, 8 sequences, by libtpu 0.0.52, 2026-11-23, `cargo run -p kernels --example
/// v6e -- [--parts] cached`: bundles of a block's step and its transfer at 936 bytes a cycle; the profile's cycles of the
/// kernel over whole caches of 2048 and 8192 slots; vector memory. One and two new tokens cost the same. All sequences had one
/// length then; with a length of each, blocks of 512 and 1024 slots take 362 and 667 bundles (2026-11-30).
///
/// | slots | bundles | transfer | 2048 | 8192 | KiB |
/// |---|---|---|---|---|---|
/// | 512 | 541 | 1,120 | 55,148 | 214,796 | 2,112 |
/// | **1024** | 846 | 2,240 | 33,453 | 125,932 | 4,160 |
/// | 2048 | 1,299 | 4,481 | 25,283 | 92,028 | 8,368 |
///
/// Below 1024 a step waits for its transfer to begin; the profile lets transfers run faster than memory does, so above
/// there is nothing to gain, and a block that is filled in part is read whole. XLA's operations for the reference
/// over 2048 slots take 16,788 cycles for one token and 24,942 for two, but these do not count transfers: in a loop over
/// tokens XLA moves the whole cache, filled or not, into vector memory and back.
const LONGEST: usize = 1024;

/// Slots of a block: a pure function of the shapes. None if the cache is not made of blocks that the hardware likes.
fn choose(sizes: Sizes) -> Option<usize> {
    // Rows of the queries and of the keys' blocks are made of whole registers.
    let whole = (1..=LONGEST / LANES).rev().map(|registers| registers * LANES);
    whole.filter(|_| sizes.d == LANES).find(|&block| sizes.slots.is_multiple_of(block))
}
