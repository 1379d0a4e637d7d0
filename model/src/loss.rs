//! The two heads: losses for training and validation, and log-probabilities for scoring.

use crate::config::Config;
use crate::dropout::Dropout;
use crate::folded::Folded;
use crate::forward::{Batch, Remat, has_target, mtp_hidden, shifted, trunk};
use engine::{DType, Tensor, Type, grad_into};
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
    weights: &Folded<Tensor<'f>>,
    batch: Batch<Tensor<'f>>,
    counts: Counts<Tensor<'f>>,
) -> Losses<Tensor<'f>> {
    let hidden = trunk(config, weights, batch, None, Remat::Full);
    let main = head(config, hidden, weights.embed, Head::main(batch, counts), None)[0];
    let second = second_head(config, weights, hidden, batch, counts, None);
    together(config, main, second.map(|results| results[0]))
}

/// Losses of a batch, and the gradients of their total by the weights, f32, added to `sums` if there are any. The heads'
/// gradients are added while they are made, those of layers inside of the loop over layers: beside the sums there is
/// never another set.
pub fn gradients<'f>(
    config: &Config,
    weights: &Folded<Tensor<'f>>,
    batch: Batch<Tensor<'f>>,
    counts: Counts<Tensor<'f>>,
    dropout: Option<Dropout<'f>>,
    remat: Remat,
    sums: Option<&Folded<Tensor<'f>>>,
) -> (Losses<Tensor<'f>>, Folded<Tensor<'f>>) {
    let wide = |w: Tensor<'f>| w.builder().zeros(w.ty().with_dtype(DType::F32));
    let mut into = match sums {
        Some(sums) => sums.clone().map(|_, sum| Some(sum)),
        // The gradients of f32 weights are f32 by themselves.
        None => weights.clone().map(|_, w| (w.dtype() != DType::F32).then(|| wide(w))),
    };
    let hidden = trunk(config, weights, batch, dropout, remat);
    let embed_sum = into.embed.unwrap_or_else(|| wide(weights.embed));
    let results = head(config, hidden, weights.embed, Head::main(batch, counts), Some(embed_sum));
    into.embed = Some(results[2]);
    let head_sum = weights
        .mtp
        .as_ref()
        .zip(into.mtp.as_ref())
        .map(|(mtp, sums)| sums.lm_head.unwrap_or_else(|| wide(mtp.lm_head)));
    let second = second_head(config, weights, hidden, batch, counts, head_sum);
    let losses = together(config, results[0], second.as_ref().map(|results| results[0]));
    // The second head's matrix has its gradient already, and without its loss the head has none.
    let wanted = |name: &str| match name {
        "mtp.lm_head" => false,
        name => second.is_some() || !name.starts_with("mtp."),
    };
    let flat: Vec<_> = weights.clone().into_flat().into_iter().zip(into.leaves()).collect();
    let chosen = || flat.iter().filter(|((name, _), _)| wanted(name));
    let wrt: Vec<Tensor<'f>> = chosen().map(|((_, w), _)| *w).collect();
    let accumulators: Vec<Option<Tensor<'f>>> = chosen().map(|(_, sum)| *sum).collect();
    let mut found = grad_into(losses.total, &wrt, &accumulators).into_iter();
    let gradients = flat.iter().map(|((name, w), sum)| match (wanted(name), &second) {
        (true, _) => found.next().expect("one for each"),
        (false, Some(results)) => results[2],
        (false, None) => sum.unwrap_or_else(|| wide(*w)),
    });
    let gradients = weights.with_leaves(gradients);
    (losses, gradients)
}

/// What one head is to predict.
#[derive(Clone, Copy)]
struct Head<'f> {
    batch: Batch<Tensor<'f>>,
    /// How far ahead.
    by: usize,
    /// Factor of each token's loss.
    scale: Tensor<'f>,
}

impl<'f> Head<'f> {
    fn main(batch: Batch<Tensor<'f>>, counts: Counts<Tensor<'f>>) -> Head<'f> {
        Head { batch, by: 1, scale: 1.0 / counts.main }
    }
}

/// The loss, and with a sum the cotangent of hidden and the new sum. hidden: `[b, s, m]`, w: `[v, m]`.
fn head<'f>(
    config: &Config,
    hidden: Tensor<'f>,
    w: Tensor<'f>,
    Head { batch, by, scale }: Head<'f>,
    sum: Option<Tensor<'f>>,
) -> Vec<Tensor<'f>> {
    let n = batch.ids.ty().elements();
    let kernel = LinearCrossEntropy {
        cap: config.final_logit_cap,
        columns: config.num_tokens,
        z_loss: config.z_loss,
        gradients: if sum.is_some() { Gradients::Into } else { Gradients::Without },
    };
    let weights = has_target(batch.segments, by).convert(DType::F32) * scale; // [b, s]
    let targets = shifted(batch.ids, by).reshape([n]);
    // Its gradient is in the sum.
    let w = if sum.is_some() { w.stop_gradient() } else { w };
    let mut args = vec![hidden.reshape([n, config.hidden_size]), w, targets, weights.reshape([n])];
    args.extend(sum);
    hidden.builder().kernel(kernel, &args)
}

/// [`head`] of the token after the next one, times its weight: then the cotangent of both heads is 1.
fn second_head<'f>(
    config: &Config,
    weights: &Folded<Tensor<'f>>,
    hidden: Tensor<'f>,
    batch: Batch<Tensor<'f>>,
    counts: Counts<Tensor<'f>>,
    sum: Option<Tensor<'f>>,
) -> Option<Vec<Tensor<'f>>> {
    let mtp = weights.mtp.as_ref().filter(|_| config.mtp_loss_weight > 0.0)?;
    let hidden = mtp_hidden(config, weights, hidden, batch.ids)?;
    let head_of = Head { batch, by: 2, scale: config.mtp_loss_weight / counts.mtp };
    Some(head(config, hidden, mtp.lm_head, head_of, sum))
}

fn together<'f>(config: &Config, main: Tensor<'f>, weighted: Option<Tensor<'f>>) -> Losses<Tensor<'f>> {
    match weighted {
        Some(weighted) => {
            Losses { total: main + weighted, main, mtp: weighted * (1.0 / config.mtp_loss_weight) }
        }
        None => Losses { total: main, main, mtp: main.zeros_like() },
    }
}

/// Log-probabilities of the given tokens, f32: of each next token `[b, s-1]`, and of each token after the next one
/// `[b, s-2]` if there is a second head. What crosses a document's end is computed like the rest.
pub fn token_log_probs<'f>(
    config: &Config,
    weights: &Folded<Tensor<'f>>,
    batch: Batch<Tensor<'f>>,
) -> (Tensor<'f>, Option<Tensor<'f>>) {
    let s = batch.ids.dim(1);
    let hidden = trunk(config, weights, batch, None, Remat::Full);
    let head = |hidden: Tensor<'f>, w: Tensor<'f>, by: usize| {
        log_probs(config, hidden, w, shifted(batch.ids, by)).slice_axis(1, 0, s - by)
    };
    let mtp = mtp_hidden(config, weights, hidden, batch.ids).zip(weights.mtp.as_ref());
    (head(hidden, weights.embed, 1), mtp.map(|(z, mtp)| head(z, mtp.lm_head, 2)))
}

/// hidden `[b, s, m]`, w `[v, m]`, targets `[b, s]` -> `[b, s]`.
fn log_probs<'f>(config: &Config, hidden: Tensor<'f>, w: Tensor<'f>, targets: Tensor<'f>) -> Tensor<'f> {
    let logits = logits(config, hidden, w); // [b, s, v]
    // Less the largest one before anything is subtracted: the logarithm of a probability near 1 is a difference of nothing
    // larger than itself.
    let logits = logits - logits.reduce_max(&[2]).along(logits, &[0, 1]);
    let column = logits.builder().iota(logits.ty().with_dtype(DType::I32), 2);
    let hot = column.eq(targets.along(logits, &[0, 1]));
    hot.select(logits, 0.0).sum(&[2]) - logits.exp().sum(&[2]).log()
}

/// Logits of a head after the final cap, `cap tanh(z / cap)` if there is one, f32; -inf in padding columns. hidden
/// `[b, s, m]`, w `[v, m]` -> `[b, s, v]`.
pub fn logits<'f>(config: &Config, hidden: Tensor<'f>, w: Tensor<'f>) -> Tensor<'f> {
    let z = hidden.einsum_as("bsm,vm->bsv", w.convert(hidden.dtype()), DType::F32);
    let cap = config.final_logit_cap;
    let y = if cap > 0.0 { (z * (1.0 / cap)).tanh() * cap } else { z };
    if config.num_tokens == config.vocab_size {
        return y;
    }
    let column = y.builder().iota(Type::i32(y.shape()), y.rank() - 1);
    column.lt(config.num_tokens as i32).select(y, f64::NEG_INFINITY)
}
