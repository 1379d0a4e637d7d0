//! Runs that end before their last step, and the checkpoints with the lowest validation loss.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use tests::trainer::{Bench, files};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_trainer"))
}

/// Steps and losses of a run's evaluations.
fn evaluations(bench: &Bench, out: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(bench.path(out).join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records
        .filter(|record| record["kind"] == "validation")
        .map(|record| (record["step"].as_u64().unwrap(), record["loss"].as_f64().unwrap()))
        .collect()
}

fn steps(bench: &Bench, folder: &str) -> BTreeSet<u64> {
    let all = train::checkpoint::steps(&bench.path(folder)).unwrap();
    all.into_iter().map(|(step, _)| step).collect()
}

/// No loss is lower by 100 nats, so the third evaluation, that of step 6, ends the run.
#[test]
fn a_run_ends_when_its_loss_is_no_lower_wherever_it_was_stopped() {
    let bench = bench();
    let mut args = vec!["--steps", "40"];
    for key in
        ["validation.every=3", "validation.patience=2", "validation.min_delta=100", "checkpoint.every=4"]
    {
        args.extend(["--set", key]);
    }
    let said = bench.succeed("whole", &args);
    assert!(
        said.contains("ended early      at step 6 of 40: 2 evaluations in a row were not lower by 100 nats"),
        "{said}"
    );
    assert_eq!(evaluations(&bench, "whole").iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 3, 6]);
    assert_eq!(bench.state("whole", 6)["keep"], "rolling");
    assert_eq!(bench.state("whole", 6)["evaluations"]["without_improvement"], 2);
    // Again: nothing is trained, and the same is said.
    let before = files(&bench.path("whole/checkpoints"));
    let again = bench.succeed("whole", &args);
    assert!(again.contains("ended early      at step 6 of 40") && !again.contains("step 7/"), "{again}");
    assert!(files(&bench.path("whole/checkpoints")) == before);

    // Killed before the last checkpoint, on a machine whose records are lost: the count is in the checkpoint.
    bench.succeed("killed", &args);
    fs::remove_dir_all(bench.path("killed/checkpoints/step_00000006")).unwrap();
    fs::remove_file(bench.path("killed/metrics.jsonl")).unwrap();
    let said = bench.succeed("killed", &args);
    assert!(said.contains("resume   ") && said.contains("ended early      at step 6 of 40"), "{said}");
    assert!(bench.checkpoint("killed", 6) == bench.checkpoint("whole", 6));
    assert_eq!(bench.course("killed", 6), bench.course("whole", 6));

    // What is said to be typed trains to the end.
    let command = said.lines().find(|line| line.trim().starts_with("cargo run")).unwrap();
    let said = bench.paste(command);
    assert!(said.contains("settings validation.patience was 2, is auto"), "{said}");
    assert!(
        bench.path("killed/checkpoints/step_00000040").exists() && !said.contains("ended early"),
        "{said}"
    );
}

/// Without `validation.patience` nothing ends early.
#[test]
fn the_best_checkpoints_are_kept_and_named() {
    let bench = bench();
    let mut args = vec!["--steps", "24"];
    // A rate at which the loss goes up and down.
    for key in [
        "validation.every=2",
        "checkpoint.every=2",
        "checkpoint.keep_last=1",
        "checkpoint.keep_epochs=0",
        "checkpoint.keep_best=3",
        "schedule.kind=constant",
        "optimizer.learning_rate=0.1",
    ] {
        args.extend(["--set", key]);
    }
    let said = bench.succeed("run", &args);
    let mut all = evaluations(&bench, "run");
    assert_eq!(all.len(), 13);
    // There is no checkpoint of step 0.
    all.retain(|(step, _)| *step > 0);
    all.sort_by(|a, b| a.1.total_cmp(&b.1));
    println!("{all:?}");
    let best: BTreeSet<u64> = all[..3].iter().map(|(step, _)| *step).collect();
    let kept = steps(&bench, "run/checkpoints");
    assert!(best.is_subset(&kept), "{best:?} of {kept:?}");
    assert!(kept.iter().all(|step| best.contains(step) || *step == 24), "{kept:?}");
    let name = format!("best checkpoint  run/checkpoints/step_{:08}: validation loss", all[0].0);
    assert!(said.contains(&name), "{name}: {said}");
    for step in &kept {
        let last = &bench.state("run", *step)["evaluations"]["last"];
        assert_eq!(last["step"].as_u64(), Some(*step), "each knows its own loss");
    }
}
