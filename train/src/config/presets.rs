//! The run that belongs to each model preset.

use super::{
    BatchShape, Checkpoints, Data, Guard, Kernels, Log, Optimizer, RunConfig, ScheduleConfig, ScheduleKind,
    Validation,
};
use crate::data::{Order, Packing};
use crate::schedule::Curve;
use model::{Compute, Config, Preset};

/// The mission's run for the 1b model; the others differ from it in size, length and regularity of saving.
pub(super) fn run(preset: Preset) -> RunConfig {
    let mission = RunConfig {
        seed: 0,
        steps: None,
        platform: "cpu".into(),
        kernels: Kernels::Auto,
        remat: None,
        model: Config::preset(preset),
        data: Data {
            path: None,
            end_of_text: None,
            shuffle: Order::Shuffled,
            fim_rate: 0.5,
            fim_spm: 0.1,
            packing: Packing::BestFit,
            validation_fraction: 0.01,
            epochs: 4,
            max_bad_row_groups: 0,
        },
        batch: BatchShape { micro: 8, accumulation: 8, seq: 2048 },
        optimizer: Optimizer {
            learning_rate: None,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip: 1.0,
            // Two bytes a parameter less; the second moment, whose root divides, stays f32.
            first_moment: Compute::Bf16,
        },
        schedule: ScheduleConfig {
            kind: ScheduleKind::Wsd,
            warmup_steps: None,
            decay_fraction: 0.1,
            decay: Curve::OneMinusSqrt,
            floor: 0.0,
        },
        checkpoint: Checkpoints {
            every: 1000,
            every_minutes: Some(15.0),
            keep_last: 3,
            // All of the mission's epochs; of a small data set, whose epochs are short, no more than fit on a disk.
            keep_epochs: 4,
            keep_every: None,
            mirror: None,
            mirror_every_minutes: None,
        },
        guard: Guard { spike_factor: Some(30.0), bad_steps: 10, rollbacks: 3 },
        validation: Validation { every: 1000, batches: 64 },
        log: Log { every: 10 },
    };
    match preset {
        Preset::OneB => mission,
        Preset::Small => RunConfig { batch: BatchShape { micro: 8, accumulation: 8, seq: 1024 }, ..mission },
        // Minutes on two cores: many small steps, no time for a second task (FIM), a longer decay, and a rate that fits
        // the width. It reached 3.13 nats on held-out rows where a bigram model has 3.28.
        Preset::Tiny => RunConfig {
            steps: Some(2000),
            data: Data { fim_rate: 0.0, epochs: 1, validation_fraction: 0.02, ..mission.data },
            batch: BatchShape { micro: 8, accumulation: 1, seq: 128 },
            optimizer: Optimizer {
                learning_rate: Some(4e-3),
                first_moment: Compute::F32,
                ..mission.optimizer
            },
            schedule: ScheduleConfig { decay_fraction: 0.3, ..mission.schedule },
            checkpoint: Checkpoints {
                every: 500,
                every_minutes: None,
                keep_last: 2,
                keep_epochs: 4,
                keep_every: None,
                mirror: None,
                mirror_every_minutes: None,
            },
            validation: Validation { every: 250, batches: 48 },
            log: Log { every: 50 },
            ..mission
        },
        Preset::Bench => RunConfig {
            steps: Some(50),
            data: Data { fim_rate: 0.0, epochs: 1, ..mission.data },
            batch: BatchShape { micro: 8, accumulation: 1, seq: 256 },
            optimizer: Optimizer { first_moment: Compute::F32, ..mission.optimizer },
            validation: Validation { every: 1000, batches: 0 },
            log: Log { every: 1 },
            ..mission
        },
    }
}
