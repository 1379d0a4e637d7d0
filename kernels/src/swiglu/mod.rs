//! SwiGLU: `h = mask * silu(x Wg) * (x Wu)`, the dropout mask in the epilogue. Source: arXiv 2002.05202; gradient SPEC 8.2.

mod tiles;

use crate::dropout::dropout_mask;
use crate::wide;
use engine::{Backward, DType, Func, Kernel, KernelChoice, Lowering, ShapeError, Target, Tensor, Type};
use tiles::Tiles;

/// Arguments: x `[n, m]`, Wg and Wu `[m, i]`, and with dropout the random words of rows `u32[n]` and columns `u32[i]`
/// ([`dropout_mask`]). Results: h, g = x Wg and u = x Wu, each `[n, i]`; g and u are what the gradient needs.
#[derive(Clone, Debug)]
pub struct SwiGlu {
    /// Probability to drop an element of h; 0 is off.
    pub rate: f64,
}

impl SwiGlu {
    fn sizes(&self, args: &[Type]) -> Result<Type, ShapeError> {
        let complain = |wanted: String| Err(ShapeError(format!("wants {wanted}")));
        let [x, gate, up, words @ ..] = args else {
            return complain(
                "x, the gate and the up matrix, and perhaps words of rows and columns".to_owned(),
            );
        };
        let (&[n, m], &[gm, i]) = (&x.shape[..], &gate.shape[..]) else {
            return complain("x [n, m] and matrices [m, i]".to_owned());
        };
        if gm != m || up != gate || x.dtype != gate.dtype || !x.dtype.is_float() {
            return complain(format!("gate and up {}[{m},i]", x.dtype));
        }
        let wanted = match self.rate {
            0.0 => vec![],
            _ => vec![Type::new(DType::U32, [n]), Type::new(DType::U32, [i])],
        };
        if words != wanted {
            return complain(format!("random words {wanted:?} behind the matrices"));
        }
        Ok(x.with_shape([n, i]))
    }

    /// The mask, if there is one.
    fn mask<'f>(&self, args: &[Tensor<'f>]) -> Option<Tensor<'f>> {
        let &[rows, columns] = args.get(3..)? else { return None };
        Some(dropout_mask(rows, columns, self.rate, wide(args[0].dtype())))
    }
}

/// `g sigmoid(g)` and its factors, in f32.
fn silu<'f>(g: Tensor<'f>) -> (Tensor<'f>, Tensor<'f>) {
    let s = g.logistic();
    (g * s, s)
}

impl Kernel for SwiGlu {
    fn name(&self) -> String {
        format!("swiglu(rate={})", self.rate)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let hidden = self.sizes(args)?;
        Ok(vec![hidden.clone(), hidden.clone(), hidden])
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let (x, narrow) = (args[0], args[0].dtype());
        let wide = wide(narrow);
        let g = x.einsum("nm,mi->ni", args[1]);
        let u = x.einsum("nm,mi->ni", args[2]);
        let h = silu(g.convert(wide)).0 * u.convert(wide);
        let h = self.mask(args).map_or(h, |mask| h * mask);
        vec![h.convert(narrow), g, u]
    }

    /// With a = g s, s = sigmoid(g): du = dh mask a, dg = dh mask u s (1 + g (1 - s)); the rest are matrix products.
    fn vjp<'f>(
        &self,
        args: &[Tensor<'f>],
        results: &[Tensor<'f>],
        cts: &[Tensor<'f>],
        _: &[bool],
    ) -> Backward<'f> {
        let (x, narrow) = (args[0], args[0].dtype());
        let wide = wide(narrow);
        let (g, u) = (results[1].convert(wide), results[2].convert(wide));
        let dh = cts[0].convert(wide);
        let dh = self.mask(args).map_or(dh, |mask| dh * mask);
        let (a, s) = silu(g);
        // g and u are results too: what others ask of them is added.
        let du = (dh * a).convert(narrow) + cts[2];
        let dg = (dh * u * s * (1.0 + g * (1.0 - s))).convert(narrow) + cts[1];
        let dx = dg.einsum("ni,mi->nm", args[1]) + du.einsum("ni,mi->nm", args[2]);
        let mut grads = vec![Some(dx), Some(x.einsum("nm,ni->mi", dg)), Some(x.einsum("nm,ni->mi", du))];
        grads.resize(args.len(), None);
        Backward::Grads(grads)
    }

    fn lower(&self, args: &[Type], target: Target, choice: KernelChoice) -> Lowering {
        // Native only if asked for. 16384 x 1536 x 4096, results h, g and u, static cycles of libtpu 0.0.52
        // (`cargo run -p kernels --example v6e swiglu`, 2026-11-22): native 868,232, with dropout 1,040,471; XLA's two
        // fusions of the reference 834,410 and 942,689.
        let wanted = target == Target::TpuV6e && choice == KernelChoice::Native;
        match Tiles::new(self, args).filter(|_| wanted) {
            Some(tiles) => Lowering::Native(Func::build(args, |f, args| {
                f.custom_call(tiles.program().custom_call(), &tiles.operands(args))
            })),
            None => Lowering::Reference,
        }
    }
}
