//! [`Event`]: something that a device will have done later.

use super::error::Result;
use super::handle::ClientHandle;
use super::plugin::call;
use pjrt_sys as sys;
use std::sync::Arc;
use std::thread;

/// Work in flight. Dropping it does not wait.
pub struct Event {
    client: Arc<ClientHandle>,
    raw: *mut sys::PJRT_Event,
}

// SAFETY: the C API lets any thread await, poll and destroy an event.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// # Safety
    /// `raw` is an event of `client` that nobody else destroys.
    pub(super) unsafe fn from_raw(client: &Arc<ClientHandle>, raw: *mut sys::PJRT_Event) -> Event {
        Event { client: client.clone(), raw }
    }

    /// Blocks until the work is done.
    ///
    /// # Errors
    /// If the work failed.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        unsafe { call!(&self.client.plugin, PJRT_Event_Await { event: self.raw }) }.map(|_| ())
    }

    /// Whether the work is done (or has failed); never blocks.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn is_ready(&self) -> Result<bool> {
        // SAFETY: the event is alive.
        unsafe { call!(&self.client.plugin, PJRT_Event_IsReady { event: self.raw }) }
            .map(|args| args.is_ready)
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
            let _ = unsafe { pending.event.client.plugin.check("PJRT_Event_OnReady", error) };
            (pending.then)();
            let client = pending.event.client.clone();
            drop(pending.event);
            // A client waits for its threads when it is destroyed, and this is one of them.
            if let Some(last) = Arc::into_inner(client) {
                thread::spawn(move || drop(last));
            }
        }
        let (client, raw) = (self.client.clone(), self.raw);
        let pending = Box::into_raw(Box::new(Pending { event: self, then: Box::new(then) }));
        // SAFETY: the event is alive until the callback drops it, as the box owns it.
        let result = unsafe {
            call!(
                &client.plugin,
                PJRT_Event_OnReady { event: raw, callback: Some(ready), user_arg: pending.cast() }
            )
        };
        // When the plugin refuses it will not call back, and whether the work still runs is unknown: the box,
        // with whatever `then` keeps alive, is leaked rather than freed under the device.
        result.map(|_| ())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is alive, and this is its last use. A failure could not be acted upon.
        let _ = unsafe { call!(&self.client.plugin, PJRT_Event_Destroy { event: self.raw }) };
    }
}

#[cfg(test)]
mod tests {
    use crate::Host;
    use crate::pjrt::{Client, Plugin};
    use crate::plugin::Platform;
    use std::sync::Arc;
    use std::thread;
    use std::time::{Duration, Instant};

    #[test]
    fn work_in_flight_keeps_its_client() {
        let client = Client::new(&Plugin::of(&Platform::Cpu).unwrap(), &[]).unwrap();
        let handle = Arc::downgrade(&client.devices()[0].client);
        let host = Arc::new(Host::new([4], &[1f32, 2.0, 3.0, 4.0]));
        let buffer = client.to_device(&host, &client.devices()[0]).unwrap();
        let (ready, transfer) = (buffer.ready().unwrap(), buffer.to_host_async().unwrap());
        drop((buffer, client));
        assert_eq!(transfer.wait().unwrap(), *host);
        assert!(handle.upgrade().is_some(), "the event has none");
        ready.wait().unwrap();
        drop(ready);
        assert!(handle.upgrade().is_none());

        let client = Client::new(&Plugin::of(&Platform::Cpu).unwrap(), &[]).unwrap();
        let handle = Arc::downgrade(&client.devices()[0].client);
        let transfer = {
            let buffer = client.to_device(&host, &client.devices()[0]).unwrap();
            buffer.to_host_async().unwrap()
        };
        drop(client);
        assert!(handle.upgrade().is_some(), "the transfer has none");
        drop(transfer);
        assert!(handle.upgrade().is_none());
    }

    /// The client goes on the plugin's thread that gives the memory back, unless the buffer outlives that.
    #[test]
    fn lent_memory_comes_back_after_its_client_is_let_go() {
        for _ in 0..20 {
            let client = Client::new(&Plugin::of(&Platform::Cpu).unwrap(), &[]).unwrap();
            let handle = Arc::downgrade(&client.devices()[0].client);
            let host = Arc::new(Host::new([4], &[1f32, 2.0, 3.0, 4.0]));
            let buffer = client.lend_to_device(host.clone(), &client.devices()[0]).unwrap();
            drop((client, buffer));
            let start = Instant::now();
            while handle.strong_count() > 0 || Arc::strong_count(&host) > 1 {
                assert!(start.elapsed() < Duration::from_secs(60), "the client or the memory is kept");
                thread::yield_now();
            }
        }
    }
}
