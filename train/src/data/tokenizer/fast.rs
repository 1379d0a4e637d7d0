//! A fast path for tokenizers like Qwen2's: words are cut by hand-written code, and each is merged once and remembered.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokenizers::Model;
use tokenizers::models::ModelWrapper;

use super::file::Normalizer;
use super::{char_of_byte, shown};
use crate::data::words::{PATTERN, Words};

/// Words and their ids.
type KnownWords = HashMap<Box<str>, Box<[i32]>>;

/// Gives the same ids as the `tokenizers` library where [`Fast::is_exact_for`] says so.
pub(super) struct Fast {
    words: Words,
    normalizer: Normalizer,
    /// Added tokens that text may spell; text with one of them goes to the library.
    added: Vec<String>,
    chars: [char; 256],
    /// Ids of words, in parts so that threads seldom wait for each other.
    known: [Mutex<KnownWords>; 16],
}

/// Longer words are not remembered: they are rare, and seldom come twice.
const LONGEST_KNOWN: usize = 64;
/// Words remembered in each part: 10 to 20 MB in all.
const MOST_KNOWN: usize = 1 << 14;

impl Fast {
    /// `None` unless the tokenizer is exactly of this kind. added: the added tokens that text may spell.
    pub(super) fn new(tokenizer: &Value, normalizer: Normalizer, added: Vec<String>) -> Option<Self> {
        let steps = &tokenizer["pre_tokenizer"]["pretokenizers"];
        let (split, bytes) = (&steps[0], &steps[1]);
        let same = normalizer != Normalizer::Other
            && steps.as_array().is_some_and(|s| s.len() == 2)
            && split["type"] == "Split"
            && split["pattern"]["Regex"] == PATTERN
            && split["behavior"] == "Isolated"
            && split["invert"] == false
            && bytes["type"] == "ByteLevel"
            && bytes["add_prefix_space"] == false
            && bytes["use_regex"] == false
            && tokenizer["model"]["type"] == "BPE"
            // A token that is matched after normalising could match text that does not hold it.
            && added.iter().all(|token| token.is_ascii());
        same.then(|| Self {
            words: Words::new(),
            normalizer,
            added,
            chars: char_of_byte(),
            known: Default::default(),
        })
    }

    /// Not for text that NFC may change, which is all but ASCII, nor for text with an added token: those go to the library.
    pub(super) fn is_exact_for(&self, text: &str) -> bool {
        (self.normalizer == Normalizer::None || text.is_ascii())
            && !self.added.iter().any(|token| text.contains(token.as_str()))
    }

    pub(super) fn encode(&self, model: &ModelWrapper, text: &str) -> tokenizers::Result<Vec<i32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        for word in self.words.split(text) {
            let part =
                word.bytes().fold(word.len(), |h, b| h.wrapping_mul(31).wrapping_add(usize::from(b))) % 16;
            let mut known = self.known[part].lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = known.get(word) {
                ids.extend_from_slice(found);
                continue;
            }
            let tokens = model.tokenize(&shown(&self.chars, word.as_bytes()))?;
            let found: Box<[i32]> = tokens.iter().map(|t| t.id as i32).collect();
            ids.extend_from_slice(&found);
            if word.len() <= LONGEST_KNOWN && known.len() < MOST_KNOWN {
                known.insert(word.into(), found);
            }
        }
        Ok(ids)
    }
}
