//! [`Service`]: the model behind the server, and the texts that are put into its queue.

use crate::engine::{Event, Job, Slot};
use crate::error::Error;
use decode::Settings;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, UnboundedSender, channel};
use train::data::{END_OF_TEXT, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, Tokenizer};

/// Events that wait for a slow reader before its row pauses.
const EVENTS: usize = 64;

/// What handlers know of the model.
pub(crate) struct Service {
    /// Its name for clients.
    pub(crate) name: String,
    pub(crate) tokenizer: Tokenizer,
    /// Tokens that end a text, one entry for each of the vocabulary.
    pub(crate) stops: Vec<bool>,
    /// Tokens of the vocabulary.
    pub(crate) vocabulary: usize,
    /// Tokens of a prompt and its continuation at most.
    pub(crate) context: usize,
    /// Tokens that the model was trained with at most.
    pub(crate) trained: usize,
    /// Numbers in the weights.
    pub(crate) parameters: usize,
    /// Seconds since 1970 when it was loaded.
    pub(crate) created: u64,
    /// How long one text may take, its time in the queue included.
    pub(crate) timeout: Duration,
    pub(crate) jobs: UnboundedSender<Job>,
    /// Texts that may wait at the same time, and how many of them still may.
    pub(crate) queue: usize,
    pub(crate) places: Arc<Semaphore>,
    /// The rows as the engine saw them last.
    pub(crate) slots: Arc<Mutex<Vec<Slot>>>,
}

impl Service {
    /// Token ids, if all are the model's.
    pub(crate) fn known(&self, ids: Vec<i32>) -> Result<Vec<i32>, String> {
        let known = |&&id: &&i32| usize::try_from(id).is_ok_and(|id| id < self.vocabulary);
        match ids.iter().find(|id| !known(id)) {
            Some(id) => Err(format!("id {id} is not one of the model's {} tokens", self.vocabulary)),
            None => Ok(ids),
        }
    }

    /// Token ids of a prompt as the model gets them: one that is empty is the beginning of a document.
    pub(crate) fn begun(&self, ids: Vec<i32>) -> Result<Vec<i32>, String> {
        let ids = self.known(ids)?;
        match (ids.is_empty(), self.tokenizer.find_special(END_OF_TEXT)) {
            (false, _) => Ok(ids),
            (true, Some(begin)) => Ok(vec![begin]),
            (true, None) => Err("the prompt is empty; there is nothing to continue".to_owned()),
        }
    }

    /// Token ids of a text in which names of special tokens stand for them.
    pub(crate) fn parse_special(&self, text: &str) -> anyhow::Result<Vec<i32>> {
        Ok(tokio::task::block_in_place(|| self.tokenizer.encode_with_special(text))?)
    }

    /// Token ids of a text, whatever it spells.
    pub(crate) fn encode(&self, text: &str) -> anyhow::Result<Vec<i32>> {
        Ok(tokio::task::block_in_place(|| self.tokenizer.encode(text))?)
    }

    /// Token ids for the text between two others, in the order that training mostly uses: prefix, suffix, middle.
    pub(crate) fn infill(&self, prefix: &[i32], suffix: &[i32]) -> anyhow::Result<Vec<i32>> {
        let mark = |token| self.tokenizer.special(token, "marks a part of a text to be filled in");
        let [before, after, middle] = [mark(FIM_PREFIX)?, mark(FIM_SUFFIX)?, mark(FIM_MIDDLE)?];
        Ok([&[before], prefix, &[after], suffix, &[middle]].concat())
    }

    /// The text of token ids, special tokens by name.
    pub(crate) fn text(&self, ids: &[i32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes of a token, a special token's name.
    pub(crate) fn bytes(&self, id: i32) -> Vec<u8> {
        let special = || self.tokenizer.special_name(id).unwrap_or_default().as_bytes().to_vec();
        self.tokenizer.decode_bytes(&[id]).unwrap_or_else(special)
    }

    /// A token for people: its text, its name, or if it is a part of a character its bytes as `bytes:\xe2\x82`.
    pub(crate) fn shown(&self, id: i32) -> String {
        match self.tokenizer.decode_bytes(&[id]).map(String::from_utf8) {
            Some(Ok(text)) => text,
            Some(Err(error)) => {
                let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
                format!("bytes:{}", bytes.collect::<String>())
            }
            None => self.tokenizer.special_name(id).map_or_else(|| format!("token:{id}"), str::to_owned),
        }
    }

    /// Queues texts, all or none.
    pub(crate) fn submit(&self, texts: Vec<(Vec<i32>, Settings)>) -> Result<Vec<Receiver<Event>>, Error> {
        for (prompt, settings) in &texts {
            if prompt.len().saturating_add(settings.new_tokens) > self.context {
                return Err(Error::too_long(self.context, prompt.len(), settings.new_tokens));
            }
        }
        let full = |_| Error::overloaded(self.queue);
        let count = u32::try_from(texts.len()).unwrap_or(u32::MAX);
        let mut places = self.places.clone().try_acquire_many_owned(count).map_err(full)?;
        let queue = texts.into_iter().map(|(prompt, settings)| {
            let (events, receiver) = channel(EVENTS);
            let place = places.split(1).expect("there is one for each text");
            // Without the engine its end is what a reader finds.
            let _ = self.jobs.send(Job { prompt, settings, events, place });
            receiver
        });
        Ok(queue.collect())
    }
}
