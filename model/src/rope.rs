//! RoPE and YaRN tables (arXiv 2309.00071, in the form of its authors' code): see [`maths`](crate::maths).

use crate::config::{Config, Yarn};
use engine::{Host, Type};

/// Cosine and sine of `position * frequency`, each `f32[positions, d/2]`, for half-split rotation:
/// `(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)` with `x1` the first and `x2` the second half of a head.
/// YaRN's temperature is in both tables. Computed in `f64` and rounded once.
pub fn rope_tables(config: &Config, positions: usize) -> (Host, Host) {
    let (frequencies, scale) = frequencies(config);
    let angles = || {
        (0..positions)
            .flat_map(|position| frequencies.iter().map(move |frequency| position as f64 * frequency))
    };
    let ty = Type::f32([positions, frequencies.len()]);
    let cos: Vec<f64> = angles().map(|angle| angle.cos() * scale).collect();
    let sin: Vec<f64> = angles().map(|angle| angle.sin() * scale).collect();
    (Host::from_f64(ty.clone(), &cos), Host::from_f64(ty, &sin))
}

/// Radians a position of each of the `d/2` channel pairs, and the factor on cosine and sine.
pub fn frequencies(config: &Config) -> (Vec<f64>, f64) {
    let width = config.head_dim as f64;
    let plain = (0..config.head_dim / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / width));
    match config.rope_scaling {
        None => (plain.collect(), 1.0),
        Some(yarn) => {
            let (low, high) = ramp_ends(&yarn, width, config.rope_theta);
            let scaled = plain.enumerate().map(|(i, frequency)| {
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / yarn.factor * ramp + frequency * (1.0 - ramp)
            });
            (scaled.collect(), yarn.attention_factor.unwrap_or(0.1 * yarn.factor.ln() + 1.0))
        }
    }
}

/// The channel pairs between which the frequencies go from kept to divided.
fn ramp_ends(yarn: &Yarn, width: f64, theta: f64) -> (f64, f64) {
    let length = yarn.original_max_position_embeddings as f64;
    let pair_with_turns =
        |turns: f64| width * (length / (2.0 * std::f64::consts::PI * turns)).ln() / (2.0 * theta.ln());
    let low = pair_with_turns(yarn.beta_fast).floor().max(0.0);
    let high = pair_with_turns(yarn.beta_slow).ceil().min(width - 1.0);
    // The published code's guard against a division by zero.
    (low, if low == high { high + 0.001 } else { high })
}
