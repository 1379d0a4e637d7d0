//! What can go wrong between the engine and a plugin, with the plugin's path and API version in every
//! message.

use super::said::{Again, advice};
use std::fmt;
use std::path::PathBuf;

/// A result of the PJRT runtime.
pub type Result<T> = std::result::Result<T, Error>;

/// The kind of a plugin's error; the names are those of `absl::StatusCode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Code {
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl Code {
    /// From the number in the C API; numbers that it does not define are [`Code::Unknown`].
    pub(super) fn from_raw(code: pjrt_sys::PJRT_Error_Code) -> Code {
        match code {
            1 => Code::Cancelled,
            3 => Code::InvalidArgument,
            4 => Code::DeadlineExceeded,
            5 => Code::NotFound,
            6 => Code::AlreadyExists,
            7 => Code::PermissionDenied,
            8 => Code::ResourceExhausted,
            9 => Code::FailedPrecondition,
            10 => Code::Aborted,
            11 => Code::OutOfRange,
            12 => Code::Unimplemented,
            13 => Code::Internal,
            14 => Code::Unavailable,
            15 => Code::DataLoss,
            16 => Code::Unauthenticated,
            _ => Code::Unknown,
        }
    }
}

/// An error of the PJRT runtime.
#[derive(Debug)]
pub enum Error {
    /// The plugin's file could not be read or opened by the dynamic loader.
    Open {
        /// The plugin.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The plugin is for another kind of machine.
    Architecture {
        /// The plugin.
        path: PathBuf,
        /// The machine it is for.
        found: String,
        /// This machine.
        wanted: &'static str,
    },
    /// The library has no `GetPjrtApi`, or it returns nothing.
    NotAPlugin {
        /// The library.
        path: PathBuf,
    },
    /// The plugin speaks a major version of the API that is not ours.
    Version {
        /// The plugin.
        path: PathBuf,
        /// Its version.
        found: (i32, i32),
        /// The version that this engine was built with.
        wanted: (i32, i32),
    },
    /// The plugin is too old for a function, or leaves it out.
    Missing {
        /// The plugin.
        path: PathBuf,
        /// Its API version.
        version: (i32, i32),
        /// The function of the C API.
        function: &'static str,
    },
    /// The plugin refused a call.
    Call {
        /// The plugin.
        path: PathBuf,
        /// Its API version.
        version: (i32, i32),
        /// The function of the C API.
        function: &'static str,
        /// The kind of error.
        code: Code,
        /// What the plugin said.
        message: String,
    },
    /// The plugin answered with something that the engine has no type for.
    Unsupported {
        /// The plugin.
        path: PathBuf,
        /// What was found, and what is known.
        what: String,
    },
    /// The arguments of a run do not fit the program; found before the plugin is asked.
    Arguments(String),
}

impl Error {
    /// The kind of a plugin's error, if the plugin refused a call.
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Call { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// What to do about it, where the plugin's words are known.
    pub fn remedy(&self) -> Option<String> {
        self.advice().map(|(_, remedy)| remedy)
    }

    /// Whether another process has the device, so that trying again may help.
    pub fn is_busy(&self) -> bool {
        self.advice().is_some_and(|(again, _)| again == Again::MayHelp)
    }

    fn advice(&self) -> Option<(Again, String)> {
        match self {
            Error::Call { function, code, message, .. } => advice(function, *code, message),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Open { path, reason } => {
                write!(f, "opening the plugin {}: {reason}", path.display())?;
                // The words of the dynamic loader; the CUDA plugin does not bring the CUDA libraries with it.
                if reason.contains("cannot open shared object file") {
                    f.write_str(
                        "; the plugin needs that library: install it, or name its folder in LD_LIBRARY_PATH",
                    )?;
                }
                Ok(())
            }
            Error::Architecture { path, found, wanted } => write!(
                f,
                "opening the plugin {}: it is for {found}, this machine is {wanted}; take the plugin for {wanted}",
                path.display()
            ),
            Error::NotAPlugin { path } => write!(
                f,
                "opening the plugin {}: it has no working GetPjrtApi, so it is not a PJRT plugin; give the path of one (for instance libtpu.so)",
                path.display()
            ),
            Error::Version { path, found, wanted } => write!(
                f,
                "opening the plugin {}: its PJRT API is {}.{}, wanted {}.x; take a plugin of that version",
                path.display(),
                found.0,
                found.1,
                wanted.0
            ),
            Error::Missing { path, version, function } => write!(
                f,
                "{function}: the plugin {} (PJRT API {}.{}) does not have it; take a newer plugin",
                path.display(),
                version.0,
                version.1
            ),
            Error::Call { path, version, function, code, message } => {
                write!(
                    f,
                    "{function}: {code:?}: {message} [plugin {}, PJRT API {}.{}]",
                    path.display(),
                    version.0,
                    version.1
                )?;
                match self.remedy() {
                    Some(remedy) => write!(f, "; {remedy}"),
                    None => Ok(()),
                }
            }
            Error::Unsupported { path, what } => write!(f, "{what} [plugin {}]", path.display()),
            Error::Arguments(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}
