//! The whole model against `golden/tiny_model`, which another implementation computed in f64: log-probabilities of both
//! heads, losses, every gradient by name, and the weights after three optimiser steps. f32 on the CPU plugin.

use engine::pjrt::{Client, Plugin};
use engine::plugin::Platform;
use engine::{Compiled, DType, Host, Program, Target, Type, passes};
use model::folded::unfold_gradients;
use model::loss::{Counts, gradients};
use model::{Batch, Config, Params, Remat, fold, specs, token_log_probs};
use serde_json::Value;
use tests::close::{F32, assert_close, assert_small};
use tests::golden;
use train::checkpoint::read_params;
use train::config::BatchShape;
use train::step::{AdamW, Metric, step_program};

/// f32 rounds by 2^-24. Log-probabilities and losses come after some hundred roundings one after another and sums over a few
/// hundred terms, whose errors add up like their roots: some ten times that.
const OUTPUTS: f64 = 16.0 * F32;
/// Gradients are sums over 128 tokens as well, of terms that partly cancel.
const GRADIENTS: f64 = 64.0 * F32;
/// The optimiser divides by the gradient's own size: where that is near what gradients of its tensor are uncertain by, a
/// step of 1e-3 is uncertain by a part of itself. Of weights of 0.1 that is 1e-2; a hundredth of it is allowed.
const WEIGHTS: f64 = 1e-4;
/// What three steps changed, by the mean over a tensor, which the few uncertain steps do not decide: a change is 3e-3, and
/// each step rounds a weight of up to 1 by 2^-24, which is 6e-5 of it; as much again for the uncertain ones.
const CHANGES: f64 = 2.0 * 3.0 * F32 / 3e-3;

fn config() -> Config {
    Config::from_json(&std::fs::read_to_string(golden("tiny_model/config.json")).unwrap()).unwrap()
}

fn params(file: &str) -> Params<Host> {
    read_params(&golden(&format!("tiny_model/{file}")), &config()).unwrap()
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden("tiny_model/expected.json")).unwrap()).unwrap()
}

/// Every number of nested lists.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

/// Ids and segments of batch number `step`, under the given shape.
fn batch(expected: &Value, step: usize, shape: &[usize]) -> [Host; 2] {
    ["ids", "seg"].map(|key| {
        let ints: Vec<i32> = numbers(&expected[key][step]).into_iter().map(|x| x as i32).collect();
        Host::new(shape, &ints)
    })
}

fn compile(program: &Program) -> Compiled {
    let (program, _) = passes::lower(program, Target::Cpu, None);
    program.compile(&Client::new(&Plugin::of(&Platform::Cpu).unwrap(), &[]).unwrap()).unwrap()
}

#[test]
fn log_probabilities_losses_and_gradients() {
    let (config, expected) = (config(), expected());
    let program = Program::build("parity", |f| {
        let params = specs(&config).map(|name, spec| f.input(name, spec.ty));
        let ty = Type::i32([2, 64]);
        let batch = Batch { ids: f.input("ids", ty.clone()), segments: f.input("segments", ty) };
        let weights = fold(&config, &params);
        let (next, after) = token_log_probs(&config, &weights, batch);
        let counts = Counts::of(batch.segments);
        let (losses, folded) = gradients(&config, &weights, batch, counts, None, Remat::Selective, None);
        f.output("next", next);
        f.output("after", after.unwrap());
        f.output("loss", losses.total);
        for (name, gradient) in unfold_gradients(&config, &params, &folded).iter() {
            f.output(&format!("gradient.{name}"), *gradient);
        }
    });
    let mut args: Vec<Host> =
        params("model.safetensors").into_flat().into_iter().map(|(_, host)| host).collect();
    args.extend(batch(&expected, 0, &[2, 64]));
    let results = compile(&program).call(&args).unwrap();
    assert_close("log-probabilities", &results[0].to_f64(), &numbers(&expected["logprobs"]), OUTPUTS);
    assert_close("mtp log-probabilities", &results[1].to_f64(), &numbers(&expected["mtp_logprobs"]), OUTPUTS);
    assert_close("loss", &results[2].to_f64(), &numbers(&expected["loss"]), OUTPUTS);
    for ((name, wanted), found) in params("gradients.safetensors").iter().zip(&results[3..]) {
        assert_close(&name, &found.to_f64(), &wanted.to_f64(), GRADIENTS);
    }
}

#[test]
fn three_optimiser_steps() {
    let (config, expected) = (config(), expected());
    let shape = BatchShape { accumulation: 1, micro: 2, seq: 64 };
    let adamw =
        AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0, first_moment: DType::F32 };
    let step = compile(&step_program(&config, shape, adamw, Remat::Full));
    let weights = params("model.safetensors").into_flat().into_iter().map(|(_, host)| host);
    let moments = || specs(&config).into_flat().into_iter().map(|(_, spec)| Host::zeros(spec.ty));
    let mut state: Vec<Host> = weights.chain(moments()).chain(moments()).collect();
    state.push(Host::zeros(Type::scalar(DType::I32)));
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for number in 0..3 {
        let mut args = state.clone();
        args.extend(batch(&expected, number, &[1, 2, 64]));
        args.extend([Host::scalar(1e-3f32), Host::scalar(f32::INFINITY), Host::scalar(number as u32)]);
        args.push(Host::new([2], &[0u32, 0]));
        let mut results = step.call(&args).unwrap();
        let metrics = results.pop().unwrap().to_f64();
        let metric = |wanted| metrics[Metric::ALL.iter().position(|metric| *metric == wanted).unwrap()];
        losses.push(metric(Metric::Loss));
        norms.push(metric(Metric::GradientNorm));
        assert_eq!(metric(Metric::Applied), 1.0);
        state = results;
    }
    assert_close("losses", &losses, &numbers(&expected["losses"]), OUTPUTS);
    assert_close("gradient norms", &norms, &numbers(&expected["grad_norms"]), GRADIENTS);
    let (before, after) = (params("model.safetensors"), params("after_3_steps.safetensors"));
    for (((name, wanted), (_, before)), found) in after.iter().zip(before.iter()).zip(&state) {
        let [found, wanted, before] = [found, wanted, before].map(Host::to_f64);
        assert_close(&name, &found, &wanted, WEIGHTS);
        let sum = |of: &[f64], from: &[f64]| of.iter().zip(from).map(|(a, b)| (a - b).abs()).sum::<f64>();
        assert_small(&format!("change of {name}"), sum(&found, &wanted) / sum(&wanted, &before), CHANGES);
    }
}
