//! [`Params`]: the parameter tree, generic over its leaf, and what is known of each parameter before it has a value.
//!
//! Parameters of a layer are stacked on a leading axis `L`. Linear weights are `[in, out]` in the program and
//! `[out, in]` in checkpoints; the embedding and the second token's head are `[V, D]` in both, because the
//! cross-entropy kernel reads either of them as rows of the vocabulary.

use crate::config::{Attention, Config};
use engine::Type;
use std::convert::Infallible;

/// All parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Params<T> {
    /// Embedding and main head, `[V, D]`.
    pub embed: T,
    /// The blocks, every leaf stacked: `[L, ..]`.
    pub layers: Block<T>,
    /// Norm before the heads, `[D]`.
    pub norm: T,
    /// The head of the second token, if the model has one.
    pub mtp: Option<Mtp<T>>,
}

/// One block, or all of them stacked.
#[derive(Clone, Debug, PartialEq)]
pub struct Block<T> {
    /// Norm before attention, `[D]`.
    pub input_norm: T,
    /// Query projection `[D, Q]`; columns ordered (head, map 1|2, d).
    pub q: T,
    /// Key projection `[D, K*d]`; columns ordered (group, map 1|2, d) in `diff_v1`, (head, d) in `diff_v2`.
    pub k: T,
    /// Value projection `[D, K*d]`; columns ordered (group, 2d) in `diff_v1`, (head, d) in `diff_v2`.
    pub v: T,
    /// What makes the attention differential.
    pub diff: Diff<T>,
    /// Output projection `[H*d, D]`.
    pub o: T,
    /// Norm before the MLP, `[D]`.
    pub post_norm: T,
    /// SwiGLU's gate projection `[D, I]`.
    pub gate: T,
    /// SwiGLU's up projection `[D, I]`.
    pub up: T,
    /// SwiGLU's down projection `[I, D]`.
    pub down: T,
}

/// The parameters behind lambda.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Diff<T> {
    /// Lambda from four vectors `[d]`; the head norm `subln` is `[2d]`, shared by the heads of a layer.
    V1 { lambda_q1: T, lambda_k1: T, lambda_q2: T, lambda_k2: T, subln: T },
    /// Lambda from the token: `[D, H]`.
    V2 { lambda_proj: T },
}

/// The head of the second token.
#[derive(Clone, Debug, PartialEq)]
pub struct Mtp<T> {
    /// `[2D, D]`; rows ordered (hidden state, embedding).
    pub proj: T,
    /// Norm `[D]`.
    pub norm: T,
    /// Untied head `[V, D]`.
    pub lm_head: T,
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

/// Every parameter of a configuration: the one place where shapes, initial values, decay and names are written.
pub fn specs(config: &Config) -> Params<ParamSpec> {
    let (d_model, layers, inner) = (config.hidden_size, config.num_hidden_layers, config.intermediate_size);
    let (vocabulary, head) = (config.vocab_size, config.head_dim);
    let linear = Init::Normal { std: 0.02 };
    // Projections into the residual stream start smaller, so that its variance does not grow with depth (Radford et al. 2019).
    let residual = Init::Normal { std: 0.02 / (2.0 * layers as f64).sqrt() };
    let lambda = Init::Normal { std: 0.1 };
    let spec = |shape: &[usize], init, decay, checkpoint, layout| ParamSpec {
        ty: Type::f32(shape),
        init,
        decay,
        checkpoint,
        layout,
    };
    let matrix = |rows, columns, init, checkpoint| {
        spec(&[layers, rows, columns], init, Decay::Yes, checkpoint, Layout::Transposed)
    };
    let vector = |width, init, checkpoint| spec(&[layers, width], init, Decay::No, checkpoint, Layout::Same);
    Params {
        embed: spec(&[vocabulary, d_model], linear, Decay::No, "model.embed_tokens.weight", Layout::Same),
        layers: Block {
            input_norm: vector(d_model, Init::Ones, "model.layers.{l}.input_layernorm.weight"),
            q: matrix(d_model, config.query_width(), linear, "model.layers.{l}.self_attn.q_proj.weight"),
            k: matrix(d_model, config.key_width(), linear, "model.layers.{l}.self_attn.k_proj.weight"),
            v: matrix(d_model, config.key_width(), linear, "model.layers.{l}.self_attn.v_proj.weight"),
            diff: match config.attention {
                Attention::DiffV1 => Diff::V1 {
                    lambda_q1: vector(head, lambda, "model.layers.{l}.self_attn.lambda_q1"),
                    lambda_k1: vector(head, lambda, "model.layers.{l}.self_attn.lambda_k1"),
                    lambda_q2: vector(head, lambda, "model.layers.{l}.self_attn.lambda_q2"),
                    lambda_k2: vector(head, lambda, "model.layers.{l}.self_attn.lambda_k2"),
                    subln: vector(2 * head, Init::Ones, "model.layers.{l}.self_attn.subln.weight"),
                },
                Attention::DiffV2 => Diff::V2 {
                    lambda_proj: matrix(
                        d_model,
                        config.num_attention_heads,
                        linear,
                        "model.layers.{l}.self_attn.lambda_proj.weight",
                    ),
                },
            },
            o: matrix(config.output_width(), d_model, residual, "model.layers.{l}.self_attn.o_proj.weight"),
            post_norm: vector(d_model, Init::Ones, "model.layers.{l}.post_attention_layernorm.weight"),
            gate: matrix(d_model, inner, linear, "model.layers.{l}.mlp.gate_proj.weight"),
            up: matrix(d_model, inner, linear, "model.layers.{l}.mlp.up_proj.weight"),
            down: matrix(inner, d_model, residual, "model.layers.{l}.mlp.down_proj.weight"),
        },
        norm: spec(&[d_model], Init::Ones, Decay::No, "model.norm.weight", Layout::Same),
        mtp: (config.mtp_num_tokens > 0).then(|| Mtp {
            proj: spec(&[2 * d_model, d_model], linear, Decay::Yes, "mtp.proj.weight", Layout::Transposed),
            norm: spec(&[d_model], Init::Ones, Decay::No, "mtp.norm.weight", Layout::Same),
            lm_head: spec(&[vocabulary, d_model], linear, Decay::Yes, "mtp.lm_head.weight", Layout::Same),
        }),
    }
}

impl ParamSpec {
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
    pub fn find(&self, checkpoint_name: &str) -> Option<(&'static str, Entry)> {
        self.iter().find_map(|(name, spec)| {
            let (before, after) = spec.checkpoint.split_once("{l}").unwrap_or((spec.checkpoint, ""));
            let possible = checkpoint_name.starts_with(before) && checkpoint_name.ends_with(after);
            possible
                .then(|| spec.entries().into_iter().find(|entry| entry.name == checkpoint_name))?
                .map(|e| (name, e))
        })
    }
}

impl<T> Params<T> {
    /// Applies a fallible function to every parameter with its name (`embed`, `layers.q`, `mtp.proj`), in the order
    /// of declaration; that order is the order of every flat list of parameters.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<U, E>(self, mut f: impl FnMut(&'static str, T) -> Result<U, E>) -> Result<Params<U>, E> {
        let f = &mut f;
        Ok(Params {
            embed: f("embed", self.embed)?,
            layers: self.layers.try_map(&mut *f)?,
            norm: f("norm", self.norm)?,
            mtp: match self.mtp {
                None => None,
                Some(mtp) => Some(Mtp {
                    proj: f("mtp.proj", mtp.proj)?,
                    norm: f("mtp.norm", mtp.norm)?,
                    lm_head: f("mtp.lm_head", mtp.lm_head)?,
                }),
            },
        })
    }

    /// Applies a function to every parameter with its name, in the order of declaration.
    pub fn map<U>(self, mut f: impl FnMut(&'static str, T) -> U) -> Params<U> {
        self.try_map(|name, leaf| Ok::<U, Infallible>(f(name, leaf))).unwrap_or_else(|never| match never {})
    }

    /// The same tree of references.
    pub fn as_ref(&self) -> Params<&T> {
        Params {
            embed: &self.embed,
            layers: self.layers.as_ref(),
            norm: &self.norm,
            mtp: self.mtp.as_ref().map(|mtp| Mtp { proj: &mtp.proj, norm: &mtp.norm, lm_head: &mtp.lm_head }),
        }
    }

    /// Pairs the leaves of two trees.
    ///
    /// # Panics
    /// If the trees belong to configurations with different parameters.
    #[track_caller]
    pub fn zip<U>(self, other: Params<U>) -> Params<(T, U)> {
        let mut others = other.into_flat().into_iter();
        let zipped = self.map(|name, leaf| match others.next() {
            Some((other_name, other)) if other_name == name => (leaf, other),
            found => panic!("zip of parameter trees: `{name}` beside {:?}", found.map(|(name, _)| name)),
        });
        assert!(others.next().is_none(), "zip of parameter trees: the second one has more parameters");
        zipped
    }

    /// Names and leaves in the order of declaration.
    pub fn into_flat(self) -> Vec<(&'static str, T)> {
        let mut flat = Vec::new();
        self.map(|name, leaf| flat.push((name, leaf)));
        flat
    }

    /// Names and leaves, borrowed, in the order of declaration.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &T)> {
        self.as_ref().into_flat().into_iter()
    }

    /// A tree of the same form from a flat list in the order of declaration, such as a program's outputs.
    ///
    /// # Panics
    /// If the list has another length.
    #[track_caller]
    pub fn with_leaves<U>(&self, leaves: impl IntoIterator<Item = U>) -> Params<U> {
        let mut leaves = leaves.into_iter();
        let tree =
            self.as_ref().map(|name, _| leaves.next().unwrap_or_else(|| panic!("no leaf left for `{name}`")));
        assert!(leaves.next().is_none(), "more leaves than the tree has parameters");
        tree
    }
}

impl<T> Block<T> {
    /// Applies a fallible function to every parameter with its name in the whole tree (`layers.q`).
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<U, E>(self, mut f: impl FnMut(&'static str, T) -> Result<U, E>) -> Result<Block<U>, E> {
        Ok(Block {
            input_norm: f("layers.input_norm", self.input_norm)?,
            q: f("layers.q", self.q)?,
            k: f("layers.k", self.k)?,
            v: f("layers.v", self.v)?,
            diff: match self.diff {
                Diff::V1 { lambda_q1, lambda_k1, lambda_q2, lambda_k2, subln } => Diff::V1 {
                    lambda_q1: f("layers.lambda_q1", lambda_q1)?,
                    lambda_k1: f("layers.lambda_k1", lambda_k1)?,
                    lambda_q2: f("layers.lambda_q2", lambda_q2)?,
                    lambda_k2: f("layers.lambda_k2", lambda_k2)?,
                    subln: f("layers.subln", subln)?,
                },
                Diff::V2 { lambda_proj } => Diff::V2 { lambda_proj: f("layers.lambda_proj", lambda_proj)? },
            },
            o: f("layers.o", self.o)?,
            post_norm: f("layers.post_norm", self.post_norm)?,
            gate: f("layers.gate", self.gate)?,
            up: f("layers.up", self.up)?,
            down: f("layers.down", self.down)?,
        })
    }

    /// Applies a function to every parameter with its name in the whole tree.
    pub fn map<U>(self, mut f: impl FnMut(&'static str, T) -> U) -> Block<U> {
        self.try_map(|name, leaf| Ok::<U, Infallible>(f(name, leaf))).unwrap_or_else(|never| match never {})
    }

    /// The same block of references.
    pub fn as_ref(&self) -> Block<&T> {
        Block {
            input_norm: &self.input_norm,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            diff: match &self.diff {
                Diff::V1 { lambda_q1, lambda_k1, lambda_q2, lambda_k2, subln } => {
                    Diff::V1 { lambda_q1, lambda_k1, lambda_q2, lambda_k2, subln }
                }
                Diff::V2 { lambda_proj } => Diff::V2 { lambda_proj },
            },
            o: &self.o,
            post_norm: &self.post_norm,
            gate: &self.gate,
            up: &self.up,
            down: &self.down,
        }
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
                assert_eq!(specs.find(&entry.name), Some((name, entry)));
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
        let names = specs.as_ref().map(|name, _| name);
        let zipped = names.clone().zip(specs.as_ref());
        assert_eq!(zipped.layers.gate, ("layers.gate", &specs.layers.gate));
        let flat: Vec<_> = names.iter().map(|(_, name)| *name).collect();
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
