//! One run, from top to bottom: configuration, data and plan; where it goes on; compile and load; loop; last words.
//!
//! 1. `Scene`: the command line, resolved: settings, data, how long and how fast.
//! 2. `Beginning`: what is there, and what the command does ([`crate::decide`]); the checkpoint to begin at; settings that
//!    changed since. A refusal leaves everything as it was; after the last one, what only the mirror has is copied here.
//! 3. The machine: opened, compiled, loaded.
//! 4. `claim`: the folder and the mirror are this run's from here on (`run.json`), and its settings are kept.
//! 5. `Session`: the loop.
//! 6. Last words.

use crate::atomic::RealDisk;
use crate::checkpoint::{
    self, Copying, Mirror, Progress, Retention, Saver, Store, checkpoint_bytes, most_at_once,
};
use crate::cli::Cli;
use crate::config::{Resolved, RunConfig, keys_as_markdown};
use crate::data::{DataError, Dataset, EpochSize, Loader, PrepareProgress, prepare_standard_library};
use crate::disks::remote;
use crate::forecast::Forecast;
use crate::machine::{Accelerator, Machine};
use crate::metrics::{Held, Look, LossSums, Recorder};
use crate::numbers::group;
use crate::replay::{self, replay};
use crate::resume::{Beginning, claim, going_on, load, longer, unpatient};
use crate::run_folder::CHECKPOINTS;
use crate::scaling::{Facts, plan};
use crate::scene::{Scene, open_data};
use crate::session::{About, Session};
use crate::show;
use crate::signals::{INTERRUPTED, Stop};
use crate::step::optimizer_tensors;
use anyhow::{Context, Result, anyhow};
use engine::plugin::cache_folder;
use model::counts::ParamCounts;
use model::params::specs;
use program::{arguments, esay, exit_code, output, say, with_large_pages};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use crate::resume::Refused;
pub use crate::scene::{Outcome, World};

/// How a run ended, and the command that goes on from there.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// What to type next.
    pub next: Option<Cli>,
}

/// Training tokens that the bigram baseline counts.
const BIGRAM_TOKENS: u64 = 50_000_000;

/// The whole program: the process's command line, messages and exit code.
pub fn main() -> ExitCode {
    with_large_pages();
    exit_code(match run(&arguments()) {
        Ok(Outcome::Finished) => Ok(ExitCode::SUCCESS),
        Ok(Outcome::Interrupted) => Ok(ExitCode::from(INTERRUPTED)),
        // A signal while data are prepared: the finished part is kept.
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
    if cli.keys {
        output::write(format_args!("{}", keys_as_markdown()));
        return Ok(Outcome::Finished);
    }
    if cli.plan {
        return forecast(cli, cli.resolve()?);
    }
    let stop = Stop::on_signals().context("registering signal handlers")?;
    let world = World { disk: Arc::new(RealDisk), stop, look: Look::for_stdout() };
    run_in(cli, &world, Accelerator::open).map(|ended| ended.outcome)
}

/// The same in other surroundings, with the machine that `open` makes for the settings and the data.
///
/// # Errors
/// As [`run`].
pub fn run_in<M: Machine>(
    cli: &Cli,
    world: &World,
    open: impl FnOnce(&mut Resolved, &Arc<Dataset>) -> Result<M>,
) -> Result<Ended> {
    let start = Instant::now();
    let interrupted = Ended { outcome: Outcome::Interrupted, next: Some(cli.clone()) };
    let resolved = cli.resolve()?;
    let folder = data_folder(&resolved.run, &world.stop)?;
    // Until the first step there is nothing to save, and most of the time goes into calls that cannot be asked to stop.
    let nothing_to_save = world.stop.nothing_to_save();
    if world.stop.requested() {
        return Ok(interrupted);
    }
    // Before anything is read: this mends what a crash left between two names, keeps others from writing, and tells a second
    // process at once that it is the second.
    let writes = !cli.dry_run && cli.replay.is_none() && cli.show_rows.is_none();
    let folders = writes.then(|| Folders::take(cli, world, &resolved.run)).transpose()?;
    let mut scene = Scene::of(resolved, folder)?;
    scene.announce(world.look);
    let store = folders.as_ref().map(|folders| &folders.store);
    let mut beginning = Beginning::of(cli, world, store, &mut scene)?;
    if let Some(count) = cli.show_rows {
        let Progress { data, step, .. } = beginning.progress;
        show::rows_of_next_step(&scene.resolved.run, &scene.dataset, data, step, count as usize)?;
        return Ok(Ended { outcome: Outcome::Finished, next: None });
    }
    // Started before the compiler: the first rows are made meanwhile.
    let loader = Loader::start(Arc::clone(&scene.dataset), scene.rows(), beginning.progress.data)?;
    let mut machine = open(&mut scene.resolved, &scene.dataset)?;
    if cli.dry_run {
        world.look.say(format_args!("dry run  nothing was trained or written"));
        return Ok(Ended { outcome: Outcome::Finished, next: None });
    }
    // Before anything is written: weights that do not fit leave no trace.
    let trained = load(&mut machine, cli, &scene.resolved.run, beginning.reader.take(), world.look)?;
    if let Some(step) = cli.replay {
        let bad = replay::recorded(&cli.out, step)?;
        replay(&bad, beginning.progress, &scene, machine, loader)?;
        return Ok(Ended { outcome: Outcome::Finished, next: None });
    }
    drop(nothing_to_save);

    let folders = folders.context("taking the folders of a run that writes; this is a bug of train")?;
    let own = cli.out.join(CHECKPOINTS);
    let elsewhere = beginning.from.as_ref().filter(|(path, _)| !path.starts_with(&own));
    let from_elsewhere = elsewhere.map(|(_, keep)| *keep);
    let mut session = prepare(cli, world, scene, beginning, machine, loader, folders)?;
    // For the config in checkpoints; if an earlier training had longer rows, their length stays.
    session.about.run.model.original_max_position_embeddings = trained.max(Some(session.about.run.batch.seq));
    announce_ready(world.look, start);
    let mut recorder = session.open_recorder()?;
    // A beginning from elsewhere is written here first: it may be the only checkpoint to go back to, and may vanish there.
    if let Some(keep) = from_elsewhere {
        session.save(keep, &recorder)?;
    }
    let first_loss = session.first_validation(&mut recorder)?;
    let trained = session.train(&mut recorder);
    let last_loss = match trained {
        Ok(Outcome::Finished) => session.validate(&mut recorder),
        _ => Ok(None),
    };
    let copied = session.finish_copies(&recorder);
    let outcome = trained?;
    let last_loss = last_loss?;
    copied?;
    if outcome == Outcome::Interrupted || world.stop.requested() {
        drop(recorder);
        let (words, next) = going_on(cli);
        world.look.say(format_args!("stopped at step {}; {words}", session.progress.step));
        // Its thread may hang in a slow read; as it only reads, it need not end.
        std::mem::forget(session.loader);
        return Ok(Ended { next: Some(next), ..interrupted });
    }
    let _nothing_to_save = world.stop.nothing_to_save();
    let next = last_words(&session, cli, recorder, [first_loss, last_loss])?;
    Ok(Ended { outcome, next: Some(next) })
}

/// The folders that a run writes checkpoints to, locked.
struct Folders {
    store: Store,
    mirror: Option<Mirror>,
}

impl Folders {
    fn take(cli: &Cli, world: &World, run: &RunConfig) -> Result<Folders> {
        let root = cli.out.join(CHECKPOINTS);
        let store = Store::open(Arc::clone(&world.disk), &root)?;
        if let Some(kind) = remote(&root) {
            world.look.say(format_args!(
                "run      {} lies on {kind}, which may tear a checkpoint; give --out on a local disk, and the drive as checkpoint.mirror",
                cli.out.display()
            ));
        }
        let Some(path) = &run.checkpoint.mirror else { return Ok(Folders { store, mirror: None }) };
        let minutes = |minutes: f64| Duration::from_secs_f64(60.0 * minutes);
        let copying = Copying {
            retention: Retention::of(&run.checkpoint),
            every: run.checkpoint.mirror_every_minutes.map(minutes),
            settle: run.checkpoint.mirror_settle_minutes.map(minutes).unwrap_or_default(),
            disk: run.checkpoint.mirror_disk,
            records: Some(cli.out.clone()),
        };
        let mirror = Mirror::open(Arc::clone(&world.disk), path, &root, copying)?;
        if let Some(other) = mirror.left_by() {
            world.look.say(format_args!(
                "mirror   {}: last in use by {other}; if that still runs, stop it, or its copies end here",
                path.display()
            ));
        }
        if let Some(kind) = remote(path) {
            world.look.say(format_args!(
                "mirror   {}: lies on {kind}; copied means handed to it, and it uploads in its own time",
                path.display()
            ));
        }
        match checkpoint::newest_step(path)? {
            Some(step) => world
                .look
                .say(format_args!("mirror   {}: its newest checkpoint is of step {step}", path.display())),
            None => world.look.say(format_args!("mirror   {}: no checkpoint is there yet", path.display())),
        }
        Ok(Folders { store, mirror: Some(mirror) })
    }
}

/// Claims the folders for this run, and puts together what the loop needs.
fn prepare<'w, M: Machine>(
    cli: &Cli,
    world: &'w World,
    scene: Scene,
    beginning: Beginning,
    machine: M,
    loader: Loader,
    Folders { store, mirror }: Folders,
) -> Result<Session<'w, M>> {
    let run = scene.resolved.run.clone();
    let tokenizer = tokenizer_bytes(&scene.dataset)?;
    let optimizer = optimizer_tensors(&specs(&run.model), run.optimizer.first_moment.dtype());
    let length = tokenizer.as_ref().map_or(0, |bytes| bytes.len() as u64);
    let most = most_at_once(&run, scene.plan.steps, scene.size.rows);
    store.check_room_for_all(most, checkpoint_bytes(&run.model, &optimizer, length))?;
    claim(&cli.out, world, &beginning, &scene.resolved)?;
    let mine = beginning.from.as_ref().filter(|(path, _)| path.starts_with(store.root()));
    let saver = Saver::new(store, Retention::of(&run.checkpoint), mirror);
    let begun = mine.map(|(_, keep)| (beginning.progress.step, *keep));
    if let Some((path, keep)) = mine {
        saver.catch_up(path, *keep);
    }
    let about = About {
        out: cli.out.clone(),
        run,
        plan: scene.plan,
        identity: beginning.identity,
        settings: beginning.settings,
        dataset: scene.dataset,
        tokenizer,
    };
    let progress = beginning.progress;
    Ok(Session {
        world,
        about,
        machine,
        loader,
        saver,
        read: (progress.step, progress.data),
        losses: LossSums::default(),
        held: Held::default(),
        unsaved: false,
        begun,
        progress,
    })
}

fn announce_ready(look: Look, start: Instant) {
    look.say(format_args!("ready    in {:.1} s", start.elapsed().as_secs_f64()));
    look.say(format_args!(
        "losses   in nats a token, of the next token, and beside it of the second head, which predicts the one after"
    ));
    look.say(format_args!(
        "         training: mean since the line before; validation: of held-out rows, as the weights are then"
    ));
}

/// The last screen: what was reached, where it is, and what to type next.
fn last_words<M: Machine>(
    session: &Session<'_, M>,
    cli: &Cli,
    recorder: Recorder,
    losses: [Option<f64>; 2],
) -> Result<Cli> {
    let (about, look) = (&session.about, session.world.look);
    let plot = recorder.finish();
    look.say(format_args!(""));
    if let [Some(first), Some(last)] = losses {
        look.say(format_args!(
            "validation loss  {last:.4} nats a token, {:.1} % of the {first:.4} it began with",
            100.0 * last / first
        ));
        let bigram = about.dataset.bigram(session.machine.held_out(), BIGRAM_TOKENS)?;
        look.say(format_args!(
            "a bigram model   {:.4} on the same tokens, from {} training tokens",
            bigram.loss,
            group(bigram.training_tokens)
        ));
    }
    look.say(format_args!("plot             {}", plot.display()));
    look.say(format_args!("checkpoints      {}", session.saver.store().root().display()));
    if let Some((path, best)) = checkpoint::best(session.saver.store().root())? {
        look.say(format_args!(
            "best checkpoint  {}: validation loss {:.4} at step {}, the lowest of those that are kept",
            path.display(),
            best.loss,
            best.step
        ));
    }
    if let Some(tokenizer) = about.dataset.tokenizer()
        && let Some(text) = session.machine.sample(tokenizer)?
    {
        let text: String = text.lines().map(|line| format!("    {line}\n")).collect();
        look.say(format_args!("sample\n{text}"));
    }
    let (words, next) = match session.ended_early() {
        Some(said) => {
            look.say(format_args!("{said}"));
            unpatient(cli)
        }
        None => longer(cli, about)?,
    };
    look.say(format_args!("next: {words}"));
    Ok(next)
}

/// What the run would take, on one screen. There is nothing to save: a signal ends it at once, in the compiler too.
fn forecast(cli: &Cli, mut resolved: Resolved) -> Result<Outcome> {
    let run = &resolved.run;
    let epoch = match cli.tokens {
        Some(tokens) => EpochSize::assumed(tokens, run.batch.seq),
        None => {
            let folder = data_folder(run, &Stop::manual())?;
            let dataset = open_data(&folder, run).map_err(|error| anyhow!("{error:#}; or give --tokens"))?;
            if let Some(said) = dataset.without_fim(&run.data.rows(run.batch.seq, run.seed)) {
                esay!("{said}");
            }
            dataset.epoch_size(&run.data.rows(run.batch.seq, run.seed))?
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

fn tokenizer_bytes(dataset: &Dataset) -> Result<Option<Arc<[u8]>>> {
    let Some(tokenizer) = dataset.tokenizer() else { return Ok(None) };
    let path = tokenizer.path();
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Some(bytes.into()))
}
