//! Batches for training and validation.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::BatchShape;
use crate::numbers::group;
use program::esay;

use super::config::{Order, Packing, RowOptions};
use super::dataset::{Dataset, Part};
use super::error::{DataError, Result};
use super::feed::{Feed, RowBlock};
use super::lengths::RowLengths;
use super::pack::PADDING;
use super::position::Position;

/// Finished blocks that wait for the consumer: about 8 MiB each.
const BLOCKS_AHEAD: usize = 2;

/// Documents to validate on are drawn from row groups with at most so many tokens: 256 MiB in memory.
const VALIDATION_TOKENS: u64 = 1 << 26;

/// The rows of one step, `[accumulation, micro, seq]` in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The shape of both columns.
    pub shape: BatchShape,
    /// Token ids.
    pub ids: Vec<i32>,
    /// The document of each token, counted from 0 in each row; [`PADDING`] is padding, which is never in the loss.
    pub segments: Vec<i32>,
    /// The position of the first row, for logs and replay.
    pub position: Position,
    /// The position after the last row: where the next batch begins.
    pub position_after: Position,
}

impl Batch {
    /// Tokens that are predicted from those before them in the same document: all but the first of each piece of a row.
    pub fn targets(&self) -> u64 {
        let in_row = |row: &[i32]| row.windows(2).filter(|pair| pair[0] == pair[1] && pair[0] >= 0).count();
        self.segments.chunks(self.shape.seq).map(in_row).sum::<usize>() as u64
    }

    /// Places that hold no token.
    pub fn padding(&self) -> u64 {
        self.segments.iter().filter(|segment| **segment < 0).count() as u64
    }
}

/// The size of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochSize {
    /// Documents, exactly. None for data that are not here.
    pub documents: Option<u64>,
    /// Training tokens. Exact without FIM, if no document ends in an end-of-text token already. With FIM each rearranged piece
    /// has four marks and a few tokens at its cuts more, which are estimated from above.
    pub tokens: u64,
    /// Rows. With [`Packing::None`] exact, or of more than 2^25 tokens whose long rows are split, estimated; otherwise
    /// up to one row a block too many, because the number of blocks depends on the shuffle.
    pub rows: u64,
    /// Places in a row.
    pub seq: usize,
    /// What becomes of rows that are longer, if a setting decides it: counted in a sample, or in all if there are few.
    pub lengths: Option<RowLengths>,
}

impl EpochSize {
    /// The size of data that are not here: so many tokens, in rows without padding.
    pub fn assumed(tokens: u64, seq: usize) -> Self {
        Self { documents: None, tokens, rows: tokens.div_ceil(seq as u64), seq, lengths: None }
    }

    /// Tokens in so many rows like its own.
    pub fn tokens_in(&self, rows: u64) -> f64 {
        rows as f64 * self.seq as f64 * (1.0 - self.padding())
    }

    /// Part of the places in its rows that holds no token.
    pub fn padding(&self) -> f64 {
        let places = self.rows as f64 * self.seq as f64;
        if places > 0.0 { (1.0 - self.tokens as f64 / places).max(0.0) } else { 0.0 }
    }
}

impl fmt::Display for EpochSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(documents) = self.documents {
            write!(f, "{} documents, ", group(documents))?;
        }
        write!(f, "{} tokens an epoch in {} rows of {}", group(self.tokens), group(self.rows), self.seq)?;
        match 100.0 * self.padding() {
            percent if percent >= 1.0 => write!(f, ", {percent:.1} % padding"),
            _ => Ok(()),
        }
    }
}

/// Rows made by a background thread, in an order that is a pure function of the options.
pub struct Loader {
    // Declared before the thread, so dropped first: the thread ends when nobody receives any more.
    blocks: Receiver<Result<RowBlock>>,
    _thread: Joined,
    current: Option<RowBlock>,
    /// Received by [`Loader::ready`], to be used after `current`.
    made: VecDeque<RowBlock>,
    seq: usize,
    position: Position,
    bad_row_groups: Arc<AtomicUsize>,
    notes: Receiver<String>,
    /// Rows to skip in the first block.
    skip: u64,
}

/// Waits for the thread's end when it is dropped: from then on nothing reads the dataset's files, which may be replaced or
/// removed.
struct Joined(Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        // A panic of the thread has been reported by its own message; the loader's user got `ThreadGone`.
        let _ = self.0.take().map(JoinHandle::join);
    }
}

impl Loader {
    /// Begins to make training rows at `position`.
    pub fn start(dataset: Arc<Dataset>, options: RowOptions, position: Position) -> Result<Self> {
        let seq = options.seq;
        // The block is made again, and its rows that were served already are skipped.
        let begin = Position { rows: position.rows.saturating_sub(position.row), ..position };
        let mut feed = Feed::new(dataset, Part::Train, options, begin)?;
        let bad_row_groups = feed.bad_row_groups();
        let notes = feed.notes();
        let (sender, blocks) = sync_channel(BLOCKS_AHEAD);
        let work = move || {
            loop {
                let block = feed.next_block();
                let failed = block.is_err();
                // The loader is gone, or has the error.
                if sender.send(block).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("data".to_owned())
            .spawn(work)
            .map_err(|e| DataError::io("start", "the data thread".as_ref(), e))?;
        let thread = Joined(Some(thread));
        Ok(Self {
            blocks,
            _thread: thread,
            current: None,
            made: VecDeque::new(),
            seq,
            position,
            bad_row_groups,
            notes,
            skip: position.row,
        })
    }

    /// Waits until the rows of the next step are made, at most for `patience`. The position does not change, so that a wait can be
    /// given up.
    pub fn ready(&mut self, rows: usize, patience: Duration) -> Result<bool> {
        let start = Instant::now();
        loop {
            let of = |block: &RowBlock| block.rows.ids.len() / self.seq;
            let begun = self.current.as_ref().map_or(0, |block| of(block) - self.position.row as usize);
            let made = begun + self.made.iter().map(of).sum::<usize>();
            if made.saturating_sub(self.skip as usize) >= rows {
                return Ok(true);
            }
            match self.blocks.recv_timeout(patience.saturating_sub(start.elapsed())) {
                Ok(block) => self.made.push_back(block?),
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => return Err(DataError::ThreadGone),
            }
        }
    }

    /// The rows of the next step.
    pub fn next_batch(&mut self, accumulation: usize, micro: usize) -> Result<Batch> {
        let shape = BatchShape { accumulation, micro, seq: self.seq };
        let size = shape.rows() * self.seq;
        let (mut ids, mut segments) = (Vec::with_capacity(size), Vec::with_capacity(size));
        let mut first = None;
        for _ in 0..shape.rows() {
            let at = self.take_row(&mut ids, &mut segments)?;
            first.get_or_insert(at);
        }
        let position_after = self.position;
        Ok(Batch { shape, ids, segments, position: first.unwrap_or(position_after), position_after })
    }

    /// The position of the next row.
    pub fn position(&self) -> Position {
        self.position
    }

    /// How many damaged row groups were left out so far.
    pub fn bad_row_groups(&self) -> usize {
        self.bad_row_groups.load(Ordering::Relaxed)
    }

    /// What a person should know about the rows made since the last call, a sentence each: what is damaged and was left out, and
    /// what FIM does.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.notes.try_iter()
    }

    /// Copies the next row and returns where it was.
    fn take_row(&mut self, ids: &mut Vec<i32>, segments: &mut Vec<i32>) -> Result<Position> {
        let block = match self.current.take() {
            Some(block) => block,
            None => {
                let block = match self.made.pop_front() {
                    Some(block) => block,
                    None => self.blocks.recv().map_err(|_| DataError::ThreadGone)??,
                };
                let row = std::mem::take(&mut self.skip);
                self.position = Position { row, rows: block.start.rows + row, ..block.start };
                block
            }
        };
        let at = self.position;
        let count = block.rows.ids.len() / self.seq;
        let range = at.row as usize * self.seq..(at.row as usize + 1) * self.seq;
        if range.end > block.rows.ids.len() {
            // A row group was readable when the position was saved and is damaged now, or the other way round.
            self.position = block.next;
            return self.take_row(ids, segments);
        }
        ids.extend_from_slice(&block.rows.ids[range.clone()]);
        segments.extend_from_slice(&block.rows.segments[range]);
        if at.row as usize + 1 == count {
            self.position = block.next;
        } else {
            self.position.row += 1;
            self.position.rows += 1;
            self.current = Some(block);
        }
        Ok(at)
    }
}

impl Dataset {
    /// How much one epoch of training holds, from the footers, and from a sample of the rows where long ones are cut or
    /// split.
    ///
    /// # Errors
    /// If a row of the sample does not fit the model.
    pub fn epoch_size(&self, options: &RowOptions) -> Result<EpochSize> {
        let chunks = self.chunks(Part::Train);
        let documents: u64 = chunks.iter().map(|c| c.len()).sum();
        let stored: u64 = chunks.iter().map(|c| c.tokens).sum();
        let (seq, lengths) = (options.seq, self.row_lengths(options)?);
        if options.packing == Packing::None {
            let of_epoch = lengths.map(|lengths| lengths.of_epoch(documents, stored));
            let (rows, tokens) = of_epoch.unwrap_or((documents, stored));
            return Ok(EpochSize { documents: Some(documents), tokens, rows, seq, lengths });
        }
        let pieces = documents + stored / seq as u64;
        let marks = 6.0 * options.fim_rate * pieces as f64;
        let ended = stored + documents;
        let (_, kept) = lengths.map_or((documents, ended), |all| all.of_epoch(documents, ended));
        let tokens = kept + marks as u64;
        // Two neighbouring windows together hold more tokens than one may.
        let windows = 2 * tokens / options.window_tokens + 1;
        let blocks = tokens / options.block_tokens() + windows;
        let rows = tokens / seq as u64 + blocks;
        Ok(EpochSize { documents: Some(documents), tokens, rows, seq, lengths })
    }

    /// Rows of the validation split without FIM: up to `batches` batches, the last one filled with padding, of documents drawn
    /// from all of it. They are the same for every run on these data: the draws follow from the data alone. None if no row
    /// has a target.
    ///
    /// Row groups are drawn first, up to 2^26 tokens of them, and then documents from these, so that a large split need not be
    /// read whole.
    ///
    /// # Errors
    /// If the split cannot be read.
    pub fn validation(
        self: &Arc<Self>,
        options: &RowOptions,
        accumulation: usize,
        micro: usize,
        batches: usize,
    ) -> Result<Vec<Batch>> {
        let shape = BatchShape { accumulation, micro, seq: options.seq };
        let packing = if options.packing == Packing::None { Packing::None } else { Packing::Sequential };
        let options = RowOptions {
            packing,
            order: Order::Shuffled,
            seed: self.mark(),
            fim_rate: 0.0,
            window_tokens: VALIDATION_TOKENS,
            ..options.clone()
        };
        let mut feed = Feed::new(self.clone(), Part::Validation, options.clone(), Position::default())?;
        let notes = feed.notes();
        let size = shape.rows() * shape.seq;
        let (mut ids, mut segments) = (Vec::new(), Vec::new());
        let mut lengths = RowLengths::default();
        while ids.len() < batches * size {
            let block = match feed.next_block() {
                Ok(block) => block,
                // Empty documents.
                Err(DataError::NoRows { .. }) => break,
                Err(error) => return Err(error),
            };
            lengths += block.rows.lengths;
            ids.extend(block.rows.ids);
            segments.extend(block.rows.segments);
            if block.next.epoch > 0 {
                break;
            }
        }
        notes.try_iter().for_each(|said| esay!("warning: validation: {said}"));
        if lengths.lost > 0 {
            esay!("warning: validation: {}", lengths.said(&options));
        }
        let length = ids.len().next_multiple_of(size).min(batches * size);
        ids.resize(length, self.pad());
        segments.resize(length, PADDING);
        let batch = |(ids, segments): (&[i32], &[i32])| Batch {
            shape,
            ids: ids.to_vec(),
            segments: segments.to_vec(),
            position: Position::default(),
            position_after: Position::default(),
        };
        let all = ids.chunks(size).zip(segments.chunks(size)).map(batch);
        // The program divides by at least one target.
        Ok(all.filter(|batch| batch.targets() > 0).collect())
    }
}
