//! [`Reader`]: a checkpoint's tensors, one at a time, so that main memory never holds more than one and the layer of it that
//! was just read. On a CPU, where the device's memory is main memory, a resume takes 1.12 times the state.

use super::folder::own_config;
use super::params::{check_names, param_of};
use super::tensors::TensorFile;
use super::weights::Weights;
use super::{CheckpointError, State, Verified, files};
use engine::Host;
use model::config::Bearing;
use model::{Config, ParamSpec, Params, specs};

/// A verified checkpoint that a run goes on from; its tensors are still on disk.
#[derive(Debug)]
pub struct Reader {
    state: State,
    config: Config,
    specs: Params<ParamSpec>,
    weights: Weights,
    optimizer: TensorFile,
}

impl Reader {
    /// Opens a checkpoint for a run with this configuration.
    ///
    /// # Errors
    /// If the weights belong to another architecture, or a file holds no tensors.
    pub fn open(checkpoint: &Verified, config: &Config) -> Result<Reader, CheckpointError> {
        let path = checkpoint.path();
        let found = own_config(path)?;
        let mut differences = config.differences(&found);
        differences.retain(|difference| difference.bearing == Bearing::Weights);
        if !differences.is_empty() {
            return Err(CheckpointError::OtherConfig { path: path.into(), differences });
        }
        let weights = Weights::open(&path.join(files::MODEL))?;
        let specs = specs(config);
        check_names(&weights, &specs)?;
        let optimizer = TensorFile::open(&path.join(files::OPTIMIZER))?;
        let state = checkpoint.state().clone();
        Ok(Reader { state, config: found, specs, weights, optimizer })
    }

    /// Step, position and the like.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The architecture that it was written with; it may differ from the asked one in fields of a run.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The master weights, f32, in their order.
    pub fn weights(&self) -> impl Iterator<Item = Result<Host, CheckpointError>> {
        self.specs.iter().map(|(_, spec)| param_of(&self.weights, spec, &self.specs))
    }

    /// Names of the optimiser's tensors, in alphabetical order.
    pub fn optimizer_names(&self) -> Vec<String> {
        self.optimizer.names()
    }

    /// A tensor of the optimiser, if there is one of this name.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn optimizer_tensor(&self, name: &str) -> Result<Option<Host>, CheckpointError> {
        self.optimizer.tensor(name)
    }
}
