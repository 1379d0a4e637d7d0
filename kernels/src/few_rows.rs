//! A linear map of few rows: what decoding spends its time in. Every number of the matrix is read once for all rows, so
//! the time is that of the matrix's bytes; XLA's CPU code for two rows and more packs the whole matrix anew first.

use crate::host::exponential::exp2;
use crate::host::rows::{Columns, ROWS, multiply};
use engine::{
    Backward, DType, Frame, Func, HostCall, HostFunction, Kernel, KernelChoice, Lowering, ShapeError, Target,
    Tensor, Type, Workers,
};
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::LOG2_E;

/// Arguments: x `[n, m]` and W `[m, v]` of one float type. Result: `x W`, `[n, v]`.
#[derive(Clone, Copy, Debug)]
pub struct FewRowsLinear {
    /// The result's type.
    pub result: DType,
}

/// More rows than these are left to XLA, which packs the matrix once for all of them.
pub(crate) const MOST_ROWS: usize = 4 * ROWS;

/// Columns of one piece of work, at least.
const COLUMNS: usize = 128;

/// Multiplications, those of two rows at least, that are worth a second thread: 5 to 20 us, of which waking it up and
/// waiting for it takes a third.
const WORTH_SHARING: usize = 1 << 20;

impl FewRowsLinear {
    fn sizes(args: &[Type]) -> Result<[usize; 3], ShapeError> {
        match args {
            [x, w] if x.rank() == 2 && w.rank() == 2 && x.shape[1] == w.shape[0] && x.dtype == w.dtype => {
                Ok([x.shape[0], x.shape[1], w.shape[1]])
            }
            _ => Err(ShapeError("wants x [n, m] and W [m, v] of one float type".to_owned())),
        }
    }
}

impl Kernel for FewRowsLinear {
    fn name(&self) -> String {
        format!("few_rows_linear({})", self.result)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let [n, _, v] = FewRowsLinear::sizes(args)?;
        Ok(vec![Type::new(self.result, [n, v])])
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        vec![args[0].einsum_as("nm,mv->nv", args[1], self.result)]
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("nothing is trained on few rows")
    }

    fn lower(&self, args: &[Type], target: Target, choice: KernelChoice) -> Lowering {
        let [n, _, v] = FewRowsLinear::sizes(args).expect("checked when called");
        let wanted = target == Target::Cpu && matches!(choice, KernelChoice::Auto | KernelChoice::Native);
        let f32s = args[0].dtype == DType::F32 && self.result == DType::F32;
        if !wanted || !f32s || n > MOST_ROWS || v % 16 != 0 {
            return Lowering::Reference;
        }
        let result = Type::f32([n, v]);
        Lowering::Native(Func::build(args, |f, args| {
            f.host_call(HostCall::new::<FewRowsLinear>(vec![], vec![result]), args)
        }))
    }
}

impl HostFunction for FewRowsLinear {
    const NAME: &'static str = "few_rows_linear";

    fn call(Frame { operands, results, workers, .. }: Frame<'_>) {
        let [x, w] = operands[..] else { unreachable!("x and W") };
        let &[m, v] = w.shape() else { unreachable!("[m, v]") };
        let Some(y) = results.into_iter().next() else { unreachable!("one result") };
        let rows = x.shape()[0].clamp(2, ROWS);
        let workers = if m * v * rows < WORTH_SHARING { Workers::caller() } else { workers };
        linear(workers, x.as_slice(), w.as_slice(), Then::Nothing, y.into_slice(), v);
    }
}

/// What is made of a product.
#[derive(Clone, Copy)]
pub(crate) enum Then<'a> {
    /// Nothing.
    Nothing,
    /// A sum with numbers of the result's shape.
    Plus(&'a [f32]),
    /// `silu(g) u` of its first half of columns g and its second half u.
    SwiGlu,
}

/// `x W` and what is made of it. x: `[n, m]`, w: `[m, v]`, or `[m, 2 v]` for SwiGLU; y: `[n, v]`; v a multiple of 16.
pub(crate) fn linear(workers: Workers<'_>, x: &[f32], w: &[f32], then: Then<'_>, y: &mut [f32], v: usize) {
    let m = x.len() / (y.len() / v);
    let columns = w.len() / m;
    // Columns of all rows, in pieces.
    let pieces = (columns / COLUMNS).clamp(1, 4 * workers.threads());
    let width = (v / 16).div_ceil(pieces) * 16;
    let part = |first: usize| Columns { data: &w[first..], stride: columns };
    for (group, (x, y)) in x.chunks(ROWS * m).zip(y.chunks_mut(ROWS * v)).enumerate() {
        let mut items: Vec<Piece<'_>> = (0..v)
            .step_by(width)
            .map(|first| Piece {
                x,
                w: part(first),
                depth: m,
                y: Vec::with_capacity(ROWS),
                then: match then {
                    Then::Nothing => Rest::Nothing,
                    Then::Plus(other) => {
                        Rest::Plus(Columns { data: &other[group * ROWS * v + first..], stride: v })
                    }
                    Then::SwiGlu => Rest::SwiGlu(part(v + first)),
                },
            })
            .collect();
        for row in y.chunks_mut(v) {
            items.iter_mut().zip(row.chunks_mut(width)).for_each(|(item, columns)| item.y.push(columns));
        }
        workers.for_each(items, |piece| Arch::new().dispatch(piece));
    }
}

/// What is made of some columns.
enum Rest<'a> {
    Nothing,
    /// The other term's columns.
    Plus(Columns<'a>),
    /// The second half's columns of W.
    SwiGlu(Columns<'a>),
}

/// Some columns of the result.
struct Piece<'a> {
    x: &'a [f32],
    w: Columns<'a>,
    depth: usize,
    y: Vec<&'a mut [f32]>,
    then: Rest<'a>,
}

impl WithSimd for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Piece { x, w, depth, mut y, then } = self;
        multiply(simd, x, depth, w, y.iter_mut().map(|row| &mut **row).collect());
        let width = y[0].len();
        match then {
            Rest::Nothing => {}
            Rest::Plus(other) => {
                for (row, y) in y.into_iter().enumerate() {
                    let other = S::as_simd_f32s(&other.data[row * other.stride..][..width]).0;
                    for (y, &other) in S::as_mut_simd_f32s(y).0.iter_mut().zip(other) {
                        *y = simd.add_f32s(other, *y);
                    }
                }
            }
            Rest::SwiGlu(second) => {
                let mut u = vec![0.0; y.len() * width];
                multiply(simd, x, depth, second, u.chunks_mut(width).collect());
                for (g, u) in y.into_iter().zip(u.chunks(width)) {
                    for (g, &u) in S::as_mut_simd_f32s(g).0.iter_mut().zip(S::as_simd_f32s(u).0) {
                        // g u / (1 + 2^(-g log2 e)), whose power is kept finite.
                        let power = simd.mul_f32s(*g, simd.splat_f32s(-LOG2_E));
                        let power = exp2(simd, simd.min_f32s(power, simd.splat_f32s(126.0)));
                        let one = simd.splat_f32s(1.0);
                        *g = simd.div_f32s(simd.mul_f32s(*g, u), simd.add_f32s(one, power));
                    }
                }
            }
        }
    }
}
