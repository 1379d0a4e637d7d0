//! What everything that a client makes holds on to: the C client itself, and the counts of what is alive.

use super::plugin::{Plugin, call};
use pjrt_sys as sys;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The C client; destroyed after everything that was made with it.
pub(super) struct ClientHandle {
    pub(super) plugin: Plugin,
    pub(super) raw: *mut sys::PJRT_Client,
    pub(super) counts: Arc<Counts>,
}

// SAFETY: the C API lets any thread use a client.
unsafe impl Send for ClientHandle {}
// SAFETY: as above.
unsafe impl Sync for ClientHandle {}

/// How many handles are alive; a program that leaks does not come back to zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Buffers on devices.
    pub buffers: usize,
    /// Compiled programs, loaded or not.
    pub executables: usize,
    /// Host tensors that a device reads in place.
    pub borrowed_hosts: usize,
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) buffers: AtomicUsize,
    pub(super) executables: AtomicUsize,
    pub(super) borrowed_hosts: AtomicUsize,
}

impl Counts {
    pub(super) fn read(&self) -> Live {
        Live {
            buffers: self.buffers.load(Ordering::SeqCst),
            executables: self.executables.load(Ordering::SeqCst),
            borrowed_hosts: self.borrowed_hosts.load(Ordering::SeqCst),
        }
    }
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        // SAFETY: the client is alive, and everything made with it held this handle. A failure could not be
        // acted upon.
        let _ = unsafe { call!(&self.plugin, PJRT_Client_Destroy { client: self.raw }) };
    }
}
