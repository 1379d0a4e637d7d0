//! Random choices as pure functions of (seed, purpose, epoch, index): Threefry, so that they never change with a library.

use engine::random::threefry2x32;

/// What a stream of random numbers is for; streams of different purposes are independent.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    /// The order of chunks in an epoch.
    Chunks = 1,
    /// The order of documents in a window.
    Documents,
    /// The order of packed rows in a block.
    Rows,
    /// Which pieces of documents are rearranged, and in which form.
    FimForm,
    /// Where they are cut.
    FimCuts,
}

/// Programs on the device take their random numbers from (step, site) under the same seed; this tag is a step that no run
/// reaches.
const TAG: u32 = 0x6461_7400;

/// The random numbers for one purpose in one epoch.
#[derive(Clone, Copy)]
pub(super) struct Stream([u32; 2]);

impl Stream {
    /// The stream of `purpose` in `epoch`.
    pub(super) fn new(seed: u64, purpose: Purpose, epoch: u64) -> Self {
        Self(threefry2x32([seed as u32, (seed >> 32) as u32], [TAG + purpose as u32, epoch as u32]))
    }

    /// Two random words, those of number `index`.
    pub(super) fn draw(self, index: u64) -> [u32; 2] {
        threefry2x32(self.0, [index as u32, (index >> 32) as u32])
    }

    /// Sorts items by a random word each, that of the item's own number: removing an item does not move the others.
    pub(super) fn shuffle<T: Copy + Ord>(self, items: &mut [T], number: impl Fn(T) -> u64) {
        items.sort_by_cached_key(|&item| {
            let [low, high] = self.draw(number(item));
            ((u64::from(high) << 32) | u64::from(low), item)
        });
    }
}

/// `word` as a fraction of 1.
pub(super) fn fraction(word: u32) -> f64 {
    f64::from(word) / (f64::from(u32::MAX) + 1.0)
}

/// `word` scaled to 0..=limit, each value equally likely to within limit / 2^32.
pub(super) fn up_to(word: u32, limit: usize) -> usize {
    ((u64::from(word) * (limit as u64 + 1)) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::{Purpose, Stream, up_to};

    #[test]
    fn a_shuffle_is_a_permutation_and_does_not_change() {
        let mut items: Vec<u64> = (0..1000).collect();
        Stream::new(7, Purpose::Chunks, 0).shuffle(&mut items, |i| i);
        assert_eq!(items[..6], [909, 926, 210, 362, 760, 712], "the order of data is part of the format");
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        let mut other: Vec<u64> = (0..1000).collect();
        Stream::new(7, Purpose::Chunks, 1).shuffle(&mut other, |i| i);
        assert_ne!(items, other);
    }

    #[test]
    fn scaling_reaches_both_ends() {
        assert_eq!((up_to(0, 9), up_to(u32::MAX, 9), up_to(u32::MAX, 0)), (0, 9, 0));
    }
}
