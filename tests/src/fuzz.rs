//! What reads bytes from outside, fed with bytes that nobody wrote: targets, the mutations that feed them, and the corpus of
//! inputs that once were worth remembering (`golden/fuzz/<target>/`).
//!
//! A target takes any bytes and must end in a value or an error. A panic is a finding, and so is what each target asserts.

use crate::shards::shard;
use crate::{Random, cpu, golden};
use engine::{DType, Host, Locations, Program, Tensor, Type};
use eval_humaneval::problems::Problems;
use eval_humaneval::samples::Sample;
use flate2::Compression;
use flate2::write::GzEncoder;
use model::{Config, Preset};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use train::checkpoint::{FileRecord, Manifest, TensorFile, files, read_params, verify, write_tensors};
use train::config::{Override, resolve};
use train::data::{
    BadLines, DataError, Dataset, Loader, Order, Packing, Position, RowOptions, Tokenizer, TokenizerSource,
    prepare,
};

/// One reader and what it is fed with.
pub struct Target {
    /// Its name on the command line and in the corpus.
    pub name: &'static str,
    /// Inputs to start from.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Reads an input; the folder is empty or holds what the last call left.
    run: fn(&Path, &[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "tensors", seeds: tensor_files, run: tensors },
    Target { name: "manifest", seeds: manifests, run: manifest },
    Target { name: "config", seeds: configs, run: config },
    Target { name: "rows", seeds: row_files, run: rows },
    Target { name: "position", seeds: positions, run: position },
    Target { name: "printer", seeds: programs, run: printer },
    Target { name: "tokenizer", seeds: tokenizers, run: tokenizer },
    Target { name: "source", seeds: sources, run: source },
    Target { name: "problems", seeds: problem_files, run: problems },
    Target { name: "samples", seeds: sample_files, run: samples },
];

/// An input that a target did not survive.
#[derive(Debug)]
pub struct Finding {
    /// The input.
    pub input: Vec<u8>,
    /// What the panic said.
    pub message: String,
}

impl Target {
    /// The target of this name.
    pub fn named(name: &str) -> Option<&'static Target> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Feeds mutations for a time; how many, or the first finding. Equal seeds feed equal inputs.
    pub fn fuzz(&self, seed: u64, time: Duration) -> Result<u64, Finding> {
        let start = Instant::now();
        let folder = TempDir::new().unwrap();
        let pool = self.known();
        let mut random = Random::new(seed);
        let mut executions = 0;
        while start.elapsed() < time {
            let input = mutated(&pool, &mut random);
            self.feed(folder.path(), input)?;
            executions += 1;
        }
        Ok(executions)
    }

    /// Feeds the known inputs as they are.
    pub fn replay(&self) -> Result<usize, Finding> {
        let folder = TempDir::new().unwrap();
        let inputs = self.known();
        let count = inputs.len();
        inputs.into_iter().try_for_each(|input| self.feed(folder.path(), input))?;
        Ok(count)
    }

    /// Feeds one input; the folder is empty or holds what the last call left.
    pub fn feed(&self, folder: &Path, input: Vec<u8>) -> Result<(), Finding> {
        catch_unwind(AssertUnwindSafe(|| (self.run)(folder, &input))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let message = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Finding { input, message: message.unwrap_or_default() }
        })
    }

    /// The inputs to start from, and those of the corpus.
    pub fn known(&self) -> Vec<Vec<u8>> {
        let entries = fs::read_dir(golden("fuzz").join(self.name)).into_iter().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let corpus = paths.into_iter().map(|path| fs::read(path).unwrap());
        (self.seeds)().into_iter().chain(corpus).collect()
    }
}

/// One of the inputs with a few changes: bits, bytes, pieces cut out, doubled or taken from another one, numbers out of range.
fn mutated(pool: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    const NUMBERS: [&str; 12] = [
        "0",
        "-1",
        "1",
        "255",
        "65536",
        "2147483648",
        "4294967296",
        "18446744073709551615",
        "1e999",
        "-0.0",
        "NaN",
        "null",
    ];
    let mut input = pool[random.below(pool.len())].clone();
    for _ in 0..1 + random.below(6) {
        let at = random.below(input.len() + 1);
        let length = 1 + random.below(8.min(input.len() - at + 1));
        let end = (at + length).min(input.len());
        match random.below(9) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = [0, 0x7f, 0x80, 0xff, b'"', b'{', b'\\'][random.below(7)],
            2 => drop(input.drain(at..end)),
            3 => drop(input.splice(at..at, input[at..end].to_vec())),
            4 => input.truncate(at),
            5 => {
                let other = &pool[random.below(pool.len())];
                let from = random.below(other.len() + 1);
                let to = (from + random.below(64)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            6 => {
                // The digits of a number, if there is one after this place.
                let digit = |byte: &u8| byte.is_ascii_digit();
                if let Some(begin) = input[at..].iter().position(digit).map(|skip| at + skip) {
                    let digits = input[begin..].iter().take_while(|byte| digit(byte)).count();
                    let number = NUMBERS[random.below(NUMBERS.len())];
                    input.splice(begin..begin + digits, number.bytes());
                }
            }
            7 => {
                let value = [0_u64, 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX][random.below(6)];
                let bytes = value.to_le_bytes();
                for (slot, byte) in input[at..].iter_mut().zip(bytes) {
                    *slot = byte;
                }
            }
            _ => input.extend((0..random.below(16)).map(|_| random.bits() as u8)),
        }
    }
    input
}

// safetensors

fn small() -> Config {
    Config {
        hidden_size: 4,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        head_dim: 2,
        intermediate_size: 4,
        vocab_size: 4,
        num_tokens: 4,
        ..Config::preset(Preset::Tiny)
    }
}

fn tensor_files() -> Vec<Vec<u8>> {
    let mut one = Vec::new();
    let tensors = [("a".to_owned(), Type::f32([2, 3])), ("b".to_owned(), Type::new(DType::Bf16, [0, 5]))];
    write_tensors(&mut one, &[("format", "pt")], &tensors, |i| vec![7; tensors[i].1.bytes()].into()).unwrap();
    let mut whole = Vec::new();
    let params = model::initial_params(&small(), 1);
    train::checkpoint::write_params(&mut whole, &small(), &params).unwrap();
    vec![one, whole, Vec::new()]
}

fn tensors(folder: &Path, input: &[u8]) {
    let path = folder.join("x.safetensors");
    // A new file each time, as mapped files are never written in place.
    let _ = fs::remove_file(&path);
    fs::write(&path, input).unwrap();
    if let Ok(file) = TensorFile::open(&path) {
        for name in file.names() {
            let ty = file.ty(&name).ok().flatten();
            assert_eq!(file.tensor(&name).ok().flatten().map(|host| host.ty().clone()), ty, "{name}");
        }
    }
    let _ = read_params(&path, &small()).map_err(|error| error.to_string());
}

// manifest.json

const FILES: [&str; 4] = [files::MODEL, files::OPTIMIZER, files::STATE, files::CONFIG];

fn manifests() -> Vec<Vec<u8>> {
    let records = FILES.map(|name| {
        let blake3 = blake3::hash(name.as_bytes()).to_hex().to_string();
        (name.to_owned(), FileRecord { bytes: name.len() as u64, blake3 })
    });
    vec![Manifest::new(records.into()).to_json().into_bytes(), b"{}".to_vec()]
}

/// A folder whose files hold their own names: never a checkpoint, because `state.json` then is no state.
fn manifest(folder: &Path, input: &[u8]) {
    for name in FILES {
        fs::write(folder.join(name), name).unwrap();
    }
    fs::write(folder.join(files::MANIFEST), input).unwrap();
    let error = verify(folder).expect_err("no checkpoint").to_string();
    assert!(error.contains(&folder.display().to_string()), "{error}");
}

// config.toml, config.json, --set

fn configs() -> Vec<Vec<u8>> {
    let toml = |preset| resolve(preset, None, &[]).unwrap().to_toml().into_bytes();
    let mut seeds: Vec<Vec<u8>> = [Preset::Tiny, Preset::OneB].map(toml).into();
    seeds.push(Config::preset(Preset::OneB).to_json().into_bytes());
    seeds.push(b"optimizer.learning_rate=3e-4".to_vec());
    seeds.push(b"preset = \"1b\"\n[model.rope_scaling]\nrope_type = \"yarn\"\nfactor = 4\noriginal_max_position_embeddings = 2048\nbeta_fast = 32\nbeta_slow = 1\n".to_vec());
    seeds
}

/// What is accepted is written back as a file that gives the same run.
fn config(_: &Path, input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(config) = Config::from_json(&text) {
        assert_eq!(Config::from_json(&config.to_json()).expect("what was written"), config);
    }
    let assignments: Vec<Override> = text.lines().filter_map(|line| Override::parse(line).ok()).collect();
    let file = resolve(Preset::Tiny, Some(("fuzz.toml".as_ref(), &text)), &[]);
    for resolved in [file, resolve(Preset::Tiny, None, &assignments)].into_iter().flatten() {
        let toml = resolved.to_toml();
        let again = resolve(Preset::Tiny, Some(("again.toml".as_ref(), &toml)), &[]);
        let again = again.unwrap_or_else(|error| panic!("{error}\n{toml}"));
        assert_eq!(again.run, resolved.run, "{toml}");
    }
}

// Parquet rows

fn documents() -> Vec<Vec<i32>> {
    (0..20).map(|i| (0..1 + i % 9).map(|p| 10 * i + p).collect()).collect()
}

fn row_files() -> Vec<Vec<u8>> {
    let (ids, segments) = (vec![vec![1, 2, 3, 4]; 6], vec![vec![0, 0, 1, 1]; 6]);
    vec![
        shard(&[("input_ids", &documents())], 10),
        shard(&[("input_ids", &ids), ("segment_ids", &segments), ("labels", &ids)], 3),
    ]
}

fn row_options(packing: Packing) -> RowOptions {
    RowOptions {
        seq: 8,
        packing,
        long_rows: packing.long_rows(),
        order: Order::Shuffled,
        fim_rate: 0.0,
        fim_spm_rate: 0.0,
        seed: 5,
        max_bad_row_groups: 1,
        window_tokens: 100,
    }
}

const VOCABULARY: usize = 1 << 24;

fn rows(folder: &Path, input: &[u8]) {
    let path = folder.join("x.parquet");
    let _ = fs::remove_file(&path);
    fs::write(&path, input).unwrap();
    let Ok(dataset) = Dataset::open(folder, VOCABULARY, 0.1) else { return };
    let dataset = Arc::new(dataset);
    for packing in [Packing::BestFit, Packing::None] {
        let batch = Loader::start(dataset.clone(), row_options(packing), Position::default())
            .and_then(|mut loader| loader.next_batch(2, 2));
        assert!(!matches!(batch, Err(DataError::ThreadGone)), "the data thread died");
        if let Ok(batch) = batch {
            assert!(batch.ids.iter().all(|id| (0..VOCABULARY as i32).contains(id)));
            assert_eq!(batch.ids.len(), batch.segments.len());
        }
    }
}

fn positions() -> Vec<Vec<u8>> {
    let start = serde_json::to_vec(&Position::default()).unwrap();
    let later = Position { mark: 0, epoch: 1, window: 1, block: 0, row: 3, rows: 40 };
    vec![start, serde_json::to_vec(&later).unwrap()]
}

/// A position that was damaged, with the right mark: the state file holds it as plain numbers.
fn position(folder: &Path, input: &[u8]) {
    let path = folder.join("x.parquet");
    if !path.exists() {
        fs::write(&path, shard(&[("input_ids", &documents())], 10)).unwrap();
    }
    let Ok(position) = serde_json::from_slice::<Position>(input) else { return };
    let dataset = Arc::new(Dataset::open(folder, VOCABULARY, 0.0).unwrap());
    let start = |position| Loader::start(dataset.clone(), row_options(Packing::BestFit), position);
    let mark = start(Position::default()).unwrap().next_batch(1, 1).unwrap().position_after.mark;
    let batch = start(Position { mark, ..position }).and_then(|mut loader| loader.next_batch(1, 2));
    assert!(!matches!(batch, Err(DataError::ThreadGone)), "the data thread died");
}

// tokenizer.json and text

const TOKENIZER: &str = "tokenizer_other_eos/llama3.json";

fn case(name: &str) -> Vec<u8> {
    fs::read(golden("cases").join(name)).unwrap()
}

fn tokenizers() -> Vec<Vec<u8>> {
    let small = br#"{"version": "1.0", "truncation": null, "added_tokens": [{"id": 2, "content": "<|endoftext|>",
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true}, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": [["a", "a"]]}}"#;
    let added = "tokenizer_added_whitespace/neox.json";
    [TOKENIZER, added, "tokenizer_not_byte_level/bert.json", "tokenizer_not_byte_level/llama2.json"]
        .map(case)
        .into_iter()
        .chain([small.to_vec()])
        .collect()
}

/// One that is not refused keeps text.
fn tokenizer(_: &Path, input: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_json(input, Path::new("tokenizer.json")) else { return };
    let text = "def mean(values):\n    return sum(values) / len(values)  # größe <|endoftext|>\n";
    let ids = tokenizer.encode(text).unwrap();
    assert!(ids.iter().all(|id| (0..tokenizer.vocab_size() as i32).contains(id)));
    assert_eq!(tokenizer.decode(&ids).as_deref(), Some(text));
}

fn sources() -> Vec<Vec<u8>> {
    let lines: String = (0..3).map(|i| crate::sources::json_line(i) + "\n").collect();
    let array = format!("[{}, {}]", crate::sources::json_line(4), r#"{"a": [{"b": "]\\""}], "text": "x"}"#);
    let files = [
        "codec_gzip_brotli_lz4/codec_gzip.parquet",
        "codec_gzip_brotli_lz4/codec_brotli.parquet",
        "codec_gzip_brotli_lz4/codec_lz4.parquet",
        "compressed_and_names/z.jsonl.gz",
        "compressed_and_names/z.jsonl.zst",
    ];
    files.map(case).into_iter().chain([lines.into_bytes(), array.into_bytes()]).collect()
}

/// A file with text, of the kind that its first bytes say.
fn source(folder: &Path, input: &[u8]) {
    let name = match input {
        [b'P', b'A', b'R', b'1', ..] => "x.parquet",
        [0x1F, 0x8B, ..] => "x.jsonl.gz",
        [0x28, 0xB5, 0x2F, 0xFD, ..] => "x.json.zst",
        _ => "x.jsonl",
    };
    let (path, out) = (folder.join(name), folder.join("out"));
    // A new file each time, as mapped files are never written in place.
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir_all(&out);
    fs::write(&path, input).unwrap();
    let mut options = crate::sources::preparation(path, out);
    options.tokenizer = TokenizerSource::File(golden("cases").join(TOKENIZER));
    options.end_of_text = "<|end_of_text|>".to_owned();
    options.bad_lines = BadLines::Skip { most: 1.0 };
    options.threads = 1;
    if let Ok(summary) = prepare(&options, &mut crate::sources::go) {
        assert!(summary.info.train.documents > 0);
        Dataset::open(&summary.out, VOCABULARY, 0.0).unwrap();
    }
}

// problems and samples of eval-humaneval

const PROBLEMS: &str = concat!(
    r#"{"task_id": "T/0", "prompt": "def f(x):\n", "canonical_solution": "    return x\n", "#,
    r#""test": "def check(f):\n    assert f(1) == 1\n", "entry_point": "f"}"#,
    "\r\n\n",
    r#"{"task_id": "T/1", "prompt": "def g(x):\n", "test": "def check(g):\n    pass\n", "entry_point": "g"}"#,
);

fn problem_files() -> Vec<Vec<u8>> {
    let mbpp = r#"[{"task_id": 601, "text": "Add.", "code": "async def a(): pass\nclass B: pass", "test_setup_code": "x = 1",
        "test_list": ["assert a", "assert B"], "score": NaN},
        {"source_file": "x", "task_id": 602, "prompt": "Add.", "test_imports": ["import math"], "test_list": ["assert 1"]}]"#;
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(PROBLEMS.as_bytes()).unwrap();
    vec![PROBLEMS.into(), mbpp.into(), format!("\u{feff}{PROBLEMS}").into(), packed.finish().unwrap()]
}

/// Problems that are accepted can be told apart, and a program ends with its tests.
fn problems(folder: &Path, input: &[u8]) {
    let path = folder.join("problems.jsonl");
    fs::write(&path, input).unwrap();
    let Ok(Problems { list, .. }) = Problems::file(&path) else { return };
    let ids: BTreeSet<&str> = list.iter().map(|problem| problem.id.as_str()).collect();
    assert!(!list.is_empty() && ids.len() == list.len(), "{ids:?}");
    for problem in &list {
        let program = problem.program(&problem.solution("    pass"));
        assert!(program.starts_with(&problem.prompt) && program.ends_with(&problem.tests), "{program}");
    }
}

fn sample_files() -> Vec<Vec<u8>> {
    let lines = [
        r#"{"task_id": "T/0", "completion": "```python\n    return x\n```\n", "score": -Infinity}"#,
        r#"{"task_id": "T/1", "solution": "def g(x):\n    return 'NaN'\n<|endoftext|>"}"#,
        r#"{"task_id": "T/0", "completion": "\ud800"}"#,
    ];
    let generations = r#"[["def f(x): return x", "\ud800"], ["def g(x): return 1", "import os\n"]]"#;
    let list = format!("[{}]", lines[..2].join(", "));
    vec![lines.join("\n").into(), list.into(), generations.into(), format!("\u{feff}{generations}").into()]
}

/// What is accepted belongs to a problem and has a number of its own among the problem's.
fn samples(folder: &Path, input: &[u8]) {
    let [path, of] = ["samples.jsonl", "problems.jsonl"].map(|name| folder.join(name));
    fs::write(&path, input).unwrap();
    fs::write(&of, PROBLEMS).unwrap();
    let Ok(given) = eval_humaneval::samples::read(&path, &Problems::file(&of).unwrap(), 2) else { return };
    let mut counts = [0; 2];
    for Sample { key: (problem, number), line, .. } in &given.samples {
        assert_eq!(*number, counts[*problem]);
        counts[*problem] += 1;
        if let Some(judged) = line.get("judged") {
            let text = line.get("completion").or(line.get("solution")).unwrap();
            assert!(text.as_str().unwrap().contains(judged.as_str().unwrap()), "{line:?}");
        }
    }
    assert!(!given.samples.is_empty() && given.cleaned <= given.samples.len() && given.bad_lines.len() <= 2);
}

// StableHLO

fn programs() -> Vec<Vec<u8>> {
    let mut random = Random::new(3);
    (0..16).map(|length| (0..8 * length).map(|_| random.bits() as u8).collect()).collect()
}

/// Bytes as decisions; zeros when they are used up.
struct Decisions<'a>(std::slice::Iter<'a, u8>);

impl Decisions<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, end: usize) -> usize {
        self.byte() as usize % end
    }

    fn name(&mut self) -> String {
        let bytes: Vec<u8> = (0..self.below(6)).map(|_| self.byte()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn shape(&mut self) -> Vec<usize> {
        (0..self.below(4)).map(|_| self.below(4)).collect()
    }

    /// A tensor of any bits, NaN and infinities among them.
    fn host(&mut self, ty: Type) -> Host {
        let bytes: Vec<u8> = (0..ty.bytes()).map(|_| self.byte()).collect();
        let bytes = if ty.dtype == DType::Bool { bytes.iter().map(|byte| byte & 1).collect() } else { bytes };
        Host::from_bytes(ty, &bytes)
    }
}

/// Equal bit by bit, but for the payload of a NaN in bf16, which XLA changes because it computes that type in f32.
fn same(a: &Host, b: &Host) -> bool {
    let same_number = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    let same_floats = || a.ty().dtype == DType::Bf16 && a.to_f64().iter().zip(&b.to_f64()).all(same_number);
    a.ty() == b.ty() && (a.bytes() == b.bytes() || same_floats())
}

/// A program with names, shapes and constants from the bytes: the plugin reads its text, equal programs print equal text,
/// and constants come back as they were.
fn printer(_: &Path, input: &[u8]) {
    let build = || {
        let mut constants = Vec::new();
        let mut decide = Decisions(input.iter());
        let name = decide.name();
        let program = Program::build(&name, |f| {
            let mut values: Vec<Tensor<'_>> = Vec::new();
            for number in 0..1 + decide.below(8) {
                let ty = Type::new(DType::ALL[decide.below(DType::ALL.len())], decide.shape());
                let value = match decide.below(5) {
                    0 | 1 => {
                        let host = decide.host(ty);
                        let value = f.constant(&host);
                        f.output(&format!("{number}{}", decide.name()), value);
                        constants.push(host);
                        continue;
                    }
                    2 => f.input(&format!("{number}{}", decide.name()), ty),
                    3 => {
                        let number = f64::from(decide.byte());
                        f.full(ty.clone(), if ty.dtype == DType::Bool { number % 2.0 } else { number })
                    }
                    _ => match values.get(decide.below(8)) {
                        Some(value) => value.convert(ty.dtype),
                        None => f.zeros(ty),
                    },
                };
                values.push(value);
            }
            if let Some(last) = values.last() {
                let elements = last.shape().iter().product();
                f.output("last", last.reshape([elements]));
            }
        });
        (program, constants)
    };
    let (program, constants) = build();
    let text = program.text(Locations::Omit);
    assert_eq!(build().0.text(Locations::Omit), text);
    let compiled = program.compile(cpu()).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let args: Vec<Host> = program.inputs().iter().map(|port| Host::zeros(port.ty.clone())).collect();
    let results = compiled.call(&args).unwrap_or_else(|error| panic!("{error}\n{text}"));
    for (found, wanted) in results.iter().zip(&constants) {
        assert!(same(found, wanted), "{found:?} {wanted:?}\n{text}");
    }
}
