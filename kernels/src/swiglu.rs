//! SwiGLU: `h = mask * silu(x Wg) * (x Wu)`, the dropout mask in the epilogue. Source: arXiv 2002.05202; gradient SPEC 8.2.

use crate::wide;
use engine::{Backward, Kernel, KernelChoice, Lowering, ShapeError, Target, Tensor, Type};

/// Arguments: x `[n, m]`, Wg and Wu `[m, i]`, and with dropout the mask's scale `[n, i]` of x's type (0 or 1/(1-p)).
/// Results: h, g = x Wg and u = x Wu, each `[n, i]`; g and u are what the gradient needs.
#[derive(Clone, Debug)]
pub struct SwiGlu;

impl SwiGlu {
    fn sizes(args: &[Type]) -> Result<Type, ShapeError> {
        let complain = |wanted: String| Err(ShapeError(format!("wants {wanted}")));
        let (3 | 4, [x, gate, up, ..]) = (args.len(), args) else {
            return complain("x, the gate and the up matrix, and perhaps a mask".to_owned());
        };
        let (&[n, m], &[gm, i]) = (&x.shape[..], &gate.shape[..]) else {
            return complain("x [n, m] and matrices [m, i]".to_owned());
        };
        if gm != m || up != gate || x.dtype != gate.dtype || !x.dtype.is_float() {
            return complain(format!("gate and up {}[{m},i]", x.dtype));
        }
        let hidden = x.with_shape([n, i]);
        if args.get(3).is_some_and(|mask| *mask != hidden) {
            return complain(format!("a mask {hidden}"));
        }
        Ok(hidden)
    }
}

/// `g sigmoid(g)` and its factors, in f32.
fn silu<'f>(g: Tensor<'f>) -> (Tensor<'f>, Tensor<'f>) {
    let s = g.logistic();
    (g * s, s)
}

impl Kernel for SwiGlu {
    fn name(&self) -> String {
        "swiglu".to_owned()
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let hidden = SwiGlu::sizes(args)?;
        Ok(vec![hidden.clone(), hidden.clone(), hidden])
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let (x, narrow) = (args[0], args[0].dtype());
        let wide = wide(narrow);
        let g = x.einsum("nm,mi->ni", args[1]);
        let u = x.einsum("nm,mi->ni", args[2]);
        let h = silu(g.convert(wide)).0 * u.convert(wide);
        let h = args.get(3).map_or(h, |mask| h * mask.convert(wide));
        vec![h.convert(narrow), g, u]
    }

    /// With a = g s, s = sigmoid(g): du = dh mask a, dg = dh mask u s (1 + g (1 - s)); the rest are matrix products.
    fn vjp<'f>(
        &self,
        args: &[Tensor<'f>],
        results: &[Tensor<'f>],
        cts: &[Tensor<'f>],
        wanted: &[bool],
    ) -> Backward<'f> {
        let (x, narrow) = (args[0], args[0].dtype());
        let wide = wide(narrow);
        let (g, u) = (results[1].convert(wide), results[2].convert(wide));
        let dh = cts[0].convert(wide);
        let dh = args.get(3).map_or(dh, |mask| dh * mask.convert(wide));
        let (a, s) = silu(g);
        // g and u are results too: what others ask of them is added.
        let du = (dh * a).convert(narrow) + cts[2];
        let dg = (dh * u * s * (1.0 + g * (1.0 - s))).convert(narrow) + cts[1];
        let dx = dg.einsum("ni,mi->nm", args[1]) + du.einsum("ni,mi->nm", args[2]);
        let mut grads = vec![Some(dx), Some(x.einsum("nm,ni->mi", dg)), Some(x.einsum("nm,ni->mi", du))];
        if wanted.len() == 4 {
            grads.push(wanted[3].then(|| (cts[0].convert(wide) * a * u).convert(narrow)));
        }
        Backward::Grads(grads)
    }

    fn lower(&self, _: &[Type], _: Target, _: KernelChoice) -> Lowering {
        // XLA fuses the epilogue; by its own cycle counts a hand-written form ties with it on the v6e.
        Lowering::Reference
    }
}
