//! Compiles a training step for one TPU v6e chip that need not be there, and prints memory, seconds of compilation and
//! the compiler's estimate of its cycles: `cargo run -p tests --bin step-v6e -- --dump FOLDER`.

use clap::Parser;
use engine::pjrt::{CompileOptions, Value};
use model::{Config, Preset};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tests::cycles::{Cost, costs};
use tests::{step_v6e, tpu};
use train::config::BatchShape;

#[derive(Parser)]
struct Args {
    /// The model.
    #[arg(long, default_value = "1b")]
    preset: Preset,
    /// Another number of layers than the preset's.
    #[arg(long)]
    layers: Option<usize>,
    /// Micro-batches of a step.
    #[arg(long, default_value_t = 8)]
    accumulation: usize,
    /// Sequences of a micro-batch.
    #[arg(long, default_value_t = 8)]
    micro: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 2048)]
    seq: usize,
    /// An empty folder for the compiler's dumps, from which cycles are read.
    #[arg(long)]
    dump: PathBuf,
    /// On-chip memory that a fusion may use, in KiB; the compiler has a default.
    #[arg(long)]
    vmem_kib: Option<usize>,
    /// How many of the most expensive instructions are listed.
    #[arg(long, default_value_t = 40)]
    top: usize,
}

fn main() {
    let args = Args::parse();
    let mut config = Config::preset(args.preset);
    config.num_hidden_layers = args.layers.unwrap_or(config.num_hidden_layers);
    let shape = BatchShape { micro: args.micro, accumulation: args.accumulation, seq: args.seq };
    let start = Instant::now();
    let program = step_v6e(&config, shape);
    println!("built and lowered in {:.2} s", start.elapsed().as_secs_f64());

    let mut options = CompileOptions::single();
    let mut set = |name: &str, value| options.overrides.insert(name.to_owned(), value);
    set("xla_dump_to", Value::Text(args.dump.to_string_lossy().into_owned()));
    set("xla_dump_hlo_as_text", Value::Bool(true));
    if let Some(kib) = args.vmem_kib {
        set("xla_tpu_scoped_vmem_limit_kib", Value::Text(kib.to_string()));
    }
    let topology = tpu("v6e:1x1");
    let start = Instant::now();
    let executable = program.compile_for(&topology, &options).unwrap_or_else(|error| panic!("{error}"));
    println!("compiled in {:.1} s", start.elapsed().as_secs_f64());
    let memory = executable.memory_use().expect("libtpu says what it takes");
    let gib = |bytes: i64| bytes as f64 / (1u64 << 30) as f64;
    println!(
        "GiB: arguments {:.3}, aliased {:.3}, temporaries {:.3}, peak {:.3}",
        gib(memory.arguments),
        gib(memory.aliased),
        gib(memory.temporaries),
        gib(memory.peak)
    );

    let mut costs = costs(&optimised(&args.dump));
    let mut groups: BTreeMap<(u64, &str), u64> = BTreeMap::new();
    for cost in &costs {
        *groups.entry((cost.trips, &cost.computation)).or_default() += cost.cycles;
    }
    let mega = |cycles: u64| cycles as f64 / 1e6;
    println!("Mcycles: {:.1}", mega(costs.iter().map(|cost| cost.cycles).sum()));
    for ((trips, computation), cycles) in groups {
        println!("{:>10.1}  {trips:>5} trips of {computation}", mega(cycles));
    }
    costs.sort_by_key(|cost| std::cmp::Reverse(cost.cycles));
    for Cost { cycles, trips, text, .. } in costs.iter().take(args.top) {
        println!("{:>10.1}  {trips:>5} x {}", mega(*cycles), text.chars().take(200).collect::<String>());
    }
}

/// The text of the compiler's last stage.
fn optimised(dump: &Path) -> String {
    let names = std::fs::read_dir(dump).expect("the compiler wrote its dumps").flatten();
    let paths: Vec<PathBuf> = names.map(|entry| entry.path()).collect();
    let ends = ["after_codegen.txt", "after_optimizations.txt"];
    let mut found =
        ends.iter().filter_map(|end| paths.iter().find(|path| path.to_string_lossy().ends_with(end)));
    let path = found.next().expect("the optimised program is among the dumps");
    String::from_utf8_lossy(&std::fs::read(path).expect("a dump can be read")).into_owned()
}
