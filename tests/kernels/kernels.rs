//! The fused kernels: `golden/diff_attention`, the portable forms against the references, and every gradient against
//! automatic differentiation of a formulation of its own.

use engine::{
    Array, DType, Form, Host, Kernel, Program, Rounding, Target, Tensor, Type, evaluate, grad, passes,
};
use kernels::{
    CachedAttention, DiffAttention, Gradients, HeadNorm, Keys, LinearCrossEntropy, RmsNormLinear, SwiGlu,
    document_starts, dropout_mask,
};
use proptest::prelude::*;
use serde_json::Value;
use tests::close::{assert_small, error_beside};
use tests::{Random, golden, panic_of, property, run_on_cpu};

/// The forms that run on the CPU.
const FORMS: [Option<Form>; 2] = [Some(Form::Reference), Some(Form::Portable)];

/// Largest error as a part of the largest element; of 1 where elements are smaller, because gradients may cancel to 0.
#[track_caller]
fn error(found: &[f64], wanted: &[f64]) -> f64 {
    error_beside(found, wanted, 1.0)
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
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
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
                let (w, dy, segments) = (inputs[7], inputs[8], inputs[9]);
                let dot = |a: usize, b: usize| (inputs[a] * inputs[b]).sum(&[0]).exp();
                let lambda = dot(3, 4) - dot(5, 6) + lambda_init;
                let side_by_side = |x: Tensor<'_>| x.ty().elements() / (b * n);
                let qkv: Vec<_> = inputs[..3].iter().map(|x| x.reshape([b, n, side_by_side(*x)])).collect();
                let qkv = Tensor::concatenate(&qkv, 2);
                // The golden's queries and keys are rotated already.
                let none = f.zeros(Type::new(dtype, [n, d / 2]));
                let kernel = DiffAttention {
                    heads: h,
                    groups: g,
                    head_dim: d,
                    value_dim: 2 * d,
                    keys: Keys::PerMap,
                    norm: HeadNorm::Rms { eps: 1e-5 },
                    cap,
                    // 12 positions in blocks of 5: two full ones and a part.
                    rows: 5,
                    tiling: None,
                };
                let args = [qkv, none.full_like(1.0), none, lambda, document_starts(segments)];
                let y = f.kernel(kernel, &args)[0].reshape([b, n, h, 2 * d]);
                let y = y * w.along(y, &[3]) * (1.0 - lambda_init);
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
                    let what = format!("{dtype:?} {name} {form:?} {output}");
                    assert_small(&what, error(found.floats(), &wanted), tolerance);
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
    /// Results that are compared; those that have a gradient come first.
    results: usize,
    naive: N,
}

impl<K, N> Check<K, N>
where
    K: Kernel + Clone + 'static,
    N: for<'f> Fn(&[Tensor<'f>]) -> Vec<Tensor<'f>>,
{
    /// Results, and gradients of the sum of those that have them, weighted by further inputs.
    fn program(&self, naive: bool) -> Program {
        Program::build("check", |f| {
            let input = |(i, ty): (usize, &Type)| f.input(&format!("x{i}"), ty.clone());
            let args: Vec<Tensor<'_>> = self.types.iter().enumerate().map(input).collect();
            let results = if naive { (self.naive)(&args) } else { f.kernel(self.kernel.clone(), &args) };
            let results = &results[..self.results];
            let mut loss = f.zeros(Type::scalar(wide(self.types[0].dtype)));
            for (i, x) in results.iter().take(self.kernel.differentiable()).enumerate() {
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
                    let what = format!("{form:?} {how}, output {i} {}", found.ty);
                    assert_small(&what, error(found.floats(), truth.floats()), tolerance);
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

/// Both maps apart, keys repeated for each head of a group, and nothing of what is hidden.
fn naive_attention<'f>(kernel: &DiffAttention, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
    let &[qkv, cos, sin, lambda, starts] = args else { unreachable!() };
    let f = qkv.builder();
    let (b, s, dtype) = (qkv.dim(0), qkv.dim(1), wide(qkv.dtype()));
    let &DiffAttention { heads: h, groups: g, head_dim: d, value_dim: e, cap, .. } = kernel;
    let qkv = qkv.convert(dtype);
    // A vector of each token, rotated as a product with a matrix of each position.
    let column = |at: usize, width: usize| qkv.slice_axis(2, at, at + width); // [b, s, width]
    let eye = |rows: (usize, usize), columns: (usize, usize)| {
        let ty = Type::i32([d, d]);
        let (row, column) = (f.iota(ty.clone(), 0), f.iota(ty, 1));
        let inside = row.ge(rows.0 as i32)
            & row.lt(rows.1 as i32)
            & column.ge(columns.0 as i32)
            & column.lt(columns.1 as i32)
            & (row - rows.0 as i32).eq(column - columns.0 as i32);
        inside.select(f.full(Type::new(dtype, [d, d]), 1.0), 0.0)
    };
    let (low, high) = ((0, d / 2), (d / 2, d));
    let turn = Tensor::concatenate(
        &[eye(high, low).slice_axis(1, 0, d / 2), -eye(low, high).slice_axis(1, d / 2, d)],
        1,
    );
    let twice = |x: Tensor<'f>| Tensor::concatenate(&[x, x], 1); // [s, d]
    let rotate = |x: Tensor<'f>| {
        x * twice(cos).along(x, &[1, 2]) - x.einsum("bsi,ij->bsj", turn) * twice(sin).along(x, &[1, 2])
    };
    let maps = if kernel.keys == Keys::PerMap { 2 } else { 1 };
    let mut outputs = Vec::new();
    for head in 0..h {
        let group = head / (h / g);
        let v = column(2 * d * h + maps * d * g + e * group, e);
        let map = |t: usize| {
            let q = rotate(column((2 * head + t) * d, d));
            let k = rotate(column(2 * d * h + (maps * group + t.min(maps - 1)) * d, d));
            let z = q.einsum("bqd,bkd->bqk", k) * (d as f64).powf(-0.5);
            let z = if cap > 0.0 { (z * (1.0 / cap)).tanh() * cap } else { z };
            let square = Type::i32([b, s, s]);
            let key = f.iota(square.clone(), 2);
            let start = starts.broadcast_in_dim([b, s, s], &[0, 1]);
            let e = (key.ge(start) & f.iota(square, 1).ge(key)).select(z.exp(), 0.0);
            (e / e.sum(&[2]).along(e, &[0, 1])).einsum("bqk,bke->bqe", v)
        };
        let (o1, o2) = (map(0), map(1));
        let lambda = match lambda.rank() {
            0 => lambda.broadcast_in_dim([b, s], &[]),
            _ => lambda.slice_axis(2, head, head + 1).reshape([b, s]),
        };
        let o = o1 - lambda.along(o2, &[0, 1]) * o2;
        outputs.push(match kernel.norm {
            HeadNorm::Rms { eps } => o * ((o * o).mean(&[2]) + eps).rsqrt().along(o, &[0, 1]),
            HeadNorm::None => o,
        });
    }
    vec![Tensor::concatenate(&outputs, 2)]
}

#[derive(Clone, Debug)]
struct Attention {
    seed: u64,
    b: usize,
    s: usize,
    per_token: bool,
    kernel: DiffAttention,
}

fn attentions() -> impl Strategy<Value = Attention> {
    let sizes = (1usize..3, 1usize..14, 1usize..3, 1usize..4, 1usize..6);
    let cap = prop_oneof![Just(0.0), Just(2.0), Just(50.0)];
    let keys = prop_oneof![Just(Keys::PerMap), Just(Keys::Shared)];
    let norm = prop_oneof![Just(HeadNorm::None), Just(HeadNorm::Rms { eps: 1e-2 })];
    let forms = (cap, keys, norm, any::<bool>());
    (any::<u64>(), sizes, forms).prop_map(|(seed, (b, s, groups, r, rows), (cap, keys, norm, per_token))| {
        let heads = groups * r;
        let kernel =
            DiffAttention { heads, groups, head_dim: 4, value_dim: 3, keys, norm, cap, rows, tiling: None };
        Attention { seed, b, s, per_token, kernel }
    })
}

fn check_attention(case: Attention, dtype: DType, tolerance: f64, on_cpu: bool) {
    let Attention { seed, b, s, per_token, kernel } = case;
    let &DiffAttention { heads: h, groups: g, head_dim: d, value_dim: e, keys, .. } = &kernel;
    // Documents of random lengths.
    let mut random = Random::new(!seed);
    let mut start = 0.0;
    let starts = (0..b * s).map(|i| {
        if i % s == 0 || random.below(4) == 0 {
            start = (i % s) as f64;
        }
        start
    });
    let maps = if keys == Keys::PerMap { 2 } else { 1 };
    let table = Type::new(wide(dtype), [s, d / 2]);
    let naive = kernel.clone();
    Check {
        types: vec![
            Type::new(dtype, [b, s, 2 * d * h + maps * d * g + e * g]),
            table.clone(),
            table,
            Type::new(wide(dtype), if per_token { vec![b, s, h] } else { vec![] }),
            Type::i32([b, s]),
        ],
        given: vec![(4, starts.collect())],
        wrt: vec![0, 3],
        results: 1,
        kernel,
        naive: function(move |args| naive_attention(&naive, args)),
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

/// Both maps apart, keys and values of each head cut out of the cache, and nothing of what is hidden.
fn naive_cached<'f>(kernel: &CachedAttention, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
    let &[q, keys, values, slot, lambda] = args else { unreachable!() };
    let f = q.builder();
    let [b, n, h, _, d] = q.shape()[..] else { unreachable!() };
    let (slots, e, dtype) = (keys.dim(2), 2 * values.dim(2), wide(q.dtype()));
    let [q, keys, values] = [q, keys, values].map(|x| x.convert(dtype));
    let g = values.dim(0) / (2 * b);
    let maps = keys.dim(0) / (b * g);
    let ty = Type::i32([b, n, slots]);
    let last = f.iota(ty.clone(), 1) + slot.broadcast_in_dim([b, n, slots], &[0]);
    let seen = f.iota(ty, 2).le(last);
    let mut outputs = Vec::new();
    for head in 0..h {
        let group = head / (h / g);
        let halves = values.reshape([b, g, 2, slots, e / 2]).slice_axis(1, group, group + 1);
        let v = halves.reshape([b, 2, slots, e / 2]).transpose(&[0, 2, 1, 3]).reshape([b, slots, e]);
        let map = |t: usize| {
            let own = t.min(maps - 1);
            let k = keys.reshape([b, g, maps, d, slots]).slice_axis(1, group, group + 1);
            let k = k.slice_axis(2, own, own + 1).reshape([b, d, slots]);
            let q = q.slice_axis(2, head, head + 1).slice_axis(3, t, t + 1).reshape([b, n, d]);
            let z = q.einsum("bnd,bds->bns", k) * (d as f64).powf(-0.5);
            let z = if kernel.cap > 0.0 { (z * (1.0 / kernel.cap)).tanh() * kernel.cap } else { z };
            let p = seen.select(z.exp(), 0.0);
            (p / p.sum(&[2]).along(p, &[0, 1])).einsum("bns,bse->bne", v)
        };
        let (o1, o2) = (map(0), map(1));
        let lambda = match lambda.rank() {
            0 => lambda.broadcast_in_dim([b, n], &[]),
            _ => lambda.slice_axis(2, head, head + 1).reshape([b, n]),
        };
        let o = o1 - lambda.along(o2, &[0, 1]) * o2;
        let o = match kernel.norm {
            HeadNorm::Rms { eps } => o * ((o * o).mean(&[2]) + eps).rsqrt().along(o, &[0, 1]),
            HeadNorm::None => o,
        };
        outputs.push(o.reshape([b, n, 1, e]));
    }
    vec![Tensor::concatenate(&outputs, 2)]
}

#[derive(Clone, Debug)]
struct Cached {
    seed: u64,
    b: usize,
    n: usize,
    g: usize,
    r: usize,
    slots: usize,
    keys: Keys,
    per_token: bool,
    kernel: CachedAttention,
}

/// One or two new tokens, or so many that products are not done row by row.
fn caches() -> impl Strategy<Value = Cached> {
    let n = prop_oneof![Just(1usize), Just(2), Just(5), Just(11)];
    let sizes = (1usize..4, n, 1usize..3, 1usize..4, 0usize..18);
    let cap = prop_oneof![Just(0.0), Just(2.0)];
    let keys = prop_oneof![Just(Keys::PerMap), Just(Keys::Shared)];
    let norm = prop_oneof![Just(HeadNorm::None), Just(HeadNorm::Rms { eps: 1e-2 })];
    let forms = (cap, keys, norm, any::<bool>());
    (any::<u64>(), sizes, forms).prop_map(|(seed, (b, n, g, r, before), (cap, keys, norm, per_token))| {
        let kernel = CachedAttention { norm, cap, block: None };
        Cached { seed, b, n, g, r, slots: before + n, keys, per_token, kernel }
    })
}

fn check_cached(case: Cached, dtype: DType, tolerance: f64, on_cpu: bool) {
    let Cached { seed, b, n, g, r, slots, keys, per_token, kernel } = case;
    let (d, half) = (4, 3);
    let maps = if keys == Keys::PerMap { 2 } else { 1 };
    let naive = kernel.clone();
    Check {
        types: vec![
            Type::new(dtype, [b, n, g * r, 2, d]),
            Type::new(dtype, [b * g * maps, d, slots]),
            Type::new(dtype, [b * g * 2, slots, half]),
            Type::i32([b]),
            Type::new(wide(dtype), if per_token { vec![b, n, g * r] } else { vec![] }),
        ],
        given: vec![(3, Random::new(!seed).slots(b, slots - n).to_f64())],
        wrt: vec![0, 1, 2, 4],
        results: 1,
        kernel,
        naive: function(move |args| naive_cached(&naive, args)),
    }
    .run(seed, tolerance, on_cpu);
}

#[test]
fn attention_to_a_cache_is_the_naive_one() {
    property(24, &caches(), |case| check_cached(case, DType::F64, 1e-11, false));
    property(3, &caches(), |case| check_cached(case, DType::F32, 1e-5, true));
    property(3, &caches(), |case| check_cached(case, DType::Bf16, 2f64.powi(-6), true));
}

fn check_swiglu(seed: u64, [n, m, i]: [usize; 3], rate: f64, dtype: DType, tolerance: f64, on_cpu: bool) {
    let matrix = Type::new(dtype, [m, i]);
    let x = Type::new(dtype, [n, m]);
    let down = Type::new(dtype, [i, m]);
    let mut types = vec![x, Type::new(wide(dtype), [n]), matrix.clone(), matrix, down];
    let mut random = Random::new(!seed);
    let mut given = vec![(1, scales(&mut random, n))];
    if rate > 0.0 {
        for count in [n, i] {
            given.push((types.len(), (0..count).map(|_| random.below(1 << 32) as f64).collect()));
            types.push(Type::new(DType::U32, [count]));
        }
    }
    Check {
        kernel: SwiGlu { rate },
        wrt: vec![0, 1, 2, 3, 4],
        types,
        given,
        results: 3,
        naive: function(move |args| {
            let x = args[0].convert(wide(dtype));
            let x = x * args[1].along(x, &[0]);
            let (g, u) = (x.matmul(args[2].convert(x.dtype())), x.matmul(args[3].convert(x.dtype())));
            let h = g / ((-g).exp() + 1.0) * u;
            let saved = [g, u].map(|x| x.convert(dtype));
            let h = match args[5..] {
                [rows, columns] => h * dropout_mask(rows, columns, rate, h.dtype()),
                _ => h,
            };
            [&[h.matmul(args[4].convert(h.dtype())).convert(dtype)], &saved[..]].concat()
        }),
    }
    .run(seed, tolerance, on_cpu);
}

#[test]
fn what_is_there_for_the_backward_pass_has_no_gradient() {
    let refused = panic_of(|| {
        Program::build("saved", |f| {
            let args = [[4, 16], [16, 32], [16, 32], [32, 16]].map(|shape| f.zeros(Type::f32(shape)));
            let [x, gate, up, down] = args;
            let results = f.kernel(SwiGlu { rate: 0.0 }, &[x, f.zeros(Type::f32([4])), gate, up, down]);
            f.output("d", grad(results[1].sum_all(), &[x])[0]);
        });
    });
    let message = refused.expect("g is there for the backward pass").message;
    assert!(message.contains("the result is there for the backward pass alone"), "{message}");
}

#[test]
fn swiglu_with_and_without_a_mask() {
    let cases = (any::<u64>(), 1usize..6, 1usize..6, 1usize..6, prop_oneof![Just(0.0), Just(0.3)]);
    property(24, &cases, |(seed, n, m, i, rate)| {
        check_swiglu(seed, [n, m, i], rate, DType::F64, 1e-11, false);
    });
    for rate in [0.0, 0.2] {
        check_swiglu(1, [17, 12, 20], rate, DType::F32, 1e-5, true);
        check_swiglu(2, [17, 12, 20], rate, DType::Bf16, 2f64.powi(-7), true);
    }
}

/// What an RMS norm gives: positive, and not near 0.
fn scales(random: &mut Random, n: usize) -> Vec<f64> {
    (0..n).map(|_| random.between(0.5, 1.5)).collect()
}

fn check_rms_norm_linear(seed: u64, [n, m, w]: [usize; 3], dtype: DType, tolerance: f64, on_cpu: bool) {
    Check {
        kernel: RmsNormLinear,
        wrt: vec![0, 1, 2],
        types: vec![Type::new(dtype, [n, m]), Type::new(wide(dtype), [n]), Type::new(dtype, [m, w])],
        given: vec![(1, scales(&mut Random::new(!seed), n))],
        results: 1,
        naive: function(move |args| {
            let x = args[0].convert(wide(dtype));
            let x = x * args[1].along(x, &[0]);
            vec![x.matmul(args[2].convert(x.dtype())).convert(dtype)]
        }),
    }
    .run(seed, tolerance, on_cpu);
}

#[test]
fn rms_norm_linear() {
    let cases = (any::<u64>(), 1usize..6, 1usize..6, 1usize..6);
    property(24, &cases, |(seed, n, m, w)| {
        check_rms_norm_linear(seed, [n, m, w], DType::F64, 1e-11, false);
    });
    check_rms_norm_linear(1, [17, 12, 20], DType::F32, 1e-5, true);
    check_rms_norm_linear(2, [17, 12, 20], DType::Bf16, 2f64.powi(-7), true);
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

/// The gradient of W added to a sum is the sum and the gradient.
#[test]
fn linear_cross_entropy_adds_to_a_sum() {
    let (n, m, v) = (1200, 8, 20);
    let sum_of = |gradients: Gradients, form: Option<Form>| {
        let program = Program::build("sum", |f| {
            let mut random = Random::new(3);
            let mut drawn = |shape: &[usize]| {
                let ty = Type::f32(shape);
                let values: Vec<f64> = (0..ty.elements()).map(|_| random.between(-1.0, 1.0)).collect();
                f.constant(&Host::from_f64(ty, &values))
            };
            let (h, w, sum) = (drawn(&[n, m]), drawn(&[v, m]), drawn(&[v, m]));
            let targets = f.iota(Type::i32([n]), 0) & 15i32;
            let weights = f.full(Type::f32([n]), 1.0 / n as f64);
            let kernel = LinearCrossEntropy { cap: 3.0, columns: v - 3, z_loss: 1e-2, gradients };
            let results = match gradients {
                Gradients::Into => f.kernel(kernel, &[h, w, targets, weights, sum]),
                _ => f.kernel(kernel, &[h, w, targets, weights]),
            };
            f.output("loss", results[0]);
            f.output("dh", results[1]);
            f.output("dw", if gradients == Gradients::Into { results[2] } else { results[2] + sum });
        });
        let (lowered, _) = passes::lower(&program, Target::Cpu, form);
        run_on_cpu(&lowered, &[])
    };
    let wanted = sum_of(Gradients::With, Some(Form::Reference));
    for form in FORMS {
        for (found, wanted) in sum_of(Gradients::Into, form).iter().zip(&wanted) {
            assert!(error(found.floats(), wanted.floats()) < 1e-6, "{form:?}");
        }
    }
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

/// Loss, dh, and dW in f32 of tokens, for a weight of 1 each, as the step has them.
fn head_program(cap: f64, columns: usize, dtype: DType, [n, m, v]: [usize; 3]) -> Program {
    Program::build("head", |f| {
        let (h, w) = (f.input("h", Type::new(dtype, [n, m])), f.input("w", Type::new(dtype, [v, m])));
        let targets = f.input("targets", Type::i32([n]));
        let (weights, sum) = (f.full(Type::f32([n]), 1.0), f.zeros(Type::f32([v, m])));
        let kernel = LinearCrossEntropy { cap, columns, z_loss: 0.0, gradients: Gradients::Into };
        for (name, x) in
            ["loss", "dh", "dw"].into_iter().zip(f.kernel(kernel, &[h, w, targets, weights, sum]))
        {
            f.output(name, x);
        }
    })
}

/// The norm of a difference as a part of the norm of what is wanted.
fn relative(found: &[f64], wanted: &[f64]) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let difference = squares(&mut found.iter().zip(wanted).map(|(a, b)| a - b));
    (difference / squares(&mut wanted.iter().copied())).sqrt()
}

/// What the sums of the columns leave of a token's gradient, which does not become smaller with it: s and `q W`, in f32, of
/// v terms each, round v times, each time by 2^-24 of what they are at most, and such errors add up like their roots. As a
/// part of `|dy_t/dz_t W[t]|`, for a weight of 1.
fn left_by_sums(v: usize) -> f64 {
    2f64.powi(-24) * (2.0 * v as f64).sqrt()
}

/// In bf16 the gradient of a token that is predicted with confidence is small, and as exact as that of any other one: of
/// what it is made of, q and the rows of W, only q is rounded, and then the sum itself, each by 2^-9 at most; for dW also
/// the rows of h. Rows of W are about as long as their differences, so that no sum is much shorter than its terms. Beside
/// that there is [`left_by_sums`]: as a part of the gradient it grows like 1 / (1 - p).
#[test]
fn linear_cross_entropy_of_confident_tokens() {
    let [n, m, v] = [384, 32, 512];
    let columns = v - 7;
    let mut random = Random::new(4);
    let w = random.array(Type::new(DType::Bf16, [v, m]), -1.0, 1.0);
    // From tokens about which nothing is known to such as are nearly certain.
    let targets: Vec<usize> = (0..n).map(|_| random.below(columns)).collect();
    let h: Vec<f64> = (targets.iter().enumerate())
        .flat_map(|(i, target)| {
            let row = &w.floats()[target * m..][..m];
            row.iter()
                .map(|w| w * 2.2 * i as f64 / n as f64 + random.between(-0.2, 0.2))
                .collect::<Vec<f64>>()
        })
        .collect();
    let targets: Vec<i32> = targets.iter().map(|&target| target as i32).collect();
    let hosts = [Host::from_f64(Type::new(DType::Bf16, [n, m]), &h), w.to_host(), Host::new([n], &targets)];
    let args = hosts.map(|host| Array::from_host(&host));
    let program = head_program(30.0, columns, DType::Bf16, [n, m, v]);
    let lowered = |target, form| passes::lower(&program, target, form).0;
    let truth = evaluate(&lowered(Target::Cpu, Some(Form::Reference)), &args, Rounding::None);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let size = |i: usize| {
        let row = &truth[1].floats()[i * m..][..m];
        dot(row, row).sqrt()
    };
    let of_target = |i: usize| {
        let (h, w) =
            (&args[0].floats()[i * m..][..m], &args[1].floats()[args[2].ints()[i] as usize * m..][..m]);
        (1.0 - (dot(h, w) / 30.0).tanh().powi(2)) * dot(w, w).sqrt()
    };
    let found = [
        ("reference", run_on_cpu(&lowered(Target::Cpu, Some(Form::Reference)), &args)),
        ("CPU", run_on_cpu(&lowered(Target::Cpu, Some(Form::Portable)), &args)),
        ("v6e", evaluate(&lowered(Target::TpuV6e, None), &args, Rounding::EachOp)),
    ];
    for (form, found) in found {
        // Tokens whose gradient is between 1 and 10, 0.1 and 1 ...
        for decade in -4..1 {
            let low = 10f64.powi(decade);
            let tokens = (0..n).filter(|&i| (low..10.0 * low).contains(&size(i)));
            let rows = |x: &Array| {
                let row = |i: usize| x.floats()[i * m..][..m].to_vec();
                tokens.clone().flat_map(row).collect::<Vec<f64>>()
            };
            let length =
                |of: &dyn Fn(usize) -> f64| tokens.clone().map(|i| of(i).powi(2)).sum::<f64>().sqrt();
            let bound = 2f64.powi(-8) + left_by_sums(v) * length(&of_target) / length(&size);
            let (count, error) = (tokens.clone().count(), relative(&rows(&found[1]), &rows(&truth[1])));
            println!("{form}: {count} tokens with |dh| from {low:e}: {error:.1e} of {bound:.1e}");
            assert!(count > 4, "{count} tokens with |dh| from {low:e}");
            assert!(error < bound, "{form}, |dh| from {low:e}: {error:e}");
        }
        let error = relative(found[2].floats(), truth[2].floats());
        println!("{form}: dW {error:.1e}");
        assert!(error < 2f64.powi(-8), "{form}, dW: {error:e}");
    }
}

/// A token that is certain has no gradient: what went into the products at its target is taken out of them again to the
/// bit. Were it a rounding to bf16 off, 2^-9 of W[t] and of h would be left.
#[test]
fn linear_cross_entropy_of_certain_tokens() {
    let [n, m, v] = [256, 128, 512];
    let mut random = Random::new(5);
    let w = random.array(Type::new(DType::Bf16, [v, m]), -1.0, 1.0);
    let targets: Vec<i32> = (0..n as i32).map(|i| i * 3 % 503).collect();
    // Each is near its target's row, and by less than 1e-8 of anything else; all of other sizes, so that they round otherwise.
    let h: Vec<f64> = (targets.iter().enumerate())
        .flat_map(|(i, &target)| {
            let row = &w.floats()[target as usize * m..][..m];
            row.iter().map(move |w| w * (1.0 + 0.3 * i as f64 / n as f64)).collect::<Vec<f64>>()
        })
        .collect();
    let hosts = [Host::from_f64(Type::new(DType::Bf16, [n, m]), &h), w.to_host(), Host::new([n], &targets)];
    let args = hosts.map(|host| Array::from_host(&host));
    for cap in [0.0, 43.0, 60.0] {
        let program = head_program(cap, v - 7, DType::Bf16, [n, m, v]);
        let lowered = |target, form| passes::lower(&program, target, form).0;
        for (form, found) in [
            ("CPU", run_on_cpu(&lowered(Target::Cpu, Some(Form::Portable)), &args)),
            ("v6e", evaluate(&lowered(Target::TpuV6e, None), &args, Rounding::EachOp)),
        ] {
            let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
            for (i, &target) in targets.iter().enumerate() {
                let target = target as usize;
                let row = |x: &Array, i: usize| x.floats()[i * m..][..m].to_vec();
                let left = length(&row(&found[1], i)) / length(&row(&args[1], target));
                assert!(left < left_by_sums(v), "{form}, cap {cap}: dh of token {i} is {left:e} of W[t]");
                let left = length(&row(&found[2], target)) / length(&row(&args[0], i));
                assert!(left < left_by_sums(n), "{form}, cap {cap}: dW of token {i} is {left:e} of h");
            }
        }
    }
}

/// Logits on both sides up to their cap, whatever it is: exp of one overflows f32 from 88 on.
#[test]
fn linear_cross_entropy_of_any_cap() {
    let [n, m, v] = [24, 3, 40];
    for (cap, dtype) in
        [30.0, 43.0, 70.0, 90.0, 500.0].into_iter().flat_map(|cap| [(cap, DType::F32), (cap, DType::Bf16)])
    {
        let mut random = Random::new(6);
        // A token's first number lifts all of its logits, from -3 to 3 caps; the others spread them.
        let w = (0..v * m).map(|i| if i % m == 0 { 1.0 } else { random.between(-1.0, 1.0) });
        let w = Host::from_f64(Type::new(dtype, [v, m]), &w.collect::<Vec<f64>>());
        let h = (0..n * m).map(|i| match i % m {
            0 => cap * (i as f64 / ((n - 1) * m) as f64 * 6.0 - 3.0),
            _ => cap * random.between(-0.2, 0.2),
        });
        let h = Host::from_f64(Type::new(dtype, [n, m]), &h.collect::<Vec<f64>>());
        let targets: Vec<i32> = (0..n).map(|_| random.below(v - 3) as i32).collect();
        let args = [h, w, Host::new([n], &targets)].map(|host| Array::from_host(&host));
        let program = head_program(cap, v - 3, dtype, [n, m, v]);
        let lowered = |form| passes::lower(&program, Target::Cpu, form).0;
        let truth = evaluate(&lowered(Some(Form::Reference)), &args, Rounding::None);
        // Logits are rounded a few times, which is as much in the logarithm of a probability.
        let rounding = if dtype == DType::F32 { 1e-5 } else { 2f64.powi(-8) };
        let tolerance = rounding + 4.0 * cap * 2f64.powi(-24);
        for form in FORMS {
            let found = evaluate(&lowered(form), &args, Rounding::EachOp);
            for (name, (found, truth)) in ["loss", "dh", "dw"].into_iter().zip(found.iter().zip(&truth)) {
                let error = relative(found.floats(), truth.floats());
                println!("cap {cap} {dtype} {form:?} {name}: {error:.1e}");
                assert!(error < tolerance, "cap {cap} {dtype} {form:?} {name}: {error:e}");
            }
        }
    }
}
