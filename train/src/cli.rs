//! The command line of `train`.

use crate::checkpoint::{architecture, candidates};
use crate::config::{MOST_STEPS, Override, Resolved, RunConfigError, Source, resolve_over};
use crate::run_folder::CHECKPOINTS;
use clap::{Args, Parser};
use model::Preset;
use program::quoted;
use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Train a Python code model. Without arguments: a small model on the Python standard library, in a few minutes.
#[derive(Clone, Debug, Parser)]
#[command(name = "train", version)]
pub struct Cli {
    /// The configuration.
    #[command(flatten)]
    pub layers: ConfigFlags,
    /// Folder of prepared data; default: the Python standard library of this machine.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Folder of the run: checkpoints, metrics, plots.
    #[arg(long, value_name = "DIR", default_value = "runs/default")]
    pub out: PathBuf,
    /// Start from the weights of a checkpoint folder or a model.safetensors, at step 0. Their config.json gives the
    /// architecture, unless a preset or keys of the model are given.
    #[arg(long, value_name = "CKPT")]
    pub init: Option<PathBuf>,
    /// auto: go on with the run in --out, or begin it. PATH: begin a new run at another run's checkpoint; the same command
    /// later goes on with the new run. never: only begin.
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto")]
    pub resume: Resume,
    /// Decay the learning rate over N steps from the resumed stable-phase checkpoint; give another --out.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_STEPS))]
    pub branch_decay: Option<u64>,
    /// Go on although settings were changed that affect the weights.
    #[arg(long)]
    pub accept_changes: bool,
    /// Number of optimiser steps of the whole run.
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Device platform: cpu, cuda, tpu or the path of a PJRT plugin.
    #[arg(long, value_name = "NAME|PATH")]
    pub platform: Option<String>,
    /// Repeat a step that left the weights as they were, from the checkpoint before it, and show its rows; writes nothing.
    #[arg(long, value_name = "STEP")]
    pub replay: Option<u64>,
    /// Show the first N rows of the next step as the model will get them, and stop: text, marks, segments and targets. Nothing
    /// is compiled or written.
    #[arg(long, value_name = "N", conflicts_with_all = ["plan", "dry_run", "replay"], value_parser = clap::value_parser!(u32).range(1..))]
    pub show_rows: Option<u32>,
    /// Plan and compile, print memory and decisions, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Show on one screen what the run takes: memory, speed, hours, disk. With --platform tpu:v6e:1x1, cuda:h100 or
    /// cuda:h200 for a device that need not be here. Nothing is trained or written.
    #[arg(long, conflicts_with = "dry_run")]
    pub plan: bool,
    /// With --plan: the figures as JSON.
    #[arg(long, requires = "plan")]
    pub json: bool,
    /// With --plan: tokens of one epoch, for data that is not here yet.
    #[arg(long, value_name = "N", requires = "plan")]
    pub tokens: Option<u64>,
    /// Print all configuration keys, with ranges, presets and meaning, and stop.
    #[arg(long)]
    pub keys: bool,
}

/// The layers of a configuration: each is laid over the ones before.
#[derive(Clone, Debug, Args)]
pub struct ConfigFlags {
    /// Start from a preset: tiny, bench, small or 1b [default: tiny]
    #[arg(long, value_name = "P", conflicts_with = "config")]
    pub preset: Option<Preset>,
    /// Read a TOML file of configuration keys; its own `preset` key names what it starts from.
    #[arg(long, value_name = "F.toml")]
    pub config: Option<PathBuf>,
    /// Set one configuration key; may be repeated, the last one counts.
    #[arg(long = "set", value_name = "A.B=C")]
    pub set: Vec<String>,
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

impl fmt::Display for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resume::Auto => f.write_str("auto"),
            Resume::Never => f.write_str("never"),
            Resume::From(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Cli {
    /// The configuration that preset, file, `--set` and the other flags give together, later ones first;
    /// the architecture of `--init`'s weights is laid over the default preset.
    ///
    /// # Errors
    /// If a file cannot be read, or a key or a value is refused.
    pub fn resolve(&self) -> Result<Resolved, RunConfigError> {
        let flags = [
            ("--data", "data.path", self.data.as_ref().map(|path| path.display().to_string())),
            ("--steps", "steps", self.steps.map(|steps| steps.to_string())),
            ("--platform", "platform", self.platform.clone()),
        ];
        let given = self.init.as_deref().filter(|_| self.layers.preset.is_none());
        // If the weights that the run began with are gone by now, its own checkpoints have the architecture.
        let known = |path: &Path| architecture(path).or_else(|gone| self.own_architecture().ok_or(gone));
        let found = given.map(known).transpose().map_err(|error| RunConfigError::Init(error.into()))?;
        let weights = given.zip(found.as_ref().and_then(Option::as_ref));
        self.layers.resolve_over(weights, flags)
    }

    /// The architecture of the newest good checkpoint in the run's own folder.
    fn own_architecture(&self) -> Option<Option<model::Config>> {
        let all = candidates(&self.out.join(CHECKPOINTS)).ok()?;
        let (newest, _) = all.into_iter().find(|(_, state)| state.is_ok())?;
        architecture(&newest).ok()
    }

    /// This command line, to be pasted into a POSIX shell.
    pub fn command(&self) -> String {
        // Every field by name: a new flag must say how it is written.
        let Cli {
            layers: ConfigFlags { preset, config, set },
            data,
            out,
            init,
            resume,
            branch_decay,
            accept_changes,
            steps,
            platform,
            replay,
            show_rows,
            dry_run,
            plan,
            json,
            tokens,
            keys,
        } = self;
        let path = |path: &PathBuf| path.display().to_string();
        let mut values = vec![
            ("--preset", preset.map(|preset| preset.to_string())),
            ("--config", config.as_ref().map(path)),
        ];
        values.extend(set.iter().map(|set| ("--set", Some(set.clone()))));
        values.extend([
            ("--data", data.as_ref().map(path)),
            ("--out", Some(path(out))),
            ("--init", init.as_ref().map(path)),
            ("--resume", (*resume != Resume::Auto).then(|| resume.to_string())),
            ("--branch-decay", branch_decay.map(|steps| steps.to_string())),
            ("--steps", steps.map(|steps| steps.to_string())),
            ("--platform", platform.clone()),
            ("--replay", replay.map(|step| step.to_string())),
            ("--show-rows", show_rows.map(|rows| rows.to_string())),
            ("--tokens", tokens.map(|tokens| tokens.to_string())),
        ]);
        let mut words = vec!["cargo run -p train --".to_owned()];
        for (flag, value) in values {
            // Written as one word: clap takes the next one for a flag if it begins with a dash.
            match value {
                Some(value) if value.starts_with('-') => words.push(quoted(&format!("{flag}={value}"))),
                Some(value) => words.extend([flag.to_owned(), quoted(&value)]),
                None => {}
            }
        }
        let switches = [
            ("--accept-changes", *accept_changes),
            ("--dry-run", *dry_run),
            ("--plan", *plan),
            ("--json", *json),
            ("--keys", *keys),
        ];
        words.extend(switches.into_iter().filter(|(_, on)| *on).map(|(flag, _)| flag.to_owned()));
        words.join(" ")
    }
}

impl ConfigFlags {
    /// The configuration that these and further flags give together; a flag is its name, its key and its value, if it is
    /// given.
    ///
    /// # Errors
    /// As [`Cli::resolve`].
    pub fn resolve<const N: usize>(
        &self,
        flags: [(&'static str, &str, Option<String>); N],
    ) -> Result<Resolved, RunConfigError> {
        self.resolve_over(None, flags)
    }

    fn resolve_over<const N: usize>(
        &self,
        weights: Option<(&Path, &model::Config)>,
        flags: [(&'static str, &str, Option<String>); N],
    ) -> Result<Resolved, RunConfigError> {
        let mut overrides: Vec<Override> =
            self.set.iter().map(|text| Override::parse(text)).collect::<Result<_, _>>()?;
        overrides.extend(flags.into_iter().filter_map(|(flag, key, value)| {
            Some(Override { key: key.into(), value: value?, source: Source::Flag(flag) })
        }));
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|error| RunConfigError::Read { path: path.clone(), error })
        };
        let text = self.config.as_ref().map(read).transpose()?;
        let file = self.config.as_deref().zip(text.as_deref());
        resolve_over(self.preset.unwrap_or(Preset::Tiny), weights, file, &overrides)
    }
}
