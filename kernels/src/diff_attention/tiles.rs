//! The native form: what its forward and backward kernels share.
//!
//! Scores lie with keys along rows and queries along lanes, so that the softmaxes' maxima and sums are row operations on
//! whole registers, and the products with V and dO need no transposition of the scores. Queries, keys and values are
//! turned and rotated once, into scratch memory. The loop over (query block, key block) tiles is one flat pipeline: while
//! a tile's softmax runs on the vector units, the tile after it is multiplied, and the tile before it is summed up.
//! Within one stretch of code a value in scratch memory is consumed before it is overwritten; that order is what lets the
//! compiler overlap the three ([`v6e`](crate::v6e)).

use super::{DiffAttention, HeadNorm, Keys};
use crate::tile::{Builder, Frame, Memory, Order, Ref, Scalar, Span, Vector, at};
use engine::{DType, Tensor, Type};
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
pub(super) struct Tiles {
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
    pub(super) stacks: Stacks,
}

/// Which arrays are rows of stacks `[layers * batch, ..]` that lie there in place ([`engine::Places`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stacks {
    pub(super) layers: usize,
    pub(super) qkv: InStack,
    pub(super) y: InStack,
    pub(super) o2: InStack,
    pub(super) stats: InStack,
}

/// Whether an array is a row of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InStack {
    Yes,
    No,
}

impl InStack {
    pub(super) fn any(found: bool) -> InStack {
        if found { InStack::Yes } else { InStack::No }
    }
}

impl Stacks {
    pub(super) const NONE: Stacks =
        Stacks { layers: 1, qkv: InStack::No, y: InStack::No, o2: InStack::No, stats: InStack::No };
}

/// What a hidden score is: finite, because infinities would meet in a difference.
pub(super) const HIDDEN: f64 = -1e30;

/// A register's width of numbers.
pub(super) const LANES: usize = 128;

/// Rows of a tile that are masked at a time: as many masks as there are registers for them, for several maps.
const MASK_ROWS: usize = 64;

impl Tiles {
    /// None if the native form does not cover the kernel.
    pub(super) fn new(kernel: &DiffAttention, qkv: &Type, lambda: &Type, tiling: Tiling) -> Option<Tiles> {
        let &[batch, seq, _] = &qkv.shape[..] else { return None };
        let HeadNorm::Rms { eps } = kernel.norm else { return None };
        let &DiffAttention { heads, groups, head_dim: d, value_dim: e, cap, .. } = kernel;
        let tiles = Tiles {
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
            stacks: Stacks::NONE,
        };
        let whole =
            seq % tiling.block == 0 && groups % tiling.groups == 0 && (heads / groups) % tiling.heads == 0;
        // Results of a step lie side by side.
        let adjacent = tiling.groups == 1 || tiling.heads == heads / groups;
        let fits = kernel.keys == Keys::PerMap && lambda.rank() == 0 && e == 2 * d && whole && adjacent;
        fits.then_some(tiles)
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
    pub(super) fn grid(&self) -> [(usize, Order); 3] {
        let groups = self.groups / self.tiling.groups;
        [(self.batch, Order::InTurn), (groups, Order::InTurn), (self.steps(), Order::InTurn)]
    }

    /// `[b, s, w]`
    pub(super) fn qkv(&self) -> Type {
        let width = 2 * self.d * (self.heads + self.groups) + self.e * self.groups;
        Type::new(self.narrow, [self.batch, self.seq, width])
    }

    /// An array of all sequences, or the stack that holds it.
    pub(super) fn array(&self, ty: Type, stack: InStack) -> Type {
        match stack {
            InStack::No => ty,
            InStack::Yes => {
                let mut shape = ty.shape.clone();
                shape[0] *= self.stacks.layers;
                ty.with_shape(shape)
            }
        }
    }

    /// The types of y, O2 and the statistics.
    pub(super) fn results(&self) -> [Type; 3] {
        let &Tiles { batch, seq, heads, e, narrow, stacks, .. } = self;
        [
            self.array(Type::new(narrow, [batch, seq, heads * e]), stacks.y),
            self.array(Type::new(narrow, [batch, heads, e, seq]), stacks.o2),
            self.array(Type::f32([batch, heads, 3, seq]), stacks.stats),
        ]
    }

    /// Places of qkv among the operands of both kernels, one for each window on it.
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

    /// The operands of [`Inputs`], from the kernel's arguments: qkv comes once for each window on it.
    pub(super) fn operands<'f>(&self, args: &[Tensor<'f>], tables: Tables) -> Vec<Tensor<'f>> {
        let &[qkv, cos, sin, lambda, starts, ..] = args else { unreachable!("checked when called") };
        let (batch, seq, block) = (self.batch, self.seq, self.tiling.block);
        let blocked = starts.reshape([batch, self.blocks(), block]);
        let of_block = |i: usize| blocked.slice_axis(2, i, i + 1).reshape([batch * self.blocks()]);
        let mut operands = vec![
            of_block(0) / block as i32,
            of_block(block - 1),
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
    /// Number of the layer, `[1]`, if something lies in stacks.
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
    pub(super) fn new(tiles: &Tiles, frame: &mut Frame, tables: Tables) -> Inputs {
        let &Tiles { batch, seq, heads, groups, d, e, tiling, .. } = tiles;
        let steps = tiles.steps();
        let counts = batch * tiles.blocks();
        let layer = (tiles.stacks != Stacks::NONE).then(|| frame.prefetched(1));
        let (first_block, last_start) = (frame.prefetched(counts), frame.prefetched(counts));
        let lambda = frame.whole(Type::f32([1, 1]), Memory::Scalar);
        let starts = frame.input(Type::i32([batch, 1, seq]), &[1, 1, seq], |k, grid| {
            vec![grid[0], k.number(0), k.number(0)]
        });
        let table = match tables {
            Tables::Rows => Type::f32([seq, d]),
            Tables::Turned => Type::f32([d / 2, seq]),
        };
        let (cos, sin) = (frame.whole(table.clone(), Memory::Vector), frame.whole(table, Memory::Vector));
        // Columns of qkv: queries of all heads, then keys, then values of all groups; block numbers in own widths.
        let mut columns = |width: usize, first: usize, per_group: usize| -> Vec<Ref> {
            let of_group = |x: usize| {
                let (array, stack) = (tiles.array(tiles.qkv(), tiles.stacks.qkv), tiles.stacks.qkv);
                frame.input(array, &[1, seq, width], move |k, grid| {
                    let group = grid[1] * tiling.groups + k.number(x as i32);
                    let block = if per_group == 1 { group } else { group * per_group + grid[2] };
                    let sequence = sequence(k, grid[0], layer, batch, stack);
                    vec![sequence, k.number(0), block + k.number(first as i32)]
                })
            };
            (0..tiling.groups).map(of_group).collect()
        };
        let q = columns(tiling.heads * 2 * d, 0, steps);
        let k = columns(2 * d, heads, 1);
        let v = columns(e, 2 * d * (heads + groups) / e, 1);
        Inputs { layer, first_block, last_start, lambda, starts, cos, sin, q, k, v }
    }

    /// Index of a sequence along the first axis of an array.
    pub(super) fn sequence<'k>(
        &self,
        k: &'k Builder,
        row: Scalar<'k>,
        tiles: &Tiles,
        stack: InStack,
    ) -> Scalar<'k> {
        sequence(k, row, self.layer, tiles.batch, stack)
    }

    pub(super) fn lambda<'k>(&self, k: &'k Builder) -> Scalar<'k> {
        k.scalar(self.lambda, &[k.index(0), k.index(0)])
    }

    /// First key block of query block `i`.
    pub(super) fn first_block<'k>(
        &self,
        k: &'k Builder,
        row: Scalar<'k>,
        i: Scalar<'k>,
        tiles: &Tiles,
    ) -> Scalar<'k> {
        k.scalar(self.first_block, &[row * tiles.blocks() + i]).to_index()
    }

    /// Cosines and sines of a block of positions, `[rows, d]` each, for [`rotated_rows`]. With tables in rows.
    pub(super) fn tables<'k>(&self, k: &'k Builder, rows: Span<'k>, factor: f64) -> [Vector<'k>; 2] {
        [self.cos, self.sin].map(|table| scaled(k.load(table, at![rows, ..]), factor))
    }

    /// Rotates a turned block, `[d, block]`, of positions `i`; `sign` 1 or -1 is the direction. With turned tables.
    pub(super) fn rotated<'k>(
        &self,
        k: &'k Builder,
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
        k: &'k Builder,
        tiles: &Tiles,
        row: Scalar<'k>,
        (j, i): (Scalar<'k>, Scalar<'k>),
        scores: &[(Ref, Option<Ref>)],
    ) {
        let block = tiles.tiling.block;
        let chunk = block.min(LANES);
        let last_start = k.scalar(self.last_start, &[row * tiles.blocks() + i]).to_index();
        // A document starts behind the tile's first key, for some of its queries: keys before it are hidden.
        k.when(j.block_start(block).lt(last_start), || {
            let height = block.min(MASK_ROWS);
            for c in 0..block / chunk {
                let queries = c * chunk..(c + 1) * chunk;
                let of_chunk = (i * (block / chunk) + k.index(c)).block(chunk);
                let first = k.load(self.starts, at![0, .., of_chunk]) - j.block_start(block).to_number();
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
        // Keys behind the query are hidden, whatever its document.
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
                    // Keys before this chunk are as they were, those behind it do not count.
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
    k: &'k Builder,
    row: Scalar<'k>,
    layer: Option<Ref>,
    batch: usize,
    stack: InStack,
) -> Scalar<'k> {
    match (layer, stack) {
        (Some(layer), InStack::Yes) => k.scalar(layer, &[k.index(0)]) * batch + row,
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
    pub(super) fn start(k: &'k Builder, inputs: &Inputs, tiles: &Tiles, row: Scalar<'k>) -> Tile<'k> {
        let zero = k.index(0);
        Tile { head: zero, i: zero, j: inputs.first_block(k, row, zero, tiles) }
    }

    /// The very last tile, behind the loop.
    pub(super) fn end(k: &'k Builder, tiles: &Tiles) -> Tile<'k> {
        let last = k.index(tiles.blocks() - 1);
        Tile { head: k.index(tiles.tiling.heads - 1), i: last, j: last }
    }
}

/// Runs `code` for every visible tile of the step's heads: row after row, keys from the first that is seen to the diagonal.
pub(super) fn each_tile<'k>(
    k: &'k Builder,
    inputs: &Inputs,
    tiles: &Tiles,
    row: Scalar<'k>,
    code: impl FnOnce(Step<'k>),
) {
    let blocks = tiles.blocks();
    let count = tiles.tiling.heads * blocks;
    k.each(k.index(0), k.index(count), |number| {
        let block = |number: Scalar<'k>| (number / blocks, number % blocks);
        let (head, i) = block(number);
        let (head_before, i_before) = block((number - 1).at_least(0));
        let (head_after, i_after) = block((number + 1).at_most(count - 1));
        let from = inputs.first_block(k, row, i, tiles);
        let from_after = inputs.first_block(k, row, i_after, tiles);
        k.each(from, i + 1, |j| {
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
