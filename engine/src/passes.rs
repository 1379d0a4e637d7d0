//! Passes over finished programs: [`verify`], [`fold`], [`select`]. Dead nodes are dropped whenever a function is
//! finished and equal nodes are merged when they are added; XLA does the rest below us.

use crate::eval::{Evaluator, Rounding};
use crate::ir::{Builder, Func, Tensor, list};
use crate::ops::control::Save;
use crate::ops::kernel::{KernelChoice, Lowering, Target};
use crate::ops::leaf::ConstantData;
use crate::ops::{Binary, Call, Constant, Op};
use crate::program::Program;
use crate::stacks::in_place;
use crate::types::Type;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

/// Checks a program: operands precede users; types are what the ops infer; parameters and ports agree; donations name
/// an output of the same type, each once; bodies likewise.
///
/// # Errors
/// A sentence that names the node and what is wrong. It means a bug in a pass or an op.
pub fn verify(program: &Program) -> Result<(), String> {
    let wrong = |what: String| format!("program {}: {what}", program.name());
    verify_func(program.main()).map_err(wrong)?;
    let inputs: Vec<&Type> = program.inputs().iter().map(|port| &port.ty).collect();
    let params = program.main().param_types();
    if inputs != params.iter().collect::<Vec<_>>() {
        return Err(wrong("its parameters are not its inputs".to_owned()));
    }
    let outputs: Vec<&Type> = program.outputs().iter().map(|port| &port.ty).collect();
    let results = program.main().result_types();
    if outputs != results.iter().collect::<Vec<_>>() {
        return Err(wrong("its results are not its outputs".to_owned()));
    }
    let mut taken = BTreeSet::new();
    for port in program.inputs() {
        let Some(output) = port.replaced_by else { continue };
        if outputs.get(output) != Some(&&port.ty) || !taken.insert(output) {
            return Err(wrong(format!("input `{}` cannot be replaced by output {output}", port.name)));
        }
    }
    Ok(())
}

fn verify_func(func: &Func) -> Result<(), String> {
    for (index, node) in func.nodes().iter().enumerate() {
        let here = |what: String| format!("node {index}, {} of {}: {what}", node.op.name(), node.at);
        let defined = |node: u32, result: u32| {
            (node as usize) < index && (result as usize) < func.nodes()[node as usize].types.len()
        };
        if let Some(value) = node.operands.iter().find(|value| !defined(value.node, value.result)) {
            return Err(here(format!("operand {value:?} does not precede it")));
        }
        let operands: Vec<Type> = node.operands.iter().map(|&value| func.ty(value).clone()).collect();
        let inferred = node.op.rules().infer(&operands).map_err(|reason| here(reason.0))?;
        if inferred != node.types {
            return Err(here(format!("has types {:?}, infers {inferred:?}", node.types)));
        }
        if let Op::Parameter(parameter) = &node.op
            && func.params().get(parameter.index).map(|value| value.node as usize) != Some(index)
        {
            return Err(here("is not the parameter that it says".to_owned()));
        }
        for body in node.op.bodies() {
            verify_func(body).map_err(here)?;
        }
    }
    Ok(())
}

/// Rebuilds a function, bodies first, giving `rule` the chance to replace each node.
pub(crate) fn rewrite<R>(func: &Func, rule: &mut R) -> Func
where
    R: for<'f> FnMut(&'f Builder<'f>, &Op, &[Tensor<'f>]) -> Option<Vec<Tensor<'f>>>,
{
    let builder = Builder::new();
    let mut made: Vec<Vec<Tensor<'_>>> = Vec::with_capacity(func.nodes().len());
    let params: Vec<Tensor<'_>> = func.param_types().into_iter().map(|ty| builder.parameter(ty)).collect();
    for node in func.nodes() {
        let results = match &node.op {
            Op::Parameter(parameter) => vec![params[parameter.index]],
            op => {
                let operands: Vec<Tensor<'_>> = node
                    .operands
                    .iter()
                    .map(|value| made[value.node as usize][value.result as usize])
                    .collect();
                let bodies = op.bodies().into_iter().map(|body| Arc::new(rewrite(body, rule))).collect();
                let op = op.with_bodies(bodies);
                builder.attributed(node.at, || {
                    rule(&builder, &op, &operands).unwrap_or_else(|| builder.push(op.clone(), &operands))
                })
            }
        };
        made.push(results);
    }
    let results: Vec<Tensor<'_>> =
        func.results().iter().map(|value| made[value.node as usize][value.result as usize]).collect();
    builder.finish(&results)
}

/// Results of constants are constants; `x + -0.0`, `x - 0`, `x * 1`, `x / 1` are `x`. Not `x + 0.0`, which is 0.0 where x
/// is -0.0.
pub fn fold(program: &Program) -> Program {
    program.with_main(rewrite(program.main(), &mut |builder, op, operands| fold_node(builder, op, operands)))
}

/// Larger constants would only move work from the device into the text.
const LARGEST_FOLDED: usize = 1024;

fn fold_node<'f>(builder: &'f Builder<'f>, op: &Op, operands: &[Tensor<'f>]) -> Option<Vec<Tensor<'f>>> {
    let constant = |tensor: Tensor<'f>| {
        builder.with_node(tensor.value().node, |node| match &node.op {
            Op::Constant(constant) => Some(constant.clone()),
            _ => None,
        })
    };
    if let (Op::Binary(binary), [a, b]) = (op, operands) {
        let (left, right) = (constant(*a), constant(*b));
        let is =
            |side: &Option<Constant>, value: f64| side.as_ref().is_some_and(|constant| constant.is(value));
        let kept = match binary {
            // An integer has one zero.
            Binary::Add if is(&right, -0.0) => Some(*a),
            Binary::Add if is(&left, -0.0) => Some(*b),
            Binary::Sub if is(&right, 0.0) => Some(*a),
            Binary::Mul if is(&right, 1.0) => Some(*a),
            Binary::Mul if is(&left, 1.0) => Some(*b),
            Binary::Div if is(&right, 1.0) => Some(*a),
            _ => None,
        };
        if let Some(kept) = kept {
            return Some(vec![kept]);
        }
    }
    let constants: Vec<Constant> =
        operands.iter().map(|&operand| constant(operand)).collect::<Option<_>>()?;
    let opaque =
        matches!(op, Op::KernelCall(_) | Op::AllReduce(_) | Op::ShardingConstraint(_) | Op::Named(_));
    if constants.is_empty() || !op.is_pure() || !op.bodies().is_empty() || opaque {
        return None;
    }
    let operand_types: Vec<Type> = constants.iter().map(|constant| constant.ty.clone()).collect();
    let types = op.rules().infer(&operand_types).ok()?;
    // One number everywhere stays one number everywhere, at any size.
    if let (Op::BroadcastInDim(_) | Op::Reshape(_) | Op::Transpose(_), ConstantData::Splat(_)) =
        (op, &constants[0].data)
    {
        let data = constants[0].data.clone();
        return Some(builder.push(Constant { ty: types[0].clone(), data }, &[]));
    }
    if types.iter().chain(&operand_types).any(|ty| ty.elements() > LARGEST_FOLDED) {
        return None;
    }
    let func = Func::build(&operand_types, |g, params| g.push(op.clone(), params));
    let args: Vec<Rc<_>> =
        constants.iter().map(|c| Rc::new(crate::eval::Array::from_host(&c.to_host()))).collect();
    let results = Evaluator { rounding: Rounding::EachOp }.call(&func, &args);
    Some(results.iter().map(|array| builder.constant(&array.to_host())).collect())
}

/// The form that was chosen for a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Form {
    Reference,
    Portable,
    Native,
}

/// Chooses a form for every kernel, also for those that forms are made of, and drops layout pins where they mean nothing.
/// Returns the choices: (kernel, form), each once.
pub fn select(program: &Program, target: Target, choice: KernelChoice) -> (Program, Vec<(String, Form)>) {
    let mut chosen = BTreeSet::new();
    let main = select_in(program.main(), target, choice, &mut chosen);
    (program.with_main(main), chosen.into_iter().collect())
}

fn select_in(
    func: &Func,
    target: Target,
    choice: KernelChoice,
    chosen: &mut BTreeSet<(String, Form)>,
) -> Func {
    rewrite(func, &mut |builder, op, operands| match op {
        Op::Pin(_) if target != Target::TpuV6e => Some(operands.to_vec()),
        Op::KernelCall(kernel) => {
            let types: Vec<Type> = operands.iter().map(|operand| operand.ty()).collect();
            let lowering = match choice {
                KernelChoice::Reference => Lowering::Reference,
                _ => kernel.0.lower(&types, target, choice),
            };
            let (form, func) = match lowering {
                Lowering::Reference => (Form::Reference, kernel.reference(&types)),
                Lowering::Portable(func) => (Form::Portable, func),
                Lowering::Native(func) => (Form::Native, func),
            };
            chosen.insert((kernel.0.name(), form));
            let wanted = kernel.0.infer(&types);
            // Kernels may be made of kernels.
            let func = select_in(&func, target, choice, chosen);
            let results = builder.push(called(kernel.0.name(), func), operands);
            let found: Vec<Type> = results.iter().map(|result| result.ty()).collect();
            assert!(
                wanted == Ok(found.clone()),
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
                let within = match kernel.0.lower(&types, target, KernelChoice::Native) {
                    Lowering::Native(_) => return true,
                    Lowering::Portable(func) => func,
                    Lowering::Reference => kernel.reference(&types),
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

/// [`select`], calls in place (`stacks.rs`), then [`fold`], then [`verify`]: what stands between a built program and its text.
///
/// # Panics
/// If the result is not sound: a bug in a pass or in a kernel's lowering.
pub fn lower(program: &Program, target: Target, choice: KernelChoice) -> (Program, Vec<(String, Form)>) {
    let (selected, forms) = select(program, target, choice);
    let in_place = match target {
        Target::TpuV6e => selected.with_main(in_place(selected.main())),
        Target::Cpu | Target::Cuda | Target::OtherTpu => selected,
    };
    let lowered = fold(&in_place);
    if let Err(fault) = verify(&lowered) {
        panic!("lowering for {target:?}: {fault}");
    }
    (lowered, forms)
}

fn called(label: String, func: Func) -> Call {
    Call { label, body: Arc::new(func), save: Save::Everything }
}

#[cfg(test)]
mod tests {
    use super::verify;
    use crate::ir::{Func, Node};
    use crate::ops::Op;
    use crate::{Program, ScanOptions, Type};
    use std::sync::Arc;

    /// Nodes: 0 `x`, 1 `exp`, 2 the scan (of `tanh`), 3 the sum.
    fn sound() -> Program {
        Program::build("p", |g| {
            let x = g.input("x", Type::f32([3, 2]));
            let (_, rows) =
                g.scan(ScanOptions::over(3), &[], &[x.exp()], |_, _, row| (vec![], vec![row[0].tanh()]));
            g.output("y", rows[0].sum_all());
        })
    }

    fn fault(fault: impl FnOnce(&mut Vec<Node>)) -> String {
        let program = sound();
        verify(&program.with_main(program.main().broken(fault))).expect_err("the fault was not found")
    }

    #[test]
    fn verify_finds_what_is_broken() {
        assert_eq!(verify(&sound()), Ok(()));
        let order = fault(|nodes| nodes[1].operands[0].node = 2);
        assert!(order.contains("node 1, exponential of") && order.contains("does not precede it"), "{order}");
        let result = fault(|nodes| nodes[2].operands[0].result = 1);
        assert!(result.contains("node 2, scan of") && result.contains("does not precede it"), "{result}");
        let types = fault(|nodes| nodes[1].types[0] = Type::f32([2, 3]));
        assert!(types.contains("has types"), "{types}");
        let operands = fault(|nodes| nodes[2].operands.clear());
        assert!(operands.contains("the body wants 1 values, got 0"), "{operands}");
        let parameter = fault(|nodes| {
            nodes.swap(0, 1);
            nodes[0].operands.clear();
        });
        assert!(
            parameter.contains("node 0, exponential of") && parameter.contains("wants one operand"),
            "{parameter}"
        );
        let body = fault(|nodes| {
            let Op::Scan(scan) = &mut nodes[2].op else { panic!("node 2 is the scan") };
            scan.body = Arc::new(scan.body.broken(|nodes| nodes[1].operands[0].node = 1));
        });
        assert!(body.contains("node 2, scan of") && body.contains("node 1, tanh of"), "{body}");
    }

    #[test]
    fn verify_compares_functions_with_their_ports() {
        let program = sound();
        let wrong = |types: &[Type]| {
            let main = Func::build(types, |_, x| vec![x[0]]);
            verify(&program.with_main(main)).expect_err("the fault was not found")
        };
        assert_eq!(wrong(&[Type::f32([])]), "program p: its parameters are not its inputs");
        assert_eq!(wrong(&[Type::f32([3, 2])]), "program p: its results are not its outputs");
    }
}
