//! Comparisons, selection and clamping.

use super::elementwise::{Operand, with_scalars_broadcast};
use super::{Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::ir::Tensor;
use crate::text::{Line, Printer};
use crate::types::{DType, Type};

/// Elementwise comparison; the result is `bool`. Comparisons with NaN are false, but for `Ne`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Compare {
    /// Every direction.
    pub const ALL: [Compare; 6] =
        [Compare::Eq, Compare::Ne, Compare::Lt, Compare::Le, Compare::Gt, Compare::Ge];
}

impl Rules for Compare {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 2 && x[0] == x[1], "wants two operands of one type (only scalars are broadcast)");
        Ok(vec![x[0].with_dtype(DType::Bool)])
    }
    fn vjp<'f>(&self, _: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Ok(vec![Cotangent::None, Cotangent::None])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let direction = format!("{self:?}").to_uppercase();
        let dtype = line.operand_types[0].dtype;
        let kind = match dtype {
            DType::Bool => "UNSIGNED",
            dtype if dtype.is_float() => "FLOAT",
            dtype if dtype.is_unsigned() => "UNSIGNED",
            _ => "SIGNED",
        };
        let [a, b] = [&line.operands[0], &line.operands[1]];
        p.line(&format!(
            "{} = stablehlo.compare {direction}, {a}, {b}, {kind} : {}",
            line.result,
            line.signature()
        ));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        fn holds<T: PartialOrd>(compare: Compare, a: T, b: T) -> f64 {
            let holds = match compare {
                Compare::Eq => a == b,
                Compare::Ne => a != b,
                Compare::Lt => a < b,
                Compare::Le => a <= b,
                Compare::Gt => a > b,
                Compare::Ge => a >= b,
            };
            f64::from(u8::from(holds))
        }
        vec![Array::from_fn(types[0].clone(), |i| {
            if x[0].ty.dtype.is_float() {
                holds(*self, x[0].floats()[i], x[1].floats()[i])
            } else {
                holds(*self, x[0].ints()[i], x[1].ints()[i])
            }
        })]
    }
}

/// `predicate ? on_true : on_false`, elementwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Select;

impl Rules for Select {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 3, "wants a predicate and two operands");
        want!(x[1] == x[2], "wants two operands of one type (only scalars are broadcast)");
        want!(x[0] == x[1].with_dtype(DType::Bool), "wants a bool predicate of the operands' shape");
        Ok(vec![x[1].clone()])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // da = p ? ct : 0, db = p ? 0 : ct
        let (p, ct) = (v.operand(0), v.ct(0));
        let zero = ct.zeros_like();
        Ok(vec![Cotangent::None, p.select(ct, zero).into(), p.select(zero, ct).into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let types = [line.operand_types[0].mlir(), line.types[0].mlir()];
        p.line(&format!(
            "{} = stablehlo.select {} : {}",
            line.result,
            line.operands.join(", "),
            types.join(", ")
        ));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        let mut result = x[2].clone();
        for (i, &chosen) in x[0].ints().iter().enumerate() {
            if chosen != 0 {
                result.copy_element(i, x[1], i);
            }
        }
        vec![result]
    }
}

/// `min(max(x, low), high)`, elementwise, NaN if one is; operands (low, x, high) of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Clamp;

impl Rules for Clamp {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 3 && x[0] == x[1] && x[1] == x[2], "wants low, operand and high of one type");
        want!(x[1].dtype != DType::Bool, "does not exist for bool");
        Ok(vec![x[1].clone()])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // The cotangent goes to the operand that was chosen; high wins over low, as in min(max(x, low), high).
        let (low, x, high, ct) = (v.operand(0), v.operand(1), v.operand(2), v.ct(0));
        let zero = ct.zeros_like();
        let at_high = x.max(low).gt(high);
        let at_low = !at_high & x.lt(low);
        Ok(vec![
            at_low.select(ct, zero).into(),
            (at_high | at_low).select(zero, ct).into(),
            at_high.select(ct, zero).into(),
        ])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.same("stablehlo.clamp", line);
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let ty = types[0].clone();
        if ty.dtype.is_float() {
            let clamp = |low: f64, x: f64, high: f64| match low.is_nan() || x.is_nan() || high.is_nan() {
                true => f64::NAN,
                false => x.max(low).min(high),
            };
            let floats =
                (0..ty.elements()).map(|i| clamp(x[0].floats()[i], x[1].floats()[i], x[2].floats()[i]));
            return vec![Array::from_floats(ty.clone(), floats.collect())];
        }
        let ints = (0..ty.elements()).map(|i| x[1].ints()[i].max(x[0].ints()[i]).min(x[2].ints()[i]));
        vec![Array::from_ints(ty.clone(), ints.collect())]
    }
}

macro_rules! compare_methods {
    ($($method:ident $op:ident $doc:literal),* $(,)?) => {
        impl<'f> Tensor<'f> {
            $(#[doc = $doc]
            #[track_caller]
            pub fn $method(self, other: impl Operand<'f>) -> Tensor<'f> {
                self.builder().push(Compare::$op, &with_scalars_broadcast([self, other.beside(self)]))[0]
            })*
        }
    };
}

compare_methods! {
    eq Eq "Equal, elementwise.",
    ne Ne "Not equal, elementwise.",
    lt Lt "Less, elementwise.",
    le Le "Less or equal, elementwise.",
    gt Gt "Greater, elementwise.",
    ge Ge "Greater or equal, elementwise.",
}

impl<'f> Tensor<'f> {
    /// Elementwise choice by this bool tensor: `self ? on_true : on_false`.
    #[track_caller]
    pub fn select(self, on_true: Tensor<'f>, on_false: impl Operand<'f>) -> Tensor<'f> {
        let operands = with_scalars_broadcast([self, on_true, on_false.beside(on_true)]);
        self.builder().push(Select, &operands)[0]
    }

    /// `min(max(self, low), high)`.
    #[track_caller]
    pub fn clamp(self, low: impl Operand<'f>, high: impl Operand<'f>) -> Tensor<'f> {
        let operands = with_scalars_broadcast([low.beside(self), self, high.beside(self)]);
        self.builder().push(Clamp, &operands)[0]
    }

    /// True where the number is neither infinite nor NaN.
    #[track_caller]
    pub fn is_finite(self) -> Tensor<'f> {
        self.abs().lt(f64::INFINITY)
    }
}
