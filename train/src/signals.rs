//! SIGINT and SIGTERM: the first one asks the run to save and stop, the second one ends the process at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the run was asked to stop. Cheap to clone and to ask; ask between steps, in waits and in loops.
#[derive(Clone, Debug)]
pub struct Stop {
    requested: Arc<AtomicBool>,
}

impl Stop {
    /// Takes over both signals for the rest of the process.
    ///
    /// # Errors
    /// If the system refuses to register a handler.
    pub fn on_signals() -> io::Result<Stop> {
        let requested = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the second signal must find the flag that the first one set. Nothing here depends on a
            // thread of ours being able to run.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&requested))?;
            flag::register(signal, Arc::clone(&requested))?;
        }
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
                eprintln!(
                    "{name}: saving a checkpoint after this step, then stopping; once more to stop at once"
                );
            }
        })?;
        Ok(Stop { requested })
    }

    /// A stop that only [`request`](Stop::request) asks for.
    pub fn manual() -> Stop {
        Stop { requested: Arc::new(AtomicBool::new(false)) }
    }

    /// Asks for it, as a signal would.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
    }

    /// Whether it was asked for.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }
}
