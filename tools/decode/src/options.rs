//! The options of a [`Decoder`](crate::Decoder), and its results.

use std::time::Duration;

/// A text to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids, at least one.
    pub ids: Vec<i32>,
    /// Number of the prompt's stream of random numbers: the same seed, stream and sample number give the same tokens in any
    /// batch.
    pub stream: u32,
}

/// How a token is drawn from the model's distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most probable one; the lowest id among equals.
    Greedy,
    /// At random.
    Random {
        /// Divides the logits; positive.
        temperature: f64,
        /// Only the `top_k` most probable tokens; 0 is all.
        top_k: usize,
        /// Of those, only the most probable ones that together reach this probability; in (0, 1], 1 is all.
        top_p: f64,
    },
}

/// Whether the second head drafts tokens that the model then checks; it changes speed, not what is generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// Whatever generates faster, by measurement.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How prompts are continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Completions of each prompt; they share the prompt's computation.
    pub samples: usize,
    /// Tokens of a completion at most.
    pub max_new_tokens: usize,
    /// A completion ends before the first of these strings that it contains, searched in the completion's bytes only.
    pub stop: Vec<String>,
    /// Drafts by the second head.
    pub speculation: Speculation,
    /// Completions that are generated together at most; memory grows with it.
    pub rows: usize,
}

impl Default for Options {
    /// Greedy, one completion of at most 256 tokens, 8 rows, no stop strings.
    fn default() -> Options {
        Options {
            sampling: Sampling::Greedy,
            seed: 0,
            samples: 1,
            max_new_tokens: 256,
            stop: Vec::new(),
            speculation: Speculation::Auto,
            rows: 8,
        }
    }
}

/// Why a completion ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model wrote a token that ends a document or the part to be filled in (its id); it is not in the completion.
    Token(i32),
    /// The text contained this stop string; the text ends before it.
    Text(String),
    /// It has `max_new_tokens` tokens.
    Length,
}

/// One continuation of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Index of the prompt in the list.
    pub prompt: usize,
    /// Which of its samples, from 0.
    pub sample: usize,
    /// The text without the prompt, cut before a stop string; bytes that are not UTF-8 appear as U+FFFD.
    pub text: String,
    /// Generated tokens, a stop token not among them; they may go on beyond a stop string that `text` is cut before.
    pub ids: Vec<i32>,
    /// Log-probability of each generated token under the model itself (temperature 1, nothing filtered), that of a
    /// stop token last.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// What the caller of [`Decoder::complete`](crate::Decoder::complete) sees while it works.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// More text of one completion: whole characters, and nothing that a stop string could still take back.
    Text {
        /// Index of the prompt in the list.
        prompt: usize,
        /// Which of its samples, from 0.
        sample: usize,
        /// What was added.
        text: &'a str,
    },
    /// A completion is finished.
    Finished(&'a Completion),
}

/// What a call of [`Decoder::complete`](crate::Decoder::complete) took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Tokens of all prompts, each counted once.
    pub prompt_tokens: usize,
    /// Tokens generated, stop tokens included.
    pub new_tokens: usize,
    /// Reading the prompts.
    pub prefill: Duration,
    /// Generating.
    pub decode: Duration,
    /// Compiling programs, or getting them from the cache; not part of the other two.
    pub compile: Duration,
    /// Tokens that the second head proposed.
    pub drafted: usize,
    /// How many of them the model accepted.
    pub accepted: usize,
}

impl Statistics {
    /// New tokens a second of generating.
    pub fn tokens_per_second(&self) -> f64 {
        self.new_tokens as f64 / self.decode.as_secs_f64()
    }

    /// Share of the drafted tokens that were accepted; none if nothing was drafted.
    pub fn acceptance(&self) -> Option<f64> {
        (self.drafted > 0).then(|| self.accepted as f64 / self.drafted as f64)
    }
}
