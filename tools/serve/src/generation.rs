//! [`Generation`]: one text that is being written for a request.

use crate::engine::Event;
use crate::error::Error;
use crate::record::Record;
use crate::service::Service;
use decode::{Score, Text};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::Receiver;

/// Why a text ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    /// A token that is no text, or one of the request's.
    Token(i32),
    /// A stop string of the request.
    Text(String),
    /// It has all tokens that were asked for.
    Length,
    /// Its time was over.
    Time,
}

impl End {
    /// OpenAI's name of it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            End::Token(_) | End::Text(_) => "stop",
            End::Length | End::Time => "length",
        }
    }
}

/// What ends a text beside the model's own tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stops {
    pub(crate) texts: Vec<String>,
    pub(crate) tokens: Vec<i32>,
    /// Tokens before which no token ends it.
    pub(crate) least: usize,
}

/// A text that is being written. Dropping it ends that.
pub(crate) struct Generation {
    events: Receiver<Event>,
    stops: Stops,
    text: Text,
    record: Arc<Record>,
    begun: Instant,
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// When the first new token came.
    pub(crate) first: Option<Instant>,
    /// Tokens of the prompt that were known.
    pub(crate) known: usize,
    /// Scores of the prompt's tokens from the second on.
    pub(crate) prompt_scores: Vec<Score>,
    /// All tokens so far with their scores; a token that ended the text is the last.
    pub(crate) tokens: Vec<(i32, Score)>,
    pub(crate) end: Option<End>,
}

impl Generation {
    /// A text of a job: its events, and its prompt's number of tokens.
    pub(crate) fn new(
        events: Receiver<Event>,
        prompt: usize,
        stops: Stops,
        record: Arc<Record>,
    ) -> Generation {
        let (text, first, known, prompt_scores, tokens, end) = Default::default();
        let begun = Instant::now();
        Generation { events, stops, text, record, begun, prompt, first, known, prompt_scores, tokens, end }
    }

    /// Waits for more text; None at the end. New tokens may have no text to show yet.
    pub(crate) async fn next(&mut self, service: &Service) -> Result<Option<String>, Error> {
        while self.end.is_none() {
            let deadline = tokio::time::Instant::from_std(self.begun + service.timeout);
            let Ok(event) = tokio::time::timeout_at(deadline, self.events.recv()).await else {
                return Err(Error::timed_out(service.timeout));
            };
            match event {
                Some(Event::Admitted { known }) => self.known = known,
                Some(Event::Prompt(scores)) => self.prompt_scores.extend(scores),
                Some(Event::Tokens(tokens, scores)) => {
                    self.first.get_or_insert_with(Instant::now);
                    let new = tokens.into_iter().zip(scores);
                    let done = new.into_iter().any(|(token, score)| self.push(token, score, service));
                    return Ok(Some(if done { self.text.rest() } else { self.text.news(&self.stops.texts) }));
                }
                Some(Event::Finished) => {
                    self.stop(End::Length);
                    let rest = self.text.rest();
                    return Ok((!rest.is_empty()).then_some(rest));
                }
                Some(Event::Failed) | None => return Err(Error::internal()),
            }
        }
        Ok(None)
    }

    /// The whole text.
    pub(crate) async fn finish(&mut self, service: &Service) -> Result<String, Error> {
        while self.next(service).await?.is_some() {}
        Ok(self.so_far())
    }

    /// The text so far, what is held back for stop strings included.
    pub(crate) fn so_far(&self) -> String {
        self.text.whole()
    }

    /// Ends the text here, and with it what the device does for it.
    pub(crate) fn stop(&mut self, end: End) {
        self.end = Some(end);
        self.events.close();
    }

    /// Takes a token in; whether it ends the text.
    fn push(&mut self, token: i32, score: Score, service: &Service) -> bool {
        self.tokens.push((token, score));
        let counts = self.tokens.len() > self.stops.least;
        let is_text = !service.stops[token as usize];
        if counts && (!is_text || self.stops.tokens.contains(&token)) {
            self.stop(End::Token(token));
            return true;
        }
        let bytes = service.tokenizer.decode_bytes(&[token]).unwrap_or_default();
        if self.text.push(&bytes, &self.stops.texts) {
            let which = self.text.stopped_by().expect("a stop string was found");
            self.stop(End::Text(self.stops.texts[which].clone()));
            return true;
        }
        false
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.record.text(self);
    }
}
