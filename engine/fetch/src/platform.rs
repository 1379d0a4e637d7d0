//! Where plugins come from: the one table of pinned packages, and the way from a platform's name to a
//! library.

use crate::wheel::{Wheel, cache_folder};
use crate::{python, wheel};
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::{env, fmt};

/// Which plugin to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platform {
    /// XLA's CPU plugin.
    Cpu,
    /// XLA's plugin for NVIDIA GPUs.
    Cuda,
    /// libtpu; it also compiles for TPUs on a machine without one.
    Tpu,
    /// A plugin by its path.
    Path(PathBuf),
}

/// What is here of a platform's plugin before anything is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The library, as it was unpacked, given or installed.
    Ready(PathBuf),
    /// The library, changed since it was unpacked; the next use unpacks it again.
    Altered(PathBuf),
    /// The package with the right hash; the first use unpacks it.
    Packed(PathBuf),
    /// Nothing; the first use fetches it.
    Absent {
        /// The command that fetches the package on another machine.
        by_hand: String,
        /// The name of its file.
        file: &'static str,
        /// The folder to put it into.
        folder: PathBuf,
    },
}

/// Why there is no plugin.
#[derive(Debug)]
pub enum Error {
    /// The name of a platform is not known, and is not a path.
    UnknownPlatform(String),
    /// No package of the platform is pinned for this machine.
    NotForThisMachine {
        /// The platform.
        platform: Platform,
        /// The machines that there is one for.
        available: &'static str,
    },
    /// The package could not be fetched or unpacked.
    Fetch(wheel::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::UnknownPlatform(name) => {
                write!(
                    f,
                    "choosing the platform: found `{name}`, wanted cpu, cuda, tpu, or the path of a plugin"
                )
            }
            Error::NotForThisMachine { platform, available } => write!(
                f,
                "looking for the {platform} plugin: no package is pinned for {} {}, only for {available}; set PJRT_PLUGIN_PATH to a plugin",
                env::consts::OS,
                env::consts::ARCH
            ),
            Error::Fetch(error) => {
                write!(f, "{error}\nor set PJRT_PLUGIN_PATH to a plugin that is already here")
            }
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Platform::Cpu => f.write_str("cpu"),
            Platform::Cuda => f.write_str("cuda"),
            Platform::Tpu => f.write_str("tpu"),
            Platform::Path(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(name: &str) -> Result<Platform, Error> {
        match name {
            "cpu" => Ok(Platform::Cpu),
            "cuda" => Ok(Platform::Cuda),
            "tpu" => Ok(Platform::Tpu),
            // A bare word is a typing error rather than a file in this folder.
            path if path.contains('/') || path.ends_with(".so") => Ok(Platform::Path(path.into())),
            _ => Err(Error::UnknownPlatform(name.to_string())),
        }
    }
}

/// The pinned wheel of a platform on this machine, and the library inside it.
fn pinned(platform: &Platform) -> Option<(Wheel, &'static str)> {
    if env::consts::OS != "linux" {
        return None;
    }
    let arch = env::consts::ARCH;
    match platform {
        Platform::Cpu => Some((wheel::xla_cpu(arch)?, "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so")),
        Platform::Cuda => {
            let (file, sha256) = match arch {
                "x86_64" => (
                    "xla_cuda13_pjrt-0.0.1-py3-none-manylinux_2_27_x86_64.whl",
                    "7ee65fdefde56f577f146681b586d4b811b299ee63504934062556190adc86d4",
                ),
                "aarch64" => (
                    "xla_cuda13_pjrt-0.0.1-py3-none-manylinux_2_27_aarch64.whl",
                    "d9d9923af02515d8b437c516c814bc79fb11c6e986236f3bd18a5aaf5b43c3bb",
                ),
                _ => return None,
            };
            let wheel = Wheel { package: "xla-cuda13-pjrt", version: "0.0.1", file, sha256 };
            Some((wheel, "xla_plugins/xla_cuda13_pjrt/xla_gpu_pjrt.so"))
        }
        // There is no libtpu for aarch64.
        Platform::Tpu if arch == "x86_64" => {
            let wheel = Wheel {
                package: "libtpu",
                version: "0.0.52",
                file: "libtpu-0.0.52-cp311-cp311-manylinux_2_31_x86_64.whl",
                sha256: "f5e2e596eaea9357fbb5a6755a7a9007c6ab75bfde4a55191b03eff402971140",
            };
            Some((wheel, "libtpu/libtpu.so"))
        }
        Platform::Tpu | Platform::Path(_) => None,
    }
}

impl Platform {
    /// What the user asked for: a path in `flag`, else `PJRT_PLUGIN_PATH`, else the platform named in `flag`,
    /// else `cpu`.
    ///
    /// # Errors
    /// If `flag` is neither a platform nor a path.
    pub fn choose(flag: Option<&str>) -> Result<Platform, Error> {
        let named = flag.map_or(Ok(Platform::Cpu), Platform::from_str)?;
        match (named, env::var_os("PJRT_PLUGIN_PATH").filter(|path| !path.is_empty())) {
            (Platform::Path(path), _) => Ok(Platform::Path(path)),
            (_, Some(path)) => Ok(Platform::Path(path.into())),
            (named, None) => Ok(named),
        }
    }

    /// The path of the plugin's library. It is fetched if the cache does not have it, with a line on standard
    /// error.
    ///
    /// # Errors
    /// If it is not in the cache and cannot be fetched, or none is made for this machine.
    pub fn library(&self) -> Result<PathBuf, Error> {
        if let Platform::Path(path) = self {
            return Ok(path.clone());
        }
        if let Some(path) = (*self == Platform::Cuda).then(installed_cuda).flatten() {
            return Ok(path);
        }
        let (wheel, library) = self.pinned()?;
        // Nobody need hear it: on a closed standard error `eprintln!` panics.
        let mut say =
            |line: &str| drop(io::stderr().write_all(format!("{self} plugin: {line}\n").as_bytes()));
        cache_folder().and_then(|cache| wheel.member(library, &cache, &mut say)).map_err(Error::Fetch)
    }

    /// The pinned wheel, or why there is none.
    fn pinned(&self) -> Result<(Wheel, &'static str), Error> {
        let available = if *self == Platform::Tpu { "linux x86_64" } else { "linux x86_64 and aarch64" };
        pinned(self).ok_or_else(|| Error::NotForThisMachine { platform: self.clone(), available })
    }

    /// Looks where [`Platform::library`] would look. It fetches and changes nothing, and compares the package with
    /// its pinned hash.
    ///
    /// # Errors
    /// If none is made for this machine, the package in the cache has another hash, or it cannot be read.
    pub fn look(&self) -> Result<Cached, Error> {
        if let Platform::Path(path) = self {
            return Ok(Cached::Ready(path.clone()));
        }
        if let Some(path) = (*self == Platform::Cuda).then(installed_cuda).flatten() {
            return Ok(Cached::Ready(path));
        }
        let (wheel, member) = self.pinned()?;
        let cache = cache_folder().map_err(Error::Fetch)?;
        let folder = wheel::wheels_folder(&cache);
        let package = folder.join(wheel.file);
        if package.exists() {
            wheel.check(&package).map_err(Error::Fetch)?;
        }
        let (library, seal) = wheel.places(member, &cache);
        Ok(match (library.exists(), package.exists()) {
            (true, _) if wheel::is_sealed(&library, &seal) => Cached::Ready(library),
            (true, _) => Cached::Altered(library),
            (false, true) => Cached::Packed(package),
            (false, false) => Cached::Absent { by_hand: wheel.by_hand(), file: wheel.file, folder },
        })
    }
}

/// The plugin of a `jax-cuda13-pjrt` that is installed for the system or in a virtual environment; it finds its CUDA
/// libraries beside it.
fn installed_cuda() -> Option<PathBuf> {
    const ASK: &str = "import importlib.util, pathlib
spec = importlib.util.find_spec('jax_plugins.xla_cuda13')
print(pathlib.Path(spec.origin).parent / 'xla_cuda_plugin.so')";
    let output = python::command("python3")
        .args(["-c", ASK])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_file().then_some(path)
}
