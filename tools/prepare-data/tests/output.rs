//! Standard output that nobody reads, or that cannot be written to: the data is written all the same.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn prepare(folder: &Path, out: &str, stdout: impl Into<Stdio>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prepare-data"));
    command.current_dir(folder).args(["--train-tokenizer", "300", "--out", out, "a.py"]);
    command.stdout(stdout).stderr(Stdio::piped()).output().unwrap()
}

#[test]
fn nobody_reads_or_the_disk_is_full() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.py"), "def f(x):\n    return x + 1\n").unwrap();
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let closed = prepare(folder.path(), "closed", writer);
    let said = String::from_utf8_lossy(&closed.stderr);
    assert_eq!(closed.status.code(), Some(0), "{said}");
    assert!(!said.contains("error") && !said.contains("panicked"), "{said}");
    let full = prepare(folder.path(), "full", File::options().write(true).open("/dev/full").unwrap());
    let said = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{said}");
    let wanted = "error: writing to standard output: No space left on device";
    assert!(said.matches(wanted).count() == 1 && said.matches("error: ").count() == 1, "{said}");
    for out in ["closed", "full"] {
        assert!(folder.path().join(out).join("dataset.json").exists());
    }
}
