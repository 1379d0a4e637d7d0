//! A linear map of rows over their root mean square: an RMS norm and the projection after it, once the norm's weight is
//! part of the matrix.

use crate::example::{ACTIVATIONS, Example, Values};
use crate::row_dot::row_dot;
use crate::wide;
use engine::{Backward, Form, Func, Kernel, ShapeError, Target, Tensor, Type};

/// Arguments: x `[n, m]`, the scale r of each row `[n]` f32, W `[m, w]` of x's type. Result: `y = r (x W)`, `[n, w]`.
///
/// It is a kernel for its gradient. Autodiff would keep `x W` beside y to find r's cotangent; but with dy W^T, which x wants
/// anyway, it is `sum((dy W^T) x)`.
#[derive(Clone, Debug)]
pub struct RmsNormLinear;

/// `r = 1 / sqrt(mean(x^2) + eps)` of each row, `[n]` f32. x: `[n, m]`.
pub fn rms_scale<'f>(x: Tensor<'f>, eps: f64) -> Tensor<'f> {
    (row_dot(x, x) * (1.0 / x.dim(1) as f64) + eps).rsqrt()
}

/// Rows of x `[n, m]`, each times its scale `[n]`, in f32.
pub(crate) fn scaled<'f>(x: Tensor<'f>, scale: Tensor<'f>) -> Tensor<'f> {
    let x = x.convert(scale.dtype());
    x * scale.along(x, &[0])
}

pub(crate) fn examples() -> Vec<Example> {
    let args = vec![
        (Type::f32([9, 24]), ACTIVATIONS),
        (Type::f32([9]), Values::Between(0.5, 1.5)),
        (Type::f32([24, 40]), ACTIVATIONS),
    ];
    vec![Example::new(RmsNormLinear, args, &[0, 1, 2], &[])]
}

impl Kernel for RmsNormLinear {
    fn name(&self) -> String {
        "rms_norm_linear".to_owned()
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let [x, scale, w] = args else {
            return Err(ShapeError("wants x, the rows' scale and W".to_owned()));
        };
        let (&[n, m], &[rows, width]) = (&x.shape[..], &w.shape[..]) else {
            return Err(ShapeError("wants x [n, m] and W [m, w]".to_owned()));
        };
        if rows != m || w.dtype != x.dtype || !x.dtype.is_float() || *scale != Type::new(wide(x.dtype), [n]) {
            return Err(ShapeError(format!("wants W {}[{m}, w] and scales {}[{n}]", x.dtype, wide(x.dtype))));
        }
        Ok(vec![x.with_shape([n, width])])
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let &[x, scale, w] = args else { unreachable!("checked when the kernel was called") };
        let product = x.einsum_as("nm,mw->nw", w, scale.dtype());
        vec![scaled(product, scale).convert(x.dtype()).row_major()]
    }

    /// With p = dy W^T: dx = r p, dr = sum(p x), dW = (r x)^T dy. What is scaled is the narrow side, or a product's result.
    fn vjp<'f>(&self, args: &[Tensor<'f>], _: &[Tensor<'f>], cts: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        let &[x, scale, w] = args else { unreachable!("checked when the kernel was called") };
        let [product] = Tensor::materialized([cts[0].einsum("nw,mw->nm", w)]);
        let dx = scaled(product, scale).convert(x.dtype());
        let dw = scaled(x, scale).convert(x.dtype()).einsum("nm,nw->mw", cts[0]);
        Backward::Grads(vec![Some(dx), Some(row_dot(product, x)), Some(dw)])
    }

    fn differentiable(&self) -> usize {
        1
    }

    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }

    fn lower(&self, _: &[Type], _: Target, _: Option<Form>) -> Option<(Form, Func)> {
        None
    }
}
