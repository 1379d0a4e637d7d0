//! A linear map of few rows: what decoding spends its time in. Every number of the matrix is read once for all rows, so
//! the time is that of the matrix's bytes; XLA's CPU code for two rows and more packs the whole matrix anew first.

use crate::host::rows::{Columns, ROWS, multiply};
use engine::{
    Backward, DType, Frame, Func, HostCall, HostFunction, Kernel, KernelChoice, Lowering, ShapeError, Target,
    Tensor, Type,
};
use pulp::{Arch, Simd, WithSimd};

/// Arguments: x `[n, m]` and W `[m, v]` of one float type. Result: `x W`, `[n, v]`.
#[derive(Clone, Copy, Debug)]
pub struct FewRowsLinear {
    /// The result's type.
    pub result: DType,
}

/// More rows than these are left to XLA, which packs the matrix once for all of them.
const MOST_ROWS: usize = 4 * ROWS;

/// Columns of one piece of work, at least.
const COLUMNS: usize = 128;

/// Multiplications, those of four rows at least, that are worth a second thread: some 10 us, of which waking it up and
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
        let (x, w) = (x.as_slice::<f32>(), w.as_slice::<f32>());
        let Some(y) = results.into_iter().next() else { unreachable!("one result") };
        let y = y.into_slice::<f32>();
        for (x, y) in x.chunks(ROWS * m).zip(y.chunks_mut(ROWS * v)) {
            // Columns of all rows, in pieces.
            let rows = (y.len() / v).max(4);
            let most = if m * v * rows < WORTH_SHARING { 1 } else { 4 * workers.threads() };
            let pieces = (v / COLUMNS).clamp(1, most);
            let width = (v / 16).div_ceil(pieces) * 16;
            let mut items: Vec<Piece<'_>> = (0..v)
                .step_by(width)
                .map(|first| Piece {
                    x,
                    w: Columns { data: &w[first..], stride: v },
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
    depth: usize,
    y: Vec<&'a mut [f32]>,
}

impl WithSimd for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        multiply(simd, self.x, self.depth, self.w, self.y);
    }
}
