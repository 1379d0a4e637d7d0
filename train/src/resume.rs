//! What a run begins with. After what a crash left was mended, one reader ([`Observed`]) looks at the folder, the mirror and
//! what the command line names; [`decide`](crate::decide::decide) says what comes of it; the chosen checkpoint is compared
//! byte by byte, and if it is damaged the decision is made again without it.
//!
//! So a checkpoint is read twice: hashed here, and read again when the machine is loaded, behind the compiler. Once would not
//! be simple. A file's hash is that of its bytes in their order, which is alphabetical by Hugging Face's names; the device
//! takes one parameter after another, all layers of it together, so that what is read would have to wait in main memory for
//! the rest. And a hash that fails behind the compiler would undo what follows from the checkpoint: settings, schedule, the
//! program itself, the rows that are made meanwhile. What the second reading costs is small where there is memory for the page
//! cache, which then has the file.

use crate::atomic::{self, Disk};
use crate::changes::{self, Change, Kind, changes};
use crate::checkpoint::{
    self, Candidate, CheckpointError, Drive, Era, Keep, Progress, Reader, State, Store, Verified,
    architecture, candidates, fetch_records, files, latest_good, load_weights, verify, whole,
};
use crate::cli::{Cli, Resume};
use crate::config::{Resolved, RunConfig, Source};
use crate::decide::{Asked, Decision, Facts, Found, Given, Instead, Place, Where, decide};
use crate::identity::{Identity, Parent, RunId};
use crate::machine::{Content, Machine};
use crate::metrics::Look;
use crate::numbers::group;
use crate::replay;
use crate::run_folder::{self, CHECKPOINTS, CONFIG, IDENTITY, SETTINGS};
use crate::scene::{Scene, World};
use crate::schedule::Phase;
use crate::session::{About, hashes};
use anyhow::{Context, Result, bail, ensure};
use model::config::Bearing;
use model::initial_weights;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a command does nothing, and which command to type instead.
#[derive(Debug)]
pub struct Refused {
    /// What was found, what was wanted, and what can be done.
    pub reason: String,
    /// The command line to type instead.
    pub instead: Option<Cli>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        match &self.instead {
            Some(cli) => write!(f, "; such as {}", cli.command()),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refused {}

/// Where a run begins: at step 0, at another run's checkpoint, or where it was.
pub(crate) struct Beginning {
    pub(crate) identity: Identity,
    /// The checkpoint, and how long it is kept.
    pub(crate) from: Option<(PathBuf, Keep)>,
    /// The same, open; taken when the machine is loaded. Its tensors stay on disk while the compiler needs memory.
    pub(crate) reader: Option<Reader>,
    pub(crate) progress: Progress,
    pub(crate) settings: Vec<Era>,
}

impl Beginning {
    /// Decides where the run begins, opens the checkpoint, and lays out the schedule.
    /// `store`: the run's folder of checkpoints, open for writing, unless nothing is to be written.
    pub(crate) fn of(
        cli: &Cli,
        world: &World,
        store: Option<&Store>,
        scene: &mut Scene,
    ) -> Result<Beginning> {
        let root = cli.out.join(CHECKPOINTS);
        if let Some(step) = cli.replay {
            return Beginning::for_replay(cli, scene, &root, step);
        }
        let mut observed = Observed::of(cli, &root, scene.resolved.run.checkpoint.mirror.as_deref())?;
        let (decision, from) = observed.decided(cli, &scene.resolved.run)?;
        let goes_on = matches!(decision, Decision::Continue(_));
        if let Some(from) = &from {
            if goes_on {
                observed.say_passed_over(world.look);
            }
            world.look.say(format_args!("resume   {}", from.path().display()));
        }
        let identity = observed.identity(cli, &decision);
        let mut beginning = Beginning {
            identity,
            from: from.as_ref().map(|from| (from.path().to_owned(), from.state().keep)),
            reader: None,
            progress: from.as_ref().map_or_else(Progress::default, |from| from.state().progress.clone()),
            settings: from.as_ref().map_or_else(Vec::new, |from| from.state().settings.clone()),
        };
        beginning.take_over_settings(cli, world.look, scene, goes_on)?;
        if let Some(mut from) = from {
            check_same_data(from.state(), scene)?;
            // Not before: a refusal leaves everything as it was.
            let mirror = observed.mirror.as_ref().map(|mirror| mirror.path.as_path());
            let copy = mirror.filter(|mirror| goes_on && from.path().starts_with(mirror));
            if let Some((store, mirror)) = store.zip(copy) {
                from = fetch(store, mirror, &from, cli, world)?;
                beginning.from = Some((from.path().to_owned(), from.state().keep));
            }
            if !cli.dry_run {
                beginning.reader = Some(Reader::open(&from, &scene.resolved.run.model)?);
            }
        }
        Ok(beginning)
    }

    /// Begins at the checkpoint before a bad step.
    fn for_replay(cli: &Cli, scene: &mut Scene, root: &Path, step: u64) -> Result<Beginning> {
        let bad = replay::recorded(&cli.out, step)?;
        let from = checkpoint::latest_before(root, bad.step)?.good;
        let reader = from.map(|from| Reader::open(&from, &scene.resolved.run.model)).transpose()?;
        let state = reader.as_ref().map(Reader::state);
        if let Some(state) = state {
            check_same_data(state, scene)?;
        }
        let identity = Identity::read(&cli.out)?.unwrap_or_else(|| unnamed(cli));
        let progress = state.map_or_else(Progress::default, |state| state.progress.clone());
        let settings = state.map_or_else(Vec::new, |state| state.settings.clone());
        let beginning = Beginning { identity, from: None, reader, progress, settings };
        beginning.lay_out_schedule(scene)?;
        Ok(beginning)
    }

    /// Compares the settings with those that the checkpoint was trained under, prints each difference, and begins a new era if
    /// there is one.
    fn take_over_settings(&mut self, cli: &Cli, look: Look, scene: &mut Scene, goes_on: bool) -> Result<()> {
        let step = self.progress.step;
        let before = self.settings.last().cloned();
        if let Some(era) = &before {
            keep_warmup(scene, era);
        }
        self.lay_out_schedule(scene)?;
        if let Some((parent, decay)) = self.identity.parent.as_ref().zip(self.identity.decay()) {
            if scene.plan.schedule.decay.is_none() {
                look.say(format_args!("branch   the constant schedule ends here"));
            }
            look.say(format_args!(
                "branch   decay over {decay} steps from step {}; the trunk is untouched",
                parent.step
            ));
        }
        if step > scene.plan.steps {
            return Err(Refused {
                reason: format!(
                    "the checkpoint is at step {step}, the run ends at step {}; give more --steps, or start anew in another --out with --resume never",
                    scene.plan.steps
                ),
                instead: Some(elsewhere(cli, &scene.resolved.run, Resume::Never)),
            }
            .into());
        }
        let run = &scene.resolved.run;
        let settings = run.settings();
        let Some(era) = before else {
            if step > 0 {
                look.say(format_args!(
                    "settings the checkpoint does not say under which settings it was trained; they are not compared"
                ));
            }
            Era::begin(&mut self.settings, step, settings);
            return Ok(());
        };
        let changed = changes(&era, run, &self.identity, step);
        for change in &changed {
            match change.kind {
                Kind::Harmless | Kind::Impossible => look.say(format_args!("settings {change}")),
                Kind::Course => {
                    look.say(format_args!("settings {change}: from step {step} on this is another course"))
                }
            }
        }
        self.refuse(cli, run, &changed, goes_on)?;
        if changed.iter().any(|change| ["batch.seq", "data.long_rows"].contains(&&*change.key)) {
            self.begin_block_again(look, scene, &era);
        }
        if changed.iter().any(|change| change.kind == Kind::Course) {
            // The person who changed the course may have found a remedy, so going back may help again.
            (self.progress.rollbacks, self.progress.returned) = (0, None);
        }
        Era::begin(&mut self.settings, step, settings);
        Ok(())
    }

    fn refuse(&self, cli: &Cli, run: &RunConfig, changed: &[Change], goes_on: bool) -> Result<()> {
        let of = |kind: Kind| changed.iter().filter(move |change| change.kind == kind);
        let listed = |kind: Kind| of(kind).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let step = self.progress.step;
        if of(Kind::Impossible).any(|change| change.key.starts_with("model.")) {
            return Err(Refused {
                reason: format!(
                    "the checkpoint belongs to another model: {}; set the fields to the checkpoint's, or start anew in another --out with --resume never",
                    listed(Kind::Impossible)
                ),
                instead: Some(elsewhere(cli, run, Resume::Never)),
            }
            .into());
        }
        if of(Kind::Impossible).next().is_some() {
            return Err(Refused {
                reason: format!(
                    "a run cannot go on under other settings of its rows or of its moments: {}; set them as they were, or start a new run from its weights with --init and another --out",
                    listed(Kind::Impossible)
                ),
                instead: Some(elsewhere(cli, run, Resume::Never)),
            }
            .into());
        }
        // A new run may begin another course.
        if of(Kind::Course).next().is_some() && goes_on && !cli.accept_changes {
            return Err(Refused {
                reason: format!(
                    "this changes what becomes of the weights from step {step} on: {}; set them as they were, or train on with them with --accept-changes",
                    listed(Kind::Course)
                ),
                instead: Some(Cli { accept_changes: true, ..cli.clone() }),
            }
            .into());
        }
        Ok(())
    }

    /// For rows of another length, or long rows that are cut or split otherwise: the checkpoint's position may lie
    /// within one of the new rows, so its block is begun again.
    fn begin_block_again(&mut self, look: Look, scene: &Scene, era: &Era) {
        let run = &scene.resolved.run;
        let Some(old) = run.with_settings(&era.settings) else { return };
        let old_rows = old.data.rows(old.batch.seq, old.seed);
        let Some((position, rows)) =
            scene.dataset.in_other_rows(self.progress.data, &old_rows, &scene.rows())
        else {
            return;
        };
        self.progress.data = position;
        // Long rows were refused, and are not any more: there was none.
        if rows == 0 && old.batch.seq == run.batch.seq {
            return;
        }
        look.say(format_args!(
            "data     rows of {} tokens from here on; the block at hand is begun again: {} rows of {} tokens are seen once more, none is left out",
            run.batch.seq,
            group(rows),
            old.batch.seq
        ));
    }

    /// A branch's decay begins where the branch does.
    fn lay_out_schedule(&self, scene: &mut Scene) -> Result<()> {
        let run = &scene.resolved.run;
        scene.plan.schedule = changes::schedule(run, &self.identity)
            .context("laying out the schedule; this is a bug of train")?;
        if let Some((parent, steps)) = self.identity.parent.as_ref().zip(self.identity.decay()) {
            scene.plan.steps = parent.step + steps;
        }
        Ok(())
    }
}

/// Keeps the warmup that was chosen when the training began, if it was left open: it follows from the number of steps, which
/// may be another one now, and is over.
fn keep_warmup(scene: &mut Scene, era: &Era) {
    const KEY: &str = "schedule.warmup_steps";
    let known = era.settings.get(KEY).and_then(|steps| steps.parse().ok());
    if let (Source::Auto(_), Some(steps)) = (scene.resolved.source(KEY), known) {
        scene.resolved.run.schedule.warmup_steps = Some(steps);
        scene.resolved.set_source(KEY, Source::Auto("chosen when the training began".into()));
    }
}

/// The checkpoints of a folder, newest first, and whose they are.
struct Shelf {
    path: PathBuf,
    run: Option<Identity>,
    all: Vec<Candidate>,
}

impl Shelf {
    fn of(path: &Path, root: &Path) -> Result<Shelf> {
        let mut all = candidates(root)?;
        let newest = || all.iter().find_map(|(_, state)| state.as_ref().ok()?.run.clone());
        let run = Identity::read(path)?.or_else(newest);
        for (path, state) in &mut all {
            let other = state.as_ref().ok().and_then(|state| state.run.clone());
            if let Some(other) = other.filter(|other| run.as_ref().is_some_and(|run| run.id != other.id)) {
                *state = Err(CheckpointError::OtherRun { path: path.clone(), run: other.to_string() });
            }
        }
        Ok(Shelf { path: path.into(), run, all })
    }

    fn place(&self) -> Place {
        let newest = self.all.iter().find_map(|(path, state)| Some(found(path, state.as_ref().ok()?)));
        let damaged = self.all.iter().find(|(_, state)| state.is_err()).map(|(path, _)| path.clone());
        Place { path: self.path.clone(), run: self.run.clone(), newest, damaged }
    }
}

/// What was found in the folder, in the mirror and at `--resume`.
struct Observed {
    folder: Shelf,
    mirror: Option<Shelf>,
    given: Option<Given>,
}

impl Observed {
    fn of(cli: &Cli, root: &Path, mirror: Option<&Path>) -> Result<Observed> {
        let folder = Shelf::of(&cli.out, root)?;
        let mirror = mirror.map(|mirror| Shelf::of(mirror, mirror)).transpose()?;
        let mirror = mirror.map(|mut mirror| {
            // A copy that was cut off has no manifest, and is no checkpoint yet.
            mirror.all.retain(|(path, state)| state.is_ok() || path.join(files::MANIFEST).exists());
            mirror
        });
        let given = match &cli.resume {
            Resume::From(path) => {
                let found =
                    match whole(path) {
                        Some(state) => Ok(found(path, &state)),
                        None => Err(verify(path)
                            .map_or_else(|error| error.to_string(), |_| "it changed just now".into())),
                    };
                let real = |path: &Path| path.canonicalize().ok();
                let inside = real(path).zip(real(&cli.out)).is_some_and(|(path, out)| path.starts_with(out));
                Some(Given { beside: beside(path, &found), found, inside })
            }
            Resume::Auto | Resume::Never => None,
        };
        Ok(Observed { folder, mirror, given })
    }

    fn facts(&self) -> Facts {
        let mirror = self.mirror.as_ref().map(Shelf::place);
        Facts { folder: self.folder.place(), mirror, given: self.given.clone() }
    }

    /// What the command does, and the checkpoint that it begins at, of which every byte was compared.
    fn decided(&mut self, cli: &Cli, run: &RunConfig) -> Result<(Decision, Option<Verified>)> {
        let asked = Asked { resume: cli.resume.clone(), init: cli.init.clone(), decay: cli.branch_decay };
        loop {
            let decision = decide(&asked, &self.facts());
            let found = match &decision {
                Decision::Start => return Ok((decision, None)),
                Decision::Refuse(refusal) => {
                    let instead = refusal.instead.as_ref().map(|instead| command(cli, run, instead));
                    return Err(Refused { reason: refusal.reason.clone(), instead }.into());
                }
                Decision::From(found) | Decision::Branch(found, _) | Decision::Continue(found) => found,
            };
            match verify(&found.path) {
                Ok(good) => return Ok((decision, Some(good))),
                Err(error) => self.strike(&found.path.clone(), error),
            }
        }
    }

    /// Notes that a checkpoint is damaged that seemed whole.
    fn strike(&mut self, path: &Path, error: CheckpointError) {
        if let Some(given) =
            self.given.as_mut().filter(|given| given.found.as_ref().is_ok_and(|it| it.path == path))
        {
            given.found = Err(error.to_string());
            given.beside = beside(path, &given.found);
        }
        for (there, state) in
            self.mirror.iter_mut().chain([&mut self.folder]).flat_map(|shelf| &mut shelf.all)
        {
            if there == path {
                *state = Err(error);
                return;
            }
        }
    }

    fn say_passed_over(&self, look: Look) {
        for (path, state) in
            [Some(&self.folder), self.mirror.as_ref()].into_iter().flatten().flat_map(|shelf| {
                let newer = shelf.all.iter().position(|(_, state)| state.is_ok()).unwrap_or(shelf.all.len());
                &shelf.all[..newer]
            })
        {
            if let Err(reason) = state {
                look.say(format_args!("passing over {}: {reason}", path.display()));
            }
        }
    }

    /// The run that folder and mirror belong to from here on.
    fn identity(&self, cli: &Cli, decision: &Decision) -> Identity {
        let begun = |found: &Found, decay: Option<u64>| {
            let Resume::From(path) = &cli.resume else { return unnamed(cli) };
            let run = found.run.as_ref().map(|run| run.id.clone());
            let parent = Parent { path: path.clone(), run, step: found.step, decay };
            Identity { init: found.init.clone(), parent: Some(parent), ..unnamed(cli) }
        };
        match decision {
            Decision::Start | Decision::Refuse(_) => unnamed(cli),
            Decision::From(found) => begun(found, None),
            Decision::Branch(found, steps) => begun(found, Some(*steps)),
            Decision::Continue(found) => {
                let known = self.folder.run.clone().or_else(|| found.run.clone());
                let old = || Identity { init: found.init.clone(), ..unnamed(cli) };
                // The folder may have been moved.
                Identity { out: cli.out.clone(), ..known.unwrap_or_else(old) }
            }
        }
    }
}

/// Copies a checkpoint and the records before it from the run's mirror into its own folder, so that nothing depends on the drive
/// while the machine is loaded, behind the compiler.
fn fetch(
    store: &Store,
    mirror: &Path,
    from: &Verified,
    cli: &Cli,
    world: &World,
) -> Result<Verified, CheckpointError> {
    world.look.say(format_args!("resume   copying it to {}", store.root().display()));
    // First, as they are fetched only where there are none. A run can train without its old ones.
    if let Err(error) = fetch_records(mirror, &*world.disk, &cli.out) {
        let root = mirror.display();
        world.look.say(format_args!("records  of the steps before are left in {root}: {error}"));
    }
    verify(&store.fetch(from.path())?)
}

/// A new run.
fn unnamed(cli: &Cli) -> Identity {
    Identity { id: RunId::draw(), out: cli.out.clone(), init: cli.init.clone(), parent: None }
}

fn found(path: &Path, state: &State) -> Found {
    Found {
        path: path.into(),
        step: state.progress.step,
        turns: state.progress.turns.clone(),
        stable: state.phase == Phase::Stable,
        run: state.run.clone(),
        init: state.run.as_ref().map_or(state.init.clone(), |run| run.init.clone()),
    }
}

/// The newest good checkpoint beside one that is not good.
fn beside(path: &Path, given: &Result<Found, String>) -> Option<Found> {
    if given.is_ok() {
        return None;
    }
    let good = latest_good(path.parent()?).ok()?.good?;
    Some(found(good.path(), good.state()))
}

/// The command line for the advice of a refusal.
fn command(cli: &Cli, run: &RunConfig, instead: &Instead) -> Cli {
    let Asked { resume, init, decay } = instead.asked.clone();
    let mut next = Cli { resume, init, branch_decay: decay, ..cli.clone() };
    if instead.into == Where::Other {
        next.out = unused(&cli.out);
    }
    if instead.into >= Where::OtherMirror {
        set_other_mirror(&mut next, run);
    }
    next
}

/// The command line with another folder and another mirror.
fn elsewhere(cli: &Cli, run: &RunConfig, resume: Resume) -> Cli {
    let mut next =
        Cli { out: unused(&cli.out), resume, branch_decay: None, accept_changes: false, ..cli.clone() };
    set_other_mirror(&mut next, run);
    next
}

fn set_other_mirror(cli: &mut Cli, run: &RunConfig) {
    if let Some(mirror) = &run.checkpoint.mirror {
        let mirror = toml::Value::from(unused(mirror).display().to_string());
        cli.layers.set.push(format!("checkpoint.mirror={mirror}"));
    }
}

/// The first unused name like a folder's: `name-2`, `name-3`.
fn unused(folder: &Path) -> PathBuf {
    let name = folder.file_name().map_or("run".into(), |name| name.to_string_lossy());
    let mut names = (2..).map(|number| folder.with_file_name(format!("{name}-{number}")));
    names.find(|path| !path.exists()).expect("some number is free")
}

/// Writes into folder and mirror which run they belong to, and into the folder the settings and the step that they hold from.
pub(crate) fn claim(out: &Path, world: &World, beginning: &Beginning, resolved: &Resolved) -> Result<()> {
    let disk = &*world.disk;
    let write = |folder: &Path, disk: &dyn Disk| -> Result<()> {
        if Identity::read(folder)?.as_ref() != Some(&beginning.identity) {
            let path = folder.join(IDENTITY);
            beginning.identity.write(disk, folder).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    };
    write(out, disk)?;
    // Best effort, as all that goes to a mirror; its copies say whose they are, too.
    if let Some(mirror) = &resolved.run.checkpoint.mirror
        && let Err(error) = write(mirror, &Drive(Arc::clone(&world.disk)))
    {
        world.look.say(format_args!("mirror   its owner is not written down: {error:#}"));
    }
    let text = resolved.to_toml();
    let since = beginning.settings.last().map_or(0, |era| era.from);
    let history = out.join(SETTINGS);
    disk.create_dir_all(&history).with_context(|| format!("creating the folder {}", history.display()))?;
    for path in [out.join(CONFIG), history.join(format!("{}.toml", run_folder::step(since)))] {
        write_if_new(disk, &path, &text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn write_if_new(disk: &dyn Disk, path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    atomic::write_file(disk, path, |file| file.write_all(text.as_bytes()))
}

/// What to type when a signal stopped the run.
pub(crate) fn going_on(cli: &Cli) -> (String, Cli) {
    let next = Cli { accept_changes: false, ..cli.clone() };
    if cli.resume != Resume::Never {
        return ("the same command goes on from there".into(), next);
    }
    let next = Cli { resume: Resume::Auto, ..next };
    (format!("go on from there with\n    {}", next.command()), next)
}

/// What to type when a run ended early, to train it to its last step.
pub(crate) fn unpatient(cli: &Cli) -> (String, Cli) {
    let mut next = Cli { resume: Resume::Auto, branch_decay: None, accept_changes: false, ..cli.clone() };
    next.layers.set.push("validation.patience=auto".into());
    (format!("train to the last step with\n    {}", next.command()), next)
}

/// What to type when all steps are done, to train for twice as many. Weights after the decay are no beginning for that: a new run
/// goes on from the newest checkpoint before the decay, or starts anew if none was kept.
pub(crate) fn longer(cli: &Cli, about: &About) -> Result<(String, Cli)> {
    let steps = Some(2 * about.plan.steps);
    let next = Cli { resume: Resume::Auto, steps, branch_decay: None, accept_changes: false, ..cli.clone() };
    if about.plan.schedule.phase(about.plan.steps) != Phase::Decay {
        return Ok((format!("train longer with\n    {}", next.command()), next));
    }
    let own = checkpoint::newest_stable(&cli.out.join(CHECKPOINTS))?
        .map(|own| (own.path().to_owned(), own.state().progress.step));
    let parent = about.identity.parent.as_ref().and_then(|parent| {
        let stable = whole(&parent.path)
            .is_some_and(|state| state.phase == Phase::Stable && state.progress.step == parent.step);
        stable.then(|| (parent.path.clone(), parent.step))
    });
    let (begin, resume) = match own.or(parent) {
        Some((path, step)) => (format!("from step {step}, before the rate decayed"), Resume::From(path)),
        None => ("from the beginning, as no checkpoint from before the decay was kept".into(), Resume::Auto),
    };
    let next = elsewhere(&next, &about.run, resume);
    Ok((format!("train longer, {begin}, with\n    {}", next.command()), next))
}

fn check_same_data(state: &State, scene: &Scene) -> Result<()> {
    for (name, found) in hashes(&scene.dataset) {
        if let Some(wanted) = state.hashes.get(&name) {
            ensure!(
                *wanted == found,
                "the checkpoint was trained with another {name} ({wanted}) than the data has ({found}); give the data it was trained on"
            );
        }
    }
    Ok(())
}

/// Loads the machine with the checkpoint, the weights of `--init`, or new ones. Returns the positions that the weights were
/// trained at before, if a config says so.
pub(crate) fn load<M: Machine>(
    machine: &mut M,
    cli: &Cli,
    run: &RunConfig,
    from: Option<Reader>,
    look: Look,
) -> Result<Option<usize>> {
    if let Some(from) = from {
        machine.load(Content::Checkpoint(&from))?;
        return Ok(from.config().original_max_position_embeddings);
    }
    let Some(path) = &cli.init else {
        machine.load(Content::Weights(&mut initial_weights(&run.model, run.seed)))?;
        return Ok(None);
    };
    let found = architecture(path)?;
    let trained = found.as_ref().and_then(|found| found.original_max_position_embeddings);
    let differences = found.map_or(Vec::new(), |found| run.model.differences(&found));
    if let Some(difference) = differences.iter().find(|difference| difference.bearing == Bearing::Weights) {
        bail!(
            "--init {}: the weights belong to another model: {difference}; leave out --preset and model.{}, and \
             the weights decide",
            path.display(),
            difference.field
        );
    }
    let weights = load_weights(path, &run.model)?.into_flat();
    machine.load(Content::Weights(&mut weights.into_iter().map(|(_, weight)| weight)))?;
    look.say(format_args!("weights  from {}", path.display()));
    Ok(trained)
}
