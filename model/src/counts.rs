//! How many parameters, and how many floating point operations a token costs.

use crate::config::{Attention, Config};
use crate::params::{Diff, ParamSpec, specs};

/// Parameters by part, all layers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamCounts {
    /// The tied embedding, `V*D`.
    pub embedding: usize,
    /// Query, key, value and output projections.
    pub attention: usize,
    /// Lambda vectors and head norms (`diff_v1`) or the lambda projection (`diff_v2`).
    pub lambda: usize,
    /// Gate, up and down projections.
    pub mlp: usize,
    /// The two norms of every block.
    pub block_norms: usize,
    /// The norm before the heads.
    pub final_norm: usize,
    /// Projection, norm and untied head of the second token.
    pub mtp: usize,
}

impl ParamCounts {
    /// Counts from the parameter list itself, so that they cannot disagree with what is allocated.
    pub fn of(config: &Config) -> ParamCounts {
        let specs = specs(config);
        let sum = |of: &[&ParamSpec]| of.iter().map(|spec| spec.ty.elements()).sum::<usize>();
        let layers = &specs.layers;
        ParamCounts {
            embedding: sum(&[&specs.embed]),
            attention: sum(&[&layers.q, &layers.k, &layers.v, &layers.o]),
            lambda: match &layers.diff {
                Diff::V1 { lambda_q1, lambda_k1, lambda_q2, lambda_k2, subln } => {
                    sum(&[lambda_q1, lambda_k1, lambda_q2, lambda_k2, subln])
                }
                Diff::V2 { lambda_proj } => sum(&[lambda_proj]),
            },
            mlp: sum(&[&layers.gate, &layers.up, &layers.down]),
            block_norms: sum(&[&layers.input_norm, &layers.post_norm]),
            final_norm: sum(&[&specs.norm]),
            mtp: specs.mtp.as_ref().map_or(0, |mtp| sum(&[&mtp.proj, &mtp.norm, &mtp.lm_head])),
        }
    }

    /// All parameters.
    pub fn total(&self) -> usize {
        self.embedding
            + self.attention
            + self.lambda
            + self.mlp
            + self.block_norms
            + self.final_norm
            + self.mtp
    }
}

/// Floating point operations of one token's forward and backward pass in a sequence of `sequence` tokens without
/// document boundaries; a multiply-add counts 2.
///
/// `3 * (2 * W + L * A * (sequence + 1) / 2)`: `W` = weights that a token is multiplied with (every projection, the
/// tied head, the second token's projection and head; the embedding's look-up is free); `A` = operations of one
/// (query, key) pair in all heads, on average over the causal triangle. A differential head of `diff_v1` makes two
/// scores of width `d` and one product with values of width `2d`: `8d`. An output head of `diff_v2` makes two scores
/// and one product with values of width `d`: `6d`. The backward pass counts twice the forward pass: recomputation is
/// the implementation's choice and is not counted, as usual for MFU.
pub fn flops_per_token(config: &Config, sequence: usize) -> f64 {
    let counts = ParamCounts::of(config);
    let lambda_projection = match config.attention {
        Attention::DiffV1 => 0,
        Attention::DiffV2 => counts.lambda,
    };
    let mtp_norm = if config.mtp_num_tokens > 0 { config.hidden_size } else { 0 };
    let weights =
        counts.embedding + counts.attention + lambda_projection + counts.mlp + counts.mtp - mtp_norm;
    let pair = match config.attention {
        Attention::DiffV1 => config.num_attention_heads / 2 * 8 * config.head_dim,
        Attention::DiffV2 => config.num_attention_heads * 6 * config.head_dim,
    };
    let attention = (config.num_hidden_layers * pair) as f64 * (sequence as f64 + 1.0) / 2.0;
    3.0 * (2.0 * weights as f64 + attention)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    #[test]
    fn the_1b_closes_exactly() {
        let config = Config::preset(Preset::OneB);
        let counts = ParamCounts::of(&config);
        let expected = ParamCounts {
            embedding: 233_177_088,
            attention: 24 * 6_291_456,
            lambda: 24 * 768,
            mlp: 24 * 18_874_368,
            block_norms: 24 * 3_072,
            final_norm: 1_536,
            mtp: 237_897_216,
        };
        assert_eq!(counts, expected);
        assert_eq!(counts.total(), 1_075_147_776);
        assert_eq!(counts.total() - counts.mtp, 837_250_560);
        let v2 = ParamCounts::of(&Config { attention: Attention::DiffV2, ..config });
        assert_eq!(v2.total() - counts.total(), 24 * (1536 * 1536 + 1536 * 12 - 768));
    }

    #[test]
    fn presets_have_their_sizes() {
        let total = |preset| ParamCounts::of(&Config::preset(preset)).total();
        assert_eq!(total(Preset::Tiny), 1_820_672);
        assert_eq!(total(Preset::Bench), 5_378_048);
        assert_eq!(total(Preset::Small), 127_037_952);
    }

    #[test]
    fn flops_follow_the_formula() {
        let config = Config::preset(Preset::OneB);
        let weights = 1_075_147_776.0 - 24.0 * (768.0 + 3072.0) - 2.0 * 1536.0;
        // 103 GF of attention a layer for 8 sequences of 2048, forward.
        let attention: f64 = 24.0 * 6144.0 * 2049.0 / 2.0;
        assert!((attention / 24.0 * 8.0 * 2048.0 / 103e9 - 1.0).abs() < 0.01);
        assert_eq!(flops_per_token(&config, 2048), 3.0 * (2.0 * weights + attention));
    }
}
