//! [`simplify`]: constants are folded, and what adds, multiplies or divides by nothing goes.

use crate::eval::{Array, Evaluator, Rounding};
use crate::ir::{Builder, Func, Tensor};
use crate::ops::leaf::ConstantData;
use crate::ops::{Binary, Constant, Op};
use crate::program::Program;
use crate::types::Type;
use std::rc::Rc;

/// Results of constants are constants; `x + -0.0`, `x - 0`, `x * 1`, `x / 1` are `x`. Not `x + 0.0`, which is 0.0 where x
/// is -0.0.
pub fn simplify(program: &Program) -> Program {
    program.with_main(program.main().rewrite(&mut |builder, op, operands| simplified(builder, op, operands)))
}

/// Larger constants would only move work from the device into the text.
const LARGEST_FOLDED: usize = 1024;

fn simplified<'f>(builder: &'f Builder<'f>, op: &Op, operands: &[Tensor<'f>]) -> Option<Vec<Tensor<'f>>> {
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
    let args: Vec<Rc<_>> = constants.iter().map(|c| Rc::new(Array::from_host(&c.to_host()))).collect();
    let results = Evaluator { rounding: Rounding::EachOp }.call(&func, &args);
    Some(results.iter().map(|array| builder.constant(&array.to_host())).collect())
}
