//! What the test files share: the CPU client, programs with random arguments, closeness, and gradients against finite
//! differences.

pub mod close;
mod decoys;
pub mod examples;
pub mod faults;
pub mod fuzz;
pub mod kernel;
pub mod packages;
mod programs;
pub mod shards;
pub mod sources;
pub mod trainer;

pub use decoys::Decoys;
pub use programs::*;
pub use property::{Panic, message_of, panic_of, property};

use engine::pjrt::{Client, Plugin};
use engine::plugin::Platform;
use engine::{
    Array, Builder, DType, Host, Locations, Program, Rounding, Target, Tensor, Type, evaluate, grad, passes,
};
use proptest::strategy::Strategy;
use std::cell::RefCell;
use std::sync::OnceLock;

/// The client of the CPU plugin, opened once for each test binary.
pub fn cpu() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| Client::new(&Plugin::of(&Platform::Cpu).unwrap(), &[]).unwrap())
}

/// The program as the CPU plugin gets it: kernels chosen, constants folded.
pub fn lowered(program: &Program) -> Program {
    passes::lower(program, Target::Cpu, None).0
}

/// Runs a program on the CPU plugin, as it stands.
#[track_caller]
pub fn run_on_cpu(program: &Program, args: &[Array]) -> Vec<Array> {
    let compiled = program.compile(cpu()).unwrap_or_else(|error| {
        let text = program.text(Locations::Omit);
        let numbered: String = (1..).zip(text.lines()).map(|(i, line)| format!("{i}: {line}\n")).collect();
        panic!("{error}\n{}", numbered.chars().take(20_000).collect::<String>())
    });
    let hosts: Vec<Host> = args.iter().map(Array::to_host).collect();
    compiled.call(&hosts).unwrap().iter().map(Array::from_host).collect()
}

/// `evaluate` with every op rounded, as a device does.
pub fn evaluated(program: &Program, args: &[Array]) -> Vec<Array> {
    evaluate(program, args, Rounding::EachOp)
}

/// A stream of random numbers that depends on its seed alone (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A whole number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// A number between two others.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The slot of each row's next token, i32 `[rows]`: nothing before it, a full cache up to slot `last`, or any between.
    pub fn slots(&mut self, rows: usize, last: usize) -> Host {
        let slot = |_| match self.below(4) {
            0 => 0,
            1 => last as i32,
            _ => self.below(last + 1) as i32,
        };
        Host::new([rows], &(0..rows).map(slot).collect::<Vec<i32>>())
    }

    /// An array whose numbers lie between two others, rounded to its type.
    pub fn array(&mut self, ty: Type, low: f64, high: f64) -> Array {
        let numbers: Vec<f64> = (0..ty.elements())
            .map(|_| match ty.dtype {
                DType::Bool => (self.bits() % 2) as f64,
                dtype if dtype.is_float() => self.between(low, high),
                _ => self.between(low, high + 1.0).floor().min(high),
            })
            .collect();
        Array::from_host(&Host::from_f64(ty, &numbers))
    }
}

/// A part of a program under construction: its inputs come with random values.
pub struct Case<'f> {
    /// The function under construction.
    pub f: &'f Builder<'f>,
    /// The element type that the case is drawn for.
    pub dtype: DType,
    /// Whether the case is built to be differentiated: then values stay where derivatives exist.
    pub gradient: bool,
    /// The largest extent of a random axis.
    pub extent: usize,
    name: String,
    random: RefCell<Random>,
    inputs: RefCell<Vec<Input<'f>>>,
    outputs: RefCell<Vec<Tensor<'f>>>,
}

struct Input<'f> {
    tensor: Tensor<'f>,
    value: Array,
    wanted: bool,
}

impl<'f> Case<'f> {
    /// A case whose inputs and outputs are called `name.0`, `name.1` ...
    pub fn new(f: &'f Builder<'f>, name: &str, dtype: DType, seed: u64) -> Case<'f> {
        let random = RefCell::new(Random::new(seed));
        let (inputs, outputs) = (RefCell::default(), RefCell::default());
        Case { f, dtype, gradient: false, extent: 4, name: name.to_owned(), random, inputs, outputs }
    }

    /// The same case, to be differentiated, with axes of at most `extent`.
    pub fn differentiable(self, extent: usize) -> Case<'f> {
        Case { gradient: true, extent, ..self }
    }

    /// A random extent.
    pub fn dim(&self) -> usize {
        1 + self.below(self.extent)
    }

    /// Random extents.
    pub fn dims<const N: usize>(&self) -> [usize; N] {
        std::array::from_fn(|_| self.dim())
    }

    /// A random whole number below `end`.
    pub fn below(&self, end: usize) -> usize {
        self.random.borrow_mut().below(end)
    }

    /// An input with this value; gradients are taken of it if `wanted`.
    #[track_caller]
    pub fn given(&self, value: Array, wanted: bool) -> Tensor<'f> {
        let name = format!("{}.{}", self.name, self.inputs.borrow().len());
        let tensor = self.f.input(&name, value.ty.clone());
        self.inputs.borrow_mut().push(Input { tensor, value, wanted });
        tensor
    }

    /// An input of the case's element type between two numbers.
    #[track_caller]
    pub fn between(&self, low: f64, high: f64, shape: impl Into<Vec<usize>>) -> Tensor<'f> {
        let low = if self.dtype.is_unsigned() { low.max(0.0) } else { low };
        let value = self.random.borrow_mut().array(Type::new(self.dtype, shape), low, high);
        self.given(value, self.dtype.is_float())
    }

    /// An input of the case's element type: floats around 0, small integers, bools.
    #[track_caller]
    pub fn x(&self, shape: impl Into<Vec<usize>>) -> Tensor<'f> {
        let reach = if self.dtype.is_float() { 2.0 } else { 9.0 };
        self.between(-reach, reach, shape)
    }

    /// An input of positive numbers away from 0.
    #[track_caller]
    pub fn positive(&self, shape: impl Into<Vec<usize>>) -> Tensor<'f> {
        if self.dtype.is_float() { self.between(0.5, 2.0, shape) } else { self.between(1.0, 9.0, shape) }
    }

    /// An input of whole numbers from 0 to below `end`.
    #[track_caller]
    pub fn indices(&self, dtype: DType, end: usize, shape: impl Into<Vec<usize>>) -> Tensor<'f> {
        let value = self.random.borrow_mut().array(Type::new(dtype, shape), 0.0, end as f64 - 1.0);
        self.given(value, false)
    }

    /// An input of random bools.
    #[track_caller]
    pub fn bools(&self, shape: impl Into<Vec<usize>>) -> Tensor<'f> {
        self.indices(DType::Bool, 2, shape)
    }

    /// An input with these numbers, rounded to the case's element type; not differentiated.
    #[track_caller]
    pub fn numbers(&self, numbers: &[f64]) -> Tensor<'f> {
        let host = Host::from_f64(Type::new(self.dtype, [numbers.len()]), numbers);
        self.given(Array::from_host(&host), false)
    }

    /// Declares an output.
    pub fn out(&self, value: Tensor<'f>) {
        self.outputs.borrow_mut().push(value);
    }

    /// The outputs so far.
    pub fn outputs(&self) -> Vec<Tensor<'f>> {
        self.outputs.borrow().clone()
    }

    /// The differentiated inputs.
    pub fn wanted(&self) -> Vec<Tensor<'f>> {
        self.inputs.borrow().iter().filter(|input| input.wanted).map(|input| input.tensor).collect()
    }

    /// The values of all inputs.
    pub fn args(&self) -> Vec<Array> {
        self.inputs.borrow().iter().map(|input| input.value.clone()).collect()
    }

    /// Sum of all float outputs with random weights.
    pub fn loss(&self) -> Tensor<'f> {
        let floats = self.outputs().into_iter().filter(|output| output.dtype().is_float());
        let terms = floats.map(|output| self.weighted(output));
        terms.reduce(|sum, term| sum + term).unwrap_or_else(|| self.f.zeros(Type::scalar(self.dtype)))
    }

    /// Sum of a tensor's elements with random weights, in the case's element type.
    pub fn weighted(&self, x: Tensor<'f>) -> Tensor<'f> {
        let weights = self.random.borrow_mut().array(x.ty().with_dtype(self.dtype), 0.5, 1.5);
        (x.convert(self.dtype) * self.given(weights, false)).sum_all()
    }

    /// Replaces the outputs by a loss and its gradients. The loss is a weighted sum of the outputs and of the inputs
    /// themselves, so that every input has a gradient; whether the inputs' part stands before or after the case is
    /// drawn at random, so that rules meet operands with and without a cotangent from elsewhere.
    #[track_caller]
    pub fn differentiate(&self) {
        let inputs = self.wanted();
        let direct = || {
            let zero = self.f.zeros(Type::scalar(self.dtype));
            inputs.iter().map(|&x| self.weighted(x)).fold(zero, |sum, term| sum + term)
        };
        let loss = if self.below(2) == 0 { direct() + self.loss() } else { self.loss() + direct() };
        let gradients = if inputs.is_empty() { Vec::new() } else { grad(loss, &inputs) };
        self.outputs.replace(std::iter::once(loss).chain(gradients).collect());
    }

    /// Makes the case's outputs the program's.
    pub fn declare_outputs(&self) {
        for (i, output) in self.outputs().into_iter().enumerate() {
            self.f.output(&format!("{}.{i}", self.name), output);
        }
    }
}

/// A program and the values of its inputs.
pub struct Sample {
    /// The program.
    pub program: Program,
    /// Its arguments.
    pub args: Vec<Array>,
}

/// Builds a program in `f64` around one differentiated case.
pub fn sample(seed: u64, extent: usize, build: impl for<'f> FnOnce(&Case<'f>)) -> Sample {
    let args = RefCell::default();
    let program = Program::build("sample", |f| {
        let c = Case::new(f, "case", DType::F64, seed).differentiable(extent);
        build(&c);
        c.declare_outputs();
        *args.borrow_mut() = c.args();
    });
    Sample { program, args: args.into_inner() }
}

impl Sample {
    /// Compares the evaluator with the CPU plugin.
    ///
    /// # Panics
    /// If they differ.
    #[track_caller]
    pub fn check_on_cpu(&self) {
        assert_agreement(&lowered(&self.program), &self.program, &self.args);
    }
}

/// A program that computes a loss and its gradients.
pub struct Gradient {
    /// Outputs: loss, gradients.
    pub sample: Sample,
    /// Which arguments the gradients belong to.
    pub wanted: Vec<usize>,
}

/// The loss and gradients of what `build` puts out, in `f64`: see [`Case::differentiate`].
pub fn gradient_of(seed: u64, extent: usize, build: impl for<'f> FnOnce(&Case<'f>)) -> Gradient {
    let (args, wanted) = (RefCell::default(), RefCell::default());
    let program = Program::build("gradient", |f| {
        let c = Case::new(f, "case", DType::F64, seed).differentiable(extent);
        build(&c);
        c.differentiate();
        c.declare_outputs();
        *wanted.borrow_mut() =
            (0..).zip(c.inputs.borrow().iter()).filter(|(_, x)| x.wanted).map(|(i, _)| i).collect();
        *args.borrow_mut() = c.args();
    });
    Gradient { sample: Sample { program, args: args.into_inner() }, wanted: wanted.into_inner() }
}

impl Gradient {
    /// Compares with finite differences along random directions, to 1e-9.
    ///
    /// # Panics
    /// If they differ.
    #[track_caller]
    pub fn check(&self, seed: u64) {
        let mut random = Random::new(!seed);
        for _ in 0..2 {
            // A place at which the loss has a kink or a jump within reach is left for one nearby.
            let places = [0.0, 0.05, 0.05, 0.05, 0.05];
            let found = places.into_iter().find_map(|away| self.slopes(&mut random, away));
            let [analytic, numeric] = found.expect("a smooth place");
            assert!(
                close::largest([numeric - analytic]) <= close::SLOPE * (1.0 + analytic.abs()),
                "the gradient along a random direction is {analytic}, by finite differences {numeric}"
            );
        }
    }

    /// The loss's derivative along a random direction, by the gradients and by finite differences, at a place as far from
    /// the arguments; none where the loss is not smooth.
    fn slopes(&self, random: &mut Random, away: f64) -> Option<[f64; 2]> {
        let Sample { program, args } = &self.sample;
        let mut direction = || -> Vec<Vec<f64>> {
            let of = |&i: &usize| (0..args[i].ty.elements()).map(|_| random.between(-1.0, 1.0)).collect();
            self.wanted.iter().map(of).collect()
        };
        let (from, direction) = (direction(), direction());
        // Unrounded: differences of numbers rounded to f32 would say nothing.
        let results_at = |distance: f64| {
            let mut args = args.clone();
            for ((&i, from), direction) in self.wanted.iter().zip(&from).zip(&direction) {
                let steps = from.iter().zip(direction).map(|(from, d)| away * from + distance * d);
                let moved: Vec<f64> = args[i].floats().iter().zip(steps).map(|(x, step)| x + step).collect();
                args[i] = Array::from_host(&Host::from_f64(args[i].ty.clone(), &moved));
            }
            evaluate(program, &args, Rounding::None)
        };
        let numeric = close::slope(|distance| results_at(distance)[0].floats()[0])?;
        let along = |(gradient, direction): (&Array, &Vec<f64>)| -> f64 {
            gradient.floats().iter().zip(direction).map(|(g, d)| g * d).sum()
        };
        let analytic = results_at(0.0)[1..].iter().zip(&direction).map(along).sum();
        Some([analytic, numeric])
    }
}

/// A seed and the largest extent of an axis: what random cases are drawn from.
pub fn seeds() -> impl Strategy<Value = (u64, usize)> {
    (0..u64::MAX, 1usize..=4)
}

/// The distance that is allowed between a device and the evaluator, for one op and its gradient: a hundred roundings and
/// more in wide types, for XLA's approximations and for sums in another order; in narrow ones four, as they round results
/// alone.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-11,
        DType::F32 => 168.0 * close::F32,
        DType::Bf16 => 4.0 / 256.0,
        DType::F16 => 4.0 / 2048.0,
        DType::I32 | DType::U32 | DType::I64 | DType::U8 | DType::Bool => 0.0,
    }
}

/// Where two arrays differ by more than their type allows; NaN equals NaN, integers are exact.
pub fn difference(found: &Array, wanted: &Array) -> Option<String> {
    if found.ty != wanted.ty {
        return Some(format!("it is {}, not {}", found.ty, wanted.ty));
    }
    if !found.ty.dtype.is_float() {
        let place = found.ints().iter().zip(wanted.ints()).position(|(a, b)| a != b)?;
        let (a, b) = (found.ints()[place], wanted.ints()[place]);
        return Some(format!("element {place} of {} is {a}, not {b}", found.ty));
    }
    let close = |a: f64, b: f64| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance(found.ty.dtype) * (1.0 + b.abs())
    };
    let place = found.floats().iter().zip(wanted.floats()).position(|(&a, &b)| !close(a, b))?;
    let (a, b) = (found.floats()[place], wanted.floats()[place]);
    Some(format!("element {place} of {} is {a:e}, not {b:e}", found.ty))
}

/// Runs `printed` on the CPU plugin and compares with the evaluator's results of `meant`.
///
/// # Panics
/// If an output differs.
#[track_caller]
pub fn assert_agreement(printed: &Program, meant: &Program, args: &[Array]) {
    let (found, wanted) = (run_on_cpu(printed, args), evaluated(meant, args));
    let wrong: Vec<String> = (meant.outputs().iter().zip(found.iter().zip(&wanted)))
        .filter_map(|(port, (found, wanted))| {
            Some(format!("{}: on the CPU, {}", port.name, difference(found, wanted)?))
        })
        .collect();
    assert!(wrong.is_empty(), "program {}:\n{}", meant.name(), wrong.join("\n"));
}
