//! The flags that README names are those that the programs have.

use crate::PROGRAMS;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

/// A flag of cargo, which the text of README names beside flags of the programs.
const CARGO_FLAG: &str = "--features";

/// Flags in a text: `--name`, not within a word.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    words
        .filter(|word| {
            word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn readme_names_no_flag_that_a_program_has_not() {
    let has: BTreeMap<&str, BTreeSet<String>> = PROGRAMS
        .into_iter()
        .map(|(name, program)| {
            let output = Command::new(program).arg("--help").output().unwrap();
            assert!(output.status.success(), "{name} --help");
            (name, flags(&String::from_utf8(output.stdout).unwrap()))
        })
        .collect();
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let mut compared = 0;
    // A command has the flags of its program.
    for line in text.lines().filter(|line| line.contains("cargo run -p ")) {
        let Some((before, given)) = line.split_once(" -- ") else { continue };
        let program = before.rsplit_once("-p ").unwrap().1.trim();
        let Some(has) = has.get(program) else { continue };
        let given = given.split(['#', '`']).next().unwrap();
        for flag in flags(given) {
            assert!(has.contains(&flag), "{program} has no {flag}: {line}");
            compared += 1;
        }
    }
    // A paragraph has those of the programs that it names, or else that its section has named so far.
    let mut named: BTreeSet<&str> = BTreeSet::new();
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.contains("cargo test")) {
        if paragraph.starts_with("## ") {
            named.clear();
        }
        let spoken = |name: &str| {
            paragraph.contains(&format!("`{name}`"))
                || paragraph.contains(&format!("`{name} --"))
                || paragraph.contains(&format!("-p {name} "))
        };
        let here: BTreeSet<&str> = has.keys().copied().filter(|name| spoken(name)).collect();
        named.extend(&here);
        if paragraph.starts_with("```") {
            continue;
        }
        let spans = paragraph.split('`').skip(1).step_by(2).filter(|span| !span.starts_with("cargo "));
        for flag in spans.flat_map(flags).filter(|flag| flag != CARGO_FLAG) {
            let of = if here.is_empty() { &named } else { &here };
            let found = of.iter().chain(&named).any(|name| has[name].contains(&flag));
            assert!(found, "none of {named:?} has {flag}:\n{paragraph}");
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared}");
}
