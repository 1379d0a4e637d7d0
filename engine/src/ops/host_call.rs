//! Calls from a compiled program back into this process: how hand-written kernels run on the CPU. XLA's CPU plugin makes
//! them through its foreign function interface (`pjrt/ffi.rs`); other platforms have none.

use super::kernel::layouts;
use super::{Rules, ShapeError};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::host::Host;
use crate::host_function::{CallFrame, HostFunction, Workers};
use crate::ir::{Builder, Tensor};
use crate::pjrt::{Handler, handler};
use crate::text::{Line, Printer};
use crate::types::Type;
use std::any::TypeId;
use std::fmt;
use std::hash::{Hash, Hasher};

/// `stablehlo.custom_call` of a [`HostFunction`].
#[derive(Clone)]
pub struct HostCall {
    pub(crate) name: &'static str,
    pub(crate) function: TypeId,
    pub(crate) call: fn(CallFrame<'_>),
    pub(crate) handler: Handler,
    attributes: Vec<i64>,
    results: Vec<Type>,
}

impl HostCall {
    /// A call that gives results of these types.
    pub fn new<F: HostFunction>(attributes: Vec<i64>, results: Vec<Type>) -> HostCall {
        HostCall {
            name: F::NAME,
            function: TypeId::of::<F>(),
            call: F::call,
            handler: handler::<F>(),
            attributes,
            results,
        }
    }

    fn key(&self) -> (TypeId, &[i64], &[Type]) {
        (self.function, &self.attributes, &self.results)
    }
}

impl PartialEq for HostCall {
    fn eq(&self, other: &HostCall) -> bool {
        self.key() == other.key()
    }
}

impl Eq for HostCall {}

impl Hash for HostCall {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Debug for HostCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostCall {{ name: {}, attributes: {:?} }}", self.name, self.attributes)
    }
}

impl Rules for HostCall {
    fn infer(&self, _: &[Type]) -> Result<Vec<Type>, ShapeError> {
        Ok(self.results.clone())
    }
    fn vjp<'f>(&self, _: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Err(NoGradient("a function of the host has no formula; make its call the lowering of a kernel"))
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let attributes: Vec<String> = self.attributes.iter().map(i64::to_string).collect();
        let attributes = match attributes.join(", ") {
            none if none.is_empty() => "array<i64>".to_owned(),
            some => format!("array<i64: {some}>"),
        };
        // Version 4 is XLA's typed interface.
        p.line(&format!(
            "{} = stablehlo.custom_call @{}({}) {{api_version = 4 : i32, backend_config = {{attributes = {attributes}}}, {}}} : {}",
            line.result,
            self.name,
            line.operands.join(", "),
            layouts(line),
            line.signature()
        ));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let operands: Vec<Host> = x.iter().map(|array| array.to_host()).collect();
        let mut results: Vec<Host> = types.iter().map(|ty| Host::zeros(ty.clone())).collect();
        (self.call)(CallFrame {
            attributes: &self.attributes,
            operands: operands.iter().map(Host::view).collect(),
            results: results.iter_mut().map(Host::view_mut).collect(),
            workers: Workers::caller(),
        });
        results.iter().map(Array::from_host).collect()
    }
}

impl<'f> Builder<'f> {
    /// A call of a function of this process.
    #[track_caller]
    pub fn host_call(&'f self, call: HostCall, operands: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        self.push(call, operands)
    }
}
