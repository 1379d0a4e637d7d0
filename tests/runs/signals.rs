//! Signals: the first one asks, the second one ends the process. The bin `listener` receives them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Starts `listener` and waits until it listens.
fn listening(mode: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_listener"))
        .arg(mode)
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
    send(&child, "-INT");
    // Without the signal it would end after a minute, with 0.
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
