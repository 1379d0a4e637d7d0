//! Runs that are stopped, killed, started again, branched, mirrored, damaged and mistyped, in random order, over a machine
//! whose steps are a hash of all that they are given. Of every sequence must hold:
//!
//! * every step that is ever launched has the loss that it has in the run that nothing happened to, bit for bit, so its
//!   weights, its rows, its rate and its bounds are those;
//! * what is done without a fault succeeds or is refused, and every refusal's advice is accepted;
//! * no file of another run changes, and none at all by a refusal;
//! * in the end the run is finished and its last checkpoint is that of the undisturbed one.
//!
//! `PROPTEST_CASES=5000 cargo test --test train courses::` tries others.

use anyhow::{Result, bail};
use clap::Parser;
use engine::Host;
use model::initial_params;
use proptest::collection::vec;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
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
use train::config::RunConfig;
use train::data::{Batch, Dataset, Loader, PrepareOptions, Tokenizer, TokenizerSource, prepare};
use train::machine::{Content, HeldOutLosses, Machine};
use train::metrics::Look;
use train::run::{Ended, Outcome, Refused, World, run_in};
use train::signals::Stop;
use train::state::{HostState, StepInputs};

const STEPS: u64 = 48;
const EVERY: u64 = 5;
/// Rows, by their number from the start, whose steps leave the weights as they were: twice so many in a row that the run
/// goes back, and one step alone.
const BAD: [std::ops::Range<u64>; 3] = [24..30, 60..66, 80..82];

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

/// What a run says that cannot go back.
const NOWHERE: &str = "there is no checkpoint to go back to";

/// What one step was given and gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Launch {
    step: u64,
    row: u64,
    loss: u64,
}

/// What ends a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing.
    Finish,
    /// It is asked to stop at the launch of this number.
    Stop(u64),
    /// It is killed there.
    Kill(u64),
    /// What the disk does.
    Disk(Fault),
}

/// A machine whose state is a hash of all steps.
struct Hashed {
    run: RunConfig,
    state: u64,
    launches: Arc<Mutex<Vec<Launch>>>,
    launched: u64,
    end: End,
    stop: Stop,
    disk: FaultyDisk,
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().unwrap())
}

impl Machine for Hashed {
    type Pending = [f64; 7];

    fn load(&mut self, content: Content<'_>) -> Result<()> {
        let number = |embed: &Host| {
            let parts = embed.as_slice::<f32>()[..4].iter();
            parts.fold(0, |all, part| all << 16 | u64::from(part.to_bits() >> 8 & 0xffff))
        };
        // What comes from elsewhere begins with what its weights are.
        self.state = match content {
            Content::Weights(weights) => hash(&[&number(&weights.embed).to_le_bytes()]),
            Content::Checkpoint(from) => {
                let weights = number(&from.weights().next().unwrap()?);
                let half = from.optimizer_tensor("state")?.unwrap();
                let half = half.as_slice::<i32>();
                let state = u64::from(half[0] as u32) << 32 | u64::from(half[1] as u32);
                assert_eq!(weights, state, "weights and moments of one checkpoint");
                state
            }
        };
        Ok(())
    }

    fn step(&mut self, batch: &Batch, inputs: StepInputs) -> Result<[f64; 7]> {
        self.launched += 1;
        match self.end {
            End::Stop(at) if at == self.launched => self.stop.request(),
            End::Kill(at) if at == self.launched => {
                self.disk.crash();
                bail!("killed");
            }
            _ => {}
        }
        let bytes = |ids: &[i32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
        let numbers = [
            self.state,
            inputs.step,
            inputs.seed,
            inputs.learning_rate.to_bits(),
            u64::from(inputs.largest_norm.to_bits()),
        ];
        let numbers = numbers.map(u64::to_le_bytes).concat();
        let next = hash(&[&numbers, &bytes(&batch.ids), &bytes(&batch.segments)]);
        let bad = BAD.iter().any(|rows| rows.contains(&batch.position.rows));
        let part = |word: u64| (word >> 12) as f64 / (1_u64 << 52) as f64;
        let loss = if bad { f64::NAN } else { 1.0 + part(next) };
        let launch = Launch { step: inputs.step, row: batch.position.rows, loss: next };
        self.launches.lock().unwrap().push(launch);
        if !bad {
            self.state = next;
        }
        let applied = f64::from(u8::from(!bad));
        Ok([loss, loss, loss, 1.0 + part(next.rotate_left(32)), applied, 30.0, 28.0])
    }

    fn read(&mut self, pending: [f64; 7]) -> Result<[f64; 7]> {
        Ok(pending)
    }

    fn to_host(&self) -> Result<HostState> {
        let mut params = initial_params(&self.run.model, 0);
        let mut embed = params.embed.to_f64();
        for (at, value) in embed[..4].iter_mut().enumerate() {
            // 16 bits in the middle of a number that is none of the special ones.
            let part = (self.state >> (48 - 16 * at)) as u16;
            *value = f64::from(f32::from_bits(0x3f00_0000 | u32::from(part) << 8 & 0x00ff_ff00));
        }
        params.embed = Host::from_f64(params.embed.ty().clone(), &embed);
        let halves = [(self.state >> 32) as u32 as i32, self.state as u32 as i32];
        Ok((params, vec![("state".into(), Host::new([2], &halves))]))
    }

    fn validate(&mut self, _: &Stop) -> Result<Option<HeldOutLosses>> {
        Ok(None)
    }

    fn held_out(&self) -> &[Batch] {
        &[]
    }

    fn sample(&self, _: &Tokenizer) -> Result<Option<String>> {
        Ok(None)
    }

    fn kind(&self) -> &str {
        "hash"
    }
}

/// Steps and folders of the checkpoints in a folder, which need not be there.
fn steps(root: &Path) -> Vec<(u64, PathBuf)> {
    if root.exists() { train::checkpoint::steps(root).unwrap() } else { Vec::new() }
}

/// A place with data, and what runs in it have launched.
struct Field {
    folder: TempDir,
    data: PathBuf,
    /// By folder.
    launches: BTreeMap<String, Arc<Mutex<Vec<Launch>>>>,
}

impl Field {
    fn new(data: &Path) -> Field {
        Field { folder: tempfile::tempdir().unwrap(), data: data.into(), launches: BTreeMap::new() }
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

    fn live(&mut self, cli: &Cli, end: End) -> Result<Ended> {
        let fault = if let End::Disk(fault) = end { fault } else { Fault::None };
        let disk = FaultyDisk::new(fault);
        let world = World { disk: Arc::new(disk.clone()), stop: Stop::manual(), look: Look::Silent };
        let name = cli.out.file_name().unwrap().to_str().unwrap().to_owned();
        let launches = self.launches.entry(name).or_default();
        for _ in 0..500 {
            let result = run_in(cli, &world, |resolved, _| {
                let (stop, launches, disk) = (world.stop.clone(), Arc::clone(launches), disk.clone());
                Ok(Hashed { run: resolved.run.clone(), state: 0, launches, launched: 0, end, stop, disk })
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
        self.launches.get(out).map(|all| all.lock().unwrap().iter().copied().collect()).unwrap_or_default()
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
                vec!["--resume".into(), trunk(step), "--branch-decay".into(), "9".into()]
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
            let ended = field.live(&cli, End::Finish).unwrap();
            assert_eq!(ended.outcome, Outcome::Finished);
            launches.insert(beginning, (field.launched(beginning.out()), field.last(beginning.out())));
        };
        run(&mut field, &mut launches, Beginning::New);
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
        Undisturbed { launches, kept }
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
    /// Runs of which a checkpoint was lost that the undisturbed run has: they may go back to another one.
    poorer: BTreeSet<Beginning>,
    /// Runs that began at a checkpoint of such a trunk: it may be another one than the undisturbed trunk's of that step.
    others: BTreeSet<Beginning>,
    /// How often a run had nothing to go back to.
    nowhere: usize,
}

impl Play<'_> {
    /// Files of everything but one run.
    fn others(&self, but: &[&str]) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = files(self.field.folder.path());
        all.retain(|path, _| !but.iter().any(|name| path.starts_with(name)) && !path.ends_with(".lock"));
        all
    }

    /// One life of a run by its own command.
    fn live(&mut self, beginning: Beginning, more: &[&str], end: End) {
        let (out, mirror) = (beginning.out(), beginning.mirror());
        let more: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
        let cli = self.field.cli(out, &[beginning.mirrored(), more].concat());
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
        let result = self.field.live(&cli, end);
        assert_eq!(
            self.others(&[out, &mirror]).keys().collect::<Vec<_>>(),
            before.keys().collect::<Vec<_>>()
        );
        assert!(self.others(&[out, &mirror]) == before, "another run's files changed");
        match (&result, end) {
            (Ok(ended), End::Finish) => assert_eq!(ended.outcome, Outcome::Finished),
            (Ok(_), _) | (Err(_), End::Kill(_) | End::Disk(_)) => {}
            // All that is left was taken among bad steps: a person begins anew.
            (Err(error), _) if self.poorer.contains(&beginning) && error.to_string().contains(NOWHERE) => {
                for lost in [out, &mirror] {
                    let _ = fs::remove_dir_all(self.field.path(lost));
                }
                self.nowhere += 1;
                if self.can_live(beginning) {
                    self.live(beginning, &[], end);
                }
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
        let error = match self.field.live(&cli, End::Stop(1)) {
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
        let mut copy = Play {
            field: Field::new(&self.field.data),
            undisturbed: self.undisturbed,
            beginnings: self.beginnings.clone(),
            poorer: self.poorer.clone(),
            others: self.others.clone(),
            nowhere: 0,
        };
        for (path, bytes) in &after {
            let path = copy.field.path("").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let (here, there) =
            (self.field.folder.path().display().to_string(), copy.field.folder.path().display().to_string());
        let moved = |path: &PathBuf| PathBuf::from(path.display().to_string().replace(&here, &there));
        let mut instead = instead.clone();
        instead.out = moved(&instead.out);
        instead.init = instead.init.as_ref().map(moved);
        if let Resume::From(path) = &instead.resume {
            instead.resume = Resume::From(moved(path));
        }
        instead.set.iter_mut().for_each(|set| *set = set.replace(&here, &there));
        // Begun here, it is known by the names of here.
        for (path, bytes) in files(copy.field.folder.path()) {
            if let Ok(text) = String::from_utf8(bytes)
                && path.file_name().is_some_and(|name| name == "run.json")
            {
                fs::write(copy.field.path("").join(path), text.replace(&here, &there)).unwrap();
            }
        }
        if let Err(error) = copy.field.live(&instead, End::Stop(1)) {
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
        match action % 16 {
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
            _ if !self.holds(beginning) => {}
            13 => self.mistype(
                out,
                &[beginning.mirrored(), vec!["--set".into(), "optimizer.weight_decay=0.5".into()]].concat(),
            ),
            14 => {
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
                let mut never = beginning.mirrored();
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
            self.mistype(beginning.out(), &beginning.mirrored());
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
    let counted = Mutex::new([0; 4]);
    property(300, &vec((0_u8..16, 0_usize..4, 0_usize..100_000), 1..7), |actions| {
        let mut play = Play {
            field: Field::new(&folder.path().join("data")),
            undisturbed: &undisturbed,
            beginnings: BTreeMap::new(),
            poorer: BTreeSet::new(),
            others: BTreeSet::new(),
            nowhere: 0,
        };
        let acts = actions.len();
        actions.into_iter().for_each(|action| play.act(action));
        for beginning in play.beginnings.clone().into_values() {
            if !play.can_live(beginning) {
                continue;
            }
            play.live(beginning, &[], End::Finish);
            if !play.can_live(beginning) {
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
        let of_play = [1, acts, play.poorer.len(), play.nowhere];
        counts.iter_mut().zip(of_play).for_each(|(all, of_play)| *all += of_play);
    });
    let [sequences, acts, poorer, nowhere] = *counted.lock().unwrap();
    println!(
        "{sequences} sequences of {acts} acts; {poorer} runs lost a checkpoint to a disk or a machine, {nowhere} of them all"
    );
}
