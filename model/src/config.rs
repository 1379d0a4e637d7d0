//! [`Config`]: the fields of `config.json`, their defaults, their limits, and the presets.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The architecture, field by field as `config.json` spells it. Fields without a default must be given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Width `D` of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks `L`.
    pub num_hidden_layers: usize,
    /// Attention heads `H`. `diff_v1` pairs them into `H/2` differential heads with values of width `2d`;
    /// `diff_v2` has `H` output heads of width `d`, each from a pair of query heads.
    pub num_attention_heads: usize,
    /// Key/value heads `K`; `diff_v1` pairs them into `K/2` groups.
    pub num_key_value_heads: usize,
    /// Width `d` of one query or key head.
    pub head_dim: usize,
    /// Width `I` of the SwiGLU hidden layer.
    pub intermediate_size: usize,
    /// Rows `V` of the embedding, padding included.
    pub vocab_size: usize,
    /// Real tokens: columns from here on to `vocab_size` are masked to -inf in every softmax over the vocabulary.
    pub num_tokens: usize,
    /// The longest sequence that the RoPE tables are made for.
    pub max_position_embeddings: usize,
    /// RoPE base.
    #[serde(default = "defaults::rope_theta")]
    pub rope_theta: f64,
    /// Extension of the context beyond the length of an earlier training; the tables are then always these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Yarn>,
    /// Positions of the longest rows that the weights were trained on. A fact of the run, which the trainer writes into its
    /// checkpoints; see [`trained_positions`](Config::trained_positions). The name is that of Hugging Face's configs of
    /// models with an extended context; readers that do not know it pass over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<usize>,
    /// Added to the mean square in every RMSNorm over `D`.
    #[serde(default = "defaults::rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// Added to the mean square in the norm of each differential head (`diff_v1`).
    #[serde(default = "defaults::subln_eps")]
    pub subln_eps: f64,
    /// Which differential attention.
    #[serde(default)]
    pub attention: Attention,
    /// Whether each query and key is divided by its root mean square before the rotation; its epsilon is `rms_norm_eps`.
    #[serde(default)]
    pub qk_norm: bool,
    /// Soft cap of the attention logits, `cap * tanh(x / cap)`; 0 turns it off.
    #[serde(default)]
    pub attention_logit_cap: f64,
    /// Soft cap of the vocabulary logits of both heads; 0 turns it off.
    #[serde(default = "defaults::final_logit_cap")]
    pub final_logit_cap: f64,
    /// Tokens predicted beyond the next one: 0 or 1.
    #[serde(default = "defaults::mtp_num_tokens")]
    pub mtp_num_tokens: usize,
    /// Weight of the second head's loss.
    #[serde(default = "defaults::mtp_loss_weight")]
    pub mtp_loss_weight: f64,
    /// The output head is the embedding, transposed. Only `true` is built.
    #[serde(default = "defaults::tie_word_embeddings")]
    pub tie_word_embeddings: bool,
    /// Probability to drop at each of the three sites of a block while training.
    #[serde(default = "defaults::dropout")]
    pub dropout: f64,
    /// Weight of `logsumexp^2` in the loss; 0 turns it off.
    #[serde(default)]
    pub z_loss: f64,
    /// Type of matrix multiplications and saved activations over `f32` master weights.
    #[serde(default)]
    pub dtype: Compute,
}

/// What a missing field of `config.json` means: the value of the 1b model.
mod defaults {
    pub(super) fn rope_theta() -> f64 {
        500_000.0
    }
    pub(super) fn rms_norm_eps() -> f64 {
        1e-6
    }
    pub(super) fn subln_eps() -> f64 {
        1e-5
    }
    pub(super) fn final_logit_cap() -> f64 {
        30.0
    }
    pub(super) fn mtp_num_tokens() -> usize {
        1
    }
    pub(super) fn mtp_loss_weight() -> f64 {
        0.1
    }
    pub(super) fn tie_word_embeddings() -> bool {
        true
    }
    pub(super) fn dropout() -> f64 {
        0.1
    }
    pub(super) fn beta_fast() -> f64 {
        32.0
    }
    pub(super) fn beta_slow() -> f64 {
        1.0
    }
}

/// The two published forms of differential attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// arXiv 2410.05258: one lambda a layer from learned vectors, head norm, paired values.
    #[default]
    DiffV1,
    /// Microsoft, January 2026: one lambda a token and head from a projection, no head norm.
    DiffV2,
}

/// The type that matrix multiplications compute in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// Single precision: CPU presets and parity tests, and what a file without the field means.
    #[default]
    F32,
    /// bfloat16 over `f32` master weights.
    Bf16,
}

/// YaRN (arXiv 2309.00071) in the encoding of Hugging Face's `rope_scaling`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Yarn {
    /// Always `"yarn"`; `type` is the older spelling.
    #[serde(alias = "type")]
    pub rope_type: YarnName,
    /// How many times the trained length.
    pub factor: f64,
    /// The trained length, in positions.
    pub original_max_position_embeddings: usize,
    /// Turns within the trained length above which a frequency stays as it is.
    #[serde(default = "defaults::beta_fast")]
    pub beta_fast: f64,
    /// Turns within the trained length below which a frequency is divided by `factor`.
    #[serde(default = "defaults::beta_slow")]
    pub beta_slow: f64,
    /// Multiplies cosine and sine; missing or null means `0.1 ln(factor) + 1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
}

/// The one value of `rope_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum YarnName {
    /// NTK-by-parts interpolation with a temperature.
    Yarn,
}

/// A named architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// 1.8M parameters: what a few minutes on two CPU cores can train best.
    Tiny,
    /// 5.4M parameters: the shape that speed is compared at.
    Bench,
    /// 127M parameters with a 32k vocabulary.
    Small,
    /// 1,075,147,776 parameters.
    OneB,
}

/// Why a configuration cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A field is outside of what the model can be built with.
    #[error("model config: `{field}` is {found}, but must be {wanted}")]
    Field {
        /// The field as `config.json` spells it.
        field: &'static str,
        /// Its value.
        found: String,
        /// The rule it breaks.
        wanted: String,
    },
    /// Not JSON, a field of the wrong type, a missing field or an unknown one.
    #[error("model config: {0}; compare with the config.json that a checkpoint holds")]
    Json(serde_json::Error),
    /// No preset has this name.
    #[error("unknown preset `{0}`; there are {names}", names = Preset::ALL.map(Preset::name).join(", "))]
    Preset(String),
}

/// Whether two configurations that differ in a field can share weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bearing {
    /// The field decides the weights' shapes or what they mean.
    Weights,
    /// The field belongs to a run: regularisation, loss weights, compute type, context length.
    Run,
}

/// One field in which two configurations differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The field as `config.json` spells it.
    pub field: String,
    /// The value in `self`.
    pub ours: String,
    /// The value in the other one.
    pub theirs: String,
    /// Whether it forbids sharing weights.
    pub bearing: Bearing,
}

impl Bearing {
    /// The bearing of a field of `config.json`.
    pub fn of(field: &str) -> Bearing {
        if RUN_FIELDS.contains(&field) { Bearing::Run } else { Bearing::Weights }
    }
}

/// Fields that may change between runs over the same weights: dropout starts in the second epoch, YaRN extends a
/// trained model, and the compute type follows the device.
const RUN_FIELDS: [&str; 7] = [
    "dropout",
    "dtype",
    "max_position_embeddings",
    "mtp_loss_weight",
    "original_max_position_embeddings",
    "rope_scaling",
    "z_loss",
];

/// Positions that a model counts as trained at if its config does not say: what checkpoints of the first trainers, which
/// did not write it, were mostly trained at.
const USUAL_TRAINED_POSITIONS: usize = 2048;

impl Config {
    /// Reads and validates the text of a `config.json`.
    pub fn from_json(text: &str) -> Result<Config, ConfigError> {
        let config: Config = serde_json::from_str(text)?;
        config.validate()?;
        Ok(config)
    }

    /// The text of a `config.json`, one field a line.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a config has only string keys");
        text.push('\n');
        text
    }

    /// Checks every rule that the shapes and the maths ask for; the first broken one is returned.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("num_tokens", self.num_tokens),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (field, value) in sizes {
            rule(value > 0, field, value, || "at least 1".into())?;
        }
        if let Some(trained) = self.original_max_position_embeddings {
            rule(trained > 0, "original_max_position_embeddings", trained, || "at least 1".into())?;
        }
        rule(self.num_tokens <= self.vocab_size, "num_tokens", self.num_tokens, || {
            format!("at most vocab_size ({})", self.vocab_size)
        })?;
        rule(self.head_dim.is_multiple_of(2), "head_dim", self.head_dim, || {
            "even: RoPE turns pairs of channels".into()
        })?;
        rule(
            self.num_attention_heads.is_multiple_of(self.num_key_value_heads),
            "num_attention_heads",
            self.num_attention_heads,
            || format!("a multiple of num_key_value_heads ({})", self.num_key_value_heads),
        )?;
        if self.attention == Attention::DiffV1 {
            rule(
                self.num_key_value_heads.is_multiple_of(2),
                "num_key_value_heads",
                self.num_key_value_heads,
                || "even: diff_v1 subtracts the two maps of a pair of heads".into(),
            )?;
        }
        let positive = [
            ("rms_norm_eps", self.rms_norm_eps),
            ("subln_eps", self.subln_eps),
            ("rope_theta", self.rope_theta),
        ];
        for (field, value) in positive {
            rule(value.is_finite() && value > 0.0, field, value, || "positive".into())?;
        }
        rule(self.rope_theta > 1.0, "rope_theta", self.rope_theta, || "greater than 1".into())?;
        let weights = [
            ("attention_logit_cap", self.attention_logit_cap),
            ("final_logit_cap", self.final_logit_cap),
            ("mtp_loss_weight", self.mtp_loss_weight),
            ("z_loss", self.z_loss),
        ];
        for (field, value) in weights {
            rule(value.is_finite() && value >= 0.0, field, value, || "zero (off) or positive".into())?;
        }
        rule((0.0..1.0).contains(&self.dropout), "dropout", self.dropout, || "in [0, 1)".into())?;
        rule(self.mtp_num_tokens <= 1, "mtp_num_tokens", self.mtp_num_tokens, || "0 or 1".into())?;
        rule(self.tie_word_embeddings, "tie_word_embeddings", "false", || {
            "true: there is no untied main head".into()
        })?;
        self.rope_scaling.map_or(Ok(()), |yarn| yarn.validate())
    }

    /// The architecture of a preset.
    pub fn preset(preset: Preset) -> Config {
        match preset {
            Preset::Tiny => Config {
                hidden_size: 128,
                head_dim: 32,
                intermediate_size: 352,
                // A few minutes of training see each token less than once, so there is nothing to regularise.
                dropout: 0.0,
                ..Config::preset(Preset::Bench)
            },
            Preset::Bench => Config {
                hidden_size: 256,
                num_hidden_layers: 4,
                num_attention_heads: 4,
                num_key_value_heads: 2,
                head_dim: 64,
                intermediate_size: 768,
                vocab_size: 4096,
                num_tokens: 4096,
                max_position_embeddings: 1024,
                dtype: Compute::F32,
                ..Config::preset(Preset::OneB)
            },
            Preset::Small => Config {
                hidden_size: 768,
                num_hidden_layers: 12,
                num_attention_heads: 6,
                num_key_value_heads: 2,
                intermediate_size: 2048,
                vocab_size: 32768,
                num_tokens: 32768,
                ..Config::preset(Preset::OneB)
            },
            Preset::OneB => Config {
                hidden_size: 1536,
                num_hidden_layers: 24,
                num_attention_heads: 12,
                num_key_value_heads: 4,
                head_dim: 128,
                intermediate_size: 4096,
                vocab_size: 151_808,
                num_tokens: 151_665,
                max_position_embeddings: 8192,
                rope_theta: defaults::rope_theta(),
                rope_scaling: None,
                original_max_position_embeddings: None,
                rms_norm_eps: defaults::rms_norm_eps(),
                subln_eps: defaults::subln_eps(),
                attention: Attention::DiffV1,
                qk_norm: false,
                attention_logit_cap: 0.0,
                final_logit_cap: defaults::final_logit_cap(),
                mtp_num_tokens: defaults::mtp_num_tokens(),
                mtp_loss_weight: defaults::mtp_loss_weight(),
                tie_word_embeddings: defaults::tie_word_embeddings(),
                dropout: defaults::dropout(),
                z_loss: 0.0,
                dtype: Compute::Bf16,
            },
        }
    }

    /// Positions that the weights were trained at: as the config says, or else the whole context, but no more than 2048.
    pub fn trained_positions(&self) -> usize {
        let usual = self.max_position_embeddings.min(USUAL_TRAINED_POSITIONS);
        self.original_max_position_embeddings.unwrap_or(usual)
    }

    /// Query columns: `H*d` in `diff_v1`, `2*H*d` in `diff_v2`.
    pub fn query_width(&self) -> usize {
        let heads = match self.attention {
            Attention::DiffV1 => self.num_attention_heads,
            Attention::DiffV2 => 2 * self.num_attention_heads,
        };
        heads * self.head_dim
    }

    /// Key columns, and value columns: `K*d` in both forms.
    pub fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Columns that the output projection reads: `H*d` in both forms.
    pub fn output_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// The constant part of lambda in `diff_v1`: `0.8 - 0.6 exp(-0.3 l)`, `l` counted from 0.
    pub fn lambda_init(&self, layer: usize) -> f64 {
        0.8 - 0.6 * (-0.3 * layer as f64).exp()
    }

    /// Every field in which two configurations differ, in alphabetical order.
    pub fn differences(&self, other: &Config) -> Vec<Difference> {
        let fields = |config: &Config| match serde_json::to_value(config) {
            Ok(serde_json::Value::Object(map)) => map,
            _ => unreachable!("a struct serialises to an object"),
        };
        let (ours, theirs) = (fields(self), fields(other));
        let names: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let text = |value: Option<&serde_json::Value>| value.map_or("none".into(), ToString::to_string);
        names
            .into_iter()
            .filter(|name| ours.get(*name) != theirs.get(*name))
            .map(|name| Difference {
                field: name.clone(),
                ours: text(ours.get(name)),
                theirs: text(theirs.get(name)),
                bearing: Bearing::of(name),
            })
            .collect()
    }
}

impl Yarn {
    /// YaRN with the usual betas and the temperature that the factor gives.
    pub fn new(factor: f64, original_max_position_embeddings: usize) -> Yarn {
        Yarn {
            rope_type: YarnName::Yarn,
            factor,
            original_max_position_embeddings,
            beta_fast: defaults::beta_fast(),
            beta_slow: defaults::beta_slow(),
            attention_factor: None,
        }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        rule(self.factor.is_finite() && self.factor >= 1.0, "rope_scaling.factor", self.factor, || {
            "at least 1".into()
        })?;
        let length = self.original_max_position_embeddings;
        rule(length > 0, "rope_scaling.original_max_position_embeddings", length, || "at least 1".into())?;
        rule(self.beta_slow > 0.0, "rope_scaling.beta_slow", self.beta_slow, || "positive".into())?;
        rule(self.beta_fast > self.beta_slow, "rope_scaling.beta_fast", self.beta_fast, || {
            format!("greater than beta_slow ({})", self.beta_slow)
        })?;
        let factor = self.attention_factor.unwrap_or(1.0);
        rule(factor.is_finite() && factor > 0.0, "rope_scaling.attention_factor", factor, || {
            "positive".into()
        })
    }
}

impl Preset {
    /// Every preset, smallest first.
    pub const ALL: [Preset; 4] = [Preset::Tiny, Preset::Bench, Preset::Small, Preset::OneB];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Tiny => "tiny",
            Preset::Bench => "bench",
            Preset::Small => "small",
            Preset::OneB => "1b",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Preset, ConfigError> {
        Preset::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| ConfigError::Preset(name.into()))
    }
}

impl From<serde_json::Error> for ConfigError {
    /// Not as a source: its text is in the message already.
    fn from(error: serde_json::Error) -> ConfigError {
        ConfigError::Json(error)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} here and {} there", self.field, self.ours, self.theirs)
    }
}

fn rule(
    holds: bool,
    field: &'static str,
    found: impl ToString,
    wanted: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Field { field, found: found.to_string(), wanted: wanted() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_survive_json() {
        for preset in Preset::ALL {
            let config = Config::preset(preset);
            config.validate().unwrap();
            assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
            let trained = Config { original_max_position_embeddings: Some(4096), ..config.clone() };
            assert_eq!(Config::from_json(&trained.to_json()).unwrap(), trained);
            assert_eq!(trained.trained_positions(), 4096);
            assert_eq!(config.trained_positions(), config.max_position_embeddings.min(2048));
            assert_eq!(preset.name().parse::<Preset>().unwrap(), preset);
        }
        assert_eq!(
            "2b".parse::<Preset>().unwrap_err().to_string(),
            "unknown preset `2b`; there are tiny, bench, small, 1b"
        );
    }

    #[test]
    fn lambda_init_is_the_papers() {
        let config = Config::preset(Preset::OneB);
        for (layer, expected) in [(0, 0.2), (1, 0.3555), (2, 0.4707), (23, 0.7994)] {
            assert!((config.lambda_init(layer) - expected).abs() < 5e-5);
        }
    }

    #[test]
    fn broken_fields_are_named() {
        type Break = fn(&mut Config);
        let cases: [(Break, &str); 10] = [
            (|c| c.num_tokens = 5000, "`num_tokens` is 5000, but must be at most vocab_size (4096)"),
            (|c| c.head_dim = 31, "`head_dim` is 31, but must be even"),
            (|c| c.num_attention_heads = 5, "`num_attention_heads` is 5, but must be a multiple"),
            (
                |c| (c.num_attention_heads, c.num_key_value_heads) = (6, 3),
                "`num_key_value_heads` is 3, but must be even",
            ),
            (|c| c.dropout = 1.0, "`dropout` is 1, but must be in [0, 1)"),
            (|c| c.rope_theta = f64::NAN, "`rope_theta` is NaN, but must be positive"),
            (|c| c.hidden_size = 0, "`hidden_size` is 0, but must be at least 1"),
            (
                |c| c.original_max_position_embeddings = Some(0),
                "`original_max_position_embeddings` is 0, but must be at least 1",
            ),
            (|c| c.tie_word_embeddings = false, "`tie_word_embeddings` is false"),
            (|c| c.rope_scaling = Some(Yarn::new(0.5, 2048)), "`rope_scaling.factor` is 0.5"),
        ];
        for (break_it, message) in cases {
            let mut config = Config::preset(Preset::Tiny);
            break_it(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let error = Config::from_json(r#"{"hidden_sise": 1}"#).unwrap_err().to_string();
        assert!(error.contains("hidden_sise"), "{error}");
    }

    #[test]
    fn differences_name_fields_and_their_bearing() {
        let ours = Config::preset(Preset::OneB);
        let theirs = Config { hidden_size: 1024, rope_scaling: Some(Yarn::new(4.0, 2048)), ..ours.clone() };
        let found = ours.differences(&theirs);
        let fields: Vec<_> = found.iter().map(|d| (d.field.as_str(), d.bearing)).collect();
        assert_eq!(fields, [("hidden_size", Bearing::Weights), ("rope_scaling", Bearing::Run)]);
        assert_eq!(found[0].to_string(), "hidden_size is 1536 here and 1024 there");
    }
}
