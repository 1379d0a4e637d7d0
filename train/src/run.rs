//! One run, from top to bottom: configuration, data, plan, compile, load or initialise, loop, last words.

use crate::atomic::{self, RealDisk};
use crate::checkpoint::{
    self, CheckpointError, Copied, Copying, FORMAT, Keep, Loaded, Mirror, Retention, Saved, Saver, Snapshot,
    State, Store, Verified, checkpoint_bytes, most_at_once,
};
use crate::cli::Cli;
use crate::clock::Clock;
use crate::config::{Resolved, RunConfig, ScheduleKind};
use crate::data::{
    Batch, DataError, Dataset, EpochSize, Loader, Position, PrepareProgress, TOKENIZER_FILE,
    prepare_standard_library,
};
use crate::device::{CodeGeneration, Device, Preparation};
use crate::forecast::{Forecast, group};
use crate::metrics::{self, BadStep, Held, Look, LossSums, Recorder, peak};
use crate::replay::{self, replay};
use crate::resume::{CHECKPOINTS, check_same_data, going_on, hashes, longer, resume_point, start_state};
use crate::scaling::{Facts, Plan, plan};
use crate::schedule::Phase;
use crate::signals::{INTERRUPTED, Stop};
use crate::state::{DeviceState, Metrics, StepInputs, optimizer_tensors};
use crate::step::step_of;
use crate::validation::Validator;
use crate::watch::Watch;
use crate::{config, sample, show};
use anyhow::{Context, Result, bail, ensure};
use engine::Compiled;
use engine::plugin::cache_folder;
use model::counts::{ParamCounts, flops_per_token};
use model::params::specs;
use program::{arguments, esay, exit_code, output, say, with_large_pages};
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

/// Tokens of the sample at the end.
const SAMPLE_TOKENS: usize = 96;

/// Training tokens that the bigram baseline counts.
const BIGRAM_TOKENS: u64 = 50_000_000;

/// Time between two words about a copy that is waited for.
const COPY_NEWS: Duration = Duration::from_secs(10);

/// How long a wait for data goes on until the run looks whether it was asked to stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// The whole program: the process's command line, messages and exit code.
pub fn main() -> ExitCode {
    with_large_pages();
    exit_code(match run(&arguments()) {
        Ok(Outcome::Finished) => Ok(ExitCode::SUCCESS),
        Ok(Outcome::Interrupted) => Ok(ExitCode::from(INTERRUPTED)),
        // While data are prepared: what is done of it is kept.
        Err(error) if matches!(error.downcast_ref(), Some(DataError::Interrupted)) => {
            esay!("stopped: {error:#}");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error),
    })
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
    // Until the first step nothing is unsaved, and most of the time goes into calls that cannot be asked to stop.
    let nothing_to_save = stop.nothing_to_save();
    if stop.requested() {
        return Ok(Outcome::Interrupted);
    }
    let root = cli.out.join(CHECKPOINTS);
    let writes = !cli.dry_run && cli.replay.is_none() && cli.show_rows.is_none();
    let folders = writes.then(|| own_folders(cli, run, &root)).transpose()?;
    let dataset = Dataset::open(&folder, run.model.num_tokens, run.data.validation_fraction)
        .with_context(|| format!("opening the data in {}", folder.display()))?;
    let dataset = Arc::new(dataset);
    let rows = run.data.rows(run.batch.seq, run.seed);
    let size = dataset.epoch_size(&rows);
    let parameters = ParamCounts::of(&run.model).total() as u64;
    let mut plan = plan(&mut resolved, Facts { parameters, epoch: size })?;
    let mut run = resolved.run.clone();

    say!(
        "model    {} parameters, {} layers of width {}",
        group(parameters),
        run.model.num_hidden_layers,
        run.model.hidden_size
    );
    say!("data     {}: {size}", folder.display());
    for note in dataset.tokenizer().iter().flat_map(|tokenizer| tokenizer.notes()) {
        say!("data     tokenizer.json: {note}");
    }
    say!(
        "batch    {} x {} rows of {} = {} tokens a step, {} steps",
        run.batch.accumulation,
        run.batch.micro,
        run.batch.seq,
        group(run.batch.tokens()),
        group(plan.steps)
    );
    for decision in &plan.decisions {
        say!("chosen   {decision}");
    }

    let bad = cli.replay.map(|step| replay::recorded(&cli.out, step)).transpose()?;
    let found = match &bad {
        Some(bad) => checkpoint::latest_before(&root, bad.step)?.good,
        None if cli.dry_run => None,
        None => resume_point(cli, &root, run.checkpoint.mirror.as_deref())?,
    };
    if let Some(count) = cli.show_rows {
        let (position, step) = match &found {
            Some(from) => (data_position(from.state())?, from.state().step),
            None => Default::default(),
        };
        show::rows_of_next_step(&run, &dataset, position, step, count as usize)?;
        return Ok(Outcome::Finished);
    }
    let from = found.as_ref().map(|checkpoint| checkpoint::load(checkpoint, &run.model)).transpose()?;
    if let Some(from) = &from {
        check_same_data(from, &dataset)?;
    }
    if let Some(steps) = cli.branch_decay {
        branch(&mut plan, &run, from.as_ref(), found.as_ref(), steps, &root)?;
    }
    let position = match &from {
        Some(from) => data_position(&from.state)?,
        None => Position::default(),
    };
    // Started before the compiler: the first rows are made meanwhile.
    let loader = Loader::start(dataset.clone(), rows.clone(), position)?;

    let device = Device::open(&run.platform, run.kernels)?;
    let kept = resolved.settle_remat(device.memory()?);
    run.remat = Some(kept.remat);
    say!("remat    {:?} {kept}", kept.remat);
    let (step, preparation) = device.compile(&step_of(&run, kept.remat), CodeGeneration::Quick)?;
    report_program(&device, &step, &preparation)?;
    if cli.dry_run {
        say!("dry run  nothing was trained or written");
        return Ok(Outcome::Finished);
    }

    let at = match &from {
        Some(from) => from.state.clone(),
        None => beginning(&run, &plan),
    };
    ensure!(
        at.step <= plan.steps,
        "the checkpoint is at step {}, the run ends at step {}; give more --steps, or start anew in another --out with --resume never",
        at.step,
        plan.steps
    );
    // Before anything is written: weights that do not fit leave no trace.
    let (state, trained) = start_state(cli, &run, &device, from)?;
    // What checkpoints say; longer rows of an earlier training count on.
    run.model.original_max_position_embeddings = trained.max(Some(run.batch.seq));
    if let Some(bad) = bad {
        replay(
            &bad,
            at,
            replay::Machine {
                run: &run,
                plan: &plan,
                device: &device,
                step: &step,
                dataset: &dataset,
                loader,
                state,
            },
        )?;
        return Ok(Outcome::Finished);
    }
    let validation = Validator::new(&run, &dataset)?;
    drop(nothing_to_save);
    let tokenizer = tokenizer_bytes(&folder)?;
    let (store, mirror) = folders.expect("taken above, for a run that writes");
    let length = tokenizer.as_ref().map_or(0, |bytes| bytes.len() as u64);
    let optimizer = optimizer_tensors(&specs(&run.model), run.optimizer.first_moment.dtype());
    let most = most_at_once(&run, plan.steps, size.rows);
    store.check_room_for_all(most, checkpoint_bytes(&run.model, &optimizer, length))?;
    fetch_records(mirror.as_ref(), found.as_ref(), &cli.out);
    write_config(&cli.out, &resolved)?;
    let mut session = Session {
        out: cli.out.clone(),
        init: cli.init.clone(),
        tokens_seen: at.tokens_seen,
        next: at.step,
        watch: at.watch,
        losses: LossSums::default(),
        held: Held::default(),
        state,
        tokenizer,
        saver: Saver::new(store, Retention::of(&run.checkpoint), mirror),
        validation,
        run,
        plan,
        device,
        step,
        dataset,
        read_to: position,
        loader,
        stop,
        loaded: at.step,
        unsaved: false,
        failed_at: 0,
        rollbacks: 0,
    };
    say!("ready    in {:.1} s", start.elapsed().as_secs_f64());
    say!(
        "losses   in nats a token, of the next token, and beside it of the second head, which predicts the one after"
    );
    say!(
        "         training: mean since the line before; validation: of held-out rows, as the weights are then"
    );
    let mut recorder = Recorder::open(&cli.out, session.next, session.plan.steps, Look::of_stdout())
        .with_context(|| format!("opening the records of {}", cli.out.display()))?;
    if let Some(found) = found.as_ref().filter(|found| found.path().starts_with(&root)) {
        session.saver.catch_up(found.path(), found.state().keep);
    }
    let first_loss = session.validate(&mut recorder)?;
    let trained = session.train(&mut recorder);
    let last_loss = match trained {
        Ok(Outcome::Finished) => session.validate(&mut recorder),
        _ => Ok(None),
    };
    let copied = session.finish_copies(&recorder);
    let mut outcome = trained?;
    let last_loss = last_loss?;
    copied?;
    if session.stop.requested() {
        outcome = Outcome::Interrupted;
    }
    if outcome == Outcome::Interrupted {
        drop(recorder);
        say!("stopped at step {}; {}", session.next, going_on(cli));
        // Its thread may hang in a slow read for as long as it likes; it only reads.
        std::mem::forget(session.loader);
        return Ok(outcome);
    }
    let _nothing_to_save = session.stop.nothing_to_save();
    let plot = recorder.finish();
    session.last_words(cli, found.as_ref(), first_loss, last_loss, &plot)?;
    Ok(outcome)
}

/// What the run would take, on one screen. There is nothing to save: a signal ends it at once, in the compiler too.
fn forecast(cli: &Cli, mut resolved: Resolved) -> Result<Outcome> {
    let run = &resolved.run;
    let epoch = match cli.tokens {
        Some(tokens) => EpochSize::of_tokens(tokens, run.batch.seq),
        None => {
            let folder = data_folder(run, &Stop::manual())?;
            let dataset = Dataset::open(&folder, run.model.num_tokens, run.data.validation_fraction)
                .with_context(|| format!("opening the data in {}; or give --tokens", folder.display()))?;
            dataset.epoch_size(&run.data.rows(run.batch.seq, run.seed))
        }
    };
    let parameters = ParamCounts::of(&run.model).total() as u64;
    let plan = plan(&mut resolved, Facts { parameters, epoch })?;
    let forecast = Forecast::of(&resolved.run, plan.steps, epoch)?;
    match cli.json {
        true => say!("{}", serde_json::to_string_pretty(&forecast)?),
        false => {
            output::write(format_args!("{forecast}"));
        }
    }
    Ok(Outcome::Finished)
}

/// Everything that the loop needs.
struct Session {
    out: PathBuf,
    init: Option<PathBuf>,
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
    watch: Watch,
    /// Of the steps since the last record.
    losses: LossSums,
    held: Held,
    /// The position behind the newest step whose metrics were read.
    read_to: Position,
    /// The step of the checkpoint that the state came from.
    loaded: u64,
    /// Whether steps were launched since the state was loaded or saved.
    unsaved: bool,
    /// The last bad step that the run went back for.
    failed_at: u64,
    /// How often it went back since it last got further than that.
    rollbacks: u64,
}

/// A step whose metrics are still to be read.
struct InFlight {
    metrics: Metrics,
    learning_rate: f64,
    largest_norm: f32,
    /// Steps done, this one included.
    done: u64,
    /// Tokens seen with it.
    tokens_seen: u64,
    held: Held,
    position: Position,
    position_after: Position,
}

impl Session {
    /// Trains. Whatever stops it, what was trained is saved first.
    fn train(&mut self, recorder: &mut Recorder) -> Result<Outcome> {
        let mut in_flight = None;
        let mut clock = Clock::start(self.next, Instant::now());
        let error = match self.steps(recorder, &mut clock, &mut in_flight) {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        if !self.unsaved {
            return Err(error);
        }
        let saved = self
            .read(in_flight.take(), recorder, &mut clock)
            .and_then(|()| self.save(Keep::Rolling, recorder))
            .and_then(|()| self.report(recorder, |saver| saver.finish()));
        Err(match saved {
            Ok(()) => error.context(format!("the run stopped behind step {}, which is saved", self.next)),
            Err(failed) => error.context(format!(
                "the run stopped behind step {}, and saving what it trained failed ({failed:#})",
                self.next
            )),
        })
    }

    /// The loop. The host is one step ahead of the metrics that it reads, so that the device never waits for it.
    fn steps(
        &mut self,
        recorder: &mut Recorder,
        clock: &mut Clock,
        in_flight: &mut Option<InFlight>,
    ) -> Result<Outcome> {
        let mut saved_at = Instant::now();
        while self.next < self.plan.steps {
            // Before anything else, and without the step in flight: where a run goes back to must not depend on when it
            // was stopped.
            if self.watch.bad_in_a_row >= self.run.guard.bad_steps {
                *in_flight = None;
                self.go_back(recorder)?;
                *clock = Clock::start(self.next, Instant::now());
            }
            let ready = self.loader.ready(self.run.batch.rows(), PATIENCE);
            self.loader.notes().for_each(|said| recorder.say(&said));
            if self.stop.requested() || ready.is_err() {
                self.read(in_flight.take(), recorder, clock)?;
                if self.unsaved {
                    self.save(Keep::Rolling, recorder)?;
                }
                self.report(recorder, |saver| saver.finish())?;
                ready.with_context(|| {
                    format!("making the rows of step {}; all before is saved", self.next + 1)
                })?;
                return Ok(Outcome::Interrupted);
            }
            if !ready? {
                continue;
            }
            let batch = self.loader.next_batch(self.run.batch.accumulation, self.run.batch.micro)?;
            let launched = self.launch(&batch)?;
            let ended = batch.position_after.epoch > batch.position.epoch;
            self.read(in_flight.replace(launched), recorder, clock)?;
            self.report(recorder, |saver| saver.poll())?;

            let checkpoint = &self.run.checkpoint;
            let minutes = checkpoint
                .every_minutes
                .is_some_and(|minutes| saved_at.elapsed() > Duration::from_secs_f64(60.0 * minutes));
            let last = self.next == self.plan.steps;
            if ended || last || minutes || self.next.is_multiple_of(checkpoint.every) {
                self.read(in_flight.take(), recorder, clock)?;
                clock.pause(Instant::now());
                let keep =
                    if ended { Keep::EpochEnd(batch.position_after.epoch as u32) } else { Keep::Rolling };
                self.save(keep, recorder)?;
                saved_at = Instant::now();
                clock.go_on(saved_at);
            }
            if self.next.is_multiple_of(self.run.validation.every) && !last {
                self.read(in_flight.take(), recorder, clock)?;
                clock.pause(Instant::now());
                self.validate(recorder)?;
                clock.go_on(Instant::now());
            }
        }
        self.report(recorder, |saver| saver.finish())?;
        Ok(Outcome::Finished)
    }

    fn launch(&mut self, batch: &Batch) -> Result<InFlight> {
        let learning_rate = self.plan.schedule.learning_rate(self.next);
        let largest_norm = self.watch.largest_norm(self.next + 1, self.run.guard.spike_factor);
        let inputs = StepInputs { learning_rate, largest_norm, step: self.next, seed: self.run.seed };
        let metrics = self.state.step(&self.device, &self.step, batch, inputs)?;
        self.next += 1;
        let held = Held::of(batch);
        self.tokens_seen += held.targets;
        self.unsaved = true;
        Ok(InFlight {
            metrics,
            learning_rate,
            largest_norm,
            done: self.next,
            tokens_seen: self.tokens_seen,
            held,
            position: batch.position,
            position_after: batch.position_after,
        })
    }

    /// Reads a step's metrics, watches for steps without an update, and records every `log.every`-th step.
    fn read(&mut self, step: Option<InFlight>, recorder: &mut Recorder, clock: &mut Clock) -> Result<()> {
        let Some(step) = step else { return Ok(()) };
        let InFlight {
            metrics,
            learning_rate,
            largest_norm,
            done,
            tokens_seen,
            held,
            position,
            position_after,
        } = step;
        let [loss, next, second, gradient_norm, applied, targets, second_targets] = metrics.read()?;
        clock.read(done, self.next, Instant::now());
        self.read_to = position_after;
        self.held.add(held);
        if applied == 0.0 {
            self.watch.thrown_away();
            let largest_norm = f64::from(largest_norm);
            recorder.bad_step(&BadStep { step: done, loss, gradient_norm, largest_norm, position });
            recorder.say(&format!(
                "step {done} left the weights as they were: loss {loss}, gradient norm {gradient_norm}, allowed {largest_norm:.3e}; its rows: epoch {}, window {}, block {}, row {}; look at them with --replay {done}",
                position.epoch, position.window, position.block, position.row
            ));
        } else {
            self.watch.applied(done, gradient_norm);
            self.losses.add([next, targets], [second, second_targets]);
            if done > self.failed_at {
                self.rollbacks = 0;
            }
        }
        if done.is_multiple_of(self.run.log.every) || done == self.plan.steps {
            let (loss, mtp_loss) = self.losses.take();
            let steps_per_second = clock.steps_per_second();
            let held = std::mem::take(&mut self.held);
            let tokens_per_second = steps_per_second * held.targets_a_step();
            let flops = flops_per_token(&self.run.model, self.run.batch.seq);
            let peak = peak::peak_flops(self.device.kind(), self.run.model.dtype);
            recorder.train(metrics::Train {
                step: done,
                loss,
                mtp_loss: (self.run.model.mtp_num_tokens > 0).then_some(mtp_loss),
                learning_rate,
                gradient_norm,
                tokens_seen,
                tokens_per_second,
                padding: held.share_of_padding(),
                mfu: peak::mfu(tokens_per_second, flops, peak, 1),
                skipped: self.watch.skipped,
                eta_seconds: (self.plan.steps - done) as f64 / steps_per_second,
            });
        }
        Ok(())
    }

    /// Stages the state in main memory and starts writing it.
    fn save(&mut self, keep: Keep, recorder: &Recorder) -> Result<()> {
        // First, so that there is never a second copy in memory.
        self.report(recorder, |saver| saver.finish())?;
        let (params, optimizer) = self.state.to_host()?;
        let state = State {
            step: self.next,
            tokens_seen: self.tokens_seen,
            init: self.init.clone(),
            phase: self.plan.schedule.phase(self.next),
            keep,
            watch: self.watch.clone(),
            data: serde_json::to_value(self.loader.position())?,
            hashes: hashes(&self.dataset),
            ..beginning(&self.run, &self.plan)
        };
        let snapshot = Snapshot {
            params,
            optimizer,
            state,
            config: self.run.model.clone(),
            tokenizer: self.tokenizer.clone(),
        };
        self.unsaved = false;
        self.report(recorder, |saver| saver.save(snapshot))
    }

    /// Goes back to the newest sound checkpoint, and on from there behind the rows of the bad steps.
    fn go_back(&mut self, recorder: &mut Recorder) -> Result<()> {
        self.report(recorder, |saver| saver.finish())?;
        let (bad, last) = (self.watch.bad_in_a_row, self.next);
        let advice = "lower optimizer.learning_rate, or look at the rows of a bad step with --replay STEP";
        // A checkpoint behind which no step succeeded may itself be what is wrong.
        let got_on = self.watch.newest_applied().is_some_and(|step| step > self.loaded);
        let before = if got_on { u64::MAX } else { self.loaded };
        let Some(target) = self.saver.store().go_back(before)? else {
            // What it gives up on is not what a next start should find.
            self.unsaved = false;
            bail!(
                "{bad} steps in a row left the weights as they were, and there is no checkpoint to go back to: {advice}"
            );
        };
        let path = target.path().display();
        let given_up = self.rollbacks >= self.run.guard.rollbacks;
        self.unsaved &= !given_up;
        ensure!(
            !given_up,
            "{bad} steps in a row left the weights as they were, and going back {} times did not help; the newest sound checkpoint is {path}: {advice}",
            self.rollbacks
        );
        self.rollbacks += 1;
        let from = checkpoint::load(&target, &self.run.model)?;
        self.state.replace(&self.device, &from.params, &from.optimizer)?;
        self.next = from.state.step;
        self.loaded = from.state.step;
        self.tokens_seen = from.state.tokens_seen;
        let skipped = self.watch.skipped;
        self.watch = from.state.watch;
        self.watch.skipped = skipped;
        self.losses = LossSums::default();
        self.held = Held::default();
        self.failed_at = self.failed_at.max(last);
        let rows = self.run.data.rows(self.run.batch.seq, self.run.seed);
        self.loader = Loader::start(Arc::clone(&self.dataset), rows, self.read_to)?;
        recorder.go_back(self.next);
        recorder.say(&format!(
            "{bad} steps in a row left the weights as they were: back to {path}, and on behind their rows; newer checkpoints are set aside"
        ));
        // At once: a stop before the next checkpoint must not meet the same rows again.
        self.save(from.state.keep, recorder)
    }

    /// Says what became of a checkpoint. A failed one stops the run: training on without checkpoints loses more.
    fn report(
        &mut self,
        recorder: &Recorder,
        ask: impl FnOnce(&mut Saver) -> Result<Option<Saved>, CheckpointError>,
    ) -> Result<()> {
        // What failed to be written is what the next attempt has to save.
        let answer = ask(&mut self.saver).inspect_err(|_| self.unsaved = true)?;
        if let Some(saved) = answer {
            let mib = saved.bytes as f64 / 1048576.0;
            recorder.say(&format!(
                "checkpoint {} ({mib:.0} MiB in {:.1} s)",
                saved.path.display(),
                saved.took.as_secs_f64()
            ));
        }
        self.report_copies(recorder);
        Ok(())
    }

    /// Says what became of copies.
    fn report_copies(&self, recorder: &Recorder) {
        for copied in self.saver.copies() {
            match copied {
                Copied::Whole { path, bytes, took } => recorder.say(&format!(
                    "copied     {} ({:.0} MiB in {:.1} s)",
                    path.display(),
                    bytes as f64 / 1048576.0,
                    took.as_secs_f64()
                )),
                // With a clock of its own it is what was asked for.
                Copied::LeftOut(_) if self.run.checkpoint.mirror_every_minutes.is_some() => {}
                Copied::LeftOut(path) => recorder.say(&format!(
                    "not copied {}: the copy before it was still under way when a newer one came",
                    path.display()
                )),
                Copied::Failed { what, reason } => recorder.say(&format!(
                    "NOT COPIED to checkpoint.mirror: {}: {reason}; the next checkpoint or start tries again",
                    what.display()
                )),
            }
        }
    }

    /// Waits for the copies in the mirror, now that all is saved. A signal ends the wait.
    fn finish_copies(&mut self, recorder: &Recorder) -> Result<()> {
        let waiting = self.stop.waiting();
        let mut said: Option<Instant> = None;
        let finished = self.saver.finish_copies(checkpoint::PATIENCE, |progress| {
            if waiting.over() {
                return ControlFlow::Break("a signal ended the wait");
            }
            if said.is_none_or(|said| said.elapsed() > COPY_NEWS) {
                said = Some(Instant::now());
                recorder.say(&format!(
                    "copying    {}, {:.0} %; all is saved in {}; Ctrl-C ends the wait",
                    progress.from.display(),
                    100.0 * progress.done as f64 / progress.total.max(1) as f64,
                    self.out.display()
                ));
            }
            ControlFlow::Continue(())
        });
        self.report_copies(recorder);
        Ok(finished?)
    }

    /// Loss of the held-out rows, recorded.
    fn validate(&mut self, recorder: &mut Recorder) -> Result<Option<f64>> {
        let Some((loss, mtp_loss)) = self.validation.losses(&self.device, &self.state, &self.stop)? else {
            return Ok(None);
        };
        recorder.validation(metrics::Validation { step: self.next, loss, mtp_loss });
        Ok(Some(loss))
    }

    /// The last screen: what was reached, where it is, and what to type next.
    fn last_words(
        &self,
        cli: &Cli,
        from: Option<&Verified>,
        first: Option<f64>,
        last: Option<f64>,
        plot: &Path,
    ) -> Result<()> {
        say!();
        if let (Some(first), Some(last)) = (first, last) {
            say!(
                "validation loss  {last:.4} nats a token, {:.1} % of the {first:.4} it began with",
                100.0 * last / first
            );
            let bigram = self.dataset.bigram(&self.validation.batches, BIGRAM_TOKENS)?;
            say!(
                "a bigram model   {:.4} on the same tokens, from {} training tokens",
                bigram.loss,
                group(bigram.training_tokens)
            );
        }
        say!("plot             {}", plot.display());
        say!("checkpoints      {}", self.saver.store().root().display());
        if let Some(tokenizer) = self.dataset.tokenizer() {
            let text = sample::sample(
                &self.device,
                &self.run.model,
                self.state.weights(),
                tokenizer,
                SAMPLE_TOKENS,
                self.run.seed,
            )?;
            say!("sample\n{}", text.lines().map(|line| format!("    {line}\n")).collect::<String>());
        }
        say!("next: {}", longer(cli, &self.run, &self.plan, from)?);
        Ok(())
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
            say!(
                "data     preparing the Python standard library once: {files} files, {} MB",
                bytes / 1_000_000
            );
        }
        if stop.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .context("preparing the default data; or give a prepared folder with --data")?;
    Ok(folder)
}

/// The folders that the run writes checkpoints to, locked. Whoever is second hears of it before anything takes long.
fn own_folders(cli: &Cli, run: &RunConfig, root: &Path) -> Result<(Store, Option<Mirror>)> {
    let store = Store::open(Arc::new(RealDisk), root)?;
    let Some(path) = &run.checkpoint.mirror else { return Ok((store, None)) };
    let every = run.checkpoint.mirror_every_minutes.map(|minutes| Duration::from_secs_f64(60.0 * minutes));
    let copying =
        Copying { retention: Retention::of(&run.checkpoint), every, records: Some(cli.out.clone()) };
    let mirror = Mirror::open(Arc::new(RealDisk), path, root, copying)?;
    match checkpoint::newest_step(path)? {
        Some(step) => say!("mirror   {}: its newest checkpoint is of step {step}", path.display()),
        None => say!("mirror   {}: no checkpoint is there yet", path.display()),
    }
    Ok((store, Some(mirror)))
}

/// Brings the records of a run that goes on from its mirror. Without them it trains all the same.
fn fetch_records(mirror: Option<&Mirror>, found: Option<&Verified>, out: &Path) {
    let Some((mirror, found)) = mirror.zip(found) else { return };
    if found.path().starts_with(mirror.root())
        && let Err(error) = checkpoint::fetch_records(mirror.root(), &RealDisk, out)
    {
        say!("records  of the steps before are left in {}: {error}", mirror.root().display());
    }
}

/// The position in the data that a checkpoint holds.
fn data_position(state: &State) -> Result<Position> {
    serde_json::from_value(state.data.clone()).context("reading the checkpoint's data position")
}

/// The state of a run before its first step.
fn beginning(run: &RunConfig, plan: &Plan) -> State {
    State {
        format: FORMAT,
        step: 0,
        tokens_seen: 0,
        seed: run.seed,
        init: None,
        phase: plan.schedule.phase(0),
        keep: Keep::Rolling,
        watch: Watch::default(),
        data: serde_json::to_value(Position::default()).expect("a position is a struct of integers"),
        hashes: Default::default(),
        written_by: env!("CARGO_PKG_VERSION").to_owned(),
    }
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
        say!("branch   the constant schedule ends here");
    }
    plan.schedule = plan.schedule.branch(from.state.step, steps, run.schedule.decay, run.schedule.floor);
    plan.steps = from.state.step + steps;
    say!("branch   decay over {steps} steps from step {}; the trunk is untouched", from.state.step);
    Ok(())
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
        say!("kernel   {kernel}: {form:?}");
    }
    let memory = step.loaded().memory_use()?;
    let seconds = preparation.took.as_secs_f64();
    say!(
        "device   {}; step program {:?} in the cache, ready in {seconds:.1} s, {:.0} MiB",
        device.kind(),
        preparation.lookup,
        memory.total() as f64 / 1048576.0
    );
    Ok(())
}
