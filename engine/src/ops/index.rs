//! Ops whose indices are tensors: dynamic slices, gather of rows, and scatter-add.
//!
//! Out of range: start indices of slices and rows of a gather are moved into range; a scatter skips them. Gradients
//! are right for indices in range.

use super::{Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp, widened};
use crate::ir::Tensor;
use crate::text::{Line, Printer};
use crate::types::{DType, Type, strides, unravel};

fn scalar_indices(found: &[Type], rank: usize) -> Result<(), ShapeError> {
    want!(found.len() == rank, "wants a start index for each of the {rank} axes, got {}", found.len());
    let scalars = found.iter().all(|ty| *ty == found[0] && ty.rank() == 0 && ty.dtype.is_integer());
    want!(scalars, "wants start indices that are integer scalars of one type");
    Ok(())
}

/// The start of a slice of `sizes`, moved into range.
fn start_of(indices: &[&Array], shape: &[usize], sizes: &[usize]) -> usize {
    let step = strides(shape);
    (0..shape.len())
        .map(|axis| {
            indices[axis].ints()[0].clamp(0, (shape[axis] - sizes[axis]) as i64) as usize * step[axis]
        })
        .sum()
}

fn offset(i: usize, sizes: &[usize], step: &[usize]) -> usize {
    unravel(i, sizes).iter().zip(step).map(|(index, step)| index * step).sum()
}

/// A slice whose start is given by scalar operands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DynamicSlice {
    /// The result's shape.
    pub sizes: Vec<usize>,
}

impl Rules for DynamicSlice {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(!x.is_empty(), "wants an operand");
        scalar_indices(&x[1..], x[0].rank())?;
        let fits = self.sizes.len() == x[0].rank()
            && self.sizes.iter().zip(&x[0].shape).all(|(size, extent)| size <= extent);
        want!(fits, "a slice of {:?} does not fit {}", self.sizes, x[0]);
        Ok(vec![x[0].with_shape(self.sizes.clone())])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // The cotangent lands where the slice was taken; if there is a cotangent already, it is added there in place.
        let starts: Vec<Tensor<'f>> = (1..v.operands()).map(|i| v.operand(i)).collect();
        let dx = match v.accumulator(0) {
            Some(total) => {
                let added = total.dynamic_slice(&starts, &self.sizes) + widened(v.ct(0), total.dtype());
                Cotangent::Accumulated(total.dynamic_update_slice(added, &starts))
            }
            None => v.operand(0).zeros_like().dynamic_update_slice(v.ct(0), &starts).into(),
        };
        Ok(std::iter::once(dx).chain(starts.iter().map(|_| Cotangent::None)).collect())
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.op_with("stablehlo.dynamic_slice", line, &format!(", sizes = {:?}", self.sizes));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let shape = &x[0].ty.shape;
        let (start, step) = (start_of(&x[1..], shape, &self.sizes), strides(shape));
        vec![x[0].rearranged(types[0].clone(), |i| start + offset(i, &self.sizes, &step))]
    }
}

/// The operand with a part replaced; operands (operand, update, start indices).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DynamicUpdateSlice;

impl Rules for DynamicUpdateSlice {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() >= 2, "wants an operand and an update");
        let fits = x[1].dtype == x[0].dtype
            && x[1].rank() == x[0].rank()
            && x[1].shape.iter().zip(&x[0].shape).all(|(size, extent)| size <= extent);
        want!(fits, "the update {} does not fit {}", x[1], x[0]);
        scalar_indices(&x[2..], x[0].rank())?;
        Ok(vec![x[0].clone()])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // The replaced part belongs to the update, the rest to the operand.
        let starts: Vec<Tensor<'f>> = (2..v.operands()).map(|i| v.operand(i)).collect();
        let (update, ct) = (v.operand(1), v.ct(0));
        let rest = ct.dynamic_update_slice(update.zeros_like(), &starts);
        let part = ct.dynamic_slice(&starts, &update.shape());
        Ok([rest.into(), part.into()].into_iter().chain(starts.iter().map(|_| Cotangent::None)).collect())
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.op("stablehlo.dynamic_update_slice", line);
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        let (shape, sizes) = (&x[0].ty.shape, &x[1].ty.shape);
        let (start, step) = (start_of(&x[2..], shape, sizes), strides(shape));
        let mut result = x[0].clone();
        for i in 0..x[1].ty.elements() {
            result.copy_element(start + offset(i, sizes, &step), x[1], i);
        }
        vec![result]
    }
}

/// Rows of the first operand (along axis 0) named by an integer tensor: result shape = indices' shape + row's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gather;

fn row_type(operand: &Type, indices: &Type) -> Result<Type, ShapeError> {
    want!(operand.rank() > 0 && operand.shape[0] > 0, "wants an operand with at least one row");
    want!(indices.dtype.is_integer(), "wants integer indices");
    Ok(operand.with_shape([&indices.shape[..], &operand.shape[1..]].concat()))
}

impl Rules for Gather {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 2, "wants an operand and indices");
        Ok(vec![row_type(&x[0], &x[1])?])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // Each row collects the cotangents of all its uses; into the cotangent that is there already, if there is one.
        let dx = match v.accumulator(0) {
            Some(total) => {
                Cotangent::Accumulated(total.scatter_add(v.operand(1), widened(v.ct(0), total.dtype())))
            }
            None => v.operand(0).zeros_like().scatter_add(v.operand(1), v.ct(0)).into(),
        };
        Ok(vec![dx, Cotangent::None])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let [x, indices] = [&line.operand_types[0], &line.operand_types[1]];
        let offset_dims: Vec<usize> = (indices.rank()..line.types[0].rank()).collect();
        let sizes: Vec<String> =
            std::iter::once(1).chain(x.shape[1..].iter().copied()).map(|size| size.to_string()).collect();
        p.line(&format!(
            "{} = \"stablehlo.gather\"({}) <{{dimension_numbers = #stablehlo.gather<offset_dims = {offset_dims:?}, collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = {}>, indices_are_sorted = false, slice_sizes = array<i64: {}>}}> : {}",
            line.result, line.operands.join(", "), indices.rank(), sizes.join(", "), line.signature()
        ));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let rows = x[0].ty.shape[0];
        let size = x[0].ty.elements() / rows;
        let indices = x[1].ints();
        vec![x[0].rearranged(types[0].clone(), |i| {
            let row = indices[i / size].clamp(0, rows as i64 - 1) as usize;
            row * size + i % size
        })]
    }
}

/// Adds rows to the rows of the first operand named by an integer tensor; operands (operand, indices, updates). Rows
/// are added in order on CPU and TPU, so that equal programs give equal bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScatterAdd;

impl Rules for ScatterAdd {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 3, "wants an operand, indices and updates");
        want!(x[0].dtype != DType::Bool, "bools have no sum");
        let rows = row_type(&x[0], &x[1])?;
        want!(x[2] == rows, "wants updates of {rows}");
        Ok(vec![x[0].clone()])
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // Linear in both: the operand's cotangent passes, each update takes its row's.
        let ct = v.ct(0);
        Ok(vec![ct.into(), Cotangent::None, ct.gather(v.operand(1)).into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let indices = &line.operand_types[1];
        let window: Vec<usize> = (indices.rank()..line.operand_types[2].rank()).collect();
        let scalar = Type::scalar(line.types[0].dtype).mlir();
        p.line(&format!(
            "{} = \"stablehlo.scatter\"({}) <{{indices_are_sorted = false, scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = {window:?}, inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = {}>, unique_indices = false}}> ({{",
            line.result, line.operands.join(", "), indices.rank()
        ));
        p.line(&format!("^bb0(%_a: {scalar}, %_b: {scalar}):"));
        p.indented(|p| {
            p.line(&format!("%_s = stablehlo.add %_a, %_b : {scalar}"));
            p.line(&format!("stablehlo.return %_s : {scalar}"));
        });
        p.line(&format!("}}) : {}", line.signature()));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let ty = types[0].clone();
        let rows = ty.shape[0];
        let size = ty.elements() / rows;
        let place = |i: usize| {
            let row = x[1].ints()[i / size];
            (0..rows as i64).contains(&row).then(|| row as usize * size + i % size)
        };
        let result = if ty.dtype.is_float() {
            let mut sums = x[0].floats().to_vec();
            x[2].floats().iter().enumerate().for_each(|(i, value)| {
                if let Some(place) = place(i) {
                    sums[place] += value;
                }
            });
            Array::from_floats(ty, sums)
        } else {
            let mut sums = x[0].ints().to_vec();
            x[2].ints().iter().enumerate().for_each(|(i, value)| {
                if let Some(place) = place(i) {
                    sums[place] = sums[place].wrapping_add(*value);
                }
            });
            Array::from_ints(ty, sums)
        };
        vec![result]
    }
}

impl<'f> Tensor<'f> {
    /// A slice of `sizes` that starts at scalar indices, one for each axis.
    #[track_caller]
    pub fn dynamic_slice(self, starts: &[Tensor<'f>], sizes: &[usize]) -> Tensor<'f> {
        let operands: Vec<Tensor<'f>> = [self].iter().chain(starts).copied().collect();
        self.builder().push(DynamicSlice { sizes: sizes.to_vec() }, &operands)[0]
    }

    /// This tensor with the part that starts at scalar indices replaced by `update`.
    #[track_caller]
    pub fn dynamic_update_slice(self, update: Tensor<'f>, starts: &[Tensor<'f>]) -> Tensor<'f> {
        let operands: Vec<Tensor<'f>> = [self, update].iter().chain(starts).copied().collect();
        self.builder().push(DynamicUpdateSlice, &operands)[0]
    }

    /// Start indices that are 0 but for `index` on axis 0.
    fn row_starts(self, index: Tensor<'f>) -> Vec<Tensor<'f>> {
        let zero = index.zeros_like();
        (0..self.rank()).map(|axis| if axis == 0 { index } else { zero }).collect()
    }

    /// Row `index` (a scalar) of axis 0, without that axis.
    #[track_caller]
    pub fn row(self, index: Tensor<'f>) -> Tensor<'f> {
        let shape = self.shape();
        assert!(!shape.is_empty(), "row({}, {}): wants at least one axis", self.ty(), index.ty());
        let sizes = [&[1], &shape[1..]].concat();
        self.dynamic_slice(&self.row_starts(index), &sizes).reshape(&shape[1..])
    }

    /// This tensor with row `index` (a scalar) of axis 0 replaced.
    #[track_caller]
    pub fn with_row(self, index: Tensor<'f>, row: Tensor<'f>) -> Tensor<'f> {
        let update = row.reshape([&[1], &row.shape()[..]].concat());
        self.dynamic_update_slice(update, &self.row_starts(index))
    }

    /// Rows along axis 0 named by integer `indices`: shape = indices' shape + row's shape.
    #[track_caller]
    pub fn gather(self, indices: Tensor<'f>) -> Tensor<'f> {
        self.builder().push(Gather, &[self, indices])[0]
    }

    /// Adds `updates` to the rows named by integer `indices`.
    #[track_caller]
    pub fn scatter_add(self, indices: Tensor<'f>, updates: Tensor<'f>) -> Tensor<'f> {
        self.builder().push(ScatterAdd, &[self, indices, updates])[0]
    }
}
