//! Programs compile for TPU v6e on a machine without one.

use engine::pjrt::CompileOptions;
use engine::{Program, Save, Sharding, Type, grad};
use tests::{Mlp, mlp_step, residual_mlp, tpu};

fn scanned(mlp: Mlp) -> Program {
    Program::build("scanned", |g| {
        let x = g.input("x", Type::f32([mlp.batch, mlp.width]));
        let [gate, up, down] = mlp.weights();
        let weights = [g.input("gate", gate), g.input("up", up), g.input("down", down)];
        let loss = residual_mlp(x, &weights, &Save::Only(vec![]));
        g.output("loss", loss);
        for ((weight, grad), name) in weights.iter().zip(grad(loss, &weights)).zip(["gate", "up", "down"]) {
            g.output_over(name, *weight - grad * 0.01, *weight);
        }
    })
}

#[test]
fn a_training_step_compiles_for_one_chip() {
    let program = mlp_step();
    let memory = program.compile_for(&tpu("v6e:1x1"), &program.options()).unwrap().memory_use().unwrap();
    println!("mlp_step on v6e:1x1: {memory}");
    assert!(memory.arguments > 0 && memory.aliased > 0 && memory.code > 0, "{memory}");
}

#[test]
fn a_scanned_model_compiles_for_one_chip() {
    let mlp = Mlp { layers: 12, batch: 2048, width: 512, hidden: 2048 };
    let memory =
        scanned(mlp).compile_for(&tpu("v6e:1x1"), &CompileOptions::single()).unwrap().memory_use().unwrap();
    println!("{mlp:?} on v6e:1x1: {memory}");
    let weights: usize = mlp.weights().iter().map(Type::bytes).sum();
    assert_eq!(memory.aliased, weights as i64);
    // Each layer keeps what enters it; beside these, the weights' gradients, and the values of one layer.
    let kept = (mlp.layers * mlp.batch * mlp.width * 4 + weights) as i64;
    let working = memory.temporaries - kept;
    assert!((0..8 * mlp.hidden_bytes() as i64).contains(&working), "{memory}, of these kept: {kept}");
}

#[test]
fn a_sharded_program_compiles_for_four_chips() {
    let cut = |tiles: [usize; 2]| Sharding { tiles: tiles.to_vec(), devices: 4 };
    let program = Program::build("sharded", |g| {
        let x = g.input_sharded("x", Type::f32([4096, 1024]), cut([4, 1]));
        let w = g.input("w", Type::f32([1024, 1024]));
        let y = x.matmul(w).tanh();
        let loss = (y * y).mean(&[0, 1]);
        g.output("loss", loss);
        g.output_over("w", w - grad(loss, &[w])[0] * 0.1, w);
        g.output_sharded("y", y, cut([4, 1]));
    });
    let four = program.compile_for(&tpu("v6e:2x2"), &program.options()).unwrap();
    let memory = four.memory_use().unwrap();
    println!("sharded on v6e:2x2, each chip: {memory}");
    // A chip holds a quarter of x and y, and all of w.
    assert_eq!(four.output_types().unwrap()[2], Type::f32([1024, 1024]));
    let (rows, w) = (1024 * 1024 * 4, 1024 * 1024 * 4);
    assert_eq!((memory.arguments, memory.aliased), (rows + w, w));

    let replicas = Program::build("replicas", |g| {
        let x = g.input("x", Type::f32([256, 256]));
        g.output("sum", x.all_reduce_sum(vec![vec![0, 1, 2, 3]]));
    });
    replicas.compile_for(&tpu("v6e:2x2"), &CompileOptions::replicated(4)).unwrap();
}
