//! [`Gpu`]: NVIDIA GPUs that need not be here, and what XLA's compiler must be told of them where there is no driver to
//! ask.

use crate::pjrt::{Plugin, Result, Topology};
use std::fmt;
use std::str::FromStr;

/// A kind of GPU that programs can be compiled for anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gpu {
    /// NVIDIA H100 SXM, 80 GB.
    H100,
    /// NVIDIA H200 SXM, 141 GB.
    H200,
}

/// The name of a GPU that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownGpu(String);

impl fmt::Display for UnknownGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<String> = Gpu::ALL.iter().map(Gpu::to_string).collect();
        write!(f, "choosing a GPU that need not be here: found `{}`, wanted {}", self.0, known.join(" or "))
    }
}

impl std::error::Error for UnknownGpu {}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gpu::H100 => "h100",
            Gpu::H200 => "h200",
        })
    }
}

impl FromStr for Gpu {
    type Err = UnknownGpu;

    fn from_str(name: &str) -> std::result::Result<Gpu, UnknownGpu> {
        Gpu::ALL.into_iter().find(|gpu| gpu.to_string() == name).ok_or_else(|| UnknownGpu(name.to_owned()))
    }
}

impl Gpu {
    /// All that are known.
    pub const ALL: [Gpu; 2] = [Gpu::H100, Gpu::H200];

    /// One of these to compile for, by the plugin for NVIDIA GPUs.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn topology(self, plugin: &Plugin) -> Result<Topology> {
        let options = [("target_config", self.target().as_str().into()), ("topology", "1x1x1".into())];
        Topology::new(plugin, "", &options)
    }

    /// The text of XLA's `GpuTargetConfigProto`, with the versions that are pinned. Both are the same chip with other memory,
    /// of which this is what the driver leaves: of an H100 as it says, of an H200 the 139.8 GiB that frameworks report.
    fn target(self) -> String {
        let (name, memory, bandwidth) = match self {
            Gpu::H100 => ("NVIDIA H100 80GB HBM3", 84_942_979_072u64, 3_352_320_000_000u64),
            Gpu::H200 => ("NVIDIA H200", 150_109_000_000, 4_800_000_000_000),
        };
        format!(
            r#"gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  device_address_bits: 64
  name: "{name}"
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.23.2"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 23 patch: 2 }}
device_description_str: "{name}"
"#
        )
    }
}
