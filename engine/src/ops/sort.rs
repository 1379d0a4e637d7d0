//! Sorting by a key, and the k largest elements.

use super::leaf::Constant;
use super::reduce::Direction;
use super::{Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::ir::Tensor;
use crate::text::{Line, Printer};
use crate::types::{DType, Type, strides, unravel};

/// Stable sort along one axis by the first operand; the other operands are carried along. The order is that of
/// [`ArgReduce`](super::ArgReduce), and of `jax.numpy`: NaN of either sign is larger than any number, and the zeros are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sort {
    /// The axis.
    pub axis: usize,
    /// `Forward` is ascending.
    pub direction: Direction,
}

impl Rules for Sort {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(!x.is_empty(), "wants a key");
        want!(self.axis < x[0].rank(), "axis {} does not exist", self.axis);
        want!(x.iter().all(|ty| ty.shape == x[0].shape), "wants operands of one shape");
        Ok(x.to_vec())
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // Sorting permutes: cotangents go back through the inverse permutation, got by sorting on the permutation.
        let key = v.operand(0);
        let f = key.builder();
        let order = f.push(*self, &[key, f.iota(key.ty().with_dtype(DType::I32), self.axis)])[1];
        let ascending = Sort { axis: self.axis, direction: Direction::Forward };
        let back = |i: usize| match v.wanted(i) {
            true => f.push(ascending, &[order, v.ct(i)])[1].into(),
            false => Cotangent::None,
        };
        Ok((0..v.operands()).map(back).collect())
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.line(&format!(
            "{} = \"stablehlo.sort\"({}) <{{dimension = {} : i64, is_stable = true}}> ({{",
            line.result,
            line.operands.join(", "),
            self.axis
        ));
        let scalars: Vec<String> =
            line.operand_types.iter().map(|ty| Type::scalar(ty.dtype).mlir()).collect();
        let args: Vec<String> = scalars
            .iter()
            .enumerate()
            .map(|(i, scalar)| format!("%_a{i}: {scalar}, %_b{i}: {scalar}"))
            .collect();
        p.line(&format!("^bb0({}):", args.join(", ")));
        let dtype = line.operand_types[0].dtype;
        let compare = match self.direction {
            Direction::Forward => "LT",
            Direction::Reverse => "GT",
        };
        p.indented(|p| {
            let scalar = &scalars[0];
            let (kind, keys) = match dtype {
                // TOTALORDER alone would put -0 before 0 and -NaN before all. Compilers know these lines from JAX.
                dtype if dtype.is_float() => {
                    let [zero, nan] = [0.0, f64::NAN].map(|value| {
                        let name = p.fresh();
                        let bits = Constant::splat(Type::scalar(dtype), value).dense();
                        p.line(&format!("{name} = stablehlo.constant dense<{bits}> : {scalar}"));
                        name
                    });
                    let keys = ["%_a0", "%_b0"].map(|key| {
                        let signature = format!("({scalar}, {scalar}) -> tensor<i1>");
                        p.line(&format!("{key}z = stablehlo.compare EQ, {key}, {zero}, FLOAT : {signature}"));
                        p.line(&format!("{key}n = stablehlo.compare NE, {key}, {key}, FLOAT : {signature}"));
                        p.line(&format!(
                            "{key}s = stablehlo.select {key}z, {zero}, {key} : tensor<i1>, {scalar}"
                        ));
                        p.line(&format!(
                            "{key}k = stablehlo.select {key}n, {nan}, {key}s : tensor<i1>, {scalar}"
                        ));
                        format!("{key}k")
                    });
                    ("TOTALORDER", keys)
                }
                dtype => {
                    let unsigned = dtype.is_unsigned() || dtype == DType::Bool;
                    (if unsigned { "UNSIGNED" } else { "SIGNED" }, ["%_a0", "%_b0"].map(str::to_owned))
                }
            };
            let [a, b] = keys;
            p.line(&format!(
                "%_c = stablehlo.compare {compare}, {a}, {b}, {kind} : ({scalar}, {scalar}) -> tensor<i1>"
            ));
            p.line("stablehlo.return %_c : tensor<i1>");
        });
        p.line(&format!("}}) : {}", line.signature()));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        let shape = &x[0].ty.shape;
        let (extent, step) = (shape[self.axis], strides(shape)[self.axis]);
        let mut sorted: Vec<Array> = x.iter().map(|&array| array.clone()).collect();
        for start in (0..x[0].ty.elements()).filter(|&i| unravel(i, shape)[self.axis] == 0) {
            let mut order: Vec<usize> = (0..extent).map(|k| start + k * step).collect();
            order.sort_by(|&i, &j| {
                let ascending = x[0].larger(i, j).cmp(&x[0].larger(j, i));
                match self.direction {
                    Direction::Forward => ascending,
                    Direction::Reverse => ascending.reverse(),
                }
            });
            for (k, &from) in order.iter().enumerate() {
                for (into, source) in sorted.iter_mut().zip(x) {
                    into.copy_element(start + k * step, source, from);
                }
            }
        }
        sorted
    }
}

impl<'f> Tensor<'f> {
    /// Stable sort along `axis` by this tensor; `carried` are permuted alike. Returns the key first.
    #[track_caller]
    pub fn sort(self, carried: &[Tensor<'f>], axis: usize, direction: Direction) -> Vec<Tensor<'f>> {
        let operands: Vec<Tensor<'f>> = [self].iter().chain(carried).copied().collect();
        self.builder().push(Sort { axis, direction }, &operands)
    }

    /// The `k` largest elements along the last axis, descending, and their indices (`i32`); the lower index first
    /// among equals. The first is that of [`Tensor::argmax`].
    #[track_caller]
    pub fn top_k(self, k: usize) -> (Tensor<'f>, Tensor<'f>) {
        let ty = self.ty();
        assert!(
            ty.rank() > 0 && k <= ty.shape[ty.rank() - 1],
            "top_k({ty}, {k}): the last axis has fewer elements"
        );
        let axis = ty.rank() - 1;
        let index = self.builder().iota(ty.with_dtype(DType::I32), axis);
        let sorted = self.sort(&[index], axis, Direction::Reverse);
        (sorted[0].slice_axis(axis, 0, k), sorted[1].slice_axis(axis, 0, k))
    }
}
