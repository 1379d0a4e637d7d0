//! A run that stops and goes on is the run that did not stop, bit by bit, through the program that people start.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};
use tests::close::{F32, error};
use tests::trainer::{Bench, files};
use train::checkpoint::latest_good;

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_trainer"))
}

#[test]
fn going_on_is_bit_exact_and_a_finished_run_stays() {
    let bench = bench();
    let args = ["--steps", "24", "--set", "checkpoint.every=7"];
    bench.succeed("whole", &args);
    let whole = bench.checkpoint("whole", 24);
    let epoch = |step| bench.state("whole", step)["data"]["epoch"].as_u64().unwrap();
    assert!(epoch(7) < epoch(24), "the test must cross the end of an epoch");
    // From within an epoch, in the stable phase and in the decay.
    for step in [7, 21] {
        let out = format!("from_{step}");
        let from = format!("whole/checkpoints/step_{step:08}");
        bench.succeed(&out, &[&args[..], &["--resume", &from]].concat());
        assert!(bench.checkpoint(&out, 24) == whole, "from step {step}");
        assert_eq!(bench.course(&out, 24), bench.course("whole", 24));
    }
    // In place: the newest checkpoints are lost, the same command goes on from the one before.
    for step in [21, 24] {
        fs::remove_dir_all(bench.path(&format!("whole/checkpoints/step_{step:08}"))).unwrap();
    }
    bench.succeed("whole", &args);
    assert!(bench.checkpoint("whole", 24) == whole);
    // Finished: nothing is trained, and no checkpoint changes.
    let before = files(&bench.path("whole/checkpoints"));
    bench.succeed("whole", &args);
    assert!(files(&bench.path("whole/checkpoints")) == before);
}

#[test]
fn a_signal_saves_and_the_same_command_goes_on() {
    let bench = bench();
    let args = ["--steps", "400", "--set", "checkpoint.every=1000", "--set", "validation.every=1000"];
    bench.succeed("whole", &args);
    let child = bench.command("stopped", &args).spawn().unwrap();
    let start = Instant::now();
    let trained =
        || fs::read_to_string(bench.path("stopped/metrics.jsonl")).unwrap_or_default().lines().count() > 3;
    while !trained() {
        assert!(start.elapsed() < Duration::from_secs(600), "no step was recorded");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains("the same command goes on from there"), "{said}");
    let said = bench.succeed("stopped", &args);
    assert!(said.contains("resume   "), "{said}");
    assert!(bench.checkpoint("stopped", 400) == bench.checkpoint("whole", 400));
}

/// Largest difference of two safetensors files' numbers, as a part of the largest number.
fn difference(a: &[u8], b: &[u8]) -> f64 {
    let numbers = |file: &[u8]| -> Vec<f64> {
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        file[8 + header..]
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()).into())
            .collect()
    };
    error(&numbers(a), &numbers(b))
}

/// Where a step ends an epoch and FIM draws anew, with other micro-batches of the same rows, and with the data elsewhere.
#[test]
fn every_boundary_can_be_gone_on_from() {
    let bench = bench();
    let args = ["--steps", "20", "--set", "checkpoint.every=4"];
    bench.succeed("whole", &args);
    let whole = bench.checkpoint("whole", 20);
    let ends: Vec<u64> = (1..20)
        .filter(|step| bench.path(&format!("whole/checkpoints/step_{step:08}")).exists())
        .filter(|step| bench.state("whole", *step)["keep"].get("epoch_end").is_some())
        .collect();
    println!("epochs end at {ends:?}");
    assert!(ends.len() >= 2, "{ends:?}");
    for end in &ends {
        let out = format!("epoch_{end}");
        let from = format!("whole/checkpoints/step_{end:08}");
        bench.succeed(&out, &[&args[..], &["--resume", &from]].concat());
        assert!(bench.checkpoint(&out, 20) == whole, "from the end of an epoch, step {end}");
        assert_eq!(bench.course(&out, 20), bench.course("whole", 20));
    }

    // Other micro-batches: the same rows, sums in another order. A weight of 1 is rounded in each of 12 steps, and what the
    // gradients' rounding changes of steps of 4e-3 is as much again.
    let from = ["--resume", "whole/checkpoints/step_00000008"];
    for (micro, accumulation) in [(4, 1), (1, 4)] {
        let out = format!("micro_{micro}");
        let split = [format!("batch.micro={micro}"), format!("batch.accumulation={accumulation}")];
        bench.succeed(&out, &[&args[..], &from, &["--set", &split[0], "--set", &split[1]]].concat());
        let difference = difference(&bench.checkpoint(&out, 20)[0], &whole[0]);
        println!(
            "{accumulation} x {micro} rows instead of 2 x 2 from step 8 on: weights differ by {difference:.1e}"
        );
        assert!(difference < 2.0 * 12.0 * F32, "{difference:e}");
        assert_eq!(bench.state(&out, 20)["data"], bench.state("whole", 20)["data"]);
    }

    fs::rename(bench.path("data"), bench.path("elsewhere")).unwrap();
    bench.succeed("moved", &[&args[..], &from, &["--data", "elsewhere"]].concat());
    assert!(bench.checkpoint("moved", 20) == whole, "with the data elsewhere");
}

/// Stops a run by a signal once it has said a text; it must be saved.
#[track_caller]
fn stop(bench: &Bench, out: &str, args: &[&str], after: &str) -> String {
    let mut started = bench.start(out, args);
    started.wait_for(after);
    started.signal(&["-TERM"]);
    let (code, said) = started.end();
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("the same command goes on from there"), "{said}");
    said
}

/// Training and evaluations by step, as they are recorded.
fn records(bench: &Bench, out: &str) -> Vec<(u64, String)> {
    let text = fs::read_to_string(bench.path(out).join("metrics.jsonl")).unwrap();
    let record = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        (record["step"].as_u64().unwrap(), format!("{} {}", record["kind"], record["loss"]))
    };
    text.lines().map(record).collect()
}

/// However a run began, the same command goes on with it, even if its beginning is gone by then.
#[test]
fn the_same_command_goes_on_however_the_run_began() {
    let bench = bench();
    let trunk = ["--steps", "400", "--set", "checkpoint.every=4", "--set", "checkpoint.keep_every=4"];
    bench.succeed(
        "trunk",
        &["--steps", "8", "--set", "checkpoint.every=4", "--set", "schedule.kind=constant"],
    );
    let at = "trunk/checkpoints/step_00000004";
    let constant = ["--set", "schedule.kind=constant"];
    let beginnings: [(&str, &[&str]); 3] = [
        ("branch", &["--resume", at, "--branch-decay", "300"]),
        ("child", &["--resume", at]),
        ("anew", &["--init", at]),
    ];
    for (out, beginning) in beginnings {
        let args = [&trunk[..], &constant, beginning].concat();
        let whole = format!("{out}_whole");
        bench.succeed(&whole, &args);
        let said = stop(&bench, out, &args, "step 20/");
        let saved = latest_good(&bench.path(out).join("checkpoints")).unwrap().good.unwrap();
        let saved = saved.state().progress.step;
        assert!(saved >= 20, "{said}");
        // Even if the trunk is gone.
        fs::rename(bench.path(at), bench.path("away")).unwrap();
        let said = bench.succeed(out, &args);
        assert!(said.contains(&format!("resume   {out}/checkpoints/step_{saved:08}")), "{said}");
        let last = if out == "branch" { 304 } else { 400 };
        assert!(bench.checkpoint(out, last) == bench.checkpoint(&whole, last), "{out}");
        assert_eq!(bench.course(out, last), bench.course(&whole, last));
        assert_eq!(records(&bench, out), records(&bench, &whole), "{out}: each step and evaluation once");
        fs::rename(bench.path("away"), bench.path(at)).unwrap();
    }
    // A branch knows that it is one: without the flag its decay goes on.
    let args = [&trunk[..], &constant].concat();
    let said = bench.succeed("branch", &args);
    assert!(said.contains("branch   decay over 300 steps from step 4"), "{said}");
}

/// What lies in a folder belongs to one run, by whatever name the folder goes.
#[test]
fn nothing_of_another_run_is_touched() {
    let bench = bench();
    let trunk = ["--steps", "8", "--set", "checkpoint.every=4", "--set", "checkpoint.mirror=drive"];
    let plain = [trunk[0], trunk[1], trunk[2], trunk[3]];
    bench.succeed("trunk", &trunk);
    std::os::unix::fs::symlink("trunk", bench.path("link")).unwrap();
    let all = || {
        let mut all = files(bench.path("").as_path());
        all.retain(|path, _| !path.ends_with(".lock"));
        all
    };
    let before = all();
    let branch = |from: &'static str| ["--resume", from, "--branch-decay", "2"];
    for (out, from) in [
        ("trunk", "./trunk/checkpoints/step_00000004"),
        ("./trunk", "trunk/checkpoints/step_00000004"),
        ("trunk/../trunk", "link/checkpoints/step_00000004"),
        ("link", "trunk/checkpoints/step_00000004/."),
    ] {
        let message = bench.fail(out, &[&plain[..], &branch(from)].concat());
        assert!(message.contains("give it its own --out"), "{message}");
    }
    // A mirror has an owner.
    let message = bench.fail("stranger", &trunk);
    assert!(
        message.contains("checkpoint.mirror drive holds the copies of another run, trunk ("),
        "{message}"
    );
    assert!(!bench.path("stranger").exists());
    assert!(all() == before, "something changed");
    // The advice can be typed.
    let command = message.rsplit_once("such as ").unwrap().1;
    bench.paste(command);
    assert!(bench.path("drive-2/step_00000008").exists());
    let copies = || files(&bench.path("drive/step_00000008"));
    let kept = copies();
    bench.succeed("trunk", &trunk);
    assert!(!kept.is_empty() && copies() == kept);
}

/// A changed setting is printed with what it does, and is remembered.
#[test]
fn changed_settings_are_said_and_kept() {
    let bench = bench();
    let given = ["--set", "checkpoint.every=4", "--set", "schedule.kind=constant"];
    let run = |steps: &'static str, more: &[&'static str]| [&["--steps", steps][..], &given, more].concat();
    bench.succeed("run", &run("8", &[]));
    let before = files(&bench.path("run"));
    let decay = ["--set", "optimizer.weight_decay=0.5"];
    let message = bench.fail("run", &run("12", &decay));
    assert!(
        message.contains("optimizer.weight_decay was 0.1, is 0.5") && message.contains("from step 8 on"),
        "{message}"
    );
    assert!(files(&bench.path("run")) == before);
    let command = message.rsplit_once("such as ").unwrap().1;
    let said = bench.paste(command);
    assert!(
        said.contains(
            "settings optimizer.weight_decay was 0.1, is 0.5: from step 8 on this is another course"
        ),
        "{said}"
    );
    assert!(said.contains("settings steps was 8, is 12\n"), "{said}");
    // From here on it is the run's own.
    let said = bench.succeed("run", &run("16", &decay));
    assert!(
        said.contains("settings steps was 12, is 16") && !said.contains("settings optimizer.weight_decay"),
        "{said}"
    );
    let eras = &bench.state("run", 16)["settings"];
    let eras: Vec<_> = eras
        .as_array()
        .unwrap()
        .iter()
        .map(|era| {
            (
                era["from"].as_u64().unwrap(),
                era["settings"]["optimizer.weight_decay"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    assert_eq!(eras, [(0, "0.1".into()), (8, "0.5".into()), (12, "0.5".into())]);
    let config = |name: &str| fs::read_to_string(bench.path("run").join(name)).unwrap();
    assert!(config("configs/step_00000000.toml").contains("weight_decay = 0.1 "));
    assert!(config("configs/step_00000008.toml").contains("weight_decay = 0.5 "));
    assert_eq!(config("config.toml"), config("configs/step_00000012.toml"));
    // Rows of another order are another run, with its own name.
    let message = bench.fail("run", &run("16", &[decay[0], decay[1], "--set", "seed=9"]));
    assert!(message.contains("seed was") && message.contains("--init"), "{message}");
    bench.paste(message.rsplit_once("such as ").unwrap().1);
}

/// Rows of another length begin the block at hand again; another number of rows goes on at the very row.
#[test]
fn rows_of_another_length_leave_none_out() {
    let bench = bench();
    let given =
        ["--set", "checkpoint.every=4", "--set", "schedule.kind=constant", "--set", "data.fim_rate=0"];
    bench.succeed("run", &[&given[..], &["--steps", "4"]].concat());
    let rows = |step| bench.state("run", step)["data"]["rows"].as_u64().unwrap();
    let (row, seen) = (bench.state("run", 4)["data"]["row"].as_u64().unwrap(), rows(4));
    assert!(row > 0);
    let longer = ["--steps", "5", "--set", "batch.seq=64", "--accept-changes"];
    let said = bench.succeed("run", &[&given[..], &longer].concat());
    assert!(
        said.contains(&format!("{row} rows of 32 tokens are seen once more, none is left out")),
        "{said}"
    );
    assert_eq!(rows(5), seen - row + 4);
    let fewer =
        ["--steps", "6", "--set", "batch.seq=64", "--set", "batch.accumulation=1", "--accept-changes"];
    let said = bench.succeed("run", &[&given[..], &fewer].concat());
    assert!(said.contains("batch.accumulation was 2, is 1") && !said.contains("seen once more"), "{said}");
    assert_eq!(rows(6), seen - row + 6);
}

#[test]
fn a_dry_run_knows_where_a_run_goes_on() {
    let bench = bench();
    let trunk = ["--steps", "8", "--set", "checkpoint.every=4"];
    bench.succeed("trunk", &trunk);
    let before = files(&bench.path("trunk"));
    let branch = ["--resume", "trunk/checkpoints/step_00000004", "--branch-decay", "2", "--dry-run"];
    let said = bench.succeed("branch", &[&trunk[..], &branch].concat());
    assert!(
        said.contains("branch   decay over 2 steps from step 4") && said.contains("nothing was trained"),
        "{said}"
    );
    assert!(!bench.path("branch").exists());
    bench.succeed("trunk", &[&trunk[..], &["--dry-run"]].concat());
    assert!(files(&bench.path("trunk")) == before);
}

/// A crash between the two names of a checkpoint that takes another one's place: the run does not begin anew.
#[test]
fn a_checkpoint_between_two_names_is_mended_before_it_is_looked_for() {
    let bench = bench();
    let args = ["--steps", "8", "--set", "checkpoint.every=8"];
    bench.succeed("run", &args);
    let whole = bench.checkpoint("run", 8);
    let [name, between] =
        ["step_00000008", "step_00000008.replaced.tmp"].map(|name| bench.path("run/checkpoints").join(name));
    fs::rename(&name, &between).unwrap();
    let said = bench.succeed("run", &args);
    assert!(said.contains("resume   run/checkpoints/step_00000008") && !said.contains("step 1/8"), "{said}");
    assert!(bench.checkpoint("run", 8) == whole && !between.exists());
}
