//! What a person sees of a run: a progress line, `metrics.jsonl`, TensorBoard events and `loss.svg`.

mod appended;
mod console;
pub mod peak;
mod plot;
pub mod tensorboard;

pub use console::{Look, line};
pub use plot::{Curves, loss_svg};

use crate::atomic::{self, Disk};
use crate::data::{Batch, Position};
use crate::run_folder::{BAD_STEPS, EVENTS, METRICS, PLOT};
use appended::Appended;
use console::Console;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// Tokens predicted so far, repetitions included: the targets of the next token's loss. Neither padding nor the first token
    /// of a piece of a document counts.
    pub tokens_seen: u64,
    /// How many of these a second, since about the record before; the time of saving and evaluating is left out.
    pub tokens_per_second: f64,
    /// Part of the places, in the rows since the record before, that held no token.
    #[serde(default)]
    pub padding: f64,
    /// Model FLOPs utilisation: the part of the device's peak that these tokens took, if the peak is known.
    pub mfu: Option<f64>,
    /// Steps so far that left the weights as they were: something was not finite, or the gradient was too long.
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

/// Sums of the losses of several steps, for a mean in which each target counts once.
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

/// What rows of several steps held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) steps: u64,
    pub(crate) places: u64,
    pub(crate) padding: u64,
    pub(crate) targets: u64,
}

impl Held {
    /// One step's rows.
    pub(crate) fn of(batch: &Batch) -> Held {
        let places = batch.ids.len() as u64;
        Held { steps: 1, places, padding: batch.padding(), targets: batch.targets() }
    }

    /// Adds another step's.
    pub(crate) fn add(&mut self, more: Held) {
        self.steps += more.steps;
        self.places += more.places;
        self.padding += more.padding;
        self.targets += more.targets;
    }

    /// Targets of a step, on average.
    pub(crate) fn targets_a_step(&self) -> f64 {
        self.targets as f64 / self.steps.max(1) as f64
    }

    /// Part of the places without a token.
    pub(crate) fn share_of_padding(&self) -> f64 {
        self.padding as f64 / self.places.max(1) as f64
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

/// Writes every record to all of its places. None of them stops a run: if one cannot be written, that is said once, and once
/// more when it can be written again.
pub struct Recorder {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    lines: Appended,
    events: Appended,
    bad_steps: Appended,
    console: Console,
    curves: Curves,
    validations: Vec<Validation>,
    /// Whether the plot could not be drawn.
    undrawn: bool,
}

impl Recorder {
    /// Opens the files of a run that is at `step` of `steps`. Records of later steps, which a run left that stopped
    /// after its last checkpoint, are dropped, and so is a torn last line.
    ///
    /// # Errors
    /// If the folder cannot be written to, or `metrics.jsonl` holds something else.
    pub fn open(
        disk: Arc<dyn Disk>,
        folder: &Path,
        step: u64,
        steps: u64,
        look: Look,
    ) -> io::Result<Recorder> {
        disk.create_dir_all(folder)?;
        let path = folder.join(METRICS);
        let (mut curves, mut validations) = (Curves::default(), Vec::new());
        if path.exists() {
            let records = read_records(&path, step)?;
            records.iter().for_each(|record| curves.add(record));
            validations.extend(validations_of(&records));
            write_whole(&*disk, &path, &lines(&records))?;
        }
        let (events, head) = tensorboard::event_file(&folder.join(EVENTS), step);
        Ok(Recorder {
            disk,
            folder: folder.into(),
            lines: Appended::new(path, Vec::new()),
            events: Appended::new(events, head),
            bad_steps: Appended::new(folder.join(BAD_STEPS), Vec::new()),
            console: Console::new(look, step, steps),
            curves,
            validations,
            undrawn: false,
        })
    }

    /// The evaluations of the run so far, those of before it was started again included.
    pub(crate) fn validations(&self) -> &[Validation] {
        &self.validations
    }

    /// The run went back to a step: records of later ones are dropped.
    pub fn go_back(&mut self, step: u64) {
        let mut text = fs::read(self.folder.join(METRICS)).unwrap_or_default();
        text.extend_from_slice(self.lines.waiting());
        // The run has read or written every line itself.
        let text = String::from_utf8_lossy(&text);
        let records = text.lines().filter_map(|line| serde_json::from_str::<Record>(line).ok());
        let records: Vec<Record> = records.filter(|record| record.step() <= step).collect();
        let write = |path: &Path, bytes: &[u8]| write_whole(&*self.disk, path, bytes);
        let said = self.lines.replace(lines(&records), write);
        self.note(said);
        self.validations = validations_of(&records).collect();
        self.curves = Curves::default();
        records.iter().for_each(|record| self.curves.add(record));
        let (events, head) = tensorboard::event_file(&self.folder.join(EVENTS), step);
        self.events = Appended::new(events, head);
        self.console.go_back(step);
    }

    /// Records and shows training at a step.
    pub fn train(&mut self, train: Train) {
        let mut scalars = vec![
            ("train/loss", train.loss),
            ("train/learning_rate", train.learning_rate),
            ("train/gradient_norm", train.gradient_norm),
            ("speed/tokens_per_second", train.tokens_per_second),
            ("data/padding", train.padding),
        ];
        scalars.extend(train.mtp_loss.map(|loss| ("train/mtp_loss", loss)));
        scalars.extend(train.mfu.map(|mfu| ("speed/mfu", mfu)));
        self.console.train(&train);
        self.record(Record::Train(train), train.step, &scalars);
    }

    /// Records and shows an evaluation, and draws the plot anew.
    pub fn validation(&mut self, validation: Validation) {
        let mut scalars = vec![("validation/loss", validation.loss)];
        scalars.extend(validation.mtp_loss.map(|loss| ("validation/mtp_loss", loss)));
        self.console.say(&console::validation_line(&validation));
        self.validations.push(validation);
        self.record(Record::Validation(validation), validation.step, &scalars);
        self.draw();
    }

    /// Keeps a bad step's place in the data.
    pub fn bad_step(&mut self, bad: &BadStep) {
        let said = self.bad_steps.append(&line_of(bad));
        self.note(said);
    }

    /// Shows a line without disturbing the progress line.
    pub fn say(&self, text: &str) {
        self.console.say(text);
    }

    /// Draws the plot a last time, ends the progress line, and says where the plot is.
    pub fn finish(mut self) -> PathBuf {
        self.console.finish();
        self.draw()
    }

    fn record(&mut self, record: Record, step: u64, scalars: &[(&str, f64)]) {
        self.curves.add(&record);
        let said =
            [self.lines.append(&line_of(&record)), self.events.append(&tensorboard::scalars(step, scalars))];
        said.into_iter().for_each(|said| self.note(said));
    }

    fn note(&self, said: Option<String>) {
        if let Some(said) = said {
            self.console.say(&said);
        }
    }

    fn draw(&mut self) -> PathBuf {
        let path = self.folder.join(PLOT);
        match write_whole(&*self.disk, &path, loss_svg(&self.curves).as_bytes()) {
            Ok(()) => {
                if std::mem::replace(&mut self.undrawn, false) {
                    self.console.say(&format!("{} is drawn again", path.display()));
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.undrawn, true) {
                    self.console.say(&format!("NOT DRAWN: {error}; training goes on"));
                }
            }
        }
        path
    }
}

fn validations_of(records: &[Record]) -> impl Iterator<Item = Validation> {
    records.iter().filter_map(|record| match record {
        Record::Validation(validation) => Some(*validation),
        Record::Train(_) => None,
    })
}

fn line_of<T: Serialize>(record: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).expect("a struct of numbers");
    line.push(b'\n');
    line
}

fn lines(records: &[Record]) -> Vec<u8> {
    records.iter().flat_map(line_of).collect()
}

fn write_whole(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    atomic::write_file(disk, path, |out| out.write_all(bytes))
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
    match fs::read(folder.join(BAD_STEPS)) {
        Ok(text) => Ok(String::from_utf8_lossy(&text)
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Records up to a step.
fn read_records(path: &Path, last_step: u64) -> io::Result<Vec<Record>> {
    // A crash may leave any bytes.
    let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
    let mut records = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match serde_json::from_str::<Record>(line) {
            Ok(record) if record.step() <= last_step => records.push(record),
            Ok(_) => {}
            // Torn by a crash: a whole record ends its line.
            Err(_) if number + 1 == text.lines().count() && !text.ends_with('\n') => {}
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
    use crate::atomic::RealDisk;
    use crate::config::BatchShape;
    use std::io::Write;

    fn open(folder: &Path, step: u64, steps: u64) -> io::Result<Recorder> {
        Recorder::open(Arc::new(RealDisk), folder, step, steps, Look::Silent)
    }

    fn train(step: u64, loss: f64) -> Train {
        Train {
            step,
            loss,
            mtp_loss: Some(loss + 1.0),
            learning_rate: 1e-3,
            gradient_norm: 0.5,
            tokens_seen: step * 2048,
            tokens_per_second: 6100.0,
            padding: 0.25,
            mfu: None,
            skipped: 0,
            eta_seconds: 60.0,
        }
    }

    #[test]
    fn a_resumed_run_has_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = open(folder.path(), 0, 10).unwrap();
        for step in 1..=5 {
            first.train(train(step, if step == 2 { f64::NAN } else { 5.0 }));
        }
        first.validation(Validation { step: 5, loss: 4.0, mtp_loss: None });
        drop(first);
        let path = folder.path().join(METRICS);
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"kind\":\"tr\xff").unwrap();
        let mut second = open(folder.path(), 3, 10).unwrap();
        second.train(train(4, 4.5));
        let plot = second.finish();
        let records = read_records(&path, 100).unwrap();
        assert_eq!(records.iter().map(Record::step).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(matches!(records[1], Record::Train(Train { loss, .. }) if loss.is_nan()));
        assert_eq!(records[3], Record::Train(train(4, 4.5)));
        assert!(fs::read_to_string(plot).unwrap().starts_with("<svg"));
    }

    /// Folders stand where the files should be, for a while.
    #[test]
    fn what_cannot_be_written_is_said_once_and_made_up_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = open(folder.path(), 0, 10).unwrap();
        recorder.train(train(1, 5.0));
        let [path, events] = [METRICS, EVENTS].map(|name| folder.path().join(name));
        let hidden = folder.path().join("hidden");
        fs::rename(&path, &hidden).unwrap();
        fs::create_dir(&path).unwrap();
        let bad = BadStep {
            step: 2,
            loss: 1.0,
            gradient_norm: 2.0,
            largest_norm: 3.0,
            position: Position::default(),
        };
        for step in 2..=4 {
            recorder.train(train(step, 5.0));
        }
        recorder.validation(Validation { step: 4, loss: 4.0, mtp_loss: None });
        recorder.bad_step(&bad);
        fs::remove_dir(&path).unwrap();
        fs::rename(&hidden, &path).unwrap();
        recorder.train(train(5, 5.0));
        let steps =
            |path: &Path| -> Vec<u64> { read_records(path, 100).unwrap().iter().map(Record::step).collect() };
        assert_eq!(steps(&path), [1, 2, 3, 4, 4, 5]);
        assert_eq!(bad_steps(folder.path()).unwrap(), [bad]);
        // Removed with all that is in it: the file of events begins anew, with its head.
        fs::remove_dir_all(&events).unwrap();
        fs::remove_file(&path).unwrap();
        recorder.train(train(6, 5.0));
        assert_eq!(steps(&path), [6]);
        let name = fs::read_dir(&events).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::read(name).unwrap()[21..36], *b"\x1a\x0dbrain.Event:2");
        // Went back while nothing can be written.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        recorder.train(train(7, 5.0));
        recorder.train(train(8, 5.0));
        recorder.go_back(7);
        fs::remove_dir(&path).unwrap();
        recorder.train(train(8, 4.0));
        assert_eq!(steps(&path), [7, 8]);
    }

    /// A disk that fills up cuts a record; the next one stands after the last whole one.
    #[test]
    fn what_is_said_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let mut file = Appended::new(path.clone(), b"head ".to_vec());
        assert_eq!(file.append(b"one "), None);
        fs::rename(&path, folder.path().join("kept")).unwrap();
        fs::create_dir(&path).unwrap();
        let said = file.append(b"two ").unwrap();
        assert!(said.contains("NOT WRITTEN: ") && said.contains("training goes on"), "{said}");
        assert_eq!(file.append(b"three "), None);
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "head one tw").unwrap();
        let said = file.append(b"four ").unwrap();
        assert!(said.ends_with("is written again, nothing is missing"), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "head one two three four ");
        fs::remove_file(&path).unwrap();
        assert!(file.append(b"five ").unwrap().ends_with("was removed and is begun anew"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "head five ");
    }

    #[test]
    fn padding_is_no_token() {
        let shape = BatchShape { accumulation: 1, micro: 2, seq: 4 };
        let (position, position_after) = Default::default();
        let segments = vec![0, 0, 0, -1, 0, 1, 1, 2];
        let batch = Batch { shape, ids: vec![5; 8], segments, position, position_after };
        let mut held = Held::of(&batch);
        assert_eq!(held, Held { steps: 1, places: 8, padding: 1, targets: 3 });
        held.add(held);
        assert_eq!((held.targets_a_step(), held.share_of_padding()), (3.0, 0.125));
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
        fs::write(folder.path().join(METRICS), format!("{old}\n")).unwrap();
        let error = open(folder.path(), 1, 2).map(drop).unwrap_err().to_string();
        assert!(error.contains("main_loss") && error.contains("move the file away"), "{error}");
    }

    #[test]
    fn a_foreign_file_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS);
        fs::write(&path, "notes\nof mine\n").unwrap();
        let error = open(folder.path(), 0, 1).map(drop).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("move the file away"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes\nof mine\n");
    }
}
