//! [`Client`]: the devices that a plugin drives in this process.

use super::buffer::Buffer;
use super::device::Device;
use super::error::Result;
use super::handle::{ClientHandle, Live};
use super::loaded::Loaded;
use super::options::CompileOptions;
use super::plugin::{Plugin, call};
use super::text::ProgramText;
use super::value::{self, Value};
use crate::host::Host;
use std::fmt;
use std::sync::Arc;

/// A client of a plugin; clones share it.
#[derive(Clone)]
pub struct Client {
    handle: Arc<ClientHandle>,
    devices: Arc<[Device]>,
}

impl Client {
    /// Opens the plugin's devices. The options are the plugin's own: the CPU plugin takes
    /// `cpu_device_count` (4 if it is not given) and ignores what it does not know; the GPU plugin knows
    /// `memory_fraction` and others.
    ///
    /// # Errors
    /// If there is no device, it is in use, or an option is unknown.
    pub fn new(plugin: &Plugin, options: &[(&str, Value)]) -> Result<Client> {
        let raw_options = value::to_raw(options);
        // SAFETY: the options live during the call; the client that comes out is ours.
        let args = unsafe {
            call!(
                plugin,
                PJRT_Client_Create { create_options: raw_options.as_ptr(), num_options: raw_options.len() }
            )
        }?;
        let handle =
            Arc::new(ClientHandle { plugin: plugin.clone(), raw: args.client, counts: Arc::default() });
        // SAFETY: the client is alive, and its devices and their descriptions live as long.
        let devices = unsafe {
            let args = call!(plugin, PJRT_Client_AddressableDevices { client: handle.raw })?;
            let raw = value::slice(args.addressable_devices, args.num_addressable_devices);
            raw.iter().map(|&raw| Device::from_raw(&handle, raw)).collect::<Result<Vec<Device>>>()?
        };
        Ok(Client { handle, devices: devices.into() })
    }

    /// The plugin.
    pub fn plugin(&self) -> &Plugin {
        &self.handle.plugin
    }

    /// The devices that this process can use.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The platform's name, for instance `cpu`.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn platform_name(&self) -> Result<String> {
        // SAFETY: the client is alive, and what comes out lives as long.
        unsafe {
            let args = call!(self.plugin(), PJRT_Client_PlatformName { client: self.handle.raw })?;
            Ok(value::text(args.platform_name, args.platform_name_size))
        }
    }

    /// The platform's version, in the plugin's words.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn platform_version(&self) -> Result<String> {
        // SAFETY: the client is alive, and what comes out lives as long.
        unsafe {
            let args = call!(self.plugin(), PJRT_Client_PlatformVersion { client: self.handle.raw })?;
            Ok(value::text(args.platform_version, args.platform_version_size))
        }
    }

    /// Compiles StableHLO text and loads the result on its devices.
    ///
    /// # Errors
    /// If the text or the options are wrong, or the program does not fit.
    pub fn compile(&self, text: &str, options: &CompileOptions) -> Result<Loaded> {
        let (mut program, bytes) = (ProgramText::new(text), options.to_bytes()?);
        let program = program.raw();
        // SAFETY: program and options live during the call, and the client is alive. What comes out is ours.
        unsafe {
            let args = call!(
                self.plugin(),
                PJRT_Client_Compile {
                    client: self.handle.raw,
                    program: &program,
                    compile_options: bytes.as_ptr().cast(),
                    compile_options_size: bytes.len(),
                }
            )?;
            let loaded = Loaded::from_raw(&self.handle, args.executable);
            release_freed_memory();
            loaded
        }
    }

    /// Loads what [`Executable::serialize`](super::Executable::serialize) wrote.
    ///
    /// The bytes must come from the same plugin version and the same kind of device: a plugin may run machine
    /// code from them. [`ExecutableCache`](super::ExecutableCache) keeps these apart.
    ///
    /// # Errors
    /// If the plugin does not accept them.
    pub fn deserialize(&self, bytes: &[u8]) -> Result<Loaded> {
        // SAFETY: the bytes live during the call, and the client is alive. What comes out is ours.
        unsafe {
            let args = call!(
                self.plugin(),
                PJRT_Executable_DeserializeAndLoad {
                    client: self.handle.raw,
                    serialized_executable: bytes.as_ptr().cast(),
                    serialized_executable_size: bytes.len(),
                }
            )?;
            Loaded::from_raw(&self.handle, args.loaded_executable)
        }
    }

    /// Copies a tensor to a device. The data may be changed or dropped as soon as this returns.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn to_device(&self, host: &Host, device: &Device) -> Result<Buffer> {
        Buffer::copy_from(&self.handle, host, device)
    }

    /// Gives a tensor to a device, which reads it in place where it can (the CPU plugin does) and copies it
    /// else. The memory lives until the last reader on the device is done with it.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn lend_to_device(&self, host: Arc<Host>, device: &Device) -> Result<Buffer> {
        Buffer::borrow_from(&self.handle, host, device)
    }

    /// How many buffers and executables of this client are alive.
    pub fn live(&self) -> Live {
        self.handle.counts.read()
    }
}

/// Gives memory that the compiler has freed back to the system: LLVM leaves 200 MiB and more in the C library's free
/// lists, which would count as ours for the rest of the process.
fn release_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc's function takes no pointer and may be called from any thread at any time.
        unsafe { malloc_trim(0) };
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({:?}, {:?})", self.plugin(), self.devices)
    }
}
