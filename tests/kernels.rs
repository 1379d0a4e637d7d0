//! The fused kernels: `golden/diff_attention`, the portable forms against the references, and every gradient against
//! automatic differentiation of a formulation of its own.

use engine::{
    Array, DType, Host, Kernel, KernelChoice, Program, Rounding, Target, Tensor, Type, evaluate, grad, passes,
};
use kernels::{DiffAttention, Gradients, LinearCrossEntropy, SwiGlu};
use proptest::prelude::*;
use serde_json::Value;
use tests::{Random, golden, property, run_on_cpu};

/// The forms that run on the CPU.
const FORMS: [KernelChoice; 2] = [KernelChoice::Reference, KernelChoice::Portable];

/// Largest error as a part of the largest element; of 1 where elements are smaller, because gradients may cancel to 0.
fn error(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let top = wanted.iter().fold(1.0, |top: f64, x| top.max(x.abs()));
    // `max` would pass over NaN.
    let worst = |worst: f64, x: f64| if x > worst || x.is_nan() { x } else { worst };
    found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, worst) / top
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

#[test]
fn diff_attention_is_the_golden() {
    let text = std::fs::read_to_string(golden("diff_attention.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let [b, n, h, g, d] = ["B", "N", "Hd", "G", "d"].map(|key| golden[key].as_u64().unwrap() as usize);
    let lambda_init = golden["lambda_init"].as_f64().unwrap();
    for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-5)] {
        let q = (&golden["Q"], vec![b, n, h, 2, d]);
        let k = (&golden["K"], vec![b, n, g, 2, d]);
        let v = (&golden["V"], vec![b, n, g, 2 * d]);
        let y = (&golden["dY"], vec![b, n, h, 2 * d]);
        let params = &golden["params"];
        let vector = |name: &str, width: usize| (&params[name], vec![width]);
        let small =
            [vector("lq1", d), vector("lk1", d), vector("lq2", d), vector("lk2", d), vector("w", 2 * d)];
        let given: Vec<_> = [q, k, v].into_iter().chain(small).chain([y]).collect();
        let mut args: Vec<Array> = given
            .iter()
            .map(|(value, shape)| {
                Array::from_host(&Host::from_f64(Type::new(dtype, shape.clone()), &numbers(value)))
            })
            .collect();
        args.push(Array::from_host(&Host::from_f64(Type::i32([b, n]), &numbers(&golden["seg"]))));
        for (name, cap) in [("cap_0", 0.0), ("cap_50", 50.0), ("cap_3", 3.0)] {
            let program = Program::build("golden", |f| {
                let inputs: Vec<Tensor<'_>> = args
                    .iter()
                    .enumerate()
                    .map(|(i, arg)| f.input(&format!("x{i}"), arg.ty.clone()))
                    .collect();
                let (q, k, v, w, dy, segments) =
                    (inputs[0], inputs[1], inputs[2], inputs[7], inputs[8], inputs[9]);
                let dot = |a: usize, b: usize| (inputs[a] * inputs[b]).sum(&[0]).exp();
                let lambda = dot(3, 4) - dot(5, 6) + lambda_init;
                // 12 positions in blocks of 5: two full ones and a part.
                let kernel = DiffAttention { rows: 5, ..DiffAttention::new(cap) };
                let o = f.kernel(kernel, &[q, k, v, lambda, segments])[0];
                let scale = ((o * o).mean(&[3]) + 1e-5).rsqrt();
                let y = o * scale.along(o, &[0, 1, 2]) * w.along(o, &[3]) * (1.0 - lambda_init);
                f.output("y", y);
                for (i, grad) in grad((y * dy).sum_all(), &inputs[..8]).into_iter().enumerate() {
                    f.output(&format!("d{i}"), grad);
                }
            });
            for form in FORMS {
                let (lowered, _) = passes::lower(&program, Target::Cpu, form);
                let results = run_on_cpu(&lowered, &args);
                let names = ["y", "dQ", "dK", "dV", "d_lq1", "d_lk1", "d_lq2", "d_lk2", "d_w"];
                for (output, found) in names.iter().zip(&results) {
                    let wanted = numbers(&golden["cases"][name][output]);
                    let error = error(found.floats(), &wanted);
                    println!("{dtype:?} {name} {form:?} {output:6} {error:.1e}");
                    assert!(error < tolerance, "{dtype:?} {name} {form:?} {output}: {error:e}");
                }
            }
        }
    }
}

/// Says what a closure is, which its field alone does not.
fn function<N: for<'f> Fn(&[Tensor<'f>]) -> Vec<Tensor<'f>>>(naive: N) -> N {
    naive
}

/// A kernel, arguments for it, and the same function written down in another way.
struct Check<K, N> {
    kernel: K,
    /// Arguments; floats are drawn between -1.5 and 1.5.
    types: Vec<Type>,
    /// Arguments that have values of their own.
    given: Vec<(usize, Vec<f64>)>,
    /// Arguments with a gradient.
    wrt: Vec<usize>,
    /// Results that are compared.
    results: usize,
    naive: N,
}

impl<K, N> Check<K, N>
where
    K: Kernel + Clone + 'static,
    N: for<'f> Fn(&[Tensor<'f>]) -> Vec<Tensor<'f>>,
{
    /// Results, and gradients of their sum weighted by further inputs.
    fn program(&self, naive: bool) -> Program {
        Program::build("check", |f| {
            let input = |(i, ty): (usize, &Type)| f.input(&format!("x{i}"), ty.clone());
            let args: Vec<Tensor<'_>> = self.types.iter().enumerate().map(input).collect();
            let results = if naive { (self.naive)(&args) } else { f.kernel(self.kernel.clone(), &args) };
            let results = &results[..self.results];
            let mut loss = f.zeros(Type::scalar(wide(self.types[0].dtype)));
            for (i, x) in results.iter().enumerate() {
                let ty = x.ty().with_dtype(loss.dtype());
                loss = loss + (f.input(&format!("ct{i}"), ty.clone()) * x.convert(ty.dtype)).sum_all();
            }
            let wrt: Vec<Tensor<'_>> = self.wrt.iter().map(|&i| args[i]).collect();
            for (i, x) in results.iter().copied().chain(grad(loss, &wrt)).enumerate() {
                f.output(&format!("y{i}"), x);
            }
        })
    }

    fn args(&self, program: &Program, seed: u64) -> Vec<Array> {
        let mut random = Random::new(seed);
        let mut args: Vec<Array> =
            program.inputs().iter().map(|port| random.array(port.ty.clone(), -1.5, 1.5)).collect();
        for (i, values) in &self.given {
            args[*i] = Array::from_host(&Host::from_f64(self.types[*i].clone(), values));
        }
        args
    }

    /// Both forms without rounding, to 1e-11 in f64 (other types round the constants of a formula); on the CPU plugin to
    /// `tolerance` of the exact value.
    fn run(&self, seed: u64, tolerance: f64, on_cpu: bool) {
        let (program, naive) = (self.program(false), self.program(true));
        let args = self.args(&program, seed);
        let truth = evaluate(&naive, &args, Rounding::None);
        for form in FORMS {
            let (lowered, _) = passes::lower(&program, Target::Cpu, form);
            let compare = |found: &[Array], tolerance: f64, how: &str| {
                for (i, (found, truth)) in found.iter().zip(&truth).enumerate() {
                    let error = error(found.floats(), truth.floats());
                    assert!(error < tolerance, "{form:?} {how}, output {i} {}: {error:e}", found.ty);
                }
            };
            let exact = if self.types[0].dtype == DType::F64 { 1e-11 } else { 1e-6 };
            compare(&evaluate(&lowered, &args, Rounding::None), exact, "unrounded");
            // The arrangement that a TPU gets is plain ops as well, so it can be checked here.
            let (for_tpu, _) = passes::lower(&program, Target::TpuV6e, form);
            compare(&evaluate(&for_tpu, &args, Rounding::None), exact, "as for a TPU");
            if on_cpu {
                compare(&run_on_cpu(&lowered, &args), tolerance, "on the CPU");
            }
        }
    }
}

/// Both maps apart, keys repeated for each head of a group, and large negative numbers for what is masked.
fn naive_attention<'f>(args: &[Tensor<'f>], cap: f64) -> Vec<Tensor<'f>> {
    let &[q, k, v, lambda, segments] = args else { unreachable!() };
    let f = q.builder();
    let [b, s, h, _, d] = q.shape()[..] else { unreachable!() };
    let (g, e, dtype) = (k.dim(2), v.dim(3), wide(q.dtype()));
    let repeat = |x: Tensor<'f>, width: usize| {
        x.broadcast_in_dim([b, s, g, h / g, width], &[0, 1, 2, 4]).reshape([b, s, h, width]).convert(dtype)
    };
    let square = Type::i32([b, h, s, s]);
    let row = segments.broadcast_in_dim([b, h, s, s], &[0, 2]);
    let column = segments.broadcast_in_dim([b, h, s, s], &[0, 3]);
    let visible = row.eq(column) & f.iota(square.clone(), 2).ge(f.iota(square, 3));
    let map = |t: usize| {
        let q = q.slice_axis(3, t, t + 1).reshape([b, s, h, d]).convert(dtype);
        let k = repeat(k.slice_axis(3, t, t + 1).reshape([b, s, g, d]), d);
        let z = q.einsum("bqhd,bkhd->bhqk", k) * (d as f64).powf(-0.5);
        let z = if cap > 0.0 { (z * (1.0 / cap)).tanh() * cap } else { z };
        let e = visible.select(z.exp(), 0.0);
        (e / e.sum(&[3]).along(e, &[0, 1, 2])).einsum("bhqk,bkhe->bqhe", repeat(v, v.dim(3)))
    };
    let lambda = if lambda.rank() == 0 { lambda.broadcast_in_dim([b, s, h], &[]) } else { lambda };
    let lambda = lambda.broadcast_in_dim([b, s, h, e], &[0, 1, 2]);
    vec![map(0) - lambda * map(1)]
}

#[derive(Clone, Copy, Debug)]
struct Attention {
    seed: u64,
    b: usize,
    s: usize,
    g: usize,
    r: usize,
    rows: usize,
    cap: f64,
    per_token: bool,
}

fn attentions() -> impl Strategy<Value = Attention> {
    let sizes = (1usize..3, 1usize..14, 1usize..3, 1usize..4, 1usize..6);
    let cap = prop_oneof![Just(0.0), Just(2.0), Just(50.0)];
    (any::<u64>(), sizes, cap, any::<bool>()).prop_map(|(seed, (b, s, g, r, rows), cap, per_token)| {
        Attention { seed, b, s, g, r, rows, cap, per_token }
    })
}

fn check_attention(case: Attention, dtype: DType, tolerance: f64, on_cpu: bool) {
    let Attention { seed, b, s, g, r, rows, cap, per_token } = case;
    let (h, d, e) = (g * r, 4, 3);
    // Documents of random lengths.
    let mut random = Random::new(!seed);
    let segments = (0..b).flat_map(|_| {
        let mut segment = 0.0;
        let steps: Vec<bool> = (0..s).map(|_| random.below(4) == 0).collect();
        steps.into_iter().map(move |new| {
            segment += f64::from(u8::from(new));
            segment
        })
    });
    let lambda = if per_token { vec![b, s, h] } else { vec![] };
    Check {
        kernel: DiffAttention { rows, ..DiffAttention::new(cap) },
        types: vec![
            Type::new(dtype, [b, s, h, 2, d]),
            Type::new(dtype, [b, s, g, 2, d]),
            Type::new(dtype, [b, s, g, e]),
            Type::new(wide(dtype), lambda),
            Type::i32([b, s]),
        ],
        given: vec![(4, segments.collect())],
        wrt: vec![0, 1, 2, 3],
        results: 1,
        naive: function(move |args| naive_attention(args, cap)),
    }
    .run(seed, tolerance, on_cpu);
}

#[test]
fn attention_in_any_blocks_is_the_naive_one() {
    property(24, &attentions(), |case| check_attention(case, DType::F64, 1e-11, false));
}

#[test]
fn attention_on_the_cpu() {
    property(3, &attentions(), |case| check_attention(Attention { s: 13, ..case }, DType::F32, 1e-5, true));
    property(2, &attentions(), |case| {
        check_attention(Attention { s: 13, ..case }, DType::Bf16, 2f64.powi(-7), true);
    });
}

fn check_swiglu(seed: u64, [n, m, i]: [usize; 3], mask: bool, dtype: DType, tolerance: f64, on_cpu: bool) {
    let mut types = vec![Type::new(dtype, [n, m]), Type::new(dtype, [m, i]), Type::new(dtype, [m, i])];
    let mut given = Vec::new();
    if mask {
        types.push(Type::new(dtype, [n, i]));
        let mut random = Random::new(!seed);
        given.push((3, (0..n * i).map(|_| if random.below(3) == 0 { 0.0 } else { 1.25 }).collect()));
    }
    Check {
        kernel: SwiGlu,
        wrt: (0..types.len()).collect(),
        types,
        given,
        results: 3,
        naive: function(|args| {
            let (g, u) = (args[0].matmul(args[1]), args[0].matmul(args[2]));
            let h = g / ((-g).exp() + 1.0) * u;
            vec![args.get(3).map_or(h, |&mask| h * mask), g, u]
        }),
    }
    .run(seed, tolerance, on_cpu);
}

#[test]
fn swiglu_with_and_without_a_mask() {
    let cases = (any::<u64>(), 1usize..6, 1usize..6, 1usize..6, any::<bool>());
    property(24, &cases, |(seed, n, m, i, mask)| {
        check_swiglu(seed, [n, m, i], mask, DType::F64, 1e-11, false);
    });
    for mask in [false, true] {
        check_swiglu(1, [17, 12, 20], mask, DType::F32, 1e-5, true);
        check_swiglu(2, [17, 12, 20], mask, DType::Bf16, 2f64.powi(-7), true);
    }
}

#[derive(Clone, Copy, Debug)]
struct Head {
    seed: u64,
    n: usize,
    m: usize,
    v: usize,
    padding: usize,
    cap: f64,
    z_loss: f64,
    /// Whether the weights have a gradient too, which is the reference's.
    of_weights: bool,
    gradients: Gradients,
}

fn check_head(case: Head, dtype: DType, tolerance: f64, on_cpu: bool) {
    let Head { seed, n, m, v, padding, cap, z_loss, of_weights, gradients } = case;
    let columns = v - padding.min(v - 1);
    let mut random = Random::new(!seed);
    let targets = (0..n).map(|_| random.below(columns) as f64).collect();
    let mut random = Random::new(seed ^ 5);
    // Near a mean, as the trainer's; every third token has no target.
    let weights = (0..n)
        .map(|_| if random.below(3) == 0 { 0.0 } else { random.between(0.5, 1.5) / n as f64 })
        .collect();
    Check {
        kernel: LinearCrossEntropy { cap, columns, z_loss, gradients },
        types: vec![
            Type::new(dtype, [n, m]),
            Type::new(dtype, [v, m]),
            Type::i32([n]),
            Type::new(wide(dtype), [n]),
        ],
        given: vec![(2, targets), (3, weights)],
        wrt: if of_weights { vec![0, 1, 3] } else { vec![0, 1] },
        results: 1,
        naive: function(move |args| {
            let &[h, w, targets, weights] = args else { unreachable!() };
            let f = h.builder();
            let z = h.convert(weights.dtype()).einsum("nm,vm->nv", w.convert(weights.dtype()));
            let y = if cap > 0.0 { (z * (1.0 / cap)).tanh() * cap } else { z };
            let column = f.iota(Type::i32([n, v]), 1);
            let lse = column.lt(columns as i32).select(y.exp(), 0.0).sum(&[1]).log();
            let hot = column.eq(targets.broadcast_in_dim([n, v], &[0]));
            let at_target = hot.select(y, 0.0).sum(&[1]);
            vec![((lse - at_target + lse * lse * z_loss) * weights).sum_all()]
        }),
    }
    .run(seed, tolerance, on_cpu);
}

#[test]
fn linear_cross_entropy() {
    let caps = prop_oneof![Just(0.0), Just(2.0), Just(30.0)];
    let sizes = (1usize..9, 1usize..5, 1usize..12, 0usize..4);
    let with = prop_oneof![Just(Gradients::With), Just(Gradients::Without)];
    let z_losses = prop_oneof![Just(0.0), Just(0.1)];
    let cases = (any::<u64>(), sizes, caps, z_losses, any::<bool>(), with);
    property(48, &cases, |(seed, (n, m, v, padding), cap, z_loss, of_weights, gradients)| {
        let head = Head { seed, n, m, v, padding, cap, z_loss, of_weights, gradients };
        check_head(head, DType::F64, 1e-11, false);
    });
}

/// More tokens than one chunk holds, and the rounding of devices.
#[test]
fn linear_cross_entropy_in_chunks() {
    for cap in [0.0, 3.0] {
        let head = Head {
            seed: 9,
            n: 1200,
            m: 8,
            v: 20,
            padding: 3,
            cap,
            z_loss: 1e-2,
            of_weights: false,
            gradients: Gradients::With,
        };
        check_head(head, DType::F32, 1e-5, true);
        check_head(Head { n: 40, ..head }, DType::Bf16, 2f64.powi(-7), true);
    }
}
