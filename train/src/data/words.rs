//! Qwen2's pre-tokenisation by hand: the same words as its regex in one pass, many times faster than the backtracking
//! matcher. At each place the alternatives of [`PATTERN`] are tried in its order; a test compares the two.

use regex_syntax::hir::{Class, HirKind};

/// How Qwen2's tokenizer.json splits text: contractions, words, single digits, punctuation, white space.
pub(super) const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The kinds of characters that the pattern distinguishes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    Number,
    Space,
    Other,
}

/// Splits text into words.
pub(super) struct Words {
    ascii: [Kind; 128],
    letters: Vec<(char, char)>,
    numbers: Vec<(char, char)>,
}

impl Words {
    /// Builds the tables.
    pub(super) fn new() -> Self {
        let (letters, numbers) = (ranges(r"\p{L}"), ranges(r"\p{N}"));
        let mut words = Self { ascii: [Kind::Other; 128], letters, numbers };
        words.ascii = std::array::from_fn(|byte| words.look_up(char::from(byte as u8)));
        words
    }

    /// The words of `text`, which together are `text`.
    pub(super) fn split<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let (word, tail) = rest.split_at(self.first(rest));
            rest = tail;
            (!word.is_empty()).then_some(word)
        })
    }

    fn kind(&self, c: char) -> Kind {
        self.ascii.get(c as usize).copied().unwrap_or_else(|| self.look_up(c))
    }

    fn look_up(&self, c: char) -> Kind {
        let within = |ranges: &[(char, char)]| {
            let after = ranges.partition_point(|&(low, _)| low <= c);
            after > 0 && c <= ranges[after - 1].1
        };
        if within(&self.letters) {
            Kind::Letter
        } else if within(&self.numbers) {
            Kind::Number
        } else if c.is_whitespace() {
            Kind::Space
        } else {
            Kind::Other
        }
    }

    /// The length of the leading characters of one kind.
    fn run(&self, text: &str, kind: Kind) -> usize {
        text.find(|c| self.kind(c) != kind).unwrap_or(text.len())
    }

    /// The length of the first word.
    fn first(&self, text: &str) -> usize {
        let mut characters = text.chars();
        let Some(first) = characters.next() else { return 0 };
        if first == '\''
            && let Some(length) = contraction(text)
        {
            return length;
        }
        let kind = self.kind(first);
        let after = first.len_utf8();
        let second = characters.next().map(|c| self.kind(c));
        if kind == Kind::Letter {
            return self.run(text, Kind::Letter);
        }
        if kind == Kind::Number {
            return after;
        }
        if second == Some(Kind::Letter) && !matches!(first, '\r' | '\n') {
            return after + self.run(&text[after..], Kind::Letter);
        }
        if kind == Kind::Other || (first == ' ' && second == Some(Kind::Other)) {
            let start = if kind == Kind::Other { 0 } else { 1 };
            let end = start + self.run(&text[start..], Kind::Other);
            return end + text[end..].bytes().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        }
        let spaces = &text[..self.run(text, Kind::Space)];
        if let Some(last) = spaces.rfind(['\r', '\n']) {
            return last + 1;
        }
        // The last space before a word belongs to the word, unless it is the only one.
        match spaces.char_indices().next_back() {
            Some((last, _)) if last > 0 && spaces.len() < text.len() => last,
            _ => spaces.len(),
        }
    }
}

/// The length of an English contraction at the beginning of `text`, with the letters that Unicode folds to its own.
fn contraction(text: &str) -> Option<usize> {
    let fold = |c: char| if c == '\u{17f}' { 's' } else { c.to_ascii_lowercase() };
    let mut characters = text.chars().skip(1);
    let (first, second) = (characters.next()?, characters.next().map(fold));
    match (fold(first), second) {
        ('s' | 't' | 'm' | 'd', _) => Some(1 + first.len_utf8()),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(3),
        _ => None,
    }
}

/// The characters of a class, as the regex library has them.
fn ranges(class: &str) -> Vec<(char, char)> {
    match regex_syntax::parse(class).map(|hir| hir.into_kind()) {
        Ok(HirKind::Class(Class::Unicode(class))) => {
            class.ranges().iter().map(|r| (r.start(), r.end())).collect()
        }
        other => unreachable!("{class} is a class of characters, not {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use property::property;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
    };

    use super::{PATTERN, Words};

    fn by_regex(split: &Split, text: &str) -> Vec<String> {
        let mut string = PreTokenizedString::from(text);
        split.pre_tokenize(&mut string).expect("matches");
        let splits = string.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(word, _, _)| word.to_owned()).collect()
    }

    #[test]
    fn words_are_those_of_the_regex() {
        const TEXT: &str =
            "[a-e'sStTrevlLdm0-9 \t\r\n.(\u{17f}é漢²Ⅷ\u{301}\u{a0}\u{2028}🦀]{0,40}|\\PC{0,20}";
        let pattern = SplitPattern::Regex(PATTERN.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).expect("pattern");
        let words = Words::new();
        property(2000, &TEXT, |text| {
            assert_eq!(words.split(&text).collect::<Vec<_>>(), by_regex(&split, &text));
        });
    }
}
