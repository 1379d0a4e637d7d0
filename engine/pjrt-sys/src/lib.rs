//! The PJRT C API, generated from `pjrt_c_api.h` by the `build.rs` at the top of the repository.
//! Nothing is written by hand here; the safe face of it is `engine::pjrt`.

// The names, layouts and comments are those of the C header.
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, missing_docs)]
#![allow(clippy::all, rustdoc::all)]

include!(concat!(env!("OUT_DIR"), "/pjrt.rs"));
