//! One loop over many items on several threads.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Applies `work` to every item on `threads` threads, this one among them; the results are in the order of the items.
pub(super) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let one_thread = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return done };
            done.push((index, work(item)));
        }
    };
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let others = threads.min(items.len()).saturating_sub(1);
        let handles: Vec<_> = (0..others).map(|_| scope.spawn(one_thread)).collect();
        let own = one_thread();
        let join = |h: std::thread::ScopedJoinHandle<'_, Vec<(usize, R)>>| {
            h.join().unwrap_or_else(|p| std::panic::resume_unwind(p))
        };
        own.into_iter().chain(handles.into_iter().flat_map(join)).collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// How many threads this machine runs at once.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
