//! Rows of the files that are longer than the training rows: which parts of them are trained on, and how many there
//! are.

use std::ops::{AddAssign, Range};

use crate::numbers::group;

use super::config::{LongRows, Packing, RowOptions};
use super::dataset::{Dataset, Part};
use super::error::Result;
use super::pack::whole_row;
use super::parallel::{cores, in_parallel};
use super::random::{Purpose, Stream};
use super::shard::{ReadError, Rows};

/// What an epoch holds is told by row groups of about so many tokens, or by all if there are fewer: seconds.
const SAMPLE_TOKENS: u64 = 1 << 25;

/// Rows of the files, and what becomes of those that are longer than the training rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowLengths {
    /// All of them.
    pub rows: u64,
    /// Their tokens, with the end of each document where they are packed; without what labels mask at the end.
    pub tokens: u64,
    /// Those that are longer than a training row.
    pub long: u64,
    /// The parts that these are split into or cut to; where documents are packed, none is counted.
    pub parts: u64,
    /// Their tokens that are in no training row.
    pub lost: u64,
}

impl AddAssign for RowLengths {
    fn add_assign(&mut self, more: Self) {
        self.rows += more.rows;
        self.tokens += more.tokens;
        self.long += more.long;
        self.parts += more.parts;
        self.lost += more.lost;
    }
}

impl RowLengths {
    /// One document that is packed, of so many tokens with its end.
    fn of_document(length: usize, options: &RowOptions) -> Self {
        let beyond = length.saturating_sub(options.seq) as u64;
        let lost = if options.long_rows == LongRows::Cut { beyond } else { 0 };
        Self { rows: 1, tokens: length as u64, long: u64::from(beyond > 0), parts: 0, lost }
    }

    /// One row that stands as it is, by its segments and its parts.
    pub(super) fn of_row(segments: &[i32], parts: &[Range<usize>], seq: usize) -> Self {
        let tokens =
            |range: &Range<usize>| segments[range.clone()].iter().filter(|s| **s >= 0).count() as u64;
        let (all, kept) = (tokens(&(0..segments.len())), parts.iter().map(tokens).sum::<u64>());
        let long = segments.len() > seq;
        let parts = if long { parts.len() as u64 } else { 0 };
        Self { rows: 1, tokens: all, long: u64::from(long), parts, lost: all - kept }
    }

    /// Training rows, where rows stand as they are.
    fn made(&self) -> u64 {
        self.rows - self.long + self.parts
    }

    /// In words.
    pub fn said(&self, options: &RowOptions) -> String {
        let percent = |part: u64, all: u64| 100.0 * part as f64 / all.max(1) as f64;
        let RowLengths { rows, tokens, long, parts, lost } = *self;
        let what = match options.long_rows {
            LongRows::Refuse => "refused".to_owned(),
            LongRows::Cut => "cut".to_owned(),
            LongRows::Split if options.packing == Packing::None => format!("split into {}", group(parts)),
            LongRows::Split => "split".to_owned(),
        };
        let lost = match (lost, options.long_rows) {
            (0, _) => "no token is left out".to_owned(),
            (_, rule) => format!(
                "{} of {} tokens ({:.1} %) are left out{}",
                group(lost),
                group(tokens),
                percent(lost, tokens),
                if rule == LongRows::Split { ", in parts that predict nothing" } else { "" }
            ),
        };
        format!(
            "{} of {} rows ({:.1} %) are longer than {} tokens and {what}: {lost}",
            group(long),
            group(rows),
            percent(long, rows),
            options.seq
        )
    }
}

/// The parts of a row, given by its segments, that become training rows: all of it if it fits. Of a longer one that is
/// split, a part without a target, such as a last token alone, becomes none.
pub(super) fn parts(segments: &[i32], options: &RowOptions) -> Vec<Range<usize>> {
    let (length, seq) = (segments.len(), options.seq);
    let predicts =
        |range: &Range<usize>| segments[range.clone()].windows(2).any(|s| s[0] == s[1] && s[0] >= 0);
    match options.long_rows {
        _ if length <= seq => std::iter::once(0..length).collect(),
        LongRows::Refuse => Vec::new(),
        LongRows::Cut => std::iter::once(0..seq).collect(),
        LongRows::Split => {
            (0..length).step_by(seq).map(|at| at..length.min(at + seq)).filter(predicts).collect()
        }
    }
}

/// What becomes of some rows of a chunk.
pub(super) fn lengths(
    rows: &Rows,
    which: impl Iterator<Item = usize>,
    options: &RowOptions,
    end_of_text: i32,
) -> RowLengths {
    let mut all = RowLengths::default();
    for index in which {
        let ids = &rows.ids[rows.range(index)];
        let end = usize::from(!ids.is_empty() && ids.last() != Some(&end_of_text));
        all += RowLengths::of_document(ids.len() + end, options);
    }
    all
}

impl Dataset {
    /// What becomes of the rows of an epoch that are longer than the training rows, where that depends on a setting: by
    /// a sample that follows from the data alone, or by all of them. Rows that cannot be read are not counted; whoever
    /// trains on them says so.
    ///
    /// # Errors
    /// If a row does not fit the model.
    pub(super) fn row_lengths(&self, options: &RowOptions) -> Result<Option<RowLengths>> {
        match (options.packing, options.long_rows) {
            (_, LongRows::Refuse) | (Packing::BestFit | Packing::Sequential, LongRows::Split) => {
                return Ok(None);
            }
            (_, LongRows::Cut) | (Packing::None, LongRows::Split) => {}
        }
        let chunks = self.chunks(Part::Train);
        let mut order: Vec<usize> = (0..chunks.len()).collect();
        Stream::new(self.mark(), Purpose::Chunks, 0).shuffle(&mut order, |chunk| chunk as u64);
        let mut tokens = 0;
        order.retain(|&chunk| {
            let chosen = tokens < SAMPLE_TOKENS;
            tokens += chunks[chunk].tokens;
            chosen
        });
        let count = |&chunk: &usize| -> Result<RowLengths> {
            let rows = match self.read(&chunks[chunk]) {
                Ok(rows) => rows,
                Err(ReadError::Wrong(error)) => return Err(error),
                Err(ReadError::Damaged(_)) => return Ok(RowLengths::default()),
            };
            let all = 0..rows.ends.len();
            if options.packing != Packing::None {
                return Ok(lengths(&rows, all, options, self.end_of_text()));
            }
            let mut found = RowLengths::default();
            for index in all {
                // A row that is not understood is named when it is trained on.
                let Ok(segments) = self.segments(&rows, index) else { continue };
                found += RowLengths::of_row(&segments, &parts(&segments, options), options.seq);
            }
            Ok(found)
        };
        let mut all = RowLengths::default();
        for found in in_parallel(&order, cores(), count) {
            all += found?;
        }
        Ok(Some(all))
    }

    /// The segments of a row that stands as it is.
    pub(super) fn segments(&self, rows: &Rows, index: usize) -> std::result::Result<Vec<i32>, String> {
        let range = rows.range(index);
        let column = |column: &'_ Option<Vec<i32>>| column.as_ref().map(|c| c[range.clone()].to_vec());
        let (segments, labels) = (column(&rows.segments), column(&rows.labels));
        whole_row(&rows.ids[range.clone()], segments.as_deref(), labels.as_deref(), self.end_of_text())
    }
}

impl RowLengths {
    /// Training rows and tokens of an epoch of so many rows and tokens, of which these are a part.
    pub(super) fn of_epoch(&self, documents: u64, stored: u64) -> (u64, u64) {
        let scaled = |part: u64, of: u64, whole: u64| match of {
            0 => whole,
            of => (u128::from(part) * u128::from(whole)).div_ceil(u128::from(of)) as u64,
        };
        (scaled(self.made(), self.rows, documents), scaled(self.tokens - self.lost, self.tokens, stored))
    }
}
