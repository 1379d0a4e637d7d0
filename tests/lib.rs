//! Paths that several integration tests share.

use std::path::PathBuf;

/// A file or folder under `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}
