//! `--replay STEP`: repeats a step that left the weights as they were, and shows its rows.

use crate::checkpoint::Progress;
use crate::data::{Batch, Loader, PADDING};
use crate::machine::Machine;
use crate::metrics::{self, BadStep};
use crate::scene::Scene;
use crate::state::StepInputs;
use crate::step::Metric;
use anyhow::{Context, Result, bail};
use program::say;
use std::path::Path;
use std::sync::Arc;

/// Characters of a row that are shown.
const SHOWN: usize = 160;

/// What the run in a folder recorded of a bad step; the newest record, if it met the step more than once.
pub(crate) fn recorded(out: &Path, step: u64) -> Result<BadStep> {
    let all =
        metrics::bad_steps(out).with_context(|| format!("reading the bad steps of {}", out.display()))?;
    if let Some(bad) = all.iter().rev().find(|bad| bad.step == step) {
        return Ok(*bad);
    }
    let mut steps: Vec<String> = all.iter().rev().map(|bad| bad.step.to_string()).take(10).collect();
    if steps.is_empty() {
        bail!("--replay {step}: no step of {} left the weights as they were", out.display());
    }
    steps.reverse();
    bail!(
        "--replay {step}: that step changed the weights; the last ones of {} that did not are {}",
        out.display(),
        steps.join(", ")
    )
}

/// Trains from the checkpoint up to the bad step without writing anything, does that step, and shows its results and rows.
pub(crate) fn replay<M: Machine>(
    bad: &BadStep,
    at: Progress,
    scene: &Scene,
    machine: M,
    loader: Loader,
) -> Result<()> {
    say!("replay   step {}, {} steps after the checkpoint", bad.step, bad.step - at.step - 1);
    let mut replay = Replay { scene, machine, loader, at };
    while replay.at.step + 1 < bad.step {
        let batch = replay.next_batch()?;
        replay.launch(&batch)?;
    }
    if replay.loader.position() != bad.position {
        say!(
            "         the run had gone back and skipped rows before this step; its rows, but not its weights"
        );
        replay.loader = Loader::start(Arc::clone(&scene.dataset), scene.rows(), bad.position)?;
    }
    let batch = replay.next_batch()?;
    let [loss, main, mtp, norm, applied, targets, _] = replay.launch(&batch)?;
    let same = |found: f64, wanted: f64| found == wanted || !(found.is_finite() || wanted.is_finite());
    let compared = if same(loss, bad.loss) && same(norm, bad.gradient_norm) {
        "as recorded".to_owned()
    } else {
        format!("recorded were loss {}, gradient norm {}", bad.loss, bad.gradient_norm)
    };
    say!("loss {loss} (next token {main}, the one after it {mtp}), {targets} targets");
    say!("gradient norm {norm}, allowed {:.3e}, {compared}", bad.largest_norm);
    say!("the step {}", if applied == 0.0 { "left the weights as they were" } else { "changed the weights" });
    replay.show(&batch);
    Ok(())
}

/// A run that is ready to train on from a checkpoint.
struct Replay<'s, M: Machine> {
    scene: &'s Scene,
    machine: M,
    loader: Loader,
    at: Progress,
}

impl<M: Machine> Replay<'_, M> {
    fn next_batch(&mut self) -> Result<Batch> {
        let batch = self.scene.resolved.run.batch;
        Ok(self.loader.next_batch(batch.accumulation, batch.micro)?)
    }

    /// One step, as the run's loop does it.
    fn launch(&mut self, batch: &Batch) -> Result<[f64; Metric::ALL.len()]> {
        let (run, step) = (&self.scene.resolved.run, self.at.step);
        let inputs = StepInputs {
            learning_rate: self.scene.plan.schedule.learning_rate(step),
            largest_norm: self.at.watch.largest_norm(step + 1, run.guard.spike_factor),
            step,
            seed: run.seed,
        };
        let pending = self.machine.step(batch, inputs)?;
        let metrics = self.machine.read(pending)?;
        self.at.step += 1;
        let [.., norm, applied, _, _] = metrics;
        if applied == 0.0 {
            self.at.watch.thrown_away()
        } else {
            self.at.watch.applied(self.at.step, norm)
        }
        Ok(metrics)
    }

    /// The beginning of every row: text if there is a tokenizer, else ids.
    fn show(&self, batch: &Batch) {
        let seq = batch.shape.seq;
        let rows = batch.ids.chunks(seq).zip(batch.segments.chunks(seq));
        for (number, (ids, segments)) in rows.enumerate() {
            let used: Vec<i32> = ids
                .iter()
                .zip(segments)
                .filter(|(_, segment)| **segment != PADDING)
                .map(|(id, _)| *id)
                .collect();
            let documents = segments.iter().filter(|s| **s != PADDING).max().map_or(0, |last| last + 1);
            let text = self.scene.dataset.tokenizer().and_then(|tokenizer| tokenizer.decode(&used));
            let text = text.map_or_else(|| format!("{used:?}"), |text| format!("{text:?}"));
            let shown: String = text.chars().take(SHOWN).collect();
            say!("row {number}: {} tokens of {documents} documents: {shown}", used.len());
        }
    }
}
