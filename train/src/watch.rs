//! What a run remembers of its gradients. It says which step is a spike, and how many steps in a row were thrown away, after
//! which the run goes back to a checkpoint.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Steps whose norms are remembered.
const WINDOW: usize = 64;

/// With fewer norms than this, nothing is called a spike.
const ENOUGH: usize = 16;

/// Norms and bad steps so far. Part of a checkpoint, so that a run that goes on judges its steps as if it had not stopped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Number and gradient norm of the newest steps that changed the weights, oldest first.
    norms: VecDeque<(u64, f32)>,
    /// Steps in a row, up to the newest one, that left the weights as they were.
    pub bad_in_a_row: u64,
    /// All steps that left the weights as they were.
    pub skipped: u64,
}

impl Watch {
    /// The largest gradient norm that step number `step` (from 1) may have: `spike_factor` times the median of the norms
    /// of the steps up to `step - 2`. The step just before does not count, because the host launches a step before it
    /// has read that one, and the limit must not depend on whether the run paused here to save.
    pub fn largest_norm(&self, step: u64, spike_factor: Option<f64>) -> f32 {
        let Some(factor) = spike_factor else { return f32::MAX };
        let known = self.norms.iter().rev().filter(|(of, _)| of + 2 <= step).take(WINDOW);
        let mut norms: Vec<f32> = known.map(|(_, norm)| *norm).collect();
        if norms.len() < ENOUGH {
            return f32::MAX;
        }
        norms.sort_by(f32::total_cmp);
        (f64::from(norms[norms.len() / 2]) * factor) as f32
    }

    /// The newest step that changed the weights.
    pub fn newest_applied(&self) -> Option<u64> {
        self.norms.back().map(|(step, _)| *step)
    }

    /// Step number `step` changed the weights.
    pub fn applied(&mut self, step: u64, norm: f64) {
        self.bad_in_a_row = 0;
        self.norms.push_back((step, norm as f32));
        // One more than are used: the newest one does not count yet.
        if self.norms.len() > WINDOW + 1 {
            self.norms.pop_front();
        }
    }

    /// A step left the weights as they were.
    pub fn thrown_away(&mut self) {
        self.bad_in_a_row += 1;
        self.skipped += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_a_multiple_of_the_median_known_in_time() {
        let mut watch = Watch::default();
        for step in 1..=100 {
            let before = watch.largest_norm(step, Some(4.0));
            let expected = if step < 18 { f32::MAX } else { 4.0 };
            assert_eq!(before, expected, "step {step}");
            assert_eq!(watch.largest_norm(step, None), f32::MAX);
            watch.applied(step, if step % 9 == 0 { 3.5 } else { 1.0 });
            // Whether the newest norm has been read changes nothing.
            let mut early = watch.clone();
            early.norms.pop_back();
            assert_eq!(early.largest_norm(step + 1, Some(4.0)), watch.largest_norm(step + 1, Some(4.0)));
        }
        let text = serde_json::to_string(&watch).unwrap();
        assert_eq!(serde_json::from_str::<Watch>(&text).unwrap(), watch);
        watch.thrown_away();
        watch.thrown_away();
        assert_eq!((watch.bad_in_a_row, watch.skipped), (2, 2));
        watch.applied(101, 1.0);
        assert_eq!((watch.bad_in_a_row, watch.skipped), (0, 2));
    }
}
