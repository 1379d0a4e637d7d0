//! The IR: [`Func`], an append-only arena of nodes, its [`Builder`], and [`Tensor`], a value under construction.
//!
//! **Invariants**: operands precede users; a body is closed, what it takes from outside are its parameters (both
//! checked by [`crate::passes::verify`]); equal pure nodes of one function exist once (kept by [`Builder`]).

use crate::ops::collective::Sharding;
use crate::ops::{HostCall, Op, Parameter};
use crate::types::{DType, Type};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::Location;
use std::sync::Arc;

/// One result of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// Index of the node in its function.
    pub node: u32,
    /// Index of the result among the node's results.
    pub result: u32,
}

/// An operation, its operands, the types of its results, and the line of the author that made it.
#[derive(Clone, Debug)]
pub struct Node {
    /// The operation with its attributes.
    pub op: Op,
    /// Values of earlier nodes.
    pub operands: Vec<Value>,
    /// The type of each result.
    pub types: Vec<Type>,
    /// Where the author wrote it.
    pub at: &'static Location<'static>,
}

impl Node {
    /// Equality of meaning: where it was written does not count.
    fn same(&self, op: &Op, operands: &[Value]) -> bool {
        self.operands == operands && self.op == *op
    }
}

/// A finished, closed function. Only nodes that its results need are kept, and all of its parameters.
#[derive(Clone)]
pub struct Func {
    nodes: Vec<Node>,
    params: Vec<Value>,
    results: Vec<Value>,
    digest: u64,
}

impl Func {
    /// Keeps the nodes that `results` need, and the names given to them: a name that no node reads still tells
    /// what a gradient may save. Parameters with an index of `params` or more are not part of the function.
    pub(crate) fn extract(nodes: &[Node], params: usize, results: &[Value]) -> Func {
        let mut live = vec![false; nodes.len()];
        for value in results {
            live[value.node as usize] = true;
        }
        for (index, node) in nodes.iter().enumerate().rev() {
            if let Op::Parameter(parameter) = &node.op {
                live[index] = parameter.index < params;
                continue;
            }
            if live[index] {
                for operand in &node.operands {
                    live[operand.node as usize] = true;
                }
            }
        }
        for (index, node) in nodes.iter().enumerate() {
            if let (Op::Named(_), [operand]) = (&node.op, &node.operands[..]) {
                live[index] |= live[operand.node as usize];
            }
        }
        let mut renumbered = vec![u32::MAX; nodes.len()];
        let mut kept: Vec<Node> = Vec::new();
        let mut places = vec![None; params];
        let moved = |renumbered: &[u32], value: Value| {
            let node = renumbered[value.node as usize];
            assert!(
                node != u32::MAX,
                "function extraction: a result needs a parameter that is not part of it"
            );
            Value { node, result: value.result }
        };
        for (index, node) in nodes.iter().enumerate().filter(|(index, _)| live[*index]) {
            renumbered[index] = kept.len() as u32;
            if let Op::Parameter(parameter) = &node.op {
                places[parameter.index] = Some(Value { node: kept.len() as u32, result: 0 });
            }
            let operands = node.operands.iter().map(|&value| moved(&renumbered, value)).collect();
            kept.push(Node { operands, ..node.clone() });
        }
        let params = places.into_iter().map(|place| place.expect("every parameter has a node")).collect();
        let results = results.iter().map(|&value| moved(&renumbered, value)).collect();
        let mut func = Func { nodes: kept, params, results, digest: 0 };
        let mut hasher = DefaultHasher::new();
        for node in &func.nodes {
            (&node.op, &node.operands, &node.types).hash(&mut hasher);
        }
        func.results.hash(&mut hasher);
        func.digest = hasher.finish();
        func
    }

    /// The same function after a fault, for tests of what must find it.
    #[cfg(test)]
    pub(crate) fn broken(&self, fault: impl FnOnce(&mut Vec<Node>)) -> Func {
        let mut func = self.clone();
        fault(&mut func.nodes);
        func
    }

    /// The nodes; operands precede users.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Calls of functions of this process, those in bodies too.
    pub(crate) fn host_calls(&self) -> Vec<&HostCall> {
        let mut calls = Vec::new();
        for node in &self.nodes {
            match &node.op {
                Op::HostCall(call) => calls.push(call),
                op => calls.extend(op.bodies().into_iter().flat_map(|body| body.host_calls())),
            }
        }
        calls
    }

    /// This function rebuilt, bodies first: `rule` may replace each node.
    pub(crate) fn rewrite<R>(&self, rule: &mut R) -> Func
    where
        R: for<'f> FnMut(&'f Builder<'f>, &Op, &[Tensor<'f>]) -> Option<Vec<Tensor<'f>>>,
    {
        let builder = Builder::new();
        let mut made: Vec<Vec<Tensor<'_>>> = Vec::with_capacity(self.nodes().len());
        let params: Vec<Tensor<'_>> =
            self.param_types().into_iter().map(|ty| builder.parameter(ty)).collect();
        for node in self.nodes() {
            let results = match &node.op {
                Op::Parameter(parameter) => vec![params[parameter.index]],
                op => {
                    let operands: Vec<Tensor<'_>> = node
                        .operands
                        .iter()
                        .map(|value| made[value.node as usize][value.result as usize])
                        .collect();
                    let bodies = op.bodies().into_iter().map(|body| Arc::new(body.rewrite(rule))).collect();
                    let op = op.with_bodies(bodies);
                    builder.attributed(node.at, || {
                        rule(&builder, &op, &operands).unwrap_or_else(|| builder.push(op.clone(), &operands))
                    })
                }
            };
            made.push(results);
        }
        let results: Vec<Tensor<'_>> =
            self.results().iter().map(|value| made[value.node as usize][value.result as usize]).collect();
        builder.finish(&results)
    }

    /// The parameters, in order.
    pub fn params(&self) -> &[Value] {
        &self.params
    }

    /// The results, in order.
    pub fn results(&self) -> &[Value] {
        &self.results
    }

    /// The type of a value of this function.
    pub fn ty(&self, value: Value) -> &Type {
        &self.nodes[value.node as usize].types[value.result as usize]
    }

    /// The types of the parameters.
    pub fn param_types(&self) -> Vec<Type> {
        self.params.iter().map(|&value| self.ty(value).clone()).collect()
    }

    /// The types of the results.
    pub fn result_types(&self) -> Vec<Type> {
        self.results.iter().map(|&value| self.ty(value).clone()).collect()
    }
}

impl PartialEq for Func {
    fn eq(&self, other: &Func) -> bool {
        self.digest == other.digest
            && self.results == other.results
            && self.nodes.len() == other.nodes.len()
            && self
                .nodes
                .iter()
                .zip(&other.nodes)
                .all(|(a, b)| a.same(&b.op, &b.operands) && a.types == b.types)
    }
}

impl Eq for Func {}

impl Hash for Func {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl fmt::Debug for Func {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "func({} nodes)", self.nodes.len())
    }
}

/// A function under construction. Bodies of loops and calls are built by nested builders; a nested builder takes an
/// outer value in with [`Builder::capture`].
pub struct Builder<'p> {
    parent: Option<&'p Builder<'p>>,
    state: RefCell<State>,
    /// While a gradient rule runs: the line of the forward node, given to every node that the rule makes.
    author: Cell<Option<&'static Location<'static>>>,
    /// Forward and backward pass are split into functions of their own, as those of a scan.
    pub(crate) split: bool,
}

#[derive(Default)]
struct State {
    nodes: Vec<Node>,
    interned: HashMap<u64, Vec<u32>>,
    params: usize,
    /// (value of the parent, our parameter)
    captures: Vec<(Value, Value)>,
    /// Of the main function of a program; no other function has any.
    ports: Option<Ports>,
}

/// A named input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Path in the caller's tree, `params.layers.gate`.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// How it is cut over devices; without one, each device of the program holds all of it.
    pub sharding: Option<Sharding>,
    /// For an input that is donated: the output that is written over it.
    pub replaced_by: Option<usize>,
}

impl Port {
    /// The type of what one device holds.
    pub fn local(&self) -> Type {
        self.sharding.as_ref().map_or_else(|| self.ty.clone(), |sharding| sharding.part(&self.ty))
    }
}

/// What a program takes and gives, as declared so far.
#[derive(Default)]
pub(crate) struct Ports {
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<(Port, Value)>,
}

/// A value of a function under construction: a copyable handle that reads like a number in formulas.
#[derive(Clone, Copy)]
pub struct Tensor<'f> {
    builder: &'f Builder<'f>,
    value: Value,
}

impl<'f> Builder<'f> {
    pub(crate) fn new() -> Builder<'f> {
        Builder { parent: None, state: RefCell::default(), author: Cell::new(None), split: false }
    }

    /// The builder of a function whose forward and backward pass are split into functions of their own.
    pub(crate) fn split() -> Builder<'f> {
        Builder { split: true, ..Builder::new() }
    }

    /// The builder of a program's main function.
    pub(crate) fn program() -> Builder<'f> {
        let state = State { ports: Some(Ports::default()), ..State::default() };
        Builder { state: RefCell::new(state), ..Builder::new() }
    }

    pub(crate) fn nested(parent: &'f Builder<'f>) -> Builder<'f> {
        Builder { parent: Some(parent), author: Cell::new(parent.author.get()), ..Builder::new() }
    }

    /// Adds the next parameter.
    #[track_caller]
    pub(crate) fn parameter(&'f self, ty: Type) -> Tensor<'f> {
        let index = self.state.borrow().params;
        self.state.borrow_mut().params += 1;
        self.push(Parameter { index, ty }, &[])[0]
    }

    /// Takes a value of an enclosing function into this one: as an operand of the region, seen here as a parameter.
    /// A value of this very function is returned as it is.
    ///
    /// # Panics
    /// If the value belongs to no enclosing function.
    #[track_caller]
    pub fn capture(&'f self, outer: Tensor<'_>) -> Tensor<'f> {
        if self.is(outer.builder) {
            return Tensor { builder: self, value: outer.value };
        }
        let Some(parent) = self.parent else {
            panic!("capture({}): the value belongs to no function that encloses this one", outer.ty())
        };
        let outer = parent.capture(outer).value;
        let known =
            self.state.borrow().captures.iter().find(|(value, _)| *value == outer).map(|(_, inner)| *inner);
        let value = known.unwrap_or_else(|| {
            let inner = self.parameter(parent.ty(outer)).value;
            self.state.borrow_mut().captures.push((outer, inner));
            inner
        });
        Tensor { builder: self, value }
    }

    /// The values of `parent` that [`Builder::capture`] has taken in, in the order of their parameters.
    pub(crate) fn captured(&self, parent: &'f Builder<'f>) -> Vec<Tensor<'f>> {
        self.state.borrow().captures.iter().map(|&(value, _)| Tensor { builder: parent, value }).collect()
    }

    /// Adds a node, or finds the equal one that is already there.
    ///
    /// # Panics
    /// At the author's line, with op, operand types and reason, if the operands do not fit.
    #[track_caller]
    pub(crate) fn push(&'f self, op: impl Into<Op>, operands: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let op = op.into();
        let at = self.author.get().unwrap_or(Location::caller());
        for (position, operand) in operands.iter().enumerate() {
            assert!(
                self.is(operand.builder),
                "{}: operand {position} ({}, made at {}) belongs to another function: take it in with `capture` (at {at})",
                op.name(),
                operand.ty(),
                operand.builder.node(operand.value.node).at,
            );
        }
        let values: Vec<Value> = operands.iter().map(|operand| operand.value).collect();
        let mut hasher = DefaultHasher::new();
        (&op, &values).hash(&mut hasher);
        let key = hasher.finish();
        if op.is_pure() {
            let state = self.state.borrow();
            let bucket = state.interned.get(&key).map_or(&[][..], |bucket| bucket);
            if let Some(&index) = bucket.iter().find(|&&index| state.nodes[index as usize].same(&op, &values))
            {
                let results = state.nodes[index as usize].types.len();
                drop(state);
                return self.results(index, results);
            }
        }
        let types: Vec<Type> = operands.iter().map(|operand| operand.ty()).collect();
        let inferred = match op.rules().infer(&types) {
            Ok(inferred) => inferred,
            Err(reason) => panic!("{}({}): {reason} (at {at})", op.name(), list(&types)),
        };
        let results = inferred.len();
        let mut state = self.state.borrow_mut();
        let index = state.nodes.len() as u32;
        if op.is_pure() {
            state.interned.entry(key).or_default().push(index);
        }
        state.nodes.push(Node { op, operands: values, types: inferred, at });
        drop(state);
        self.results(index, results)
    }

    /// Gives an existing node more results; the ones it had keep their places and meaning, so its users stay right.
    /// A forward loop becomes in this way one that also returns what its backward loop needs.
    pub(crate) fn extend(&'f self, node: u32, op: Op) -> Vec<Tensor<'f>> {
        let operands: Vec<Type> = self.node(node).operands.iter().map(|&value| self.ty(value)).collect();
        let types =
            op.rules().infer(&operands).unwrap_or_else(|reason| panic!("extending {}: {reason}", op.name()));
        let mut state = self.state.borrow_mut();
        let place = &mut state.nodes[node as usize];
        assert!(types.starts_with(&place.types), "extending {}: the results it had must stay", op.name());
        let count = types.len();
        place.op = op;
        place.types = types;
        drop(state);
        self.results(node, count)
    }

    fn results(&'f self, node: u32, count: usize) -> Vec<Tensor<'f>> {
        (0..count as u32).map(|result| Tensor { builder: self, value: Value { node, result } }).collect()
    }

    pub(crate) fn is(&self, other: &Builder<'_>) -> bool {
        std::ptr::eq(&raw const self.state, &raw const other.state)
    }

    pub(crate) fn tensor(&'f self, value: Value) -> Tensor<'f> {
        Tensor { builder: self, value }
    }

    /// Number of nodes so far.
    pub(crate) fn len(&self) -> u32 {
        self.state.borrow().nodes.len() as u32
    }

    pub(crate) fn node(&self, index: u32) -> Node {
        self.state.borrow().nodes[index as usize].clone()
    }

    /// Looks at a node in place; `look` must not add nodes.
    pub(crate) fn with_node<T>(&self, index: u32, look: impl FnOnce(&Node) -> T) -> T {
        look(&self.state.borrow().nodes[index as usize])
    }

    pub(crate) fn ty(&self, value: Value) -> Type {
        self.state.borrow().nodes[value.node as usize].types[value.result as usize].clone()
    }

    /// Runs `make` with every new node attributed to `at`.
    pub(crate) fn attributed<T>(&self, at: &'static Location<'static>, make: impl FnOnce() -> T) -> T {
        let before = self.author.replace(Some(at));
        let made = make();
        self.author.set(before);
        made
    }

    /// Emits the nodes of a finished function here, with `args` for its parameters; returns its results.
    pub(crate) fn inline(&'f self, func: &Func, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let mut made: Vec<Vec<Tensor<'f>>> = Vec::with_capacity(func.nodes.len());
        for node in &func.nodes {
            let results = match &node.op {
                Op::Parameter(parameter) => vec![args[parameter.index]],
                op => {
                    let at = |value: &Value| made[value.node as usize][value.result as usize];
                    let operands: Vec<Tensor<'f>> = node.operands.iter().map(at).collect();
                    self.attributed(node.at, || self.push(op.clone(), &operands))
                }
            };
            made.push(results);
        }
        func.results.iter().map(|value| made[value.node as usize][value.result as usize]).collect()
    }

    /// The function of the first `params` parameters with the given results.
    pub(crate) fn finish_with(&self, params: usize, results: &[Value]) -> Func {
        Func::extract(&self.state.borrow().nodes, params, results)
    }

    /// The function of all parameters with the given results.
    #[track_caller]
    pub(crate) fn finish(&'f self, results: &[Tensor<'f>]) -> Func {
        let values: Vec<Value> = results
            .iter()
            .map(|result| {
                assert!(
                    self.is(result.builder),
                    "a result ({}) of the body belongs to another function: take it in with `capture`",
                    result.ty()
                );
                result.value
            })
            .collect();
        self.finish_with(self.state.borrow().params, &values)
    }

    /// Looks at the program's ports, or changes them; `None` inside a body. `look` must not add nodes.
    pub(crate) fn with_ports<T>(&self, look: impl FnOnce(&mut Ports) -> T) -> Option<T> {
        self.state.borrow_mut().ports.as_mut().map(look)
    }
}

impl<'f> Tensor<'f> {
    /// The function under construction that this value belongs to.
    pub fn builder(self) -> &'f Builder<'f> {
        self.builder
    }

    pub(crate) fn value(self) -> Value {
        self.value
    }

    /// Element type and shape.
    pub fn ty(self) -> Type {
        self.builder.ty(self.value)
    }

    /// The element type.
    pub fn dtype(self) -> DType {
        self.ty().dtype
    }

    /// The extent of each axis.
    pub fn shape(self) -> Vec<usize> {
        self.ty().shape
    }

    /// Number of axes.
    pub fn rank(self) -> usize {
        self.ty().rank()
    }

    /// The extent of one axis.
    #[track_caller]
    pub fn dim(self, axis: usize) -> usize {
        let ty = self.ty();
        assert!(axis < ty.rank(), "dim({ty}, {axis}): there is no such axis");
        ty.shape[axis]
    }
}

impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}.{}: {}", self.value.node, self.value.result, self.ty())
    }
}

/// `f32[2], i32[]`
pub(crate) fn list(types: &[Type]) -> String {
    types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ")
}

/// A body that several ops share.
pub(crate) type Body = Arc<Func>;
