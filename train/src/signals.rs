//! SIGINT and SIGTERM: the first one asks the run to save and stop, the second one ends the process at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of a run that a signal stopped and whose state is saved: run the same command again (EX_TEMPFAIL).
pub const INTERRUPTED: u8 = 75;

/// Whether the run was asked to stop. Cheap to clone and to ask; ask between steps, in waits and in loops.
#[derive(Clone, Debug)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    nothing_to_save: Arc<AtomicBool>,
}

/// While this lives, the first signal ends the process: see [`Stop::nothing_to_save`].
#[derive(Debug)]
pub struct NothingToSave {
    flag: Arc<AtomicBool>,
}

impl Drop for NothingToSave {
    fn drop(&mut self) {
        self.flag.store(false, Ordering::SeqCst);
    }
}

impl Stop {
    /// Takes over both signals for the rest of the process.
    ///
    /// # Errors
    /// If the system refuses to register a handler.
    pub fn on_signals() -> io::Result<Stop> {
        let stop = Stop::manual();
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the second signal must find the flag that the first one set. Nothing here depends on a
            // thread of ours being able to run.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop.requested))?;
            flag::register(signal, Arc::clone(&stop.requested))?;
        }
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let nothing_to_save = Arc::clone(&stop.nothing_to_save);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
                if nothing_to_save.load(Ordering::SeqCst) {
                    eprintln!("{name}: stopped; there is nothing to save, the same command goes on");
                    // Not `std::process::exit`: destructors would run beside a compiler that is still at work.
                    signal_hook::low_level::exit(INTERRUPTED.into());
                }
                eprintln!(
                    "{name}: saving a checkpoint after this step, then stopping; once more to stop at once"
                );
            }
        })?;
        Ok(stop)
    }

    /// A stop that only [`request`](Stop::request) asks for.
    pub fn manual() -> Stop {
        Stop { requested: Arc::default(), nothing_to_save: Arc::default() }
    }

    /// Asks for it, as a signal would.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
    }

    /// Whether it was asked for.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// For long work that cannot be asked to stop, such as compiling, while all is saved and nothing is half-written:
    /// until the result is dropped, the first signal ends the process with [`INTERRUPTED`]. A signal that came before
    /// is still to be asked for with [`requested`](Stop::requested).
    pub fn nothing_to_save(&self) -> NothingToSave {
        self.nothing_to_save.store(true, Ordering::SeqCst);
        NothingToSave { flag: Arc::clone(&self.nothing_to_save) }
    }
}
