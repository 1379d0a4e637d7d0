//! Which loop continues the rows, with drafts or without, and for how many tokens at a time.

use crate::options::Speculation;
use model::decode::{Drafts, TOKENS};
use std::time::Duration;

/// Which of the two loops runs next, and for how long. Both give the same tokens, so changing between them in the middle of a
/// text changes only the speed.
pub(crate) struct Choice {
    /// The loops to choose from; the first one that is not measured yet is next.
    candidates: Vec<Pace>,
}

struct Pace {
    drafts: Drafts,
    /// Calls so far. The first one is not counted, because it finds cold caches.
    calls: u32,
    tokens: usize,
    passes: i32,
    time: Duration,
}

/// Calls of each loop that `auto` measures.
const MEASURED: u32 = 3;

impl Choice {
    pub(crate) fn new(speculation: Speculation, has_head: bool) -> Choice {
        let candidates = match speculation {
            Speculation::Auto if has_head => &[Drafts::Off, Drafts::SecondHead][..],
            Speculation::On => &[Drafts::SecondHead],
            Speculation::Auto | Speculation::Off => &[Drafts::Off],
        };
        let new = |&drafts| Pace { drafts, calls: 0, tokens: 0, passes: 0, time: Duration::ZERO };
        Choice { candidates: candidates.iter().map(new).collect() }
    }

    /// The loops to choose from.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = Drafts> {
        self.candidates.iter().map(|pace| pace.drafts)
    }

    /// The loop, and its iterations in this time.
    pub(crate) fn next(&mut self, time: Duration) -> (Drafts, i32) {
        if let [.., _, _] = self.candidates[..]
            && self.candidates.iter().all(|pace| pace.calls >= MEASURED)
        {
            let speed = |pace: &Pace| pace.tokens as f64 / pace.time.as_secs_f64();
            self.candidates.sort_by(|a, b| speed(b).total_cmp(&speed(a)));
            self.candidates.truncate(1);
        }
        let unmeasured = self.candidates.iter().find(|pace| pace.calls < MEASURED);
        let pace = unmeasured.unwrap_or(&self.candidates[0]);
        let most = match pace.drafts {
            Drafts::Off => TOKENS as i32,
            Drafts::SecondHead => TOKENS as i32 / 2,
        };
        let passes = match pace.calls {
            0 => 1,
            1 => 4,
            _ => (time.as_secs_f64() / (pace.time.as_secs_f64() / f64::from(pace.passes))) as i32,
        };
        (pace.drafts, passes.clamp(1, most))
    }

    pub(crate) fn learn(&mut self, drafts: Drafts, passes: i32, tokens: usize, took: Duration) {
        let Some(pace) = self.candidates.iter_mut().find(|pace| pace.drafts == drafts) else { return };
        pace.calls += 1;
        if pace.calls > 1 {
            pace.tokens += tokens;
            pace.passes += passes;
            pace.time += took;
        }
    }
}
