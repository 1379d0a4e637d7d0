//! [`select`]: which form each kernel takes on a target.

use crate::ir::{Func, list};
use crate::ops::control::Save;
use crate::ops::kernel::{Form, Target};
use crate::ops::{Call, Op};
use crate::program::Program;
use crate::types::Type;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Chooses a form for every kernel, also for those that forms are made of, and drops layout constraints where they mean
/// nothing. `wanted`: the form that kernels shall take; None is the fastest for the target. Returns the choices: (kernel,
/// form), each once.
pub fn select(program: &Program, target: Target, wanted: Option<Form>) -> (Program, Vec<(String, Form)>) {
    let mut chosen = BTreeSet::new();
    let main = select_in(program.main(), target, wanted, &mut chosen);
    (program.with_main(main), chosen.into_iter().collect())
}

fn select_in(
    func: &Func,
    target: Target,
    wanted: Option<Form>,
    chosen: &mut BTreeSet<(String, Form)>,
) -> Func {
    func.rewrite(&mut |builder, op, operands| match op {
        Op::LayoutConstraint(_) if target != Target::TpuV6e => Some(operands.to_vec()),
        Op::KernelCall(kernel) => {
            let types: Vec<Type> = operands.iter().map(|operand| operand.ty()).collect();
            let lowered = match wanted {
                Some(Form::Reference) => None,
                _ => kernel.0.lower(&types, target, wanted),
            };
            let (form, func) = lowered.unwrap_or_else(|| (Form::Reference, kernel.reference(&types)));
            chosen.insert((kernel.0.name(), form));
            // Kernels may be made of kernels.
            let func = select_in(&func, target, wanted, chosen);
            let results = builder.push(called(kernel.0.name(), func), operands);
            let found: Vec<Type> = results.iter().map(|result| result.ty()).collect();
            assert!(
                kernel.0.infer(&types) == Ok(found.clone()),
                "kernel {}: its {form:?} form gives {found:?}",
                kernel.0.name()
            );
            Some(results)
        }
        _ => None,
    })
}

/// Says whether a program has a native form of any of its kernels for a target. Few kernels have one everywhere; but where
/// none has, whoever asks for native forms would get nothing of what was asked for.
///
/// # Errors
/// A sentence that names the target and each kernel, with the types of its operands.
pub fn require_native(program: &Program, target: Target) -> Result<(), String> {
    let mut missing = BTreeSet::new();
    if has_native(program.main(), target, &mut missing) || missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.into_iter().collect();
    Err(format!("the {} program has no native form for {target} of\n  {}", program.name(), list.join("\n  ")))
}

/// Whether one of a function's kernels is native; names those before it that are not.
fn has_native(func: &Func, target: Target, missing: &mut BTreeSet<String>) -> bool {
    func.nodes().iter().any(|node| {
        let native = match &node.op {
            Op::KernelCall(kernel) => {
                let types: Vec<Type> = node.operands.iter().map(|&value| func.ty(value).clone()).collect();
                let within = match kernel.0.lower(&types, target, Some(Form::Native)) {
                    Some((Form::Native, _)) => return true,
                    Some((_, func)) => func,
                    None => kernel.reference(&types),
                };
                missing.insert(format!("{} of ({})", kernel.0.name(), list(&types)));
                // Kernels may be made of kernels.
                has_native(&within, target, missing)
            }
            _ => false,
        };
        native || node.op.bodies().into_iter().any(|body| has_native(body, target, missing))
    })
}

fn called(label: String, func: Func) -> Call {
    Call { label, body: Arc::new(func), save: Save::Everything }
}
