//! What a person sees before running: `doctor` on healthy and broken set-ups, `dump-hlo` of known programs.

use fetch::platform::{Platform, Purpose};
use fetch::wheel::cache_folder;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
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
    // What is only packed yet is not tried.
    for platform in [Platform::Cpu, Platform::Tpu, Platform::Cuda] {
        platform.library(Purpose::Compile).unwrap();
    }
    let (screen, healthy) = doctor(&["--platform", "tpu"], &[]);
    println!("{screen}");
    assert!(healthy, "{screen}");
    let (cpu, _) = finding(&screen, "ok", "cpu");
    assert!(cpu.contains("PJRT API 0.81") && cpu.contains("computes on 4 x cpu"), "{cpu}");
    let (tpu, _) = finding(&screen, "ok", "tpu");
    assert!(tpu.contains("TPU v6 lite"), "{tpu}");
    let (cuda, _) = finding(&screen, "ok", "cuda");
    assert!(cuda.contains("compiles for 1 x NVIDIA H100 80GB HBM3 of 79.1 GiB"), "{cuda}");
    for subject in ["machine", "python3", "cache"] {
        finding(&screen, "ok", subject);
    }
    assert_eq!(screen.lines().filter(|line| line.starts_with("ok       disk")).count(), 2);
}

/// Where the header or the plugin cannot be had, `doctor` still says so.
#[test]
fn doctor_is_built_without_what_it_looks_for() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "--package", "doctor", "--edges", "normal,build", "--prefix", "none"])
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    let needs = |name: &str| tree.lines().any(|line| line.split(' ').next() == Some(name));
    assert!(needs("fetch") && needs("eval-humaneval"), "{tree}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!["engine", "pjrt-sys", "bindgen"].into_iter().any(needs), "{tree}");
}

#[test]
fn files_of_the_working_folder_are_not_run() {
    let decoys = tests::Decoys::new();
    let output = Command::new(env!("CARGO_BIN_EXE_doctor-screen"))
        .args(["--platform", "cuda"])
        .env("PYTHONPATH", decoys.folder())
        .env_remove("PJRT_PLUGIN_PATH")
        .current_dir(decoys.folder())
        .output()
        .unwrap();
    let screen = String::from_utf8(output.stdout).unwrap();
    finding(&screen, "ok", "python3");
    decoys.assert_untouched();
}

#[test]
fn a_missing_plugin_is_a_problem_only_if_it_is_wanted() {
    let empty = TempDir::new().unwrap();
    let (screen, healthy) = doctor(&[], &[("PYTHONLM_CACHE", empty.path())]);
    assert!(!healthy);
    let (line, remedy) = finding(&screen, "PROBLEM", "cpu");
    assert!(line.contains("not here yet") && remedy.contains("pip download"), "{screen}");
    assert!(remedy.contains("xla-cpu-pjrt==0.0.1") && remedy.contains("wheels"), "{remedy}");
    // Looking leaves no trace.
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
    finding(&screen, "note", "tpu");
    let (screen, _) = doctor(&["--platform", "tpu"], &[("PYTHONLM_CACHE", empty.path())]);
    let (_, remedy) = finding(&screen, "PROBLEM", "tpu");
    assert!(remedy.starts_with("`cargo run -p doctor -- --platform tpu --fetch` fetches it"), "{remedy}");
    // A TPU that is here wants its plugin, but the first use fetches it; nobody has said that it must work already.
    let machine = machine(&[("dev/vfio/0", "")]);
    let root = machine.path().to_str().unwrap();
    let (screen, _) = doctor(&["--root", root], &[("PYTHONLM_CACHE", empty.path())]);
    let (line, remedy) = finding(&screen, "note", "tpu");
    assert!(line.contains("not here yet") && remedy.contains("--platform tpu --fetch"), "{screen}");
    let (screen, _) = doctor(&["--platform", "cuda"], &[("PYTHONLM_CACHE", empty.path())]);
    let (line, remedy) = finding(&screen, "PROBLEM", "cuda");
    assert!(line.contains("3 packages of the plugin are not here yet"), "{screen}");
    assert!(remedy.contains("jax-cuda13-pjrt==0.12.0.1 nvidia-cuda-nvcc==13.0.88 nvidia-nvvm=="), "{remedy}");
}

/// A folder with files of a machine, by path and text.
fn machine(files: &[(&str, &str)]) -> TempDir {
    let root = TempDir::new().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

#[test]
fn only_what_is_named_is_fetched() {
    let cache = TempDir::new().unwrap();
    // The wheels that are here already stand in for the registry.
    let wheels = cache_folder().unwrap().join("wheels");
    let environment = [("PYTHONLM_CACHE", cache.path()), ("PIP_FIND_LINKS", &wheels)];
    let fetched = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doctor-screen"));
        let output = command.args(args).env_remove("PJRT_PLUGIN_PATH").envs(environment).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (String::from_utf8(output.stdout).unwrap(), said, output.status.success())
    };
    let (screen, said, good) = fetched(&["--platform", "cpu", "--fetch"]);
    let (line, _) = finding(&screen, "ok", "cpu");
    assert!(good && line.ends_with("xla_cpu_pjrt.so") && screen.ends_with("all of it is here\n"), "{screen}");
    assert!(said.contains("fetching xla-cpu-pjrt 0.0.1") && screen.lines().count() == 2, "{said}{screen}");
    let (screen, said, good) = fetched(&["--platform", "cpu", "--fetch"]);
    assert!(good && said.is_empty(), "{said}{screen}");
    let (screen, _, good) = fetched(&["--platform", "gpu", "--fetch"]);
    assert!(!good && finding(&screen, "PROBLEM", "plugin").0.contains("found `gpu`"), "{screen}");
}

/// The variables of a v6e that a terminal may lack.
#[test]
fn a_tpu_without_its_environment_is_told_of() {
    let machine = machine(&[("dev/vfio/0", ""), ("dev/vfio/vfio", "")]);
    let empty = TempDir::new().unwrap();
    let screen = |set: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doctor-screen"));
        command.arg("--root").arg(machine.path()).env("PYTHONLM_CACHE", empty.path());
        for (name, _) in fetch::devices::V6E {
            command.env_remove(name);
        }
        let output = command.envs(set.iter().copied()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let env_of = |screen: &str| -> Vec<String> {
        let at = screen.lines().position(|line| line.contains(" tpu env ")).unwrap();
        screen.lines().skip(at).take(2).map(str::to_owned).collect()
    };
    let [line, remedy] = &env_of(&screen(&[("TPU_WORKER_ID", "0")]))[..] else { panic!() };
    assert!(
        line.starts_with("note") && line.contains("TPU_WORKER_ID=0; a v6e's notebook also has"),
        "{line}"
    );
    assert!(line.contains("libtpu asks a metadata server, for 60 s where there is none"), "{line}");
    // What is to be pasted sets all that is missing but the address of the machine's own service.
    let (_, rest) = remedy.split_once("`export ").unwrap();
    let mut given: Vec<(&str, &str)> =
        rest.split_once('`').unwrap().0.split(' ').map(|pair| pair.split_once('=').unwrap()).collect();
    assert_eq!(given.len(), 5, "{remedy}");
    assert!(remedy.contains("%env VBAR_CONTROL_SERVICE_URL"), "{remedy}");
    given.extend([("TPU_WORKER_ID", "0"), ("VBAR_CONTROL_SERVICE_URL", "10.0.0.1:8353")]);
    let full = screen(&given);
    let line = &env_of(&full)[0];
    assert!(line.starts_with("ok") && line.contains("TPU_CHIPS_PER_HOST_BOUNDS=2,2,1"), "{full}");
    let nowhere = TempDir::new().unwrap();
    let (screen, _) = doctor(&["--root", nowhere.path().to_str().unwrap()], &[]);
    assert!(!screen.contains("tpu env"), "{screen}");
}

#[test]
fn limits_of_control_groups_are_seen() {
    const MEMORY: &str = "MemTotal: 180355072 kB\nMemAvailable: 178257920 kB\n";
    let line = |files: &[(&str, &str)]| {
        let machine = machine(&[files, &[("proc/meminfo", MEMORY)]].concat());
        let (screen, _) = doctor(&["--root", machine.path().to_str().unwrap()], &[]);
        finding(&screen, "ok", "machine").0.to_owned()
    };
    let free = line(&[]);
    assert!(free.contains("172.0 GiB of memory, 170.0 GiB of it free") && !free.contains("limit"), "{free}");
    // The group above has less memory than this one, and this one less of a processor.
    let second = line(&[
        ("proc/self/cgroup", "0::/a/b\n"),
        ("sys/fs/cgroup/a/memory.max", "12884901888\n"),
        ("sys/fs/cgroup/a/cpu.max", "max 100000\n"),
        ("sys/fs/cgroup/a/b/memory.max", "max\n"),
        ("sys/fs/cgroup/a/b/cpu.max", "50000 100000\n"),
    ]);
    assert!(
        second.contains("12.0 GiB of memory (a control group's limit; the machine has 172.0 GiB)"),
        "{second}"
    );
    assert!(
        second.contains(" 0.5 cores (a control group's limit") && second.contains(", 12.0 GiB of it free")
    );
    // Version 1 in a container: the path is the host's, and what is mounted is the container's own group.
    let first = line(&[
        ("proc/self/cgroup", "5:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "8589934592\n"),
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "25000\n"),
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
    ]);
    assert!(
        first.contains(" 0.25 cores (") && first.contains(", 8.0 GiB of memory (a control group's"),
        "{first}"
    );
}

#[test]
fn a_package_with_another_hash_and_a_changed_library_are_found() {
    let cache = TempDir::new().unwrap();
    let library = Platform::Cpu.library(Purpose::Compute).unwrap();
    let changed = cache.path().join(library.strip_prefix(cache_folder().unwrap()).unwrap());
    fs::create_dir_all(changed.parent().unwrap()).unwrap();
    fs::write(changed, "cut off").unwrap();
    let (screen, healthy) = doctor(&[], &[("PYTHONLM_CACHE", cache.path())]);
    let (line, remedy) = finding(&screen, "PROBLEM", "cpu");
    assert!(!healthy && line.contains("was changed") && remedy.starts_with("delete "), "{screen}");

    let original = cache_folder().unwrap().join("wheels");
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

fn dump(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dump-program"))
        .args(args)
        .env_remove("PJRT_PLUGIN_PATH")
        .output()
        .unwrap()
}

/// What `dump-hlo` prints; it must succeed.
#[track_caller]
fn dumped(args: &[&str]) -> String {
    let output = dump(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// SwiGLU of 128 tokens, 128 -> 352, and the sizes that follow.
const SWIGLU: [&str; 9] = [
    "--preset",
    "tiny",
    "--program",
    "kernel:swiglu",
    "--micro-batch",
    "2",
    "--seq",
    "64",
    "--set=model.dropout=0",
];
const TOKENS: i64 = 128;
const WIDTH: i64 = 128;
const HIDDEN: i64 = 352;

#[test]
fn the_figures_of_a_known_program_are_those_of_its_formula() {
    let json: Value = serde_json::from_str(&dumped(&[&SWIGLU[..], &["--format", "json"]].concat())).unwrap();
    let products = 3 * 2 * TOKENS * WIDTH * HIDDEN;
    assert_eq!(json["ops"]["dot_general"], serde_json::json!({ "count": 3, "runs": 3.0 }));
    assert_eq!(json["flops"]["by_op"]["dot_general"].as_f64().unwrap(), products as f64);
    // r (x W) twice, g * sigmoid(g) * u, and the product of that: four products and a sigmoid of each hidden value.
    assert_eq!(json["flops"]["total"].as_f64().unwrap(), (products + 5 * TOKENS * HIDDEN) as f64);
    let kernels: Vec<_> = json["kernels"].as_object().unwrap().iter().collect();
    assert!(
        kernels.len() == 1 && kernels[0].0.starts_with("swiglu") && kernels[0].1 == "reference",
        "{kernels:?}"
    );
    assert_eq!(json["largest"][0]["bytes"].as_i64().unwrap(), TOKENS * HIDDEN * 4);
    assert!(json["largest"][0]["at"].as_str().unwrap().contains("kernels/src/swiglu"));
    assert!(json["compiled"].is_null() && json["open_loops"] == 0);

    let optimized = [&SWIGLU[..], &["--format", "json", "--stage", "optimized"]].concat();
    let json: Value = serde_json::from_str(&dumped(&optimized)).unwrap();
    let memory = &json["compiled"]["memory"];
    // x, the scale of its rows, and three matrices; y, g and u.
    assert_eq!(memory["arguments"].as_i64().unwrap(), 4 * (TOKENS * WIDTH + TOKENS + 3 * WIDTH * HIDDEN));
    let outputs = memory["outputs"].as_i64().unwrap() - 4 * TOKENS * (WIDTH + 2 * HIDDEN);
    // A tuple of pointers stands beside the results.
    assert!((0..=64).contains(&outputs), "{memory}");
    assert!(json["compiled"]["cost"]["flops"].as_f64().unwrap() >= products as f64);
    assert!(json["compiled"]["cycles"].is_null(), "the CPU compiler estimates no cycles");
    assert!(json["largest"][0]["bytes"].as_i64().unwrap() >= TOKENS * HIDDEN * 4);
}

#[test]
fn a_table_of_cycles_has_groups_a_roofline_and_what_changed() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (before, after) = (path("before.json"), path("after.json"));
    let v6e = ["--platform", "tpu:v6e:1x1", "--stage", "optimized", "--format", "json", "--out", &after];
    dumped(&[&SWIGLU[..], &v6e].concat());
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&after).unwrap()).unwrap();
    assert_eq!(json["platform"], "tpu:v6e:1x1");
    let cycles = &json["compiled"]["cycles"];
    let sum = |parts: Vec<&Value>, figure: &str| {
        parts.iter().map(|part| part[figure].as_f64().unwrap()).sum::<f64>()
    };
    let total = cycles["total"].as_f64().unwrap();
    assert!(
        total > 0.0 && sum(cycles["by_computation"].as_array().unwrap().iter().collect(), "cycles") == total
    );
    let groups: Vec<&Value> = cycles["breakdown"]["groups"].as_object().unwrap().values().collect();
    assert_eq!((groups.len(), sum(groups.clone(), "estimated")), (6, total));
    let matmuls = (3 * 2 * TOKENS * WIDTH * HIDDEN) as f64 / 493e3;
    let found = cycles["breakdown"]["groups"]["layer_matmuls"]["matmuls"].as_f64().unwrap();
    assert!((found / matmuls - 1.0).abs() < 1e-12, "{cycles:#}");
    // All weights come from main memory, at 936 bytes a cycle.
    let bytes = 4 * 3 * WIDTH * HIDDEN;
    let roofline = sum(groups, "roofline") + cycles["breakdown"]["transfers"].as_f64().unwrap();
    assert!(roofline > bytes as f64 / 936.0 && roofline < total, "{cycles:#}");

    // As if a thousand million cycles had gone.
    let estimated = &mut json["compiled"]["cycles"]["breakdown"]["groups"]["layer_matmuls"]["estimated"];
    *estimated = (estimated.as_f64().unwrap() + 1e9).into();
    fs::write(&before, json.to_string()).unwrap();
    let table = dumped(&["--from", &after, "--format", "cycles", "--against", &before]);
    println!("{table}");
    let change = |name: &str| {
        let line = table.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        line.split_whitespace().last().unwrap()
    };
    assert_eq!(
        ["estimate and kernels", "layer matmuls", "vocabulary"].map(change),
        ["-1000.0", "-1000.0", "+0.0"]
    );
    assert!(!table.contains("peer"), "the peer makes a step, no kernel alone: {table}");
    assert!(dumped(&["--from", &after, "--against", &after]).ends_with("nothing differs\n"));
}

#[test]
fn texts_name_parameters_and_lines() {
    let text = dumped(&["--program", "loss"]);
    assert!(
        text.starts_with("module @validation {")
            && text.contains("%params_layers_gate: tensor<4x128x352xf32>")
    );
    assert!(text.contains("loc(\"model/src/forward.rs\":"));
    let optimized = dumped(&[&SWIGLU[..], &["--stage", "optimized"]].concat());
    assert!(optimized.starts_with("HloModule ") && optimized.contains("ENTRY "), "{optimized}");
    assert!(optimized.contains("kernels/src/swiglu"), "the author's file is in the compiler's text");
    for program in ["prefill", "decode"] {
        let text = dumped(&["--program", program, "--seq", "64", "--micro-batch", "2"]);
        assert!(text.contains("func.func public @main") && text.contains("weights_"), "{program}");
    }
}

#[test]
fn a_difference_names_what_changed_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("before.json");
    let before = file.to_str().unwrap();
    dumped(&[&SWIGLU[..], &["--format", "json", "--out", before]].concat());
    assert!(dumped(&[&SWIGLU[..], &["--against", before]].concat()).ends_with("nothing differs\n"));
    let wider = dumped(&[&SWIGLU[..], &["--set=model.intermediate_size=704", "--against", before]].concat());
    println!("{wider}");
    let line = |end: &str| {
        wider.lines().find(|line| line.ends_with(end)).unwrap_or_else(|| panic!("no {end}:\n{wider}"))
    };
    assert!(line("flops  dot_general").contains("+100.0 %"));
    assert!(line("places dot_general f32[128,352]").contains("2 -> 0"));
    assert!(line("places dot_general f32[128,704]").contains("0 -> 2"));
}

#[test]
fn a_picture_shows_loops_kernels_and_shares() {
    let svg = dumped(&["--format", "svg"]);
    for part in [
        "scan, 4 turns forward",
        "scan, 4 turns reverse",
        "diff_attention_backward (native)",
        "params.mtp.proj",
        " %</text>",
    ] {
        assert!(svg.contains(part), "no `{part}`");
    }
    // Every tag is closed: rectangles by themselves, texts by an end.
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    assert_eq!(svg.matches("<rect").count() + svg.matches("<path").count(), svg.matches("/>").count());
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn what_cannot_be_shown_is_said_in_one_line() {
    let folder = TempDir::new().unwrap();
    let saved = folder.path().join("saved.json");
    let saved = saved.to_str().unwrap();
    let cpu = [&SWIGLU[..], &["--stage", "optimized", "--format", "json", "--out", saved]].concat();
    dumped(&cpu);
    let cases: [(&[&str], &str); 11] = [
        (
            &["--set=kernels=native", "--set=model.dtype=bf16"],
            "the step program has no native form for a CPU of",
        ),
        (
            &[&SWIGLU[..], &["--set=kernels=native"]].concat(),
            "swiglu(rate=0) of (f32[128,128], f32[128], f32[128,352], f32[128,352], f32[352,128])",
        ),
        (&["--program", "wat"], "wanted step, loss, prefill, decode, or kernel:NAME"),
        (
            &["--program", "kernel:wat"],
            "diff_attention, diff_attention_backward, linear_cross_entropy, rms_norm_linear, row_dot, swiglu, swiglu_backward",
        ),
        (&["--format", "svg", "--stage", "optimized"], "leave out --stage optimized"),
        (&["--format", "cycles"], "--platform tpu:v6e:1x1 --stage optimized"),
        (
            &["--format", "cycles", "--from", saved],
            "kernel:swiglu program for cpu (optimized) has no estimate",
        ),
        (&["--from", saved], "--format cycles or json"),
        (&["--against", "nowhere.json"], "--format json"),
        (&["--set", "batch.mikro=1"], "did you mean `batch.micro`?"),
        (&["--platform", "tpu:v9:1x1", "--stage", "optimized"], "v6e:1x1"),
    ];
    for (args, part) in cases {
        let output = dump(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
        // libtpu writes lines of its own.
        let ours = message.lines().any(|line| line.starts_with("error: "));
        assert!(output.stdout.is_empty() && ours, "{args:?}: {message}");
        assert!(message.contains(part), "{args:?}: no `{part}` in {message}");
    }
}
