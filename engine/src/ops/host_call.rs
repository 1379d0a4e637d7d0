//! Calls from a compiled program back into this process: how hand-written kernels run on the CPU. XLA's CPU plugin makes
//! them through its foreign function interface (`pjrt/ffi.rs`); other platforms have none.

use super::kernel::layouts;
use super::{Rules, ShapeError};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::host::{Element, Host};
use crate::ir::{Builder, Tensor};
use crate::pjrt::{Handler, handler};
use crate::text::{Line, Printer};
use crate::types::{DType, Type};
use std::any::TypeId;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, PoisonError};

/// A function of this process that programs may call.
///
/// The results of equal operands must be equal to the last bit, however many workers there are.
pub trait HostFunction: 'static {
    /// The name in programs. Functions of one process have different names.
    const NAME: &'static str;
    /// Writes the results, all of them.
    ///
    /// # Panics
    /// What panics here is an error of the run, with the panic's message.
    fn call(frame: Frame<'_>);
}

/// One call: what goes in and where the results go.
#[derive(Debug)]
pub struct Frame<'a> {
    /// What the call's author wrote beside the operands.
    pub attributes: &'a [i64],
    /// The operands.
    pub operands: Vec<View<'a>>,
    /// The results; what they hold before they are written means nothing.
    pub results: Vec<ViewMut<'a>>,
    /// Threads that may help.
    pub workers: Workers<'a>,
}

/// An operand: dense, row-major.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
}

/// A result: dense, row-major.
#[derive(Debug)]
pub struct ViewMut<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a mut [u8],
}

impl<'a> View<'a> {
    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extent of each axis.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The numbers.
    ///
    /// # Panics
    /// If the element type is another one.
    #[track_caller]
    pub fn as_slice<E: Element>(&self) -> &'a [E] {
        assert!(self.dtype == E::DTYPE, "an operand is {}, read as {}", self.dtype, E::DTYPE);
        bytemuck::cast_slice(self.bytes)
    }

    /// One byte for each bool, 0 or 1.
    ///
    /// # Panics
    /// If the element type is another one.
    #[track_caller]
    pub fn as_bools(&self) -> &'a [u8] {
        assert!(self.dtype == DType::Bool, "an operand is {}, read as bool", self.dtype);
        self.bytes
    }
}

impl<'a> ViewMut<'a> {
    /// The extent of each axis.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The numbers, to be written.
    ///
    /// # Panics
    /// If the element type is another one.
    #[track_caller]
    pub fn into_slice<E: Element>(self) -> &'a mut [E] {
        assert!(self.dtype == E::DTYPE, "a result is {}, written as {}", self.dtype, E::DTYPE);
        bytemuck::cast_slice_mut(self.bytes)
    }
}

/// The threads of a call: the caller, and those that the plugin lends.
#[derive(Clone, Copy)]
pub struct Workers<'a> {
    pool: Option<&'a dyn Pool>,
}

/// Threads that can be asked to help the caller.
pub(crate) trait Pool: Sync {
    /// Threads that work at once, the caller's among them.
    fn threads(&self) -> usize;
    /// Runs `body` on the calling thread, and on as many as `helpers` others as soon as they are free, and returns when
    /// nobody is in it any more. It is not said whether a helper comes in time.
    fn run(&self, helpers: usize, body: &(dyn Fn() + Sync));
    /// Runs `f` on the calling thread, with a pool whose helpers do not sleep meanwhile.
    fn awake(&self, f: &mut dyn FnMut(&dyn Pool));
}

impl<'a> Workers<'a> {
    /// The caller alone.
    pub fn caller() -> Workers<'static> {
        Workers { pool: None }
    }

    pub(crate) fn of(pool: &'a dyn Pool) -> Workers<'a> {
        Workers { pool: Some(pool) }
    }

    /// Threads that work at once.
    pub fn threads(&self) -> usize {
        self.pool.map_or(1, Pool::threads)
    }

    /// Runs `f` with workers that stay awake for it: for a chain of short things, each of which waits for the last. Waking a
    /// thread up for each would take longer than many of them.
    pub fn awake(&self, f: impl FnOnce(Workers<'_>)) {
        let Some(pool) = self.pool.filter(|_| self.threads() > 1) else {
            return f(Workers::caller());
        };
        let mut f = Some(f);
        pool.awake(&mut |pool| {
            if let Some(f) = f.take() {
                f(Workers::of(pool));
            }
        });
    }

    /// Does something with every item, several at once and in no order that could be relied on.
    pub fn for_each<T: Send>(&self, items: Vec<T>, f: impl Fn(T) + Sync) {
        let helpers = items.len().min(self.threads()).saturating_sub(1);
        let Some(pool) = self.pool.filter(|_| helpers > 0) else {
            return items.into_iter().for_each(f);
        };
        let items = Mutex::new(items.into_iter());
        let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
        pool.run(helpers, &|| {
            while let Some(item) = next() {
                f(item);
            }
        });
    }
}

impl fmt::Debug for Workers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({})", self.threads())
    }
}

/// `stablehlo.custom_call` of a [`HostFunction`].
#[derive(Clone)]
pub struct HostCall {
    pub(crate) name: &'static str,
    pub(crate) function: TypeId,
    pub(crate) call: fn(Frame<'_>),
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
        (self.call)(Frame {
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
