//! Dropout masks by counter: nothing is stored, the backward pass makes them again, and a mask depends on the token's
//! place in the whole step, not on how the step is cut into micro-batches. The same on every platform.

use engine::{DType, Tensor, Type, threefry};
use kernels::dropout_mask;

/// Which of the three places of a block a mask is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The attention's output, before the residual sum.
    Attention,
    /// The hidden layer of the MLP, before its down projection.
    Hidden,
    /// The MLP's output, before the residual sum.
    Mlp,
}

impl Site {
    /// Every site, in order.
    pub const ALL: [Site; 3] = [Site::Attention, Site::Hidden, Site::Mlp];
}

/// What masks are made from.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'f> {
    /// Probability to drop.
    pub rate: f64,
    /// Key of this step, two `u32` scalars: [`Dropout::key`].
    pub key: [Tensor<'f>; 2],
    /// Index of each token in the whole step, `u32[n]`.
    pub tokens: Tensor<'f>,
}

impl<'f> Dropout<'f> {
    /// The key of a step: Threefry of (seed, step). `seed`: two `u32` scalars, `step`: `u32` scalar.
    pub fn key(seed: [Tensor<'f>; 2], step: Tensor<'f>) -> [Tensor<'f>; 2] {
        threefry(seed, [step, step.zeros_like()])
    }

    /// Indices of the tokens of micro-batch number `micro` (a `u32` scalar), `u32[tokens]`.
    pub fn token_indices(micro: Tensor<'f>, tokens: usize) -> Tensor<'f> {
        let first = micro * tokens as u32;
        first + first.builder().iota(Type::new(DType::U32, [tokens]), 0)
    }

    /// The words that all masks of a micro-batch are mixed from, made at once: one random word for each (layer, site,
    /// token) and each (layer, site, column). `width`: of the widest mask.
    pub fn words(&self, layers: usize, width: usize) -> Words<'f> {
        let f = self.tokens.builder();
        let sites = Site::ALL.len() * layers;
        let site = f.iota(Type::new(DType::U32, [sites]), 0);
        let scalar = |word: Tensor<'f>| word.broadcast_in_dim([sites], &[]);
        let keys = threefry(self.key.map(scalar), [site, site.zeros_like()]); // [sites]
        let words = |counter: Tensor<'f>, stream: u32| {
            let shape = [sites, counter.dim(0)];
            let counter = counter.broadcast_in_dim(shape, &[1]);
            let keys = keys.map(|word| word.broadcast_in_dim(shape, &[0]));
            let word = threefry(keys, [counter, counter.full_like(stream.into())])[0];
            word.reshape([layers, Site::ALL.len(), shape[1]])
        };
        Words { rows: words(self.tokens, 0), columns: words(f.iota(Type::new(DType::U32, [width]), 0), 1) }
    }
}

/// Random words, stacked over layers: `rows` `u32[L, 3, n]`, `columns` `u32[L, 3, width]`.
#[derive(Clone, Copy, Debug)]
pub struct Words<'f> {
    /// One for each token.
    pub rows: Tensor<'f>,
    /// One for each column.
    pub columns: Tensor<'f>,
}

/// The masks of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Masks<'f> {
    /// Probability to drop.
    pub rate: f64,
    /// `u32[3, n]`
    pub rows: Tensor<'f>,
    /// `u32[3, width]`, of the widest mask.
    pub columns: Tensor<'f>,
}

impl<'f> Masks<'f> {
    /// The random words of a site, of tokens `u32[n]` and of columns `u32[width]`.
    pub fn words(&self, site: Site, width: usize) -> [Tensor<'f>; 2] {
        let site_words = |words: Tensor<'f>, count: usize| {
            words
                .slice_axis(0, site as usize, site as usize + 1)
                .reshape([words.dim(1)])
                .slice_axis(0, 0, count)
        };
        [site_words(self.rows, self.rows.dim(1)), site_words(self.columns, width)]
    }

    /// The factor of each element, `[n, width]` f32: 0 with probability `rate`, else `1 / (1 - rate)`.
    pub fn mask(&self, site: Site, width: usize) -> Tensor<'f> {
        let [rows, columns] = self.words(site, width);
        dropout_mask(rows, columns, self.rate, DType::F32)
    }

    /// x times its mask, in f32: rounded to bf16 the factor of a rate of 0.1 would take 0.16 % from every output of a block, in
    /// training and not in use. x: `[n, width]`.
    pub fn dropped(&self, x: Tensor<'f>, site: Site) -> Tensor<'f> {
        (x.convert(DType::F32) * self.mask(site, x.dim(1))).convert(x.dtype())
    }
}
