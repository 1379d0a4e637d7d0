//! [`Device`]s of a client, and descriptions of devices that need not be there.

use super::error::{Code, Result};
use super::handle::ClientHandle;
use super::plugin::{Plugin, call};
use super::value::{self, Value};
use pjrt_sys as sys;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceDescription {
    /// Its number, unique among the devices of all processes.
    pub id: i64,
    /// The vendor's name, for instance `cpu` or `TPU v6 lite`.
    pub kind: String,
    /// The process that drives it.
    pub process: i64,
    /// The plugin's words for it.
    pub text: String,
    /// What else the plugin tells, for instance coordinates.
    pub attributes: BTreeMap<String, Value>,
}

impl DeviceDescription {
    /// # Safety
    /// `raw` is a description that lives during the call.
    pub(super) unsafe fn read(
        plugin: &Plugin,
        raw: *mut sys::PJRT_DeviceDescription,
    ) -> Result<DeviceDescription> {
        // SAFETY: by the contract; what comes out lives as long as the description.
        unsafe {
            let id = call!(plugin, PJRT_DeviceDescription_Id { device_description: raw })?.id;
            let process =
                call!(plugin, PJRT_DeviceDescription_ProcessIndex { device_description: raw })?.process_index;
            let kind = call!(plugin, PJRT_DeviceDescription_Kind { device_description: raw })?;
            let text = call!(plugin, PJRT_DeviceDescription_ToString { device_description: raw })?;
            let attributes = call!(plugin, PJRT_DeviceDescription_Attributes { device_description: raw })?;
            Ok(DeviceDescription {
                id: id.into(),
                kind: value::text(kind.device_kind, kind.device_kind_size),
                process: process.into(),
                text: value::text(text.to_string, text.to_string_size),
                attributes: value::from_raw(attributes.attributes, attributes.num_attributes),
            })
        }
    }
}

/// A device that this process can use.
#[derive(Clone)]
pub struct Device {
    pub(super) client: Arc<ClientHandle>,
    pub(super) raw: *mut sys::PJRT_Device,
    pub(super) description: Arc<DeviceDescription>,
}

// SAFETY: devices belong to their client, which is kept alive here, and may be used from any thread.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// The memory of a device, in bytes; what the plugin does not say is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// In use now.
    pub in_use: i64,
    /// The most that was ever in use.
    pub peak_in_use: Option<i64>,
    /// What may be used.
    pub limit: Option<i64>,
    /// The largest single allocation.
    pub largest_allocation: Option<i64>,
    /// The largest block that is free.
    pub largest_free_block: Option<i64>,
    /// Number of allocations.
    pub allocations: Option<i64>,
}

impl Device {
    /// # Safety
    /// `raw` is a device of `client`.
    pub(super) unsafe fn from_raw(client: &Arc<ClientHandle>, raw: *mut sys::PJRT_Device) -> Result<Device> {
        // SAFETY: by the contract, and the description lives as long as the client.
        let description = unsafe {
            let args = call!(&client.plugin, PJRT_Device_GetDescription { device: raw })?;
            DeviceDescription::read(&client.plugin, args.device_description)?
        };
        Ok(Device { client: client.clone(), raw, description: Arc::new(description) })
    }

    /// What the device is.
    pub fn description(&self) -> &DeviceDescription {
        &self.description
    }

    /// The device's number.
    pub fn id(&self) -> i64 {
        self.description.id
    }

    /// The vendor's name for this kind of device.
    pub fn kind(&self) -> &str {
        &self.description.kind
    }

    /// The state of its memory; `None` if the plugin does not keep count (the CPU plugin does not).
    ///
    /// # Errors
    /// If the plugin fails in another way.
    pub fn memory_stats(&self) -> Result<Option<MemoryStats>> {
        // SAFETY: the device lives as long as its client.
        let args = match unsafe { call!(&self.client.plugin, PJRT_Device_MemoryStats { device: self.raw }) } {
            Ok(args) => args,
            Err(error) if error.code() == Some(Code::Unimplemented) => return Ok(None),
            Err(error) => return Err(error),
        };
        let told = |is_set: bool, number: i64| is_set.then_some(number);
        Ok(Some(MemoryStats {
            in_use: args.bytes_in_use,
            peak_in_use: told(args.peak_bytes_in_use_is_set, args.peak_bytes_in_use),
            limit: told(args.bytes_limit_is_set, args.bytes_limit),
            largest_allocation: told(args.largest_alloc_size_is_set, args.largest_alloc_size),
            largest_free_block: told(args.largest_free_block_bytes_is_set, args.largest_free_block_bytes),
            allocations: told(args.num_allocs_is_set, args.num_allocs),
        }))
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        self.raw == other.raw
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {})", self.id(), self.kind())
    }
}
