//! What the kernels cost on a TPU v6e, by the static schedule that libtpu makes without one:
//! `cargo run -p kernels --example v6e [-- NAME...]`.
//!
//! Every case is compiled in a process of its own, because libtpu reads its flags once. A profile unrolls the grid and
//! simulates every step, which takes a minute or two a case. It does not know values: loop bounds and conditions that
//! depend on data count as the compiler assumes them, so a kernel with documents counts the masks of both kinds on every
//! diagonal tile.

use engine::pjrt::{CompileOptions, Topology};
use engine::plugin::Platform;
use engine::{DType, KernelChoice, Program, Target, Type, grad, passes};
use kernels::{DiffAttention, HeadNorm, Keys, ROWS, SwiGlu, Tiling};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// What a case compiles.
#[derive(Clone, Copy)]
enum Case {
    Attention { pass: Pass, batch: usize, seq: usize, tiling: Tiling },
    SwiGlu { rate: f64, choice: KernelChoice },
}

#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Forward,
    Backward,
}

/// Names, and the row of the table that a case belongs to.
fn cases() -> Vec<(String, Case)> {
    let mut cases = Vec::new();
    let tilings = [(512, 2, 3), (512, 1, 3), (512, 1, 1), (256, 2, 3)];
    for (pass, name) in [(Pass::Forward, "forward"), (Pass::Backward, "backward")] {
        for (block, groups, heads) in tilings {
            let tiling = Tiling { block, groups, heads };
            let name = format!("attention-{name}-2048-{block}-{groups}-{heads}");
            // As many sequences as a micro-batch has: of fewer, the compiler keeps the arrays in the core's memory.
            cases.push((name, Case::Attention { pass, batch: 8, seq: 2048, tiling }));
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
        Case::SwiGlu { rate, choice } => {
            let (n, m, i) = (16384, 1536, 4096);
            let program = Program::build("swiglu", |f| {
                let mut args = vec![f.input("x", bf16(vec![n, m])), f.input("scale", Type::f32([n]))];
                args.extend(["gate", "up"].map(|name| f.input(name, bf16(vec![m, i]))));
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

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let cases = cases();
    if let [flag, name] = &wanted[..]
        && flag == "--compile"
    {
        let (_, case) = cases.iter().find(|(known, _)| known == name).expect("a case of the parent");
        return compile(*case);
    }
    for (name, _) in &cases {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            let folder = std::env::temp_dir().join(format!("pythonlm-v6e-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder).expect("a folder for the profile");
            measure(name, &folder);
            std::fs::remove_dir_all(&folder).expect("the profile is removed");
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

/// Compiles a case in a child process and prints the cycles of its operations, largest first.
fn measure(name: &str, folder: &Path) {
    let start = Instant::now();
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--compile", name])
        .env("LIBTPU_INIT_ARGS", format!("--xla_jf_dump_static_llo_profile_to={}", folder.display()))
        .output()
        .expect("a child process");
    if !child.status.success() {
        let complaint = String::from_utf8_lossy(&child.stderr);
        let first = complaint.lines().find(|line| line.contains("PJRT")).unwrap_or("no reason given");
        println!("{name}: compiled to its schedule, then refused: {first}");
    }
    let mut operations = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the profile's folder").flatten() {
        let text = std::fs::read_to_string(entry.path()).expect("a profile");
        let after = |key: &str| text.split(key).nth(1).and_then(|rest| rest.lines().next());
        let operation = after("hlo_op_name: ").unwrap_or("?").trim_matches('"').to_owned();
        let cycles = after("estimated_cycles: ").and_then(|cycles| cycles.trim().parse::<u64>().ok());
        operations.push((cycles.expect("a profile has cycles"), operation));
    }
    operations.sort_unstable_by(|a, b| b.cmp(a));
    let total: u64 = operations.iter().map(|(cycles, _)| cycles).sum();
    let largest: Vec<String> =
        operations.iter().take(4).map(|(cycles, name)| format!("{name} {cycles}")).collect();
    let seconds = start.elapsed().as_secs_f64();
    println!("{name:48} {total:>9} cycles ({}), {seconds:.0} s", largest.join(", "));
}
