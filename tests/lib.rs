//! The tests are beside this file; see `Cargo.toml`.
