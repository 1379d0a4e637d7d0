//! [`Folded`]: the parameters in the form in which a training step reads them.

use crate::config::{Compute, Config};
use crate::params::{Block, Diff, Params, specs};
use crate::tree::tree;
use engine::{Func, Host, Program, Tensor, Type, grad};

tree! {
    /// The parameters as the forward pass reads them: matrices in the compute type, and the weights of norms inside of the
    /// matrices that read what they norm. `L` layers stacked, as in [`Params`].
    ///
    /// `norm(x) W = r (x (w W))` with r the scale of x's row: the norm's weight w costs nothing a token, and x itself is the
    /// product's operand.
    pub struct Folded<T> {
        /// Rows of the embedding, and the main head, `[V, D]`.
        leaf embed: T,
        /// The blocks.
        part layers: FoldedBlock<T>,
        /// Norm before the heads, `[D]` f32: the main head is the embedding too, so it stays outside.
        leaf norm: T,
        /// The head of the second token.
        part mtp: Option<FoldedMtp<T>>,
    }
}

tree! {
    /// The blocks; every leaf is stacked, `[L, ..]`.
    pub struct FoldedBlock<T> {
        /// Query, key and value projections side by side, with the norm before attention in them: `[D, Q + 2*K*d]`.
        leaf qkv: T,
        /// Lambda of each layer, f32 (`diff_v1`), or its projection with the norm in it, `[D, H]` (`diff_v2`).
        leaf lambda: T,
        /// Output projection with the heads' norm and its fixed factor in it, `[H*d, D]`.
        leaf o: T,
        /// SwiGLU's gate projection with the norm before the MLP in it, `[D, I]`.
        leaf gate: T,
        /// SwiGLU's up projection with the same norm in it, `[D, I]`.
        leaf up: T,
        /// SwiGLU's down projection, `[I, D]`.
        leaf down: T,
    }
}

tree! {
    /// The head of the second token.
    pub struct FoldedMtp<T> {
        /// `[2D, D]`; rows ordered (hidden state, embedding).
        leaf proj: T,
        /// Norm `[D]` f32.
        leaf norm: T,
        /// Untied head `[V, D]`.
        leaf lm_head: T,
    }
}

/// The folded form of master weights.
pub fn fold<'f>(config: &Config, params: &Params<Tensor<'f>>) -> Folded<Tensor<'f>> {
    let dtype = config.dtype.dtype();
    let narrow = |w: Tensor<'f>| w.convert(dtype);
    // w `[L, D]` times the rows of W `[L, D, ..]`
    let normed = |norm: Tensor<'f>, w: Tensor<'f>| w * norm.along(w, &[0, 1]);
    let Block { input_norm, q, k, v, diff, o, post_norm, gate, up, down } = &params.layers;
    let (lambda, o) = match diff {
        Diff::V1 { lambda_q1, lambda_k1, lambda_q2, lambda_k2, subln } => {
            let inits: Vec<f32> =
                (0..config.num_hidden_layers).map(|layer| config.lambda_init(layer) as f32).collect();
            let init = o.builder().constant(&Host::new([inits.len()], &inits)); // [L]
            let dot = |a: Tensor<'f>, b: Tensor<'f>| (a * b).sum(&[1]).exp();
            let lambda = dot(*lambda_q1, *lambda_k1) - dot(*lambda_q2, *lambda_k2) + init;
            // The head norm's fixed factor keeps the gradient flow of an ordinary Transformer.
            let weight = *subln * (1.0 - init).along(*subln, &[0]); // [L, e]
            let (layers, e, rows) = (weight.dim(0), weight.dim(1), o.dim(1));
            let head_weights =
                weight.broadcast_in_dim([layers, rows / e, e], &[0, 2]).reshape([layers, rows]);
            (lambda, normed(head_weights, *o))
        }
        Diff::V2 { lambda_proj } => (narrow(normed(*input_norm, *lambda_proj)), *o),
    };
    Folded {
        embed: narrow(params.embed),
        layers: FoldedBlock {
            qkv: narrow(normed(*input_norm, Tensor::concatenate(&[*q, *k, *v], 2))),
            lambda,
            o: narrow(o),
            gate: narrow(normed(*post_norm, *gate)),
            up: narrow(normed(*post_norm, *up)),
            down: narrow(*down),
        },
        norm: params.norm,
        mtp: params.mtp.as_ref().map(|mtp| FoldedMtp {
            proj: narrow(mtp.proj),
            norm: mtp.norm,
            lm_head: narrow(mtp.lm_head),
        }),
    }
}

/// Gradients of master weights from those of their folded form, which are f32: the gradient of [`fold`].
pub fn unfold_gradients<'f>(
    config: &Config,
    params: &Params<Tensor<'f>>,
    gradients: &Folded<Tensor<'f>>,
) -> Params<Tensor<'f>> {
    // What is differentiated is the folding alone; rounding to the compute type has no derivative of its own.
    let folded = fold(&Config { dtype: Compute::F32, ..config.clone() }, params);
    let pairs = folded.leaves().into_iter().zip(gradients.leaves());
    let along = pairs.map(|(w, g)| (w * g.stop_gradient()).sum_all());
    let along = along.reduce(|a, b| a + b).expect("a model has parameters");
    let wrt: Vec<Tensor<'f>> = params.iter().map(|(_, p)| *p).collect();
    params.with_leaves(grad(along, &wrt))
}

/// The types of a configuration's folded weights.
pub fn folded_types(config: &Config) -> Folded<Type> {
    let specs = specs(config);
    let types: Vec<Type> = specs.iter().map(|(_, spec)| spec.ty.clone()).collect();
    let mut folded = None;
    Func::build(&types, |_, params| {
        let made = fold(config, &specs.with_leaves(params.iter().copied()));
        folded = Some(made.clone().map(|_, w| w.ty()));
        made.leaves()
    });
    folded.expect("the function was built")
}

/// From master weights to their folded form. Inputs `params.*`, outputs `folded.*`.
pub fn fold_program(config: &Config) -> Program {
    Program::build("fold", |f| {
        let params = specs(config).map(|name, spec| f.input(&format!("params.{name}"), spec.ty));
        for (name, weight) in fold(config, &params).into_flat() {
            f.output(&format!("folded.{name}"), weight);
        }
    })
}
