//! `eval-humaneval`: what passes, what does not and why, what judged programs cannot reach, and what a person is told.

use eval_humaneval::estimate::{Tally, estimate, pass_at_k};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::property;
use tests::trainer::Bench as Training;

/// A temporary folder to evaluate in.
struct Bench {
    folder: TempDir,
}

/// A problem whose solution is `    return x + 1\n`.
fn problem() -> Value {
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
    fn new() -> Bench {
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

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, lines: &[Value]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(self.path(name), text).unwrap();
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evaluator"));
        // What a killed evaluation leaves behind goes with this folder.
        command.current_dir(self.folder.path()).env("TMPDIR", self.path("tmp")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    fn succeed(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Exit code 1 and a message.
    #[track_caller]
    fn fail(&self, args: &[&str]) -> String {
        said(self.command(args).output().unwrap())
    }

    /// Judges completions of the one problem: `passed` and `reason` of each.
    #[track_caller]
    fn judge(&self, completions: &[&str], args: &[&str]) -> Vec<(bool, String)> {
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
    fn all_fail(&self, cases: &[(&str, &str)], args: &[&str]) {
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

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn said(output: Output) -> String {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("error: ") && !message.contains("panicked"), "{message}");
    println!("{message}");
    message
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

/// All 164 reference solutions, cut by each list of stop strings, in the whole sandbox.
#[test]
fn canonical_solutions_pass() {
    let bench = Bench::new();
    for style in ["openai", "bigcode", "evalplus"] {
        let said = bench.succeed(&["--canonical", "--stop-style", style]);
        says(&said, &["164 of 164 solutions pass", "pass@1    100.00 ± 0.00 %"]);
    }
}

/// No function of HumanEval is right by doing nothing.
#[test]
fn empty_functions_fail() {
    let bench = Bench::new();
    let lines: Vec<Value> =
        (0..164).map(|i| json!({"task_id": format!("HumanEval/{i}"), "completion": "    pass\n"})).collect();
    bench.write("samples.jsonl", &lines);
    let said = bench.succeed(&["--samples-file", "samples.jsonl"]);
    says(&said, &["164 completions, 0 passed", "pass@1      0.00 ± 0.00 %"]);
}

#[test]
fn right_programs_pass() {
    let bench = Bench::new();
    let completions = [
        "    return x + 1\n",
        "    return x + 1",
        // Blank lines and a function after the first one: nothing is cut from given completions.
        "    y = g(x)\n\n    return y\n\n\ndef g(x):\n    return x + 1\n",
        "    print('x' * 100_000)\n    return x + 1\n",
        "    block = bytearray(300 << 20)\n    return x + 1\n",
        "    with open('note', 'w') as file:\n        file.write(str(x + 1))\n    return int(open('note').read())\n",
        "    import array, bisect, collections, copy, datetime, decimal, fractions, functools, hashlib, heapq, itertools\n    import json, math, operator, random, re, statistics, string, sys, tempfile, time, typing, unicodedata, zlib\n    return int(hashlib.md5(b'').hexdigest() > '') + x\n",
        "    import tempfile\n    with tempfile.TemporaryFile() as file:\n        file.write(b'x')\n    return x + 1\n",
        "    return x + 1 if x == 0 else f(x - 1) + 1\n",
    ];
    for ((passed, reason), completion) in bench.judge(&completions, &[]).iter().zip(completions) {
        assert!(*passed && reason == "passed", "{reason}:\n{completion}");
    }
}

#[test]
fn wrong_programs_fail_with_their_reason() {
    Bench::new().all_fail(
        &[
            ("    return x\n", "AssertionError at line 9: assert candidate(1) == 2"),
            ("    return 2\n", "AssertionError at line 10: assert candidate(2) == 3"),
            ("    return y\n", "NameError: name 'y' is not defined at line 6: return y"),
            ("    return (x\n", "SyntaxError"),
            ("return x + 1\n", "SyntaxError: 'return' outside function at line 6"),
            ("    raise ValueError('no\\nmore')\n", "ValueError: no at line 6"),
            ("    return f(x)\n", "RecursionError"),
            // Nothing of it reaches a terminal.
            ("    raise ValueError('\\x1b[2J')\n", "ValueError: \u{fffd}[2J at line 6"),
            ("    \0return x + 1\n", "null bytes"),
            ("  return x + 1\n", "IndentationError"),
            ("", "AssertionError"),
        ],
        &[],
    );
}

/// Ending early is not passing, however it is done.
#[test]
fn leaving_early_is_a_failure() {
    let inside = |line: &str| format!("    {line}\n");
    let early = "before its tests ended";
    let cases = [
        (inside("os._exit(0)"), "exited with code 0 before its tests ended"),
        (inside("import sys; sys.exit(0)"), "exited by SystemExit(0) before its tests ended"),
        (inside("raise SystemExit"), "exited by SystemExit(None)"),
        (inside("raise KeyboardInterrupt"), "KeyboardInterrupt"),
        (inside("raise GeneratorExit"), "GeneratorExit"),
        ("    return x\n\nos._exit(0)\n".to_owned(), "exited with code 0"),
        ("    return x\n\nimport sys\nsys.exit(0)\n".to_owned(), "exited by SystemExit(0)"),
        // What runs at the end does not make it better.
        ("    return x\n\nimport atexit\natexit.register(os._exit, 0)\n".to_owned(), "AssertionError"),
        (
            "    return x\n\nimport sys\nsys.excepthook = lambda *_: os._exit(0)\n".to_owned(),
            "AssertionError",
        ),
        // Nor does an exception whose description leaves.
        (
            "    raise E\n\nclass E(Exception):\n    def __str__(self):\n        os._exit(0)\n".to_owned(),
            "describing it, it exited with code 0",
        ),
        // Printed claims.
        (inside("print('passed', flush=True); os.write(1, b'RE' + bytes(16)); os._exit(0)"), early),
        (inside("import sys; sys.__stdout__.write('passed'); sys.__stdout__.flush(); os._exit(0)"), early),
        // Claims on every descriptor there is, with a made-up answer and without.
        (
            inside("[os.write(fd, b'E' + bytes(16)) for fd in range(3, 64) if can_write(fd)]; os._exit(0)")
                + CAN_WRITE,
            "wrote to the pipe of its own verdict",
        ),
        (
            inside("[os.write(fd, b'E') for fd in range(3, 64) if can_write(fd)]; os._exit(0)") + CAN_WRITE,
            "exited with code 0",
        ),
        // Signals to itself are refused, but a crash is a crash.
        (inside("import ctypes; ctypes.string_at(0)"), "SIGSEGV"),
        (inside("os.abort()"), early),
        (inside("os.closerange(0, 64); return x + 1"), "exited with code 1"),
        // Another program in its place.
        (inside("os.execv('/bin/true', ['true'])"), "PermissionError"),
        (
            inside("import sys; os.execv(sys.executable, [sys.executable, '-c', 'pass'])"),
            "exited with code 0 before its tests ended",
        ),
        // Not found by whoever looks for what the harness holds: the number comes after the tests.
        (
            inside(
                "import sys; frame = sys._getframe(); [print(frame.f_back.f_locals) for _ in [0]]; os._exit(0)",
            ),
            "exited with code 0",
        ),
    ];
    let cases: Vec<(&str, &str)> =
        cases.iter().map(|(completion, reason)| (completion.as_str(), *reason)).collect();
    Bench::new().all_fail(&cases, &[]);
}

const CAN_WRITE: &str = "\n\ndef can_write(fd):\n    import fcntl\n    try:\n        return fcntl.fcntl(fd, fcntl.F_GETFL) & 3 == os.O_WRONLY\n    except OSError:\n        return False\n";

/// Each of these would do harm outside; in the sandbox it is refused, and nothing has changed afterwards.
#[test]
fn hostile_programs_are_contained() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let secret = bench.path("secret");
    fs::write(&secret, "the secret").unwrap();
    let written = fs::metadata(&secret).unwrap().modified().unwrap();
    let path = secret.display();
    let folder = bench.folder.path().display();
    let system_call = |number: i64, arguments: &str| {
        format!(
            "    import ctypes\n    libc = ctypes.CDLL(None, use_errno=True)\n    result = libc.syscall(ctypes.c_long({number}){arguments})\n    raise Exception('refused with %d' % ctypes.get_errno() if result < 0 else 'worked')\n"
        )
    };
    let inside = |line: &str| format!("    {line}\n    return x + 1\n");
    let refused = "PermissionError";
    let cases: Vec<(String, &str)> = vec![
        // Network.
        (inside(&format!("import socket; socket.create_connection(('127.0.0.1', {port}))")), refused),
        (inside("import socket; socket.socketpair()"), refused),
        (inside("import socket; socket.socket(socket.AF_UNIX)"), refused),
        (inside("import urllib.request; urllib.request.urlopen('http://127.0.0.1')"), "not permitted"),
        // Processes and threads.
        (inside("while True: os.fork()"), refused),
        (inside("import subprocess; subprocess.run(['/bin/sh', '-c', ':(){ :|:& };:'])"), refused),
        (inside("os.system('true') == 0 or os.kill(1, 0)"), refused),
        (
            inside("import threading; [threading.Thread(target=input).start() for _ in range(10**6)]"),
            "can't start new thread",
        ),
        // Signals.
        (inside("os.kill(os.getppid(), 9)"), refused),
        (inside("os.killpg(os.getpgid(os.getppid()), 9)"), refused),
        (inside("os.kill(-1, 9)"), refused),
        (inside("import fcntl; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())"), refused),
        // Reading.
        (inside(&format!("open('{path}').read()")), refused),
        (inside("open('/etc/passwd').read()"), refused),
        (inside("open('/proc/%d/environ' % os.getppid()).read()"), refused),
        (inside("open('/proc/self/maps').read()"), refused),
        (inside("os.listdir('/')"), refused),
        (inside(&format!("os.chdir('{folder}'); open('secret').read()")), refused),
        // Writing.
        (inside(&format!("open('{path}', 'w')")), refused),
        (inside(&format!("open('{folder}/new', 'w')")), refused),
        (inside(&format!("os.remove('{path}')")), refused),
        (inside(&format!("os.rename('{path}', 'mine')")), "Error"),
        (inside(&format!("open('mine', 'w').close(); os.rename('mine', '{folder}/new')")), "Error"),
        (inside(&format!("os.link('{path}', 'mine')")), refused),
        (inside(&format!("os.symlink('{path}', 'mine'); open('mine').read()")), refused),
        (inside(&format!("os.truncate('{path}', 0)")), refused),
        (inside(&format!("os.open('{path}', os.O_RDONLY | os.O_TRUNC)")), refused),
        (inside(&format!("os.chmod('{path}', 0o777)")), refused),
        (inside(&format!("os.utime('{path}', (0, 0))")), refused),
        (inside(&format!("os.mkdir('{folder}/new')")), refused),
        (inside("os.mkdir('folder')"), refused),
        // More time and memory than it has.
        (inside("import resource; resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))"), "Error"),
        (inside("block = bytearray(4 << 30)"), "MemoryError"),
        (inside("blocks = [[0] * 10**6 for _ in range(10**9)]"), "MemoryError"),
        // The kernel's other doors.
        (system_call(libc::SYS_ptrace, ", 0, 0, 0, 0"), "refused with 1"),
        (system_call(libc::SYS_process_vm_readv, ", 1, 0, 0, 0, 0, 0"), "refused with 1"),
        (system_call(libc::SYS_unshare, ", 0x10000000"), "refused with 1"),
        (system_call(libc::SYS_io_uring_setup, ", 1, 0"), "refused with 1"),
        (system_call(libc::SYS_memfd_create, ", b'x', 0"), "refused with 1"),
        (system_call(libc::SYS_bpf, ", 0, 0, 0"), "refused with 1"),
        (system_call(libc::SYS_openat2, ", -100, b'/', 0, 0"), "refused with 1"),
        (system_call(libc::SYS_prlimit64, ", 1, 0, 0, 0"), "refused with 1"),
        (system_call(libc::SYS_mount, ", 0, 0, 0, 0, 0"), "refused with 1"),
        (system_call(libc::SYS_clone3, ", 0, 0"), "refused with 1"),
        (system_call(libc::SYS_setns, ", 0, 0"), "refused with 1"),
        (system_call(libc::SYS_reboot, ", 0, 0, 0, 0"), "refused with 1"),
    ];
    let cases: Vec<(&str, &str)> =
        cases.iter().map(|(completion, reason)| (completion.as_str(), *reason)).collect();
    bench.all_fail(&cases, &[]);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "the secret");
    assert_eq!(fs::metadata(&secret).unwrap().modified().unwrap(), written);
    assert!(!bench.path("new").exists());
    assert!(listener.accept().is_err(), "a judged program has reached the network");
}

/// What programs use up without end.
#[test]
fn greedy_programs_are_stopped() {
    let bench = Bench::new();
    bench.all_fail(
        &[
            ("    while True:\n        pass\n", "used up its 1 s of CPU time"),
            (
                "    import signal\n    signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n    while True:\n        pass\n",
                "using more than 1 s of CPU time",
            ),
            ("    while True:\n        try:\n            while True: pass\n        except BaseException:\n            pass\n", "CPU time"),
            ("    return input()\n", "EOFError"),
            ("    while True:\n        print('x' * 10**6)\n", "printed more than 16 MiB"),
            ("    while True:\n        os.write(2, b'x' * 10**6)\n", "printed more than 16 MiB"),
            ("    open('big', 'wb').write(bytes(10**8))\n", "File too large"),
            (
                "    for i in range(10**9):\n        open(str(i), 'wb').write(bytes(10**6))\n",
                "wrote more than 32 MiB of files",
            ),
            ("    for i in range(10**9):\n        open(str(i), 'w').close()\n", "made more than 1000 files"),
            ("    files = [os.open('x', os.O_CREAT) for _ in range(1000)]\n", "Too many open files"),
            (
                "    import sys\n    sys.setrecursionlimit(10**9)\n    return len(str(f.__code__)) and (lambda g: g(g))(lambda g: g(g))\n",
                "",
            ),
            ("    return 10**10**10\n", ""),
            ("    import re\n    re.match('(a+)+b', 'a' * 1000)\n", "CPU time"),
        ],
        &["--cpu-seconds", "1"],
    );
    bench.all_fail(
        &[
            ("    import time\n    time.sleep(1000)\n", "did not end within 4 s"),
            // Nothing is open any more, and yet it goes on.
            ("    os.closerange(0, 64)\n    import time\n    time.sleep(1000)\n", "did not end within 4 s"),
        ],
        &["--wall-seconds", "4"],
    );
}

/// The environment of a program is empty, and two runs give the same verdicts.
#[test]
fn programs_see_nothing_of_the_judge() {
    let bench = Bench::new();
    let completion = "    import sys\n    print(x)\n    assert not set(os.environ) - {'PYTHONHASHSEED', 'LC_CTYPE'}, os.environ\n    assert os.listdir('.') == [], os.listdir('.')\n    assert '' not in sys.path and os.getcwd() not in sys.path, sys.path\n    assert len(os.listdir(os.path.dirname(os.__file__))) > 100\n    assert sorted(name for name in globals() if name[0] != '_') == ['check', 'f', 'os'], globals().keys()\n    assert hash('order') == ORDER, hash('order')\n    return x + 1\n";
    let (_, reason) = &bench.judge(&[&completion.replace("ORDER", "0")], &[])[0];
    println!("{reason}");
    let order = reason.split(": ").nth(1).unwrap().split(' ').next().unwrap();
    let verdicts = bench.judge(&[&completion.replace("ORDER", order)], &[]);
    assert!(verdicts[0].0, "{}", verdicts[0].1);
}

/// The weaker levels keep what they promise.
#[test]
fn weaker_levels() {
    let bench = Bench::new();
    fs::write(bench.path("secret"), "the secret").unwrap();
    let path = bench.path("secret").display().to_string();
    let read = format!("    return x + 1 if open('{path}').read() == 'the secret' else 0\n");
    let partial = ["--sandbox", "partial"];
    assert!(bench.judge(&[&read], &partial)[0].0);
    let refused = [
        format!("    open('{path}', 'w')\n"),
        format!("    open('{path}', 'r+')\n"),
        "    open('here', 'w')\n".to_owned(),
        format!("    os.remove('{path}')\n"),
        format!("    os.rename('{path}', '{path}2')\n"),
        "    import socket; socket.socket()\n".to_owned(),
        "    os.fork()\n".to_owned(),
        "    os.kill(os.getppid(), 0)\n".to_owned(),
    ];
    let cases: Vec<(&str, &str)> = refused.iter().map(|code| (code.as_str(), "PermissionError")).collect();
    bench.all_fail(&cases, &partial);
    assert_eq!(fs::read_to_string(bench.path("secret")).unwrap(), "the secret");

    let none = ["--sandbox", "none", "--cpu-seconds", "1"];
    assert!(bench.judge(&[&read], &none)[0].0);
    bench.all_fail(
        &[
            ("    while True: pass\n", "CPU time"),
            ("    os._exit(0)\n", "exited with code 0"),
            ("    bytearray(4 << 30)\n", "MemoryError"),
        ],
        &none,
    );
    // Whatever a program has started is killed with it.
    let left = bench.path("left");
    let starts = format!(
        "    try:\n        if os.fork() == 0:\n            import time\n            time.sleep(2)\n            open('{}', 'w')\n            os._exit(0)\n    except OSError:\n        pass\n    return x + 1\n",
        left.display()
    );
    assert!(bench.judge(&[&starts], &none)[0].0);
    thread::sleep(Duration::from_secs(3));
    assert!(!left.exists());
}

/// On a machine without landlock, or without seccomp too, the level that was asked for is refused by name.
#[test]
fn a_level_that_is_not_there_is_refused() {
    let bench = Bench::new();
    bench.write("samples.jsonl", &[json!({"task_id": "Test/0", "completion": "    return x + 1\n"})]);
    let given = ["--problems", "problems.jsonl", "--samples-file", "samples.jsonl"];
    let run = |missing: &[i64], args: &[&str]| {
        let mut command = bench.command(&[&given, args].concat());
        let rules = missing.iter().map(|call| (*call, Vec::new())).collect();
        let absent = SeccompAction::Errno(libc::ENOSYS as u32);
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, absent, arch).unwrap();
        // A filter counts for a thread and what it starts.
        thread::spawn(move || {
            apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
            command.output().unwrap()
        })
        .join()
        .unwrap()
    };
    let landlock = [libc::SYS_landlock_create_ruleset];
    let message = said(run(&landlock, &[]));
    says(&message, &["`full`", "no landlock", "--sandbox partial", "programs could read your files"]);
    assert!(run(&landlock, &["--sandbox", "partial"]).status.success());
    let both = [libc::SYS_landlock_create_ruleset, libc::SYS_seccomp];
    let message = said(run(&both, &[]));
    says(&message, &["`full`", "landlock", "--sandbox none"]);
    let message = said(run(&both, &["--sandbox", "partial"]));
    says(&message, &["`partial`", "no seccomp filter", "--sandbox none"]);
    assert!(run(&both, &["--sandbox", "none", "--out", "none.jsonl"]).status.success());
    assert!(!bench.path("out.jsonl").exists());
}

fn children(process: &Child) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    let lists =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// An evaluation that is killed takes its programs with it, and goes on where it was.
#[test]
fn killed_and_continued() {
    let bench = Bench::new();
    let mut lines: Vec<Value> = (0..6)
        .map(|i| json!({"task_id": "Test/0", "completion": format!("    return x + {}\n", i % 2), "note": i}))
        .collect();
    bench.write("samples.jsonl", &lines);
    let args = ["--problems", "problems.jsonl", "--samples-file", "samples.jsonl", "--workers", "1", "--out"];
    let run = |out: &str| bench.succeed(&[&args[..], &[out]].concat());
    let said = run("whole.jsonl");
    says(&said, &["6 completions, 3 passed", "3 AssertionError", "pass@1     50.00 %"]);
    let whole = fs::read_to_string(bench.path("whole.jsonl")).unwrap();
    assert_eq!(bench.lines("whole.jsonl")[3]["note"], 3);

    // Cut off within a line.
    let cut = whole.lines().take(3).map(str::len).sum::<usize>() + 20;
    fs::write(bench.path("cut.jsonl"), &whole[..cut]).unwrap();
    run("cut.jsonl");
    assert_eq!(fs::read_to_string(bench.path("cut.jsonl")).unwrap(), whole);
    // Complete: nothing to do.
    run("cut.jsonl");
    assert_eq!(fs::read_to_string(bench.path("cut.jsonl")).unwrap(), whole);

    // Killed while a program sleeps.
    lines.push(json!({"task_id": "Test/0", "completion": "    import time\n    time.sleep(1000)\n"}));
    bench.write("samples.jsonl", &lines);
    let mut process = bench.command(&[&args[..], &["killed.jsonl"]].concat()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(300);
    let written = || fs::read_to_string(bench.path("killed.jsonl")).unwrap_or_default().lines().count();
    while written() < 6 || children(&process).is_empty() {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(20));
    }
    let children = children(&process);
    process.kill().unwrap();
    process.wait().unwrap();
    while children.iter().any(|child| Path::new(&format!("/proc/{child}")).exists()) {
        assert!(Instant::now() < deadline, "a judged program outlived the judge");
        thread::sleep(Duration::from_millis(20));
    }
    let message = bench.fail(&[&args[..], &["killed.jsonl", "--wall-seconds", "2"]].concat());
    says(&message, &["killed.jsonl", "wall_seconds is 60 there and 2 now", "another --out"]);
    assert_eq!(written(), 6);
}

/// MBPP's two forms, as JSON lines and as a list.
#[test]
fn mbpp() {
    let bench = Bench::new();
    let full = json!({
        "task_id": 601, "text": "Write a function to make a node.", "code": "class Node:\r\n    def __init__(self):\r\n        self.x = 1\r\ndef make(): return Node()",
        "test_setup_code": "root = Node()", "test_list": ["assert make().x == root.x", "assert make() is not make()"], "challenge_test_list": [],
    });
    let sanitized = json!({
        "source_file": "x", "task_id": 602, "prompt": "Write a function to take a root.", "code": "def root(x): return x ** 0.5",
        "test_imports": ["import math"], "test_list": ["assert math.isclose(root(2), math.sqrt(2))"],
    });
    bench.write("mbpp.jsonl", &[full.clone(), sanitized.clone()]);
    fs::write(bench.path("mbpp.json"), serde_json::to_string_pretty(&json!([full, sanitized])).unwrap())
        .unwrap();
    for file in ["mbpp.jsonl", "mbpp.json"] {
        let said = bench.succeed(&["--problems", file, "--canonical"]);
        says(&said, &["2 of 2 solutions pass"]);
    }
    let samples = [
        json!({"task_id": 602, "completion": "def root(x): return 1.5"}),
        json!({"task_id": "601", "completion": "import types\n\nNode = make = lambda: types.SimpleNamespace(x=1)"}),
    ];
    bench.write("samples.jsonl", &samples);
    let said = bench.succeed(&["--problems", "mbpp.jsonl", "--samples-file", "samples.jsonl"]);
    says(&said, &["2 completions, 1 passed", "pass@1     50.00 ± 50.00 %"]);
    let results = bench.lines("samples.results.jsonl");
    assert_eq!((&results[0]["task_id"], &results[0]["passed"]), (&json!("601"), &json!(true)));
    assert_eq!((&results[1]["task_id"], &results[1]["passed"]), (&json!(602), &json!(false)));
    assert_eq!(results[0]["settings"]["problems"], "mbpp.jsonl");
    assert!(results[1]["settings"].is_null());
    let message = bench.fail(&["--problems", "mbpp.jsonl", "--canonical", "--stop-style", "openai"]);
    says(&message, &["openai", "bigcode or evalplus"]);
}

/// Every setting that can change a verdict is written down.
#[test]
fn results_record_the_settings() {
    let bench = Bench::new();
    bench.judge(&["    return x + 1\n"], &["--cpu-seconds", "7", "--memory-mib", "512"]);
    let settings = &bench.lines("out.jsonl")[0]["settings"];
    for (name, value) in [
        ("cpu_seconds", json!(7)),
        ("wall_seconds", json!(60)),
        ("memory_mib", json!(512)),
        ("sandbox", json!("full")),
        ("problem_count", json!(1)),
        ("completions", json!("file")),
        ("python_environment", json!("PYTHONHASHSEED=0")),
    ] {
        assert_eq!(settings[name], value, "{name}");
    }
    for name in ["problems_blake3", "samples_blake3"] {
        assert_eq!(settings[name].as_str().unwrap().len(), 64);
    }
    assert!(settings["python"].as_str().unwrap().starts_with("3."));
}

#[test]
fn bad_input_is_named_with_its_remedy() {
    let bench = Bench::new();
    let sample = json!({"task_id": "Test/0", "completion": "    return x + 1\n"});
    bench.write("good.jsonl", std::slice::from_ref(&sample));
    bench.write("other.jsonl", &[json!({"task_id": "HumanEval/0", "completion": ""})]);
    bench.write("without.jsonl", &[sample, json!({"task_id": "Test/0", "text": ""})]);
    bench.write("number.jsonl", &[json!({"task_id": "Test/0", "completion": 3})]);
    bench.write("nothing.jsonl", &[]);
    bench.write("twice.jsonl", &[problem(), problem()]);
    bench.write("strange.jsonl", &[json!({"task_id": "Test/0", "question": "?"})]);
    fs::write(bench.path("broken.jsonl"), "{\"task_id\": \"Test/0\",\n").unwrap();
    fs::write(bench.path("latin.jsonl"), b"{\"task_id\": \"\xe9\"}\n").unwrap();
    fs::write(bench.path("cut.gz"), [0x1f, 0x8b, 8, 0]).unwrap();
    fs::write(bench.path("python"), "#!/bin/sh\nexit 3\n").unwrap();
    let good = ["--problems", "problems.jsonl", "--samples-file", "good.jsonl"];
    let samples = |name| ["--problems", "problems.jsonl", "--samples-file", name].to_vec();
    let problems = |name| ["--problems", name, "--canonical"].to_vec();
    let with = |args: &[&'static str]| [&good, args].concat();
    let generate =
        |args: &[&'static str]| [&["--problems", "problems.jsonl", "--checkpoint", "nowhere"], args].concat();
    let cases: Vec<(Vec<&str>, &[&str])> = vec![
        (samples("nowhere.jsonl"), &["reading nowhere.jsonl", "No such file"]),
        (
            samples("other.jsonl"),
            &["other.jsonl, line 1", "no problem `HumanEval/0`", "`Test/0`", "--problems"],
        ),
        (samples("without.jsonl"), &["without.jsonl, line 2", "`completion` is missing"]),
        (samples("number.jsonl"), &["number.jsonl, line 1", "`completion` is 3, wanted text"]),
        (samples("nothing.jsonl"), &["nothing.jsonl holds no completions", "task_id"]),
        (samples("broken.jsonl"), &["broken.jsonl", "line 1", "JSON object"]),
        (samples("latin.jsonl"), &["latin.jsonl", "UTF-8"]),
        (problems("nowhere.jsonl"), &["reading nowhere.jsonl"]),
        (problems("nothing.jsonl"), &["nothing.jsonl holds no problems", "HumanEval.jsonl.gz"]),
        (problems("twice.jsonl"), &["two problems `Test/0`"]),
        (
            problems("strange.jsonl"),
            &["strange.jsonl, line 1", "question", "canonical_solution", "test_list"],
        ),
        (problems("cut.gz"), &["cut.gz"]),
        (with(&["--k", "2"]), &["pass@2 needs at least 2 completions", "good.jsonl has 1 of Test/0", "--k"]),
        (with(&["--out", "no/where.jsonl"]), &["no/where.jsonl", "--out"]),
        (with(&["--out", "good.jsonl"]), &["good.jsonl, line 1", "not the first line", "another --out"]),
        (with(&["--python", "nowhere"]), &["nowhere", "--python PATH"]),
        (with(&["--python", "/bin/false"]), &["/bin/false", "exit status: 1"]),
        (generate(&[]), &["nowhere"]),
        (
            generate(&["--samples", "2"]),
            &["--samples is 2", "all completions of a problem are equal", "--temperature"],
        ),
        (generate(&["--k", "1,10"]), &["pass@10 needs at least 10", "--samples 10"]),
        (generate(&["--temperature", "-1"]), &["--temperature is -1"]),
        (generate(&["--top-p", "0"]), &["--top-p is 0", "more than 0"]),
        (
            vec!["--problems", "problems.jsonl", "--run", "nowhere"],
            &["nowhere has no checkpoints", "train --out"],
        ),
    ];
    for (args, parts) in cases {
        let before = fs::read_dir(bench.folder.path()).unwrap().count();
        says(&bench.fail(&args), parts);
        assert_eq!(
            fs::read_dir(bench.folder.path()).unwrap().count(),
            before,
            "{args:?} left something behind"
        );
    }
}

/// Two problems without solutions of their own, which nothing but `--canonical` needs.
fn two_problems(bench: &Bench) {
    let mut problems = [problem(), problem()];
    problems[1]["task_id"] = "Test/1".into();
    for problem in &mut problems {
        problem.as_object_mut().unwrap().remove("canonical_solution");
    }
    bench.write("two.jsonl", &problems);
}

/// What models write around their code is not judged, and what was left of it is said.
#[test]
fn code_is_taken_out_of_fences_and_tokens() {
    let bench = Bench::new();
    two_problems(&bench);
    let completions = [
        "```python\ndef f(x):\n    return x + 1\n```\n",
        "    return x + 1\n```\nIt returns the next number.\n",
        "    return x + 1\n<|endoftext|>",
        "    return x + 1\n",
        "    return '''\n    ```\n    '''\n",
    ];
    let lines: Vec<Value> = (completions.iter())
        .flat_map(|text| ["Test/0", "Test/1"].map(|id| json!({"task_id": id, "completion": text})))
        .collect();
    bench.write("samples.jsonl", &lines);
    let said = bench.succeed(&["--problems", "two.jsonl", "--samples-file", "samples.jsonl"]);
    says(&said, &["10 completions, 8 passed", "cleaned   6 completions", "pass@1     80.00 ± 0.00 %"]);
    let results = bench.lines("samples.results.jsonl");
    assert_eq!(results[0]["settings"]["cleaned"], 6);
    assert_eq!(results[0]["completion"], completions[0]);
    assert_eq!(results[0]["judged"], "def f(x):\n    return x + 1\n");
    assert_eq!(results[1]["judged"], "    return x + 1\n");
    assert_eq!(results[2]["judged"], "    return x + 1\n");
    assert!(results[3..5].iter().all(|line| line.get("judged").is_none()));
    let summary = bench.json("samples.results.summary.json");
    assert_eq!(summary["best"]["estimates"][0]["pass_at_k"], 0.8);
    assert_eq!(summary["best"]["results"], "samples.results.jsonl");
    assert_eq!((&summary["settings"]["cleaned"], &summary["settings"]["bad_lines"]), (&json!(6), &json!(0)));
    let message = bench.fail(&["--problems", "two.jsonl", "--canonical"]);
    says(&message, &["Test/0 has no solution of its own", "--canonical"]);
}

/// The same programs in every form in which others write them.
#[test]
fn forms_of_other_programs_are_read() {
    let bench = Bench::new();
    two_problems(&bench);
    let whole = |sum: &str| format!("import os\n\n\ndef f(x):\n    return {sum}\n<|endoftext|>");
    let (right, wrong) = (whole("x + 1"), whole("x"));
    let evalplus = [
        json!({"task_id": "Test/0", "solution": right}),
        json!({"task_id": "Test/1", "solution": wrong}),
        json!({"task_id": "Test/0", "solution": wrong}),
        json!({"task_id": "Test/1", "solution": right}),
    ];
    bench.write("evalplus.jsonl", &evalplus);
    fs::write(bench.path("list.json"), json!(evalplus).to_string()).unwrap();
    let bigcode = serde_json::to_string_pretty(&json!([[right, wrong], [wrong, right]])).unwrap();
    fs::write(bench.path("generations.json"), &bigcode).unwrap();
    fs::write(bench.path("marked.json"), format!("\u{feff}{bigcode}")).unwrap();
    let python = [
        r#"{"task_id": "Test/0", "score": NaN, "completion": "    return x + 1\n"}"#,
        r#"{"task_id": "Test/0", "scores": [-Infinity, "NaN"], "completion": "    return x\n"}"#,
        r#"{"task_id": "Test/1", "completion": "    return NaN\n"}"#,
        r#"{"task_id": "Test/1", "completion": "    return x + 1\n"}"#,
    ];
    fs::write(bench.path("python.jsonl"), format!("\u{feff}{}", python.join("\r\n"))).unwrap();
    for file in ["evalplus.jsonl", "list.json", "generations.json", "marked.json", "python.jsonl"] {
        let out = format!("{file}.results");
        let said = bench.succeed(&["--problems", "two.jsonl", "--samples-file", file, "--out", &out]);
        says(&said, &["4 completions, 2 passed", "pass@1     50.00 ± 0.00 %"]);
        let lines = bench.lines(&out);
        let verdicts = lines.iter().map(|line| (line["task_id"].as_str().unwrap(), line["passed"] == true));
        let wanted = [("Test/0", true), ("Test/0", false), ("Test/1", false), ("Test/1", true)];
        assert_eq!(verdicts.collect::<Vec<_>>(), wanted, "{file}");
    }
    let message = bench.fail(&["--problems", "problems.jsonl", "--samples-file", "generations.json"]);
    says(&message, &["a list for each of 2 problems", "problems.jsonl has 1", "--first"]);
}

/// A line that is no completion is an error, or left out by name and number where that is allowed.
#[test]
fn bad_lines_are_named_and_counted() {
    let bench = Bench::new();
    two_problems(&bench);
    let good = |id: &str| json!({"task_id": id, "completion": "    return x + 1\n"}).to_string();
    let bad = [
        (r#"{"task_id": "Test/0", "completion": "    return '\ud800'"}"#, "hex escape"),
        (r#"{"task_id": "Test/0", "completion": "    ret"#, "EOF"),
        (r#"{"task_id": "Test/0", "completion": null}"#, "`completion` is null, wanted text"),
        (r#"{"task_id": "Test/0", "completion": "", "solution": ""}"#, "both"),
        ("null", "a JSON object was wanted"),
        (r#"{"completion": ""}"#, "`task_id` is missing"),
    ];
    let args = ["--problems", "two.jsonl", "--samples-file", "samples.jsonl"];
    let write = |bad: &str| {
        fs::write(bench.path("samples.jsonl"), [&good("Test/0"), bad, &good("Test/1")].join("\n")).unwrap();
    };
    for (line, part) in bad {
        write(line);
        says(&bench.fail(&args), &["samples.jsonl, line 2", part, "--max-bad-lines 1"]);
    }
    write(&bad.map(|(line, _)| line).join("\n"));
    let message = bench.fail(&[&args[..], &["--max-bad-lines", "5"]].concat());
    says(&message, &["line 2", "line 6", "; ..", "--max-bad-lines 6"]);
    let said = bench.succeed(&[&args[..], &["--max-bad-lines", "6"]].concat());
    says(&said, &["2 completions, 2 passed", "left out  line 2: ", "left out  line 7: ", "pass@1    100.00"]);
    assert_eq!(bench.json("samples.results.summary.json")["settings"]["bad_lines"], 6);
    // Those of a list too.
    let list = r#"[["def f(x): return x + 1", "\ud800"], [3, "def f(x): return x + 1"]]"#;
    fs::write(bench.path("samples.jsonl"), list).unwrap();
    let message = bench.fail(&args);
    says(&message, &["element 1, program 2", "hex escape", "element 2, program 1", "`solution` is 3"]);
    let said = bench.succeed(&[&args[..], &["--max-bad-lines", "2", "--out", "list.jsonl"]].concat());
    says(&said, &["2 completions, 2 passed", "left out  element 1, program 2"]);
}

/// A score is not given for problems without completions.
#[test]
fn an_incomplete_file_has_no_score() {
    let bench = Bench::new();
    let mut second = problem();
    second["task_id"] = "Test/1".into();
    bench.write("two.jsonl", &[problem(), second]);
    bench.write("samples.jsonl", &[json!({"task_id": "Test/0", "completion": "    return x + 1\n"})]);
    let said = bench.succeed(&["--problems", "two.jsonl", "--samples-file", "samples.jsonl"]);
    says(&said, &["1 completions, 1 passed", "pass@k is not defined: 1 of 2 problems", "Test/1"]);
    assert!(!said.contains("pass@1 "));
    assert_eq!(bench.json("samples.results.summary.json")["best"]["estimates"], json!([]));
}

/// Two checkpoints of a run, generated from, judged, continued and compared.
#[test]
fn checkpoints_of_a_run() {
    let bench = Bench::new();
    let training = Training::new(env!("CARGO_BIN_EXE_trainer"));
    training.succeed("run", &["--steps", "4", "--set", "checkpoint.every=2"]);
    let run = training.path("run").display().to_string();
    let (mut first, mut second) = (problem(), problem());
    first["prompt"] = "def f(x):\n".into();
    second["task_id"] = "Test/1".into();
    // What a model of four steps can do: nothing is needed but an end.
    second["test"] = "def check(candidate):\n    pass\n".into();
    second["prompt"] = "def f(x):\n    pass\n#".into();
    bench.write("problems.jsonl", &[first, second]);
    let args = ["--problems", "problems.jsonl", "--run", &run, "--samples", "3", "--temperature", "0.8"];
    let args = [&args[..], &["--max-new-tokens", "12", "--k", "1,3", "--seed", "5"]].concat();
    let said = bench.succeed(&args);
    says(&said, &["step         2", "step         4", "best", "eval_summary.json"]);
    let folder = training.path("run/eval_problems");
    let summary: Value =
        serde_json::from_slice(&fs::read(folder.join("eval_summary.json")).unwrap()).unwrap();
    let steps: Vec<u64> =
        summary["evaluated"].as_array().unwrap().iter().map(|one| one["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 4]);
    assert_eq!(summary["best"]["estimates"][1]["k"], 3);
    assert_eq!(summary["settings"]["temperature"], 0.8);
    let file = folder.join("step_00000004.jsonl");
    let whole = fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys: Vec<(&str, u64)> = lines
        .iter()
        .map(|line| (line["task_id"].as_str().unwrap(), line["sample"].as_u64().unwrap()))
        .collect();
    assert_eq!(keys, ["Test/0", "Test/1"].map(|id| [0, 1, 2].map(|sample| (id, sample))).concat());
    let settings = &lines[0]["settings"];
    assert_eq!((&settings["stop_style"], &settings["seed"]), (&json!("openai"), &json!(5)));
    assert_eq!((&settings["max_new_tokens"], &settings["checkpoint"]), (&json!(12), &json!("step_00000004")));

    // Interrupted in the second checkpoint: the same command brings the same file.
    let cut = whole.lines().take(4).map(|line| line.len() + 1).sum::<usize>() - 5;
    fs::write(&file, &whole[..cut]).unwrap();
    bench.succeed(&args);
    assert_eq!(fs::read_to_string(&file).unwrap(), whole);

    // One checkpoint alone is the same as in the run.
    let checkpoint = format!("{run}/checkpoints/step_00000004");
    let alone = ["--checkpoint", &checkpoint, "--out", "alone.jsonl"];
    bench.succeed(&[&args[..2], &alone, &args[4..]].concat());
    assert_eq!(fs::read_to_string(bench.path("alone.jsonl")).unwrap(), whole);
    let alone = bench.json("alone.summary.json");
    assert_eq!(alone["evaluated"], json!([alone["best"]]));
    assert_eq!((&alone["best"]["step"], &alone["best"]["results"]), (&json!(4), &json!("alone.jsonl")));
    assert_eq!(alone["best"]["estimates"], summary["evaluated"][1]["estimates"]);
    assert_eq!(alone["settings"], summary["settings"]);

    // A damaged one is left out, and said to be.
    let weights = training.path("run/checkpoints/step_00000002/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    says(
        &bench.fail(&args),
        &["left out", "model.safetensors is damaged", "1 of 2 checkpoints could not be"],
    );

    // The summary says so also where it is the last one.
    let step_4 = training.path("run/checkpoints/step_00000004/model.safetensors");
    let good = fs::read(&step_4).unwrap();
    fs::write(&step_4, "no weights").unwrap();
    bench.fail(&args);
    let summary: Value =
        serde_json::from_slice(&fs::read(folder.join("eval_summary.json")).unwrap()).unwrap();
    assert_eq!((&summary["best"], summary["refused"].as_array().unwrap().len()), (&Value::Null, 2));
    fs::write(&step_4, good).unwrap();

    // Neither too many tokens nor too long a prompt.
    let message = bench.fail(&[&args[..8], &["--out", "x", "--max-new-tokens", "60"]].concat());
    says(&message, &["60 new ones", "the model's context of 64", "--max-new-tokens"]);
    let mut long = problem();
    long["prompt"] = "x = 1\n".repeat(100).into();
    bench.write("long.jsonl", &[long]);
    let message = bench.fail(&["--problems", "long.jsonl", "--checkpoint", &checkpoint]);
    says(&message, &["Test/0 has", "the model's context is 64", "--problems"]);
}

/// C(n, k), exactly.
fn choose(n: u64, k: u64) -> f64 {
    (0..k).fold(1.0, |product, i| product * (n - i) as f64 / (i + 1) as f64)
}

#[test]
fn estimator_of_known_cases() {
    let of = |samples, passed, k| pass_at_k(Tally { samples, passed }, k);
    assert_eq!(of(1, 0, 1), Some(0.0));
    assert_eq!(of(1, 1, 1), Some(1.0));
    assert_eq!(of(10, 3, 11), None);
    assert_eq!(of(0, 0, 1), None);
    // 1 - C(3, 2) / C(5, 2)
    assert!((of(5, 2, 2).unwrap() - 0.7).abs() < 1e-12);
    assert_eq!(of(200, 200, 100), Some(1.0));
    assert_eq!(of(200, 101, 100), Some(1.0));
    let tallies = [(4, 0), (4, 1), (4, 4)].map(|(samples, passed)| Tally { samples, passed });
    let estimate = estimate(&tallies, 1).unwrap();
    assert!((estimate.pass_at_k - 1.25 / 3.0).abs() < 1e-12);
    // Standard deviation of 0, 1/4 and 1 over the square root of 3.
    assert!((estimate.standard_error.unwrap() - 0.300_462_606_288_666).abs() < 1e-12);
}

/// The product form against the quotient of binomial coefficients.
#[test]
fn estimator_against_its_closed_form() {
    property(256, &(1u64..60, 0u64..60, 1u64..60), |(n, c, k)| {
        let (c, k) = (c.min(n), k.min(n));
        let fails = if n - c < k { 0.0 } else { choose(n - c, k) / choose(n, k) };
        let found = pass_at_k(Tally { samples: n, passed: c }, k).unwrap();
        // 60 factors of one rounding each, and as many in the quotient.
        assert!((found - (1.0 - fails)).abs() < 120.0 * f64::EPSILON, "{found}, not {}", 1.0 - fails);
    });
}
