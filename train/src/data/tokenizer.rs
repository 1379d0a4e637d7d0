//! Text to token ids and back, exactly, and the training of small byte-level tokenizers.
//!
//! Text never becomes a special token, whatever it contains: a source file that spells `<|endoftext|>` must not end a
//! document. So the added tokens are taken out of the tokenizer that sees text, and are looked up by name instead.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, Model, SplitDelimiterBehavior, Trainer};

use super::error::{DataError, Result};
use super::words::{PATTERN, Words};

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

/// The smallest vocabulary that holds every byte, every special token and something learned.
const SMALLEST: usize = 256 + SPECIAL_TOKENS.len() + 1;

/// A tokenizer with the bytes of every token.
pub struct Tokenizer {
    path: PathBuf,
    text: tokenizers::Tokenizer,
    /// The bytes that a token stands for; `None` for special tokens and for ids that are not used.
    bytes: Vec<Option<Box<[u8]>>>,
    special: HashMap<String, i32>,
    byte_level: bool,
    fast: Option<Fast>,
    hash: String,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Self> {
        let json = fs::read(path).map_err(|e| DataError::io("read", path, e))?;
        Self::from_json(&json, path)
    }

    /// Understands the text of a `tokenizer.json`; `path` is for messages.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        let fail = |reason: String| DataError::Tokenizer { doing: "read", path: path.to_owned(), reason };
        let mut value: Value = serde_json::from_slice(json).map_err(|e| fail(e.to_string()))?;
        let byte_level = value.get("decoder").is_some_and(|d| d.to_string().contains("\"ByteLevel\""));
        let mut special = HashMap::new();
        if let Some(Value::Array(added)) = value.get_mut("added_tokens").map(Value::take) {
            for token in added {
                let (Some(id), Some(content)) = (token["id"].as_i64(), token["content"].as_str()) else {
                    return Err(fail(format!("an added token has no id or content: {token}")));
                };
                let id =
                    i32::try_from(id).map_err(|_| fail(format!("token id {id} does not fit 32 bits")))?;
                special.insert(content.to_owned(), id);
            }
        }
        value["added_tokens"] = Value::Array(Vec::new());
        let fast = Fast::new(&value);
        let text: tokenizers::Tokenizer = serde_json::from_value(value).map_err(|e| fail(e.to_string()))?;
        let vocabulary = text.get_vocab(false);
        let largest =
            vocabulary.values().map(|&id| id as i64).chain(special.values().map(|&id| i64::from(id))).max();
        let mut bytes = vec![None; largest.map_or(0, |id| id as usize + 1)];
        let table: HashMap<char, u8> = char_of_byte().into_iter().zip(0..=255).collect();
        for (token, id) in vocabulary {
            if !special.contains_key(&token) {
                bytes[id as usize] = token.chars().map(|c| table.get(&c).copied()).collect();
            }
        }
        let hash = blake3::hash(json).to_hex().to_string();
        Ok(Self { path: path.to_owned(), text, bytes, special, byte_level, fast, hash })
    }

    /// Token ids of plain text; nothing is added.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let encode = || match self.fast.as_ref().filter(|fast| fast.is_exact_for(text)) {
            Some(fast) => fast.encode(self.text.get_model(), text),
            None => Ok(self.text.encode_fast(text, false)?.get_ids().iter().map(|&id| id as i32).collect()),
        };
        encode().map_err(|e| DataError::Tokenizer {
            doing: "encode text with",
            path: self.path.clone(),
            reason: e.to_string(),
        })
    }

    /// The bytes of token ids, or `None` when one of them is special or not byte-level.
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

    /// The id of a special token, or an error that says what it is needed for.
    pub fn special(&self, token: &'static str, purpose: &'static str) -> Result<i32> {
        self.find_special(token).ok_or(DataError::NoSpecial {
            path: self.path.clone(),
            token,
            purpose,
            or: "",
        })
    }

    /// The id of a special token if the tokenizer has it.
    pub fn find_special(&self, token: &str) -> Option<i32> {
        self.special.get(token).copied()
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Whether every token is a sequence of bytes, so that text can be cut anywhere and put together again.
    pub fn is_byte_level(&self) -> bool {
        self.byte_level
    }

    /// The blake3 hash of the file, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// Words and their ids.
type KnownWords = HashMap<Box<str>, Box<[i32]>>;

/// The pipeline of Qwen2's tokenizer.json without its general machinery: words by hand, each merged once and remembered.
struct Fast {
    words: Words,
    normaliser: bool,
    chars: [char; 256],
    /// Ids of words, in parts so that threads seldom wait for each other.
    known: [Mutex<KnownWords>; 16],
}

/// Longer words are rare, and seldom come twice.
const LONGEST_KNOWN: usize = 64;
/// Words remembered in each part: 10 to 20 MB in all.
const MOST_KNOWN: usize = 1 << 14;

impl Fast {
    /// `None` unless the tokenizer is exactly of this kind.
    fn new(tokenizer: &Value) -> Option<Self> {
        let normaliser = match &tokenizer["normalizer"] {
            Value::Null => false,
            other if other["type"] == "NFC" => true,
            _ => return None,
        };
        let steps = &tokenizer["pre_tokenizer"]["pretokenizers"];
        let (split, bytes) = (&steps[0], &steps[1]);
        let same = steps.as_array().is_some_and(|s| s.len() == 2)
            && split["type"] == "Split"
            && split["pattern"]["Regex"] == PATTERN
            && split["behavior"] == "Isolated"
            && split["invert"] == false
            && bytes["type"] == "ByteLevel"
            && bytes["add_prefix_space"] == false
            && bytes["use_regex"] == false
            && tokenizer["model"]["type"] == "BPE"
            && tokenizer["model"]["dropout"].is_null()
            && tokenizer["truncation"].is_null()
            && tokenizer["padding"].is_null();
        same.then(|| Self {
            words: Words::new(),
            normaliser,
            chars: char_of_byte(),
            known: Default::default(),
        })
    }

    /// A normaliser leaves ASCII as it is; other text takes the general way then.
    fn is_exact_for(&self, text: &str) -> bool {
        !self.normaliser || text.is_ascii()
    }

    fn encode(&self, model: &ModelWrapper, text: &str) -> tokenizers::Result<Vec<i32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        for word in self.words.split(text) {
            let part =
                word.bytes().fold(word.len(), |h, b| h.wrapping_mul(31).wrapping_add(usize::from(b))) % 16;
            let mut known = self.known[part].lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = known.get(word) {
                ids.extend_from_slice(found);
                continue;
            }
            let tokens = model.tokenize(&shown(&self.chars, word))?;
            let found: Box<[i32]> = tokens.iter().map(|t| t.id as i32).collect();
            ids.extend_from_slice(&found);
            if word.len() <= LONGEST_KNOWN && known.len() < MOST_KNOWN {
                known.insert(word.into(), found);
            }
        }
        Ok(ids)
    }
}

/// A word as a byte-level vocabulary shows it.
fn shown(chars: &[char; 256], word: &str) -> String {
    word.bytes().map(|b| chars[usize::from(b)]).collect()
}

/// Trains a byte-level BPE of `vocab_size` tokens, the special ones last as in Qwen's vocabulary, and returns the text of
/// its `tokenizer.json`. There is no normaliser (Qwen has NFC): source code must come back byte for byte.
pub(super) fn train<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
) -> Result<Vec<u8>> {
    if vocab_size < SMALLEST {
        return Err(DataError::Setting {
            name: "--train-tokenizer",
            found: vocab_size.to_string(),
            wanted: "at least 266 (every byte, nine special tokens and one learned token)",
        });
    }
    let fail = |e: tokenizers::Error| DataError::Tokenizer {
        doing: "train",
        path: PathBuf::from("tokenizer.json"),
        reason: e.to_string(),
    };
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size - SPECIAL_TOKENS.len())
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let (words, chars) = (Words::new(), char_of_byte());
    trainer.feed(texts, |text| Ok(words.split(text).map(|w| shown(&chars, w)).collect())).map_err(fail)?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(fail)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let split = Split::new(SplitPattern::Regex(PATTERN.to_owned()), SplitDelimiterBehavior::Isolated, false);
    let byte_level = ByteLevel::new(false, false, false);
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
        PreTokenizerWrapper::Split(split.map_err(fail)?),
        PreTokenizerWrapper::ByteLevel(byte_level),
    ]))));
    tokenizer.with_decoder(Some(byte_level));
    tokenizer.with_post_processor(Some(byte_level));
    let special: Vec<AddedToken> = SPECIAL_TOKENS.iter().map(|&t| AddedToken::from(t, true)).collect();
    tokenizer.add_special_tokens(&special);
    tokenizer.to_string(true).map(String::into_bytes).map_err(fail)
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
        assert!(tokenizer.is_byte_level());
        assert_eq!(tokenizer.decode(&tokenizer.encode(TEXT).expect("encode")).as_deref(), Some(TEXT));
        let (eos, pad) = (tokenizer.find_special(END_OF_TEXT), tokenizer.find_special(FIM_PAD));
        assert_eq!(pad, eos.map(|id| id + 6), "Qwen's order");
        let spelled = tokenizer.encode("a<|endoftext|>b").expect("encode");
        assert!(!spelled.contains(&eos.expect("there")), "text must not end a document");
        assert_eq!(tokenizer.decode(&spelled).as_deref(), Some("a<|endoftext|>b"));
        assert_eq!(tokenizer.decode(&[eos.expect("there")]), None);
    }

    /// The short way must not be another tokenizer.
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
