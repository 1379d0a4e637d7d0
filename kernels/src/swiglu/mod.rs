//! SwiGLU of scaled rows: `y = h Wd` with `h = mask * silu(r (x Wg)) * (r (x Wu))`, the dropout mask in the epilogue. The
//! scale is what an RMS norm does to a row; its weight is part of the matrices. Source: arXiv 2002.05202; gradient: [`gradients`](crate::gradients).
//!
//! The down projection is part of it for the gradient: where that is one kernel, h, its cotangent and those of g and u are
//! never whole arrays.

mod backward;
mod cpu;
mod tpu;

use crate::dropout::dropout_mask;
use crate::example::{ACTIVATIONS, Example, Values};
use crate::rms_norm_linear::scaled;
use crate::row_dot::row_dot;
use crate::wide;
use backward::SwiGluBackward;
use engine::{Backward, DType, Form, Func, Kernel, ShapeError, Target, Tensor, Type};

/// Arguments: x `[n, m]`, the scale r of each row `[n]` f32, Wg and Wu `[m, i]`, Wd `[i, m]`, and with dropout the random
/// words of rows `u32[n]` and columns `u32[i]` ([`dropout_mask`]). Results: y `[n, m]`, and what the gradient needs besides:
/// g = r (x Wg) and u = r (x Wu), each `[n, i]`.
#[derive(Clone, Debug)]
pub struct SwiGlu {
    /// Probability to drop an element of h; 0 is off.
    pub rate: f64,
}

impl SwiGlu {
    /// The type of g and u.
    fn hidden(&self, args: &[Type]) -> Result<Type, ShapeError> {
        let complain = |wanted: String| Err(ShapeError(format!("wants {wanted}")));
        let [x, scale, gate, up, down, words @ ..] = args else {
            return complain(
                "x, its scale, the gate, up and down matrix, and perhaps random words".to_owned(),
            );
        };
        let (&[n, m], &[gm, i]) = (&x.shape[..], &gate.shape[..]) else {
            return complain("x [n, m] and matrices [m, i]".to_owned());
        };
        if gm != m || up != gate || x.dtype != gate.dtype || !x.dtype.is_float() {
            return complain(format!("gate and up {}[{m},i]", x.dtype));
        }
        if *down != gate.with_shape([i, m]) {
            return complain(format!("down {}", gate.with_shape([i, m])));
        }
        if *scale != Type::new(wide(x.dtype), [n]) {
            return complain(format!("the rows' scale {}[{n}]", wide(x.dtype)));
        }
        let wanted = match self.rate {
            0.0 => vec![],
            _ => vec![Type::new(DType::U32, [n]), Type::new(DType::U32, [i])],
        };
        if words != wanted {
            return complain(format!("random words {wanted:?} after the matrices"));
        }
        Ok(x.with_shape([n, i]))
    }

    /// The mask, if there is one.
    fn mask<'f>(&self, args: &[Tensor<'f>]) -> Option<Tensor<'f>> {
        let &[rows, columns] = args.get(5..)? else { return None };
        Some(dropout_mask(rows, columns, self.rate, wide(args[0].dtype())))
    }

    /// The results of g and u.
    fn finish<'f>(&self, args: &[Tensor<'f>], g: Tensor<'f>, u: Tensor<'f>) -> Vec<Tensor<'f>> {
        let h = activated(g, u, self.mask(args));
        vec![h.einsum("ni,im->nm", args[4]), g, u]
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

/// With dropout and without.
pub(crate) fn examples() -> Vec<Example> {
    let example = |rate: f64| {
        let (n, m, i) = (256, 128, 256);
        let words =
            |count: usize| (Type::new(DType::U32, [count]), Values::Between(0.0, f64::from(u32::MAX)));
        let mut args = vec![
            (Type::f32([n, m]), ACTIVATIONS),
            (Type::f32([n]), Values::Between(0.5, 1.5)),
            (Type::f32([m, i]), Values::Between(-0.2, 0.2)),
            (Type::f32([m, i]), Values::Between(-0.2, 0.2)),
            (Type::f32([i, m]), Values::Between(-0.2, 0.2)),
        ];
        if rate > 0.0 {
            args.extend([words(n), words(i)]);
        }
        Example::new(SwiGlu { rate }, args, &[0, 1, 2, 3, 4], &[Target::TpuV6e])
    };
    vec![example(0.0), example(0.1)]
}

impl Kernel for SwiGlu {
    fn name(&self) -> String {
        format!("swiglu(rate={})", self.rate)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let hidden = self.hidden(args)?;
        Ok(vec![args[0].clone(), hidden.clone(), hidden])
    }

    fn differentiable(&self) -> usize {
        1
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let (x, scale, narrow) = (args[0], args[1], args[0].dtype());
        let wide = wide(narrow);
        let product = |w: Tensor<'f>| scaled(x.einsum_as("nm,mi->ni", w, wide), scale).convert(narrow);
        self.finish(args, product(args[2]), product(args[3]))
    }

    fn recompute<'f>(&self, args: &[Tensor<'f>], known: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        let &[_, Some(g), Some(u)] = known else { return None };
        Some(self.finish(args, g, u))
    }

    /// Of the backward kernel, and dr = sum(dx x) / r; 0 where r is 0, for h is of second order in r.
    fn vjp<'f>(
        &self,
        args: &[Tensor<'f>],
        results: &[Tensor<'f>],
        cts: &[Tensor<'f>],
        _: &[bool],
    ) -> Backward<'f> {
        let (x, scale) = (args[0], args[1]);
        let operands = [args, &results[1..], &cts[..1]].concat();
        let kernel = SwiGluBackward { forward: self.clone() };
        let [dx, d_weights @ ..] = &x.builder().kernel(kernel, &operands)[..] else {
            unreachable!("four results")
        };
        let d_scale = scale.eq(0.0).select(scale.zeros_like(), row_dot(*dx, x) / scale);
        let mut grads = vec![Some(*dx), Some(d_scale)];
        grads.extend(d_weights.iter().map(|d_weight| Some(d_weight.convert(x.dtype()))));
        grads.resize(args.len(), None);
        Backward::Grads(grads)
    }

    fn lower(&self, args: &[Type], target: Target, wanted: Option<Form>) -> Option<(Form, Func)> {
        // Native only if asked for. 16384 x 1536 x 4096, static cycles of libtpu 0.0.52 (`cargo run -p kernels --example v6e
        // swiglu`, 2026-11-28): native 1,302,101, with dropout 1,473,311, of which the kernel 855,354 and 1,018,770, the down
        // projection 411,501 and the scaling of x 35,246; XLA's three fusions of the reference 1,309,996 and 1,440,171, of
        // which the first two, the same maths as the kernel and the scaling, 831,458. The kernel takes 31.2 and 21.7 MiB of
        // vector memory. So without dropout they tie, with it XLA wins.
        match (target, wanted) {
            (Target::TpuV6e, Some(Form::Native)) => tpu::func(self, args).map(|func| (Form::Native, func)),
            _ => None,
        }
    }
}
