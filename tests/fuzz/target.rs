//! One of `tests::fuzz::TARGETS` under libFuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::OnceCell;
use tempfile::TempDir;
use tests::fuzz::Target;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

fuzz_target!(
    // Readers catch the panics of the decoders that they call; only what reaches the target is a finding.
    init: std::panic::set_hook(Box::new(|_| {})),
    |input: &[u8]| {
        let target = Target::named(env!("CARGO_BIN_NAME")).expect("a program for each target");
        FOLDER.with(|folder| {
            let folder = folder.get_or_init(|| TempDir::new().expect("a folder for the target's files"));
            if let Err(finding) = target.feed(folder.path(), input.to_vec()) {
                eprintln!("{}: {}", target.name, finding.message);
                std::process::abort();
            }
        });
    }
);
