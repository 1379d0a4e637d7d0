//! The two heads: losses for training and validation, and log-probabilities for scoring.

use crate::config::Config;
use crate::dropout::Dropout;
use crate::forward::{Batch, Remat, has_target, mtp_hidden, shifted, trunk};
use crate::params::Params;
use engine::{DType, Tensor, Type};
use kernels::{Gradients, LinearCrossEntropy};

/// Scalars f32; what is divided by what is the caller's choice, through [`Counts`].
#[derive(Clone, Copy, Debug)]
pub struct Losses<T> {
    /// What is minimised: main + weight * mtp.
    pub total: T,
    /// Loss of the next token.
    pub main: T,
    /// Loss of the token after it; 0 without a second head.
    pub mtp: T,
}

/// Numbers of targets, f32 scalars, over everything that one loss is a mean of: the whole step, all micro-batches.
#[derive(Clone, Copy, Debug)]
pub struct Counts<T> {
    /// Next tokens.
    pub main: T,
    /// Tokens after the next one.
    pub mtp: T,
}

impl<'f> Counts<Tensor<'f>> {
    /// Counts targets. segments: `[.., b, s]` i32.
    pub fn of(segments: Tensor<'f>) -> Counts<Tensor<'f>> {
        let shape = segments.shape();
        let s = shape[shape.len() - 1];
        let flat = segments.reshape([segments.ty().elements() / s, s]);
        let count = |by| has_target(flat, by).convert(DType::F32).sum_all().max(1.0);
        Counts { main: count(1), mtp: count(2) }
    }
}

/// Losses of a batch, each a sum over its targets divided by its count. The mask is made from segments and lengths,
/// never from ids: the end-of-text token is a target like any other.
pub fn losses<'f>(
    config: &Config,
    params: &Params<Tensor<'f>>,
    batch: Batch<Tensor<'f>>,
    counts: Counts<Tensor<'f>>,
    dropout: Option<Dropout<'f>>,
    remat: Remat,
    gradients: Gradients,
) -> Losses<Tensor<'f>> {
    let [b, s] = batch.ids.shape()[..] else { panic!("ids {} are not [b, s]", batch.ids.ty()) };
    let dtype = config.dtype.dtype();
    let hidden = trunk(config, params, batch, dropout, remat);
    let kernel = LinearCrossEntropy {
        cap: config.final_logit_cap,
        columns: config.num_tokens,
        z_loss: config.z_loss,
        gradients,
    };
    let head = |hidden: Tensor<'f>, w: Tensor<'f>, by: usize, scale: Tensor<'f>| {
        let weights = has_target(batch.segments, by).convert(DType::F32) * scale; // [b, s]
        let args = [hidden.reshape([b * s, config.hidden_size]), w.convert(dtype)];
        let targets = shifted(batch.ids, by).reshape([b * s]);
        hidden.builder().kernel(kernel.clone(), &[args[0], args[1], targets, weights.reshape([b * s])])[0]
    };
    // The weight of the second head goes into its tokens' weights: the cotangent of both sums is then 1.
    let main = head(hidden, params.embed, 1, 1.0 / counts.main);
    match (mtp_hidden(config, params, hidden, batch.ids), &params.mtp) {
        (Some(z), Some(mtp)) if config.mtp_loss_weight > 0.0 => {
            let weighted = head(z, mtp.lm_head, 2, config.mtp_loss_weight / counts.mtp);
            Losses { total: main + weighted, main, mtp: weighted * (1.0 / config.mtp_loss_weight) }
        }
        _ => Losses { total: main, main, mtp: main.zeros_like() },
    }
}

/// Log-probabilities of the given tokens, f32: of each next token `[b, s-1]`, and of each token after the next one
/// `[b, s-2]` if there is a second head. What crosses a document's end is computed like the rest.
pub fn token_log_probs<'f>(
    config: &Config,
    params: &Params<Tensor<'f>>,
    batch: Batch<Tensor<'f>>,
) -> (Tensor<'f>, Option<Tensor<'f>>) {
    let s = batch.ids.dim(1);
    let hidden = trunk(config, params, batch, None, Remat::Full);
    let head = |hidden: Tensor<'f>, w: Tensor<'f>, by: usize| {
        log_probs(config, hidden, w, shifted(batch.ids, by)).slice_axis(1, 0, s - by)
    };
    let mtp = mtp_hidden(config, params, hidden, batch.ids).zip(params.mtp.as_ref());
    (head(hidden, params.embed, 1), mtp.map(|(z, mtp)| head(z, mtp.lm_head, 2)))
}

/// hidden `[b, s, m]`, w `[v, m]`, targets `[b, s]` -> `[b, s]`.
fn log_probs<'f>(config: &Config, hidden: Tensor<'f>, w: Tensor<'f>, targets: Tensor<'f>) -> Tensor<'f> {
    let logits = logits(config, hidden, w); // [b, s, v]
    let top = logits.reduce_max(&[2]);
    let lse = (logits - top.along(logits, &[0, 1])).exp().sum(&[2]).log() + top;
    let column = logits.builder().iota(logits.ty().with_dtype(DType::I32), 2);
    let hot = column.eq(targets.along(logits, &[0, 1]));
    hot.select(logits, 0.0).sum(&[2]) - lse
}

/// Capped logits of a head, f32, -inf in padding columns. hidden `[b, s, m]`, w `[v, m]` -> `[b, s, v]`.
pub fn logits<'f>(config: &Config, hidden: Tensor<'f>, w: Tensor<'f>) -> Tensor<'f> {
    capped(config, hidden.einsum_as("bsm,vm->bsv", w.convert(hidden.dtype()), DType::F32))
}

/// The final cap and -inf in padding columns. z: `[b, s, v]` f32.
pub(crate) fn capped<'f>(config: &Config, z: Tensor<'f>) -> Tensor<'f> {
    let cap = config.final_logit_cap;
    let y = if cap > 0.0 { (z * (1.0 / cap)).tanh() * cap } else { z };
    if config.num_tokens == config.vocab_size {
        return y;
    }
    let column = y.builder().iota(Type::i32(y.shape()), 2);
    column.lt(config.num_tokens as i32).select(y, f64::NEG_INFINITY)
}
