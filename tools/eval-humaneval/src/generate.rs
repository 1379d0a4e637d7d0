//! Completions from a checkpoint.

use crate::problems::Problems;
use crate::results::Key;
use anyhow::{Context, Result, bail};
use decode::{Completion, Decoder, Finish, Options, Piece, Prompt, Statistics};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;

/// Tokens of a completion by default, or as many as the model's context has room for.
const NEW_TOKENS: usize = 512;

/// Receives a completion: its key, its solution and the fields of its line.
pub type HandOver<'h> = &'h mut dyn FnMut(Key, String, Map<String, Value>) -> ControlFlow<()>;

/// The problems as a model reads them.
#[derive(Debug)]
pub struct Prompts {
    prompts: Vec<Prompt>,
    /// Tokens of a completion.
    pub max_new_tokens: usize,
}

impl Prompts {
    /// Tokenises the problems, and checks that each has room for `wanted` new tokens. Without `wanted`, completions have the room
    /// that the longest problem leaves.
    ///
    /// # Errors
    /// If one does not have room, or the tokenizer does not know its text.
    pub fn new(decoder: &Decoder, problems: &Problems, wanted: Option<usize>) -> Result<Prompts> {
        let context = decoder.config().max_position_embeddings;
        let mut prompts = Vec::with_capacity(problems.list.len());
        for (stream, problem) in (0..).zip(&problems.list) {
            let prompt =
                decoder.prompt(&problem.prompt).with_context(|| format!("tokenising {}", problem.id))?;
            prompts.push(Prompt { stream, ..prompt });
        }
        let longest = prompts.iter().zip(&problems.list).max_by_key(|(prompt, _)| prompt.ids.len());
        let (longest, id) = longest.map_or((0, ""), |(prompt, problem)| (prompt.ids.len(), &problem.id));
        let room = context.saturating_sub(longest);
        if room == 0 {
            bail!(
                "{id} has {longest} tokens, and the model's context is {context}: evaluate a model with a longer one, or give shorter problems with --problems"
            );
        }
        if let Some(wanted) = wanted.filter(|wanted| *wanted > room) {
            bail!(
                "{id} has {longest} tokens, and with {wanted} new ones it does not fit the model's context of {context}: give --max-new-tokens {room} or fewer"
            );
        }
        Ok(Prompts { prompts, max_new_tokens: wanted.unwrap_or(NEW_TOKENS.min(room)) })
    }

    /// Generates the completions that are `missing`, and hands each over as soon as it is finished.
    ///
    /// # Errors
    /// If the decoder refuses or the device fails.
    pub fn complete(
        &self,
        decoder: &mut Decoder,
        problems: &Problems,
        options: &Options,
        missing: impl Fn(Key) -> bool,
        hand_over: HandOver<'_>,
    ) -> Result<Statistics> {
        let chosen: Vec<usize> = (0..self.prompts.len())
            .filter(|problem| (0..options.samples).any(|sample| missing((*problem, sample))))
            .collect();
        if chosen.is_empty() {
            return Ok(Statistics::default());
        }
        let prompts: Vec<Prompt> = chosen.iter().map(|problem| self.prompts[*problem].clone()).collect();
        let (_, statistics) = decoder.complete(&prompts, options, &mut |piece| match piece {
            Piece::Text { .. } => ControlFlow::Continue(()),
            Piece::Finished(completion) => {
                let key = (chosen[completion.prompt], completion.sample);
                if missing(key) {
                    let problem = &problems.list[key.0];
                    hand_over(key, problem.solution(&completion.text), line(&problem.id, completion))
                } else {
                    ControlFlow::Continue(())
                }
            }
        })?;
        Ok(statistics)
    }
}

fn line(id: &str, completion: &Completion) -> Map<String, Value> {
    let finish = match &completion.finish {
        Finish::Token(_) => "end",
        Finish::Text(_) => "stop",
        Finish::Length => "length",
    };
    let fields = json!({
        "task_id": id,
        "sample": completion.sample,
        "completion": completion.text,
        "finish": finish,
        "tokens": completion.ids.len(),
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
