//! The trunk: embedding, blocks scanned over layers, final norm. Functions over named weights in their folded form.
//!
//! Activations are matrices of tokens, `[n, m]`, in the compute type; norms, softmaxes, lambda and RoPE are computed in
//! `f32`.

use crate::config::{Attention, Compute, Config};
use crate::dropout::{Dropout, Masks, Site};
use crate::folded::{Folded, FoldedBlock};
use crate::rope::rope_tables;
use engine::{Builder, DType, Save, ScanOptions, Tensor, Type};
use kernels::{
    BLOCK_ROWS, DiffAttention, HeadNorm, Keys, RmsNormLinear, SwiGlu, document_starts, qk_norm, rms_scale,
};
use serde::{Deserialize, Serialize};

/// Token ids and document segments, `[b, s]` i32 each. Segments do not decrease along a row; a negative one is padding.
#[derive(Clone, Copy, Debug)]
pub struct Batch<T> {
    /// Token ids.
    pub ids: T,
    /// Document of each token.
    pub segments: T,
}

/// What a block's backward pass receives instead of computing it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remat {
    /// Only the block's input: the least memory, one more forward pass.
    Full,
    /// Results of matrix products and of attention, but not the wide ones of SwiGLU: two more products.
    Lean,
    /// Results of all matrix products and of attention; norms, masks and activations are computed again. The CPU's native
    /// gradient of the MLP computes its own wide products again, so there this keeps what `Lean` keeps.
    #[default]
    Selective,
}

impl Remat {
    /// Every way, the one that keeps most first.
    pub const ALL: [Remat; 3] = [Remat::Selective, Remat::Lean, Remat::Full];

    /// Names of what is kept beside a block's input.
    fn kept(self) -> &'static [&'static str] {
        match self {
            Remat::Full => &[],
            Remat::Lean => &["scale", "qkv", "o", "o2", "rows", "x1", "scale1"],
            Remat::Selective => &["scale", "qkv", "o", "o2", "rows", "x1", "scale1", "gate", "up"],
        }
    }

    fn save(self) -> Save {
        Save::Only(self.kept().iter().map(|&name| name.to_owned()).collect())
    }

    /// Bytes of all that the blocks keep of `tokens` tokens. What is one number a row is left out.
    pub fn kept_bytes(self, config: &Config, tokens: usize) -> usize {
        let (m, i) = (config.hidden_size, config.intermediate_size);
        let width = |name: &&str| match *name {
            "x1" => m,
            "qkv" => config.query_width() + 2 * config.key_width(),
            "o" | "o2" => config.output_width(),
            "gate" | "up" => i,
            _ => 0,
        };
        let columns = m + self.kept().iter().map(width).sum::<usize>();
        config.num_hidden_layers * tokens * columns * config.dtype.dtype().size()
    }
}

impl Compute {
    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            Compute::F32 => DType::F32,
            Compute::Bf16 => DType::Bf16,
        }
    }
}

/// What blocks share: captured once, used by each.
#[derive(Clone, Copy)]
struct Shared<'f> {
    /// Where each token's document begins, `[b, s]`.
    starts: Tensor<'f>,
    /// Cosine and sine, `[s, d/2]`.
    rope: [Tensor<'f>; 2],
}

/// Hidden states after the final norm, `[b, s, m]` in the compute type.
pub fn trunk<'f>(
    config: &Config,
    weights: &Folded<Tensor<'f>>,
    batch: Batch<Tensor<'f>>,
    dropout: Option<Dropout<'f>>,
    remat: Remat,
) -> Tensor<'f> {
    let f = batch.ids.builder();
    let [b, s] = batch.ids.shape()[..] else { panic!("ids {} are not [b, s]", batch.ids.ty()) };
    let layers = config.num_hidden_layers;
    let (cos, sin) = rope_tables(config, s);
    let shared =
        Shared { starts: document_starts(batch.segments), rope: [f.constant(&cos), f.constant(&sin)] };
    let x = weights.embed.gather(batch.ids).reshape([b * s, config.hidden_size]); // [n, m]
    let mut stacks: Vec<Tensor<'f>> = Vec::new();
    weights.layers.clone().map(|_, stack| stacks.push(stack));
    let weight_count = stacks.len();
    let rate = dropout.map_or(0.0, |dropout| dropout.rate);
    if let Some(dropout) = dropout {
        let words = dropout.words(layers, config.hidden_size.max(config.intermediate_size));
        stacks.extend([words.rows, words.columns]);
    }
    let (x, _) = f.scan(ScanOptions::over(layers), &[x], &stacks, |g, carry, slices| {
        let operands: Vec<Tensor<'_>> = carry.iter().chain(slices).copied().collect();
        let x = g.call("block", remat.save(), &operands, |g, operands| {
            let (x, slices) = (operands[0], &operands[1..]);
            let mut slice = slices[..weight_count].iter();
            let weights =
                weights.layers.clone().map(|_, _| *slice.next().expect("one slice for each weight"));
            let shared =
                Shared { starts: g.capture(shared.starts), rope: shared.rope.map(|table| g.capture(table)) };
            let masks = match slices[weight_count..] {
                [rows, columns] => Some(Masks { rate, rows, columns }),
                _ => None,
            };
            vec![block(config, &weights, x, &shared, masks)]
        });
        (x, vec![])
    });
    rms_norm(x[0], weights.norm, config.rms_norm_eps).reshape([b, s, config.hidden_size])
}

/// `Y = X + Drop(Attention(Norm(X)))`, `X' = Y + Drop(MLP(Norm(Y)))`. x: `[n, m]`. Source: arXiv 2410.05258 eq. 4-5.
fn block<'f>(
    config: &Config,
    weights: &FoldedBlock<Tensor<'f>>,
    x: Tensor<'f>,
    shared: &Shared<'f>,
    masks: Option<Masks<'f>>,
) -> Tensor<'f> {
    let scale = rms_scale(x, config.rms_norm_eps).named("scale");
    let attended = attention(config, weights, x, scale, shared);
    let x = (x + dropped(attended, masks, Site::Attention)).named("x1");
    let scale = rms_scale(x, config.rms_norm_eps).named("scale1");
    let [x] = Tensor::materialized([x + dropped(mlp(weights, x, scale, masks), masks, Site::Mlp)]);
    x
}

/// `w x / sqrt(mean(x^2) + eps)` of each row, in f32; the result has x's type. x: `[n, m]`.
fn rms_norm<'f>(x: Tensor<'f>, w: Tensor<'f>, eps: f64) -> Tensor<'f> {
    let wide = x.convert(DType::F32);
    (wide * rms_scale(x, eps).along(wide, &[0]) * w.along(wide, &[1])).convert(x.dtype())
}

fn dropped<'f>(x: Tensor<'f>, masks: Option<Masks<'f>>, site: Site) -> Tensor<'f> {
    masks.map_or(x, |masks| masks.dropped(x, site))
}

/// Differential attention between its projections. x: `[n, m]`, scale: of its norm, `[n]`.
fn attention<'f>(
    config: &Config,
    weights: &FoldedBlock<Tensor<'f>>,
    x: Tensor<'f>,
    scale: Tensor<'f>,
    shared: &Shared<'f>,
) -> Tensor<'f> {
    let f = x.builder();
    let (heads, groups, d) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let (n, rows) = (x.dim(0), shared.starts.shape());
    // One product, one array: that is how the kernel reads them.
    let qkv = f.kernel(RmsNormLinear, &[x, scale, weights.qkv])[0].named("qkv"); // [n, w]
    let qkv = match config.qk_norm {
        true => qk_norm(qkv, config.query_width() + config.key_width(), d, config.rms_norm_eps),
        false => qkv,
    };
    let per_row = |x: Tensor<'f>| x.reshape([&rows[..], &[x.dim(1)]].concat()); // [n, ..] -> [b, s, ..]
    let kernel = DiffAttention {
        heads: heads / 2,
        groups: groups / 2,
        head_dim: d,
        value_dim: 2 * d,
        keys: Keys::PerMap,
        norm: HeadNorm::Rms { eps: config.subln_eps },
        cap: config.attention_logit_cap,
        rows: BLOCK_ROWS,
        tiling: None,
    };
    let (kernel, lambda) = match config.attention {
        Attention::DiffV1 => (kernel, weights.lambda),
        Attention::DiffV2 => {
            let (value_dim, keys, norm) = (d, Keys::Shared, HeadNorm::None);
            let lambda = f.kernel(RmsNormLinear, &[x, scale, weights.lambda])[0].convert(DType::F32);
            (DiffAttention { heads, groups, value_dim, keys, norm, ..kernel }, per_row(lambda.logistic()))
        }
    };
    let [cos, sin] = shared.rope;
    let results = f.kernel(kernel, &[per_row(qkv), cos, sin, lambda, shared.starts]);
    results[1].named("o2");
    results[2].named("rows");
    let o = results[0].named("o"); // [b, s, h e]
    o.reshape([n, o.dim(2)]).einsum("nw,wm->nm", weights.o)
}

/// SwiGLU with its projections. x: `[n, m]`, scale: of its norm, `[n]`.
fn mlp<'f>(
    weights: &FoldedBlock<Tensor<'f>>,
    x: Tensor<'f>,
    scale: Tensor<'f>,
    masks: Option<Masks<'f>>,
) -> Tensor<'f> {
    let mut operands = vec![x, scale, weights.gate, weights.up, weights.down];
    operands.extend(masks.iter().flat_map(|masks| masks.words(Site::Hidden, weights.gate.dim(1))));
    let kernel = SwiGlu { rate: masks.map_or(0.0, |masks| masks.rate) };
    let results = x.builder().kernel(kernel, &operands);
    results[1].named("gate"); // [n, i]
    results[2].named("up");
    results[0] // [n, m]
}

/// The hidden state that predicts the token after next: the trunk's state and the next token's embedding, projected and
/// normed. hidden: `[b, s, m]`; the last position of each row means nothing. See [`maths`](crate::maths).
pub(crate) fn mtp_hidden<'f>(
    config: &Config,
    weights: &Folded<Tensor<'f>>,
    hidden: Tensor<'f>,
    ids: Tensor<'f>,
) -> Option<Tensor<'f>> {
    let mtp = weights.mtp.as_ref()?;
    let [b, s, m] = hidden.shape()[..] else { unreachable!("[b, s, m]") };
    let next = weights.embed.gather(shifted(ids, 1)); // [b, s, m]
    let joined = Tensor::concatenate(&[hidden, next], 2).reshape([b * s, 2 * m]);
    let z = joined.einsum("nw,wm->nm", mtp.proj);
    Some(rms_norm(z, mtp.norm, config.rms_norm_eps).reshape([b, s, m]))
}

/// Column `i` becomes column `i + by`; the last `by` columns repeat the first ones and mean nothing.
pub(crate) fn shifted<'f>(x: Tensor<'f>, by: usize) -> Tensor<'f> {
    let s = x.dim(1);
    let by = by.min(s);
    Tensor::concatenate(&[x.slice_axis(1, by, s), x.slice_axis(1, 0, by)], 1)
}

/// Positions `i` whose target `i + by` exists and lies in the same document: `[b, s]` bool.
pub(crate) fn has_target<'f>(segments: Tensor<'f>, by: usize) -> Tensor<'f> {
    let f: &'f Builder<'f> = segments.builder();
    let (b, s) = (segments.dim(0), segments.dim(1));
    let inside = f.iota(Type::i32([b, s]), 1).lt((s - by.min(s)) as i32);
    inside & segments.eq(shifted(segments, by)) & segments.ge(0)
}
