//! What an optimiser step changes, on the device: weights, moments, and the number of updates.

use crate::checkpoint::Reader;
use crate::config::RunConfig;
use crate::data::Batch;
use crate::device::{CodeGeneration, Device};
use crate::step::{Metric, kept_folded, optimizer_tensors};
use anyhow::{Context, Result, bail, ensure};
use engine::pjrt::{Arg, Buffer};
use engine::{Compiled, DType, Host, Program};
use model::folded::fold_program;
use model::{ParamSpec, Params, specs};

/// The state, in the order of the step program's first inputs and outputs: weights, m, v, number of updates, and the
/// folded weights of a model that computes in bf16. The last are made from the weights; checkpoints do not hold them.
pub struct DeviceState {
    specs: Params<ParamSpec>,
    first_moment: DType,
    fold: Option<Compiled>,
    buffers: Vec<Buffer>,
}

/// The state in main memory: weights, and the optimiser's tensors by name.
pub type HostState = (Params<Host>, Vec<(String, Host)>);

/// The inputs of a step that are numbers.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs {
    /// The schedule's value.
    pub learning_rate: f64,
    /// Steps with a longer gradient are thrown away.
    pub largest_norm: f32,
    /// Number of the step, from 0: the counter of dropout.
    pub step: u64,
    /// The run's seed.
    pub seed: u64,
}

/// A step's metrics, still on their way.
pub struct Metrics(Buffer);

impl Metrics {
    /// Waits for the step and reads them, in the order of [`Metric::ALL`].
    ///
    /// # Errors
    /// If the step failed on the device.
    pub fn read(&self) -> Result<[f64; Metric::ALL.len()]> {
        let host = self.0.to_host().context("running a training step")?;
        let values: Vec<f64> = host.to_f64();
        Ok(values.try_into().expect("the step program's vector has one number for each metric"))
    }
}

impl DeviceState {
    /// The state of a run that begins with these weights, in the order of the parameters. Each of them is freed in main memory
    /// once it is on the device, where the moments are made.
    ///
    /// # Errors
    /// If the state does not fit.
    pub fn new(device: &Device, run: &RunConfig, weights: impl Iterator<Item = Host>) -> Result<DeviceState> {
        let mut state = DeviceState::empty(device, run)?;
        let (zeros, _) = device.compile(&state.zeros(), CodeGeneration::Quick)?;
        for weight in weights {
            state.buffers.push(device.put(&weight)?);
        }
        state.buffers.extend(zeros.run([])?);
        state.fold()?;
        Ok(state)
    }

    /// The state of a checkpoint.
    ///
    /// # Errors
    /// If the checkpoint cannot be read, a tensor of its optimiser is missing or has another type, or the state does not fit.
    pub fn restore(device: &Device, run: &RunConfig, from: &Reader) -> Result<DeviceState> {
        let mut state = DeviceState::empty(device, run)?;
        state.replace(device, from)?;
        Ok(state)
    }

    fn empty(device: &Device, run: &RunConfig) -> Result<DeviceState> {
        let fold = match kept_folded(&run.model) {
            Some(_) => Some(device.compile(&fold_program(&run.model), CodeGeneration::Quick)?.0),
            None => None,
        };
        let first_moment = run.optimizer.first_moment.dtype();
        Ok(DeviceState { specs: specs(&run.model), first_moment, fold, buffers: Vec::new() })
    }

    /// Makes the optimiser's tensors of a run that begins.
    fn zeros(&self) -> Program {
        Program::build("zeros", |f| {
            for (name, ty) in optimizer_tensors(&self.specs, self.first_moment) {
                f.output(&name, f.zeros(ty));
            }
        })
    }

    /// Takes the numbers of another checkpoint, one tensor in main memory at a time. The old ones leave the device first.
    ///
    /// # Errors
    /// As [`restore`](DeviceState::restore).
    pub fn replace(&mut self, device: &Device, from: &Reader) -> Result<()> {
        self.buffers.clear();
        for weight in from.weights() {
            self.buffers.push(device.put(&weight?)?);
        }
        for (name, ty) in optimizer_tensors(&self.specs, self.first_moment) {
            match from.optimizer_tensor(&name)? {
                Some(host) if *host.ty() == ty => self.buffers.push(device.put(&host)?),
                Some(host) => bail!(
                    "the checkpoint's optimiser tensor `{name}` is {}, wanted {ty}; set optimizer.first_moment as the \
                     run had it, or start a new run from its weights with --init and another --out",
                    host.ty()
                ),
                None => bail!(
                    "the checkpoint has no optimiser tensor `{name}`; start a new run from its weights with --init and \
                     another --out"
                ),
            }
        }
        self.fold()
    }

    /// Makes the folded weights, if the model keeps them.
    fn fold(&mut self) -> Result<()> {
        if let Some(fold) = &self.fold {
            let folded = fold.run(self.weights().iter().map(Arg::Keep))?;
            self.buffers.extend(folded);
        }
        Ok(())
    }

    /// The weights.
    pub fn weights(&self) -> &[Buffer] {
        &self.buffers[..self.specs.iter().count()]
    }

    /// Copies everything to main memory: weights, and the rest by name.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_host(&self) -> Result<HostState> {
        ensure!(!self.buffers.is_empty(), "the state was lost with the step that failed");
        let names: Vec<String> =
            optimizer_tensors(&self.specs, self.first_moment).into_iter().map(|(name, _)| name).collect();
        let kept = &self.buffers[..self.weights().len() + names.len()];
        // All transfers are under way before the first is waited for.
        let transfers = kept.iter().map(Buffer::to_host_async).collect::<Result<Vec<_>, _>>()?;
        let mut hosts =
            transfers.into_iter().map(|transfer| transfer.wait()).collect::<Result<Vec<_>, _>>()?;
        let optimizer = hosts.split_off(self.weights().len());
        Ok((self.specs.with_leaves(hosts), names.into_iter().zip(optimizer).collect()))
    }

    /// Queues one step. From then on the state is the one after that step.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn step(
        &mut self,
        device: &Device,
        program: &Compiled,
        batch: &Batch,
        inputs: StepInputs,
    ) -> Result<Metrics> {
        let shape = batch.shape.ids().shape;
        let seed = [inputs.seed as u32, (inputs.seed >> 32) as u32];
        let given = [
            Host::new(shape.clone(), &batch.ids),
            Host::new(shape, &batch.segments),
            Host::scalar(inputs.learning_rate as f32),
            Host::scalar(inputs.largest_norm),
            Host::scalar(inputs.step as u32),
            Host::new([2], &seed),
        ];
        let mut args: Vec<Arg> = self.buffers.drain(..).map(Arg::Donate).collect();
        for host in &given {
            args.push(Arg::Donate(device.put(host)?));
        }
        self.buffers = program.run(args)?;
        let metrics = self.buffers.pop().expect("the step program's last output");
        Ok(Metrics(metrics))
    }
}
