//! Fill in the middle: a document is cut at two places and its parts are rearranged, so that a model learns to write what
//! stands between two given parts. The orders are those of Qwen2.5-Coder (PSM) and of Bavarian et al. 2022, appendix D (SPM).

use super::error::{DataError, Result};
use super::random::{Purpose, Stream, fraction, up_to};
use super::tokenizer::{FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, Tokenizer};

/// The order of the three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Prefix, suffix, middle.
    Psm,
    /// Suffix, then prefix and middle in one.
    Spm,
}

/// The ids of the tokens that mark the parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    pub(super) prefix: i32,
    pub(super) middle: i32,
    pub(super) suffix: i32,
}

impl Marks {
    /// Looks the tokens up.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let id = |token: &str| {
            tokenizer.find_special(token).ok_or_else(|| DataError::NoSpecial {
                path: "tokenizer.json".into(),
                token: token.to_owned(),
                purpose: "marks a part of a document for FIM",
                remedy: "use a tokenizer.json that has it, or set data.fim_rate = 0".to_owned(),
            })
        };
        Ok(Self { prefix: id(FIM_PREFIX)?, middle: id(FIM_MIDDLE)?, suffix: id(FIM_SUFFIX)? })
    }
}

/// The draws of one epoch.
#[derive(Clone, Copy)]
pub(super) struct Draws {
    form: Stream,
    cuts: Stream,
}

impl Draws {
    /// The draws that decide about every document of `epoch`.
    pub(super) fn new(seed: u64, epoch: u64) -> Self {
        let stream = |purpose| Stream::new(seed, purpose, epoch);
        Self { form: stream(Purpose::FimForm), cuts: stream(Purpose::FimCuts) }
    }

    /// Whether and how document `number` is rearranged.
    pub(super) fn form(self, number: u64, rate: f64, spm_rate: f64) -> Option<Form> {
        let [whether, how] = self.form.draw(number);
        (fraction(whether) < rate).then_some(if fraction(how) < spm_rate { Form::Spm } else { Form::Psm })
    }

    /// Where to cut: two character boundaries of `text`, uniformly.
    fn cut(self, number: u64, text: &str) -> (usize, usize) {
        let characters = text.chars().count();
        let [a, b] = self.cuts.draw(number).map(|word| up_to(word, characters));
        let byte = |character: usize| text.char_indices().nth(character).map_or(text.len(), |(at, _)| at);
        (byte(a.min(b)), byte(a.max(b)))
    }
}

/// Rearranges a document (without its end of text), or `None` when its ids are not text. The parts are tokenised one by
/// one: cuts between tokens would never teach to continue within one.
pub(super) fn rearrange(
    ids: &[i32],
    number: u64,
    form: Form,
    draws: Draws,
    marks: Marks,
    tokenizer: &Tokenizer,
) -> Result<Option<Vec<i32>>> {
    let Some(text) = tokenizer.decode(ids) else { return Ok(None) };
    let (from, to) = draws.cut(number, &text);
    let [prefix, middle, suffix] =
        [&text[..from], &text[from..to], &text[to..]].map(|part| tokenizer.encode(part));
    let (prefix, middle, suffix) = (prefix?, middle?, suffix?);
    let mut out = Vec::with_capacity(prefix.len() + middle.len() + suffix.len() + 4);
    match form {
        Form::Psm => {
            out.push(marks.prefix);
            out.extend(prefix);
            out.push(marks.suffix);
            out.extend(suffix);
            out.push(marks.middle);
        }
        Form::Spm => {
            out.extend([marks.prefix, marks.suffix]);
            out.extend(suffix);
            out.push(marks.middle);
            out.extend(prefix);
        }
    }
    out.extend(middle);
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::tokenizer::train;

    #[test]
    fn parts_put_together_are_the_document() {
        let text = "def naïve(x):\n    # größe 漢字 🦀\n    return x\n";
        let json = train([text; 3].into_iter(), 300).expect("train");
        let tokenizer = Tokenizer::from_json(&json, Path::new("tokenizer.json")).expect("read");
        let marks = Marks::of(&tokenizer).expect("marks");
        let ids = tokenizer.encode(text).expect("encode");
        let mut forms = [0; 3];
        for number in 0..400 {
            let draws = Draws::new(3, 1);
            let Some(form) = draws.form(number, 0.5, 0.1) else {
                forms[2] += 1;
                continue;
            };
            let out =
                rearrange(&ids, number, form, draws, marks, &tokenizer).expect("encode").expect("is text");
            let part = |range: &[i32]| tokenizer.decode(range).expect("cut at a character boundary");
            let at = |mark| out.iter().position(|&id| id == mark).expect("marked");
            let (suffix, middle) = (at(marks.suffix), at(marks.middle));
            assert_eq!(out[0], marks.prefix);
            let (before, after, rest) = (&out[1..suffix], &out[suffix + 1..middle], &out[middle + 1..]);
            match form {
                Form::Psm => {
                    forms[0] += 1;
                    assert_eq!(part(before) + &part(rest) + &part(after), text);
                }
                Form::Spm => {
                    forms[1] += 1;
                    assert!(before.is_empty());
                    assert_eq!(part(rest) + &part(after), text);
                }
            }
        }
        assert!((150..250).contains(&(forms[0] + forms[1])) && (5..50).contains(&forms[1]), "{forms:?}");
        let special = [marks.prefix];
        let draws = Draws::new(3, 1);
        assert_eq!(rearrange(&special, 0, Form::Psm, draws, marks, &tokenizer).expect("no encoding"), None);
    }
}
