//! Packages of Python that some tests run.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder with the packages of a requirements file in tests/, for PYTHONPATH. They are fetched into the cache once.
///
/// # Panics
/// If pip fails.
pub fn installed(name: &str, requirements: &str) -> PathBuf {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join(requirements);
    let hash = blake3::hash(&fs::read(&requirements).unwrap()).to_hex();
    let folder = engine::plugin::cache_folder().unwrap().join(format!("{name}-{}", &hash[..12]));
    if folder.exists() {
        return folder;
    }
    let part = folder.with_extension(format!("{}.part", std::process::id()));
    let mut pip = fetch::python::command("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    pip.args(["--no-deps", "--require-hashes", "--only-binary=:all:", "--target"]).arg(&part);
    let installed = pip.arg("--requirement").arg(&requirements).output().unwrap();
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    // Another process may have been faster.
    if let Err(error) = fs::rename(&part, &folder) {
        assert!(folder.exists(), "{}: {error}", folder.display());
        fs::remove_dir_all(&part).unwrap();
    }
    folder
}
