//! Programs that people use with such a server, on ours. Those that need more than Python are left out of a plain
//! `cargo test`; `.ci/run` installs what they need and runs them with `--ignored`.

use crate::server::{CONTEXT, Server, bench, command, file};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tests::packages;

/// Packages of Python, which are for one version of it.
fn python_packages() -> &'static Path {
    static PACKAGES: OnceLock<PathBuf> = OnceLock::new();
    PACKAGES.get_or_init(|| packages::installed("clients", "serve/clients/requirements.txt"))
}

/// Runs a drive; it must succeed. What it printed.
#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn python(drive: &str) -> Command {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", python_packages()).arg(file("clients").join(drive));
    python
}

/// What editors send, and what they read of the answers.
#[test]
fn editors_understand_the_answers() {
    let server = Server::shared();
    let mut python = fetch::python::command("python3");
    let said = succeed(python.arg(file("clients/replay.py")).arg(server.url("")));
    assert_eq!(said.matches("ok: ").count(), 9, "{said}");
}

#[test]
#[ignore = "its packages are for CPython 3.11"]
fn the_openai_package_understands_the_answers() {
    let server = Server::spawn(&[], &[("PYTHONLM_API_KEY", "sesame")]);
    server.ready();
    let said = succeed(python("openai_client.py").arg(server.url("")).args(["--key", "sesame"]));
    assert_eq!(said.matches("ok: ").count(), 17, "{said}");
}

/// lm-eval's numbers on the server are those of `score`.
#[test]
#[ignore = "its packages are for CPython 3.11"]
fn lm_eval_scores_as_score_does() {
    let server = Server::shared();
    let length = CONTEXT.to_string();
    let said = succeed(python("evaluate.py").arg(server.url("")).args(["--max-length", &length]));
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tokens = |text: &str| {
        let answer = server.post("/tokenize", &json!({"prompt": text})).good();
        answer["tokens"].as_array().unwrap().clone()
    };
    let scored: Vec<&Value> = lines.iter().filter(|line| line.get("log_likelihood").is_some()).collect();
    assert_eq!(scored.len(), 15);
    // Each text's ids, and at which of them the continuation begins.
    let texts = scored.iter().map(|line| {
        let (context, continuation) =
            (line["context"].as_str().unwrap(), line["continuation"].as_str().unwrap());
        match context {
            "" => (tokens(&format!("<|endoftext|>{continuation}")), 1),
            // As lm-eval puts them together, though where they meet one token may stand for both.
            _ => {
                let before = tokens(context);
                let after = tokens(&format!("{context}{continuation}")).split_off(before.len());
                (before.iter().chain(&after).cloned().collect(), before.len())
            }
        }
    });
    let texts: Vec<(Vec<Value>, usize)> = texts.collect();
    let ids: String = texts.iter().map(|(ids, _)| format!("{}\n", json!({"ids": ids}))).collect();
    fs::write(bench().path("lm_eval.jsonl"), ids).unwrap();
    let wanted = command(env!("CARGO_BIN_EXE_score-tokens"), &["--ids", "lm_eval.jsonl"]);
    for ((line, (_, from)), score) in scored.iter().zip(&texts).zip(wanted.lines()) {
        let score: Value = serde_json::from_str(score).unwrap();
        let log_probs = score["logprobs"].as_array().unwrap();
        let wanted: f64 = log_probs[from - 1..].iter().map(|number| number.as_f64().unwrap()).sum();
        let found = line["log_likelihood"].as_f64().unwrap();
        assert!((found - wanted).abs() < 1e-4, "{found} for {wanted}: {line}");
    }
    assert_eq!(lines.iter().filter(|line| line["task"] == "python_write").count(), 4);
}

/// What `/openapi.json` allows and forbids.
#[test]
#[ignore = "its packages are for CPython 3.11"]
fn the_description_is_true() {
    let server = Server::start(&["--max-model-len", "256"]);
    let mut sh = Command::new("sh");
    sh.env("PYTHONPATH", python_packages()).arg(file("clients/schema.sh")).arg(server.url(""));
    succeed(sh.current_dir(bench().path("")));
}

#[test]
#[ignore = "it needs node, Chromium and `npm ci` in tests/serve/page"]
fn a_person_writes_on_the_page() {
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    for key in ["", "sesame"] {
        let variables = if key.is_empty() { &[][..] } else { &[("PYTHONLM_API_KEY", key)] };
        let server = Server::spawn(&[], variables);
        server.ready();
        let mut node = Command::new("node");
        node.arg(file("page/page.mjs"))
            .arg(server.url(""))
            .arg(pictures.join(format!("key-{key}")))
            .env("KEY", key);
        let said = succeed(&mut node);
        assert!(said.matches("ok: ").count() > 10, "{said}");
    }
}
