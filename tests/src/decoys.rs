//! A folder that must not be the first in which Python looks for modules.

use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Modules that pip and our own scripts import, or are.
const MODULES: [&str; 12] = [
    "pip",
    "zipfile",
    "shutil",
    "random",
    "json",
    "os",
    "pathlib",
    "importlib",
    "platform",
    "sysconfig",
    "tempfile",
    "sitecustomize",
];

/// A folder of Python files that leave a mark when they are run.
pub struct Decoys(TempDir);

impl Decoys {
    /// The folder, with no mark in it.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn new() -> Decoys {
        let folder = TempDir::new().unwrap();
        for module in MODULES {
            let code = "open(__file__ + '.run', 'w').close()\nraise SystemExit(1)\n";
            fs::write(folder.path().join(format!("{module}.py")), code).unwrap();
        }
        Decoys(folder)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Checks that nothing was run.
    ///
    /// # Panics
    /// If something was.
    #[track_caller]
    pub fn assert_untouched(&self) {
        let names = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().file_name());
        let run: Vec<_> = names.filter(|name| name.to_string_lossy().ends_with(".run")).collect();
        assert!(run.is_empty(), "{run:?}");
    }
}

impl Default for Decoys {
    fn default() -> Decoys {
        Decoys::new()
    }
}
