//! [`Topology`]: devices that need not be there, to compile for.

use super::device::DeviceDescription;
use super::error::Result;
use super::executable::Executable;
use super::handle::{Counts, Live};
use super::options::CompileOptions;
use super::plugin::{Plugin, call};
use super::text::ProgramText;
use super::value::{self, Value};
use pjrt_sys as sys;
use std::sync::Arc;

/// A named arrangement of devices, for instance `v6e:2x2`.
pub struct Topology {
    plugin: Plugin,
    raw: *mut sys::PJRT_TopologyDescription,
    counts: Arc<Counts>,
}

// SAFETY: a topology is never changed after it was made, and may be used from any thread.
unsafe impl Send for Topology {}
// SAFETY: as above.
unsafe impl Sync for Topology {}

impl Topology {
    /// Looks up a topology. libtpu knows `v6e:1x1`, `v6e:2x2`, `v5e:..`, `v5p:..`; without options, these are
    /// enough.
    ///
    /// # Errors
    /// If the plugin does not know the name or an option, or cannot compile without devices at all.
    pub fn new(plugin: &Plugin, name: &str, options: &[(&str, Value)]) -> Result<Topology> {
        let raw_options = value::to_raw(options);
        // SAFETY: name and options live during the call.
        let args = unsafe {
            call!(
                plugin,
                PJRT_TopologyDescription_Create {
                    topology_name: name.as_ptr().cast(),
                    topology_name_size: name.len(),
                    create_options: raw_options.as_ptr(),
                    num_options: raw_options.len(),
                }
            )
        }?;
        Ok(Topology { plugin: plugin.clone(), raw: args.topology, counts: Arc::default() })
    }

    /// The plugin.
    pub fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    /// The platform's name, for instance `tpu`.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn platform_name(&self) -> Result<String> {
        // SAFETY: the topology is alive, and what comes out lives as long.
        unsafe {
            let args = call!(&self.plugin, PJRT_TopologyDescription_PlatformName { topology: self.raw })?;
            Ok(value::text(args.platform_name, args.platform_name_size))
        }
    }

    /// The devices of the topology.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn devices(&self) -> Result<Vec<DeviceDescription>> {
        // SAFETY: the topology is alive, and its descriptions live as long.
        unsafe {
            let args =
                call!(&self.plugin, PJRT_TopologyDescription_GetDeviceDescriptions { topology: self.raw })?;
            let raw = value::slice(args.descriptions, args.num_descriptions);
            raw.iter().map(|&raw| DeviceDescription::read(&self.plugin, raw)).collect()
        }
    }

    /// Compiles StableHLO text without a device.
    ///
    /// # Errors
    /// If the text or the options are wrong, or the program does not fit.
    pub fn compile(&self, text: &str, options: &CompileOptions) -> Result<Executable> {
        let (mut program, bytes) = (ProgramText::new(text), options.to_bytes()?);
        let program = program.raw();
        // SAFETY: program and options live during the call, and the topology is alive. What comes out is
        // ours.
        unsafe {
            let args = call!(
                &self.plugin,
                PJRT_Compile {
                    topology: self.raw,
                    program: &program,
                    compile_options: bytes.as_ptr().cast(),
                    compile_options_size: bytes.len(),
                }
            )?;
            Ok(Executable::from_raw(&self.plugin, args.executable, &self.counts))
        }
    }

    /// How many executables of this topology are alive.
    pub fn live(&self) -> Live {
        self.counts.read()
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        // SAFETY: the topology is alive, and this is its last use. A failure could not be acted upon.
        let _ = unsafe { call!(&self.plugin, PJRT_TopologyDescription_Destroy { topology: self.raw }) };
    }
}
