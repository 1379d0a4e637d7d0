//! [`Buffer`]: a tensor in a device's memory, and its ways there and back.

use super::device::Device;
use super::error::{Error, Result};
use super::event::Event;
use super::handle::ClientHandle;
use super::plugin::{Plugin, call};
use super::value;
use crate::host::Host;
use crate::types::{DType, Type};
use pjrt_sys as sys;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A tensor on one device. It may still be being computed: reading it waits.
pub struct Buffer {
    handle: BufferHandle,
    ty: Type,
}

struct BufferHandle {
    client: Arc<ClientHandle>,
    raw: *mut sys::PJRT_Buffer,
}

// SAFETY: the C API lets any thread use a buffer.
unsafe impl Send for BufferHandle {}
// SAFETY: as above.
unsafe impl Sync for BufferHandle {}

/// A copy to the host under way; dropping it waits for its end.
pub struct Transfer {
    event: Event,
    // Read by nobody until the event is done. `Host` keeps its bytes on the heap, so moving it moves no
    // bytes.
    host: Option<Host>,
}

impl Buffer {
    /// # Safety
    /// `raw` is a buffer of `client` that nobody else destroys.
    pub(super) unsafe fn from_raw(client: &Arc<ClientHandle>, raw: *mut sys::PJRT_Buffer) -> Result<Buffer> {
        // SAFETY: by the contract.
        Buffer::typed(unsafe { BufferHandle::own(client, raw) })
    }

    /// Copies before it returns.
    pub(super) fn copy_from(client: &Arc<ClientHandle>, host: &Host, device: &Device) -> Result<Buffer> {
        let (handle, _) =
            upload(client, host, device, sys::PJRT_HostBufferSemantics_kImmutableOnlyDuringCall)?;
        Buffer::typed(handle)
    }

    /// Reads in place where the plugin can.
    pub(super) fn borrow_from(
        client: &Arc<ClientHandle>,
        host: Arc<Host>,
        device: &Device,
    ) -> Result<Buffer> {
        let (handle, done) = upload(client, &host, device, sys::PJRT_HostBufferSemantics_kImmutableZeroCopy)?;
        // Not tied to the life of `Buffer`: a program that is still running may read the memory after the
        // handle is gone.
        let counts = client.counts.clone();
        counts.borrowed_hosts.fetch_add(1, Ordering::SeqCst);
        done.on_ready(move || {
            drop(host);
            counts.borrowed_hosts.fetch_sub(1, Ordering::SeqCst);
        })?;
        Buffer::typed(handle)
    }

    fn typed(handle: BufferHandle) -> Result<Buffer> {
        let plugin = &handle.client.plugin;
        // SAFETY: the buffer is alive, and its dimensions live as long.
        let ty = unsafe {
            let element = call!(plugin, PJRT_Buffer_ElementType { buffer: handle.raw })?;
            let dimensions = call!(plugin, PJRT_Buffer_Dimensions { buffer: handle.raw })?;
            type_of(plugin, element.type_, value::slice(dimensions.dims, dimensions.num_dims))?
        };
        Ok(Buffer { handle, ty })
    }

    /// Element type and shape of the part that lies on this device.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Done when the buffer's value is computed.
    ///
    /// # Errors
    /// If the plugin refuses; a failed computation shows when the event is awaited.
    pub fn ready(&self) -> Result<Event> {
        let plugin = &self.handle.client.plugin;
        // SAFETY: the buffer is alive, and the event that comes out is ours.
        unsafe {
            let args = call!(plugin, PJRT_Buffer_ReadyEvent { buffer: self.handle.raw })?;
            Ok(Event::from_raw(&self.handle.client, args.event))
        }
    }

    /// Where it lies in the device's memory, to see in tests and traces whether memory was reused. Waits for
    /// the value.
    ///
    /// # Errors
    /// If the plugin does not tell.
    pub fn address(&self) -> Result<usize> {
        let plugin = &self.handle.client.plugin;
        // SAFETY: the buffer is alive, and nothing is read through the address.
        let args = unsafe { call!(plugin, PJRT_Buffer_UnsafePointer { buffer: self.handle.raw }) }?;
        Ok(args.buffer_pointer)
    }

    /// The device that holds the buffer.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn device(&self) -> Result<Device> {
        let client = &self.handle.client;
        // SAFETY: the buffer is alive, and its device is one of the client's.
        unsafe {
            let args = call!(&client.plugin, PJRT_Buffer_Device { buffer: self.handle.raw })?;
            Device::from_raw(client, args.device)
        }
    }

    /// Copies the value to the host, waiting for it.
    ///
    /// # Errors
    /// If the computation of the value failed.
    pub fn to_host(&self) -> Result<Host> {
        self.to_host_async()?.wait()
    }

    /// Starts a copy to the host: straight into the result, dense and row-major.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn to_host_async(&self) -> Result<Transfer> {
        let plugin = &self.handle.client.plugin;
        let mut host = Host::zeros(self.ty.clone());
        let minor_to_major: Vec<i64> = (0..self.ty.rank() as i64).rev().collect();
        // Without a layout the plugin would write in the device's own, which on a TPU is not row-major.
        let mut layout = sys::PJRT_Buffer_MemoryLayout {
            struct_size: size_of::<sys::PJRT_Buffer_MemoryLayout>(),
            type_: sys::PJRT_Buffer_MemoryLayout_Type_Tiled,
            ..Default::default()
        };
        layout.__bindgen_anon_1.tiled = sys::PJRT_Buffer_MemoryLayout_Tiled {
            struct_size: size_of::<sys::PJRT_Buffer_MemoryLayout_Tiled>(),
            minor_to_major: minor_to_major.as_ptr(),
            minor_to_major_size: minor_to_major.len(),
            ..Default::default()
        };
        // SAFETY: the layout lives during the call, and the host bytes until the event is done: `Transfer`
        // waits for it.
        unsafe {
            let bytes = host.bytes_mut();
            let args = call!(
                plugin,
                PJRT_Buffer_ToHostBuffer {
                    src: self.handle.raw,
                    host_layout: &mut layout,
                    dst: bytes.as_mut_ptr().cast(),
                    dst_size: bytes.len(),
                }
            )?;
            Ok(Transfer { event: Event::from_raw(&self.handle.client, args.event), host: Some(host) })
        }
    }

    pub(super) fn raw(&self) -> *mut sys::PJRT_Buffer {
        self.handle.raw
    }

    pub(super) fn belongs_to(&self, client: &Arc<ClientHandle>) -> bool {
        Arc::ptr_eq(&self.handle.client, client)
    }
}

impl BufferHandle {
    /// # Safety
    /// `raw` is a buffer of `client` that nobody else destroys.
    unsafe fn own(client: &Arc<ClientHandle>, raw: *mut sys::PJRT_Buffer) -> BufferHandle {
        client.counts.buffers.fetch_add(1, Ordering::SeqCst);
        BufferHandle { client: client.clone(), raw }
    }
}

impl Drop for BufferHandle {
    fn drop(&mut self) {
        // SAFETY: the buffer is alive, and this is its last use. A failure could not be acted upon.
        let _ = unsafe { call!(&self.client.plugin, PJRT_Buffer_Destroy { buffer: self.raw }) };
        self.client.counts.buffers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({})", self.ty)
    }
}

impl Transfer {
    /// Waits for the copy.
    ///
    /// # Errors
    /// If the computation of the value failed.
    pub fn wait(mut self) -> Result<Host> {
        self.event.wait()?;
        Ok(self.host.take().expect("only `wait` takes the host, and it takes the transfer too"))
    }

    /// Whether [`wait`](Transfer::wait) would return at once.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn is_ready(&self) -> Result<bool> {
        self.event.is_ready()
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.host.is_some() {
            // The device may be writing; whether it succeeds does not matter any more.
            let _ = self.event.wait();
        }
    }
}

fn upload(
    client: &Arc<ClientHandle>,
    host: &Host,
    device: &Device,
    semantics: sys::PJRT_HostBufferSemantics,
) -> Result<(BufferHandle, Event)> {
    let plugin = &client.plugin;
    if !Arc::ptr_eq(&device.client, client) {
        return Err(Error::Arguments(format!(
            "copying {} to {device:?}: the device is of another client",
            host.ty()
        )));
    }
    let dims: Vec<i64> = host.ty().shape.iter().map(|&extent| extent as i64).collect();
    // SAFETY: the dimensions live during the call; the data lives as long as `semantics` asks, see the
    // callers. The device is one of the client's. What comes out is ours.
    unsafe {
        let args = call!(
            plugin,
            PJRT_Client_BufferFromHostBuffer {
                client: client.raw,
                data: host.bytes().as_ptr().cast(),
                type_: raw_type(host.ty().dtype),
                dims: dims.as_ptr(),
                num_dims: dims.len(),
                host_buffer_semantics: semantics,
                device: device.raw,
            }
        )?;
        Ok((BufferHandle::own(client, args.buffer), Event::from_raw(client, args.done_with_host_buffer)))
    }
}

fn raw_type(dtype: DType) -> sys::PJRT_Buffer_Type {
    match dtype {
        DType::F64 => sys::PJRT_Buffer_Type_F64,
        DType::F32 => sys::PJRT_Buffer_Type_F32,
        DType::Bf16 => sys::PJRT_Buffer_Type_BF16,
        DType::F16 => sys::PJRT_Buffer_Type_F16,
        DType::I32 => sys::PJRT_Buffer_Type_S32,
        DType::U32 => sys::PJRT_Buffer_Type_U32,
        DType::I64 => sys::PJRT_Buffer_Type_S64,
        DType::U8 => sys::PJRT_Buffer_Type_U8,
        DType::Bool => sys::PJRT_Buffer_Type_PRED,
    }
}

/// Our type for the plugin's.
pub(super) fn type_of(plugin: &Plugin, raw: sys::PJRT_Buffer_Type, shape: &[i64]) -> Result<Type> {
    let dtype = DType::ALL.into_iter().find(|&dtype| raw_type(dtype) == raw);
    let shape: Option<Vec<usize>> = shape.iter().map(|&extent| usize::try_from(extent).ok()).collect();
    match (dtype, shape) {
        (Some(dtype), Some(shape)) => Ok(Type::new(dtype, shape)),
        _ => Err(plugin.unsupported(format!(
            "reading a buffer's type: found PJRT_Buffer_Type {raw}, wanted one of {}; convert it inside the program",
            DType::ALL.map(|dtype| dtype.name()).join(", ")
        ))),
    }
}
