//! Packing documents into training rows.
//!
//! A row has `seq` ids and as many segments. Segments count the pieces of documents in the row from 0; positions after the
//! last piece hold the pad id and segment -1, which is in no loss. A document comes with its end-of-text token, which is
//! trained like any other. A document that does not fit is split, and its tail begins the next row, so only the last row of a
//! block is padded. With FIM the pieces are rearranged as they are cut, so that each lies whole in one row; such a piece may
//! leave a place or two at the end of its row, where a character would not fit whole, and these are padded.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::AddAssign;

use super::config::LongRows;
use super::error::DataError;
use super::fim::{Fim, MARKS, Piece, PieceId};
use super::lengths::RowLengths;

/// The segment of padding.
pub const PADDING: i32 = -1;

/// Training rows, flat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PackedRows {
    pub(super) ids: Vec<i32>,
    pub(super) segments: Vec<i32>,
    pub(super) tally: Tally,
    pub(super) lengths: RowLengths,
}

/// What was done with the pieces of documents, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// All of them.
    pub(super) pieces: u64,
    /// Their tokens.
    pub(super) tokens: u64,
    /// Those that were rearranged for FIM, each whole in one row.
    pub(super) rearranged: u64,
    /// Their tokens.
    pub(super) rearranged_tokens: u64,
    /// Those that were chosen for it and had no room for the marks.
    pub(super) no_room: u64,
    /// Those that were chosen for it and are no text.
    pub(super) not_text: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.pieces += more.pieces;
        self.tokens += more.tokens;
        self.rearranged += more.rearranged;
        self.rearranged_tokens += more.rearranged_tokens;
        self.no_room += more.no_room;
        self.not_text += more.not_text;
    }
}

/// A document on its way into rows.
pub(super) struct Document {
    /// Its number in the split.
    number: u64,
    /// Its tokens, the end of the text last, unless it was cut; none for an empty one.
    ids: Vec<i32>,
    /// How many of them are before the end of the text.
    text: usize,
    /// How many of them are in rows.
    at: usize,
    /// In how many pieces.
    pieces: u64,
    /// All of it, rearranged, if it was chosen for FIM and fits a row.
    whole: Option<Vec<i32>>,
}

impl Document {
    /// A document of which nothing is in a row yet. ids: without the end of the text, which a document that is cut to
    /// one row does not get.
    pub(super) fn new(
        number: u64,
        ids: &[i32],
        end_of_text: i32,
        seq: usize,
        long_rows: LongRows,
        fim: Option<&Fim>,
    ) -> Result<Self, DataError> {
        if ids.is_empty() {
            return Ok(Self { number, ids: Vec::new(), text: 0, at: 0, pieces: 0, whole: None });
        }
        if long_rows == LongRows::Cut && ids.len() >= seq {
            return Ok(Self { number, ids: ids[..seq].to_vec(), text: seq, at: 0, pieces: 0, whole: None });
        }
        let whole = match fim {
            Some(fim) if ids.len() + MARKS <= seq => {
                match fim.piece(ids, PieceId { document: number, piece: 0 }, seq)? {
                    Piece::Rearranged { ids: whole, taken } if taken == ids.len() => Some(whole),
                    _ => None,
                }
            }
            _ => None,
        };
        let text = ids.len();
        Ok(Self { number, ids: [ids, &[end_of_text]].concat(), text, at: 0, pieces: 0, whole })
    }

    /// Places that it takes in a row, while nothing of it is in one.
    fn length(&self) -> usize {
        self.whole.as_ref().map_or(self.ids.len(), Vec::len)
    }

    fn is_done(&self) -> bool {
        self.at == self.ids.len()
    }

    /// The next piece, for a row with `room` free places, at least one.
    fn take(
        &mut self,
        room: usize,
        fim: Option<&Fim>,
        tally: &mut Tally,
    ) -> Result<Cow<'_, [i32]>, DataError> {
        let id = PieceId { document: self.number, piece: self.pieces };
        self.pieces += 1;
        tally.pieces += 1;
        let start = self.at;
        let text = &self.ids[start..self.text];
        let piece = match (self.whole.take(), fim) {
            (Some(ids), _) if ids.len() <= room => Piece::Rearranged { ids, taken: text.len() },
            (_, Some(fim)) if !text.is_empty() => fim.piece(text, id, room)?,
            _ => Piece::Plain,
        };
        match piece {
            Piece::Rearranged { ids, taken } => {
                // After the last of its text there is only its end, which the piece has.
                self.at = if taken == text.len() { self.ids.len() } else { start + taken };
                tally.rearranged += 1;
                tally.rearranged_tokens += ids.len() as u64;
                tally.tokens += ids.len() as u64;
                return Ok(ids.into());
            }
            Piece::Plain => {}
            Piece::NoRoom => tally.no_room += 1,
            Piece::NotText => tally.not_text += 1,
        }
        self.at = self.ids.len().min(start + room);
        tally.tokens += (self.at - start) as u64;
        Ok(self.ids[start..self.at].into())
    }
}

/// Rows being filled.
struct Filler<'a> {
    rows: PackedRows,
    seq: usize,
    pad: i32,
    segment: i32,
    fim: Option<&'a Fim<'a>>,
}

impl<'a> Filler<'a> {
    fn new(seq: usize, pad: i32, fim: Option<&'a Fim<'a>>) -> Self {
        Self { rows: PackedRows::default(), seq, pad, segment: 0, fim }
    }

    /// The free places of the current row; `seq` for a new one.
    fn room(&self) -> usize {
        self.seq - self.rows.ids.len() % self.seq
    }

    /// Puts as much of a document into the current row as fits; what is left of it begins the next row.
    fn push(&mut self, document: &mut Document) -> Result<(), DataError> {
        if self.room() == self.seq {
            self.segment = 0;
        }
        let room = self.room();
        let piece = document.take(room, self.fim, &mut self.rows.tally)?;
        self.rows.ids.extend_from_slice(&piece);
        self.rows.segments.resize(self.rows.ids.len(), self.segment);
        self.segment += 1;
        if !document.is_done() {
            self.end_row();
        }
        Ok(())
    }

    fn end_row(&mut self) {
        let length = self.rows.ids.len().next_multiple_of(self.seq);
        self.rows.ids.resize(length, self.pad);
        self.rows.segments.resize(length, PADDING);
    }

    fn finish(mut self) -> PackedRows {
        self.end_row();
        self.rows
    }
}

/// Packs documents one after the other.
pub(super) fn sequential(
    documents: Vec<Document>,
    seq: usize,
    pad: i32,
    fim: Option<&Fim>,
) -> Result<PackedRows, DataError> {
    let mut filler = Filler::new(seq, pad, fim);
    for mut document in documents {
        while !document.is_done() {
            filler.push(&mut document)?;
        }
    }
    Ok(filler.finish())
}

/// Packs documents so that few are split.
pub(super) fn best_fit(
    mut documents: Vec<Document>,
    seq: usize,
    pad: i32,
    fim: Option<&Fim>,
) -> Result<PackedRows, DataError> {
    let mut filler = Filler::new(seq, pad, fim);
    // Equal lengths are taken in order, hence the reversed index: the search looks from the end.
    let mut waiting: BTreeSet<(usize, Reverse<usize>)> = documents
        .iter()
        .enumerate()
        .filter(|(_, d)| !d.is_done())
        .map(|(i, d)| (d.length(), Reverse(i)))
        .collect();
    let mut next = 0;
    while let Some(longest) = waiting.last() {
        let room = filler.room();
        let chosen = if room == seq {
            // Rows begin with the next document in order, so that the order of lengths stays random.
            while !waiting.contains(&(documents[next].length(), Reverse(next))) {
                next += 1;
            }
            (documents[next].length(), Reverse(next))
        } else {
            // Nothing fits: the longest is split, because it loses least, and may not fit any row anyway.
            *waiting.range(..=(room, Reverse(0))).next_back().unwrap_or(longest)
        };
        waiting.remove(&chosen);
        let document = &mut documents[chosen.1.0];
        while !document.is_done() {
            filler.push(document)?;
        }
    }
    Ok(filler.finish())
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

    fn packed(
        pack: impl FnOnce(Vec<Document>, usize, i32, Option<&Fim>) -> Result<PackedRows, DataError>,
        documents: &[Vec<i32>],
        seq: usize,
    ) -> PackedRows {
        let document = |ids: &Vec<i32>| {
            Document::new(0, &ids[..ids.len() - 1], EOS, seq, LongRows::Split, None).unwrap()
        };
        // A document of nothing but its end counts as empty elsewhere.
        let document = |ids: &Vec<i32>| match ids.len() {
            1 => Document { ids: ids.clone(), ..document(ids) },
            _ => document(ids),
        };
        pack(documents.iter().map(document).collect(), seq, PAD, None).unwrap()
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
            let rows = packed(sequential, &documents, seq);
            assert_eq!(join(&pieces(&rows, seq)), documents);
        });
    }

    #[test]
    fn best_fit_keeps_every_document_whole_or_split_in_order() {
        property(256, &(documents(), 1..50usize), |(documents, seq)| {
            let rows = packed(best_fit, &documents, seq);
            let (mut found, mut wanted) = (join(&pieces(&rows, seq)), documents.clone());
            let tokens: usize = wanted.iter().map(Vec::len).sum();
            assert_eq!(rows.ids.len(), tokens.next_multiple_of(seq));
            let cut = pieces(&packed(sequential, &documents, seq), seq).len();
            assert!(pieces(&rows, seq).len() <= cut + rows.ids.len() / seq);
            found.sort();
            wanted.sort();
            assert_eq!(found, wanted);
        });
    }

    #[test]
    fn best_fit_splits_only_when_nothing_fits() {
        let documents = [vec![1, 1, EOS], vec![2, 2, 2, EOS], vec![3, EOS]];
        let rows = packed(best_fit, &documents, 5);
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
