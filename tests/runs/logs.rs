//! A run does not end because nobody reads its output, its records cannot be written, or its terminal is gone. Whatever does end
//! it, it saves first.

use std::fs::{self, File};
use std::io;
use std::process::{Command, Output, Stdio};
use tests::trainer::Bench;
use train::checkpoint::{latest_good, newest_step};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_trainer"))
}

fn newest(bench: &Bench, out: &str) -> u64 {
    latest_good(&bench.path(&format!("{out}/checkpoints"))).unwrap().good.unwrap().state().progress.step
}

/// Runs a command through a shell that sets something up first.
fn through_a_shell(command: &Command, before: &str) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{before}; exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args());
    shell.current_dir(command.get_current_dir().unwrap());
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

/// As in `train 2>&1 | head`; then with one output on a full disk and nobody who reads the other.
#[test]
fn nobody_needs_to_hear_a_run() {
    let bench = bench();
    let closed = || io::pipe().unwrap().1;
    let mut command = bench.command("closed", &["--steps", "5"]);
    let output = command.stdout(closed()).stderr(closed()).output().unwrap();
    assert_eq!((output.status.code(), newest(&bench, "closed")), (Some(0), 5));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = bench.command("full", &["--steps", "5"]).stdout(full).stderr(closed()).output().unwrap();
    assert_eq!((output.status.code(), newest(&bench, "full")), (Some(1), 5));
    // If nobody reads the error, there is still the exit code.
    let output = bench.command("full", &["--steps", "4"]).stderr(closed()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

/// Files may not grow beyond 320 KiB, which those of checkpoints do not and the records of 2500 steps do.
#[test]
fn records_that_cannot_be_written_do_not_end_a_run() {
    let bench = bench();
    let args = ["--steps", "2500", "--set", "checkpoint.every=500", "--set", "validation.every=500"];
    let output: Output =
        through_a_shell(&bench.command("run", &args), "trap '' XFSZ; ulimit -f 640").output().unwrap();
    let (said, message) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{message}");
    assert_eq!(newest(&bench, "run"), 2500);
    for name in ["metrics.jsonl", "tfevents"] {
        let lines: Vec<_> =
            said.lines().filter(|line| line.contains("NOT WRITTEN") && line.contains(name)).collect();
        assert_eq!(lines.len(), 1, "said once: {lines:?}");
        assert!(lines[0].contains("File too large"), "{lines:?}");
        let lost = message.lines().filter(|line| line.contains("the last") && line.contains(name)).count();
        assert_eq!(lost, 1, "and at the end what is missing: {message}");
    }
    // What is there is whole: the same command reads it.
    let whole = fs::read_to_string(bench.path("run/metrics.jsonl")).unwrap();
    assert!(whole.ends_with('\n') && whole.lines().count() > 300, "{}", whole.lines().count());
    bench.succeed("run", &["--steps", "2501", "--accept-changes"]);
}

#[test]
fn an_error_after_the_first_step_saves_first() {
    let bench = bench();
    let args = ["--steps", "100000", "--set", "checkpoint.every=500"];
    let mut started = bench.start("run", &args);
    started.wait_for("ready ");
    // In the way of the first checkpoint.
    fs::write(bench.path("run/checkpoints/step_00000500.tmp"), "").unwrap();
    let (code, said) = started.end();
    assert_eq!(code, Some(1), "{said}");
    let newest = newest(&bench, "run");
    assert!(
        newest > 500 && said.contains(&format!("the run stopped after step {newest}, which is saved: ")),
        "{said}"
    );
    assert!(said.contains("step_00000500.tmp"), "{said}");
}

#[test]
fn a_terminal_that_is_gone_stops_a_run_that_is_saved() {
    let bench = bench();
    let args = ["--steps", "100000"];
    let mut started = bench.start("run", &args);
    started.wait_for("step 2/");
    // Shells and the system both send it.
    started.signal(&["-HUP", "-HUP", "-HUP"]);
    let (code, said) = started.end();
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains(&format!("stopped at step {};", newest(&bench, "run"))), "{said}");

    // As `nohup` starts it.
    let mut shell = through_a_shell(&bench.command("kept", &args), "trap '' HUP");
    let mut child = shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let checkpoints = bench.path("kept/checkpoints");
    let send = |signal: &str| {
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    };
    let metrics = bench.path("kept/metrics.jsonl");
    let lines = || fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    while lines() < 3 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    send("-HUP");
    let before = lines();
    while lines() < before + 20 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    send("-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(newest_step(&checkpoints).unwrap().unwrap() > before as u64);
}
