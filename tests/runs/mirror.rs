//! Runs with a mirror, and two processes on one folder.

use std::fs;
use std::process::Command;
use std::time::Instant;
use tests::trainer::Bench;
use train::checkpoint::latest_good;

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_trainer"))
}

/// A drive that hangs: the first file of a copy is a pipe without a reader, and whoever opens it waits for one.
fn hanging(bench: &Bench, step: u64) -> String {
    let copy = bench.path("drive").join(format!("step_{step:08}"));
    fs::create_dir_all(&copy).unwrap();
    let made =
        Command::new("mkfifo").arg(copy.join("state.json.tmp")).arg(copy.join("config.json.tmp")).status();
    assert!(made.unwrap().success());
    format!("checkpoint.mirror={}", bench.path("drive").display())
}

#[test]
fn a_mirror_that_hangs_holds_neither_checkpoints_nor_a_signal_up() {
    let bench = bench();
    let mirror = hanging(&bench, 4);
    // Of a constant rate, so that the number of steps may change.
    let constant = "schedule.kind=constant";
    let args = ["--steps", "100000", "--set", "checkpoint.every=4", "--set", &mirror, "--set", constant];
    let mut started = bench.start("run", &args);
    started.wait_for("checkpoint run/checkpoints/step_00000012");
    started.signal(&["-TERM"]);
    started.wait_for("copying    run/checkpoints/step_00000004, 0 %");
    // All is saved by now; what is left is the wait.
    let newest = latest_good(&bench.path("run/checkpoints")).unwrap().good.unwrap().state().progress.step;
    started.signal(&["-TERM"]);
    let (code, said) = started.end();
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains(&format!("stopped at step {newest};")), "{said}");
    let left = [
        "NOT COPIED to checkpoint.mirror: run/checkpoints/step_00000004: a signal ended the wait",
        "not copied run/checkpoints/step_",
    ];
    assert!(left.iter().all(|left| said.contains(left)), "{said}");

    // At the end of all steps it is waited for, too; the next start brings the copies up to date.
    let steps = (newest + 4).to_string();
    let args = ["--steps", &steps, "--set", "checkpoint.every=4", "--set", &mirror, "--set", constant];
    let _ = fs::remove_dir_all(bench.path("drive"));
    let mirror = hanging(&bench, newest);
    let mut started = bench.start("run", &args);
    started.wait_for("copying    run/checkpoints/step_");
    started.signal(&["-INT"]);
    let (code, said) = started.end();
    assert_eq!(code, Some(75), "{mirror} {said}");
    let _ = fs::remove_dir_all(bench.path("drive"));
    let said = bench.succeed("run", &args);
    let copied = latest_good(&bench.path("drive")).unwrap().good.unwrap();
    assert_eq!(copied.state().progress.step, newest + 4, "{said}");
    assert!(bench.path("drive/records/metrics.jsonl").exists());
}

/// The second process is told who has the folder, before it compiles, and leaves it as it was.
#[test]
fn the_second_process_is_told_who_has_the_folder() {
    let bench = bench();
    let mirror = format!("checkpoint.mirror={}", bench.path("drive").display());
    let args = ["--steps", "100000", "--set", &mirror];
    let mut first = bench.start("run", &args);
    first.wait_for("batch    2 x 2 rows");
    let holder = format!("is in use by process {}, for ", first.id());
    for (out, remedy) in [("run", "its own --out"), ("other", "a mirror of its own")] {
        let start = Instant::now();
        let second = bench.run(out, &args);
        let (said, message) =
            (String::from_utf8_lossy(&second.stdout), String::from_utf8_lossy(&second.stderr));
        assert_eq!(second.status.code(), Some(1), "{message}");
        assert!(message.contains(&holder) && message.contains(remedy), "{message}");
        assert!(message.contains("trainer --out run"), "its command: {message}");
        assert!(!said.contains("device "), "it compiled first: {said}");
        println!("{:?}: {message}", start.elapsed());
    }
    assert!(!bench.path("other").exists());
    // One that was killed locks nothing.
    first.wait_for("step 1/");
    first.signal(&["-KILL"]);
    first.end();
    let mut next = bench.start("run", &args);
    next.wait_for("step 1/");
    next.signal(&["-TERM"]);
    assert_eq!(next.end().0, Some(75));
    assert!(!bench.path("run/checkpoints/.lock").exists() && !bench.path("drive/.lock").exists());
}

#[test]
fn a_run_on_a_new_machine_has_its_records_again() {
    let bench = bench();
    let mirror = format!("checkpoint.mirror={}", bench.path("drive").display());
    let constant = "schedule.kind=constant";
    let args = |steps| ["--steps", steps, "--set", "checkpoint.every=4", "--set", &mirror, "--set", constant];
    bench.succeed("run", &args("8"));
    fs::remove_dir_all(bench.path("run")).unwrap();
    let said = bench.succeed("run", &args("12"));
    assert!(said.contains("its newest checkpoint is of step 8"), "{said}");
    assert!(said.contains("resume   copying it to run/checkpoints"), "{said}");
    let text = fs::read_to_string(bench.path("run/metrics.jsonl")).unwrap();
    let trained = text.lines().filter(|line| line.contains("\"train\"")).count();
    assert_eq!(trained, 12, "{text}");
}

/// The newest copy has a wrong byte, and an own checkpoint of the same step as the good copy is damaged: both are named, and the
/// run goes on from the good copy.
#[test]
fn a_damaged_copy_is_passed_over_and_the_one_before_it_is_fetched() {
    let bench = bench();
    let mirror = format!("checkpoint.mirror={}", bench.path("drive").display());
    let args = ["--steps", "12", "--set", "checkpoint.every=4", "--set", &mirror];
    bench.succeed("run", &args);
    let whole = bench.checkpoint("run", 12);
    let spoil = |path: &str| {
        let path = bench.path(path);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    spoil("drive/step_00000012/model.safetensors");
    for step in [4, 12] {
        fs::remove_dir_all(bench.path(&format!("run/checkpoints/step_{step:08}"))).unwrap();
    }
    spoil("run/checkpoints/step_00000008/model.safetensors");
    let said = bench.succeed("run", &args);
    let named = [
        format!("passing over {}: ", bench.path("drive/step_00000012").display()),
        "passing over run/checkpoints/step_00000008: ".into(),
        format!("resume   {}", bench.path("drive/step_00000008").display()),
        "resume   copying it to run/checkpoints".into(),
    ];
    assert!(named.iter().all(|named| said.contains(named)), "{said}");
    assert!(bench.checkpoint("run", 12) == whole);
}
