//! Fill in the middle: a piece of a document is cut at two places and its parts are rearranged, so that a model learns to
//! write what stands between two given parts. The orders are those of Qwen2.5-Coder (PSM) and of Bavarian et al. 2022,
//! appendix D (SPM).
//!
//! A piece is what lies in one row (their "context-level" FIM): rearranged before it is cut into rows, a long document would
//! leave most middles in rows without their prefix and suffix.

use super::config::RowOptions;
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
                path: tokenizer.path().to_owned(),
                token: token.to_owned(),
                purpose: "marks a part of a document for FIM",
                remedy: "use a tokenizer.json that has it, or set data.fim_rate = 0".to_owned(),
            })
        };
        Ok(Self { prefix: id(FIM_PREFIX)?, middle: id(FIM_MIDDLE)?, suffix: id(FIM_SUFFIX)? })
    }
}

/// A piece of a document. The random choices about it are numbered by this.
#[derive(Clone, Copy)]
pub(super) struct PieceId {
    /// The document's number in its split.
    pub(super) document: u64,
    /// The number of its pieces before this one.
    pub(super) piece: u64,
}

impl PieceId {
    /// What its random choices are numbered by: for the first piece the number of the document.
    fn number(self) -> u64 {
        self.document | (self.piece << 40)
    }
}

/// The random choices of one epoch.
#[derive(Clone, Copy)]
struct Draws {
    form: Stream,
    cuts: Stream,
}

impl Draws {
    /// The choices about every piece of `epoch`.
    fn new(seed: u64, epoch: u64) -> Self {
        let stream = |purpose| Stream::new(seed, purpose, epoch);
        Self { form: stream(Purpose::FimForm), cuts: stream(Purpose::FimCuts) }
    }

    /// Whether and how a piece is rearranged.
    fn form(self, id: PieceId, rate: f64, spm_rate: f64) -> Option<Form> {
        let [whether, how] = self.form.draw(id.number());
        (fraction(whether) < rate).then_some(if fraction(how) < spm_rate { Form::Spm } else { Form::Psm })
    }

    /// Where to cut: two character boundaries of `text`, uniformly.
    fn cut(self, id: PieceId, text: &str) -> (usize, usize) {
        let characters = text.chars().count();
        let [a, b] = self.cuts.draw(id.number()).map(|word| up_to(word, characters));
        let byte = |character: usize| text.char_indices().nth(character).map_or(text.len(), |(at, _)| at);
        (byte(a.min(b)), byte(a.max(b)))
    }
}

/// What was done with a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Rearranged: three marks, the three parts, and the end of the text.
    Rearranged {
        /// As it stands in its row.
        ids: Vec<i32>,
        /// How many of the given tokens are in it.
        taken: usize,
    },
    /// Left as it is, by chance.
    Plain,
    /// Chosen, but left as it is: there is no room for marks and text.
    NoRoom,
    /// Chosen, but left as it is: its tokens are no text.
    NotText,
}

/// Three marks and the end of the text.
pub(super) const MARKS: usize = 4;

/// No document is cut to fill less room than this: there would be more marks than text.
const LEAST_ROOM: usize = 4 * MARKS;

/// Bytes of the longest character: leaving out fewer tokens than that always reaches a place between characters.
const LONGEST_CHARACTER: usize = 4;

/// Rearranges the pieces of one epoch.
pub(super) struct Fim<'a> {
    draws: Draws,
    rate: f64,
    spm_rate: f64,
    marks: Marks,
    end_of_text: i32,
    tokenizer: &'a Tokenizer,
}

impl<'a> Fim<'a> {
    /// For the pieces of `epoch`.
    pub(super) fn new(
        options: &RowOptions,
        epoch: u64,
        marks: Marks,
        end_of_text: i32,
        tokenizer: &'a Tokenizer,
    ) -> Self {
        let draws = Draws::new(options.seed, epoch);
        Self { draws, rate: options.fim_rate, spm_rate: options.fim_spm_rate, marks, end_of_text, tokenizer }
    }

    /// The next piece of a document, of which `rest` are the tokens that are left: all of them if they fit `room` tokens, or
    /// as many as do. The text is cut between characters and its parts are tokenised one by one: cuts between tokens would
    /// never teach to continue within a token.
    pub(super) fn piece(&self, rest: &[i32], id: PieceId, room: usize) -> Result<Piece> {
        let Some(form) = self.draws.form(id, self.rate, self.spm_rate) else { return Ok(Piece::Plain) };
        let Some(most) = room.checked_sub(MARKS) else { return Ok(Piece::NoRoom) };
        let mut taken = rest.len().min(most);
        loop {
            if taken == 0 || (taken < rest.len() && taken + MARKS < LEAST_ROOM) {
                return Ok(Piece::NoRoom);
            }
            let Some((text, whole)) = self.text(rest, taken) else { return Ok(Piece::NotText) };
            taken = whole;
            let (from, to) = self.draws.cut(id, &text);
            let [prefix, middle, suffix] =
                [&text[..from], &text[from..to], &text[to..]].map(|part| self.tokenizer.encode(part));
            let (prefix, middle, mut suffix) = (prefix?, middle?, suffix?);
            let length = prefix.len() + middle.len() + suffix.len() + MARKS;
            let Some(excess) = length.checked_sub(room).filter(|excess| *excess > 0) else {
                return Ok(Piece::Rearranged { ids: self.arranged(form, &prefix, &middle, &suffix), taken });
            };
            // A cut within a token makes more tokens. What is too much is taken from the suffix, which has the document's own
            // tokens far from a cut, and left to the next piece.
            let kept = suffix.len().saturating_sub(excess);
            let left = &suffix[kept..];
            if left.len() == excess
                && taken - excess + MARKS >= LEAST_ROOM
                && rest[..taken].ends_with(left)
                && self.tokenizer.decode(left).is_some()
            {
                taken -= excess;
                suffix.truncate(kept);
                return Ok(Piece::Rearranged { ids: self.arranged(form, &prefix, &middle, &suffix), taken });
            }
            taken = taken.saturating_sub(excess);
        }
    }

    /// The text of the first `taken` tokens, or of a few less if the last character goes on after them.
    fn text(&self, rest: &[i32], taken: usize) -> Option<(String, usize)> {
        let fewest = if taken < rest.len() { taken.saturating_sub(LONGEST_CHARACTER - 1) } else { taken };
        (fewest.max(1)..=taken).rev().find_map(|taken| Some((self.tokenizer.decode(&rest[..taken])?, taken)))
    }

    fn arranged(&self, form: Form, prefix: &[i32], middle: &[i32], suffix: &[i32]) -> Vec<i32> {
        let Marks { prefix: begin, middle: hole, suffix: after } = self.marks;
        let end = [self.end_of_text];
        match form {
            Form::Psm => [&[begin], prefix, &[after], suffix, &[hole], middle, &end].concat(),
            Form::Spm => [&[begin, after], suffix, &[hole], prefix, middle, &end].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::tokenizer::train;
    use crate::data::{Order, Packing};

    const TEXT: &str = "def naïve(x):\n    # größe 漢字 🦀\n    return x\n";
    const END: i32 = 1_000_000;

    fn tokenizer() -> Tokenizer {
        let json = train([TEXT; 3].into_iter(), 300).expect("train");
        Tokenizer::from_json(&json, Path::new("tokenizer.json")).expect("read")
    }

    fn fim(tokenizer: &Tokenizer, rate: f64) -> Fim<'_> {
        let options = RowOptions {
            seq: 64,
            packing: Packing::BestFit,
            long_rows: Packing::BestFit.long_rows(),
            order: Order::Shuffled,
            fim_rate: rate,
            fim_spm_rate: 0.1,
            seed: 3,
            max_bad_row_groups: 0,
            window_tokens: 1 << 20,
        };
        Fim::new(&options, 1, Marks::of(tokenizer).expect("marks"), END, tokenizer)
    }

    /// The text of a rearranged piece in its first order.
    fn restored(ids: &[i32], tokenizer: &Tokenizer, marks: Marks) -> (Form, String) {
        let part = |range: &[i32]| tokenizer.decode(range).expect("cut at a character boundary");
        let at = |mark| {
            assert_eq!(ids.iter().filter(|id| **id == mark).count(), 1);
            ids.iter().position(|&id| id == mark).expect("marked")
        };
        let (suffix, middle, end) = (at(marks.suffix), at(marks.middle), at(END));
        assert_eq!((at(marks.prefix), end), (0, ids.len() - 1));
        let (before, after, rest) = (&ids[1..suffix], &ids[suffix + 1..middle], &ids[middle + 1..end]);
        match suffix {
            1 => (Form::Spm, part(rest) + &part(after)),
            _ => (Form::Psm, part(before) + &part(rest) + &part(after)),
        }
    }

    #[test]
    fn parts_put_together_are_the_document() {
        let tokenizer = tokenizer();
        let fim = fim(&tokenizer, 0.5);
        let ids = tokenizer.encode(TEXT).expect("encode");
        let mut forms = [0; 3];
        for document in 0..400 {
            match fim.piece(&ids, PieceId { document, piece: 0 }, 1000).expect("encode") {
                Piece::Plain => forms[2] += 1,
                Piece::Rearranged { ids: out, taken } => {
                    assert_eq!(taken, ids.len());
                    let (_, text) = restored(&out, &tokenizer, fim.marks);
                    assert_eq!(text, TEXT);
                    // An empty prefix looks like the other form.
                    forms[usize::from(out[1] == fim.marks.suffix)] += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!((150..250).contains(&(forms[0] + forms[1])) && (5..50).contains(&forms[1]), "{forms:?}");
        let special = fim.piece(&[fim.marks.prefix], PieceId { document: 0, piece: 1 }, 100);
        let always = Fim { rate: 1.0, ..fim };
        assert!(matches!(special, Ok(Piece::Plain | Piece::NotText)));
        let special = always.piece(&[always.marks.prefix], PieceId { document: 0, piece: 1 }, 100);
        assert_eq!(special.expect("no encoding"), Piece::NotText);
    }

    /// A piece fits its room, whatever that is, and the pieces together are the document.
    #[test]
    fn pieces_fill_their_room_and_lose_nothing() {
        let tokenizer = tokenizer();
        let fim = fim(&tokenizer, 1.0);
        let text = TEXT.repeat(9);
        let ids = tokenizer.encode(&text).expect("encode");
        let (mut full, mut all) = (0, 0);
        for room in 0..90 {
            let (mut at, mut piece, mut found) = (0, 0, String::new());
            while at < ids.len() {
                let id = PieceId { document: 7 + room as u64, piece };
                piece += 1;
                match fim.piece(&ids[at..], id, room).expect("encode") {
                    Piece::Rearranged { ids: out, taken } => {
                        assert!(out.len() <= room && taken > 0, "{} of {room}", out.len());
                        if at + taken < ids.len() {
                            (full, all) = (full + usize::from(out.len() + 4 > room), all + 1);
                        }
                        let (_, text) = restored(&out, &tokenizer, fim.marks);
                        assert_eq!(text, tokenizer.decode(&ids[at..at + taken]).expect("text"));
                        found += &text;
                        at += taken;
                    }
                    Piece::NoRoom => {
                        assert!(room < 2 * LEAST_ROOM, "{room}");
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert!(at < ids.len() || found == text);
        }
        assert!(full > all * 9 / 10, "{full} of {all} pieces fill their room but for a character");
    }
}
