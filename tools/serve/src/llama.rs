//! `/infill` and `/completion`, in llama.cpp's form, for llama.vim, llama.vscode and Continue.

use crate::answer::{event, events, send};
use crate::app::Loaded;
use crate::body::Body;
use crate::completions::{StopTexts, random_seed, sampling};
use crate::error::Error;
use crate::generation::{End, Generation, Stops};
use crate::record::Record;
use crate::service::Service;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use decode::{Settings, key};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use utoipa::ToSchema;

/// New tokens, if nobody says how many.
const NEW_TOKENS: usize = 128;
/// What llama.cpp draws with, if nobody says otherwise.
const TEMPERATURE: f64 = 0.8;
const TOP_K: i64 = 40;
const TOP_P: f64 = 0.95;
/// Of the context, the part that new tokens may always have where a prompt is shortened for them, and the part of the prompt
/// that its suffix may.
const QUARTER: usize = 4;

/// A text to be continued, or for `/infill` one between two others; these are plain text, whatever they spell. Fields that are
/// not here are let pass.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = LlamaRequest)]
pub(crate) struct Request {
    /// `/infill`: the text before the cursor's line.
    input_prefix: Option<String>,
    /// `/infill`: the text after the cursor.
    input_suffix: Option<String>,
    /// `/completion`: what is continued. `/infill`: the line of the cursor up to it, which stands after the prefix.
    prompt: Option<Prompt>,
    /// New tokens at most; less than 0: as many as there is room for.
    n_predict: Option<i64>,
    stop: Option<StopTexts>,
    /// Whether the model's own end of a text is no end.
    ignore_eos: Option<bool>,
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f64>,
    top_k: Option<i64>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// -1 is a random one.
    seed: Option<i64>,
    stream: Option<bool>,
    /// Texts that are wanted; with more than one the answer is a list.
    #[schema(minimum = 1)]
    n_cmpl: Option<usize>,
    /// Milliseconds after the first token from which on the text ends once it has a new line; 0 or less: never.
    t_max_predict_ms: Option<i64>,
    /// The fields that are wanted, with slashes between names; empty: all.
    response_fields: Option<Vec<String>>,
}

/// A text, in which names of special tokens stand for them, or token ids.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "prompt must be a text or a list of token ids")]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<i32>),
}

/// A text, or a piece of one.
#[derive(Serialize)]
pub(crate) struct Content {
    /// Which text, if several were wanted.
    index: usize,
    content: String,
    /// Whether this is the last piece.
    stop: bool,
    /// `eos`, `word`, `limit`, or before the end `none`.
    stop_type: &'static str,
    /// The stop string that ended the text.
    stopping_word: String,
    model: String,
    timings: Timings,
    /// Whether the beginning of the prefix or the end of the suffix was left out, to fit the context.
    truncated: bool,
    tokens_cached: usize,
    tokens_evaluated: usize,
    tokens_predicted: usize,
}

#[derive(Serialize)]
pub(crate) struct Timings {
    prompt_n: usize,
    prompt_ms: f64,
    prompt_per_token_ms: f64,
    prompt_per_second: f64,
    predicted_n: usize,
    predicted_ms: f64,
    predicted_per_token_ms: f64,
    predicted_per_second: f64,
}

/// A request whose fields are known to be right.
struct Plan {
    prompt: Vec<i32>,
    truncated: bool,
    settings: Settings,
    seed: u64,
    stops: Vec<String>,
    count: usize,
    limit: Option<Duration>,
    fields: Vec<String>,
    stream: bool,
}

/// Which of the two.
#[derive(Clone, Copy, PartialEq)]
enum Task {
    Infill,
    Completion,
}

impl Request {
    fn plan(self, task: Task, service: &Service) -> Result<Plan, Error> {
        let asked = match self.n_predict.unwrap_or(NEW_TOKENS as i64) {
            ..0 => usize::MAX,
            some => some as usize,
        };
        let (prompt, truncated) = match task {
            Task::Infill => self.infill(asked, service)?,
            Task::Completion => (self.continued(service)?, false),
        };
        let room = service.context.saturating_sub(prompt.len());
        let new_tokens = match task {
            // As much as there is room for, as an editor wants it.
            Task::Infill => asked.min(room),
            Task::Completion if asked == usize::MAX => room,
            Task::Completion => asked,
        };
        let sampling = sampling(
            self.temperature.unwrap_or(TEMPERATURE),
            self.top_p.unwrap_or(TOP_P),
            Some(self.top_k.unwrap_or(TOP_K)),
        )?;
        let min_tokens = if self.ignore_eos == Some(true) { new_tokens } else { 0 };
        let (count, most) = (self.n_cmpl.unwrap_or(1), service.queue);
        if !(1..=most).contains(&count) {
            let message = format!(
                "n_cmpl is {count}, but must be at least 1 and at most the {most} texts that may wait"
            );
            return Err(Error::field("n_cmpl", message));
        }
        let stream = self.stream.unwrap_or(false);
        if stream && count > 1 {
            return Err(Error::field("n_cmpl", "one text can stream, several cannot"));
        }
        Ok(Plan {
            prompt,
            truncated,
            settings: Settings { new_tokens, min_tokens, sampling, ..Settings::default() },
            seed: self.seed.and_then(|seed| u64::try_from(seed).ok()).unwrap_or_else(random_seed),
            stops: StopTexts::checked(self.stop)?,
            count,
            limit: self.t_max_predict_ms.filter(|&ms| ms > 0).map(|ms| Duration::from_millis(ms as u64)),
            fields: self.response_fields.unwrap_or_default(),
            stream,
        })
    }

    /// Token ids of a prompt to be continued.
    fn continued(&self, service: &Service) -> Result<Vec<i32>, Error> {
        let ids = match &self.prompt {
            None => Vec::new(),
            Some(Prompt::Text(text)) => {
                service.parse_special(text).map_err(|error| Error::field("prompt", format!("{error:#}")))?
            }
            Some(Prompt::Ids(ids)) => ids.clone(),
        };
        service.begun(ids).map_err(|message| Error::field("prompt", message))
    }

    /// Token ids of a text between two others, as much of these as fits: the end of the one before, the beginning of the one
    /// after; and whether that is not all.
    fn infill(&self, new_tokens: usize, service: &Service) -> Result<(Vec<i32>, bool), Error> {
        let field = |error: anyhow::Error| Error::field("input_prefix", format!("{error:#}"));
        let line = match &self.prompt {
            None => "",
            Some(Prompt::Text(line)) => line,
            Some(Prompt::Ids(_)) => return Err(Error::field("prompt", "prompt of /infill must be a text")),
        };
        let before = self.input_prefix.clone().unwrap_or_default() + line;
        let before = service.encode(&before).map_err(field)?;
        let after = service.encode(self.input_suffix.as_deref().unwrap_or_default()).map_err(field)?;
        let marks = service.infill(&[], &[]).map_err(field)?.len();
        let room = service.context.saturating_sub(marks + new_tokens.min(service.context / QUARTER));
        let suffix = after.len().min((room / QUARTER).max(room.saturating_sub(before.len())));
        let prefix = before.len().min(room - suffix);
        let ids = service.infill(&before[before.len() - prefix..], &after[..suffix]).map_err(field)?;
        Ok((ids, prefix < before.len() || suffix < after.len()))
    }
}

/// Writes what stands between two texts
#[utoipa::path(
    post,
    path = "/infill",
    request_body = Request,
    responses(
        (status = 200, description = "The text, whole or as a stream; a list if several were wanted; the wanted fields", content(
            (Value = "application/json"), (Value = "text/event-stream")
        )),
        Error
    )
)]
pub(crate) async fn infill(
    Loaded(service): Loaded,
    Extension(record): Extension<Arc<Record>>,
    Body(request): Body<Request>,
) -> Result<Response, Error> {
    answer(service, record, request, Task::Infill).await
}

/// Continues a text
#[utoipa::path(
    post,
    path = "/completion",
    request_body = Request,
    responses(
        (status = 200, description = "The text, whole or as a stream; a list if several were wanted; the wanted fields", content(
            (Value = "application/json"), (Value = "text/event-stream")
        )),
        Error
    )
)]
pub(crate) async fn completion(
    Loaded(service): Loaded,
    Extension(record): Extension<Arc<Record>>,
    Body(request): Body<Request>,
) -> Result<Response, Error> {
    answer(service, record, request, Task::Completion).await
}

async fn answer(
    service: Arc<Service>,
    record: Arc<Record>,
    request: Request,
    task: Task,
) -> Result<Response, Error> {
    let plan = Arc::new(request.plan(task, &service)?);
    let settings = |sample| Settings { key: key(plan.seed, 0, sample as u32), ..plan.settings };
    let texts = (0..plan.count).map(|sample| (plan.prompt.clone(), settings(sample))).collect();
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for (index, events) in service.submit(texts)?.into_iter().enumerate() {
        let stops = Stops { texts: plan.stops.clone(), tokens: Vec::new(), least: plan.settings.min_tokens };
        let generation = Generation::new(events, plan.prompt.len(), stops, record.clone());
        let writing = Writing { service: service.clone(), plan: plan.clone(), index, begun, generation };
        if plan.stream {
            return Ok(events_of(writing));
        }
        tasks.spawn(async move { writing.whole().await });
    }
    let mut answers = Vec::new();
    while let Some(answer) = tasks.join_next().await {
        answers.push(answer.map_err(|_| Error::internal())??);
    }
    answers.sort_unstable_by_key(|answer| answer.index);
    let mut answers: Vec<Value> = answers.iter().map(|answer| chosen(answer, &plan.fields)).collect();
    Ok(Json(if plan.count > 1 { json!(answers) } else { answers.remove(0) }).into_response())
}

fn events_of(mut writing: Writing) -> Response {
    events(async move |sender| {
        while let Some(text) = writing.next().await? {
            if !text.is_empty() {
                send(&sender, event(chosen(&writing.piece(text), &writing.plan.fields).to_string())).await;
            }
        }
        send(&sender, event(chosen(&writing.content(String::new()), &writing.plan.fields).to_string())).await;
        Ok(())
    })
}

/// One text that is being written.
struct Writing {
    service: Arc<Service>,
    plan: Arc<Plan>,
    index: usize,
    begun: Instant,
    generation: Generation,
}

impl Writing {
    /// Waits for more text; None at the end.
    async fn next(&mut self) -> Result<Option<String>, Error> {
        let text = self.generation.next(&self.service).await?;
        let over = |first: Instant| self.plan.limit.is_some_and(|limit| first.elapsed() > limit);
        if text.is_some()
            && self.generation.end.is_none()
            && self.generation.first.is_some_and(over)
            && self.generation.so_far().contains('\n')
        {
            self.generation.stop(End::Time);
        }
        Ok(text)
    }

    async fn whole(mut self) -> Result<Content, Error> {
        let mut text = String::new();
        while let Some(piece) = self.next().await? {
            text += &piece;
        }
        Ok(self.content(text))
    }

    /// A piece of a stream that another one follows.
    fn piece(&self, content: String) -> Content {
        Content { stop: false, stop_type: "none", stopping_word: String::new(), ..self.content(content) }
    }

    fn content(&self, content: String) -> Content {
        let Generation { first, known, prompt, tokens, end, .. } = &self.generation;
        let now = Instant::now();
        let first = first.unwrap_or(now);
        let milliseconds = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
        let (prompt_ms, predicted_ms) = (milliseconds(self.begun, first), milliseconds(first, now));
        let (prompt_n, predicted_n) = (prompt - known, tokens.len());
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let stop_type = match end {
            None => "none",
            Some(End::Token(_)) => "eos",
            Some(End::Text(_)) => "word",
            Some(End::Length | End::Time) => "limit",
        };
        let stopping_word = match end {
            Some(End::Text(text)) => text.clone(),
            _ => String::new(),
        };
        Content {
            index: self.index,
            content,
            stop: end.is_some(),
            stop_type,
            stopping_word,
            model: self.service.name.clone(),
            timings: Timings {
                prompt_n,
                prompt_ms,
                prompt_per_token_ms: ratio(prompt_ms, prompt_n as f64),
                prompt_per_second: 1e3 * ratio(prompt_n as f64, prompt_ms),
                predicted_n,
                predicted_ms,
                predicted_per_token_ms: ratio(predicted_ms, predicted_n as f64),
                predicted_per_second: 1e3 * ratio(predicted_n as f64, predicted_ms),
            },
            truncated: self.plan.truncated,
            tokens_cached: *known,
            tokens_evaluated: *prompt,
            tokens_predicted: predicted_n,
        }
    }
}

/// The wanted fields of an answer; all if none is named. A field within a field keeps its whole name, `timings/prompt_n`.
fn chosen(answer: &Content, fields: &[String]) -> Value {
    let all = json!(answer);
    if fields.is_empty() {
        return all;
    }
    let pointer = |name: &String| all.pointer(&format!("/{name}")).cloned();
    Value::Object(fields.iter().filter_map(|name| Some((name.clone(), pointer(name)?))).collect())
}
