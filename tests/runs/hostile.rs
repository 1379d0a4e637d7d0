//! What may happen to a run: signals at every point, damaged checkpoints and data, gradients that explode, a machine that is
//! gone, and a long time. Through the program that people start.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;
use tests::shards::shard;
use tests::trainer::{Bench, files};
use train::checkpoint::{latest_good, verify};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_trainer"))
}

/// A folder of documents, one row group of a hundred after the other, with the tokenizer of the bench's own data.
fn write_documents(bench: &Bench, folder: &str, file: &str, documents: &[Vec<i32>]) {
    let folder = bench.path(folder);
    fs::create_dir_all(&folder).unwrap();
    fs::copy(bench.path("data/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    fs::write(folder.join(file), shard(&[("input_ids", documents)], 100)).unwrap();
}

/// Documents of 31 tokens that count upwards: easy to learn.
fn counting(count: i32) -> Vec<Vec<i32>> {
    (0..count).map(|i| (0..31).map(|p| 10 + (i + p) % 16).collect()).collect()
}

/// Documents of 31 tokens without any order.
fn noise(count: i32) -> Vec<Vec<i32>> {
    let token = |n: i32| (n.wrapping_mul(1_103_515_245).wrapping_add(12_345) >> 8).rem_euclid(250) + 40;
    (0..count).map(|i| (0..31).map(|p| token(i * 31 + p)).collect()).collect()
}

fn temporary(folder: &Path) -> Vec<String> {
    let names = files(folder).into_keys().map(|path| path.display().to_string());
    names.filter(|name| name.contains(".tmp") || name.ends_with(".part")).collect()
}

// Signals.

#[test]
fn a_signal_while_compiling_ends_at_once_and_leaves_nothing() {
    let bench = bench();
    // A cache without executables, so that there is something to compile.
    let cache = bench.path("cache");
    let full = fetch::wheel::cache_folder().unwrap();
    fs::create_dir(&cache).unwrap();
    for name in ["unpacked", "wheels"] {
        if full.join(name).exists() {
            symlink(full.join(name), cache.join(name)).unwrap();
        }
    }
    for signal in ["-TERM", "-INT"] {
        let mut started =
            bench.start_with("early", &["--steps", "3"], &[("PYTHONLM_CACHE", cache.as_path())]);
        started.wait_for("batch    2 x 2 rows");
        std::thread::sleep(Duration::from_millis(300));
        started.signal(&[signal]);
        let (code, said) = started.end();
        // Had it waited for the compiler, the next line would be there.
        let compiled = said.lines().any(|line| line.starts_with("device "));
        assert!(!compiled, "compiled too soon for this test: {said}");
        assert_eq!(code, Some(75), "{said}");
        assert!(said.contains("there is nothing to save"), "{said}");
        assert!(!bench.path("early").exists());
        assert_eq!(temporary(&cache), [""; 0]);
    }
    bench.succeed("early", &["--steps", "3"]);
}

#[test]
fn a_signal_in_a_validation_does_not_wait_for_its_end() {
    let bench = bench();
    write_documents(&bench, "long", "train.parquet", &counting(400));
    write_documents(&bench, "long", "validation.parquet", &counting(6000));
    let args = [
        &["--data", "long", "--steps", "8"][..],
        &["--set", "data.fim_rate=0", "--set", "validation.batches=100000", "--set", "validation.every=4"],
    ]
    .concat();
    bench.succeed("whole", &args);
    let mut started = bench.start("stopped", &args);
    started.wait_for("\nready ");
    started.signal(&["-TERM"]);
    let (code, said) = started.end();
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("stopped at step 0") && !said.contains("validation loss"), "{said}");
    let mut started = bench.start("stopped", &args);
    // The next thing after this line is the validation at step 4.
    started.wait_for("step 4/8");
    started.signal(&["-TERM"]);
    let (code, said) = started.end();
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("stopped at step 4") && !said.contains("step 4 | validation"), "{said}");
    bench.succeed("stopped", &args);
    assert!(bench.checkpoint("stopped", 8) == bench.checkpoint("whole", 8));
}

/// The first block holds one document so long that cutting it for FIM takes seconds. A run that was started before and
/// goes on is the clock: while it waits for the same data, the other one has ended.
#[test]
fn a_signal_while_waiting_for_data_does_not_wait_for_them() {
    let bench = bench();
    let long: Vec<i32> = (0..30_000_000).map(|p| 10 + p % 16).collect();
    write_documents(&bench, "slow", "train.parquet", &[long]);
    write_documents(&bench, "slow", "validation.parquet", &counting(1));
    let args = ["--data", "slow", "--steps", "4", "--set", "data.fim_rate=1"];
    let mut clock = bench.start("clock", &args);
    let mut started = bench.start("out", &args);
    started.wait_for("validation loss");
    clock.wait_for("validation loss");
    started.signal(&["-TERM"]);
    let (code, said) = started.end();
    assert!(!clock.said().contains("step 1/4"), "it ended no sooner than its data came");
    clock.signal(&["-KILL"]);
    clock.end();
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("stopped at step 0"), "{said}");
}

#[test]
fn signals_while_a_checkpoint_is_written() {
    let bench = bench();
    let args = ["--steps", "500", "--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=2"];
    let checkpoints = bench.path("run/checkpoints");
    for (signals, codes) in [(&["-TERM"][..], [75, 75]), (&["-INT", "-TERM"], [130, 143])] {
        let mut started = bench.start("run", &args);
        started.wait_for("checkpoint run");
        started.signal(signals);
        let (code, said) = started.end();
        assert!(codes.map(Some).contains(&code), "{code:?} {said}");
        let found = latest_good(&checkpoints).unwrap();
        assert!(found.good.is_some() && found.refused.is_empty(), "{:?}", found.refused);
    }
    let mut last = bench.start("run", &args);
    last.wait_for("resume   run/checkpoints");
    last.wait_for("checkpoint run");
    last.signal(&["-TERM"]);
    assert_eq!(last.end().0, Some(75));
    assert_eq!(temporary(&bench.path("run")), [""; 0]);
}

// Damage.

#[test]
fn the_newest_good_checkpoint_is_taken_and_offered() {
    let bench = bench();
    let args = ["--steps", "8", "--set", "checkpoint.every=4"];
    bench.succeed("run", &args);
    let whole = bench.checkpoint("run", 8);
    let newest = bench.path("run/checkpoints/step_00000008");
    for file in [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "config.json",
        "tokenizer.json",
        "manifest.json",
    ] {
        let path = newest.join(file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 0x10;
        fs::write(&path, bad).unwrap();
        let refused = bench.fail("other", &["--steps", "8", "--resume", "run/checkpoints/step_00000008"]);
        println!("{refused}");
        assert!(
            refused.contains(file) && refused.contains("--resume run/checkpoints/step_00000004"),
            "{refused}"
        );
        if file == "optimizer.safetensors" {
            let said = bench.succeed("run", &args);
            let lines =
                ["passing over run/checkpoints/step_00000008: ", "resume   run/checkpoints/step_00000004"];
            assert!(lines.iter().all(|line| said.contains(line)) && said.contains(file), "{said}");
            // Trained again, it has taken the place of the damaged one.
            verify(&newest).unwrap();
            assert!(bench.checkpoint("run", 8) == whole);
        } else {
            fs::write(&path, good).unwrap();
        }
    }
}

#[test]
fn a_machine_that_is_gone_goes_on_from_the_mirror() {
    let bench = bench();
    let mirror = format!("checkpoint.mirror={}", bench.path("drive").display());
    let args = ["--set", "checkpoint.every=4", "--set", "checkpoint.keep_last=2", "--set", &mirror];
    bench.succeed("whole", &[&args[..], &["--steps", "24"]].concat());
    fs::remove_dir_all(bench.path("drive")).unwrap();
    let mut stopped = bench.start("gone", &[&args[..], &["--steps", "24"]].concat());
    stopped.wait_for("copied     ");
    stopped.signal(&["-TERM"]);
    let (code, said) = stopped.end();
    assert!(code == Some(75) && said.contains("drive/step_000000"), "{said}");
    fs::remove_dir_all(bench.path("gone")).unwrap();
    let found = latest_good(&bench.path("drive")).unwrap().good.unwrap();
    let said = bench.succeed("gone", &[&args[..], &["--steps", "24"]].concat());
    assert!(said.contains(&format!("resume   {}", found.path().display())), "{said}");
    assert!(said.contains("resume   copying it to gone/checkpoints"), "{said}");
    assert!(bench.checkpoint("gone", 24) == bench.checkpoint("whole", 24));
    let copied = latest_good(&bench.path("drive")).unwrap();
    assert!(copied.refused.is_empty() && copied.good.unwrap().state().progress.step == 24);
}

#[test]
fn a_damaged_row_group_is_named_and_left_out_or_stops_a_run_that_is_saved() {
    let bench = bench();
    write_documents(&bench, "damaged", "train.parquet", &counting(1200));
    let path = bench.path("damaged/train.parquet");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4..60].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let args = [
        "--data",
        "damaged",
        "--steps",
        "6",
        "--set",
        "data.fim_rate=0",
        "--set",
        "data.validation_fraction=0",
    ];
    let refused = bench.run("strict", &args);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    for part in ["damaged/train.parquet, row group", "data.max_bad_row_groups = 1", "all before is saved"] {
        assert!(message.contains(part), "no `{part}` in {message}");
    }
    let said = bench.succeed("lenient", &[&args[..], &["--set", "data.max_bad_row_groups=2"]].concat());
    assert!(
        said.contains("damaged/train.parquet, row group") && said.contains("left out; 1 of at most 2"),
        "{said}"
    );
}

// Numbers.

/// Rows that count, four steps of noise, rows that count: what is skipped, where the run goes back to, and that
/// neither depends on where it was stopped.
#[test]
fn bad_steps_are_skipped_replayed_and_gone_back_for() {
    let bench = bench();
    let documents = [counting(240), noise(24), counting(400)].concat();
    write_documents(&bench, "mixed", "train.parquet", &documents);
    let args = [
        &["--data", "mixed", "--steps", "100"][..],
        &["--set", "data.fim_rate=0", "--set", "data.shuffle=false", "--set", "data.packing=sequential"],
        &["--set", "data.validation_fraction=0", "--set", "checkpoint.every=10", "--set", "model.dropout=0"],
        &[
            "--set",
            "optimizer.learning_rate=0.01",
            "--set",
            "guard.spike_factor=2.5",
            "--set",
            "guard.bad_steps=4",
        ],
    ]
    .concat();
    let said = bench.succeed("whole", &args);
    println!("{said}");
    let bad = fs::read_to_string(bench.path("whole/bad_steps.jsonl")).unwrap();
    let bad: Vec<serde_json::Value> = bad.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        bad.len() >= 4 && said.contains("4 steps in a row left the weights as they were: back to"),
        "{said}"
    );
    // The state went back, the data did not.
    let rows = bench.state("whole", 100)["data"]["rows"].as_u64().unwrap();
    assert!(rows > 400, "{rows} rows");
    let number = bad[0]["step"].to_string();
    let before = files(&bench.path("whole"));
    let replayed = bench.succeed("whole", &[&args[..], &["--replay", &number]].concat());
    println!("{replayed}");
    assert!(
        replayed.contains("as recorded") && replayed.contains("the step left the weights as they were"),
        "{replayed}"
    );
    assert!(replayed.contains("row 3: "), "{replayed}");
    assert!(files(&bench.path("whole")) == before, "a replay writes nothing");
    let unknown = bench.fail("whole", &[&args[..], &["--replay", "3"]].concat());
    assert!(unknown.contains("that step changed the weights") && unknown.contains(&number), "{unknown}");

    for at in [5, 40, 61, 62, 63, 64, 66] {
        let out = format!("stopped_{at}");
        let mut started = bench.start(&out, &args);
        started.wait_for(&format!("step {at}/100"));
        started.signal(&["-TERM"]);
        let (code, _) = started.end();
        if code == Some(75) {
            bench.succeed(&out, &args);
        }
        assert!(bench.checkpoint(&out, 100) == bench.checkpoint("whole", 100), "stopped at {at}");
    }
}

#[test]
fn weights_that_overflow_are_gone_back_behind_and_then_the_run_stops() {
    let bench = bench();
    let args = ["--set", "checkpoint.every=5", "--set", "guard.bad_steps=5", "--set", "guard.rollbacks=2"];
    bench.succeed("run", &[&args[..], &["--steps", "10"]].concat());
    let good = bench.checkpoint("run", 10);
    let wild = ["--steps", "60", "--set", "optimizer.learning_rate=1e30"];
    let refused = bench.fail("run", &[&args[..], &wild].concat());
    assert!(
        refused.contains("optimizer.learning_rate was") && refused.contains("--accept-changes"),
        "{refused}"
    );
    let accepted = ["--accept-changes"];
    let output = bench.run("run", &[&args[..], &wild, &accepted].concat());
    let (said, message) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{said}{message}");
    assert!(said.contains("back to run/checkpoints/step_00000010"), "{said}");
    assert!(message.contains("going back 2 times did not help") && message.contains("--replay"), "{message}");
    let newest = latest_good(&bench.path("run/checkpoints")).unwrap().good.unwrap();
    assert!(newest.path().ends_with("step_00000010") && bench.checkpoint("run", 10) == good, "{newest:?}");
    let fresh = bench.run("fresh", &[&args[..], &wild].concat());
    let message = String::from_utf8(fresh.stderr).unwrap();
    assert!(message.contains("there is no checkpoint to go back to"), "{message}");
    // Sound numbers, and it goes on.
    bench.succeed("run", &[&args[..], &["--steps", "20"], &accepted].concat());
}

// Time and memory.

/// A run that writes checkpoints without pause holds one copy of its state beside the device's, never two.
#[test]
fn checkpoints_take_one_copy_of_the_state() {
    let bench = bench();
    let size =
        ["--set", "model.vocab_size=30000", "--set", "model.hidden_size=128", "--set", "model.head_dim=32"];
    let mut args = [&size[..], &["--steps", "8", "--set", "checkpoint.every=8"]].concat();
    // What is compiled for the first time takes more memory than any checkpoint.
    bench.succeed("first", &args);
    let state = bench.checkpoint("first", 8).iter().map(Vec::len).sum::<usize>() as u64;
    let mut peak = |out: &str, every: &'static str| {
        *args.last_mut().unwrap() = every;
        // What is freed goes back at once, where malloc would keep it for later.
        let malloc = ("MALLOC_MMAP_THRESHOLD_", Path::new("65536"));
        let mut started = bench.start_with(out, &args, &[malloc]);
        // Before the last checkpoint.
        started.wait_for("step 8/8");
        let peak = started.peak().unwrap();
        let (code, said) = started.end();
        assert_eq!(code, Some(0), "{said}");
        peak
    };
    let (none, always) = (peak("none", "checkpoint.every=8"), peak("always", "checkpoint.every=1"));
    let mib = |bytes: u64| bytes as f64 / 1048576.0;
    println!(
        "{:.0} MiB before any checkpoint, {:.0} MiB with one after each step; a state is {:.0} MiB",
        mib(none),
        mib(always),
        mib(state)
    );
    assert!(always < none + state + state / 2);
}

#[test]
fn memory_stays_flat_over_thousands_of_steps() {
    let bench = bench();
    let args = [
        "--steps",
        "4000",
        "--set",
        "checkpoint.every=100",
        "--set",
        "checkpoint.keep_last=1",
        "--set",
        "log.every=20",
    ];
    let mut started = bench.start("long", &args);
    started.wait_for("step 1000/4000");
    let early = started.resident().unwrap();
    started.wait_for("step 3900/4000");
    let late = started.resident().unwrap();
    let (code, said) = started.end();
    assert_eq!(code, Some(0), "{said}");
    let mib = |bytes: u64| bytes as f64 / 1048576.0;
    println!("{:.1} MiB after 1000 steps, {:.1} MiB after 3900", mib(early), mib(late));
    assert!(late < early + (12 << 20), "{:.1} MiB more", mib(late - early));
}
