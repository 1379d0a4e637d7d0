//! The commands of README: each is run here, or it is said why not.

use crate::PROGRAMS;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;
use tests::golden;

/// What becomes of a command.
enum Fate {
    /// It is run here after the ones before it, with flags that make it smaller.
    Run(&'static [&'static str]),
    /// A test runs it: its file and its name.
    Elsewhere(&'static str, &'static str),
    /// It is not run, for this reason.
    Not(&'static str),
}

use Fate::{Elsewhere, Not, Run};

/// All commands of README, in its order.
const COMMANDS: &[(&str, Fate)] = &[
    ("cargo run -p train", Elsewhere("tools/cli.rs", "the_first_command_needs_nothing")),
    ("cargo test --workspace", Not(TESTS)),
    ("python3 -m pip install jax==0.10.2", Not("JAX is no part of this project")),
    ("python3 tests/jax/step.py", Not(BENCHMARK)),
    ("cargo run -p train -- --preset bench --out runs/bench", Not(BENCHMARK)),
    ("cargo run --example tour -p engine", Run(&[])),
    ("cargo doc -p engine --open", Not("opens a browser; `.ci/run` builds the docs")),
    ("cargo run -p prepare-data -- --out data/mine --train-tokenizer 4096 path/to/python/files", Run(&[])),
    (
        "cargo run -p train -- --data data/mine --out runs/mine --set model.hidden_size=256 --steps 2000",
        Run(&[
            "--set model.hidden_size=16 --set model.num_hidden_layers=1 --set model.num_attention_heads=2",
            "--set model.num_key_value_heads=2 --set model.head_dim=8 --set model.intermediate_size=16",
            "--set batch.micro=1 --set batch.accumulation=1 --set batch.seq=16 --set data.epochs=1000",
            "--set validation.batches=1 --set validation.every=1000 --set checkpoint.every=2000",
            "--set checkpoint.keep_last=1 --set log.every=1000",
        ]),
    ),
    (
        "cargo run -p train -- --preset 1b --data data/other --set data.packing=none --set data.long_rows=split",
        Elsewhere("runs/rows.rs", "a_folder_of_another_program_trains"),
    ),
    (
        "cargo run -p generate -- --checkpoint runs/mine --prompt 'def mean(values):'",
        Run(&["--max-new-tokens 8"]),
    ),
    (
        "cargo run -p score -- --checkpoint runs/mine/checkpoints/step_00002000 --text path/to/file.py",
        Run(&[]),
    ),
    ("cargo bench -p decode", Not(BENCHMARK)),
    (
        "cargo run -p serve -- --checkpoint runs/mine",
        Elsewhere("serve/process.rs", "it_says_that_it_loads_until_it_is_ready"),
    ),
    ("cargo run -p doctor", Run(&[])),
    ("cargo run -p doctor --features trial", Run(&[])),
    ("cargo run -p doctor -- --platform tpu --fetch", Run(&[])),
    (
        "cargo run -p train -- --preset 1b --platform tpu:v6e:1x1 --tokens 24000000000 --plan",
        Not("it compiles a step several times, to find the largest micro-batch; `plan::` plans for the CPU"),
    ),
    (
        "cargo run -p train -- --preset 1b --platform cuda:h100 --tokens 24000000000 --plan",
        Not("as the one before; `gpu::` compiles the step of `tiny`"),
    ),
    ("cargo run -p dump-hlo -- --format svg --out step.svg", Run(&[])),
    (
        "cargo run -p dump-hlo -- --preset 1b --platform tpu:v6e:1x1 --stage optimized --format json --out after.json",
        Run(SMALL_STEP),
    ),
    ("cargo run -p dump-hlo -- --from after.json --format cycles --against before.json", Run(&[])),
    (
        "cargo run -p eval-humaneval -- --checkpoint runs/mine/checkpoints/step_00002000",
        Run(&["--first 2 --max-new-tokens 4"]),
    ),
    (
        "cargo run -p eval-humaneval -- --run runs/mine --samples 20 --temperature 0.2 --k 1,10",
        Run(&["--first 1 --max-new-tokens 1 --rows 20"]),
    ),
    (
        "cargo run -p eval-humaneval -- --run runs/mine --samples 20 --temperature 0.2,0.8 --top-p 0.9,0.95",
        Run(&["--first 1 --max-new-tokens 1 --rows 20"]),
    ),
    ("cargo run -p eval-humaneval -- --samples-file samples.jsonl --out results.jsonl", Run(&["--first 2"])),
    ("cargo run -p eval-humaneval -- --summarize results.jsonl eval_results.json --out scores.csv", Run(&[])),
    ("cargo test -p tests --test engine ops::", Not(TESTS)),
    ("KILLS=50 cargo test -p tests --test runs crash:: -- --nocapture", Not(TESTS)),
    ("cargo install cargo-fuzz --version 0.13.2 --locked", Not("it fetches another program")),
    ("cargo run -p tests --bin fuzz-seeds -- tests/fuzz/corpus", Run(&[])),
    (
        "cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none rows -- -max_total_time=600",
        Not("it takes another program, and ten minutes"),
    ),
    ("BLESS=1 cargo test -p tests --test engine stablehlo::", Not(TESTS)),
    ("cargo bench -p engine", Not(BENCHMARK)),
    ("cargo run -p kernels --example v6e -- --parts", Run(&["cached-1-2048-512"])),
];

const TESTS: &str = "these are the tests";
const BENCHMARK: &str = "its result is a speed";

/// Makes preset `1b` so small that it is compiled in seconds.
const SMALL_STEP: &[&str] = &[
    "--set model.hidden_size=128 --set model.num_hidden_layers=1 --set model.num_attention_heads=2",
    "--set model.num_key_value_heads=2 --set model.head_dim=64 --set model.intermediate_size=128",
    "--set model.vocab_size=512 --set model.num_tokens=512 --set batch.seq=128 --set batch.micro=1",
    "--set batch.accumulation=1",
];

/// Programs that cargo starts in another way than those of [`PROGRAMS`].
const OTHERS: [(&str, &str); 3] = [
    ("cargo run --example tour -p engine", env!("CARGO_BIN_EXE_tour")),
    ("cargo run -p kernels --example v6e", env!("CARGO_BIN_EXE_v6e")),
    ("cargo run -p tests --bin fuzz-seeds", env!("CARGO_BIN_EXE_fuzz-seeds")),
];

/// The commands of a text in Markdown: the lines of its blocks of shell, and what it names in a line of text.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (i, part) in text.split("\n```").enumerate() {
        if i % 2 == 0 {
            // A part that follows a block begins with the rest of its last line, which is empty.
            let spans = part.split('`').skip(1).step_by(2);
            let words = spans.map(|span| span.split_whitespace().collect::<Vec<_>>());
            let is_command =
                |words: &Vec<&str>| words.iter().find(|word| !word.contains('=')) == Some(&"cargo");
            found.extend(
                words.filter(|words| is_command(words) && words.len() > 1).map(|words| words.join(" ")),
            );
        } else if let Some(block) = part.strip_prefix("sh\n") {
            let lines = block.lines().map(|line| line.split("  #").next().unwrap_or(line).trim());
            found.extend(lines.filter(|line| !line.is_empty()).map(str::to_owned));
        }
    }
    found
}

#[test]
fn each_command_is_run_or_it_is_said_why_not() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = commands(&fs::read_to_string(tests.join("../README.md")).unwrap());
    assert!(found.len() > 20, "{found:#?}");
    let known: BTreeSet<&str> = COMMANDS.iter().map(|(command, _)| *command).collect();
    for command in &found {
        assert!(known.contains(command.as_str()), "README has a command that is not in COMMANDS: {command}");
    }
    for (command, fate) in COMMANDS {
        assert!(found.iter().any(|found| found == command), "README has no longer: {command}");
        if let Elsewhere(file, name) = fate {
            let text = fs::read_to_string(tests.join(file)).unwrap();
            assert!(text.contains(&format!("#[test]\nfn {name}()")), "{command}: {file} has no test {name}");
        }
    }
}

#[test]
fn commands_are_found_in_markdown() {
    let text = "Run `cargo run -p\nx -- --y`, `A=1 cargo test`, `cargo`, `x = cargo` or:\n\n```sh\ncargo x 'a # b'  # c\n\ny\n```\n\n```text\nno\n```\n\n`cargo z`\n";
    assert_eq!(
        commands(text),
        ["cargo run -p x -- --y", "A=1 cargo test", "cargo x 'a # b'", "y", "cargo z"]
    );
}

/// A line for a shell: the program that the tests have in place of cargo, and more flags.
fn line(command: &str, more: &[&str]) -> String {
    let (cargo, flags) = command.split_once(" -- ").unwrap_or((command, ""));
    let packages = PROGRAMS.iter().map(|(package, program)| (format!("cargo run -p {package}"), *program));
    let others = OTHERS.iter().map(|(cargo, program)| ((*cargo).to_owned(), *program));
    // The tests have `doctor` with all of its features.
    let cargo = cargo.trim_end_matches(" --features trial");
    let found = packages.chain(others).find(|(name, _)| name == cargo);
    let (_, program) = found.unwrap_or_else(|| panic!("`{cargo}` is no program of the tests"));
    format!("'{program}' {flags} {}", more.join(" "))
}

/// In an empty folder, in the order of README: what one writes, a later one reads.
#[test]
fn the_commands_work() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    // What README calls by a name that is the reader's.
    fs::create_dir_all(path("path/to/python")).unwrap();
    let copy = "import shutil, sysconfig as s; shutil.copytree(s.get_path('stdlib') + '/asyncio', 'path/to/python/files'); shutil.copy(s.get_path('stdlib') + '/keyword.py', 'path/to/file.py')";
    let copied = Command::new("python3").args(["-c", copy]).current_dir(folder.path()).status().unwrap();
    assert!(copied.success());
    let sample = |i| format!("{{\"task_id\": \"HumanEval/{i}\", \"completion\": \"    return 1\\n\"}}\n");
    fs::write(path("samples.jsonl"), [0, 1].map(sample).concat()).unwrap();
    fs::copy(golden("results/eval_results.json"), path("eval_results.json")).unwrap();
    for (command, fate) in COMMANDS {
        let more = match fate {
            Run(more) => more,
            Elsewhere(file, name) => {
                println!("  run by {name} of {file}:  {command}");
                continue;
            }
            Not(reason) => {
                println!("  not run ({reason}):  {command}");
                continue;
            }
        };
        if command.contains("before.json") {
            fs::copy(path("after.json"), path("before.json")).unwrap();
        }
        let start = Instant::now();
        let output = Command::new("sh")
            .args(["-c", &line(command, more)])
            .current_dir(folder.path())
            .env_remove("PJRT_PLUGIN_PATH")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        println!("{:5.1} s  {command}", start.elapsed().as_secs_f64());
        let [out, error] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "{command}: {}\n{out}{error}", output.status);
    }
    // What they are there for.
    for file in [
        "data/mine/tokenizer.json",
        "runs/mine/loss.svg",
        "step.svg",
        "humaneval_step_00002000.jsonl",
        "runs/mine/eval_humaneval/eval_summary.csv",
        "scores.csv",
        "tests/fuzz/corpus/rows/known_0",
    ] {
        assert!(path(file).exists(), "no {file}");
    }
}
