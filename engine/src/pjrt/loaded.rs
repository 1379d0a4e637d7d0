//! [`Loaded`]: a compiled program on its devices, ready to run.

use super::buffer::Buffer;
use super::device::Device;
use super::error::{Error, Result};
use super::executable::Executable;
use super::handle::ClientHandle;
use super::plugin::call;
use super::value;
use pjrt_sys as sys;
use std::ops::Deref;
use std::ptr;
use std::sync::Arc;

/// An [`Executable`] that can run.
#[derive(Debug)]
pub struct Loaded {
    // Declared before `raw` and so dropped first: it is a view of it.
    executable: Executable,
    raw: LoadedHandle,
    devices: Vec<Device>,
    outputs: usize,
}

struct LoadedHandle {
    client: Arc<ClientHandle>,
    raw: *mut sys::PJRT_LoadedExecutable,
}

// SAFETY: the C API lets any thread run an executable.
unsafe impl Send for LoadedHandle {}
// SAFETY: as above.
unsafe impl Sync for LoadedHandle {}

/// An argument of a run.
#[derive(Debug)]
pub enum Arg<'a> {
    /// The buffer stays as it is; where the program would write over it, the plugin copies it first.
    Keep(&'a Buffer),
    /// The program may write its result into this buffer's memory (`tf.aliasing_output` in the text); it is
    /// gone afterwards.
    Donate(Buffer),
}

impl Arg<'_> {
    fn buffer(&self) -> &Buffer {
        match self {
            Arg::Keep(buffer) => buffer,
            Arg::Donate(buffer) => buffer,
        }
    }
}

impl Loaded {
    /// # Safety
    /// `raw` is a loaded executable of `client` that nobody else destroys.
    pub(super) unsafe fn from_raw(
        client: &Arc<ClientHandle>,
        raw: *mut sys::PJRT_LoadedExecutable,
    ) -> Result<Loaded> {
        let handle = LoadedHandle { client: client.clone(), raw };
        // SAFETY: the executable is alive; its devices are the client's.
        unsafe {
            let view = call!(&client.plugin, PJRT_LoadedExecutable_GetExecutable { loaded_executable: raw })?;
            let executable = Executable::from_raw(&client.plugin, view.executable, &client.counts);
            let list = call!(&client.plugin, PJRT_LoadedExecutable_AddressableDevices { executable: raw })?;
            let devices = value::slice(list.addressable_devices, list.num_addressable_devices);
            let devices =
                devices.iter().map(|&raw| Device::from_raw(client, raw)).collect::<Result<Vec<Device>>>()?;
            let outputs = executable.output_count()?;
            Ok(Loaded { executable, raw: handle, devices, outputs })
        }
    }

    /// The devices it runs on, in the order in which [`run_on_all`](Loaded::run_on_all) takes arguments.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Runs on one device. It returns as soon as the work is queued; reading a result waits for it.
    ///
    /// # Errors
    /// If the program is for several devices, or the arguments do not fit it.
    pub fn run<'a>(&self, args: impl IntoIterator<Item = Arg<'a>>) -> Result<Vec<Buffer>> {
        let mut results = self.run_on_all(vec![args.into_iter().collect()])?;
        Ok(results.pop().unwrap_or_default())
    }

    /// Runs on all of its devices: one list of arguments for each, and one list of results from each.
    ///
    /// # Errors
    /// If the number of lists is not that of the devices, the lists differ in length or in what they donate,
    /// a buffer is of another client, or the plugin finds that the arguments do not fit the program.
    pub fn run_on_all(&self, args: Vec<Vec<Arg<'_>>>) -> Result<Vec<Vec<Buffer>>> {
        let kept = self.check(&args)?;
        let arguments: Vec<Vec<*mut sys::PJRT_Buffer>> =
            args.iter().map(|list| list.iter().map(|arg| arg.buffer().raw()).collect()).collect();
        let argument_lists: Vec<*const *mut sys::PJRT_Buffer> =
            arguments.iter().map(|list| list.as_ptr()).collect();
        let mut outputs = vec![vec![ptr::null_mut::<sys::PJRT_Buffer>(); self.outputs]; args.len()];
        let output_lists: Vec<*mut *mut sys::PJRT_Buffer> =
            outputs.iter_mut().map(|list| list.as_mut_ptr()).collect();
        let mut options = sys::PJRT_ExecuteOptions {
            struct_size: size_of::<sys::PJRT_ExecuteOptions>(),
            non_donatable_input_indices: kept.as_ptr(),
            num_non_donatable_input_indices: kept.len(),
            ..Default::default()
        };
        let client = &self.raw.client;
        // SAFETY: all lists live during the call and have the lengths that they must have: one list a device,
        // each with the same number of arguments, and room for the program's results. Donated buffers are
        // owned by `args`.
        unsafe {
            call!(
                &client.plugin,
                PJRT_LoadedExecutable_Execute {
                    executable: self.raw.raw,
                    options: &mut options,
                    argument_lists: argument_lists.as_ptr(),
                    num_devices: args.len(),
                    num_args: args[0].len(),
                    output_lists: output_lists.as_ptr(),
                }
            )
        }?;
        let mut results = Vec::with_capacity(outputs.len());
        for list in &outputs {
            // All of them become ours before one can fail, so that none leaks.
            // SAFETY: the plugin filled the lists with buffers for us.
            let list: Vec<Result<Buffer>> =
                list.iter().map(|&raw| unsafe { Buffer::from_raw(client, raw) }).collect();
            results.push(list);
        }
        results.into_iter().map(|list| list.into_iter().collect()).collect()
    }

    /// Checks what the C API does not, and gives the indices of the arguments that are kept.
    fn check(&self, args: &[Vec<Arg<'_>>]) -> Result<Vec<i64>> {
        let wrong = |what: String| Err(Error::Arguments(format!("running {:?}: {what}", self.executable)));
        if args.len() != self.devices.len() || args.is_empty() {
            return wrong(format!("got arguments for {} devices, wanted {}", args.len(), self.devices.len()));
        }
        let kept_in = |list: &[Arg<'_>]| -> Vec<i64> {
            let indices = list.iter().enumerate().filter(|(_, arg)| matches!(arg, Arg::Keep(_)));
            indices.map(|(index, _)| index as i64).collect()
        };
        let kept = kept_in(&args[0]);
        for (number, list) in args.iter().enumerate() {
            if list.len() != args[0].len() {
                return wrong(format!(
                    "device {number} got {} arguments, device 0 got {}",
                    list.len(),
                    args[0].len()
                ));
            }
            if kept_in(list) != kept {
                return wrong(format!(
                    "device {number} donates other arguments than device 0; donate the same ones"
                ));
            }
            if let Some(index) = list.iter().position(|arg| !arg.buffer().belongs_to(&self.raw.client)) {
                return wrong(format!("argument {index} on device {number} belongs to another client"));
            }
        }
        Ok(kept)
    }
}

impl Deref for Loaded {
    type Target = Executable;

    fn deref(&self) -> &Executable {
        &self.executable
    }
}

impl std::fmt::Debug for LoadedHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoadedHandle")
    }
}

impl Drop for LoadedHandle {
    fn drop(&mut self) {
        // SAFETY: the executable is alive, and this is its last use. A failure could not be acted upon.
        let _ = unsafe { call!(&self.client.plugin, PJRT_LoadedExecutable_Destroy { executable: self.raw }) };
    }
}
