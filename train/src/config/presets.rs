//! The run of each preset, by what it has otherwise than that of `1b`, whose values stand with the keys.

use super::{BatchShape, Checkpoints, Data, Log, Optimizer, RunConfig, ScheduleConfig, Validation};
use model::{Compute, Config, Preset};

/// The run of a preset.
pub(super) fn run(preset: Preset) -> RunConfig {
    let large = RunConfig { model: Config::preset(preset), ..RunConfig::default() };
    match preset {
        Preset::OneB => large,
        Preset::Small => RunConfig { batch: BatchShape { seq: 1024, ..large.batch }, ..large },
        // Minutes on two cores: many small steps, no time for a second task (FIM), a longer decay, and a rate that fits
        // the width. It reached 3.13 nats on held-out rows where a bigram model has 3.28.
        Preset::Tiny => RunConfig {
            steps: Some(2000),
            data: Data { fim_rate: 0.0, epochs: 1, validation_fraction: 0.02, ..large.data },
            batch: BatchShape { accumulation: 1, seq: 128, ..large.batch },
            optimizer: Optimizer { learning_rate: Some(4e-3), first_moment: Compute::F32, ..large.optimizer },
            schedule: ScheduleConfig { decay_fraction: 0.3, ..large.schedule },
            checkpoint: Checkpoints { every: 500, every_minutes: None, keep_last: 2, ..large.checkpoint },
            validation: Validation { every: 250, batches: 48, ..large.validation },
            log: Log { every: 50 },
            ..large
        },
        Preset::Bench => RunConfig {
            steps: Some(50),
            data: Data { fim_rate: 0.0, epochs: 1, ..large.data },
            batch: BatchShape { accumulation: 1, seq: 256, ..large.batch },
            optimizer: Optimizer { first_moment: Compute::F32, ..large.optimizer },
            validation: Validation { batches: 0, ..large.validation },
            log: Log { every: 1 },
            ..large
        },
    }
}
