//! [`Weights`]: the parameters in the form in which decoding reads them.

use crate::config::{Attention, Config};
use crate::folded::fold;
use crate::params::{Params, specs};
use crate::tree::tree;
use engine::{Func, Program, Target, Tensor, Type};
use kernels::{PANEL, panels};

tree! {
    /// The parameters as a training step reads them, [`Folded`](crate::Folded), layer by layer. A token reads every matrix
    /// once, so each lies in one piece (a slice of a stack would be copied first), matrices that read the same vector lie
    /// side by side in one, and all are `[in, out]`, or in panels ([`Matrices`]).
    pub struct Weights<T> {
        /// Rows of the embedding, `[V, D]`.
        leaf embed: T,
        /// The same numbers as the main head, `[D, V]`.
        leaf head: T,
        /// The blocks.
        part layers: Vec<Layer<T>>,
        /// Norm before the heads, `[D]` f32.
        leaf norm: T,
        /// The head of the second token.
        part second: Option<Second<T>>,
    }
}

tree! {
    /// One block.
    pub struct Layer<T> {
        /// Query, key and value projections, and lambda's in `diff_v2`, with the norm in them: `[D, Q + 2*K*d (+ H)]`.
        leaf qkv: T,
        /// Lambda, an f32 scalar, of `diff_v1`.
        optional lambda: Option<T>,
        /// Output projection with the heads' norm in it, `[H*d, D]`.
        leaf o: T,
        /// SwiGLU's gate and up projections with the norm in them, `[D, 2*I]`.
        leaf gate_up: T,
        /// SwiGLU's down projection, `[I, D]`.
        leaf down: T,
    }
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

tree! {
    /// The head of the second token.
    pub struct Second<T> {
        /// `[2D, D]`; rows ordered (hidden state, embedding).
        leaf proj: T,
        /// Norm `[D]` f32.
        leaf norm: T,
        /// `[D, V]`.
        leaf head: T,
    }
}

/// The types of a configuration's weights.
pub fn weight_types(config: &Config, matrices: Matrices) -> Weights<Type> {
    let specs = specs(config);
    let types: Vec<Type> = specs.iter().map(|(_, spec)| spec.ty.clone()).collect();
    let mut weights = None;
    Func::build(&types, |_, params| {
        let made = prepared(config, matrices, &specs.with_leaves(params.iter().copied()));
        weights = Some(made.clone().map(|_, weight| weight.ty()));
        made.leaves()
    });
    weights.expect("the function was built")
}

/// From master weights, as trained and as in checkpoints, to [`Weights`]. Inputs `params.*`, outputs the weights.
pub fn prepare_program(config: &Config, matrices: Matrices) -> Program {
    Program::build("prepare", |f| {
        let params = specs(config).map(|name, spec| f.input(&format!("params.{name}"), spec.ty));
        prepared(config, matrices, &params).map(|name, weight| f.output(name, weight));
    })
}

fn prepared<'f>(config: &Config, matrices: Matrices, params: &Params<Tensor<'f>>) -> Weights<Tensor<'f>> {
    let folded = fold(config, params);
    let matrix = |w: Tensor<'f>| match matrices {
        Matrices::Panels if w.dim(1).is_multiple_of(PANEL) => panels(w),
        _ => w,
    };
    let layer = |l: usize| {
        let of = |stack: Tensor<'f>| stack.slice_axis(0, l, l + 1).reshape(&stack.shape()[1..]);
        let side_by_side = |parts: [Tensor<'f>; 2]| Tensor::concatenate(&parts.map(of), 1);
        let stacks = folded.layers.clone();
        let (qkv, lambda) = match config.attention {
            Attention::DiffV1 => (of(stacks.qkv), Some(of(stacks.lambda))),
            Attention::DiffV2 => (side_by_side([stacks.qkv, stacks.lambda]), None),
        };
        let gate_up = side_by_side([stacks.gate, stacks.up]);
        Layer {
            qkv: matrix(qkv),
            lambda,
            o: matrix(of(stacks.o)),
            gate_up: matrix(gate_up),
            down: matrix(of(stacks.down)),
        }
    };
    Weights {
        embed: folded.embed,
        head: matrix(folded.embed.transpose(&[1, 0])),
        layers: (0..config.num_hidden_layers).map(layer).collect(),
        norm: folded.norm,
        second: folded.mtp.as_ref().map(|mtp| Second {
            proj: matrix(mtp.proj),
            norm: mtp.norm,
            head: matrix(mtp.lm_head.transpose(&[1, 0])),
        }),
    }
}
