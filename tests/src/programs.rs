//! Programs and small tools that several tests use.

use engine::pjrt::{Plugin, Topology};
use engine::plugin::Platform;
use engine::{Host, Program, Save, ScanOptions, Tensor, Type, grad};
use model::{Config, Params, Preset, initial_params};
use std::path::PathBuf;

/// A file or folder under `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// TPU v6e devices that are not there: `v6e:1x1`, `v6e:2x2`.
pub fn tpu(name: &str) -> Topology {
    Topology::new(&Plugin::of(&Platform::Tpu).unwrap(), name, &[]).unwrap()
}

/// Numbers between -1 and 1, other ones for another `seed`.
pub fn numbers(ty: Type, seed: u32) -> Host {
    let number = |i: u32| {
        let [bits, _] = engine::random::threefry2x32([seed, 0], [i, 0]);
        f64::from(bits) / f64::from(1u32 << 31) - 1.0
    };
    let data: Vec<f64> = (0..ty.elements() as u32).map(number).collect();
    Host::from_f64(ty, &data)
}

/// The smallest model in which every part is there and all sizes are tiny.
pub fn small_config(positions: usize) -> Config {
    Config {
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        intermediate_size: 40,
        vocab_size: 64,
        num_tokens: 61,
        max_position_embeddings: positions,
        ..Config::preset(Preset::Tiny)
    }
}

/// Weights that are not near anything special.
pub fn uneven_params(config: &Config) -> Params<Host> {
    let mut seed = 0..;
    initial_params(config, 3).map(|_, host| {
        let noise = numbers(host.ty().clone(), seed.next().expect("endless")).to_f64();
        let moved: Vec<f64> = host.to_f64().iter().zip(noise).map(|(x, noise)| x + 0.2 * noise).collect();
        Host::from_f64(host.ty().clone(), &moved)
    })
}

/// One step of gradient descent for a two-layer network: `x [8, 4] -> [8, 2]`.
pub fn mlp_step() -> Program {
    Program::build("mlp_step", |g| {
        let x = g.input("x", Type::f32([8, 4]));
        let y = g.input("y", Type::f32([8, 2]));
        let w1 = g.input("params.w1", Type::f32([4, 16]));
        let w2 = g.input("params.w2", Type::f32([16, 2]));
        let error = x.matmul(w1).tanh().matmul(w2) - y; // [8, 2]
        let loss = (error * error).mean(&[0, 1]);
        let grads = grad(loss, &[w1, w2]);
        g.output("loss", loss);
        g.output_over("params.w1", w1 - grads[0] * 0.1, w1);
        g.output_over("params.w2", w2 - grads[1] * 0.1, w2);
    })
}

/// Sizes of [`residual_mlp`].
#[derive(Clone, Copy, Debug)]
pub struct Mlp {
    /// Number of layers, scanned.
    pub layers: usize,
    /// Rows of the input.
    pub batch: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside a layer.
    pub hidden: usize,
}

impl Mlp {
    /// Bytes of one value inside a layer, for instance `h`.
    pub fn hidden_bytes(self) -> usize {
        self.batch * self.hidden * 4
    }

    /// Types of the stacked weights: gate, up, down.
    pub fn weights(self) -> [Type; 3] {
        let (l, d, h) = (self.layers, self.width, self.hidden);
        [Type::f32([l, d, h]), Type::f32([l, d, h]), Type::f32([l, h, d])]
    }
}

/// The loss of a stack of gated layers with residual connections, `x + (silu(x gate) * (x up)) down`, scanned; each
/// layer is one call with the policy `save`, and the value before `down` has the name `h`.
pub fn residual_mlp<'f>(x: Tensor<'f>, weights: &[Tensor<'f>], save: &Save) -> Tensor<'f> {
    let layers = weights[0].dim(0);
    let (out, _) = x.builder().scan(ScanOptions::over(layers), &[x], weights, |g, carry, slices| {
        let operands = [carry, slices].concat();
        let next = g.call("layer", save.clone(), &operands, |_, p| {
            let [x, gate, up, down] = [p[0], p[1], p[2], p[3]];
            let gate = x.matmul(gate); // [b, h]
            let h = (gate * gate.logistic() * x.matmul(up)).named("h");
            vec![x + h.matmul(down)] // [b, d]
        });
        (next, vec![])
    });
    (out[0] * out[0]).mean(&[0, 1])
}
