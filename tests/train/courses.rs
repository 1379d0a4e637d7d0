//! Runs that are stopped, killed, started again, branched, mirrored, damaged and mistyped, in random order, over a machine
//! whose steps are a hash of all that they are given. Of every sequence must hold:
//!
//! * every step that is ever launched follows from the one before it in its run ([`reference`]): its weights, its rows, its
//!   rate and its bounds are those, through lost checkpoints, turns back and other settings;
//! * it has the loss that it has in the run that nothing happened to, bit for bit, if no checkpoint was lost and no setting
//!   changed the course;
//! * what is done without a fault succeeds or is refused, and every refusal's advice is accepted;
//! * no file of another run changes, and none at all by a refusal;
//! * in the end the run is finished and its last checkpoint is that of the undisturbed one.
//!
//! `PROPTEST_CASES=5000 cargo test --test train courses::` tries others.

mod machine;
mod reference;

use anyhow::{Result, bail};
use clap::Parser;
use machine::{BAD, End, Event, Hashed, Launch, Life, of_weights};
use proptest::collection::vec;
use reference::{At, Origins, Rows, relive};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tests::faults::{Fault, FaultyDisk};
use tests::property;
use tests::trainer::files;
use train::atomic::RealDisk;
use train::checkpoint::{CheckpointError, Progress, State, Store, latest_good};
use train::cli::{Cli, Resume};
use train::data::{Dataset, Loader, PrepareOptions, TokenizerSource, prepare};
use train::metrics::Look;
use train::run::{Ended, Outcome, Refused, World, run_in};
use train::signals::Stop;

const STEPS: u64 = 48;
const EVERY: u64 = 5;
/// Steps of a branch's decay.
const DECAY: u64 = 9;
/// Rows that no life comes beyond.
const ROWS: usize = 600;
const SETTINGS: &[&str] = &[
    "model.hidden_size=4",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=2",
    "model.head_dim=2",
    "model.intermediate_size=4",
    "model.vocab_size=300",
    "model.num_tokens=300",
    "model.max_position_embeddings=64",
    "batch.micro=1",
    "batch.accumulation=2",
    "batch.seq=16",
    "data.fim_rate=0",
    "data.epochs=1000",
    "schedule.decay_fraction=0.2",
    "checkpoint.every=5",
    "checkpoint.keep_last=3",
    "guard.bad_steps=3",
    "guard.rollbacks=2",
    "guard.spike_factor=3",
    "log.every=1",
];

/// Settings that change the course of a run; of the first one all begin.
const COURSES: [&[&str]; 5] = [
    &[],
    &["optimizer.weight_decay=0.5"],
    &["optimizer.learning_rate=0.002"],
    &["batch.accumulation=3"],
    &["batch.accumulation=1", "guard.spike_factor=1.5"],
];

/// What a run says that cannot go back, or not once more.
const NOWHERE: [&str; 2] = ["there is no checkpoint to go back to", "times did not help"];

/// Steps and folders of the checkpoints in a folder, which need not be there.
fn steps(root: &Path) -> Vec<(u64, PathBuf)> {
    if root.exists() { train::checkpoint::steps(root).unwrap() } else { Vec::new() }
}

/// Inode, length and time of the last change of every file of a folder: what is there is the same if these are.
fn marks(folder: &Path) -> BTreeMap<PathBuf, (u64, u64, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let (path, of) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
            if of.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                found.insert(name, (of.ino(), of.len(), of.ctime(), of.ctime_nsec()));
            }
        }
    }
    found
}

/// A place with data, and what runs in it have launched.
struct Field {
    folder: TempDir,
    data: PathBuf,
    /// By folder.
    launches: BTreeMap<String, BTreeSet<Launch>>,
}

impl Field {
    fn new(data: &Path) -> Field {
        // Files that were just removed make new ones slow on ext4: half of the time, where there is no disk but this.
        let memory = Path::new("/dev/shm");
        let folder =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        Field { folder, data: data.into(), launches: BTreeMap::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `train --out <out> <args>`; names of folders in `args` are those here.
    fn cli(&self, out: &str, args: &[String]) -> Cli {
        let mut words = vec!["train".to_owned(), "--out".into(), self.path(out).display().to_string()];
        words.extend(["--data".into(), self.data.display().to_string(), "--steps".into(), STEPS.to_string()]);
        words.extend(SETTINGS.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
        words.extend(args.iter().map(|word| word.replace("HERE", &self.folder.path().display().to_string())));
        Cli::try_parse_from(words).unwrap()
    }

    fn live(&mut self, cli: &Cli, end: End) -> (Result<Ended>, Life) {
        let life = Arc::new(Mutex::new(Life::default()));
        let result = self.live_into(cli, end, &life);
        let life = std::mem::take(&mut *life.lock().unwrap());
        let name = cli.out.file_name().unwrap().to_str().unwrap().to_owned();
        self.launches.entry(name).or_default().extend(life.launches());
        (result, life)
    }

    fn live_into(&self, cli: &Cli, end: End, life: &Arc<Mutex<Life>>) -> Result<Ended> {
        let fault = if let End::Disk(fault) = end { fault } else { Fault::None };
        let disk = FaultyDisk::new(fault);
        let world = World { disk: Arc::new(disk.clone()), stop: Stop::manual(), look: Look::Silent };
        for _ in 0..500 {
            let result = run_in(cli, &world, |resolved, _| {
                let (stop, life, disk) = (world.stop.clone(), Arc::clone(life), disk.clone());
                life.lock().unwrap().run = Some(resolved.run.clone());
                Ok(Hashed { run: resolved.run.clone(), state: 0, life, launched: 0, end, stop, disk })
            });
            // What copied for the life before would have died with its process.
            match &result {
                Err(error) if matches!(error.downcast_ref(), Some(CheckpointError::MirrorInUse(_))) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => {
                    if let Some(mirror) = cli.resolve().unwrap().run.checkpoint.mirror {
                        self.wait_for_the_end(&mirror);
                    }
                    return result;
                }
            }
        }
        bail!("the mirror stays in use")
    }

    /// The thread that copies may outlive its run, and then holds the lock.
    fn wait_for_the_end(&self, mirror: &Path) {
        for _ in 0..5000 {
            if !mirror.join(".lock").exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn launched(&self, out: &str) -> BTreeSet<Launch> {
        self.launches.get(out).cloned().unwrap_or_default()
    }

    /// The last checkpoint's state, but for whose it is.
    fn last(&self, out: &str) -> (u64, Progress) {
        let state: State =
            latest_good(&self.path(out).join("checkpoints")).unwrap().good.unwrap().state().clone();
        (state.seed, state.progress)
    }
}

/// How a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Beginning {
    New,
    /// At the trunk's checkpoint of this step.
    At(u64),
    Branch(u64),
    Init(u64),
}

impl Beginning {
    fn out(self) -> &'static str {
        match self {
            Beginning::New => "trunk",
            Beginning::At(_) => "child",
            Beginning::Branch(_) => "branch",
            Beginning::Init(_) => "anew",
        }
    }

    fn args(self) -> Vec<String> {
        let trunk = |step: u64| format!("HERE/trunk/checkpoints/step_{step:08}");
        match self {
            Beginning::New => Vec::new(),
            Beginning::At(step) => vec!["--resume".into(), trunk(step)],
            Beginning::Branch(step) => {
                vec!["--resume".into(), trunk(step), "--branch-decay".into(), DECAY.to_string()]
            }
            Beginning::Init(step) => vec!["--init".into(), trunk(step)],
        }
    }

    fn mirrored(self) -> Vec<String> {
        let mirror = format!("checkpoint.mirror=HERE/{}", self.mirror());
        [self.args(), vec!["--set".into(), mirror]].concat()
    }

    fn mirror(self) -> String {
        format!("drive_{}", self.out())
    }
}

/// What happens when nothing happens.
struct Undisturbed {
    launches: BTreeMap<Beginning, (BTreeSet<Launch>, (u64, Progress))>,
    /// Of the trunk: steps that can be begun at, and those that can be branched from.
    kept: Vec<u64>,
    /// The state of new weights.
    fresh: u64,
    rows: Rows,
}

fn data() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let sources = folder.path().join("sources");
    fs::create_dir(&sources).unwrap();
    for i in 0..9 {
        let body: String = (0..2 + i % 3).map(|line| format!("    total += x * {i} + {line}\n")).collect();
        fs::write(
            sources.join(format!("{i}.py")),
            format!("def f_{i}(x, total=0):\n{body}    return total\n"),
        )
        .unwrap();
    }
    let mut options = PrepareOptions::new(vec![sources], folder.path().join("data"));
    options.tokenizer = TokenizerSource::Train(300);
    options.validation_fraction = 0.0;
    options.threads = 1;
    prepare(&options, &mut |_| ControlFlow::Continue(())).unwrap();
    folder
}

impl Undisturbed {
    fn of(data: &Path) -> Undisturbed {
        let mut field = Field::new(data);
        let every = ["--set".to_owned(), format!("checkpoint.keep_every={EVERY}")];
        let mut launches = BTreeMap::new();
        let run = |field: &mut Field, launches: &mut BTreeMap<_, _>, beginning: Beginning| {
            let cli = field.cli(beginning.out(), &[beginning.args(), every.to_vec()].concat());
            let (ended, life) = field.live(&cli, End::Finish);
            assert_eq!(ended.unwrap().outcome, Outcome::Finished);
            launches.insert(beginning, (field.launched(beginning.out()), field.last(beginning.out())));
            life
        };
        let life = run(&mut field, &mut launches, Beginning::New);
        let Some(Event::Loaded { state: fresh, .. }) = life.events.first() else { panic!("{life:?}") };
        let rows = Rows::of(data, life.run.as_ref().unwrap(), ROWS);
        // What the trunk turned back from, or to, is another thing before than after.
        let (launched, (_, progress)): &(BTreeSet<Launch>, (u64, Progress)) = &launches[&Beginning::New];
        let once = |step: &u64| {
            !progress.turns.contains(step)
                && launched.iter().filter(|launch| launch.step + 1 == *step).count() == 1
        };
        let all = steps(&field.path("trunk/checkpoints"));
        let kept: Vec<u64> =
            all.into_iter().map(|(step, _)| step).filter(|step| step % EVERY == 0 && once(step)).collect();
        println!("begun at {kept:?}");
        for step in &kept {
            for beginning in [Beginning::At(*step), Beginning::Init(*step), Beginning::Branch(*step)] {
                // Behind the stable phase there is no branch.
                if matches!(beginning, Beginning::Branch(step) if step >= STEPS * 4 / 5) {
                    continue;
                }
                run(&mut field, &mut launches, beginning);
                fs::remove_dir_all(field.path(beginning.out())).unwrap();
                field.launches.clear();
            }
        }
        Undisturbed { launches, kept, fresh: *fresh, rows }
    }

    fn of_beginning(&self, beginning: Beginning) -> &(BTreeSet<Launch>, (u64, Progress)) {
        &self.launches[&beginning]
    }
}

/// The undisturbed run itself: rows in the loader's own order, none twice and none left out but those that it went back
/// behind, and a decay, two turns back and an end of an epoch within it.
#[test]
fn the_undisturbed_run_sees_each_row_once() {
    let folder = data();
    let undisturbed = Undisturbed::of(&folder.path().join("data"));
    let (launches, (_, progress)) = undisturbed.of_beginning(Beginning::New);
    println!("{} launches, {progress:?}", launches.len());
    assert_eq!(progress.turns.len(), 2, "it goes back twice: {progress:?}");
    assert!(progress.data.epoch >= 2, "{progress:?}");
    let rows: BTreeSet<u64> = launches.iter().map(|launch| launch.row).collect();
    let wanted: BTreeSet<u64> = (0..progress.data.rows).step_by(2).collect();
    assert_eq!(rows, wanted, "two rows a step, none left out");
    // Trained for good: each row by one step, of those that it did not go back behind.
    let mut last: BTreeMap<u64, &Launch> = BTreeMap::new();
    for launch in launches {
        let newest = last.entry(launch.step).or_insert(launch);
        *newest = if launch.row > newest.row { launch } else { newest };
    }
    let trained: BTreeSet<u64> = last.values().map(|launch| launch.row).collect();
    assert_eq!((last.len() as u64, trained.len() as u64), (STEPS, STEPS), "no row twice");
    // Rows are what the loader makes of the data, whatever the positions say.
    let dataset = Arc::new(Dataset::open(&folder.path().join("data"), 300, 0.0).unwrap());
    let cli = Field::new(&folder.path().join("data")).cli("x", &[]);
    let run = cli.resolve().unwrap().run;
    let mut loader = Loader::start(dataset, run.data.rows(16, run.seed), Default::default()).unwrap();
    let mut epochs: BTreeMap<u64, Vec<Vec<i32>>> = BTreeMap::new();
    while loader.position().epoch < 2 {
        let batch = loader.next_batch(1, 1).unwrap();
        epochs.entry(batch.position.epoch).or_default().push(batch.ids);
    }
    assert!(epochs[&0].len() > 8 && epochs[&0].len().abs_diff(epochs[&1].len()) <= 2);
}

/// What a sequence is in the middle of.
struct Play<'u> {
    field: Field,
    undisturbed: &'u Undisturbed,
    beginnings: BTreeMap<&'static str, Beginning>,
    /// The number of the settings of each run.
    courses: BTreeMap<&'static str, usize>,
    /// What each run was to save so far.
    known: BTreeMap<&'static str, Vec<At>>,
    /// Runs of which a checkpoint was lost that the undisturbed run has: they may go back to another one.
    poorer: BTreeSet<Beginning>,
    /// Runs on another course, and those that began at a checkpoint of such a trunk, or of a poorer one: it may be another one
    /// than the undisturbed trunk's of that step.
    others: BTreeSet<Beginning>,
    /// How often a run had nothing to go back to.
    nowhere: usize,
}

impl<'u> Play<'u> {
    fn new(data: &Path, undisturbed: &'u Undisturbed) -> Play<'u> {
        Play {
            field: Field::new(data),
            undisturbed,
            beginnings: BTreeMap::new(),
            courses: BTreeMap::new(),
            known: BTreeMap::new(),
            poorer: BTreeSet::new(),
            others: BTreeSet::new(),
            nowhere: 0,
        }
    }

    /// A run's own command, behind `train --out`.
    fn own(&self, beginning: Beginning) -> Vec<String> {
        let course = self.courses.get(beginning.out()).copied();
        self.on_course(beginning, course.unwrap_or(0), course.is_some())
    }

    fn on_course(&self, beginning: Beginning, course: usize, accept: bool) -> Vec<String> {
        let sets = COURSES[course].iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]);
        let accept = accept.then(|| "--accept-changes".to_owned());
        beginning.mirrored().into_iter().chain(sets).chain(accept).collect()
    }

    /// Files of everything but one run.
    fn others(&self, but: &[&str]) -> BTreeMap<PathBuf, (u64, u64, i64, i64)> {
        let mut all = marks(self.field.folder.path());
        all.retain(|path, _| !but.iter().any(|name| path.starts_with(name)) && !path.ends_with(".lock"));
        all
    }

    /// One life of a run by its own command.
    fn live(&mut self, beginning: Beginning, more: &[&str], end: End) {
        let (out, mirror) = (beginning.out(), beginning.mirror());
        let more: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
        let cli = self.field.cli(out, &[self.own(beginning), more].concat());
        let copied = latest_good(&self.field.path(&mirror)).unwrap().good.is_some();
        if beginning != Beginning::New
            && self.poorer.contains(&Beginning::New)
            && !self.holds(beginning)
            && !copied
        {
            self.others.insert(beginning);
            self.poorer.insert(beginning);
        }
        let before = self.others(&[out, &mirror]);
        let (result, life) = self.field.live(&cli, end);
        self.relive(beginning, &life);
        assert_eq!(self.others(&[out, &mirror]), before, "another run's files changed");
        match (&result, end) {
            (Ok(ended), End::Finish) => assert_eq!(ended.outcome, Outcome::Finished),
            (Ok(_), _) | (Err(_), End::Kill(_) | End::Disk(_)) => {}
            // All that is left was taken among bad steps, or these settings do not lead out of them: a person gives it up.
            (Err(error), _)
                if self.poorer.contains(&beginning)
                    && NOWHERE.iter().any(|nowhere| format!("{error:#}").contains(nowhere)) =>
            {
                for lost in [out, &mirror] {
                    let _ = fs::remove_dir_all(self.field.path(lost));
                }
                self.field.launches.remove(out);
                self.beginnings.remove(out);
                self.courses.remove(out);
                self.known.remove(out);
                self.poorer.remove(&beginning);
                self.others.remove(&beginning);
                self.nowhere += 1;
                return;
            }
            (Err(error), _) => panic!("{beginning:?} by its own command, {end:?}: {error:#}"),
        }
        if let (Err(error), true) = (&result, error_is_refusal(&result)) {
            panic!("{beginning:?} is refused by its own command: {error:#}");
        }
        if result.is_err() && matches!(end, End::Disk(Fault::Once(_) | Fault::FullFrom(_))) {
            self.poorer.insert(beginning);
        }
        self.compare(beginning);
    }

    /// Every step follows from the one before.
    fn relive(&mut self, beginning: Beginning, life: &Life) {
        let out = beginning.out();
        let mut known = self.known.remove(out).unwrap_or_default();
        let trunk = self.known.get("trunk").map_or(&[][..], Vec::as_slice);
        let of_step = |step: u64| trunk.iter().filter(move |at| at.progress.step == step);
        let origins = Origins {
            weights: match beginning {
                Beginning::New => vec![self.undisturbed.fresh],
                Beginning::Init(step) => of_step(step).map(|at| of_weights(at.state)).collect(),
                Beginning::At(_) | Beginning::Branch(_) => Vec::new(),
            },
            checkpoints: match beginning {
                Beginning::At(_) | Beginning::Branch(_) => trunk,
                Beginning::New | Beginning::Init(_) => &[],
            },
            branch: if let Beginning::Branch(step) = beginning { Some((step, DECAY)) } else { None },
        };
        relive(life, &self.undisturbed.rows, &mut known, &origins);
        self.known.insert(out, known);
    }

    /// Every step is that of the undisturbed run.
    fn compare(&self, beginning: Beginning) {
        if self.others.contains(&beginning) {
            return;
        }
        let (wanted, _) = self.undisturbed.of_beginning(beginning);
        let launched = self.field.launched(beginning.out());
        // Up to the first bad step in a row at the least.
        let known = |launch: &&Launch| !self.poorer.contains(&beginning) || launch.row < BAD[0].start;
        let strange: Vec<_> = launched.difference(wanted).filter(known).collect();
        assert!(strange.is_empty(), "{beginning:?} did {strange:?}, which the undisturbed run does not");
    }

    /// A command that is not this run's own: refused, nothing changes, and its advice is accepted.
    fn mistype(&mut self, out: &str, args: &[String]) {
        let cli = self.field.cli(out, args);
        // What a crash left is mended by whoever looks.
        let root = cli.out.join("checkpoints");
        if root.exists() {
            drop(Store::open(Arc::new(RealDisk), &root).unwrap());
        }
        let before = self.others(&[]);
        let launches = self.field.launched(out);
        let error = match self.field.live(&cli, End::Stop(1)).0 {
            Err(error) => error,
            Ok(_) => panic!("accepted: {}", cli.command()),
        };
        let Some(Refused { instead, reason }) = error.downcast_ref() else {
            panic!("{}: {error:#}", cli.command())
        };
        let after = self.others(&[]);
        assert!(after == before, "refused, but something changed: {reason}");
        assert_eq!(self.field.launched(out), launches);
        let Some(instead) = instead else { panic!("no advice: {reason}") };
        // Tried on a copy of everything: it may be this very run that it goes on with.
        let mut copy = Field::new(&self.field.data);
        for (path, bytes) in files(self.field.folder.path()) {
            let path = copy.path("").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let (here, there) =
            (self.field.folder.path().display().to_string(), copy.folder.path().display().to_string());
        let moved = |path: &PathBuf| PathBuf::from(path.display().to_string().replace(&here, &there));
        let mut instead = instead.clone();
        instead.out = moved(&instead.out);
        instead.init = instead.init.as_ref().map(moved);
        if let Resume::From(path) = &instead.resume {
            instead.resume = Resume::From(moved(path));
        }
        instead.layers.set.iter_mut().for_each(|set| *set = set.replace(&here, &there));
        // Begun here, it is known by the names of here.
        for (path, bytes) in files(copy.folder.path()) {
            if let Ok(text) = String::from_utf8(bytes)
                && path.file_name().is_some_and(|name| name == "run.json")
            {
                fs::write(copy.path("").join(path), text.replace(&here, &there)).unwrap();
            }
        }
        if let Err(error) = copy.live(&instead, End::Stop(1)).0 {
            panic!("{reason}\nthe advice {} is not accepted: {error:#}", instead.command());
        }
    }

    fn holds(&self, beginning: Beginning) -> bool {
        !steps(&self.field.path(beginning.out()).join("checkpoints")).is_empty()
    }

    fn steps_of_trunk(&self) -> Vec<u64> {
        let there = steps(&self.field.path("trunk/checkpoints"));
        there.into_iter().map(|(step, _)| step).filter(|step| self.undisturbed.kept.contains(step)).collect()
    }

    /// A run in progress, or one that is begun now.
    fn some_run(&mut self, kind: usize, which: usize) -> Beginning {
        let known = |out: &str, beginnings: &BTreeMap<&'static str, Beginning>| beginnings.get(out).copied();
        let begun = ["trunk", "child", "branch", "anew"][kind % 4];
        if let Some(beginning) = known(begun, &self.beginnings) {
            return beginning;
        }
        let there = self.steps_of_trunk();
        let pick = |there: &[u64]| (!there.is_empty()).then(|| there[which % there.len()]);
        let stable: Vec<u64> = there.iter().copied().filter(|step| *step < STEPS * 4 / 5).collect();
        let beginning = match begun {
            "child" => pick(&there).map(Beginning::At),
            "branch" => pick(&stable).map(Beginning::Branch),
            "anew" => pick(&there).map(Beginning::Init),
            _ => None,
        }
        .unwrap_or(Beginning::New);
        self.beginnings.insert(beginning.out(), beginning);
        beginning
    }

    /// Whether the run can begin still: it has come so far that it needs its beginning no more, or that is there.
    fn can_live(&self, beginning: Beginning) -> bool {
        let own = self.holds(beginning);
        let copied = latest_good(&self.field.path(&beginning.mirror())).unwrap().good.is_some();
        let there = |step: u64, file: &str| {
            self.field.path(&format!("trunk/checkpoints/step_{step:08}")).join(file).exists()
        };
        match beginning {
            Beginning::New => true,
            // The architecture must be known before the mirror is.
            Beginning::Init(step) => own || there(step, "config.json"),
            Beginning::At(step) | Beginning::Branch(step) => own || copied || there(step, ""),
        }
    }

    fn act(&mut self, (action, kind, number): (u8, usize, usize)) {
        let beginning = self.some_run(kind, number);
        if !self.can_live(beginning) {
            return;
        }
        let (out, at) = (beginning.out(), number as u64 % 30 + 1);
        match action % 18 {
            0..=3 => self.live(beginning, &[], End::Stop(at)),
            4 | 5 => self.live(beginning, &[], End::Kill(at)),
            6 | 7 => self.live(beginning, &[], End::Disk(Fault::Crash(number % 400))),
            8 => self.live(beginning, &[], End::Disk(Fault::FullFrom(number % 400))),
            9 => self.live(beginning, &[], End::Disk(Fault::Once(number % 400))),
            10 => self.live(
                beginning,
                &["--set", "log.every=3", "--set", "checkpoint.every_minutes=1000"],
                End::Stop(at),
            ),
            11 => {
                // The machine is gone, or the drive is.
                let lost = if number.is_multiple_of(3) { beginning.mirror() } else { out.to_owned() };
                if self.field.path(&lost).exists() {
                    if lost == out {
                        self.poorer.insert(beginning);
                    }
                    fs::remove_dir_all(self.field.path(&lost)).unwrap();
                }
            }
            12 => self.damage(beginning, number),
            _ if !self.holds(beginning) => self.live(beginning, &[], End::Stop(at)),
            13 | 14 => {
                let before = self.courses.get(out).copied().unwrap_or(0);
                let course = (before + 1 + number % (COURSES.len() - 1)) % COURSES.len();
                self.mistype(out, &self.on_course(beginning, course, false));
                self.courses.insert(out, course);
                self.others.insert(beginning);
                self.poorer.insert(beginning);
                self.live(beginning, &[], End::Stop(at));
            }
            15 | 16 => {
                // By another name of the same folder; into a mirror that is another's.
                let step = steps(&self.field.path(out).join("checkpoints"))[0].0;
                let own = format!("HERE/./{out}/../{out}/checkpoints/step_{step:08}");
                let branch = ["--resume".into(), own, "--branch-decay".into(), "3".into()];
                self.mistype_unless_decayed(out, step, &branch);
            }
            _ => {
                if latest_good(&self.field.path(&beginning.mirror())).unwrap().good.is_some() {
                    let mirror = format!("checkpoint.mirror=HERE/{}", beginning.mirror());
                    self.mistype("stranger", &["--set".into(), mirror]);
                }
                let mut never = self.own(beginning);
                if let Some(at) = never.iter().position(|word| word == "--resume") {
                    never[at + 1] = "never".into();
                } else {
                    never.extend(["--resume".into(), "never".into()]);
                }
                if !matches!(beginning, Beginning::Branch(_)) {
                    self.mistype(out, &never);
                }
            }
        }
    }

    /// The advice is a branch from there, which needs a checkpoint of the stable phase.
    fn mistype_unless_decayed(&mut self, out: &str, step: u64, branch: &[String]) {
        let path = self.field.path(out).join(format!("checkpoints/step_{step:08}"));
        let stable = train::checkpoint::whole(&path)
            .is_some_and(|state| state.phase == train::schedule::Phase::Stable);
        if stable {
            self.mistype(out, branch);
        }
    }

    /// A byte of the newest checkpoint changes; the run passes over it, or is refused if there is no other.
    fn damage(&mut self, beginning: Beginning, number: usize) {
        let all = steps(&self.field.path(beginning.out()).join("checkpoints"));
        let Some((_, newest)) = all.last() else { return };
        let path = newest.join(["model.safetensors", "state.json", "manifest.json"][number % 3]);
        let mut bytes = fs::read(&path).unwrap();
        let at = number % bytes.len();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let copied = latest_good(&self.field.path(&beginning.mirror())).unwrap().good.is_some();
        // It may be just the one to go back to.
        self.poorer.insert(beginning);
        if all.len() > 1 || copied {
            self.live(beginning, &[], End::Stop(3));
        } else {
            self.mistype(beginning.out(), &self.own(beginning));
        }
        // Mended, unless it was trained again.
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
}

fn error_is_refusal(result: &Result<Ended>) -> bool {
    result.as_ref().is_err_and(|error| error.downcast_ref::<Refused>().is_some())
}

#[test]
fn whatever_happens_the_run_is_the_same() {
    let folder = data();
    let undisturbed = Undisturbed::of(&folder.path().join("data"));
    let counted = Mutex::new([0; 5]);
    property(300, &vec((0_u8..18, 0_usize..4, 0_usize..100_000), 1..7), |actions| {
        let mut play = Play::new(&folder.path().join("data"), &undisturbed);
        let acts = actions.len();
        actions.into_iter().for_each(|action| play.act(action));
        for beginning in play.beginnings.clone().into_values() {
            if !play.can_live(beginning) {
                continue;
            }
            play.live(beginning, &[], End::Finish);
            if !play.beginnings.contains_key(beginning.out()) {
                continue;
            }
            let (_, last) = play.undisturbed.of_beginning(beginning);
            if play.poorer.contains(&beginning) {
                assert_eq!(play.field.last(beginning.out()).1.step, last.1.step);
            } else {
                assert_eq!(play.field.last(beginning.out()), *last, "{beginning:?}");
            }
        }
        let mut counts = counted.lock().unwrap();
        let others = play.courses.len();
        let of_play = [1, acts, play.poorer.len() - others, others, play.nowhere];
        counts.iter_mut().zip(of_play).for_each(|(all, of_play)| *all += of_play);
    });
    let [sequences, acts, poorer, others, nowhere] = *counted.lock().unwrap();
    println!(
        "{sequences} sequences of {acts} acts; {poorer} runs lost a checkpoint to a disk or a machine, {others} changed their course, {nowhere} of them had nowhere to go back to"
    );
}
