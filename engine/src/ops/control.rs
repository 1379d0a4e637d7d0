//! Calls (with rematerialisation), conditionals, loops of unknown length, and markers that compute nothing.

use super::{Op, Regions, Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Recompute, Vjp, linearize};
use crate::ir::{Body, Builder, Func, Node, Tensor, Value, list};
use crate::text::{Line, Printer};
use crate::types::{DType, Type};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// What the backward pass receives from a call instead of computing it again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Save {
    /// Everything it needs: nothing is computed twice.
    Everything,
    /// Only the values with these names ([`Tensor::named`]); the rest is computed again. Outside of loops it stands
    /// after an optimisation barrier, so that the compiler cannot merge it with the forward pass. Source: Chen et al.,
    /// arXiv 1604.06174.
    ///
    /// A call inside that keeps everything is a part of the call around it: names in it count as if they stood outside. A
    /// call inside with a policy of its own keeps that policy.
    Only(Vec<String>),
}

/// A function applied to operands. It prints as a private function and a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// The name in the text.
    pub label: String,
    /// The function.
    pub body: Body,
    /// What its gradient keeps.
    pub save: Save,
}

impl Regions for Call {
    fn bodies(&self) -> Vec<&Body> {
        vec![&self.body]
    }
    fn with_bodies(&self, mut bodies: Vec<Body>) -> Call {
        Call { body: bodies.remove(0), ..self.clone() }
    }
}

fn wants_params(body: &Body, x: &[Type]) -> Result<(), ShapeError> {
    let params = body.param_types();
    want!(*x == *params, "the body wants ({})", list(&params));
    Ok(())
}

impl Rules for Call {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        wants_params(&self.body, x)?;
        Ok(self.body.result_types())
    }

    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        let has_ct: Vec<bool> = (0..v.all_results().len()).map(|i| v.ct_if_any(i).is_some()).collect();
        let scratch = Builder::new();
        let (body, recompute) = match &self.save {
            Save::Everything => (self.body.clone(), Recompute::Views),
            Save::Only(names) => (Arc::new(with_plain_calls_inline(&self.body)), Recompute::AllBut(names)),
        };
        let linear = linearize(&scratch, &body, &has_ct, v.all_wanted());
        let frontier = linear.frontier(&recompute);
        let index_of = |value: &Value| linear.params.iter().position(|param| param.value() == *value);
        let residuals: Vec<Value> =
            frontier.iter().filter(|value| index_of(value).is_none()).copied().collect();
        let before = v.all_results().len();
        let extended = Call { body: Arc::new(linear.forward(&residuals)), ..self.clone() };
        let results = v.builder.extend(v.node, extended.into());

        let cts = linear.cts.iter().enumerate().filter_map(|(i, ct)| Some((ct.as_ref()?.value(), v.ct(i))));
        let kept = frontier.iter().map(|value| match index_of(value) {
            Some(i) => (*value, v.operand(i)),
            None => (
                *value,
                results[before + residuals.iter().position(|other| other == value).expect("a residual")],
            ),
        });
        let (values, mut tensors): (Vec<Value>, Vec<Tensor<'f>>) = kept.chain(cts).unzip();
        if matches!(self.save, Save::Only(_)) && !v.builder.split {
            // Both passes stand in one function. The cotangents pass the barrier too: the second forward pass starts
            // when the backward pass arrives here.
            tensors = Tensor::optimization_barrier(&tensors);
        }
        let given: HashMap<Value, Tensor<'f>> = values.into_iter().zip(tensors).collect();
        let grads = linear.emit_grads(v.builder, &given);
        Ok(grads.into_iter().map(|grad| grad.map_or(Cotangent::None, Cotangent::Add)).collect())
    }

    fn print(&self, p: &mut Printer, line: &Line) {
        let callee = p.callee(&self.label, &self.body);
        p.line(&format!(
            "{} = func.call @{callee}({}) : {}",
            line.result,
            line.operands.join(", "),
            line.signature()
        ));
    }

    fn eval(&self, evaluator: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        eval_body(evaluator, &self.body, x)
    }
}

/// The function with the calls that keep everything in their places.
fn with_plain_calls_inline(func: &Func) -> Func {
    func.rewrite(&mut |builder, op, operands| match op {
        Op::Call(Call { body, save: Save::Everything, .. }) => Some(builder.inline(body, operands)),
        _ => None,
    })
}

/// A value with one of these names that a call of the function cannot keep: it stands in a loop or a branch, where it is
/// not one value, or in a call that has a policy of its own. The name, and the node that it stands in.
fn out_of_reach<'n>(func: &Func, names: &'n [String]) -> Option<(&'n String, Node)> {
    let all = |op: &Op| op.bodies().into_iter().find_map(|body| first_named(body, names));
    func.nodes().iter().find_map(|node| match &node.op {
        Op::Call(Call { body, save: Save::Everything, .. }) => out_of_reach(body, names),
        op => Some((all(op)?, node.clone())),
    })
}

/// The first of these names that stands in a function or a body in it.
fn first_named<'n>(func: &Func, names: &'n [String]) -> Option<&'n String> {
    func.nodes().iter().find_map(|node| match &node.op {
        Op::Named(named) => names.iter().find(|name| **name == named.name),
        op => op.bodies().into_iter().find_map(|body| first_named(body, names)),
    })
}

pub(crate) fn eval_body(evaluator: &Evaluator, body: &Body, x: &[&Array]) -> Vec<Array> {
    let args: Vec<Rc<Array>> = x.iter().map(|&array| Rc::new(array.clone())).collect();
    evaluator.call(body, &args).iter().map(|array| (**array).clone()).collect()
}

/// One of two functions, chosen by a bool scalar; operands (predicate, what both functions take).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Cond {
    pub on_true: Body,
    pub on_false: Body,
}

impl Regions for Cond {
    fn bodies(&self) -> Vec<&Body> {
        vec![&self.on_true, &self.on_false]
    }
    fn with_bodies(&self, mut bodies: Vec<Body>) -> Cond {
        let on_false = bodies.remove(1);
        Cond { on_true: bodies.remove(0), on_false }
    }
}

impl Rules for Cond {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.first() == Some(&Type::scalar(DType::Bool)), "wants a bool scalar first");
        wants_params(&self.on_true, &x[1..])?;
        wants_params(&self.on_false, &x[1..])?;
        let (a, b) = (self.on_true.result_types(), self.on_false.result_types());
        want!(a == b, "the branches return different types: ({}) and ({})", list(&a), list(&b));
        Ok(a)
    }

    /// Another conditional, whose branches compute their forward part again and then their gradient.
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        let has_ct: Vec<bool> = (0..v.all_results().len()).map(|i| v.ct_if_any(i).is_some()).collect();
        let wanted = &v.all_wanted()[1..];
        let branch = |body: &Body| -> Body {
            let scratch = Builder::new();
            let linear = linearize(&scratch, body, &has_ct, wanted);
            let grads: Vec<Value> = (linear.grads.iter().zip(&linear.params).zip(wanted))
                .filter(|(_, wanted)| **wanted)
                .map(|((grad, param), _)| grad.unwrap_or_else(|| param.zeros_like()).value())
                .collect();
            let params = linear.params.len() + linear.cts.iter().flatten().count();
            Arc::new(scratch.finish_with(params, &grads))
        };
        let op = Cond { on_true: branch(&self.on_true), on_false: branch(&self.on_false) };
        let cts = (0..has_ct.len()).filter_map(|i| v.ct_if_any(i));
        let operands: Vec<Tensor<'f>> = v.all_operands().iter().copied().chain(cts).collect();
        let mut grads = v.builder.push(op, &operands).into_iter();
        let flows = wanted.iter().map(|&wanted| match wanted {
            true => Cotangent::Add(grads.next().expect("one gradient for each wanted operand")),
            false => Cotangent::None,
        });
        Ok(std::iter::once(Cotangent::None).chain(flows).collect())
    }

    fn print(&self, p: &mut Printer, line: &Line) {
        p.line(&format!("{} = \"stablehlo.if\"({}) ({{", line.result, line.operands[0]));
        for (position, body) in [&self.on_true, &self.on_false].into_iter().enumerate() {
            if position == 1 {
                p.line("}, {");
            }
            p.indented(|p| {
                let results = p.body(body, &line.operands[1..]);
                p.returned(&results, line.types);
            });
        }
        p.line(&format!("}}) : (tensor<i1>) -> {}", line.result_types()));
    }

    fn eval(&self, evaluator: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        let chosen = if x[0].ints()[0] != 0 { &self.on_true } else { &self.on_false };
        eval_body(evaluator, chosen, &x[1..])
    }
}

/// Repeats a body while a condition on its carry holds; operands (carries, captures of the condition, captures of the
/// body).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct While {
    /// (carries, captures) -> bool scalar.
    pub condition: Body,
    /// (carries, captures) -> carries.
    pub body: Body,
    /// Number of carried values.
    pub carries: usize,
}

impl While {
    fn operands_of<T: Clone>(&self, x: &[T]) -> (Vec<T>, Vec<T>) {
        let split = self.condition.params().len();
        let body = x[..self.carries].iter().chain(&x[split..]).cloned().collect();
        (x[..split].to_vec(), body)
    }
}

impl Regions for While {
    fn bodies(&self) -> Vec<&Body> {
        vec![&self.condition, &self.body]
    }
    fn with_bodies(&self, mut bodies: Vec<Body>) -> While {
        let body = bodies.remove(1);
        While { condition: bodies.remove(0), body, carries: self.carries }
    }
}

impl Rules for While {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() >= self.condition.params().len(), "wants more operands");
        let (for_condition, for_body) = self.operands_of(x);
        wants_params(&self.condition, &for_condition)?;
        wants_params(&self.body, &for_body)?;
        want!(
            self.condition.result_types() == [Type::scalar(DType::Bool)],
            "wants a condition that is a bool scalar"
        );
        let results = self.body.result_types();
        want!(
            results == x[..self.carries],
            "the body returns ({}), the carry is ({})",
            list(&results),
            list(&x[..self.carries])
        );
        Ok(results)
    }
    fn vjp<'f>(&self, _: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Err(NoGradient(
            "the number of iterations is unknown; use `scan`, or `stop_gradient` on what enters the loop",
        ))
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let args: Vec<String> = (0..self.carries).map(|_| p.fresh()).collect();
        let bound: Vec<String> =
            args.iter().zip(line.operands).map(|(arg, start)| format!("{arg} = {start}")).collect();
        let types: Vec<String> = line.types.iter().map(Type::mlir).collect();
        p.line(&format!("{} = stablehlo.while({}) : {}", line.result, bound.join(", "), types.join(", ")));
        let named: Vec<String> = args.iter().chain(&line.operands[self.carries..]).cloned().collect();
        let (for_condition, for_body) = self.operands_of(&named);
        p.line("cond {");
        p.indented(|p| {
            let more = p.body(&self.condition, &for_condition);
            p.returned(&more, &[Type::scalar(DType::Bool)]);
        });
        p.line("} do {");
        p.indented(|p| {
            let next = p.body(&self.body, &for_body);
            p.returned(&next, line.types);
        });
        p.line("}");
    }
    fn eval(&self, evaluator: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        let mut values: Vec<Rc<Array>> = x.iter().map(|&array| Rc::new(array.clone())).collect();
        loop {
            let (for_condition, for_body) = self.operands_of(&values);
            if evaluator.call(&self.condition, &for_condition)[0].ints()[0] == 0 {
                return values[..self.carries].iter().map(|array| (**array).clone()).collect();
            }
            let next = evaluator.call(&self.body, &for_body);
            values.splice(..self.carries, next);
        }
    }
}

/// Operands unchanged; the compiler moves and merges nothing across it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OptimizationBarrier;

impl Rules for OptimizationBarrier {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(!x.is_empty(), "wants at least one operand");
        Ok(x.to_vec())
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // The identity: cotangents pass.
        Ok((0..v.operands()).map(|i| v.ct_if_any(i).map_or(Cotangent::None, Cotangent::Add)).collect())
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let types: Vec<String> = line.types.iter().map(Type::mlir).collect();
        let operands = line.operands.join(", ");
        p.line(&format!(
            "{} = stablehlo.optimization_barrier {operands} : {}",
            line.result,
            types.join(", ")
        ));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        x.iter().map(|&array| array.clone()).collect()
    }
}

/// The operand, as a constant for gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StopGradient;

impl Rules for StopGradient {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        Ok(x.to_vec())
    }
    fn vjp<'f>(&self, _: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Ok(vec![Cotangent::None])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.aliases(line, vec![line.operands[0].clone()]);
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        vec![x[0].clone()]
    }
}

/// The operand, under a name that a [`Save`] policy can mention.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    /// The name.
    pub name: String,
}

impl Rules for Named {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        Ok(x.to_vec())
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Ok(vec![v.ct(0).into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.aliases(line, vec![line.operands[0].clone()]);
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        vec![x[0].clone()]
    }
}

impl<'f> Builder<'f> {
    /// A function of its own, applied here: `body(g, operands)` builds it; outer values enter with
    /// [`Builder::capture`]. `save` says what the gradient keeps: this is rematerialisation.
    ///
    /// # Panics
    /// If a value that is to be kept by its name stands where it cannot be: in a loop or a branch, or in a call with a
    /// policy of its own.
    #[track_caller]
    pub fn call(
        &'f self,
        label: &str,
        save: Save,
        operands: &[Tensor<'f>],
        body: impl for<'g> FnOnce(&'g Builder<'g>, &[Tensor<'g>]) -> Vec<Tensor<'g>>,
    ) -> Vec<Tensor<'f>> {
        let (body, captured) = self.body(operands, body);
        if let Save::Only(names) = &save
            && let Some((name, node)) = out_of_reach(&body, names)
        {
            panic!(
                "call {label}: it cannot keep `{name}`, which stands in the {} of {}; name a value outside of that",
                node.op.name(),
                node.at
            );
        }
        let operands: Vec<Tensor<'f>> = operands.iter().copied().chain(captured).collect();
        self.push(Call { label: label.to_owned(), body: Arc::new(body), save }, &operands)
    }

    fn body(
        &'f self,
        operands: &[Tensor<'f>],
        body: impl for<'g> FnOnce(&'g Builder<'g>, &[Tensor<'g>]) -> Vec<Tensor<'g>>,
    ) -> (Func, Vec<Tensor<'f>>) {
        let inner = Builder::nested(self);
        let params: Vec<_> = operands.iter().map(|operand| inner.parameter(operand.ty())).collect();
        let results = body(&inner, &params);
        (inner.finish(&results), inner.captured(self))
    }

    /// `predicate ? on_true(operands) : on_false(operands)`; only the chosen branch runs.
    ///
    /// # Panics
    /// If the branches return different types or take in outer values (pass those as operands).
    #[track_caller]
    pub fn cond(
        &'f self,
        predicate: Tensor<'f>,
        operands: &[Tensor<'f>],
        on_true: impl for<'g> FnOnce(&'g Builder<'g>, &[Tensor<'g>]) -> Vec<Tensor<'g>>,
        on_false: impl for<'g> FnOnce(&'g Builder<'g>, &[Tensor<'g>]) -> Vec<Tensor<'g>>,
    ) -> Vec<Tensor<'f>> {
        let (on_true, a) = self.body(operands, on_true);
        let (on_false, b) = self.body(operands, on_false);
        assert!(
            a.is_empty() && b.is_empty(),
            "cond: both branches take the same operands; pass outer values as operands"
        );
        let operands: Vec<Tensor<'f>> = std::iter::once(predicate).chain(operands.iter().copied()).collect();
        self.push(Cond { on_true: Arc::new(on_true), on_false: Arc::new(on_false) }, &operands)
    }

    /// Repeats `body` while `condition` holds for the carry. It has no gradient.
    #[track_caller]
    pub fn while_loop(
        &'f self,
        carry: &[Tensor<'f>],
        condition: impl for<'g> FnOnce(&'g Builder<'g>, &[Tensor<'g>]) -> Tensor<'g>,
        body: impl for<'g> FnOnce(&'g Builder<'g>, &[Tensor<'g>]) -> Vec<Tensor<'g>>,
    ) -> Vec<Tensor<'f>> {
        let (condition, a) = self.body(carry, |g, carry| vec![condition(g, carry)]);
        let (body, b) = self.body(carry, body);
        let operands: Vec<Tensor<'f>> = carry.iter().copied().chain(a).chain(b).collect();
        let op = While { condition: Arc::new(condition), body: Arc::new(body), carries: carry.len() };
        self.push(op, &operands)
    }
}

impl<'f> Tensor<'f> {
    /// The same values, tied: the compiler moves and merges nothing across.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn optimization_barrier(tensors: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let first = tensors.first().expect("optimization_barrier(): wants at least one operand");
        first.builder().push(OptimizationBarrier, tensors)
    }

    /// This value as a constant for gradients.
    #[track_caller]
    pub fn stop_gradient(self) -> Tensor<'f> {
        self.builder().push(StopGradient, &[self])[0]
    }

    /// This value under a name that [`Save::Only`] can mention.
    #[track_caller]
    pub fn named(self, name: &str) -> Tensor<'f> {
        self.builder().push(Named { name: name.to_owned() }, &[self])[0]
    }
}
