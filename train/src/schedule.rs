//! The learning rate as a function of the step: linear warmup, a constant phase, and a decay (WSD, arXiv 2404.06395).
//! It is evaluated on the host and fed to the step program as a number, so that no change of it recompiles.

use serde::{Deserialize, Serialize};

/// Learning rate over steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Learning rate of the constant phase.
    pub peak: f64,
    /// Steps of linear warmup: step `s` of them runs at `peak * (s + 1) / warmup_steps`.
    pub warmup_steps: u64,
    /// The decay at the end; none keeps the rate constant for ever.
    pub decay: Option<Decay>,
}

/// The last phase of a schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decay {
    /// The first step of the decay; it still runs at the peak.
    pub start: u64,
    /// Steps until the floor.
    pub steps: u64,
    /// The curve.
    pub curve: Curve,
    /// What is left at the end, as a part of the peak.
    pub floor: f64,
}

/// How a decay falls from 1 to 0 over `u` in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// `1 - u`.
    Linear,
    /// `(1 + cos(pi u)) / 2`.
    Cosine,
    /// `1 - sqrt(u)`: consistently better than linear (Hägele et al., arXiv 2405.18392).
    OneMinusSqrt,
}

/// The phase that a step lies in; only weights of the stable phase may be branched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The rate rises.
    Warmup,
    /// The rate is the peak.
    Stable,
    /// The rate falls.
    Decay,
}

impl Schedule {
    /// The rate of a step, counted from 0. After the end of the decay it stays at the floor.
    pub fn learning_rate(&self, step: u64) -> f64 {
        match (self.phase(step), self.decay) {
            (Phase::Warmup, _) => self.peak * (step + 1) as f64 / self.warmup_steps as f64,
            (Phase::Decay, Some(decay)) => {
                let u = ((step - decay.start) as f64 / decay.steps as f64).min(1.0);
                self.peak * (decay.floor + (1.0 - decay.floor) * decay.curve.at(u))
            }
            (Phase::Stable | Phase::Decay, _) => self.peak,
        }
    }

    /// The phase of a step. A warmup ends before the decay: `scaling::plan` refuses others.
    pub fn phase(&self, step: u64) -> Phase {
        match self.decay {
            Some(decay) if step >= decay.start && decay.steps > 0 => Phase::Decay,
            _ if step < self.warmup_steps => Phase::Warmup,
            _ => Phase::Stable,
        }
    }

    /// The same schedule with a decay that starts at `step`: a branch from a checkpoint of the stable phase. The
    /// warmup is not repeated, and the trunk's own schedule is not touched.
    pub fn branch(self, step: u64, decay_steps: u64, curve: Curve, floor: f64) -> Schedule {
        Schedule { decay: Some(Decay { start: step, steps: decay_steps, curve, floor }), ..self }
    }
}

impl Curve {
    /// The curve's value at `u` in [0, 1].
    pub fn at(self, u: f64) -> f64 {
        match self {
            Curve::Linear => 1.0 - u,
            Curve::Cosine => (1.0 + (std::f64::consts::PI * u).cos()) / 2.0,
            Curve::OneMinusSqrt => 1.0 - u.sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four epochs of 24 billion tokens, 131,072 a step; the last tenth decays.
    fn mission(curve: Curve, floor: f64) -> Schedule {
        let decay = Decay { start: 659_178, steps: 73_242, curve, floor };
        Schedule { peak: 3.54e-4, warmup_steps: 2000, decay: Some(decay) }
    }

    #[test]
    fn values_are_the_oracles() {
        let close =
            |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-8, "{found} {expected}");
        let cosine = mission(Curve::Cosine, 0.1);
        close(cosine.learning_rate(0), 3.54e-4 / 2000.0);
        close(cosine.learning_rate(999), 3.54e-4 / 2.0);
        for step in [1999, 2000, 300_000, 659_177, 659_178] {
            assert_eq!(cosine.learning_rate(step), 3.54e-4, "step {step}");
        }
        close(cosine.learning_rate(695_799), 1.947e-4);
        close(cosine.learning_rate(732_419), 3.540_000_014_7e-5);
        close(mission(Curve::OneMinusSqrt, 0.0).learning_rate(695_799), 1.036_841_99e-4);
        close(mission(Curve::Linear, 0.0).learning_rate(695_799), 1.77e-4);
    }

    #[test]
    fn after_the_end_the_floor_stays() {
        let floored = mission(Curve::OneMinusSqrt, 0.1);
        assert!((floored.learning_rate(732_420) / 3.54e-5 - 1.0).abs() < 1e-12);
        assert_eq!(floored.learning_rate(732_420), floored.learning_rate(10_000_000));
        assert!(mission(Curve::OneMinusSqrt, 0.0).learning_rate(732_419) > 0.0);
    }

    #[test]
    fn a_branch_decays_at_once_and_the_trunk_does_not() {
        let trunk = mission(Curve::Cosine, 0.1);
        let branch = trunk.branch(100_000, 15_000, Curve::OneMinusSqrt, 0.0);
        assert_eq!(branch.learning_rate(99_999), trunk.learning_rate(99_999));
        assert!(branch.learning_rate(100_001) < trunk.peak);
        assert_eq!(branch.learning_rate(115_000), 0.0);
        assert_eq!(trunk.learning_rate(115_000), trunk.peak);
        assert_eq!(
            (trunk.phase(0), trunk.phase(2000), branch.phase(100_000)),
            (Phase::Warmup, Phase::Stable, Phase::Decay)
        );
    }

    #[test]
    fn constant_is_constant() {
        let schedule = Schedule { peak: 1e-3, warmup_steps: 0, decay: None };
        assert!([0, 1, 1_000_000].iter().all(|&step| schedule.learning_rate(step) == 1e-3));
    }
}
