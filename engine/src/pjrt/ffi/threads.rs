//! The threads that help a call: XLA's own, woken for one thing or kept awake for several.

use super::{Api, RawCallFrame, ScheduleArgs, ThreadsArgs, destroy};
use crate::host_function::Pool;
use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

/// The threads on which XLA computes.
pub(super) struct XlaThreads {
    api: *const Api,
    context: *mut c_void,
    threads: usize,
}

// SAFETY: the interface may be called from any thread during the call.
unsafe impl Sync for XlaThreads {}

/// What a helper finds. It may come when the call has long ended, so it owns a share of this.
struct Job {
    /// Only to be read by those who are counted in `inside`.
    body: *const (dyn Fn() + Sync),
    closed: AtomicBool,
    inside: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the body is `Sync`, and lives while anybody is inside.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

impl Job {
    /// # Safety
    /// The job is closed before the body goes.
    unsafe fn new(body: &(dyn Fn() + Sync)) -> Arc<Job> {
        // SAFETY: only the lifetime changes; by the contract nobody reads it later.
        let body: *const (dyn Fn() + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(body) };
        let (closed, inside) = (AtomicBool::new(false), AtomicUsize::new(0));
        Arc::new(Job { body, closed, inside, panic: Mutex::default() })
    }

    /// Helps, unless the call has ended.
    fn help(&self) {
        // Entering before looking: whoever closes the job looks for those inside afterwards.
        self.inside.fetch_add(1, Ordering::SeqCst);
        if !self.closed.load(Ordering::SeqCst) {
            // SAFETY: the caller waits for this thread before the body goes.
            let body = unsafe { &*self.body };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// Lets nobody in any more and waits for those who are inside.
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        spin_until(|| self.inside.load(Ordering::SeqCst) == 0);
    }

    /// Panics as a helper did, if one did.
    fn resume(&self) {
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Waits for something that takes some microseconds, mostly; but another process may have the core of whoever does it.
fn spin_until(done: impl Fn() -> bool) {
    let mut turns = 0u32;
    while !done() {
        if turns < 2000 {
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
        turns = turns.saturating_add(1);
    }
}

/// # Safety
/// `data` is what [`XlaThreads::helped`] made of a share of a job.
unsafe extern "C" fn task(data: *mut c_void) {
    // SAFETY: by the contract; the share comes back once.
    unsafe { Arc::from_raw(data.cast_const().cast::<Job>()) }.help();
}

impl XlaThreads {
    /// # Safety
    /// The frame is valid.
    pub(super) unsafe fn of(frame: &RawCallFrame) -> XlaThreads {
        // Asking the system reads files, which takes longer than many a call.
        static CORES: OnceLock<usize> = OnceLock::new();
        let cores = *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from));
        let mut threads = 1;
        let (api, context) = (frame.api, frame.context);
        let mut args = ThreadsArgs {
            size: size_of::<ThreadsArgs>(),
            extension: null_mut(),
            context,
            threads: &mut threads,
        };
        // SAFETY: the function is in the table, whose size was checked, and `threads` lives.
        let refused = unsafe { ((*api).threads)(&mut args) };
        if !refused.is_null() {
            threads = 1;
            // SAFETY: the error is ours.
            unsafe { destroy(api, refused) };
        }
        XlaThreads { api, context, threads: cores.min(threads as usize) }
    }

    /// Runs `own` here while others, as many as `helpers`, run `help`.
    fn helped(&self, helpers: usize, help: &(dyn Fn() + Sync), own: impl FnOnce()) {
        // SAFETY: it is closed below; what panics in `own` is caught until then.
        let job = unsafe { Job::new(help) };
        for _ in 0..helpers {
            let data = Arc::into_raw(job.clone()).cast_mut().cast();
            let mut args = ScheduleArgs {
                size: size_of::<ScheduleArgs>(),
                extension: null_mut(),
                context: self.context,
                task,
                data,
            };
            // SAFETY: the function is in the table, the context is that of the running call, and the task takes what it
            // is given.
            let refused = unsafe { ((*self.api).schedule)(&mut args) };
            if !refused.is_null() {
                // SAFETY: the task will not be run, so its share and the error are ours. The caller works alone.
                unsafe {
                    drop(Arc::from_raw(data.cast_const().cast::<Job>()));
                    destroy(self.api, refused);
                }
            }
        }
        let done = catch_unwind(AssertUnwindSafe(own));
        job.close();
        if let Err(panic) = done {
            resume_unwind(panic);
        }
        job.resume();
    }
}

impl Pool for XlaThreads {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, helpers: usize, body: &(dyn Fn() + Sync)) {
        self.helped(helpers, body, body);
    }

    fn awake(&self, f: &mut dyn FnMut(&dyn Pool)) {
        let team = Team {
            threads: self.threads,
            jobs: AtomicUsize::new(0),
            job: Mutex::default(),
            over: AtomicBool::new(false),
        };
        self.helped(self.threads - 1, &|| team.stay(), || {
            let done = catch_unwind(AssertUnwindSafe(|| f(&team)));
            team.over.store(true, Ordering::SeqCst);
            if let Err(panic) = done {
                resume_unwind(panic);
            }
        });
    }
}

/// Threads that look for the next job without going to sleep.
struct Team {
    threads: usize,
    /// Jobs that there were.
    jobs: AtomicUsize,
    /// The last one.
    job: Mutex<Option<Arc<Job>>>,
    over: AtomicBool,
}

impl Team {
    /// Helps with one job after the other until it is over.
    fn stay(&self) {
        let mut seen = 0;
        loop {
            spin_until(|| self.over.load(Ordering::SeqCst) || self.jobs.load(Ordering::SeqCst) != seen);
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            seen = self.jobs.load(Ordering::SeqCst);
            let job = self.job.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(job) = job {
                job.help();
            }
        }
    }
}

impl Pool for Team {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, _: usize, body: &(dyn Fn() + Sync)) {
        // SAFETY: it is closed below, and nothing panics before.
        let job = unsafe { Job::new(body) };
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job.clone());
        self.jobs.fetch_add(1, Ordering::SeqCst);
        job.help();
        job.close();
        job.resume();
    }

    fn awake(&self, f: &mut dyn FnMut(&dyn Pool)) {
        f(self);
    }
}
