//! The native form: both products of a block in one visit of x, activation and mask one grid step later, while the matrix
//! unit works on the next block.

use super::SwiGlu;
use crate::dropout::tile_mask;
use crate::rms_norm_linear::scaled;
use crate::tile::{CostEstimate, DimensionSemantics, GridSpec, KernelBuilder, Ref, TileKernel, at};
use engine::{DType, Func, Tensor, Type};
use std::f64::consts::LOG2_E;

/// Rows of a block that the epilogue works on at a time: what fits the registers.
const EPILOGUE_ROWS: usize = 64;

#[derive(Clone, Copy, Debug)]
struct TpuSwiGlu {
    n: usize,
    m: usize,
    i: usize,
    rate: f64,
    narrow: DType,
    /// Rows and columns of a block of h.
    rows: usize,
    columns: usize,
}

/// The kernel on a TPU, without the down projection; None if the native form does not cover it.
pub(super) fn func(kernel: &SwiGlu, args: &[Type]) -> Option<Func> {
    let swiglu = TpuSwiGlu::new(kernel, args)?;
    Some(Func::build(args, |f, args| {
        let x = scaled(args[0], args[1]).convert(args[0].dtype());
        let operands = [&[x], &args[2..4], &args[5..]].concat();
        let [h, g, u] = f.custom_call(swiglu.kernel().custom_call(), &swiglu.operands(&operands))[..] else {
            unreachable!("three results")
        };
        vec![h.einsum("ni,im->nm", args[4]), g, u]
    }))
}

impl TpuSwiGlu {
    /// args: those of the kernel. None if the sizes are not made of blocks that the hardware likes.
    fn new(kernel: &SwiGlu, args: &[Type]) -> Option<TpuSwiGlu> {
        let (&[n, m], &[_, i]) = (&args[0].shape[..], &args[2].shape[..]) else { return None };
        let fits = |extent: usize, blocks: [usize; 2]| {
            blocks.into_iter().find(|block| extent.is_multiple_of(*block))
        };
        let (rows, columns) = (fits(n, [1024, 256])?, fits(i, [512, 256])?);
        let narrow = args[0].dtype;
        let covered = m % 128 == 0 && matches!(narrow, DType::Bf16 | DType::F32);
        covered.then_some(TpuSwiGlu { n, m, i, rate: kernel.rate, narrow, rows, columns })
    }

    fn operands<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let mut operands = args[..3].to_vec();
        if let &[rows, columns] = &args[3..] {
            operands.push(rows.bitcast_convert(DType::I32).reshape([self.n, 1]));
            operands.push(columns.bitcast_convert(DType::I32).reshape([1, self.i]));
        }
        operands
    }

    /// Operands: x, Wg, Wu, and with dropout words `i32[n, 1]` and `i32[1, i]`. Results: h, g, u.
    fn kernel(&self) -> TileKernel {
        let &TpuSwiGlu { n, m, i, rate, narrow, rows, columns } = self;
        let (down, across) = (n / rows, i / columns);
        let blocks = down * across;
        // One step more than blocks: a step multiplies its own block and finishes the one before.
        let mut spec = GridSpec::new("swiglu", &[(blocks + 1, DimensionSemantics::Arbitrary)]);
        // Rows of x run fastest: a block of the weights stays until all rows have met it.
        let x = spec.input(Type::new(narrow, [n, m]), &[rows, m], move |k, grid| {
            vec![grid[0].at_most(blocks - 1) % down, k.number(0)]
        });
        let mut weights = || {
            spec.input(Type::new(narrow, [m, i]), &[m, columns], move |k, grid| {
                vec![k.number(0), grid[0].at_most(blocks - 1) / down]
            })
        };
        let (gate, up) = (weights(), weights());
        let words = (rate > 0.0).then(|| {
            let row_words = spec.input(Type::i32([n, 1]), &[rows, 1], move |k, grid| {
                vec![(grid[0] - 1).at_least(0) % down, k.number(0)]
            });
            let column_words = spec.input(Type::i32([1, i]), &[1, columns], move |k, grid| {
                vec![k.number(0), (grid[0] - 1).at_least(0) / down]
            });
            [row_words, column_words]
        });
        let mut result = || {
            spec.output(Type::new(narrow, [n, i]), &[rows, columns], move |_, grid| {
                let block = (grid[0] - 1).at_least(0);
                vec![block % down, block / down]
            })
        };
        let results = [result(), result(), result()];
        let sums = [(); 2].map(|()| spec.scratch(Type::f32([rows, columns])));
        spec.cost(CostEstimate {
            flops: (4 * n * m * i) as u64,
            transcendentals: (n * i) as u64,
            bytes: ((n * m * across + 2 * m * i + 3 * n * i) * narrow.size()) as u64,
        });
        let swiglu = *self;
        spec.build(move |k, _| {
            swiglu.finish(k, sums, words, results);
            let x = k.load(x, at![.., ..]);
            for (sum, weights) in sums.into_iter().zip([gate, up]) {
                let nothing = k.full(Type::f32([rows, columns]), 0.0);
                k.store(sum, at![.., ..], k.matmul(x, k.load(weights, at![.., ..]), nothing));
            }
        })
    }

    /// Writes the block of the step before. In the first step that is garbage, which the second step overwrites.
    fn finish(&self, k: &KernelBuilder, sums: [Ref; 2], words: Option<[Ref; 2]>, [h, g, u]: [Ref; 3]) {
        let chunk = self.rows.min(EPILOGUE_ROWS);
        for first in (0..self.rows).step_by(chunk) {
            let rows = first..first + chunk;
            let [gate, up] = sums.map(|sum| k.load(sum, at![rows.clone(), ..]));
            k.store(g, at![rows.clone(), ..], gate);
            k.store(u, at![rows.clone(), ..], up);
            let hidden = gate / ((gate * -LOG2_E).exp2() + 1.0) * up;
            let hidden = match words {
                None => hidden,
                Some([row_words, column_words]) => {
                    let row_words = k.load(row_words, at![rows.clone(), ..]);
                    hidden * tile_mask(row_words, k.load(column_words, at![.., ..]), self.rate)
                }
            };
            k.store(h, at![rows, ..], hidden);
        }
    }
}
