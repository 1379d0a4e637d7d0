//! A platform's plugin, found or fetched, and opened.

use crate::pjrt::{self, Plugin};
use std::fmt;

pub use fetch::devices;
pub use fetch::platform::{self, Platform, Purpose};
pub use fetch::wheel::cache_folder;

/// Why there is no plugin.
#[derive(Debug)]
pub enum Error {
    /// There is no library.
    Find(platform::Error),
    /// The library could not be used.
    Load(pjrt::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Find(error) => error.fmt(f),
            Error::Load(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl Plugin {
    /// Fetches a platform's plugin and the libraries that its programs run with if need be, and opens them.
    ///
    /// # Errors
    /// If they cannot be fetched or loaded.
    pub fn of(platform: &Platform) -> Result<Plugin, Error> {
        Plugin::fetched(platform, Purpose::Compute)
    }

    /// The same of what compiling for devices that are not here takes, which for GPUs is a ninth of it.
    ///
    /// # Errors
    /// As [`Plugin::of`].
    pub fn to_compile(platform: &Platform) -> Result<Plugin, Error> {
        Plugin::fetched(platform, Purpose::Compile)
    }

    fn fetched(platform: &Platform, purpose: Purpose) -> Result<Plugin, Error> {
        let library = platform.library(purpose).map_err(Error::Find)?;
        Plugin::load(&library).map_err(Error::Load)
    }
}
