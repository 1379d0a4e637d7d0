//! What a person sees of a run: a progress line, `metrics.jsonl`, TensorBoard events and `loss.svg`.

mod console;
pub mod peak;
mod plot;
pub mod tensorboard;

pub use console::{Look, line};
pub use plot::{Curves, loss_svg};

use crate::atomic::{self, RealDisk};
use crate::data::Position;
use console::Console;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tensorboard::EventWriter;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Training since the record before.
    Train(Train),
    /// An evaluation of the held-out split.
    Validation(Validation),
}

/// Training at a step. Losses are nats a token, as in [`Validation`]: means over the targets of the steps since the record
/// before, or since the run was started again; steps that left the weights as they were are not among them. Non-finite
/// numbers are written as null and read back as NaN.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
// Earlier versions wrote another loss under this name, beside `main_loss`; one file must not hold both.
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Steps done.
    pub step: u64,
    /// Loss of the next token.
    #[serde(deserialize_with = "nan_from_null")]
    pub loss: f64,
    /// Loss of the token after it, if the model has that head.
    pub mtp_loss: Option<f64>,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Global norm of the step's gradient before clipping.
    #[serde(deserialize_with = "nan_from_null")]
    pub gradient_norm: f64,
    /// Tokens trained on so far, repetitions included.
    pub tokens_seen: u64,
    /// Tokens a second since about the record before; saving and evaluating do not count.
    pub tokens_per_second: f64,
    /// Part of the device's peak, if the peak is known.
    pub mfu: Option<f64>,
    /// Steps so far whose update was left out because it was not finite.
    pub skipped: u64,
    /// Seconds to the end of the run at this speed.
    pub eta_seconds: f64,
}

/// An evaluation at a step, nats a token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Steps done.
    pub step: u64,
    /// Loss of the next token.
    #[serde(deserialize_with = "nan_from_null")]
    pub loss: f64,
    /// Loss of the token after it, if the model has that head.
    pub mtp_loss: Option<f64>,
}

/// Losses of several steps, on their way to a mean in which each target counts once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LossSums {
    next: f64,
    targets: f64,
    second: f64,
    second_targets: f64,
}

impl LossSums {
    /// Adds a step's mean losses of the next token and of the one after it, with the numbers of their targets.
    pub(crate) fn add(&mut self, [next, targets]: [f64; 2], [second, second_targets]: [f64; 2]) {
        self.next += next * targets;
        self.targets += targets;
        self.second += second * second_targets;
        self.second_targets += second_targets;
    }

    /// Means of the next token's loss and of the one after it since the last call; NaN if there was no step.
    pub(crate) fn take(&mut self) -> (f64, f64) {
        let LossSums { next, targets, second, second_targets } = std::mem::take(self);
        (next / targets, second / second_targets)
    }
}

/// A step that left the weights as they were: one line of `bad_steps.jsonl`. What is not finite is null.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BadStep {
    /// Steps done, this one included.
    pub step: u64,
    /// What is minimised: its loss of the next token, and the weighted one of the token after it.
    #[serde(deserialize_with = "nan_from_null")]
    pub loss: f64,
    /// Global norm of its gradient before clipping.
    #[serde(deserialize_with = "nan_from_null")]
    pub gradient_norm: f64,
    /// The largest norm that was allowed.
    pub largest_norm: f64,
    /// Where its first row is.
    pub position: Position,
}

/// Writes every record to all of its places.
pub struct Recorder {
    folder: PathBuf,
    lines: File,
    events: EventWriter,
    console: Console,
    curves: Curves,
    validations: Vec<Validation>,
}

/// Name of the record of all numbers.
const LINES: &str = "metrics.jsonl";
/// Name of the record of steps that left the weights as they were. It is never cut: a run that went back keeps it.
const BAD_STEPS: &str = "bad_steps.jsonl";
/// Name of the plot.
const PLOT: &str = "loss.svg";

impl Recorder {
    /// Opens the files of a run that is at `step` of `steps`. Records of later steps, which a run left that stopped
    /// behind its last checkpoint, are dropped, and so is a torn last line.
    ///
    /// # Errors
    /// If the folder cannot be written to, or `metrics.jsonl` holds something else.
    pub fn open(folder: &Path, step: u64, steps: u64, look: Look) -> io::Result<Recorder> {
        fs::create_dir_all(folder)?;
        let path = folder.join(LINES);
        let (mut curves, mut validations) = (Curves::default(), Vec::new());
        if path.exists() {
            let records = read_records(&path, step)?;
            records.iter().for_each(|record| curves.add(record));
            validations.extend(records.iter().filter_map(|record| match record {
                Record::Validation(validation) => Some(*validation),
                Record::Train(_) => None,
            }));
            atomic::write_file(&RealDisk, &path, |out| {
                records.iter().try_for_each(|record| writeln!(out, "{}", serde_json::to_string(record)?))
            })?;
        }
        let lines = OpenOptions::new().create(true).append(true).open(&path)?;
        let events = EventWriter::create(&folder.join("tensorboard"), step)?;
        Ok(Recorder {
            folder: folder.into(),
            lines,
            events,
            console: Console::new(look, step, steps),
            curves,
            validations,
        })
    }

    /// The evaluations of the run so far, those of before it was started again included.
    pub(crate) fn validations(&self) -> &[Validation] {
        &self.validations
    }

    /// Records and shows training at a step.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn train(&mut self, train: Train) -> io::Result<()> {
        let mut scalars = vec![
            ("train/loss", train.loss),
            ("train/learning_rate", train.learning_rate),
            ("train/gradient_norm", train.gradient_norm),
            ("speed/tokens_per_second", train.tokens_per_second),
        ];
        scalars.extend(train.mtp_loss.map(|loss| ("train/mtp_loss", loss)));
        scalars.extend(train.mfu.map(|mfu| ("speed/mfu", mfu)));
        self.console.train(&train);
        self.record(Record::Train(train), train.step, &scalars)
    }

    /// Records and shows an evaluation, and draws the plot anew.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn validation(&mut self, validation: Validation) -> io::Result<()> {
        let mut scalars = vec![("validation/loss", validation.loss)];
        scalars.extend(validation.mtp_loss.map(|loss| ("validation/mtp_loss", loss)));
        self.console.say(&console::validation_line(&validation));
        self.validations.push(validation);
        self.record(Record::Validation(validation), validation.step, &scalars)?;
        self.draw().map(drop)
    }

    /// Keeps a bad step's place in the data.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn bad_step(&self, bad: &BadStep) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.folder.join(BAD_STEPS))?;
        file.write_all((serde_json::to_string(bad)? + "\n").as_bytes())
    }

    /// Shows a line without disturbing the progress line.
    pub fn say(&self, text: &str) {
        self.console.say(text);
    }

    /// Draws the plot a last time, ends the progress line, and says where the plot is.
    ///
    /// # Errors
    /// If the plot cannot be written.
    pub fn finish(self) -> io::Result<PathBuf> {
        self.console.finish();
        self.draw()
    }

    fn record(&mut self, record: Record, step: u64, scalars: &[(&str, f64)]) -> io::Result<()> {
        // One write a line, so that a crash tears at most the last one.
        self.lines.write_all((serde_json::to_string(&record)? + "\n").as_bytes())?;
        self.curves.add(&record);
        self.events.scalars(step, scalars)
    }

    fn draw(&self) -> io::Result<PathBuf> {
        let path = self.folder.join(PLOT);
        let svg = loss_svg(&self.curves);
        atomic::write_file(&RealDisk, &path, |out| out.write_all(svg.as_bytes()))?;
        Ok(path)
    }
}

impl Record {
    /// Steps done.
    pub fn step(&self) -> u64 {
        match self {
            Record::Train(train) => train.step,
            Record::Validation(validation) => validation.step,
        }
    }
}

/// The bad steps of a run's folder, in the order in which they happened. A line that a crash tore is passed over.
///
/// # Errors
/// If the file is there and cannot be read.
pub fn bad_steps(folder: &Path) -> io::Result<Vec<BadStep>> {
    match fs::read_to_string(folder.join(BAD_STEPS)) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Records up to a step.
fn read_records(path: &Path, last_step: u64) -> io::Result<Vec<Record>> {
    let text = fs::read_to_string(path)?;
    let mut records = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match serde_json::from_str::<Record>(line) {
            Ok(record) if record.step() <= last_step => records.push(record),
            Ok(_) => {}
            // Torn by a crash.
            Err(_) if number + 1 == text.lines().count() => {}
            Err(error) => {
                let place = format!(
                    "{} line {}: {error}; move the file away to start a new one",
                    path.display(),
                    number + 1
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, place));
            }
        }
    }
    Ok(records)
}

/// JSON has no NaN: it is written as null.
fn nan_from_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(step: u64, loss: f64) -> Train {
        Train {
            step,
            loss,
            mtp_loss: Some(loss + 1.0),
            learning_rate: 1e-3,
            gradient_norm: 0.5,
            tokens_seen: step * 2048,
            tokens_per_second: 6100.0,
            mfu: None,
            skipped: 0,
            eta_seconds: 60.0,
        }
    }

    #[test]
    fn a_resumed_run_has_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Recorder::open(folder.path(), 0, 10, Look::Silent).unwrap();
        for step in 1..=5 {
            first.train(train(step, if step == 2 { f64::NAN } else { 5.0 })).unwrap();
        }
        first.validation(Validation { step: 5, loss: 4.0, mtp_loss: None }).unwrap();
        drop(first);
        let path = folder.path().join(LINES);
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"kind\":\"tr").unwrap();
        let mut second = Recorder::open(folder.path(), 3, 10, Look::Silent).unwrap();
        second.train(train(4, 4.5)).unwrap();
        let plot = second.finish().unwrap();
        let records = read_records(&path, 100).unwrap();
        assert_eq!(records.iter().map(Record::step).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(matches!(records[1], Record::Train(Train { loss, .. }) if loss.is_nan()));
        assert_eq!(records[3], Record::Train(train(4, 4.5)));
        assert!(fs::read_to_string(plot).unwrap().starts_with("<svg"));
    }

    #[test]
    fn a_mean_counts_each_target_once() {
        let mut sums = LossSums::default();
        sums.add([2.0, 100.0], [4.0, 50.0]);
        sums.add([5.0, 300.0], [1.0, 150.0]);
        assert_eq!(sums.take(), ((200.0 + 1500.0) / 400.0, (200.0 + 150.0) / 200.0));
        sums.add([3.0, 7.0], [1.0, 1.0]);
        assert_eq!(sums.take(), (3.0, 1.0), "the steps since the last record alone");
        assert!(sums.take().0.is_nan(), "no step, no loss");
    }

    /// Records of a version that meant the sum of both heads by `loss` are not mixed with these.
    #[test]
    fn records_of_another_meaning_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut old = serde_json::to_value(Record::Train(train(1, 5.0))).unwrap();
        old["main_loss"] = 4.0.into();
        fs::write(folder.path().join(LINES), format!("{old}\n\n")).unwrap();
        let error = Recorder::open(folder.path(), 1, 2, Look::Silent).map(drop).unwrap_err().to_string();
        assert!(error.contains("main_loss") && error.contains("move the file away"), "{error}");
    }

    #[test]
    fn a_foreign_file_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LINES);
        fs::write(&path, "notes\nof mine\n").unwrap();
        let error = Recorder::open(folder.path(), 0, 1, Look::Silent).map(drop).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("move the file away"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes\nof mine\n");
    }
}
