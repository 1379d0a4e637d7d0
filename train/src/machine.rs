//! What trains: the device with its programs and its state, as the loop of a run needs them. Tests have a [`Machine`] of
//! their own, whose steps are a function of their rows, to try what the loop keeps count of.

use crate::checkpoint::Reader;
use crate::config::{BatchShape, Resolved, RunConfig};
use crate::data::{Batch, Dataset, Tokenizer};
use crate::device::{CodeGeneration, Device, Preparation};
use crate::numbers::size;
use crate::sample;
use crate::signals::Stop;
use crate::state::{DeviceState, HostState, Metrics, StepInputs};
use crate::step::{Metric, step_of};
use crate::validation::Validator;
use anyhow::{Error, Result, bail};
use engine::pjrt::Code;
use engine::{Compiled, Host};
use model::Remat;
use program::say;
use std::sync::Arc;

/// Tokens of the sample at the end.
const SAMPLE_TOKENS: usize = 96;

/// Mean losses of held-out rows, of the next token and of the one after it if the model has that head.
pub type HeldOutLosses = (f64, Option<f64>);

/// What a machine is loaded with.
pub enum Content<'a> {
    /// Weights, one after another in the order of the parameters, and new moments.
    Weights(&'a mut dyn Iterator<Item = Host>),
    /// All of a checkpoint.
    Checkpoint(&'a Reader),
}

/// Holds the state of a run and changes it step by step.
pub trait Machine {
    /// A step's metrics on their way.
    type Pending;

    /// Takes weights and moments.
    ///
    /// # Errors
    /// If they cannot be read or do not fit.
    fn load(&mut self, content: Content<'_>) -> Result<()>;

    /// Queues one step. From then on the state is the one after that step.
    ///
    /// # Errors
    /// If the device refuses.
    fn step(&mut self, batch: &Batch, inputs: StepInputs) -> Result<Self::Pending>;

    /// Waits for a step's metrics, in the order of [`Metric::ALL`].
    ///
    /// # Errors
    /// If the step failed.
    fn read(&mut self, pending: Self::Pending) -> Result<[f64; Metric::ALL.len()]>;

    /// Copies the state to main memory.
    ///
    /// # Errors
    /// If the device fails.
    fn to_host(&self) -> Result<HostState>;

    /// The losses of held-out rows; none without such rows, or if the run is asked to stop meanwhile.
    ///
    /// # Errors
    /// If the device fails.
    fn validate(&mut self, stop: &Stop) -> Result<Option<HeldOutLosses>>;

    /// The held-out rows.
    fn held_out(&self) -> &[Batch];

    /// A sample of text from the weights, for a person to see; none if the machine writes none.
    ///
    /// # Errors
    /// If the device fails.
    fn sample(&self, tokenizer: &Tokenizer) -> Result<Option<String>>;

    /// The kind of device.
    fn kind(&self) -> &str;
}

/// The machine of every real run: a device, used through its PJRT plugin.
pub(crate) struct Accelerator {
    run: RunConfig,
    device: Device,
    program: Compiled,
    state: Option<DeviceState>,
    validator: Validator,
}

impl Accelerator {
    /// Opens the device, chooses what depends on its memory, compiles the step, and prints how that went.
    pub(crate) fn open(resolved: &mut Resolved, dataset: &Arc<Dataset>) -> Result<Accelerator> {
        let validator = Validator::new(&resolved.run, dataset)?;
        let device = Device::open(&resolved.run.platform, resolved.run.kernels)?;
        let kept = resolved.settle_remat(device.memory()?);
        say!("remat    {:?} {kept}", kept.remat);
        let run = resolved.run.clone();
        let (program, preparation) = device
            .compile(&step_of(&run, kept.remat), CodeGeneration::Quick)
            .map_err(|error| advised(error, &device, &run))?;
        report_program(&device, &program, &preparation)?;
        Ok(Accelerator { run, device, program, state: None, validator })
    }

    fn loaded(&self) -> Result<&DeviceState> {
        match &self.state {
            Some(state) => Ok(state),
            None => bail!("no weights were loaded; this is a bug of train"),
        }
    }
}

impl Machine for Accelerator {
    type Pending = Metrics;

    fn load(&mut self, content: Content<'_>) -> Result<()> {
        match (&mut self.state, content) {
            (Some(state), Content::Checkpoint(from)) => state.replace(&self.device, from)?,
            (None, Content::Checkpoint(from)) => {
                self.state = Some(DeviceState::restore(&self.device, &self.run, from)?);
            }
            (_, Content::Weights(weights)) => {
                self.state = Some(DeviceState::new(&self.device, &self.run, weights)?);
            }
        }
        Ok(())
    }

    fn step(&mut self, batch: &Batch, inputs: StepInputs) -> Result<Metrics> {
        match &mut self.state {
            Some(state) => state
                .step(&self.device, &self.program, batch, inputs)
                .map_err(|error| advised(error, &self.device, &self.run)),
            None => bail!("no weights were loaded; this is a bug of train"),
        }
    }

    fn read(&mut self, pending: Metrics) -> Result<[f64; Metric::ALL.len()]> {
        pending.read().map_err(|error| advised(error, &self.device, &self.run))
    }

    fn to_host(&self) -> Result<HostState> {
        self.loaded()?.to_host()
    }

    fn validate(&mut self, stop: &Stop) -> Result<Option<HeldOutLosses>> {
        match &self.state {
            Some(state) => self.validator.losses(&self.device, state, stop),
            None => Ok(None),
        }
    }

    fn held_out(&self) -> &[Batch] {
        &self.validator.batches
    }

    fn sample(&self, tokenizer: &Tokenizer) -> Result<Option<String>> {
        let (model, seed) = (&self.run.model, self.run.seed);
        sample::sample(&self.device, model, self.loaded()?.weights(), tokenizer, SAMPLE_TOKENS, seed)
            .map(Some)
    }

    fn kind(&self) -> &str {
        self.device.kind()
    }
}

/// An error of a step, and which settings make it take less if the device had no room for it.
fn advised(error: Error, device: &Device, run: &RunConfig) -> Error {
    let causes = error.chain().filter_map(|cause| cause.downcast_ref::<engine::pjrt::Error>());
    if !causes.map(engine::pjrt::Error::code).any(|code| code == Some(Code::ResourceExhausted)) {
        return error;
    }
    let limit = device.memory().ok().flatten().map_or(String::new(), |bytes| format!(" of {}", size(bytes)));
    error.context(format!("the step does not fit into the device's memory{limit}: {}", smaller_step(run)))
}

/// The settings that make a step take less memory, for the command line.
fn smaller_step(run: &RunConfig) -> String {
    let BatchShape { micro, accumulation, .. } = run.batch;
    match run.remat {
        Some(Remat::Selective) => "add `--set remat=lean`".to_owned(),
        Some(Remat::Lean) => "add `--set remat=full`".to_owned(),
        Some(Remat::Full) | None if micro % 2 == 0 => {
            format!("add `--set batch.micro={} --set batch.accumulation={}`", micro / 2, 2 * accumulation)
        }
        Some(Remat::Full) | None if micro > 1 => {
            format!("add `--set batch.micro=1 --set batch.accumulation={}`", micro * accumulation)
        }
        Some(Remat::Full) | None => {
            format!("add `--set batch.seq={}`, or take a smaller model", (run.batch.seq / 2).max(2))
        }
    }
}

fn report_program(device: &Device, step: &Compiled, preparation: &Preparation) -> Result<()> {
    for (kernel, form) in &preparation.forms {
        say!("kernel   {kernel}: {form:?}");
    }
    let memory = step.loaded().memory_use()?;
    let seconds = preparation.took.as_secs_f64();
    let mib = |bytes: u64| bytes >> 20;
    let limit = device.memory()?.map_or(String::new(), |limit| format!(" of {}", mib(limit)));
    say!(
        "device   {}; step program {:?} in the cache, ready in {seconds:.1} s, {}{limit} MiB",
        device.kind(),
        preparation.lookup,
        mib(memory.total() as u64)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Override, resolve};
    use model::Preset;

    /// What is said is taken from the command line, and a step then keeps less.
    #[test]
    fn settings_that_are_advised_take_less() {
        let mut set = vec!["remat=selective".to_owned(), "batch.micro=6".to_owned()];
        let mut before = u64::MAX;
        for wanted in ["remat=lean", "remat=full", "batch.micro=3", "batch.micro=1", "batch.seq=64"] {
            let overrides: Vec<Override> = set.iter().map(|text| Override::parse(text).unwrap()).collect();
            let run = resolve(Preset::Tiny, None, &overrides).unwrap().run;
            let keeps = run.kept(None).bytes;
            assert!(keeps < before, "{set:?}: {keeps}, before {before}");
            before = keeps;
            let advice = smaller_step(&run);
            let pasted = advice.split('`').nth(1).unwrap().split("--set ").skip(1);
            set.extend(pasted.map(|text| text.trim().to_owned()));
            assert!(advice.contains(&format!("--set {wanted}")), "{advice}");
            assert_eq!(
                run.batch.rows(),
                6 * resolve(Preset::Tiny, None, &[]).unwrap().run.batch.accumulation
            );
        }
    }
}
