//! [`Event`]: something that a device will have done later.

use super::error::Result;
use super::plugin::{Plugin, call};
use pjrt_sys as sys;

/// Work in flight. Dropping it does not wait.
pub struct Event {
    plugin: Plugin,
    raw: *mut sys::PJRT_Event,
}

// SAFETY: the C API lets any thread await, poll and destroy an event.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// # Safety
    /// `raw` is an event of `plugin` that nobody else destroys.
    pub(super) unsafe fn from_raw(plugin: &Plugin, raw: *mut sys::PJRT_Event) -> Event {
        Event { plugin: plugin.clone(), raw }
    }

    /// Blocks until the work is done.
    ///
    /// # Errors
    /// If the work failed.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        unsafe { call!(&self.plugin, PJRT_Event_Await { event: self.raw }) }.map(|_| ())
    }

    /// Whether the work is done (or has failed); never blocks.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn is_ready(&self) -> Result<bool> {
        // SAFETY: the event is alive.
        unsafe { call!(&self.plugin, PJRT_Event_IsReady { event: self.raw }) }.map(|args| args.is_ready)
    }

    /// Calls `then` on some thread of the plugin when the work is done or has failed.
    pub(super) fn on_ready(self, then: impl FnOnce() + Send + 'static) -> Result<()> {
        struct Pending {
            event: Event,
            then: Box<dyn FnOnce() + Send>,
        }
        unsafe extern "C" fn ready(error: *mut sys::PJRT_Error, user: *mut std::ffi::c_void) {
            // SAFETY: `user` is the box made below, and the plugin calls back once.
            let pending = unsafe { Box::from_raw(user.cast::<Pending>()) };
            // SAFETY: the callback owns the error. The work's other handles report it, so it is only
            // destroyed here.
            let _ = unsafe { pending.event.plugin.check("PJRT_Event_OnReady", error) };
            (pending.then)();
        }
        let (plugin, raw) = (self.plugin.clone(), self.raw);
        let pending = Box::into_raw(Box::new(Pending { event: self, then: Box::new(then) }));
        // SAFETY: the event is alive until the callback drops it, as the box owns it.
        let result = unsafe {
            call!(&plugin, PJRT_Event_OnReady { event: raw, callback: Some(ready), user_arg: pending.cast() })
        };
        // When the plugin refuses it will not call back, and whether the work still runs is unknown: the box,
        // with whatever `then` keeps alive, is leaked rather than freed under the device.
        result.map(|_| ())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is alive, and this is its last use. A failure could not be acted upon.
        let _ = unsafe { call!(&self.plugin, PJRT_Event_Destroy { event: self.raw }) };
    }
}
