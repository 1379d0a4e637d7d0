//! The operations. Each is an attribute struct (or enum) that implements `Rules` beside its builder, in the file of
//! its family: shape, gradient, text and meaning of one op stand together. Names and attributes are StableHLO's.
//!
//! **Adding an op**: first ask whether existing ops express it. If not: attribute struct and builder in the family's
//! file, one word in the list below; the compiler then asks for the four rules. Then one row in `tests/engine/ops.rs`, and
//! `BLESS=1 cargo test -p tests --test engine stablehlo`, reading the difference.

pub(crate) mod collective;
pub(crate) mod compare;
pub(crate) mod control;
pub(crate) mod convert;
pub(crate) mod dot;
pub(crate) mod elementwise;
pub(crate) mod host_call;
pub(crate) mod index;
pub(crate) mod kernel;
pub(crate) mod leaf;
pub(crate) mod random;
pub(crate) mod reduce;
pub(crate) mod scan;
pub(crate) mod shape;
pub(crate) mod sort;

use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::ir::Body;
use crate::text::{Line, Printer};
use crate::types::Type;
use std::fmt;

pub use collective::{AllReduce, LayoutConstraint, ShardingConstraint};
pub use compare::{Clamp, Compare, Select};
pub use control::{Call, Cond, Named, OptimizationBarrier, StopGradient, While};
pub use convert::{BitcastConvert, Convert};
pub use dot::DotGeneral;
pub use elementwise::{Binary, Unary};
pub use host_call::HostCall;
pub use index::{DynamicSlice, DynamicUpdateSlice, Gather, ScatterAdd};
pub use kernel::{CustomCall, KernelCall};
pub use leaf::{Constant, Iota, Parameter};
pub use reduce::{ArgReduce, CumulativeSum, Reduce};
pub use scan::Scan;
pub use shape::{BroadcastInDim, Concatenate, Pad, Reshape, Reverse, Slice, Transpose};
pub use sort::Sort;

/// Why operands do not fit an operation; the message names what was found and what was wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeError(pub String);

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for ShapeError {
    fn from(reason: String) -> ShapeError {
        ShapeError(reason)
    }
}

/// Returns a [`ShapeError`] unless the condition holds.
macro_rules! want {
    ($condition:expr, $($reason:tt)*) => {
        if !$condition {
            return Err($crate::ops::ShapeError(format!($($reason)*)));
        }
    };
}
pub(crate) use want;

/// The four rules of an operation. No method has a default: an op without an answer does not compile.
pub(crate) trait Rules {
    /// The result types, or why the operands do not fit.
    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, ShapeError>;
    /// One cotangent for each operand.
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient>;
    /// StableHLO text.
    fn print(&self, p: &mut Printer, line: &Line);
    /// The meaning, in `f64` and `i64`.
    fn eval(&self, evaluator: &Evaluator, operands: &[&Array], types: &[Type]) -> Vec<Array>;
}

/// Ops that hold bodies.
pub(crate) trait Regions: Sized {
    /// The bodies, in a fixed order.
    fn bodies(&self) -> Vec<&Body>;
    /// The same op with other bodies.
    fn with_bodies(&self, bodies: Vec<Body>) -> Self;
}

/// Whether equal nodes may be merged into one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Merge {
    Pure,
    Never,
}

macro_rules! ops {
    ($($name:ident $merge:ident),* ; regions $($region:ident),* $(,)?) => {
        /// Every operation. The one open variant is [`Op::KernelCall`].
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Op { $($name($name),)* $($region($region),)* }

        impl Op {
            pub(crate) fn rules(&self) -> &dyn Rules {
                match self { $(Op::$name(op) => op,)* $(Op::$region(op) => op,)* }
            }

            /// Equal pure nodes are one node.
            pub(crate) fn is_pure(&self) -> bool {
                let merge = match self { $(Op::$name(_) => Merge::$merge,)* $(Op::$region(_) => Merge::Pure,)* };
                merge == Merge::Pure
            }

            /// The bodies of a region op; none for others.
            pub fn bodies(&self) -> Vec<&Body> {
                match self { $(Op::$name(_) => Vec::new(),)* $(Op::$region(op) => op.bodies(),)* }
            }

            pub(crate) fn with_bodies(&self, bodies: Vec<Body>) -> Op {
                match self { $(Op::$name(_) => self.clone(),)* $(Op::$region(op) => op.with_bodies(bodies).into(),)* }
            }
        }

        $(impl From<$name> for Op { fn from(op: $name) -> Op { Op::$name(op) } })*
        $(impl From<$region> for Op { fn from(op: $region) -> Op { Op::$region(op) } })*
    };
}

ops! {
    Parameter Never, Constant Pure, Iota Pure,
    Unary Pure, Binary Pure, Compare Pure, Select Pure, Clamp Pure, Convert Pure, BitcastConvert Pure,
    Reduce Pure, ArgReduce Pure, CumulativeSum Pure, Sort Pure,
    BroadcastInDim Pure, Reshape Pure, Transpose Pure, Slice Pure, Pad Pure, Concatenate Pure, Reverse Pure,
    DynamicSlice Pure, DynamicUpdateSlice Pure, Gather Pure, ScatterAdd Pure,
    DotGeneral Pure,
    OptimizationBarrier Never, StopGradient Pure, Named Pure,
    AllReduce Pure, ShardingConstraint Pure, LayoutConstraint Never,
    KernelCall Pure, CustomCall Never, HostCall Pure;
    regions Scan, While, Cond, Call
}

impl Op {
    /// The name in messages and dumps.
    pub fn name(&self) -> String {
        match self {
            Op::Unary(op) => op.name().to_owned(),
            Op::Binary(op) => op.name().to_owned(),
            Op::Compare(_) => "compare".to_owned(),
            Op::KernelCall(op) => op.0.name(),
            Op::CustomCall(op) => format!("custom_call @{}", op.target),
            Op::HostCall(op) => format!("host_call @{}", op.name),
            other => {
                // `DotGeneral { .. }` -> `dot_general`: the struct's name in snake case is StableHLO's name.
                let debug = format!("{other:?}");
                let camel = debug.split(['(', ' ', '{']).next().unwrap_or("op");
                let mut name = String::new();
                for letter in camel.chars() {
                    if letter.is_uppercase() && !name.is_empty() {
                        name.push('_');
                    }
                    name.extend(letter.to_lowercase());
                }
                name
            }
        }
    }
}
