//! What must become of a run, told anew: each step from the one before it, whatever checkpoints were lost and whatever
//! settings changed. It knows nothing of disks, threads and processes.

use super::machine::{Event, Launch, Life, behind, is_bad, norm};
use std::path::Path;
use std::sync::Arc;
use train::checkpoint::{Era, Progress};
use train::config::RunConfig;
use train::data::{Batch, Dataset, Loader, Position};
use train::scaling::schedule_of;
use train::schedule::Schedule;
use train::state::StepInputs;

/// The rows of the data in the loader's order, one by one.
pub(super) struct Rows(Vec<Batch>);

impl Rows {
    pub(super) fn of(data: &Path, run: &RunConfig, count: usize) -> Rows {
        let dataset =
            Arc::new(Dataset::open(data, run.model.num_tokens, run.data.validation_fraction).unwrap());
        let options = run.data.rows(run.batch.seq, run.seed);
        let mut loader = Loader::start(dataset, options, Position::default()).unwrap();
        Rows((0..count).map(|_| loader.next_batch(1, 1).unwrap()).collect())
    }
}

/// Where a run is: between two steps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct At {
    pub(super) state: u64,
    pub(super) progress: Progress,
    pub(super) eras: Arc<Vec<Era>>,
}

/// How a run may have begun elsewhere: states of weights alone, and checkpoints of another run.
pub(super) struct Origins<'a> {
    pub(super) weights: Vec<u64>,
    pub(super) checkpoints: &'a [At],
    /// The step and the length of a branch's decay.
    pub(super) branch: Option<(u64, u64)>,
}

/// Lives a life again from what it was loaded with. `known` are all states of this run that were to be saved so far; this
/// life's are added.
///
/// # Panics
/// If a step is another than it must be, or the run went back where or when it must not.
pub(super) fn relive(life: &Life, rows: &Rows, known: &mut Vec<At>, origins: &Origins<'_>) {
    let Some(run) = &life.run else { return };
    let schedule = schedule_of(run).unwrap();
    let schedule = match origins.branch {
        Some((step, steps)) => schedule.branch(step, steps, run.schedule.decay, run.schedule.floor),
        None => schedule,
    };
    let mut at: Option<At> = None;
    // Where it has to go back from, and how many steps were on their way when that was seen.
    let mut turns: Option<(At, usize)> = None;
    for event in &life.events {
        match event {
            Event::Loaded { state, from: None } => {
                assert!(at.is_none() && origins.weights.contains(state), "loaded with strange weights");
                let eras = Arc::new(vec![Era { from: 0, settings: run.settings() }]);
                at = Some(At { state: *state, progress: Progress::default(), eras });
            }
            Event::Loaded { state, from: Some(from) } => {
                let (progress, eras) = &**from;
                let same = |it: &&At| (it.state, &it.progress, &*it.eras) == (*state, progress, eras);
                let from = known.iter().chain(origins.checkpoints).find(same);
                let from = from.unwrap_or_else(|| {
                    let near: Vec<&At> = known.iter().filter(|it| it.progress.step == progress.step).collect();
                    panic!("a checkpoint that nobody wrote: {progress:?} {state} {eras:?}; of its step were {near:?}")
                });
                let next = match at {
                    None => from.begun_under(run),
                    Some(_) => {
                        let (now, _) = turns.take().expect("it went back without so many bad steps in a row");
                        now.gone_back(from, run)
                    }
                };
                let must_turn = next.progress.watch.bad_in_a_row >= run.guard.bad_steps;
                turns = must_turn.then(|| (next.clone(), 0));
                at = Some(next);
            }
            Event::Launched(launch) => {
                let now = at.take().expect("it is loaded first");
                if let Some((_, on_their_way)) = &mut turns {
                    *on_their_way += 1;
                    assert!(*on_their_way == 1, "it went on after {launch:?}, where it had to go back");
                }
                let (wanted, next) = now.step(rows, run, &schedule);
                assert_eq!(*launch, wanted, "found and wanted, after {now:?}");
                if turns.is_none() && next.progress.watch.bad_in_a_row >= run.guard.bad_steps {
                    turns = Some((next.clone(), 0));
                }
                at = Some(next);
            }
            Event::Staged => known.push(at.clone().expect("it is loaded first")),
        }
    }
}

impl At {
    /// A step is in the weights, the position and the counts at once, however late it is read.
    fn step(&self, rows: &Rows, run: &RunConfig, schedule: &Schedule) -> (Launch, At) {
        let Progress { step, data, .. } = self.progress;
        let batch = &rows.0[data.rows as usize..][..run.batch.rows()];
        assert!(data.is_start() || data == batch[0].position, "{data:?}");
        let inputs = StepInputs {
            learning_rate: schedule.learning_rate(step),
            largest_norm: self.progress.watch.largest_norm(step + 1, run.guard.spike_factor),
            step,
            seed: run.seed,
        };
        let all = |of: fn(&Batch) -> &Vec<i32>| batch.iter().flat_map(of).copied().collect::<Vec<i32>>();
        let (ids, segments) = (all(|row| &row.ids), all(|row| &row.segments));
        let loss = behind(self.state, run, inputs, &ids, &segments);
        let launch = Launch {
            step,
            row: data.rows,
            learning_rate: inputs.learning_rate.to_bits(),
            largest_norm: inputs.largest_norm.to_bits(),
            loss,
        };
        let mut next = self.clone();
        let progress = &mut next.progress;
        progress.step += 1;
        progress.tokens_seen += batch.iter().map(Batch::targets).sum::<u64>();
        progress.data = batch[batch.len() - 1].position_after;
        if is_bad(data.rows) {
            progress.watch.thrown_away();
        } else {
            next.state = loss;
            progress.watch.applied(step + 1, norm(loss));
            progress.returned = progress.returned.filter(|returned| *returned > step);
            if step + 1 > progress.failed_at {
                progress.rollbacks = 0;
            }
        }
        (launch, next)
    }

    /// The same under other settings.
    fn begun_under(&self, run: &RunConfig) -> At {
        let mut next = self.clone();
        let (settings, step) = (run.settings(), self.progress.step);
        let before = &self.eras.last().unwrap().settings;
        if settings == *before {
            return next;
        }
        let differs = |key: &String| before.get(key) != settings.get(key);
        let harmless = |key: &String| ["checkpoint.", "log."].iter().any(|table| key.starts_with(table));
        if before.keys().chain(settings.keys()).any(|key| differs(key) && !harmless(key)) {
            (next.progress.rollbacks, next.progress.returned) = (0, None);
        }
        let eras = Arc::make_mut(&mut next.eras);
        eras.retain(|era| era.from < step);
        eras.push(Era { from: step, settings });
        next
    }

    /// Back at `to`, and on behind the rows of the bad steps.
    fn gone_back(&self, to: &At, run: &RunConfig) -> At {
        let (now, then) = (&self.progress, &to.progress);
        assert!(now.continues(then) && then.watch.bad_in_a_row == 0, "back to {then:?} from {now:?}");
        assert!(now.returned.is_none_or(|returned| then.step < returned), "back to {then:?} from {now:?}");
        let mut watch = then.watch.clone();
        watch.skipped = now.watch.skipped;
        let progress = Progress {
            data: now.data,
            turns: [&now.turns[..], &[then.step]].concat(),
            returned: Some(then.step),
            failed_at: now.failed_at.max(now.step),
            rollbacks: now.rollbacks + 1,
            watch,
            ..then.clone()
        };
        At { progress, ..At { eras: to.begun_under(run).eras, ..to.clone() } }
    }
}
