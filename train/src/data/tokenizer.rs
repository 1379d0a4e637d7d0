//! Text to token ids and back, exactly, and the training of small byte-level tokenizers.
//!
//! Text never becomes a special token, whatever it contains: a source file that spells `<|endoftext|>` must not end a
//! document. Special are the added tokens that the file calls so, and those of Qwen's names with a meaning to the trainer.
//! Other added tokens (runs of spaces in GPT-NeoX's) are text, and are found in it as the `tokenizers` library finds them: the
//! ids of text are those of the library with `split_special_tokens`.
//!
//! A tokenizer that does not give text back as it was is refused when it is opened. One change is let pass, and said,
//! because the library makes it too: the normaliser NFC (Qwen's) composes characters that are not composed.

mod fast;
mod file;
mod round_trip;
mod train;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{DataError, Result};
use fast::Fast;
use file::Normalizer;
#[cfg(test)]
pub(super) use train::train;
pub(super) use train::{count, learn};

/// Ends a document.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Begins the part before the hole.
pub const FIM_PREFIX: &str = "<|fim_prefix|>";
/// Begins the part that fills the hole.
pub const FIM_MIDDLE: &str = "<|fim_middle|>";
/// Begins the part after the hole.
pub const FIM_SUFFIX: &str = "<|fim_suffix|>";
/// Fills a row that is not full.
pub const FIM_PAD: &str = "<|fim_pad|>";

/// Qwen2.5-Coder's special tokens in the order of their ids.
const SPECIAL_TOKENS: [&str; 9] = [
    END_OF_TEXT,
    "<|im_start|>",
    "<|im_end|>",
    FIM_PREFIX,
    FIM_MIDDLE,
    FIM_SUFFIX,
    FIM_PAD,
    "<|repo_name|>",
    "<|file_sep|>",
];

/// A tokenizer with the bytes of every token.
pub struct Tokenizer {
    path: PathBuf,
    text: tokenizers::Tokenizer,
    /// The bytes that a token stands for; `None` for special tokens and for ids that are not used.
    bytes: Vec<Option<Box<[u8]>>>,
    special: BTreeMap<String, i32>,
    fast: Option<Fast>,
    notes: Vec<String>,
    hash: String,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// If it is another file, damaged, or does not give text back as it was.
    pub fn open(path: &Path) -> Result<Self> {
        let json = fs::read(path).map_err(|e| DataError::io("read", path, e))?;
        Self::from_json(&json, path)
    }

    /// Reads the text of a `tokenizer.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        let fail = |reason: String| DataError::Tokenizer { doing: "read", path: path.to_owned(), reason };
        let mut object = file::parse(json).map_err(fail)?;
        let mut notes = file::clear(&mut object);
        let added = file::added(&mut object).map_err(fail)?;
        let value = Value::Object(object);
        let normalizer = Normalizer::of(&value["normalizer"]);
        if normalizer == Normalizer::Nfc {
            notes.push(
                "its normalizer NFC composes characters that are not composed; all other text stays as it is"
                    .into(),
            );
        }
        let in_text = added.iter().filter(|a| !a.special).map(|a| a.content.clone()).collect();
        let fast = Fast::new(&value, normalizer, in_text);
        let text = caught(|| {
            let mut text: tokenizers::Tokenizer =
                serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
            text.set_encode_special_tokens(true);
            Ok(text)
        })
        .map_err(fail)?;
        for token in &added {
            let given = text.token_to_id(&token.content);
            if given.map(i64::from) != Some(token.id.into()) {
                let given = given.map_or("none".to_owned(), |id| id.to_string());
                return Err(fail(format!(
                    "`{}` has id {}, but the tokenizers library gives it {given}: it numbers added tokens from the end of \
                     the vocabulary on, without gaps",
                    token.content, token.id
                )));
            }
        }
        let bytes = file::bytes_of_ids(text.get_vocab(false), &added, &char_of_byte()).map_err(fail)?;
        let special = added.iter().filter(|a| a.special).map(|a| (a.content.clone(), a.id)).collect();
        let hash = blake3::hash(json).to_hex().to_string();
        let tokenizer = Self { path: path.to_owned(), text, bytes, special, fast, notes, hash };
        round_trip::check(&tokenizer, &added, normalizer, &value)?;
        Ok(tokenizer)
    }

    /// Token ids of plain text; nothing is added.
    ///
    /// # Errors
    /// If the `tokenizers` library cannot do it.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let encode = || match self.fast.as_ref().filter(|fast| fast.is_exact_for(text)) {
            Some(fast) => fast.encode(self.text.get_model(), text),
            None => Ok(self.text.encode_fast(text, false)?.get_ids().iter().map(|&id| id as i32).collect()),
        };
        caught(|| encode().map_err(|e| e.to_string())).map_err(|reason| DataError::Tokenizer {
            doing: "encode text with",
            path: self.path.clone(),
            reason,
        })
    }

    /// Token ids of text in which special tokens are written by their names, as [`Tokenizer::shown`] does not: where one
    /// stands, it is the token, and of several that begin at one place the longest.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<i32>> {
        let (mut ids, mut rest) = (Vec::new(), text);
        loop {
            let names = self.special.keys().filter_map(|name| Some((rest.find(name.as_str())?, name)));
            let Some((at, name)) = names.min_by_key(|(at, name)| (*at, usize::MAX - name.len())) else {
                ids.extend(self.encode(rest)?);
                return Ok(ids);
            };
            ids.extend(self.encode(&rest[..at])?);
            ids.push(self.special[name]);
            rest = &rest[at + name.len()..];
        }
    }

    /// The bytes of token ids, or `None` when one of them is special or not used.
    pub fn decode_bytes(&self, ids: &[i32]) -> Option<Vec<u8>> {
        let mut all = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            all.extend_from_slice(self.bytes.get(usize::try_from(id).ok()?)?.as_deref()?);
        }
        Some(all)
    }

    /// The text of token ids, or `None` when it is not text.
    pub fn decode(&self, ids: &[i32]) -> Option<String> {
        String::from_utf8(self.decode_bytes(ids)?).ok()
    }

    /// Any token ids for a person to read: text, special tokens by name in `⟦⟧`, and what is no text replaced.
    pub fn shown(&self, ids: &[i32]) -> String {
        let name = |id: i32| match self.special.iter().find(|(_, special)| **special == id) {
            Some((name, _)) => format!("⟦{name}⟧"),
            None => format!("⟦{id}⟧"),
        };
        let mut shown = String::new();
        for run in ids.chunk_by(|a, b| {
            let is_text = |id: i32| self.decode_bytes(&[id]).is_some();
            is_text(*a) && is_text(*b)
        }) {
            match self.decode_bytes(run) {
                Some(bytes) => shown.push_str(&String::from_utf8_lossy(&bytes)),
                None => run.iter().for_each(|id| shown.push_str(&name(*id))),
            }
        }
        shown
    }

    /// The id of a special token, or an error that says what it is needed for.
    pub fn special(&self, token: &str, purpose: &'static str) -> Result<i32> {
        self.find_special(token).ok_or_else(|| {
            let remedy = "use a tokenizer.json that has it".to_owned();
            DataError::NoSpecial { path: self.path.clone(), token: token.to_owned(), purpose, remedy }
        })
    }

    /// The id of a special token if the tokenizer has it.
    pub fn find_special(&self, token: &str) -> Option<i32> {
        self.special.get(token).copied()
    }

    /// The name of a special token.
    pub fn special_name(&self, id: i32) -> Option<&str> {
        self.special.iter().find(|(_, special)| **special == id).map(|(name, _)| name.as_str())
    }

    /// The id of the token that ends a document, or an error with the tokens that may be meant.
    pub fn end_of_text(&self, token: &str) -> Result<i32> {
        self.find_special(token).ok_or_else(|| {
            let ends = |name: &&String| {
                let name = name.to_lowercase();
                ["end", "eos", "eot", "</s>"].iter().any(|part| name.contains(part))
            };
            let mut names: Vec<&String> = self.special.keys().filter(ends).collect();
            if names.is_empty() {
                names = self.special.keys().collect();
            }
            let names: Vec<String> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
            let remedy = match names.is_empty() {
                true => "it has no special tokens at all; use another tokenizer.json".to_owned(),
                false => format!(
                    "its special tokens are {}: name the one that ends a document, prepare-data --end-of-text TOKEN \
                     or, for rows that are there already, train --set data.end_of_text=TOKEN",
                    names.join(", ")
                ),
            };
            let purpose = "ends every document";
            DataError::NoSpecial { path: self.path.clone(), token: token.to_owned(), purpose, remedy }
        })
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// What a user should know about it: settings of the file that are not used, and changes to text.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The blake3 hash of the file, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// Calls the `tokenizers` library, which panics at some files.
fn caught<T>(work: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the tokenizers library panicked".to_owned()))
}

/// Bytes of a word as a byte-level vocabulary shows them.
fn shown(chars: &[char; 256], bytes: &[u8]) -> String {
    bytes.iter().map(|&b| chars[usize::from(b)]).collect()
}

/// GPT-2's table that shows each byte as a printable character: printable bytes stand for themselves, the others for the
/// characters from U+0100 on.
fn char_of_byte() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        if matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte as u8);
        }
        next += 1;
        char::from_u32(next - 1).expect("below the surrogates")
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{END_OF_TEXT, FIM_PAD, Tokenizer, train};

    const TEXT: &str = "def f(x):\n    return x + 1  # naïve €\n\n\ndef g(x):\n    return f(f(x))\n";

    #[test]
    fn trained_tokenizer_is_exact_and_keeps_text_apart_from_special_tokens() {
        let json = train([TEXT; 4].into_iter(), 300).expect("train");
        assert_eq!(json, train([TEXT; 4].into_iter(), 300).expect("train"), "same text, same tokenizer");
        let tokenizer = Tokenizer::from_json(&json, Path::new("tokenizer.json")).expect("read");
        assert_eq!(tokenizer.decode(&tokenizer.encode(TEXT).expect("encode")).as_deref(), Some(TEXT));
        let (eos, pad) = (tokenizer.find_special(END_OF_TEXT), tokenizer.find_special(FIM_PAD));
        assert_eq!(pad, eos.map(|id| id + 6), "Qwen's order");
        let spelled = tokenizer.encode("a<|endoftext|>b").expect("encode");
        assert!(!spelled.contains(&eos.expect("there")), "text must not end a document");
        assert_eq!(tokenizer.decode(&spelled).as_deref(), Some("a<|endoftext|>b"));
        assert_eq!(tokenizer.decode(&[eos.expect("there")]), None);
    }

    /// The trainer of the library alone takes hours here.
    #[test]
    fn one_long_word_comes_back() {
        let word: String = (0..1_000_000_u32)
            .map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 27) as u8 % 26))
            .collect();
        for word in [word, "a".repeat(1_000_000)] {
            let json = train([word.as_str(), TEXT, TEXT].into_iter(), 512).expect("train");
            let tokenizer = Tokenizer::from_json(&json, Path::new("tokenizer.json")).expect("read");
            let ids = tokenizer.encode(&word).expect("encode");
            assert_eq!(tokenizer.decode(&ids).as_deref(), Some(word.as_str()));
        }
    }

    /// The fast path gives the ids of the library.
    #[test]
    fn the_fast_way_gives_the_ids_of_the_general_way() {
        let source =
            include_str!("tokenizer.rs").to_owned() + TEXT + "\u{17f}'\u{17f} ²³ a\u{301}\r\n\t 漢字🦀";
        let json = train([source.as_str(); 2].into_iter(), 600).expect("train");
        let mut tokenizer = Tokenizer::from_json(&json, Path::new("tokenizer.json")).expect("read");
        assert!(tokenizer.fast.is_some());
        let fast = tokenizer.encode(&source).expect("encode");
        assert_eq!(fast, tokenizer.encode(&source).expect("encode"), "remembered words");
        tokenizer.fast = None;
        assert_eq!(fast, tokenizer.encode(&source).expect("encode"));
    }
}
