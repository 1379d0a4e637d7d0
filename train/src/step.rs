//! One training step as one program: micro-batches accumulated by a scan, gradients clipped, AdamW, all state donated.
//! Learning rate, seed and step are inputs, so that a schedule does not compile anything again. Also the program that measures
//! the loss of held-out rows.
#![doc = include_str!("step.md")]

use crate::config::{BatchShape, Resolved, RunConfig, Source};
use crate::numbers::size;
use engine::{DType, Program, ScanOptions, Tensor, Type};
use model::folded::{folded_types, unfold_gradients};
use model::loss::{Counts, Losses, gradients, losses};
use model::{Batch, Compute, Config, Decay, Dropout, Folded, ParamSpec, Params, Remat, fold, specs};
use serde::Serialize;
use std::fmt;

/// AdamW's constants (arXiv 1711.05101), with the update as optax has it (`scale_by_adam`, `add_decayed_weights`): eps is added
/// outside of the root, and weight decay to the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of the weights whose spec says so.
    pub weight_decay: f64,
    /// Largest norm of the gradient of all parameters together; longer ones are scaled down to it.
    pub clip: f64,
    /// Type in which the first moment is kept between steps. The second is f32: its root divides.
    pub first_moment: DType,
}

/// Entries of the metrics vector, f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// main + weight * mtp.
    Loss,
    /// Loss of the next token.
    Main,
    /// Loss of the token after it.
    Mtp,
    /// Norm of the gradient before clipping.
    GradientNorm,
    /// 1 if the weights were updated, 0 if the step was thrown away.
    Applied,
    /// Targets of the next-token loss.
    Targets,
    /// Targets of the loss of the token after it.
    MtpTargets,
}

impl Metric {
    /// Every entry, in order.
    pub const ALL: [Metric; 7] = [
        Metric::Loss,
        Metric::Main,
        Metric::Mtp,
        Metric::GradientNorm,
        Metric::Applied,
        Metric::Targets,
        Metric::MtpTargets,
    ];
}

/// One part in this many of a device's memory is left for the heads, for workspace and for fragmentation.
const LEFT: u64 = 16;

/// What the backward pass receives, and the memory that this takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The choice.
    pub remat: Remat,
    /// Bytes that the blocks keep of a micro-batch.
    pub bytes: u64,
    /// Bytes that are free for it; none for a device that does not say its memory.
    pub room: Option<u64>,
}

/// Names and types of the optimiser's tensors, in the order of the step program: those of a checkpoint that are not weights.
pub(crate) fn optimizer_tensors(specs: &Params<ParamSpec>, first_moment: DType) -> Vec<(String, Type)> {
    let moment = |part: &'static str, dtype: DType| {
        specs.iter().map(move |(name, spec)| (format!("{part}.{name}"), spec.ty.with_dtype(dtype)))
    };
    let updates = ("updates".to_owned(), Type::scalar(DType::I32));
    moment("m", first_moment).chain(moment("v", DType::F32)).chain([updates]).collect()
}

impl RunConfig {
    /// What the backward pass receives: as configured, or as much as there is room for beside state and gradients on a
    /// device with `memory` bytes, of which a sixteenth is left free. If the device does not say its
    /// memory, the backward pass receives the least.
    pub fn kept(&self, memory: Option<u64>) -> Kept {
        let bytes = |types: &[Type]| types.iter().map(|ty| ty.bytes() as u64).sum::<u64>();
        let specs = specs(&self.model);
        let weights: Vec<Type> = specs.iter().map(|(_, spec)| spec.ty.clone()).collect();
        let moments: Vec<Type> = optimizer_tensors(&specs, self.optimizer.first_moment.dtype())
            .into_iter()
            .map(|(_, ty)| ty)
            .collect();
        let folded: Vec<Type> = folded_types(&self.model).into_flat().into_iter().map(|(_, ty)| ty).collect();
        let gradients: Vec<Type> = folded.iter().map(|ty| ty.with_dtype(DType::F32)).collect();
        let state = bytes(&weights)
            + bytes(&moments)
            + if kept_folded(&self.model).is_some() { bytes(&folded) } else { 0 };
        let room = memory.map(|memory| (memory - memory / LEFT).saturating_sub(state + bytes(&gradients)));
        let tokens = self.batch.micro * self.batch.seq;
        let takes = |remat: Remat| remat.kept_bytes(&self.model, tokens) as u64;
        let fits = |remat: &Remat| room.is_some_and(|room| takes(*remat) <= room);
        let remat = self.remat.unwrap_or_else(|| Remat::ALL.into_iter().find(fits).unwrap_or(Remat::Full));
        Kept { remat, bytes: takes(remat), room }
    }
}

impl Resolved {
    /// Chooses what the backward pass receives on a device with `memory` bytes, if that was left open, and writes it and the
    /// reason into the configuration.
    pub(crate) fn settle_remat(&mut self, memory: Option<u64>) -> Kept {
        let kept = self.run.kept(memory);
        if self.run.remat.is_none() {
            self.run.remat = Some(kept.remat);
            self.set_source("remat", Source::Auto(kept.to_string()));
        }
        kept
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "keeps {} for the backward pass", size(self.bytes))?;
        match self.room {
            Some(room) => write!(f, ", of {} that the device has beside state and gradients", size(room)),
            None => write!(
                f,
                "; the device does not say its memory, so the least is kept: set remat if there is more"
            ),
        }
    }
}

/// The step program of a run, whose backward pass receives `remat` ([`RunConfig::kept`]).
pub fn step_of(run: &RunConfig, remat: Remat) -> Program {
    let adamw = AdamW {
        beta1: run.optimizer.beta1,
        beta2: run.optimizer.beta2,
        eps: run.optimizer.eps,
        weight_decay: run.optimizer.weight_decay,
        clip: run.optimizer.clip,
        first_moment: run.optimizer.first_moment.dtype(),
    };
    step_program(&run.model, run.batch, adamw, remat)
}

/// The step program. Inputs: the state, all of it written over: `params.*` (f32), `m.*` (of `adamw.first_moment`), `v.*`
/// (f32), `updates` (i32, how many updates there were), and for a model that computes in bf16 `folded.*`, its weights as
/// the forward pass reads them; then `ids`, `segments` `i32[accumulation, micro, seq]`, `learning_rate` f32,
/// `largest_norm` f32, `step` u32, `seed` `u32[2]`. Outputs: the state, and `metrics` f32 in the order of [`Metric::ALL`].
///
/// A step whose loss, gradient norm or learning rate is not finite, or whose norm exceeds `largest_norm`, leaves the state as it was.
pub fn step_program(config: &Config, shape: BatchShape, adamw: AdamW, remat: Remat) -> Program {
    Program::build("step", |f| {
        let specs = specs(config);
        let params = specs.as_ref().map(|name, spec| f.input(&format!("params.{name}"), spec.ty.clone()));
        let m = specs
            .as_ref()
            .map(|name, spec| f.input(&format!("m.{name}"), spec.ty.with_dtype(adamw.first_moment)));
        let v = specs.as_ref().map(|name, spec| f.input(&format!("v.{name}"), spec.ty.clone()));
        let updates = f.input("updates", Type::scalar(DType::I32));
        let kept = kept_folded(config).map(|ty| ty.map(|name, ty| f.input(&format!("folded.{name}"), ty)));
        let weights = kept.clone().unwrap_or_else(|| fold(config, &params));
        let batch = Batch { ids: f.input("ids", shape.ids()), segments: f.input("segments", shape.ids()) };
        let learning_rate = f.input("learning_rate", Type::scalar(DType::F32));
        let largest_norm = f.input("largest_norm", Type::scalar(DType::F32));
        let step = f.input("step", Type::scalar(DType::U32));
        let seed = f.input("seed", Type::new(DType::U32, [2]));
        let seed = [0, 1].map(|word| seed.slice_axis(0, word, word + 1).reshape([]));

        let key = Dropout::key(seed, step);
        let (folded_gradients, sums) = accumulated(config, shape, &weights, batch, key, remat);
        let gradients = unfold_gradients(config, &params, &folded_gradients);
        let squares = gradients.iter().map(|(_, g)| (*g * *g).sum_all()).reduce(|a, b| a + b);
        let norm = squares.expect("a model has parameters").sqrt();
        let finite = norm.is_finite() & sums.total.is_finite() & learning_rate.is_finite();
        let applied = finite & norm.le(largest_norm);
        let scale = (adamw.clip / norm).min(1.0);

        // 1 - beta^t, accurate for small t
        let t = (updates + 1i32).convert(DType::F32);
        let correction = |beta: f64| -(t * beta.ln()).expm1();
        let (c1, c2) = (correction(adamw.beta1), correction(adamw.beta2));
        let state = params.clone().zip(m).zip(v).zip(gradients).zip(specs).into_flat();
        let mut updated = Vec::new();
        for (name, ((((p, m), v), g), spec)) in state {
            let g = g * scale;
            let m32 = m.convert(DType::F32);
            // The update reads the moments that leave the program. If it read the new moment before the selection, XLA would
            // compute that a second time in the update, and would have to keep a copy of the old one for it.
            let new_m = applied.select(m32 * adamw.beta1 + g * (1.0 - adamw.beta1), m32);
            let new_v = applied.select(v * adamw.beta2 + g * g * (1.0 - adamw.beta2), v);
            let update = new_m / c1 / ((new_v / c2).sqrt() + adamw.eps);
            let update = match spec.decay {
                Decay::Yes => update + p * adamw.weight_decay,
                Decay::No => update,
            };
            let new_p = applied.select(p - update * learning_rate, p);
            updated.push((name, [(new_p, p), (new_m.convert(m.dtype()), m), (new_v, v)]));
        }
        for (group, part) in ["params", "m", "v"].into_iter().enumerate() {
            for (name, pairs) in &updated {
                let (new, old) = pairs[group];
                f.output_over(&format!("{part}.{name}"), new, old);
            }
        }
        f.output_over("updates", updates + applied.convert(DType::I32), updates);
        if let Some(kept) = kept {
            // Cast in the update's own pass, estimated at 3 Mcycles for `1b`; a pass of its own would take 29.
            let params = params.with_leaves(updated.iter().map(|(_, [(new, _), ..])| *new));
            for ((name, new), old) in fold(config, &params).into_flat().into_iter().zip(kept.leaves()) {
                f.output_over(&format!("folded.{name}"), new, old);
            }
        }
        let counts = Counts::of(batch.segments);
        let metrics = Metric::ALL.map(|metric| match metric {
            Metric::Loss => sums.total,
            Metric::Main => sums.main,
            Metric::Mtp => sums.mtp,
            Metric::GradientNorm => norm,
            Metric::Applied => applied.convert(DType::F32),
            Metric::Targets => counts.main,
            Metric::MtpTargets => counts.mtp,
        });
        f.output("metrics", Tensor::concatenate(&metrics.map(|metric| metric.reshape([1])), 0));
    })
}

/// Types of the folded weights that are part of the state: those of a model that computes in bf16. In f32 they would be
/// a second copy of the weights, so there the step folds them itself.
pub(crate) fn kept_folded(config: &Config) -> Option<Folded<Type>> {
    (config.dtype == Compute::Bf16).then(|| folded_types(config))
}

/// Gradients and losses of all micro-batches, each target counted once whatever micro-batch it is in.
fn accumulated<'f>(
    config: &Config,
    shape: BatchShape,
    weights: &Folded<Tensor<'f>>,
    batch: Batch<Tensor<'f>>,
    key: [Tensor<'f>; 2],
    remat: Remat,
) -> (Folded<Tensor<'f>>, Losses<Tensor<'f>>) {
    let f = batch.ids.builder();
    let counts = Counts::of(batch.segments);
    if shape.accumulation == 1 {
        let rows = |x: Tensor<'f>| x.reshape([shape.micro, shape.seq]);
        let batch = Batch { ids: rows(batch.ids), segments: rows(batch.segments) };
        let dropout = dropout(config, shape, key, f.zeros(Type::scalar(DType::U32)));
        let (losses, gradients) = gradients(config, weights, batch, counts, dropout, remat, None);
        return (gradients, losses);
    }
    let zero = f.zeros(Type::scalar(DType::F32));
    let mut carry = vec![zero; 3];
    carry.extend(weights.leaves().iter().map(|w| f.zeros(w.ty().with_dtype(DType::F32))));
    let micros = f.iota(Type::new(DType::U32, [shape.accumulation]), 0);
    let (sums, _) = f.scan(
        ScanOptions::over(shape.accumulation),
        &carry,
        &[batch.ids, batch.segments, micros],
        |g, carry, slices| {
            let weights = weights.clone().map(|_, w| g.capture(w));
            let batch = Batch { ids: slices[0], segments: slices[1] };
            let counts = Counts { main: g.capture(counts.main), mtp: g.capture(counts.mtp) };
            let key = key.map(|word| g.capture(word));
            let dropout = dropout(config, shape, key, slices[2]);
            let sums = weights.with_leaves(carry[3..].iter().copied());
            let (losses, sums) = gradients(config, &weights, batch, counts, dropout, remat, Some(&sums));
            let mut next = vec![carry[0] + losses.total, carry[1] + losses.main, carry[2] + losses.mtp];
            next.extend(sums.leaves());
            (next, vec![])
        },
    );
    let losses = Losses { total: sums[0], main: sums[1], mtp: sums[2] };
    (weights.with_leaves(sums[3..].iter().copied()), losses)
}

/// Masks of micro-batch number `micro` (a `u32` scalar), if the model drops anything.
fn dropout<'f>(
    config: &Config,
    shape: BatchShape,
    key: [Tensor<'f>; 2],
    micro: Tensor<'f>,
) -> Option<Dropout<'f>> {
    let tokens = Dropout::token_indices(micro, shape.micro * shape.seq);
    (config.dropout > 0.0).then_some(Dropout { rate: config.dropout, key, tokens })
}

/// The validation program. Inputs: `params.*`, `ids` and `segments` `i32[micro, seq]`. Output: `sums` f32: loss of next
/// tokens summed, their number, loss of tokens after them summed, their number.
pub fn validation_program(config: &Config, shape: BatchShape) -> Program {
    Program::build("validation", |f| {
        let params = specs(config).map(|name, spec| f.input(&format!("params.{name}"), spec.ty));
        let ty = Type::i32([shape.micro, shape.seq]);
        let batch = Batch { ids: f.input("ids", ty.clone()), segments: f.input("segments", ty) };
        let one = f.full(Type::scalar(DType::F32), 1.0);
        let sums = losses(config, &fold(config, &params), batch, Counts { main: one, mtp: one });
        let counts = Counts::of(batch.segments);
        let sums = [sums.main, counts.main, sums.mtp, counts.mtp].map(|sum| sum.reshape([1]));
        f.output("sums", Tensor::concatenate(&sums, 0));
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolve;
    use model::Preset;

    /// 31.24 GiB are a v6e's; what is kept there is measured to fit (step.md).
    #[test]
    fn what_is_kept_follows_from_the_memory() {
        let mut run = resolve(Preset::OneB, None, &[]).unwrap().run;
        let kept = |run: &RunConfig, gib: f64| run.kept(Some((gib * (1u64 << 30) as f64) as u64));
        let v6e = kept(&run, 31.24);
        assert_eq!(v6e.remat, Remat::Selective);
        assert!((12.3..12.5).contains(&(v6e.bytes as f64 / (1u64 << 30) as f64)), "{v6e}");
        assert_eq!(kept(&run, 26.0).remat, Remat::Lean);
        assert_eq!(kept(&run, 16.0).remat, Remat::Full);
        assert_eq!(kept(&run, 80.0).remat, Remat::Selective);
        assert_eq!(run.kept(None).remat, Remat::Full);
        // More rows keep more, until there is no room for them.
        run.batch.micro = 16;
        assert_ne!(kept(&run, 31.24).remat, Remat::Selective);
        run.remat = Some(Remat::Selective);
        assert_eq!(kept(&run, 1.0).remat, Remat::Selective, "as configured");
    }
}
