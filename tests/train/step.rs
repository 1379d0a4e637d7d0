//! The step in the forms chosen for speed against the plain one: no accumulation, every layer computed again, kernels as
//! their references define them. The same mathematics: the same losses, gradients and updates.

use engine::{Array, DType, Form, Host, Program, Rounding, Target, evaluate, passes};
use model::folded::fold_program;
use model::{Attention, Compute, Config, Remat, specs};
use proptest::prelude::*;
use tests::close::{F32, F64};
use tests::{Random, close, property, run_on_cpu, small_config, uneven_params};
use train::config::BatchShape;
use train::step::{AdamW, step_program};

/// A large eps keeps the rounding of gradients near 0 from deciding the sign of a whole update.
const ADAMW: AdamW =
    AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-2, weight_decay: 0.1, clip: 1.0, first_moment: DType::F32 };

/// Rows of tokens with documents of different lengths, some of them padded.
struct Rows {
    count: usize,
    seq: usize,
    ids: Vec<i32>,
    segments: Vec<i32>,
}

impl Rows {
    fn new(config: &Config, count: usize, seq: usize, seed: u64) -> Rows {
        let mut random = Random::new(seed);
        let ids = (0..count * seq).map(|_| random.below(config.num_tokens) as i32).collect();
        let mut segments = Vec::new();
        for _ in 0..count {
            let (document, padding) = (1 + random.below(seq), random.below(1 + seq / 4));
            segments.extend((0..seq).map(|i| if i + padding >= seq { -1 } else { (i / document) as i32 }));
        }
        Rows { count, seq, ids, segments }
    }
}

/// The state before the first step, in the order of the program's inputs.
fn beginning(config: &Config) -> Vec<Array> {
    let array = |host: &Host| Array::from_host(host);
    let weights: Vec<Array> = uneven_params(config).iter().map(|(_, host)| array(host)).collect();
    let zeros =
        || specs(config).into_flat().into_iter().map(|(_, spec)| Array::from_host(&Host::zeros(spec.ty)));
    let mut state: Vec<Array> = weights.iter().cloned().chain(zeros()).chain(zeros()).collect();
    state.push(array(&Host::scalar(0i32)));
    if config.dtype == Compute::Bf16 {
        state.extend(evaluate(&fold_program(config), &weights, Rounding::EachOp));
    }
    state
}

/// Runs steps of a lowered program; returns the state and all steps' metrics.
fn run(
    program: &Program,
    config: &Config,
    rows: &Rows,
    steps: u32,
    runner: impl Fn(&Program, &[Array]) -> Vec<Array>,
) -> Vec<Array> {
    let shape = program.inputs().iter().find(|port| port.name == "ids").unwrap().ty.shape.clone();
    let (mut state, mut all) = (beginning(config), Vec::new());
    for number in 0..steps {
        let hosts = [
            Host::new(shape.clone(), &rows.ids),
            Host::new(shape.clone(), &rows.segments),
            Host::scalar(1e-2f32),
            Host::scalar(f32::MAX),
            Host::scalar(number),
            Host::new([2], &[7u32, 0]),
        ];
        state.extend(hosts.iter().map(Array::from_host));
        state = runner(program, &state);
        all.push(state.pop().expect("the metrics"));
    }
    all.extend(state);
    all
}

fn plain(config: &Config, rows: &Rows, adamw: AdamW) -> Program {
    let shape = BatchShape { accumulation: 1, micro: rows.count, seq: rows.seq };
    let program = step_program(config, shape, adamw, Remat::Full);
    passes::lower(&program, Target::Cpu, Some(Form::Reference)).0
}

fn fast(config: &Config, rows: &Rows, adamw: AdamW, micro: usize, target: Target) -> Program {
    let shape = BatchShape { accumulation: rows.count / micro, micro, seq: rows.seq };
    passes::lower(&step_program(config, shape, adamw, Remat::Selective), target, None).0
}

/// Largest error of an array, as a part of its largest element.
fn error(found: &Array, wanted: &Array) -> f64 {
    assert_eq!(found.ty, wanted.ty);
    if !found.ty.dtype.is_float() {
        return if found.ints() == wanted.ints() { 0.0 } else { f64::INFINITY };
    }
    close::error(found.floats(), wanted.floats())
}

#[track_caller]
fn equal(name: &str, found: &[Array], wanted: &[Array], tolerance: f64) {
    assert_eq!(found.len(), wanted.len());
    let worst = close::largest(found.iter().zip(wanted).map(|(a, b)| error(a, b)));
    close::assert_small(name, worst, tolerance);
}

/// Everything that a configuration can switch on.
fn everything(positions: usize) -> Config {
    Config { dropout: 0.2, z_loss: 1e-3, attention_logit_cap: 20.0, ..small_config(positions) }
}

#[test]
fn five_steps_on_the_cpu() {
    let config = everything(32);
    let rows = Rows::new(&config, 8, 32, 1);
    let wanted = run(&plain(&config, &rows, ADAMW), &config, &rows, 5, |p, args| run_on_cpu(p, args));
    let program = fast(&config, &rows, ADAMW, 2, Target::Cpu);
    let found = run(&program, &config, &rows, 5, |p, args| run_on_cpu(p, args));
    // Gradients as in `tests/model/parity.rs`, sums over 256 tokens of terms that partly cancel, five steps one after the other.
    equal("five steps, 2 rows at a time", &found, &wanted, 128.0 * F32);
}

/// The very program that a v6e gets, on the host: native attention in stacks, products with ones, pins.
#[test]
fn the_step_for_a_tpu() {
    let config = Config {
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        head_dim: 128,
        attention_logit_cap: 0.0,
        ..everything(256)
    };
    let rows = Rows::new(&config, 2, 256, 2);
    let exact = |program: &Program, args: &[Array]| evaluate(program, args, Rounding::None);
    let wanted = run(&plain(&config, &rows, ADAMW), &config, &rows, 1, exact);
    let program = fast(&config, &rows, ADAMW, 1, Target::TpuV6e);
    let text = program.text(engine::Locations::Omit);
    assert_eq!(text.matches("@tpu_custom_call").count(), 2, "forward and backward, each once");
    // All but its attention is exact, which computes in f32: 16 roundings for sums over 256 keys and over 128 columns,
    // eight such sums one after the other, forward and backward.
    equal("the step for a TPU", &run(&program, &config, &rows, 1, exact), &wanted, 128.0 * F32);
}

/// Without rounding there is no difference.
#[test]
fn steps_of_any_shape() {
    let shapes = (1usize..4, 1usize..3, 1usize..3, 1usize..3, 3usize..10, 1usize..3, 1usize..4);
    let switches = (any::<bool>(), any::<bool>(), any::<bool>());
    property(10, &(any::<u64>(), shapes, switches), |(seed, shape, (v2, mtp, dropout))| {
        let (layers, groups, per_group, half, seq, micro, accumulation) = shape;
        let heads = groups * per_group;
        let config = Config {
            num_hidden_layers: layers,
            hidden_size: 6,
            num_attention_heads: if v2 { heads } else { 2 * heads },
            num_key_value_heads: if v2 { groups } else { 2 * groups },
            head_dim: 2 * half,
            intermediate_size: 10,
            vocab_size: 12,
            num_tokens: 11,
            attention: if v2 { Attention::DiffV2 } else { Attention::DiffV1 },
            mtp_num_tokens: usize::from(mtp),
            dropout: if dropout { 0.3 } else { 0.0 },
            ..everything(16)
        };
        let rows = Rows::new(&config, micro * accumulation, seq, seed);
        let exact = |program: &Program, args: &[Array]| evaluate(program, args, Rounding::None);
        let wanted = run(&plain(&config, &rows, ADAMW), &config, &rows, 1, exact);
        let found = run(&fast(&config, &rows, ADAMW, micro, Target::Cpu), &config, &rows, 1, exact);
        // Some thousand roundings, as eps keeps the optimiser from dividing by what is near 0.
        let name = format!("{layers} layers, {accumulation} x {micro} x {seq}");
        equal(&name, &found, &wanted, 8192.0 * F64);
    });
}

/// In bf16 both are as far from the truth.
#[test]
fn rounding_to_bf16_costs_the_same() {
    let config = Config { dropout: 0.0, ..everything(32) };
    let rows = Rows::new(&config, 8, 32, 3);
    // Neither clipped nor divided: the first moment is a tenth of the gradient.
    let adamw = AdamW { clip: 1e9, ..ADAMW };
    let truth =
        run(&plain(&config, &rows, adamw), &config, &rows, 1, |p, args| evaluate(p, args, Rounding::None));
    let config = Config { dtype: Compute::Bf16, ..config };
    let moments = |program: &Program| -> Vec<f64> {
        let found = run(program, &config, &rows, 1, |p, args| run_on_cpu(p, args));
        let count = specs(&config).iter().count();
        (1 + count..1 + 2 * count).map(|i| error(&found[i], &truth[i])).collect()
    };
    let (plain, fast) =
        (moments(&plain(&config, &rows, adamw)), moments(&fast(&config, &rows, adamw, 2, Target::Cpu)));
    for (((name, _), plain), fast) in specs(&config).iter().zip(&plain).zip(&fast) {
        println!("{name:20} plain {plain:.1e} fast {fast:.1e}");
    }
    let sum = |errors: &[f64]| errors.iter().sum::<f64>();
    assert!(sum(&fast) < 1.1 * sum(&plain), "{} and {}", sum(&fast), sum(&plain));
}

/// Largest relative error of one rounding to bf16.
const UNIT: f64 = 1.0 / 512.0;

/// The program that a v6e gets to train in bf16, on the host with its kernels interpreted, over several steps, beside the
/// plain one in f64.
///
/// Roundings are independent, so that their errors add up as the sides of a right angle do: of K of them between a weight
/// and its gradient, none larger than [`UNIT`], at most `UNIT sqrt(K)`; K as in `model/bf16.rs`, for one layer. The first
/// moment is a mean of gradients. What the weights have moved by is that mean over the root of their mean square, which
/// is off by as much once more. The gradient of lambda is one number, a sum over all elements of an attention's output
/// whose terms cancel; what it may be off by is what it is off by in the plain form in bf16, several times over: the native
/// kernels by themselves are held to the size of its terms in `kernels/native.rs`.
#[test]
fn steps_for_a_tpu_in_bf16() {
    const STEPS: usize = 4;
    let config = Config {
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        head_dim: 128,
        attention_logit_cap: 0.0,
        dropout: 0.0,
        ..everything(256)
    };
    let rows = Rows::new(&config, 1, 256, 4);
    // Not clipped, which would mix the errors of all parameters.
    let adamw = AdamW { clip: 1e9, ..ADAMW };
    let steps = |program: &Program, config: &Config, rounding: Rounding| {
        run(program, config, &rows, STEPS as u32, |program, args| evaluate(program, args, rounding))
    };
    let truth = steps(&plain(&config, &rows, adamw), &config, Rounding::None);
    let narrow = Config { dtype: Compute::Bf16, ..config.clone() };
    let program = fast(&narrow, &rows, adamw, 1, Target::TpuV6e);
    let text = program.text(engine::Locations::Omit);
    assert_eq!(text.matches("@tpu_custom_call").count(), 2, "forward and backward, each once");
    let found = steps(&program, &narrow, Rounding::EachOp);
    let plain = steps(&plain(&narrow, &rows, adamw), &narrow, Rounding::EachOp);
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let bound = UNIT * ((5 + 2 * 10 + 8) as f64).sqrt();
    let beginning = beginning(&config);
    let count = specs(&config).iter().count();
    let mut failures = Vec::new();
    for (i, (name, _)) in specs(&config).iter().enumerate() {
        for (part, at, from, bound) in
            [("moved by", STEPS + i, Some(i), 2.0 * bound), ("first moment", STEPS + count + i, None, bound)]
        {
            let since = |all: &[Array]| -> Vec<f64> {
                let now = all[at].floats();
                match from {
                    Some(i) => now.iter().zip(beginning[i].floats()).map(|(a, b)| a - b).collect(),
                    None => now.to_vec(),
                }
            };
            let wanted = since(&truth);
            let error = |all: &[Array]| {
                let difference = length(&mut since(all).iter().zip(&wanted).map(|(a, b)| a - b));
                difference / length(&mut wanted.iter().copied())
            };
            let (error, plain) = (error(&found), error(&plain));
            let bound = if name.contains("lambda") { bound.max(3.0 * plain) } else { bound };
            println!("{name:20} {part:12} {error:.1e} of {bound:.1e}, plain form {plain:.1e}");
            if error.is_nan() || error > bound {
                failures.push(format!("{name}, {part}: {error:.1e} of {bound:.1e}"));
            }
        }
    }
    for step in 0..STEPS {
        let [loss, wanted] = [&found, &truth].map(|all| all[step].floats()[0]);
        println!("step {step}: loss {loss:.5}, {wanted:.5}");
        if (loss - wanted).abs().is_nan() || (loss / wanted - 1.0).abs() > bound {
            failures.push(format!("step {step}: loss {loss}, {wanted}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
