//! Reverse-mode gradients, first order: one loop from the last node to the first, one rule for each op.

use crate::ir::{Builder, Func, Node, Tensor, Value};
use crate::ops::{DotGeneral, Op};
use crate::types::{DType, Type};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Why an op has no gradient, in words for the author.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoGradient(pub(crate) &'static str);

/// What a rule says about one operand.
pub(crate) enum Cotangent<'f> {
    /// Nothing flows: the operand is not a float, or the derivative is zero wherever it exists.
    None,
    /// To be added to what other users of the operand contribute.
    Add(Tensor<'f>),
    /// Already added to [`Vjp::accumulator`]: replaces it.
    Accumulated(Tensor<'f>),
}

impl<'f> From<Tensor<'f>> for Cotangent<'f> {
    fn from(ct: Tensor<'f>) -> Cotangent<'f> {
        Cotangent::Add(ct)
    }
}

/// What a gradient rule sees of the node that it differentiates.
pub(crate) struct Vjp<'f> {
    pub(crate) builder: &'f Builder<'f>,
    pub(crate) node: u32,
    operands: Vec<Tensor<'f>>,
    results: Vec<Tensor<'f>>,
    cts: Vec<Option<Tensor<'f>>>,
    wanted: Vec<bool>,
    accumulators: Vec<Option<Tensor<'f>>>,
}

impl<'f> Vjp<'f> {
    /// Number of operands.
    pub(crate) fn operands(&self) -> usize {
        self.operands.len()
    }

    pub(crate) fn all_operands(&self) -> &[Tensor<'f>] {
        &self.operands
    }

    pub(crate) fn all_results(&self) -> &[Tensor<'f>] {
        &self.results
    }

    pub(crate) fn operand(&self, i: usize) -> Tensor<'f> {
        self.operands[i]
    }

    pub(crate) fn result(&self, i: usize) -> Tensor<'f> {
        self.results[i]
    }

    /// The cotangent of result `i`; zeros if nothing depends on it.
    pub(crate) fn ct(&self, i: usize) -> Tensor<'f> {
        self.cts[i].unwrap_or_else(|| self.results[i].zeros_like())
    }

    /// The cotangent of result `i`, if something depends on it.
    pub(crate) fn ct_if_any(&self, i: usize) -> Option<Tensor<'f>> {
        self.cts[i]
    }

    /// Whether the gradient depends on operand `i`.
    pub(crate) fn wanted(&self, i: usize) -> bool {
        self.wanted[i]
    }

    pub(crate) fn all_wanted(&self) -> &[bool] {
        &self.wanted
    }

    /// The cotangent that operand `i` has from its other users so far, perhaps of a wider type; a rule may add to it in
    /// place. Given for the first of equal operands only.
    pub(crate) fn accumulator(&self, i: usize) -> Option<Tensor<'f>> {
        self.accumulators[i]
    }
}

/// The gradient of a scalar with respect to each of `wrt`.
///
/// # Panics
/// If `loss` is not a float scalar, if one of `wrt` gets no gradient (drop it from the list if it is a constant), or
/// if an op on the way has no gradient.
#[track_caller]
pub fn grad<'f>(loss: Tensor<'f>, wrt: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
    gradient(loss, wrt, &vec![None; wrt.len()])
}

/// [`grad`] added to accumulators where there are any, in place where the op allows it: the gradient of a scanned
/// layer's weights is added to its slice of the accumulator inside the loop, so that no second set of gradients ever
/// exists. An accumulator may be of a wider type than its tensor: `f32` sums of the gradients of `bf16` weights.
///
/// # Panics
/// As [`grad`], and if an accumulator has another shape than its tensor or a type without all of its numbers
/// ([`DType::holds`]): `f16` has not the range of `bf16`.
#[track_caller]
pub fn grad_into<'f>(
    loss: Tensor<'f>,
    wrt: &[Tensor<'f>],
    accumulators: &[Option<Tensor<'f>>],
) -> Vec<Tensor<'f>> {
    assert!(wrt.len() == accumulators.len(), "grad_into: wants one accumulator for each tensor");
    for (i, (tensor, accumulator)) in wrt.iter().zip(accumulators).enumerate() {
        let twice = wrt[..i].iter().any(|other| other.value() == tensor.value());
        assert!(!twice, "grad_into: {} is given twice; it has one gradient", described(*tensor));
        let Some(accumulator) = accumulator else { continue };
        let (wanted, found) = (tensor.ty(), accumulator.ty());
        let fits = wanted.shape == found.shape && found.dtype.holds(wanted.dtype);
        assert!(
            fits,
            "grad_into: an accumulator for {wanted} has type {found}, wanted its shape and a type that holds its numbers"
        );
    }
    gradient(loss, wrt, accumulators)
}

#[track_caller]
fn gradient<'f>(loss: Tensor<'f>, wrt: &[Tensor<'f>], start: &[Option<Tensor<'f>>]) -> Vec<Tensor<'f>> {
    let ty = loss.ty();
    assert!(ty.rank() == 0 && ty.dtype.is_float(), "grad: the loss must be a float scalar, it is {ty}");
    for tensor in wrt.iter().chain(start.iter().flatten()) {
        assert!(
            loss.builder().is(tensor.builder()),
            "grad: {} (made at {}) belongs to another function than the loss: take it in with `capture`",
            tensor.ty(),
            tensor.builder().with_node(tensor.value().node, |node| node.at)
        );
    }
    for tensor in wrt {
        assert!(tensor.dtype().is_float(), "grad: {} ({}) is not a float", described(*tensor), tensor.ty());
    }
    let reached = active(loss.builder(), wrt);
    assert!(reached.contains(&loss.value()), "grad: the loss depends on none of the {} tensors", wrt.len());
    let mut grads = Vec::new();
    for (ct, tensor) in vjp(&[loss], &[loss.full_like(1.0)], wrt, start).into_iter().zip(wrt) {
        let Some(ct) = ct else {
            panic!(
                "grad: {} ({}) gets no gradient from the loss; take it out of the list if it is a constant",
                described(*tensor),
                tensor.ty()
            )
        };
        grads.push(ct);
    }
    grads
}

/// A tensor in a message: the name of its port, or where it was made.
fn described(tensor: Tensor<'_>) -> String {
    let node = tensor.builder().node(tensor.value().node);
    match &node.op {
        Op::Parameter(parameter) => {
            let inputs = tensor.builder().with_ports(|ports| ports.inputs.clone()).unwrap_or_default();
            let name = inputs.get(parameter.index).map(|port| format!("`{}`", port.name));
            name.unwrap_or_else(|| format!("parameter {}", parameter.index))
        }
        op => format!("the {} of {}", op.name(), node.at),
    }
}

/// The values that depend on one of `wrt`, through floats.
fn active<'f>(builder: &'f Builder<'f>, wrt: &[Tensor<'f>]) -> HashSet<Value> {
    let mut active: HashSet<Value> = wrt.iter().map(|tensor| tensor.value()).collect();
    for index in 0..builder.len() {
        builder.with_node(index, |node| {
            if !matches!(node.op, Op::StopGradient(_))
                && node.operands.iter().any(|value| active.contains(value))
            {
                let floats = (0u32..).zip(&node.types).filter(|(_, ty)| ty.dtype.is_float());
                active.extend(floats.map(|(result, _)| Value { node: index, result }));
            }
        });
    }
    active
}

/// Cotangents of `wrt`, given cotangents of `outputs`; `None` where nothing flows. `start`: what a cotangent already is.
///
/// # Panics
/// If an op on the way has no gradient, or a rule breaks a type.
#[track_caller]
pub(crate) fn vjp<'f>(
    outputs: &[Tensor<'f>],
    cts: &[Tensor<'f>],
    wrt: &[Tensor<'f>],
    start: &[Option<Tensor<'f>>],
) -> Vec<Option<Tensor<'f>>> {
    let Some(builder) = wrt.first().map(|tensor| tensor.builder()) else { return Vec::new() };
    let active = active(builder, wrt);
    let last = outputs.iter().map(|output| output.value().node + 1).max().unwrap_or(0);
    let mut sums: HashMap<Value, Tensor<'f>> = HashMap::new();
    let mut touched: HashSet<Value> = HashSet::new();
    // What a cotangent already is takes part in its sum from the start, so that rules can add to it in place; but not
    // where the sum flows on to earlier tensors, whose gradient it is no part of: there it is added at the end.
    let (mut from_start, mut at_end) = (Vec::new(), HashMap::new());
    for (tensor, start) in
        wrt.iter().zip(start).filter_map(|(tensor, start)| Some((tensor.value(), (*start)?)))
    {
        match builder.with_node(tensor.node, |node| node.operands.iter().any(|value| active.contains(value)))
        {
            true => drop(at_end.insert(tensor, start)),
            false => from_start.push((tensor, start)),
        }
    }
    sums.extend(from_start);
    let add = |sums: &mut HashMap<Value, Tensor<'f>>, to: Value, ct: Tensor<'f>| {
        let sum = sums.get(&to).map_or(ct, |&sum| sum + widened(ct, sum.dtype()));
        sums.insert(to, sum);
    };
    for (output, ct) in outputs.iter().zip(cts) {
        if active.contains(&output.value()) {
            add(&mut sums, output.value(), *ct);
            touched.insert(output.value());
        }
    }
    for index in (0..last).rev() {
        let node = builder.node(index);
        let results: Vec<Tensor<'f>> = (0..node.types.len() as u32)
            .map(|result| builder.tensor(Value { node: index, result }))
            .collect();
        let wanted: Vec<bool> = node.operands.iter().map(|value| active.contains(value)).collect();
        let cts: Vec<Option<Tensor<'f>>> = (results.iter())
            .map(|result| sums.get(&result.value()).filter(|_| touched.contains(&result.value())).copied())
            .collect();
        if !wanted.contains(&true) || cts.iter().all(Option::is_none) {
            continue;
        }
        let first = |i: usize| !node.operands[..i].contains(&node.operands[i]);
        let accumulators =
            (0..wanted.len()).map(|i| sums.get(&node.operands[i]).filter(|_| first(i)).copied()).collect();
        let operands = node.operands.iter().map(|&value| builder.tensor(value)).collect();
        let rule = Vjp { builder, node: index, operands, results, cts, wanted, accumulators };
        let flows = builder.attributed(node.at, || node.op.rules().vjp(&rule));
        let flows = match flows {
            Ok(flows) => flows,
            Err(NoGradient(reason)) => panic!("{} at {} has no gradient: {reason}", node.op.name(), node.at),
        };
        for (i, flow) in flows.into_iter().enumerate().filter(|(i, _)| rule.wanted(*i)) {
            let operand = node.operands[i];
            let (Cotangent::Add(ct) | Cotangent::Accumulated(ct)) = flow else { continue };
            let summed = sums.get(&operand).map(|sum| sum.ty());
            assert!(
                ct.ty() == builder.ty(operand) || Some(ct.ty()) == summed,
                "the gradient rule of {} gives operand {i} a cotangent {} instead of {}",
                node.op.name(),
                ct.ty(),
                builder.ty(operand)
            );
            builder.attributed(node.at, || match flow {
                Cotangent::Accumulated(total) => drop(sums.insert(operand, total)),
                _ => add(&mut sums, operand, ct),
            });
            touched.insert(operand);
        }
    }
    let total = |tensor: &Tensor<'f>| {
        let sum = *sums.get(&tensor.value()).filter(|_| touched.contains(&tensor.value()))?;
        let start: Option<&Tensor<'f>> = at_end.get(&tensor.value());
        Some(start.map_or(sum, |&start| start + widened(sum, start.dtype())))
    };
    wrt.iter().map(total).collect()
}

/// A cotangent on its way into a sum of a wider type. A matrix product's own sums are wide, and so is what was wide before
/// it got the tensor's type: they are not rounded first.
pub(crate) fn widened<'f>(ct: Tensor<'f>, dtype: DType) -> Tensor<'f> {
    let builder = ct.builder();
    if ct.dtype() == dtype {
        return ct;
    }
    let node = builder.node(ct.value().node);
    let operands: Vec<Tensor<'f>> = node.operands.iter().map(|&value| builder.tensor(value)).collect();
    let wide = match &node.op {
        Op::Convert(_) if dtype.holds(operands[0].dtype()) && operands[0].dtype().holds(ct.dtype()) => {
            operands[0]
        }
        Op::DotGeneral(dot) => {
            let wide = DotGeneral { dtype: DotGeneral::sums(operands[0].dtype()), ..dot.clone() };
            builder.push(wide, &operands)[0]
        }
        _ => ct,
    };
    wide.convert(dtype)
}

/// A function's forward nodes, followed by those of its gradient, in one scratch builder. Region ops cut their forward and
/// backward bodies out of it.
pub(crate) struct Linearized<'g> {
    pub(crate) builder: &'g Builder<'g>,
    /// The function's parameters.
    pub(crate) params: Vec<Tensor<'g>>,
    /// The function's results.
    pub(crate) results: Vec<Tensor<'g>>,
    /// The parameter that stands for each result's cotangent, where one was asked for.
    pub(crate) cts: Vec<Option<Tensor<'g>>>,
    /// The cotangent of each parameter, where it was wanted and something flows.
    pub(crate) grads: Vec<Option<Tensor<'g>>>,
    /// Nodes below this index are forward.
    end: u32,
}

/// Differentiates a finished function: `cts` says which results have a cotangent, `wanted` which parameters want one.
pub(crate) fn linearize<'g>(
    builder: &'g Builder<'g>,
    func: &Func,
    cts: &[bool],
    wanted: &[bool],
) -> Linearized<'g> {
    let params: Vec<Tensor<'g>> = func.param_types().into_iter().map(|ty| builder.parameter(ty)).collect();
    let results = builder.inline(func, &params);
    let end = builder.len();
    let cts: Vec<Option<Tensor<'g>>> = results
        .iter()
        .zip(cts)
        .map(|(result, given)| given.then(|| builder.parameter(result.ty())))
        .collect();
    let (outputs, given): (Vec<_>, Vec<_>) =
        results.iter().zip(&cts).filter_map(|(result, ct)| ct.map(|ct| (*result, ct))).unzip();
    let wrt: Vec<Tensor<'g>> =
        params.iter().zip(wanted).filter(|(_, wanted)| **wanted).map(|(param, _)| *param).collect();
    let mut found = vjp(&outputs, &given, &wrt, &vec![None; wrt.len()]).into_iter();
    let grads = wanted.iter().map(|wanted| if *wanted { found.next().flatten() } else { None }).collect();
    Linearized { builder, params, results, cts, grads, end }
}

/// Which forward values the backward part computes itself instead of receiving them.
pub(crate) enum Recompute<'a> {
    /// Only what costs nothing: constants and rearrangements of values not larger than their result.
    Views,
    /// Everything but the values with these names.
    AllBut(&'a [String]),
}

impl<'g> Linearized<'g> {
    /// The forward values that the backward part must be given, parameters among them, in order.
    pub(crate) fn frontier(&self, recompute: &Recompute) -> Vec<Value> {
        let saved = self.saved(recompute);
        let mut frontier = BTreeSet::new();
        let mut seen = HashSet::new();
        let mut open: Vec<Value> = self.grads.iter().flatten().map(|grad| grad.value()).collect();
        while let Some(value) = open.pop() {
            if !seen.insert(value) {
                continue;
            }
            let node = self.builder.node(value.node);
            let parameter = matches!(node.op, Op::Parameter(_));
            if value.node >= self.end && parameter {
                continue;
            }
            let given = parameter || saved.contains(&value) || !self.recomputes(&node, recompute);
            if value.node < self.end && given {
                frontier.insert(value);
                continue;
            }
            open.extend(&node.operands);
        }
        frontier.into_iter().collect()
    }

    /// Values that the backward part is given under the policy, whatever it could compute itself.
    fn saved(&self, recompute: &Recompute) -> HashSet<Value> {
        let Recompute::AllBut(names) = recompute else { return HashSet::new() };
        let mut saved = HashSet::new();
        for index in 0..self.end {
            self.builder.with_node(index, |node| match &node.op {
                Op::Named(named) if names.contains(&named.name) => saved.extend(&node.operands),
                _ => {}
            });
        }
        saved
    }

    fn recomputes(&self, node: &Node, recompute: &Recompute) -> bool {
        match recompute {
            Recompute::AllBut(_) => true,
            Recompute::Views => {
                let view = matches!(
                    node.op,
                    Op::Constant(_)
                        | Op::Iota(_)
                        | Op::BroadcastInDim(_)
                        | Op::Reshape(_)
                        | Op::Transpose(_)
                        | Op::Convert(_)
                        | Op::Named(_)
                        | Op::StopGradient(_)
                );
                let from: usize = node.operands.iter().map(|&value| self.builder.ty(value).bytes()).sum();
                view && from <= node.types.iter().map(Type::bytes).sum()
            }
        }
    }

    /// The forward function with more results.
    pub(crate) fn forward(&self, more: &[Value]) -> Func {
        let results: Vec<Value> =
            self.results.iter().map(|result| result.value()).chain(more.iter().copied()).collect();
        self.builder.finish_with(self.params.len(), &results)
    }

    /// Emits the backward part into another builder, with `given` for the frontier and the cotangents' parameters.
    pub(crate) fn emit_grads<'h>(
        &self,
        into: &'h Builder<'h>,
        given: &HashMap<Value, Tensor<'h>>,
    ) -> Vec<Option<Tensor<'h>>> {
        let mut made: HashMap<Value, Tensor<'h>> = given.clone();
        let mut needed = BTreeSet::new();
        let mut open: Vec<Value> = self.grads.iter().flatten().map(|grad| grad.value()).collect();
        while let Some(value) = open.pop() {
            if !made.contains_key(&value) && needed.insert(value.node) {
                open.extend(self.builder.node(value.node).operands);
            }
        }
        for index in needed {
            let node = self.builder.node(index);
            let operands: Vec<Tensor<'h>> = node.operands.iter().map(|value| made[value]).collect();
            let known = || {
                let result_of = |result: usize| Value { node: index, result: result as u32 };
                (0..node.types.len()).map(|result| made.get(&result_of(result)).copied()).collect::<Vec<_>>()
            };
            let results = into.attributed(node.at, || {
                let recomputed = match &node.op {
                    Op::KernelCall(kernel) => kernel.0.recompute(&operands, &known()),
                    _ => None,
                };
                recomputed.unwrap_or_else(|| into.push(node.op.clone(), &operands))
            });
            for (result, tensor) in (0u32..).zip(results) {
                // What the backward part was given is not replaced by what it computes.
                made.entry(Value { node: index, result }).or_insert(tensor);
            }
        }
        self.grads.iter().map(|grad| grad.map(|grad| made[&grad.value()])).collect()
    }
}
