//! The training step compiles for a GPU on a machine without one.

use engine::hlo::Hlo;
use engine::work::Work;
use engine::{Form, Target};
use model::{Preset, Remat, specs};
use train::compiler::{Compiler, Place};
use train::config::resolve;
use train::metrics::peak::{bandwidth, peak_flops};
use train::step::step_of;

#[test]
fn the_step_of_tiny_compiles_for_an_h100() {
    let run = resolve(Preset::Tiny, None, &[]).unwrap().run;
    let place: Place = "cuda:h100".parse().unwrap();
    let compiler = Compiler::open(&place).unwrap();
    assert_eq!((compiler.target(), place.target().unwrap()), (Target::Cuda, Target::Cuda));
    let kind = compiler.device_kind().unwrap();
    // Three quarters of 79.1 GiB.
    let memory = compiler.device_memory().unwrap().unwrap();
    assert!(
        kind == "NVIDIA H100 80GB HBM3" && (63.7e9..63.8e9).contains(&(memory as f64)),
        "{kind} {memory}"
    );
    assert_eq!(peak_flops(&kind, model::Compute::Bf16).zip(bandwidth(&kind)), Some((989.4e12, 3.35e12)));

    let step = step_of(&run, Remat::Selective);
    let (lowered, forms) = compiler.lower(&step, run.kernels).unwrap();
    assert!(forms.iter().all(|(_, form)| *form != Form::Native), "{forms:?}");
    let made = compiler.compile(&lowered).unwrap();
    println!("compiled in {:.1} s: {}", made.took.as_secs_f64(), made.memory);
    let weights: usize = specs(&run.model).iter().map(|(_, spec)| spec.ty.bytes()).sum();
    // Weights, two moments, and the number of updates are written over.
    assert_eq!(made.memory.aliased as usize, 3 * weights + 4);
    let all = made.memory.total();
    assert!(made.memory.temporaries > 0 && made.memory.peak <= all && 2 * made.memory.peak > all, "{all}");

    let hlo = Hlo::parse(&made.optimized);
    assert_eq!(hlo.open_loops, 0);
    let own = Work::of(&lowered).uses()["dot_general"].flops;
    // The forward kernel also gives the values of the second map, which this form's backward pass does not read: XLA leaves
    // that product of every layer out.
    let (model, batch) = (&run.model, run.batch);
    let (heads, width) = (model.num_attention_heads / 2, 2 * model.head_dim);
    let unread = 2 * model.num_hidden_layers * batch.rows() * batch.seq * batch.seq * heads * width;
    assert_eq!(hlo.matmul_flops(), own - unread as f64);
    // On a bf16 device a lower bound of the time; the products alone take a part of it.
    let seconds = hlo.roofline(989.4e12, 3.35e12);
    assert!(seconds > hlo.matmul_flops() / 989.4e12 && seconds < 1e-3, "{seconds} s");
}
