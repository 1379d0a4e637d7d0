//! The order of an epoch: chunks, windows, blocks, rows.
//!
//! * The **chunks** of the split are put in an order: that of the files, or a permutation drawn from (seed, epoch).
//! * Consecutive chunks form **windows** of at most `window_tokens` tokens. A window is held in memory and its documents are
//!   permuted as a whole: a data set that fits one window is shuffled completely, a larger one in two levels. A complete
//!   permutation of a large one would read every document from another place of the disk.
//! * The documents of a window are cut into **blocks** of about a sixteenth of that. Packing and FIM happen within a block
//!   and see nothing else, so any block can be made again from the seed alone: a position is (epoch, window, block, row).
//!   The price is one row a block that is padded, about 0.1 % of the tokens.
//!
//! Every random choice is numbered by the chunk, document, piece or row that it is about, so leaving out a damaged row group
//! changes no other choice.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::config::{LongRows, Order, Packing, RowOptions};
use super::dataset::{Chunk, Dataset, Part};
use super::error::{DataError, Result};
use super::fim::{Fim, Marks, Piece, PieceId};
use super::lengths::{RowLengths, lengths, parts};
use super::pack::{self, Document, PackedRows, Tally};
use super::parallel::{cores, in_parallel};
use super::position::Position;
use super::random::{Purpose, Stream};
use super::shard::{ReadError, Rows};

/// The version of the order of rows: a position of another version is refused. Rows without FIM are still in the order of
/// version 1.
const ORDER_VERSION: u64 = 1;
const FIM_ORDER_VERSION: u64 = 2;

/// Packed rows and where they lie.
pub(super) struct RowBlock {
    pub(super) rows: PackedRows,
    /// The position of the first row.
    pub(super) start: Position,
    /// The position after the last row.
    pub(super) next: Position,
}

/// Makes the blocks of a split, one after the other.
pub(super) struct Feed {
    dataset: Arc<Dataset>,
    part: Part,
    options: RowOptions,
    marks: Option<Marks>,
    position: Position,
    /// The windows of the epoch of `position`.
    windows: Vec<Vec<usize>>,
    open: Option<Window>,
    bad: HashSet<(usize, usize)>,
    bad_count: Arc<AtomicUsize>,
    notes: Option<Sender<String>>,
    /// Whether a person was told what FIM does with the rows.
    said_fim: bool,
    /// Rows made since the epoch began, if this feed began it.
    rows_of_epoch: Option<usize>,
    /// The first epoch that this feed makes whole, whose rows of the files it counts: those of each epoch.
    counted: u64,
    lengths: RowLengths,
}

/// A window in memory.
struct Window {
    rows: Rows,
    /// The number of each row in its split.
    numbers: Vec<u64>,
    /// The order in which documents are taken.
    order: Vec<usize>,
    /// The blocks as ranges of `order`.
    blocks: Vec<Range<usize>>,
}

impl Feed {
    /// A feed that begins at `position`.
    pub(super) fn new(
        dataset: Arc<Dataset>,
        part: Part,
        options: RowOptions,
        position: Position,
    ) -> Result<Self> {
        options.check()?;
        if dataset.chunks(part).is_empty() {
            return Err(DataError::NoRows { path: dataset.folder().to_owned(), split: part.name() });
        }
        if let Some(path) = dataset.complete_rows()
            && options.packing != Packing::None
        {
            return Err(DataError::CompleteRows(path.to_owned()));
        }
        let marks = match rearranges(&dataset, &options) {
            false => None,
            true => match dataset.tokenizer() {
                Some(tokenizer) => Some(Marks::of(tokenizer)?),
                None => return Err(DataError::FimNeedsTokenizer(dataset.folder().to_owned())),
            },
        };
        let mark = mark(&dataset, part, &options);
        if !position.is_possible() {
            return Err(DataError::ImpossiblePosition(position));
        }
        if !position.is_start() && position.mark != mark {
            return Err(DataError::OtherPosition { found: position.mark, wanted: mark });
        }
        let mut feed = Self {
            dataset,
            part,
            options,
            marks,
            position: Position { mark, row: 0, ..position },
            windows: Vec::new(),
            open: None,
            bad: HashSet::new(),
            bad_count: Arc::default(),
            notes: None,
            said_fim: false,
            rows_of_epoch: (position.window == 0 && position.block == 0).then_some(0),
            counted: position.epoch + u64::from(position.window > 0 || position.block > 0),
            lengths: RowLengths::default(),
        };
        feed.windows = feed.windows_of_epoch();
        Ok(feed)
    }

    /// Counts the damaged row groups that were left out, while the feed runs.
    pub(super) fn bad_row_groups(&self) -> Arc<AtomicUsize> {
        self.bad_count.clone()
    }

    /// Sends from now on what a person should know: which row groups are damaged and left out, and what FIM does.
    pub(super) fn notes(&mut self) -> Receiver<String> {
        let (sender, receiver) = channel();
        self.notes = Some(sender);
        receiver
    }

    fn say(&self, note: String) {
        // The loader may be gone; then nobody needs to know.
        let _ = self.notes.as_ref().map(|listener| listener.send(note));
    }

    /// The next block; there is always one, epoch after epoch.
    pub(super) fn next_block(&mut self) -> Result<RowBlock> {
        loop {
            let window = match self.open.take() {
                Some(window) => window,
                None => self.load_window()?,
            };
            let index = self.position.block as usize;
            let start = self.position;
            let rows = match window.blocks.get(index) {
                Some(range) => self.make(&window, range.clone())?,
                None => PackedRows::default(),
            };
            if self.position.epoch == self.counted {
                self.lengths += rows.lengths;
            }
            if index + 1 < window.blocks.len() {
                self.position.block += 1;
                self.open = Some(window);
            } else {
                self.end_window(rows.ids.len())?;
            }
            let count = (rows.ids.len() / self.options.seq) as u64;
            self.position.rows += count;
            self.rows_of_epoch = self.rows_of_epoch.map(|n| n + rows.ids.len());
            if count > 0 {
                if !std::mem::replace(&mut self.said_fim, true) && self.marks.is_some() {
                    self.say(said_of_fim(rows.tally, self.options.fim_rate));
                }
                return Ok(RowBlock { rows, start, next: self.position });
            }
        }
    }

    /// Goes to the next window, after the last one to the next epoch.
    fn end_window(&mut self, tokens: usize) -> Result<()> {
        self.position.block = 0;
        self.position.window += 1;
        if (self.position.window as usize) < self.windows.len() {
            return Ok(());
        }
        if self.rows_of_epoch == Some(0) && tokens == 0 {
            return Err(DataError::NoRows {
                path: self.dataset.folder().to_owned(),
                split: self.part.name(),
            });
        }
        if self.position.epoch == self.counted && self.lengths.long > 0 && self.says_lengths() {
            self.say(format!("long     in a whole epoch, {}", self.lengths.said(&self.options)));
        }
        self.position.window = 0;
        self.position.epoch += 1;
        self.rows_of_epoch = None;
        self.windows = self.windows_of_epoch();
        Ok(())
    }

    /// Whether a setting decides what becomes of long rows; that packing splits documents needs no words.
    fn says_lengths(&self) -> bool {
        self.options.packing == Packing::None || self.options.long_rows == LongRows::Cut
    }

    fn windows_of_epoch(&self) -> Vec<Vec<usize>> {
        let chunks = self.dataset.chunks(self.part);
        let mut order: Vec<usize> = (0..chunks.len()).collect();
        if self.options.order == Order::Shuffled {
            self.stream(Purpose::Chunks).shuffle(&mut order, |chunk| chunk as u64);
        }
        let mut windows: Vec<Vec<usize>> = Vec::new();
        let limit = self.options.window_tokens;
        let mut held = limit;
        for chunk in order {
            if held + chunks[chunk].tokens > limit {
                windows.push(Vec::new());
                held = 0;
            }
            held += chunks[chunk].tokens;
            windows.last_mut().expect("one was pushed").push(chunk);
        }
        windows
    }

    fn stream(&self, purpose: Purpose) -> Stream {
        Stream::new(self.options.seed, purpose, self.position.epoch)
    }

    fn load_window(&mut self) -> Result<Window> {
        let mut all = Rows::default();
        let mut numbers = Vec::new();
        let dataset = self.dataset.clone();
        for index in self.windows.get(self.position.window as usize).cloned().unwrap_or_default() {
            let chunk = &dataset.chunks(self.part)[index];
            match dataset.read(chunk) {
                Ok(rows) => {
                    numbers.extend(chunk.first..chunk.first + chunk.len());
                    join(&mut all, rows);
                }
                Err(ReadError::Wrong(error)) => return Err(error),
                Err(ReadError::Damaged(reason)) => self.count_damage(chunk, reason)?,
            }
        }
        let mut order: Vec<usize> = (0..numbers.len()).collect();
        if self.options.order == Order::Shuffled {
            self.stream(Purpose::Documents).shuffle(&mut order, |row| numbers[row]);
        }
        let limit = self.options.block_tokens();
        let mut blocks = Vec::new();
        let (mut start, mut held) = (0, 0);
        for (at, &row) in order.iter().enumerate() {
            held += all.range(row).len() as u64 + 1;
            if held >= limit || at + 1 == order.len() {
                blocks.push(start..at + 1);
                (start, held) = (at + 1, 0);
            }
        }
        Ok(Window { rows: all, numbers, order, blocks })
    }

    fn count_damage(&mut self, chunk: &Chunk, reason: String) -> Result<()> {
        if !self.bad.insert((chunk.shard, chunk.group)) {
            return Ok(());
        }
        let (count, limit) = (self.bad.len(), self.options.max_bad_row_groups);
        self.bad_count.store(count, Ordering::Relaxed);
        let path = self.dataset.path(chunk).to_owned();
        if count <= limit {
            let group = chunk.group;
            let said = format!(
                "{}, row group {group} is damaged ({reason}) and left out; {count} of at most {limit}",
                path.display()
            );
            self.say(said);
            return Ok(());
        }
        Err(DataError::BadRowGroup { path, group: chunk.group, reason, count, limit })
    }

    fn make(&self, window: &Window, range: Range<usize>) -> Result<PackedRows> {
        let (seq, pad) = (self.options.seq, self.dataset.pad());
        let rows = &window.order[range];
        let fim = self.marks.zip(self.dataset.tokenizer()).map(|(marks, tokenizer)| {
            Fim::new(&self.options, self.position.epoch, marks, self.dataset.end_of_text(), tokenizer)
        });
        let fim = fim.as_ref();
        let mut packed = match self.options.packing {
            Packing::None => return self.as_they_stand(window, rows, fim),
            Packing::Sequential => pack::sequential(self.documents(window, rows, fim)?, seq, pad, fim)?,
            Packing::BestFit => pack::best_fit(self.documents(window, rows, fim)?, seq, pad, fim)?,
        };
        packed.lengths =
            lengths(&window.rows, rows.iter().copied(), &self.options, self.dataset.end_of_text());
        if self.options.packing == Packing::BestFit && self.options.order == Order::Shuffled {
            // Best fit takes long documents early; batches should not drift from long to short ones.
            packed = self.shuffle_rows(&packed);
        }
        Ok(packed)
    }

    fn as_they_stand(&self, window: &Window, rows: &[usize], fim: Option<&Fim>) -> Result<PackedRows> {
        let seq = self.options.seq;
        let mut packed = PackedRows::default();
        for &index in rows {
            let (range, row, split) = (window.rows.range(index), window.numbers[index], self.part.name());
            self.check_length(row, range.len())?;
            let segments = self
                .dataset
                .segments(&window.rows, index)
                .map_err(|reason| DataError::RowColumns { split, row, reason })?;
            let parts = parts(&segments, &self.options);
            packed.lengths += RowLengths::of_row(&segments, &parts, seq);
            let mut documents = 0;
            for part in parts {
                let end = packed.ids.len() + seq;
                let ids = &window.rows.ids[range.clone()][part.clone()];
                if let Some(fim) = fim {
                    documents = self.rearrange(row, documents, ids, fim, &mut packed)?;
                } else {
                    let first = segments[part.clone()].first().map_or(0, |&first| first.max(0));
                    packed.ids.extend_from_slice(ids);
                    // Counted from 0 in each row; padding stays what it is.
                    packed.segments.extend(segments[part].iter().map(|&s| if s < 0 { s } else { s - first }));
                }
                packed.ids.resize(end, self.dataset.pad());
                packed.segments.resize(end, pack::PADDING);
            }
        }
        Ok(packed)
    }

    /// Refuses a row or document that is too long, if long ones are refused.
    fn check_length(&self, row: u64, found: usize) -> Result<()> {
        let (split, seq) = (self.part.name(), self.options.seq);
        match self.options.long_rows {
            LongRows::Refuse if found > seq => Err(DataError::RowLength { split, row, found, seq }),
            _ => Ok(()),
        }
    }

    /// A Parquet row, or a part of one, as a training row. Its documents, of which the parts before had `number`, are
    /// rearranged where chance says so and the row has room for the marks. Returns how many the row has by now.
    fn rearrange(
        &self,
        row: u64,
        mut number: u64,
        ids: &[i32],
        fim: &Fim,
        packed: &mut PackedRows,
    ) -> Result<u64> {
        let end_of_text = self.dataset.end_of_text();
        let mut spare = self.options.seq - ids.len();
        for (segment, document) in ids.split_inclusive(|id| *id == end_of_text).enumerate() {
            let text = document.strip_suffix(&[end_of_text]).unwrap_or(document);
            let room = document.len() + spare;
            let piece = match text.is_empty() {
                true => Piece::Plain,
                false => fim.piece(text, PieceId { document: row, piece: number }, room)?,
            };
            let tally = &mut packed.tally;
            let ids = match &piece {
                Piece::Rearranged { ids, taken } if *taken == text.len() => {
                    tally.rearranged += 1;
                    tally.rearranged_tokens += ids.len() as u64;
                    ids
                }
                Piece::Rearranged { .. } | Piece::NoRoom => {
                    tally.no_room += 1;
                    document
                }
                Piece::NotText => {
                    tally.not_text += 1;
                    document
                }
                Piece::Plain => document,
            };
            spare = room - ids.len();
            tally.pieces += 1;
            tally.tokens += ids.len() as u64;
            packed.ids.extend_from_slice(ids);
            packed.segments.resize(packed.ids.len(), segment as i32);
            number += 1;
        }
        Ok(number)
    }

    /// The documents of a block. Those that fit a row are rearranged already, where chance says so.
    fn documents(&self, window: &Window, rows: &[usize], fim: Option<&Fim>) -> Result<Vec<Document>> {
        let end = self.dataset.end_of_text();
        let one = |&index: &usize| -> Result<Document> {
            let ids = &window.rows.ids[window.rows.range(index)];
            let ids = ids.strip_suffix(&[end]).unwrap_or(ids);
            let RowOptions { seq, long_rows, .. } = self.options;
            self.check_length(window.numbers[index], ids.len() + 1)?;
            Document::new(window.numbers[index], ids, end, seq, long_rows, fim)
        };
        let threads = if fim.is_some() { cores() } else { 1 };
        in_parallel(rows, threads, one).into_iter().collect()
    }

    fn shuffle_rows(&self, packed: &PackedRows) -> PackedRows {
        let seq = self.options.seq;
        let mut order: Vec<usize> = (0..packed.ids.len() / seq).collect();
        let block = (self.position.window << 48) | (self.position.block << 28);
        self.stream(Purpose::Rows).shuffle(&mut order, |row| block | row as u64);
        let gather =
            |column: &[i32]| order.iter().flat_map(|&row| &column[row * seq..][..seq]).copied().collect();
        PackedRows { ids: gather(&packed.ids), segments: gather(&packed.segments), ..*packed }
    }
}

/// What FIM does with the rows, by what it did with those of a block.
fn said_of_fim(tally: Tally, rate: f64) -> String {
    let percent = |part: u64, all: u64| 100.0 * part as f64 / all.max(1) as f64;
    let counted = format!("data.fim_rate = {rate}; counted in the first {} tokens", tally.tokens);
    let reasons = [(tally.no_room, "have no room for the marks"), (tally.not_text, "are no text")];
    let reasons: Vec<String> = reasons
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("; {:.1} % {why}", percent(*count, tally.pieces)))
        .collect();
    if tally.rearranged == 0 && !reasons.is_empty() {
        return format!("fim      no piece is rearranged ({counted}){}", reasons.concat());
    }
    format!(
        "fim      {:.1} % of the pieces ({:.1} % of the tokens) are rearranged, each whole in one row ({counted}){}",
        percent(tally.rearranged, tally.pieces),
        percent(tally.rearranged_tokens, tally.tokens),
        reasons.concat()
    )
}

fn join(all: &mut Rows, rows: Rows) {
    let before = all.ids.len();
    // Files with and without an optional column may lie in one folder; then the column is ignored in all of them.
    let optional = |all: &mut Option<Vec<i32>>, more: Option<Vec<i32>>| match (all.as_mut(), more) {
        (Some(all), Some(more)) => all.extend(more),
        (None, Some(more)) if before == 0 => *all = Some(more),
        _ => *all = None,
    };
    optional(&mut all.segments, rows.segments);
    optional(&mut all.labels, rows.labels);
    all.ids.extend(rows.ids);
    all.ends.extend(rows.ends.iter().map(|end| before + end));
}

impl Dataset {
    /// Why FIM does nothing though it is asked for; none if it does, or is not.
    pub fn without_fim(&self, options: &RowOptions) -> Option<String> {
        let path =
            self.rows_of_training().filter(|_| options.fim_rate > 0.0 && !rearranges(self, options))?;
        Some(format!(
            "fim      data.fim_rate = {} does nothing: with data.packing = \"none\" rows that bring their segments or labels \
             ({}) stand as they are",
            options.fim_rate,
            path.display()
        ))
    }

    /// Where a run goes on that now makes rows of another length than those of the settings `old`, or other ones of
    /// those that are too long: at the begin of the block that the position lies in, because blocks hold the same
    /// documents whatever the rows are. Also how many rows, of the old ones, are thereby seen again: none if all that
    /// changed is that long ones are not refused any more. None if nothing of this changed, the settings differ in more
    /// than that, or it is no position of `old`.
    pub fn in_other_rows(
        &self,
        position: Position,
        old: &RowOptions,
        new: &RowOptions,
    ) -> Option<(Position, u64)> {
        let alike = RowOptions { seq: new.seq, long_rows: new.long_rows, ..old.clone() } == *new
            && old.block_tokens() == new.block_tokens();
        if !alike || old == new || position.mark != mark(self, Part::Train, old) {
            return None;
        }
        let again = if old.long_rows == LongRows::Refuse && old.seq == new.seq { 0 } else { position.row };
        let row = position.row - again;
        let rows = position.rows.saturating_sub(again);
        Some((Position { mark: mark(self, Part::Train, new), row, rows, ..position }, again))
    }
}

/// Whether pieces of documents are rearranged for fill-in-the-middle. Rows with segments of their own are not.
fn rearranges(dataset: &Dataset, options: &RowOptions) -> bool {
    let stand = options.packing == Packing::None && dataset.rows_of_training().is_some();
    options.fim_rate > 0.0 && !stand
}

/// What a position depends on besides its own integers.
fn mark(dataset: &Dataset, part: Part, options: &RowOptions) -> u64 {
    let version = if rearranges(dataset, options) { FIM_ORDER_VERSION } else { ORDER_VERSION };
    let rows: u64 = dataset.chunks(part).iter().map(Chunk::len).sum();
    let mut hasher = blake3::Hasher::new();
    let numbers = [
        version,
        options.window_tokens,
        dataset.mark(),
        rows,
        options.seq as u64,
        options.packing as u64,
        options.order as u64,
        options.seed,
        options.fim_rate.to_bits(),
        options.fim_spm_rate.to_bits(),
    ];
    // What it is if nobody says it was so before there was a choice.
    let long_rows = (options.long_rows != options.packing.long_rows()).then_some(options.long_rows as u64);
    for number in numbers.into_iter().chain(long_rows) {
        hasher.update(&number.to_le_bytes());
    }
    // Never 0, which marks the start.
    u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().expect("8 bytes")) | 1
}
