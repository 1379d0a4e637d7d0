//! Dropout masks by counter: nothing is stored, the backward pass makes them again, and a mask depends on the token's
//! place in the whole step, not on how the step is cut into micro-batches. The same on every platform.

use engine::{Builder, DType, Tensor, Type, threefry};

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

    /// The same masks inside a body.
    pub fn capture<'g>(&self, g: &'g Builder<'g>) -> Dropout<'g> {
        Dropout { rate: self.rate, key: self.key.map(|word| g.capture(word)), tokens: g.capture(self.tokens) }
    }

    /// The factor of each element, `[n, width]`: 0 with probability `rate`, else `1 / (1 - rate)`.
    /// `layer`: a `u32` scalar.
    ///
    /// A row word and a column word from Threefry are mixed by two multiplications with a shift between: with one, rows
    /// and columns correlate (V6E A 6.7).
    pub fn mask(&self, layer: Tensor<'f>, site: Site, width: usize, dtype: DType) -> Tensor<'f> {
        let f = layer.builder();
        let site = layer * 3 + site as u32;
        let [n, words] = [self.tokens.dim(0), width];
        let key = threefry(self.key, [site, site.zeros_like()]);
        let row = threefry(key, [self.tokens, self.tokens.zeros_like()])[0];
        let column = f.iota(Type::new(DType::U32, [words]), 0);
        let column = threefry(key, [column, column.full_like(1.0)])[0];
        let mixed = (row.broadcast_in_dim([n, width], &[0]) ^ column.broadcast_in_dim([n, width], &[1]))
            * 0x9E37_79B1_u32;
        let bits = (mixed ^ mixed.shift_right_logical(15)) * 0x85EB_CA77_u32;
        let threshold = (self.rate * 2f64.powi(32)).ceil() as u32;
        let scale = f.full(Type::new(dtype, [n, width]), 1.0 / (1.0 - self.rate));
        bits.ge(threshold).select(scale, 0.0)
    }
}
