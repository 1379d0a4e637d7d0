//! The flags that programs with a checkpoint share, and what they mean.

use crate::options::Sampling;
use anyhow::{Result, ensure};
use clap::Args;
use engine::Form;

/// How tokens are drawn. A program may give `temperature` another default.
#[derive(Clone, Copy, Debug, Args)]
pub struct SamplingFlags {
    /// Divides the logits before drawing; 0 always takes the most probable token
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Draw only from the most probable tokens that together reach this probability
    #[arg(long, value_name = "X", default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f64,
    /// The rest.
    #[command(flatten)]
    pub draw: DrawFlags,
}

/// What has one value even where temperature and top-p are tried in several.
#[derive(Clone, Copy, Debug, Args)]
pub struct DrawFlags {
    /// Draw only from this many most probable tokens; 0 is all
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub top_k: usize,
    /// Seed of the random numbers: the same seed writes the same text
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
}

/// Where programs run, and with which forms of the fused operations.
#[derive(Clone, Debug, Args)]
pub struct DeviceFlags {
    /// cpu, cuda, tpu, or the path of a PJRT plugin
    #[arg(long, value_name = "NAME|PATH", default_value = "cpu")]
    pub platform: String,
    /// Forms of the fused operations: auto, portable, native or reference
    #[arg(long, value_parser = wanted_form, value_name = "FORM", default_value = "auto")]
    pub kernels: WantedForm,
}

/// A type of its own, because an `Option` is a flag that may be missing.
pub(crate) type WantedForm = Option<Form>;

fn wanted_form(text: &str) -> Result<WantedForm, String> {
    let found = Form::WANTED.into_iter().find(|(word, _)| *word == text);
    found
        .map(|(_, form)| form)
        .ok_or_else(|| format!("wanted {}", Form::WANTED.map(|(word, _)| word).join(", ")))
}

impl DeviceFlags {
    /// The word for the forms that are asked for.
    pub fn form(&self) -> &'static str {
        Form::word(self.kernels)
    }
}

impl SamplingFlags {
    /// What the flags ask for.
    pub fn sampling(&self) -> Sampling {
        let SamplingFlags { temperature, top_p, draw: DrawFlags { top_k, .. } } = *self;
        if temperature == 0.0 { Sampling::Greedy } else { Sampling::Random { temperature, top_k, top_p } }
    }

    /// Refuses numbers out of range, before anything is loaded.
    ///
    /// # Errors
    /// If one is; the message names the flag.
    pub fn check(&self) -> Result<()> {
        let SamplingFlags { temperature, top_p, .. } = *self;
        ensure!(
            temperature.is_finite() && temperature >= 0.0,
            "--temperature is {temperature}, but must be 0, for the most probable token each time, or more"
        );
        ensure!(top_p > 0.0 && top_p <= 1.0, "--top-p is {top_p}, but must be more than 0 and at most 1");
        Ok(())
    }
}
