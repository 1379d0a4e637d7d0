//! Where plugins come from: the one table of pinned packages, and the way from a platform's name to a
//! library.

use crate::wheel::{State, Wheel, cache_folder};
use crate::{cuda, wheel};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
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

/// What a plugin is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Compiling, also for devices that are not here.
    Compile,
    /// Compiling and computing. For a GPU that takes a dozen libraries more, 2 GiB.
    Compute,
}

/// What is here of a platform's packages before anything is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The plugin, as it was unpacked or given, and all that it needs.
    Ready(PathBuf),
    /// This file was changed since it was unpacked; the next use unpacks it again.
    Altered(PathBuf),
    /// All packages, with the right hashes; this one and perhaps others will be unpacked by the first use.
    Packed(PathBuf),
    /// Some packages are not here; the first use fetches them.
    Absent {
        /// These.
        wheels: Vec<Wheel>,
        /// The command that fetches them on another machine.
        by_hand: String,
        /// The folder to put them into.
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

/// The pinned packages of a platform on this machine, that of the plugin first, and which of their files are unpacked.
fn pinned(platform: &Platform, purpose: Purpose) -> Option<Vec<(Wheel, &'static [&'static str])>> {
    if env::consts::OS != "linux" {
        return None;
    }
    let arch = env::consts::ARCH;
    match platform {
        Platform::Cpu => Some(vec![(wheel::xla_cpu(arch)?, &["xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so"])]),
        Platform::Cuda => {
            let libraries = match purpose {
                Purpose::Compile => Vec::new(),
                Purpose::Compute => cuda::libraries(arch)?,
            };
            Some([cuda::compiler(arch)?, libraries].concat())
        }
        // There is no libtpu for aarch64.
        Platform::Tpu if arch == "x86_64" => {
            let wheel = Wheel {
                package: "libtpu",
                version: "0.0.52",
                file: "libtpu-0.0.52-cp311-cp311-manylinux_2_31_x86_64.whl",
                sha256: "f5e2e596eaea9357fbb5a6755a7a9007c6ab75bfde4a55191b03eff402971140",
            };
            Some(vec![(wheel, &["libtpu/libtpu.so"])])
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

    /// The path of the plugin's library. What the cache does not have of it, and of what it needs for a purpose, is
    /// fetched, with a line on standard error for each package.
    ///
    /// # Errors
    /// If something is not in the cache and cannot be fetched, or none is made for this machine.
    pub fn library(&self, purpose: Purpose) -> Result<PathBuf, Error> {
        if let Platform::Path(path) = self {
            return Ok(path.clone());
        }
        let packages = self.pinned(purpose)?;
        let cache = cache_folder().map_err(Error::Fetch)?;
        let (root, library) = library(&packages, &cache);
        // Nobody need hear it: on a closed standard error `eprintln!` panics.
        let mut say =
            |line: &str| drop(io::stderr().write_all(format!("{self} plugin: {line}\n").as_bytes()));
        for (wheel, parts) in packages {
            wheel.unpack(parts, &root, &cache, &mut say).map_err(Error::Fetch)?;
        }
        Ok(library)
    }

    /// The pinned packages, or why there are none.
    fn pinned(&self, purpose: Purpose) -> Result<Vec<(Wheel, &'static [&'static str])>, Error> {
        let available = if *self == Platform::Tpu { "linux x86_64" } else { "linux x86_64 and aarch64" };
        pinned(self, purpose).ok_or_else(|| Error::NotForThisMachine { platform: self.clone(), available })
    }

    /// Looks where [`Platform::library`] would look. It fetches and changes nothing, and compares packages with
    /// their pinned hashes.
    ///
    /// # Errors
    /// If none is made for this machine, a package in the cache has another hash, or it cannot be read.
    pub fn look(&self, purpose: Purpose) -> Result<Cached, Error> {
        if let Platform::Path(path) = self {
            return Ok(Cached::Ready(path.clone()));
        }
        let packages = self.pinned(purpose)?;
        let cache = cache_folder().map_err(Error::Fetch)?;
        let folder = wheel::wheels_folder(&cache);
        let (root, library) = library(&packages, &cache);
        let (mut packed, mut absent) = (None, Vec::new());
        for (wheel, parts) in packages {
            let package = folder.join(wheel.file);
            if package.exists() {
                wheel.check(&package).map_err(Error::Fetch)?;
            }
            match wheel::state(&root, parts) {
                State::Whole => {}
                State::Altered(file) => return Ok(Cached::Altered(file)),
                State::Missing if package.exists() => packed = Some(package),
                State::Missing => absent.push(wheel),
            }
        }
        Ok(match packed {
            _ if !absent.is_empty() => {
                Cached::Absent { by_hand: wheel::by_hand(&absent), wheels: absent, folder }
            }
            Some(package) => Cached::Packed(package),
            None => Cached::Ready(library),
        })
    }
}

/// The folder that packages are unpacked below, and the plugin's library there.
fn library(packages: &[(Wheel, &[&str])], cache: &Path) -> (PathBuf, PathBuf) {
    let (wheel, parts) = &packages[0];
    let root = wheel.root(cache);
    let library = root.join(parts[0]);
    (root, library)
}
