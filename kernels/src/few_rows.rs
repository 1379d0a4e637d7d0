//! A linear map of few rows: what decoding spends its time in. Every number of the matrix is read once for all rows, so
//! the time is that of the matrix's bytes; XLA's CPU code for two rows and more packs the whole matrix anew first.

use crate::host::exponential::exp2;
use crate::host::rows::{Columns, ROWS, multiply};
use crate::wide;
use engine::{
    Backward, DType, Frame, Func, HostCall, HostFunction, Kernel, KernelChoice, Lowering, ShapeError, Target,
    Tensor, Type,
};
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::LOG2_E;

/// Arguments: x `[n, m]` and W `[m, v]` of one float type. Result: `x W`, `[n, v]`, or what is made of it.
#[derive(Clone, Copy, Debug)]
pub struct FewRowsLinear {
    /// The result's type.
    pub result: DType,
    /// What is made of the products.
    pub then: Then,
}

/// What is made of a row of products, in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// `silu(g) u` of the first half g and the second half u.
    SwiGlu,
}

impl Then {
    /// Parts into which the products are cut.
    fn parts(self) -> usize {
        match self {
            Then::Nothing => 1,
            Then::SwiGlu => 2,
        }
    }
}

/// More rows than these are left to XLA, which packs the matrix once for all of them.
const MOST_ROWS: usize = 4 * ROWS;

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
        format!("few_rows_linear({}, {:?})", self.result, self.then)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let ([n, _, v], parts) = (FewRowsLinear::sizes(args)?, self.then.parts());
        if v % parts != 0 {
            return Err(ShapeError(format!("{v} columns are not {parts} times as many")));
        }
        Ok(vec![Type::new(self.result, [n, v / parts])])
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let product = |result| args[0].einsum_as("nm,mv->nv", args[1], result);
        vec![match self.then {
            Then::Nothing => product(self.result),
            Then::SwiGlu => {
                let both = product(wide(args[0].dtype()));
                let inner = both.dim(1) / 2;
                let (g, u) = (both.slice_axis(1, 0, inner), both.slice_axis(1, inner, 2 * inner));
                (g * g.logistic() * u).convert(self.result)
            }
        }]
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("nothing is trained on few rows")
    }

    fn lower(&self, args: &[Type], target: Target, choice: KernelChoice) -> Lowering {
        let [n, _, v] = FewRowsLinear::sizes(args).expect("checked when called");
        let wanted = target == Target::Cpu && matches!(choice, KernelChoice::Auto | KernelChoice::Native);
        let f32s = args[0].dtype == DType::F32 && self.result == DType::F32;
        let parts = self.then.parts();
        if !wanted || !f32s || n > MOST_ROWS || v % (16 * parts) != 0 {
            return Lowering::Reference;
        }
        let result = Type::f32([n, v / parts]);
        Lowering::Native(Func::build(args, |f, args| {
            f.host_call(HostCall::new::<FewRowsLinear>(vec![parts as i64], vec![result]), args)
        }))
    }
}

impl HostFunction for FewRowsLinear {
    const NAME: &'static str = "few_rows_linear";

    fn call(Frame { attributes, operands, results, workers }: Frame<'_>) {
        let [x, w] = operands[..] else { unreachable!("x and W") };
        let &[m, columns] = w.shape() else { unreachable!("[m, v]") };
        let v = columns / attributes[0] as usize;
        let (x, w) = (x.as_slice::<f32>(), w.as_slice::<f32>());
        let Some(y) = results.into_iter().next() else { unreachable!("one result") };
        let y = y.into_slice::<f32>();
        for (x, y) in x.chunks(ROWS * m).zip(y.chunks_mut(ROWS * v)) {
            // Columns of all rows, in pieces.
            let rows = (y.len() / v).max(2);
            let most = if m * columns * rows < WORTH_SHARING { 1 } else { 4 * workers.threads() };
            let pieces = (columns / COLUMNS).clamp(1, most);
            let width = (v / 16).div_ceil(pieces) * 16;
            let part = |first: usize| Columns { data: &w[first..], stride: columns };
            let mut items: Vec<Piece<'_>> = (0..v)
                .step_by(width)
                .map(|first| Piece {
                    x,
                    w: part(first),
                    second: (columns > v).then(|| part(v + first)),
                    depth: m,
                    y: Vec::new(),
                })
                .collect();
            for row in y.chunks_mut(v) {
                items.iter_mut().zip(row.chunks_mut(width)).for_each(|(item, columns)| item.y.push(columns));
            }
            workers.for_each(items, |piece| Arch::new().dispatch(piece));
        }
    }
}

/// Some columns of the result.
struct Piece<'a> {
    x: &'a [f32],
    w: Columns<'a>,
    /// Of SwiGLU's second half.
    second: Option<Columns<'a>>,
    depth: usize,
    y: Vec<&'a mut [f32]>,
}

impl WithSimd for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Piece { x, w, second, depth, mut y } = self;
        multiply(simd, x, depth, w, y.iter_mut().map(|row| &mut **row).collect());
        let Some(second) = second else { return };
        let width = y[0].len();
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
