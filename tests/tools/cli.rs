//! Messages: one that names the thing and the remedy, exit code 1, nothing half-written.

use crate::evaluation::says;
use std::fs;
use tests::trainer::{Bench, files};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_trainer"))
}

#[test]
fn bad_input_is_named_with_its_remedy() {
    let bench = bench();
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["--set", "optimizer.learning_rte=1"],
            &["unknown key `optimizer.learning_rte`", "did you mean `optimizer.learning_rate`?"],
        ),
        (&["--data", "nowhere"], &["nowhere", "prepare-data"]),
        (&["--data", "empty"], &["empty", "prepare-data"]),
        (&["--set", "model.num_tokens=200"], &["200", "model.num_tokens"]),
        (&["--set", "batch.seq=65"], &["`batch.seq` is 65", "at most model.max_position_embeddings (64)"]),
        (&["--set", "model.head_dim=7"], &["`head_dim` is 7", "even"]),
        (&["--resume", "data"], &["data is not a checkpoint", "give a folder step_"]),
        (
            &["--branch-decay", "3"],
            &["--branch-decay needs a checkpoint of the stable phase", "--resume PATH"],
        ),
        (&["--init", "nowhere"], &["nowhere"]),
    ];
    fs::create_dir(bench.path("empty")).unwrap();
    for (args, parts) in cases {
        let message = bench.fail("out", args);
        println!("{message}");
        says(&message, parts);
    }
}

/// The reason that the system gives, with its number, is there once.
#[test]
fn what_the_system_says_is_said_once() {
    let bench = bench();
    fs::write(bench.path("file"), "").unwrap();
    fs::create_dir_all(bench.path("weights/config.json")).unwrap();
    fs::create_dir_all(bench.path("recorded/metrics.jsonl")).unwrap();
    for name in ["tokenizer.json", "dataset.json"] {
        let folder = bench.path(&format!("odd_{name}"));
        fs::create_dir(&folder).unwrap();
        for (path, bytes) in files(&bench.path("data")) {
            fs::write(folder.join(path), bytes).unwrap();
        }
        fs::remove_file(folder.join(name)).unwrap();
        fs::create_dir(folder.join(name)).unwrap();
    }
    let cases: &[(&str, &[&str])] = &[
        ("out", &["--config", "nowhere.toml"]),
        ("out", &["--config", "data"]),
        ("out", &["--data", "odd_tokenizer.json"]),
        ("out", &["--data", "odd_dataset.json"]),
        ("out", &["--init", "weights"]),
        ("file/out", &[]),
        ("recorded", &[]),
    ];
    for (out, args) in cases {
        let output = bench.run(out, &[&["--steps", "2"], *args].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        println!("{message}");
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert_eq!(message.matches("(os error ").count(), 1, "{message}");
    }
}

/// The command in what a run said last.
fn command(said: &str) -> &str {
    said.lines().rev().find(|line| line.contains("cargo run -p train --")).expect("a command")
}

#[test]
fn what_to_type_next_works_when_it_is_pasted() {
    let bench = bench();
    fs::rename(bench.path("data"), bench.path("my data")).unwrap();
    let given = [
        "--data",
        "my data",
        "--set",
        "checkpoint.every=2",
        "--set",
        "checkpoint.mirror=the 'drive'",
        "--set",
        "schedule.decay_fraction=0.1",
    ];
    let out = "a run's 1st";
    // A step of warmup, and the decay from step 5 on.
    let said = bench.succeed(out, &[&given[..], &["--steps", "6"]].concat());
    says(&said, &["next: train longer, from step 4, before the rate decayed"]);
    let before = files(bench.path("").as_path());
    let said = bench.paste(command(&said));
    says(&said, &["resume   a run's 1st/checkpoints/step_00000004", "12 steps"]);
    bench.checkpoint("a run's 1st-2", 12);
    let after = files(bench.path("").as_path());
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)), "the first run is as it was");
    assert!(bench.path("the 'drive'-2/step_00000012").exists());
    // It goes on at the rate at which the first run had stopped.
    let rates: Vec<f64> = fs::read_to_string(bench.path("a run's 1st-2/metrics.jsonl"))
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["learning_rate"].as_f64())
        .collect();
    assert!(rates[..6].iter().all(|rate| *rate == 4e-3), "{rates:?}");

    // To train longer: a branch begins again where it began, a run without a checkpoint before its decay begins anew, and one
    // without a decay goes on.
    let stable = "a run's 1st/checkpoints/step_00000004";
    // A mirror is one run's.
    let own = ["--set", "checkpoint.mirror=drive of the branch", "--resume", stable, "--branch-decay", "2"];
    let said = bench.succeed("branch", &[&given[..], &own].concat());
    says(&bench.paste(command(&said)), &["resume   a run's 1st/checkpoints/step_00000004", "12 steps"]);
    let plain = ["--data", "my data", "--steps", "3"];
    let said = bench.succeed("short", &plain);
    says(&said, &["from the beginning, as no checkpoint from before the decay was kept"]);
    bench.paste(command(&said));
    bench.checkpoint("short-2", 6);
    let said = bench.succeed("constant", &[&plain[..], &["--set", "schedule.kind=constant"]].concat());
    says(&bench.paste(command(&said)), &["resume   constant/checkpoints/step_00000003"]);
    bench.checkpoint("constant", 6);
}

/// Where a message says what to type, that is typed.
#[test]
fn advice_can_be_followed() {
    let bench = bench();
    let run = ["--set", "steps=4", "--set", "checkpoint.every=2", "--set", "schedule.decay_fraction=0.1"];
    bench.succeed("run", &run);
    let newest = "run/checkpoints/step_00000004";
    let before = files(&bench.path("run"));
    // What is refused, what is said, and what is then typed instead.
    type Case<'a> = (&'a str, &'a [&'a str], &'a str, (&'a str, &'a [&'a str]));
    let wide = ["--set", "model.intermediate_size=64"];
    let moment = ["--set", "optimizer.first_moment=bf16"];
    let seed = ["--set", "data.fim_rate=0.1"];
    let cases: &[Case] = &[
        (
            "run",
            &wide,
            "in another --out with --resume never",
            ("a", &[wide[0], wide[1], "--resume", "never"]),
        ),
        (
            "run",
            &["--steps", "3"],
            "in another --out with --resume never",
            ("b", &["--steps", "3", "--resume", "never"]),
        ),
        ("run", &["--resume", "never"], "go on from it with --resume auto", ("run", &["--resume", "auto"])),
        ("run", &["--resume", "never"], "give another --out", ("c", &["--resume", "never"])),
        ("run", &moment, "--init and another --out", ("d", &[moment[0], moment[1], "--init", newest])),
        ("run", &seed, "--init and another --out", ("e", &[seed[0], seed[1], "--init", newest])),
        ("run", &["--init", newest], "give another --out", ("f", &["--init", newest])),
        (
            "g",
            &["--init", newest, "--resume", newest],
            "leave out --init or --resume",
            ("g", &["--init", newest]),
        ),
        (
            "run",
            &["--branch-decay", "1", "--resume", "run/checkpoints/step_00000002"],
            "its own --out",
            ("h", &["--branch-decay", "1", "--resume", "run/checkpoints/step_00000002"]),
        ),
    ];
    for (out, args, advice, (then, typed)) in cases {
        let message = bench.fail(out, &[&run[..], args].concat());
        println!("{message}");
        says(&message, &[advice]);
        bench.succeed(then, &[&run[..], typed].concat());
    }
    // All but the plot and the events of the finished run that was opened once more.
    let checkpoints = |files: &std::collections::BTreeMap<std::path::PathBuf, Vec<u8>>| {
        files
            .iter()
            .filter(|(path, _)| path.starts_with("checkpoints"))
            .map(|(p, b)| (p.clone(), b.clone()))
            .collect::<Vec<_>>()
    };
    assert!(checkpoints(&files(&bench.path("run"))) == checkpoints(&before));

    // A run that began with given weights goes on with the same command.
    let init = ["--set", "checkpoint.every=2", "--init", newest];
    let said = bench.succeed("f", &[&init[..], &["--steps", "6"]].concat());
    says(&said, &["resume   f/checkpoints/step_00000004"]);
}

/// The weights' own config.json says what they are, unless the command line does.
#[test]
fn given_weights_bring_their_architecture() {
    let bench = bench();
    bench.succeed("run", &["--steps", "2"]);
    let weights = "run/checkpoints/step_00000002";
    let run = |out: &str, args: &[&str]| {
        let keys = ["batch.seq=32", "batch.micro=2", "data.epochs=100", "validation.batches=1"];
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trainer"));
        command.current_dir(bench.path("")).args(["--data", "data", "--steps", "1", "--out", out]);
        keys.iter().for_each(|key| _ = command.args(["--set", key]));
        command.arg("--init");
        command.args(args).output().unwrap()
    };
    let file = format!("{weights}/model.safetensors");
    for (out, weights) in [("folder", weights), ("file", &file)] {
        let output = run(out, &[weights]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let config = fs::read_to_string(bench.path(&format!("{out}/config.toml"))).unwrap();
        says(
            &config,
            &[
                &format!("hidden_size = 32 # --init {weights}. Width"),
                "dropout = 0.0 # preset tiny. Probability",
            ],
        );
    }
    let refused = |args: &[&str]| String::from_utf8(run("refused", args).stderr).unwrap();
    says(&refused(&[weights, "--preset", "tiny"]), &["belong to another model", "leave out --preset"]);
    says(
        &refused(&[weights, "--set", "model.head_dim=16"]),
        &[
            "belong to another model: head_dim is 16 here and 8 there",
            "leave out --preset and model.head_dim",
        ],
    );
    assert!(!bench.path("refused").exists());
}

/// Training and validation can be compared: the next token's loss apart, and a mean over the steps between two lines.
#[test]
fn the_loss_that_is_shown_is_a_mean_of_the_next_tokens() {
    let bench = bench();
    let records = |out: &str, every: &str| -> Vec<serde_json::Value> {
        let said = bench.succeed(out, &["--steps", "12", "--set", &format!("log.every={every}")]);
        says(
            &said,
            &[
                "of the next token, and beside it of the second head",
                "| loss ",
                ", second head ",
                "validation loss ",
            ],
        );
        let text = fs::read_to_string(bench.path(&format!("{out}/metrics.jsonl"))).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|r: &serde_json::Value| r["kind"] == "train")
            .collect()
    };
    let (single, means) = (records("single", "1"), records("means", "4"));
    assert_eq!((single.len(), means.len()), (12, 3));
    for (mean, steps) in means.iter().zip(single.chunks(4)) {
        for name in ["loss", "mtp_loss"] {
            let losses: Vec<f64> = steps.iter().map(|step| step[name].as_f64().unwrap()).collect();
            let found = mean[name].as_f64().unwrap();
            // Steps have between 1/2 and all of their 128 targets, so none weighs more than twice the others.
            let (low, high) = losses.iter().fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
            let plain = losses.iter().sum::<f64>() / 4.0;
            assert!((found - plain).abs() <= (high - low) / 4.0, "{name}: {found} of {losses:?}");
            assert!(found != losses[3], "{name}: not the last step alone");
        }
    }
}

/// A model that sees context writes better than one that counts pairs.
#[test]
fn training_learns() {
    let bench = bench();
    let said =
        bench.succeed("run", &["--steps", "300", "--set", "data.fim_rate=0", "--set", "log.every=100"]);
    let [loss, bigram] = ["validation loss", "a bigram model"].map(|name| number(&said, name));
    println!("{loss} against {bigram}");
    assert!(loss < bigram, "{said}");
}

/// The first command of README, on a cache without data. It does not wait for all of its steps.
#[test]
fn the_first_command_needs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    fs::create_dir(&cache).unwrap();
    // What was fetched is not fetched again.
    for fetched in ["wheels", "unpacked"] {
        let from = fetch::wheel::cache_folder().unwrap().join(fetched);
        std::os::unix::fs::symlink(from, cache.join(fetched)).unwrap();
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.args(["--steps", "60"]).env("PYTHONLM_CACHE", &cache).current_dir(folder.path());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    println!("{said}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    says(&said, &["preparing the Python standard library once", "sample", "next: train longer"]);
    let (loss, bigram) = (number(&said, "validation loss"), number(&said, "a bigram model"));
    let begun = number(&said, "step 0 | validation loss");
    // All 4096 tokens are equally likely at first; how often each occurs is learned in a few steps.
    assert!((begun - 4096_f64.ln()).abs() < 0.3 && loss < 0.85 * begun && bigram < begun, "{said}");
    assert!(folder.path().join("runs/default/loss.svg").exists());
}

/// The number after a name at the beginning of a line.
#[track_caller]
fn number(said: &str, name: &str) -> f64 {
    let line = said.lines().rev().find_map(|line| line.strip_prefix(name)).expect("a line of this name");
    line.split_whitespace().next().unwrap().trim_end_matches(',').parse().unwrap()
}

#[test]
fn a_dry_run_writes_nothing() {
    let bench = bench();
    let said = bench.succeed("dry", &["--steps", "3", "--dry-run"]);
    says(&said, &["nothing was trained or written", "MiB"]);
    assert!(!bench.path("dry").exists());
}

/// Weights of another run, a decay beside a trunk, and what both refuse.
#[test]
fn starting_from_checkpoints() {
    let bench = bench();
    let trunk = ["--steps", "10", "--set", "checkpoint.every=4", "--set", "schedule.decay_fraction=0.3"];
    bench.succeed("trunk", &trunk);
    let before = files(&bench.path("trunk"));
    let [stable, decay] = ["trunk/checkpoints/step_00000004", "trunk/checkpoints/step_00000008"];

    let said = bench.succeed("branch", &[&trunk[..], &["--resume", stable, "--branch-decay", "2"]].concat());
    says(&said, &["branch   decay over 2 steps from step 4"]);
    assert_eq!(bench.state("branch", 6)["phase"], "decay");
    let said = bench.succeed("anew", &["--steps", "2", "--init", stable]);
    says(&said, &["weights  from trunk/checkpoints/step_00000004"]);
    assert_eq!(bench.state("anew", 2)["step"], 2);

    let refused: &[(&str, &[&str], &[&str])] = &[
        (
            "late",
            &["--resume", decay, "--branch-decay", "2"],
            &["step_00000008", "starts in the stable phase"],
        ),
        ("trunk", &["--resume", stable, "--branch-decay", "2"], &["trunk", "give it its own --out"]),
        ("trunk", &["--init", stable], &["--init starts a new run", "give another --out"]),
        ("trunk", &["--resume", "never"], &["already holds checkpoint", "--resume auto"]),
        ("trunk", &["--set", "model.intermediate_size=64"], &["another model", "intermediate_size"]),
        (
            "wide",
            &["--init", stable, "--set", "model.intermediate_size=64"],
            &["another model", "intermediate_size"],
        ),
    ];
    for (out, args, parts) in refused {
        let message = bench.fail(out, &[&trunk[..], args].concat());
        println!("{message}");
        says(&message, parts);
    }
    assert!(files(&bench.path("trunk")) == before, "the trunk is untouched");
}

/// The CPU plugin's temporaries come from malloc, which is told about large pages before the process starts.
#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn memory_is_taken_in_large_pages_unless_told_otherwise() {
    let bench = bench();
    let tunables = |variables: &[(&str, &std::path::Path)]| {
        let mut run = bench.start_with("run", &["--steps", "100000"], variables);
        run.wait_for("step 1/");
        let environment = fs::read(format!("/proc/{}/environ", run.id())).unwrap();
        run.signal(&["-KILL"]);
        run.end();
        fs::remove_dir_all(bench.path("run")).unwrap();
        let variables = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let found: Vec<String> =
            variables.filter(|v| v.starts_with("GLIBC_TUNABLES=")).map(Into::into).collect();
        found.join(" and ")
    };
    says(&tunables(&[]), &["glibc.malloc.hugetlb=1"]);
    let own = "glibc.malloc.arena_max=3";
    assert_eq!(tunables(&[("GLIBC_TUNABLES", own.as_ref())]), format!("GLIBC_TUNABLES={own}"));
}
