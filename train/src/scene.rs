//! What a run has before it begins: its surroundings, and the command line, resolved.

use crate::atomic::Disk;
use crate::config::{Resolved, RunConfig};
use crate::data::{Dataset, EpochSize, RowOptions};
use crate::disks::remote;
use crate::metrics::Look;
use crate::numbers::group;
use crate::scaling::{Facts, Plan, plan, tokens_a_parameter};
use crate::signals::Stop;
use anyhow::{Context, Result};
use model::counts::ParamCounts;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// A signal stopped it; its state is saved.
    Interrupted,
}

/// The surroundings of a run: its disk, its signals, its screen.
pub struct World {
    /// The disk for checkpoints, their copies and `run.json`.
    pub disk: Arc<dyn Disk>,
    /// Whether it is asked to stop.
    pub stop: Stop,
    /// How it shows its progress.
    pub look: Look,
}

/// The command line, resolved: settings without open values, the data, and the plan.
pub(crate) struct Scene {
    pub(crate) resolved: Resolved,
    pub(crate) folder: PathBuf,
    pub(crate) dataset: Arc<Dataset>,
    pub(crate) plan: Plan,
    pub(crate) size: EpochSize,
    parameters: u64,
}

impl Scene {
    pub(crate) fn of(mut resolved: Resolved, folder: PathBuf) -> Result<Scene> {
        let run = &resolved.run;
        let dataset = Arc::new(open_data(&folder, run)?);
        let size = dataset.epoch_size(&run.data.rows(run.batch.seq, run.seed))?;
        let parameters = ParamCounts::of(&run.model).total() as u64;
        let plan = plan(&mut resolved, Facts { parameters, epoch: size })?;
        Ok(Scene { resolved, folder, dataset, plan, size, parameters })
    }

    /// What decides which rows are made.
    pub(crate) fn rows(&self) -> RowOptions {
        let run = &self.resolved.run;
        run.data.rows(run.batch.seq, run.seed)
    }

    pub(crate) fn announce(&self, look: Look) {
        let (run, size) = (&self.resolved.run, &self.size);
        look.say(format_args!(
            "model    {} parameters, {} layers of width {}",
            group(self.parameters),
            run.model.num_hidden_layers,
            run.model.hidden_size
        ));
        look.say(format_args!("data     {}: {size}", self.folder.display()));
        if let Some(kind) = remote(&self.folder) {
            look.say(format_args!(
                "data     lies on {kind}: every row is read from there, and training ends if it goes away; copy it to a local disk"
            ));
        }
        if let Some(lengths) = size.lengths.filter(|lengths| lengths.long > 0) {
            let of = match size.documents {
                Some(all) if lengths.rows < all => format!("; counted in a sample of {} rows", group(all)),
                _ => String::new(),
            };
            look.say(format_args!("long     {}{of}", lengths.said(&self.rows())));
        }
        if let Some(tokenizer) = self.dataset.tokenizer()
            && tokenizer.path().parent() != Some(&*self.folder)
        {
            look.say(format_args!("data     tokenizer {}", tokenizer.path().display()));
        }
        for note in self.dataset.tokenizer().iter().flat_map(|tokenizer| tokenizer.notes()) {
            look.say(format_args!("data     tokenizer.json: {note}"));
        }
        if let Some(said) = self.dataset.without_fim(&self.rows()) {
            look.say(format_args!("{said}"));
        }
        look.say(format_args!(
            "batch    {} x {} rows of {} = {} tokens a step, {} steps",
            run.batch.accumulation,
            run.batch.micro,
            run.batch.seq,
            group(run.batch.tokens()),
            group(self.plan.steps)
        ));
        let tokens = size.tokens_in(self.plan.steps * run.batch.rows() as u64);
        look.say(format_args!("tokens   {}", tokens_a_parameter(tokens, self.parameters)));
        for decision in &self.plan.decisions {
            look.say(format_args!("chosen   {decision}"));
        }
    }
}

pub(crate) fn open_data(folder: &Path, run: &RunConfig) -> Result<Dataset> {
    let data = &run.data;
    Dataset::open_ended_by(
        data.end_of_text.as_deref(),
        folder,
        run.model.num_tokens,
        data.validation_fraction,
    )
    .with_context(|| format!("opening the data in {}", folder.display()))
}
