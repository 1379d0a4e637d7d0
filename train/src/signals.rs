//! SIGINT, SIGTERM and SIGHUP: the first one asks the run to save and stop, another SIGINT or SIGTERM ends the process at
//! once. A terminal that closes may send SIGHUP more than once, and a service that is stopped sends it right after SIGTERM,
//! so SIGHUP never ends anything; where it is ignored, as under `nohup`, it stays ignored.

use crate::lock;
use program::esay;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// Exit code of a run that a signal stopped and whose state is saved: run the same command again (EX_TEMPFAIL).
pub const INTERRUPTED: u8 = 75;

/// How long removing locks may take before the process ends anyway: one may lie on a drive that hangs.
const CLEARING: Duration = Duration::from_secs(1);

/// Whether the run was asked to stop. Cheap to clone and to ask; ask between steps, in waits and in loops.
#[derive(Clone, Debug)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    /// Whether the next SIGINT or SIGTERM ends the process.
    armed: Arc<AtomicBool>,
    meets: Arc<AtomicU8>,
}

/// What the run is doing when a signal comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Meets {
    /// A run that has something to save.
    Training,
    /// [`Stop::nothing_to_save`].
    NothingToSave,
    /// [`Stop::waiting`].
    Waiting,
}

/// While this lives, the first signal ends the process: see [`Stop::nothing_to_save`].
#[derive(Debug)]
pub struct NothingToSave(Stop);

/// While this lives, a signal ends a wait: see [`Stop::waiting`].
#[derive(Debug)]
pub struct Waiting(Stop);

impl Drop for NothingToSave {
    fn drop(&mut self) {
        self.0.meet(Meets::Training);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.meet(Meets::Training);
    }
}

impl Waiting {
    /// Whether SIGINT or SIGTERM came since the wait began.
    pub fn over(&self) -> bool {
        self.0.armed.load(Ordering::SeqCst)
    }
}

impl Stop {
    /// Takes over the three signals for the rest of the process.
    ///
    /// # Errors
    /// If the system refuses to register a handler.
    pub fn on_signals() -> io::Result<Stop> {
        let stop = Stop::manual();
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the second signal must find the flag that the first one set. Nothing here depends on a
            // thread of ours being able to run.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop.armed))?;
            flag::register(signal, Arc::clone(&stop.armed))?;
            flag::register(signal, Arc::clone(&stop.requested))?;
        }
        let mut taken = vec![SIGINT, SIGTERM];
        if !ignored(SIGHUP) {
            flag::register(SIGHUP, Arc::clone(&stop.requested))?;
            taken.push(SIGHUP);
        }
        let mut signals = Signals::new(taken)?;
        let meets = Arc::clone(&stop.meets);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let mut asked = false;
            for signal in signals.forever() {
                let name = match signal {
                    SIGINT => "SIGINT",
                    SIGTERM => "SIGTERM",
                    _ => "SIGHUP",
                };
                let meets = meets.load(Ordering::SeqCst);
                if meets == Meets::NothingToSave as u8 {
                    esay!("{name}: stopped; there is nothing to save, the same command goes on");
                    clear_locks();
                    // Not `std::process::exit`: destructors would run beside a compiler that is still at work.
                    signal_hook::low_level::exit(INTERRUPTED.into());
                }
                // In a wait, the code that waits says what the signal did.
                if meets == Meets::Training as u8 && !std::mem::replace(&mut asked, true) {
                    esay!(
                        "{name}: saving a checkpoint after this step, then stopping; once more (SIGINT or SIGTERM) to stop at once"
                    );
                }
            }
        })?;
        Ok(stop)
    }

    /// A stop that only [`request`](Stop::request) asks for.
    pub fn manual() -> Stop {
        Stop {
            requested: Arc::default(),
            armed: Arc::default(),
            meets: Arc::new(AtomicU8::new(Meets::Training as u8)),
        }
    }

    /// Asks for it, as a signal would.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Whether it was asked for.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// For long work that cannot be asked to stop, such as compiling, while all is saved and nothing is half-written:
    /// until the result is dropped, the first signal ends the process with [`INTERRUPTED`]. A signal that came before
    /// is still to be asked for with [`requested`](Stop::requested).
    pub fn nothing_to_save(&self) -> NothingToSave {
        self.meet(Meets::NothingToSave);
        NothingToSave(self.clone())
    }

    /// For a wait while all is saved: until the result is dropped, the next SIGINT or SIGTERM, whether or not one came
    /// before, is told by [`over`](Waiting::over); only the one after it ends the process.
    pub fn waiting(&self) -> Waiting {
        self.meet(Meets::Waiting);
        self.armed.store(false, Ordering::SeqCst);
        Waiting(self.clone())
    }

    fn meet(&self, what: Meets) {
        self.meets.store(what as u8, Ordering::SeqCst);
    }
}

/// Whether a signal was ignored when the process started. Where the system does not tell, it was not.
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

fn clear_locks() {
    let thread = std::thread::spawn(lock::clear);
    let start = Instant::now();
    while !thread.is_finished() && start.elapsed() < CLEARING {
        std::thread::sleep(Duration::from_millis(1));
    }
}
