//! The notebook for Colab, executed as it stands: a folder is the drive, another the machine. What Colab has and this machine
//! does not, `google.colab`, is laid down by [`Colab::new`].

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tests::packages;
use tests::trainer::{Bench, MODEL};
use train::checkpoint::latest_good;

/// Steps of the run, of a few milliseconds each: many enough that it is killed long before its end.
const STEPS: u64 = 1500;

/// Packages that execute a notebook.
fn packages() -> &'static Path {
    static PACKAGES: OnceLock<PathBuf> = OnceLock::new();
    PACKAGES.get_or_init(|| packages::installed("notebook", "tools/notebook/requirements.txt"))
}

/// A drive, and machines that come and go.
struct Colab {
    bench: Bench,
    packages: &'static Path,
}

impl Colab {
    fn new() -> Colab {
        let colab = Colab { bench: Bench::new(env!("CARGO_BIN_EXE_trainer")), packages: packages() };
        let module = colab.path("site/google/colab");
        fs::create_dir_all(&module).unwrap();
        fs::write(module.join("__init__.py"), "").unwrap();
        let drive = "import os\n\
                     def mount(folder):\n    \
                         os.makedirs(folder, exist_ok=True)\n    \
                         os.path.ismount = lambda path: path == folder and 'UNMOUNTED' not in os.environ\n\
                     def flush_and_unmount():\n    \
                         print('flushed')\n";
        fs::write(module.join("drive.py"), drive).unwrap();

        // A cargo that has built the programs.
        let programs = [
            ("train", env!("CARGO_BIN_EXE_trainer")),
            ("doctor", env!("CARGO_BIN_EXE_doctor-screen")),
            ("generate", env!("CARGO_BIN_EXE_generate-text")),
            ("eval-humaneval", env!("CARGO_BIN_EXE_evaluator")),
            ("prepare-data", env!("CARGO_BIN_EXE_preparer")),
        ];
        let mut script = format!(
            "#!/bin/sh\necho \"$@\" >> '{}'\nmkdir -p target/release\n",
            colab.path("cargo.log").display()
        );
        for (name, built) in programs {
            script += &format!("ln -sf '{built}' target/release/{name}\n");
        }
        fs::create_dir(colab.path("bin")).unwrap();
        let cargo = colab.path("bin/cargo");
        fs::write(&cargo, script).unwrap();
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();

        let drive = colab.path("drive/MyDrive/pythonlm");
        fs::create_dir_all(&drive).unwrap();
        for command in [
            "git init --quiet --initial-branch main repo && cd repo && echo source > README && git add README && \
             git -c user.name=t -c user.email=t commit --quiet --message source",
            "cp -r data drive/MyDrive/pythonlm/preprocessed_data",
        ] {
            let made = Command::new("sh").args(["-c", command]).current_dir(colab.path("")).output().unwrap();
            assert!(made.status.success(), "{command}: {}", String::from_utf8_lossy(&made.stderr));
        }
        colab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bench.path(name)
    }

    /// What the run is told beyond the notebook's own settings: the small model, which this disk mirrors too.
    fn settings() -> String {
        let own = [
            format!("steps={STEPS}"),
            "checkpoint.every=50".into(),
            "checkpoint.keep_epochs=1".into(),
            "checkpoint.mirror_every_minutes=0.001".into(),
            "checkpoint.mirror_settle_minutes=auto".into(),
            "checkpoint.mirror_disk=any".into(),
            "log.every=100".into(),
            "validation.every=100000".into(),
        ];
        let model = MODEL
            .iter()
            .filter(|key| !key.starts_with("log.every") && !key.starts_with("checkpoint.keep_last"));
        model.map(ToString::to_string).chain(own).collect::<Vec<_>>().join(" ")
    }

    /// Opens the notebook on a machine and runs all cells.
    fn run_all(&self, set: &str, variables: &[(&str, &str)]) -> Opened<'_> {
        let machine = self.path("machine");
        fs::create_dir_all(&machine).unwrap();
        let said = self.path("said");
        let _ = fs::remove_file(self.path("interrupt"));
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let problems = self.path("problems.jsonl");
        fs::write(
            &problems,
            "{\"task_id\": \"a/0\", \"prompt\": \"def f():\\n\", \"entry_point\": \"f\", \"canonical_solution\": \"    return 1\\n\", \
             \"test\": \"def check(f):\\n    assert f() == 1\\n\"}\n",
        )
        .unwrap();
        let search = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let python = format!("{}:{}", self.packages.display(), self.path("site").display());
        let mut command = Command::new("python3");
        command.arg(here.join("tools/notebook/execute.py"));
        command.arg(here.join("../tools/colab/train_colab.ipynb")).arg(&machine);
        command.arg(self.path("executed.ipynb")).arg(self.path("interrupt"));
        command.env("PATH", search).env("PYTHONPATH", python).env("HOME", self.path("home"));
        command.env("PYTHONLM_CACHE", engine::plugin::cache_folder().unwrap());
        command.env("IPYTHONDIR", self.path("ipython")).env("JUPYTER_RUNTIME_DIR", self.path("jupyter"));
        command.env("PYLM_REPO", self.path("repo")).env("PYLM_MOUNT", self.path("drive"));
        command.env("PYLM_PRESET", "tiny").env("PYLM_PLATFORM", "cpu").env("PYLM_SET", set);
        command.env("PYLM_PAUSE", "0.2");
        command.env(
            "PYLM_HUMANEVAL",
            format!("--temperature 0 --max-new-tokens 8 --problems {}", problems.display()),
        );
        command.envs(variables.iter().copied()).stdin(Stdio::null());
        let file = fs::File::create(&said).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Opened { colab: self, child: command.spawn().unwrap() }
    }

    /// Every process of the machine, by what all of them inherit.
    fn processes(&self) -> Vec<u32> {
        let mark = format!("HOME={}", self.path("home").display());
        let entries =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let marked = |pid: &u32| {
            let variables = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            variables.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        entries.filter(marked).collect()
    }

    /// The machine is gone: its processes at once, and its disk.
    fn lose_the_machine(&self) {
        while let processes @ [_, ..] = &self.processes()[..] {
            let numbers: Vec<String> = processes.iter().map(u32::to_string).collect();
            let _ = Command::new("kill").arg("-9").args(numbers).output();
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::remove_dir_all(self.path("machine")).unwrap();
    }

    /// The newest step on the drive.
    fn copied(&self) -> Option<u64> {
        let mirror = self.path("drive/MyDrive/pythonlm/runs/tiny/checkpoints");
        Some(latest_good(&mirror).ok()?.good?.state().progress.step)
    }
}

impl Drop for Colab {
    fn drop(&mut self) {
        if self.path("machine").exists() {
            self.lose_the_machine();
        }
    }
}

/// A notebook that runs.
struct Opened<'a> {
    colab: &'a Colab,
    child: Child,
}

impl Opened<'_> {
    /// Waits for its end: whether all cells ran, and what they and the run said.
    fn end(mut self) -> (bool, String) {
        let ended = self.child.wait().unwrap();
        (ended.success(), self.colab.said())
    }

    fn wait_until(&mut self, what: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < Duration::from_secs(300), "not in time: {what}: {}", self.colab.said());
            assert!(self.child.try_wait().unwrap().is_none(), "ended before: {what}: {}", self.colab.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Colab {
    fn said(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.path(name)).unwrap_or_default();
        format!("{}\n{}\n{}", read("said"), read("executed.ipynb"), read("machine/pythonlm/runs/tiny.log"))
    }
}

/// From nothing to a run's last step, over a machine that is lost. On the first one a person stops the cell that watches, which
/// leaves training alive; then the machine goes, and its disk. The second one begins empty and runs all cells.
#[test]
fn a_run_goes_on_bit_for_bit_on_a_second_machine() {
    let colab = Colab::new();
    let set = Colab::settings();
    let start = Instant::now();
    let mut first = colab.run_all(&set, &[]);
    let log = colab.path("machine/pythonlm/runs/tiny.log");
    first.wait_until("a checkpoint on the drive", || colab.copied() >= Some(100) && log.exists());
    fs::write(colab.path("interrupt"), "").unwrap();
    let (all, said) = first.end();
    assert!(!all && said.lines().any(|line| line.trim() == "KeyboardInterrupt"), "{said}");
    assert!(said.contains("Training goes on. This cell watches it again"), "{said}");
    let before = colab.copied();
    let alive = Instant::now();
    while colab.copied() == before {
        assert!(alive.elapsed() < Duration::from_secs(60), "training stands still: {}", colab.said());
        std::thread::sleep(Duration::from_millis(10));
    }
    colab.lose_the_machine();
    let copied = colab.copied().unwrap();
    assert!((100..STEPS).contains(&copied), "{copied}");
    println!("first machine: {:?}, {copied} steps on the drive", start.elapsed());

    let start = Instant::now();
    let (all, said) = colab.run_all(&set, &[]).end();
    assert!(all, "{said}");
    println!("second machine: {:?}", start.elapsed());
    let built = fs::read_to_string(colab.path("cargo.log")).unwrap();
    assert_eq!(built.lines().count(), 1, "programs are built once: {built}");
    let told = ["The run is at its last step.", "flushed", "pass@1", "<svg", "checkpoints on the drive"];
    assert!(told.iter().all(|told| said.contains(told)), "{said}");
    assert!(said.contains(&format!("its newest checkpoint is of step {copied}")), "{said}");

    let steps = STEPS.to_string();
    let mut args = vec!["--steps", steps.as_str()];
    args.extend(set.split(' ').flat_map(|key| ["--set", key]));
    colab.bench.succeed("straight", &args);
    let kept = colab.path(&format!("drive/MyDrive/pythonlm/runs/tiny/checkpoints/step_{STEPS:08}"));
    let kept = ["model.safetensors", "optimizer.safetensors"].map(|name| fs::read(kept.join(name)).unwrap());
    assert!(kept == colab.bench.checkpoint("straight", STEPS), "not the same bits");
}

#[test]
fn training_that_fails_and_a_drive_that_is_not_there_end_the_notebook() {
    let colab = Colab::new();
    let (all, said) = colab.run_all("steps=many", &[("PYLM_RESTARTS", "1"), ("PYLM_HUMANEVAL", "no")]).end();
    assert!(!all && said.contains("RuntimeError training ended with exit code 1"), "{said}");
    let told = [
        "exit code 1: training is started again in 0.2 s, 1 of at most 1 times",
        "`steps` wants a whole number",
    ];
    assert!(told.iter().all(|told| said.contains(told)), "{said}");
    let log = fs::read_to_string(colab.path("machine/pythonlm/runs/tiny.log")).unwrap();
    assert_eq!(log.matches("error: ").count(), 2, "{log}");
    let (all, said) = colab.run_all("", &[("UNMOUNTED", "yes")]).end();
    assert!(!all && said.contains("AssertionError") && said.contains("is not mounted"), "{said}");
}
