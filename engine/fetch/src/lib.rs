//! What is fetched before anything is compiled or run: pinned wheels with plugins, headers and libraries in them; and which
//! devices the machine has for them.
//!
//! It needs nothing of what it finds, so that the build script and `doctor` can stand on it where those are missing.

mod cuda;
pub mod devices;
pub mod platform;
pub mod python;
pub mod wheel;
