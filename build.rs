//! The build script of `engine/pjrt-sys`: declarations of the PJRT C API from `pjrt_c_api.h`.
//!
//! The header comes out of the wheel of XLA's CPU plugin, or from the path in `PJRT_HEADER`. libclang is the
//! system's, or comes out of a wheel as well. That wheel has no C headers of its own, so bindgen always sees
//! the four stubs below and never the system's headers: the same output everywhere.

use fetch::wheel::{self, Wheel};
use std::error::Error;
use std::path::PathBuf;
use std::process::{self, Command};
use std::{env, fs, panic};

/// What `pjrt_c_api.h` uses of the C library, for a 64-bit target.
const STUBS: [(&str, &str); 4] = [
    ("stdbool.h", "#pragma once\n#define bool _Bool\n#define true 1\n#define false 0\n"),
    (
        "stddef.h",
        "#pragma once\ntypedef __SIZE_TYPE__ size_t;\ntypedef __PTRDIFF_TYPE__ ptrdiff_t;\n#define NULL ((void*)0)\n#define offsetof(t, m) __builtin_offsetof(t, m)\n",
    ),
    (
        "stdint.h",
        "#pragma once\ntypedef signed char int8_t;\ntypedef short int16_t;\ntypedef int int32_t;\ntypedef __INT64_TYPE__ int64_t;\ntypedef unsigned char uint8_t;\ntypedef unsigned short uint16_t;\ntypedef unsigned int uint32_t;\ntypedef __UINT64_TYPE__ uint64_t;\ntypedef __INTPTR_TYPE__ intptr_t;\ntypedef __UINTPTR_TYPE__ uintptr_t;\n",
    ),
    ("assert.h", "#pragma once\n#define assert(x) ((void)0)\n#define static_assert _Static_assert\n"),
];

fn main() {
    // Cargo resolves it against the folder of the package.
    println!("cargo:rerun-if-changed=../../build.rs");
    for name in ["PJRT_HEADER", "PYTHONLM_CACHE", "LIBCLANG_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if let Err(error) = generate() {
        eprintln!("\npjrt-sys: {error}\n");
        process::exit(1);
    }
}

fn generate() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let header = header()?;
    if let Some(folder) = missing_libclang()? {
        // bindgen looks for it in the environment, and only that of a child can be set safely.
        if env::var_os("LIBCLANG_PATH").is_some_and(|given| given == folder) {
            return Err(format!("the libclang in {} cannot be loaded", folder.display()).into());
        }
        let child = Command::new(env::current_exe()?).env("LIBCLANG_PATH", folder).status()?;
        process::exit(child.code().unwrap_or(1));
    }
    let stubs = out.join("stubs");
    fs::create_dir_all(&stubs)?;
    for (name, text) in STUBS {
        fs::write(stubs.join(name), text)?;
    }
    let bindings = bindgen::Builder::default()
        .header(header.to_str().ok_or("the path of pjrt_c_api.h is not UTF-8")?)
        .clang_args(["-nostdinc", "-isystem", stubs.to_str().ok_or("OUT_DIR is not UTF-8")?])
        .allowlist_item("PJRT_.*|_PJRT_.*")
        .derive_default(true)
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(true)
        .formatter(bindgen::Formatter::None)
        .generate()
        .map_err(|error| format!("bindgen on {}: {error}", header.display()))?;
    bindings.write_to_file(out.join("pjrt.rs"))?;
    Ok(())
}

/// `PJRT_HEADER`, or the header beside the CPU plugin; it is the same for every architecture.
fn header() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(path) = env::var_os("PJRT_HEADER").filter(|path| !path.is_empty()).map(PathBuf::from) {
        println!("cargo:rerun-if-changed={}", path.display());
        if !path.is_file() {
            return Err(format!("PJRT_HEADER names {}, which is not a file", path.display()).into());
        }
        return Ok(path);
    }
    let wheel =
        wheel::xla_cpu(env::consts::ARCH).or_else(|| wheel::xla_cpu("x86_64")).ok_or("no wheel is pinned")?;
    unpack(&wheel, "xla_plugins/xla_cpu_pjrt/include/pjrt_c_api.h").map_err(|error| {
        format!("{error}\nor set PJRT_HEADER to a pjrt_c_api.h of version 0.81 or later").into()
    })
}

/// The folder of a libclang that was fetched, if bindgen can load none as it is.
fn missing_libclang() -> Result<Option<PathBuf>, Box<dyn Error>> {
    // bindgen has no other way to ask than a call that panics when there is none.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let found = panic::catch_unwind(bindgen::clang_version).is_ok();
    panic::set_hook(hook);
    if found {
        return Ok(None);
    }
    let arch = env::consts::ARCH;
    let (file, sha256) = match arch {
        "x86_64" => (
            "libclang-18.1.1-py2.py3-none-manylinux2010_x86_64.whl",
            "c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b",
        ),
        "aarch64" => (
            "libclang-18.1.1-py2.py3-none-manylinux2014_aarch64.whl",
            "54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592",
        ),
        _ => {
            return Err(
                format!("no libclang was found and none is pinned for {arch}; install libclang").into()
            );
        }
    };
    let wheel = Wheel { package: "libclang", version: "18.1.1", file, sha256 };
    let library = unpack(&wheel, "libclang-18.1.1.data/platlib/clang/native/libclang.so")
        .map_err(|error| format!("{error}\nor install libclang with the system's package manager"))?;
    let folder = library.parent().ok_or("the path of libclang has no folder")?;
    Ok(Some(folder.to_path_buf()))
}

fn unpack(wheel: &Wheel, member: &str) -> Result<PathBuf, Box<dyn Error>> {
    Ok(wheel.member(member, &wheel::cache_folder()?, &mut |line| eprintln!("pjrt-sys: {line}"))?)
}
