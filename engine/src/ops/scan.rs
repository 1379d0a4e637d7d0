//! `scan`: a loop of fixed length with a carry, slices of stacked inputs, and stacked outputs. Layers and micro-batches
//! are scanned, so that program text and compile time do not grow with their number. It prints as `stablehlo.while`.

use super::reduce::Direction;
use super::{Regions, Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Recompute, Vjp, linearize, widened};
use crate::ir::{Body, Builder, Tensor, Value};
use crate::text::{Line, Printer};
use crate::types::{DType, Type, strides};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// Body parameters and node operands: carries, slices (the operands are the stacks), captures. Body results and node
/// results: carries, slices of outputs (stacked).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scan {
    /// The loop body.
    pub body: Body,
    /// Number of iterations.
    pub length: usize,
    /// Number of carried values.
    pub carries: usize,
    /// Number of stacked inputs.
    pub stacks: usize,
    /// Bodies in one iteration of the printed loop; divides `length`.
    pub unroll: usize,
    /// Order in which slices are visited; outputs stand where the inputs stood.
    pub direction: Direction,
}

/// How a scan is run; [`ScanOptions::over`] gives the usual one.
#[derive(Clone, Copy, Debug)]
pub struct ScanOptions {
    /// Number of iterations.
    pub length: usize,
    /// Bodies in one iteration of the printed loop; must divide `length`.
    pub unroll: usize,
    /// Order in which slices are visited.
    pub direction: Direction,
}

impl ScanOptions {
    /// `length` iterations, forward, not unrolled.
    pub fn over(length: usize) -> ScanOptions {
        ScanOptions { length, unroll: 1, direction: Direction::Forward }
    }
}

fn stacked(length: usize, ty: &Type) -> Type {
    ty.with_shape([&[length], &ty.shape[..]].concat())
}

impl Regions for Scan {
    fn bodies(&self) -> Vec<&Body> {
        vec![&self.body]
    }
    fn with_bodies(&self, mut bodies: Vec<Body>) -> Scan {
        Scan { body: bodies.remove(0), ..self.clone() }
    }
}

impl Rules for Scan {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(self.length > 0, "wants at least one iteration");
        want!(
            self.unroll > 0 && self.length.is_multiple_of(self.unroll),
            "{} iterations cannot be unrolled by {}",
            self.length,
            self.unroll
        );
        let (params, results) = (self.body.param_types(), self.body.result_types());
        want!(x.len() == params.len(), "the body wants {} values, got {}", params.len(), x.len());
        want!(
            results.len() >= self.carries,
            "the body returns {} values for {} carries",
            results.len(),
            self.carries
        );
        for (i, (found, wanted)) in x.iter().zip(&params).enumerate() {
            let slice = (self.carries..self.carries + self.stacks).contains(&i);
            let wanted = if slice { stacked(self.length, wanted) } else { wanted.clone() };
            want!(*found == wanted, "operand {i} is {found}, the body wants {wanted}");
        }
        for i in 0..self.carries {
            want!(
                results[i] == params[i],
                "carry {i} starts as {} and comes back as {}",
                params[i],
                results[i]
            );
        }
        let outputs = results[self.carries..].iter().map(|ty| stacked(self.length, ty));
        Ok(results[..self.carries].iter().cloned().chain(outputs).collect())
    }

    /// A forward loop that also stacks what the backward body needs (its frontier: carries and results of real work,
    /// not captures, slices, constants or views), and a backward loop over the same slices in the other direction.
    /// Cotangents of captures are carried; those of stacks are outputs, or added in place to a cotangent that exists.
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        let (carries, stacks) = (self.carries, self.stacks);
        let outer = v.builder;
        // Which parameters carry gradients: a carry does if its start does or one iteration makes it so.
        let mut wanted = v.all_wanted().to_vec();
        loop {
            let before = wanted.clone();
            let reached = depends(&self.body, &wanted);
            for i in 0..carries {
                let float = v.operand(i).dtype().is_float();
                wanted[i] |= float && reached[i];
            }
            if wanted == before {
                break;
            }
        }
        let reached = depends(&self.body, &wanted);
        let has_ct: Vec<bool> = (0..v.all_results().len())
            .map(|i| if i < carries { wanted[i] } else { reached[i] && v.ct_if_any(i).is_some() })
            .collect();
        // A forward loop that was extended for an earlier gradient has more results than that gradient's caller saw.
        let scratch = Builder::split();
        let linear = linearize(&scratch, &self.body, &has_ct, &wanted);
        let frontier = linear.frontier(&Recompute::Views);
        let index_of = |value: &Value| linear.params.iter().position(|param| param.value() == *value);
        // Residuals: frontier values that are neither slices nor captures. Carries are: their value differs each time.
        let residuals: Vec<Value> =
            frontier.iter().filter(|value| index_of(value).is_none_or(|i| i < carries)).copied().collect();
        let known =
            |value: &Value| (carries..linear.results.len()).find(|&i| linear.results[i].value() == *value);
        let new: Vec<Value> = residuals.iter().filter(|value| known(value).is_none()).copied().collect();
        let before = v.all_results().len();
        let extended = Scan { body: Arc::new(linear.forward(&new)), ..self.clone() };
        let results = outer.extend(v.node, extended.into());
        let stack_of = |value: &Value| match known(value) {
            Some(i) => results[i],
            None => results[before + new.iter().position(|other| other == value).expect("a new residual")],
        };

        // The backward loop. Carried: cotangents of carries, of captures, of stacks that are added to in place.
        let captures = carries + stacks..v.operands();
        let carried: Vec<usize> = (0..carries).filter(|&i| wanted[i]).collect();
        let summed: Vec<usize> = captures.filter(|&i| linear.grads[i].is_some()).collect();
        let in_place: Vec<usize> = (carries..carries + stacks)
            .filter(|&i| linear.grads[i].is_some() && v.accumulator(i).is_some())
            .collect();
        let sliced: Vec<usize> = (carries..carries + stacks)
            .filter(|&i| linear.grads[i].is_some() && v.accumulator(i).is_none())
            .collect();
        let mut start: Vec<Tensor<'f>> = carried.iter().map(|&i| v.ct(i)).collect();
        start.extend(summed.iter().map(|&i| v.accumulator(i).unwrap_or_else(|| v.operand(i).zeros_like())));
        start.extend(in_place.iter().map(|&i| v.accumulator(i).expect("chosen for having one")));
        let given: Vec<usize> = (carries..before).filter(|&i| has_ct[i]).collect();
        let slices: Vec<usize> = frontier
            .iter()
            .filter_map(index_of)
            .filter(|i| (carries..carries + stacks).contains(i))
            .collect();
        let mut xs: Vec<Tensor<'f>> = given.iter().map(|&i| v.ct(i)).collect();
        xs.extend(residuals.iter().map(stack_of));
        xs.extend(slices.iter().map(|&i| v.operand(i)));
        if !in_place.is_empty() {
            xs.push(outer.iota(Type::new(DType::I32, [self.length]), 0));
        }

        let options =
            ScanOptions { length: self.length, unroll: self.unroll, direction: self.direction.flipped() };
        let (totals, parts) = outer.scan(options, &start, &xs, |g, carry, x| {
            let mut known: HashMap<Value, Tensor<'_>> = HashMap::new();
            for (place, &i) in carried.iter().enumerate() {
                known.insert(linear.cts[i].expect("carried cotangents were asked for").value(), carry[place]);
            }
            for (place, &i) in given.iter().enumerate() {
                known.insert(linear.cts[i].expect("given cotangents were asked for").value(), x[place]);
            }
            let values = residuals.iter().copied().chain(slices.iter().map(|&i| linear.params[i].value()));
            known.extend(values.zip(x[given.len()..].iter().copied()));
            for value in &frontier {
                if let Some(i) = index_of(value).filter(|&i| i >= carries + stacks) {
                    known.insert(*value, g.capture(v.operand(i)));
                }
            }
            let grads = linear.emit_grads(g, &known);
            let found = |i: usize| grads[i].expect("chosen for having a gradient");
            let mut next: Vec<Tensor<'_>> = carried
                .iter()
                .enumerate()
                .map(|(place, &i)| grads[i].unwrap_or(carry[place].zeros_like()))
                .collect();
            let mut totals = carry[carried.len()..].iter();
            next.extend(
                summed.iter().zip(&mut totals).map(|(&i, total)| *total + widened(found(i), total.dtype())),
            );
            next.extend(in_place.iter().zip(&mut totals).map(|(&i, total)| {
                let index = x[x.len() - 1];
                total.with_row(index, total.row(index) + widened(found(i), total.dtype()))
            }));
            (next, sliced.iter().map(|&i| found(i)).collect())
        });
        let mut flows: Vec<Cotangent<'f>> = (0..v.operands()).map(|_| Cotangent::None).collect();
        let in_order = carried.iter().chain(&summed).chain(&in_place).zip(totals);
        for (place, (&i, total)) in in_order.enumerate() {
            let replaces = place >= carried.len() && v.accumulator(i).is_some();
            flows[i] = if replaces { Cotangent::Accumulated(total) } else { Cotangent::Add(total) };
        }
        sliced.iter().zip(parts).for_each(|(&i, part)| flows[i] = Cotangent::Add(part));
        Ok(flows)
    }

    fn print(&self, p: &mut Printer, line: &Line) {
        let (carries, stacks) = (self.carries, self.stacks);
        let outputs = &line.types[carries..];
        let index_type = Type::scalar(DType::I32).mlir();
        let constant = |p: &mut Printer, value: usize| {
            let name = p.fresh();
            p.line(&format!("{name} = stablehlo.constant dense<{value}> : {index_type}"));
            name
        };
        let [zero, one, last, end] = [0, 1, self.length - 1, self.length].map(|value| constant(p, value));
        let mut start = vec![zero.clone()];
        start.extend(line.operands[..carries].iter().cloned());
        for ty in outputs {
            // Every row is written before it is read; the zeros only give the buffer its place.
            let empty = p.fresh();
            let value = if ty.dtype == DType::Bool {
                "false"
            } else if ty.dtype.is_float() {
                "0.0"
            } else {
                "0"
            };
            p.line(&format!("{empty} = stablehlo.constant dense<{value}> : {}", ty.mlir()));
            start.push(empty);
        }
        let types: Vec<String> =
            std::iter::once(index_type.clone()).chain(line.types.iter().map(Type::mlir)).collect();
        let args: Vec<String> = start.iter().map(|_| p.fresh()).collect();
        let bound: Vec<String> =
            args.iter().zip(&start).map(|(arg, start)| format!("{arg} = {start}")).collect();
        let loop_name = p.fresh();
        p.line(&format!(
            "{loop_name}:{} = stablehlo.while({}) : {}",
            types.len(),
            bound.join(", "),
            types.join(", ")
        ));
        p.line("cond {");
        p.indented(|p| {
            let more = p.fresh();
            p.line(&format!("{more} = stablehlo.compare LT, {}, {end}, SIGNED : ({index_type}, {index_type}) -> tensor<i1>", args[0]));
            p.line(&format!("stablehlo.return {more} : tensor<i1>"));
        });
        p.line("} do {");
        p.indented(|p| {
            let mut carry = args[1..1 + carries].to_vec();
            let mut stacked = args[1 + carries..].to_vec();
            let mut count = args[0].clone();
            // `count` ends at the index of the last body of this iteration.
            for repeat in 0..self.unroll {
                if repeat > 0 {
                    let next = p.fresh();
                    p.line(&format!("{next} = stablehlo.add {count}, {one} : {index_type}"));
                    count = next;
                }
                let index = match self.direction {
                    Direction::Forward => count.clone(),
                    Direction::Reverse => {
                        let index = p.fresh();
                        p.line(&format!("{index} = stablehlo.subtract {last}, {count} : {index_type}"));
                        index
                    }
                };
                let mut params = carry.clone();
                for i in carries..carries + stacks {
                    params.push(print_slice(p, &line.operands[i], &line.operand_types[i], &index, &zero));
                }
                params.extend(line.operands[carries + stacks..].iter().cloned());
                let results = p.body(&self.body, &params);
                carry = results[..carries].to_vec();
                for (i, ty) in outputs.iter().enumerate() {
                    stacked[i] = print_update(p, &stacked[i], ty, &results[carries + i], &index, &zero);
                }
            }
            let next = p.fresh();
            p.line(&format!("{next} = stablehlo.add {count}, {one} : {index_type}"));
            let returned: Vec<String> = std::iter::once(next).chain(carry).chain(stacked).collect();
            p.line(&format!("stablehlo.return {} : {}", returned.join(", "), types.join(", ")));
        });
        p.line("}");
        p.aliases(line, (0..line.types.len()).map(|i| format!("{loop_name}#{}", i + 1)).collect());
    }

    fn eval(&self, evaluator: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let (carries, stacks) = (self.carries, self.stacks);
        let share =
            |arrays: &[&Array]| arrays.iter().map(|&array| Rc::new(array.clone())).collect::<Vec<_>>();
        let mut carry = share(&x[..carries]);
        let captures = share(&x[carries + stacks..]);
        let mut outputs: Vec<Array> =
            types[carries..].iter().map(|ty| Array::from_fn(ty.clone(), |_| 0.0)).collect();
        for count in 0..self.length {
            let index = match self.direction {
                Direction::Forward => count,
                Direction::Reverse => self.length - 1 - count,
            };
            let slices = x[carries..carries + stacks].iter().map(|stack| {
                let ty = stack.ty.with_shape(&stack.ty.shape[1..]);
                let size = strides(&stack.ty.shape)[0];
                Rc::new(stack.rearranged(ty, |i| index * size + i))
            });
            let args: Vec<Rc<Array>> =
                carry.iter().cloned().chain(slices).chain(captures.iter().cloned()).collect();
            let results = evaluator.call(&self.body, &args);
            carry = results[..carries].to_vec();
            for (output, slice) in outputs.iter_mut().zip(&results[carries..]) {
                for i in 0..slice.ty.elements() {
                    output.copy_element(index * slice.ty.elements() + i, slice, i);
                }
            }
        }
        carry.iter().map(|array| (**array).clone()).chain(outputs).collect()
    }
}

/// Which results of a body depend on the chosen parameters, through floats.
fn depends(body: &Body, chosen: &[bool]) -> Vec<bool> {
    let mut reached: Vec<bool> = Vec::with_capacity(body.nodes().len());
    for node in body.nodes() {
        reached.push(match &node.op {
            super::Op::Parameter(parameter) => chosen[parameter.index],
            super::Op::StopGradient(_) => false,
            _ => {
                let float = |value: &Value| body.ty(*value).dtype.is_float();
                node.operands.iter().any(|value| reached[value.node as usize] && float(value))
            }
        });
    }
    body.results()
        .iter()
        .map(|value| reached[value.node as usize] && body.ty(*value).dtype.is_float())
        .collect()
}

fn print_slice(p: &mut Printer, stack: &str, ty: &Type, index: &str, zero: &str) -> String {
    let sizes = [&[1], &ty.shape[1..]].concat();
    let row = ty.with_shape(sizes.clone());
    let starts = print_starts(ty.rank(), index, zero);
    let index_types = vec![Type::scalar(DType::I32).mlir(); ty.rank()].join(", ");
    let [sliced, reshaped] = [p.fresh(), p.fresh()];
    p.line(&format!(
        "{sliced} = stablehlo.dynamic_slice {stack}, {starts}, sizes = {sizes:?} : ({}, {index_types}) -> {}",
        ty.mlir(),
        row.mlir()
    ));
    p.line(&format!(
        "{reshaped} = stablehlo.reshape {sliced} : ({}) -> {}",
        row.mlir(),
        ty.with_shape(&ty.shape[1..]).mlir()
    ));
    reshaped
}

fn print_update(p: &mut Printer, stack: &str, ty: &Type, row: &str, index: &str, zero: &str) -> String {
    let row_type = ty.with_shape(&ty.shape[1..]);
    let one_row = ty.with_shape([&[1], &ty.shape[1..]].concat());
    let starts = print_starts(ty.rank(), index, zero);
    let index_types = vec![Type::scalar(DType::I32).mlir(); ty.rank()].join(", ");
    let [reshaped, updated] = [p.fresh(), p.fresh()];
    p.line(&format!("{reshaped} = stablehlo.reshape {row} : ({}) -> {}", row_type.mlir(), one_row.mlir()));
    p.line(&format!(
        "{updated} = stablehlo.dynamic_update_slice {stack}, {reshaped}, {starts} : ({}, {}, {index_types}) -> {}",
        ty.mlir(),
        one_row.mlir(),
        ty.mlir()
    ));
    updated
}

fn print_starts(rank: usize, index: &str, zero: &str) -> String {
    (0..rank).map(|axis| if axis == 0 { index } else { zero }).collect::<Vec<_>>().join(", ")
}

impl<'f> Builder<'f> {
    /// A loop of `options.length` iterations. `body(g, carry, slices)` builds one iteration in its own function `g`
    /// and returns the next carry and this iteration's outputs; outer values enter it with [`Builder::capture`].
    /// `xs`: tensors `[length, ..]`, sliced along axis 0. Returns the last carry and the stacked outputs.
    ///
    /// # Panics
    /// If a carry changes its type, a stack has another length, or the body uses an outer value without capturing it.
    #[track_caller]
    pub fn scan(
        &'f self,
        options: ScanOptions,
        carry: &[Tensor<'f>],
        xs: &[Tensor<'f>],
        body: impl for<'g> FnOnce(
            &'g Builder<'g>,
            &[Tensor<'g>],
            &[Tensor<'g>],
        ) -> (Vec<Tensor<'g>>, Vec<Tensor<'g>>),
    ) -> (Vec<Tensor<'f>>, Vec<Tensor<'f>>) {
        let inner = Builder::nested(self);
        let params: Vec<_> = carry.iter().map(|tensor| inner.parameter(tensor.ty())).collect();
        let mut slices = Vec::new();
        for stack in xs {
            let ty = stack.ty();
            assert!(
                ty.shape.first() == Some(&options.length),
                "scan: a stack of {} slices is wanted, got {ty}",
                options.length
            );
            slices.push(inner.parameter(ty.with_shape(&ty.shape[1..])));
        }
        let (next, outputs) = body(&inner, &params, &slices);
        assert!(next.len() == carry.len(), "scan: {} carries go in, {} come back", carry.len(), next.len());
        let results: Vec<_> = next.into_iter().chain(outputs).collect();
        let func = Arc::new(inner.finish(&results));
        let captured = inner.captured(self);
        let operands: Vec<Tensor<'f>> = carry.iter().chain(xs).copied().chain(captured).collect();
        let op = Scan {
            body: func,
            length: options.length,
            carries: carry.len(),
            stacks: xs.len(),
            unroll: options.unroll,
            direction: options.direction,
        };
        let mut results = self.push(op, &operands);
        let outputs = results.split_off(carry.len());
        (results, outputs)
    }
}
