//! The packages of XLA's plugin for NVIDIA GPUs: of CUDA 13, for drivers from 580 on. Unpacked below one folder, as pip
//! lays them out, they are found by the plugin from where it lies itself.

use crate::wheel::Wheel;

struct Package {
    name: &'static str,
    version: &'static str,
    parts: &'static [&'static str],
    /// The file and its SHA-256.
    x86_64: (&'static str, &'static str),
    aarch64: (&'static str, &'static str),
}

/// What compiling takes: the plugin first, the assembler and linker, and the bitcode of mathematical functions.
const COMPILER: [Package; 3] = [
    Package {
        name: "jax-cuda13-pjrt",
        version: "0.12.0.1",
        parts: &["jax_plugins/xla_cuda13/xla_cuda_plugin.so"],
        x86_64: (
            "jax_cuda13_pjrt-0.12.0.1-py3-none-manylinux_2_27_x86_64.whl",
            "5899bb6177eda86ea532afb9a26794f2bdd04966f6a01f9028266b16c2b6cf90",
        ),
        aarch64: (
            "jax_cuda13_pjrt-0.12.0.1-py3-none-manylinux_2_27_aarch64.whl",
            "40758d042df8c06991b6a1a8016b56e9cefb1ed4c677c062125c3eb71c3dab97",
        ),
    },
    Package {
        name: "nvidia-cuda-nvcc",
        version: "13.0.88",
        parts: &["nvidia/cu13/bin/ptxas", "nvidia/cu13/bin/nvlink"],
        x86_64: (
            "nvidia_cuda_nvcc-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03",
        ),
        aarch64: (
            "nvidia_cuda_nvcc-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "c7ff28f86a24effdc6c034fa15230c549a273e4771b10a7fec14996f8cf3307f",
        ),
    },
    Package {
        name: "nvidia-nvvm",
        version: "13.0.88",
        parts: &["nvidia/cu13/nvvm/libdevice/"],
        x86_64: (
            "nvidia_nvvm-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
            "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0",
        ),
        aarch64: (
            "nvidia_nvvm-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "c4376a291d72d22a315d9d2f69bdae8f8cd83a627f75bad395cee49a0fe65dc1",
        ),
    },
];

/// What computing takes beside the driver.
const LIBRARIES: [Package; 11] = [
    Package {
        name: "nvidia-cuda-runtime",
        version: "13.0.96",
        parts: &["nvidia/cu13/lib/libcudart.so"],
        x86_64: (
            "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        ),
        aarch64: (
            "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
        ),
    },
    Package {
        name: "nvidia-cuda-nvrtc",
        version: "13.0.88",
        parts: &["nvidia/cu13/lib/libnvrtc.so", "nvidia/cu13/lib/libnvrtc-builtins.so"],
        x86_64: (
            "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
            "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        ),
        aarch64: (
            "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b",
        ),
    },
    Package {
        name: "nvidia-nvjitlink",
        version: "13.0.88",
        parts: &["nvidia/cu13/lib/libnvJitLink.so"],
        x86_64: (
            "nvidia_nvjitlink-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
            "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
        ),
        aarch64: (
            "nvidia_nvjitlink-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "e931536ccc7d467a98ba1d8b89ff7fa7f1fa3b13f2b0069118cd7f47bff07d0c",
        ),
    },
    Package {
        name: "nvidia-cublas",
        version: "13.1.0.3",
        parts: &["nvidia/cu13/lib/libcublas"],
        x86_64: (
            "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_x86_64.whl",
            "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
        ),
        aarch64: (
            "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_aarch64.whl",
            "c86fc7f7ae36d7528288c5d88098edcb7b02c633d262e7ddbb86b0ad91be5df2",
        ),
    },
    Package {
        name: "nvidia-cuda-cupti",
        version: "13.0.85",
        parts: &["nvidia/cu13/lib/libcupti.so"],
        x86_64: (
            "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
            "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        ),
        aarch64: (
            "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_aarch64.whl",
            "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
        ),
    },
    Package {
        name: "nvidia-cusparse",
        version: "12.6.3.3",
        parts: &["nvidia/cu13/lib/libcusparse.so"],
        x86_64: (
            "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
        ),
        aarch64: (
            "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "80bcc4662f23f1054ee334a15c72b8940402975e0eab63178fc7e670aa59472c",
        ),
    },
    Package {
        name: "nvidia-cusolver",
        version: "12.0.4.66",
        parts: &["nvidia/cu13/lib/libcusolver.so"],
        x86_64: (
            "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_x86_64.whl",
            "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
        ),
        aarch64: (
            "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_aarch64.whl",
            "02c2457eaa9e39de20f880f4bd8820e6a1cfb9f9a34f820eb12a155aa5bc92d2",
        ),
    },
    Package {
        name: "nvidia-cufft",
        version: "12.0.0.61",
        parts: &["nvidia/cu13/lib/libcufft.so"],
        x86_64: (
            "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
        ),
        aarch64: (
            "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "2708c852ef8cd89d1d2068bdbece0aa188813a0c934db3779b9b1faa8442e5f5",
        ),
    },
    Package {
        name: "nvidia-nccl-cu13",
        version: "2.28.9",
        parts: &["nvidia/nccl/lib/libnccl.so"],
        x86_64: (
            "nvidia_nccl_cu13-2.28.9-py3-none-manylinux_2_18_x86_64.whl",
            "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
        ),
        aarch64: (
            "nvidia_nccl_cu13-2.28.9-py3-none-manylinux_2_18_aarch64.whl",
            "01c873ba1626b54caa12272ed228dc5b2781545e0ae8ba3f432a8ef1c6d78643",
        ),
    },
    Package {
        name: "nvidia-nvshmem-cu13",
        version: "3.4.5",
        parts: &["nvidia/nvshmem/lib/libnvshmem_host.so"],
        x86_64: (
            "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
        ),
        aarch64: (
            "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "6dc2a197f38e5d0376ad52cd1a2a3617d3cdc150fd5966f4aee9bcebb1d68fe9",
        ),
    },
    Package {
        name: "nvidia-cudnn-cu13",
        version: "9.23.2.1",
        parts: &["nvidia/cudnn/lib/libcudnn"],
        x86_64: (
            "nvidia_cudnn_cu13-9.23.2.1-py3-none-manylinux_2_27_x86_64.whl",
            "0c38408c043d67ea8a3cbe61fe272c3cf5c7f5ec466adfe8ac63e91d4f11cdc7",
        ),
        aarch64: (
            "nvidia_cudnn_cu13-9.23.2.1-py3-none-manylinux_2_27_aarch64.whl",
            "d826a14b848a719ff744c19891b6bcbe0a62cc01cd1d426d7cfd759c67d8d7b8",
        ),
    },
];

/// The packages that compiling takes for an architecture as Rust names it, the plugin first, and the parts of each.
pub(crate) fn compiler(arch: &str) -> Option<Vec<(Wheel, &'static [&'static str])>> {
    wheels(&COMPILER, arch)
}

/// Those that computing takes beside.
pub(crate) fn libraries(arch: &str) -> Option<Vec<(Wheel, &'static [&'static str])>> {
    wheels(&LIBRARIES, arch)
}

fn wheels(packages: &[Package], arch: &str) -> Option<Vec<(Wheel, &'static [&'static str])>> {
    let wheel = |package: &Package| {
        let (file, sha256) = match arch {
            "x86_64" => package.x86_64,
            "aarch64" => package.aarch64,
            _ => return None,
        };
        let Package { name, version, parts, .. } = *package;
        Some((Wheel { package: name, version, file, sha256 }, parts))
    };
    packages.iter().map(wheel).collect()
}
