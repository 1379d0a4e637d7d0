//! The training of small byte-level tokenizers.

use std::path::PathBuf;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Trainer};

use super::{SPECIAL_TOKENS, char_of_byte, shown};
use crate::data::error::{DataError, Result};
use crate::data::words::{PATTERN, Words};

/// The smallest vocabulary that holds every byte, every special token and something learned.
const SMALLEST: usize = 256 + SPECIAL_TOKENS.len() + 1;

/// The trainer of the `tokenizers` library takes time with the square of a word's length, so it sees longer words in pieces of
/// this many bytes. Words of source code are a hundred times shorter; of a longer word only the pairs across a cut are not counted.
const LONGEST_WORD: usize = 512;

/// Words and how often they occur.
pub(in crate::data) struct Counted {
    trainer: BpeTrainer,
}

/// Counts the words of texts, for a vocabulary of `vocab_size` tokens.
pub(in crate::data) fn count<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
) -> Result<Counted> {
    if vocab_size < SMALLEST {
        return Err(DataError::Setting {
            name: "--train-tokenizer",
            found: vocab_size.to_string(),
            wanted: "at least 266 (every byte, nine special tokens and one learned token)",
        });
    }
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size - SPECIAL_TOKENS.len())
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let (words, chars) = (Words::new(), char_of_byte());
    let pieces = |word: &str| -> Vec<String> {
        word.as_bytes().chunks(LONGEST_WORD).map(|piece| shown(&chars, piece)).collect()
    };
    trainer.feed(texts, |text| Ok(words.split(text).flat_map(pieces).collect())).map_err(fail)?;
    Ok(Counted { trainer })
}

/// Trains a byte-level BPE, the special tokens last as in Qwen's vocabulary, and returns the text of its `tokenizer.json`.
/// There is no normaliser (Qwen has NFC): source code must come back byte for byte.
pub(in crate::data) fn learn(counted: Counted) -> Result<Vec<u8>> {
    let mut model = BPE::default();
    counted.trainer.train(&mut model).map_err(fail)?;
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

fn fail(e: tokenizers::Error) -> DataError {
    DataError::Tokenizer { doing: "train", path: PathBuf::from("tokenizer.json"), reason: e.to_string() }
}

/// [`count`] and [`learn`].
#[cfg(test)]
pub(in crate::data) fn train<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
) -> Result<Vec<u8>> {
    learn(count(texts, vocab_size)?)
}
