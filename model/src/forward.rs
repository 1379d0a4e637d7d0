//! The trunk: embedding, blocks scanned over layers, final norm. Functions over named parameters.
//!
//! Master weights are `f32`; each is converted to the compute type where it is used. Norms, softmaxes, lambda and RoPE
//! are computed in `f32`.

use crate::config::{Attention, Compute, Config};
use crate::dropout::{Dropout, Masks, Site};
use crate::params::{Block, Diff, Params};
use crate::rope::rope_tables;
use engine::{Builder, DType, Host, Save, ScanOptions, Tensor, Type};
use kernels::{DiffAttention, HeadNorm, Keys, ROWS, SwiGlu, document_starts};

/// Token ids and document segments, `[b, s]` i32 each. Segments do not decrease along a row; a negative one is padding.
#[derive(Clone, Copy, Debug)]
pub struct Batch<T> {
    /// Token ids.
    pub ids: T,
    /// Document of each token.
    pub segments: T,
}

/// What a block's backward pass receives instead of computing it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remat {
    /// Only the block's input: the least memory, one more forward pass.
    Full,
    /// Results of matrix products and of attention; norms, masks and activations are computed again.
    #[default]
    Selective,
}

impl Remat {
    fn save(self) -> Save {
        match self {
            Remat::Full => Save::Only(Vec::new()),
            Remat::Selective => {
                Save::Only(["qkv", "o", "o2", "rows", "x1", "gate", "up"].map(str::to_owned).to_vec())
            }
        }
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

/// Hidden states behind the final norm, `[b, s, m]` in the compute type.
pub fn trunk<'f>(
    config: &Config,
    params: &Params<Tensor<'f>>,
    batch: Batch<Tensor<'f>>,
    dropout: Option<Dropout<'f>>,
    remat: Remat,
) -> Tensor<'f> {
    let f = batch.ids.builder();
    let dtype = config.dtype.dtype();
    let layers = config.num_hidden_layers;
    let (cos, sin) = rope_tables(config, batch.ids.dim(1));
    let shared =
        Shared { starts: document_starts(batch.segments), rope: [f.constant(&cos), f.constant(&sin)] };
    let x = params.embed.gather(batch.ids).convert(dtype); // [b, s, m]
    let lambda_init: Vec<f32> = (0..layers).map(|layer| config.lambda_init(layer) as f32).collect();
    let mut stacks: Vec<Tensor<'f>> = Vec::new();
    params.layers.as_ref().map(|_, &stack| stacks.push(stack));
    stacks.push(f.constant(&Host::new([layers], &lambda_init)));
    let weights = stacks.len() - 1;
    let rate = dropout.map_or(0.0, |dropout| dropout.rate);
    if let Some(dropout) = dropout {
        let words = dropout.words(layers, config.hidden_size.max(config.intermediate_size));
        stacks.extend([words.rows, words.columns]);
    }
    let (x, _) = f.scan(ScanOptions::over(layers), &[x], &stacks, |g, carry, slices| {
        let operands: Vec<Tensor<'_>> = carry.iter().chain(slices).copied().collect();
        let x = g.call("block", remat.save(), &operands, |g, operands| {
            let (x, slices) = (operands[0], &operands[1..]);
            let mut of_weights = slices[..weights].iter();
            let p =
                params.layers.as_ref().map(|_, _| *of_weights.next().expect("one slice for each parameter"));
            let shared =
                Shared { starts: g.capture(shared.starts), rope: shared.rope.map(|table| g.capture(table)) };
            let masks = match slices[weights + 1..] {
                [rows, columns] => Some(Masks { rate, rows, columns }),
                _ => None,
            };
            vec![block(config, &p, x, &shared, slices[weights], masks)]
        });
        (x, vec![])
    });
    rms_norm(x[0], params.norm, config.rms_norm_eps) // [b, s, m]
}

/// `Y = X + Drop(Attention(Norm(X)))`, `X' = Y + Drop(MLP(Norm(Y)))`. x: `[b, s, m]`. Source: arXiv 2410.05258 eq. 4-5.
fn block<'f>(
    config: &Config,
    p: &Block<Tensor<'f>>,
    x: Tensor<'f>,
    shared: &Shared<'f>,
    lambda_init: Tensor<'f>,
    masks: Option<Masks<'f>>,
) -> Tensor<'f> {
    let attended = attention(config, p, rms_norm(x, p.input_norm, config.rms_norm_eps), shared, lambda_init);
    let x = (x + dropped(attended, masks, Site::Attention)).named("x1");
    let out = mlp(p, rms_norm(x, p.post_norm, config.rms_norm_eps), masks);
    x + dropped(out, masks, Site::Mlp)
}

/// `w x / sqrt(mean(x^2) + eps)` over the last axis, in f32; the result has x's type.
fn rms_norm<'f>(x: Tensor<'f>, w: Tensor<'f>, eps: f64) -> Tensor<'f> {
    let last = x.rank() - 1;
    let others: Vec<usize> = (0..last).collect();
    let wide = x.convert(DType::F32);
    let scale = ((wide * wide).mean(&[last]) + eps).rsqrt();
    (wide * scale.along(wide, &others) * w.along(wide, &[last])).convert(x.dtype())
}

fn dropped<'f>(x: Tensor<'f>, masks: Option<Masks<'f>>, site: Site) -> Tensor<'f> {
    let Some(masks) = masks else { return x };
    let [b, s, m] = x.shape()[..] else { unreachable!("[b, s, m]") };
    x * masks.mask(site, m, x.dtype()).reshape([b, s, m])
}

/// Differential attention between its projections. x: `[b, s, m]`, normed.
fn attention<'f>(
    config: &Config,
    p: &Block<Tensor<'f>>,
    x: Tensor<'f>,
    shared: &Shared<'f>,
    lambda_init: Tensor<'f>,
) -> Tensor<'f> {
    let f = x.builder();
    let dtype = x.dtype();
    let (heads, groups, d) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    // One product, one array: that is how the kernel reads them.
    let weights = Tensor::concatenate(&[p.q, p.k, p.v], 1).convert(dtype); // [m, w]
    let qkv = x.einsum("bsm,mw->bsw", weights).named("qkv"); // [b, s, w]
    let kernel = DiffAttention {
        heads: heads / 2,
        groups: groups / 2,
        head_dim: d,
        value_dim: 2 * d,
        keys: Keys::PerMap,
        norm: HeadNorm::Rms { eps: config.subln_eps },
        cap: config.attention_logit_cap,
        rows: ROWS,
        tiling: None,
    };
    let attend = |kernel: DiffAttention, lambda: Tensor<'f>| {
        let [cos, sin] = shared.rope;
        let results = f.kernel(kernel, &[qkv, cos, sin, lambda, shared.starts]);
        results[1].named("o2");
        results[2].named("rows");
        results[0].named("o") // [b, s, h e]
    };
    let out = match (config.attention, &p.diff) {
        (Attention::DiffV1, Diff::V1 { lambda_q1, lambda_k1, lambda_q2, lambda_k2, subln }) => {
            let dot = |a: Tensor<'f>, b: Tensor<'f>| (a * b).sum(&[0]).exp();
            let lambda = dot(*lambda_q1, *lambda_k1) - dot(*lambda_q2, *lambda_k2) + lambda_init;
            let heads = kernel.heads;
            let o = attend(kernel, lambda);
            // The head norm's fixed factor keeps the gradient flow of an ordinary Transformer.
            let weight = *subln * (1.0 - lambda_init); // [e]
            let weight = weight.broadcast_in_dim([heads, 2 * d], &[1]).reshape([heads * 2 * d]);
            let wide = o.convert(DType::F32);
            (wide * weight.along(wide, &[2])).convert(dtype)
        }
        (Attention::DiffV2, Diff::V2 { lambda_proj }) => {
            let lambda = x.einsum("bsm,mh->bsh", lambda_proj.convert(dtype));
            let kernel = DiffAttention {
                heads,
                groups,
                value_dim: d,
                keys: Keys::Shared,
                norm: HeadNorm::None,
                ..kernel
            };
            attend(kernel, lambda.convert(DType::F32).logistic())
        }
        _ => unreachable!("the parameter tree is made for the configuration"),
    };
    out.einsum("bsw,wm->bsm", p.o.convert(dtype))
}

/// SwiGLU between its projections. x: `[b, s, m]`, normed.
fn mlp<'f>(p: &Block<Tensor<'f>>, x: Tensor<'f>, masks: Option<Masks<'f>>) -> Tensor<'f> {
    let f = x.builder();
    let dtype = x.dtype();
    let [b, s, m] = x.shape()[..] else { unreachable!("[b, s, m]") };
    let mut operands = vec![x.reshape([b * s, m]), p.gate.convert(dtype), p.up.convert(dtype)];
    operands.extend(masks.iter().flat_map(|masks| masks.words(Site::Hidden, p.gate.dim(1))));
    let kernel = SwiGlu { rate: masks.map_or(0.0, |masks| masks.rate) };
    let hidden = f.kernel(kernel, &operands); // [n, i] each
    hidden[1].named("gate");
    hidden[2].named("up");
    hidden[0].einsum("ni,im->nm", p.down.convert(dtype)).reshape([b, s, m])
}

/// Embedding and final norm in the compute type, for programs of their own: rows of the embedding for ids.
pub(crate) fn embed<'f>(config: &Config, params: &Params<Tensor<'f>>, ids: Tensor<'f>) -> Tensor<'f> {
    params.embed.gather(ids).convert(config.dtype.dtype())
}

/// The hidden state that predicts the token after next: the trunk's state and the next token's embedding, projected and
/// normed. hidden: `[b, s, m]`; the last position of each row means nothing. Source: SPEC 2.
pub(crate) fn mtp_hidden<'f>(
    config: &Config,
    params: &Params<Tensor<'f>>,
    hidden: Tensor<'f>,
    ids: Tensor<'f>,
) -> Option<Tensor<'f>> {
    let mtp = params.mtp.as_ref()?;
    let next = embed(config, params, shifted(ids, 1)); // [b, s, m]
    let joined = Tensor::concatenate(&[hidden, next], 2); // [b, s, 2m]
    let z = joined.einsum("bsw,wm->bsm", mtp.proj.convert(hidden.dtype()));
    Some(rms_norm(z, mtp.norm, config.rms_norm_eps))
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
