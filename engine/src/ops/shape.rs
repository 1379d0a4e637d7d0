//! Ops that move elements without computing: static shapes and indices only.

use super::{Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::ir::Tensor;
use crate::text::{Line, Printer};
use crate::types::{DType, Type, strides, unravel};

/// Puts operand axis `i` at axis `axes[i]` of a larger shape and repeats along the others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BroadcastInDim {
    /// The result's shape.
    pub shape: Vec<usize>,
    /// For each operand axis its place in the result, ascending.
    pub axes: Vec<usize>,
}

impl Rules for BroadcastInDim {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        want!(
            self.axes.len() == x[0].rank(),
            "wants a place for each of the {} axes, got {:?}",
            x[0].rank(),
            self.axes
        );
        want!(self.axes.is_sorted_by(|a, b| a < b), "wants ascending places, got {:?}", self.axes);
        for (axis, &place) in self.axes.iter().enumerate() {
            let found = self.shape.get(place);
            want!(
                found == Some(&x[0].shape[axis]),
                "axis {axis} of extent {} does not fit axis {place} of {:?}",
                x[0].shape[axis],
                self.shape
            );
        }
        Ok(vec![x[0].with_shape(self.shape.clone())])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // Each element was used once per repetition: sum over the repeated axes.
        let repeated: Vec<usize> = (0..self.shape.len()).filter(|axis| !self.axes.contains(axis)).collect();
        Ok(vec![v.ct(0).sum(&repeated).into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.op_with("stablehlo.broadcast_in_dim", line, &format!(", dims = {:?}", self.axes));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let step = strides(&x[0].ty.shape);
        vec![x[0].rearranged(types[0].clone(), |i| {
            let index = unravel(i, &self.shape);
            self.axes.iter().zip(&step).map(|(&place, step)| index[place] * step).sum()
        })]
    }
}

/// The same elements in row-major order under another shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reshape {
    /// The result's shape.
    pub shape: Vec<usize>,
}

impl Rules for Reshape {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        let ty = x[0].with_shape(self.shape.clone());
        want!(ty.elements() == x[0].elements(), "{} elements do not fill {ty}", x[0].elements());
        Ok(vec![ty])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Ok(vec![v.ct(0).reshape(v.operand(0).shape()).into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.op("stablehlo.reshape", line);
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        vec![x[0].rearranged(types[0].clone(), |i| i)]
    }
}

/// Result axis `i` is operand axis `axes[i]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transpose {
    /// A permutation.
    pub axes: Vec<usize>,
}

impl Rules for Transpose {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        let mut sorted = self.axes.clone();
        sorted.sort_unstable();
        want!(
            sorted.into_iter().eq(0..x[0].rank()),
            "{:?} is not a permutation of {} axes",
            self.axes,
            x[0].rank()
        );
        Ok(vec![x[0].with_shape(self.axes.iter().map(|&axis| x[0].shape[axis]).collect::<Vec<_>>())])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        let mut back = vec![0; self.axes.len()];
        self.axes.iter().enumerate().for_each(|(place, &axis)| back[axis] = place);
        Ok(vec![v.ct(0).transpose(&back).into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.op_with("stablehlo.transpose", line, &format!(", dims = {:?}", self.axes));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let step = strides(&x[0].ty.shape);
        vec![x[0].rearranged(types[0].clone(), |i| {
            let index = unravel(i, &types[0].shape);
            self.axes.iter().zip(index).map(|(&axis, index)| index * step[axis]).sum()
        })]
    }
}

/// Elements `start, start + stride, ..` below `limit` on each axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Slice {
    pub start: Vec<usize>,
    pub limit: Vec<usize>,
    pub stride: Vec<usize>,
}

impl Rules for Slice {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        let rank = x[0].rank();
        let lengths = [self.start.len(), self.limit.len(), self.stride.len()];
        want!(lengths == [rank; 3], "wants start, limit and stride for each of the {rank} axes");
        let mut shape = Vec::new();
        for axis in 0..rank {
            let (start, limit, stride) = (self.start[axis], self.limit[axis], self.stride[axis]);
            let fits = start <= limit && limit <= x[0].shape[axis] && stride > 0;
            want!(fits, "[{start}:{limit}:{stride}] does not fit axis {axis} of extent {}", x[0].shape[axis]);
            shape.push((limit - start).div_ceil(stride));
        }
        Ok(vec![x[0].with_shape(shape)])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // Zeros where nothing was taken: padding before, between and after.
        let (x, ct) = (v.operand(0), v.ct(0));
        let mut pad = Pad { low: self.start.clone(), high: Vec::new(), interior: Vec::new() };
        for axis in 0..x.rank() {
            let count = ct.dim(axis);
            let end = self.start[axis] + if count == 0 { 0 } else { (count - 1) * self.stride[axis] + 1 };
            pad.high.push(x.dim(axis) - end);
            pad.interior.push(self.stride[axis] - 1);
        }
        let zero = ct.builder().zeros(Type::scalar(ct.dtype()));
        Ok(vec![ct.builder().push(pad, &[ct, zero])[0].into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let ranges: Vec<String> = (0..self.start.len())
            .map(|axis| match self.stride[axis] {
                1 => format!("{}:{}", self.start[axis], self.limit[axis]),
                stride => format!("{}:{}:{stride}", self.start[axis], self.limit[axis]),
            })
            .collect();
        p.op_with("stablehlo.slice", line, &format!(" [{}]", ranges.join(", ")));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let step = strides(&x[0].ty.shape);
        vec![x[0].rearranged(types[0].clone(), |i| {
            let index = unravel(i, &types[0].shape);
            (0..step.len()).map(|a| (self.start[a] + index[a] * self.stride[a]) * step[a]).sum()
        })]
    }
}

/// A border of the second operand (a scalar) around the first, and between its elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Pad {
    pub low: Vec<usize>,
    pub high: Vec<usize>,
    pub interior: Vec<usize>,
}

impl Pad {
    /// Where an element of the padded tensor comes from.
    fn source(&self, index: &[usize], shape: &[usize], step: &[usize]) -> Option<usize> {
        let mut source = 0;
        for axis in 0..shape.len() {
            let inside = index[axis].checked_sub(self.low[axis])?;
            let spacing = self.interior[axis] + 1;
            if inside % spacing != 0 || inside / spacing >= shape[axis] {
                return None;
            }
            source += inside / spacing * step[axis];
        }
        Some(source)
    }
}

impl Rules for Pad {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 2 && x[1] == Type::scalar(x[0].dtype), "wants an operand and a scalar of its type");
        let rank = x[0].rank();
        let lengths = [self.low.len(), self.high.len(), self.interior.len()];
        want!(lengths == [rank; 3], "wants low, high and interior for each of the {rank} axes");
        let extent = |axis: usize| {
            let inner = x[0].shape[axis] + self.interior[axis] * x[0].shape[axis].saturating_sub(1);
            self.low[axis] + inner + self.high[axis]
        };
        Ok(vec![x[0].with_shape((0..rank).map(extent).collect::<Vec<_>>())])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // The inside belongs to the operand, the rest to the scalar.
        let (x, ct) = (v.operand(0), v.ct(0));
        let limit: Vec<usize> = (0..x.rank())
            .map(|axis| match x.dim(axis) {
                0 => self.low[axis],
                extent => self.low[axis] + (extent - 1) * (self.interior[axis] + 1) + 1,
            })
            .collect();
        let stride: Vec<usize> = self.interior.iter().map(|interior| interior + 1).collect();
        let inside = ct.builder().push(Slice { start: self.low.clone(), limit, stride }, &[ct])[0];
        let border = if v.wanted(1) { (ct.sum_all() - inside.sum_all()).into() } else { Cotangent::None };
        Ok(vec![inside.into(), border])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let attributes =
            format!(", low = {:?}, high = {:?}, interior = {:?}", self.low, self.high, self.interior);
        p.op_with("stablehlo.pad", line, &attributes);
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let (shape, step) = (&x[0].ty.shape, strides(&x[0].ty.shape));
        let mut result = x[1].rearranged(types[0].clone(), |_| 0);
        for i in 0..types[0].elements() {
            if let Some(from) = self.source(&unravel(i, &types[0].shape), shape, &step) {
                result.copy_element(i, x[0], from);
            }
        }
        vec![result]
    }
}

/// Operands joined along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Concatenate {
    /// The axis that grows.
    pub axis: usize,
}

impl Rules for Concatenate {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(!x.is_empty(), "wants at least one operand");
        want!(self.axis < x[0].rank(), "axis {} does not exist", self.axis);
        let mut shape = x[0].shape.clone();
        for ty in &x[1..] {
            let alike = ty.dtype == x[0].dtype
                && ty.rank() == x[0].rank()
                && (0..ty.rank()).all(|axis| axis == self.axis || ty.shape[axis] == shape[axis]);
            want!(alike, "wants operands that differ on axis {} only", self.axis);
            shape[self.axis] += ty.shape[self.axis];
        }
        Ok(vec![x[0].with_shape(shape)])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // Each operand gets its part back.
        let mut start = 0;
        let part = |i: usize| {
            let end = start + v.operand(i).dim(self.axis);
            let part = v.ct(0).slice_axis(self.axis, start, end);
            start = end;
            part.into()
        };
        Ok((0..v.operands()).map(part).collect())
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.op_with("stablehlo.concatenate", line, &format!(", dim = {}", self.axis));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let mut result = Array::from_fn(types[0].clone(), |_| 0.0);
        let step = strides(&types[0].shape);
        let mut start = 0;
        for part in x {
            for i in 0..part.ty.elements() {
                let index = unravel(i, &part.ty.shape);
                let to: usize = index.iter().zip(&step).map(|(index, step)| index * step).sum();
                result.copy_element(to + start * step[self.axis], part, i);
            }
            start += part.ty.shape[self.axis];
        }
        vec![result]
    }
}

/// Elements in the opposite order along `axes`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reverse {
    /// The axes.
    pub axes: Vec<usize>,
}

impl Rules for Reverse {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        want!(self.axes.iter().all(|&axis| axis < x[0].rank()), "axes {:?} do not exist", self.axes);
        Ok(vec![x[0].clone()])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Ok(vec![v.ct(0).reverse(&self.axes).into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let [x, ty] = [&line.operands[0], &line.types[0].mlir()];
        p.line(&format!("{} = stablehlo.reverse {x}, dims = {:?} : {ty}", line.result, self.axes));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let (shape, step) = (&x[0].ty.shape, strides(&x[0].ty.shape));
        vec![x[0].rearranged(types[0].clone(), |i| {
            let index = unravel(i, shape);
            let place = |axis: usize| {
                if self.axes.contains(&axis) { shape[axis] - 1 - index[axis] } else { index[axis] }
            };
            (0..shape.len()).map(|axis| place(axis) * step[axis]).sum()
        })]
    }
}

impl<'f> Tensor<'f> {
    /// Puts axis `i` at axis `axes[i]` of `shape` and repeats along the others.
    #[track_caller]
    pub fn broadcast_in_dim(self, shape: impl Into<Vec<usize>>, axes: &[usize]) -> Tensor<'f> {
        let shape = shape.into();
        if shape == self.shape() {
            return self;
        }
        self.builder().push(BroadcastInDim { shape, axes: axes.to_vec() }, &[self])[0]
    }

    /// Repeats this tensor to the shape of `target`, its axes at `axes` there: `w.along(x, &[2])`.
    #[track_caller]
    pub fn along(self, target: Tensor<'f>, axes: &[usize]) -> Tensor<'f> {
        self.broadcast_in_dim(target.shape(), axes)
    }

    /// The same elements, row-major, under another shape.
    #[track_caller]
    pub fn reshape(self, shape: impl Into<Vec<usize>>) -> Tensor<'f> {
        let shape = shape.into();
        if shape == self.shape() { self } else { self.builder().push(Reshape { shape }, &[self])[0] }
    }

    /// Permutes axes: result axis `i` is axis `axes[i]` of this tensor.
    #[track_caller]
    pub fn transpose(self, axes: &[usize]) -> Tensor<'f> {
        if axes.iter().copied().eq(0..self.rank()) {
            return self;
        }
        self.builder().push(Transpose { axes: axes.to_vec() }, &[self])[0]
    }

    /// Elements `start..limit` of one axis, all of the others.
    #[track_caller]
    pub fn slice_axis(self, axis: usize, start: usize, limit: usize) -> Tensor<'f> {
        let ty = self.ty();
        assert!(axis < ty.rank(), "slice({ty}): axis {axis} does not exist");
        if (start, limit) == (0, ty.shape[axis]) {
            return self;
        }
        let mut starts = vec![0; ty.rank()];
        let mut limits = ty.shape.clone();
        (starts[axis], limits[axis]) = (start, limit);
        self.slice(&starts, &limits, &vec![1; ty.rank()])
    }

    /// Elements `start, start + stride, ..` below `limit`, on every axis.
    #[track_caller]
    pub fn slice(self, start: &[usize], limit: &[usize], stride: &[usize]) -> Tensor<'f> {
        let op = Slice { start: start.to_vec(), limit: limit.to_vec(), stride: stride.to_vec() };
        self.builder().push(op, &[self])[0]
    }

    /// A border of `value` of `low` and `high` elements on each axis.
    #[track_caller]
    pub fn pad(self, value: f64, low: &[usize], high: &[usize]) -> Tensor<'f> {
        let border = self.builder().full(Type::scalar(self.dtype()), value);
        self.pad_with(border, low, high, &vec![0; low.len()])
    }

    /// A border of a scalar, `low` and `high` elements on each axis and `interior` between every two.
    #[track_caller]
    pub fn pad_with(
        self,
        border: Tensor<'f>,
        low: &[usize],
        high: &[usize],
        interior: &[usize],
    ) -> Tensor<'f> {
        let op = Pad { low: low.to_vec(), high: high.to_vec(), interior: interior.to_vec() };
        self.builder().push(op, &[self, border])[0]
    }

    /// Tensors joined along `axis`.
    ///
    /// # Panics
    /// If there is none, or if they differ on another axis.
    #[track_caller]
    pub fn concatenate(parts: &[Tensor<'f>], axis: usize) -> Tensor<'f> {
        match parts {
            [] => panic!("concatenate(): wants at least one operand"),
            [one] => *one,
            _ => parts[0].builder().push(Concatenate { axis }, parts)[0],
        }
    }

    /// Elements in the opposite order along `axes`.
    #[track_caller]
    pub fn reverse(self, axes: &[usize]) -> Tensor<'f> {
        if axes.is_empty() { self } else { self.builder().push(Reverse { axes: axes.to_vec() }, &[self])[0] }
    }

    /// A mask `[rows, columns]`, true where column index - row index <= `offset`: with 0 the causal mask.
    #[track_caller]
    pub fn lower_triangle(
        builder: &'f crate::Builder<'f>,
        rows: usize,
        columns: usize,
        offset: i32,
    ) -> Tensor<'f> {
        let ty = Type::new(DType::I32, [rows, columns]);
        builder.iota(ty.clone(), 1).le(builder.iota(ty, 0) + offset)
    }
}
