//! A step that left the weights as they were, done again and looked at: `--replay STEP`.

use crate::checkpoint::State;
use crate::config::RunConfig;
use crate::data::{Batch, Dataset, Loader, PADDING, Position};
use crate::device::Device;
use crate::metrics::{self, BadStep};
use crate::scaling::Plan;
use crate::state::{DeviceState, StepInputs};
use crate::step::Metric;
use anyhow::{Context, Result, bail};
use engine::Compiled;
use program::say;
use std::path::Path;
use std::sync::Arc;

/// Characters of a row that are shown.
const SHOWN: usize = 160;

/// A run that is ready to train behind a checkpoint.
pub(crate) struct Machine<'a> {
    pub(crate) run: &'a RunConfig,
    pub(crate) plan: &'a Plan,
    pub(crate) device: &'a Device,
    pub(crate) step: &'a Compiled,
    pub(crate) dataset: &'a Arc<Dataset>,
    pub(crate) loader: Loader,
    pub(crate) state: DeviceState,
}

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

/// Trains from the checkpoint to the bad step without writing anything, does that step, and shows what came out and its rows.
pub(crate) fn replay(bad: &BadStep, mut at: State, mut machine: Machine<'_>) -> Result<()> {
    say!("replay   step {}, {} steps behind the checkpoint", bad.step, bad.step - at.step - 1);
    while at.step + 1 < bad.step {
        let batch = machine.next_batch()?;
        machine.launch(&batch, &mut at)?;
    }
    if machine.loader.position() != bad.position {
        say!(
            "         the run had gone back and skipped rows before this step; its rows, but not its weights"
        );
        machine.start_at(bad.position)?;
    }
    let batch = machine.next_batch()?;
    let [loss, main, mtp, norm, applied, targets, _] = machine.launch(&batch, &mut at)?;
    let same = |found: f64, wanted: f64| found == wanted || !(found.is_finite() || wanted.is_finite());
    let compared = if same(loss, bad.loss) && same(norm, bad.gradient_norm) {
        "as recorded".to_owned()
    } else {
        format!("recorded were loss {}, gradient norm {}", bad.loss, bad.gradient_norm)
    };
    say!("loss {loss} (next token {main}, the one after it {mtp}), {targets} targets");
    say!("gradient norm {norm}, allowed {:.3e}, {compared}", bad.largest_norm);
    say!("the step {}", if applied == 0.0 { "left the weights as they were" } else { "changed the weights" });
    machine.show(&batch);
    Ok(())
}

impl Machine<'_> {
    fn next_batch(&mut self) -> Result<Batch> {
        Ok(self.loader.next_batch(self.run.batch.accumulation, self.run.batch.micro)?)
    }

    fn start_at(&mut self, position: Position) -> Result<()> {
        let rows = self.run.data.rows(self.run.batch.seq, self.run.seed);
        self.loader = Loader::start(Arc::clone(self.dataset), rows, position)?;
        Ok(())
    }

    /// One step, as the run's loop does it.
    fn launch(&mut self, batch: &Batch, at: &mut State) -> Result<[f64; Metric::ALL.len()]> {
        let inputs = StepInputs {
            learning_rate: self.plan.schedule.learning_rate(at.step),
            largest_norm: at.watch.largest_norm(at.step + 1, self.run.guard.spike_factor),
            step: at.step,
            seed: self.run.seed,
        };
        let metrics = self.state.step(self.device, self.step, batch, inputs)?.read()?;
        at.step += 1;
        let [.., norm, applied, _, _] = metrics;
        if applied == 0.0 {
            at.watch.thrown_away()
        } else {
            at.watch.applied(at.step, norm)
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
            let text = self.dataset.tokenizer().and_then(|tokenizer| tokenizer.decode(&used));
            let text = text.map_or_else(|| format!("{used:?}"), |text| format!("{text:?}"));
            let shown: String = text.chars().take(SHOWN).collect();
            say!("row {number}: {} tokens of {documents} documents: {shown}", used.len());
        }
    }
}
