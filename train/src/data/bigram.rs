//! The loss that counting pairs of tokens reaches: a trained model must do better.

use std::collections::HashMap;

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
    /// is rather too high than too low. Only pairs that occur in the batches are counted, so memory is bounded by them.
    pub fn bigram(&self, validation: &[Batch], limit: u64) -> Result<Bigram> {
        let mut targets: HashMap<(i32, i32), Pair> = HashMap::new();
        let mut total = 0u64;
        for (ids, segments) in
            validation.iter().flat_map(|b| b.ids.chunks(b.shape.seq).zip(b.segments.chunks(b.shape.seq)))
        {
            for (ids, segments) in ids.windows(2).zip(segments.windows(2)) {
                if segments[0] == segments[1] && segments[0] >= 0 {
                    targets.entry((ids[0], ids[1])).or_default().targets += 1;
                    total += 1;
                }
            }
        }
        if total == 0 {
            return Err(DataError::NoRows { path: self.folder().to_owned(), split: Part::Validation.name() });
        }
        let counts = self.count(&mut targets, limit)?;
        // Sums of floating-point numbers depend on their order.
        let mut targets: Vec<_> = targets.into_iter().collect();
        targets.sort_unstable_by_key(|(pair, _)| *pair);
        let loss = |k: f64| {
            let cost: f64 = targets
                .iter()
                .map(|&((a, b), ref pair)| {
                    let unigram = (counts.seen[b as usize] as f64 + 1.0)
                        / (counts.tokens as f64 + self.vocabulary() as f64);
                    let p = (pair.count as f64 + k * unigram) / (counts.followed[a as usize] as f64 + k);
                    -p.ln() * pair.targets as f64
                })
                .sum();
            cost / total as f64
        };
        let loss = (0..16).map(|power| loss(f64::from(1 << power))).fold(f64::INFINITY, f64::min);
        Ok(Bigram { loss, targets: total, training_tokens: counts.tokens })
    }

    fn count(&self, pairs: &mut HashMap<(i32, i32), Pair>, limit: u64) -> Result<Counts> {
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
                // The loader counts and limits damage; here it is only less to count.
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
                        if let Some(pair) = pairs.get_mut(&(a, id)) {
                            pair.count += 1;
                        }
                    }
                    before = Some(id);
                }
            }
        }
        Ok(counts)
    }
}

/// A pair of tokens: how often it is asked for and how often it was seen.
#[derive(Default)]
struct Pair {
    targets: u64,
    count: u64,
}

/// Counts of single tokens.
struct Counts {
    seen: Vec<u64>,
    followed: Vec<u64>,
    tokens: u64,
}
