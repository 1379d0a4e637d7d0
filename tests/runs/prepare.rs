//! `prepare-data`: what a folder that was begun is worth, and what the program says. Bad input: `cases.rs`.

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use tempfile::TempDir;
use tests::golden;
use tests::sources::{go, json_line, jsonl, preparation, program};
use train::data::{DataError, Dataset, PrepareOptions, PrepareProgress, TokenizerSource, prepare};

/// Names and bytes of all files of a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

fn message<T>(result: Result<T, DataError>) -> String {
    result.err().expect("an error").to_string()
}

fn open(folder: &Path) -> Result<Dataset, DataError> {
    Dataset::open(folder, 1000, 0.0)
}

/// A data set with several shards.
fn several_shards(folder: &TempDir) -> PrepareOptions {
    preparation(jsonl(folder.path(), 2500), folder.path().join("out"))
}

// Folders that were begun.

#[test]
fn two_runs_into_one_folder_do_not_meet() {
    let folder = TempDir::new().unwrap();
    let options = several_shards(&folder);
    let mut refused = 0;
    prepare(&options, &mut |_| {
        let second = message(prepare(&options, &mut go));
        assert!(
            second.contains(&format!("out is in use by process {}, for ", std::process::id())),
            "{second}"
        );
        assert!(second.contains("choose another --out"), "{second}");
        refused += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(refused > 2);
    let whole = files(&options.out);
    assert!(whole.keys().all(|name| !name.contains("lock")), "{:?}", whole.keys());
    assert_eq!(
        prepare(&options, &mut go).unwrap().kept_shards,
        prepare(&options, &mut go).unwrap().kept_shards
    );
    assert!(files(&options.out) == whole);
}

/// What the messages advise is done, and helps.
#[test]
fn lost_and_damaged_files_are_made_again() {
    let folder = TempDir::new().unwrap();
    let options = several_shards(&folder);
    let info = prepare(&options, &mut go).unwrap().info;
    assert!(info.train.shards.len() > 3, "several shards");
    let whole = files(&options.out);
    let again = "run the same prepare-data command again";
    let check = |lost: &[&str], kept: usize| {
        let summary = prepare(&options, &mut go).unwrap();
        assert_eq!(summary.made_again, lost);
        assert_eq!(summary.kept_shards, kept);
        assert!(files(&options.out) == whole, "the same bytes: {lost:?}");
        open(&options.out).unwrap();
    };
    let all = info.train.shards.len() + info.validation.shards.len();
    let (first, last) = (&info.train.shards[0].file, &info.train.shards.last().unwrap().file);

    fs::remove_file(options.out.join(first)).unwrap();
    assert!(message(open(&options.out)).contains(again));
    check(&[first], all - 1);

    fs::write(options.out.join(first), &whole[first][..1000]).unwrap();
    assert!(message(open(&options.out)).contains(again));
    fs::remove_file(options.out.join(last)).unwrap();
    fs::remove_file(options.out.join(&info.validation.shards[0].file)).unwrap();
    check(&[first, last, &info.validation.shards[0].file], all - 3);

    // One flipped bit, which the size does not tell.
    let mut flipped = whole[last].clone();
    flipped[100] ^= 1;
    fs::write(options.out.join(last), flipped).unwrap();
    check(&[last], all - 1);

    fs::write(options.out.join("tokenizer.json"), "{}").unwrap();
    check(&[], all);
    fs::write(options.out.join("dataset.json"), &whole["dataset.json"][..100]).unwrap();
    let damaged = message(prepare(&options, &mut go));
    assert!(
        damaged.contains("dataset.json cannot be understood") && damaged.contains("delete it"),
        "{damaged}"
    );
    fs::remove_file(options.out.join("dataset.json")).unwrap();
    check(&[], 0);

    // A lost shard does not let changed inputs in.
    fs::remove_file(options.out.join(first)).unwrap();
    let text = fs::read_to_string(&options.inputs[0]).unwrap();
    for changed in [text.replace("x * 7 +", "x * 8 +"), text.clone() + &json_line(9999)] {
        fs::write(&options.inputs[0], changed).unwrap();
        assert!(message(prepare(&options, &mut go)).contains("inputs changed"));
    }
    assert!(
        files(&options.out) == whole,
        "made again while its documents were the same, and nothing else was touched"
    );
    fs::write(&options.inputs[0], text).unwrap();
    check(&[], all);
}

#[test]
fn a_null_is_the_same_in_json_and_parquet() {
    let folder = TempDir::new().unwrap();
    let texts: Vec<Option<String>> = (0..40).map(|i| (i != 7).then(|| program(i))).collect();
    let lines: String =
        texts.iter().map(|text| serde_json::json!({ "text": text }).to_string() + "\n").collect();
    let (json, table) = (folder.path().join("a.jsonl"), folder.path().join("a.parquet"));
    fs::write(&json, lines).unwrap();
    let column: ArrayRef = Arc::new(StringArray::from_iter(&texts));
    let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(&table).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let [json, table] = [json, table].map(|input| {
        let out = input.with_extension("out");
        prepare(&preparation(input, out), &mut go).unwrap()
    });
    assert_eq!((json.info.skipped.bad, json.info.skipped.empty), (1, 0));
    assert_eq!(json.info.skipped, table.info.skipped);
    assert_eq!(json.info.train, table.info.train);
    let [json, table] = [json, table].map(|summary| summary.first_bad.unwrap());
    assert!(json.ends_with("a.jsonl, line 8: `text` is null"), "{json}");
    assert!(table.ends_with("a.parquet, row 8: `text` is null"), "{table}");
}

/// Copies and files without text count as well: the progress is that of the reading.
#[test]
fn progress_is_of_what_was_read() {
    let folder = TempDir::new().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    for i in 0..30 {
        fs::write(source.join(format!("{i}.py")), program(i % 3)).unwrap();
    }
    fs::write(source.join("latin.py"), vec![0xE9; 5000]).unwrap();
    fs::write(source.join("b.jsonl"), json_line(50) + "\n" + &json_line(50) + "\n{}\n").unwrap();
    let mut options = preparation(source, folder.path().join("out"));
    options.validation_fraction = 0.0;
    let (mut total, mut trained, mut last) = (0, 0, 0);
    prepare(&options, &mut |state| {
        match state {
            PrepareProgress::Found { bytes, .. } => total = bytes,
            PrepareProgress::TrainingTokenizer { bytes } => trained = bytes,
            PrepareProgress::Tokenised { bytes, .. } => {
                assert!((last..=total).contains(&bytes));
                last = bytes;
            }
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(total > 5000 && trained <= total);
    assert_eq!(last, total);
}

// The program.

fn preparer(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_preparer"));
    command.current_dir(folder).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, standard output and standard error.
fn run(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let done = preparer(folder, args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

#[test]
fn the_program_says_what_it_read_and_made() {
    let folder = TempDir::new().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    for i in 0..30 {
        fs::write(source.join(format!("{i}.py")), program(i)).unwrap();
    }
    fs::write(source.join("notes.txt"), "notes").unwrap();
    fs::write(source.join("bad.jsonl"), "{\"text\": nothing}\n").unwrap();
    let args = ["--out", "out", "--train-tokenizer", "4096", "source"];
    let (code, out, err) = run(folder.path(), &args);
    assert_eq!(code, Some(0), "{err}");
    for part in [
        "source: files 30 Python, 1 JSON, 1 of other kinds, left out",
        "0 copies, 0 not UTF-8, 0 too large, 0 empty, 1 bad",
        "the first: source/bad.jsonl, line 1: not a JSON object",
        "all: out/bad_lines.jsonl",
        "4096 tokens were asked for: the text has no more pairs that come twice",
        "next: cargo run -p train -- --data out",
    ] {
        assert!(out.contains(part), "no `{part}` in {out}");
    }
    // Without a terminal: lines.
    assert!(err.starts_with("read 0 B of ") && err.contains("31 files"), "{err}");
    let (code, out, _) = run(folder.path(), &args);
    assert!(
        code == Some(0) && out.contains("shards kept from before") && !out.contains("(0 shards"),
        "{out}"
    );
    let shard = folder.path().join("out/train-00000.parquet");
    fs::write(&shard, "lost").unwrap();
    let (code, out, _) = run(folder.path(), &args);
    assert!(code == Some(0) && out.contains("made again, as lost or damaged: train-00000.parquet"), "{out}");
}

#[test]
fn the_program_refuses_with_a_remedy() {
    let folder = TempDir::new().unwrap();
    let trunc = golden("cases").join("tokenizer_truncation/trunc.json");
    let llama2 = golden("cases").join("tokenizer_not_byte_level/llama2.json");
    let [trunc, llama2] = [&trunc, &llama2].map(|path| path.to_str().unwrap());
    fs::write(folder.path().join("a.py"), program(1)).unwrap();
    fs::write(folder.path().join("bad.jsonl"), "1\n").unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (&["absent"], &["absent", "inputs are *.py files"]),
        (&["--train-tokenizer", "100", "a.py"], &["--train-tokenizer = 100", "at least 266"]),
        (&["--validation-fraction", "1", "a.py"], &["--validation-fraction = 1", "less than 1"]),
        (&["--max-bad-lines", "2", "a.py"], &["--max-bad-lines = 2", "between 0 and 1"]),
        (&["--shard-tokens", "0", "a.py"], &["--shard-tokens = 0"]),
        (&["--tokenizer", llama2, "a.py"], &["llama2.json does not give text back", "byte-level"]),
        (
            &["--tokenizer", trunc, "--end-of-text", "</s>", "a.py"],
            &["`</s>`", "<|endoftext|>", "--end-of-text"],
        ),
        (&["--bad-lines", "stop", "bad.jsonl"], &["bad.jsonl, line 1", "--bad-lines skip"]),
        (&["bad.jsonl"], &["no documents", "1 bad", "bad.jsonl, line 1"]),
    ];
    for (args, parts) in cases {
        let (code, _, err) = run(folder.path(), &[&["--out", "out"], *args].concat());
        assert_eq!(code, Some(1), "{err}");
        assert!(err.lines().any(|line| line.starts_with("error: ")) && !err.contains("panicked"), "{err}");
        for part in *parts {
            assert!(err.contains(part), "no `{part}` in {err}");
        }
    }
    let (code, out, _) =
        run(folder.path(), &["--out", "out", "--tokenizer", trunc, "--validation-fraction", "0", "a.py"]);
    assert!(code == Some(0) && out.contains("its truncation is not used"), "{out}");
}

// Signals.

/// A run that reads its documents from a pipe, so that the test decides how far it is.
struct Piped {
    folder: TempDir,
    child: Child,
    said: BufReader<ChildStderr>,
    pipe: File,
    written: usize,
}

const PIPED: [&str; 8] = [
    "--shard-tokens",
    "100000",
    "--validation-fraction",
    "0",
    "--threads",
    "1",
    "--tokenizer",
    "tokenizer.json",
];

impl Piped {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let tokenizer = golden("cases").join("tokenizer_added_whitespace/neox.json");
        fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
        let path = folder.path().join("pipe.jsonl");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut child =
            preparer(folder.path(), &[&PIPED[..], &["--out", "out", "pipe.jsonl"]].concat()).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        // Waits until the run reads.
        let pipe = File::options().write(true).open(&path).unwrap();
        Self { folder, child, said, pipe, written: 0 }
    }

    /// Gives more documents; false when nobody reads any more.
    fn write(&mut self, documents: usize) -> bool {
        let text: String = (self.written..self.written + documents).map(|i| json_line(i) + "\n").collect();
        self.written += documents;
        self.pipe.write_all(text.as_bytes()).is_ok()
    }

    fn signal(&self) {
        assert!(
            Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap().success()
        );
    }

    fn wait_for(&mut self, part: &str) {
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            assert!(self.said.read_line(&mut line).unwrap() > 0, "ended without `{part}`");
        }
    }

    /// The end: its exit code and the rest of what it said.
    fn end(mut self) -> (Option<i32>, String, TempDir, usize) {
        drop(self.pipe);
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest, self.folder, self.written)
    }
}

#[test]
fn an_interrupt_ends_after_the_open_shard() {
    let mut run = Piped::start();
    // More than a batch (1024 documents), less than a shard.
    assert!(run.write(1100));
    run.signal();
    while run.write(100) {
        assert!(run.written < 100_000, "it does not end");
    }
    let (code, said, folder, written) = run.end();
    assert_eq!(code, Some(75), "{said}");
    assert!(
        said.contains("stops when the open shard is finished") && said.contains("run the same command again"),
        "{said}"
    );
    let out = folder.path().join("out");
    let shards = |out: &Path| files(out).keys().filter(|name| name.ends_with(".parquet")).count();
    assert_eq!(shards(&out), 1, "the open shard is finished, and no other is begun");
    assert!(message(open(&out)).contains("run the same prepare-data command again"));
    // The same command, with the documents in a file of the pipe's name, and at once.
    let path = folder.path().join("pipe.jsonl");
    fs::remove_file(&path).unwrap();
    fs::write(&path, (0..written + 500).map(|i| json_line(i) + "\n").collect::<String>()).unwrap();
    for out in ["out", "whole"] {
        let (code, _, err) = self::run(folder.path(), &[&PIPED[..], &["--out", out, "pipe.jsonl"]].concat());
        assert_eq!(code, Some(0), "{err}");
    }
    assert!(shards(&out) > 1 && files(&out) == files(&folder.path().join("whole")), "the same bytes");
}

#[test]
fn a_second_interrupt_ends_at_once() {
    let mut run = Piped::start();
    assert!(run.write(1100));
    run.signal();
    // The end of the next batch is where the first one is seen.
    assert!(run.write(1100));
    run.wait_for("once more to stop at once");
    run.signal();
    let code = run.child.wait().unwrap().code();
    assert_eq!(code, Some(130));
    let out: PathBuf = run.folder.path().join("out");
    assert!(!out.join("dataset.json").exists() && !out.join("train-00000.parquet").exists());
}

#[test]
fn a_preparation_with_another_tokenizer_is_another() {
    let folder = TempDir::new().unwrap();
    let mut options = several_shards(&folder);
    prepare(&options, &mut go).unwrap();
    let whole = files(&options.out);
    options.tokenizer = TokenizerSource::File(golden("cases").join("tokenizer_added_whitespace/neox.json"));
    assert!(message(prepare(&options, &mut go)).contains("another tokenizer"));
    assert!(files(&options.out) == whole, "nothing was touched");
}
