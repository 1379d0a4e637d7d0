//! Small runs of `train` in processes of their own, in a temporary folder.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use train::data::{PrepareOptions, TokenizerSource, prepare};

/// A temporary folder with a small data set in `data`, and a program that trains on it.
pub struct Bench {
    program: &'static str,
    folder: TempDir,
}

/// The smallest model that has every part: a step takes milliseconds.
pub const MODEL: &[&str] = &[
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=2",
    "model.head_dim=8",
    "model.intermediate_size=32",
    "model.vocab_size=320",
    "model.num_tokens=320",
    "model.max_position_embeddings=64",
    "model.dropout=0.1",
    "batch.micro=2",
    "batch.accumulation=2",
    "batch.seq=32",
    "data.fim_rate=0.5",
    "data.epochs=1000",
    "schedule.warmup_steps=1",
    "validation.batches=1",
    "checkpoint.keep_last=100",
    "log.every=1",
];

/// How printed commands start the program.
const CARGO: &str = "cargo run -p train --";

impl Bench {
    /// `program`: the path of the `trainer` binary.
    pub fn new(program: &'static str) -> Bench {
        let folder = TempDir::new().unwrap();
        let sources = folder.path().join("sources");
        fs::create_dir(&sources).unwrap();
        for i in 0..24 {
            let body: String =
                (0..2 + i % 3).map(|line| format!("    total += x * {i} + {line}\n")).collect();
            let text = format!("def function_{i}(x, total=0):\n{body}    return total\n");
            fs::write(sources.join(format!("{i}.py")), text).unwrap();
        }
        let mut options = PrepareOptions::new(vec![sources], folder.path().join("data"));
        options.tokenizer = TokenizerSource::Train(320);
        options.validation_fraction = 0.2;
        options.threads = 1;
        prepare(&options, &mut |_| ControlFlow::Continue(())).unwrap();
        Bench { program, folder }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command `train --data data --out <out> <args>` for the small model, in the folder; `--data` in `args` counts.
    pub fn command(&self, out: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.current_dir(self.folder.path()).args(["--out", out]);
        if !args.contains(&"--data") {
            command.args(["--data", "data"]);
        }
        for key in MODEL {
            command.args(["--set", key]);
        }
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, out: &str, args: &[&str]) -> Output {
        self.command(out, args).output().unwrap()
    }

    /// Starts it, its output into `<out>.said`.
    pub fn start(&self, out: &str, args: &[&str]) -> Started {
        self.start_with(out, args, &[])
    }

    /// The same with environment variables.
    pub fn start_with(&self, out: &str, args: &[&str], variables: &[(&str, &Path)]) -> Started {
        let said = self.path(&format!("{out}.said"));
        let file = fs::File::create(&said).unwrap();
        let mut command = self.command(out, args);
        command.stdout(file.try_clone().unwrap()).stderr(file).envs(variables.iter().copied());
        Started { child: command.spawn().unwrap(), said }
    }

    /// Pastes a command line that the program printed into a shell in the folder; it must succeed. What it printed.
    #[track_caller]
    pub fn paste(&self, line: &str) -> String {
        let line = line.trim();
        assert!(line.starts_with(CARGO), "no command: {line}");
        let line = line.replacen(CARGO, self.program, 1);
        let output = Command::new("sh").args(["-c", &line]).current_dir(self.folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it; it must succeed. What it printed.
    #[track_caller]
    pub fn succeed(&self, out: &str, args: &[&str]) -> String {
        let output = self.run(out, args);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it; it must fail with exit code 1, one line of explanation, and a folder as it was. The explanation.
    #[track_caller]
    pub fn fail(&self, out: &str, args: &[&str]) -> String {
        let before = files(&self.path(out));
        let output = self.run(out, args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.starts_with("error: ") && message.trim_end().lines().count() == 1, "{message}");
        let (before, after) = (before.keys(), files(&self.path(out)));
        assert!(before.eq(after.keys()), "{message}: left {:?}", after.keys());
        message
    }

    /// Weights and optimiser of the checkpoint of a step.
    #[track_caller]
    pub fn checkpoint(&self, out: &str, step: u64) -> [Vec<u8>; 2] {
        let folder = self.path(out).join(format!("checkpoints/step_{step:08}"));
        ["model.safetensors", "optimizer.safetensors"].map(|name| fs::read(folder.join(name)).unwrap())
    }

    /// `state.json` of the checkpoint of a step, but for whose it is: what runs of the same course share.
    #[track_caller]
    pub fn course(&self, out: &str, step: u64) -> serde_json::Value {
        let mut state = self.state(out, step);
        assert!(state.as_object_mut().unwrap().remove("run").is_some(), "no run");
        state
    }

    /// `state.json` of the checkpoint of a step.
    #[track_caller]
    pub fn state(&self, out: &str, step: u64) -> serde_json::Value {
        let path = self.path(out).join(format!("checkpoints/step_{step:08}/state.json"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }
}

/// A run in the background.
pub struct Started {
    child: Child,
    said: PathBuf,
}

impl Started {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    /// Waits until it has printed a text.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let start = Instant::now();
        while !self.said().contains(text) {
            assert!(start.elapsed() < Duration::from_secs(600), "no `{text}` in {}", self.said());
            assert!(self.child.try_wait().unwrap().is_none(), "ended without `{text}`: {}", self.said());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends signals (`-TERM`), one right after the other.
    pub fn signal(&self, signals: &[&str]) {
        let pid = self.id();
        let line: Vec<String> = signals.iter().map(|signal| format!("kill {signal} {pid}")).collect();
        assert!(Command::new("sh").args(["-c", &line.join("; ")]).status().unwrap().success());
    }

    /// Waits for its end: exit code, and what it printed.
    pub fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        (code, self.said())
    }

    /// Bytes of main memory that it holds; nothing once it has ended.
    pub fn resident(&self) -> Option<u64> {
        self.memory("VmRSS:")
    }

    /// The most that it ever held; nothing once it has ended.
    pub fn peak(&self) -> Option<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, kind: &str) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
    }
}

/// Relative paths and bytes of every file below a folder; nothing if there is no folder.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}
