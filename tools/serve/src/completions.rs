//! `/v1/completions`, in OpenAI's form with what vLLM adds to it, and `/v1/fim/completions`, in Mistral's.

use crate::answer::{self, Completion, Fim, Form};
use crate::app::Loaded;
use crate::body::Body;
use crate::error::Error;
use crate::generation::{Generation, Stops};
use crate::record::Record;
use crate::service::Service;
use axum::Extension;
use axum::response::Response;
use decode::{Sampling, Scoring, Settings, key};
use model::decode::TOP;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;

/// New tokens, if nobody says how many.
const NEW_TOKENS: usize = 16;
/// Stop strings of a request at most.
const STOPS: usize = 32;
/// The largest temperature.
const HOTTEST: f64 = 100.0;
/// A temperature below this one is 0: beside it numbers would leave the range of f32.
const COLDEST: f64 = 1e-5;

/// What is to be continued, and how. Fields that are not here are let pass.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = CompletionRequest)]
pub(crate) struct Request {
    /// Any name: the server has one model.
    #[serde(rename = "model")]
    _model: Option<String>,
    /// Texts, in which names of special tokens stand for them, or token ids.
    prompt: Option<Prompts>,
    /// Text after what is written: the model fills in. Names of special tokens in it or in the prompt are then plain text.
    suffix: Option<String>,
    /// New tokens at most; 16, or with `echo` none.
    #[schema(minimum = 0)]
    max_tokens: Option<usize>,
    /// Another name of `max_tokens`.
    #[schema(minimum = 0)]
    max_completion_tokens: Option<usize>,
    /// Another name of `max_tokens`.
    #[schema(minimum = 0)]
    n_predict: Option<usize>,
    /// New tokens before which nothing ends the text.
    #[schema(minimum = 0)]
    min_tokens: Option<usize>,
    /// Whether the model's own end of a text is no end.
    ignore_eos: Option<bool>,
    /// 0 takes the most probable token.
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f64>,
    /// Of the most probable tokens so many that their probabilities reach this.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// So many of the most probable tokens; 0 or less: all.
    top_k: Option<i64>,
    /// Texts for each prompt.
    #[schema(minimum = 1)]
    n: Option<usize>,
    /// Texts that are written for each prompt; the `n` most probable ones are answered.
    #[schema(minimum = 1)]
    best_of: Option<usize>,
    /// The same seed writes the same text, whatever else the server does.
    seed: Option<i64>,
    stop: Option<StopTexts>,
    stop_token_ids: Option<Vec<i32>>,
    include_stop_str_in_output: Option<bool>,
    return_token_ids: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// The most probable tokens beside each token, so many, and each token's own log-probability.
    #[schema(minimum = 0, maximum = 5)]
    logprobs: Option<usize>,
    /// Whether the prompt stands before the text.
    echo: Option<bool>,
    /// Not supported: 0.
    #[schema(minimum = 0, maximum = 0)]
    min_p: Option<f64>,
    /// Not supported: 0.
    #[schema(minimum = 0, maximum = 0)]
    presence_penalty: Option<f64>,
    /// Not supported: 0.
    #[schema(minimum = 0, maximum = 0)]
    frequency_penalty: Option<f64>,
    /// Not supported: 1.
    #[schema(minimum = 1, maximum = 1)]
    repetition_penalty: Option<f64>,
    /// Not supported: empty, or all 0.
    logit_bias: Option<BTreeMap<String, f64>>,
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// One text, or several, or token ids of one or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "prompt must be a text, a list of texts, a list of token ids, or a list of such lists"
)]
pub(crate) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<i32>),
    AllIds(Vec<Vec<i32>>),
}

/// One stop string, or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "stop must be a text or a list of texts")]
pub(crate) enum StopTexts {
    One(String),
    Many(Vec<String>),
}

impl StopTexts {
    pub(crate) fn checked(stops: Option<StopTexts>) -> Result<Vec<String>, Error> {
        let texts = match stops {
            None => Vec::new(),
            Some(StopTexts::One(text)) => vec![text],
            Some(StopTexts::Many(texts)) => texts,
        };
        match texts.len() > STOPS || texts.iter().any(String::is_empty) {
            true => {
                Err(Error::field("stop", format!("stop must be at most {STOPS} texts, none of them empty")))
            }
            false => Ok(texts),
        }
    }
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Whether a last piece without a choice has the usage.
    include_usage: Option<bool>,
}

/// A request in Mistral's form, of a text between two others. Both are plain text, whatever they spell.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct FimRequest {
    /// Any name: the server has one model.
    #[serde(rename = "model")]
    _model: Option<String>,
    prompt: String,
    suffix: Option<String>,
    #[schema(minimum = 0)]
    max_tokens: Option<usize>,
    #[schema(minimum = 0)]
    min_tokens: Option<usize>,
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f64>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    stop: Option<StopTexts>,
    random_seed: Option<i64>,
    stream: Option<bool>,
}

/// New tokens of a text between two others, if nobody says how many.
const FIM_TOKENS: usize = 128;

impl From<FimRequest> for Request {
    fn from(fim: FimRequest) -> Request {
        let FimRequest { max_tokens, min_tokens, temperature, top_p, stop, stream, .. } = fim;
        Request {
            prompt: Some(Prompts::Text(fim.prompt)),
            suffix: Some(fim.suffix.unwrap_or_default()),
            max_tokens: Some(max_tokens.unwrap_or(FIM_TOKENS)),
            seed: fim.random_seed,
            min_tokens,
            temperature,
            top_p,
            stop,
            stream,
            ..Request::default()
        }
    }
}

/// A request whose fields are known to be right.
pub(crate) struct Plan {
    pub(crate) prompts: Vec<Vec<i32>>,
    settings: Settings,
    seed: u64,
    /// Texts that are written for each prompt, and how many of them are answered.
    pub(crate) candidates: usize,
    pub(crate) n: usize,
    pub(crate) stops: Stops,
    pub(crate) include_stop: bool,
    pub(crate) return_ids: bool,
    pub(crate) echo: bool,
    /// How many of the most probable tokens are answered.
    pub(crate) logprobs: Option<usize>,
    stream: bool,
    pub(crate) usage: bool,
}

impl Request {
    fn plan(mut self, service: &Service) -> Result<Plan, Error> {
        self.refuse_unsupported()?;
        let stream = self.stream.unwrap_or(false);
        let echo = self.echo.unwrap_or(false);
        let (n, best_of) = (self.n.unwrap_or(1), self.best_of.unwrap_or(self.n.unwrap_or(1)));
        if n == 0 {
            return Err(Error::field("n", "n is 0, but must be at least 1"));
        }
        if best_of < n {
            return Err(Error::field(
                "best_of",
                format!("best_of is {best_of}, but must be at least n, {n}"),
            ));
        }
        if stream && best_of > n {
            let message = "the best texts are known at the end only: best_of above n cannot stream";
            return Err(Error::field("best_of", message));
        }
        if self.stream_options.is_some() && !stream {
            return Err(Error::field("stream_options", "stream_options are for requests with stream: true"));
        }
        if self.logprobs.is_some_and(|logprobs| logprobs > TOP) {
            return Err(Error::field("logprobs", format!("logprobs must be at most {TOP}")));
        }
        let prompts = self.prompts(service)?;
        let most = service.queue;
        if prompts.len().saturating_mul(best_of) > most {
            let message = format!(
                "{} prompts with {best_of} texts each are more than the {most} texts that may wait",
                prompts.len()
            );
            return Err(Error::field("n", message));
        }
        let texts = StopTexts::checked(self.stop.take())?;
        let new_tokens = self.max_tokens.or(self.max_completion_tokens).or(self.n_predict);
        let new_tokens = new_tokens.unwrap_or(if echo { 0 } else { NEW_TOKENS });
        let min_tokens = match self.ignore_eos {
            Some(true) => new_tokens,
            _ => self.min_tokens.unwrap_or(0),
        };
        if min_tokens > new_tokens {
            let message = format!("min_tokens is {min_tokens}, but at most {new_tokens} tokens are written");
            return Err(Error::field("min_tokens", message));
        }
        let scoring = match (self.logprobs, echo) {
            (None, _) => Scoring::New,
            (Some(_), false) => Scoring::NewTop,
            (Some(_), true) => Scoring::PromptTop,
        };
        let tokens = self.stop_token_ids.clone().unwrap_or_default();
        Ok(Plan {
            prompts,
            settings: Settings {
                new_tokens,
                min_tokens,
                sampling: sampling(self.temperature.unwrap_or(1.0), self.top_p.unwrap_or(1.0), self.top_k)?,
                key: [0, 0],
                scoring,
            },
            seed: self.seed.map_or_else(random_seed, |seed| seed as u64),
            candidates: best_of,
            n,
            stops: Stops { texts, tokens, least: min_tokens },
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
            return_ids: self.return_token_ids.unwrap_or(false),
            echo,
            logprobs: self.logprobs,
            stream,
            usage: self.stream_options.as_ref().is_some_and(|options| options.include_usage.unwrap_or(false)),
        })
    }

    /// Fields that change what is drawn in ways that this server does not know pass only where they change nothing.
    fn refuse_unsupported(&self) -> Result<(), Error> {
        let neutral = |name: &str, value: Option<f64>, neutral: f64| match value {
            Some(value) if value != neutral => {
                Err(Error::field(name, format!("{name} is not supported; leave it out, or give {neutral}")))
            }
            _ => Ok(()),
        };
        neutral("min_p", self.min_p, 0.0)?;
        neutral("presence_penalty", self.presence_penalty, 0.0)?;
        neutral("frequency_penalty", self.frequency_penalty, 0.0)?;
        neutral("repetition_penalty", self.repetition_penalty, 1.0)?;
        match &self.logit_bias {
            Some(bias) if bias.values().any(|&bias| bias != 0.0) => {
                Err(Error::field("logit_bias", "logit_bias is not supported; leave it out"))
            }
            _ => Ok(()),
        }
    }

    fn prompts(&self, service: &Service) -> Result<Vec<Vec<i32>>, Error> {
        let whole = |ids: Vec<i32>| service.begun(ids).map_err(|message| Error::field("prompt", message));
        let text = |text: &String| -> Result<Vec<i32>, Error> {
            let ids = match &self.suffix {
                // Marks around what a person wrote: it is text, whatever it spells.
                Some(suffix) => {
                    service.encode(text).and_then(|prefix| service.infill(&prefix, &service.encode(suffix)?))
                }
                None => service.parse_special(text),
            };
            whole(ids.map_err(|error| Error::field("prompt", format!("{error:#}")))?)
        };
        let ids = |ids: &Vec<i32>| match self.suffix {
            Some(_) => Err(Error::field("suffix", "a suffix goes with a prompt of text, not of token ids")),
            None => whole(ids.clone()),
        };
        let prompts = match &self.prompt {
            None => vec![text(&String::new())?],
            Some(Prompts::Text(one)) => vec![text(one)?],
            Some(Prompts::Texts(texts)) => texts.iter().map(text).collect::<Result<_, _>>()?,
            Some(Prompts::Ids(one)) => vec![ids(one)?],
            Some(Prompts::AllIds(all)) => all.iter().map(ids).collect::<Result<_, _>>()?,
        };
        if prompts.is_empty() {
            return Err(Error::field("prompt", "prompt is an empty list"));
        }
        Ok(prompts)
    }
}

/// How tokens are drawn with these settings.
pub(crate) fn sampling(temperature: f64, top_p: f64, top_k: Option<i64>) -> Result<Sampling, Error> {
    if !(0.0..=HOTTEST).contains(&temperature) {
        let message = format!("temperature is {temperature}, but must be at least 0 and at most {HOTTEST}");
        return Err(Error::field("temperature", message));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(Error::field(
            "top_p",
            format!("top_p is {top_p}, but must be more than 0 and at most 1"),
        ));
    }
    let top_p = top_p.max(f64::from(f32::MIN_POSITIVE));
    // Some clients say -1 for all.
    let top_k = usize::try_from(top_k.unwrap_or(0)).unwrap_or(0);
    Ok(if temperature < COLDEST { Sampling::Greedy } else { Sampling::Random { temperature, top_k, top_p } })
}

/// A seed for a request without one.
pub(crate) fn random_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}

/// Continues texts
#[utoipa::path(
    post,
    path = "/v1/completions",
    request_body = Request,
    responses(
        (status = 200, description = "The texts, whole or as a stream", content(
            (Completion = "application/json"), (serde_json::Value = "text/event-stream")
        )),
        Error
    )
)]
pub(crate) async fn completions(
    Loaded(service): Loaded,
    Extension(record): Extension<Arc<Record>>,
    Body(request): Body<Request>,
) -> Result<Response, Error> {
    answer(service, record, request, Form::Completion).await
}

/// Writes what stands between two texts
#[utoipa::path(
    post,
    path = "/v1/fim/completions",
    request_body = FimRequest,
    responses(
        (status = 200, description = "The text, whole or as a stream", content(
            (Fim = "application/json"), (serde_json::Value = "text/event-stream")
        )),
        Error
    )
)]
pub(crate) async fn fim_completions(
    Loaded(service): Loaded,
    Extension(record): Extension<Arc<Record>>,
    Body(request): Body<FimRequest>,
) -> Result<Response, Error> {
    answer(service, record, request.into(), Form::Fim).await
}

async fn answer(
    service: Arc<Service>,
    record: Arc<Record>,
    request: Request,
    form: Form,
) -> Result<Response, Error> {
    let plan = request.plan(&service)?;
    let mut texts = Vec::new();
    for (stream, prompt) in (0..).zip(&plan.prompts) {
        for sample in 0..plan.candidates {
            let settings = Settings { key: key(plan.seed, stream, sample as u32), ..plan.settings };
            texts.push((prompt.clone(), settings));
        }
    }
    let receivers = service.submit(texts)?;
    let generations = receivers.into_iter().enumerate().map(|(index, events)| {
        let prompt = plan.prompts[index / plan.candidates].len();
        Generation::new(events, prompt, plan.stops.clone(), record.clone())
    });
    let generations = generations.collect();
    match plan.stream {
        true => Ok(answer::stream(service, plan, generations, form)),
        false => answer::whole(service, plan, generations, form).await,
    }
}
