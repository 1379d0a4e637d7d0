//! Values that follow from the size of the model and of the data, each with its reason.

use crate::config::{MOST_STEPS, Resolved, RunConfig, RunConfigError, ScheduleKind, Source};
use crate::data::EpochSize;
use crate::numbers::group;
use crate::schedule::{Decay, Schedule};
use std::fmt;

/// What is known before the run starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Parameters of the model.
    pub parameters: u64,
    /// The size of one pass over the training split.
    pub epoch: EpochSize,
}

/// One value that was chosen and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The configuration key.
    pub key: &'static str,
    /// The value as the configuration spells it.
    pub value: String,
    /// Where it comes from, in words and numbers.
    pub reason: String,
}

/// The run's length and learning rates, nothing left open.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Optimiser steps of the whole run.
    pub steps: u64,
    /// Learning rate over these steps.
    pub schedule: Schedule,
    /// What was chosen automatically; values that a person set are not in it.
    pub decisions: Vec<Decision>,
}

/// Learning rate for a number of parameters: `3e-4 sqrt(1.5e9 / N)` within [1e-4, 1e-3], the original
/// implementation's rule. A heuristic: sweep around it before a long run.
pub fn learning_rate(parameters: u64) -> f64 {
    (3e-4 * (1.5e9 / parameters as f64).sqrt()).clamp(1e-4, 1e-3)
}

/// What a run sees, for comparison with other runs: tokens, repetitions counted, and how many that is for each
/// parameter.
pub fn tokens_a_parameter(tokens: f64, parameters: u64) -> String {
    format!(
        "{} in the whole run, {:.1} a parameter; about 20 are compute-optimal (Hoffmann et al. 2022)",
        group(tokens as u64),
        tokens / parameters as f64
    )
}

/// Chooses every value that was left automatic, writes it into the configuration, and lays out the schedule.
///
/// # Errors
/// If the data is too small for one step, or a warmup that was set does not fit into the run.
pub fn plan(resolved: &mut Resolved, facts: Facts) -> Result<Plan, RunConfigError> {
    let mut decisions = Vec::new();
    let rate = resolved.run.optimizer.learning_rate.unwrap_or_else(|| {
        let rate = learning_rate(facts.parameters);
        // Three digits: a heuristic has no more, and the number is written into files.
        let rate = format!("{rate:.2e}").parse().expect("a formatted number parses");
        decisions.push(Decision {
            key: "optimizer.learning_rate",
            value: format!("{rate:e}"),
            reason: format!("3e-4 * sqrt(1.5e9 / {} parameters), within [1e-4, 1e-3]", facts.parameters),
        });
        rate
    });
    let steps = match resolved.run.steps {
        Some(steps) => steps,
        None => {
            let decision = steps_of_data(&resolved.run, facts)?;
            let steps = decision.value.parse().expect("a count of steps");
            decisions.push(decision);
            steps
        }
    };
    let decay = decay_of(&resolved.run, steps);
    let rising = decay.map_or(steps, |decay| decay.start);
    let warmup = resolved.run.schedule.warmup_steps.unwrap_or_else(|| {
        let warmup = (steps / 20).clamp(1, 2000).min(rising);
        decisions.push(Decision {
            key: "schedule.warmup_steps",
            value: warmup.to_string(),
            reason: format!("a twentieth of {steps} steps, at most 2000"),
        });
        warmup
    });
    if warmup > rising {
        return Err(RunConfigError::Value {
            key: "schedule.warmup_steps".into(),
            found: warmup.to_string(),
            wanted: match decay {
                None => format!("at most the {steps} steps of the run"),
                Some(_) => format!(
                    "at most {rising}, the steps before the decay, or the rate jumps: lower it or \
                     schedule.decay_fraction, or give more than the {steps} steps"
                ),
            },
            source_of: resolved.source("schedule.warmup_steps"),
        });
    }
    resolved.run.optimizer.learning_rate = Some(rate);
    resolved.run.steps = Some(steps);
    resolved.run.schedule.warmup_steps = Some(warmup);
    for decision in &decisions {
        resolved.set_source(decision.key, Source::Auto(decision.reason.clone()));
    }
    let schedule = schedule_of(&resolved.run).expect("all that it depends on was set above");
    Ok(Plan { steps, schedule, decisions })
}

/// The learning rate over the steps of a run of which nothing is left open; none if something is.
pub fn schedule_of(run: &RunConfig) -> Option<Schedule> {
    let (peak, steps, warmup_steps) = (run.optimizer.learning_rate?, run.steps?, run.schedule.warmup_steps?);
    Some(Schedule { peak, warmup_steps, decay: decay_of(run, steps) })
}

fn decay_of(run: &RunConfig, steps: u64) -> Option<Decay> {
    let chosen = &run.schedule;
    match chosen.kind {
        ScheduleKind::Constant => None,
        ScheduleKind::Wsd => {
            let start = steps_before_decay(steps, chosen.decay_fraction);
            Some(Decay { start, steps: steps - start, curve: chosen.decay, floor: chosen.floor })
        }
    }
}

/// `floor((1 - fraction) steps)`: the original implementation rounds the start of the decay down. Computed with the decimal
/// number that was written, because in floating point (1 - 0.9) * 10 is less than 1.
fn steps_before_decay(steps: u64, fraction: f64) -> u64 {
    const DIGITS: usize = 18;
    let text = format!("{fraction:.DIGITS$}");
    // Rust prints the shortest number that reads back as this one, which is the one that was written.
    let shortest = fraction.to_string();
    let text = if shortest.len() < text.len() { shortest } else { text };
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let part = format!("{part:0<DIGITS$}");
    let one = 10_u128.pow(DIGITS as u32);
    let digits = |text: &str| text.parse::<u128>().expect("digits of a printed number");
    let fraction = digits(whole) * one + digits(&part[..DIGITS]);
    ((one - fraction) * u128::from(steps) / one) as u64
}

fn steps_of_data(run: &RunConfig, facts: Facts) -> Result<Decision, RunConfigError> {
    let (EpochSize { rows, tokens, .. }, epochs) = (facts.epoch, u64::from(run.data.epochs));
    let per_step = run.batch.rows() as u64;
    let steps = rows.saturating_mul(epochs) / per_step;
    if steps == 0 {
        return Err(RunConfigError::TooLittleData { rows: rows * epochs, tokens: tokens * epochs, per_step });
    }
    if steps > MOST_STEPS {
        return Err(RunConfigError::Value {
            key: "data.epochs".into(),
            found: epochs.to_string(),
            wanted: format!("so few that the run has at most {MOST_STEPS} steps, not {steps}"),
            source_of: Source::Auto("steps follow from the epochs".into()),
        });
    }
    Ok(Decision {
        key: "steps",
        value: steps.to_string(),
        reason: format!(
            "{rows} rows of {} x {epochs} epochs / {per_step} rows a step ({} x {})",
            run.batch.seq, run.batch.accumulation, run.batch.micro
        ),
    })
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.key, self.value, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolve;
    use model::Preset;

    #[test]
    fn the_mission_scales_as_the_spec_says() {
        let mut resolved = resolve(Preset::OneB, None, &[]).unwrap();
        let facts = Facts { parameters: 1_075_147_776, epoch: EpochSize::assumed(24_000_000_000, 2048) };
        let plan = plan(&mut resolved, facts).unwrap();
        assert_eq!(plan.steps, 732_421);
        assert_eq!(plan.schedule.peak, 3.54e-4);
        assert_eq!(plan.schedule.warmup_steps, 2000);
        assert_eq!(plan.schedule.decay.unwrap().start, 659_178);
        let reasons: Vec<_> = plan.decisions.iter().map(ToString::to_string).collect();
        assert_eq!(
            reasons,
            [
                "optimizer.learning_rate = 3.54e-4: 3e-4 * sqrt(1.5e9 / 1075147776 parameters), within [1e-4, 1e-3]",
                "steps = 732421: 11718750 rows of 2048 x 4 epochs / 64 rows a step (8 x 8)",
                "schedule.warmup_steps = 2000: a twentieth of 732421 steps, at most 2000",
            ]
        );
        assert!(resolved.to_toml().contains("learning_rate = 0.000354 # auto: 3e-4 * sqrt"));
    }

    /// Short documents, each in a row of its own: epochs are counted by rows, of which padding is the larger part.
    #[test]
    fn epochs_are_counted_by_rows() {
        let mut resolved = resolve(Preset::OneB, None, &[]).unwrap();
        resolved.run.batch = crate::config::BatchShape { accumulation: 1, micro: 5, seq: 1024 };
        let epoch = EpochSize { documents: Some(395), tokens: 395 * 46, rows: 395, seq: 1024, lengths: None };
        assert_eq!(plan(&mut resolved, Facts { parameters: 1, epoch }).unwrap().steps, 4 * 395 / 5);
        let said = epoch.to_string();
        assert_eq!(said, "395 documents, 18,170 tokens an epoch in 395 rows of 1024, 95.5 % padding");
    }

    #[test]
    fn the_decay_starts_at_the_written_fraction() {
        let cases = [
            (10, 0.9, 1),
            (10, 0.1, 9),
            (10, 0.3, 7),
            (100, 0.07, 93),
            (1000, 0.999, 1),
            (7, 0.0, 7),
            (7, 1.0, 0),
            (732_421, 0.1, 659_178),
            (1_000_000_000, 1e-9, 999_999_999),
            (10, 1e-30, 10),
        ];
        for (steps, fraction, start) in cases {
            assert_eq!(steps_before_decay(steps, fraction), start, "{fraction} of {steps}");
        }
    }

    #[test]
    fn a_warmup_ends_before_the_decay() {
        let planned = |warmup, fraction| {
            let mut resolved = resolve(Preset::OneB, None, &[]).unwrap();
            resolved.run.steps = Some(10);
            resolved.run.schedule.warmup_steps = warmup;
            resolved.run.schedule.decay_fraction = fraction;
            plan(&mut resolved, Facts { parameters: 1, epoch: EpochSize::assumed(1, 2048) })
        };
        let error = planned(Some(6), 0.5).unwrap_err().to_string();
        assert!(error.contains("is 6, but must be at most 5, the steps before the decay"), "{error}");
        assert!(error.contains("schedule.decay_fraction"), "{error}");
        // The rate never jumps: each step's is within a factor of the warmup's smallest step of the one before.
        for (warmup, fraction) in [(Some(5), 0.5), (None, 1.0), (None, 0.9), (Some(10), 0.0)] {
            let schedule = planned(warmup, fraction).unwrap().schedule;
            let rates: Vec<f64> = (0..10).map(|step| schedule.learning_rate(step) / schedule.peak).collect();
            let highest = rates.iter().position(|rate| *rate == 1.0).expect("the peak is reached");
            assert!(
                rates[..highest].is_sorted() && rates[highest..].is_sorted_by(|a, b| a >= b),
                "{rates:?}"
            );
        }
    }

    #[test]
    fn tokens_are_compared_with_parameters() {
        let epoch = EpochSize { documents: None, tokens: 24_000, rows: 25, seq: 1024, lengths: None };
        let said = tokens_a_parameter(epoch.tokens_in(100), 1000);
        assert!(said.starts_with("96,000 in the whole run, 96.0 a parameter;"), "{said}");
    }

    #[test]
    fn rates_stay_within_their_bounds() {
        assert_eq!((learning_rate(1_000_000), learning_rate(1_000_000_000_000)), (1e-3, 1e-4));
    }

    #[test]
    fn too_little_data_and_too_long_a_warmup_are_refused() {
        let mut resolved = resolve(Preset::OneB, None, &[]).unwrap();
        let facts = Facts { parameters: 1, epoch: EpochSize::assumed(1000, 2048) };
        let error = plan(&mut resolved, facts).unwrap_err().to_string();
        assert!(error.contains("4 rows (4000 tokens)") && error.contains("takes 64"), "{error}");
        resolved.run.steps = Some(10);
        resolved.run.schedule.warmup_steps = Some(11);
        let error = plan(&mut resolved, facts).unwrap_err().to_string();
        assert!(
            error.contains("`schedule.warmup_steps` is 11, but must be at most 9, the steps before"),
            "{error}"
        );
    }
}
