//! Packing documents into training rows.
//!
//! A row has `seq` ids and as many segments. Segments count the pieces of documents in the row from 0; positions after the
//! last piece hold the pad id and segment -1, which is in no loss. A document comes with its end-of-text token, which is
//! trained like any other. A document that does not fit is split, and its tail begins the next row, so only the last row of a
//! block is padded.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The segment of padding.
pub const PADDING: i32 = -1;

/// How documents become training rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// Each row begins with the next document and is filled with the longest ones that still fit; a document is split only
    /// when none fits.
    #[default]
    BestFit,
    /// Documents follow each other and are split wherever a row ends.
    Sequential,
    /// Every Parquet row is one training row as it stands.
    None,
}

/// Training rows, flat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PackedRows {
    pub(super) ids: Vec<i32>,
    pub(super) segments: Vec<i32>,
}

/// Rows being filled.
struct Filler {
    rows: PackedRows,
    seq: usize,
    segment: i32,
}

impl Filler {
    fn new(seq: usize) -> Self {
        Self { rows: PackedRows::default(), seq, segment: 0 }
    }

    /// The free places of the current row; `seq` for a new one.
    fn room(&self) -> usize {
        self.seq - self.rows.ids.len() % self.seq
    }

    /// Puts as much of `piece` into the current row as fits and returns the rest.
    fn push<'a>(&mut self, piece: &'a [i32]) -> &'a [i32] {
        if self.rows.ids.len().is_multiple_of(self.seq) {
            self.segment = 0;
        }
        let (head, tail) = piece.split_at(piece.len().min(self.room()));
        self.rows.ids.extend_from_slice(head);
        self.rows.segments.resize(self.rows.ids.len(), self.segment);
        self.segment += 1;
        tail
    }

    fn finish(mut self, pad: i32) -> PackedRows {
        let length = self.rows.ids.len().next_multiple_of(self.seq);
        self.rows.ids.resize(length, pad);
        self.rows.segments.resize(length, PADDING);
        self.rows
    }
}

/// Packs documents one after the other.
pub(super) fn sequential(documents: &[Vec<i32>], seq: usize, pad: i32) -> PackedRows {
    let mut filler = Filler::new(seq);
    for document in documents {
        let mut rest = document.as_slice();
        while !rest.is_empty() {
            rest = filler.push(rest);
        }
    }
    filler.finish(pad)
}

/// Packs documents so that few are split.
pub(super) fn best_fit(documents: &[Vec<i32>], seq: usize, pad: i32) -> PackedRows {
    let mut filler = Filler::new(seq);
    // Equal lengths are taken in order, hence the reversed index: the search looks from the end.
    let mut waiting: BTreeSet<(usize, Reverse<usize>)> = documents
        .iter()
        .enumerate()
        .filter(|(_, d)| !d.is_empty())
        .map(|(i, d)| (d.len(), Reverse(i)))
        .collect();
    let mut next = 0;
    let mut tail: &[i32] = &[];
    while !(tail.is_empty() && waiting.is_empty()) {
        if !tail.is_empty() {
            tail = filler.push(tail);
            continue;
        }
        let room = filler.room();
        let chosen = if room == seq {
            // Rows begin with the next document in order, so that the order of lengths stays random.
            while !waiting.contains(&(documents[next].len(), Reverse(next))) {
                next += 1;
            }
            (documents[next].len(), Reverse(next))
        } else {
            // Nothing fits: the longest is split, because it loses least, and may not fit any row anyway.
            let fits = waiting.range(..=(room, Reverse(0))).next_back().or_else(|| waiting.last());
            *fits.expect("checked above")
        };
        waiting.remove(&chosen);
        tail = filler.push(&documents[chosen.1.0]);
    }
    filler.finish(pad)
}

/// One Parquet row as a training row: its own segments, or those that its end-of-text tokens and masked labels imply.
pub(super) fn whole_row(
    ids: &[i32],
    segments: Option<&[i32]>,
    labels: Option<&[i32]>,
    end_of_text: i32,
) -> Result<Vec<i32>, String> {
    let mut out = match segments {
        Some(segments) => consecutive(segments)?,
        None => ids
            .iter()
            .scan(0, |segment, &id| {
                let now = *segment;
                *segment += i32::from(id == end_of_text);
                Some(now)
            })
            .collect(),
    };
    if let Some(labels) = labels {
        let trained = trained_length(ids, labels)?;
        out[trained..].fill(PADDING);
    }
    Ok(out)
}

/// Renumbers segments from 0 without gaps; a negative one is padding and must be followed by padding only.
fn consecutive(segments: &[i32]) -> Result<Vec<i32>, String> {
    let mut out = Vec::with_capacity(segments.len());
    let mut now = 0;
    for (at, &segment) in segments.iter().enumerate() {
        if segment < 0 {
            if segments[at..].iter().any(|&s| s >= 0) {
                return Err(format!("`segment_ids` has {segment} before the end of the row"));
            }
            out.resize(segments.len(), PADDING);
            return Ok(out);
        }
        if at > 0 && segment < segments[at - 1] {
            return Err(format!("`segment_ids` falls from {} to {segment}", segments[at - 1]));
        }
        now += i32::from(at > 0 && segment != segments[at - 1]);
        out.push(now);
    }
    Ok(out)
}

/// How many leading ids are trained. Labels may equal the ids or be the ids one place earlier; a negative label is masked.
/// The last label of a shifted row is dropped: its target lies beyond the row.
fn trained_length(ids: &[i32], labels: &[i32]) -> Result<usize, String> {
    let unmasked = labels.iter().rposition(|&l| l >= 0).map_or(0, |at| at + 1);
    let agrees =
        |shift: usize| ids.iter().skip(shift).zip(&labels[..unmasked]).all(|(id, label)| id == label);
    if agrees(0) {
        return Ok(unmasked);
    }
    if agrees(1) {
        return Ok((unmasked + usize::from(unmasked > 0)).min(ids.len()));
    }
    Err("`labels` are neither `input_ids` nor `input_ids` moved by one, with masks only at the end"
        .to_owned())
}

#[cfg(test)]
mod tests {
    use property::property;
    use proptest::prelude::{Strategy, prop};

    use super::*;

    const EOS: i32 = 9;
    const PAD: i32 = 8;

    /// Documents whose tokens say where they come from: `1000 * document + place`, ended by EOS.
    fn documents() -> impl Strategy<Value = Vec<Vec<i32>>> {
        prop::collection::vec(0..60i32, 1..40).prop_map(|lengths| {
            let document =
                |(d, n): (usize, i32)| (0..n).map(|p| 1000 * (d as i32 + 1) + p).chain([EOS]).collect();
            lengths.into_iter().enumerate().map(document).collect()
        })
    }

    /// Checks the segments and returns the pieces of all rows in order.
    fn pieces(rows: &PackedRows, seq: usize) -> Vec<Vec<i32>> {
        assert_eq!(rows.ids.len(), rows.segments.len());
        assert_eq!(rows.ids.len() % seq, 0);
        let mut pieces = Vec::new();
        let last = (rows.ids.len() / seq).saturating_sub(1);
        for (index, (ids, segments)) in rows.ids.chunks(seq).zip(rows.segments.chunks(seq)).enumerate() {
            let used = segments.iter().position(|&s| s == PADDING).unwrap_or(seq);
            assert!(used == seq || index == last, "only the last row is padded");
            assert!(used > 0 && ids[used..].iter().all(|&id| id == PAD));
            assert!(segments[used..].iter().all(|&s| s == PADDING));
            assert_eq!(segments[0], 0);
            assert!(segments[..used].windows(2).all(|w| w[1] == w[0] || w[1] == w[0] + 1));
            for segment in 0..=segments[used - 1] {
                let of = |i: &usize| segments[*i] == segment;
                pieces.push((0..used).filter(of).map(|i| ids[i]).collect());
            }
        }
        pieces
    }

    /// Puts pieces together again: a piece without EOS at its end goes on in the piece that begins the next row.
    fn join(pieces: &[Vec<i32>]) -> Vec<Vec<i32>> {
        let (mut whole, mut open) = (Vec::new(), Vec::new());
        for piece in pieces {
            open.extend_from_slice(piece);
            if open.last() == Some(&EOS) {
                whole.push(std::mem::take(&mut open));
            }
        }
        assert!(open.is_empty());
        whole
    }

    #[test]
    fn sequential_keeps_every_token_in_order() {
        property(256, &(documents(), 1..50usize), |(documents, seq)| {
            let rows = sequential(&documents, seq, PAD);
            assert_eq!(join(&pieces(&rows, seq)), documents);
        });
    }

    #[test]
    fn best_fit_keeps_every_document_whole_or_split_in_order() {
        property(256, &(documents(), 1..50usize), |(documents, seq)| {
            let rows = best_fit(&documents, seq, PAD);
            let (mut found, mut wanted) = (join(&pieces(&rows, seq)), documents.clone());
            let tokens: usize = wanted.iter().map(Vec::len).sum();
            assert_eq!(rows.ids.len(), tokens.next_multiple_of(seq));
            let cut = pieces(&sequential(&documents, seq, PAD), seq).len();
            assert!(pieces(&rows, seq).len() <= cut + rows.ids.len() / seq);
            found.sort();
            wanted.sort();
            assert_eq!(found, wanted);
        });
    }

    #[test]
    fn best_fit_splits_only_when_nothing_fits() {
        let documents = [vec![1, 1, EOS], vec![2, 2, 2, EOS], vec![3, EOS]];
        let rows = best_fit(&documents, 5, PAD);
        assert_eq!(rows.ids, [1, 1, EOS, 3, EOS, 2, 2, 2, EOS, PAD]);
        assert_eq!(rows.segments, [0, 0, 0, 1, 1, 0, 0, 0, 0, PADDING]);
    }

    #[test]
    fn whole_rows_take_their_segments_from_what_is_there() {
        let ids = [1, EOS, 2, 3, PAD];
        assert_eq!(whole_row(&ids, None, None, EOS), Ok(vec![0, 0, 1, 1, 1]));
        assert_eq!(whole_row(&ids, Some(&[1, 1, 4, 4, -1]), None, EOS), Ok(vec![0, 0, 1, 1, -1]));
        assert_eq!(whole_row(&ids, None, Some(&[1, EOS, 2, 3, -100]), EOS), Ok(vec![0, 0, 1, 1, -1]));
        assert_eq!(whole_row(&ids, None, Some(&[EOS, 2, 3, -100, -100]), EOS), Ok(vec![0, 0, 1, 1, -1]));
        assert_eq!(whole_row(&ids, None, Some(&[EOS, 2, 3, PAD, 7]), EOS), Ok(vec![0, 0, 1, 1, 1]));
        assert!(whole_row(&ids, None, Some(&[5, 5, 5, 5, 5]), EOS).is_err());
        assert!(whole_row(&ids, Some(&[0, 1, 0, 1, 1]), None, EOS).is_err());
    }
}
