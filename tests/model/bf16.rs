//! What rounding to bf16 does to gradients, all along a run: beside those of f32, of every parameter, for text that is
//! learned by heart, for text that is learned in part, and for noise. Their gradients end up decades apart.

use engine::{Compiled, DType, Form, Host, Program, Target, Type, passes};
use model::folded::unfold_gradients;
use model::loss::{Counts, gradients};
use model::{Batch, Compute, Config, Preset, Remat, fold, initial_params, specs};
use std::collections::BTreeMap;
use tests::{Random, cpu};
use train::config::BatchShape;
use train::step::{AdamW, step_program};

/// Largest relative error of one rounding to bf16.
const UNIT: f64 = 1.0 / 512.0;

const ADAMW: AdamW =
    AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0, first_moment: DType::F32 };

/// Points of the run at which gradients are compared.
const POINTS: u32 = 10;

/// Tokens of a row.
const SEQ: usize = 128;

/// The architecture of `tiny` with a vocabulary that is learned in a minute.
fn config() -> Config {
    Config { vocab_size: 256, num_tokens: 250, ..Config::preset(Preset::Tiny) }
}

/// What a row is made of.
#[derive(Clone, Copy, Debug)]
enum Text {
    /// Always the same tokens in the same order.
    ByHeart,
    /// One of four tokens follows upon each, one more often than another.
    InPart,
    /// Any token.
    Noise,
}

impl Text {
    const ALL: [Text; 3] = [Text::ByHeart, Text::InPart, Text::Noise];

    fn row(self, config: &Config, random: &mut Random) -> Vec<i32> {
        let count = config.num_tokens;
        let mut token = random.below(count);
        let row = (0..SEQ).map(|_| {
            token = match self {
                Text::ByHeart => (token + 1) % count,
                Text::InPart => (7 * token + 11 * random.below(4).min(random.below(4))) % count,
                Text::Noise => random.below(count),
            };
            token as i32
        });
        row.collect()
    }

    /// Rows of each of these kinds.
    fn rows(kinds: &[Text], config: &Config, random: &mut Random) -> Vec<i32> {
        kinds.iter().flat_map(|kind| kind.row(config, random)).collect()
    }
}

fn compiled(program: &Program, form: Option<Form>) -> Compiled {
    passes::lower(program, Target::Cpu, form).0.compile(cpu()).unwrap()
}

/// Inputs: parameters, ids `[rows, SEQ]`. Outputs: the loss, and gradients of the parameters.
fn gradient_program(config: &Config, rows: usize) -> Program {
    Program::build("gradients", |f| {
        let params = specs(config).map(|name, spec| f.input(name, spec.ty));
        let ids = f.input("ids", Type::i32([rows, SEQ]));
        let batch = Batch { ids, segments: ids.zeros_like() };
        let weights = fold(config, &params);
        let counts = Counts::of(batch.segments);
        let (losses, folded) = gradients(config, &weights, batch, counts, None, Remat::Selective, None);
        f.output("loss", losses.main);
        for (name, gradient) in unfold_gradients(config, &params, &folded).into_flat() {
            f.output(&name, gradient);
        }
    })
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// How a gradient compares with the exact one: the norm of the difference as a part of its norm, and the cosine.
struct Comparison {
    error: f64,
    cosine: f64,
}

impl Comparison {
    fn of(found: &[f32], wanted: &[f32]) -> Comparison {
        let difference: Vec<f32> = found.iter().zip(wanted).map(|(a, b)| a - b).collect();
        let square = dot(wanted, wanted);
        Comparison {
            error: (dot(&difference, &difference) / square).sqrt(),
            cosine: dot(found, wanted) / (dot(found, found) * square).sqrt(),
        }
    }
}

/// Roundings between a weight and its gradient: a layer's five matrices, and about ten values of its forward pass (qkv, their
/// rotation, the weights of values, o, its projection, both products of the MLP, h, its projection, the stream twice), each
/// with a cotangent that is rounded too; and the embedding, the final norm and q of the heads with theirs.
fn roundings(config: &Config) -> f64 {
    (config.num_hidden_layers * (5 + 2 * 10) + 8) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Roundings are independent of each other, so that their errors add up as the sides of a right angle do: of K of them, none
/// larger than [`UNIT`], at most `UNIT sqrt(K)`. The median of ten points, for now and then a gradient is ill-conditioned: a
/// head's output that is nearly 0 is divided by its own length.
#[test]
fn gradients_along_a_run() {
    let config = config();
    let kinds = [0, 0, 0, 1, 1, 1, 2, 2].map(|kind| Text::ALL[kind]);
    let shape = BatchShape { accumulation: 1, micro: kinds.len(), seq: SEQ };
    let step = compiled(&step_program(&config, shape, ADAMW, Remat::Selective), None);
    let exact = compiled(&gradient_program(&config, 2), None);
    let narrow = gradient_program(&Config { dtype: Compute::Bf16, ..config.clone() }, 2);
    let forms = [Some(Form::Portable), Some(Form::Reference)];
    let programs = forms.map(|form| compiled(&narrow, form));
    let names: Vec<String> = specs(&config).into_flat().into_iter().map(|(name, _)| name).collect();
    let mut state: Vec<Host> =
        initial_params(&config, 1).into_flat().into_iter().map(|(_, host)| host).collect();
    let zeros: Vec<Host> = state.iter().map(|host| Host::zeros(host.ty().clone())).collect();
    state.extend([&zeros[..], &zeros[..], &[Host::scalar(0i32)]].concat());
    let mut random = Random::new(2);
    // By form, text and parameter.
    let mut found: BTreeMap<(usize, usize, usize), Vec<Comparison>> = BTreeMap::new();
    for number in 0..20 * POINTS {
        if number % 20 == 10 {
            for (t, text) in Text::ALL.into_iter().enumerate() {
                let mut args = state[..names.len()].to_vec();
                args.push(Host::new([2, SEQ], &Text::rows(&[text, text], &config, &mut random)));
                let wanted = exact.call(&args).unwrap();
                println!("step {number}, {text:?}: loss {:.3}", wanted[0].to_f64()[0]);
                for (f, program) in programs.iter().enumerate() {
                    let results = program.call(&args).unwrap();
                    for (i, (a, b)) in results.iter().zip(&wanted).enumerate().skip(1) {
                        let comparison = Comparison::of(a.as_slice(), b.as_slice());
                        found.entry((f, t, i - 1)).or_default().push(comparison);
                    }
                }
            }
        }
        let rate = 4e-3 * f64::from(number + 1).min(20.0) / 20.0;
        let ids = Host::new(shape.ids().shape, &Text::rows(&kinds, &config, &mut random));
        let segments = Host::zeros(ids.ty().clone());
        state.extend([
            ids,
            segments,
            Host::scalar(rate as f32),
            Host::scalar(f32::MAX),
            Host::scalar(number),
        ]);
        state.push(Host::new([2], &[7u32, 0]));
        state = step.call(&state).unwrap();
        state.pop().expect("the metrics");
    }
    for ((f, t, i), points) in found {
        let error = median(points.iter().map(|point| point.error).collect());
        let cosine = median(points.iter().map(|point| point.cosine).collect());
        let case = format!("{:?}, {:?}, {}", forms[f], Text::ALL[t], names[i]);
        println!("{case}: {error:.1e}, 1 - {:.1e}", 1.0 - cosine);
        let bound = UNIT * roundings(&config).sqrt();
        assert!(error < bound, "{case}: an error of {error:.1e} is more than {bound:.1e}");
        // Errors that stand across the gradient turn it by their own size; an error along it does not.
        assert!(1.0 - cosine < bound * bound / 2.0, "{case}: a cosine of {cosine}");
    }
}
