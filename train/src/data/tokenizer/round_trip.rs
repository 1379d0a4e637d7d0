//! The check of a tokenizer before it is used: sample texts must come back from their tokens as they were. A tokenizer that changes text, or whose tokens
//! are not bytes, would train a model that cannot write source code, and nobody would notice before the end of the training.

use serde_json::Value;
use tokenizers::normalizers::NFC;
use tokenizers::{NormalizedString, Normalizer as _};

use super::Tokenizer;
use super::file::{Added, Normalizer};
use crate::data::error::{DataError, Result};

/// Text of each kind, and its name in messages.
const SAMPLES: [(&str, &str); 12] = [
    ("code", "def f(x, y=0):\n    \"\"\"It's.\"\"\"\n    return x[1:-1] + y  # don't, WE'LL\n"),
    ("upper case", "class CamelCase(HTTPServer): MAX = ÀÉ"),
    ("spaces around", "  x = 1  "),
    ("a single word", "x"),
    ("tabs", "\tif x:\n\t\t  return\t1\t\n"),
    ("line ends", "a\r\nb\rc\n\n\r\n   \n\u{85}\u{2028}\u{2029}\x0b\x0c"),
    (
        "runs of spaces",
        "a  b   c    d     e      f       g        h                                        i\n\n        ",
    ),
    ("combining characters", "e\u{301} é \u{1100}\u{1161} 가 \u{212b} q\u{323}\u{307}"),
    ("compatibility forms", "ﬁ ² Ⅷ ａ １ … ™ \u{a0}\u{3000}"),
    ("scripts", "größe naïve ß İı Ωμέγα Привет 漢字 かな 한국어 العربية हिन्दी"),
    ("symbols", "🦀 👩\u{200d}💻 \u{200b}\u{feff}€→≤ ｀´¨ “x” —"),
    ("numbers", "0 12 345 6789 0x1F 1_000 1e-5 .5 3.14159265358979323846"),
];

/// All of ASCII, and characters with every byte that UTF-8 has.
fn every_byte() -> String {
    let two = (0x80..0xC0).chain((0xC0..0x800).step_by(0x40));
    let three = (0x800..0x10000).step_by(0x800);
    let four = (0x10000..0x110000).step_by(0x30000).chain([0x10FFFF]);
    (0..0x80).chain(two).chain(three).chain(four).filter_map(char::from_u32).collect()
}

/// Encodes and decodes the samples, and the spelling of every added token in text. tokenizer: the file's JSON, for the
/// message.
pub(super) fn check(found: &Tokenizer, added: &[Added], normalizer: Normalizer, json: &Value) -> Result<()> {
    let every_byte = every_byte();
    let fixed = SAMPLES.into_iter().chain([("every byte", every_byte.as_str())]);
    for (kind, text) in fixed {
        check_text(found, kind, text, normalizer, json)?;
    }
    for Added { content, .. } in added {
        for text in [content.clone(), format!("x {content} y"), format!("x{content}{content}y\n")] {
            check_text(found, "the spelling of an added token", &text, normalizer, json)?;
        }
    }
    Ok(())
}

fn check_text(
    found: &Tokenizer,
    kind: &'static str,
    text: &str,
    normalizer: Normalizer,
    json: &Value,
) -> Result<()> {
    let wanted = match normalizer {
        Normalizer::Nfc => composed(text),
        Normalizer::None | Normalizer::Other => text.to_owned(),
    };
    let bytes = found.decode_bytes(&found.encode(text)?);
    if bytes.as_deref() == Some(wanted.as_bytes()) {
        return Ok(());
    }
    let back = bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let same =
        back.as_ref().map_or(0, |back| back.chars().zip(wanted.chars()).take_while(|(a, b)| a == b).count());
    let excerpt =
        |text: &str| format!("{:?}", text.chars().skip(same.saturating_sub(4)).take(20).collect::<String>());
    Err(DataError::LossyTokenizer {
        path: found.path.clone(),
        kind,
        text: excerpt(&wanted),
        back: back.map_or_else(|| "tokens that are not bytes of text".to_owned(), |back| excerpt(&back)),
        parts: format!(
            "normalizer {}, pre-tokenizer {}, model {}",
            types(&json["normalizer"]),
            types(&json["pre_tokenizer"]),
            types(&json["model"])
        ),
    })
}

/// Canonical composition.
fn composed(text: &str) -> String {
    let mut text = NormalizedString::from(text);
    NFC.normalize(&mut text).expect("composing cannot fail");
    text.get().to_owned()
}

/// The types of a part of a tokenizer, those in a sequence one by one.
fn types(part: &Value) -> String {
    let Some(ty) = part["type"].as_str() else { return "none".to_owned() };
    let steps = part["normalizers"].as_array().or_else(|| part["pretokenizers"].as_array());
    match steps {
        Some(steps) => steps.iter().map(types).collect::<Vec<_>>().join(" + "),
        None if part["add_prefix_space"] == true => format!("{ty} with add_prefix_space"),
        None => ty.to_owned(),
    }
}
