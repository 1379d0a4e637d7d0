//! A trivial kernel, `y = x * logistic(x) * w`, that has every form a kernel can have.

use engine::{Backward, CustomCall, Form, Func, Kernel, ShapeError, Target, Tensor, Type};

/// Where the kernel's gradient comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientFrom {
    /// Plain ops, written by hand.
    OwnRule,
    /// A kernel of its own.
    OwnKernel,
    /// The reference, differentiated.
    Reference,
}

impl GradientFrom {
    /// Every one.
    pub const ALL: [GradientFrom; 3] =
        [GradientFrom::OwnRule, GradientFrom::OwnKernel, GradientFrom::Reference];
}

/// `x * logistic(x) * w`, elementwise.
#[derive(Clone, Copy, Debug)]
pub struct GatedUnit {
    /// Where its gradient comes from.
    pub gradient: GradientFrom,
}

/// `ct, x, w -> d x`: the backward kernel.
#[derive(Clone, Copy, Debug)]
struct GatedUnitBackward;

fn same_floats(args: &[Type], count: usize) -> Result<(), ShapeError> {
    if args.len() != count || args.iter().any(|ty| *ty != args[0] || !ty.dtype.is_float()) {
        return Err(ShapeError(format!("wants {count} float operands of one type")));
    }
    match args[0].shape.last() {
        Some(&row) if row > 64 => Err(ShapeError(format!("a row of {row} is longer than 64"))),
        _ => Ok(()),
    }
}

fn slope<'f>(x: Tensor<'f>, w: Tensor<'f>, ct: Tensor<'f>) -> Tensor<'f> {
    // d x s(x) = s + x s (1 - s)
    let s = x.logistic();
    ct * w * (s + x * s * (1.0 - s))
}

impl Kernel for GatedUnit {
    fn name(&self) -> String {
        format!("gated_unit_{:?}", self.gradient)
    }
    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        same_floats(args, 2)?;
        Ok(vec![args[0].clone()])
    }
    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        vec![args[0] * args[0].logistic() * args[1]]
    }
    fn vjp<'f>(
        &self,
        args: &[Tensor<'f>],
        _: &[Tensor<'f>],
        cts: &[Tensor<'f>],
        wanted: &[bool],
    ) -> Backward<'f> {
        let (x, w, ct) = (args[0], args[1], cts[0]);
        let dw = || wanted[1].then(|| ct * x * x.logistic());
        match self.gradient {
            GradientFrom::Reference => Backward::OfReference("this answer is under test"),
            GradientFrom::OwnRule => Backward::Grads(vec![Some(slope(x, w, ct)), dw()]),
            GradientFrom::OwnKernel => {
                let dx = x.builder().kernel(GatedUnitBackward, &[ct, x, w])[0];
                Backward::Grads(vec![Some(dx), dw()])
            }
        }
    }
    fn differentiable(&self) -> usize {
        1
    }
    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }
    fn lower(&self, args: &[Type], target: Target, choice: Option<Form>) -> Option<(Form, Func)> {
        match (target, choice) {
            (_, Some(Form::Reference)) => None,
            (Target::TpuV6e, None | Some(Form::Native)) => Some((
                Form::Native,
                CustomCall {
                    target: "gated_unit".to_owned(),
                    backend_config: "{\"rows\": \"all\"}".to_owned(),
                    kernel_name: self.name(),
                    results: vec![args[0].clone()],
                    aliases: vec![(0, 0)],
                    interpreter: None,
                    in_place: None,
                }
                .alone(args),
            )),
            // x / (1 + e^-x) * w: the same numbers in another way
            _ => Some((
                Form::Portable,
                Func::build(args, |_, args| vec![args[0] / ((-args[0]).exp() + 1.0) * args[1]]),
            )),
        }
    }
}

impl Kernel for GatedUnitBackward {
    fn name(&self) -> String {
        "gated_unit_backward".to_owned()
    }
    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        same_floats(args, 3)?;
        Ok(vec![args[0].clone()])
    }
    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        vec![slope(args[1], args[2], args[0])]
    }
    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("second derivatives are rare")
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
