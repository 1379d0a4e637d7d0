//! Reading a `tokenizer.json`: what another file seems to be, which settings are cleared, and which added tokens text may spell.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::SPECIAL_TOKENS;

/// Ids are below this: many times the largest vocabulary in use. A table of all ids is kept.
const MOST_IDS: usize = 1 << 22;

/// What is done to text before it is cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Normalizer {
    /// Nothing.
    None,
    /// Canonical composition: changes text that is not composed, and nothing else.
    Nfc,
    /// Anything else.
    Other,
}

impl Normalizer {
    /// Reads the key `normalizer`.
    pub(super) fn of(value: &Value) -> Self {
        match value["type"].as_str() {
            None if value.is_null() => Self::None,
            Some("NFC") => Self::Nfc,
            Some("Sequence") => {
                let steps = value["normalizers"].as_array().into_iter().flatten().map(Self::of);
                steps.fold(Self::None, |all, step| match step {
                    Self::None => all,
                    _ if all == Self::Other => all,
                    step => step,
                })
            }
            _ => Self::Other,
        }
    }
}

/// An added token as the file has it.
pub(super) struct Added {
    pub(super) content: String,
    pub(super) id: i32,
    /// Never a part of text, whatever the text spells.
    pub(super) special: bool,
}

/// The JSON object of a `tokenizer.json`, or what else the file is.
pub(super) fn parse(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    let json = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let value =
        serde_json::from_slice(json).map_err(|e| other_text(bytes).unwrap_or_else(|| e.to_string()))?;
    let Value::Object(object) = value else {
        return Err("it is JSON, but not an object".to_owned());
    };
    match object.get("model") {
        Some(Value::Object(_)) => Ok(object),
        Some(_) => Err("its `model` is not an object".to_owned()),
        None => Err(other_object(&object)),
    }
}

const SAVE: &str = "; `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` of transformers writes a tokenizer.json";

/// What a file that is no JSON seems to be.
fn other_text(bytes: &[u8]) -> Option<String> {
    let first = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let rank = |line: &[u8]| -> Option<()> {
        let (token, rank) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
        let base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
        (token.bytes().all(base64) && rank.parse::<u32>().is_ok()).then_some(())
    };
    let what = if first.starts_with(b"#version") {
        "the merges of a BPE (merges.txt)"
    } else if rank(first).is_some() {
        "a file of tiktoken"
    } else if bytes.first() == Some(&b'\n') && bytes[..bytes.len().min(64)].iter().any(|b| *b < b'\t') {
        "a model of SentencePiece (tokenizer.model)"
    } else {
        return None;
    };
    Some(format!("it is {what}{SAVE}"))
}

/// What a JSON object without a model seems to be.
fn other_object(object: &Map<String, Value>) -> String {
    let has = |key: &str| object.contains_key(key);
    let what = if has("tokenizer_class") || has("added_tokens_decoder") {
        "a tokenizer_config.json"
    } else if has("model_type") || has("architectures") {
        "a model's config.json"
    } else if has("eos_token") || has("bos_token") {
        "a special_tokens_map.json"
    } else if !object.is_empty() && object.values().all(Value::is_u64) {
        "the vocabulary of a BPE (vocab.json)"
    } else {
        return "it has no key `model`".to_owned();
    };
    format!("it is {what}, which is a part of a tokenizer at most{SAVE}")
}

/// Clears the settings that would change a document's tokens (truncation, padding, dropout), and says which there were.
pub(super) fn clear(object: &mut Map<String, Value>) -> Vec<String> {
    let mut said = Vec::new();
    let mut clear = |slot: Option<&mut Value>, name: &str, why: &str| {
        if let Some(slot) = slot.filter(|slot| !slot.is_null()) {
            said.push(format!("its {name} is not used: it would {why}"));
            *slot = Value::Null;
        }
    };
    clear(object.get_mut("truncation"), "truncation", "cut every document");
    clear(object.get_mut("padding"), "padding", "fill up every document");
    let dropout = object.get_mut("model").and_then(|model| model.get_mut("dropout"));
    clear(dropout, "dropout", "give other tokens at each run");
    said
}

/// Reads the added tokens, and makes those special that have a meaning to the trainer. Some files (Qwen's) do not call the
/// marks of FIM special, and a source file that spells one must not become one.
pub(super) fn added(object: &mut Map<String, Value>) -> Result<Vec<Added>, String> {
    let list = match object.get_mut("added_tokens") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err("its `added_tokens` are not a list".to_owned()),
    };
    let read = |token: &mut Value| {
        let (Some(id), Some(content)) = (token["id"].as_number(), token["content"].as_str()) else {
            return Err(format!("an added token has no id or content: {token}"));
        };
        let (content, id) =
            (content.to_owned(), check_id(id.as_i64(), || format!("`{content}` has id {id}"))?);
        if SPECIAL_TOKENS.contains(&content.as_str()) {
            token["special"] = Value::Bool(true);
        }
        Ok(Added { special: token["special"] == true, content, id })
    };
    list.iter_mut().map(read).collect()
}

/// An id that is not too large; `say` names the token.
fn check_id(id: Option<i64>, say: impl FnOnce() -> String) -> Result<i32, String> {
    let good = id.filter(|id| (0..MOST_IDS as i64).contains(id)).and_then(|id| i32::try_from(id).ok());
    good.ok_or_else(|| format!("{}: ids are whole numbers from 0 to {}", say(), MOST_IDS - 1))
}

/// The bytes of each id: of words through GPT-2's table, of added tokens that text may spell as they are; none for special
/// tokens and for ids that are not used.
pub(super) fn bytes_of_ids(
    vocabulary: HashMap<String, u32>,
    added: &[Added],
    chars: &[char; 256],
) -> Result<Vec<Option<Box<[u8]>>>, String> {
    let table: HashMap<char, u8> = chars.iter().copied().zip(0..=255).collect();
    let mut tokens = HashMap::new();
    for token in added {
        let bytes = (!token.special).then(|| token.content.as_bytes().into());
        meet(&mut tokens, token.id, &token.content, bytes)?;
    }
    for (token, id) in vocabulary {
        let id = check_id(Some(id.into()), || format!("`{token}` has id {id}"))?;
        let bytes = token.chars().map(|c| table.get(&c).copied()).collect();
        // An added token may stand in the vocabulary too; text then becomes the added one.
        if !added.iter().any(|a| a.content == token) {
            meet(&mut tokens, id, &token, bytes)?;
        }
    }
    let size = tokens.keys().max().map_or(0, |&id| id as usize + 1);
    let mut all = vec![None; size];
    for (id, (_, bytes)) in tokens {
        all[id as usize] = bytes;
    }
    Ok(all)
}

type Tokens = HashMap<i32, (String, Option<Box<[u8]>>)>;

fn meet(tokens: &mut Tokens, id: i32, token: &str, bytes: Option<Box<[u8]>>) -> Result<(), String> {
    match tokens.insert(id, (token.to_owned(), bytes)) {
        Some((other, _)) if other != token => Err(format!("`{other}` and `{token}` both have id {id}")),
        _ => Ok(()),
    }
}
