//! Functions of this process that programs call: what the author of one writes, and the threads that it may use.

use crate::host::{View, ViewMut};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// A function of this process that programs may call.
///
/// The results of equal operands must be equal to the last bit, however many workers there are.
pub trait HostFunction: 'static {
    /// The name in programs. Functions of one process have different names.
    const NAME: &'static str;
    /// Writes the results, all of them.
    ///
    /// # Panics
    /// What panics here is an error of the run, with the panic's message.
    fn call(frame: CallFrame<'_>);
}

/// One call: what goes in and where the results go.
#[derive(Debug)]
pub struct CallFrame<'a> {
    /// What the call's author wrote beside the operands.
    pub attributes: &'a [i64],
    /// The operands.
    pub operands: Vec<View<'a>>,
    /// The results; what they hold before they are written means nothing.
    pub results: Vec<ViewMut<'a>>,
    /// Threads that may help.
    pub workers: Workers<'a>,
}

/// The threads of a call: the caller, and those that the plugin lends.
#[derive(Clone, Copy)]
pub struct Workers<'a> {
    pool: Option<&'a dyn Pool>,
}

/// Threads that can be asked to help the caller.
pub(crate) trait Pool: Sync {
    /// Threads that work at once, the caller's among them.
    fn threads(&self) -> usize;
    /// Runs `body` on the calling thread, and on as many as `helpers` others as soon as they are free, and returns when
    /// nobody is in it any more. It is not said whether a helper comes in time.
    fn run(&self, helpers: usize, body: &(dyn Fn() + Sync));
    /// Runs `f` on the calling thread, with a pool whose helpers do not sleep meanwhile.
    fn awake(&self, f: &mut dyn FnMut(&dyn Pool));
}

impl<'a> Workers<'a> {
    /// The caller alone.
    pub fn caller() -> Workers<'static> {
        Workers { pool: None }
    }

    pub(crate) fn of(pool: &'a dyn Pool) -> Workers<'a> {
        Workers { pool: Some(pool) }
    }

    /// Threads that work at once.
    pub fn threads(&self) -> usize {
        self.pool.map_or(1, Pool::threads)
    }

    /// Runs `f` with workers that stay awake for it: for a chain of short things, each of which waits for the last. Waking a
    /// thread up for each would take longer than many of them.
    pub fn awake(&self, f: impl FnOnce(Workers<'_>)) {
        let Some(pool) = self.pool.filter(|_| self.threads() > 1) else {
            return f(Workers::caller());
        };
        let mut f = Some(f);
        pool.awake(&mut |pool| {
            if let Some(f) = f.take() {
                f(Workers::of(pool));
            }
        });
    }

    /// Does something with every item, several at once and in no order that could be relied on.
    pub fn for_each<T: Send>(&self, items: Vec<T>, f: impl Fn(T) + Sync) {
        let helpers = items.len().min(self.threads()).saturating_sub(1);
        let Some(pool) = self.pool.filter(|_| helpers > 0) else {
            return items.into_iter().for_each(f);
        };
        let items = Mutex::new(items.into_iter());
        let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
        pool.run(helpers, &|| {
            while let Some(item) = next() {
                f(item);
            }
        });
    }
}

impl fmt::Debug for Workers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({})", self.threads())
    }
}
