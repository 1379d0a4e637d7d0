//! What an optimiser step changes, on the device: weights, moments, and the number of updates.

use crate::data::Batch;
use crate::device::Device;
use crate::step::Metric;
use anyhow::{Context, Result, bail};
use engine::pjrt::{Arg, Buffer};
use engine::{Compiled, DType, Host, Type};
use model::{Config, ParamSpec, Params, specs};

/// The state, in the order of the step program's first inputs and outputs: weights, m, v, number of updates.
pub struct DeviceState {
    specs: Params<ParamSpec>,
    buffers: Vec<Buffer>,
}

/// The state in main memory: weights, and the optimiser's tensors by name.
pub type HostState = (Params<Host>, Vec<(String, Host)>);

/// Numbers that change from step to step.
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

/// Names and types of what is not a weight, in order.
pub(crate) fn optimizer_tensors(specs: &Params<ParamSpec>) -> Vec<(String, Type)> {
    let moment = |part: &'static str| {
        specs.iter().map(move |(name, spec)| (format!("{part}.{name}"), spec.ty.clone()))
    };
    let updates = ("updates".to_owned(), Type::scalar(DType::I32));
    moment("m").chain(moment("v")).chain([updates]).collect()
}

impl DeviceState {
    /// New moments around the given weights.
    ///
    /// # Errors
    /// If the state does not fit.
    pub fn new(device: &Device, config: &Config, weights: &Params<Host>) -> Result<DeviceState> {
        let specs = specs(config);
        let mut buffers = Vec::new();
        for (_, weight) in weights.iter() {
            buffers.push(device.put(weight)?);
        }
        for _ in ["m", "v"] {
            for (_, spec) in specs.iter() {
                buffers.push(device.put(&Host::zeros(spec.ty.clone()))?);
            }
        }
        buffers.push(device.put(&Host::zeros(Type::scalar(DType::I32)))?);
        Ok(DeviceState { specs, buffers })
    }

    /// The state of a checkpoint.
    ///
    /// # Errors
    /// If a tensor of the optimiser is missing or has another type, or the state does not fit.
    pub fn restore(
        device: &Device,
        config: &Config,
        weights: &Params<Host>,
        optimizer: &[(String, Host)],
    ) -> Result<DeviceState> {
        let mut state = DeviceState { specs: specs(config), buffers: Vec::new() };
        state.replace(device, weights, optimizer)?;
        Ok(state)
    }

    /// Takes another checkpoint's numbers; the old ones leave the device first.
    ///
    /// # Errors
    /// As [`restore`](DeviceState::restore).
    pub fn replace(
        &mut self,
        device: &Device,
        weights: &Params<Host>,
        optimizer: &[(String, Host)],
    ) -> Result<()> {
        self.buffers.clear();
        for (_, weight) in weights.iter() {
            self.buffers.push(device.put(weight)?);
        }
        for (name, ty) in optimizer_tensors(&self.specs) {
            match optimizer.iter().find(|(found, _)| *found == name) {
                Some((_, host)) if *host.ty() == ty => self.buffers.push(device.put(host)?),
                Some((_, host)) => {
                    bail!("the checkpoint's optimiser tensor `{name}` is {}, wanted {ty}", host.ty())
                }
                None => bail!(
                    "the checkpoint has no optimiser tensor `{name}`; start from its weights with --init"
                ),
            }
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
        // All transfers are under way before the first is waited for.
        let transfers = self.buffers.iter().map(Buffer::to_host_async).collect::<Result<Vec<_>, _>>()?;
        let mut hosts =
            transfers.into_iter().map(|transfer| transfer.wait()).collect::<Result<Vec<_>, _>>()?;
        let optimizer = hosts.split_off(self.weights().len());
        let names = optimizer_tensors(&self.specs).into_iter().map(|(name, _)| name);
        Ok((self.specs.with_leaves(hosts), names.zip(optimizer).collect()))
    }

    /// Queues one step; the state afterwards is that behind the step.
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
