//! [`Weights`]: the parameters in the form in which decoding reads them.

use crate::config::{Attention, Config};
use crate::folded::fold;
use crate::params::{Params, specs};
use engine::{DType, Program, Target, Tensor, Type};
use kernels::{PANEL, panels};

/// The parameters as a training step reads them, [`Folded`](crate::Folded), layer by layer. A token reads every matrix
/// once, so each lies in one piece (a slice of a stack would be copied first), matrices that read the same vector lie
/// side by side in one, and all are `[in, out]`, or in panels ([`Matrices`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Weights<T> {
    /// Rows of the embedding, `[V, D]`.
    pub embed: T,
    /// The same numbers as the main head, `[D, V]`.
    pub head: T,
    /// The blocks.
    pub layers: Vec<Layer<T>>,
    /// Norm before the heads, `[D]` f32.
    pub norm: T,
    /// The head of the second token.
    pub second: Option<Second<T>>,
}

/// How matrices lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Matrices {
    /// `[in, out]`.
    RowMajor,
    /// `[out/16, in, 16]`, those whose `out` is a multiple of 16: as the CPU's native kernels read them.
    Panels,
}

impl Matrices {
    /// What a target reads fastest.
    pub fn of(target: Target) -> Matrices {
        match target {
            Target::Cpu => Matrices::Panels,
            Target::Cuda | Target::TpuV6e | Target::OtherTpu => Matrices::RowMajor,
        }
    }
}

/// One block.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer<T> {
    /// Query, key and value projections, and lambda's in `diff_v2`, behind the norm: `[D, Q + 2*K*d (+ H)]`.
    pub qkv: T,
    /// Lambda, an f32 scalar, of `diff_v1`.
    pub lambda: Option<T>,
    /// Output projection behind the heads' norm, `[H*d, D]`.
    pub o: T,
    /// SwiGLU's gate and up projections behind the norm, `[D, 2*I]`.
    pub gate_up: T,
    /// SwiGLU's down projection, `[I, D]`.
    pub down: T,
}

/// The head of the second token.
#[derive(Clone, Debug, PartialEq)]
pub struct Second<T> {
    /// `[2D, D]`; rows ordered (hidden state, embedding).
    pub proj: T,
    /// Norm `[D]` f32.
    pub norm: T,
    /// `[D, V]`.
    pub head: T,
}

impl<T> Weights<T> {
    /// Applies a function to every weight with its name (`layers.3.qkv`), in the order of declaration; that order is the
    /// order of every flat list of weights.
    pub fn map<U>(self, mut f: impl FnMut(&str, T) -> U) -> Weights<U> {
        let f = &mut f;
        Weights {
            embed: f("embed", self.embed),
            head: f("head", self.head),
            layers: (0..)
                .zip(self.layers)
                .map(|(l, layer): (usize, Layer<T>)| {
                    let mut f = |name: &str, leaf| f(&format!("layers.{l}.{name}"), leaf);
                    Layer {
                        qkv: f("qkv", layer.qkv),
                        lambda: layer.lambda.map(|lambda| f("lambda", lambda)),
                        o: f("o", layer.o),
                        gate_up: f("gate_up", layer.gate_up),
                        down: f("down", layer.down),
                    }
                })
                .collect(),
            norm: f("norm", self.norm),
            second: self.second.map(|second| Second {
                proj: f("second.proj", second.proj),
                norm: f("second.norm", second.norm),
                head: f("second.head", second.head),
            }),
        }
    }

    /// Names and weights in the order of declaration.
    pub fn into_flat(self) -> Vec<(String, T)> {
        let mut flat = Vec::new();
        self.map(|name, leaf| flat.push((name.to_owned(), leaf)));
        flat
    }
}

/// The types of a configuration's weights.
pub fn weight_types(config: &Config, matrices: Matrices) -> Weights<Type> {
    let dtype = config.dtype.dtype();
    let (d_model, inner, vocabulary) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let matrix = |rows, columns| match matrices {
        Matrices::Panels if columns % PANEL == 0 => Type::new(dtype, [columns / PANEL, rows, PANEL]),
        _ => Type::new(dtype, [rows, columns]),
    };
    let vector = |width| Type::f32([width]);
    let (lambda, lambda_width) = match config.attention {
        Attention::DiffV1 => (Some(Type::scalar(DType::F32)), 0),
        Attention::DiffV2 => (None, config.num_attention_heads),
    };
    let layer = Layer {
        qkv: matrix(d_model, config.query_width() + 2 * config.key_width() + lambda_width),
        lambda,
        o: matrix(config.output_width(), d_model),
        gate_up: matrix(d_model, 2 * inner),
        down: matrix(inner, d_model),
    };
    Weights {
        embed: Type::new(dtype, [vocabulary, d_model]),
        head: matrix(d_model, vocabulary),
        layers: vec![layer; config.num_hidden_layers],
        norm: vector(d_model),
        second: (config.mtp_num_tokens > 0).then(|| Second {
            proj: matrix(2 * d_model, d_model),
            norm: vector(d_model),
            head: matrix(d_model, vocabulary),
        }),
    }
}

/// From master weights, as trained and as in checkpoints, to [`Weights`]. Inputs `params.*`, outputs the weights.
pub fn prepare_program(config: &Config, matrices: Matrices) -> Program {
    Program::build("prepare", |f| {
        let params = specs(config).map(|name, spec| f.input(&format!("params.{name}"), spec.ty));
        let made = prepared(config, &params).into_flat();
        for ((name, tensor), (_, ty)) in made.into_iter().zip(weight_types(config, matrices).into_flat()) {
            let tensor = if ty.rank() == 3 { panels(tensor) } else { tensor };
            assert!(tensor.ty() == ty, "weight `{name}` is {}, not {ty}", tensor.ty());
            f.output(&name, tensor);
        }
    })
}

fn prepared<'f>(config: &Config, params: &Params<Tensor<'f>>) -> Weights<Tensor<'f>> {
    let folded = fold(config, params);
    let layer = |l: usize| {
        let of = |stack: Tensor<'f>| stack.slice_axis(0, l, l + 1).reshape(&stack.shape()[1..]);
        let side_by_side = |parts: [Tensor<'f>; 2]| Tensor::concatenate(&parts.map(of), 1);
        let stacks = folded.layers.clone();
        let (qkv, lambda) = match config.attention {
            Attention::DiffV1 => (of(stacks.qkv), Some(of(stacks.lambda))),
            Attention::DiffV2 => (side_by_side([stacks.qkv, stacks.lambda]), None),
        };
        let gate_up = side_by_side([stacks.gate, stacks.up]);
        Layer { qkv, lambda, o: of(stacks.o), gate_up, down: of(stacks.down) }
    };
    Weights {
        embed: folded.embed,
        head: folded.embed.transpose(&[1, 0]),
        layers: (0..config.num_hidden_layers).map(layer).collect(),
        norm: folded.norm,
        second: folded.mtp.as_ref().map(|mtp| Second {
            proj: mtp.proj,
            norm: mtp.norm,
            head: mtp.lm_head.transpose(&[1, 0]),
        }),
    }
}
