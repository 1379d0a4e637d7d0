//! What the kernels cost on a TPU v6e, by the static schedule that libtpu makes without one:
//! `cargo run -p kernels --example v6e [-- [--parts] NAME...]`.
//!
//! Of every case: whether the compiler takes it, how much vector memory it gives out, to windows, scratch and spilled
//! registers, and the cycles. With `--parts`, in seconds, these are the bundles (cycles without waiting) of each stretch of
//! the final schedule and how deep in loops it lies; times their trips they are the cost, without the time in which a
//! call's first and last block move.
//!
//! Without it, a profile. It unrolls the grid and simulates every step, which takes a minute or two a case. It does not know
//! values: loop bounds and conditions that depend on data count as the compiler assumes them, so a kernel with documents
//! counts the masks of both kinds on every diagonal tile. XLA's operations for attention have an estimate:
//! `cargo run -p dump-hlo -- --preset 1b --set kernels=portable --program kernel:diff_attention --platform tpu:v6e:1x1
//! --stage optimized --format cycles`.
//!
//! Every compilation has a process of its own, because libtpu reads its flags once. Whether the compiler takes a case is
//! found out without flags: under those of the profile it often refuses, for want of vector memory, what it takes otherwise,
//! but only after everything has been written.

use engine::pjrt::{CompileOptions, Plugin, Topology};
use engine::plugin::Platform;
use engine::{DType, Form, Program, Target, Type, grad, passes};
use kernels::{BLOCK_ROWS, CachedAttention, DiffAttention, HeadNorm, Keys, SwiGlu, Tiling, rotate};
use std::path::Path;
use std::process::{Command, ExitCode, Output};

/// Sequences of a micro-batch: of fewer, the compiler keeps the arrays in the core's memory.
const BATCH: usize = 8;
/// Heads and groups of heads of `1b`.
const HEADS: usize = 6;
const GROUPS: usize = 2;

/// What a case compiles.
#[derive(Clone, Copy)]
enum Case {
    Attention {
        pass: Pass,
        seq: usize,
        tiling: Tiling,
    },
    /// In blocks of so many slots, or as XLA has it.
    Cached {
        tokens: usize,
        slots: usize,
        block: Option<usize>,
    },
    SwiGlu {
        rate: f64,
        choice: Option<Form>,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Forward,
    Backward,
}

/// Names, and the row of the table that a case belongs to.
fn cases() -> Vec<(String, Case)> {
    let mut cases = Vec::new();
    let tilings =
        [(2048, 512, 2, 3), (2048, 512, 1, 3), (2048, 512, 1, 1), (2048, 256, 2, 3), (8192, 512, 1, 1)];
    for (pass, name) in [(Pass::Forward, "forward"), (Pass::Backward, "backward")] {
        for (seq, block, groups, heads) in tilings {
            let tiling = Tiling { block, groups, heads };
            let name = format!("attention-{name}-{seq}-{block}-{groups}-{heads}");
            cases.push((name, Case::Attention { pass, seq, tiling }));
        }
    }
    for (tokens, slots) in [(1, 2048), (2, 2048), (1, 8192), (2, 8192)] {
        for block in [Some(512), Some(1024), Some(2048), None] {
            let how = block.map_or("xla".to_owned(), |block| block.to_string());
            cases.push((format!("cached-{tokens}-{slots}-{how}"), Case::Cached { tokens, slots, block }));
        }
    }
    for rate in [0.0, 0.1] {
        for (choice, name) in [(Some(Form::Native), "native"), (Some(Form::Portable), "xla")] {
            cases.push((format!("swiglu-{rate}-{name}"), Case::SwiGlu { rate, choice }));
        }
    }
    cases
}

fn program(case: Case) -> (Program, Option<Form>) {
    let bf16 = |shape: Vec<usize>| Type::new(DType::Bf16, shape);
    match case {
        Case::Attention { pass, seq, tiling } => {
            let kernel = DiffAttention {
                heads: HEADS,
                groups: GROUPS,
                head_dim: 128,
                value_dim: 256,
                keys: Keys::PerMap,
                norm: HeadNorm::Rms { eps: 1e-5 },
                cap: 0.0,
                rows: BLOCK_ROWS,
                tiling: Some(tiling),
            };
            let program = Program::build("attention", |f| {
                let qkv = f.input("qkv", bf16(vec![BATCH, seq, 2560]));
                let table = |name: &str| f.input(name, Type::f32([seq, 64]));
                let (cos, sin) = (table("cos"), table("sin"));
                let lambda = f.input("lambda", Type::scalar(DType::F32));
                let starts = f.input("starts", Type::i32([BATCH, seq]));
                let results = f.kernel(kernel, &[qkv, cos, sin, lambda, starts]);
                let ct = f.input("ct", results[0].ty());
                if pass == Pass::Forward {
                    results.iter().enumerate().for_each(|(i, x)| f.output(&format!("y{i}"), *x));
                    return;
                }
                let loss = (results[0].convert(DType::F32) * ct.convert(DType::F32)).sum_all();
                let grads = grad(loss, &[qkv, lambda]);
                grads.into_iter().enumerate().for_each(|(i, x)| f.output(&format!("d{i}"), x));
            });
            (program, Some(Form::Native))
        }
        Case::Cached { tokens, slots, block } => {
            let (b, d, e) = (BATCH, 128, 256);
            let program = Program::build("cached", |f| {
                let q = f.input("q", bf16(vec![b, tokens, 6, 2, d]));
                let q = rotate(q, ["cos", "sin"].map(|name| f.input(name, Type::f32([b, tokens, d / 2]))));
                let keys = f.input("keys", bf16(vec![b * 4, d, slots]));
                let values = f.input("values", bf16(vec![b * 4, slots, e / 2]));
                let slot = f.input("slot", Type::i32([b]));
                let lambda = f.input("lambda", Type::scalar(DType::F32));
                let kernel = CachedAttention { norm: HeadNorm::Rms { eps: 1e-5 }, cap: 0.0, block };
                f.output("y", f.kernel(kernel, &[q, keys, values, slot, lambda])[0]);
            });
            (program, if block.is_some() { Some(Form::Native) } else { Some(Form::Portable) })
        }
        Case::SwiGlu { rate, choice } => {
            let (n, m, i) = (16384, 1536, 4096);
            let program = Program::build("swiglu", |f| {
                let mut args = vec![f.input("x", bf16(vec![n, m])), f.input("scale", Type::f32([n]))];
                args.extend(["gate", "up"].map(|name| f.input(name, bf16(vec![m, i]))));
                args.push(f.input("down", bf16(vec![i, m])));
                if rate > 0.0 {
                    let words = [("rows", n), ("columns", i)];
                    args.extend(words.map(|(name, count)| f.input(name, Type::new(DType::U32, [count]))));
                }
                let results = f.kernel(SwiGlu { rate }, &args);
                for (i, x) in results.into_iter().enumerate() {
                    f.output(&format!("y{i}"), x);
                }
            });
            (program, choice)
        }
    }
}

/// What is asked of the compiler.
#[derive(Clone, Copy)]
enum Measure {
    Profile,
    Parts,
}

fn main() -> ExitCode {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let cases = cases();
    if let [flag, name] = &wanted[..]
        && flag == "--compile"
    {
        let (_, case) = cases.iter().find(|(known, _)| known == name).expect("a case of the parent");
        compile(*case);
        return ExitCode::SUCCESS;
    }
    let how = if wanted.iter().any(|word| word == "--parts") { Measure::Parts } else { Measure::Profile };
    wanted.retain(|word| word != "--parts");
    let unknown = wanted.iter().find(|wanted| !cases.iter().any(|(name, _)| name.contains(&wanted[..])));
    if let Some(wanted) = unknown {
        let names: Vec<&str> = cases.iter().map(|(name, _)| &name[..]).collect();
        eprintln!("no case is called like `{wanted}`; there are {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    let mut all = ExitCode::SUCCESS;
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| name.contains(&wanted[..]));
    for (name, _) in cases.iter().filter(|(name, _)| is_wanted(name)) {
        if let Err(complaint) = measure(name, how) {
            println!("{name:32} {complaint}");
            all = ExitCode::FAILURE;
        }
    }
    all
}

fn compile(case: Case) {
    let (program, choice) = program(case);
    let (program, _) = passes::lower(&program, Target::TpuV6e, choice);
    let plugin = Plugin::of(&Platform::Tpu).unwrap_or_else(|error| panic!("{error}"));
    let topology = Topology::new(&plugin, "v6e:1x1", &[]).unwrap_or_else(|error| panic!("{error}"));
    program.compile_for(&topology, &CompileOptions::single()).unwrap_or_else(|error| panic!("{error}"));
}

/// Compiles a case in a child process, with flags for the compiler.
fn child(name: &str, flags: &str) -> Output {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--compile", name])
        .env("LIBTPU_INIT_ARGS", flags)
        .output()
        .expect("a child process")
}

/// What the compiler writes under a flag that names a folder: names and texts.
fn written(name: &str, flags: impl Fn(&Path) -> String) -> Vec<(String, String)> {
    let folder = std::env::temp_dir().join(format!("pythonlm-v6e-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for what the compiler writes");
    child(name, &flags(&folder));
    let entries = std::fs::read_dir(&folder).expect("the folder is there").flatten();
    let texts = entries.map(|entry| {
        let text = std::fs::read_to_string(entry.path()).expect("a text");
        (entry.file_name().to_string_lossy().into_owned(), text)
    });
    let texts = texts.collect();
    std::fs::remove_dir_all(&folder).expect("what the compiler wrote is removed");
    texts
}

/// Prints what a case costs.
///
/// # Errors
/// If the compiler refuses it: what it says.
fn measure(name: &str, how: Measure) -> Result<(), String> {
    let plain = child(name, "");
    if !plain.status.success() {
        let complaint = String::from_utf8_lossy(&plain.stderr);
        let first = complaint.lines().find(|line| line.contains("PJRT")).unwrap_or("no reason given");
        return Err(format!("refused: {first}"));
    }
    let texts =
        written(name, |folder| format!("--xla_jf_dump_to={} --xla_jf_dump_llo_text=true", folder.display()));
    let schedule = Schedule::of(&texts);
    let memory = schedule.memory as f64 / (1 << 20) as f64;
    match how {
        Measure::Profile => {
            let operations = profile(name);
            if !operations.iter().any(|(_, name)| *name == schedule.operation) {
                return Err(format!(
                    "{memory:>6.1} MiB, no profile: the compiler left out {}",
                    schedule.operation
                ));
            }
            let total: u64 = operations.iter().map(|(cycles, _)| cycles).sum();
            let largest: Vec<String> =
                operations.iter().take(4).map(|(cycles, name)| format!("{name} {cycles}")).collect();
            println!("{name:32} {memory:>6.1} MiB {total:>9} cycles ({})", largest.join(", "));
        }
        Measure::Parts => {
            println!("{name:32} {memory:>6.1} MiB");
            for Part { depth, bundles } in schedule.parts {
                println!("    {bundles:>6} bundles in {depth} loops");
            }
        }
    }
    Ok(())
}

/// The cycles of a program's operations, largest first.
fn profile(name: &str) -> Vec<(u64, String)> {
    let texts = written(name, |folder| format!("--xla_jf_dump_static_llo_profile_to={}", folder.display()));
    let mut operations: Vec<(u64, String)> = texts
        .iter()
        .map(|(_, text)| {
            let after = |key: &str| text.split(key).nth(1).and_then(|rest| rest.lines().next());
            let operation = after("hlo_op_name: ").unwrap_or("?").trim_matches('"').to_owned();
            let cycles = after("estimated_cycles: ").and_then(|cycles| cycles.trim().parse().ok());
            (cycles.expect("a profile has cycles"), operation)
        })
        .collect();
    operations.sort_unstable_by(|a, b| b.cmp(a));
    operations
}

/// Stretches of a schedule that are shorter are left out: they are branches and the heads of loops.
const SHORTEST: usize = 100;

/// A stretch of a schedule.
struct Part {
    /// Loops around it, the grid's among them.
    depth: usize,
    bundles: usize,
}

/// The final schedule of a program's kernel, or of its largest operation if it calls none.
struct Schedule {
    operation: String,
    /// Between the heads of loops, their ends and the branches.
    parts: Vec<Part>,
    /// Bytes of vector memory that the compiler gave out, to windows, scratch and spilled registers.
    memory: usize,
}

/// Ends of the names of files: the final schedule, but not its analysis; and the last listing with allocations.
const FINAL: &str = "-final_bundles.txt";
const ALLOCATED: &str = "-post-delay-converter.txt";

impl Schedule {
    fn of(texts: &[(String, String)]) -> Schedule {
        // `1795402615886239923-name.1-72-final_bundles.txt`: program, operation, stage. The compiler calls kernels `name`.
        let (file, schedule) = texts
            .iter()
            .filter(|(file, _)| file.ends_with(FINAL))
            .max_by_key(|(file, text)| (file.contains("-name."), text.len()))
            .expect("a schedule");
        let operation = file.rsplitn(3, '-').nth(2).expect("three parts");
        let (_, last) = texts
            .iter()
            .find(|(file, _)| file.starts_with(&format!("{operation}-")) && file.ends_with(ALLOCATED))
            .expect("what the schedule was made of");
        let memory = last.lines().filter_map(end_in_vector_memory).max().unwrap_or(0);
        let mut parts: Vec<Part> = vec![Part { depth: 0, bundles: 0 }];
        for Bundle { begins, depth, branches } in schedule.lines().filter_map(Bundle::of) {
            if begins || depth != parts.last().expect("a first part").depth {
                parts.push(Part { depth, bundles: 0 });
            }
            parts.last_mut().expect("a first part").bundles += 1;
            if branches {
                parts.push(Part { depth, bundles: 0 });
            }
        }
        parts.retain(|part| part.bundles >= SHORTEST);
        let operation = operation.split_once('-').expect("two parts").1.to_owned();
        Schedule { operation, parts, memory }
    }
}

/// A line of a schedule, `0x1a LB: >> { .. }`: an address, letters where a loop begins or branches meet, a sign for each
/// loop around it.
struct Bundle {
    begins: bool,
    depth: usize,
    branches: bool,
}

impl Bundle {
    fn of(line: &str) -> Option<Bundle> {
        let (head, body) = line.split_once('{')?;
        let (address, rest) = head.trim().split_once(char::is_whitespace)?;
        let hex = address.strip_prefix("0x").unwrap_or(address);
        usize::from_str_radix(hex, 16).ok()?;
        let begins = rest.trim_start().starts_with(|c: char| c.is_ascii_uppercase());
        Some(Bundle { begins, depth: rest.matches('>').count(), branches: body.contains("sbr.rel") })
    }
}

/// Where an allocation ends: `#allocation3 [shape = .., space=vmem, size = 0x4000, offset = 0x8000, ..`.
fn end_in_vector_memory(line: &str) -> Option<usize> {
    let (_, place) = line.trim_start().strip_prefix("#allocation")?.split_once("space=vmem, size = ")?;
    let (size, offset) = place.split_once(", offset = ")?;
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => usize::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    Some(number(size)? + number(offset.split(',').next()?)?)
}
