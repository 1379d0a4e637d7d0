//! The programs that can be shown, by name.

use anyhow::{Result, bail, ensure};
use engine::{Func, Kernel, Op, Program, Target, Tensor, Type};
use model::decode::{CHUNK, Drafts, Matrices, Shape, TopTokens, prefill_program, tokens_program};
use std::collections::BTreeSet;
use std::sync::Arc;
use train::config::RunConfig;
use train::step::{step_of, validation_program};

/// A program for a target before its kernels are chosen; `rows` are those of a decoding program, `memory` the device's bytes.
pub(crate) fn build(
    name: &str,
    run: &RunConfig,
    rows: Option<usize>,
    target: Target,
    memory: Option<u64>,
) -> Result<Program> {
    let matrices = Matrices::of(target);
    let decoding = Shape { rows: rows.unwrap_or(1), slots: run.batch.seq, matrices };
    let step = || step_of(run, run.kept(memory).remat);
    Ok(match name {
        "step" => step(),
        "loss" => validation_program(&run.model, run.batch),
        "prefill" => prefill_program(&run.model, decoding, CHUNK.min(decoding.slots), TopTokens::Off),
        "decode" => {
            let drafts = if run.model.mtp_num_tokens > 0 { Drafts::SecondHead } else { Drafts::Off };
            tokens_program(&run.model, decoding, drafts, TopTokens::Off)
        }
        other => match other.strip_prefix("kernel:") {
            Some(kernel) => alone(kernel, &step())?,
            None => bail!("--program {other}: wanted step, loss, prefill, decode, or kernel:NAME"),
        },
    })
}

/// The first call of a kernel in a program, as a program of its own.
fn alone(name: &str, program: &Program) -> Result<Program> {
    let mut calls = Vec::new();
    find(program.main(), &mut calls);
    let base = |kernel: &Arc<dyn Kernel>| kernel.name().split('(').next().unwrap_or_default().to_owned();
    let known: BTreeSet<String> = calls.iter().map(|(kernel, _)| base(kernel)).collect();
    let known: Vec<String> = known.into_iter().collect();
    ensure!(!known.is_empty(), "the step of this configuration calls no kernel");
    let Some((kernel, types)) = calls.into_iter().find(|(kernel, _)| base(kernel) == name) else {
        bail!("--program kernel:{name}: the step calls no such kernel; it calls {}", known.join(", "));
    };
    Ok(Program::build(name, |g| {
        let operands: Vec<Tensor<'_>> =
            types.iter().enumerate().map(|(i, ty)| g.input(&format!("operand.{i}"), ty.clone())).collect();
        for (i, result) in g.kernel_call(kernel.clone(), &operands).into_iter().enumerate() {
            g.output(&format!("result.{i}"), result);
        }
    }))
}

fn find(func: &Func, calls: &mut Vec<(Arc<dyn Kernel>, Vec<Type>)>) {
    for node in func.nodes() {
        if let Op::KernelCall(kernel) = &node.op {
            calls.push((
                kernel.0.clone(),
                node.operands.iter().map(|&value| func.ty(value).clone()).collect(),
            ));
        }
        node.op.bodies().into_iter().for_each(|body| find(body, calls));
    }
}
