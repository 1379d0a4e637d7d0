//! `dump-hlo`: shows the programs of a configuration, before or after the compiler.
//!
//! | `--stage` | needs | text is |
//! |---|---|---|
//! | `stablehlo` | nothing | what the plugin gets: names of parameters, the author's line after each operation |
//! | `optimized` | the plugin; for a TPU, an H100 or an H200 no such device | what the plugin made of it, from its own dump |
//!
//! `--format json` is the [`Dump`] of the stage: operations, floating point operations, largest values, custom calls,
//! and after the compiler its memory, cost and cycles. `--format cycles` is a table of the cycles of a step for a v6e, by
//! the parts of the step, beside the roofline and a JAX program's step. `--against` shows what changed since an earlier dump:
//! columns of that table, else operation by operation. `--format svg` draws the program as written, folded so that a
//! person can read it ([`picture`]). A compilation takes minutes: `--from` reads a dump that was written before.

mod cycles;
mod dump;
mod groups;
pub mod picture;
mod programs;

pub use dump::Dump;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use engine::Locations;
use program::{arguments, exit_code, output};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use train::atomic::{RealDisk, write_file};
use train::cli::ConfigFlags;
use train::compiler::{Compiler, Place};
use train::config::RunConfig;

/// Look at a program: its text, its figures, what changed, or a picture of it.
#[derive(Parser)]
#[command(name = "dump-hlo", version)]
struct Arguments {
    #[command(flatten)]
    layers: ConfigFlags,
    /// step, loss, prefill, decode, or kernel:NAME for one kernel as the step calls it
    #[arg(long, value_name = "NAME", default_value = "step")]
    program: String,
    /// Where it would run: cpu, cuda, cuda:h100, cuda:h200, tpu:v6e:1x1 or another topology, or the path of a plugin
    #[arg(long, value_name = "PLACE", default_value = "cpu")]
    platform: Place,
    /// Before or after the compiler
    #[arg(long, value_enum, default_value_t = Stage::Stablehlo)]
    stage: Stage,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write to this file instead of the terminal
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Sequences of a micro-batch; rows of a decoding program [default there: 1]
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,
    /// Tokens of a sequence; slots of a decoding program's cache
    #[arg(long, value_name = "N")]
    seq: Option<usize>,
    /// Compare with a dump that --format json wrote
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Look at a dump that --format json wrote instead of compiling
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["preset", "config", "set", "program", "platform", "stage", "micro_batch", "seq"]
    )]
    from: Option<PathBuf>,
}

/// Which text of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// As the plugin gets it.
    Stablehlo,
    /// As the plugin leaves it.
    Optimized,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Svg,
    Json,
    Cycles,
}

/// The whole program: the process's command line, messages and exit code.
pub fn main() -> ExitCode {
    exit_code(run(&arguments()).map(|()| ExitCode::SUCCESS))
}

fn run(arguments: &Arguments) -> Result<()> {
    let earlier = arguments.against.as_deref().map(read).transpose()?;
    let text = match &arguments.from {
        Some(path) => saved(arguments.format, &read(path)?, earlier.as_ref())?,
        None => built(arguments, earlier.as_ref())?,
    };
    match &arguments.out {
        Some(path) => write_file(&RealDisk, path, |file| file.write_all(text.as_bytes()))
            .with_context(|| format!("writing {}", path.display())),
        None => {
            output::write(format_args!("{text}"));
            Ok(())
        }
    }
}

/// What is to be written of a program.
fn built(arguments: &Arguments, earlier: Option<&Dump>) -> Result<String> {
    let run = configuration(arguments)?;
    ensure!(
        arguments.format != Format::Svg || (arguments.stage == Stage::Stablehlo && earlier.is_none()),
        "--format svg draws the program as written: leave out --stage optimized and --against"
    );
    ensure!(
        arguments.format != Format::Cycles || arguments.stage == Stage::Optimized,
        "--format cycles shows what the TPU's compiler estimates: add --platform tpu:v6e:1x1 --stage optimized"
    );
    let target = arguments.platform.target()?;
    let memory = arguments.platform.memory()?;
    let program = programs::build(&arguments.program, &run, arguments.micro_batch, target, memory)?;
    let (lowered, forms) = train::device::lower(&program, target, run.kernels)?;
    let made = match arguments.stage {
        Stage::Stablehlo => None,
        Stage::Optimized => Some(Compiler::open(&arguments.platform)?.compile(&lowered)?),
    };
    match (arguments.format, &made) {
        (Format::Svg, _) => Ok(picture::svg(&program, &arguments.program, &forms)),
        (Format::Text, Some(made)) if earlier.is_none() => Ok(made.optimized.clone()),
        (Format::Text, None) if earlier.is_none() => Ok(lowered.text(Locations::Print)),
        (format, made) => {
            let (name, place) = (&arguments.program, &arguments.platform);
            saved(format, &Dump::new(name, place, &program, &lowered, &forms, made.as_ref()), earlier)
        }
    }
}

/// What is to be written of a dump.
fn saved(format: Format, dump: &Dump, earlier: Option<&Dump>) -> Result<String> {
    match (format, earlier) {
        (Format::Cycles, earlier) => cycles::table(dump, earlier),
        (_, Some(earlier)) => Ok(dump.difference(earlier)),
        (Format::Json, None) => Ok(serde_json::to_string_pretty(dump)? + "\n"),
        (Format::Text | Format::Svg, None) => {
            bail!(
                "--from has figures, no program: say --format cycles or json, or name another dump with --against"
            )
        }
    }
}

fn configuration(arguments: &Arguments) -> Result<RunConfig> {
    let number = |value: Option<usize>| value.map(|value| value.to_string());
    let flags = [
        ("--micro-batch", "batch.micro", number(arguments.micro_batch)),
        ("--seq", "batch.seq", number(arguments.seq)),
    ];
    Ok(arguments.layers.resolve(flags)?.run)
}

fn read(path: &Path) -> Result<Dump> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading {}; it must be a file that --format json wrote", path.display()))?;
    serde_json::from_str(&text).with_context(|| {
        format!("{} is not a dump of this version; write one with --format json --out FILE", path.display())
    })
}
