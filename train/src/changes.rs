//! Settings that changed since a run's checkpoint was written, and what each change does.

use crate::checkpoint::Era;
use crate::config::{self, Key, OnChange, Open, RunConfig};
use crate::data::LongRows;
use crate::identity::Identity;
use crate::scaling::schedule_of;
use crate::schedule::Schedule;
use std::collections::BTreeSet;
use std::fmt;

/// What a change does to a run that goes on, as things stand; a key's [`OnChange`] says what it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The weights become what they would have become, but for rounding.
    Harmless,
    /// From here on the weights differ from those of either run from its start.
    Course,
    /// The run cannot go on from the checkpoint: its tensors or its place in the data mean something else.
    Impossible,
}

/// A setting with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The key.
    pub(crate) key: String,
    /// Its value in the checkpoint.
    pub(crate) was: String,
    /// Its value now.
    pub(crate) now: String,
    /// What the change does.
    pub(crate) kind: Kind,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was {}, is {}", self.key, self.was, self.now)
    }
}

/// The settings that changed since a checkpoint of step `step` was trained under `era`, in alphabetical order. A branch
/// ends both schedules alike. A key that must have a value, and has none in `era`, came with a later version of this program:
/// it counts as what it is in preset `1b`.
pub(crate) fn changes(era: &Era, run: &RunConfig, identity: &Identity, step: u64) -> Vec<Change> {
    // What is left open is not written; of a key that became open later, an older version wrote "auto".
    let left_open = |key: &str, value: &str| {
        value == "\"auto\"" && config::find(key).is_some_and(|key| key.open == Open::Yes)
    };
    let mut settings = era.settings.clone();
    settings.retain(|key, value| !left_open(key, value));
    let now = run.settings();
    let old = run.with_settings(&settings);
    let mut before = RunConfig::default().settings();
    before.retain(|key, _| config::find(key).is_some_and(|key| key.open == Open::No));
    before.extend(settings);
    let open = || "auto".to_owned();
    let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let changed = keys.into_iter().filter(|key| before.get(*key) != now.get(*key)).map(|key| Change {
        key: key.clone(),
        was: before.get(key).cloned().unwrap_or_else(open),
        now: now.get(key).cloned().unwrap_or_else(open),
        kind: old.as_ref().map_or(Kind::Course, |old| kind(key, old, run, identity, step)),
    });
    changed.collect()
}

/// The schedule of a run: a branch's own decay begins where the branch does.
pub(crate) fn schedule(run: &RunConfig, identity: &Identity) -> Option<Schedule> {
    let plain = schedule_of(run)?;
    let Some((parent, steps)) = identity.parent.as_ref().zip(identity.decay()) else { return Some(plain) };
    Some(plain.branch(parent.step, steps, run.schedule.decay, run.schedule.floor))
}

fn kind(key: &str, old: &RunConfig, new: &RunConfig, identity: &Identity, step: u64) -> Kind {
    // If all steps so far had run at the same rates with the new schedule, it is as if it had been so from the start.
    let same_rates = || {
        let (old, new) = (schedule(old, identity), schedule(new, identity));
        old.zip(new)
            .is_some_and(|(old, new)| (0..step).all(|at| old.learning_rate(at) == new.learning_rate(at)))
    };
    let same_rows = || old.batch.rows() == new.batch.rows();
    let long_rows = |run: &RunConfig| run.data.rows(run.batch.seq, run.seed).long_rows;
    let was_refused = || long_rows(old) == LongRows::Refuse || long_rows(old) == long_rows(new);
    // A key that this version of the program does not know may have decided the weights.
    let on_change = config::find(key).map_or(OnChange::Course, Key::on_change);
    match on_change {
        OnChange::Harmless => Kind::Harmless,
        OnChange::HarmlessAtSameRates if same_rates() => Kind::Harmless,
        OnChange::HarmlessWithSameRows if same_rows() => Kind::Harmless,
        OnChange::HarmlessIfRefused if was_refused() => Kind::Harmless,
        OnChange::HarmlessAtSameRates
        | OnChange::HarmlessWithSameRows
        | OnChange::HarmlessIfRefused
        | OnChange::Course => Kind::Course,
        OnChange::Impossible | OnChange::OfModel => Kind::Impossible,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KEYS, Override, resolve};
    use crate::data::EpochSize;
    use crate::identity::{Parent, RunId};
    use crate::scaling::{Facts, plan};
    use model::Preset;

    fn run(set: &[&str]) -> RunConfig {
        let set: Vec<_> = set.iter().map(|text| Override::parse(text).unwrap()).collect();
        let mut resolved = resolve(Preset::Tiny, None, &set).unwrap();
        plan(&mut resolved, Facts { parameters: 1_000_000, epoch: EpochSize::assumed(1 << 24, 128) })
            .unwrap();
        resolved.run
    }

    fn identity(decay: Option<u64>) -> Identity {
        let parent = Parent { path: "trunk".into(), run: None, step: 40, decay };
        Identity { id: RunId("1".into()), out: "out".into(), init: None, parent: decay.map(|_| parent) }
    }

    /// 1000 steps of which the last 100 decay, 50 warm up.
    const RUN: [&str; 3] = ["steps=1000", "schedule.decay_fraction=0.1", "schedule.warmup_steps=50"];

    fn kinds(more: &[&str], step: u64, decay: Option<u64>) -> Vec<(String, Kind)> {
        let era = Era { from: 0, settings: run(&RUN).settings() };
        let now = run(&[&RUN[..], more].concat());
        let found = changes(&era, &now, &identity(decay), step);
        found.into_iter().map(|change| (change.key, change.kind)).collect()
    }

    #[test]
    fn what_a_change_does_depends_on_what_was_trained() {
        assert_eq!(kinds(&[], 100, None), []);
        /// The new settings, the step, the length of a branch's decay, and the changes.
        type Case<'a> = (&'a [&'a str], u64, Option<u64>, &'a [(&'a str, Kind)]);
        let cases: &[Case<'_>] = &[
            // Longer, before the decay begins and after that.
            (&["steps=2000"], 900, None, &[("steps", Kind::Harmless)]),
            (&["steps=2000"], 902, None, &[("steps", Kind::Course)]),
            // A branch decays over its own steps whatever the trunk's are.
            (&["steps=2000"], 902, Some(500), &[("steps", Kind::Harmless)]),
            (&["schedule.warmup_steps=60"], 0, None, &[("schedule.warmup_steps", Kind::Harmless)]),
            (&["schedule.warmup_steps=60"], 1, None, &[("schedule.warmup_steps", Kind::Course)]),
            (&["schedule.floor=0.5"], 899, None, &[("schedule.floor", Kind::Harmless)]),
            (&["optimizer.weight_decay=0.3"], 1, None, &[("optimizer.weight_decay", Kind::Course)]),
            (&["model.dropout=0.3"], 1, None, &[("model.dropout", Kind::Course)]),
            (
                &["checkpoint.every=3", "log.every=7"],
                1,
                None,
                &[("checkpoint.every", Kind::Harmless), ("log.every", Kind::Harmless)],
            ),
            (&["data.long_rows=split"], 1, None, &[("data.long_rows", Kind::Harmless)]),
            (&["data.long_rows=cut"], 1, None, &[("data.long_rows", Kind::Course)]),
            (&["data.fim_rate=0.3"], 1, None, &[("data.fim_rate", Kind::Impossible)]),
            (&["seed=77"], 1, None, &[("seed", Kind::Impossible)]),
            (&["model.hidden_size=512"], 1, None, &[("model.hidden_size", Kind::Impossible)]),
        ];
        for (more, step, decay, wanted) in cases {
            let wanted: Vec<_> = wanted.iter().map(|(key, kind)| ((*key).to_owned(), *kind)).collect();
            assert_eq!(kinds(more, *step, *decay), wanted, "{more:?} at {step}");
        }
        // The same rows in other micro-batches, and other rows.
        let [micro, accumulation] = [run(&RUN).batch.micro, run(&RUN).batch.accumulation];
        let split = [format!("batch.micro={}", micro * accumulation), "batch.accumulation=1".to_owned()];
        let split: Vec<&str> = split.iter().map(String::as_str).collect();
        assert!(kinds(&split, 5, None).iter().all(|(_, kind)| *kind == Kind::Harmless));
        assert_eq!(
            kinds(&["batch.accumulation=7"], 5, None),
            [("batch.accumulation".to_owned(), Kind::Course)]
        );
    }

    /// A checkpoint of a version before a key was there has the key's default, and no other value.
    /// Checkpoints of earlier versions say `kernels = "auto"`, where nothing is written now.
    #[test]
    fn a_key_that_became_open_is_no_change() {
        let mut era = Era { from: 0, settings: run(&RUN).settings() };
        assert!(!era.settings.contains_key("kernels"));
        era.settings.insert("kernels".to_owned(), "\"auto\"".to_owned());
        assert_eq!(changes(&era, &run(&RUN), &identity(None), 100), []);
    }

    #[test]
    fn a_new_key_is_no_change_if_it_has_its_default() {
        let now = run(&["model.dropout=0.1", "batch.micro=4"]);
        let mut era = Era { from: 0, settings: now.settings() };
        for key in ["model.dropout", "batch.micro", "schedule.warmup_steps"] {
            era.settings.remove(key).unwrap();
        }
        let found: Vec<_> = changes(&era, &now, &identity(None), 5).iter().map(ToString::to_string).collect();
        let warmup = now.schedule.warmup_steps.unwrap();
        assert_eq!(
            found,
            ["batch.micro was 8, is 4".to_owned(), format!("schedule.warmup_steps was auto, is {warmup}")]
        );
    }

    /// Settings come back from a checkpoint, of another version too.
    #[test]
    fn settings_read_back() {
        let old = run(&["optimizer.beta1=0.5", "data.path=a \"b\""]);
        let mut settings = old.settings();
        assert_eq!(run(&[]).with_settings(&settings).unwrap(), old);
        settings.insert("optimizer.gone".into(), "1".into());
        settings.remove("optimizer.beta2");
        assert_eq!(run(&["optimizer.beta2=0.75"]).with_settings(&settings).unwrap().optimizer.beta2, 0.75);
        assert!(KEYS.len() > settings.len() / 2);
    }
}
