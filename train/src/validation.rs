//! The loss of held-out rows.

use crate::config::RunConfig;
use crate::data::{Batch, Dataset};
use crate::device::{CodeGeneration, Device};
use crate::numbers::group;
use crate::signals::Stop;
use crate::state::DeviceState;
use crate::step::validation_program;
use anyhow::Result;
use engine::pjrt::Arg;
use engine::{Compiled, Host};
use program::say;
use std::sync::Arc;

/// Held-out rows and the program that measures them; compiled at first use.
pub(crate) struct Validator {
    run: RunConfig,
    pub(crate) batches: Vec<Batch>,
    program: Option<Compiled>,
}

impl Validator {
    pub(crate) fn new(run: &RunConfig, dataset: &Arc<Dataset>) -> Result<Validator> {
        let batches = match dataset.has_validation() && run.validation.batches > 0 {
            true => {
                let rows = run.data.rows(run.batch.seq, run.seed);
                dataset.validation(&rows, 1, run.batch.micro, run.validation.batches as usize)?
            }
            false => Vec::new(),
        };
        let targets: u64 = batches.iter().map(Batch::targets).sum();
        say!("held out {}", dataset.held_out());
        match targets {
            0 if run.validation.batches == 0 => say!("         validation.batches = 0: nothing is evaluated"),
            0 => say!("         there is no token to predict: nothing is evaluated"),
            _ => say!(
                "         evaluated on {} tokens, drawn from all of them by the data alone: the same in every run",
                group(targets)
            ),
        }
        Ok(Validator { run: run.clone(), batches, program: None })
    }

    /// Mean losses of the next token and of the one after it, nats; none without held-out rows, or if the run is asked to
    /// stop meanwhile.
    pub(crate) fn losses(
        &mut self,
        device: &Device,
        state: &DeviceState,
        stop: &Stop,
    ) -> Result<Option<(f64, Option<f64>)>> {
        if self.batches.is_empty() {
            return Ok(None);
        }
        if self.program.is_none() {
            let program = validation_program(&self.run.model, self.run.batch);
            self.program = Some(device.compile(&program, CodeGeneration::Quick)?.0);
        }
        let program = self.program.as_ref().expect("compiled above");
        let mut sums = [0.0; 4];
        for batch in &self.batches {
            if stop.requested() {
                return Ok(None);
            }
            let shape = [batch.shape.micro, batch.shape.seq];
            let rows =
                [device.put(&Host::new(shape, &batch.ids))?, device.put(&Host::new(shape, &batch.segments))?];
            let results = program.run(state.weights().iter().chain(&rows).map(Arg::Keep))?;
            for (sum, value) in sums.iter_mut().zip(results[0].to_host()?.to_f64()) {
                *sum += value;
            }
        }
        let mtp = (self.run.model.mtp_num_tokens > 0).then_some(sums[2] / sums[3]);
        Ok(Some((sums[0] / sums[1], mtp)))
    }
}
