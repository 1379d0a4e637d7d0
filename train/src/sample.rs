//! A short sample of what the model writes, at the end of a run. It computes the whole prefix for each token; for real
//! use there is `generate`.

use crate::data::Tokenizer;
use crate::device::{CodeGeneration, Device};
use anyhow::{Result, ensure};
use engine::pjrt::{Arg, Buffer};
use engine::random::threefry2x32;
use engine::{DType, Host, Program, Tensor, Type};
use model::{Batch, Config, Remat, fold, forward, loss, specs};

/// What a sample begins with.
pub const PROMPT: &str = "import os\n\n\ndef ";

/// The temperature of the sample: low enough for proper Python, high enough not to repeat itself.
const TEMPERATURE: f64 = 0.7;

/// Logits of the token after position `last` of one row of `length` tokens.
fn next_token_program(config: &Config, length: usize) -> Program {
    Program::build("next_token", |f| {
        let params = specs(config).map(|name, spec| f.input(&format!("params.{name}"), spec.ty));
        let ids = f.input("ids", Type::i32([1, length]));
        let last = f.input("last", Type::scalar(DType::I32));
        let batch = Batch { ids, segments: ids.zeros_like() };
        let weights = fold(config, &params);
        let hidden = forward::trunk(config, &weights, batch, None, Remat::Full); // [1, length, m]
        let zero: Tensor<'_> = last.zeros_like();
        let at = hidden.dynamic_slice(&[zero, last, zero], &[1, 1, config.hidden_size]);
        let logits = loss::logits(config, at, weights.embed); // [1, 1, v]
        f.output("logits", logits.reshape([config.vocab_size]));
    })
}

/// Continues [`PROMPT`] by at most `tokens` tokens. weights: the model's, in their order.
///
/// # Errors
/// If the program does not compile or run, the tokenizer does not know the prompt, or the model's logits are NaN.
pub fn sample(
    device: &Device,
    config: &Config,
    weights: &[Buffer],
    tokenizer: &Tokenizer,
    tokens: usize,
    seed: u64,
) -> Result<String> {
    let mut ids = tokenizer.encode(PROMPT)?;
    let prompt = ids.len();
    let length = (prompt + tokens).min(config.max_position_embeddings);
    let (program, _) = device.compile(&next_token_program(config, length), CodeGeneration::Quick)?;
    while ids.len() < length {
        let mut row = ids.clone();
        row.resize(length, 0);
        let inputs =
            [device.put(&Host::new([1, length], &row))?, device.put(&Host::scalar(ids.len() as i32 - 1))?];
        let logits = program.run(weights.iter().chain(&inputs).map(Arg::Keep))?[0].to_host()?.to_f64();
        ensure!(
            logits[..config.num_tokens].iter().all(|logit| !logit.is_nan()),
            "the model's logits after token {} of the sample are NaN",
            ids.len()
        );
        let word = threefry2x32([seed as u32, (seed >> 32) as u32], [ids.len() as u32, 0])[0];
        let token = draw(&logits, f64::from(word) / 2f64.powi(32));
        // As in `generate`: every token that is not text ends it.
        if tokenizer.decode_bytes(&[token]).is_none() {
            break;
        }
        ids.push(token);
    }
    // A sample may end within a character, and an untrained model writes any bytes.
    Ok(String::from_utf8_lossy(&tokenizer.decode_bytes(&ids).unwrap_or_default()).into_owned())
}

/// The token at which the cumulative probability passes `u` in [0, 1).
fn draw(logits: &[f64], u: f64) -> i32 {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| ((logit - top) / TEMPERATURE).exp()).collect();
    let mut left = u * weights.iter().sum::<f64>();
    for (token, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return token as i32;
        }
    }
    weights.len() as i32 - 1
}
