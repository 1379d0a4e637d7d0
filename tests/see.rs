//! What a person sees before running: `doctor` on healthy and broken set-ups.

use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// The screen of `doctor`, and whether it found no problem.
fn doctor(args: &[&str], environment: &[(&str, &Path)]) -> (String, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doctor-screen"));
    command.args(args).env_remove("PJRT_PLUGIN_PATH").envs(environment.iter().copied());
    let output = command.output().unwrap();
    let screen = String::from_utf8(output.stdout).unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let problems = screen.lines().filter(|line| line.starts_with("PROBLEM")).count();
    assert_eq!(output.status.success(), problems == 0, "{screen}");
    (screen, output.status.success())
}

/// The finding about `subject` that starts with `mark`, and its remedy.
#[track_caller]
fn finding<'a>(screen: &'a str, mark: &str, subject: &str) -> (&'a str, &'a str) {
    let lines: Vec<&str> = screen.lines().collect();
    let is_it = |line: &&str| line.starts_with(mark) && line.split_whitespace().nth(1) == Some(subject);
    let at = lines.iter().position(is_it).unwrap_or_else(|| panic!("no {mark} of {subject} in:\n{screen}"));
    let remedy = lines.get(at + 1).and_then(|line| line.trim_start().strip_prefix("-> "));
    (lines[at], remedy.unwrap_or_default())
}

#[test]
fn a_healthy_machine_has_no_problem() {
    let (screen, healthy) = doctor(&["--platform", "tpu"], &[]);
    println!("{screen}");
    assert!(healthy, "{screen}");
    let (cpu, _) = finding(&screen, "ok", "cpu");
    assert!(cpu.contains("PJRT API 0.81") && cpu.contains("computes on 4 x cpu"), "{cpu}");
    let (tpu, _) = finding(&screen, "ok", "tpu");
    assert!(tpu.contains("TPU v6 lite"), "{tpu}");
    for subject in ["machine", "python3", "cache"] {
        finding(&screen, "ok", subject);
    }
    assert_eq!(screen.lines().filter(|line| line.starts_with("ok       disk")).count(), 2);
}

#[test]
fn a_missing_plugin_is_a_problem_only_if_it_is_wanted() {
    let empty = TempDir::new().unwrap();
    let (screen, healthy) = doctor(&[], &[("PYTHONLM_CACHE", empty.path())]);
    assert!(!healthy);
    let (line, remedy) = finding(&screen, "PROBLEM", "cpu");
    assert!(line.contains("not here yet") && remedy.contains("pip download"), "{screen}");
    assert!(remedy.contains("xla_cpu_pjrt-0.0.1") && remedy.contains("wheels"), "{remedy}");
    // Looking leaves no trace.
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
    finding(&screen, "note", "tpu");
    let (screen, _) = doctor(&["--platform", "tpu"], &[("PYTHONLM_CACHE", empty.path())]);
    finding(&screen, "PROBLEM", "tpu");
}

#[test]
fn a_package_with_another_hash_and_a_changed_library_are_found() {
    let cache = TempDir::new().unwrap();
    let library = engine::plugin::Platform::Cpu.library().unwrap();
    let unpacked = cache.path().join("unpacked").join(library.parent().unwrap().file_name().unwrap());
    fs::create_dir_all(&unpacked).unwrap();
    fs::write(unpacked.join(library.file_name().unwrap()), "cut off").unwrap();
    let (screen, healthy) = doctor(&[], &[("PYTHONLM_CACHE", cache.path())]);
    let (line, remedy) = finding(&screen, "PROBLEM", "cpu");
    assert!(!healthy && line.contains("was changed") && remedy.starts_with("delete "), "{screen}");

    let original = engine::plugin::cache_folder().unwrap().join("wheels");
    let wheels = cache.path().join("wheels");
    fs::create_dir_all(&wheels).unwrap();
    let mut names = fs::read_dir(original).unwrap().map(|entry| entry.unwrap().file_name());
    let name = names.find(|name| name.to_string_lossy().starts_with("xla_cpu")).unwrap();
    let name = name.to_string_lossy().trim_end_matches(".lock").to_owned();
    fs::write(wheels.join(&name), "not the wheel").unwrap();
    let (screen, healthy) = doctor(&[], &[("PYTHONLM_CACHE", cache.path())]);
    let (line, remedy) = finding(&screen, "PROBLEM", "cpu");
    assert!(!healthy && line.contains("has sha256 ") && line.contains("wanted 5583"), "{screen}");
    assert!(remedy.starts_with("rm ") && remedy.contains(&name), "{remedy}");
}

#[test]
fn plugins_that_are_old_foreign_or_crash_are_told_apart() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    // A table that ends after PJRT_Plugin_Initialize, as that of the first versions did; or a library that aborts.
    let source = "#include <stddef.h>
#include <stdlib.h>
static void *initialize(void *args) { if (CRASHES) abort(); return NULL; }
static struct { size_t size; void *extension; struct { size_t size; void *extension; int major, minor; } version; void *calls[4]; }
    api = { sizeof api, NULL, { 24, NULL, 0, 3 }, { NULL, NULL, NULL, initialize } };
const void *GetPjrtApi(void) { return &api; }";
    fs::write(at("plugin.c"), source).unwrap();
    for (name, crashes) in [("old.so", 0), ("crashing.so", 1)] {
        let compiler = Command::new("cc")
            .args(["-shared", "-fPIC", &format!("-DCRASHES={crashes}"), "-o"])
            .args([at(name), at("plugin.c")])
            .status();
        assert!(compiler.unwrap().success());
    }
    fs::write(at("text.so"), "a text that is longer than an ELF header").unwrap();
    let cases = [
        ("old.so", "PJRT API 0.3) does not have it", "take a newer plugin"),
        ("crashing.so", "ended without an answer", "TF_CPP_MIN_LOG_LEVEL"),
        ("text.so", "not a shared library", "give the path of a PJRT plugin"),
        ("missing.so", "No such file", "give the path of a PJRT plugin"),
    ];
    for (name, what, wanted) in cases {
        let (screen, healthy) = doctor(&[], &[("PJRT_PLUGIN_PATH", &at(name))]);
        let (line, remedy) = finding(&screen, "PROBLEM", "plugin");
        assert!(!healthy && line.contains(what) && remedy.contains(wanted), "{name}:\n{screen}");
    }
    let (screen, healthy) = doctor(&["--platform", "gpu"], &[]);
    let (line, _) = finding(&screen, "PROBLEM", "plugin");
    assert!(!healthy && line.contains("found `gpu`, wanted cpu, cuda, tpu"), "{screen}");
}

#[test]
fn a_disk_without_room_is_a_problem() {
    let runs = TempDir::new().unwrap();
    let out = runs.path().join("not/there/yet");
    let (screen, healthy) = doctor(&["--out", out.to_str().unwrap(), "--room", "1e9"], &[]);
    let (line, remedy) = finding(&screen, "PROBLEM", "disk");
    assert!(!healthy && line.contains("GiB free") && line.contains("wanted 1000000000.0 GiB"), "{line}");
    assert!(remedy.starts_with("free some, or give another --out"), "{remedy}");
    assert!(!out.exists());

    // A cache that cannot be written, whoever runs this: its folder is below a file.
    fs::write(runs.path().join("file"), "").unwrap();
    let (screen, healthy) = doctor(&[], &[("PYTHONLM_CACHE", &runs.path().join("file/cache"))]);
    let (line, remedy) = finding(&screen, "PROBLEM", "cache");
    assert!(!healthy && line.contains("writing there") && remedy.contains("PYTHONLM_CACHE"), "{screen}");
}
