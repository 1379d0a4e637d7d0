//! Signals: the first one asks, the second one ends the process. A child of this test's own program receives them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use train::signals::Stop;

/// Starts [`child`] and waits until it listens.
fn listening(mode: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env("SIGNALS_TEST_CHILD", mode)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the child ended early");
    }
    (child, out)
}

fn send(child: &Child, signal: &str) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_first_signal_asks_and_says_so() {
    for signal in ["-TERM", "-INT"] {
        let (child, _out) = listening("polite");
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stderr).contains("saving a checkpoint"), "{output:?}");
    }
}

#[test]
fn the_second_signal_ends_at_once() {
    let (mut child, mut out) = listening("deaf");
    send(&child, "-TERM");
    let mut line = String::new();
    while !line.contains("asked") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the first signal ended the child");
    }
    let start = Instant::now();
    send(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// Not a test: what the tests above start.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    let Ok(mode) = std::env::var("SIGNALS_TEST_CHILD") else { return };
    let stop = Stop::on_signals().unwrap();
    println!("listening");
    let wait = |what: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !what() && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait(&|| stop.requested());
    println!("asked");
    // Long enough for the message of the other thread.
    wait(&|| mode == "polite");
    std::thread::sleep(Duration::from_millis(300));
}
