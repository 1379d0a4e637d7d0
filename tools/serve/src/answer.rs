//! Answers to [`completions`](crate::completions): whole ones, and streams of server-sent events.

use crate::completions::Plan;
use crate::error::Error;
use crate::generation::{End, Generation};
use crate::record::unique;
use crate::service::Service;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use decode::Score;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;

/// Pieces of an answer that wait for a slow reader.
const PIECES: usize = 16;
/// How often a stream says that it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Whose form an answer has.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    /// OpenAI's.
    Completion,
    /// Mistral's.
    Fim,
}

/// An answer in OpenAI's form, or a piece of one.
#[derive(Serialize, ToSchema)]
pub(crate) struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: Option<String>,
    choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// One text.
#[derive(Serialize, ToSchema)]
pub(crate) struct Choice {
    /// Prompt by prompt, and of each prompt text by text.
    index: usize,
    text: String,
    logprobs: Option<LogProbs>,
    /// `stop`, `length`, or before the end null.
    finish_reason: Option<&'static str>,
    /// The stop string or token of the request that ended the text; null for the model's own.
    #[schema(value_type = Option<Value>)]
    stop_reason: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<i32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<i32>>,
}

/// One entry for each token.
#[derive(Default, Serialize, ToSchema)]
pub(crate) struct LogProbs {
    /// Its text; a part of a character as `bytes:\xe2\x82`.
    tokens: Vec<String>,
    /// Its log-probability; null for the first of a prompt.
    token_logprobs: Vec<Option<f32>>,
    /// The most probable tokens there, and the token itself.
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Characters before it.
    text_offset: Vec<usize>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokens,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct PromptTokens {
    /// Tokens that another text had computed.
    cached_tokens: usize,
}

/// An answer in Mistral's form, or a piece of one.
#[derive(Serialize, ToSchema)]
pub(crate) struct Fim {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<FimChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct FimChoice {
    index: usize,
    /// The whole text.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message>,
    /// A piece of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Message>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Message {
    role: &'static str,
    content: String,
}

/// What all pieces of an answer have.
struct Head {
    form: Form,
    id: String,
    created: u64,
    model: String,
}

impl Head {
    fn new(service: &Service, form: Form) -> Head {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Head { form, id: unique("cmpl"), created, model: service.name.clone() }
    }

    fn completion(&self, choices: Vec<Choice>, usage: Option<Usage>) -> Completion {
        let (id, model, system_fingerprint) = (self.id.clone(), self.model.clone(), None);
        Completion {
            id,
            object: "text_completion",
            created: self.created,
            model,
            system_fingerprint,
            choices,
            usage,
        }
    }

    fn fim(&self, object: &'static str, choices: Vec<FimChoice>, usage: Option<Usage>) -> Fim {
        let (id, model) = (self.id.clone(), self.model.clone());
        Fim { id, object, created: self.created, model, choices, usage }
    }

    /// A piece of a stream.
    fn event(&self, choices: Vec<Choice>, usage: Option<Usage>) -> Bytes {
        let delta = |Choice { index, text: content, finish_reason, .. }| {
            let delta = Some(Message { role: "assistant", content });
            FimChoice { index, message: None, delta, finish_reason }
        };
        let json = match self.form {
            Form::Completion => serde_json::to_string(&self.completion(choices, usage)),
            Form::Fim => {
                let choices = choices.into_iter().map(delta).collect();
                serde_json::to_string(&self.fim("chat.completion.chunk", choices, usage))
            }
        };
        event(json.expect("keys are texts"))
    }
}

pub(crate) fn event(json: String) -> Bytes {
    Bytes::from(format!("data: {json}\n\n"))
}

/// The answer to a request that does not stream.
pub(crate) async fn whole(
    service: Arc<Service>,
    plan: Plan,
    generations: Vec<Generation>,
    form: Form,
) -> Result<Response, Error> {
    // All are read at the same time: a text that nobody reads would pause. Dropping the set ends them.
    let mut tasks = JoinSet::new();
    for (index, mut generation) in generations.into_iter().enumerate() {
        let service = service.clone();
        tasks.spawn(async move {
            let text = generation.finish(&service).await;
            (index, generation, text)
        });
    }
    let mut done = Vec::new();
    while let Some(task) = tasks.join_next().await {
        let (index, generation, text) = task.map_err(|_| Error::internal())?;
        done.push((index, generation, text?));
    }
    done.sort_unstable_by_key(|(index, ..)| *index);
    let usage = usage(&plan, done.iter().map(|(index, generation, _)| (*index, generation)));
    let mut choices = Vec::new();
    for (of_prompt, ids) in
        done.chunk_by_mut(|(a, ..), (b, ..)| a / plan.candidates == b / plan.candidates).zip(&plan.prompts)
    {
        if plan.candidates > plan.n {
            of_prompt.sort_by(|(_, a, _), (_, b, _)| mean(b).total_cmp(&mean(a)));
        }
        for (_, generation, text) in of_prompt.iter().take(plan.n) {
            choices.push(choice(&service, &plan, ids, choices.len(), generation, text));
        }
    }
    let head = Head::new(&service, form);
    let message = |Choice { index, text: content, finish_reason, .. }| {
        let message = Some(Message { role: "assistant", content });
        FimChoice { index, message, delta: None, finish_reason }
    };
    Ok(match form {
        Form::Completion => Json(head.completion(choices, Some(usage))).into_response(),
        Form::Fim => {
            let choices = choices.into_iter().map(message).collect();
            Json(head.fim("chat.completion", choices, Some(usage))).into_response()
        }
    })
}

fn choice(
    service: &Service,
    plan: &Plan,
    ids: &[i32],
    index: usize,
    generation: &Generation,
    text: &str,
) -> Choice {
    let Generation { tokens, end, .. } = generation;
    let stop = match end {
        Some(End::Text(stop)) if plan.include_stop => stop,
        _ => "",
    };
    let echo = if plan.echo { service.text(ids) } else { String::new() };
    let mut places = if plan.echo { prompt_places(ids, generation) } else { Vec::new() };
    places.extend(tokens.iter().map(|(token, score)| (*token, Some(score))));
    let of = |top| LogProbsWriter { service, top, offset: 0 }.write(&places);
    Choice {
        index,
        text: format!("{echo}{text}{stop}"),
        logprobs: plan.logprobs.map(of),
        finish_reason: end.as_ref().map(End::reason),
        stop_reason: stop_reason(plan, end.as_ref()),
        token_ids: plan.return_ids.then(|| tokens.iter().map(|(token, _)| *token).collect()),
        prompt_token_ids: plan.return_ids.then(|| ids.to_vec()),
    }
}

/// A prompt's tokens with their scores; its first one has none.
fn prompt_places<'a>(ids: &[i32], generation: &'a Generation) -> Vec<(i32, Option<&'a Score>)> {
    let scores = [None].into_iter().chain(generation.prompt_scores.iter().map(Some));
    ids.iter().copied().zip(scores.chain(std::iter::repeat(None))).collect()
}

/// Mean log-probability of the new tokens.
fn mean(generation: &Generation) -> f64 {
    let tokens = &generation.tokens;
    tokens.iter().map(|(_, score)| f64::from(score.log_prob)).sum::<f64>() / tokens.len().max(1) as f64
}

fn usage<'a>(plan: &Plan, done: impl Iterator<Item = (usize, &'a Generation)>) -> Usage {
    let prompt_tokens: usize = plan.prompts.iter().map(Vec::len).sum();
    let (mut completion_tokens, mut cached_tokens) = (0, 0);
    for (index, generation) in done {
        completion_tokens += generation.tokens.len();
        if index % plan.candidates == 0 {
            cached_tokens += generation.known;
        }
    }
    let total_tokens = prompt_tokens + completion_tokens;
    Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens,
        prompt_tokens_details: PromptTokens { cached_tokens },
    }
}

fn stop_reason(plan: &Plan, end: Option<&End>) -> Value {
    match end {
        Some(End::Text(text)) => json!(text),
        Some(End::Token(token)) if plan.stops.tokens.contains(token) => json!(token),
        _ => Value::Null,
    }
}

/// Writes log-probabilities in OpenAI's form.
struct LogProbsWriter<'a> {
    service: &'a Service,
    /// How many of the most probable tokens.
    top: usize,
    /// Characters that have begun so far.
    offset: usize,
}

impl LogProbsWriter<'_> {
    fn write(&mut self, places: &[(i32, Option<&Score>)]) -> LogProbs {
        let mut all = LogProbs::default();
        for (token, score) in places {
            let shown = self.service.shown(*token);
            all.text_offset.push(self.offset);
            let begins = |byte: &&u8| **byte & 0xC0 != 0x80;
            self.offset += self.service.bytes(*token).iter().filter(begins).count();
            all.token_logprobs.push(score.map(|score| score.log_prob));
            all.top_logprobs.push(score.map(|score| {
                let top = score.top.iter().take(self.top);
                let mut top: BTreeMap<String, f32> =
                    top.map(|&(token, log_prob)| (self.service.shown(token), log_prob)).collect();
                // The token itself, whether it is one of the first or not.
                top.insert(shown.clone(), score.log_prob);
                top
            }));
            all.tokens.push(shown);
        }
        all
    }
}

/// An answer piece by piece, as server-sent events.
pub(crate) fn stream(
    service: Arc<Service>,
    plan: Plan,
    generations: Vec<Generation>,
    form: Form,
) -> Response {
    events(async move |sender| {
        let (plan, head) = (Arc::new(plan), Arc::new(Head::new(&service, form)));
        let mut tasks = JoinSet::new();
        for (index, generation) in generations.into_iter().enumerate() {
            let (service, plan, head, sender) = (service.clone(), plan.clone(), head.clone(), sender.clone());
            tasks.spawn(async move { pieces(&service, &plan, &head, index, generation, &sender).await });
        }
        let mut done = Vec::new();
        while let Some(task) = tasks.join_next().await {
            done.push(task.map_err(|_| Error::internal())??);
        }
        if plan.usage {
            let usage = usage(&plan, done.iter().map(|(index, generation)| (*index, generation)));
            send(&sender, head.event(Vec::new(), Some(usage))).await;
        }
        send(&sender, event("[DONE]".to_owned())).await;
        Ok(())
    })
}

/// A stream of server-sent events, written until it is whole, fails, or nobody reads it any more.
pub(crate) fn events<F, W>(write: F) -> Response
where
    F: FnOnce(Sender<Result<Bytes, Infallible>>) -> W,
    W: Future<Output = Result<(), Error>> + Send + 'static,
{
    let (sender, receiver) = channel(PIECES);
    let writing = write(sender.clone());
    tokio::spawn(async move {
        let mut writing = std::pin::pin!(writing);
        loop {
            tokio::select! {
                biased;
                // Nobody reads any more: what writes is dropped, and with it the texts.
                () = sender.closed() => return,
                written = &mut writing => {
                    if let Err(error) = written {
                        // A client that has got pieces knows of a failure by this alone.
                        send(&sender, event(error.json().to_string())).await;
                    }
                    return;
                }
                // A comment without words, since some clients take those for data.
                () = tokio::time::sleep(KEEP_ALIVE) => send(&sender, Bytes::from_static(b":\n\n")).await,
            }
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(ReceiverStream::new(receiver))).into_response()
}

/// Waits for a slow reader. Where nobody reads any more, the writer is dropped soon.
pub(crate) async fn send(sender: &Sender<Result<Bytes, Infallible>>, piece: Bytes) {
    let _ = sender.send(Ok(piece)).await;
}

/// Sends one choice piece by piece.
async fn pieces(
    service: &Service,
    plan: &Plan,
    head: &Head,
    index: usize,
    mut generation: Generation,
    sender: &Sender<Result<Bytes, Infallible>>,
) -> Result<(usize, Generation), Error> {
    let ids = &plan.prompts[index / plan.candidates];
    let mut writer = LogProbsWriter { service, top: plan.logprobs.unwrap_or(0), offset: 0 };
    let (mut sent, mut echoed) = (0, !plan.echo);
    let choice = |text, logprobs, end: Option<&End>, token_ids| Choice {
        index,
        text,
        logprobs,
        finish_reason: end.map(End::reason),
        stop_reason: stop_reason(plan, end),
        token_ids,
        prompt_token_ids: None,
    };
    loop {
        let text = generation.next(service).await?;
        let ended = text.is_none();
        let (mut text, mut places) = (text.unwrap_or_default(), Vec::new());
        if !echoed && (ended || !generation.tokens.is_empty()) {
            // By now all its scores are there.
            echoed = true;
            text = service.text(ids) + &text;
            places = prompt_places(ids, &generation);
        }
        let new = &generation.tokens[sent..];
        sent = generation.tokens.len();
        places.extend(new.iter().map(|(token, score)| (*token, Some(score))));
        if let (true, true, Some(End::Text(stop))) = (ended, plan.include_stop, &generation.end) {
            text += stop;
        }
        let logprobs = (plan.logprobs.is_some() && !places.is_empty()).then(|| writer.write(&places));
        let token_ids: Option<Vec<i32>> =
            (plan.return_ids && !new.is_empty()).then(|| new.iter().map(|(token, _)| *token).collect());
        if !text.is_empty() || logprobs.is_some() || token_ids.is_some() {
            send(sender, head.event(vec![choice(text, logprobs, None, token_ids)], None)).await;
        }
        if ended {
            let end = generation.end.as_ref();
            // Clients of this form read a choice of every piece.
            let usage =
                matches!(head.form, Form::Fim).then(|| usage(plan, [(index, &generation)].into_iter()));
            send(sender, head.event(vec![choice(String::new(), None, end, None)], usage)).await;
            return Ok((index, generation));
        }
    }
}
