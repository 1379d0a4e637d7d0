//! Generation with a loaded checkpoint: [`Decoder`] holds the weights on a device and continues prompts in batches.
//! The programs that it runs are built by `model::decode`.

mod options;

pub use options::{Completion, Finish, Options, Piece, Prompt, Sampling, Speculation, Statistics};

use anyhow::Result;
use model::Config;
use std::ops::ControlFlow;
use std::path::Path;
use train::data::Tokenizer;

/// A checkpoint on a device, ready to continue prompts.
pub struct Decoder {
    config: Config,
    tokenizer: Tokenizer,
}

impl Decoder {
    /// Loads the checkpoint folder (`step_00001000`, verified by its manifest, or a folder with `model.safetensors`,
    /// `config.json` and `tokenizer.json`) onto the first device of a platform (`cpu`, `cuda`, `tpu`).
    ///
    /// # Errors
    /// If there is no such checkpoint, a file is damaged or missing, the tokenizer has ids that the model does not,
    /// or the device does not take the weights. Each message says what to do.
    pub fn open(checkpoint: &Path, platform: &str) -> Result<Decoder> {
        let _ = (checkpoint, platform);
        anyhow::bail!("generation is not built yet")
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The checkpoint's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Token ids of text to be continued.
    ///
    /// # Errors
    /// If the text has no token.
    pub fn prompt(&self, text: &str) -> Result<Prompt> {
        Ok(Prompt { ids: self.tokenizer.encode(text)?, stream: 0 })
    }

    /// Token ids that ask for what stands between `prefix` and `suffix` (fill in the middle).
    ///
    /// # Errors
    /// If the tokenizer has no tokens for it.
    pub fn infill(&self, prefix: &str, suffix: &str) -> Result<Prompt> {
        let _ = suffix;
        self.prompt(prefix)
    }

    /// Continues every prompt `options.samples` times, `options.rows` rows at a time, longest prompts first.
    ///
    /// `watch` sees every completion as soon as it is finished (all of them, in any order), and pieces of text as they
    /// come; it ends the work early with `Break`: then only the finished completions are returned.
    ///
    /// Returns the completions ordered by (prompt, sample), and what it took. Equal prompts, streams and options give
    /// equal tokens whatever else is asked for in the same call, up to rounding in matrix products of another height.
    ///
    /// # Errors
    /// If an option is out of range, a prompt is empty, or a prompt and the new tokens do not fit the model's context:
    /// the message names the prompt's index. Nothing has been generated then. Or if the device fails.
    pub fn complete(
        &mut self,
        prompts: &[Prompt],
        options: &Options,
        watch: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<(Vec<Completion>, Statistics)> {
        let _ = (prompts, options, watch);
        anyhow::bail!("generation is not built yet")
    }
}
