//! What the kernels cost on a TPU v6e, by the static schedule that libtpu makes without one:
//! `cargo run -p kernels --example v6e [-- [--parts] NAME...]`.
//!
//! With `--parts`, in seconds: the bundles (cycles without waiting) of each stretch of the final schedule and how deep in
//! loops it lies; times their trips they are the cost, without the time in which a call's first and last block move. And
//! the vector memory that the compiler gave out, to windows, scratch and spilled registers.
//!
//! Without it, a profile. Every case is compiled in a process of its own, because libtpu reads its flags once. A profile
//! unrolls the grid and simulates every step, which takes a minute or two a case. It does not know values: loop bounds and
//! conditions that depend on data count as the compiler assumes them, so a kernel with documents counts the masks of both
//! kinds on every diagonal tile.

use engine::pjrt::{CompileOptions, Topology};
use engine::plugin::Platform;
use engine::{DType, KernelChoice, Program, Target, Type, grad, passes};
use kernels::{CachedAttention, DiffAttention, HeadNorm, Keys, ROWS, SwiGlu, Tiling, rotate};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// What a case compiles.
#[derive(Clone, Copy)]
enum Case {
    Attention {
        pass: Pass,
        batch: usize,
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
        choice: KernelChoice,
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
            // As many sequences as a micro-batch has: of fewer, the compiler keeps the arrays in the core's memory.
            cases.push((name, Case::Attention { pass, batch: 8, seq, tiling }));
        }
    }
    for (tokens, slots) in [(1, 2048), (2, 2048), (1, 8192), (2, 8192)] {
        for block in [Some(512), Some(1024), Some(2048), None] {
            let how = block.map_or("xla".to_owned(), |block| block.to_string());
            cases.push((format!("cached-{tokens}-{slots}-{how}"), Case::Cached { tokens, slots, block }));
        }
    }
    for rate in [0.0, 0.1] {
        for (choice, name) in [(KernelChoice::Native, "native"), (KernelChoice::Portable, "xla")] {
            cases.push((format!("swiglu-{rate}-{name}"), Case::SwiGlu { rate, choice }));
        }
    }
    cases
}

fn program(case: Case) -> (Program, KernelChoice) {
    let bf16 = |shape: Vec<usize>| Type::new(DType::Bf16, shape);
    match case {
        Case::Attention { pass, batch, seq, tiling } => {
            let kernel = DiffAttention {
                heads: 6,
                groups: 2,
                head_dim: 128,
                value_dim: 256,
                keys: Keys::PerMap,
                norm: HeadNorm::Rms { eps: 1e-5 },
                cap: 0.0,
                rows: ROWS,
                tiling: Some(tiling),
            };
            let program = Program::build("attention", |f| {
                let qkv = f.input("qkv", bf16(vec![batch, seq, 2560]));
                let table = |name: &str| f.input(name, Type::f32([seq, 64]));
                let (cos, sin) = (table("cos"), table("sin"));
                let lambda = f.input("lambda", Type::scalar(DType::F32));
                let starts = f.input("starts", Type::i32([batch, seq]));
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
            (program, KernelChoice::Native)
        }
        Case::Cached { tokens, slots, block } => {
            let (b, d, e) = (8, 128, 256);
            let program = Program::build("cached", |f| {
                let q = f.input("q", bf16(vec![b, tokens, 6, 2, d]));
                let q = rotate(q, ["cos", "sin"].map(|name| f.input(name, Type::f32([b, tokens, d / 2]))));
                let keys = f.input("keys", bf16(vec![b * 4, d, slots]));
                let values = f.input("values", bf16(vec![b * 4, slots, e / 2]));
                let visible = f.input("visible", Type::new(DType::Bool, [b, slots]));
                let slot = f.input("slot", Type::scalar(DType::I32));
                let lambda = f.input("lambda", Type::scalar(DType::F32));
                let kernel = CachedAttention { norm: HeadNorm::Rms { eps: 1e-5 }, cap: 0.0, block };
                f.output("y", f.kernel(kernel, &[q, keys, values, visible, slot, lambda])[0]);
            });
            (program, if block.is_some() { KernelChoice::Native } else { KernelChoice::Portable })
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

fn main() {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let cases = cases();
    if let [flag, name] = &wanted[..]
        && flag == "--compile"
    {
        let (_, case) = cases.iter().find(|(known, _)| known == name).expect("a case of the parent");
        return compile(*case);
    }
    let how = if wanted.iter().any(|word| word == "--parts") { Measure::Parts } else { Measure::Profile };
    wanted.retain(|word| word != "--parts");
    for (name, _) in &cases {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            let folder = std::env::temp_dir().join(format!("pythonlm-v6e-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder).expect("a folder for what the compiler writes");
            measure(name, &folder, how);
            std::fs::remove_dir_all(&folder).expect("what the compiler wrote is removed");
        }
    }
}

fn compile(case: Case) {
    let (program, choice) = program(case);
    let (program, _) = passes::lower(&program, Target::TpuV6e, choice);
    let plugin = Platform::Tpu.load().unwrap_or_else(|error| panic!("{error}"));
    let topology = Topology::new(&plugin, "v6e:1x1", &[]).unwrap_or_else(|error| panic!("{error}"));
    program.compile_for(&topology, &CompileOptions::single()).unwrap_or_else(|error| panic!("{error}"));
}

/// Compiles a case in a child process and prints what it costs.
fn measure(name: &str, folder: &Path, how: Measure) {
    let start = Instant::now();
    let flags = match how {
        Measure::Profile => format!("--xla_jf_dump_static_llo_profile_to={}", folder.display()),
        Measure::Parts => format!("--xla_jf_dump_to={} --xla_jf_dump_llo_text=true", folder.display()),
    };
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--compile", name])
        .env("LIBTPU_INIT_ARGS", flags)
        .output()
        .expect("a child process");
    if !child.status.success() {
        let complaint = String::from_utf8_lossy(&child.stderr);
        let first = complaint.lines().find(|line| line.contains("PJRT")).unwrap_or("no reason given");
        println!("{name}: compiled to its schedule, then refused: {first}");
    }
    match how {
        Measure::Profile => print_profile(name, folder),
        Measure::Parts => print_parts(name, folder),
    }
    println!("{name}: {:.0} s", start.elapsed().as_secs_f64());
}

fn texts(folder: &Path) -> impl Iterator<Item = (String, String)> {
    let entries = std::fs::read_dir(folder).expect("the folder is there").flatten();
    entries.map(|entry| {
        let text = std::fs::read_to_string(entry.path()).expect("a text");
        (entry.file_name().to_string_lossy().into_owned(), text)
    })
}

/// The cycles of a program's operations, largest first.
fn print_profile(name: &str, folder: &Path) {
    let mut operations = Vec::new();
    for (_, text) in texts(folder) {
        let after = |key: &str| text.split(key).nth(1).and_then(|rest| rest.lines().next());
        let operation = after("hlo_op_name: ").unwrap_or("?").trim_matches('"').to_owned();
        let cycles = after("estimated_cycles: ").and_then(|cycles| cycles.trim().parse::<u64>().ok());
        operations.push((cycles.expect("a profile has cycles"), operation));
    }
    operations.sort_unstable_by(|a, b| b.cmp(a));
    let total: u64 = operations.iter().map(|(cycles, _)| cycles).sum();
    let largest: Vec<String> =
        operations.iter().take(4).map(|(cycles, name)| format!("{name} {cycles}")).collect();
    println!("{name:48} {total:>9} cycles ({})", largest.join(", "));
}

/// Ends of the names of files: the final schedule, but not its analysis; and the last listing with allocations.
const SCHEDULE: &str = "-final_bundles.txt";
const ALLOCATED: &str = "-post-delay-converter.txt";

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

/// Stretches of the largest operation's final schedule between the heads of loops and the branches: a line is a bundle,
/// `0x1a LB: >> { .. }`, with a sign for each loop around it and letters where a loop begins or branches meet.
fn print_parts(name: &str, folder: &Path) {
    let (file, schedule) = texts(folder)
        .filter(|(file, _)| file.ends_with(SCHEDULE))
        .max_by_key(|(_, text)| text.len())
        .expect("a schedule");
    // `1795402615886239923-name.1-72-final_bundles.txt`: program, operation, stage.
    let operation = file.rsplitn(3, '-').nth(2).expect("three parts");
    let (_, last) = texts(folder)
        .find(|(file, _)| file.starts_with(&format!("{operation}-")) && file.ends_with(ALLOCATED))
        .expect("what the schedule was made of");
    let memory = last.lines().filter_map(end_in_vector_memory).max().unwrap_or(0);
    println!("{name:48} {:>9} KiB of vector memory", memory >> 10);
    let bundle = |line: &str| {
        let (head, body) = line.split_once('{')?;
        let (address, rest) = head.trim().split_once(char::is_whitespace)?;
        let hex = address.strip_prefix("0x").unwrap_or(address);
        usize::from_str_radix(hex, 16).ok()?;
        let begins = rest.trim_start().starts_with(|c: char| c.is_ascii_uppercase());
        Some((begins, rest.matches('>').count(), body.contains("sbr.rel")))
    };
    let mut parts: Vec<(usize, usize)> = vec![(0, 0)];
    for (begins, depth, branches) in schedule.lines().filter_map(bundle) {
        if begins {
            parts.push((0, 0));
        }
        let (deepest, bundles) = parts.last_mut().expect("there is a first part");
        (*deepest, *bundles) = (depth.max(*deepest), *bundles + 1);
        if branches {
            parts.push((0, 0));
        }
    }
    for (depth, bundles) in parts.into_iter().filter(|(_, bundles)| *bundles > 100) {
        println!("{name:48} {bundles:>9} bundles in {depth} loops");
    }
}
