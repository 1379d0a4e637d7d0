//! `dot_general`, the one matrix product, and [`Tensor::einsum`], its readable form.

use super::{Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::ir::Tensor;
use crate::text::{Line, Printer};
use crate::types::{DType, Type, strides};

/// Product over contracting axes, side by side over batch axes. Result axes: batch, free of lhs, free of rhs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DotGeneral {
    /// Batch axes (of lhs, of rhs).
    pub batch: (Vec<usize>, Vec<usize>),
    /// Contracting axes (of lhs, of rhs).
    pub contract: (Vec<usize>, Vec<usize>),
    /// Element type of the result: bf16 operands may give f32, accumulated in f32 either way.
    pub dtype: DType,
}

/// Axes of a tensor of rank `rank` that are in neither list.
fn free(rank: usize, batch: &[usize], contract: &[usize]) -> Vec<usize> {
    (0..rank).filter(|axis| !batch.contains(axis) && !contract.contains(axis)).collect()
}

impl DotGeneral {
    /// The cotangent of one operand (`this`), given the other: a dot of ct with the other over its free axes. The
    /// cotangent of lhs is `ct . other`, that of rhs `other . ct`: for matrices no transposition is left over.
    fn transposed<'f>(
        &self,
        ct: Tensor<'f>,
        this: Operand<'_>,
        other: Operand<'_>,
        with: Tensor<'f>,
        side: Side,
    ) -> Tensor<'f> {
        let batches = this.batch.len();
        let this_free = free(this.rank, this.batch, this.contract);
        let other_free = free(other.rank, other.batch, other.contract);
        // ct axes: batch, free of lhs, free of rhs
        let other_start = batches + if side == Side::Lhs { this_free.len() } else { 0 };
        let ct_contract: Vec<usize> = (other_start..other_start + other_free.len()).collect();
        let ct_batch: Vec<usize> = (0..batches).collect();
        let (dtype, ct) = (with.dtype(), ct.convert(with.dtype()));
        // The contracting axes of this, in the order in which they stand in other.
        let mut contracted: Vec<(usize, usize)> =
            other.contract.iter().zip(this.contract).map(|(&there, &here)| (there, here)).collect();
        contracted.sort_unstable();
        let contracted = contracted.into_iter().map(|(_, here)| here);
        // Axes of this in the order of the new dot's result.
        let mut places = this.batch.to_vec();
        let dot = match side {
            Side::Lhs => {
                places.extend(this_free.into_iter().chain(contracted));
                let op = DotGeneral {
                    batch: (ct_batch, other.batch.to_vec()),
                    contract: (ct_contract, other_free),
                    dtype,
                };
                ct.builder().push(op, &[ct, with])[0]
            }
            Side::Rhs => {
                places.extend(contracted.chain(this_free));
                let op = DotGeneral {
                    batch: (other.batch.to_vec(), ct_batch),
                    contract: (other_free, ct_contract),
                    dtype,
                };
                ct.builder().push(op, &[with, ct])[0]
            }
        };
        let mut order = vec![0; this.rank];
        places.into_iter().enumerate().for_each(|(from, axis)| order[axis] = from);
        dot.transpose(&order)
    }
}

#[derive(Clone, Copy)]
struct Operand<'a> {
    rank: usize,
    batch: &'a [usize],
    contract: &'a [usize],
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Lhs,
    Rhs,
}

impl DotGeneral {
    /// The type of a product's own sums: what it can give without rounding them to the operands' type.
    pub(crate) fn sums(operands: DType) -> DType {
        match operands {
            DType::Bf16 | DType::F16 => DType::F32,
            other => other,
        }
    }
}

impl Rules for DotGeneral {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 2, "wants two operands");
        let (a, b) = (&x[0], &x[1]);
        want!(a.dtype == b.dtype, "wants operands of one element type");
        let given = self.dtype == a.dtype || self.dtype == DotGeneral::sums(a.dtype);
        want!(given, "cannot give {} from {}", self.dtype, a.dtype);
        want!(a.dtype != DType::Bool, "bools have no product");
        let [(ba, bb), (ca, cb)] = [&self.batch, &self.contract];
        want!(ba.len() == bb.len() && ca.len() == cb.len(), "wants as many axes of lhs as of rhs");
        for (i, j) in ba.iter().zip(bb).chain(ca.iter().zip(cb)) {
            want!(*i < a.rank() && *j < b.rank(), "axes {i} x {j} do not exist");
            want!(
                a.shape[*i] == b.shape[*j],
                "axis {i} of lhs ({}) is not axis {j} of rhs ({})",
                a.shape[*i],
                b.shape[*j]
            );
        }
        let distinct = |batch: &[usize], contract: &[usize]| {
            let mut axes: Vec<usize> = batch.iter().chain(contract).copied().collect();
            axes.sort_unstable();
            axes.windows(2).all(|pair| pair[0] != pair[1])
        };
        want!(distinct(ba, ca) && distinct(bb, cb), "an axis is used twice");
        let mut shape: Vec<usize> = ba.iter().map(|&axis| a.shape[axis]).collect();
        shape.extend(free(a.rank(), ba, ca).iter().map(|&axis| a.shape[axis]));
        shape.extend(free(b.rank(), bb, cb).iter().map(|&axis| b.shape[axis]));
        Ok(vec![Type::new(self.dtype, shape)])
    }

    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // C = A B: dA = dC B^T, dB = A^T dC, generalised to any axes; the cotangent is first rounded to the operands' type
        let (a, b, ct) = (v.operand(0), v.operand(1), v.ct(0));
        let lhs = Operand { rank: a.rank(), batch: &self.batch.0, contract: &self.contract.0 };
        let rhs = Operand { rank: b.rank(), batch: &self.batch.1, contract: &self.contract.1 };
        let da =
            if v.wanted(0) { self.transposed(ct, lhs, rhs, b, Side::Lhs).into() } else { Cotangent::None };
        let db =
            if v.wanted(1) { self.transposed(ct, rhs, lhs, a, Side::Rhs).into() } else { Cotangent::None };
        Ok(vec![da, db])
    }

    fn print(&self, p: &mut Printer, line: &Line) {
        let mut attributes = String::new();
        if !self.batch.0.is_empty() {
            attributes = format!(", batching_dims = {:?} x {:?}", self.batch.0, self.batch.1);
        }
        attributes += &format!(", contracting_dims = {:?} x {:?}", self.contract.0, self.contract.1);
        p.op_with("stablehlo.dot_general", line, &attributes);
    }

    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let (a, b) = (x[0], x[1]);
        let offsets = |shape: &[usize], axes: &[usize]| -> Vec<usize> {
            let step = strides(shape);
            axes.iter().fold(vec![0], |offsets, &axis| {
                offsets
                    .iter()
                    .flat_map(|base| (0..shape[axis]).map(move |i| (base, i)))
                    .map(|(base, i)| base + i * step[axis])
                    .collect()
            })
        };
        let (a_batch, b_batch) = (offsets(&a.ty.shape, &self.batch.0), offsets(&b.ty.shape, &self.batch.1));
        let (a_sum, b_sum) = (offsets(&a.ty.shape, &self.contract.0), offsets(&b.ty.shape, &self.contract.1));
        let a_free = offsets(&a.ty.shape, &free(a.ty.rank(), &self.batch.0, &self.contract.0));
        let b_free = offsets(&b.ty.shape, &free(b.ty.rank(), &self.batch.1, &self.contract.1));
        let places: Vec<(usize, usize)> = (a_batch.iter().zip(&b_batch))
            .flat_map(|(i, j)| a_free.iter().map(move |k| (i + k, *j)))
            .flat_map(|(i, j)| b_free.iter().map(move |k| (i, j + k)))
            .collect();
        let ty = types[0].clone();
        let terms = |(i, j): (usize, usize)| a_sum.iter().zip(&b_sum).map(move |(p, q)| (i + p, j + q));
        let result = if ty.dtype.is_float() {
            let (a, b) = (a.floats(), b.floats());
            Array::from_floats(
                ty,
                places
                    .into_iter()
                    .map(|place| terms(place).fold(0.0, |sum, (p, q)| sum + a[p] * b[q]))
                    .collect(),
            )
        } else {
            let (a, b) = (a.ints(), b.ints());
            let sum =
                |place| terms(place).fold(0i64, |sum, (p, q)| sum.wrapping_add(a[p].wrapping_mul(b[q])));
            Array::from_ints(ty, places.into_iter().map(sum).collect())
        };
        vec![result]
    }
}

impl<'f> Tensor<'f> {
    /// Product of matrices: the last axis of `self` with the first of `other`, `[.., k] x [k, ..]`.
    #[track_caller]
    pub fn matmul(self, other: Tensor<'f>) -> Tensor<'f> {
        assert!(
            self.rank() > 0 && other.rank() > 0,
            "matmul({}, {}): wants at least one axis each",
            self.ty(),
            other.ty()
        );
        let op = DotGeneral {
            batch: (vec![], vec![]),
            contract: (vec![self.rank() - 1], vec![0]),
            dtype: self.dtype(),
        };
        self.builder().push(op, &[self, other])[0]
    }

    /// Einstein summation of two tensors, `"bsd,dh->bsh"`: a letter on both sides and in the result is a batch axis,
    /// one on both sides only is summed over. The result has the operands' element type.
    ///
    /// # Panics
    /// If the letters do not fit the operands.
    #[track_caller]
    pub fn einsum(self, letters: &str, other: Tensor<'f>) -> Tensor<'f> {
        self.einsum_as(letters, other, self.dtype())
    }

    /// [`Tensor::einsum`] with the element type of the result: `F32` keeps the f32 accumulator of bf16 operands.
    #[track_caller]
    pub fn einsum_as(self, letters: &str, other: Tensor<'f>, dtype: DType) -> Tensor<'f> {
        match parse(letters, self.rank(), other.rank(), dtype) {
            Ok((op, order)) => self.builder().push(op, &[self, other])[0].transpose(&order),
            Err(reason) => panic!("einsum({letters}; {}, {}): {reason}", self.ty(), other.ty()),
        }
    }
}

/// The product that einsum letters mean, and the order in which its axes are wanted.
fn parse(
    letters: &str,
    lhs: usize,
    rhs: usize,
    dtype: DType,
) -> Result<(DotGeneral, Vec<usize>), &'static str> {
    let (operands, result) = letters.split_once("->").ok_or("wants `ab,bc->ac`")?;
    let (a, b) = operands.split_once(',').ok_or("wants two operands")?;
    if (a.len(), b.len()) != (lhs, rhs) {
        return Err("wants one letter for each axis");
    }
    let twice = |letters: &str| letters.chars().any(|letter| letters.matches(letter).count() > 1);
    if twice(a) || twice(b) || twice(result) {
        return Err("a letter stands twice on one side");
    }
    let mut op = DotGeneral { batch: (vec![], vec![]), contract: (vec![], vec![]), dtype };
    let mut axes = String::new();
    for (i, letter) in a.chars().enumerate() {
        match (b.find(letter), result.contains(letter)) {
            (Some(j), true) => {
                op.batch.0.push(i);
                op.batch.1.push(j);
                axes.push(letter);
            }
            (Some(j), false) => {
                op.contract.0.push(i);
                op.contract.1.push(j);
            }
            (None, true) => {}
            (None, false) => {
                return Err("a letter of the first operand is neither in the second nor in the result");
            }
        }
    }
    axes.extend(a.chars().filter(|&letter| !b.contains(letter)));
    axes.extend(b.chars().filter(|&letter| !a.contains(letter)));
    if axes.len() != result.len() {
        return Err("the result wants each letter that is not summed over, once");
    }
    let places =
        result.chars().map(|letter| axes.find(letter).ok_or("a letter of the result is in no operand"));
    Ok((op, places.collect::<Result<_, _>>()?))
}
