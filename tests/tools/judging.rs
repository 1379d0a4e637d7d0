//! What `eval-humaneval` lets pass, what not and why, and what judged programs cannot reach.

use crate::evaluation::{Bench, children, problem, said, says};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

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
        // What stays within the process and its folder.
        "    import asyncio\n    async def g():\n        await asyncio.sleep(0.01)\n        return x + 1\n    return asyncio.run(g())\n",
        "    import tempfile\n    with tempfile.TemporaryDirectory() as folder:\n        os.makedirs(folder + '/a/b')\n        os.rename(folder + '/a/b', folder + '/b')\n        open(folder + '/b/c', 'w').close()\n        return x + len(os.listdir(folder + '/b'))\n",
        "    os.mkdir('folder%d' % x)\n    return x + 1\n",
        "    import threading\n    found = []\n    threads = [threading.Thread(target=found.append, args=(1,)) for _ in range(8)]\n    for thread in threads: thread.start()\n    for thread in threads: thread.join()\n    return x + len(found) // 8\n",
        "    from concurrent.futures import ThreadPoolExecutor\n    with ThreadPoolExecutor(4) as pool:\n        return sum(pool.map(abs, [x, 1]))\n",
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
            "exited with code 0 before its tests ended",
        ),
        // Printed claims.
        (inside("print('passed', flush=True); os.write(1, b'RE' + bytes(16)); os._exit(0)"), early),
        (inside("import sys; sys.__stdout__.write('passed'); sys.__stdout__.flush(); os._exit(0)"), early),
        // Claims on every descriptor there is, with a made-up answer and without.
        (
            inside("[os.write(fd, b'E' + bytes(16)) for fd in range(3, 64) if can_write(fd)]; os._exit(0)")
                + CAN_WRITE,
            "wrote to the pipe of its own answers",
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
        // A program that searches the harness does not find the number: it comes after the tests.
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
        (inside("import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)"), refused),
        (inside("import socket; socket.socketpair()[0].sendto(b'x', '/dev/log')"), refused),
        (inside("import socket; socket.socket(socket.AF_UNIX)"), refused),
        (inside("import urllib.request; urllib.request.urlopen('http://127.0.0.1')"), "not permitted"),
        // Processes, and more threads than a few.
        (inside("while True: os.fork()"), refused),
        (inside("import subprocess; subprocess.run(['/bin/sh', '-c', ':(){ :|:& };:'])"), refused),
        (inside("os.system('true') == 0 or os.kill(1, 0)"), refused),
        (
            inside(
                "import threading, time; threading.stack_size(1 << 16); [threading.Thread(target=time.sleep, args=(99,)).start() for _ in range(10**6)]",
            ),
            "started more than 64 threads",
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
        (inside("os.mkdir('folder', 0)"), refused),
        (inside("os.umask(0o777)"), "Error"),
        (inside("os.mkfifo('pipe')"), refused),
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
        (system_call(libc::SYS_clone3, ", 0, 0"), "refused with 38"),
        (system_call(libc::SYS_clone, ", 17, 0, 0, 0, 0"), "refused with 1"),
        (system_call(libc::SYS_clone, ", 0x10000000, 0, 0, 0, 0"), "refused with 1"),
        (system_call(libc::SYS_setns, ", 0, 0"), "refused with 1"),
        (system_call(libc::SYS_reboot, ", 0, 0, 0, 0"), "refused with 1"),
    ];
    let cases: Vec<(&str, &str)> =
        cases.iter().map(|(completion, reason)| (completion.as_str(), *reason)).collect();
    bench.all_fail(&cases, &[]);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "the secret");
    assert!(
        fs::metadata(&secret).unwrap().modified().unwrap().elapsed().unwrap() < Duration::from_secs(3600)
    );
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
            ("    import time\n    time.sleep(1000)\n", "did not end within 8 s"),
            // Nothing is open any more, and yet it goes on.
            ("    os.closerange(0, 64)\n    import time\n    time.sleep(1000)\n", "did not end within 8 s"),
            ("    return input()\n", "EOFError"),
            ("    while True:\n        print('x' * 10**6)\n", "printed more than 16 MiB"),
            ("    while True:\n        os.write(2, b'x' * 10**6)\n", "printed more than 16 MiB"),
            ("    open('big', 'wb').write(bytes(10**8))\n", "File too large"),
            ("    files = [os.open('x', os.O_CREAT) for _ in range(1000)]\n", "Too many open files"),
            (
                "    import sys\n    sys.setrecursionlimit(10**9)\n    return len(str(f.__code__)) and (lambda g: g(g))(lambda g: g(g))\n",
                "",
            ),
            ("    return 10**10**10\n", ""),
            ("    import re\n    re.match('(a+)+b', 'a' * 1000)\n", "CPU time"),
        ],
        &["--cpu-seconds", "1", "--wall-seconds", "8"],
    );
    // The folder is looked at now and then; a program that fills it has the time to be seen.
    bench.all_fail(
        &[
            (
                "    for i in range(10**9):\n        open(str(i), 'wb').write(bytes(10**6))\n",
                "wrote more than 32 MiB of files",
            ),
            ("    for i in range(10**9):\n        open(str(i), 'w').close()\n", "made more than 1000 files"),
            (
                "    for i in range(10**9):\n        os.mkdir('x')\n        os.chdir('x')\n",
                "made ",
            ),
            // Nothing of them is in the folder any more.
            (
                "    for i in range(60):\n        file = os.open('x', os.O_CREAT | os.O_RDWR)\n        os.remove('x')\n        os.write(file, bytes(4_000_000))\n    import time\n    time.sleep(1000)\n",
                "wrote more than 32 MiB of files",
            ),
            (
                "    import mmap, time\n    held = []\n    for i in range(60):\n        file = os.open('x', os.O_CREAT | os.O_RDWR)\n        os.remove('x')\n        os.write(file, bytes(4_000_000))\n        held.append(mmap.mmap(file, 4096))\n        os.close(file)\n    time.sleep(1000)\n",
                "wrote more than 32 MiB of files",
            ),
        ],
        &["--cpu-seconds", "20"],
    );
}

/// The environment of a program is empty, and two runs give the same verdicts.
#[test]
fn programs_see_nothing_of_the_judge() {
    let bench = Bench::new();
    let completion = "    import sys\n    print(x)\n    assert not set(os.environ) - {'PYTHONHASHSEED', 'OMP_NUM_THREADS', 'TMPDIR', 'LC_CTYPE'}, os.environ\n    assert os.listdir('.') == [], os.listdir('.')\n    assert '' not in sys.path and os.getcwd() not in sys.path, sys.path\n    assert len(os.listdir(os.path.dirname(os.__file__))) > 100\n    assert sorted(name for name in globals() if name[0] != '_') == ['f', 'os'], globals().keys()\n    assert hash('order') == ORDER, hash('order')\n    return x + 1\n";
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
        "    open('/proc/%d/environ' % os.getppid(), 'rb').read()\n".to_owned(),
        "    open('/proc/%d/mem' % os.getppid(), 'rb')\n".to_owned(),
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

/// Wrong solutions that try to pass by a trick. The tricks work only where the tests run in the same interpreter.
#[test]
fn fakes_fail() {
    let bench = Bench::new();
    let equal = |base: &str, made: &str| {
        format!(
            "    class Equal({base}):\n        def __eq__(self, other):\n            return True\n        __hash__ = None\n        def __ne__(self, other):\n            return False\n    return {made}\n"
        )
    };
    let walk = |act: &str| {
        format!(
            "    import sys\n    frame = sys._getframe()\n    while frame:\n        {act}\n        frame = frame.f_back\n    return 0\n"
        )
    };
    let pipes = |act: &str| {
        format!(
            "    import fcntl\n    for fd in range(64):\n        try:\n            mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE\n            {act}\n        except OSError:\n            pass\n    return 0\n"
        )
    };
    let fakes = [
        equal("object", "Equal()"),
        equal("int", "Equal(0)"),
        equal("float", "Equal(0)"),
        equal("str", "Equal(0)"),
        equal("list", "Equal()"),
        equal("tuple", "Equal()"),
        equal("dict", "Equal()"),
        equal("complex", "Equal()"),
        equal("type", "Equal('X', (), {})"),
        // The harness's own part.
        pipes("mode == os.O_WRONLY and os.write(fd, b'E')"),
        pipes("mode == os.O_WRONLY and os.write(fd, b'E' + bytes(4))"),
        pipes("mode == os.O_WRONLY and os.write(fd, b'E' + bytes(4)) and os.write(fd, b'N' + os.read(3, 21)[1:])"),
        pipes("mode == os.O_WRONLY and os.write(fd, b'V' + bytes(4))"),
        pipes("mode == os.O_WRONLY and [os.write(fd, b'V\\2\\0\\0\\0T:') for _ in range(99)]"),
        walk("frame.f_locals.get('send', print)(b'E')"),
        walk("frame.f_locals.get('send', print)(b'L')"),
        walk("frame.f_globals.update(check=lambda candidate: None)"),
        walk("frame.f_globals.update(answer=lambda *_: b'(4:')"),
        walk("frame.f_globals.update(answer=lambda *_: b'(3:s8:returned' + b'(1:' * 10**5)"),
        walk("frame.f_globals.update(answer=lambda *_: b'(3:s8:returned{1:[0:(0:s0:')"),
        walk("frame.f_trace = lambda *_: os._exit(0)"),
        // Python's own insides.
        "    import builtins\n    builtins.AssertionError = builtins.Exception = ()\n    return 0\n".to_owned(),
        "    import ctypes\n    ctypes.memmove(id(2) + 24, id(0) + 24, 4)\n    return x\n".to_owned(),
        "    import gc\n    [o.update(check=print) for o in gc.get_objects() if type(o) is dict]\n    return 0\n".to_owned(),
        "    raise StopIteration\n".to_owned(),
        "    import sys\n    sys.settrace(lambda *_: os._exit(0))\n    return abs(x)\n".to_owned(),
        "    return iter(int, 1)\n".to_owned(),
        "    return f\n".to_owned(),
        "    import atexit, threading\n    threading.Thread(target=os._exit, args=(0,)).start()\n    return 0\n".to_owned(),
        "    x = []\n    for _ in range(10**5): x = [x]\n    return x\n".to_owned(),
    ];
    let completions: Vec<&str> = fakes.iter().map(String::as_str).collect();
    let tests = [
        "    assert candidate(1) == 2\n    assert candidate(2) == 3\n",
        // A loop over calls that ends early has asserted nothing.
        "    assert all(map(lambda x: candidate(x) == x + 1, [1, 2, 3]))\n    assert [*map(candidate, [1])] == [2]\n",
    ];
    for test in tests {
        let mut problem = problem();
        problem["test"] = format!("def check(candidate):\n{test}").into();
        bench.write("problems.jsonl", &[problem]);
        let judged = bench.judge(&completions, &["--cpu-seconds", "3", "--wall-seconds", "8"]);
        for ((passed, reason), fake) in judged.iter().zip(&fakes) {
            println!("{reason}");
            assert!(!passed, "passed:\n{fake}");
        }
        assert!(bench.lines("out.jsonl").iter().all(|line| line["tests"] == "apart"));
    }
}

/// A problem of a function `f`, with these assertions and this solution.
fn about(id: usize, solution: &str, test: &str) -> Value {
    let mut one = problem();
    one["task_id"] = format!("Test/{id}").into();
    one["prompt"] =
        "import math\n\n\ndef double(x):\n    return 2 * x\n\n\ndef f(*x):\n    \"\"\"A function.\"\"\"\n"
            .into();
    one["canonical_solution"] = solution.into();
    one["test"] = format!("def check(candidate):\n{test}").into();
    one
}

/// What crosses between a solution and its tests arrives as what it was.
#[test]
fn plain_data_crosses_exactly() {
    let bench = Bench::new();
    let same = "    return x[0]\n";
    let values = "[None, True, 1, -1, 10**4000, 0.1, -0.0, float('inf'), 1j, '', 'a\\n\\x00', '\\ud800', b'b', (), (1, (2,)), [[]], {1, 'a'}, frozenset([2]), {1: [2], (3,): None}, range(3), bytearray(b'c')]";
    let alike = format!(
        "    for value in {values}:\n        found = candidate(value)\n        assert found == value and type(found) is type(value) and repr(found) == repr(value), found\n    assert math.isnan(candidate(float('nan')))\n"
    );
    let cases = [
        (same, alike.as_str()),
        // The very object that was given, and what became of it.
        (same, "    given = [1]\n    assert candidate(given) is given\n"),
        (
            "    x[0].sort()\n",
            "    given = [2, 1]\n    assert candidate(given) is None and given == [1, 2]\n",
        ),
        (
            "    x[0][1] = x[0]\n    x[1].add(3)\n",
            "    given, other = {}, set()\n    candidate(given, other)\n    assert given[1] is given and other == {3}\n",
        ),
        (
            "    raise KeyError('no', 1)\n",
            "    try:\n        candidate()\n    except LookupError as error:\n        assert error.args == ('no', 1)\n    else:\n        assert False\n",
        ),
        (
            "    class E(ValueError):\n        pass\n    raise E('why')\n",
            "    try:\n        candidate()\n    except ValueError as error:\n        assert str(error) == 'why'\n    else:\n        assert False\n",
        ),
        // Types that are made from plain ones, and what goes through them.
        (
            "    import collections\n    return collections.Counter(x)\n",
            "    assert candidate(1, 1) == {1: 2}\n",
        ),
        ("    return map(abs, x)\n", "    assert list(candidate(-1)) == [1]\n"),
        ("    return dict(a=1).keys()\n", "    assert candidate() == {'a'}\n"),
        // Functions of the prompt are the tests' own.
        ("    return x[0] / 2\n", "    assert double(candidate(4)) == 4\n"),
    ];
    let problems: Vec<Value> =
        cases.iter().zip(0..).map(|((solution, test), id)| about(id, solution, test)).collect();
    bench.write("data.jsonl", &problems);
    let said = bench.succeed(&["--problems", "data.jsonl", "--canonical", "--out", "out.jsonl"]);
    says(&said, &["10 of 10 solutions pass"]);
    assert!(bench.lines("out.jsonl").iter().all(|line| line["tests"] == "apart"));
}

/// Problems whose tests need more than plain data are judged in one interpreter, and counted.
#[test]
fn other_data_is_judged_together() {
    let bench = Bench::new();
    let cases = [
        ("    return x[0](1)\n", "    assert candidate(lambda x: x + 1) == 2\n"),
        ("    class Node:\n        value = 1\n    return Node()\n", "    assert candidate().value == 1\n"),
        ("    return len(x)\n", "    assert candidate.__doc__ == 'A function.'\n"),
        ("    return 1\n", "    assert candidate() == 1\n"),
    ];
    let problems: Vec<Value> =
        cases.iter().zip(0..).map(|((solution, test), id)| about(id, solution, test)).collect();
    bench.write("other.jsonl", &problems);
    let said = bench.succeed(&["--problems", "other.jsonl", "--canonical", "--out", "out.jsonl"]);
    says(&said, &["4 of 4 solutions pass", "together  3 of them", "Test/0, Test/1, Test/2\n"]);
    let places: Vec<Value> = bench.lines("out.jsonl").iter().map(|line| line["tests"].clone()).collect();
    assert_eq!(places, ["together", "together", "together", "apart"]);
}

/// The words of a program are not the judge's.
#[test]
fn reasons_are_the_judges() {
    let bench = Bench::new();
    let claim = |words: &str| {
        format!(
            "    import fcntl\n    words = {words}\n    os.write(4, b'F' + len(words).to_bytes(4, 'little') + words)\n    os._exit(0)\n"
        )
    };
    let cases = [
        (claim("b''"), "raised an exception without a name"),
        (claim("b'passed'"), "raised an exception without a name"),
        (claim("b'\\nused up its 10 s of CPU time'"), "raised an exception without a name"),
        (claim("b'why\\nNotPlainData'"), "NotPlainData"),
        (
            "    raise type('did not end within 60 s', (Exception,), {})\n".to_owned(),
            "raised an exception without a name",
        ),
    ];
    let completions: Vec<&str> = cases.iter().map(|(completion, _)| completion.as_str()).collect();
    for ((passed, reason), (_, wanted)) in bench.judge(&completions, &[]).iter().zip(&cases) {
        assert!(!passed && reason.starts_with(wanted), "{reason}");
    }
}

/// What tests import is asked for, not counted as failure; and what the environment of an interpreter has is there.
#[test]
fn modules_of_the_tests() {
    let bench = Bench::new();
    let mut one = problem();
    one["test"] =
        "import plainmath\n\ndef check(candidate):\n    assert plainmath.equal(candidate(1), 2)\n".into();
    bench.write("problems.jsonl", &[one]);
    bench.write(
        "samples.jsonl",
        &[json!({"task_id": "Test/0", "completion": "    import plainmath\n    return x + 1\n"})],
    );
    let given = ["--problems", "problems.jsonl", "--samples-file", "samples.jsonl"];
    let message = bench.fail(&given);
    says(&message, &["Test/0", "No module named 'plainmath'", "--python"]);
    let made = Command::new("python3")
        .args(["-m", "venv", "--without-pip", "venv"])
        .current_dir(bench.folder.path())
        .status()
        .unwrap();
    assert!(made.success());
    let found = Command::new(bench.path("venv/bin/python"))
        .args(["-c", "import site; print(site.getsitepackages()[0])"])
        .output()
        .unwrap();
    let packages = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
    fs::write(packages.join("plainmath.py"), "def equal(a, b):\n    return a == b\n").unwrap();
    let said = bench.succeed(&[&given[..], &["--python", "venv/bin/python"]].concat());
    says(&said, &["1 completions, 1 passed"]);
}

/// Libraries that the environment brings in make no folder readable.
#[test]
fn preloaded_libraries_open_nothing() {
    let bench = Bench::new();
    let home = bench.path("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("id_rsa"), "the secret").unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let library = maps
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(5))
        .find(|path| path.contains("libgcc_s"));
    let preloaded = home.join("libextra.so");
    fs::copy(library.unwrap(), &preloaded).unwrap();
    let completion = format!("    open('{}').read()\n    return x + 1\n", home.join("id_rsa").display());
    bench.write("samples.jsonl", &[json!({"task_id": "Test/0", "completion": completion})]);
    let args = ["--problems", "problems.jsonl", "--samples-file", "samples.jsonl", "--out", "out.jsonl"];
    let output = bench.command(&args).env("LD_PRELOAD", &preloaded).env("HOME", &home).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = &bench.lines("out.jsonl")[0];
    assert!(line["reason"].as_str().unwrap().starts_with("PermissionError"), "{line}");
    assert_eq!(fs::read_dir(&home).unwrap().count(), 2);
}

/// A program that the system kills, as it does when memory runs short, has not failed.
#[test]
fn killed_programs_are_judged_again() {
    let bench = Bench::new();
    bench.write("samples.jsonl", &[json!({"task_id": "Test/0", "completion": "    import time\n    time.sleep(3)\n    return x + 1\n"})]);
    let args = ["--problems", "problems.jsonl", "--samples-file", "samples.jsonl", "--workers", "1"];
    let evaluate = |kills: usize| {
        let process = bench.command(&args).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        // The interpreters of solution and tests; the judge's trial program before them is alone.
        for _ in 0..kills {
            while children(&process).len() < 2 {
                assert!(Instant::now() < deadline);
                thread::sleep(Duration::from_millis(20));
            }
            thread::sleep(Duration::from_millis(500));
            let killed = children(&process);
            // The judge ends the one when it misses the other.
            let kill = |child: &u32| Command::new("kill").args(["-9", &child.to_string()]).status().unwrap();
            assert!(killed.iter().map(kill).filter(|status| status.success()).count() > 0);
            while children(&process).iter().any(|child| killed.contains(child)) {
                thread::sleep(Duration::from_millis(5));
            }
        }
        process.wait_with_output().unwrap()
    };
    let output = evaluate(1);
    says(&String::from_utf8_lossy(&output.stdout), &["1 completions, 1 passed"]);
    fs::remove_file(bench.path("samples.results.jsonl")).unwrap();
    says(&said(evaluate(2)), &["memory runs short", "--memory-mib"]);
}

/// The clock stands still while a program has no core.
#[test]
fn load_is_not_waiting() {
    let bench = Bench::new();
    // With a quarter of a core, 1.5 s of CPU time take 6 s on a clock of the wall.
    let completion =
        "    import time\n    while time.process_time() < 1.5:\n        pass\n    return x + 1\n";
    bench.write("samples.jsonl", &[json!({"task_id": "Test/0", "completion": completion})]);
    let args = ["--problems", "problems.jsonl", "--samples-file", "samples.jsonl", "--wall-seconds", "3"];
    // All on the first core, of which the others leave little.
    let on_one_core = |program: &str| {
        let mut command = Command::new("taskset");
        command.args(["-c", "0", program]).current_dir(bench.folder.path());
        command
    };
    let mut others: Vec<_> =
        (0..3).map(|_| on_one_core("python3").args(["-c", "while True: pass"]).spawn().unwrap()).collect();
    let output = on_one_core(env!("CARGO_BIN_EXE_evaluator")).args(args).output().unwrap();
    for other in &mut others {
        other.kill().unwrap();
        other.wait().unwrap();
    }
    let said = String::from_utf8_lossy(&output.stdout);
    says(&said, &["1 completions, 1 passed"]);
}
