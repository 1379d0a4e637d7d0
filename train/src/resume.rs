//! What a run begins with: a checkpoint of its own, of its mirror or of another run, given weights, or new ones.

use crate::checkpoint::{self, Latest, Reader, Verified, architecture, latest_good, load_weights};
use crate::cli::{Cli, Resume, quoted};
use crate::config::RunConfig;
use crate::data::Dataset;
use crate::device::Device;
use crate::scaling::Plan;
use crate::schedule::Phase;
use crate::state::DeviceState;
use anyhow::{Result, bail, ensure};
use engine::Host;
use model::config::Bearing;
use model::{Params, initial_params};
use program::say;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder of a run's checkpoints in its own folder.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// The checkpoint that the run goes on from, said aloud.
pub(crate) fn resume_point(cli: &Cli, root: &Path, mirror: Option<&Path>) -> Result<Option<Verified>> {
    let found = match &cli.resume {
        Resume::Never => {
            // Damaged ones as well: a new run must not write over what may still be mended.
            for (folder, other) in [(Some(root), "--out"), (mirror, "checkpoint.mirror")] {
                let Some(folder) = folder else { continue };
                if let Some(step) = checkpoint::newest_step(folder)? {
                    bail!(
                        "{} already holds checkpoint step_{step:08}; give another {other}, or go on from it with --resume auto",
                        folder.display()
                    );
                }
            }
            None
        }
        Resume::From(path) => match checkpoint::verify(path) {
            Ok(good) => Some(good),
            Err(error) => match path.parent().map(latest_good) {
                Some(Ok(Latest { good: Some(good), .. })) => {
                    let good = quoted(&good.path().display().to_string());
                    bail!("{error}; the newest good one beside it: --resume {good}")
                }
                _ => return Err(error.into()),
            },
        },
        Resume::Auto => {
            let latest = newest(root, mirror)?;
            for (path, reason) in &latest.refused {
                say!("passing over {}: {reason}", path.display());
            }
            latest.good
        }
    };
    if let Some(found) = &found {
        // The run that started from these weights goes on with the same command.
        if cli.init.is_some() && cli.init != found.state().init {
            let remedy = match cli.resume {
                Resume::From(_) => "leave out --init or --resume",
                Resume::Auto | Resume::Never => "give another --out",
            };
            bail!("--init starts a new run, but {} is there to go on from; {remedy}", found.path().display());
        }
        say!("resume   {}", found.path().display());
    }
    Ok(found)
}

/// The newest good checkpoint of the run's folder, or of its mirror if that has a newer one: on a new machine it is all
/// that there is. A mirror that is not newer is not read, which takes minutes on a slow drive.
fn newest(root: &Path, mirror: Option<&Path>) -> Result<Latest> {
    let mut latest = latest_good(root)?;
    let Some(mirror) = mirror else { return Ok(latest) };
    let step = latest.good.as_ref().map(|good| good.state().step);
    if checkpoint::newest_step(mirror)? > step {
        let copies = latest_good(mirror)?;
        latest.refused.extend(copies.refused);
        if copies.good.as_ref().map(|good| good.state().step) > step {
            latest.good = copies.good;
        }
    }
    Ok(latest)
}

/// What to type when a signal stopped the run.
pub(crate) fn going_on(cli: &Cli) -> String {
    match cli.resume {
        Resume::Auto => "the same command goes on from there".into(),
        _ if cli.branch_decay.is_some() => "the same command starts the branch again".into(),
        Resume::Never | Resume::From(_) => {
            let next = Cli { resume: Resume::Auto, ..cli.clone() };
            format!("go on from there with\n    {}", next.command())
        }
    }
}

/// What to type to train on when all steps are done: twice as many. Weights whose rate has decayed are no beginning for
/// that: a new run goes on from the newest checkpoint before the decay, or starts anew if none was kept.
pub(crate) fn longer(cli: &Cli, run: &RunConfig, plan: &Plan, from: Option<&Verified>) -> Result<String> {
    let mut next =
        Cli { resume: Resume::Auto, steps: Some(2 * plan.steps), branch_decay: None, ..cli.clone() };
    if plan.schedule.phase(plan.steps) != Phase::Decay {
        return Ok(format!("train longer with\n    {}", next.command()));
    }
    next.out = unused(&cli.out);
    if let Some(mirror) = &run.checkpoint.mirror {
        let mirror = toml::Value::from(unused(mirror).display().to_string());
        next.set.push(format!("checkpoint.mirror={mirror}"));
    }
    let own = checkpoint::newest_stable(&cli.out.join(CHECKPOINTS))?;
    let begin = match own.as_ref().or(from.filter(|from| from.state().phase == Phase::Stable)) {
        Some(stable) => {
            next.resume = Resume::From(stable.path().into());
            format!("from step {}, before the rate decayed", stable.state().step)
        }
        None => "from the beginning, as no checkpoint from before the decay was kept".into(),
    };
    Ok(format!("train longer, {begin}, with\n    {}", next.command()))
}

/// The first name like a folder's that nothing has: `name-2`, `name-3`.
fn unused(folder: &Path) -> PathBuf {
    let name = folder.file_name().map_or("run".into(), |name| name.to_string_lossy());
    let mut names = (2..).map(|number| folder.with_file_name(format!("{name}-{number}")));
    names.find(|path| !path.exists()).expect("some number is free")
}

/// What a run depends on beside its configuration.
pub(crate) fn hashes(dataset: &Dataset) -> BTreeMap<String, String> {
    dataset
        .tokenizer()
        .map(|tokenizer| ("tokenizer".to_owned(), tokenizer.hash().to_string()))
        .into_iter()
        .collect()
}

pub(crate) fn check_same_data(from: &Reader, dataset: &Dataset) -> Result<()> {
    for (name, found) in hashes(dataset) {
        if let Some(wanted) = from.state().hashes.get(&name) {
            ensure!(
                *wanted == found,
                "the checkpoint was trained with another {name} ({wanted}) than the data has ({found}); give the data it was trained on"
            );
        }
    }
    Ok(())
}

/// The state that a run begins with, and the positions that its weights were trained at before, if a config says so.
pub(crate) fn start_state(
    cli: &Cli,
    run: &RunConfig,
    device: &Device,
    from: Option<&Reader>,
) -> Result<(DeviceState, Option<usize>)> {
    if let Some(from) = from {
        let state = DeviceState::restore(device, run, from)?;
        return Ok((state, from.config().original_max_position_embeddings));
    }
    let (weights, trained): (Params<Host>, _) = match &cli.init {
        None => (initial_params(&run.model, run.seed), None),
        Some(path) => {
            let found = architecture(path)?;
            let trained = found.as_ref().and_then(|found| found.original_max_position_embeddings);
            let differences = found.map_or(Vec::new(), |found| run.model.differences(&found));
            if let Some(difference) =
                differences.iter().find(|difference| difference.bearing == Bearing::Weights)
            {
                bail!(
                    "--init {}: the weights belong to another model: {difference}; leave out --preset and model.{}, and \
                     the weights decide",
                    path.display(),
                    difference.field
                );
            }
            let params = load_weights(path, &run.model)?;
            say!("weights  from {}", path.display());
            (params, trained)
        }
    };
    Ok((DeviceState::new(device, run, weights)?, trained))
}
