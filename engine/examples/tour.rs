//! A network of two layers learns a sine: built, differentiated, compiled and trained on the spot.
//! Run it with `cargo run --example tour -p engine`.

use engine::pjrt::{Arg, Client, Plugin, Topology};
use engine::plugin::Platform;
use engine::{Host, Locations, Program, Type, grad};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // One step of gradient descent: formulas go in, StableHLO comes out.
    let step = Program::build("step", |f| {
        let x = f.input("x", Type::f32([64, 1])); // [batch, 1]
        let w1 = f.input("w1", Type::f32([1, 32])); // [1, hidden]
        let w2 = f.input("w2", Type::f32([32, 1])); // [hidden, 1]
        let error = x.matmul(w1).tanh().matmul(w2) - x.sin(); // [batch, 1]
        let loss = (error * error).mean(&[0, 1]);
        let ct = grad(loss, &[w1, w2]);
        f.output("loss", loss);
        f.output_over("w1", w1 - 0.05 * ct[0], w1); // the new weights take the memory of the old ones
        f.output_over("w2", w2 - 0.05 * ct[1], w2);
    });
    println!("{}", step.text(Locations::Omit));

    // The same text compiles for the CPU at hand, and for a TPU that is not.
    let cpu = Client::new(&Plugin::of(&Platform::Cpu)?, &[])?;
    let compiled = step.compile(&cpu)?;
    println!("memory on {:>8}: {}", cpu.platform_name()?, compiled.loaded().memory_use()?);
    let v6e = Topology::new(&Plugin::of(&Platform::Tpu)?, "v6e:1x1", &[])?;
    println!("memory on v6e:1x1: {}", step.compile_for(&v6e, &step.options())?.memory_use()?);

    // Training: the weights are moved into each step and come back from it.
    let evenly = |shape: [usize; 2], from: f64, to: f64| {
        let count = shape[0] * shape[1];
        let number = |i| from + (to - from) * i as f64 / (count - 1) as f64;
        let host = Host::from_f64(Type::f32(shape), &(0..count).map(number).collect::<Vec<_>>());
        cpu.to_device(&host, &cpu.devices()[0])
    };
    let x = evenly([64, 1], -3.0, 3.0)?;
    let (mut w1, mut w2) = (evenly([1, 32], -1.5, 1.5)?, evenly([32, 1], -0.2, 0.3)?);
    let mut losses = Vec::new();
    for _ in 0..1000 {
        let results = compiled.run([Arg::Keep(&x), Arg::Donate(w1), Arg::Donate(w2)])?;
        let [loss, next1, next2] = results.try_into().expect("the program has three outputs");
        (w1, w2) = (next1, next2);
        losses.push(loss.to_host()?.as_slice::<f32>()[0]);
    }
    println!("loss: {} before, {} after {} steps", losses[0], losses[999], losses.len());
    assert!(losses[999] < 0.01 * losses[0]);
    Ok(())
}
