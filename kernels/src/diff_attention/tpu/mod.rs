//! The native form: what its forward and backward kernels share.
//!
//! Scores lie with keys along rows and queries along lanes, so that the softmaxes' maxima and sums are row operations on
//! whole registers, and the products with V and dO need no transposition of the scores. Queries, keys and values are
//! turned and rotated once, into scratch memory. The loop over (query block, key block) tiles is one flat pipeline: while
//! a tile's softmax runs on the vector units, the tile after it is multiplied, and the tile before it is summed up.
//! Within one stretch of code a value in scratch memory is consumed before it is overwritten; that order is what lets the
//! compiler overlap the three ([`v6e`](crate::v6e)).

mod backward;
mod forward;
mod tiling;

use super::{DiffAttention, HeadNorm, Keys};
use crate::tile::{DimensionSemantics, GridSpec, KernelBuilder, MemorySpace, Ref, Scalar, Slice, Vector, at};
use engine::{DType, Func, Tensor, Type};
use std::ops::Range;

/// How a core walks over the heads and tiles of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Rows and columns of a tile.
    pub block: usize,
    /// Groups whose heads are worked on in lockstep, to fill each other's gaps.
    pub groups: usize,
    /// Heads of a group in one step of the grid.
    pub heads: usize,
}

/// A kernel's shapes and tiling.
#[derive(Clone, Copy, Debug)]
pub(super) struct TpuAttention {
    pub(super) batch: usize,
    pub(super) seq: usize,
    pub(super) heads: usize,
    pub(super) groups: usize,
    pub(super) d: usize,
    pub(super) e: usize,
    pub(super) cap: f64,
    pub(super) eps: f64,
    pub(super) narrow: DType,
    pub(super) tiling: Tiling,
    pub(super) scanned: ScannedArrays,
}

/// Which arrays are rows of scanned arrays `[layers * batch, ..]` and lie there in place ([`engine::Scanned`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScannedArrays {
    pub(super) layers: usize,
    pub(super) qkv: IsScanned,
    pub(super) y: IsScanned,
    pub(super) o2: IsScanned,
    pub(super) stats: IsScanned,
}

/// Whether an array is a row of a scanned one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IsScanned {
    Yes,
    No,
}

impl From<bool> for IsScanned {
    fn from(found: bool) -> IsScanned {
        if found { IsScanned::Yes } else { IsScanned::No }
    }
}

impl ScannedArrays {
    pub(super) const NONE: ScannedArrays = ScannedArrays {
        layers: 1,
        qkv: IsScanned::No,
        y: IsScanned::No,
        o2: IsScanned::No,
        stats: IsScanned::No,
    };
}

/// What a hidden score is: finite, because infinities would meet in a difference.
pub(super) const HIDDEN: f64 = -1e30;

/// A register's width of numbers.
pub(super) const LANES: usize = 128;

/// Rows of a tile that are masked at a time: as many masks as there are registers for them, for several maps.
const MASK_ROWS: usize = 64;

/// The forward pass on a TPU; None if the native form does not cover the kernel.
pub(super) fn forward_func(kernel: &DiffAttention, args: &[Type]) -> Option<Func> {
    let attention = TpuAttention::new(kernel, args)?;
    Some(Func::build(args, |f, args| {
        f.custom_call(forward::call(&attention), &attention.operands(args, Tables::Rows))
    }))
}

/// The backward pass on a TPU, of the arguments and results of the forward pass, and dy.
pub(super) fn backward_func(kernel: &DiffAttention, args: &[Type]) -> Option<Func> {
    let attention = TpuAttention::new(kernel, args)?;
    Some(Func::build(args, |f, args| {
        let &[.., y, o2, stats, dy] = args else { unreachable!("checked when called") };
        let operands = [attention.operands(args, Tables::Turned), vec![y, dy, o2, stats]].concat();
        let results = f.custom_call(backward::call(&attention), &operands);
        let (d2, qkv_parts) = results.split_last().expect("D2 is the last result");
        let d_qkv = if qkv_parts.len() == 1 { qkv_parts[0] } else { Tensor::concatenate(qkv_parts, 2) };
        vec![d_qkv, -d2.sum_all()]
    }))
}

impl TpuAttention {
    /// None if the native form does not cover the kernel.
    fn new(kernel: &DiffAttention, args: &[Type]) -> Option<TpuAttention> {
        let [qkv, _, _, lambda, ..] = args else { return None };
        let &[batch, seq, _] = &qkv.shape[..] else { return None };
        let HeadNorm::Rms { eps } = kernel.norm else { return None };
        let tiling = kernel.tiling.or_else(|| tiling::choose(kernel, seq))?;
        let &DiffAttention { heads, groups, head_dim: d, value_dim: e, cap, .. } = kernel;
        let attention = TpuAttention {
            batch,
            seq,
            heads,
            groups,
            d,
            e,
            cap,
            eps,
            narrow: qkv.dtype,
            tiling,
            scanned: ScannedArrays::NONE,
        };
        let whole =
            seq % tiling.block == 0 && groups % tiling.groups == 0 && (heads / groups) % tiling.heads == 0;
        // Results of a step lie side by side.
        let adjacent = tiling.groups == 1 || tiling.heads == heads / groups;
        let fits = kernel.keys == Keys::PerMap && lambda.rank() == 0 && e == 2 * d && whole && adjacent;
        fits.then_some(attention)
    }

    /// Steps of the grid for one group.
    pub(super) fn steps(&self) -> usize {
        self.heads / self.groups / self.tiling.heads
    }

    /// Blocks of a sequence.
    pub(super) fn blocks(&self) -> usize {
        self.seq / self.tiling.block
    }

    /// Sequences, groups, heads: in turn, because scratch memory carries what a group's heads share.
    pub(super) fn grid(&self) -> [(usize, DimensionSemantics); 3] {
        let groups = self.groups / self.tiling.groups;
        [
            (self.batch, DimensionSemantics::Arbitrary),
            (groups, DimensionSemantics::Arbitrary),
            (self.steps(), DimensionSemantics::Arbitrary),
        ]
    }

    /// `[b, s, w]`
    pub(super) fn qkv(&self) -> Type {
        let width = 2 * self.d * (self.heads + self.groups) + self.e * self.groups;
        Type::new(self.narrow, [self.batch, self.seq, width])
    }

    /// An array of all sequences, or the scanned array that holds it.
    pub(super) fn array(&self, ty: Type, is_scanned: IsScanned) -> Type {
        match is_scanned {
            IsScanned::No => ty,
            IsScanned::Yes => {
                let mut shape = ty.shape.clone();
                shape[0] *= self.scanned.layers;
                ty.with_shape(shape)
            }
        }
    }

    /// The types of y, O2 and the statistics.
    pub(super) fn results(&self) -> [Type; 3] {
        let &TpuAttention { batch, seq, heads, e, narrow, scanned, .. } = self;
        [
            self.array(Type::new(narrow, [batch, seq, heads * e]), scanned.y),
            self.array(Type::new(narrow, [batch, heads, e, seq]), scanned.o2),
            self.array(Type::f32([batch, heads, 3, seq]), scanned.stats),
        ]
    }

    /// Places of qkv among the operands of both kernels, one for each block spec on it.
    pub(super) fn qkv_operands(&self) -> Range<usize> {
        QKV..QKV + 3 * self.tiling.groups
    }

    /// Turns logits into powers of two: `2^(factor q k) = e^(q k / sqrt(d))`.
    pub(super) fn scale(&self) -> f64 {
        std::f64::consts::LOG2_E / (self.d as f64).sqrt()
    }

    /// The cap in powers of two.
    pub(super) fn cap2(&self) -> f64 {
        self.cap * std::f64::consts::LOG2_E
    }

    /// The operands of [`Inputs`], from the kernel's arguments: qkv comes once for each block spec on it.
    pub(super) fn operands<'f>(&self, args: &[Tensor<'f>], tables: Tables) -> Vec<Tensor<'f>> {
        let &[qkv, cos, sin, lambda, starts, ..] = args else { unreachable!("checked when called") };
        let (batch, seq, block) = (self.batch, self.seq, self.tiling.block);
        let blocked = starts.reshape([batch, self.blocks(), block]);
        let in_each_block = |i: usize| blocked.slice_axis(2, i, i + 1).reshape([batch * self.blocks()]);
        let mut operands = vec![
            in_each_block(0) / block as i32,
            in_each_block(block - 1),
            lambda.reshape([1, 1]),
            starts.reshape([batch, 1, seq]),
        ];
        operands.extend(match tables {
            Tables::Rows => [[cos, cos], [-sin, sin]].map(|halves| Tensor::concatenate(&halves, 1)),
            Tables::Turned => [cos, sin].map(|table| table.transpose(&[1, 0])),
        });
        operands.extend(vec![qkv; 3 * self.tiling.groups]);
        operands
    }
}

/// Operands before qkv.
const QKV: usize = 6;

/// How the rotation's tables lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tables {
    /// `[s, d]`, for blocks `[block, d]`: cosines of both halves; sines, of the first half negative.
    Rows,
    /// `[d/2, s]`, for blocks `[d, block]`.
    Turned,
}

/// The operands of both kernels.
pub(super) struct Inputs {
    /// Number of the layer, `[1]`, if an array is scanned.
    layer: Option<Ref>,
    /// First key block that a query block sees, `[batch * blocks]`.
    first_block: Ref,
    /// First position that the last query of a block sees, `[batch * blocks]`.
    last_start: Ref,
    lambda: Ref,
    /// First position that a query sees, `[1, 1, s]`.
    starts: Ref,
    /// As [`Tables`] says.
    cos: Ref,
    sin: Ref,
    /// Of each group in lockstep: `[1, s, heads 2d]`, `[1, s, 2d]`, `[1, s, e]`.
    pub(super) q: Vec<Ref>,
    pub(super) k: Vec<Ref>,
    pub(super) v: Vec<Ref>,
}

impl Inputs {
    pub(super) fn new(attention: &TpuAttention, spec: &mut GridSpec, tables: Tables) -> Inputs {
        let &TpuAttention { batch, seq, heads, groups, d, e, tiling, .. } = attention;
        let steps = attention.steps();
        let counts = batch * attention.blocks();
        let layer = (attention.scanned != ScannedArrays::NONE).then(|| spec.scalar_prefetch(1));
        let (first_block, last_start) = (spec.scalar_prefetch(counts), spec.scalar_prefetch(counts));
        let lambda = spec.whole(Type::f32([1, 1]), MemorySpace::Smem);
        let starts = spec.input(Type::i32([batch, 1, seq]), &[1, 1, seq], |k, grid| {
            vec![grid[0], k.number(0), k.number(0)]
        });
        let table = match tables {
            Tables::Rows => Type::f32([seq, d]),
            Tables::Turned => Type::f32([d / 2, seq]),
        };
        let (cos, sin) = (spec.whole(table.clone(), MemorySpace::Vmem), spec.whole(table, MemorySpace::Vmem));
        // Columns of qkv: queries of all heads, then keys, then values of all groups; block numbers in own widths.
        let mut columns = |width: usize, first: usize, per_group: usize| -> Vec<Ref> {
            let group_input = |x: usize| {
                let (array, is_scanned) =
                    (attention.array(attention.qkv(), attention.scanned.qkv), attention.scanned.qkv);
                spec.input(array, &[1, seq, width], move |k, grid| {
                    let group = grid[1] * tiling.groups + k.number(x as i32);
                    let block = if per_group == 1 { group } else { group * per_group + grid[2] };
                    let sequence = sequence(k, grid[0], layer, batch, is_scanned);
                    vec![sequence, k.number(0), block + k.number(first as i32)]
                })
            };
            (0..tiling.groups).map(group_input).collect()
        };
        let q = columns(tiling.heads * 2 * d, 0, steps);
        let k = columns(2 * d, heads, 1);
        let v = columns(e, 2 * d * (heads + groups) / e, 1);
        Inputs { layer, first_block, last_start, lambda, starts, cos, sin, q, k, v }
    }

    /// Index of a sequence along the first axis of an array.
    pub(super) fn sequence<'k>(
        &self,
        k: &'k KernelBuilder,
        row: Scalar<'k>,
        attention: &TpuAttention,
        is_scanned: IsScanned,
    ) -> Scalar<'k> {
        sequence(k, row, self.layer, attention.batch, is_scanned)
    }

    pub(super) fn lambda<'k>(&self, k: &'k KernelBuilder) -> Scalar<'k> {
        k.scalar(self.lambda, &[k.index(0), k.index(0)])
    }

    /// First key block of query block `i`.
    pub(super) fn first_block<'k>(
        &self,
        k: &'k KernelBuilder,
        row: Scalar<'k>,
        i: Scalar<'k>,
        attention: &TpuAttention,
    ) -> Scalar<'k> {
        k.scalar(self.first_block, &[row * attention.blocks() + i]).to_index()
    }

    /// Cosines and sines of a block of positions, `[rows, d]` each, for [`rotated_rows`]. With tables in rows.
    pub(super) fn tables<'k>(&self, k: &'k KernelBuilder, rows: Slice<'k>, factor: f64) -> [Vector<'k>; 2] {
        [self.cos, self.sin].map(|table| scaled(k.load(table, at![rows, ..]), factor))
    }

    /// Rotates a turned block, `[d, block]`, of positions `i`; `sign` 1 or -1 is the direction. With turned tables.
    pub(super) fn rotated<'k>(
        &self,
        k: &'k KernelBuilder,
        x: Vector<'k>,
        i: Scalar<'k>,
        sign: f64,
        factor: f64,
    ) -> [Vector<'k>; 2] {
        let [d, block] = x.shape()[..] else { unreachable!("[d, block]") };
        let x = x.convert(DType::F32);
        let (x1, x2) = (x.rows(0..d / 2), x.rows(d / 2..d));
        let cos = scaled(k.load(self.cos, at![.., i.block(block)]), factor);
        let sin = scaled(k.load(self.sin, at![.., i.block(block)]), factor * sign);
        [x1 * cos - x2 * sin, x2 * cos + x1 * sin]
    }

    /// Hides what query block `i` does not see of key block `j`, in the scores of several maps. `highest`: scratch that
    /// takes the largest score of each column, if anybody wants it.
    pub(super) fn hide<'k>(
        &self,
        k: &'k KernelBuilder,
        attention: &TpuAttention,
        row: Scalar<'k>,
        (j, i): (Scalar<'k>, Scalar<'k>),
        scores: &[(Ref, Option<Ref>)],
    ) {
        let block = attention.tiling.block;
        let chunk = block.min(LANES);
        let last_start = k.scalar(self.last_start, &[row * attention.blocks() + i]).to_index();
        // A document starts after the tile's first key, for some of its queries: keys before it are hidden.
        k.when(j.block_start(block).lt(last_start), || {
            let height = block.min(MASK_ROWS);
            for c in 0..block / chunk {
                let queries = c * chunk..(c + 1) * chunk;
                let chunk_columns = (i * (block / chunk) + k.index(c)).block(chunk);
                let first = k.load(self.starts, at![0, .., chunk_columns]) - j.block_start(block).to_number();
                let mut tops: Vec<Option<Vector<'k>>> = vec![None; scores.len()];
                for r in 0..block / height {
                    let keys = r * height..(r + 1) * height;
                    let rows = k.iota(&[height, chunk], 0) + k.number(keys.start as i32);
                    let visible = rows.ge(first.along(&[height, chunk]));
                    for (&(scores, highest), top) in scores.iter().zip(&mut tops) {
                        let x = k.load(scores, at![keys.clone(), queries.clone()]);
                        let x = visible.select(x, x.same(HIDDEN));
                        k.store(scores, at![keys.clone(), queries.clone()], x);
                        if highest.is_some() {
                            let x = x.fold_max();
                            *top = Some(top.map_or(x, |top| top.max(x)));
                        }
                    }
                }
                for (&(_, highest), top) in scores.iter().zip(tops) {
                    if let (Some(highest), Some(top)) = (highest, top) {
                        k.store(highest, at![.., queries.clone()], top);
                    }
                }
            }
        });
        // Keys after the query are hidden, whatever its document.
        k.when(i.eq(j), || {
            let triangle = k.iota(&[chunk, chunk], 0).le(k.iota(&[chunk, chunk], 1));
            for &(scores, highest) in scores {
                for c in 0..block / chunk {
                    let queries = c * chunk..(c + 1) * chunk;
                    let x = k.load(scores, at![queries.clone(), queries.clone()]);
                    let x = triangle.select(x, x.same(HIDDEN));
                    k.store(scores, at![queries.clone(), queries.clone()], x);
                    let below = block - queries.end;
                    if below > 0 {
                        let hidden = k.full(Type::f32([below, chunk]), HIDDEN);
                        k.store(scores, at![queries.end..block, queries.clone()], hidden);
                    }
                    let Some(highest) = highest else { continue };
                    // Keys before this chunk are as they were, those after it do not count.
                    let mut top = x.fold_max();
                    if c > 0 {
                        top = top.max(k.load(scores, at![0..c * chunk, queries.clone()]).fold_max());
                    }
                    k.store(highest, at![.., queries], top);
                }
            }
        });
    }
}

/// Rotates a block `[rows, d]` and multiplies it by the tables' factor.
pub(super) fn rotated_rows<'k>(x: Vector<'k>, [cos, sin]: [Vector<'k>; 2]) -> Vector<'k> {
    let d = x.shape()[1];
    let x = x.convert(DType::F32);
    x * cos + x.rotate(d / 2) * sin
}

fn scaled(x: Vector<'_>, factor: f64) -> Vector<'_> {
    if factor == 1.0 { x } else { x * factor }
}

fn sequence<'k>(
    k: &'k KernelBuilder,
    row: Scalar<'k>,
    layer: Option<Ref>,
    batch: usize,
    is_scanned: IsScanned,
) -> Scalar<'k> {
    match (layer, is_scanned) {
        (Some(layer), IsScanned::Yes) => k.scalar(layer, &[k.index(0)]) * batch + row,
        _ => row,
    }
}

/// A tile of the flat pipeline, with the one before and the one after.
#[derive(Clone, Copy)]
pub(super) struct Step<'k> {
    /// Is this the first tile of its query block?
    pub(super) first: Scalar<'k>,
    /// The number of the query block, of all heads of the step.
    pub(super) number: Scalar<'k>,
    pub(super) before: Tile<'k>,
    pub(super) now: Tile<'k>,
    pub(super) after: Tile<'k>,
}

/// Head (of the step), query block and key block.
#[derive(Clone, Copy)]
pub(super) struct Tile<'k> {
    pub(super) head: Scalar<'k>,
    pub(super) i: Scalar<'k>,
    pub(super) j: Scalar<'k>,
}

impl<'k> Tile<'k> {
    /// The very first tile, before the loop.
    pub(super) fn start(
        k: &'k KernelBuilder,
        inputs: &Inputs,
        attention: &TpuAttention,
        row: Scalar<'k>,
    ) -> Tile<'k> {
        let zero = k.index(0);
        Tile { head: zero, i: zero, j: inputs.first_block(k, row, zero, attention) }
    }

    /// The very last tile, after the loop.
    pub(super) fn end(k: &'k KernelBuilder, attention: &TpuAttention) -> Tile<'k> {
        let last = k.index(attention.blocks() - 1);
        Tile { head: k.index(attention.tiling.heads - 1), i: last, j: last }
    }
}

/// Runs `code` for every visible tile of the step's heads: row after row, keys from the first that is seen to the diagonal.
pub(super) fn each_tile<'k>(
    k: &'k KernelBuilder,
    inputs: &Inputs,
    attention: &TpuAttention,
    row: Scalar<'k>,
    code: impl FnOnce(Step<'k>),
) {
    let blocks = attention.blocks();
    let count = attention.tiling.heads * blocks;
    k.fori_loop(k.index(0), k.index(count), |number| {
        let block = |number: Scalar<'k>| (number / blocks, number % blocks);
        let (head, i) = block(number);
        let (head_before, i_before) = block((number - 1).at_least(0));
        let (head_after, i_after) = block((number + 1).at_most(count - 1));
        let from = inputs.first_block(k, row, i, attention);
        let from_after = inputs.first_block(k, row, i_after, attention);
        k.fori_loop(from, i + 1, |j| {
            let (first, last) = (j.eq(from), j.eq(i));
            // Before the first tile of a block comes the diagonal of the block before.
            let before = Tile {
                head: first.choose(head_before, head),
                i: first.choose(i_before, i),
                j: first.choose(i_before, j - 1),
            };
            let after = Tile {
                head: last.choose(head_after, head),
                i: last.choose(i_after, i),
                j: last.choose(from_after, j + 1),
            };
            code(Step { first, number, before, now: Tile { head, i, j }, after });
        });
    });
}
