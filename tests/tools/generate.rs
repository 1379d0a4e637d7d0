//! The commands `generate` and `score` as processes, on a checkpoint of a run of a few steps and on the golden model.

use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tests::close::{F32, assert_close};
use tests::golden;
use tests::trainer::Bench;

const CHECKPOINT: &str = "run/checkpoints/step_00000100";

/// A folder with a checkpoint, made once.
fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let bench = Bench::new(env!("CARGO_BIN_EXE_trainer"));
        bench.succeed("run", &["--steps", "100", "--set", "checkpoint.every=50"]);
        bench
    })
}

fn run(program: &str, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(bench().path("")).args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A process that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Runs `generate` on the checkpoint; it must succeed. Its output and its report.
#[track_caller]
fn generate(args: &[&str], input: &str) -> (String, String) {
    let args = [&["--checkpoint", CHECKPOINT], args].concat();
    let output = run(env!("CARGO_BIN_EXE_generate-text"), &args, input.as_bytes());
    let report = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report}");
    (String::from_utf8(output.stdout).unwrap(), report)
}

/// Runs a program; it must fail with one line of explanation and nothing on standard output.
#[track_caller]
fn refused(program: &str, args: &[&str], input: &[u8], parts: &[&str]) {
    let output = run(program, args, input);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
    assert!(message.starts_with("error: ") && message.trim_end().lines().count() == 1, "{message}");
    assert!(output.stdout.is_empty());
    for part in parts {
        assert!(message.contains(part), "{args:?}: `{part}` is not in {message}");
    }
}

#[test]
fn the_same_seed_writes_the_same_text_from_wherever_the_prompt_comes() {
    let prompt = "def function_1(x, total=0):\n";
    fs::write(bench().path("prompt.py"), prompt).unwrap();
    let common = ["--max-new-tokens", "24", "--seed", "3"];
    let (text, report) = generate(&[&common[..], &["--prompt", prompt]].concat(), "");
    assert!(!text.trim().is_empty() && report.contains("tokens/s"), "{text}{report}");
    for (args, input) in [
        (&["--prompt-file", "prompt.py"][..], ""),
        (&[], prompt),
        (&["--speculative", "on"], prompt),
        (&["--speculative", "off"], prompt),
        (&["--kernels", "portable"], prompt),
        (&["--kernels", "reference"], prompt),
    ] {
        let (again, report) = generate(&[&common[..], args].concat(), input);
        assert_eq!(again, text, "{args:?}");
        match args {
            [_, "on"] => assert!(report.contains("% were accepted"), "{report}"),
            [_, "off"] => assert!(report.contains("no drafts"), "{report}"),
            _ => {}
        }
    }
    let other = ["--max-new-tokens", "24", "--seed", "4", "--prompt", prompt];
    assert_ne!(generate(&other, "").0, text);
    let greedy = ["--max-new-tokens", "24", "--temperature", "0", "--prompt", prompt];
    let again = [&greedy[..], &["--seed", "9"]].concat();
    assert_eq!(generate(&greedy, "").0, generate(&again, "").0);
}

#[test]
fn samples_and_the_best_of_them() {
    let common = ["--prompt", "def f", "--max-new-tokens", "12", "--json"];
    let lines = |args: &[&str]| -> Vec<Value> {
        let (text, _) = generate(&[&common[..], args].concat(), "");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = lines(&["--samples", "10"]);
    assert_eq!(all.len(), 10);
    let mean = |line: &Value| line["mean_log_prob"].as_f64().unwrap();
    for line in &all {
        assert!(line["ids"].as_array().unwrap().len() <= 12);
        let log_probs = line["log_probs"].as_array().unwrap();
        let sum: f64 = log_probs.iter().map(|x| x.as_f64().unwrap()).sum();
        assert!((sum / log_probs.len() as f64 - mean(line)).abs() < 1e-6);
    }
    let best = lines(&["--samples", "2", "--best-of", "10"]);
    let mut means: Vec<f64> = all.iter().map(mean).collect();
    means.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(best.iter().map(mean).collect::<Vec<f64>>(), means[..2]);
    let (text, _) = generate(&["--prompt", "def f", "--max-new-tokens", "4", "--samples", "3"], "");
    assert!(text.contains("--- 1 of 3") && text.contains("--- 3 of 3"), "{text}");
}

/// At their ends temperature, top-p and top-k are greedy decoding on one side, and no restriction on the other.
#[test]
fn sampling_at_its_edges() {
    let text = |args: &[&str]| {
        let common = ["--prompt", "def function_1(", "--max-new-tokens", "24", "--seed", "6"];
        generate(&[&common[..], args].concat(), "").0
    };
    let greedy = text(&["--temperature", "0"]);
    let free = ["--temperature", "1", "--top-p", "1", "--top-k", "0"];
    let drawn = text(&free);
    assert_ne!(greedy, drawn);
    for edge in [
        &["--temperature", "1e-6"][..],
        &["--temperature", "100", "--top-k", "1"],
        &["--temperature", "1e30", "--top-k", "1"],
        &["--temperature", "1", "--top-k", "1", "--top-p", "1"],
        &["--temperature", "1", "--top-p", "1e-9"],
        &["--temperature", "1", "--top-p", "1e-9", "--top-k", "320"],
    ] {
        assert_eq!(text(edge), greedy, "{edge:?}");
    }
    // The model has 320 tokens.
    for edge in ["320", "321", "1000000"] {
        let args = [&free[..4], &["--top-k", edge]].concat();
        assert_eq!(text(&args), drawn, "--top-k {edge}");
    }
    assert_ne!(text(&["--temperature", "1e30", "--top-p", "1"]), drawn);
}

#[test]
fn stop_texts_end_the_text_and_are_not_in_it() {
    let common = ["--prompt", "def f", "--max-new-tokens", "40", "--samples", "8", "--json"];
    let lines = |args: &[&str]| -> Vec<Value> {
        let (text, _) = generate(&[&common[..], args].concat(), "");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let whole = lines(&[]);
    let text = |line: &Value| line["text"].as_str().unwrap().to_owned();
    let longest = whole.iter().map(text).max_by_key(String::len).unwrap();
    let stop: String = longest.chars().skip(longest.chars().count() / 2).take(2).collect();
    let cut = lines(&["--stop", &stop, "--stop", "never written"]);
    let mut stopped = 0;
    for (whole, cut) in whole.iter().zip(&cut) {
        let (before, after) = (text(whole), text(cut));
        match before.find(&stop) {
            Some(at) => {
                assert_eq!(after, before[..at]);
                assert_eq!((&cut["finish"], &cut["stop"]), (&"stop".into(), &stop.clone().into()));
                stopped += 1;
            }
            None => assert_eq!((after, &whole["finish"]), (before, &cut["finish"])),
        }
    }
    assert!(stopped > 0);
}

#[test]
fn a_hole_is_filled_and_a_suffix_needs_no_prefix() {
    generate(&["--prompt", "def f(x):\n", "--suffix", "\n    return y\n", "--max-new-tokens", "5"], "");
    generate(&["--prompt", "", "--suffix", "\n    return y\n", "--max-new-tokens", "5"], "");
}

#[test]
fn wrong_requests_are_explained() {
    let program = env!("CARGO_BIN_EXE_generate-text");
    let long = "x = 1\n".repeat(100);
    let cases: &[(&[&str], &[u8], &[&str])] = &[
        (&["--prompt", ""], b"", &["the prompt is empty"]),
        (&[], b"", &["the prompt is empty"]),
        (&[], b"ab\xff", &["standard input is not UTF-8", "byte 2"]),
        (&["--prompt", &long], b"", &["tokens", "context is 64", "shorten"]),
        (&["--prompt", "x", "--max-new-tokens", "64"], b"", &["context is 64", "at most 6"]),
        (&["--prompt", "x", "--max-new-tokens", "0"], b"", &["--max-new-tokens is 0", "at least 1"]),
        (&["--prompt", "x", "--samples", "0"], b"", &["--samples is 0"]),
        (&["--prompt", "x", "--samples", "3", "--best-of", "2"], b"", &["--best-of 2", "--samples 3"]),
        (&["--prompt", "x", "--temperature=-1"], b"", &["--temperature is -1"]),
        (&["--prompt", "x", "--temperature", "-1"], b"", &["--temperature is -1"]),
        (&["--prompt", "x", "--top-p", "-0.5"], b"", &["--top-p is -0.5"]),
        (&["--prompt", "x", "--stop", "a\\d"], b"", &["--stop a\\d", "n stands for a new line"]),
        (&["--prompt", "x", "--stop", "a\\"], b"", &["--stop a\\", "n stands for a new line"]),
        (&["--prompt", "x", "--temperature", "nan"], b"", &["--temperature is NaN"]),
        (&["--prompt", "x", "--top-p", "0"], b"", &["--top-p is 0"]),
        (&["--prompt", "x", "--top-p", "1.5"], b"", &["--top-p is 1.5"]),
        (&["--prompt", "x", "--stop", ""], b"", &["--stop"]),
        (&["--prompt-file", "nowhere.py"], b"", &["nowhere.py", "No such file"]),
        (&["--prompt", "x", "--platform", "abacus"], b"", &["abacus"]),
    ];
    for (args, input, parts) in cases {
        refused(program, &[&["--checkpoint", CHECKPOINT][..], args].concat(), input, parts);
    }
    let of = |path: &'static str, parts: &[&str]| {
        refused(program, &["--checkpoint", path, "--prompt", "x"], b"", parts);
    };
    of("nowhere", &["there is no checkpoint folder nowhere", "step_<number>"]);
    of("latest", &["looking for runs in runs"]);
    of("sources", &["sources"]);
}

/// A run's folder, that of its checkpoints, and the word `latest`; damaged ones are passed over aloud.
#[test]
fn the_newest_good_checkpoint_is_found() {
    let here = bench().path("newest");
    let copy = |run: &str, step: u64| {
        let folder = here.join(format!("runs/{run}/checkpoints/step_{step:08}"));
        fs::create_dir_all(&folder).unwrap();
        let from = bench().path(&format!("run/checkpoints/step_{step:08}"));
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        folder
    };
    let write = |given: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_generate-text"));
        command.current_dir(&here).args(["--checkpoint", given, "--prompt", "x", "--max-new-tokens", "1"]);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let finds = |given: &str, found: &str| {
        let (code, report) = write(given);
        assert_eq!(code, Some(0), "{given}: {report}");
        assert!(report.contains(&format!("checkpoint {found}\n")), "{given}: not {found}, but {report}");
        report
    };
    copy("first", 100);
    copy("first", 50);
    // Written last, though of an earlier step.
    std::thread::sleep(std::time::Duration::from_millis(20));
    copy("second", 50);
    let damaged = copy("second", 100);
    fs::write(damaged.join("config.json"), "{}").unwrap();
    finds("runs/first", "runs/first/checkpoints/step_00000100");
    let report = finds("runs/second/checkpoints", "runs/second/checkpoints/step_00000050");
    assert!(report.contains("passing over runs/second/checkpoints/step_00000100"), "{report}");
    assert!(finds("latest", "runs/second/checkpoints/step_00000050").contains("passing over"));
    fs::create_dir(here.join("latest")).unwrap();
    let (code, message) = write("latest");
    assert!(code == Some(1) && message.contains("give ./latest"), "{message}");
    // The end of an epoch, and the lowest validation loss: of a run, or of the one that was written last.
    let ends = train::checkpoint::steps(&bench().path("run/checkpoints")).unwrap();
    let mut ends = ends.into_iter().filter_map(|(step, path)| match train::checkpoint::whole(&path)?.keep {
        train::checkpoint::Keep::EpochEnd(epoch) => Some((epoch, step)),
        _ => None,
    });
    let (epoch, step) = ends.next_back().unwrap();
    copy("first", step);
    std::thread::sleep(std::time::Duration::from_millis(20));
    copy("first", 100);
    let end = format!("runs/first/checkpoints/step_{step:08}");
    finds(&format!("runs/first@{epoch}"), &end);
    finds(&epoch.to_string(), &end);
    let report = finds("runs/first@best", "runs/first/checkpoints/step_00000100");
    assert!(report.contains("validation loss "), "{report}");
    finds("best", "runs/first/checkpoints/step_00000100");
    finds("runs/first@latest", "runs/first/checkpoints/step_00000100");
    let (code, message) = write("runs/first@999");
    let there = format!("no checkpoint of the end of epoch 999; there are those of epochs: {epoch} (");
    assert!(code == Some(1) && message.contains(&there), "{message}");
    let (code, message) = write("runs/first/checkpoints/step_00000100@2");
    assert!(code == Some(1) && message.contains("is a checkpoint and not a run's folder"), "{message}");
    fs::create_dir_all(here.join("runs/empty/checkpoints")).unwrap();
    let (code, message) = write("runs/empty");
    assert!(code == Some(1) && message.contains("runs/empty has no good checkpoint"), "{message}");
}

/// The shell gives `'\n'` as two characters.
#[test]
fn escapes_of_stop_texts() {
    let common =
        ["--prompt", "def function_1(x, total=0):\n", "--max-new-tokens", "40", "--json", "--samples", "4"];
    let lines = |stop: &str| -> Vec<Value> {
        let (text, _) = generate(&[&common[..], &["--stop", stop]].concat(), "");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let escaped = lines("\\n");
    assert_eq!(escaped, lines("\n"));
    assert!(escaped.iter().any(|line| line["finish"] == "stop" && line["stop"] == "\n"), "{escaped:?}");
    assert!(escaped.iter().all(|line| !line["text"].as_str().unwrap().contains('\n')));
    lines("\\\\n\\t--");
    lines("--x");
}

/// The trained length is in the checkpoint: the longest rows of all trainings.
#[test]
fn checkpoints_say_how_long_the_rows_were() {
    let trained = |checkpoint: &str| -> Value {
        let text = fs::read_to_string(bench().path(checkpoint).join("config.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["original_max_position_embeddings"].clone()
    };
    assert_eq!(trained(CHECKPOINT), 32);
    bench().succeed("longer", &["--init", CHECKPOINT, "--set", "batch.seq=64", "--steps", "2"]);
    assert_eq!(trained("longer/checkpoints/step_00000002"), 64);
    let longer = "longer/checkpoints/step_00000002";
    bench().succeed("shorter", &["--init", longer, "--steps", "2"]);
    assert_eq!(trained("shorter/checkpoints/step_00000002"), 64);
}

/// No program computes with weights that are no numbers.
#[test]
fn weights_that_are_nan_are_named_by_every_program() {
    let mut weights = fs::read(bench().path(CHECKPOINT).join("model.safetensors")).unwrap();
    let end = weights.len();
    weights[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let folder = altered("nan", "model.safetensors", Some(&weights));
    let folder = folder.to_str().unwrap();
    // The last tensor by name.
    let parts = ["nan/model.safetensors", "`mtp.proj.weight` holds NaN (first at [31, 63], 1 in all)"];
    let given = ["--checkpoint", folder];
    refused(env!("CARGO_BIN_EXE_generate-text"), &[&given[..], &["--prompt", "x"]].concat(), b"", &parts);
    refused(
        env!("CARGO_BIN_EXE_score-tokens"),
        &[&given[..], &["--text", "sources/0.py"]].concat(),
        b"",
        &parts,
    );
    let message = bench().run("of-nan", &["--init", folder, "--steps", "2"]);
    let message = String::from_utf8(message.stderr).unwrap();
    assert!(parts.iter().all(|part| message.contains(part)), "{message}");
}

/// A copy of the checkpoint with another file in it, without the manifest that would notice.
fn altered(name: &str, file: &str, content: Option<&[u8]>) -> PathBuf {
    let folder = bench().path(name);
    fs::create_dir_all(&folder).unwrap();
    for part in ["model.safetensors", "config.json", "tokenizer.json"] {
        fs::copy(bench().path(CHECKPOINT).join(part), folder.join(part)).unwrap();
    }
    match content {
        Some(content) => fs::write(folder.join(file), content).unwrap(),
        None => fs::remove_file(folder.join(file)).unwrap(),
    }
    folder
}

#[test]
fn tokenizers_that_do_not_fit_are_refused() {
    let program = env!("CARGO_BIN_EXE_generate-text");
    let of = |path: &Path, parts: &[&str]| {
        refused(program, &["--checkpoint", path.to_str().unwrap(), "--prompt", "x"], b"", parts);
    };
    of(&altered("without", "tokenizer.json", None), &["no tokenizer.json"]);
    of(&altered("garbled", "tokenizer.json", Some(b"{}")), &["tokenizer.json"]);
    let text = fs::read_to_string(bench().path(CHECKPOINT).join("tokenizer.json")).unwrap();
    let mut larger: Value = serde_json::from_str(&text).unwrap();
    let added = larger["added_tokens"].as_array_mut().unwrap();
    let next = 1 + added.iter().map(|token| token["id"].as_i64().unwrap()).max().unwrap();
    for id in next..=320 {
        let mut token = added[0].clone();
        (token["id"], token["content"]) = (id.into(), format!("<|more {id}|>").into());
        added.push(token);
    }
    let larger = altered("larger", "tokenizer.json", Some(larger.to_string().as_bytes()));
    of(&larger, &["has 321 tokens, but the model knows 320"]);
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn scores_of_the_golden_model_are_the_expected_ones() {
    let expected = fs::read_to_string(golden("tiny_model/expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let line = |row: usize| {
        serde_json::json!({"ids": expected["ids"][0][row], "segments": expected["seg"][0][row]}).to_string()
    };
    fs::write(bench().path("golden.jsonl"), format!("{}\n\n{}\n", line(0), line(1))).unwrap();
    let folder = golden("tiny_model");
    let args = ["--checkpoint", folder.to_str().unwrap(), "--ids", "golden.jsonl"];
    let output = run(env!("CARGO_BIN_EXE_score-tokens"), &args, b"");
    let summary = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{summary}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for (row, line) in lines.iter().enumerate() {
        for name in ["logprobs", "mtp_logprobs"] {
            let (found, wanted) = (numbers(&line[name]), numbers(&expected[name][row]));
            // f32, as where the model's own numbers are compared.
            assert_close(&format!("row {row} {name}"), &found, &wanted, 16.0 * F32);
        }
    }
    let loss = summary.lines().find_map(|line| line.strip_prefix("loss")).unwrap();
    let loss: f64 = loss.trim().trim_end_matches(" nats").parse().unwrap();
    let wanted = expected["loss"].as_f64().unwrap();
    // It is printed with six decimals.
    assert!((loss - wanted).abs() < 16.0 * F32 * wanted + 0.5e-6, "{summary}");
    assert!(summary.contains("unknown: the checkpoint has no tokenizer.json"), "{summary}");
}

#[test]
fn text_longer_than_the_window_is_scored_to_its_end() {
    let text = "def function_1(x, total=0):\n    total += x * 1 + 0\n    return total\n".repeat(6);
    fs::write(bench().path("long.py"), &text).unwrap();
    fs::write(bench().path("short.py"), "x = 1\n").unwrap();
    let args = ["--checkpoint", CHECKPOINT, "--text", "long.py", "short.py"];
    let output = run(env!("CARGO_BIN_EXE_score-tokens"), &args, b"");
    let summary = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{summary}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let counts: Vec<[usize; 2]> = lines
        .iter()
        .map(|line| ["logprobs", "mtp_logprobs"].map(|name| numbers(&line[name]).len()))
        .collect();
    assert!(counts[0][0] > 128 && counts[0][1] + 1 == counts[0][0], "{counts:?}");
    assert!(summary.contains(&format!("tokens        {}", counts[0][0] + counts[1][0])), "{summary}");
    assert!(summary.contains("perplexity") && summary.contains("bits a byte"), "{summary}");
}

/// As in every folder of Python: an `__init__.py` without a byte, or with one token.
#[test]
fn files_with_nothing_to_predict_do_not_end_a_run() {
    for (name, text) in [("empty.py", ""), ("one.py", "\n"), ("some.py", "x = 1\n")] {
        fs::write(bench().path(name), text).unwrap();
    }
    let score = |args: &[&str]| {
        let output =
            run(env!("CARGO_BIN_EXE_score-tokens"), &[&["--checkpoint", CHECKPOINT], args].concat(), b"");
        let summary = String::from_utf8(output.stderr).unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (output.status.code(), lines, summary)
    };
    let (code, lines, summary) = score(&["--text", "empty.py", "some.py", "one.py", "some.py"]);
    assert_eq!(code, Some(0), "{summary}");
    assert!(summary.contains("left out      2 with fewer than two tokens"), "{summary}");
    for nothing in [&lines[0], &lines[2]] {
        assert_eq!(*nothing, serde_json::json!({"logprobs": [], "mtp_logprobs": [], "loss": null}));
    }
    assert!(lines.len() == 4 && lines[1] == lines[3] && lines[1]["loss"].is_f64(), "{lines:?}");
    assert!(!score(&["--text", "some.py"]).2.contains("left out"));
    let (code, lines, summary) = score(&["--text", "empty.py", "one.py"]);
    assert_eq!((code, lines.len()), (Some(1), 2));
    assert!(summary.contains("none of the files has a token to predict"), "{summary}");
    // Ids alike; and a special token stands for no bytes.
    let text = fs::read_to_string(bench().path(CHECKPOINT).join("tokenizer.json")).unwrap();
    let special = serde_json::from_str::<Value>(&text).unwrap()["added_tokens"][0]["id"].clone();
    fs::write(bench().path("few.jsonl"), format!("{{\"ids\": [1]}}\n{{\"ids\": [5, {special}]}}\n")).unwrap();
    let (code, lines, summary) = score(&["--ids", "few.jsonl"]);
    assert_eq!((code, lines.len()), (Some(0), 2), "{summary}");
    assert!(
        summary.contains("left out      1 with")
            && summary.contains("unknown: no predicted token stands for text"),
        "{summary}"
    );
}

#[test]
fn wrong_ids_are_explained() {
    let program = env!("CARGO_BIN_EXE_score-tokens");
    let cases: &[(&str, &[&str])] = &[
        ("{\"ids\": [1, 2", &["ids.jsonl, line 1"]),
        ("{\"ids\": [1, 2], \"mask\": [1, 1]}", &["line 1", "mask"]),
        ("{\"ids\": [320]}", &["line 1", "id 320", "320 tokens"]),
        ("{\"ids\": [1], \"segments\": []}", &["0 segments for 1 ids"]),
        ("{\"ids\": [1]}\n{\"ids\": []}", &["no line with a token to predict"]),
        ("{\"ids\": [1, 320]}", &["line 1", "id 320", "320 tokens"]),
        ("{\"ids\": [1, -1]}", &["id -1"]),
        ("{\"ids\": [1, 2], \"segments\": [0]}", &["1 segments for 2 ids"]),
        ("{\"ids\": [1, 2], \"segments\": [1, 0]}", &["not decrease"]),
        ("", &["no line"]),
    ];
    for (number, (content, parts)) in cases.iter().enumerate() {
        let name = format!("{number}-ids.jsonl");
        fs::write(bench().path(&name), content).unwrap();
        let output = run(program, &["--checkpoint", CHECKPOINT, "--ids", &name], b"");
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{content}: {message}");
        assert!(message.starts_with("error: "), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message} lacks one of {parts:?}");
    }
    refused(program, &["--checkpoint", "nowhere", "--ids", "0-ids.jsonl"], b"", &["nowhere"]);
    refused(program, &["--checkpoint", CHECKPOINT, "--text", "nowhere.py"], b"", &["nowhere.py"]);
}
