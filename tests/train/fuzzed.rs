//! The corpus of inputs that once were worth remembering, and a second of new ones for each reader. For longer, and guided by
//! coverage: `fuzz/`.

use std::time::Duration;
use tests::fuzz::TARGETS;

#[test]
fn readers_survive_the_corpus_and_a_second_of_mutations() {
    for target in TARGETS {
        let known = target.replay().unwrap_or_else(|finding| panic!("{}: {finding:?}", target.name));
        let executions = target
            .fuzz(1, Duration::from_secs(1))
            .unwrap_or_else(|finding| panic!("{}: {finding:?}", target.name));
        println!("{}: {known} known inputs, {executions} mutations", target.name);
        assert!(executions > 0);
    }
}

#[test]
fn every_reader_can_be_fuzzed_with_coverage() {
    let (programs, readme) = (include_str!("../fuzz/Cargo.toml"), include_str!("../../README.md"));
    for target in TARGETS {
        let program = format!("[[bin]]\nname = \"{}\"\npath = \"target.rs\"\n", target.name);
        assert!(
            programs.contains(&program) && readme.contains(&format!("`{}`", target.name)),
            "{}",
            target.name
        );
    }
}
