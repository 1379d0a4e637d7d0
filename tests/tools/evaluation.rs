//! A folder to evaluate in, for the tests of `eval-humaneval`.

use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A temporary folder to evaluate in.
pub(crate) struct Bench {
    pub(crate) folder: TempDir,
}

/// A problem whose solution is `    return x + 1\n`.
pub(crate) fn problem() -> Value {
    json!({
        "task_id": "Test/0",
        "prompt": "import os\n\n\ndef f(x):\n    \"\"\"The next number.\"\"\"\n",
        "canonical_solution": "    return x + 1\n",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3\n",
        "entry_point": "f",
    })
}

impl Bench {
    /// Panics with the reason on a machine that cannot keep programs in the whole sandbox: there is nothing to test then.
    #[track_caller]
    pub(crate) fn new() -> Bench {
        static MISSING: OnceLock<Option<String>> = OnceLock::new();
        let missing = MISSING.get_or_init(|| {
            let bench = Bench::unchecked();
            bench.write("samples.jsonl", &[json!({"task_id": "Test/0", "completion": "    return x + 1\n"})]);
            let given = ["--problems", "problems.jsonl", "--samples-file", "samples.jsonl"];
            let output = bench.command(&given).output().unwrap();
            (!output.status.success()).then(|| text(&output.stderr))
        });
        if let Some(missing) = missing {
            panic!("this test needs landlock and seccomp, and a Python that runs under them: {missing}");
        }
        Bench::unchecked()
    }

    fn unchecked() -> Bench {
        let bench = Bench { folder: TempDir::new().unwrap() };
        bench.write("problems.jsonl", &[problem()]);
        fs::create_dir(bench.path("tmp")).unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, lines: &[Value]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn lines(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evaluator"));
        // What a killed evaluation leaves goes with this folder.
        command.current_dir(self.folder.path()).env("TMPDIR", self.path("tmp")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    pub(crate) fn succeed(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Exit code 1 and a message.
    #[track_caller]
    pub(crate) fn fail(&self, args: &[&str]) -> String {
        said(self.command(args).output().unwrap())
    }

    /// Judges completions of the one problem: `passed` and `reason` of each.
    #[track_caller]
    pub(crate) fn judge(&self, completions: &[&str], args: &[&str]) -> Vec<(bool, String)> {
        let lines: Vec<Value> =
            completions.iter().map(|text| json!({"task_id": "Test/0", "completion": text})).collect();
        self.write("samples.jsonl", &lines);
        let _ = fs::remove_file(self.path("out.jsonl"));
        let given = ["--problems", "problems.jsonl", "--samples-file", "samples.jsonl", "--out", "out.jsonl"];
        self.succeed(&[&given, args].concat());
        let results = self.lines("out.jsonl");
        assert_eq!(results.len(), completions.len());
        for (line, completion) in results.iter().zip(completions) {
            assert_eq!(line["completion"], *completion);
        }
        let verdict = |line: &Value| (line["passed"] == true, line["reason"].as_str().unwrap().to_owned());
        results.iter().map(verdict).collect()
    }

    /// Judges completions that must all fail, each for a reason with these words.
    #[track_caller]
    pub(crate) fn all_fail(&self, cases: &[(&str, &str)], args: &[&str]) {
        let completions: Vec<&str> = cases.iter().map(|(completion, _)| *completion).collect();
        for ((passed, reason), (completion, wanted)) in self.judge(&completions, args).iter().zip(cases) {
            println!("{reason}");
            assert!(!passed, "passed:\n{completion}");
            assert!(
                reason.contains(wanted),
                "no `{wanted}` in `{reason}`, which is why this failed:\n{completion}"
            );
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
pub(crate) fn said(output: Output) -> String {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("error: ") && !message.contains("panicked"), "{message}");
    println!("{message}");
    message
}

#[track_caller]
pub(crate) fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

/// The processes that a process has started.
pub(crate) fn children(process: &Child) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    let lists =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}
