//! A platform's plugin, found or fetched, and opened.

use crate::pjrt::{self, Plugin};
use std::fmt;

pub use fetch::platform::{self, Platform};
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
    /// Fetches a platform's plugin if need be, and opens it.
    ///
    /// # Errors
    /// If it cannot be fetched or loaded.
    pub fn of(platform: &Platform) -> Result<Plugin, Error> {
        let library = platform.library().map_err(Error::Find)?;
        Plugin::load(&library).map_err(Error::Load)
    }
}
