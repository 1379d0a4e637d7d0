//! [`Generator`]: weights on a device and the programs that decode with them.

use crate::options::Statistics;
use anyhow::{Context, Result};
use engine::pjrt::{Arg, Buffer};
use engine::{Compiled, Host, Target};
use model::decode::{
    Drafts, Matrices, Shape, TopTokens, copy_program, decoding_tables, prefill_program, prepare_program,
    tokens_program,
};
use model::{Compute, Config, Params};
use std::collections::HashMap;
use std::time::Instant;
use train::device::{CodeGeneration, Device};

/// Weights on a device, ready to generate, and the programs that were needed so far.
pub struct Generator {
    device: Device,
    config: Config,
    weights: Vec<Buffer>,
    /// RoPE's cosines and sines, for requests of all lengths.
    tables: Vec<Buffer>,
    programs: HashMap<Wanted, Compiled>,
}

/// Which program of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wanted {
    Prefill { shape: Shape, chunk: usize, top: TopTokens },
    Copy { shape: Shape },
    Tokens { shape: Shape, drafts: Drafts, top: TopTokens },
}

impl Generator {
    /// Puts weights on a device.
    ///
    /// # Errors
    /// If they do not fit.
    pub fn new(device: Device, config: &Config, params: &Params<Host>) -> Result<Generator> {
        let mut config = config.clone();
        if device.target() == Target::Cpu {
            // XLA's code for CPUs widens bf16 weights at each use, which takes longer than reading f32.
            config.dtype = Compute::F32;
        }
        let prepare = prepare_program(&config, Matrices::of(device.target()));
        let (prepare, _) = device.compile(&prepare, CodeGeneration::Quick)?;
        let masters = params.iter().map(|(_, host)| device.put(host)).collect::<Result<Vec<Buffer>>>()?;
        let weights = prepare.run(masters.iter().map(Arg::Keep)).context("preparing the weights")?;
        let tables = decoding_tables(&config).iter().map(|host| device.put(host)).collect::<Result<_>>()?;
        Ok(Generator { device, config, weights, tables, programs: HashMap::new() })
    }

    /// The model's configuration; its type is the one that is computed in.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Makes sure that a program is there.
    pub(crate) fn compile(&mut self, wanted: Wanted, took: &mut Statistics) -> Result<()> {
        if !self.programs.contains_key(&wanted) {
            let start = Instant::now();
            let program = match wanted {
                Wanted::Prefill { shape, chunk, top } => prefill_program(&self.config, shape, chunk, top),
                Wanted::Copy { shape } => copy_program(&self.config, shape),
                Wanted::Tokens { shape, drafts, top } => tokens_program(&self.config, shape, drafts, top),
            };
            let (compiled, _) = self.device.compile(&program, CodeGeneration::Thorough)?;
            self.programs.insert(wanted, compiled);
            took.compile += start.elapsed();
        }
        Ok(())
    }

    /// Weights, tables, and where in these each row begins: what programs with the model take first.
    pub(crate) fn model<'a>(&'a self, start: &'a Buffer) -> Vec<Arg<'a>> {
        self.weights.iter().chain(&self.tables).chain([start]).map(Arg::Keep).collect()
    }

    /// Runs a program that was compiled.
    pub(crate) fn run(&self, program: Wanted, args: Vec<Arg<'_>>) -> Result<Vec<Buffer>> {
        Ok(self.programs[&program].run(args)?)
    }
}
