//! Real inputs that are easily read wrongly: a function for each. Files that others wrote lie in
//! `golden/cases/<function>/`; inputs of a few lines are made here.

use crate::evaluation::{Bench as Evaluation, says as said};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use tests::golden;
use tests::sources::{go, json_line, jsonl, preparation, program};
use tests::trainer::Bench as Training;
use train::data::{
    BAD_LINES_FILE, BadLines, DataError, DatasetInfo, PrepareSummary, Tokenizer, TokenizerSource, prepare,
};

/// Every folder of `golden/cases` has a function of its name here.
#[test]
fn every_case_has_its_test() {
    let this = include_str!("cases.rs");
    for entry in fs::read_dir(golden("cases")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(this.contains(&format!("#[test]\nfn {name}()")), "no test for golden/cases/{name}");
    }
}

fn case(folder: &str, file: &str) -> PathBuf {
    golden("cases").join(folder).join(file)
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Prepares an input without holding anything out.
    fn prepare(&self, input: &Path) -> Result<PrepareSummary, DataError> {
        let mut options = preparation(input.to_owned(), self.fresh());
        options.validation_fraction = 0.0;
        prepare(&options, &mut go)
    }

    fn prepare_with(&self, tokenizer: &Path, end_of_text: &str) -> Result<PrepareSummary, DataError> {
        let input = self.write("input/a.py", program(3) + "x = [\n\n        1,\n  2]\n");
        let mut options = preparation(input, self.fresh());
        options.validation_fraction = 0.0;
        options.tokenizer = TokenizerSource::File(tokenizer.to_owned());
        options.end_of_text = end_of_text.to_owned();
        prepare(&options, &mut go)
    }

    /// A name that is not there yet.
    fn fresh(&self) -> PathBuf {
        (0..).map(|i| self.path(&format!("out{i}"))).find(|path| !path.exists()).unwrap()
    }
}

/// The shards' bytes.
fn shards(summary: &PrepareSummary) -> Vec<Vec<u8>> {
    summary.info.train.shards.iter().map(|shard| fs::read(summary.out.join(&shard.file)).unwrap()).collect()
}

fn bad_lines(summary: &PrepareSummary) -> Vec<Value> {
    let text = fs::read_to_string(summary.out.join(BAD_LINES_FILE)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn says<T>(result: Result<T, DataError>, parts: &[&str]) {
    let message = result.err().expect("an error").to_string();
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

// Inputs.

#[test]
fn array_jsonl() {
    let folder = Folder::new();
    let lines = folder.prepare(&jsonl(folder.0.path(), 30)).unwrap();
    let records: Vec<Value> = (0..30).map(|i| serde_json::from_str(&json_line(i)).unwrap()).collect();
    let texts = [serde_json::to_string(&records).unwrap(), serde_json::to_string_pretty(&records).unwrap()];
    for text in &texts {
        let array = folder.prepare(&folder.write("array.jsonl", text)).unwrap();
        assert_eq!(shards(&array), shards(&lines));
    }
    // A bad element, an end that is missing, and something after the end: each is one bad line, and the rest is read.
    let pretty = &texts[1];
    let broken = pretty.replacen("\"text\": \"def function_1(", "\"text\": def function_1(", 1);
    let cut = &pretty[..pretty.len() - 20];
    let more = pretty.clone() + "\n[]";
    for (text, line, reason, documents) in [
        (broken.as_str(), 5, "expected", 29),
        (cut, 89, "the file ends within this element", 29),
        (more.as_str(), 92, "after the end of its array", 30),
    ] {
        let found = folder.prepare(&folder.write("array.jsonl", text)).unwrap();
        let bad = bad_lines(&found);
        assert_eq!((found.info.train.documents, bad.len()), (documents, 1), "{bad:?}");
        assert!(bad[0]["reason"].as_str().unwrap().contains(reason), "{bad:?}");
        assert_eq!(bad[0]["line"], line, "{bad:?}");
    }
    says(folder.prepare(&folder.write("array.json", "[]")), &["no documents"]);
}

#[test]
fn codec_gzip_brotli_lz4() {
    let folder = Folder::new();
    let found: Vec<_> = ["gzip", "brotli", "lz4"]
        .iter()
        .map(|codec| {
            folder.prepare(&case("codec_gzip_brotli_lz4", &format!("codec_{codec}.parquet"))).unwrap()
        })
        .collect();
    assert_eq!((found[0].info.train.documents, found[0].info.skipped.bad), (60, 0));
    assert!(found.iter().all(|other| shards(other) == shards(&found[0])));
}

#[test]
fn compressed_and_names() {
    let folder = Folder::new();
    let [gz, zst] = ["z.jsonl.gz", "z.jsonl.zst"].map(|name| case("compressed_and_names", name));
    let (a, b) = (folder.prepare(&gz).unwrap(), folder.prepare(&zst).unwrap());
    assert_eq!((a.info.train.documents, a.info.skipped.bad), (60, 0));
    assert_eq!(shards(&a), shards(&b));
    let text = fs::read(jsonl(folder.0.path(), 20)).unwrap();
    let lines = folder.prepare(&folder.path("programs.jsonl")).unwrap();
    for name in ["plain.ndjson", "plain.JSONL", "lines.json"] {
        assert_eq!(shards(&folder.prepare(&folder.write(name, &text)).unwrap()), shards(&lines), "{name}");
    }
    // A file that was cut: what came before is kept.
    let bytes = fs::read(&gz).unwrap();
    let cut = folder.prepare(&folder.write("cut.jsonl.gz", &bytes[..bytes.len() - 1000])).unwrap();
    let bad = bad_lines(&cut);
    assert!(cut.info.train.documents > 30 && cut.info.train.documents < 60 && bad.len() == 1, "{bad:?}");
    assert!(bad[0]["reason"].as_str().unwrap().contains("cannot be read from here on"), "{bad:?}");
}

#[test]
fn folder_of_parquet() {
    let folder = Folder::new();
    let parquet = fs::read(case("codec_gzip_brotli_lz4", "codec_gzip.parquet")).unwrap();
    folder.write("hf/README.md", "# data");
    folder.write("hf/data/train-00000-of-00001.parquet", &parquet);
    let hf = folder.prepare(&folder.path("hf")).unwrap();
    assert_eq!((hf.info.train.documents, hf.info.inputs[0].parquet, hf.info.inputs[0].other), (60, 1, 1));
    folder.write("mix/a.jsonl", json_line(1) + "\n" + &json_line(2));
    folder.write("mix/b.parquet", &parquet);
    folder.write("mix/c.json", format!("[{}]", json_line(3)));
    folder.write("mix/package.json", "{\n  \"name\": \"x\"\n}\n");
    folder.write("mix/s.py", program(4));
    let mix = folder.prepare(&folder.path("mix")).unwrap();
    let input = &mix.info.inputs[0];
    assert_eq!((input.python, input.json, input.parquet, input.other, input.unreadable), (1, 2, 1, 1, 0));
    assert_eq!((mix.info.train.documents, mix.info.skipped.bad), (64, 0));
}

#[test]
fn jsonl_bom() {
    let folder = Folder::new();
    let text = fs::read(jsonl(folder.0.path(), 20)).unwrap();
    let plain = folder.prepare(&folder.path("programs.jsonl")).unwrap();
    let marked = folder.write("bom.jsonl", [b"\xEF\xBB\xBF", text.as_slice()].concat());
    assert_eq!(shards(&folder.prepare(&marked).unwrap()), shards(&plain));
    let plain = folder.prepare(&folder.write("a.py", program(1))).unwrap();
    let marked = folder.write("b.py", "\u{feff}".to_owned() + &program(1));
    assert_eq!(shards(&folder.prepare(&marked).unwrap()), shards(&plain));

    let bench = evaluation("eval_fences", "prob.jsonl", "jsonl_bom", "s_bom.jsonl");
    said(&bench.succeed(&GIVEN), &["1 completions, 1 passed"]);
}

#[test]
fn jsonl_one_bad_line() {
    let folder = Folder::new();
    let with = |line: &[u8]| {
        let mut text: Vec<u8> = (0..29).flat_map(|i| (json_line(i) + "\n").into_bytes()).collect();
        text.extend_from_slice(line);
        text.extend_from_slice(format!("\n{}\n", json_line(30)).as_bytes());
        folder.write("lines.jsonl", text)
    };
    // The text is good; what another key holds is not looked at, if it can be passed over.
    let deep = format!("{{\"text\": \"x = 1\", \"a\": {}{}}}", "[".repeat(200), "]".repeat(200));
    let large = format!("{{\"text\": \"x = 1\", \"n\": 1{}}}", "0".repeat(400));
    for good in
        [deep.as_str(), &large, r#"{"repo": "\udcb2", "text": "x = 1"}"#, r#"{"text": "x = 1", "n": 1e999}"#]
    {
        let summary = folder.prepare(&with(good.as_bytes())).unwrap();
        assert_eq!((summary.info.train.documents, summary.info.skipped.bad), (31, 0), "{good}");
    }
    let cases: [(&[u8], &str); 10] = [
        (br#"{"text": "x = 1", "avg": Infinity}"#, "expected value"),
        (br#"{"text": "x = 1", "stars": NaN}"#, "expected value"),
        (br#"{"text": null}"#, "`text` is null"),
        (br#"{"text": 7}"#, "not a string"),
        (br#"{"content": "x = 1"}"#, "no `text`, only [\"content\"]"),
        (br#"{"text": "x = \"\ud800\"\n"}"#, "hex escape"),
        (br#"{"text": "x = 1, y"#, "EOF"),
        (b"{\"text\": \"x = \xff\"}", "unicode"),
        (&[0; 4096], "expected value"),
        (br#"{"text": "x = 1"} 2"#, "trailing characters"),
    ];
    for (line, reason) in cases {
        let summary = folder.prepare(&with(line)).unwrap();
        let bad = bad_lines(&summary);
        assert_eq!(
            (summary.info.train.documents, summary.info.skipped.bad, bad.len()),
            (30, 1, 1),
            "{bad:?}"
        );
        assert_eq!(
            (bad[0]["line"].as_u64(), bad[0]["file"].as_str()),
            (Some(30), folder.path("lines.jsonl").to_str())
        );
        assert!(bad[0]["reason"].as_str().unwrap().contains(reason), "{reason}: {bad:?}");
        assert!(summary.first_bad.unwrap().contains("line 30"));

        let mut strict = preparation(folder.path("lines.jsonl"), folder.fresh());
        strict.bad_lines = BadLines::Stop;
        says(prepare(&strict, &mut go), &["lines.jsonl, line 30", reason, "--bad-lines skip"]);
    }
    // Ten are tolerated in any case, but no more of so few.
    let bad = |count: usize| [vec!["{}"; count].join("\n").as_bytes(), b"\n"].concat();
    assert_eq!(folder.prepare(&with(&bad(10))).unwrap().info.skipped.bad, 10);
    says(
        folder.prepare(&with(&bad(11))),
        &["11 of", "0.1 %", "line 30", "bad_lines.jsonl", "--max-bad-lines"],
    );
    let mut lenient = preparation(folder.path("lines.jsonl"), folder.fresh());
    lenient.bad_lines = BadLines::Skip { most: 0.5 };
    assert_eq!(prepare(&lenient, &mut go).unwrap().info.skipped.bad, 11);
}

/// A file and a folder that this user may not read. As root, who may read all, another user tries it.
#[test]
fn unreadable() {
    let folder = Folder::new();
    fs::set_permissions(folder.0.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for i in 0..4 {
        folder.write(&format!("source/{i}.py"), program(i));
    }
    let shut = [folder.write("source/shut.py", program(5)), folder.write("source/shut/6.py", program(6))];
    for path in [&shut[0], shut[1].parent().unwrap()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
    }
    let program = folder.path("preparer");
    fs::copy(env!("CARGO_BIN_EXE_preparer"), &program).unwrap();
    let mut command = Command::new(program);
    command.args(["--train-tokenizer", "300", "--validation-fraction", "0", "--out", "out", "source"]);
    command.current_dir(folder.0.path());
    if fs::read(&shut[0]).is_ok() {
        command.uid(65534);
    }
    let done = command.output().unwrap();
    fs::set_permissions(shut[1].parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(said.contains("4 documents") && said.contains("2 bad"), "{said}");
    let report = fs::read_to_string(folder.path("out").join(BAD_LINES_FILE)).unwrap();
    let lines: Vec<&str> = report.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].contains("source/shut\"") && lines[1].contains("source/shut.py"),
        "{report}"
    );
    assert!(lines.iter().all(|line| line.matches("denied").count() == 1), "each reason once: {report}");
}

/// Linear work takes a second; quadratic work, at 20 s for a tenth of it, half an hour. The bound is of time on a core, which
/// other programs do not change.
#[test]
fn long_word() {
    let folder = Folder::new();
    folder.write("d/a.py", format!("x = \"{}\"\n", "a".repeat(1_000_000)));
    folder.write("d/b.py", "def f():\n    return 1\n".repeat(20));
    let done = Command::new("sh")
        .args(["-c", "ulimit -t 60; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_preparer")])
        .args(["--train-tokenizer", "512", "--validation-fraction", "0", "--out", "out", "d"])
        .current_dir(folder.0.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && text.contains("2 documents"), "{:?}: {text}", done.status);
}

// Tokenizers.

/// Source with all that the tokenizers at hand treat in a way of their own.
fn text() -> String {
    let spaces: String = (0..40).map(|n| format!("x{}y\n{}\n", " ".repeat(n), " ".repeat(n))).collect();
    let programs: String = (0..40).map(program).collect();
    format!(
        "{programs}{spaces}\tif x:\r\n  \u{a0} e\u{301} é 漢字 🦀 don't<tool_call>HTTP</tool_call> <|x|>\n"
    )
}

/// The ids that the library gives, as it is.
fn library(json: &Path, text: &str) -> Vec<i32> {
    let tokenizer = tokenizers::Tokenizer::from_file(json).unwrap();
    tokenizer.encode_fast(text, false).unwrap().get_ids().iter().map(|id| *id as i32).collect()
}

#[test]
fn tokenizer_added_whitespace() {
    let folder = Folder::new();
    let neox = case("tokenizer_added_whitespace", "neox.json");
    let tokenizer = Tokenizer::open(&neox).unwrap();
    let ids = tokenizer.encode(&text()).unwrap();
    assert_eq!(ids, library(&neox, &text()));
    assert_eq!(tokenizer.decode(&ids), Some(text()));
    assert!(
        ids.contains(&622) && tokenizer.decode(&[622]).as_deref() == Some("  "),
        "runs of spaces are text"
    );
    assert!(folder.prepare_with(&neox, "<|endoftext|>").unwrap().tokenizer_notes.is_empty());

    // Like Qwen2.5's: a normaliser, marks of FIM that are not called special, and added tokens that are text.
    let input = folder.write("a.py", text());
    let trained = folder.prepare(&input).unwrap().out.join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(trained).unwrap()).unwrap();
    json["normalizer"] = serde_json::json!({ "type": "NFC" });
    let added = json["added_tokens"].as_array_mut().unwrap();
    added.iter_mut().skip(1).for_each(|token| token["special"] = false.into());
    let id = added.last().unwrap()["id"].as_i64().unwrap();
    for (next, content) in ["<tool_call>", "</tool_call>"].iter().enumerate() {
        let mut token = added[1].clone();
        token["content"] = (*content).into();
        token["id"] = (id + 1 + next as i64).into();
        added.push(token);
    }
    let qwen = folder.write("qwen.json", json.to_string());
    let tokenizer = Tokenizer::open(&qwen).unwrap();
    for text in [text(), program(1), "a<tool_call>b".to_owned(), "e\u{301}".to_owned()] {
        assert_eq!(tokenizer.encode(&text).unwrap(), library(&qwen, &text), "{text}");
    }
    assert!(tokenizer.notes().iter().any(|note| note.contains("NFC")), "{:?}", tokenizer.notes());
    let spelled = tokenizer.encode("a<|fim_prefix|>b").unwrap();
    assert!(!spelled.contains(&tokenizer.find_special("<|fim_prefix|>").unwrap()), "text never marks a hole");
    assert_eq!(tokenizer.decode(&spelled).as_deref(), Some("a<|fim_prefix|>b"));
}

#[test]
fn tokenizer_not_byte_level() {
    let folder = Folder::new();
    for (name, part) in [("bert", "WordPiece"), ("llama2", "Prepend + Replace"), ("t5", "Metaspace")] {
        let path = case("tokenizer_not_byte_level", &format!("{name}.json"));
        says(
            folder.prepare_with(&path, "<|endoftext|>"),
            &[name, "does not give text back", part, "byte-level"],
        );
    }
    // Byte-level ones with a part that changes text.
    let changed = |key: &str, value: Value| {
        let neox = fs::read(case("tokenizer_added_whitespace", "neox.json")).unwrap();
        let mut json: Value = serde_json::from_slice(&neox).unwrap();
        json[key] = value;
        Tokenizer::open(&folder.write("changed.json", json.to_string()))
    };
    let ty = |ty: &str| serde_json::json!({ "type": ty });
    let strip = serde_json::json!({ "type": "Strip", "strip_left": true, "strip_right": true });
    for (normalizer, name) in
        [(ty("Lowercase"), "Lowercase"), (strip, "Strip"), (ty("NFKC"), "NFKC"), (ty("NFD"), "NFD")]
    {
        says(changed("normalizer", normalizer), &["does not give text back", &format!("normalizer {name}")]);
    }
    let nfc = serde_json::json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }] });
    assert!(changed("normalizer", nfc).is_ok());
    let space = serde_json::json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    says(changed("pre_tokenizer", space), &["add_prefix_space"]);
    let eats = serde_json::json!([{ "id": 600, "content": "<a>", "single_word": false, "lstrip": true, "rstrip": false,
        "normalized": false, "special": false }]);
    says(changed("added_tokens", eats), &["the spelling of an added token"]);
    // Files that are not a tokenizer.json.
    for (name, content, what) in [
        (
            "tokenizer.model",
            &b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02"[..],
            "a model of SentencePiece (tokenizer.model)",
        ),
        ("cl100k.tiktoken", b"IQ== 0\nIg== 1\n", "a file of tiktoken"),
        ("merges.txt", b"#version: 0.2\ni n\n", "the merges of a BPE (merges.txt)"),
        ("vocab.json", b"{\"!\": 0, \"a\": 1}", "the vocabulary of a BPE (vocab.json)"),
        ("tokenizer_config.json", b"{\"tokenizer_class\": \"Qwen2Tokenizer\"}", "a tokenizer_config.json"),
        ("special_tokens_map.json", b"{\"eos_token\": \"</s>\"}", "a special_tokens_map.json"),
    ] {
        says(Tokenizer::open(&folder.write(name, content)), &[name, what, "save_pretrained"]);
    }
}

#[test]
fn tokenizer_not_object() {
    for name in ["array", "string", "number"] {
        let path = case("tokenizer_not_object", &format!("{name}.json"));
        says(Tokenizer::open(&path), &[name, "cannot read tokenizer"]);
    }
    // Ids that no table holds, and one id for two tokens.
    let folder = Folder::new();
    let neox = fs::read_to_string(case("tokenizer_added_whitespace", "neox.json")).unwrap();
    let json: Value = serde_json::from_str(&neox).unwrap();
    let last = json["added_tokens"].as_array().unwrap().len() - 1;
    for id in ["2147483647", "4294967295", "1e300", "-1", "622.5", "18446744073709551616", "9999", "621"] {
        let mut added = json.clone();
        added["added_tokens"][last]["id"] = serde_json::from_str(id).unwrap();
        says(Tokenizer::open(&folder.write("id.json", added.to_string())), &["id"]);
        let mut word = json.clone();
        word["model"]["vocab"]["zzzz"] = serde_json::from_str(id).unwrap();
        if id != "9999" {
            says(Tokenizer::open(&folder.write("id.json", word.to_string())), &["cannot read tokenizer"]);
        }
    }
}

#[test]
fn tokenizer_other_eos() {
    let folder = Folder::new();
    for (name, end, other) in [
        ("llama3", "<|end_of_text|>", "<|eot_id|>"),
        ("deepseek", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    ] {
        let path = case("tokenizer_other_eos", &format!("{name}.json"));
        says(folder.prepare_with(&path, "<|endoftext|>"), &["`<|endoftext|>`", end, other, "--end-of-text"]);
        let summary = folder.prepare_with(&path, end).unwrap();
        assert_eq!((summary.info.end_of_text, summary.info.recipe.end_of_text.as_str()), (1, end));
        let dataset = train::data::Dataset::open(&summary.out, 1000, 0.0).unwrap();
        assert_eq!((dataset.end_of_text(), dataset.pad()), (1, 1));
        // What generation stops at: every token that is no text.
        assert_eq!(dataset.tokenizer().unwrap().decode_bytes(&[1]), None);
    }
    let mut trained = preparation(folder.write("a.py", program(1)), folder.fresh());
    trained.end_of_text = "</s>".to_owned();
    says(prepare(&trained, &mut go), &["--end-of-text", "</s>", "<|endoftext|>"]);
}

#[test]
fn tokenizer_truncation() {
    let folder = Folder::new();
    let path = case("tokenizer_truncation", "trunc.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let cutting = json["truncation"].take();
    let plain = folder.write("plain.json", json.to_string());
    let wanted = library(&plain, &text());
    let padding = serde_json::json!({ "strategy": { "Fixed": 100_000 }, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>" });
    json["truncation"] = cutting;
    json["padding"] = padding;
    json["model"]["dropout"] = 0.5.into();
    let all = folder.write("all.json", json.to_string());
    for (path, names) in
        [(&plain, &[][..]), (&path, &["truncation"]), (&all, &["truncation", "padding", "dropout"])]
    {
        let tokenizer = Tokenizer::open(path).unwrap();
        for _ in 0..3 {
            assert_eq!(tokenizer.encode(&text()).unwrap(), wanted);
        }
        let summary = folder.prepare_with(path, "<|endoftext|>").unwrap();
        let notes = &summary.tokenizer_notes;
        assert!(
            notes.len() == names.len() && notes.iter().zip(names).all(|(n, name)| n.contains(name)),
            "{notes:?}"
        );
        let info: DatasetInfo =
            serde_json::from_slice(&fs::read(summary.out.join("dataset.json")).unwrap()).unwrap();
        assert!(info.train.tokens > 32);
    }
}

// Evaluation.

const GIVEN: [&str; 4] = ["--problems", "problems.jsonl", "--samples-file", "samples.jsonl"];

/// A folder with the problems of one case and the samples of another.
fn evaluation(of: &str, problems: &str, from: &str, samples: &str) -> Evaluation {
    let bench = Evaluation::new();
    fs::copy(case(of, problems), bench.path("problems.jsonl")).unwrap();
    fs::copy(case(from, samples), bench.path("samples.jsonl")).unwrap();
    bench
}

#[test]
fn eval_asyncio() {
    let bench = evaluation("eval_asyncio", "prob.jsonl", "eval_asyncio", "samples.jsonl");
    said(&bench.succeed(&GIVEN), &["4 completions, 4 passed"]);
}

#[test]
fn eval_fences() {
    let bench = evaluation("eval_fences", "prob.jsonl", "eval_fences", "samples.jsonl");
    said(&bench.succeed(&GIVEN), &["3 completions, 3 passed", "cleaned   3 completions"]);
}

/// Where numpy is not there, that is an error and no score. What is there is imported: `judging::modules_of_the_tests`.
#[test]
fn eval_numpy_tests() {
    let bench = evaluation("eval_numpy_tests", "hp.jsonl", "eval_numpy_tests", "hp_s.jsonl");
    let output = bench.command(&GIVEN).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    match output.status.code() {
        Some(0) => said(&text, &["1 completions, 1 passed"]),
        code => {
            assert_eq!(code, Some(1), "{text}");
            said(&text, &["HP/0", "No module named 'numpy'", "--python"]);
            assert!(!text.contains("pass@1"), "{text}");
        }
    }
}

// Training, weights and generation.

/// The printed command, pasted, where both folders have a space in their names. More of it: `cli::what_to_type_next`.
#[test]
fn next_line() {
    let bench = Training::new(env!("CARGO_BIN_EXE_trainer"));
    fs::rename(bench.path("data"), bench.path("my data")).unwrap();
    let text = bench.succeed("my run", &["--data", "my data", "--steps", "6"]);
    let (_, line) = text.split_once("next: ").expect("a line that says what to type next");
    let line = line.lines().find(|line| line.contains("cargo run -p train --")).expect("a command");
    said(line, &["--data 'my data'"]);
    bench.paste(line);
}

/// Weights that others publish, through the program that reads them; every shape and what is wrong with some: `train`
/// `checkpoint::weights_are_read_in_every_shape_in_which_they_are_published`.
#[test]
fn safetensors_shapes() {
    let bench = Training::new(env!("CARGO_BIN_EXE_trainer"));
    bench.succeed("run", &["--steps", "2"]);
    let from = bench.path("run/checkpoints/step_00000002");
    let write = |folder: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_generate-text"));
        command.args([
            "--checkpoint",
            folder,
            "--prompt",
            "def f",
            "--max-new-tokens",
            "4",
            "--temperature",
            "0",
        ]);
        let output = command.current_dir(bench.path("")).output().unwrap();
        let report = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{folder}: {report}");
        String::from_utf8(output.stdout).unwrap()
    };
    let wanted = write("run");
    let file = train::checkpoint::TensorFile::open(&from.join("model.safetensors")).unwrap();
    type Rename = fn(&str) -> String;
    let prefixes: [(&str, Rename); 2] =
        [("plain", |name| name.to_owned()), ("compiled", |name| format!("_orig_mod.{name}"))];
    for (folder, rename) in prefixes {
        fs::create_dir(bench.path(folder)).unwrap();
        for name in ["config.json", "tokenizer.json"] {
            fs::copy(from.join(name), bench.path(folder).join(name)).unwrap();
        }
        let of_f64 = |name: String| {
            let host = file.tensor(&name).unwrap().unwrap();
            let bytes = host.to_f64().iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            ((rename(&name), host.ty().with_dtype(engine::DType::F64)), bytes)
        };
        let (types, bytes): (Vec<_>, Vec<_>) = file.names().into_iter().map(of_f64).unzip();
        let mut written = Vec::new();
        train::checkpoint::write_tensors(&mut written, &[], &types, |i| bytes[i].clone().into()).unwrap();
        fs::write(bench.path(folder).join("model.safetensors"), written).unwrap();
        assert_eq!(write(folder), wanted, "{folder}");
    }
}

/// Near their limit, temperature and top-p take the most probable token each time, as 0 does: no loop waits for a share that is below every number.
#[test]
fn tiny_temperature() {
    let bench = Training::new(env!("CARGO_BIN_EXE_trainer"));
    bench.succeed("run", &["--steps", "2"]);
    let write = |flags: [&str; 2], kernels: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_generate-text"));
        command.args([
            "--checkpoint",
            "run",
            "--prompt",
            "def f(",
            "--max-new-tokens",
            "8",
            "--kernels",
            kernels,
        ]);
        let output = command.args(flags).current_dir(bench.path("")).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    for kernels in ["auto", "portable"] {
        let greedy = write(["--temperature", "0"], kernels);
        for flags in [
            ["--temperature", "1e-38"],
            ["--temperature", "1e-300"],
            ["--top-p", "1e-38"],
            ["--top-p", "1e-300"],
        ] {
            assert_eq!(write(flags, kernels), greedy, "{flags:?}, {kernels}");
        }
    }
}
