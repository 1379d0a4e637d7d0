//! Memory, measured: what `train --plan` says against what steps take, and what a run takes that makes or reads its state.

use model::{Preset, initial_weights};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use train::atomic::RealDisk;
use train::checkpoint::{
    FORMAT, Keep, Progress, Reader, Snapshot, State, Store, checkpoint_bytes, latest_good,
};
use train::config::{Override, RunConfig, resolve};
use train::data::{Batch, Position};
use train::device::{CodeGeneration, Device};
use train::schedule::Phase;
use train::state::{DeviceState, StepInputs};
use train::step::step_of;

/// Large enough that the process's other memory does not matter: the tiny model with longer and more rows.
const SET: [&str; 3] = ["batch.micro=64", "batch.seq=256", "batch.accumulation=2"];

fn plan() -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.args(["--plan", "--json", "--tokens", "3000000", "--steps", "3"]).env_remove("PJRT_PLUGIN_PATH");
    for key in SET {
        command.args(["--set", key]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A figure of `/proc/self/status`, in bytes.
fn status(name: &str) -> i64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse::<i64>().unwrap() << 10
}

/// The smallest model that has every part.
const SMALL: [&str; 10] = [
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=2",
    "model.head_dim=8",
    "model.intermediate_size=32",
    "model.vocab_size=320",
    "model.num_tokens=320",
    "batch.micro=2",
    "batch.accumulation=2",
    "batch.seq=32",
];

fn configuration(set: &[&str]) -> RunConfig {
    let overrides: Vec<Override> = set.iter().map(|text| Override::parse(text).unwrap()).collect();
    resolve(Preset::Tiny, None, &overrides).unwrap().run
}

/// Makes a state and takes steps, ready to be done again.
fn steps(device: &Device, run: &RunConfig) -> impl Fn() {
    let remat = run.kept(device.memory().unwrap()).remat;
    let (step, _) = device.compile(&step_of(run, remat), CodeGeneration::Quick).unwrap();
    let rows = run.batch.rows() * run.batch.seq;
    let batch = Batch {
        shape: run.batch,
        ids: (0..rows as i32).map(|i| i % run.model.num_tokens as i32).collect(),
        segments: vec![0; rows],
        position: Position::default(),
        position_after: Position::default(),
    };
    move || {
        let mut state = DeviceState::new(device, run, initial_weights(&run.model, 0)).unwrap();
        for number in 0..3 {
            let inputs = StepInputs { learning_rate: 1e-3, largest_norm: f32::MAX, step: number, seed: 0 };
            let metrics = state.step(device, &step, &batch, inputs).unwrap().read().unwrap();
            assert!(metrics[0].is_finite() && metrics[4] == 1.0, "{metrics:?}");
        }
    }
}

/// What the process's memory grows by, at most, while a state is made and steps run.
fn measured(run: &RunConfig) -> i64 {
    let device = Device::open("cpu", run.kernels).unwrap();
    let large = steps(&device, run);
    // Steps of a small model bring in the plugin's code and its threads, which stay whatever the program is.
    steps(&device, &configuration(&SMALL))();
    growth(large)
}

/// What the process's memory grows by, at most, while something runs.
fn growth<T>(work: impl FnOnce() -> T) -> i64 {
    // The highest mark from here on.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    let made = work();
    let most = status("VmHWM");
    drop(made);
    most - before
}

/// What a test measures, in a process of its own whose C library gives freed blocks back to the system at once: what it
/// would keep for itself (a quarter of the step's memory, measured) is not the program's.
fn measured_alone(test: &str, what: &str) -> i64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--nocapture", "--exact", test]).env(MEASURE, what);
    let output =
        command.env("MALLOC_MMAP_THRESHOLD_", "65536").env("MALLOC_TRIM_THRESHOLD_", "65536").output();
    let said = String::from_utf8(output.unwrap().stdout).unwrap();
    let found = said.lines().find_map(|line| line.split_once("measured bytes: "));
    found.unwrap_or_else(|| panic!("no measurement in: {said}")).1.parse().unwrap()
}

/// Set in the process that measures, to what it measures.
const MEASURE: &str = "PYTHONLM_TEST_MEASURE";

#[test]
fn the_plan_says_what_a_run_takes() {
    if std::env::var_os(MEASURE).is_some() {
        println!("\nmeasured bytes: {}", measured(&configuration(&SET)));
        return;
    }
    let plan = plan();
    println!("{plan:#}");
    let run = configuration(&SET);
    let planned = plan["memory"]["total"].as_f64().unwrap();
    let found = measured_alone("the_plan_says_what_a_run_takes", "steps") as f64;
    println!("planned {:.1} MiB, measured {:.1} MiB", planned / 1048576.0, found / 1048576.0);
    assert!((found / planned - 1.0).abs() < 0.1, "planned {planned}, measured {found}");

    let weights: usize = initial_weights(&run.model, 0).map(|host| host.ty().bytes()).sum();
    assert_eq!(plan["parameters"]["total"].as_u64().unwrap() as usize * 4, weights);
    // Weights, two moments, and the number of updates.
    assert_eq!(plan["memory"]["state"].as_u64().unwrap() as usize, 3 * weights + 4);
    let parts = ["embedding", "attention", "mlp", "norms_and_lambda", "second_head"];
    let sum: u64 = parts.iter().map(|part| plan["parameters"][part].as_u64().unwrap()).sum();
    assert_eq!(sum, plan["parameters"]["total"].as_u64().unwrap());
    // 3 steps: one checkpoint at the end, and room for one that a stop left and for the one being written.
    let checkpoint = plan["disk"]["checkpoint"].as_u64().unwrap() as usize;
    assert!((3 * weights..3 * weights + 20_000).contains(&checkpoint), "{checkpoint}");
    assert_eq!(plan["disk"]["checkpoints"], 3);
    // Every figure says where it comes from.
    let basis = plan["basis"].as_array().unwrap();
    let of = |figure: &str| {
        let named = |basis: &&Value| {
            basis["figures"].as_str().unwrap().split(", ").any(|name| name.split('.').next() == Some(figure))
        };
        basis.iter().filter(named).map(|basis| basis["kind"].as_str().unwrap()).collect::<Vec<_>>()
    };
    for (figure, _) in plan.as_object().unwrap() {
        let given = ["platform", "device", "batch", "refused", "basis"].contains(&figure.as_str());
        assert!(given || !of(figure).is_empty(), "{figure} has no basis");
    }
    assert_eq!(
        (of("epoch_rows"), of("device_memory"), of("speed")),
        (vec!["assumed"], vec!["measured"], vec!["assumed"])
    );
    assert_eq!(of("memory"), ["measured", "derived"]);
    let speed = |end: &str| plan["speed"][end].as_f64().unwrap();
    assert!(0.0 < speed("low") && speed("low") < speed("high"));
    let largest = plan["micro_batch"]["largest"].as_u64().unwrap();
    let tried = plan["micro_batch"]["tried"].as_array().unwrap();
    let fits = |pair: &Value| pair[0].as_u64() <= Some(largest) && pair[1].is_u64();
    assert!(tried.iter().any(|pair| pair[0] == largest && fits(pair)), "{tried:?}");
    assert!(tried.iter().all(|pair| fits(pair) || pair[0].as_u64() > Some(largest)), "{tried:?}");
    // A step with all rows in the machine's memory, and not one with twice as many.
    let memory = |rows: u64| tried.iter().find(|pair| pair[0] == rows).and_then(|pair| pair[1].as_f64());
    let limit = plan["device_memory"].as_f64().unwrap();
    assert!(
        memory(largest).unwrap() <= limit && 2.2 * memory(largest).unwrap() > limit,
        "{tried:?} of {limit}"
    );
}

/// A state of 66 MiB.
const LARGE: [&str; 3] = ["model.vocab_size=8192", "model.num_tokens=8192", "model.hidden_size=256"];

/// A run's whole state in main memory.
fn snapshot(device: &Device, run: &RunConfig) -> Snapshot {
    let (params, optimizer) =
        DeviceState::new(device, run, initial_weights(&run.model, 0)).unwrap().to_host().unwrap();
    let state = State {
        format: FORMAT,
        run: None,
        progress: Progress::default(),
        seed: 0,
        init: None,
        phase: Phase::Stable,
        keep: Keep::Rolling,
        settings: Vec::new(),
        hashes: Default::default(),
        written_by: "test".into(),
    };
    Snapshot { params, optimizer, state, config: run.model.clone(), tokenizer: None }
}

/// What the memory grows by while a run's state comes to be as it does at a start.
fn measured_start(run: &RunConfig, checkpoints: &Path, what: &str) -> i64 {
    let device = Device::open("cpu", run.kernels).unwrap();
    let new = |run: &RunConfig| DeviceState::new(&device, run, initial_weights(&run.model, 0)).unwrap();
    // The plugin's code, and the programs that make zeros.
    drop(new(&configuration(&SMALL)));
    drop(new(run));
    match what {
        "start" => growth(|| new(run)),
        "resume" => growth(|| {
            let good = latest_good(checkpoints).unwrap().good.unwrap();
            DeviceState::restore(&device, run, &Reader::open(&good, &run.model).unwrap()).unwrap()
        }),
        // What a device takes at once leaves main memory.
        "made" => growth(|| initial_weights(&run.model, 0).for_each(drop)),
        "read" => growth(|| {
            let good = latest_good(checkpoints).unwrap().good.unwrap();
            let reader = Reader::open(&good, &run.model).unwrap();
            reader.weights().for_each(|weight| drop(weight.unwrap()));
            for name in reader.optimizer_names() {
                drop(reader.optimizer_tensor(&name).unwrap());
            }
        }),
        _ => growth(|| snapshot(&device, run)),
    }
}

/// On a CPU the device's memory is this process's, so one state is what there must be. At a start each weight is made in main
/// memory and goes when it is on the device, where the moments are made: never more than the state and a weight. A resume reads
/// one tensor after another, and of the weights one layer's part beside all layers': at most twice the largest one more, which
/// is the embedding, 8 MiB or an eighth of the state. 0.1 more is for what the process does beside.
///
/// Where the device has a memory of its own, what is left in main memory is one tensor at a start, and at most two at a
/// resume. A save stages the state.
#[test]
fn a_start_and_a_resume_hold_the_state_once() {
    let run = configuration(&LARGE);
    if let Some(what) = std::env::var_os(MEASURE) {
        let what = what.into_string().unwrap();
        let (what, checkpoints) = what.split_once(' ').unwrap();
        println!("\nmeasured bytes: {}", measured_start(&run, Path::new(checkpoints), what));
        return;
    }
    let device = Device::open("cpu", run.kernels).unwrap();
    let snapshot = snapshot(&device, &run);
    let types: Vec<_> =
        snapshot.optimizer.iter().map(|(name, host)| (name.clone(), host.ty().clone())).collect();
    let state = checkpoint_bytes(&run.model, &types, 0) as f64;
    let folder = tempfile::tempdir().unwrap();
    Store::open(Arc::new(RealDisk), folder.path()).unwrap().save(&snapshot).unwrap();
    let share = |what: &str| {
        let what = format!("{what} {}", folder.path().display());
        measured_alone("a_start_and_a_resume_hold_the_state_once", &what) as f64 / state
    };
    let (start, resume, copied) = (share("start"), share("resume"), share("copy"));
    let largest = initial_weights(&run.model, 0).map(|host| host.ty().bytes()).max().unwrap() as f64 / state;
    let (made, read) = (share("made"), share("read"));
    println!("without the device: made {made:.3}, read {read:.3}, the largest tensor {largest:.3}");
    assert!(made < largest + 0.05 && read < 2.0 * largest + 0.05, "{made} {read} {largest}");
    println!(
        "of the state, {:.1} MiB: start {start:.2}, resume {resume:.2}, with a copy {copied:.2}",
        state / 1048576.0
    );
    assert!((0.9..1.1).contains(&start) && (0.9..1.35).contains(&resume), "{start} {resume}");
    // What it would be, measured the same way.
    assert!(copied > 1.9, "{copied}");
}
