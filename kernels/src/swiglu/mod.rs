//! SwiGLU of scaled rows: `h = mask * silu(r (x Wg)) * (r (x Wu))`, the dropout mask in the epilogue. The scale is what an
//! RMS norm does to a row; its weight is part of the matrices. Source: arXiv 2002.05202; gradient SPEC 8.2.

mod tiles;

use crate::dropout::dropout_mask;
use crate::row_dot::row_dot;
use crate::scaled_linear::scaled;
use crate::wide;
use engine::{Backward, DType, Func, Kernel, KernelChoice, Lowering, ShapeError, Target, Tensor, Type};
use tiles::Tiles;

/// Arguments: x `[n, m]`, the scale r of each row `[n]` f32, Wg and Wu `[m, i]`, and with dropout the random words of rows
/// `u32[n]` and columns `u32[i]` ([`dropout_mask`]). Results: h, g = r (x Wg) and u = r (x Wu), each `[n, i]`; g and u are
/// what the gradient needs.
#[derive(Clone, Debug)]
pub struct SwiGlu {
    /// Probability to drop an element of h; 0 is off.
    pub rate: f64,
}

impl SwiGlu {
    fn sizes(&self, args: &[Type]) -> Result<Type, ShapeError> {
        let complain = |wanted: String| Err(ShapeError(format!("wants {wanted}")));
        let [x, scale, gate, up, words @ ..] = args else {
            return complain("x, its scale, the gate and the up matrix, and perhaps random words".to_owned());
        };
        let (&[n, m], &[gm, i]) = (&x.shape[..], &gate.shape[..]) else {
            return complain("x [n, m] and matrices [m, i]".to_owned());
        };
        if gm != m || up != gate || x.dtype != gate.dtype || !x.dtype.is_float() {
            return complain(format!("gate and up {}[{m},i]", x.dtype));
        }
        if *scale != Type::new(wide(x.dtype), [n]) {
            return complain(format!("the rows' scale {}[{n}]", wide(x.dtype)));
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
        let &[rows, columns] = args.get(4..)? else { return None };
        Some(dropout_mask(rows, columns, self.rate, wide(args[0].dtype())))
    }
}

/// h of g and u.
fn activated<'f>(g: Tensor<'f>, u: Tensor<'f>, mask: Option<Tensor<'f>>) -> Tensor<'f> {
    let (narrow, wide) = (g.dtype(), wide(g.dtype()));
    let h = silu(g.convert(wide)).0 * u.convert(wide);
    mask.map_or(h, |mask| h * mask).convert(narrow)
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
        let (x, scale, narrow) = (args[0], args[1], args[0].dtype());
        let wide = wide(narrow);
        let product = |w: Tensor<'f>| scaled(x.einsum_as("nm,mi->ni", w, wide), scale).convert(narrow);
        let (g, u) = (product(args[2]), product(args[3]));
        vec![activated(g, u, self.mask(args)), g, u]
    }

    fn again<'f>(&self, args: &[Tensor<'f>], known: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        let &[_, Some(g), Some(u)] = known else { return None };
        Some(vec![activated(g, u, self.mask(args)), g, u])
    }

    /// With a = g s, s = sigmoid(g): du = r dh mask a, dg = r dh mask u s (1 + g (1 - s)) are the cotangents of the
    /// products, the rest are matrix products, and dr = sum(dx x) / r.
    fn vjp<'f>(
        &self,
        args: &[Tensor<'f>],
        results: &[Tensor<'f>],
        cts: &[Tensor<'f>],
        _: &[bool],
    ) -> Backward<'f> {
        let (x, scale, narrow) = (args[0], args[1], args[0].dtype());
        let wide = wide(narrow);
        let (g, u) = (results[1].convert(wide), results[2].convert(wide));
        let dh = cts[0].convert(wide);
        let dh = self.mask(args).map_or(dh, |mask| dh * mask);
        let (a, s) = silu(g);
        // g and u are results too: what others ask of them is added.
        let du = scaled(dh * a + cts[2].convert(wide), scale).convert(narrow);
        let dg = dh * u * s * (1.0 + g * (1.0 - s)) + cts[1].convert(wide);
        let dg = scaled(dg, scale).convert(narrow);
        let [dg, du] = Tensor::pinned([dg, du]);
        let [dx] = Tensor::pinned([dg.einsum("ni,mi->nm", args[2]) + du.einsum("ni,mi->nm", args[3])]);
        let mut grads = vec![Some(dx), Some(row_dot(dx, x) / scale)];
        grads.extend([dg, du].map(|ct| Some(x.einsum("nm,ni->mi", ct))));
        grads.resize(args.len(), None);
        Backward::Grads(grads)
    }

    fn lower(&self, args: &[Type], target: Target, choice: KernelChoice) -> Lowering {
        // Native only if asked for. 16384 x 1536 x 4096, results h, g and u, static cycles of libtpu 0.0.52
        // (`cargo run -p kernels --example v6e swiglu`, 2026-11-23): native 890,600, with dropout 1,061,810, of which the
        // kernel 855,354 and 1,018,770 and the scaling of x the rest; XLA's two fusions of the reference 851,658 and
        // 939,813. The kernel takes 19,664 and 22,268 KiB of vector memory.
        let wanted = target == Target::TpuV6e && choice == KernelChoice::Native;
        match Tiles::new(self, args).filter(|_| wanted) {
            Some(tiles) => Lowering::Native(Func::build(args, |f, args| {
                let x = scaled(args[0], args[1]).convert(args[0].dtype());
                let args = [&[x], &args[2..]].concat();
                f.custom_call(tiles.program().custom_call(), &tiles.operands(&args))
            })),
            None => Lowering::Reference,
        }
    }
}
