//! The evaluator: what each op means, in `f64` and `i64` on the host. It is the oracle of the tests and folds
//! constants; it is not meant to be fast.

use crate::host::Host;
use crate::ir::Func;
use crate::ops::Op;
use crate::program::Program;
use crate::types::{DType, Type};
use std::rc::Rc;

/// Whether results are rounded to their element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Every result is rounded to its type, as a device does (which may round once for several fused ops).
    EachOp,
    /// Floats stay `f64` throughout, whatever the type says: the true value of the formula.
    None,
}

/// Evaluates functions; see [`evaluate`].
pub(crate) struct Evaluator {
    pub(crate) rounding: Rounding,
}

/// A value of the evaluator: floats as `f64`, integers and bools as `i64`.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The type that the program gave it.
    pub ty: Type,
    data: Data,
}

#[derive(Clone, Debug, PartialEq)]
enum Data {
    Float(Vec<f64>),
    Int(Vec<i64>),
}

impl Array {
    /// From host memory, exactly.
    pub fn from_host(host: &Host) -> Array {
        let ty = host.ty().clone();
        let data = match ty.dtype {
            DType::I64 => Data::Int(host.as_slice::<i64>().to_vec()),
            dtype if dtype.is_float() => Data::Float(host.to_f64()),
            _ => Data::Int(host.to_f64().into_iter().map(|x| x as i64).collect()),
        };
        Array { ty, data }
    }

    /// To host memory, rounded to the element type.
    pub fn to_host(&self) -> Host {
        match &self.data {
            Data::Int(ints) if self.ty.dtype == DType::I64 => Host::new(self.ty.shape.clone(), ints),
            Data::Int(ints) => {
                Host::from_f64(self.ty.clone(), &ints.iter().map(|&x| x as f64).collect::<Vec<_>>())
            }
            Data::Float(floats) => Host::from_f64(self.ty.clone(), floats),
        }
    }

    /// The numbers of a float array.
    ///
    /// # Panics
    /// On an integer array.
    pub fn floats(&self) -> &[f64] {
        match &self.data {
            Data::Float(floats) => floats,
            Data::Int(_) => panic!("the evaluator reads floats of {}", self.ty),
        }
    }

    /// The numbers of an integer or bool array.
    ///
    /// # Panics
    /// On a float array.
    pub fn ints(&self) -> &[i64] {
        match &self.data {
            Data::Int(ints) => ints,
            Data::Float(_) => panic!("the evaluator reads integers of {}", self.ty),
        }
    }

    pub(crate) fn from_floats(ty: Type, floats: Vec<f64>) -> Array {
        Array { ty, data: Data::Float(floats) }
    }

    /// Integers wrap to the width of the type.
    pub(crate) fn from_ints(ty: Type, ints: Vec<i64>) -> Array {
        let ints = match ty.dtype {
            DType::I32 => ints.into_iter().map(|x| i64::from(x as i32)).collect(),
            DType::U32 => ints.into_iter().map(|x| i64::from(x as u32)).collect(),
            DType::U8 => ints.into_iter().map(|x| i64::from(x as u8)).collect(),
            _ => ints,
        };
        Array { ty, data: Data::Int(ints) }
    }

    /// Element `i` (row-major) = `f(i)`, whatever the element type.
    pub(crate) fn from_fn(ty: Type, f: impl FnMut(usize) -> f64) -> Array {
        let values: Vec<f64> = (0..ty.elements()).map(f).collect();
        if ty.dtype.is_float() {
            Array::from_floats(ty, values)
        } else {
            Array::from_ints(ty, values.into_iter().map(|x| x as i64).collect())
        }
    }

    /// Element `i` of the result is element `source(i)` of this array.
    pub(crate) fn rearranged(&self, ty: Type, source: impl Fn(usize) -> usize) -> Array {
        let data = match &self.data {
            Data::Float(from) => Data::Float((0..ty.elements()).map(|i| from[source(i)]).collect()),
            Data::Int(from) => Data::Int((0..ty.elements()).map(|i| from[source(i)]).collect()),
        };
        Array { ty, data }
    }

    /// Writes element `from` of `source` into element `to` of this array.
    pub(crate) fn copy_element(&mut self, to: usize, source: &Array, from: usize) {
        match (&mut self.data, &source.data) {
            (Data::Float(into), Data::Float(values)) => into[to] = values[from],
            (Data::Int(into), Data::Int(values)) => into[to] = values[from],
            _ => panic!("the evaluator copies {} into {}", source.ty, self.ty),
        }
    }

    /// Whether element `i` is larger than element `j`; NaN is larger than any number.
    pub(crate) fn larger(&self, i: usize, j: usize) -> bool {
        match &self.data {
            Data::Float(x) => x[i] > x[j] || (x[i].is_nan() && !x[j].is_nan()),
            Data::Int(x) => x[i] > x[j],
        }
    }

    /// Element as `f64`, of any element type; large `I64` are rounded.
    pub(crate) fn number(&self, i: usize) -> f64 {
        match &self.data {
            Data::Float(floats) => floats[i],
            Data::Int(ints) => ints[i] as f64,
        }
    }

    fn rounded(self) -> Array {
        match self.data {
            Data::Float(_) if self.ty.dtype != DType::F64 => Array::from_host(&self.to_host()),
            _ => self,
        }
    }
}

impl Evaluator {
    /// Results of a function on the given arguments.
    pub(crate) fn call(&self, func: &Func, args: &[Rc<Array>]) -> Vec<Rc<Array>> {
        let mut made: Vec<Vec<Rc<Array>>> = Vec::with_capacity(func.nodes().len());
        for node in func.nodes() {
            let results = match &node.op {
                Op::Parameter(parameter) => vec![args[parameter.index].clone()],
                op => {
                    let operands: Vec<&Array> = (node.operands.iter())
                        .map(|value| &*made[value.node as usize][value.result as usize])
                        .collect();
                    let results = op.rules().eval(self, &operands, &node.types);
                    (results.into_iter())
                        .map(|array| {
                            Rc::new(if self.rounding == Rounding::EachOp { array.rounded() } else { array })
                        })
                        .collect()
                }
            };
            made.push(results);
        }
        func.results().iter().map(|value| made[value.node as usize][value.result as usize].clone()).collect()
    }
}

/// Evaluates a program on the host: inputs and outputs in the order of its ports.
///
/// # Panics
/// If the arguments do not match the program's inputs.
#[track_caller]
pub fn evaluate(program: &Program, args: &[Array], rounding: Rounding) -> Vec<Array> {
    let wanted: Vec<&Type> = program.inputs().iter().map(|port| &port.ty).collect();
    let found: Vec<&Type> = args.iter().map(|arg| &arg.ty).collect();
    assert!(wanted == found, "evaluate({}): wants inputs {wanted:?}, got {found:?}", program.name());
    let args: Vec<Rc<Array>> = args.iter().cloned().map(Rc::new).collect();
    Evaluator { rounding }.call(program.main(), &args).iter().map(|array| (**array).clone()).collect()
}
