//! The command line of `train`.

use crate::config::{Override, Resolved, RunConfigError, Source, resolve};
use clap::Parser;
use model::Preset;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Train a Python code model. Without arguments: a small model on the Python standard library, in a few minutes.
#[derive(Clone, Debug, Parser)]
#[command(name = "train", version)]
pub struct Cli {
    /// Start from a preset: tiny, bench, small or 1b.
    #[arg(long, value_name = "P", conflicts_with = "config")]
    pub preset: Option<Preset>,
    /// Read a TOML file of configuration keys; its own `preset` key names what it starts from.
    #[arg(long, value_name = "F.toml")]
    pub config: Option<PathBuf>,
    /// Set one configuration key; may be repeated, the last one counts.
    #[arg(long = "set", value_name = "A.B=C")]
    pub set: Vec<String>,
    /// Folder of prepared data; default: the Python standard library of this machine.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Folder of the run: checkpoints, metrics, plots.
    #[arg(long, value_name = "DIR", default_value = "runs/default")]
    pub out: PathBuf,
    /// Start from the weights of a checkpoint folder or a model.safetensors, at step 0.
    #[arg(long, value_name = "CKPT")]
    pub init: Option<PathBuf>,
    /// Go on from the newest good checkpoint in --out (auto), from a given one, or never.
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto")]
    pub resume: Resume,
    /// Decay the learning rate over N steps from the resumed stable-phase checkpoint; give another --out.
    #[arg(long, value_name = "N")]
    pub branch_decay: Option<u64>,
    /// Number of optimiser steps of the whole run.
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Device platform: cpu, cuda, tpu or the path of a PJRT plugin.
    #[arg(long, value_name = "NAME|PATH")]
    pub platform: Option<String>,
    /// Do a step again that left the weights as they were, from the checkpoint before it, and show its rows; writes nothing.
    #[arg(long, value_name = "STEP")]
    pub replay: Option<u64>,
    /// Plan and compile, print memory and decisions, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Say on one screen what the run takes: memory, speed, hours, disk; for a TPU that need not be here with
    /// --platform tpu:v6e:1x1. Nothing is trained or written.
    #[arg(long, conflicts_with = "dry_run")]
    pub plan: bool,
    /// With --plan: the figures as JSON.
    #[arg(long, requires = "plan")]
    pub json: bool,
    /// With --plan: tokens of one epoch, for data that is not here yet.
    #[arg(long, value_name = "N", requires = "plan")]
    pub tokens: Option<u64>,
}

/// Which checkpoint a run goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The newest good one of the run's folder, if there is one.
    Auto,
    /// None.
    Never,
    /// This one.
    From(PathBuf),
}

impl FromStr for Resume {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Resume, Infallible> {
        Ok(match text {
            "auto" => Resume::Auto,
            "never" => Resume::Never,
            path => Resume::From(path.into()),
        })
    }
}

impl Cli {
    /// The configuration that preset, file, `--set` and the other flags give together, later ones first.
    ///
    /// # Errors
    /// If the file cannot be read, or a key or a value is refused.
    pub fn resolve(&self) -> Result<Resolved, RunConfigError> {
        let mut overrides = Vec::new();
        for text in &self.set {
            overrides.push(Override::parse(text)?);
        }
        let flags = [
            ("--data", "data.path", self.data.as_ref().map(|path| path.display().to_string())),
            ("--steps", "steps", self.steps.map(|steps| steps.to_string())),
            ("--platform", "platform", self.platform.clone()),
        ];
        for (flag, key, value) in flags {
            if let Some(value) = value {
                overrides.push(Override { key: key.into(), value, source: Source::Flag(flag) });
            }
        }
        Cli::configuration(self.preset, self.config.as_deref(), &overrides)
    }

    /// The configuration that a preset (`tiny` if there is none), a file and overrides give together.
    ///
    /// # Errors
    /// As [`Cli::resolve`].
    pub fn configuration(
        preset: Option<Preset>,
        file: Option<&Path>,
        overrides: &[Override],
    ) -> Result<Resolved, RunConfigError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|error| RunConfigError::Read { path: path.to_owned(), error })
        };
        let text = file.map(read).transpose()?;
        resolve(preset.unwrap_or(Preset::Tiny), file.zip(text.as_deref()), overrides)
    }
}
