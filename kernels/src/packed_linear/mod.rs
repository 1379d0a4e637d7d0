//! A linear map of a few rows: what decoding spends its time in. Every number of the matrix is read once for eight rows, so
//! the time is that of the matrix's bytes, or of the multiplications if it lies in panels.

mod cpu;

use crate::example::{ACTIVATIONS, Example};
pub(crate) use cpu::{Then, linear};
use engine::{Backward, DType, Form, Func, HostCall, Kernel, ShapeError, Target, Tensor, Type};

/// Arguments: x `[n, m]` and W of one float type, `[m, v]` or in panels, `[v/16, m, 16]`. Result: `x W`, `[n, v]`.
///
/// In panels a row of 16 columns is a cache line, and lines that are read one after the other lie one after the other. That
/// is what the CPU's native form wants: by rows of a wide matrix it reached half of the speed.
#[derive(Clone, Copy, Debug)]
pub struct PackedLinear {
    /// The result's type.
    pub result: DType,
}

/// Columns of a panel: a cache line of f32.
pub const PANEL: usize = 16;

/// `[m, v]` to panels, `[v/16, m, 16]`.
pub fn panels(w: Tensor<'_>) -> Tensor<'_> {
    let [m, v] = w.shape()[..] else { panic!("W {} is not [m, v]", w.ty()) };
    w.reshape([m, v / PANEL, PANEL]).transpose(&[1, 0, 2])
}

/// Columns v of W, which maps vectors of width m.
pub(crate) fn columns(w: &Type, m: usize) -> Option<usize> {
    match w.shape[..] {
        [rows, v] if rows == m => Some(v),
        [panels, rows, PANEL] if rows == m => Some(panels * PANEL),
        _ => None,
    }
}

impl PackedLinear {
    fn sizes(args: &[Type]) -> Result<[usize; 2], ShapeError> {
        match args {
            [x, w] if x.rank() == 2 && x.dtype == w.dtype => {
                let v = columns(w, x.shape[1]);
                v.map(|v| [x.shape[0], v]).ok_or_else(|| ShapeError(format!("x {x} does not fit W {w}")))
            }
            _ => {
                Err(ShapeError("wants x [n, m] and W, [m, v] or [v/16, m, 16], of one float type".to_owned()))
            }
        }
    }
}

/// In panels and by rows.
pub(crate) fn examples() -> Vec<Example> {
    let example = |w: Type, native: &[Target]| {
        let args = vec![(Type::f32([3, 40]), ACTIVATIONS), (w, ACTIVATIONS)];
        Example::new(PackedLinear { result: DType::F32 }, args, &[], native)
    };
    vec![example(Type::f32([5, 40, PANEL]), &[Target::Cpu]), example(Type::f32([40, 80]), &[])]
}

impl Kernel for PackedLinear {
    fn name(&self) -> String {
        format!("packed_linear({})", self.result)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        Ok(vec![Type::new(self.result, PackedLinear::sizes(args)?)])
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let (x, w) = (args[0], args[1]);
        vec![match w.rank() {
            2 => x.einsum_as("nm,mv->nv", w, self.result),
            _ => x.einsum_as("nm,pmc->npc", w, self.result).reshape([x.dim(0), w.dim(0) * PANEL]),
        }]
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("nothing is trained through it")
    }

    fn differentiable(&self) -> usize {
        1
    }

    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }

    fn lower(&self, args: &[Type], target: Target, wanted: Option<Form>) -> Option<(Form, Func)> {
        let wanted = target == Target::Cpu && Form::takes_native(wanted);
        let f32s = args[0].dtype == DType::F32 && self.result == DType::F32;
        if !wanted || !f32s || args[1].rank() == 2 {
            return None;
        }
        let results = self.infer(args).expect("checked when called");
        Some((
            Form::Native,
            Func::build(args, |f, args| f.host_call(HostCall::new::<PackedLinear>(vec![], results), args)),
        ))
    }
}
