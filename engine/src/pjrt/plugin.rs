//! [`Plugin`]: a PJRT plugin in this process, and the one way to call into it.

use super::error::{Code, Error, Result};
use super::value::{self, Value};
use fetch::devices;
use pjrt_sys as sys;
use std::any::TypeId;
use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::{env, fmt, fs};

/// A plugin: its library stays loaded until the process ends, because its threads may.
#[derive(Clone)]
pub struct Plugin(Arc<Inner>);

struct Inner {
    api: *const sys::PJRT_Api,
    /// The part of `api` that the plugin filled.
    size: usize,
    path: PathBuf,
    /// The library as it was opened, whatever has come to lie under its path since.
    file: Mutex<fs::File>,
    build: OnceLock<blake3::Hash>,
    version: (i32, i32),
    /// The functions of this process that its programs may call, by name.
    host_functions: Mutex<BTreeMap<&'static str, TypeId>>,
}

// SAFETY: the function table is never written after it was made, and the PJRT C API may be called from any
// thread.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// Calls one function of the C API: `call!(plugin, PJRT_Event_Await { event: pointer })` gives back its
/// argument struct, or the error. It checks that the plugin has the function and fills in `struct_size`.
macro_rules! call {
    ($plugin:expr, $function:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        let plugin: &$crate::pjrt::Plugin = $plugin;
        plugin.require(stringify!($function), std::mem::offset_of!(pjrt_sys::PJRT_Api, $function)).and_then(|api| {
            let entry = (&raw const (*api).$function).read();
            let entry = entry.ok_or_else(|| plugin.missing(stringify!($function)))?;
            let mut args = $crate::pjrt::plugin::args_of(&entry);
            args.struct_size = std::mem::size_of_val(&args);
            $(args.$field = $value;)*
            let error = entry(&mut args);
            plugin.check(stringify!($function), error).map(|()| args)
        })
    }};
}
pub(super) use call;

/// Zeroed arguments of a function.
pub(super) fn args_of<A: Default, R>(_: &unsafe extern "C" fn(*mut A) -> R) -> A {
    A::default()
}

/// The plugins of this process: a library is initialised once, whoever asks for it.
static LOADED: Mutex<BTreeMap<PathBuf, Plugin>> = Mutex::new(BTreeMap::new());

impl Plugin {
    /// Opens a plugin, or gives the one that is already open.
    ///
    /// # Errors
    /// If the file cannot be opened, is for another machine, is not a plugin, or speaks another API version.
    pub fn load(path: &Path) -> Result<Plugin> {
        let failed = |reason: String| Error::Open { path: path.to_path_buf(), reason };
        let path = &fs::canonicalize(path).map_err(|error| {
            failed(format!("{error}; give the path of a PJRT plugin, or cpu, cuda or tpu"))
        })?;
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plugin) = loaded.get(path) {
            return Ok(plugin.clone());
        }
        let file = Mutex::new(opened(path)?);
        if loaded.is_empty() {
            prepare_environment();
        }
        open_cuda_libraries(path)?;
        // SAFETY: the initialisers of a library run; the user chose it, and it carries the marks of one for
        // this machine.
        let library = unsafe { libloading::Library::new(path) }.map_err(|error| failed(error.to_string()))?;
        let not_a_plugin = || Error::NotAPlugin { path: path.to_path_buf() };
        // SAFETY: the symbol has this type in every PJRT plugin.
        let api = unsafe {
            let entry = library.get::<unsafe extern "C" fn() -> *const sys::PJRT_Api>(b"GetPjrtApi\0");
            entry.map_err(|_| not_a_plugin())?()
        };
        if api.is_null() {
            return Err(not_a_plugin());
        }
        std::mem::forget(library);
        // SAFETY: size and version are the first fields of every version of the struct.
        let (size, version) = unsafe {
            let version = (&raw const (*api).pjrt_api_version).read();
            ((*api).struct_size, (version.major_version, version.minor_version))
        };
        let wanted = (sys::PJRT_API_MAJOR as i32, sys::PJRT_API_MINOR as i32);
        if version.0 != wanted.0 {
            return Err(Error::Version { path: path.to_path_buf(), found: version, wanted });
        }
        let (path_buf, build, host_functions) = (path.to_path_buf(), OnceLock::new(), Mutex::default());
        let inner = Inner { api, size, path: path_buf, file, build, version, host_functions };
        let plugin = Plugin(Arc::new(inner));
        // SAFETY: the first call after loading, made once.
        unsafe { call!(&plugin, PJRT_Plugin_Initialize {}) }?;
        loaded.insert(path.to_path_buf(), plugin.clone());
        Ok(plugin)
    }

    /// The library's path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The plugin's version of the PJRT API: major, minor.
    pub fn version(&self) -> (i32, i32) {
        self.0.version
    }

    /// The hash of the library's bytes, which tells its build from every other: versions of the API and of the platform
    /// stay the same over many. Computed when it is first asked for.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn build(&self) -> Result<blake3::Hash> {
        if let Some(build) = self.0.build.get() {
            return Ok(*build);
        }
        let mut file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hasher = blake3::Hasher::new();
        let hashed =
            file.rewind().and_then(|()| hasher.update_reader(&mut *file).map(|hasher| hasher.finalize()));
        let build =
            hashed.map_err(|error| Error::Open { path: self.0.path.clone(), reason: error.to_string() })?;
        Ok(*self.0.build.get_or_init(|| build))
    }

    /// What the plugin says of itself, for instance `stablehlo_current_version`.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn attributes(&self) -> Result<BTreeMap<String, Value>> {
        // SAFETY: no pointers go in; what comes out lives as long as the plugin.
        unsafe {
            let args = call!(self, PJRT_Plugin_Attributes {})?;
            Ok(value::from_raw(args.attributes, args.num_attributes))
        }
    }

    /// The function table, if it reaches to a function at `offset`.
    pub(super) fn require(&self, function: &'static str, offset: usize) -> Result<*const sys::PJRT_Api> {
        if offset + size_of::<usize>() <= self.0.size { Ok(self.0.api) } else { Err(self.missing(function)) }
    }

    /// The extension of a kind, if the plugin has it.
    pub(super) fn extension(
        &self,
        kind: sys::PJRT_Extension_Type,
    ) -> Option<*const sys::PJRT_Extension_Base> {
        // SAFETY: the chain is made once and lives as long as the plugin; each link begins with this struct.
        unsafe {
            let mut link = (*self.0.api).extension_start.cast_const();
            while !link.is_null() && (*link).type_ != kind {
                link = (*link).next;
            }
            (!link.is_null()).then_some(link)
        }
    }

    pub(super) fn host_functions(&self) -> &Mutex<BTreeMap<&'static str, TypeId>> {
        &self.0.host_functions
    }

    pub(super) fn missing(&self, function: &'static str) -> Error {
        Error::Missing { path: self.0.path.clone(), version: self.0.version, function }
    }

    pub(super) fn unsupported(&self, what: String) -> Error {
        Error::Unsupported { path: self.0.path.clone(), what }
    }

    /// Turns an error object of the plugin into ours and destroys it.
    ///
    /// # Safety
    /// `error` is null or an error of this plugin that nobody else destroys.
    pub(super) unsafe fn check(&self, function: &'static str, error: *mut sys::PJRT_Error) -> Result<()> {
        if error.is_null() {
            return Ok(());
        }
        let api = self.0.api;
        let (mut code, mut message) = (Code::Unknown, String::from("(the plugin gives no message)"));
        // SAFETY: these are the first three functions of the table, there in every version; `error` is alive
        // until the last of them. They are not called through `call!`, which ends up here.
        unsafe {
            if let Some(entry) = (&raw const (*api).PJRT_Error_Message).read() {
                let mut args = args_of(&entry);
                args.struct_size = size_of_val(&args);
                args.error = error;
                entry(&mut args);
                message = value::text(args.message, args.message_size);
            }
            if let Some(entry) = (&raw const (*api).PJRT_Error_GetCode).read() {
                let mut args = args_of(&entry);
                args.struct_size = size_of_val(&args);
                args.error = error;
                entry(&mut args);
                code = Code::from_raw(args.code);
            }
            if let Some(entry) = (&raw const (*api).PJRT_Error_Destroy).read() {
                let mut args = args_of(&entry);
                args.struct_size = size_of_val(&args);
                args.error = error;
                entry(&mut args);
            }
        }
        Err(Error::Call { path: self.0.path.clone(), version: self.0.version, function, code, message })
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plugin({}, PJRT API {}.{})", self.0.path.display(), self.0.version.0, self.0.version.1)
    }
}

/// The libraries of CUDA that lie beside a plugin as pip lays them out, each after those that it needs. Some of them look for
/// one another where a system's package would put them, and all find those that are open already.
const CUDA_LIBRARIES: [&str; 12] = [
    "cu13/lib/libcudart.so.13",
    "cu13/lib/libnvrtc.so.13",
    "cu13/lib/libnvJitLink.so.13",
    "cu13/lib/libcublasLt.so.13",
    "cu13/lib/libcublas.so.13",
    "cu13/lib/libcupti.so.13",
    "cu13/lib/libcusparse.so.12",
    "cu13/lib/libcusolver.so.12",
    "cu13/lib/libcufft.so.12",
    "nccl/lib/libnccl.so.2",
    "nvshmem/lib/libnvshmem_host.so.3",
    "cudnn/lib/libcudnn.so.9",
];

/// Opens, for all that is loaded later, the libraries that are there; a compiler alone needs none of them.
fn open_cuda_libraries(plugin: &Path) -> Result<()> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    let Some(packages) = plugin.ancestors().nth(3) else { return Ok(()) };
    let libraries = CUDA_LIBRARIES.iter().map(|library| packages.join("nvidia").join(library));
    for path in libraries.filter(|path| path.is_file()) {
        // SAFETY: the initialisers of the library run, as those of the plugin will that asks for it.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
        std::mem::forget(library.map_err(|error| Error::Open { path, reason: error.to_string() })?);
    }
    Ok(())
}

/// Opens a library and reads its ELF header: the dynamic loader's own message about a foreign one is hard to understand.
fn opened(path: &Path) -> Result<fs::File> {
    let failed = |reason: String| Error::Open { path: path.to_path_buf(), reason };
    let mut head = Vec::new();
    let file = fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    (&file).take(20).read_to_end(&mut head).map_err(|error| failed(error.to_string()))?;
    if cfg!(not(target_os = "linux")) {
        return Ok(file);
    }
    if head.len() < 20 || head[..4] != *b"\x7fELF" {
        return Err(failed(
            "it is not a shared library (no ELF header); give the path of a PJRT plugin".to_string(),
        ));
    }
    // The field `e_machine`, at byte 18 in the file's byte order; every machine here is little-endian.
    let found = match u16::from_le_bytes([head[18], head[19]]) {
        62 => "x86_64".to_string(),
        183 => "aarch64".to_string(),
        243 => "riscv64".to_string(),
        other => format!("ELF machine {other}"),
    };
    let wanted = env::consts::ARCH;
    if found == wanted {
        Ok(file)
    } else {
        Err(Error::Architecture { path: path.to_path_buf(), found, wanted })
    }
}

/// Settings that the plugins read from the environment; whatever the user has set stays.
///
/// On a machine without a TPU, libtpu asks a metadata server that is not there for over a minute, takes a
/// lock that keeps other compilations away, and complains about names that only a TPU machine has. The log
/// lines of XLA (with stack traces) repeat the errors that it returns.
fn prepare_environment() {
    let mut settings = vec![("TF_CPP_MIN_LOG_LEVEL", "3")];
    if devices::tpus(Path::new("/")).is_empty() {
        settings.extend([
            ("TPU_SKIP_MDS_QUERY", "1"),
            ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
            ("TPU_ACCELERATOR_TYPE", "v6e-1"),
            ("TPU_WORKER_HOSTNAMES", "localhost"),
            ("TPU_WORKER_ID", "0"),
        ]);
    }
    for (name, value) in settings {
        if env::var_os(name).is_none() {
            // SAFETY: Rust's own readers of the environment are locked against this. C code that reads it at
            // this very moment is not; no plugin is in the process yet, and plugins are what brings C threads
            // here.
            unsafe { env::set_var(name, value) };
        }
    }
}
