//! [`Params`]: the parameter tree, generic over its leaf, and what is known of each parameter before it has a value.
//!
//! Parameters of a layer are stacked on a leading axis `L`. Linear weights are `[in, out]` in the program and
//! `[out, in]` in checkpoints; the embedding and the second token's head are `[V, D]` in both, because the
//! cross-entropy kernel reads either of them as rows of the vocabulary.
//!
//! Each parameter is declared once, with its shape, initial values, decay and checkpoint name. What maps, names, flattens and
//! stores parameters follows from the declaration.

use crate::config::{Attention, Config};
use crate::tree::tree;
use engine::Type;

/// Declares trees of parameters (`tree!`), and of each field after `=` what is known of it.
macro_rules! parameters {
    ($(#[$doc:meta])* pub struct $name:ident<$t:ident>($sizes:ident) {
        $($(#[$field_doc:meta])* $kind:ident $field:ident: $ty:ty = $spec:expr,)*
    }) => {
        tree! {
            $(#[$doc])*
            pub struct $name<$t> {
                $($(#[$field_doc])* $kind $field: $ty,)*
            }
        }
        impl $name<ParamSpec> {
            fn new($sizes: &Sizes) -> Self {
                $name { $($field: $spec),* }
            }
        }
    };
    ($(#[$doc:meta])* pub enum $name:ident<$t:ident>($sizes:ident) {
        $($(#[$variant_doc:meta])* $variant:ident if $attention:pat => {
            $($(#[$field_doc:meta])* $field:ident = $spec:expr,)*
        })*
    }) => {
        tree! {
            $(#[$doc])*
            pub enum $name<$t> {
                $($(#[$variant_doc])* $variant { $($(#[$field_doc])* $field),* },)*
            }
        }
        impl $name<ParamSpec> {
            fn new($sizes: &Sizes) -> Self {
                match $sizes.attention {
                    $($attention => $name::$variant { $($field: $spec),* },)*
                }
            }
        }
    };
}

parameters! {
    /// All parameters.
    pub struct Params<T>(sizes) {
        /// Embedding and main head, `[V, D]`.
        leaf embed: T = sizes.vocabulary("model.embed_tokens.weight", Decay::No),
        /// The blocks, every leaf stacked: `[L, ..]`.
        part layers: Block<T> = Block::new(sizes),
        /// Norm before the heads, `[D]`.
        leaf norm: T = ParamSpec::ones(&[sizes.hidden], "model.norm.weight"),
        /// The head of the second token, if the model has one.
        part mtp: Option<Mtp<T>> = sizes.second_head.then(|| Mtp::new(sizes)),
    }
}

parameters! {
    /// One block, or all of them stacked.
    pub struct Block<T>(sizes) {
        /// Norm before attention, `[D]`.
        leaf input_norm: T = sizes.norm(sizes.hidden, "model.layers.{l}.input_layernorm.weight"),
        /// Query projection `[D, Q]`; columns ordered (head, map 1|2, d).
        leaf q: T = sizes.linear([sizes.hidden, sizes.queries], "model.layers.{l}.self_attn.q_proj.weight"),
        /// Key projection `[D, K*d]`; columns ordered (group, map 1|2, d) in `diff_v1`, (head, d) in `diff_v2`.
        leaf k: T = sizes.linear([sizes.hidden, sizes.keys], "model.layers.{l}.self_attn.k_proj.weight"),
        /// Value projection `[D, K*d]`; columns ordered (group, 2d) in `diff_v1`, (head, d) in `diff_v2`.
        leaf v: T = sizes.linear([sizes.hidden, sizes.keys], "model.layers.{l}.self_attn.v_proj.weight"),
        /// What makes the attention differential.
        flat diff: Diff<T> = Diff::new(sizes),
        /// Output projection `[H*d, D]`.
        leaf o: T = sizes.residual([sizes.outputs, sizes.hidden], "model.layers.{l}.self_attn.o_proj.weight"),
        /// Norm before the MLP, `[D]`.
        leaf post_norm: T = sizes.norm(sizes.hidden, "model.layers.{l}.post_attention_layernorm.weight"),
        /// SwiGLU's gate projection `[D, I]`.
        leaf gate: T = sizes.linear([sizes.hidden, sizes.inner], "model.layers.{l}.mlp.gate_proj.weight"),
        /// SwiGLU's up projection `[D, I]`.
        leaf up: T = sizes.linear([sizes.hidden, sizes.inner], "model.layers.{l}.mlp.up_proj.weight"),
        /// SwiGLU's down projection `[I, D]`.
        leaf down: T = sizes.residual([sizes.inner, sizes.hidden], "model.layers.{l}.mlp.down_proj.weight"),
    }
}

parameters! {
    /// The parameters of lambda.
    pub enum Diff<T>(sizes) {
        /// Lambda from four vectors `[d]`, and a norm of the heads' outputs.
        V1 if Attention::DiffV1 => {
            /// `[d]`
            lambda_q1 = sizes.lambda("model.layers.{l}.self_attn.lambda_q1"),
            /// `[d]`
            lambda_k1 = sizes.lambda("model.layers.{l}.self_attn.lambda_k1"),
            /// `[d]`
            lambda_q2 = sizes.lambda("model.layers.{l}.self_attn.lambda_q2"),
            /// `[d]`
            lambda_k2 = sizes.lambda("model.layers.{l}.self_attn.lambda_k2"),
            /// Norm of each head's output, `[2d]`, shared by the heads of a layer.
            subln = sizes.norm(2 * sizes.head, "model.layers.{l}.self_attn.subln.weight"),
        }
        /// Lambda from the token.
        V2 if Attention::DiffV2 => {
            /// `[D, H]`
            lambda_proj = sizes.linear([sizes.hidden, sizes.heads], "model.layers.{l}.self_attn.lambda_proj.weight"),
        }
    }
}

parameters! {
    /// The head of the second token.
    pub struct Mtp<T>(sizes) {
        /// `[2D, D]`; rows ordered (hidden state, embedding).
        leaf proj: T = ParamSpec {
            ty: Type::f32([2 * sizes.hidden, sizes.hidden]),
            init: LINEAR,
            decay: Decay::Yes,
            checkpoint: "mtp.proj.weight",
            layout: Layout::Transposed,
        },
        /// Norm `[D]`.
        leaf norm: T = ParamSpec::ones(&[sizes.hidden], "mtp.norm.weight"),
        /// Untied head `[V, D]`.
        leaf lm_head: T = sizes.vocabulary("mtp.lm_head.weight", Decay::Yes),
    }
}

/// What is known of a parameter before it has a value.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Type of the master weight in the program, stacked.
    pub ty: Type,
    /// Initial values.
    pub init: Init,
    /// Whether AdamW decays it.
    pub decay: Decay,
    /// Name in checkpoints; `{l}` stands for the layer.
    pub checkpoint: &'static str,
    /// How a layer's matrix lies in checkpoints.
    pub layout: Layout,
}

/// Distribution of initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All ones.
    Ones,
    /// Independent normal numbers of mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

/// Membership in the weight-decay group: only matrices of projections and the untied head are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Decay {
    Yes,
    No,
}

/// How the two axes of a checkpoint's matrix relate to the program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same order.
    Same,
    /// `[out, in]` in the checkpoint, `[in, out]` in the program.
    Transposed,
}

/// One tensor of a checkpoint: a whole parameter or one layer's slice of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Name in the checkpoint.
    pub name: String,
    /// Index on the leading axis of the stacked parameter, if it is stacked.
    pub layer: Option<usize>,
    /// Type in the checkpoint.
    pub ty: Type,
    /// How its axes relate to the program's.
    pub layout: Layout,
}

/// Every parameter of a configuration.
pub fn specs(config: &Config) -> Params<ParamSpec> {
    Params::new(&Sizes {
        attention: config.attention,
        second_head: config.mtp_num_tokens > 0,
        layers: config.num_hidden_layers,
        vocabulary: config.vocab_size,
        hidden: config.hidden_size,
        inner: config.intermediate_size,
        heads: config.num_attention_heads,
        head: config.head_dim,
        queries: config.query_width(),
        keys: config.key_width(),
        outputs: config.output_width(),
    })
}

/// What the declarations above need of a configuration.
struct Sizes {
    attention: Attention,
    second_head: bool,
    layers: usize,
    vocabulary: usize,
    hidden: usize,
    inner: usize,
    heads: usize,
    head: usize,
    queries: usize,
    keys: usize,
    outputs: usize,
}

/// Of embeddings and linear maps.
const LINEAR: Init = Init::Normal { std: 0.02 };

impl Sizes {
    /// `[L, in, out]`
    fn matrix(&self, [rows, columns]: [usize; 2], init: Init, checkpoint: &'static str) -> ParamSpec {
        let ty = Type::f32([self.layers, rows, columns]);
        ParamSpec { ty, init, decay: Decay::Yes, checkpoint, layout: Layout::Transposed }
    }

    fn linear(&self, shape: [usize; 2], checkpoint: &'static str) -> ParamSpec {
        self.matrix(shape, LINEAR, checkpoint)
    }

    /// Projections into the residual stream start smaller, so that its variance does not grow with depth (Radford et al.
    /// 2019).
    fn residual(&self, shape: [usize; 2], checkpoint: &'static str) -> ParamSpec {
        self.matrix(shape, Init::Normal { std: 0.02 / (2.0 * self.layers as f64).sqrt() }, checkpoint)
    }

    /// `[L, width]`
    fn norm(&self, width: usize, checkpoint: &'static str) -> ParamSpec {
        ParamSpec::ones(&[self.layers, width], checkpoint)
    }

    /// `[L, d]`
    fn lambda(&self, checkpoint: &'static str) -> ParamSpec {
        ParamSpec { init: Init::Normal { std: 0.1 }, ..self.norm(self.head, checkpoint) }
    }

    /// `[V, D]`
    fn vocabulary(&self, checkpoint: &'static str, decay: Decay) -> ParamSpec {
        let ty = Type::f32([self.vocabulary, self.hidden]);
        ParamSpec { ty, init: LINEAR, decay, checkpoint, layout: Layout::Same }
    }
}

impl ParamSpec {
    /// A vector that starts as ones and does not decay: a norm's weight.
    fn ones(shape: &[usize], checkpoint: &'static str) -> ParamSpec {
        let ty = Type::f32(shape);
        ParamSpec { ty, init: Init::Ones, decay: Decay::No, checkpoint, layout: Layout::Same }
    }

    /// The tensors of a checkpoint that this parameter is stored as, in order of the layers.
    pub fn entries(&self) -> Vec<Entry> {
        let stacked = self.checkpoint.contains("{l}");
        let mut shape = self.ty.shape[usize::from(stacked)..].to_vec();
        if self.layout == Layout::Transposed {
            shape.reverse();
        }
        let entry = |layer: Option<usize>| Entry {
            name: layer.map_or(self.checkpoint.into(), |l| self.checkpoint.replace("{l}", &l.to_string())),
            layer,
            ty: self.ty.with_shape(shape.clone()),
            layout: self.layout,
        };
        if stacked { (0..self.ty.shape[0]).map(|l| entry(Some(l))).collect() } else { vec![entry(None)] }
    }
}

impl Params<ParamSpec> {
    /// The parameter and the entry of it that a checkpoint's tensor name stands for.
    pub fn find(&self, checkpoint_name: &str) -> Option<(String, Entry)> {
        self.iter().find_map(|(name, spec)| {
            let (before, after) = spec.checkpoint.split_once("{l}").unwrap_or((spec.checkpoint, ""));
            let possible = checkpoint_name.starts_with(before) && checkpoint_name.ends_with(after);
            possible
                .then(|| spec.entries().into_iter().find(|entry| entry.name == checkpoint_name))?
                .map(|e| (name, e))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    #[test]
    fn decay_follows_the_rule_on_checkpoint_names() {
        for attention in [Attention::DiffV1, Attention::DiffV2] {
            for (_, spec) in specs(&Config { attention, ..Config::preset(Preset::Tiny) }).iter() {
                let by_name =
                    spec.checkpoint.ends_with("proj.weight") || spec.checkpoint == "mtp.lm_head.weight";
                assert_eq!(spec.decay == Decay::Yes, by_name, "{}", spec.checkpoint);
            }
        }
    }

    #[test]
    fn checkpoint_names_lead_there_and_back() {
        let specs = specs(&Config::preset(Preset::OneB));
        for (name, spec) in specs.iter() {
            for entry in spec.entries() {
                assert_eq!(specs.find(&entry.name), Some((name.clone(), entry)));
            }
        }
        let q = &specs.layers.q.entries()[23];
        assert_eq!(q.name, "model.layers.23.self_attn.q_proj.weight");
        assert_eq!(
            (q.layer, q.layout, q.ty.shape.as_slice()),
            (Some(23), Layout::Transposed, &[1536, 1536][..])
        );
        assert_eq!(specs.mtp.as_ref().unwrap().proj.entries()[0].ty.shape, [1536, 3072]);
        for unknown in
            ["model.layers.24.self_attn.q_proj.weight", "model.layers.x.mlp.up_proj.weight", "lm_head.weight"]
        {
            assert_eq!(specs.find(unknown), None);
        }
    }

    #[test]
    fn trees_map_zip_and_flatten_in_one_order() {
        let specs = specs(&Config::preset(Preset::Tiny));
        let names = specs.as_ref().map(|name, _| name.to_owned());
        let zipped = names.clone().zip(specs.as_ref());
        assert_eq!(zipped.layers.gate, ("layers.gate".to_owned(), &specs.layers.gate));
        let flat: Vec<String> = names.iter().map(|(_, name)| name.clone()).collect();
        assert!(names.iter().all(|(name, leaf)| name == *leaf));
        assert_eq!(flat.len(), 19);
        assert_eq!(specs.with_leaves(flat), names);
    }

    #[test]
    #[should_panic(expected = "`layers.lambda_q1` beside Some(\"layers.lambda_proj\")")]
    fn trees_of_two_forms_do_not_zip() {
        let v1 = Config::preset(Preset::Tiny);
        let v2 = Config { attention: Attention::DiffV2, ..v1.clone() };
        specs(&v1).zip(specs(&v2));
    }
}
