//! `--plan`: what a run takes, before it runs. Memory is that of the step program, compiled for the device, which need not
//! be there if it is a TPU; speed is a range, each end with its reason.
//!
//! Compiling a large step takes minutes, so what the compiler said is kept beside the executables, by a hash of all that
//! it depends on.

use crate::atomic::{self, RealDisk};
use crate::checkpoint::{checkpoint_bytes, most_at_once};
use crate::compiler::{Compiler, Place};
use crate::config::{BatchShape, RunConfig};
use crate::data::EpochSize;
use crate::metrics::peak::{bandwidth, peak_flops};
use crate::numbers::{group, size};
use crate::scaling::tokens_a_parameter;
use crate::step::{Kept, optimizer_tensors, step_of};
use anyhow::{Result, ensure};
use engine::Form;
use engine::hlo::Hlo;
use engine::pjrt::{Arg, Client, Code, Error, Plugin};
use engine::plugin::{Platform, cache_folder};
use engine::work::Work;
use engine::{DType, Host, Locations, Program, ScanOptions, Target, Type};
use model::counts::{ParamCounts, flops_per_token};
use model::folded::folded_types;
use model::{Remat, specs};
use program::esay;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::time::Instant;

/// What a run takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Parameters by part.
    pub parameters: Parameters,
    /// Floating point operations of a token, forward and backward, recomputation left out (as MFU counts).
    pub flops_per_token: f64,
    /// The platform, as the configuration names it.
    pub platform: String,
    /// The kind that the device calls itself.
    pub device: String,
    /// Bytes of its memory.
    pub device_memory: Option<u64>,
    /// The shape of a step's batch.
    pub batch: BatchShape,
    /// Memory of the step program, which may be more than the device has; none if the compiler refused it for its size.
    pub memory: Option<Memory>,
    /// What the compiler said if it refused it.
    pub refused: Option<String>,
    /// What the backward pass receives, and the memory for it.
    pub kept: Kept,
    /// The search for the largest micro-batch; none if the device's memory is not known.
    pub micro_batch: Option<MicroBatch>,
    /// Tokens a second; none if the compiler refused the step, or nothing is known of the device.
    pub speed: Option<Speed>,
    /// Optimiser steps of the run.
    pub steps: u64,
    /// Tokens of the whole run, repetitions counted, for each parameter.
    pub tokens_per_parameter: f64,
    /// Tokens of one epoch, without padding.
    pub epoch_tokens: u64,
    /// Rows of one epoch.
    pub epoch_rows: u64,
    /// Part of the places in these rows that holds no token.
    pub padding: f64,
    /// What is written.
    pub disk: Disk,
    /// Where each of these figures comes from.
    pub basis: Vec<Basis>,
}

/// Where figures come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Basis {
    /// The figures, by their names in the JSON.
    pub figures: &'static str,
    /// How sure they are.
    pub kind: Certainty,
    /// What they rest on.
    pub because: String,
}

/// How sure a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// By this machine, or by the compiler of the program itself.
    Measured,
    /// Follows from the configuration, the data or measured figures.
    Derived,
    /// A guess, with its reason.
    Assumed,
}

/// Parameters by part, all layers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Parameters {
    pub total: usize,
    pub embedding: usize,
    pub attention: usize,
    pub mlp: usize,
    pub norms_and_lambda: usize,
    pub second_head: usize,
}

/// Bytes on the device while a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All together.
    pub total: u64,
    /// Weights and moments, which live from step to step.
    pub state: u64,
    /// The gradient of all weights, f32: the sums over micro-batches. With a single micro-batch all gradients are assumed to be
    /// there at once.
    pub gradients: u64,
    /// Saved activations, and what single operations need.
    pub activations: u64,
}

/// The largest micro-batch, by doubling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MicroBatch {
    /// The largest one that fits; none if none of those tried does.
    pub largest: Option<usize>,
    /// Every one that was compiled: rows, and bytes if it fits.
    pub tried: Vec<(usize, Option<u64>)>,
}

/// Tokens a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// A cautious estimate.
    pub low: f64,
    /// Why it should not be less.
    pub low_because: String,
    /// The most to hope for.
    pub high: f64,
    /// Why it cannot be more.
    pub high_because: String,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Bytes of one checkpoint.
    pub checkpoint: u64,
    /// Checkpoints that are there at once: kept ones, and the one being written.
    pub checkpoints: u64,
    /// Bytes that must be free, a fifth of a checkpoint more than these take.
    pub needed: u64,
}

/// What the compiler said of one step program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Verdict {
    Fits(Figures),
    TooLarge(String),
}

/// A step program that compiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Figures {
    /// Bytes in all.
    total: u64,
    /// Bytes that results take over from arguments: the state.
    state: u64,
    /// Bytes of arguments and results.
    moved: u64,
    /// The compiler's estimate; hand-written kernels have none and are not in it.
    cycles: Option<u64>,
    /// Seconds at the device's peak and bandwidth, if they are known.
    roofline: Option<f64>,
}

/// Floating point operations of a v6e TensorCore in a cycle, a multiply-add counts 2: 918 TFLOP/s at 1.75 GHz.
const V6E_FLOPS_A_CYCLE: f64 = 524_288.0;
/// The part of the peak that hand-written attention kernels reach at worst: 128-wide heads half feed the MXU, and it stalls.
const KERNEL_SHARE: f64 = 1.0 / 3.0;
/// The part of a GPU's peak that public trainers of this size report at worst.
const GPU_SHARE: f64 = 0.2;
/// Parts of this machine's own speed at large matrix products: runs of `tiny` on two cores reached 0.68.
const CPU_SHARES: (f64, f64) = (0.35, 0.9);
/// The search for a micro-batch ends at this many times the configured one.
const LARGEST_FACTOR: usize = 1 << 12;

impl Forecast {
    /// Compiles the step of a run, and larger ones, and puts the figures together.
    ///
    /// # Errors
    /// If the plugin cannot be had, there is no such device, or the program does not compile for another reason than
    /// its size.
    pub fn of(run: &RunConfig, steps: u64, epoch: EpochSize) -> Result<Forecast> {
        let place: Place = run.platform.parse()?;
        let compiler = Compiler::open(&place)?;
        let device_memory = compiler.device_memory()?;
        let verdict = verdict(&compiler, run, device_memory)?;
        let kept = run.kept(device_memory);
        let counts = ParamCounts::of(&run.model);
        let parameters = Parameters {
            total: counts.total(),
            embedding: counts.embedding,
            attention: counts.attention,
            mlp: counts.mlp,
            norms_and_lambda: counts.lambda + counts.block_norms + counts.final_norm,
            second_head: counts.mtp,
        };
        let (memory, refused, speed) = match &verdict {
            Verdict::Fits(figures) => {
                let folded = folded_types(&run.model).into_flat();
                let gradients: u64 = folded.iter().map(|(_, ty)| 4 * ty.elements() as u64).sum();
                let memory = Memory {
                    total: figures.total,
                    state: figures.state,
                    gradients,
                    activations: figures.total.saturating_sub(figures.state + gradients),
                };
                (Some(memory), None, speed(&compiler, run, kept.remat, figures, epoch.padding())?)
            }
            Verdict::TooLarge(reason) => (None, Some(reason.clone()), None),
        };
        Ok(Forecast {
            parameters,
            flops_per_token: flops_per_token(&run.model, run.batch.seq),
            platform: run.platform.clone(),
            device: compiler.device_kind()?,
            device_memory,
            batch: run.batch,
            memory,
            refused,
            kept,
            micro_batch: match device_memory {
                Some(limit) => Some(largest_micro_batch(&compiler, run, &verdict, limit)?),
                None => None,
            },
            speed,
            steps,
            tokens_per_parameter: epoch.tokens_in(steps * run.batch.rows() as u64) / counts.total() as f64,
            epoch_tokens: epoch.tokens,
            epoch_rows: epoch.rows,
            padding: epoch.padding(),
            disk: disk(run, steps, epoch.rows),
            basis: basis(&compiler, &place, run, epoch)?,
        })
    }

    /// Hours for a number of rows: at best, at worst.
    fn hours(&self, rows: u64) -> Option<(f64, f64)> {
        let tokens = rows as f64 * self.batch.seq as f64 * (1.0 - self.padding);
        let hours = |speed: f64| tokens / speed / 3600.0;
        self.speed.as_ref().map(|speed| (hours(speed.high), hours(speed.low)))
    }
}

/// Doubles the micro-batch until it does not fit, or halves it until it does; a step keeps its tokens where they divide. Memory is nearly
/// linear in the rows: the line through the last two that were compiled says which doublings surely fit and need no compiler;
/// the largest of those is compiled.
fn largest_micro_batch(
    compiler: &Compiler,
    run: &RunConfig,
    asked: &Verdict,
    limit: u64,
) -> Result<MicroBatch> {
    let asked_micro = run.batch.micro;
    let mut tried = vec![(asked_micro, bytes(asked, limit))];
    let mut attempt = |micro: usize| -> Result<Option<u64>> {
        let accumulation = (run.batch.accumulation * asked_micro / micro).max(1);
        let batch = BatchShape { micro, accumulation, seq: run.batch.seq };
        let found = bytes(&verdict(compiler, &RunConfig { batch, ..run.clone() }, Some(limit))?, limit);
        tried.push((micro, found));
        Ok(found)
    };
    // Batches that keep different things for the backward pass do not lie on one line.
    let kept = |micro: usize| {
        RunConfig { batch: BatchShape { micro, ..run.batch }, ..run.clone() }.kept(Some(limit)).remat
    };
    let mut largest = None;
    match bytes(asked, limit) {
        None => {
            let mut micro = asked_micro / 2;
            while micro > 0 && largest.is_none() {
                largest = attempt(micro)?.map(|_| micro);
                micro /= 2;
            }
        }
        Some(first) => {
            let mut too_large = None;
            // The largest that fits so far, in rows and bytes.
            let mut last = (asked_micro, first);
            let mut next = 2 * asked_micro;
            while too_large != Some(next) && next <= LARGEST_FACTOR * asked_micro {
                match attempt(next)? {
                    None => {
                        too_large = Some(next);
                        // The line, if there was one, promised too much.
                        next = if next / 2 > last.0 { next / 2 } else { next };
                    }
                    Some(bytes) => {
                        let before = std::mem::replace(&mut last, (next, bytes));
                        if too_large == Some(2 * next) {
                            break;
                        }
                        let slope = (last.1.saturating_sub(before.1)).max(1) / (last.0 - before.0) as u64;
                        let line = |rows: usize| last.1 + slope * (rows - last.0) as u64;
                        next *= 2;
                        if [before.0, next].map(kept) != [kept(last.0); 2] {
                            continue;
                        }
                        if line(next) > limit + limit / 20 {
                            break;
                        }
                        let same = |rows: usize| kept(rows) == kept(last.0);
                        while same(2 * next)
                            && line(2 * next) <= limit
                            && 2 * next <= LARGEST_FACTOR * asked_micro
                        {
                            next *= 2;
                        }
                    }
                }
            }
            largest = Some(last.0);
        }
    }
    tried.sort_unstable();
    Ok(MicroBatch { largest, tried })
}

/// Bytes of a step that fits.
fn bytes(verdict: &Verdict, limit: u64) -> Option<u64> {
    match verdict {
        Verdict::Fits(figures) if figures.total <= limit => Some(figures.total),
        Verdict::Fits(_) | Verdict::TooLarge(_) => None,
    }
}

/// Compiles the step of a run, or reads what an earlier plan kept.
fn verdict(compiler: &Compiler, run: &RunConfig, memory: Option<u64>) -> Result<Verdict> {
    let (program, _) = compiler.lower(&step_of(run, run.kept(memory).remat), run.kernels)?;
    let mut hash = blake3::Hasher::new();
    let text = program.text(Locations::Omit);
    for part in [text.as_bytes(), &compiler.options()?.to_bytes()?, compiler.build()?.as_bytes()] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let kind = compiler.device_kind()?;
    hash.update(kind.as_bytes());
    let folder = cache_folder()?.join("plans");
    let path = folder.join(format!("{}.json", hash.finalize()));
    if let Some(known) = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        return Ok(known);
    }
    esay!(
        "compiling the step with {} x {} rows of {}; it takes minutes for a large model",
        run.batch.accumulation,
        run.batch.micro,
        run.batch.seq
    );
    let verdict = match compiler.compile(&program) {
        Ok(made) => {
            let memory = made.memory;
            let hlo = Hlo::parse(&made.optimized);
            let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
            Verdict::Fits(Figures {
                total: bytes(memory.total().max(memory.peak)),
                state: bytes(memory.aliased),
                moved: bytes(memory.arguments + memory.outputs),
                cycles: Some(hlo.cycles()).filter(|&cycles| cycles > 0),
                roofline: peak_flops(&kind, run.model.dtype)
                    .zip(bandwidth(&kind))
                    .map(|(flops, bytes)| hlo.roofline(flops, bytes)),
            })
        }
        Err(error) => {
            let refusal = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
            match refusal {
                Some(cause) if cause.code() == Some(Code::ResourceExhausted) => {
                    let text = cause.to_string();
                    Verdict::TooLarge(text.lines().next().unwrap_or_default().chars().take(200).collect())
                }
                _ => return Err(error),
            }
        }
    };
    let keep = || -> Result<()> {
        fs::create_dir_all(&folder)?;
        let bytes = serde_json::to_vec(&verdict)?;
        atomic::write_file(&RealDisk, &path, |file| file.write_all(&bytes))?;
        Ok(())
    };
    if let Err(error) = keep() {
        esay!("not kept, so the next plan compiles again: {error:#}");
    }
    Ok(verdict)
}

/// Tokens a second of a step, as a range; none for a device of which no speed is known.
fn speed(
    compiler: &Compiler,
    run: &RunConfig,
    remat: Remat,
    figures: &Figures,
    padding: f64,
) -> Result<Option<Speed>> {
    let step = step_of(run, remat);
    let (_, forms) = compiler.lower(&step, run.kernels)?;
    let work = Work::of(&step);
    let flops = work.flops();
    // Padding is computed like a token, but does not count as one.
    let tokens = run.batch.tokens() as f64 * (1.0 - padding);
    let kind = compiler.device_kind()?;
    let peaks = peak_flops(&kind, run.model.dtype).zip(bandwidth(&kind));
    Ok(match (compiler.target(), peaks, figures.cycles) {
        (Target::TpuV6e, Some((peak, bandwidth)), Some(cycles)) => {
            let native: Vec<&str> = forms
                .iter()
                .filter(|(_, form)| *form == Form::Native)
                .map(|(name, _)| name.as_str())
                .collect();
            let in_kernels: f64 = (work.sites.iter())
                .filter(|site| site.path.split(" > ").any(|part| native.contains(&part)))
                .map(|site| site.runs * site.flops)
                .sum();
            let estimated = cycles as f64 * V6E_FLOPS_A_CYCLE / peak;
            let kernels = in_kernels / (peak * KERNEL_SHARE);
            let (arithmetic, traffic) = (flops / peak, figures.moved as f64 / bandwidth);
            let bound = if arithmetic > traffic {
                "arithmetic at the peak"
            } else {
                "the state's way through memory"
            };
            Some(Speed {
                low: tokens / (estimated + kernels),
                low_because: format!(
                    "the compiler's estimate of {:.0} Mcycles ({estimated:.2} s; it overstates elementwise work 2-4 times), and {:.1} TFLOP of hand-written kernels at a third of the peak (assumed; {kernels:.2} s)",
                    cycles as f64 / 1e6,
                    in_kernels / 1e12
                ),
                high: tokens / arithmetic.max(traffic),
                high_because: format!(
                    "roofline: {:.0} TFLOP a step with recomputation, {bound} ({:.2} s)",
                    flops / 1e12,
                    arithmetic.max(traffic)
                ),
            })
        }
        (Target::Cpu, _, _) => {
            let rate = cpu_flops(run.model.dtype.dtype())?;
            let (low, high) = CPU_SHARES;
            let at = |share: f64| tokens * rate * share / flops;
            Some(Speed {
                low: at(low),
                low_because: format!(
                    "{:.0} % of it (assumed): small operations, other work on the machine",
                    100.0 * low
                ),
                high: at(high),
                high_because: format!(
                    "{:.1} GFLOP a step with recomputation, at {:.0} % (assumed) of the {:.0} GFLOP/s that this machine just reached in a large {} matrix product",
                    flops / 1e9,
                    100.0 * high,
                    rate / 1e9,
                    run.model.dtype.dtype()
                ),
            })
        }
        (_, Some((peak, bandwidth)), _) => figures.roofline.map(|seconds| Speed {
            low: peak * GPU_SHARE * (1.0 - padding) / flops_per_token(&run.model, run.batch.seq),
            low_because: format!(
                "{:.0} % (assumed: public trainers report 20-50 % of GPUs) of the {:.1} TFLOP/s peak",
                100.0 * GPU_SHARE,
                peak / 1e12
            ),
            high: tokens / seconds,
            high_because: format!(
                "roofline of the step as compiled, {seconds:.2} s: of each instruction its matmuls at the peak or its bytes at {:.2} TB/s",
                bandwidth / 1e12
            ),
        }),
        _ => None,
    })
}

/// Where the figures of a plan come from.
fn basis(compiler: &Compiler, place: &Place, run: &RunConfig, epoch: EpochSize) -> Result<Vec<Basis>> {
    use Certainty::{Assumed, Derived, Measured};
    let of = |figures, kind, because: &str| Basis { figures, kind, because: because.to_owned() };
    let mut all =
        vec![of("parameters, flops_per_token", Derived, "counted from the model's list of parameters")];
    if run.platform == "tpu" && matches!(place, Place::Topology(_)) {
        all.push(of("platform, device", Assumed, "no TPU is here: one v6e chip, tpu:v6e:1x1"));
    }
    all.push(match epoch.documents {
        Some(_) => of(
            "steps, tokens_per_parameter, epoch_tokens, epoch_rows, padding",
            Derived,
            "from the shards' footers",
        ),
        None => of(
            "steps, tokens_per_parameter, epoch_tokens, epoch_rows, padding",
            Assumed,
            "--tokens in rows without padding",
        ),
    });
    all.push(match (place, compiler.target()) {
        (Place::Here(_), Target::Cpu) => of("device_memory", Measured, "all memory of this machine"),
        (Place::Here(_), _) => of("device_memory", Measured, "the plugin's figure for this device"),
        (Place::Topology(_), _) => {
            of("device_memory", Derived, "the plugin's figure for a device of this kind")
        }
        (Place::Gpu(_), _) => {
            of("device_memory", Derived, "the 3/4 of such a device's that the plugin takes")
        }
    });
    all.push(of(
        "memory.total, memory.state, micro_batch.tried",
        Measured,
        "the compiler's, of the step as compiled",
    ));
    all.push(match run.batch.accumulation {
        1 => of(
            "memory.gradients, memory.activations",
            Assumed,
            "all gradients at once, in f32; the rest is activations",
        ),
        _ => of(
            "memory.gradients, memory.activations",
            Derived,
            "f32 sums of all micro-batches; the rest is activations",
        ),
    });
    all.push(of("kept", Derived, "from the shapes that the blocks keep, and the device's memory"));
    all.push(match (compiler.target(), peak_flops(&compiler.device_kind()?, run.model.dtype)) {
        (Target::TpuV6e, Some(_)) => of(
            "speed",
            Assumed,
            "the compiler's cycles and the data sheet's peak and bandwidth; kernels at a third of the peak",
        ),
        (Target::Cpu, _) => {
            of("speed", Assumed, "a share of this machine's measured rate, between those of runs of tiny")
        }
        (_, Some(_)) => of(
            "speed",
            Assumed,
            "the data sheet's peak and bandwidth; at least the share that public trainers report",
        ),
        (_, None) => of("speed", Assumed, "nothing: of this device and type no peak is known"),
    });
    all.push(of("disk", Derived, "the tensors of a checkpoint and the keys of checkpoint.*"));
    Ok(all)
}

/// Floating point operations a second of this machine in matrix products of a type: the best of a few.
fn cpu_flops(dtype: DType) -> Result<f64> {
    const SIDE: usize = 1024;
    const TURNS: usize = 4;
    let program = Program::build("product", |g| {
        let x = g.input("x", Type::f32([SIDE, SIDE]));
        let x = x.convert(dtype);
        let (y, _) = g.scan(ScanOptions::over(TURNS), &[x], &[], |g, carry, _| {
            let x = g.capture(x);
            (vec![carry[0].matmul(x)], vec![])
        });
        g.output("y", y[0].convert(DType::F32));
    });
    let client = Client::new(&Plugin::of(&Platform::Cpu)?, &[])?;
    let compiled = program.compile(&client)?;
    let x = client.to_device(&Host::zeros(Type::f32([SIDE, SIDE])), &client.devices()[0])?;
    let mut best: f64 = 0.0;
    for _ in 0..4 {
        let start = Instant::now();
        let results = compiled.run([Arg::Keep(&x)])?;
        results[0].to_host()?;
        let flops = (2 * SIDE * SIDE * SIDE * TURNS) as f64;
        best = best.max(flops / start.elapsed().as_secs_f64());
    }
    ensure!(best > 0.0, "measuring this machine's speed: no product was done");
    Ok(best)
}

fn disk(run: &RunConfig, steps: u64, epoch_rows: u64) -> Disk {
    let checkpoint = checkpoint_bytes(
        &run.model,
        &optimizer_tensors(&specs(&run.model), run.optimizer.first_moment.dtype()),
        0,
    );
    let checkpoints = most_at_once(run, steps, epoch_rows);
    Disk { checkpoint, checkpoints, needed: checkpoints * checkpoint + checkpoint / 5 }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parameters { total, embedding, attention, mlp, norms_and_lambda, second_head } = self.parameters;
        let millions = |count: usize| format!("{:.2} M", count as f64 / 1e6);
        writeln!(
            f,
            "model        {} parameters: embedding {}, attention {}, MLP {}, second head {}, norms and lambda {}",
            group(total as u64),
            millions(embedding),
            millions(attention),
            millions(mlp),
            millions(second_head),
            millions(norms_and_lambda)
        )?;
        writeln!(
            f,
            "work         {:.1} MFLOP a token, forward and backward, in rows of {}",
            self.flops_per_token / 1e6,
            self.batch.seq
        )?;
        let BatchShape { micro, accumulation, seq } = self.batch;
        let tokens = self.batch.tokens();
        let rows = self.steps * self.batch.rows() as u64;
        let epochs = rows as f64 / self.epoch_rows.max(1) as f64;
        writeln!(
            f,
            "steps        {} of {accumulation} x {micro} rows of {seq} = {} places: {epochs:.2} epochs of {} rows, {} tokens, {:.1} % padding",
            group(self.steps),
            group(tokens),
            group(self.epoch_rows),
            group(self.epoch_tokens),
            100.0 * self.padding
        )?;
        let seen = self.tokens_per_parameter * total as f64;
        writeln!(f, "tokens       {}", tokens_a_parameter(seen, total as u64))?;
        let of = self.device_memory.map_or(String::new(), |bytes| format!(" with {}", size(bytes)));
        writeln!(f, "device       {} ({}){of}", self.device, self.platform)?;
        match (&self.memory, &self.refused) {
            (Some(Memory { total, state, gradients, activations }), _) => {
                let verdict = match self.device_memory {
                    Some(limit) if *total > limit => "; it does not fit",
                    Some(_) => "; it fits",
                    None => "",
                };
                writeln!(
                    f,
                    "memory       {}: weights and moments {}, gradients {}, activations and workspace {}{verdict}",
                    size(*total),
                    size(*state),
                    size(*gradients),
                    size(*activations)
                )?;
            }
            (None, reason) => {
                writeln!(f, "memory       it does not fit: {}", reason.as_deref().unwrap_or_default())?;
            }
        }
        writeln!(f, "remat        {:?} {}", self.kept.remat, self.kept)?;
        if let Some(MicroBatch { largest, tried }) = &self.micro_batch {
            let tried: Vec<String> = (tried.iter())
                .map(|(rows, bytes)| format!("{rows}: {}", bytes.map_or("too large".to_owned(), size)))
                .collect();
            let largest = largest
                .map_or("none fits".to_owned(), |rows| format!("{rows} rows is the largest that fits"));
            writeln!(f, "micro-batch  {largest}, by doubling and compiling ({})", tried.join(", "))?;
        }
        if let Some(Speed { low, low_because, high, high_because }) = &self.speed {
            writeln!(f, "speed        {} to {} tokens a second", group(*low as u64), group(*high as u64))?;
            writeln!(f, "  at most    {high_because}")?;
            writeln!(f, "  at least   {low_because}")?;
        }
        if let (Some(epoch), Some(run)) = (self.hours(self.epoch_rows), self.hours(rows)) {
            let range = |(from, to): (f64, f64)| format!("{} to {}", hours(from), hours(to));
            writeln!(f, "time         {} an epoch, {} the run", range(epoch), range(run))?;
        }
        let Disk { checkpoint, checkpoints, needed } = self.disk;
        writeln!(
            f,
            "disk         {} for {checkpoints} checkpoints of {}, the one being written among them",
            size(needed),
            size(checkpoint)
        )?;
        for kind in [Certainty::Measured, Certainty::Derived, Certainty::Assumed] {
            let figures = self.basis.iter().filter(|basis| basis.kind == kind);
            let lines: Vec<String> =
                figures.map(|basis| format!("{} ({})", basis.figures, basis.because)).collect();
            if !lines.is_empty() {
                let name = format!("{kind:?}").to_lowercase();
                writeln!(f, "{name:<12} {}", lines.join("; "))?;
            }
        }
        Ok(())
    }
}

fn hours(hours: f64) -> String {
    match hours {
        hours if hours < 0.1 => format!("{:.1} min", 60.0 * hours),
        hours if hours < 100.0 => format!("{hours:.1} h"),
        hours => format!("{hours:.0} h"),
    }
}
