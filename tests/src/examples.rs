//! Programs and numbers for the examples of `kernels::all()`.

use crate::Random;
use engine::{Array, Host, Program, Tensor, Type, grad};
use kernels::{Example, Values};

fn random(ty: &Type, values: &Values, random: &mut Random) -> Array {
    match values {
        Values::Between(low, high) => random.array(ty.clone(), *low, *high),
        Values::Given(numbers) => Array::from_host(&Host::from_f64(ty.clone(), numbers)),
    }
}

/// Numbers for an example, the same in each run.
pub fn arguments(example: &Example) -> Vec<Array> {
    let mut numbers = Random::new(1);
    example.args.iter().map(|(ty, values)| random(ty, values, &mut numbers)).collect()
}

/// A program of the kernel's results.
pub fn forward(example: &Example) -> Program {
    Program::build("forward", |f| {
        let input = |(i, (ty, _)): (usize, &(Type, Values))| f.input(&format!("x{i}"), ty.clone());
        let args: Vec<Tensor<'_>> = example.args.iter().enumerate().map(input).collect();
        for (i, result) in f.kernel_call(example.kernel.clone(), &args).into_iter().enumerate() {
            f.output(&format!("y{i}"), result);
        }
    })
}

/// Whose gradient is taken.
#[derive(Clone, Copy, PartialEq)]
pub enum Of {
    /// The kernel's own rule.
    Kernel,
    /// Autodiff of its reference.
    Reference,
}

/// A program of gradients: of the sum of the differentiable results, each element with a weight of its own.
pub fn backward(example: &Example, of: Of) -> Program {
    Program::build("backward", |f| {
        let input = |(i, (ty, _)): (usize, &(Type, Values))| f.input(&format!("x{i}"), ty.clone());
        let args: Vec<Tensor<'_>> = example.args.iter().enumerate().map(input).collect();
        let results = match of {
            Of::Kernel => f.kernel_call(example.kernel.clone(), &args),
            Of::Reference => example.kernel.reference(&args),
        };
        let mut loss = f.zeros(Type::scalar(results[0].dtype()));
        for result in &results[..example.kernel.differentiable()] {
            let elements = result.ty().elements();
            let weights: Vec<f64> = (0..elements).map(|i| (i * 37 % 101) as f64 / 64.0 - 0.75).collect();
            loss = loss + (*result * f.constant(&Host::from_f64(result.ty(), &weights))).sum_all();
        }
        let wrt: Vec<Tensor<'_>> = example.wrt.iter().map(|&i| args[i]).collect();
        for (i, gradient) in grad(loss, &wrt).into_iter().enumerate() {
            f.output(&format!("d{i}"), gradient);
        }
    })
}
