//! What a person is told: one message that names the thing and the remedy, exit code 1, nothing half-written.

use std::fs;
use tests::trainer::{Bench, files};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_trainer"))
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
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
