//! The loop of a run: rows in, steps on their way, metrics out one step late, checkpoints and evaluations in between. What
//! it counts is [`Progress`], and that is in every checkpoint.

use crate::checkpoint::{
    self, CheckpointError, Copied, Era, Evaluations, FORMAT, Keep, Progress, Reader, Saved, Saver, Snapshot,
    State,
};
use crate::clock::Clock;
use crate::config::RunConfig;
use crate::data::{Batch, Dataset, Loader, Position};
use crate::identity::Identity;
use crate::machine::{Content, Machine};
use crate::metrics::{self, BadStep, Held, LossSums, Recorder, peak};
use crate::scaling::Plan;
use crate::scene::{Outcome, World};
use crate::state::StepInputs;
use anyhow::{Context, Result, bail};
use model::counts::flops_per_token;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// In a wait for data, the run looks this often whether it was asked to stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// Time between two lines about a copy that the end of the run waits for.
const COPY_NEWS: Duration = Duration::from_secs(10);

/// A run between its first step and its last.
pub(crate) struct Session<'w, M: Machine> {
    pub(crate) world: &'w World,
    /// What it is, and under which settings.
    pub(crate) about: About,
    pub(crate) machine: M,
    pub(crate) loader: Loader,
    pub(crate) saver: Saver,
    /// Counts every step that was launched.
    pub(crate) progress: Progress,
    /// The newest step whose metrics were read, and the position after it.
    pub(crate) read: (u64, Position),
    /// The losses of the steps since the last record.
    pub(crate) losses: LossSums,
    pub(crate) held: Held,
    /// Whether steps were launched since the state was loaded or saved.
    pub(crate) unsaved: bool,
    /// The step of the last checkpoint that was begun, or that the run was started from, and how long it is to be kept.
    pub(crate) begun: Option<(u64, Keep)>,
}

/// What does not change while a run trains.
pub(crate) struct About {
    pub(crate) out: PathBuf,
    pub(crate) run: RunConfig,
    pub(crate) plan: Plan,
    pub(crate) identity: Identity,
    pub(crate) settings: Vec<Era>,
    pub(crate) dataset: Arc<Dataset>,
    pub(crate) tokenizer: Option<Arc<[u8]>>,
}

/// A step whose metrics are still to be read.
struct InFlight<P> {
    metrics: P,
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

/// How fast the device trains.
struct Speed {
    clock: Clock,
    flops_per_token: f64,
    peak: Option<f64>,
}

impl<M: Machine> Session<'_, M> {
    /// Trains. Whatever stops it, what was trained is saved first.
    pub(crate) fn train(&mut self, recorder: &mut Recorder) -> Result<Outcome> {
        let mut in_flight = None;
        let mut speed = self.speed();
        let error = match self.steps(recorder, &mut speed, &mut in_flight) {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        if !self.unsaved {
            return Err(error);
        }
        let saved = self
            .read(in_flight.take(), recorder, &mut speed)
            .and_then(|()| {
                // If the checkpoint of this step was begun and failed, it is tried again with the same purpose.
                let again = self.begun.filter(|(step, _)| *step == self.progress.step);
                self.save(again.map_or(Keep::Stop, |(_, keep)| keep), recorder)
            })
            .and_then(|()| self.report(recorder, |saver| saver.finish()));
        let step = self.progress.step;
        Err(match saved {
            Ok(()) => error.context(format!("the run stopped after step {step}, which is saved")),
            Err(failed) => error.context(format!(
                "the run stopped after step {step}, and saving what it trained failed ({failed:#})"
            )),
        })
    }

    /// The loop. The host is one step ahead of the metrics that it reads, so that the device never waits for it.
    fn steps(
        &mut self,
        recorder: &mut Recorder,
        speed: &mut Speed,
        in_flight: &mut Option<InFlight<M::Pending>>,
    ) -> Result<Outcome> {
        let rows = self.about.run.batch.rows();
        let mut saved_at = Instant::now();
        while self.progress.step < self.about.plan.steps && !self.has_stalled() {
            // Before anything else, and without the step in flight: where a run goes back to must not depend on when it
            // was stopped.
            if self.must_go_back() {
                self.go_back(recorder, in_flight)?;
                speed.clock = Clock::start(self.progress.step, Instant::now());
            }
            let ready = self.loader.ready(rows, PATIENCE);
            self.loader.notes().for_each(|said| recorder.say(&said));
            if self.world.stop.requested() || ready.is_err() {
                self.read(in_flight.take(), recorder, speed)?;
                if self.unsaved {
                    self.save(Keep::Stop, recorder)?;
                }
                self.report(recorder, |saver| saver.finish())?;
                ready.with_context(|| {
                    format!("making the rows of step {}; all before is saved", self.progress.step + 1)
                })?;
                return Ok(Outcome::Interrupted);
            }
            if !ready? {
                continue;
            }
            let shape = self.about.run.batch;
            let batch = self.loader.next_batch(shape.accumulation, shape.micro)?;
            let launched = self.launch(&batch)?;
            self.read(in_flight.replace(launched), recorder, speed)?;
            self.report(recorder, |saver| saver.poll())?;
            // Nor on when it pauses, which reads the step in flight.
            if self.must_go_back() {
                continue;
            }

            let due = self.due(&batch, saved_at);
            let evaluates = self.counts_evaluation();
            if due.is_some() || evaluates {
                self.read(in_flight.take(), recorder, speed)?;
                speed.clock.pause(Instant::now());
                // First, so that the checkpoint of this step knows its loss.
                if evaluates {
                    self.validate(recorder)?;
                }
                if let Some(keep) = due.or(self.has_stalled().then_some(Keep::Rolling)) {
                    self.save(keep, recorder)?;
                    saved_at = Instant::now();
                }
                speed.clock.go_on(Instant::now());
            }
        }
        // A stop left the last evaluation out, and with it the last checkpoint.
        if self.has_stalled() && self.begun == Some((self.progress.step, Keep::Stop)) {
            self.save(Keep::Rolling, recorder)?;
        }
        self.report(recorder, |saver| saver.finish())?;
        Ok(Outcome::Finished)
    }

    /// Whether so many evaluations in a row were no lower that the run ends.
    pub(crate) fn has_stalled(&self) -> bool {
        let without = self.progress.evaluations.without_improvement;
        self.about.run.validation.patience.is_some_and(|patience| without >= patience)
    }

    /// Why the run ended before its last step; none if it did not.
    pub(crate) fn ended_early(&self) -> Option<String> {
        let (step, steps) = (self.progress.step, self.about.plan.steps);
        let Evaluations { best, without_improvement, .. } = self.progress.evaluations;
        let best = best.map_or("any".into(), |best| format!("{:.4}, that of step {}", best.loss, best.step));
        let least = match self.about.run.validation.min_delta {
            0.0 => String::new(),
            least => format!(" by {least} nats"),
        };
        (self.has_stalled() && step < steps).then(|| {
            format!(
                "ended early      at step {step} of {steps}: {without_improvement} evaluations in a row were not lower{least} than {best} (validation.patience)"
            )
        })
    }

    /// Whether an evaluation at this step is one of those that are counted: where others, as where a run is started
    /// again, are made is no part of its course.
    fn counts_evaluation(&self) -> bool {
        let step = self.progress.step;
        step.is_multiple_of(self.about.run.validation.every) || step == self.about.plan.steps
    }

    /// Whether so many steps in a row were bad that there is no sense in another one; behind the last there is none.
    fn must_go_back(&self) -> bool {
        self.progress.watch.bad_in_a_row >= self.about.run.guard.bad_steps
            && self.progress.step < self.about.plan.steps
    }

    fn speed(&self) -> Speed {
        let run = &self.about.run;
        Speed {
            clock: Clock::start(self.progress.step, Instant::now()),
            flops_per_token: flops_per_token(&run.model, run.batch.seq),
            peak: peak::peak_flops(self.machine.kind(), run.model.dtype),
        }
    }

    /// Whether a checkpoint is due after these rows, and how long it is kept.
    fn due(&self, batch: &Batch, saved_at: Instant) -> Option<Keep> {
        let (step, checkpoint) = (self.progress.step, &self.about.run.checkpoint);
        if batch.position_after.epoch > batch.position.epoch {
            return Some(Keep::EpochEnd(batch.position_after.epoch as u32));
        }
        let minutes = checkpoint
            .every_minutes
            .is_some_and(|minutes| saved_at.elapsed() > Duration::from_secs_f64(60.0 * minutes));
        let last = step == self.about.plan.steps;
        (last || minutes || step.is_multiple_of(checkpoint.every)).then_some(Keep::Rolling)
    }

    fn launch(&mut self, batch: &Batch) -> Result<InFlight<M::Pending>> {
        let (run, step) = (&self.about.run, self.progress.step);
        let learning_rate = self.about.plan.schedule.learning_rate(step);
        let largest_norm = self.progress.watch.largest_norm(step + 1, run.guard.spike_factor);
        let inputs = StepInputs { learning_rate, largest_norm, step, seed: run.seed };
        let metrics = self.machine.step(batch, inputs)?;
        self.progress.step += 1;
        let held = Held::of(batch);
        self.progress.tokens_seen += held.targets;
        self.progress.data = self.loader.position();
        self.unsaved = true;
        Ok(InFlight {
            metrics,
            learning_rate,
            largest_norm,
            done: step + 1,
            tokens_seen: self.progress.tokens_seen,
            held,
            position: batch.position,
            position_after: batch.position_after,
        })
    }

    /// Reads a step's metrics, watches for steps without an update, and records every `log.every`-th step.
    fn read(
        &mut self,
        step: Option<InFlight<M::Pending>>,
        recorder: &mut Recorder,
        speed: &mut Speed,
    ) -> Result<()> {
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
        let [loss, next, second, gradient_norm, applied, targets, second_targets] =
            self.machine.read(metrics)?;
        speed.clock.read(done, self.progress.step, Instant::now());
        self.read = (done, position_after);
        self.held.add(held);
        if applied == 0.0 {
            self.progress.watch.thrown_away();
            let largest_norm = f64::from(largest_norm);
            recorder.bad_step(&BadStep { step: done, loss, gradient_norm, largest_norm, position });
            recorder.say(&format!(
                "step {done} left the weights as they were: loss {loss}, gradient norm {gradient_norm}, allowed {largest_norm:.3e}; its rows: epoch {}, window {}, block {}, row {}; look at them with --replay {done}",
                position.epoch, position.window, position.block, position.row
            ));
        } else {
            self.progress.changed_the_weights(done, gradient_norm);
            self.losses.add([next, targets], [second, second_targets]);
        }
        let (run, steps) = (&self.about.run, self.about.plan.steps);
        if done.is_multiple_of(run.log.every) || done == steps {
            let (loss, mtp_loss) = self.losses.take();
            let steps_per_second = speed.clock.steps_per_second();
            let held = std::mem::take(&mut self.held);
            let tokens_per_second = steps_per_second * held.targets_a_step();
            recorder.train(metrics::Train {
                step: done,
                loss,
                mtp_loss: (run.model.mtp_num_tokens > 0).then_some(mtp_loss),
                learning_rate,
                gradient_norm,
                tokens_seen,
                tokens_per_second,
                padding: held.share_of_padding(),
                mfu: peak::mfu(tokens_per_second, speed.flops_per_token, speed.peak, 1),
                skipped: self.progress.watch.skipped,
                eta_seconds: (steps - done) as f64 / steps_per_second,
            });
        }
        Ok(())
    }

    /// Stages the state in main memory and starts writing it.
    pub(crate) fn save(&mut self, keep: Keep, recorder: &Recorder) -> Result<()> {
        // First, so that there is never a second copy in memory.
        self.report(recorder, |saver| saver.finish())?;
        let (params, optimizer) = self.machine.to_host()?;
        let snapshot = Snapshot {
            params,
            optimizer,
            state: self.about.state(self.progress.clone(), keep),
            config: self.about.run.model.clone(),
            tokenizer: self.about.tokenizer.clone(),
        };
        self.unsaved = false;
        self.begun = Some((self.progress.step, keep));
        self.report(recorder, |saver| saver.save(snapshot))
    }

    /// Goes back to the newest sound checkpoint, and on from there with the rows after those of the bad steps.
    fn go_back(
        &mut self,
        recorder: &mut Recorder,
        in_flight: &mut Option<InFlight<M::Pending>>,
    ) -> Result<()> {
        self.report(recorder, |saver| saver.finish())?;
        let bad = self.progress.watch.bad_in_a_row;
        let advice = "lower optimizer.learning_rate, or look at the rows of a bad step with --replay STEP";
        // A checkpoint that the run went back to, and after which no step succeeded, may itself be what is wrong.
        let before = self.progress.returned.unwrap_or(u64::MAX);
        let Some(target) = self.saver.sound(before, &self.progress)? else {
            // The run gives up on this state; the next start should not find it.
            self.unsaved = false;
            bail!(
                "{bad} steps in a row left the weights as they were, and there is no checkpoint to go back to: {advice}"
            );
        };
        let (path, before) = (target.path().display(), self.progress.rollbacks);
        let from = Reader::open(&target, &self.about.run.model)?;
        let state = from.state().clone();
        self.saver.store().set_aside(state.progress.step)?;
        self.machine.load(Content::Checkpoint(&from))?;
        // Not before: if anything above fails, what is saved holds it, and must count it.
        *in_flight = None;
        let now = self.about.settings.last().map(|era| era.settings.clone()).unwrap_or_default();
        self.about.settings = state.settings;
        Era::begin(&mut self.about.settings, state.progress.step, now);
        self.progress = self.progress.gone_back(state.progress, self.read);
        (self.losses, self.held) = (LossSums::default(), Held::default());
        let rows = self.about.run.data.rows(self.about.run.batch.seq, self.about.run.seed);
        self.loader = Loader::start(Arc::clone(&self.about.dataset), rows, self.read.1)?;
        recorder.go_back(self.progress.step);
        recorder.say(&format!(
            "{bad} steps in a row left the weights as they were: back to {path}, and on after their rows; newer checkpoints are set aside"
        ));
        // At once: a stop before the next checkpoint must not meet the same rows again.
        self.save(state.keep, recorder)?;
        if before >= self.about.run.guard.rollbacks {
            // The state that the run gives up on is set aside, in the mirror too, so that the next start does not find it.
            self.report(recorder, |saver| saver.finish())?;
            bail!(
                "{bad} steps in a row left the weights as they were, and going back {before} times did not help; the newest sound checkpoint is {path}: {advice}"
            );
        }
        Ok(())
    }

    /// Opens the run's records at the step that it has come to.
    pub(crate) fn open_recorder(&self) -> Result<Recorder> {
        let About { out, plan, .. } = &self.about;
        let World { disk, look, .. } = self.world;
        Recorder::open(Arc::clone(disk), out, self.progress.step, plan.steps, *look)
            .with_context(|| format!("opening the records of {}", out.display()))
    }

    /// Says whether a checkpoint was written. A failure stops the run: training on without checkpoints loses more.
    fn report(
        &mut self,
        recorder: &Recorder,
        ask: impl FnOnce(&mut Saver) -> Result<Option<Saved>, CheckpointError>,
    ) -> Result<()> {
        // The next attempt has to save what failed to be written.
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

    /// Says which copies were made, left out or failed.
    fn report_copies(&self, recorder: &Recorder) {
        for copied in self.saver.copies() {
            match copied {
                Copied::Whole { path, bytes, took } => recorder.say(&format!(
                    "copied     {} ({:.0} MiB in {:.1} s)",
                    path.display(),
                    bytes as f64 / 1048576.0,
                    took.as_secs_f64()
                )),
                // With `checkpoint.mirror_every_minutes` that was asked for.
                Copied::LeftOut(_) if self.about.run.checkpoint.mirror_every_minutes.is_some() => {}
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
    pub(crate) fn finish_copies(&mut self, recorder: &Recorder) -> Result<()> {
        let waiting = self.world.stop.waiting();
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
                    self.about.out.display()
                ));
            }
            ControlFlow::Continue(())
        });
        self.report_copies(recorder);
        Ok(finished?)
    }

    /// Loss of the held-out rows at this step. It is recorded once: a run that is started again takes the earlier record.
    pub(crate) fn validate(&mut self, recorder: &mut Recorder) -> Result<Option<f64>> {
        let step = self.progress.step;
        let known = recorder.validations().iter().find(|known| known.step == step).copied();
        let validation = match known {
            Some(known) => known,
            None => {
                let Some((loss, mtp_loss)) = self.machine.validate(&self.world.stop)? else {
                    return Ok(None);
                };
                let validation = metrics::Validation { step, loss, mtp_loss };
                recorder.validation(validation);
                validation
            }
        };
        if self.counts_evaluation() {
            self.progress.evaluations.count(validation, self.about.run.validation.min_delta);
        }
        Ok(Some(validation.loss))
    }

    /// The loss before training: the first that was recorded, or else measured now. Also makes up for an evaluation that a stop
    /// left out.
    pub(crate) fn first_validation(&mut self, recorder: &mut Recorder) -> Result<Option<f64>> {
        let first = recorder.validations().first().map(|validation| validation.loss);
        let left_out = self.progress.step.is_multiple_of(self.about.run.validation.every);
        let now = if first.is_none() || left_out { self.validate(recorder)? } else { None };
        Ok(first.or(now))
    }
}

impl Progress {
    /// Step number `step` (from 1) changed the weights.
    fn changed_the_weights(&mut self, step: u64, gradient_norm: f64) {
        self.watch.applied(step, gradient_norm);
        if self.returned.is_some_and(|returned| returned < step) {
            self.returned = None;
        }
        if step > self.failed_at {
            self.rollbacks = 0;
        }
    }

    /// The progress of a run that goes back to a checkpoint, and on after the rows of the newest step that was read.
    fn gone_back(&self, to: Progress, (bad, data): (u64, Position)) -> Progress {
        let mut turns = self.turns.clone();
        turns.push(to.step);
        let mut watch = to.watch;
        watch.skipped = self.watch.skipped;
        Progress {
            data,
            turns,
            returned: Some(to.step),
            failed_at: self.failed_at.max(bad),
            rollbacks: self.rollbacks + 1,
            watch,
            step: to.step,
            tokens_seen: to.tokens_seen,
            evaluations: to.evaluations,
        }
    }
}

impl About {
    /// What a checkpoint says about the run.
    pub(crate) fn state(&self, progress: Progress, keep: Keep) -> State {
        State {
            format: FORMAT,
            run: Some(self.identity.clone()),
            seed: self.run.seed,
            init: None,
            phase: self.plan.schedule.phase(progress.step),
            keep,
            settings: self.settings.clone(),
            hashes: hashes(&self.dataset),
            written_by: env!("CARGO_PKG_VERSION").to_owned(),
            progress,
        }
    }
}

/// Hashes of what a run depends on beside its configuration.
pub(crate) fn hashes(dataset: &Dataset) -> BTreeMap<String, String> {
    dataset
        .tokenizer()
        .map(|tokenizer| ("tokenizer".to_owned(), tokenizer.hash().to_string()))
        .into_iter()
        .collect()
}
