//! The thread that owns the device: it takes jobs from a queue, lets all of them go on side by side, and tells each what is new.

use anyhow::Result;
use decode::{Generator, Rows, Score, Settings, Speculation};
use metrics::gauge;
use program::esay;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Sender, UnboundedReceiver};

/// How long the device computes before the thread looks at the queue and at who has gone, where no prompt waits.
const PERIOD: Duration = Duration::from_millis(20);
/// How long the thread sleeps where every row waits for its reader.
const PAUSE: Duration = Duration::from_millis(5);

/// One text to be continued.
pub(crate) struct Job {
    /// Token ids, at least one; with the new tokens no more than a row has room for.
    pub(crate) prompt: Vec<i32>,
    pub(crate) settings: Settings,
    /// Where its news go. When nobody receives them any more, the job ends.
    pub(crate) events: Sender<Event>,
    /// Its place among those that may wait, which it leaves with its row or when nobody waits for it any more.
    pub(crate) place: OwnedSemaphorePermit,
}

/// What happens to a job, in this order.
#[derive(Debug)]
pub(crate) enum Event {
    /// It has a row; this many of its prompt's tokens were known.
    Admitted { known: usize },
    /// Scores of a piece of its prompt, if they are wanted.
    Prompt(Vec<Score>),
    /// New tokens, each with its score.
    Tokens(Vec<i32>, Vec<Score>),
    /// It is finished.
    Finished,
    /// The device failed.
    Failed,
}

/// A row as clients may know it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slot {
    pub(crate) busy: bool,
    /// Tokens of the prompt, and of those in the cache.
    pub(crate) prompt: usize,
    pub(crate) computed: usize,
    /// New tokens so far.
    pub(crate) new: usize,
}

/// The jobs in their rows.
struct Open {
    events: Sender<Event>,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens are wanted, not only the prompt.
    writes: bool,
    /// New tokens so far.
    new: usize,
    /// What its reader has no room for yet.
    held: Vec<Event>,
}

impl Open {
    /// Passes an event on, or holds it; whether the reader has room for more.
    fn send(&mut self, event: Event) -> bool {
        self.held.push(event);
        self.flush()
    }

    fn flush(&mut self) -> bool {
        while !self.held.is_empty() {
            match self.events.try_reserve() {
                Ok(place) => place.send(self.held.remove(0)),
                Err(TrySendError::Full(())) => return false,
                // Nobody reads it.
                Err(TrySendError::Closed(())) => self.held.clear(),
            }
        }
        true
    }
}

/// How jobs are served.
pub(crate) struct Plan<'a> {
    /// Texts that are written side by side.
    pub(crate) rows: usize,
    /// Tokens of each at most.
    pub(crate) tokens: usize,
    /// Tokens that end a text, one entry for each of the vocabulary.
    pub(crate) stops: &'a [bool],
    pub(crate) speculation: Speculation,
    /// Where the rows' states are told.
    pub(crate) slots: &'a Mutex<Vec<Slot>>,
}

/// Compiles all programs, says that it is ready, and serves jobs until the queue is closed and empty.
///
/// # Errors
/// If the cache does not fit the device.
pub(crate) fn run(
    generator: &mut Generator,
    plan: &Plan<'_>,
    jobs: &mut UnboundedReceiver<Job>,
    ready: impl Fn(),
) -> Result<()> {
    let mut waiting = VecDeque::new();
    loop {
        let mut rows = Rows::new(generator, plan.rows, plan.tokens, plan.stops, plan.speculation)?;
        rows.compile()?;
        gauge!("pythonlm_rows").set(plan.rows as f64);
        gauge!("pythonlm_cache_bytes").set(rows.cache_bytes() as f64);
        ready();
        let mut open: Vec<Option<Open>> = (0..plan.rows).map(|_| None).collect();
        match serve(&mut rows, &mut open, plan, jobs, &mut waiting) {
            Ok(()) => return Ok(()),
            // The cache is not to be trusted any more: the jobs in it fail, and the next ones get a new one.
            Err(error) => {
                esay!("error: {error:#}");
                for open in open.iter_mut().flatten() {
                    open.send(Event::Failed);
                }
            }
        }
    }
}

fn serve(
    rows: &mut Rows<'_>,
    open: &mut [Option<Open>],
    plan: &Plan<'_>,
    jobs: &mut UnboundedReceiver<Job>,
    waiting: &mut VecDeque<Job>,
) -> Result<()> {
    loop {
        waiting.extend(std::iter::from_fn(|| jobs.try_recv().ok()));
        // People type on: most of what waits may be asked for by nobody any more.
        waiting.retain(|job| !job.events.is_closed());
        admit(rows, open, waiting)?;
        if open.iter().all(Option::is_none) {
            tell(rows, open, plan, waiting);
            let Some(job) = jobs.blocking_recv() else { return Ok(()) };
            waiting.push_back(job);
            continue;
        }
        for (row, place) in open.iter_mut().enumerate() {
            let Some(job) = place else { continue };
            if job.events.is_closed() {
                rows.retire(row);
                *place = None;
            } else if job.flush() {
                rows.resume(row);
            } else {
                rows.pause(row);
            }
        }
        let prefilled = rows.prefill()?;
        let computed = prefilled.is_some();
        if let Some(prefilled) = prefilled
            && let Some(job) = &mut open[prefilled.row]
            && !prefilled.scores.is_empty()
        {
            job.send(Event::Prompt(prefilled.scores));
        }
        for (row, place) in open.iter_mut().enumerate() {
            if place.as_ref().is_some_and(|job| !job.writes) && rows.is_ready(row) {
                finish(rows, row, place);
            }
        }
        // A prompt that waits gets a piece after each token of the others, and a first token is not kept for its successors.
        let soon = |(row, job): (usize, &Option<Open>)| {
            job.as_ref().is_some_and(|job| !rows.is_ready(row) || job.new == 0)
        };
        let period = if open.iter().enumerate().any(soon) { Duration::ZERO } else { PERIOD };
        let news = rows.step(period)?;
        if news.is_empty() && !computed {
            std::thread::sleep(PAUSE);
        }
        for news in news {
            let place = &mut open[news.row];
            if let Some(job) = place {
                job.new += news.tokens.len();
                job.send(Event::Tokens(news.tokens, news.scores));
            }
            if news.finished {
                finish(rows, news.row, place);
            }
        }
        tell(rows, open, plan, waiting);
    }
}

/// Tells how the rows and the queue are.
fn tell(rows: &Rows<'_>, open: &[Option<Open>], plan: &Plan<'_>, waiting: &VecDeque<Job>) {
    let slot = |(row, job): (usize, &Option<Open>)| match job {
        Some(job) => Slot { busy: true, prompt: job.prompt, computed: rows.known(row), new: job.new },
        None => Slot::default(),
    };
    *plan.slots.lock().expect("no holder panics") = open.iter().enumerate().map(slot).collect();
    gauge!("pythonlm_rows_busy").set(open.iter().flatten().count() as f64);
    gauge!("pythonlm_queue").set(waiting.len() as f64);
}

/// Frees a row. What its reader has no room for waits with a thread of its own: it is at most what one job writes.
fn finish(rows: &mut Rows<'_>, row: usize, place: &mut Option<Open>) {
    rows.retire(row);
    let Some(mut job) = place.take() else { return };
    if !job.send(Event::Finished) {
        std::thread::spawn(move || job.held.drain(..).try_for_each(|event| job.events.blocking_send(event)));
    }
}

/// Jobs into free rows.
fn admit(rows: &mut Rows<'_>, open: &mut [Option<Open>], waiting: &mut VecDeque<Job>) -> Result<()> {
    while open.iter().any(Option::is_none)
        && let Some(Job { prompt, settings, events, place }) = waiting.pop_front()
    {
        drop(place);
        let row = rows.admit(&prompt, settings)?.expect("a row is free");
        let writes = settings.new_tokens > 0;
        let mut job = Open { events, prompt: prompt.len(), writes, new: 0, held: Vec::new() };
        job.send(Event::Admitted { known: rows.known(row) });
        open[row] = Some(job);
    }
    Ok(())
}
