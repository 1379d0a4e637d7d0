//! The gradient, a kernel of its own: plain operations, which XLA fuses, or on the CPU tiles that stay in the cache.

use super::{SwiGlu, activated, cpu, silu};
use crate::rms_norm_linear::scaled;
use crate::wide;
use engine::{Backward, Form, Func, Kernel, ShapeError, Target, Tensor, Type};

/// Arguments: those of the forward kernel, its g and u `[n, i]`, and dy `[n, m]`. Results: dx `[n, m]`, and in f32, so that
/// sums of them are not rounded in between, dWg, dWu `[m, i]` and dWd `[i, m]`.
#[derive(Clone, Debug)]
pub(super) struct SwiGluBackward {
    pub(super) forward: SwiGlu,
}

impl SwiGluBackward {
    /// The forward kernel's arguments, and g, u, dy.
    fn split<T>(args: &[T]) -> Option<(&[T], &[T; 3])> {
        args.split_last_chunk()
    }
}

impl Kernel for SwiGluBackward {
    fn name(&self) -> String {
        format!("swiglu_backward(rate={})", self.forward.rate)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let Some((args, [g, u, dy])) = SwiGluBackward::split(args) else {
            return Err(ShapeError("wants the forward kernel's arguments, g, u and dy".to_owned()));
        };
        let hidden = self.forward.hidden(args)?;
        if [g, u] != [&hidden; 2] || *dy != args[0] {
            return Err(ShapeError(format!("wants g and u {hidden} and dy {}", args[0])));
        }
        let d_weight = |weight: &Type| weight.with_dtype(wide(weight.dtype));
        Ok([&[args[0].clone()][..], &[2, 3, 4].map(|weight: usize| d_weight(&args[weight]))].concat())
    }

    /// dWd = h^T dy and dh = dy Wd^T. With a = g s, s = sigmoid(g): du = r dh mask a, dg = r dh mask u s (1 + g (1 - s)) are
    /// the cotangents of the products; dWg = x^T dg, dWu = x^T du, dx = dg Wg^T + du Wu^T.
    fn reference<'f>(&self, all: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let (args, &[narrow_g, narrow_u, dy]) = SwiGluBackward::split(all).expect("checked when called");
        let &[x, scale, gate, up, down, ..] = args else { unreachable!("checked when called") };
        let (narrow, wide) = (x.dtype(), wide(x.dtype()));
        let (g, u) = (narrow_g.convert(wide), narrow_u.convert(wide));
        let mask = self.forward.mask(args);
        let h = activated(narrow_g, narrow_u, mask);
        let d_down = h.einsum_as("ni,nm->im", dy, wide);
        let dh = dy.einsum("nm,im->ni", down).convert(wide);
        let dh = mask.map_or(dh, |mask| dh * mask);
        let (a, s) = silu(g);
        let du = scaled(dh * a, scale).convert(narrow);
        let dg = scaled(dh * u * s * (1.0 + g * (1.0 - s)), scale).convert(narrow);
        let [dg, du] = Tensor::materialized([dg, du]);
        let [dx] = Tensor::materialized([dg.einsum("ni,mi->nm", gate) + du.einsum("ni,mi->nm", up)]);
        let [d_gate, d_up] = [dg, du].map(|ct| x.einsum_as("nm,ni->mi", ct, wide));
        vec![dx, d_gate, d_up, d_down]
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("second derivatives are not needed for training")
    }

    fn differentiable(&self) -> usize {
        4
    }

    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }

    fn lower(&self, args: &[Type], target: Target, wanted: Option<Form>) -> Option<(Form, Func)> {
        match target {
            Target::Cpu if Form::takes_native(wanted) => {
                cpu::func(self, args).map(|func| (Form::Native, func))
            }
            _ => None,
        }
    }
}
