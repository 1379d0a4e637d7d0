//! The loss that counting pairs of tokens reaches: a trained model must do better.

use super::dataset::{Dataset, Part};
use super::error::{DataError, Result};
use super::loader::Batch;
use super::shard::ReadError;

/// What an interpolated bigram model reaches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bigram {
    /// Cross-entropy on the targets of the validation batches, in nats a token.
    pub loss: f64,
    /// How many targets that were.
    pub targets: u64,
    /// How many training tokens were counted.
    pub training_tokens: u64,
}

impl Dataset {
    /// Estimates p(b | a) = (count(a, b) + k p(b)) / (count(a) + k) with p(b) = (count(b) + 1) / (count + vocabulary) on up to
    /// `limit` training tokens in file order, and takes the k that is best on the validation batches themselves: the bar
    /// is if anything too high. Only pairs that occur in the batches are counted, so memory is bounded by them.
    pub fn bigram(&self, validation: &[Batch], limit: u64) -> Result<Bigram> {
        let mut pairs = Vec::new();
        for batch in validation {
            for (ids, segments) in
                batch.ids.chunks(batch.shape.seq).zip(batch.segments.chunks(batch.shape.seq))
            {
                for (ids, segments) in ids.windows(2).zip(segments.windows(2)) {
                    if segments[0] == segments[1] && segments[0] >= 0 {
                        pairs.push((ids[0], ids[1]));
                    }
                }
            }
        }
        let total = pairs.len() as u64;
        if total == 0 {
            return Err(DataError::NoRows { path: self.folder().to_owned(), split: Part::Validation.name() });
        }
        let mut pairs = Pairs::new(pairs, self.vocabulary());
        let counts = self.count(&mut pairs, limit)?;
        let loss = |k: f64| {
            let cost: f64 = pairs
                .list
                .iter()
                .map(|pair| {
                    let (a, b) = (pair.tokens.0 as usize, pair.tokens.1 as usize);
                    let unigram =
                        (counts.seen[b] as f64 + 1.0) / (counts.tokens as f64 + self.vocabulary() as f64);
                    let p = (pair.count as f64 + k * unigram) / (counts.followed[a] as f64 + k);
                    -p.ln() * pair.targets as f64
                })
                .sum();
            cost / total as f64
        };
        let loss = (0..16).map(|power| loss(f64::from(1 << power))).fold(f64::INFINITY, f64::min);
        Ok(Bigram { loss, targets: total, training_tokens: counts.tokens })
    }

    fn count(&self, pairs: &mut Pairs, limit: u64) -> Result<Counts> {
        let size = self.vocabulary();
        let mut counts = Counts { seen: vec![0; size], followed: vec![0; size], tokens: 0 };
        let end = self.end_of_text();
        for chunk in self.chunks(Part::Train) {
            if counts.tokens >= limit {
                break;
            }
            let rows = match self.read(chunk) {
                Ok(rows) => rows,
                Err(ReadError::Wrong(error)) => return Err(error),
                // The loader counts and limits damage; here there is only less to count.
                Err(ReadError::Damaged(_)) => continue,
            };
            for index in 0..rows.ends.len() {
                let ids = &rows.ids[rows.range(index)];
                let mut before = None;
                let closing = (ids.last() != Some(&end)).then_some(end);
                for id in ids.iter().copied().chain(closing) {
                    counts.seen[id as usize] += 1;
                    counts.tokens += 1;
                    if let Some(a) = before.filter(|&a| a != end) {
                        counts.followed[a as usize] += 1;
                        pairs.meet(a, id);
                    }
                    before = Some(id);
                }
            }
        }
        Ok(counts)
    }
}

/// A pair of tokens: how often it occurs in the batches, and how often in the training tokens.
struct Pair {
    tokens: (i32, i32),
    targets: u64,
    count: u64,
}

/// The pairs of the batches, sorted, and where those of each first token begin. A hash map took five times as long.
struct Pairs {
    list: Vec<Pair>,
    begins: Vec<usize>,
}

impl Pairs {
    fn new(mut targets: Vec<(i32, i32)>, vocabulary: usize) -> Self {
        targets.sort_unstable();
        let same = targets.chunk_by(|a, b| a == b);
        let list: Vec<Pair> =
            same.map(|s| Pair { tokens: s[0], targets: s.len() as u64, count: 0 }).collect();
        let begins = (0..=vocabulary as i32).map(|a| list.partition_point(|p| p.tokens.0 < a)).collect();
        Self { list, begins }
    }

    /// Counts a pair of training tokens, if it occurs in the batches.
    fn meet(&mut self, a: i32, b: i32) {
        let pairs = &mut self.list[self.begins[a as usize]..self.begins[a as usize + 1]];
        if let Ok(at) = pairs.binary_search_by_key(&b, |p| p.tokens.1) {
            pairs[at].count += 1;
        }
    }
}

/// Counts of single tokens.
struct Counts {
    seen: Vec<u64>,
    followed: Vec<u64>,
    tokens: u64,
}
