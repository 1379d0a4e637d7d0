//! Functions of this process that compiled programs call: XLA's foreign function interface, as the CPU plugin has it.
//!
//! A plugin that has the interface carries PJRT's extension number 5, whose one function that is needed registers a
//! handler under a name. XLA then calls the handler with a frame of operands and results. The declarations below are
//! those parts of `xla/ffi/api/c_api.h` (version 0.2) and of the extension that are used; neither is in the wheel that the
//! other declarations come from, and the arguments of the registration were found by experiment with the pinned plugin
//! (API 0.81). The sizes of the extension, the call frame and the function table are checked; those of the buffers in a
//! frame are not.

mod threads;

use super::error::Result;
use super::plugin::Plugin;
use crate::host::{View, ViewMut};
use crate::host_function::{CallFrame, HostFunction, Workers};
use crate::types::DType;
use pjrt_sys as sys;
use std::any::{Any, TypeId};
use std::ffi::{CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::slice;
use std::sync::PoisonError;
use threads::XlaThreads;

/// What XLA calls.
pub(crate) type Handler = unsafe extern "C" fn(*mut RawCallFrame) -> *mut c_void;

/// The handler of a function.
pub(crate) fn handler<F: HostFunction>() -> Handler {
    entry::<F>
}

/// Version of the interface that the declarations below are of.
const VERSION: (c_int, c_int) = (0, 2);

#[repr(C)]
struct Extension {
    size: usize,
    kind: c_int,
    next: *mut Extension,
}

#[repr(C)]
struct Version {
    size: usize,
    extension: *mut Extension,
    major: c_int,
    minor: c_int,
}

#[repr(C)]
struct Metadata {
    size: usize,
    version: Version,
    traits: u32,
}

#[repr(C)]
struct MetadataExtension {
    base: Extension,
    metadata: *mut Metadata,
}

/// Operands or results.
#[repr(C)]
struct Values {
    size: usize,
    extension: *mut Extension,
    count: i64,
    kinds: *const c_int,
    values: *const *const c_void,
}

#[repr(C)]
struct Attributes {
    size: usize,
    extension: *mut Extension,
    count: i64,
    kinds: *const c_int,
    names: *const *const c_void,
    values: *const *const c_void,
}

#[repr(C)]
pub(crate) struct RawCallFrame {
    size: usize,
    extension: *mut Extension,
    api: *const Api,
    context: *mut c_void,
    stage: c_int,
    operands: Values,
    results: Values,
    attributes: Attributes,
}

#[repr(C)]
struct RawBuffer {
    size: usize,
    extension: *mut Extension,
    dtype: c_int,
    data: *mut u8,
    rank: i64,
    shape: *const i64,
}

#[repr(C)]
struct RawArray {
    dtype: c_int,
    length: usize,
    data: *const i64,
}

#[repr(C)]
struct ErrorArgs {
    size: usize,
    extension: *mut Extension,
    message: *const c_char,
    code: c_int,
}

#[repr(C)]
struct ScheduleArgs {
    size: usize,
    extension: *mut Extension,
    context: *mut c_void,
    task: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
}

#[repr(C)]
struct ThreadsArgs {
    size: usize,
    extension: *mut Extension,
    context: *mut c_void,
    threads: *mut i64,
}

type Unused = Option<unsafe extern "C" fn(*mut c_void) -> *mut c_void>;

#[repr(C)]
struct Api {
    size: usize,
    extension: *mut Extension,
    version: Version,
    internal: *const c_void,
    error_create: unsafe extern "C" fn(*mut ErrorArgs) -> *mut c_void,
    error_message: Unused,
    error_destroy: unsafe extern "C" fn(*mut ErrorDestroyArgs),
    not_used: [Unused; 8],
    schedule: unsafe extern "C" fn(*mut ScheduleArgs) -> *mut c_void,
    threads: unsafe extern "C" fn(*mut ThreadsArgs) -> *mut c_void,
}

#[repr(C)]
struct ErrorDestroyArgs {
    size: usize,
    extension: *mut Extension,
    error: *mut c_void,
}

#[repr(C)]
struct RegisterArgs {
    size: usize,
    name: *const c_char,
    name_size: usize,
    handler: Handler,
    platform: *const c_char,
    platform_size: usize,
    traits: c_int,
}

#[repr(C)]
struct FfiExtension {
    base: sys::PJRT_Extension_Base,
    register_type: Unused,
    add_user_data: Unused,
    register_handler: Option<unsafe extern "C" fn(*mut RegisterArgs) -> *mut sys::PJRT_Error>,
}

/// `XLA_FFI_Extension_Metadata`, `XLA_FFI_ExecutionStage_EXECUTE`, `XLA_FFI_AttrType_ARRAY`,
/// `XLA_FFI_Error_Code_INTERNAL`.
const METADATA: c_int = 1;
const EXECUTE: c_int = 3;
const ARRAY: c_int = 1;
const INTERNAL: c_int = 13;

/// The platform's name in XLA's registry of handlers.
const PLATFORM: &str = "Host";

impl Plugin {
    /// Makes a function known to the programs of this plugin, under its name.
    ///
    /// # Errors
    /// If the plugin has no foreign function interface, or another version of it.
    pub(crate) fn register(&self, name: &'static str, function: TypeId, handler: Handler) -> Result<()> {
        let mut known = self.host_functions().lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&known) = known.get(name) {
            assert!(known == function, "two host functions are called `{name}`");
            return Ok(());
        }
        let missing = || {
            self.unsupported(format!(
                "the program calls the host function `{name}`, and the plugin has no foreign function interface; run \
                 with kernels=portable, or use the pinned plugin (--platform cpu)"
            ))
        };
        let extension = self.extension(sys::PJRT_Extension_Type_FFI).ok_or_else(missing)?;
        // SAFETY: an extension lives as long as the plugin, and says how much of it there is; the strings live during
        // the call, and the handler for ever.
        unsafe {
            if (*extension).struct_size < size_of::<FfiExtension>() {
                return Err(missing());
            }
            let register = (*extension.cast::<FfiExtension>()).register_handler.ok_or_else(missing)?;
            let mut args = RegisterArgs {
                size: size_of::<RegisterArgs>(),
                name: name.as_ptr().cast(),
                name_size: name.len(),
                handler,
                platform: PLATFORM.as_ptr().cast(),
                platform_size: PLATFORM.len(),
                traits: 0,
            };
            self.check("PJRT_FFI_Register_Handler", register(&mut args))?;
        }
        known.insert(name, function);
        Ok(())
    }
}

/// # Safety
/// XLA calls this with a frame that is valid during the call, of a function that was registered as `F`.
unsafe extern "C" fn entry<F: HostFunction>(frame: *mut RawCallFrame) -> *mut c_void {
    // SAFETY: by the contract; what is read was checked to be there. A panic must not leave this function: there is C++
    // outside.
    unsafe {
        let failed = |message: String| error((*frame).api, &format!("host function {}: {message}", F::NAME));
        if (*frame).size < size_of::<RawCallFrame>() {
            return failed(format!(
                "a call frame of {} bytes, {} are known",
                (*frame).size,
                size_of::<RawCallFrame>()
            ));
        }
        if let Some(metadata) = metadata((*frame).extension) {
            // XLA asks what we were made for, when a handler is registered.
            (*metadata).version.major = VERSION.0;
            (*metadata).version.minor = VERSION.1;
            return null_mut();
        }
        let api = &*(*frame).api;
        if api.version.major != VERSION.0 || api.size < size_of::<Api>() {
            let found = (api.version.major, api.version.minor);
            return failed(format!("the plugin's interface is {found:?}, {VERSION:?} is known"));
        }
        if (*frame).stage != EXECUTE {
            return null_mut();
        }
        match catch_unwind(AssertUnwindSafe(|| run::<F>(&*frame))) {
            Ok(Ok(())) => null_mut(),
            Ok(Err(message)) => failed(message),
            Err(panic) => failed(said(&*panic)),
        }
    }
}

/// # Safety
/// `extension` is null or a valid chain.
unsafe fn metadata(mut extension: *mut Extension) -> Option<*mut Metadata> {
    // SAFETY: by the contract; the kind says what the extension is.
    unsafe {
        while !extension.is_null() {
            if (*extension).kind == METADATA {
                return Some((*extension.cast::<MetadataExtension>()).metadata);
            }
            extension = (*extension).next;
        }
    }
    None
}

/// # Safety
/// The frame is valid, of a call that executes.
unsafe fn run<F: HostFunction>(frame: &RawCallFrame) -> std::result::Result<(), String> {
    // SAFETY: the frame's lists are as long as it says and live during the call, as do the buffers. No result overlaps an
    // operand or another result: XLA lets them share memory only where a call says so, and ours never do.
    unsafe {
        let lists = [&frame.operands, &frame.results].map(|values| list(values.values, values.count));
        let mut shapes: [Vec<Vec<usize>>; 2] = Default::default();
        for (shapes, values) in shapes.iter_mut().zip(lists) {
            for &value in values {
                let buffer = &*value.cast::<RawBuffer>();
                shapes.push(list(buffer.shape, buffer.rank).iter().map(|&extent| extent as usize).collect());
            }
        }
        let mut operands = Vec::with_capacity(shapes[0].len());
        for (shape, &value) in shapes[0].iter().zip(lists[0]) {
            let (dtype, data, bytes) = memory(&*value.cast::<RawBuffer>(), shape)?;
            operands.push(View { dtype, shape, bytes: list(data.cast_const(), bytes as i64) });
        }
        let mut results = Vec::with_capacity(shapes[1].len());
        for (shape, &value) in shapes[1].iter().zip(lists[1]) {
            let (dtype, data, bytes) = memory(&*value.cast::<RawBuffer>(), shape)?;
            let bytes: &mut [u8] = if bytes == 0 { &mut [] } else { slice::from_raw_parts_mut(data, bytes) };
            results.push(ViewMut { dtype, shape, bytes });
        }
        let kinds = list(frame.attributes.kinds, frame.attributes.count);
        let attributes: &[i64] = match (kinds, list(frame.attributes.values, frame.attributes.count)) {
            (&[ARRAY], &[value]) => {
                let array = &*value.cast::<RawArray>();
                list(array.data, array.length as i64)
            }
            _ => return Err(format!("its attributes are of kinds {kinds:?}, not one array")),
        };
        let threads = XlaThreads::of(frame);
        F::call(CallFrame { attributes, operands, results, workers: Workers::of(&threads) });
        Ok(())
    }
}

/// A C array; a null pointer may stand for an empty one.
///
/// # Safety
/// There are `count` elements, which live as long as the result is used.
unsafe fn list<'a, T>(first: *const T, count: i64) -> &'a [T] {
    // SAFETY: by the contract.
    if count == 0 { &[] } else { unsafe { slice::from_raw_parts(first, count as usize) } }
}

/// Element type, first byte and number of bytes.
fn memory(buffer: &RawBuffer, shape: &[usize]) -> std::result::Result<(DType, *mut u8, usize), String> {
    // `xla::PrimitiveType`
    let dtype = match buffer.dtype {
        1 => DType::Bool,
        4 => DType::I32,
        5 => DType::I64,
        6 => DType::U8,
        8 => DType::U32,
        10 => DType::F16,
        11 => DType::F32,
        12 => DType::F64,
        16 => DType::Bf16,
        other => return Err(format!("the engine has no element type {other} of XLA's")),
    };
    Ok((dtype, buffer.data, shape.iter().product::<usize>() * dtype.size()))
}

/// # Safety
/// `api` is valid.
unsafe fn error(api: *const Api, message: &str) -> *mut c_void {
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    let mut args = ErrorArgs {
        size: size_of::<ErrorArgs>(),
        extension: null_mut(),
        message: message.as_ptr(),
        code: INTERNAL,
    };
    // SAFETY: the first function of the table is there in every version; it copies the message.
    unsafe { ((*api).error_create)(&mut args) }
}

/// The message of a panic.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "panicked".to_owned())
}

/// # Safety
/// `error` came from this interface and is destroyed once.
unsafe fn destroy(api: *const Api, error: *mut c_void) {
    let mut args = ErrorDestroyArgs { size: size_of::<ErrorDestroyArgs>(), extension: null_mut(), error };
    // SAFETY: by the contract.
    unsafe { ((*api).error_destroy)(&mut args) };
}
