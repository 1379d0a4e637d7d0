//! The whole model against `golden/tiny_model`, which another implementation computed in f64: log-probabilities of both
//! heads, losses, every gradient by name, and the weights after three optimiser steps. f32 on the CPU plugin.

use engine::pjrt::Client;
use engine::plugin::Platform;
use engine::{Compiled, DType, Host, KernelChoice, Program, Target, Type, passes};
use model::folded::unfold_gradients;
use model::loss::{Counts, gradients};
use model::{Batch, Config, Params, Remat, fold, specs, token_log_probs};
use serde_json::Value;
use tests::golden;
use train::checkpoint::read_params;
use train::config::BatchShape;
use train::step::{AdamW, Metric, step_program};

/// Largest error of a tensor, as a part of its largest element.
const TOLERANCE: f64 = 1e-4;

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
    let (program, _) = passes::lower(program, Target::Cpu, KernelChoice::Auto);
    program.compile(&Client::new(&Platform::Cpu.load().unwrap(), &[]).unwrap()).unwrap()
}

/// Largest error as a part of the largest element; printed, so that `--nocapture` gives the table.
#[track_caller]
fn close(name: &str, found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len(), "{name}");
    let top = wanted.iter().fold(0.0, |top: f64, x| top.max(x.abs()));
    let error = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / top;
    println!("{name:24} {error:.1e}");
    assert!(error <= TOLERANCE, "{name}: largest error {error:e} of the largest element {top:e}");
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
    close("log-probabilities", &results[0].to_f64(), &numbers(&expected["logprobs"]));
    close("mtp log-probabilities", &results[1].to_f64(), &numbers(&expected["mtp_logprobs"]));
    close("loss", &results[2].to_f64(), &numbers(&expected["loss"]));
    for ((name, wanted), found) in params("gradients.safetensors").iter().zip(&results[3..]) {
        close(name, &found.to_f64(), &wanted.to_f64());
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
    close("losses", &losses, &numbers(&expected["losses"]));
    close("gradient norms", &norms, &numbers(&expected["grad_norms"]));
    for ((name, wanted), found) in params("after_3_steps.safetensors").iter().zip(&state) {
        close(name, &found.to_f64(), &wanted.to_f64());
    }
}
