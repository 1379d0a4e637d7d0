//! The memory that tasks work in: tiles that start with a cache line, and how a task takes over another's.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Floats of a cache line.
pub(crate) const LINE: usize = 16;

/// From the first element that starts a cache line: vectors that straddle two are loaded at half the speed.
pub(crate) fn aligned(x: &mut [f32]) -> &mut [f32] {
    let padding = x.as_ptr().align_offset(LINE * size_of::<f32>()).min(x.len());
    &mut x[padding..]
}

/// Zeros of a task, from the start of a cache line on.
pub(crate) struct AlignedVec {
    data: Vec<f32>,
    padding: usize,
    len: usize,
}

impl AlignedVec {
    pub(crate) fn new(len: usize) -> AlignedVec {
        let data = vec![0.0; len + LINE];
        let padding = data.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        AlignedVec { data, padding, len }
    }
}

impl Deref for AlignedVec {
    type Target = [f32];

    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.data[self.padding..][..self.len]
    }
}

impl DerefMut for AlignedVec {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.padding..][..self.len]
    }
}

/// What tasks work in, for the next one when a task is done with it: pages that are new to each task cost more than its
/// small products.
pub(crate) struct ScratchPool<T>(Mutex<Vec<T>>);

impl<T> ScratchPool<T> {
    pub(crate) fn new() -> ScratchPool<T> {
        ScratchPool(Mutex::new(Vec::new()))
    }

    /// Runs `task` with what another left, or something new.
    pub(crate) fn with<R>(&self, new: impl FnOnce() -> T, task: impl FnOnce(&mut T) -> R) -> R {
        let spare = self.0.lock().expect("no task panicked").pop();
        let mut tiles = spare.unwrap_or_else(new);
        let result = task(&mut tiles);
        self.0.lock().expect("no task panicked").push(tiles);
        result
    }
}

/// Turns `[rows, columns]` into `[columns, rows]`.
#[inline(always)]
pub(crate) fn turn(x: &[f32], columns: usize, result: &mut [f32]) {
    let rows = x.len() / columns;
    for (row, x) in x.chunks_exact(columns).enumerate() {
        for (x, result) in x.iter().zip(result.chunks_exact_mut(rows)) {
            result[row] = *x;
        }
    }
}
