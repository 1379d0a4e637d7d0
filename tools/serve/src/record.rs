//! [`Record`]: what a request was, for the log and the metrics. Nothing of a prompt or of what was written is in it.

use crate::generation::Generation;
use axum::http::{HeaderMap, HeaderValue, Method};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use program::esay;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The header with a request's name, of the client's choice or ours.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// One request. It is logged and counted when nobody knows it any more, which for a stream is at its end.
pub(crate) struct Record {
    /// The request's name.
    pub(crate) id: HeaderValue,
    method: Method,
    /// The path as the server has it, without what clients put in.
    route: String,
    start: Instant,
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    status: Option<u16>,
    ignored: Vec<String>,
    texts: Option<Texts>,
}

/// Sums over the texts of a request.
#[derive(Clone, Copy, Default)]
struct Texts {
    count: usize,
    prompt: usize,
    cached: usize,
    new: usize,
    /// Until the first new token of any.
    first: Option<Duration>,
    /// Texts that nobody waited for.
    left: usize,
}

impl Record {
    pub(crate) fn new(method: Method, route: String, headers: &HeaderMap) -> Record {
        let start = Instant::now();
        let named = headers.get(REQUEST_ID).filter(|id| is_name(id.as_bytes(), 128));
        let own = || HeaderValue::try_from(unique("req")).expect("letters and digits");
        Record { id: named.cloned().unwrap_or_else(own), method, route, start, facts: Mutex::default() }
    }

    /// The answer's status.
    pub(crate) fn answered(&self, status: u16) {
        self.facts.lock().expect("no holder panics").status = Some(status);
    }

    /// A field of the request that means nothing here.
    pub(crate) fn ignored(&self, field: &str) {
        if is_name(field.as_bytes(), 40) {
            self.facts.lock().expect("no holder panics").ignored.push(field.to_owned());
        }
    }

    /// A text at its end.
    pub(crate) fn text(&self, generation: &Generation) {
        let mut facts = self.facts.lock().expect("no holder panics");
        let texts = facts.texts.get_or_insert_default();
        let Generation { prompt, known, tokens, first, end, .. } = generation;
        texts.count += 1;
        texts.prompt += prompt;
        texts.cached += known;
        texts.new += tokens.len();
        texts.left += usize::from(end.is_none());
        let first = first.map(|first| first - self.start);
        texts.first = [texts.first, first].into_iter().flatten().min();
        let finish = end.as_ref().map_or("none", |end| end.reason());
        counter!("pythonlm_texts_total", "finish" => finish).increment(1);
        counter!("pythonlm_prompt_tokens_total").increment(*prompt as u64);
        counter!("pythonlm_cached_tokens_total").increment(*known as u64);
        counter!("pythonlm_new_tokens_total").increment(tokens.len() as u64);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.start.elapsed();
        let Ok(Facts { status, ignored, texts }) = self.facts.get_mut() else { return };
        // A client that goes before its answer has no status.
        let status = status.map_or_else(|| "gone".to_owned(), |status| status.to_string());
        counter!("pythonlm_requests_total", "route" => self.route.clone(), "status" => status.clone())
            .increment(1);
        histogram!("pythonlm_request_seconds", "route" => self.route.clone()).record(took);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let id = self.id.to_str().unwrap_or_default();
        let mut line = format!(
            "time={now:.3} id={id} method={} route={} status={status} seconds={:.4}",
            self.method,
            self.route,
            took.as_secs_f64()
        );
        if let Some(Texts { count, prompt, cached, new, first, left }) = texts {
            let _ =
                write!(line, " texts={count} prompt_tokens={prompt} cached_tokens={cached} new_tokens={new}");
            if let Some(first) = first {
                histogram!("pythonlm_time_to_first_token_seconds").record(*first);
                let _ = write!(line, " first_token_seconds={:.4}", first.as_secs_f64());
            }
            if *left > 0 {
                let _ = write!(line, " left={left}");
            }
        }
        if !ignored.is_empty() {
            let _ = write!(line, " ignored={}", ignored.join(","));
        }
        esay!("{line}");
    }
}

/// Collects the metrics of this process; what renders them for Prometheus.
///
/// # Errors
/// If something collects them already.
pub(crate) fn recorder() -> anyhow::Result<PrometheusHandle> {
    const SECONDS: [f64; 14] =
        [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
    let handle = PrometheusBuilder::new().set_buckets(&SECONDS)?.install_recorder()?;
    describe_counter!("pythonlm_requests_total", "Requests, by path and status");
    describe_counter!("pythonlm_texts_total", "Texts, by what ended them; none: their client went");
    describe_counter!("pythonlm_prompt_tokens_total", "Tokens of prompts");
    describe_counter!("pythonlm_cached_tokens_total", "Tokens of prompts that were in the cache already");
    describe_counter!("pythonlm_new_tokens_total", "New tokens");
    describe_histogram!("pythonlm_request_seconds", "From a request to the end of its answer");
    describe_histogram!("pythonlm_time_to_first_token_seconds", "From a request to its first new token");
    describe_gauge!("pythonlm_rows", "Texts that can be written side by side");
    describe_gauge!("pythonlm_rows_busy", "Texts that are being written");
    describe_gauge!("pythonlm_queue", "Texts that wait");
    describe_gauge!("pythonlm_cache_bytes", "Memory of keys and values, taken once at the start");
    Ok(handle)
}

/// Puts what was recorded into its buckets from time to time, or every number would be kept until somebody asks for them.
pub(crate) async fn keep_up(metrics: PrometheusHandle) {
    let mut times = tokio::time::interval(Duration::from_secs(5));
    loop {
        times.tick().await;
        metrics.run_upkeep();
    }
}

/// Whether bytes are letters, digits and a few signs, and not many: what may stand in a log.
fn is_name(bytes: &[u8], most: usize) -> bool {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
    (1..=most).contains(&bytes.len()) && bytes.iter().all(good)
}

/// A name that no other request has.
pub(crate) fn unique(kind: &str) -> String {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    format!("{kind}-{now:x}{count:04x}")
}
