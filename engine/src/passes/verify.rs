//! [`verify`]: whether a program keeps the invariants of the IR.

use crate::ir::Func;
use crate::ops::Op;
use crate::program::Program;
use crate::types::Type;
use std::collections::BTreeSet;

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
