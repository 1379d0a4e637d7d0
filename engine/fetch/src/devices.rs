//! The device files of accelerators, and what libtpu reads of a machine from its environment.

use std::fs;
use std::path::{Path, PathBuf};

/// Device files of TPUs below a root folder, `/` for this machine's.
pub fn tpus(root: &Path) -> Vec<PathBuf> {
    [numbered(&root.join("dev"), "accel"), numbered(&root.join("dev/vfio"), "")].concat()
}

/// Device files of NVIDIA GPUs below a root folder.
pub fn gpus(root: &Path) -> Vec<PathBuf> {
    numbered(&root.join("dev"), "nvidia")
}

fn numbered(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_numbered = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u32>().is_ok())
    };
    let mut files: Vec<PathBuf> = entries.filter(is_numbered).collect();
    files.sort();
    files
}

/// What the environment of a machine with one v6e chip says to libtpu; the address of its control service is its own.
/// A terminal or an ssh session may lack them.
pub const V6E: [(&str, Option<&str>); 7] = [
    ("VBAR_CONTROL_SERVICE_URL", None),
    ("TPU_ACCELERATOR_TYPE", Some("v6e-1")),
    ("TPU_CHIPS_PER_HOST_BOUNDS", Some("2,2,1")),
    ("TPU_HOST_BOUNDS", Some("1,1,1")),
    ("TPU_WORKER_HOSTNAMES", Some("localhost")),
    ("TPU_WORKER_ID", Some("0")),
    ("TPU_SKIP_MDS_QUERY", Some("1")),
];

/// Why libtpu may wait for a minute on a machine, if it may: it asks a metadata server for what the environment does not
/// say. `is_set` says whether the environment has a variable.
pub fn metadata_query(root: &Path, is_set: impl Fn(&str) -> bool) -> Option<&'static str> {
    let asks = root.join("dev/vfio").is_dir() && !tpus(root).is_empty() && !is_set("TPU_SKIP_MDS_QUERY");
    asks.then_some(
        "a TPU is here and TPU_SKIP_MDS_QUERY is not set: libtpu asks a metadata server, for 60 s where there is none; \
         `export TPU_SKIP_MDS_QUERY=1` ends that",
    )
}
