//! Elementwise arithmetic, and the operators that make tensors read like numbers. A scalar operand is broadcast;
//! nothing else is.

use super::{Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::ir::Tensor;
use crate::text::{Line, Printer};
use crate::types::{DType, Type};

/// One operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Unary {
    Neg,
    Abs,
    Sign,
    Exp,
    Expm1,
    Log,
    Log1p,
    Tanh,
    Logistic,
    Sin,
    Cos,
    Sqrt,
    Rsqrt,
    Floor,
    Ceil,
    Round,
    Not,
}

impl Unary {
    /// Every unary op, for tests that must miss none.
    pub const ALL: [Unary; 17] = [
        Unary::Neg,
        Unary::Abs,
        Unary::Sign,
        Unary::Exp,
        Unary::Expm1,
        Unary::Log,
        Unary::Log1p,
        Unary::Tanh,
        Unary::Logistic,
        Unary::Sin,
        Unary::Cos,
        Unary::Sqrt,
        Unary::Rsqrt,
        Unary::Floor,
        Unary::Ceil,
        Unary::Round,
        Unary::Not,
    ];

    /// StableHLO's name.
    pub fn name(self) -> &'static str {
        match self {
            Unary::Neg => "negate",
            Unary::Abs => "abs",
            Unary::Sign => "sign",
            Unary::Exp => "exponential",
            Unary::Expm1 => "exponential_minus_one",
            Unary::Log => "log",
            Unary::Log1p => "log_plus_one",
            Unary::Tanh => "tanh",
            Unary::Logistic => "logistic",
            Unary::Sin => "sine",
            Unary::Cos => "cosine",
            Unary::Sqrt => "sqrt",
            Unary::Rsqrt => "rsqrt",
            Unary::Floor => "floor",
            Unary::Ceil => "ceil",
            Unary::Round => "round_nearest_even",
            Unary::Not => "not",
        }
    }
}

impl Rules for Unary {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        let dtype = x[0].dtype;
        match self {
            Unary::Not => want!(!dtype.is_float(), "wants integers or bool"),
            Unary::Neg | Unary::Abs | Unary::Sign => {
                want!(
                    dtype.is_float() || (dtype.is_integer() && !dtype.is_unsigned()),
                    "wants floats or signed integers"
                )
            }
            _ => want!(dtype.is_float(), "wants floats"),
        }
        Ok(vec![x[0].clone()])
    }

    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        let (x, y, ct) = (v.operand(0), v.result(0), v.ct(0));
        let dx = match self {
            Unary::Neg => -ct,                       // -1
            Unary::Abs => ct * x.sign(),             // sign(x)
            Unary::Exp => ct * y,                    // e^x
            Unary::Expm1 => ct * (y + 1.0),          // e^x
            Unary::Log => ct / x,                    // 1/x
            Unary::Log1p => ct / (x + 1.0),          // 1/(1+x)
            Unary::Tanh => ct * (1.0 - y * y),       // 1 - tanh^2
            Unary::Logistic => ct * (y * (1.0 - y)), // s (1-s)
            Unary::Sin => ct * x.cos(),              // cos x
            Unary::Cos => -(ct * x.sin()),           // -sin x
            Unary::Sqrt => ct * 0.5 / y,             // 1/(2 sqrt x)
            Unary::Rsqrt => ct * (y * y * y) * -0.5, // -x^(-3/2)/2
            // Piecewise constant: the gradient is zero wherever it exists.
            Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Round | Unary::Not => {
                return Ok(vec![Cotangent::None]);
            }
        };
        Ok(vec![dx.into()])
    }

    fn print(&self, p: &mut Printer, line: &Line) {
        p.same(&format!("stablehlo.{}", self.name()), line);
    }

    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let ty = types[0].clone();
        if !ty.dtype.is_float() {
            let f = |a: i64| match self {
                Unary::Neg => a.wrapping_neg(),
                Unary::Abs => a.wrapping_abs(),
                Unary::Sign => a.signum(),
                Unary::Not if ty.dtype == DType::Bool => 1 - a,
                Unary::Not => !a,
                other => unreachable!("{other:?} on integers"),
            };
            return vec![Array::from_ints(ty.clone(), x[0].ints().iter().map(|&a| f(a)).collect())];
        }
        let f = |a: f64| match self {
            Unary::Neg => -a,
            Unary::Abs => a.abs(),
            Unary::Sign if a == 0.0 || a.is_nan() => a,
            Unary::Sign => a.signum(),
            Unary::Exp => a.exp(),
            Unary::Expm1 => a.exp_m1(),
            Unary::Log => a.ln(),
            Unary::Log1p => a.ln_1p(),
            Unary::Tanh => a.tanh(),
            Unary::Logistic => 1.0 / (1.0 + (-a).exp()),
            Unary::Sin => a.sin(),
            Unary::Cos => a.cos(),
            Unary::Sqrt => a.sqrt(),
            Unary::Rsqrt => 1.0 / a.sqrt(),
            Unary::Floor => a.floor(),
            Unary::Ceil => a.ceil(),
            Unary::Round => a.round_ties_even(),
            Unary::Not => unreachable!("not on floats"),
        };
        vec![Array::from_floats(ty, x[0].floats().iter().map(|&a| f(a)).collect())]
    }
}

/// Two operands of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Max,
    Min,
    Pow,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRightLogical,
    ShiftRightArithmetic,
}

impl Binary {
    /// Every binary op, for tests that must miss none.
    pub const ALL: [Binary; 14] = [
        Binary::Add,
        Binary::Sub,
        Binary::Mul,
        Binary::Div,
        Binary::Rem,
        Binary::Max,
        Binary::Min,
        Binary::Pow,
        Binary::And,
        Binary::Or,
        Binary::Xor,
        Binary::ShiftLeft,
        Binary::ShiftRightLogical,
        Binary::ShiftRightArithmetic,
    ];

    /// StableHLO's name.
    pub fn name(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Sub => "subtract",
            Binary::Mul => "multiply",
            Binary::Div => "divide",
            Binary::Rem => "remainder",
            Binary::Max => "maximum",
            Binary::Min => "minimum",
            Binary::Pow => "power",
            Binary::And => "and",
            Binary::Or => "or",
            Binary::Xor => "xor",
            Binary::ShiftLeft => "shift_left",
            Binary::ShiftRightLogical => "shift_right_logical",
            Binary::ShiftRightArithmetic => "shift_right_arithmetic",
        }
    }

    /// Which element types it takes: (floats, integers, bool).
    fn takes(self) -> (bool, bool, bool) {
        match self {
            Binary::Add | Binary::Mul | Binary::Sub | Binary::Div | Binary::Rem => (true, true, false),
            Binary::Max | Binary::Min => (true, true, true),
            Binary::Pow => (true, false, false),
            Binary::And | Binary::Or | Binary::Xor => (false, true, true),
            Binary::ShiftLeft | Binary::ShiftRightLogical | Binary::ShiftRightArithmetic => {
                (false, true, false)
            }
        }
    }
}

impl Rules for Binary {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 2, "wants two operands");
        want!(x[0] == x[1], "wants two operands of one type (only scalars are broadcast)");
        let (floats, integers, bools) = self.takes();
        let dtype = x[0].dtype;
        let fits = (dtype.is_float() && floats)
            || (dtype.is_integer() && integers)
            || (dtype == DType::Bool && bools);
        want!(fits, "does not exist for {dtype}");
        Ok(vec![x[0].clone()])
    }

    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        let (a, b, y, ct) = (v.operand(0), v.operand(1), v.result(0), v.ct(0));
        // Both operands of a tie get half.
        let half_at_ties = |first: Tensor<'f>, second: Tensor<'f>| {
            let tie = first.eq(second).select(ct * 0.5, ct.zeros_like());
            first.gt(second).select(ct, tie)
        };
        let both = match self {
            Binary::Add => [ct, ct],
            Binary::Sub => [ct, -ct],
            Binary::Mul => [ct * b, ct * a],
            Binary::Div => [ct / b, -(ct * y / b)],
            Binary::Rem => {
                // a rem b = a - b trunc(a/b), trunc constant almost everywhere
                let quotient = a / b;
                [ct, -(ct * quotient.sign() * quotient.abs().floor())]
            }
            Binary::Max => [half_at_ties(a, b), half_at_ties(b, a)],
            Binary::Min => [half_at_ties(b, a), half_at_ties(a, b)],
            Binary::Pow => {
                // d a^b = b a^(b-1) da + a^b ln a db. The power 0 is 1 whatever the base; 0 has the same power for every
                // exponent above 0; a base below 0 has powers at integers only, so no derivative by the exponent: NaN.
                let da = b.eq(0.0).select(b.zeros_like(), b * a.pow(b - 1.0));
                let log = a.eq(0.0).select(a.full_like(1.0), a).log();
                [ct * da, ct * y * log]
            }
            Binary::And
            | Binary::Or
            | Binary::Xor
            | Binary::ShiftLeft
            | Binary::ShiftRightLogical
            | Binary::ShiftRightArithmetic => return Ok(vec![Cotangent::None, Cotangent::None]),
        };
        Ok(both.into_iter().map(Cotangent::from).collect())
    }

    fn print(&self, p: &mut Printer, line: &Line) {
        p.same(&format!("stablehlo.{}", self.name()), line);
    }

    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let ty = types[0].clone();
        if ty.dtype.is_float() {
            let f = |a: f64, b: f64| match self {
                Binary::Add => a + b,
                Binary::Sub => a - b,
                Binary::Mul => a * b,
                Binary::Div => a / b,
                Binary::Rem => a % b,
                Binary::Max if a.is_nan() || b.is_nan() => f64::NAN,
                Binary::Max => a.max(b),
                Binary::Min if a.is_nan() || b.is_nan() => f64::NAN,
                Binary::Min => a.min(b),
                Binary::Pow => a.powf(b),
                other => unreachable!("{other:?} on floats"),
            };
            let floats = x[0].floats().iter().zip(x[1].floats()).map(|(&a, &b)| f(a, b)).collect();
            return vec![Array::from_floats(ty, floats)];
        }
        let bits = 8 * ty.dtype.size() as i64;
        let shift = |b: i64| (0..bits).contains(&b).then_some(b as u32);
        let f = |a: i64, b: i64| match self {
            Binary::Add => a.wrapping_add(b),
            Binary::Sub => a.wrapping_sub(b),
            Binary::Mul => a.wrapping_mul(b),
            // Division by zero is defined by no standard; devices give all ones.
            Binary::Div if b == 0 => -1,
            Binary::Div => a.wrapping_div(b),
            Binary::Rem if b == 0 => a,
            Binary::Rem => a.wrapping_rem(b),
            Binary::Max => a.max(b),
            Binary::Min => a.min(b),
            Binary::And => a & b,
            Binary::Or => a | b,
            Binary::Xor => a ^ b,
            Binary::ShiftLeft => shift(b).map_or(0, |b| a << b),
            Binary::ShiftRightLogical => {
                let unsigned = if bits == 64 { a as u64 } else { a as u64 & ((1 << bits) - 1) };
                shift(b).map_or(0, |b| (unsigned >> b) as i64)
            }
            Binary::ShiftRightArithmetic => {
                let signed = if bits == 32 { i64::from(a as i32) } else { a };
                let signed = if ty.dtype == DType::U8 { i64::from(a as i8) } else { signed };
                signed >> shift(b).unwrap_or(63)
            }
            Binary::Pow => unreachable!("pow on integers"),
        };
        let ints = x[0].ints().iter().zip(x[1].ints()).map(|(&a, &b)| f(a, b)).collect();
        vec![Array::from_ints(ty, ints)]
    }
}

macro_rules! unary_methods {
    ($($method:ident $op:ident $doc:literal),* $(,)?) => {
        impl<'f> Tensor<'f> {
            $(#[doc = $doc]
            #[track_caller]
            pub fn $method(self) -> Tensor<'f> {
                self.builder().push(Unary::$op, &[self])[0]
            })*
        }
    };
}

unary_methods! {
    abs Abs "Absolute value.",
    sign Sign "-1, 0 or 1.",
    exp Exp "e^x.",
    expm1 Expm1 "e^x - 1, accurate near 0.",
    log Log "Natural logarithm.",
    log1p Log1p "ln(1 + x), accurate near 0.",
    tanh Tanh "Hyperbolic tangent.",
    logistic Logistic "1 / (1 + e^-x).",
    sin Sin "Sine.",
    cos Cos "Cosine.",
    sqrt Sqrt "Square root.",
    rsqrt Rsqrt "1 / sqrt(x).",
    floor Floor "Largest integer not above.",
    ceil Ceil "Smallest integer not below.",
    round Round "Nearest integer, ties to even.",
}

/// The second operand of a binary op: a tensor, or a number that takes the first one's type.
pub trait Operand<'f> {
    /// The operand as a tensor beside `other`.
    #[track_caller]
    fn beside(self, other: Tensor<'f>) -> Tensor<'f>;
}

impl<'f> Operand<'f> for Tensor<'f> {
    #[track_caller]
    fn beside(self, _: Tensor<'f>) -> Tensor<'f> {
        self
    }
}

impl<'f> Operand<'f> for f64 {
    #[track_caller]
    fn beside(self, other: Tensor<'f>) -> Tensor<'f> {
        other.full_like(self)
    }
}

impl<'f> Operand<'f> for i32 {
    #[track_caller]
    fn beside(self, other: Tensor<'f>) -> Tensor<'f> {
        other.full_like(self.into())
    }
}

impl<'f> Operand<'f> for u32 {
    #[track_caller]
    fn beside(self, other: Tensor<'f>) -> Tensor<'f> {
        other.full_like(self.into())
    }
}

/// Operands with the scalars broadcast to the shape of those that are none.
#[track_caller]
pub(crate) fn with_scalars_broadcast<'f, const N: usize>(mut operands: [Tensor<'f>; N]) -> [Tensor<'f>; N] {
    if let Some(shape) = operands.iter().map(|operand| operand.shape()).find(|shape| !shape.is_empty()) {
        for operand in operands.iter_mut().filter(|operand| operand.rank() == 0) {
            *operand = operand.broadcast_in_dim(shape.clone(), &[]);
        }
    }
    operands
}

#[track_caller]
fn binary<'f>(op: Binary, a: Tensor<'f>, b: Tensor<'f>) -> Tensor<'f> {
    a.builder().push(op, &with_scalars_broadcast([a, b]))[0]
}

macro_rules! binary_methods {
    ($($method:ident $op:ident $doc:literal),* $(,)?) => {
        impl<'f> Tensor<'f> {
            $(#[doc = $doc]
            #[track_caller]
            pub fn $method(self, other: impl Operand<'f>) -> Tensor<'f> {
                binary(Binary::$op, self, other.beside(self))
            })*
        }
    };
}

binary_methods! {
    max Max "The larger of two; NaN if either is.",
    min Min "The smaller of two; NaN if either is.",
    pow Pow "self to the power `other`.",
    shift_left ShiftLeft "Bits moved up; 0 if moved out.",
    shift_right_logical ShiftRightLogical "Bits moved down, zeros fed in.",
    shift_right_arithmetic ShiftRightArithmetic "Bits moved down, the sign fed in.",
}

macro_rules! operators {
    ($($trait:ident $method:ident $op:ident),* $(,)?) => { $(
        impl<'f> std::ops::$trait for Tensor<'f> {
            type Output = Tensor<'f>;
            #[track_caller]
            fn $method(self, other: Tensor<'f>) -> Tensor<'f> {
                binary(Binary::$op, self, other)
            }
        }
        operators!(number $trait $method $op f64);
        operators!(number $trait $method $op i32);
        operators!(number $trait $method $op u32);
    )* };
    (number $trait:ident $method:ident $op:ident $number:ty) => {
        impl<'f> std::ops::$trait<$number> for Tensor<'f> {
            type Output = Tensor<'f>;
            #[track_caller]
            fn $method(self, other: $number) -> Tensor<'f> {
                binary(Binary::$op, self, other.beside(self))
            }
        }
        impl<'f> std::ops::$trait<Tensor<'f>> for $number {
            type Output = Tensor<'f>;
            #[track_caller]
            fn $method(self, other: Tensor<'f>) -> Tensor<'f> {
                binary(Binary::$op, self.beside(other), other)
            }
        }
    };
}

operators! { Add add Add, Sub sub Sub, Mul mul Mul, Div div Div, Rem rem Rem, BitAnd bitand And, BitOr bitor Or, BitXor bitxor Xor }

impl<'f> std::ops::Neg for Tensor<'f> {
    type Output = Tensor<'f>;
    #[track_caller]
    fn neg(self) -> Tensor<'f> {
        self.builder().push(Unary::Neg, &[self])[0]
    }
}

impl<'f> std::ops::Not for Tensor<'f> {
    type Output = Tensor<'f>;
    #[track_caller]
    fn not(self) -> Tensor<'f> {
        self.builder().push(Unary::Not, &[self])[0]
    }
}
