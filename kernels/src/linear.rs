//! A linear map of a few rows: what decoding spends its time in. Every number of the matrix is read once for eight rows, so
//! the time is that of the matrix's bytes, or of the multiplications if it lies in panels.

use crate::host::exponential::exp2;
use crate::host::rows::{Columns, ROWS, multiply};
use engine::{
    Backward, DType, Frame, Func, HostCall, HostFunction, Kernel, KernelChoice, Lowering, ShapeError, Target,
    Tensor, Type, Workers,
};
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::LOG2_E;

/// Arguments: x `[n, m]` and W of one float type, `[m, v]` or in panels, `[v/16, m, 16]`. Result: `x W`, `[n, v]`.
///
/// In panels a row of 16 columns is a cache line, and lines that are read one after the other lie one after the other. That
/// is what the CPU's native form wants: by rows of a wide matrix it reached half of the speed.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// The result's type.
    pub result: DType,
}

/// Columns of a panel: a cache line of f32.
pub const PANEL: usize = 16;

/// Columns of one piece of work, at least.
const COLUMNS: usize = 48;

/// Multiplications that are worth a second thread: 5 to 20 us, of which waking it up and waiting for it takes a third.
const WORTH_SHARING: usize = 1 << 20;

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

impl Linear {
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

impl Kernel for Linear {
    fn name(&self) -> String {
        format!("linear({})", self.result)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        Ok(vec![Type::new(self.result, Linear::sizes(args)?)])
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

    fn again<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }

    fn lower(&self, args: &[Type], target: Target, choice: KernelChoice) -> Lowering {
        let wanted = target == Target::Cpu && matches!(choice, KernelChoice::Auto | KernelChoice::Native);
        let f32s = args[0].dtype == DType::F32 && self.result == DType::F32;
        if !wanted || !f32s || args[1].rank() == 2 {
            return Lowering::Reference;
        }
        let results = self.infer(args).expect("checked when called");
        Lowering::Native(Func::build(args, |f, args| {
            f.host_call(HostCall::new::<Linear>(vec![], results), args)
        }))
    }
}

impl HostFunction for Linear {
    const NAME: &'static str = "linear";

    fn call(Frame { operands, results, workers, .. }: Frame<'_>) {
        let [x, w] = operands[..] else { unreachable!("x and W") };
        let &[panels, m, _] = w.shape() else { unreachable!("[v/16, m, 16]") };
        let Some(y) = results.into_iter().next() else { unreachable!("one result") };
        let (rows, v) = (x.shape()[0], panels * PANEL);
        let workers = if m * v * rows.max(2) < WORTH_SHARING { Workers::caller() } else { workers };
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

/// `x W` and what is made of it. x: `[n, m]`; w in panels: `[v/16, m, 16]`, or twice as many for SwiGLU; y: `[n, v]`.
pub(crate) fn linear(workers: Workers<'_>, x: &[f32], w: &[f32], then: Then<'_>, y: &mut [f32], v: usize) {
    let rows = y.len() / v;
    let m = x.len() / rows;
    // Whole groups of vectors for which there is a product.
    let unit = PANEL * if rows <= 2 { 8 } else { 3 };
    let pieces = (v / COLUMNS).clamp(1, 4 * workers.threads());
    let width = v.div_ceil(pieces).next_multiple_of(unit);
    let w = Columns::panels(w, m);
    let mut items: Vec<Piece<'_>> = (0..v)
        .step_by(width)
        .map(|first| Piece {
            x,
            w: w.from(first),
            depth: m,
            y: Vec::with_capacity(rows),
            then: match then {
                Then::Nothing => Rest::Nothing,
                Then::Plus(other) => Rest::Plus { other: &other[first..], stride: v },
                Then::SwiGlu => Rest::SwiGlu(w.from(v + first)),
            },
        })
        .collect();
    for row in y.chunks_mut(v) {
        items.iter_mut().zip(row.chunks_mut(width)).for_each(|(item, columns)| item.y.push(columns));
    }
    workers.for_each(items, |piece| Arch::new().dispatch(piece));
}

/// What is made of some columns.
enum Rest<'a> {
    Nothing,
    /// The other term's columns, in rows that are `stride` apart.
    Plus {
        other: &'a [f32],
        stride: usize,
    },
    /// The second half's columns of W.
    SwiGlu(Columns<'a>),
}

/// Some columns of the result, of all rows.
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
        for (group, (x, y)) in x.chunks(ROWS * depth).zip(y.chunks_mut(ROWS)).enumerate() {
            multiply(simd, x, depth, w, y.iter_mut().map(|row| &mut **row).collect());
            match then {
                Rest::Nothing => {}
                Rest::Plus { other, stride } => {
                    for (row, y) in y.iter_mut().enumerate() {
                        let other = &other[(group * ROWS + row) * stride..][..y.len()];
                        for (y, &other) in S::as_mut_simd_f32s(y).0.iter_mut().zip(S::as_simd_f32s(other).0) {
                            *y = simd.add_f32s(other, *y);
                        }
                    }
                }
                Rest::SwiGlu(second) => {
                    let width = y[0].len();
                    let mut u = vec![0.0; y.len() * width];
                    multiply(simd, x, depth, second, u.chunks_mut(width).collect());
                    for (g, u) in y.iter_mut().zip(u.chunks(width)) {
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
}
