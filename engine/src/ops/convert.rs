//! Conversions between element types.

use super::{Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::host::Host;
use crate::ir::Tensor;
use crate::text::{Line, Printer};
use crate::types::{DType, Type};

/// The same numbers in another element type: rounded to nearest; floats to integers truncate towards zero; to `Bool`:
/// "not zero".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Convert {
    /// The wanted element type.
    pub dtype: DType,
}

impl Rules for Convert {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        Ok(vec![x[0].with_dtype(self.dtype)])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // Linear: the cotangent is converted back.
        Ok(vec![v.ct(0).convert(v.operand(0).dtype()).into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.op("stablehlo.convert", line);
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let ty = types[0].clone();
        let from = x[0].ty.dtype;
        let result = match (from.is_float(), ty.dtype.is_float()) {
            (true, true) => Array::from_floats(ty, x[0].floats().to_vec()),
            (false, true) => Array::from_floats(ty, x[0].ints().iter().map(|&a| a as f64).collect()),
            _ if ty.dtype == DType::Bool => {
                Array::from_fn(ty, |i| f64::from(u8::from(x[0].number(i) != 0.0)))
            }
            (true, false) => {
                let dtype = ty.dtype;
                Array::from_ints(ty, x[0].floats().iter().map(|&a| saturated(a, dtype)).collect())
            }
            (false, false) => Array::from_ints(ty, x[0].ints().to_vec()),
        };
        vec![result]
    }
}

/// Towards zero; what does not fit becomes the nearest integer that does, NaN becomes 0.
fn saturated(x: f64, dtype: DType) -> i64 {
    match dtype {
        DType::I32 => (x as i32).into(),
        DType::U32 => (x as u32).into(),
        DType::U8 => (x as u8).into(),
        _ => x as i64,
    }
}

/// The same bits read as another element type of the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BitcastConvert {
    /// The wanted element type.
    pub dtype: DType,
}

impl Rules for BitcastConvert {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        let fits =
            x[0].dtype.size() == self.dtype.size() && x[0].dtype != DType::Bool && self.dtype != DType::Bool;
        want!(fits, "wants element types of one size, not {} and {}", x[0].dtype, self.dtype);
        Ok(vec![x[0].with_dtype(self.dtype)])
    }
    fn vjp<'f>(&self, _: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Err(NoGradient("bits have no derivative; use `convert`, or `stop_gradient` before it"))
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.op("stablehlo.bitcast_convert", line);
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        vec![Array::from_host(&Host::from_bytes(types[0].clone(), x[0].to_host().bytes()))]
    }
}

impl<'f> Tensor<'f> {
    /// The same numbers in another element type; no node if it is the same.
    #[track_caller]
    pub fn convert(self, dtype: DType) -> Tensor<'f> {
        if self.dtype() == dtype { self } else { self.builder().push(Convert { dtype }, &[self])[0] }
    }

    /// The same bits as another element type of the same size.
    #[track_caller]
    pub fn bitcast_convert(self, dtype: DType) -> Tensor<'f> {
        if self.dtype() == dtype { self } else { self.builder().push(BitcastConvert { dtype }, &[self])[0] }
    }
}
