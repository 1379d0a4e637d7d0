//! Where a command leads: to a new run, to the run that is there, or nowhere. Decided once, by [`decide`], from facts that
//! were read before (`resume`); nothing else in this crate chooses a checkpoint.
//!
//! A run has an [`Identity`], written into its folder, its mirror and its checkpoints before its first step. By it the same
//! command finds the run again however it began, and a folder or mirror of another run is refused by name. Of a run's own
//! checkpoints the newest one counts, wherever it lies. Newest is the one that was written after the most turns back
//! ([`Progress::turns`](crate::checkpoint::Progress)), and among those the one of the latest step; so what was set aside does
//! not come back from the mirror.
#![doc = include_str!("decide.md")]

use crate::cli::Resume;
use crate::identity::{Identity, Parent, same_spelling};
use crate::run_folder;
use std::path::{Path, PathBuf};

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `--resume`.
    pub resume: Resume,
    /// `--init`.
    pub init: Option<PathBuf>,
    /// `--branch-decay`.
    pub decay: Option<u64>,
}

/// A checkpoint that has all of its files at their full length; its bytes are compared when it is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its folder.
    pub path: PathBuf,
    /// Its step.
    pub step: u64,
    /// The steps that its run had gone back to before.
    pub turns: Vec<u64>,
    /// Whether its next step lies in the stable phase of its schedule.
    pub stable: bool,
    /// The run that wrote it; none if it was written before runs had names.
    pub run: Option<Identity>,
    /// The weights that its run was started with.
    pub init: Option<PathBuf>,
}

/// A run's folder, or its mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// As the command line or the configuration names it.
    pub path: PathBuf,
    /// The run that it says it belongs to.
    pub run: Option<Identity>,
    /// Its newest checkpoint that may be good.
    pub newest: Option<Found>,
    /// Its newest damaged checkpoint, if there is one: a new run must not overwrite it.
    pub damaged: Option<PathBuf>,
}

/// What `--resume PATH` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The checkpoint, or what is wrong with it.
    pub found: Result<Found, String>,
    /// Whether it lies in the run's own folder, by whatever name.
    pub inside: bool,
    /// If it is not good: the newest good one beside it.
    pub beside: Option<Found>,
}

/// All that a decision depends on beside the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `--out`.
    pub folder: Place,
    /// `checkpoint.mirror`.
    pub mirror: Option<Place>,
    /// `--resume PATH`.
    pub given: Option<Given>,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A new run from step 0, with new weights or those of `--init`.
    Start,
    /// A new run that begins at another run's checkpoint.
    From(Found),
    /// The same, and its learning rate decays at once, over this many steps.
    Branch(Found, u64),
    /// The run that is there goes on, from its newest checkpoint.
    Continue(Found),
    /// Nothing.
    Refuse(Refusal),
}

/// Why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was found, what was wanted, and what can be done.
    pub reason: String,
    /// A command that would not be refused, if one is known.
    pub instead: Option<Instead>,
}

/// Another command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instead {
    /// What it asks for.
    pub asked: Asked,
    /// Where it writes to.
    pub into: Where,
}

/// Where a command writes to, compared with the one that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Where {
    /// The same folder and mirror.
    Same,
    /// The same folder, and an empty mirror.
    OtherMirror,
    /// An empty folder and an empty mirror.
    Other,
}

impl Found {
    /// What orders a run's checkpoints.
    fn age(&self) -> (usize, u64) {
        (self.turns.len(), self.step)
    }
}

impl Place {
    /// An empty place.
    pub fn empty(path: PathBuf) -> Place {
        Place { path, run: None, newest: None, damaged: None }
    }

    fn holds(&self) -> bool {
        self.newest.is_some() || self.damaged.is_some()
    }

    fn owner(&self) -> Option<&Identity> {
        self.run.as_ref().or(self.newest.as_ref().and_then(|found| found.run.as_ref()))
    }
}

impl Facts {
    /// The facts of another command.
    pub fn of(&self, instead: &Instead) -> Facts {
        let mut facts = self.clone();
        if instead.into == Where::Other {
            facts.folder = Place::empty(facts.folder.path);
            facts.given.iter_mut().for_each(|given| given.inside = false);
        }
        if instead.into >= Where::OtherMirror {
            facts.mirror = facts.mirror.map(|mirror| Place::empty(mirror.path));
        }
        if let Resume::From(path) = &instead.asked.resume {
            let here = |found: &&Found| found.path == *path;
            let beside = self.given.as_ref().and_then(|given| given.beside.as_ref());
            if let Some(found) = beside.into_iter().chain(&self.folder.newest).find(here) {
                let inside = instead.into != Where::Other && facts.given.is_some_and(|given| given.inside);
                facts.given = Some(Given { found: Ok(found.clone()), inside, beside: None });
            }
        } else {
            facts.given = None;
        }
        facts
    }

    /// The mirror, if the copies in it are this run's; none if there are none; an error that names another run if they are its.
    fn mirror_is_ours(&self) -> Result<Option<&Place>, String> {
        let Some(mirror) = self.mirror.as_ref().filter(|mirror| mirror.holds()) else { return Ok(None) };
        let old = || self.folder.newest.as_ref().is_none_or(|found| found.run.is_none());
        let ours = match (self.folder.owner(), mirror.owner()) {
            (Some(own), Some(owner)) if own.id == owner.id => true,
            // The machine is gone, and the same command is typed on another one.
            (_, Some(owner)) => !self.folder.holds() && same_spelling(&owner.out, &self.folder.path),
            // Copies from before runs had names.
            (_, None) => old(),
        };
        if ours {
            return Ok(Some(mirror));
        }
        Err(mirror.owner().map_or_else(|| "a run without a name".into(), ToString::to_string))
    }
}

/// What a command does, by the facts alone.
pub fn decide(asked: &Asked, facts: &Facts) -> Decision {
    consider(asked, facts).unwrap_or_else(|(reason, instead)| {
        let instead = instead.and_then(|instead| match decide(&instead.asked, &facts.of(&instead)) {
            // The advised command would be refused too: take the advice of that refusal.
            Decision::Refuse(next) => {
                next.instead.map(|next| Instead { into: next.into.max(instead.into), ..next })
            }
            _ => Some(instead),
        });
        Decision::Refuse(Refusal { reason, instead })
    })
}

type Refused = (String, Option<Instead>);

fn consider(asked: &Asked, facts: &Facts) -> Result<Decision, Refused> {
    let instead = |asked: Asked, into: Where| Some(Instead { asked, into });
    let elsewhere = || instead(asked.clone(), Where::Other);

    if let (Some(_), Some(_)) = (&asked.decay, &asked.init)
        && !matches!(asked.resume, Resume::From(_))
    {
        let without = Asked { decay: None, ..asked.clone() };
        let reason =
            "--branch-decay begins at a checkpoint and --init at step 0; leave one of them out".into();
        return Err((reason, instead(without, Where::Same)));
    }
    let mirror = facts.mirror_is_ours().map_err(|owner| {
        let path = facts.mirror.as_ref().map_or(Path::new(""), |mirror| &mirror.path).display();
        let reason = format!("checkpoint.mirror {path} holds the copies of another run, {owner}; give this run another checkpoint.mirror");
        (reason, instead(asked.clone(), Where::OtherMirror))
    })?;
    let places = || [Some(&facts.folder), mirror].into_iter().flatten();
    let copies = mirror.and_then(|mirror| mirror.newest.as_ref());
    // The run's own folder comes last: of equals it is taken.
    let own = copies.into_iter().chain(&facts.folder.newest).max_by_key(|found| found.age());
    let Some(own) = own else {
        if let Some((place, damaged)) = places().find_map(|place| Some((place, place.damaged.as_ref()?))) {
            let reason = format!(
                "{} holds checkpoints, but none that is whole, {} the newest of them; mend it, or give another --out",
                place.path.display(),
                damaged.display()
            );
            return Err((reason, elsewhere()));
        }
        return begin(asked, facts);
    };
    if asked.resume == Resume::Never {
        let other = if facts.folder.newest.is_some() { "--out" } else { "checkpoint.mirror" };
        let reason = format!(
            "{} already holds checkpoint {}; give another {other}, or go on from it with --resume auto",
            own.path.parent().unwrap_or(&own.path).display(),
            run_folder::step(own.step)
        );
        return Err((reason, instead(Asked { resume: Resume::Auto, ..asked.clone() }, Where::Same)));
    }
    let run = places().find_map(Place::owner);
    match goes_on(asked, facts, own, run) {
        None => Ok(Decision::Continue(own.clone())),
        Some(refused) => Err(refused),
    }
}

/// Decides a command for a place without checkpoints.
fn begin(asked: &Asked, facts: &Facts) -> Result<Decision, Refused> {
    let instead = |asked: Asked| Some(Instead { asked, into: Where::Same });
    let Resume::From(path) = &asked.resume else {
        return match asked.decay {
            None => Ok(Decision::Start),
            Some(_) => {
                Err(("--branch-decay needs a checkpoint of the stable phase: --resume PATH".into(), None))
            }
        };
    };
    let Some(given) = &facts.given else {
        return Err((format!("--resume {}: nothing is known of it", path.display()), None));
    };
    let found = given.found.as_ref().map_err(|reason| match &given.beside {
        Some(good) => {
            let word = program::quoted(&good.path.display().to_string());
            let reason = format!("{reason}; the newest good one beside it: --resume {word}");
            (reason, instead(Asked { resume: Resume::From(good.path.clone()), ..asked.clone() }))
        }
        None => (reason.clone(), None),
    })?;
    if asked.init.is_some() && asked.init != found.init {
        let reason = format!(
            "--init starts a new run, but {} is there to go on from; leave out --init or --resume",
            found.path.display()
        );
        return Err((reason, instead(Asked { resume: Resume::Auto, decay: None, ..asked.clone() })));
    }
    match asked.decay {
        None => Ok(Decision::From(found.clone())),
        Some(0) => Err((
            "--branch-decay wants at least one step".into(),
            instead(Asked { decay: Some(1), ..asked.clone() }),
        )),
        Some(_) if !found.stable => Err((
            format!(
                "checkpoint {} is not in the stable phase of its schedule; a branch starts in the stable phase",
                found.path.display()
            ),
            None,
        )),
        Some(steps) => Ok(Decision::Branch(found.clone(), steps)),
    }
}

/// Why a command does not go on with the run that is there; none if it does.
fn goes_on(asked: &Asked, facts: &Facts, own: &Found, run: Option<&Identity>) -> Option<Refused> {
    let out = facts.folder.path.display();
    let named = run
        .map_or_else(|| format!("a run at step {}", own.step), |run| format!("{run}, at step {}", own.step));
    let instead = |asked: Asked, into: Where| Some(Instead { asked, into });
    let parent = run.and_then(|run| run.parent.as_ref());
    let decay = parent.and_then(|parent| parent.decay);
    let init = run.map_or(&own.init, |run| &run.init);
    // The command that it was begun with, or the very checkpoint that it goes on from.
    let named_by = match &asked.resume {
        Resume::Auto | Resume::Never => true,
        Resume::From(path) => {
            let found = facts.given.as_ref().and_then(|given| given.found.as_ref().ok());
            let is_parent = |parent: &&Parent| {
                same_spelling(&parent.path, path)
                    || found.is_some_and(|found| {
                        let run = found.run.as_ref().map(|run| &run.id);
                        run.is_some() && run == parent.run.as_ref() && found.step == parent.step
                    })
            };
            let newest = facts.given.as_ref().is_some_and(|given| given.inside)
                && found.is_some_and(|found| found.age() == own.age());
            newest
                || parent
                    .filter(is_parent)
                    .is_some_and(|_| decay == asked.decay || decay.is_some() && asked.decay.is_some())
        }
    };
    if asked.decay.is_some() && asked.decay != decay {
        if let Some(decay) = decay.filter(|_| named_by) {
            let reason = format!(
                "{out} holds {named}; --branch-decay {decay} goes on with it, and a decay of another length wants its own --out"
            );
            return Some((reason, instead(Asked { decay: Some(decay), ..asked.clone() }, Where::Same)));
        }
        let resume = match &asked.resume {
            Resume::From(path) => path.clone(),
            Resume::Auto | Resume::Never => own.path.clone(),
        };
        let reason = format!(
            "a branch must not write into the folder of another run, but {out} holds {named}; give it its own --out"
        );
        let branch = Asked { resume: Resume::From(resume), ..asked.clone() };
        return Some((reason, instead(branch, Where::Other)));
    }
    if asked.init.is_some() && asked.init != *init {
        let reason = format!(
            "--init starts a new run, but {} is there to go on from; give another --out",
            own.path.display()
        );
        return Some((reason, instead(asked.clone(), Where::Other)));
    }
    if named_by {
        return None;
    }
    let inside = facts.given.as_ref().is_some_and(|given| given.inside);
    let reason = if inside {
        format!(
            "--resume {}: the run in {out} goes on from its newest checkpoint {}; give another --out to go on from this one",
            asked.resume,
            own.path.display()
        )
    } else {
        format!(
            "--resume {} begins a new run, but {out} holds {named}; give another --out, or leave out --resume to go on with that run",
            asked.resume
        )
    };
    Some((reason, instead(asked.clone(), Where::Other)))
}
