//! Functions of this process that compiled programs call: the interface itself, and the native kernels of the CPU
//! against the exact value of their references.

use engine::pjrt::{Client, Code, Plugin};
use engine::plugin::Platform;
use engine::{
    Array, CallFrame, DType, Form, Host, HostCall, HostFunction, Kernel, Program, Rounding, Target, Type,
    evaluate, grad, passes,
};
use kernels::{
    BLOCK_ROWS, CachedAttention, CachedBlock, DiffAttention, HeadNorm, Keys, PANEL, PackedLinear, Sampling,
    SwiGlu, panels,
};
use proptest::prelude::*;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use tests::close::{F32, assert_small, error_beside, largest};
use tests::{Random, panic_of, property};

fn client() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| Client::new(&Plugin::of(&Platform::Cpu).unwrap(), &[]).unwrap())
}

/// `attributes[0] x` in pieces, and how many elements of the mask are true.
struct Scaled;

impl HostFunction for Scaled {
    const NAME: &'static str = "test_scaled";

    fn call(CallFrame { attributes, operands, results, workers }: CallFrame<'_>) {
        let [y, count] = <[_; 2]>::try_from(results).unwrap();
        assert_eq!(y.shape(), operands[0].shape());
        let pairs =
            y.into_slice::<f32>().chunks_mut(3).zip(operands[0].as_slice::<f32>().chunks(3)).collect();
        let done = AtomicUsize::new(0);
        workers.for_each(pairs, |(y, x): (&mut [f32], &[f32])| {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = x * attributes[0] as f32);
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), operands[0].as_slice::<f32>().len().div_ceil(3));
        let trues: i32 = operands[1].as_bools().iter().map(|&truth| i32::from(truth)).sum();
        count.into_slice::<i32>().fill(trues);
    }
}

#[test]
fn a_program_calls_back() {
    let program = Program::build("calls", |f| {
        let x = f.input("x", Type::f32([1000, 7]));
        let mask = f.input("mask", Type::new(DType::Bool, [5]));
        let call = HostCall::new::<Scaled>(vec![-3], vec![Type::f32([1000, 7]), Type::i32([])]);
        let y = f.host_call(call, &[x * 2.0, mask]);
        f.output("y", y[0] + 1.0);
        f.output("count", y[1]);
    });
    let x: Vec<f32> = (0..7000).map(|i| i as f32).collect();
    let args = [Host::new([1000, 7], &x), Host::from_bytes(Type::new(DType::Bool, [5]), &[1, 0, 1, 1, 0])];
    let wanted: Vec<f32> = x.iter().map(|x| -6.0 * x + 1.0).collect();
    let compiled = program.compile(client()).unwrap();
    for _ in 0..20 {
        let found = compiled.call(&args).unwrap();
        assert_eq!(found, [Host::new([1000, 7], &wanted), Host::scalar(3i32)]);
    }
    // The evaluator runs the very function.
    let arrays: Vec<Array> = args.iter().map(Array::from_host).collect();
    let found = evaluate(&program, &arrays, Rounding::EachOp);
    assert_eq!(found[0].to_host(), Host::new([1000, 7], &wanted));
}

/// Another function under the first one's name.
struct Impostor;

impl HostFunction for Impostor {
    const NAME: &'static str = Scaled::NAME;

    fn call(_: CallFrame<'_>) {}
}

#[test]
fn two_functions_of_one_name_are_refused() {
    let [first, second] = [HostCall::new::<Scaled>, HostCall::new::<Impostor>].map(|call| {
        Program::build("named", |f| {
            let operands = [f.input("x", Type::f32([3])), f.input("mask", Type::new(DType::Bool, [1]))];
            let call = call(vec![1], vec![Type::f32([3]), Type::i32([])]);
            f.output("y", f.host_call(call, &operands)[0]);
        })
    });
    first.compile(client()).unwrap();
    let message = panic_of(|| drop(second.compile(client()))).expect("it is another function").message;
    assert_eq!(message, "two host functions are called `test_scaled`");
}

/// Panics where `x[0]` is negative: on the calling thread, or on whichever takes the item.
struct Refusing;

impl HostFunction for Refusing {
    const NAME: &'static str = "test_refusing";

    fn call(CallFrame { operands, results, workers, .. }: CallFrame<'_>) {
        let x = operands[0].as_slice::<f32>();
        let y: Vec<&mut f32> = results.into_iter().flat_map(|y| y.into_slice::<f32>()).collect();
        workers.for_each(y.into_iter().zip(x).collect(), |(y, &x): (&mut f32, &f32)| {
            assert!(x >= 0.0, "{x} has no root");
            *y = x.sqrt();
        });
    }
}

#[test]
fn a_panic_is_an_error_of_the_run_and_no_more() {
    let program = Program::build("roots", |f| {
        let x = f.input("x", Type::f32([64]));
        f.output("y", f.host_call(HostCall::new::<Refusing>(vec![], vec![Type::f32([64])]), &[x])[0]);
    });
    let compiled = program.compile(client()).unwrap();
    let mut x = vec![4f32; 64];
    for place in [0, 40] {
        x[place] = -2.0;
        let error = compiled.call(&[Host::new([64], &x)]).unwrap_err();
        assert_eq!(error.code(), Some(Code::Internal), "{error}");
        assert!(error.to_string().contains("host function test_refusing: -2 has no root"), "{error}");
        x[place] = 4.0;
        assert_eq!(compiled.call(&[Host::new([64], &x)]).unwrap(), [Host::new([64], &[2f32; 64])]);
    }
}

/// Prefix sums of the prefix sums .. `attributes[0]` times: each waits for the last, on threads that stay awake. A number
/// below 0 is refused by whoever meets it.
struct Chained;

impl HostFunction for Chained {
    const NAME: &'static str = "test_chained";

    fn call(CallFrame { attributes, operands, results, workers }: CallFrame<'_>) {
        let mut x = operands[0].as_slice::<f32>().to_vec();
        workers.awake(|workers| {
            assert!(x[0] < 100.0, "{} is too much", x[0]);
            for _ in 0..attributes[0] {
                let mut next = vec![0.0; x.len()];
                let items = next.iter_mut().enumerate().collect();
                workers.for_each(items, |(i, next): (usize, &mut f32)| {
                    assert!(x[i] >= 0.0, "{} is below 0", x[i]);
                    *next = (x[..=i].iter().sum::<f32>() + 1.0) % 97.0;
                });
                // Those who are awake already may be asked to be.
                workers.awake(|_| x = next);
            }
        });
        results.into_iter().for_each(|y| y.into_slice::<f32>().copy_from_slice(&x));
    }
}

#[test]
fn a_chain_of_things_waits_for_each() {
    let program = Program::build("chained", |f| {
        let x = f.input("x", Type::f32([40]));
        f.output("y", f.host_call(HostCall::new::<Chained>(vec![50], vec![Type::f32([40])]), &[x])[0]);
    });
    let compiled = program.compile(client()).unwrap();
    let x: Vec<f32> = (0..40).map(|i| i as f32).collect();
    let wanted = (0..50).fold(x.clone(), |x, _| {
        (0..40).map(|i| (x[..=i].iter().sum::<f32>() + 1.0) % 97.0).collect::<Vec<f32>>()
    });
    // Several callers at once.
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..70 {
                    assert_eq!(compiled.call(&[Host::new([40], &x)]).unwrap(), [Host::new([40], &wanted)]);
                }
            });
        }
    });
    for (place, number, why) in
        [(0, 200.0, "200 is too much"), (3, -1.0, "-1 is below 0"), (39, -2.0, "-2 is below 0")]
    {
        let mut x = x.clone();
        x[place] = number;
        let error = compiled.call(&[Host::new([40], &x)]).unwrap_err().to_string();
        assert!(error.contains(&format!("host function test_chained: {why}")), "{error}");
    }
    assert_eq!(compiled.call(&[Host::new([40], &x)]).unwrap(), [Host::new([40], &wanted)]);
}

/// A kernel's native form on the CPU plugin against the exact value of its reference: the error as a part of each
/// result's largest number.
/// Sums of up to 256 terms, 16 roundings each, eight in a row: products, softmax, norm, forward and backward.
const SUMS: f64 = 8.0 * 16.0 * F32;

fn check<K: Kernel + Clone + 'static>(kernel: K, args: &[Host], tolerance: f64) {
    let program = Program::build("native", |f| {
        let inputs: Vec<_> =
            args.iter().enumerate().map(|(i, arg)| f.input(&format!("x{i}"), arg.ty().clone())).collect();
        for (i, result) in f.kernel(kernel.clone(), &inputs).into_iter().enumerate() {
            f.output(&format!("y{i}"), result);
        }
    });
    check_program(&program, args, tolerance);
}

fn check_program(program: &Program, args: &[Host], tolerance: f64) {
    let (native, forms) = passes::lower(program, Target::Cpu, Some(Form::Native));
    assert!(!forms.is_empty() && forms.iter().all(|(_, form)| *form == Form::Native), "{forms:?}");
    check_lowered(&native, args, &exactly(program, args), tolerance, &[]);
}

fn exactly(program: &Program, args: &[Host]) -> Vec<Array> {
    let arrays: Vec<Array> = args.iter().map(Array::from_host).collect();
    evaluate(program, &arrays, Rounding::None)
}

/// A program in native forms against the exact value of its references. least: for the first results, how large the numbers
/// are that they are differences of; an error counts as a part of these where they are larger.
fn check_lowered(native: &Program, args: &[Host], truth: &[Array], tolerance: f64, least: &[f64]) {
    let arrays: Vec<Array> = args.iter().map(Array::from_host).collect();
    let compiled = native.compile(client()).unwrap();
    let found = compiled.call(args).unwrap();
    // As many workers as there are or one: the same bits, each time.
    assert_eq!(compiled.call(args).unwrap(), found);
    let alone = evaluate(native, &arrays, Rounding::EachOp);
    for (i, ((found, alone), truth)) in found.iter().zip(&alone).zip(truth).enumerate() {
        assert_eq!(*found, alone.to_host());
        if found.ty().dtype == DType::I32 {
            assert_eq!(&Array::from_host(found), truth);
            continue;
        }
        let least = least.get(i).copied().unwrap_or(0.0);
        let error = error_beside(&found.to_f64(), truth.floats(), least);
        assert_small(&format!("result {i}"), error, tolerance);
    }
}

fn numbers(random: &mut Random, shape: impl Into<Vec<usize>>, scale: f64) -> Host {
    random.array(Type::f32(shape), -scale, scale).to_host()
}

#[test]
fn a_linear_map() {
    // Rows that fill several groups and some that do not, and matrices that are shared and that are not.
    let sizes = (1usize..70, 1usize..70, 1usize..50).prop_flat_map(|(n, m, panels)| {
        (Just(n), prop_oneof![Just(m), Just(600)], prop_oneof![Just(panels), Just(128)])
    });
    property(48, &(any::<u64>(), sizes), |(seed, (n, m, panels))| {
        let mut random = Random::new(seed);
        let args = [numbers(&mut random, [n, m], 1.0), numbers(&mut random, [panels, m, PANEL], 1.0)];
        check(PackedLinear { result: DType::F32 }, &args, SUMS);
    });
}

#[test]
fn rows_do_not_depend_on_the_rows_beside_them() {
    let mut random = Random::new(5);
    let (x, w) = (numbers(&mut random, [11, 96], 1.0), numbers(&mut random, [13, 96, PANEL], 1.0));
    let rows = |first: usize, count: usize| {
        let part = Host::new([count, 96], &x.as_slice::<f32>()[96 * first..96 * (first + count)]);
        let program = Program::build("rows", |f| {
            let (x, w) = (f.input("x", part.ty().clone()), f.input("w", w.ty().clone()));
            f.output("y", f.kernel(PackedLinear { result: DType::F32 }, &[x, w])[0]);
        });
        let (native, _) = passes::lower(&program, Target::Cpu, Some(Form::Native));
        let y = native.compile(client()).unwrap().call(&[part, w.clone()]).unwrap();
        y[0].as_slice::<f32>().to_vec()
    };
    let all = rows(0, 11);
    for (first, count) in [(0, 1), (3, 2), (4, 5), (10, 1), (2, 8)] {
        assert!(rows(first, count) == all[208 * first..208 * (first + count)]);
    }
}

/// The same matrix by rows and in panels, in plain ops.
#[test]
fn panels_are_the_same_matrix() {
    let mut random = Random::new(6);
    let args = [numbers(&mut random, [3, 20], 1.0), numbers(&mut random, [20, 64], 1.0)];
    let program = Program::build("panels", |f| {
        let [x, w] = [0, 1].map(|i| f.input(&format!("x{i}"), args[i].ty().clone()));
        for (name, w) in [("rows", w), ("panels", panels(w))] {
            f.output(name, f.kernel(PackedLinear { result: DType::F32 }, &[x, w])[0]);
        }
    });
    let arrays: Vec<Array> = args.iter().map(Array::from_host).collect();
    let found = evaluate(&program, &arrays, Rounding::None);
    assert_eq!(found[0], found[1]);
}

/// Rows of logits with padding, and the numbers of a draw.
fn drawn(random: &mut Random, (b, columns, padding): (usize, usize, usize), scale: f64) -> Vec<Host> {
    let v = columns + padding;
    let mut logits = numbers(random, [b, v], scale);
    for row in logits.as_mut_slice::<f32>().chunks_mut(v) {
        // The same greatest number twice, and greater ones that do not count.
        let place = random.below(columns);
        row[place + random.below(columns - place)] = scale as f32 + 0.5;
        row[place] = scale as f32 + 0.5;
        row[columns..].fill(100.0);
    }
    let keys: Vec<u32> = (0..2 * b).map(|_| random.below(1 << 32) as u32).collect();
    let positions: Vec<i32> = (0..b).map(|_| random.below(1 << 20) as i32).collect();
    let top_k: Vec<i32> = (0..b).map(|_| [1, 0, 1 + random.below(columns) as i32][random.below(3)]).collect();
    let mut each =
        |of: &mut dyn FnMut(&mut Random) -> f32| -> Vec<f32> { (0..b).map(|_| of(random)).collect() };
    vec![
        logits,
        Host::new([b, 2], &keys),
        Host::new([b], &positions),
        Host::new([b], &each(&mut |random| 0.2 + random.below(20) as f32 / 10.0)),
        Host::new([b], &top_k),
        Host::new([b], &each(&mut |random| (1 + random.below(140)) as f32 / 100.0)),
    ]
}

/// A draw is the exact one unless two tokens arrive as good as together, or one is as good as at the filter's border: one
/// row of thousands.
#[test]
fn draws_are_those_of_the_reference() {
    let caps = prop_oneof![Just(0.0), Just(30.0), Just(2.0)];
    let (rows, others) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let sizes = (1usize..9, 1usize..700, 0usize..40);
    let scales = prop_oneof![Just(1.0), Just(5.0), Just(20.0)];
    property(96, &(any::<u64>(), sizes, caps, scales), |(seed, sizes, cap, scale)| {
        let args = drawn(&mut Random::new(seed), sizes, scale);
        let program = Program::build("draw", |f| {
            let inputs: Vec<_> =
                args.iter().enumerate().map(|(i, arg)| f.input(&format!("x{i}"), arg.ty().clone())).collect();
            let results = f.kernel(Sampling { cap, columns: sizes.1 }, &inputs);
            f.output("token", results[0]);
            f.output("log_prob", results[1]);
        });
        let truth = exactly(&program, &args);
        let (native, _) = passes::lower(&program, Target::Cpu, Some(Form::Native));
        let compiled = native.compile(client()).unwrap();
        let found = compiled.call(&args).unwrap();
        let pairs = found[0].as_slice::<i32>().iter().zip(found[1].as_slice::<f32>());
        let wanted = truth[0].to_host();
        let exact = wanted.as_slice::<i32>().iter().zip(truth[1].floats());
        let top_k = args[4].as_slice::<i32>();
        for (row, ((token, log_prob), (wanted, log_prob_wanted))) in pairs.zip(exact).enumerate() {
            rows.fetch_add(1, Ordering::Relaxed);
            if token == wanted {
                let error = (f64::from(*log_prob) - log_prob_wanted).abs();
                assert!(error < SUMS * log_prob_wanted.abs().max(1.0), "{log_prob}, not {log_prob_wanted}");
            } else {
                assert!(top_k[row] != 1, "{token}, not {wanted}");
                others.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let (rows, others) = (rows.into_inner(), others.into_inner());
    println!("{others} other tokens in {rows} rows");
    assert!(rows > 200 && 200 * others < rows, "{others} other tokens in {rows} rows");
}

/// Temperatures, top-p and top-k at and beyond the ends of their range, and logits that are NaN: the draw
/// ends, near 0 it takes the most probable token, and the probability of a token that means nothing is NaN. The portable
/// form and the native one agree.
#[test]
fn draws_at_the_ends_of_their_numbers() {
    let (b, columns, padding) = (4, 200, 7);
    let mut random = Random::new(8);
    for cap in [0.0, 30.0] {
        let mut args = drawn(&mut random, (b, columns, padding), 5.0);
        let v = columns + padding;
        let logits = args[0].as_mut_slice::<f32>();
        // One most probable token; two; one NaN; nothing but NaN.
        logits[17] = 6.0;
        logits[2 * v + 50] = f32::NAN;
        logits[3 * v..].fill(f32::NAN);
        // The tokens of the first two rows, the most probable first.
        let order: Vec<Vec<usize>> = [0, 1]
            .map(|row| {
                let row = &logits[row * v..][..columns];
                let mut tokens: Vec<usize> = (0..columns).collect();
                tokens.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
                tokens
            })
            .to_vec();
        let program = Program::build("draw", |f| {
            let inputs: Vec<_> =
                args.iter().enumerate().map(|(i, arg)| f.input(&format!("x{i}"), arg.ty().clone())).collect();
            let results = f.kernel(Sampling { cap, columns }, &inputs);
            f.output("token", results[0]);
            f.output("log_prob", results[1]);
        });
        let forms = [Some(Form::Native), Some(Form::Portable)].map(|choice| {
            let (lowered, _) = passes::lower(&program, Target::Cpu, choice);
            lowered.compile(client()).unwrap()
        });
        for temperature in [0.0f32, 1e-45, 1e-39, 1e-38, 1e-30, 0.7, 3e38, f32::INFINITY] {
            for top_p in [0.0f32, 1e-45, 1e-38, 1e-30, 0.9, 1.0] {
                for top_k in [0, 1, 5, i32::MAX] {
                    args[3] = Host::new([b], &vec![temperature; b]);
                    args[4] = Host::new([b], &vec![top_k; b]);
                    args[5] = Host::new([b], &vec![top_p; b]);
                    let found = forms.each_ref().map(|form| form.call(&args).unwrap());
                    // How many tokens can be drawn: at any temperature those that the filter lets through, of which one near
                    // 0 leaves the most probable ones, two in the second row.
                    let by_top_k = if top_k == 0 { columns } else { columns.min(top_k as usize) };
                    let by_top_p = if top_p <= 1e-30 { 1 } else { columns };
                    let allowed = by_top_k.min(by_top_p);
                    let cold = temperature <= 1e-30;
                    let allowed = [0, 1].map(|row| if cold { allowed.min(1 + row) } else { allowed });
                    let case = format!("temperature {temperature}, top-p {top_p}, top-k {top_k}");
                    for row in 0..b {
                        let [native, portable] = found
                            .each_ref()
                            .map(|found| (found[0].as_slice::<i32>()[row], found[1].as_slice::<f32>()[row]));
                        for (token, log_prob) in [native, portable] {
                            assert!((0..columns as i32).contains(&token), "{case}: {token}");
                            assert_eq!(log_prob.is_nan(), row >= 2, "{case}, row {row}: {log_prob}");
                            if row < 2 {
                                let allowed = &order[row][..allowed[row]];
                                assert!(
                                    allowed.contains(&(token as usize)),
                                    "{case}: {token} of {allowed:?}"
                                );
                            }
                        }
                        // Otherwise two tokens may arrive as good as together.
                        assert!(
                            row >= 2 || !cold || native.0 == portable.0,
                            "{case}: {native:?}, {portable:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn attention_to_a_cache() {
    let sizes = (1usize..4, 1usize..4, 1usize..3, 1usize..4, 0usize..100, 1usize..3, 1usize..3);
    let forms = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    property(32, &(any::<u64>(), sizes, forms), |(seed, sizes, (shared, per_token, normed, capped))| {
        let (b, n, g, r, before, d, half) = sizes;
        let (d, half) = (8 * d, 16 * half);
        let slots = (before + n).next_multiple_of(16);
        let mut random = Random::new(seed);
        let maps = if shared { 1 } else { 2 };
        let args = [
            numbers(&mut random, [b, n, g * r, 2, d], 3.0),
            numbers(&mut random, [b * g * maps, d, slots], 3.0),
            numbers(&mut random, [b * g * 2, slots, half], 3.0),
            random.slots(b, slots - n),
            numbers(&mut random, if per_token { vec![b, n, g * r] } else { vec![] }, 1.0),
        ];
        let norm = if normed { HeadNorm::Rms { eps: 1e-2 } } else { HeadNorm::None };
        let cap = if capped { 5.0 } else { 0.0 };
        check(CachedAttention { norm, cap, block: None }, &args, SUMS);
    });
}

#[test]
fn a_block_against_a_cache() {
    let sizes = (1usize..9, 1usize..3, 1usize..3, 1usize..4, 0usize..100, 1usize..3, 1usize..3);
    let forms = (any::<bool>(), any::<bool>(), any::<bool>());
    property(32, &(any::<u64>(), sizes, forms), |(seed, sizes, (shared, normed, capped))| {
        let (b, n, g, r, before, d, half) = sizes;
        let h = if normed { g * r } else { 16 }; // columns that give lambda come in whole vectors
        let (m, i, d, half) = (48, 80, 16 * d, 16 * half);
        let (slots, t) = ((before + n).next_multiple_of(16), if shared { 1 } else { 2 });
        let own_lambda = if normed { 0 } else { h };
        let columns = 2 * h * d + g * t * d + g * 2 * half + own_lambda;
        let mut random = Random::new(seed);
        let mut args = vec![
            numbers(&mut random, [b, n, m], 3.0),
            numbers(&mut random, [b, n, d / 2], 1.0),
            numbers(&mut random, [b, n, d / 2], 1.0),
            numbers(&mut random, [columns / PANEL, m, PANEL], 0.5),
            numbers(&mut random, [m / PANEL, h * 2 * half, PANEL], 0.3),
            numbers(&mut random, [2 * i / PANEL, m, PANEL], 0.5),
            numbers(&mut random, [m / PANEL, i, PANEL], 0.3),
            numbers(&mut random, [b * g * t, d, slots], 3.0),
            numbers(&mut random, [b * g * 2, slots, half], 3.0),
            random.slots(b, slots - n),
        ];
        if normed {
            args.push(numbers(&mut random, [], 0.9));
        }
        let norm = if normed { HeadNorm::Rms { eps: 1e-2 } } else { HeadNorm::None };
        for qk_norm in [HeadNorm::None, HeadNorm::Rms { eps: 1e-3 }] {
            let kernel = CachedBlock { eps: 1e-3, qk_norm, norm, cap: if capped { 5.0 } else { 0.0 } };
            check(kernel, &args, SUMS);
        }
    });
}

#[test]
fn differential_attention() {
    let sizes = (1usize..3, 1usize..200, 1usize..3, 1usize..4, 1usize..4, 1usize..4);
    let forms = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    // A lambda near 1: there the outputs of the maps cancel.
    let lambdas = prop_oneof![Just(-1.0), Just(0.9)];
    let cases = (any::<u64>(), sizes, forms, 0.1..2.0, lambdas);
    property(32, &cases, |(seed, sizes, (shared, per_token, normed, capped), scale, from)| {
        let (b, s, groups, r, d, e) = sizes;
        let (head_dim, value_dim, heads) = (16 * d, 16 * e, groups * r);
        let keys = if shared { Keys::Shared } else { Keys::PerMap };
        let kernel = DiffAttention {
            heads,
            groups,
            head_dim,
            value_dim,
            keys,
            norm: if normed { HeadNorm::Rms { eps: 1e-2 } } else { HeadNorm::None },
            cap: if capped { 5.0 } else { 0.0 },
            rows: BLOCK_ROWS,
            tiling: None,
        };
        let maps = if shared { 1 } else { 2 };
        let width = 2 * head_dim * heads + (maps * head_dim + value_dim) * groups;
        let mut random = Random::new(seed);
        let mut start = 0;
        let starts: Vec<i32> = (0..b * s)
            .map(|i| {
                if i % s == 0 || random.below(60) == 0 {
                    start = (i % s) as i32;
                }
                start
            })
            .collect();
        let of_tokens = Type::f32([b, s, heads]);
        let lambda = if per_token { of_tokens.clone() } else { Type::scalar(DType::F32) };
        let mut args = [
            numbers(&mut random, [b, s, width], scale),
            numbers(&mut random, [s, head_dim / 2], 1.0),
            numbers(&mut random, [s, head_dim / 2], 1.0),
            random.array(lambda, from, 1.0).to_host(),
            Host::new([b, s], &starts),
            numbers(&mut random, [b, s, heads * value_dim], 1.0),
        ];
        // All results, and the gradients of a weighted sum of y.
        let program = |args: &[Host]| {
            Program::build("attention", |f| {
                let input = |(i, arg): (usize, &Host)| f.input(&format!("x{i}"), arg.ty().clone());
                let inputs: Vec<_> = args.iter().enumerate().map(input).collect();
                let results = f.kernel(kernel.clone(), &inputs[..5]);
                let gradients = grad((results[0] * inputs[5]).sum_all(), &[inputs[0], inputs[3]]);
                for (i, result) in results.into_iter().chain(gradients).enumerate() {
                    f.output(&format!("y{i}"), result);
                }
            })
        };
        let given = program(&args);
        let truth = exactly(&given, &args);
        let (native, forms) = passes::lower(&given, Target::Cpu, Some(Form::Native));
        assert!(forms.iter().all(|(_, form)| *form == Form::Native), "{forms:?}");
        // y = f (O1 - lambda O2), with O2 [b, h, e, s] and f the last of three statistics [b, h, 3, s].
        let lambdas = args[3].to_f64();
        let lambda = |token: usize, head: usize| lambdas[if per_token { token * heads + head } else { 0 }];
        let subtracted = truth[1].floats().iter().enumerate().map(|(at, o2)| {
            let (row, position) = (at / (value_dim * s), at % s);
            let factor = truth[2].floats()[(3 * row + 2) * s + position];
            (factor * lambda(row / heads * s + position, row % heads) * o2).abs()
        });
        let mut least = vec![largest(subtracted), 0.0, 0.0, 0.0, 0.0];
        if !per_token {
            // The gradient by one lambda is a sum of what one for each token and head has.
            let of_each = Host::from_f64(of_tokens, &vec![lambdas[0]; b * s * heads]);
            let one = std::mem::replace(&mut args[3], of_each);
            let terms = exactly(&program(&args), &args);
            least[4] = terms[4].floats().iter().map(|term| term * term).sum::<f64>().sqrt();
            args[3] = one;
        }
        check_lowered(&native, &args, &truth, SUMS, &least);
    });
}

#[test]
fn the_gradient_of_swiglu() {
    // Rows and columns that fill chunks and tiles and some that do not.
    let sizes = (prop_oneof![1usize..90, 250usize..600], 1usize..12, 1usize..12);
    let rates = prop_oneof![Just(0.0), Just(0.3)];
    let scales = prop_oneof![Just(0.1), Just(0.5), Just(2.0)];
    property(24, &(any::<u64>(), sizes, rates, scales), |(seed, (n, m, i), rate, scale)| {
        let (m, i) = (16 * m, 16 * i);
        let mut random = Random::new(seed);
        let mut args = vec![
            numbers(&mut random, [n, m], 1.0),
            random.array(Type::f32([n]), 0.5, 2.0).to_host(),
            numbers(&mut random, [m, i], scale),
            numbers(&mut random, [m, i], scale),
            numbers(&mut random, [i, m], scale),
        ];
        if rate > 0.0 {
            for count in [n, i] {
                let words: Vec<u32> = (0..count).map(|_| random.below(1 << 32) as u32).collect();
                args.push(Host::new([count], &words));
            }
        }
        let dy = numbers(&mut random, [n, m], 1.0);
        let program = Program::build("swiglu", |f| {
            let inputs: Vec<_> =
                args.iter().enumerate().map(|(i, arg)| f.input(&format!("x{i}"), arg.ty().clone())).collect();
            let dy = f.input("dy", dy.ty().clone());
            let y = f.kernel(SwiGlu { rate }, &inputs)[0];
            // That of the scale is made of dx by plain operations.
            let wanted = [0, 2, 3, 4].map(|i| inputs[i]);
            for (i, gradient) in grad((y * dy).sum_all(), &wanted).into_iter().enumerate() {
                f.output(&format!("d{i}"), gradient);
            }
        });
        let args = [&args[..], &[dy]].concat();
        let (native, forms) = passes::lower(&program, Target::Cpu, None);
        let on_host =
            |(name, form): &(String, Form)| name.starts_with("swiglu_backward") && *form == Form::Native;
        assert!(forms.iter().any(on_host), "{forms:?}");
        check_lowered(&native, &args, &exactly(&program, &args), SUMS, &[]);
    });
}
