//! One run, from top to bottom: configuration, data, plan, compile, load or initialise, loop, last words.

use crate::atomic::{self, RealDisk};
use crate::checkpoint::{
    self, FORMAT, Keep, Loaded, Retention, Saved, Saver, Snapshot, State, Store, Verified, latest_good,
    load_params,
};
use crate::cli::{Cli, Resume};
use crate::config::{Resolved, RunConfig, ScheduleKind};
use crate::data::{
    Batch, Dataset, Loader, Position, PrepareProgress, TOKENIZER_FILE, prepare_standard_library,
};
use crate::device::{CodeGeneration, Device, Preparation};
use crate::forecast::{Forecast, group};
use crate::metrics::{self, Look, Recorder, peak};
use crate::scaling::{Facts, Plan, plan};
use crate::schedule::Phase;
use crate::signals::Stop;
use crate::state::{DeviceState, Metrics, StepInputs};
use crate::step::{step_of, validation_program};
use crate::{config, sample};
use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use engine::pjrt::Arg;
use engine::plugin::cache_folder;
use engine::{Compiled, Host};
use model::config::Bearing;
use model::counts::{ParamCounts, flops_per_token};
use model::{Params, initial_params};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// A signal stopped it; its state is saved.
    Interrupted,
}

/// Steps in a row without an update after which a run gives up.
const LARGEST_BAD_STREAK: u64 = 10;

/// Tokens of the sample at the end.
const SAMPLE_TOKENS: usize = 96;

/// Training tokens that the bigram baseline counts.
const BIGRAM_TOKENS: u64 = 50_000_000;

/// Exit code of a run that a signal stopped and that saved its state: run the same command again (EX_TEMPFAIL).
const INTERRUPTED: u8 = 75;

/// The whole program: the process's command line, messages and exit code.
pub fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what the command line asks for.
///
/// # Errors
/// Anything that a person has to decide about: each message names the thing and the remedy. What was saved stays.
pub fn run(cli: &Cli) -> Result<Outcome> {
    let start = Instant::now();
    let mut resolved = cli.resolve()?;
    if cli.plan {
        return forecast(cli, resolved);
    }
    let stop = Stop::on_signals().context("registering signal handlers")?;
    let folder = data_folder(&resolved.run, &stop)?;
    let run = &resolved.run;
    let dataset = Dataset::open(&folder, run.model.num_tokens, run.data.validation_fraction)
        .with_context(|| format!("opening the data in {}", folder.display()))?;
    let dataset = Arc::new(dataset);
    let rows = run.data.rows(run.batch.seq, run.seed);
    let size = dataset.epoch_size(&rows);
    let parameters = ParamCounts::of(&run.model).total() as u64;
    let mut plan = plan(&mut resolved, Facts { parameters, train_tokens: size.tokens })?;
    let run = resolved.run.clone();

    println!(
        "model    {} parameters, {} layers of width {}",
        group(parameters),
        run.model.num_hidden_layers,
        run.model.hidden_size
    );
    println!(
        "data     {}: {} documents, {} tokens an epoch",
        folder.display(),
        group(size.documents),
        group(size.tokens)
    );
    println!(
        "batch    {} x {} rows of {} = {} tokens a step, {} steps",
        run.batch.accumulation,
        run.batch.micro,
        run.batch.seq,
        group(run.batch.tokens()),
        group(plan.steps)
    );
    for decision in &plan.decisions {
        println!("chosen   {decision}");
    }

    let root = cli.out.join("checkpoints");
    let found = if cli.dry_run { None } else { resume_point(cli, &root)? };
    let from = found.as_ref().map(|checkpoint| checkpoint::load(checkpoint, &run.model)).transpose()?;
    if let Some(from) = &from {
        check_same_data(from, &dataset)?;
    }
    if let Some(steps) = cli.branch_decay {
        branch(&mut plan, &run, from.as_ref(), found.as_ref(), steps, &root)?;
    }
    let position = match &from {
        Some(from) => serde_json::from_value(from.state.data.clone())
            .context("reading the checkpoint's data position")?,
        None => Position::default(),
    };
    // Started before the compiler: the first rows are made meanwhile.
    let loader = Loader::start(dataset.clone(), rows.clone(), position)?;

    let device = Device::open(&run.platform)?;
    let (step, preparation) = device.compile(&step_of(&run), run.kernels, CodeGeneration::Quick)?;
    report_program(&device, &step, &preparation)?;
    if cli.dry_run {
        println!("dry run  nothing was trained or written");
        return Ok(Outcome::Finished);
    }

    let tokens_seen = from.as_ref().map_or(0, |from| from.state.tokens_seen);
    let next = from.as_ref().map_or(0, |from| from.state.step);
    // Before anything is written: weights that do not fit leave no trace.
    let state = start_state(cli, &run, &device, from)?;
    let store = Store::open(Arc::new(RealDisk), &root)?;
    write_config(&cli.out, &resolved)?;
    let mut session = Session {
        tokens_seen,
        next,
        state,
        tokenizer: tokenizer_bytes(&folder)?,
        saver: Saver::new(
            store,
            Retention { keep_last: run.checkpoint.keep_last, keep_every: run.checkpoint.keep_every },
        ),
        validation: Validator::new(&run, &dataset)?,
        run,
        plan,
        device,
        step,
        dataset,
        loader,
        stop,
        skipped: 0,
        streak: 0,
    };
    ensure!(
        session.next <= session.plan.steps,
        "the checkpoint is at step {}, the run ends at step {}; give more --steps, or another --out",
        session.next,
        session.plan.steps
    );
    println!("ready    in {:.1} s", start.elapsed().as_secs_f64());
    let mut recorder = Recorder::open(&cli.out, session.next, session.plan.steps, Look::of_stdout())
        .with_context(|| format!("opening the records of {}", cli.out.display()))?;
    let first_loss = session.validate(&mut recorder)?;
    let outcome = session.train(&mut recorder)?;
    if outcome == Outcome::Interrupted {
        drop(recorder);
        println!("stopped at step {}; the same command goes on from there", session.next);
        return Ok(outcome);
    }
    let last_loss = session.validate(&mut recorder)?;
    let plot = recorder.finish()?;
    session.last_words(cli, first_loss, last_loss, &plot)?;
    Ok(outcome)
}

/// What the run would take, on one screen. There is nothing to save: a signal ends it at once, in the compiler too.
fn forecast(cli: &Cli, mut resolved: Resolved) -> Result<Outcome> {
    let run = &resolved.run;
    let train_tokens = match cli.tokens {
        Some(tokens) => tokens,
        None => {
            let folder = data_folder(run, &Stop::manual())?;
            let dataset = Dataset::open(&folder, run.model.num_tokens, run.data.validation_fraction)
                .with_context(|| format!("opening the data in {}; or give --tokens", folder.display()))?;
            dataset.epoch_size(&run.data.rows(run.batch.seq, run.seed)).tokens
        }
    };
    let parameters = ParamCounts::of(&run.model).total() as u64;
    let plan = plan(&mut resolved, Facts { parameters, train_tokens })?;
    let forecast = Forecast::of(&resolved.run, plan.steps, train_tokens)?;
    match cli.json {
        true => println!("{}", serde_json::to_string_pretty(&forecast)?),
        false => print!("{forecast}"),
    }
    Ok(Outcome::Finished)
}

/// Everything that the loop needs.
struct Session {
    run: RunConfig,
    plan: Plan,
    device: Device,
    step: Compiled,
    state: DeviceState,
    dataset: Arc<Dataset>,
    loader: Loader,
    saver: Saver,
    validation: Validator,
    tokenizer: Option<Arc<[u8]>>,
    stop: Stop,
    /// The step that comes next.
    next: u64,
    tokens_seen: u64,
    skipped: u64,
    /// Steps in a row without an update.
    streak: u64,
}

/// A step whose metrics are still to be read.
struct InFlight {
    metrics: Metrics,
    learning_rate: f64,
    /// Steps done, this one included.
    done: u64,
    position: Position,
}

impl Session {
    /// The loop. The host is one step ahead of the metrics that it reads, so that the device never waits for it.
    fn train(&mut self, recorder: &mut Recorder) -> Result<Outcome> {
        let peak = peak::peak_flops(self.device.kind(), self.run.model.dtype);
        let flops = flops_per_token(&self.run.model, self.run.batch.seq);
        let mut clock = Clock::start(self.next);
        let mut saved_at = Instant::now();
        let mut in_flight: Option<InFlight> = None;
        while self.next < self.plan.steps {
            if self.stop.requested() {
                clock.pause();
                self.read(in_flight.take(), recorder, &mut clock, flops, peak)?;
                self.save(Keep::Rolling, recorder)?;
                self.report(recorder, |saver| saver.finish())?;
                return Ok(Outcome::Interrupted);
            }
            let batch = self.loader.next_batch(self.run.batch.accumulation, self.run.batch.micro)?;
            let launched = self.launch(&batch)?;
            let ended = batch.position_after.epoch > batch.position.epoch;
            self.read(in_flight.replace(launched), recorder, &mut clock, flops, peak)?;
            self.report(recorder, |saver| saver.poll())?;

            let checkpoint = &self.run.checkpoint;
            let minutes = checkpoint
                .every_minutes
                .is_some_and(|minutes| saved_at.elapsed() > Duration::from_secs_f64(60.0 * minutes));
            let last = self.next == self.plan.steps;
            if ended || last || minutes || self.next.is_multiple_of(checkpoint.every) {
                clock.pause();
                self.read(in_flight.take(), recorder, &mut clock, flops, peak)?;
                let keep =
                    if ended { Keep::EpochEnd(batch.position_after.epoch as u32) } else { Keep::Rolling };
                self.save(keep, recorder)?;
                saved_at = Instant::now();
                clock.pause();
            }
            if self.next.is_multiple_of(self.run.validation.every) && !last {
                clock.pause();
                self.read(in_flight.take(), recorder, &mut clock, flops, peak)?;
                self.validate(recorder)?;
                clock.pause();
            }
        }
        self.report(recorder, |saver| saver.finish())?;
        Ok(Outcome::Finished)
    }

    fn launch(&mut self, batch: &Batch) -> Result<InFlight> {
        let learning_rate = self.plan.schedule.learning_rate(self.next);
        let inputs =
            StepInputs { learning_rate, largest_norm: f32::MAX, step: self.next, seed: self.run.seed };
        let metrics = self.state.step(&self.device, &self.step, batch, inputs)?;
        self.next += 1;
        self.tokens_seen += self.run.batch.tokens();
        Ok(InFlight { metrics, learning_rate, done: self.next, position: batch.position })
    }

    /// Reads a step's metrics, watches for steps without an update, and records every `log.every`-th step.
    fn read(
        &mut self,
        step: Option<InFlight>,
        recorder: &mut Recorder,
        clock: &mut Clock,
        flops: f64,
        peak: Option<f64>,
    ) -> Result<()> {
        let Some(InFlight { metrics, learning_rate, done, position }) = step else { return Ok(()) };
        let [loss, main_loss, mtp_loss, gradient_norm, applied, _] = metrics.read()?;
        if applied == 0.0 {
            self.skipped += 1;
            self.streak += 1;
            recorder.say(&format!(
                "step {done} left the weights as they were: loss {loss}, gradient norm {gradient_norm}; its rows: epoch {}, window {}, block {}, row {}",
                position.epoch, position.window, position.block, position.row
            ));
            ensure!(
                self.streak < LARGEST_BAD_STREAK,
                "{LARGEST_BAD_STREAK} steps in a row had no finite gradient; the last checkpoint is untouched: lower optimizer.learning_rate and run again"
            );
        } else {
            self.streak = 0;
        }
        if done.is_multiple_of(self.run.log.every) || done == self.plan.steps {
            let tokens_per_second = clock.steps_per_second(done) * self.run.batch.tokens() as f64;
            let left = (self.plan.steps - done) as f64 * self.run.batch.tokens() as f64;
            recorder.train(metrics::Train {
                step: done,
                loss,
                main_loss,
                mtp_loss: (self.run.model.mtp_num_tokens > 0).then_some(mtp_loss),
                learning_rate,
                gradient_norm,
                tokens_seen: self.tokens_seen - (self.next - done) * self.run.batch.tokens(),
                tokens_per_second,
                mfu: peak::mfu(tokens_per_second, flops, peak, 1),
                skipped: self.skipped,
                eta_seconds: left / tokens_per_second,
            })?;
        }
        Ok(())
    }

    /// Stages the state in main memory and starts writing it.
    fn save(&mut self, keep: Keep, recorder: &Recorder) -> Result<()> {
        let (params, optimizer) = self.state.to_host()?;
        let state = State {
            format: FORMAT,
            step: self.next,
            tokens_seen: self.tokens_seen,
            seed: self.run.seed,
            phase: self.plan.schedule.phase(self.next),
            keep,
            data: serde_json::to_value(self.loader.position())?,
            hashes: hashes(&self.dataset),
            written_by: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let snapshot = Snapshot {
            params,
            optimizer,
            state,
            config: self.run.model.clone(),
            tokenizer: self.tokenizer.clone(),
        };
        self.report(recorder, |saver| saver.save(snapshot))
    }

    /// Says what became of a checkpoint. A failed one stops the run: training on without checkpoints loses more.
    fn report(
        &mut self,
        recorder: &Recorder,
        ask: impl FnOnce(&mut Saver) -> Result<Option<Saved>, checkpoint::CheckpointError>,
    ) -> Result<()> {
        if let Some(saved) = ask(&mut self.saver)? {
            let mib = saved.bytes as f64 / 1048576.0;
            recorder.say(&format!(
                "checkpoint {} ({mib:.0} MiB in {:.1} s)",
                saved.path.display(),
                saved.took.as_secs_f64()
            ));
        }
        Ok(())
    }

    /// Loss of the held-out rows, recorded.
    fn validate(&mut self, recorder: &mut Recorder) -> Result<Option<f64>> {
        let Some((loss, mtp_loss)) = self.validation.losses(&self.device, &self.state)? else {
            return Ok(None);
        };
        recorder.validation(metrics::Validation { step: self.next, loss, mtp_loss })?;
        Ok(Some(loss))
    }

    /// The last screen: what was reached, where it is, and what to type next.
    fn last_words(&self, cli: &Cli, first: Option<f64>, last: Option<f64>, plot: &Path) -> Result<()> {
        println!();
        if let (Some(first), Some(last)) = (first, last) {
            println!(
                "validation loss  {last:.4} nats a token, {:.1} % of the {first:.4} it began with",
                100.0 * last / first
            );
            let bigram = self.dataset.bigram(&self.validation.batches, BIGRAM_TOKENS)?;
            println!(
                "a bigram model   {:.4} on the same tokens, from {} training tokens",
                bigram.loss,
                group(bigram.training_tokens)
            );
        }
        println!("plot             {}", plot.display());
        println!("checkpoints      {}", cli.out.join("checkpoints").display());
        if let Some(tokenizer) = self.dataset.tokenizer() {
            let text = sample::sample(
                &self.device,
                &self.run.model,
                self.run.kernels,
                self.state.weights(),
                tokenizer,
                SAMPLE_TOKENS,
                self.run.seed,
            )?;
            println!("sample\n{}", text.lines().map(|line| format!("    {line}\n")).collect::<String>());
        }
        println!(
            "next: train longer with `cargo run -p train -- --out {} --steps {}`",
            cli.out.display(),
            2 * self.plan.steps
        );
        Ok(())
    }
}

/// Steps a second since the last record, pauses left out.
struct Clock {
    since: Instant,
    step: u64,
    /// Pauses begin here; the next record counts from the first step behind it.
    paused: bool,
    last: f64,
}

impl Clock {
    fn start(step: u64) -> Clock {
        Clock { since: Instant::now(), step, paused: false, last: 0.0 }
    }

    /// What happens until the next step is done does not count as training: a save, a validation, or reading a step's
    /// metrics with no other step in flight, which on devices that compute while launching takes no time at all.
    fn pause(&mut self) {
        self.paused = true;
    }

    fn steps_per_second(&mut self, done: u64) -> f64 {
        if done > self.step && !(self.paused && self.last > 0.0) {
            self.last = (done - self.step) as f64 / self.since.elapsed().as_secs_f64();
        }
        *self = Clock { since: Instant::now(), step: done, paused: false, last: self.last };
        self.last
    }
}

/// Held-out rows and the program that measures them; compiled at first use.
struct Validator {
    run: RunConfig,
    batches: Vec<Batch>,
    program: Option<Compiled>,
}

impl Validator {
    fn new(run: &RunConfig, dataset: &Arc<Dataset>) -> Result<Validator> {
        let batches = match dataset.has_validation() && run.validation.batches > 0 {
            true => {
                let rows = run.data.rows(run.batch.seq, run.seed);
                dataset.validation(&rows, 1, run.batch.micro, run.validation.batches as usize)?
            }
            false => Vec::new(),
        };
        Ok(Validator { run: run.clone(), batches, program: None })
    }

    /// Mean losses of the next token and of the one after it, nats; none without held-out rows.
    fn losses(&mut self, device: &Device, state: &DeviceState) -> Result<Option<(f64, Option<f64>)>> {
        if self.batches.is_empty() {
            return Ok(None);
        }
        if self.program.is_none() {
            self.program = Some(
                device
                    .compile(
                        &validation_program(&self.run.model, self.run.batch),
                        self.run.kernels,
                        CodeGeneration::Quick,
                    )?
                    .0,
            );
        }
        let program = self.program.as_ref().expect("compiled above");
        let mut sums = [0.0; 4];
        for batch in &self.batches {
            let shape = [batch.shape.micro, batch.shape.seq];
            let rows =
                [device.put(&Host::new(shape, &batch.ids))?, device.put(&Host::new(shape, &batch.segments))?];
            let results = program.run(state.weights().iter().chain(&rows).map(Arg::Keep))?;
            for (sum, value) in sums.iter_mut().zip(results[0].to_host()?.to_f64()) {
                *sum += value;
            }
        }
        let mtp = (self.run.model.mtp_num_tokens > 0).then_some(sums[2] / sums[3]);
        Ok(Some((sums[0] / sums[1], mtp)))
    }
}

/// The folder of the data: the given one, or the Python standard library, prepared once.
fn data_folder(run: &RunConfig, stop: &Stop) -> Result<PathBuf> {
    if let Some(path) = &run.data.path {
        return Ok(path.clone());
    }
    let mut announced = false;
    let (folder, _) = prepare_standard_library("python3", &cache_folder()?.join("data"), &mut |progress| {
        if let PrepareProgress::Found { files, bytes } = progress
            && !std::mem::replace(&mut announced, true)
        {
            println!(
                "data     preparing the Python standard library once: {files} files, {} MB",
                bytes / 1_000_000
            );
        }
        if stop.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .context("preparing the default data; or give a prepared folder with --data")?;
    Ok(folder)
}

/// The checkpoint that the run goes on from, said aloud.
fn resume_point(cli: &Cli, root: &Path) -> Result<Option<Verified>> {
    let found = match &cli.resume {
        Resume::Never => {
            let latest = latest_good(root)?;
            if let Some(good) = latest.good {
                bail!(
                    "{} already holds checkpoint {}; give another --out, or resume with --resume auto",
                    root.display(),
                    good.path().display()
                );
            }
            None
        }
        Resume::From(path) => Some(checkpoint::verify(path)?),
        Resume::Auto => {
            let latest = latest_good(root)?;
            for (path, reason) in &latest.refused {
                println!("passing over {}: {reason}", path.display());
            }
            latest.good
        }
    };
    if let Some(found) = &found {
        ensure!(
            cli.init.is_none(),
            "--init starts a new run, but {} is there to go on from; give another --out",
            found.path().display()
        );
        println!("resume   {}", found.path().display());
    }
    Ok(found)
}

/// Turns the plan into a decay that starts at the checkpoint.
fn branch(
    plan: &mut Plan,
    run: &RunConfig,
    from: Option<&Loaded>,
    found: Option<&Verified>,
    steps: u64,
    root: &Path,
) -> Result<()> {
    let (Some(from), Some(found)) = (from, found) else {
        bail!("--branch-decay needs a checkpoint of the stable phase: --resume PATH");
    };
    ensure!(
        from.state.phase == Phase::Stable,
        "checkpoint {} is in the {:?} phase; a branch starts in the stable phase",
        found.path().display(),
        from.state.phase
    );
    ensure!(
        !found.path().starts_with(root),
        "a branch must not write into the trunk's folder {}; give it its own --out",
        root.display()
    );
    ensure!(steps > 0, "--branch-decay wants at least one step");
    if run.schedule.kind == ScheduleKind::Constant {
        println!("branch   the constant schedule ends here");
    }
    plan.schedule = plan.schedule.branch(from.state.step, steps, run.schedule.decay, run.schedule.floor);
    plan.steps = from.state.step + steps;
    println!("branch   decay over {steps} steps from step {}; the trunk is untouched", from.state.step);
    Ok(())
}

/// What a run depends on beside its configuration.
fn hashes(dataset: &Dataset) -> BTreeMap<String, String> {
    dataset
        .tokenizer()
        .map(|tokenizer| ("tokenizer".to_owned(), tokenizer.hash().to_string()))
        .into_iter()
        .collect()
}

fn check_same_data(from: &Loaded, dataset: &Dataset) -> Result<()> {
    for (name, found) in hashes(dataset) {
        if let Some(wanted) = from.state.hashes.get(&name) {
            ensure!(
                *wanted == found,
                "the checkpoint was trained with another {name} ({wanted}) than the data has ({found}); give the data it was trained on"
            );
        }
    }
    Ok(())
}

fn start_state(cli: &Cli, run: &RunConfig, device: &Device, from: Option<Loaded>) -> Result<DeviceState> {
    if let Some(from) = from {
        return DeviceState::restore(device, &run.model, &from.params, &from.optimizer);
    }
    let weights: Params<Host> = match &cli.init {
        None => initial_params(&run.model, run.seed),
        Some(path) => {
            ensure!(
                path.exists(),
                "--init {}: there is no such checkpoint folder or safetensors file",
                path.display()
            );
            let (config, params) = load_params(path)?;
            let differences = run.model.differences(&config);
            if let Some(difference) =
                differences.iter().find(|difference| difference.bearing == Bearing::Weights)
            {
                bail!("--init {}: the weights belong to another model: {difference}", path.display());
            }
            println!("weights  from {}", path.display());
            params
        }
    };
    DeviceState::new(device, &run.model, &weights)
}

fn tokenizer_bytes(folder: &Path) -> Result<Option<Arc<[u8]>>> {
    let path = folder.join(TOKENIZER_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn write_config(out: &Path, resolved: &Resolved) -> Result<()> {
    let path = out.join(config::FILE);
    atomic::write_file(&RealDisk, &path, |file| file.write_all(resolved.to_toml().as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

fn report_program(device: &Device, step: &Compiled, preparation: &Preparation) -> Result<()> {
    for (kernel, form) in &preparation.forms {
        println!("kernel   {kernel}: {form:?}");
    }
    let memory = step.loaded().memory_use()?;
    let seconds = preparation.took.as_secs_f64();
    println!(
        "device   {}; step program {:?} in the cache, ready in {seconds:.1} s, {:.0} MiB",
        device.kind(),
        preparation.lookup,
        memory.total() as f64 / 1048576.0
    );
    Ok(())
}
