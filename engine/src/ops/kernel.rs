//! The kernel hook: fused operations from other crates, and the custom calls that they lower to.

use super::control::eval_body;
use super::{Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp, linearize};
use crate::host::Host;
use crate::ir::{Builder, Func, Tensor, Value};
use crate::text::{Line, Printer};
use crate::types::Type;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A fused operation. [`Kernel::reference`] is its meaning; every other lowering must agree with it. No method has a
/// default: a kernel without an answer does not compile.
pub trait Kernel: fmt::Debug + Send + Sync {
    /// Name with every attribute: kernels with equal names are equal.
    fn name(&self) -> String;
    /// Result types, or why the operands do not fit; tile rules belong here too.
    ///
    /// # Errors
    /// In words for the author: "sequence 1000 is not a multiple of 256".
    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError>;
    /// The meaning in plain ops: the oracle of the tests, and what runs where nothing better exists.
    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>>;
    /// The gradient. `wanted` says which arguments want one.
    fn vjp<'f>(
        &self,
        args: &[Tensor<'f>],
        results: &[Tensor<'f>],
        cts: &[Tensor<'f>],
        wanted: &[bool],
    ) -> Backward<'f>;
    /// How many results, from the first on, have a gradient; the others serve the backward pass alone, and a gradient
    /// through them is refused.
    fn differentiable(&self) -> usize;
    /// All results, from those that a gradient has saved, where that is cheaper than to compute them from the
    /// arguments; else `None`. `known`: the saved ones.
    fn recompute<'f>(&self, args: &[Tensor<'f>], known: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>>;
    /// The form for a target, and a function with the kernel's parameters and results; None is the reference. `wanted`: the
    /// form that is asked for, or None for the fastest; a kernel without it answers with another one. A pure function of its
    /// arguments.
    fn lower(&self, args: &[Type], target: Target, wanted: Option<Form>) -> Option<(Form, Func)>;
}

/// A kernel's answer to "what is your gradient".
#[derive(Debug)]
pub enum Backward<'f> {
    /// One entry for each argument; `None` only for those that want none.
    Grads(Vec<Option<Tensor<'f>>>),
    /// That of the reference, computed again in the backward pass; the reason why no better one exists.
    OfReference(&'static str),
}

/// What a program is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// XLA's CPU plugin.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// A TPU of the v6e kind.
    TpuV6e,
    /// A TPU of another kind, which no kernel was made for.
    OtherTpu,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Target::Cpu => "a CPU",
            Target::Cuda => "an NVIDIA GPU",
            Target::TpuV6e => "a TPU v6e",
            Target::OtherTpu => "a TPU that is no v6e",
        })
    }
}

/// The forms that a kernel can have. Where one is wanted, `Option<Form>` says which: None is the fastest for the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The meaning in plain ops: [`Kernel::reference`].
    Reference,
    /// Plain StableHLO, arranged for speed.
    Portable,
    /// Hand-written for the target: a call into its own kernel ([`CustomCall`]) or back into this process
    /// ([`HostCall`](crate::HostCall)), with what prepares its operands and finishes its results. Who asks for it asks
    /// [`passes::require_native`](crate::passes::require_native) whether there is one.
    Native,
}

impl Form {
    /// What may be wanted, and the word for it in settings and flags.
    pub const WANTED: [(&'static str, Option<Form>); 4] = [
        ("auto", None),
        ("portable", Some(Form::Portable)),
        ("native", Some(Form::Native)),
        ("reference", Some(Form::Reference)),
    ];

    /// The word for what is wanted.
    pub fn word(wanted: Option<Form>) -> &'static str {
        Form::WANTED.into_iter().find(|(_, form)| *form == wanted).map_or("auto", |(word, _)| word)
    }

    /// Whether a kernel that has a native form for the target should take it.
    pub fn takes_native(wanted: Option<Form>) -> bool {
        matches!(wanted, None | Some(Form::Native))
    }
}

/// A kernel applied to operands.
#[derive(Clone, Debug)]
pub struct KernelCall(pub Arc<dyn Kernel>);

impl PartialEq for KernelCall {
    fn eq(&self, other: &KernelCall) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for KernelCall {}

impl Hash for KernelCall {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl KernelCall {
    pub(crate) fn reference(&self, args: &[Type]) -> Func {
        Func::build(args, |_, params| self.0.reference(params))
    }
}

impl Rules for KernelCall {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        self.0.infer(x)
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        let results = v.all_results();
        if (self.0.differentiable()..results.len()).any(|i| v.ct_if_any(i).is_some()) {
            return Err(NoGradient("the result is there for the backward pass alone"));
        }
        let cts: Vec<Tensor<'f>> = (0..results.len()).map(|i| v.ct(i)).collect();
        let grads = match self.0.vjp(v.all_operands(), results, &cts, v.all_wanted()) {
            Backward::Grads(grads) => {
                let missing =
                    grads.iter().zip(v.all_wanted()).position(|(grad, &wanted)| wanted && grad.is_none());
                if let Some(i) = missing {
                    panic!(
                        "kernel {} gives no gradient for argument {i} ({}), which wants one; let it answer `OfReference`, or \
                         `stop_gradient` the argument",
                        self.0.name(),
                        v.operand(i).ty()
                    );
                }
                grads
            }
            Backward::OfReference(_) => {
                let types: Vec<Type> = v.all_operands().iter().map(|operand| operand.ty()).collect();
                let has_ct: Vec<bool> = (0..results.len()).map(|i| v.ct_if_any(i).is_some()).collect();
                let scratch = Builder::new();
                let linear = linearize(&scratch, &self.reference(&types), &has_ct, v.all_wanted());
                let params =
                    linear.params.iter().map(|param| param.value()).zip(v.all_operands().iter().copied());
                let given =
                    linear.cts.iter().enumerate().filter_map(|(i, ct)| Some((ct.as_ref()?.value(), cts[i])));
                let known: HashMap<Value, Tensor<'f>> = params.chain(given).collect();
                linear.emit_grads(v.builder, &known)
            }
        };
        assert!(
            grads.len() == v.operands(),
            "kernel {} gives {} gradients for {} arguments",
            self.0.name(),
            grads.len(),
            v.operands()
        );
        Ok(grads.into_iter().map(|grad| grad.map_or(Cotangent::None, Cotangent::Add)).collect())
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        // Not lowered yet: its meaning.
        let callee = p.callee(&self.0.name(), &Arc::new(self.reference(line.operand_types)));
        p.line(&format!(
            "{} = func.call @{callee}({}) : {}",
            line.result,
            line.operands.join(", "),
            line.signature()
        ));
    }
    fn eval(&self, evaluator: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        let types: Vec<Type> = x.iter().map(|array| array.ty.clone()).collect();
        eval_body(evaluator, &Arc::new(self.reference(&types)), x)
    }
}

/// `stablehlo.custom_call`: a function of the target, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CustomCall {
    /// The target's name for it.
    pub target: String,
    /// Its configuration, as the target wants it.
    pub backend_config: String,
    /// The name in profiles.
    pub kernel_name: String,
    /// The result types.
    pub results: Vec<Type>,
    /// (result, operand): the result is written over the operand.
    pub aliases: Vec<(usize, usize)>,
    /// The same numbers on the host, for the evaluator.
    pub interpreter: Option<Interpreter>,
    /// The same call on scanned arrays, if the target has one.
    pub in_place: Option<InPlace>,
}

/// How a call in a scan's body reads and writes rows of the scanned arrays where they lie, instead of a copy of the row.
#[derive(Clone)]
pub struct InPlace {
    /// Operands that may be scanned arrays.
    pub operands: Vec<usize>,
    /// Results that may be written into scanned arrays.
    pub results: Vec<usize>,
    /// The call for a choice of them.
    pub call: Arc<dyn Fn(&Scanned) -> CustomCall + Send + Sync>,
}

/// Which operands and results of a call are whole scanned arrays. An array `[L, n, ..]` is handed over as `[L * n, ..]`, so
/// that row `l` begins at `l * n` of its first axis. The call's operands are the row's number `i32[1]`, then its own, then
/// the arrays that it writes into, in order of the results.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scanned {
    /// Rows of the arrays, `L`: iterations of the scan.
    pub length: usize,
    /// Operands that are scanned arrays.
    pub operands: Vec<usize>,
    /// Results that are written into scanned arrays.
    pub results: Vec<usize>,
}

// Calls with the same configuration have the same form on scanned arrays.
impl PartialEq for InPlace {
    fn eq(&self, other: &InPlace) -> bool {
        (&self.operands, &self.results) == (&other.operands, &other.results)
    }
}

impl Eq for InPlace {}

impl Hash for InPlace {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.operands, &self.results).hash(state);
    }
}

impl fmt::Debug for InPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InPlace({:?}, {:?})", self.operands, self.results)
    }
}

/// Operands to results.
type Evaluate = dyn Fn(&[Host]) -> Vec<Host> + Send + Sync;

/// What a custom call computes, as a function on the host.
#[derive(Clone)]
pub struct Interpreter(pub Arc<Evaluate>);

// Calls with the same configuration mean the same.
impl PartialEq for Interpreter {
    fn eq(&self, _: &Interpreter) -> bool {
        true
    }
}

impl Eq for Interpreter {}

impl Hash for Interpreter {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl fmt::Debug for Interpreter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interpreter")
    }
}

impl CustomCall {
    /// A function that only makes this call.
    #[track_caller]
    pub fn alone(self, args: &[Type]) -> Func {
        Func::build(args, |f, args| f.custom_call(self, args))
    }
}

impl Rules for CustomCall {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        for &(result, operand) in &self.aliases {
            let same = result < self.results.len() && x.get(operand) == Some(&self.results[result]);
            want!(same, "result {result} cannot be written over operand {operand}");
        }
        Ok(self.results.clone())
    }
    fn vjp<'f>(&self, _: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Err(NoGradient("a custom call says nothing of its meaning; make it the lowering of a kernel"))
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let mut escaped = String::new();
        for letter in self.backend_config.chars() {
            match letter {
                '"' => escaped.push_str("\\22"),
                '\\' => escaped.push_str("\\5C"),
                '\n' => escaped.push_str("\\0A"),
                other => escaped.push(other),
            }
        }
        let mut attributes = format!("backend_config = \"{escaped}\"");
        if !self.kernel_name.is_empty() {
            attributes += &format!(", kernel_name = \"{}\"", self.kernel_name);
        }
        attributes += &format!(", {}", layouts(line));
        let aliases: Vec<String> = (self.aliases.iter())
            .map(|&(result, operand)| {
                let index = if self.results.len() == 1 { String::new() } else { result.to_string() };
                format!("#stablehlo.output_operand_alias<output_tuple_indices = [{index}], operand_index = {operand}, operand_tuple_indices = []>")
            })
            .collect();
        if !aliases.is_empty() {
            attributes += &format!(", output_operand_aliases = [{}]", aliases.join(", "));
        }
        p.line(&format!(
            "{} = stablehlo.custom_call @{}({}) {{{attributes}}} : {}",
            line.result,
            self.target,
            line.operands.join(", "),
            line.signature()
        ));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        if let Some(interpreter) = &self.interpreter {
            let operands: Vec<Host> = x.iter().map(|array| array.to_host()).collect();
            return (interpreter.0)(&operands).iter().map(Array::from_host).collect();
        }
        panic!(
            "custom_call @{}: only its target knows what it computes; evaluate the program before kernels are selected",
            self.target
        )
    }
}

/// Row-major layouts of a custom call's operands and results.
pub(super) fn layouts(line: &Line) -> String {
    let layout = |ty: &Type| match ty.rank() {
        0 => "dense<> : tensor<0xindex>".to_owned(),
        rank => format!("dense<{:?}> : tensor<{rank}xindex>", (0..rank).rev().collect::<Vec<_>>()),
    };
    let list = |types: &[Type]| types.iter().map(layout).collect::<Vec<_>>().join(", ");
    format!("operand_layouts = [{}], result_layouts = [{}]", list(line.operand_types), list(line.types))
}

impl Func {
    /// A closed function of parameters of the given types.
    #[track_caller]
    pub fn build(
        params: &[Type],
        body: impl for<'g> FnOnce(&'g Builder<'g>, &[Tensor<'g>]) -> Vec<Tensor<'g>>,
    ) -> Func {
        let builder = Builder::new();
        let params: Vec<_> = params.iter().map(|ty| builder.parameter(ty.clone())).collect();
        let results = body(&builder, &params);
        builder.finish(&results)
    }
}

impl<'f> Builder<'f> {
    /// A call into a target's own kernel.
    #[track_caller]
    pub fn custom_call(&'f self, call: CustomCall, operands: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        self.push(call, operands)
    }

    /// A kernel applied to operands.
    #[track_caller]
    pub fn kernel(&'f self, kernel: impl Kernel + 'static, operands: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        self.kernel_call(Arc::new(kernel), operands)
    }

    /// [`Builder::kernel`] for a kernel whose type is not known.
    #[track_caller]
    pub fn kernel_call(&'f self, kernel: Arc<dyn Kernel>, operands: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        self.push(KernelCall(kernel), operands)
    }
}
