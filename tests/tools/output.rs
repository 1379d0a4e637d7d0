//! Standard output that nobody reads, or that cannot be written to, in all programs: a closed pipe ends quietly and loses
//! no work, a full disk is an error that is said once. And standard error that nobody reads: nothing comes of it.

use crate::PROGRAMS;
use std::fs::{self, File};
use std::io;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tests::trainer::Bench;

const CHECKPOINT: &str = "run/checkpoints/step_00000002";

/// A folder with a run, made once.
fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let bench = Bench::new(env!("CARGO_BIN_EXE_trainer"));
        bench.succeed("run", &["--steps", "2"]);
        bench
    })
}

fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.current_dir(bench().path("")).args(args).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Runs a command whose standard output has no reader.
fn closed(mut command: Command) -> Output {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    command.stdout(writer).output().unwrap()
}

/// Runs a command whose standard output is a full disk.
fn full(mut command: Command) -> Output {
    command.stdout(File::options().write(true).open("/dev/full").unwrap()).output().unwrap()
}

#[track_caller]
fn is_quiet(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!said.contains("error") && !said.contains("panicked"), "{said}");
}

#[track_caller]
fn is_an_error(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(
        said.matches("error: writing to standard output: No space left on device").count(),
        1,
        "{said}"
    );
    assert!(said.matches("error: ").count() == 1 && !said.contains("panicked"), "{said}");
}

#[test]
fn help_follows_the_rule() {
    for (_, program) in PROGRAMS {
        for flag in ["--help", "--version"] {
            is_quiet(&closed(command(program, &[flag])));
            is_an_error(&full(command(program, &[flag])));
        }
    }
}

#[test]
fn programs_whose_output_is_all_end_quietly_or_fail() {
    let generate = |args: &[&str]| {
        let common = ["--checkpoint", CHECKPOINT, "--prompt", "def f", "--max-new-tokens", "8"];
        command(env!("CARGO_BIN_EXE_generate-text"), &[&common[..], args].concat())
    };
    for args in [&[][..], &["--json"], &["--samples", "2"]] {
        is_quiet(&closed(generate(args)));
        is_an_error(&full(generate(args)));
    }
    let others = [
        (env!("CARGO_BIN_EXE_score-tokens"), vec!["--checkpoint", CHECKPOINT, "--text", "sources/0.py"]),
        (env!("CARGO_BIN_EXE_dump-program"), vec!["--preset", "tiny", "--program", "decode"]),
    ];
    for (program, args) in others {
        is_quiet(&closed(command(program, &args)));
        is_an_error(&full(command(program, &args)));
    }
    // What this machine lacks is a failure whoever reads it.
    let doctor = || command(env!("CARGO_BIN_EXE_doctor-screen"), &[]);
    let code = doctor().stdout(Stdio::null()).status().unwrap().code();
    assert_eq!(closed(doctor()).status.code(), code);
    is_an_error(&full(doctor()));
}

#[test]
fn programs_that_write_files_go_on() {
    for (out, how) in [("closed", closed as fn(Command) -> Output), ("full", full)] {
        let trained = how(bench().command(out, &["--steps", "3"]));
        assert!(bench().path(out).join("checkpoints/step_00000003/manifest.json").exists(), "{trained:?}");
        fs::write(
            bench().path("problems.jsonl"),
            concat!(
                r#"{"task_id": "T/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "#,
                r#""test": "def check(f):\n    assert f() == 1\n", "entry_point": "f"}"#,
            ),
        )
        .unwrap();
        let folder = format!("{out}-evaluation");
        let args =
            ["--run", "run", "--problems", "problems.jsonl", "--max-new-tokens", "4", "--out", &folder];
        let evaluated =
            how(command(env!("CARGO_BIN_EXE_evaluator"), &[&args[..], &["--sandbox", "none"]].concat()));
        assert!(bench().path(&folder).join("eval_summary.json").exists(), "{evaluated:?}");
        let prepared = format!("{out}-data");
        let args = ["--train-tokenizer", "300", "--out", &prepared, "sources"];
        let made = how(command(env!("CARGO_BIN_EXE_preparer"), &args));
        assert!(bench().path(&prepared).join("dataset.json").exists(), "{made:?}");
        for output in [trained, evaluated, made] {
            match out {
                "closed" => is_quiet(&output),
                _ => is_an_error(&output),
            }
        }
    }
}

/// What goes well ends well, and what does not is an exit code: 101 would be a panic over words that nobody hears.
#[test]
fn nobody_needs_to_hear_what_goes_wrong() {
    let checkpoint = ["--checkpoint", CHECKPOINT];
    let generate = [&checkpoint[..], &["--prompt", "def f", "--max-new-tokens", "4"]].concat();
    let score = [&checkpoint[..], &["--text", "sources/0.py"]].concat();
    let prepare = ["--train-tokenizer", "300", "--out", "unheard-data", "sources"];
    let nowhere = ["--checkpoint", "nowhere"];
    let [generator, scorer, preparer, evaluator] = [
        env!("CARGO_BIN_EXE_generate-text"),
        env!("CARGO_BIN_EXE_score-tokens"),
        env!("CARGO_BIN_EXE_preparer"),
        env!("CARGO_BIN_EXE_evaluator"),
    ];
    let cases: [(&str, &[&str], i32); 9] = [
        (generator, &generate, 0),
        (scorer, &score, 0),
        (preparer, &prepare, 0),
        (generator, &[&nowhere[..], &["--prompt", "x"]].concat(), 1),
        (scorer, &[&nowhere[..], &["--text", "sources/0.py"]].concat(), 1),
        (preparer, &["--train-tokenizer", "300", "--out", "unheard-data-2", "nowhere"], 1),
        (evaluator, &nowhere, 1),
        (env!("CARGO_BIN_EXE_dump-program"), &["--from", "nowhere", "--format", "cycles"], 1),
        (env!("CARGO_BIN_EXE_trainer"), &["--data", "nowhere"], 1),
    ];
    for (program, args, code) in cases {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let status = command(program, args).stdout(Stdio::null()).stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(code), "{program} {args:?}");
    }
}
