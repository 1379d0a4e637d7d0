//! The greatest logit of each row, where it is, and the logarithm of the row's sum of exponentials: what drawing a token
//! asks of a row. XLA's CPU code takes three passes for it, one number after the other.

use crate::host::exponential::{exp2, tanh};
use engine::{
    Backward, DType, Frame, Func, HostCall, HostFunction, Kernel, KernelChoice, Lowering, ShapeError, Target,
    Tensor, Type,
};
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::{LN_2, LOG2_E};

/// Argument: logits `[b, v]` f32, none of them NaN. Results: the first place of each row's greatest logit, i32 `[b]`, that
/// logit behind the cap, `[b]`, and `log sum exp` of all behind the cap, `[b]`.
#[derive(Clone, Copy, Debug)]
pub struct Greatest {
    /// Soft cap of the logits, `cap tanh(x / cap)`; 0 is off.
    pub cap: f64,
    /// Columns from here on are padding: they count in nothing.
    pub columns: usize,
}

impl Kernel for Greatest {
    fn name(&self) -> String {
        format!("greatest(cap={}, columns={})", self.cap, self.columns)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        match args {
            [logits] if logits.rank() == 2 && logits.dtype == DType::F32 => {
                if self.columns == 0 || self.columns > logits.shape[1] {
                    return Err(ShapeError(format!("{} columns of {}", self.columns, logits.shape[1])));
                }
                let rows = Type::f32([logits.shape[0]]);
                Ok(vec![rows.with_dtype(DType::I32), rows.clone(), rows])
            }
            _ => Err(ShapeError("wants logits f32[b, v]".to_owned())),
        }
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let logits = args[0].slice_axis(1, 0, self.columns);
        let capped = if self.cap > 0.0 { (logits * (1.0 / self.cap)).tanh() * self.cap } else { logits };
        let top = capped.reduce_max(&[1]);
        let sum = (capped - top.along(capped, &[0])).exp().sum(&[1]);
        vec![logits.argmax(1), top, sum.log() + top]
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("nothing is trained through a draw")
    }

    fn lower(&self, args: &[Type], target: Target, choice: KernelChoice) -> Lowering {
        let wanted = target == Target::Cpu && matches!(choice, KernelChoice::Auto | KernelChoice::Native);
        if !wanted {
            return Lowering::Reference;
        }
        let results = self.infer(args).expect("checked when called");
        let attributes = vec![self.cap.to_bits() as i64, self.columns as i64];
        Lowering::Native(Func::build(args, |f, args| {
            f.host_call(HostCall::new::<Greatest>(attributes, results), args)
        }))
    }
}

impl HostFunction for Greatest {
    const NAME: &'static str = "greatest";

    fn call(Frame { attributes, operands, results, workers }: Frame<'_>) {
        let &[cap, columns] = attributes else { unreachable!("as the call was made") };
        let cap = f64::from_bits(cap as u64) as f32;
        let v = operands[0].shape()[1];
        let Ok([place, top, lse]) = <[_; 3]>::try_from(results) else { unreachable!("three results") };
        let (place, top, lse) = (place.into_slice::<i32>(), top.into_slice::<f32>(), lse.into_slice::<f32>());
        let rows = operands[0].as_slice::<f32>().chunks(v).map(|row| &row[..columns as usize]);
        let items = rows.zip(place).zip(top.iter_mut().zip(lse)).collect();
        workers.for_each(items, |((logits, place), (top, lse))| {
            (*place, *top, *lse) = Arch::new().dispatch(Row { logits, cap });
        });
    }
}

struct Row<'a> {
    logits: &'a [f32],
    cap: f32,
}

impl WithSimd for Row<'_> {
    type Output = (i32, f32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (i32, f32, f32) {
        let (logits, rest) = S::as_simd_f32s(self.logits);
        let mut tops = [simd.splat_f32s(f32::NEG_INFINITY); 4];
        for (i, &x) in logits.iter().enumerate() {
            tops[i % 4] = simd.max_f32s(tops[i % 4], x);
        }
        let tops = tops.map(|top| simd.reduce_max_f32s(top));
        let greatest = tops.iter().chain(rest).fold(f32::NEG_INFINITY, |top, &x| top.max(x));
        let place = self.logits.iter().position(|&x| x == greatest).unwrap_or(0);
        let cap = self.cap;
        let top = capped(simd, simd.splat_f32s(greatest), cap);
        // Four sums side by side: one alone would wait for its own additions.
        let mut sums = [simd.splat_f32s(0.0); 4];
        for (i, &x) in logits.iter().enumerate() {
            sums[i % 4] = simd.add_f32s(sums[i % 4], exp2(simd, simd.sub_f32s(capped(simd, x, cap), top)));
        }
        let mut last = 0.0;
        for &x in rest {
            let power = exp2(simd, simd.sub_f32s(capped(simd, simd.splat_f32s(x), cap), top));
            last += simd.reduce_max_f32s(power);
        }
        let sum = sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).sum::<f32>() + last;
        let top = simd.reduce_max_f32s(top) * LN_2;
        (place as i32, top, sum.log2() * LN_2 + top)
    }
}

/// `cap tanh(x / cap)`, or x where cap is 0, times log2(e).
#[inline(always)]
fn capped<S: Simd>(simd: S, x: S::f32s, cap: f32) -> S::f32s {
    if cap == 0.0 {
        return simd.mul_f32s(x, simd.splat_f32s(LOG2_E));
    }
    let tanh = tanh(simd, simd.mul_f32s(x, simd.splat_f32s(cap.recip())));
    simd.mul_f32s(tanh, simd.splat_f32s(cap * LOG2_E))
}
