//! Reductions over axes, arg-max, and running sums.

use super::{Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::ir::Tensor;
use crate::text::{Line, Printer};
use crate::types::{DType, Type, strides, unravel};

/// The monoid of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Reduction {
    Sum,
    Prod,
    Max,
    Min,
}

impl Reduction {
    pub(crate) fn combiner(self) -> &'static str {
        match self {
            Reduction::Sum => "stablehlo.add",
            Reduction::Prod => "stablehlo.multiply",
            Reduction::Max => "stablehlo.maximum",
            Reduction::Min => "stablehlo.minimum",
        }
    }

    /// The neutral element in StableHLO text.
    pub(crate) fn neutral(self, dtype: DType) -> &'static str {
        let one_bits = match dtype {
            DType::F64 => "0x3FF0000000000000",
            DType::F32 => "0x3F800000",
            DType::Bf16 => "0x3F80",
            DType::F16 => "0x3C00",
            _ => "1",
        };
        match (self, dtype) {
            (Reduction::Sum, DType::Bool) => "false",
            (Reduction::Sum, dtype) if dtype.is_float() => "0.0",
            (Reduction::Sum, _) => "0",
            (Reduction::Prod, _) => one_bits,
            (Reduction::Max, _) => lowest(dtype),
            (Reduction::Min, _) => highest(dtype),
        }
    }

    fn fold(self, a: f64, b: f64) -> f64 {
        match self {
            Reduction::Sum => a + b,
            Reduction::Prod => a * b,
            Reduction::Max if a.is_nan() || b.is_nan() => f64::NAN,
            Reduction::Max => a.max(b),
            Reduction::Min if a.is_nan() || b.is_nan() => f64::NAN,
            Reduction::Min => a.min(b),
        }
    }

    fn fold_ints(self, a: i64, b: i64) -> i64 {
        match self {
            Reduction::Sum => a.wrapping_add(b),
            Reduction::Prod => a.wrapping_mul(b),
            Reduction::Max => a.max(b),
            Reduction::Min => a.min(b),
        }
    }
}

fn lowest(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "0xFFF0000000000000",
        DType::F32 => "0xFF800000",
        DType::Bf16 => "0xFF80",
        DType::F16 => "0xFC00",
        DType::I32 => "-2147483648",
        DType::I64 => "-9223372036854775808",
        DType::U32 | DType::U8 => "0",
        DType::Bool => "false",
    }
}

fn highest(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "0x7FF0000000000000",
        DType::F32 => "0x7F800000",
        DType::Bf16 => "0x7F80",
        DType::F16 => "0x7C00",
        DType::I32 => "2147483647",
        DType::I64 => "9223372036854775807",
        DType::U32 => "4294967295",
        DType::U8 => "255",
        DType::Bool => "true",
    }
}

fn without_axes(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    shape.iter().enumerate().filter(|(axis, _)| !axes.contains(axis)).map(|(_, &extent)| extent).collect()
}

/// For each element of the operand, the element of the result (without `axes`) that it falls into.
fn target(shape: &[usize], axes: &[usize]) -> impl Fn(usize) -> usize + use<> {
    let kept = without_axes(shape, axes);
    let mut kept_strides = strides(&kept).into_iter();
    let step: Vec<usize> = (0..shape.len())
        .map(|axis| if axes.contains(&axis) { 0 } else { kept_strides.next().unwrap_or(0) })
        .collect();
    let shape = shape.to_vec();
    move |i| unravel(i, &shape).iter().zip(&step).map(|(index, step)| index * step).sum()
}

/// Reduces over `axes`, which disappear from the shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reduce {
    /// What is done with the elements.
    pub reduction: Reduction,
    /// The axes, ascending.
    pub axes: Vec<usize>,
}

impl Rules for Reduce {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        want!(
            self.axes.is_sorted_by(|a, b| a < b),
            "wants ascending axes without repetition, not {:?}",
            self.axes
        );
        want!(self.axes.iter().all(|&axis| axis < x[0].rank()), "axes {:?} do not exist", self.axes);
        let arithmetic = matches!(self.reduction, Reduction::Sum | Reduction::Prod);
        want!(!(arithmetic && x[0].dtype == DType::Bool), "bools have no sum or product; convert them");
        Ok(vec![x[0].with_shape(without_axes(&x[0].shape, &self.axes))])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        let (x, y, ct) = (v.operand(0), v.result(0), v.ct(0));
        let kept: Vec<usize> = (0..x.rank()).filter(|axis| !self.axes.contains(axis)).collect();
        let spread = |t: Tensor<'f>| t.broadcast_in_dim(x.shape(), &kept);
        let dx = match self.reduction {
            // every element contributes with weight 1
            Reduction::Sum => spread(ct),
            // the elements that reach the extreme share the cotangent equally
            Reduction::Max | Reduction::Min => {
                let chosen = x.eq(spread(y));
                let ones = chosen.convert(x.dtype());
                chosen.select(spread(ct / ones.sum(&self.axes)), x.zeros_like())
            }
            // d prod / dx_i = the product of the others, by products of the prefix and the suffix: right with zeros too
            Reduction::Prod => {
                let order: Vec<usize> = kept.iter().chain(&self.axes).copied().collect();
                let folded: usize = self.axes.iter().map(|&axis| x.dim(axis)).product();
                let rows: usize = kept.iter().map(|&axis| x.dim(axis)).product();
                let flat = x.transpose(&order).reshape([rows, folded]); // [rows, folded]
                let one = flat.builder().full(flat.ty().with_shape([rows]), 1.0);
                let columns: Vec<Tensor<'f>> =
                    (0..folded).map(|i| flat.slice_axis(1, i, i + 1).reshape([rows])).collect();
                let prefix: Vec<Tensor<'f>> = scan_products(one, columns.iter().copied());
                let mut suffix: Vec<Tensor<'f>> = scan_products(one, columns.iter().rev().copied());
                suffix.reverse();
                let others: Vec<Tensor<'f>> =
                    prefix.iter().zip(&suffix).map(|(&a, &b)| (a * b).reshape([rows, 1])).collect();
                let permuted: Vec<usize> = order.iter().map(|&axis| x.dim(axis)).collect();
                let mut back = vec![0; order.len()];
                order.iter().enumerate().for_each(|(place, &axis)| back[axis] = place);
                let others = Tensor::concatenate(&others, 1).reshape(permuted).transpose(&back);
                spread(ct) * others
            }
        };
        Ok(vec![dx.into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let dtype = line.types[0].dtype;
        let init = p.fresh();
        let scalar = Type::scalar(dtype).mlir();
        p.line(&format!("{init} = stablehlo.constant dense<{}> : {scalar}", self.reduction.neutral(dtype)));
        p.line(&format!(
            "{} = stablehlo.reduce({} init: {init}) applies {} across dimensions = {:?} : ({}, {scalar}) -> {}",
            line.result,
            line.operands[0],
            self.reduction.combiner(),
            self.axes,
            line.operand_types[0].mlir(),
            line.types[0].mlir(),
        ));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let ty = types[0].clone();
        let into = target(&x[0].ty.shape, &self.axes);
        if ty.dtype.is_float() {
            let neutral = match self.reduction {
                Reduction::Sum => 0.0,
                Reduction::Prod => 1.0,
                Reduction::Max => f64::NEG_INFINITY,
                Reduction::Min => f64::INFINITY,
            };
            let mut folded = vec![neutral; ty.elements()];
            for (i, &value) in x[0].floats().iter().enumerate() {
                folded[into(i)] = self.reduction.fold(folded[into(i)], value);
            }
            return vec![Array::from_floats(ty, folded)];
        }
        let neutral = match self.reduction {
            Reduction::Sum => 0,
            Reduction::Prod => 1,
            Reduction::Max => lowest(ty.dtype).parse().unwrap_or(0),
            Reduction::Min => highest(ty.dtype).parse().unwrap_or(1),
        };
        let mut folded = vec![neutral; ty.elements()];
        for (i, &value) in x[0].ints().iter().enumerate() {
            folded[into(i)] = self.reduction.fold_ints(folded[into(i)], value);
        }
        vec![Array::from_ints(ty, folded)]
    }
}

/// Products of everything before each element.
fn scan_products<'f>(one: Tensor<'f>, columns: impl Iterator<Item = Tensor<'f>>) -> Vec<Tensor<'f>> {
    columns
        .scan(one, |product, column| {
            let before = *product;
            *product = before * column;
            Some(before)
        })
        .collect()
}

/// Index of the largest element along an axis, `i32`; the lowest index wins a tie, and NaN counts as largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArgReduce {
    /// The axis that disappears.
    pub axis: usize,
}

impl Rules for ArgReduce {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        want!(self.axis < x[0].rank(), "axis {} does not exist", self.axis);
        want!(x[0].shape[self.axis] > 0, "wants at least one element on axis {}", self.axis);
        want!(x[0].dtype != DType::Bool, "wants numbers");
        Ok(vec![Type::i32(without_axes(&x[0].shape, &[self.axis]))])
    }
    fn vjp<'f>(&self, _: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Ok(vec![Cotangent::None])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let x = &line.operand_types[0];
        let (scalar, index) = (Type::scalar(x.dtype).mlir(), Type::scalar(DType::I32).mlir());
        let ids = x.with_dtype(DType::I32).mlir();
        let [iota, low, zero, pair] = [p.fresh(), p.fresh(), p.fresh(), p.fresh()];
        p.line(&format!("{iota} = stablehlo.iota dim = {} : {ids}", self.axis));
        p.line(&format!("{low} = stablehlo.constant dense<{}> : {scalar}", lowest(x.dtype)));
        p.line(&format!("{zero} = stablehlo.constant dense<0> : {index}"));
        p.line(&format!("{pair}:2 = stablehlo.reduce({} init: {low}), ({iota} init: {zero}) across dimensions = [{}] : ({}, {ids}, {scalar}, {index}) -> ({}, {})",
            line.operands[0], self.axis, x.mlir(), line.types[0].with_dtype(x.dtype).mlir(), line.types[0].mlir()));
        let kind = if x.dtype.is_float() {
            "FLOAT"
        } else if x.dtype.is_unsigned() {
            "UNSIGNED"
        } else {
            "SIGNED"
        };
        // a wins if it is larger (or NaN), or equal with the lower index
        p.line(&format!(" reducer(%_a: {scalar}, %_b: {scalar}) (%_i: {index}, %_j: {index}) {{"));
        p.indented(|p| {
            p.line(&format!(
                "%_gt = stablehlo.compare GT, %_a, %_b, {kind} : ({scalar}, {scalar}) -> tensor<i1>"
            ));
            p.line(&format!(
                "%_nan = stablehlo.compare NE, %_a, %_a, {kind} : ({scalar}, {scalar}) -> tensor<i1>"
            ));
            p.line("%_wins = stablehlo.or %_gt, %_nan : tensor<i1>");
            p.line(&format!(
                "%_eq = stablehlo.compare EQ, %_a, %_b, {kind} : ({scalar}, {scalar}) -> tensor<i1>"
            ));
            p.line(&format!(
                "%_first = stablehlo.compare LT, %_i, %_j, SIGNED : ({index}, {index}) -> tensor<i1>"
            ));
            p.line("%_tie = stablehlo.and %_eq, %_first : tensor<i1>");
            p.line("%_index = stablehlo.or %_wins, %_tie : tensor<i1>");
            p.line(&format!("%_v = stablehlo.select %_wins, %_a, %_b : tensor<i1>, {scalar}"));
            p.line(&format!("%_k = stablehlo.select %_index, %_i, %_j : tensor<i1>, {index}"));
            p.line(&format!("stablehlo.return %_v, %_k : {scalar}, {index}"));
        });
        p.line("}");
        p.alias(line, &format!("{pair}#1"));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let shape = &x[0].ty.shape;
        let into = target(shape, &[self.axis]);
        let mut best: Vec<Option<usize>> = vec![None; types[0].elements()];
        for i in 0..x[0].ty.elements() {
            let place = &mut best[into(i)];
            if place.is_none_or(|top| x[0].larger(i, top)) {
                *place = Some(i);
            }
        }
        let index = |i: usize| unravel(i, shape)[self.axis] as f64;
        vec![Array::from_fn(types[0].clone(), |i| best[i].map_or(0.0, index))]
    }
}

/// Which end a running sum starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From index 0 upwards.
    Forward,
    /// From the last index downwards.
    Reverse,
}

impl Direction {
    /// The other one.
    pub fn flipped(self) -> Direction {
        match self {
            Direction::Forward => Direction::Reverse,
            Direction::Reverse => Direction::Forward,
        }
    }
}

/// Running sum along one axis; each element includes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CumulativeSum {
    /// The axis.
    pub axis: usize,
    /// Where it starts.
    pub direction: Direction,
}

impl Rules for CumulativeSum {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        want!(self.axis < x[0].rank(), "axis {} does not exist", self.axis);
        want!(x[0].dtype != DType::Bool, "bools have no sum; convert them");
        Ok(vec![x[0].clone()])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // x_i is in every sum from i on: the running sum of the cotangent from the other end
        Ok(vec![v.ct(0).cumulative_sum(self.axis, self.direction.flipped()).into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        // A window as long as the axis, padded on the side where the sum starts; XLA turns it into a blocked scan.
        let ty = &line.types[0];
        let scalar = Type::scalar(ty.dtype).mlir();
        let rank = ty.rank();
        let list = |f: &dyn Fn(usize) -> String| (0..rank).map(f).collect::<Vec<_>>().join(", ");
        let before = ty.shape[self.axis].saturating_sub(1);
        let window =
            list(&|axis| if axis == self.axis { ty.shape[axis].max(1).to_string() } else { "1".into() });
        let padding = list(&|axis| match (axis == self.axis, self.direction) {
            (true, Direction::Forward) => format!("[{before}, 0]"),
            (true, Direction::Reverse) => format!("[0, {before}]"),
            (false, _) => "[0, 0]".into(),
        });
        let ones = list(&|_| "1".into());
        let zero = p.fresh();
        p.line(&format!(
            "{zero} = stablehlo.constant dense<{}> : {scalar}",
            Reduction::Sum.neutral(ty.dtype)
        ));
        p.line(&format!(
            "{} = \"stablehlo.reduce_window\"({}, {zero}) <{{base_dilations = array<i64: {ones}>, padding = dense<[{padding}]> : tensor<{rank}x2xi64>, window_dilations = array<i64: {ones}>, window_dimensions = array<i64: {window}>, window_strides = array<i64: {ones}>}}> ({{",
            line.result, line.operands[0]
        ));
        p.line(&format!("^bb0(%_a: {scalar}, %_b: {scalar}):"));
        p.indented(|p| {
            p.line(&format!("%_s = stablehlo.add %_a, %_b : {scalar}"));
            p.line(&format!("stablehlo.return %_s : {scalar}"));
        });
        p.line(&format!("}}) : ({}, {scalar}) -> {}", ty.mlir(), ty.mlir()));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let shape = &x[0].ty.shape;
        let step = strides(shape)[self.axis];
        let range = |i: usize| {
            let index = unravel(i, shape)[self.axis];
            match self.direction {
                Direction::Forward => (i - index * step, index + 1),
                Direction::Reverse => (i, shape[self.axis] - index),
            }
        };
        let terms = |i: usize| {
            let (start, count) = range(i);
            (0..count).map(move |k| start + k * step)
        };
        let ty = types[0].clone();
        let result = if ty.dtype.is_float() {
            Array::from_floats(
                ty.clone(),
                (0..ty.elements()).map(|i| terms(i).fold(0.0, |sum, j| sum + x[0].floats()[j])).collect(),
            )
        } else {
            let sum = |i| terms(i).fold(0i64, |sum, j| sum.wrapping_add(x[0].ints()[j]));
            Array::from_ints(ty.clone(), (0..ty.elements()).map(sum).collect())
        };
        vec![result]
    }
}

impl<'f> Tensor<'f> {
    #[track_caller]
    fn reduce(self, reduction: Reduction, axes: &[usize]) -> Tensor<'f> {
        let mut axes = axes.to_vec();
        axes.sort_unstable();
        if axes.is_empty() { self } else { self.builder().push(Reduce { reduction, axes }, &[self])[0] }
    }

    /// Sum over `axes`, which disappear.
    #[track_caller]
    pub fn sum(self, axes: &[usize]) -> Tensor<'f> {
        self.reduce(Reduction::Sum, axes)
    }

    /// Product over `axes`, which disappear.
    #[track_caller]
    pub fn prod(self, axes: &[usize]) -> Tensor<'f> {
        self.reduce(Reduction::Prod, axes)
    }

    /// Largest element over `axes`, which disappear.
    #[track_caller]
    pub fn reduce_max(self, axes: &[usize]) -> Tensor<'f> {
        self.reduce(Reduction::Max, axes)
    }

    /// Smallest element over `axes`, which disappear.
    #[track_caller]
    pub fn reduce_min(self, axes: &[usize]) -> Tensor<'f> {
        self.reduce(Reduction::Min, axes)
    }

    /// Sum of all elements, a scalar.
    #[track_caller]
    pub fn sum_all(self) -> Tensor<'f> {
        self.sum(&(0..self.rank()).collect::<Vec<_>>())
    }

    /// Mean over `axes`, which disappear.
    #[track_caller]
    pub fn mean(self, axes: &[usize]) -> Tensor<'f> {
        let (sum, shape) = (self.sum(axes), self.shape());
        let count: usize = axes.iter().map(|&axis| shape[axis]).product();
        sum * (1.0 / count as f64)
    }

    /// Index of the largest element along `axis`, `i32`; the lowest index wins a tie.
    #[track_caller]
    pub fn argmax(self, axis: usize) -> Tensor<'f> {
        self.builder().push(ArgReduce { axis }, &[self])[0]
    }

    /// Running sum along `axis`, each element included.
    #[track_caller]
    pub fn cumulative_sum(self, axis: usize, direction: Direction) -> Tensor<'f> {
        self.builder().push(CumulativeSum { axis, direction }, &[self])[0]
    }
}
