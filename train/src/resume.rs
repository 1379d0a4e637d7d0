//! What a run begins with: a checkpoint of its own, of its mirror or of another run, given weights, or new ones.

use crate::checkpoint::{self, Latest, Loaded, Verified, latest_good, load_params};
use crate::cli::{Cli, Resume};
use crate::config::RunConfig;
use crate::data::Dataset;
use crate::device::Device;
use crate::say;
use crate::state::DeviceState;
use anyhow::{Result, bail, ensure};
use engine::Host;
use model::config::Bearing;
use model::{Params, initial_params};
use std::collections::BTreeMap;
use std::path::Path;

/// The checkpoint that the run goes on from, said aloud.
pub(crate) fn resume_point(cli: &Cli, root: &Path, mirror: Option<&Path>) -> Result<Option<Verified>> {
    let found = match &cli.resume {
        Resume::Never => {
            if let Some(good) = newest(root, mirror)?.good {
                bail!(
                    "{} already holds checkpoint {}; give another --out, or resume with --resume auto",
                    good.path().parent().unwrap_or(root).display(),
                    good.path().display()
                );
            }
            None
        }
        Resume::From(path) => match checkpoint::verify(path) {
            Ok(good) => Some(good),
            Err(error) => match path.parent().map(latest_good) {
                Some(Ok(Latest { good: Some(good), .. })) => {
                    bail!("{error}; the newest good one beside it: --resume {}", good.path().display())
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
        ensure!(
            cli.init.is_none(),
            "--init starts a new run, but {} is there to go on from; give another --out",
            found.path().display()
        );
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

/// What a run depends on beside its configuration.
pub(crate) fn hashes(dataset: &Dataset) -> BTreeMap<String, String> {
    dataset
        .tokenizer()
        .map(|tokenizer| ("tokenizer".to_owned(), tokenizer.hash().to_string()))
        .into_iter()
        .collect()
}

pub(crate) fn check_same_data(from: &Loaded, dataset: &Dataset) -> Result<()> {
    for (name, found) in hashes(dataset) {
        if let Some(wanted) = from.state.hashes.get(&name) {
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
    from: Option<Loaded>,
) -> Result<(DeviceState, Option<usize>)> {
    if let Some(from) = from {
        let state = DeviceState::restore(device, run, &from.params, &from.optimizer)?;
        return Ok((state, from.config.original_max_position_embeddings));
    }
    let (weights, trained): (Params<Host>, _) = match &cli.init {
        None => (initial_params(&run.model, run.seed), None),
        Some(path) => {
            ensure!(
                path.exists(),
                "--init {}: there is no such checkpoint folder or safetensors file",
                path.display()
            );
            let (config, params) = load_params(path)?;
            let differences = run.model.differences(&config);
            if let Some(difference) =
                differences.iter().find(|difference| difference.bearing == Bearing::Weights)
            {
                bail!("--init {}: the weights belong to another model: {difference}", path.display());
            }
            say!("weights  from {}", path.display());
            (params, config.original_max_position_embeddings)
        }
    };
    Ok((DeviceState::new(device, run, &weights)?, trained))
}
