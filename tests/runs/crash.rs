//! kill -9 at random moments of a training run, started again each time by the same command: the final weights are those of
//! the run that nobody killed, bit by bit, and nothing is left over.
//!
//! `cargo test -p tests --test runs crash::` kills 8 times, `KILLS=50 cargo test -p tests --test runs crash:: -- --nocapture` 50 times.

use std::env;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tests::trainer::{Bench, files};
use train::checkpoint::{latest_good, newest_step};

/// What a killed process was doing, as its folder shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hits {
    starting: usize,
    training: usize,
    writing: usize,
}

const STEPS_A_KILL: usize = 60;
const CHECKPOINT_EVERY: u64 = 5;

/// As many kills as the variable `KILLS` says, 8 without it.
#[test]
fn kills_lose_nothing() {
    let kills = env::var("KILLS").map_or(8, |kills| kills.parse().expect("KILLS is a number"));
    survives(kills);
}

fn survives(kills: usize) {
    let bench = Bench::new(env!("CARGO_BIN_EXE_trainer"));
    let steps = kills * STEPS_A_KILL;
    let (steps_text, every) = (steps.to_string(), format!("checkpoint.every={CHECKPOINT_EVERY}"));
    let args = [
        ["--steps", &steps_text],
        ["--set", &every],
        ["--set", "checkpoint.keep_last=2"],
        ["--set", "validation.every=50"],
    ];
    let args = args.concat();
    let start = Instant::now();
    bench.succeed("whole", &args);
    // The program is in the cache of executables: what the children wait for is the rest.
    let whole = start.elapsed();
    let spawn = || {
        let mut command = bench.command("killed", &args);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let saved = || newest_step(&bench.path("killed/checkpoints")).unwrap();
    let mut startup = Duration::from_secs(1);
    let mut hits = Hits::default();
    for kill in 0..kills {
        let before = saved();
        let mut child = spawn();
        let born = Instant::now();
        if kill % 3 == 0 && kill > 0 {
            // Anywhere from the first instruction on.
            std::thread::sleep(startup.mul_f64(random()));
        } else {
            wait_for(&mut child, || saved() != before);
            startup = born.elapsed();
            // A few more checkpoints, then anywhere between two: counted, so that a quick machine does not end the run.
            let far = saved().unwrap_or(0) + CHECKPOINT_EVERY * (4.0 * random()) as u64;
            wait_for(&mut child, || saved().unwrap_or(0) >= far);
            std::thread::sleep(Duration::from_millis(20).mul_f64(random()));
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself before kill {kill}: too few steps");
        child.kill().unwrap();
        child.wait().unwrap();
        match saved() == before {
            _ if litter(&bench.path("killed")) > 0 => hits.writing += 1,
            true => hits.starting += 1,
            false => hits.training += 1,
        }
        // At every moment, a folder with a checkpoint's name is a whole checkpoint.
        let found = latest_good(&bench.path("killed/checkpoints")).unwrap();
        assert!(found.refused.is_empty(), "kill {kill}: {:?}", found.refused);
    }
    let said = bench.succeed("killed", &args);
    assert!(said.contains("resume   "), "{said}");
    println!("{kills} kills ({hits:?}) in a run of {steps} steps that takes {whole:.1?}: nothing lost");
    let last = steps as u64;
    assert!(bench.checkpoint("killed", last) == bench.checkpoint("whole", last), "other weights");
    assert_eq!(bench.course("killed", last), bench.course("whole", last));
    assert_eq!(litter(&bench.path("killed")), 0, "temporary files stay");
    assert!(losses(&bench.path("killed")) == losses(&bench.path("whole")), "each step is recorded once");
    assert!(hits.training > 0 && kills < 20 || hits.writing > 0, "{hits:?}");
}

/// Uniform in [0, 1).
fn random() -> f64 {
    (RandomState::new().hash_one(Instant::now()) >> 11) as f64 / (1_u64 << 53) as f64
}

fn wait_for(child: &mut Child, what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(600));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Files below names that are not durable yet.
fn litter(folder: &Path) -> usize {
    files(folder).keys().filter(|path| path.to_string_lossy().contains(".tmp")).count()
}

/// Step and loss of every record, of training and of held-out rows.
fn losses(folder: &Path) -> Vec<(u64, String)> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let record = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        (record["step"].as_u64().unwrap(), format!("{} {}", record["kind"], record["loss"]))
    };
    text.lines().map(record).collect()
}
