//! The greatest logit of each row, where it is, and the logarithm of the row's sum of exponentials: what drawing a token
//! asks of a row. XLA's CPU code takes three passes for it, one number after the other.

use crate::host::exponential::exp2;
use engine::{
    Backward, DType, Frame, Func, HostCall, HostFunction, Kernel, KernelChoice, Lowering, ShapeError, Target,
    Tensor, Type,
};
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::{LN_2, LOG2_E};

/// Argument: logits `[b, v]` f32, none of them NaN. Results: the first place of each row's greatest number, i32 `[b]`,
/// that number, `[b]`, and `log sum exp`, `[b]`.
#[derive(Clone, Copy, Debug)]
pub struct Greatest;

impl Kernel for Greatest {
    fn name(&self) -> String {
        "greatest".to_owned()
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        match args {
            [logits] if logits.rank() == 2 && logits.dtype == DType::F32 => {
                let rows = Type::f32([logits.shape[0]]);
                Ok(vec![rows.with_dtype(DType::I32), rows.clone(), rows])
            }
            _ => Err(ShapeError("wants logits f32[b, v]".to_owned())),
        }
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let logits = args[0];
        let top = logits.reduce_max(&[1]);
        let sum = (logits - top.along(logits, &[0])).exp().sum(&[1]);
        vec![logits.argmax(1), top, sum.log() + top]
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("nothing is trained through a draw")
    }

    fn lower(&self, args: &[Type], target: Target, choice: KernelChoice) -> Lowering {
        let wanted = target == Target::Cpu && matches!(choice, KernelChoice::Auto | KernelChoice::Native);
        if !wanted || !args[0].shape[1].is_multiple_of(16) {
            return Lowering::Reference;
        }
        let results = self.infer(args).expect("checked when called");
        Lowering::Native(Func::build(args, |f, args| {
            f.host_call(HostCall::new::<Greatest>(vec![], results), args)
        }))
    }
}

impl HostFunction for Greatest {
    const NAME: &'static str = "greatest";

    fn call(Frame { operands, results, .. }: Frame<'_>) {
        let v = operands[0].shape()[1];
        let Ok([place, top, lse]) = <[_; 3]>::try_from(results) else { unreachable!("three results") };
        let (place, top, lse) = (place.into_slice::<i32>(), top.into_slice::<f32>(), lse.into_slice::<f32>());
        for (row, logits) in operands[0].as_slice::<f32>().chunks(v).enumerate() {
            (place[row], top[row], lse[row]) = Arch::new().dispatch(Row { logits });
        }
    }
}

struct Row<'a> {
    logits: &'a [f32],
}

impl WithSimd for Row<'_> {
    type Output = (i32, f32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (i32, f32, f32) {
        let logits = S::as_simd_f32s(self.logits).0;
        let mut top = simd.splat_f32s(f32::NEG_INFINITY);
        logits.iter().for_each(|&x| top = simd.max_f32s(top, x));
        let top = simd.reduce_max_f32s(top);
        let (shift, log2_e) = (simd.splat_f32s(-top * LOG2_E), simd.splat_f32s(LOG2_E));
        // Four sums side by side: one alone would wait for its own additions.
        let mut sums = [simd.splat_f32s(0.0); 4];
        for (i, &x) in logits.iter().enumerate() {
            sums[i % 4] = simd.add_f32s(sums[i % 4], exp2(simd, simd.mul_add_f32s(x, log2_e, shift)));
        }
        let sum = sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).sum::<f32>();
        let place = self.logits.iter().position(|&x| x == top).unwrap_or(0);
        (place as i32, top, sum.log2() * LN_2 + top)
    }
}
