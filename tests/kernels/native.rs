//! The native forms, run by the tile interpreter, against the references: the numbers of the very programs that a TPU gets.

use engine::{
    Array, DType, Form, Host, Locations, Program, Rounding, ScanOptions, Target, Type, evaluate, grad, passes,
};
use kernels::{BLOCK_ROWS, CachedAttention, DiffAttention, HeadNorm, Keys, SwiGlu, Tiling};
use proptest::prelude::*;
use std::ops::Range;
use tests::close::{assert_small, error_beside};
use tests::{Random, property};

/// Numbers that look random.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    }

    fn array(&mut self, ty: Type, scale: f64) -> Array {
        let numbers: Vec<f64> = (0..ty.elements()).map(|_| self.next() * scale).collect();
        Array::from_host(&Host::from_f64(ty, &numbers))
    }
}

/// y and the gradients of `sum(ct y)` by qkv and lambda.
fn program(kernel: &DiffAttention, batch: usize, seq: usize, dtype: DType) -> Program {
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Program::build("attention", |f| {
        let width = 2 * kernel.head_dim * (kernel.heads + kernel.groups) + kernel.value_dim * kernel.groups;
        let qkv = f.input("qkv", Type::new(dtype, [batch, seq, width]));
        let table = |name: &str| f.input(name, Type::new(wide, [seq, kernel.head_dim / 2]));
        let (cos, sin) = (table("cos"), table("sin"));
        let lambda = f.input("lambda", Type::scalar(wide));
        let starts = f.input("starts", Type::i32([batch, seq]));
        let y = f.kernel(kernel.clone(), &[qkv, cos, sin, lambda, starts])[0];
        let ct = f.input("ct", y.ty());
        let loss = (y.convert(wide) * ct.convert(wide)).sum_all();
        f.output("y", y);
        for (name, grad) in ["d_qkv", "d_lambda"].into_iter().zip(grad(loss, &[qkv, lambda])) {
            f.output(name, grad);
        }
    })
}

const LAMBDA: f64 = 0.7;
const EPS: f64 = 1e-5;

/// Arguments of size `scale`, with documents that begin at the given tokens of the batch and where a sequence does.
fn arguments(program: &Program, documents: &[usize], lambda: f64, scale: f64, seed: u64) -> Vec<Array> {
    let mut noise = Noise(seed);
    let ports = program.inputs().iter();
    ports
        .map(|port| {
            let ty = port.ty.clone();
            match &port.name[..] {
                "cos" | "sin" => {
                    let half = ty.shape[1];
                    let angle = |i: usize| (i / half) as f64 * 10f64.powf(-((i % half) as f64) / half as f64);
                    let turn = |x: f64| if port.name == "cos" { x.cos() } else { x.sin() };
                    let numbers: Vec<f64> = (0..ty.elements()).map(|i| turn(angle(i))).collect();
                    Array::from_host(&Host::from_f64(ty, &numbers))
                }
                "starts" => {
                    let seq = ty.shape[1];
                    let begins = |i: usize| i.is_multiple_of(seq) || documents.contains(&i);
                    let start =
                        |i: usize| (0..=i).rev().find(|&i| begins(i)).expect("a sequence begins") % seq;
                    let numbers: Vec<f64> = (0..ty.elements()).map(|i| start(i) as f64).collect();
                    Array::from_host(&Host::from_f64(ty, &numbers))
                }
                "lambda" => Array::from_host(&Host::from_f64(ty, &[lambda])),
                _ => noise.array(ty, scale),
            }
        })
        .collect()
}

/// Largest error as a part of the largest element, or of `scale` if that is larger.
#[track_caller]
fn error(found: &Array, wanted: &Array, scale: f64) -> f64 {
    error_beside(found.floats(), wanted.floats(), scale)
}

#[derive(Clone, Debug)]
struct Case {
    kernel: DiffAttention,
    batch: usize,
    seq: usize,
    documents: Vec<usize>,
    lambda: f64,
    scale: f64,
    seed: u64,
}

fn kernel(heads: usize, groups: usize, d: usize, cap: f64, tiling: Tiling) -> DiffAttention {
    DiffAttention {
        heads,
        groups,
        head_dim: d,
        value_dim: 2 * d,
        keys: Keys::PerMap,
        norm: HeadNorm::Rms { eps: EPS },
        cap,
        rows: BLOCK_ROWS,
        tiling: Some(tiling),
    }
}

/// Sequences of one to four blocks, every way of walking over up to four groups of up to four heads (two groups in lockstep
/// take all their heads in one step), documents anywhere.
fn cases(blocks: [usize; 2], widths: [usize; 2], scales: Range<f64>) -> impl Strategy<Value = Case> {
    let tiling = (prop::sample::select(blocks.to_vec()), 1usize..=2, 1usize..=2);
    let steps = (1usize..=2, 1usize..=2);
    let sizes = (1usize..=2, 1usize..=4, prop::sample::select(widths.to_vec()));
    let numbers = (prop_oneof![Just(0.0), Just(3.0)], scales, any::<u64>());
    let documents = prop::collection::vec(any::<prop::sample::Index>(), 0..6);
    (tiling, steps, sizes, numbers, documents).prop_map(
        |((block, lockstep, heads), (sets, steps), (batch, blocks, d), (cap, scale, seed), documents)| {
            let (groups, seq) = (lockstep * sets, block * blocks);
            let steps = if lockstep == 1 { steps } else { 1 };
            let tiling = Tiling { block, groups: lockstep, heads };
            Case {
                kernel: kernel(groups * heads * steps, groups, d, cap, tiling),
                batch,
                seq,
                documents: documents.into_iter().map(|token| token.index(batch * seq)).collect(),
                lambda: LAMBDA,
                scale,
                seed,
            }
        },
    )
}

/// How far a result is from the formula's true value.
struct Errors {
    name: String,
    native: f64,
    /// Of the plain form, which rounds after every operation.
    plain: f64,
}

fn errors(case: &Case, dtype: DType) -> Vec<Errors> {
    let given = program(&case.kernel, case.batch, case.seq, dtype);
    println!("{case:?}");
    let mut args = arguments(&given, &case.documents, case.lambda, case.scale, case.seed);
    let truth = evaluate(&given, &args, Rounding::None);
    let plain = evaluate(&given, &args, Rounding::EachOp);
    let (native, forms) = passes::lower(&given, Target::TpuV6e, Some(Form::Native));
    assert!(forms.iter().all(|(_, form)| *form == Form::Native), "{forms:?}");
    let found = evaluate(&native, &args, Rounding::None);
    // The gradient by lambda is one sum, whose terms cancel: with O = O1 - lambda O2 and y = f O it has a term f O2 ct for each
    // element, of which y takes away what lies along O. What is rounded is a part of each.
    let lambda = given.inputs().iter().position(|port| port.name == "lambda").expect("an input");
    let ct = args.last().expect("ct is the last input").floats().to_vec();
    let bare = DiffAttention { norm: HeadNorm::None, ..case.kernel.clone() };
    let bare = program(&bare, case.batch, case.seq, dtype);
    let [o, less] = [case.lambda, case.lambda + 1.0].map(|at| {
        args[lambda] = Array::from_host(&Host::from_f64(given.inputs()[lambda].ty.clone(), &[at]));
        evaluate(&bare, &args, Rounding::None).swap_remove(0).floats().to_vec()
    });
    let width = case.kernel.value_dim;
    let rows = o.chunks(width).zip(less.chunks(width)).zip(ct.chunks(width));
    let of_row = rows.map(|((o, less), ct)| {
        let squares: f64 = o.iter().map(|o| o * o).sum();
        let terms: f64 = o.iter().zip(less).zip(ct).map(|((o, less), ct)| ((o - less) * ct).powi(2)).sum();
        terms / (squares / width as f64 + EPS)
    });
    let terms = of_row.sum::<f64>().sqrt();
    let outputs = given.outputs().iter().zip(&found).zip(&plain).zip(&truth);
    let of_output = outputs.map(|(((port, found), plain), truth)| {
        let scale = if port.name == "d_lambda" { terms } else { 0.0 };
        let [native, plain] = [found, plain].map(|x| error(x, truth, scale));
        println!("{dtype} {} {native:.1e} plain {plain:.1e}", port.name);
        Errors { name: port.name.clone(), native, plain }
    });
    of_output.collect()
}

#[test]
fn attention_is_its_reference() {
    property(48, &cases([8, 16], [8, 16], 0.1..3.0), |case| {
        for Errors { name, native, .. } in errors(&case, DType::F32) {
            assert!(native < 1e-5, "{name}: {native:e}");
        }
    });
}

#[test]
fn attention_in_bf16_is_near_the_truth() {
    let tiling = |block, groups, heads| Tiling { block, groups, heads };
    let case = |kernel, documents: &[usize]| Case {
        kernel,
        batch: 2,
        seq: 128,
        documents: documents.to_vec(),
        lambda: LAMBDA,
        scale: 1.0,
        seed: 7,
    };
    for case in [
        case(kernel(2, 1, 64, 0.0, tiling(32, 1, 2)), &[]),
        case(kernel(4, 2, 64, 0.0, tiling(32, 2, 2)), &[40, 90, 168, 218]),
        case(kernel(2, 2, 64, 20.0, tiling(64, 1, 1)), &[64, 192]),
    ] {
        for Errors { name, native, .. } in errors(&case, DType::Bf16) {
            assert!(native < 2f64.powi(-7), "{name}: {native:e}");
        }
    }
}

/// Small logits and lambda near 1: both maps look everywhere alike, and what is left of `O1 - lambda O2` is 2 % of either.
/// What is rounded is that difference; were each map's weights rounded for a product of their own, y would be off by 6 % and
/// more (8.5 % was measured).
#[test]
fn attention_in_bf16_of_rows_that_look_everywhere() {
    for groups in [1, 2] {
        let case = Case {
            kernel: kernel(2 * groups, groups, 64, 0.0, Tiling { block: 32, groups, heads: 2 }),
            batch: 1,
            seq: 128,
            documents: vec![],
            lambda: 0.98,
            scale: 0.1,
            seed: 8,
        };
        for Errors { name, native, plain } in errors(&case, DType::Bf16) {
            assert!(native < 2f64.powi(-7), "{name}: {native:e}, the plain form {plain:e}");
        }
    }
}

/// Where logits are large, rounding queries and keys is an error of its own, in any form: then the native one is at most
/// three times as far from the truth as the plain one. The gradient by lambda is made of saved results, rounded by 2^-9, whose
/// errors such logits multiply alike: by up to 8, where 16 are allowed.
#[test]
fn attention_in_bf16_is_as_near_as_the_plain_form_anywhere() {
    property(24, &cases([16, 32], [32, 64], 0.1..3.0), |case| {
        for Errors { name, native, plain } in errors(&case, DType::Bf16) {
            let limit = if name == "d_lambda" { 2f64.powi(-5) } else { 2f64.powi(-7).max(3.0 * plain) };
            assert!(plain.is_finite(), "{name}: the plain form is {plain}");
            assert!(native < limit, "{name}: {native:e}, the plain form {plain:e}");
        }
    });
}

/// New tokens of some rows against a cache, of which each row has filled some slots.
#[derive(Clone, Debug)]
struct Cached {
    kernel: CachedAttention,
    rows: usize,
    tokens: usize,
    groups: usize,
    heads_of_group: usize,
    keys: Keys,
    head_dim: usize,
    slots: usize,
    lambda_per_token: bool,
    scale: f64,
    seed: u64,
}

fn cached(widths: [usize; 2], scales: Range<f64>) -> impl Strategy<Value = Cached> {
    let sizes = (1usize..=3, 1usize..=3, 1usize..=2, 1usize..=4, prop::sample::select(widths.to_vec()));
    let slots = (prop::sample::select(vec![8usize, 16, 32]), 1usize..=4);
    let keys = prop_oneof![Just(Keys::PerMap), Just(Keys::Shared)];
    let norm = prop_oneof![Just(HeadNorm::Rms { eps: 1e-5 }), Just(HeadNorm::None)];
    let forms = (keys, norm, prop_oneof![Just(0.0), Just(3.0)], any::<bool>());
    (sizes, slots, forms, scales, any::<u64>()).prop_map(
        |((rows, tokens, groups, heads_of_group, head_dim), slots, forms, scale, seed)| {
            let ((block, blocks), (keys, norm, cap, lambda_per_token)) = (slots, forms);
            Cached {
                kernel: CachedAttention { norm, cap, block: Some(block) },
                rows,
                tokens,
                groups,
                heads_of_group,
                keys,
                head_dim,
                slots: block * blocks,
                lambda_per_token,
                scale,
                seed,
            }
        },
    )
}

impl Cached {
    fn program(&self, dtype: DType) -> Program {
        let &Cached { rows: b, tokens: n, groups: g, heads_of_group: r, head_dim: d, slots, .. } = self;
        let maps = if self.keys == Keys::PerMap { 2 } else { 1 };
        Program::build("cached", |f| {
            let q = f.input("q", Type::new(dtype, [b, n, g * r, 2, d]));
            let keys = f.input("keys", Type::new(dtype, [b * g * maps, d, slots]));
            let values = f.input("values", Type::new(dtype, [b * g * 2, slots, maps * d / 2]));
            let slot = f.input("slot", Type::i32([b]));
            let of_tokens = if self.lambda_per_token { vec![b, n, g * r] } else { vec![] };
            let lambda = f.input("lambda", Type::f32(of_tokens));
            f.output("y", f.kernel(self.kernel.clone(), &[q, keys, values, slot, lambda])[0]);
        })
    }

    fn arguments(&self, program: &Program) -> Vec<Array> {
        let mut noise = Noise(self.seed);
        let slot = Random::new(self.seed).slots(self.rows, self.slots - self.tokens);
        let ports = program.inputs().iter();
        ports
            .map(|port| match &port.name[..] {
                "slot" => Array::from_host(&slot),
                _ => noise.array(port.ty.clone(), self.scale),
            })
            .collect()
    }

    fn errors(&self, dtype: DType) -> Errors {
        let given = self.program(dtype);
        println!("{self:?}");
        let args = self.arguments(&given);
        let truth = evaluate(&given, &args, Rounding::None);
        let plain = evaluate(&given, &args, Rounding::EachOp);
        let (native, forms) = passes::lower(&given, Target::TpuV6e, Some(Form::Native));
        assert!(forms.iter().all(|(_, form)| *form == Form::Native), "{forms:?}");
        let found = evaluate(&native, &args, Rounding::None);
        let [native, plain] = [found, plain].map(|x| error(&x[0], &truth[0], 0.0));
        println!("{dtype} y {native:.1e} plain {plain:.1e}");
        Errors { name: "y".to_owned(), native, plain }
    }
}

#[test]
fn cached_attention_is_its_reference() {
    property(96, &cached([8, 16], 0.1..3.0), |case| {
        let Errors { native, .. } = case.errors(DType::F32);
        assert!(native < 1e-5, "{native:e}");
    });
}

/// As [`attention_in_bf16_is_as_near_as_the_plain_form_anywhere`]; without large logits to 2^-7.
#[test]
fn cached_attention_in_bf16_is_near_the_truth() {
    property(48, &cached([32, 64], 0.1..1.0), |case| {
        let Errors { native, .. } = case.errors(DType::Bf16);
        assert!(native < 2f64.powi(-7), "{native:e}");
    });
    property(48, &cached([32, 64], 1.0..3.0), |case| {
        let Errors { native, plain, .. } = case.errors(DType::Bf16);
        assert!(native < 2f64.powi(-7).max(3.0 * plain), "{native:e}, the plain form {plain:e}");
    });
}

#[test]
fn swiglu_is_its_reference() {
    let (n, m, i) = (512, 128, 512);
    for (dtype, rate, tolerance) in
        [(DType::F32, 0.0, 1e-5), (DType::F32, 0.3, 1e-5), (DType::Bf16, 0.1, 2f64.powi(-7))]
    {
        let program = Program::build("swiglu", |f| {
            let scale = f.input("scale", Type::f32([n]));
            let mut args = vec![f.input("x", Type::new(dtype, [n, m])), scale * 0.5 + 1.0];
            args.extend(["gate", "up"].map(|name| f.input(name, Type::new(dtype, [m, i]))));
            args.push(f.input("down", Type::new(dtype, [i, m])));
            if rate > 0.0 {
                args.push(f.input("rows", Type::new(DType::U32, [n])));
                args.push(f.input("columns", Type::new(DType::U32, [i])));
            }
            for (name, x) in ["y", "g", "u"].into_iter().zip(f.kernel(SwiGlu { rate }, &args)) {
                f.output(name, x);
            }
        });
        let mut noise = Noise(3);
        let word = |noise: &mut Noise| ((noise.next() + 1.0) * 2f64.powi(31)).floor();
        let of = |noise: &mut Noise, ty: &Type| match ty.dtype {
            DType::U32 => {
                let words: Vec<f64> = (0..ty.elements()).map(|_| word(noise)).collect();
                Array::from_host(&Host::from_f64(ty.clone(), &words))
            }
            _ => noise.array(ty.clone(), 0.5),
        };
        let args: Vec<Array> = program.inputs().iter().map(|port| of(&mut noise, &port.ty)).collect();
        let truth = evaluate(&program, &args, Rounding::None);
        let (native, forms) = passes::lower(&program, Target::TpuV6e, Some(Form::Native));
        assert!(forms.iter().all(|(_, form)| *form == Form::Native), "{forms:?}");
        for (found, truth) in evaluate(&native, &args, Rounding::None).iter().zip(&truth) {
            assert_small(&format!("{dtype} rate {rate}"), error(found, truth, 0.0), tolerance);
        }
    }
}

/// In a loop over layers, with two sequences a layer: rows of stacks are read and written where they lie, by forward and
/// backward kernel, also those that others read too.
#[test]
fn attention_works_in_stacks() {
    let (layers, batch, seq, heads, groups, d) = (3, 2, 32, 2, 2, 8);
    let tiling = Tiling { block: 8, groups: 2, heads: 1 };
    let kernel = kernel(heads, groups, d, 0.0, tiling);
    let program = Program::build("layers", |f| {
        let (m, w) = (heads * 2 * d, 2 * d * (heads + groups) + 2 * d * groups);
        let x = f.input("x", Type::f32([batch, seq, m]));
        let weights = f.input("weights", Type::f32([layers, m, w]));
        let table = |name: &str| f.input(name, Type::f32([seq, d / 2]));
        let (cos, sin) = (table("cos"), table("sin"));
        let lambda = f.input("lambda", Type::scalar(DType::F32));
        let starts = f.input("starts", Type::i32([batch, seq]));
        let (y, _) = f.scan(ScanOptions::over(layers), &[x], &[weights], |g, x, weights| {
            let rows = x[0].reshape([batch * seq, m]).matmul(weights[0]);
            let shared = [cos, sin, lambda, starts].map(|tensor| g.capture(tensor));
            let args = [&[rows.reshape([batch, seq, w])], &shared[..]].concat();
            // y is saved for its square, and read by the kernel.
            let y = g.kernel(kernel.clone(), &args)[0];
            (vec![x[0] + y * y * 0.1], vec![])
        });
        let ct = f.input("ct", y[0].ty());
        let loss = (y[0] * ct).sum_all();
        f.output("y", y[0]);
        for (name, grad) in ["dx", "d_weights"].into_iter().zip(grad(loss, &[x, weights])) {
            f.output(name, grad);
        }
    });
    let args = arguments(&program, &[11, 32 + 11], LAMBDA, 1.0, 5);
    let truth = evaluate(&program, &args, Rounding::None);
    let (native, _) = passes::lower(&program, Target::TpuV6e, Some(Form::Native));
    let text = native.text(Locations::Omit);
    assert_eq!(text.matches("@tpu_custom_call").count(), 2);
    // y, O2 and the statistics are written into stacks by the call, and qkv before it.
    assert_eq!(text.matches("@AllocateBuffer").count(), 4);
    for ((port, found), truth) in
        program.outputs().iter().zip(&evaluate(&native, &args, Rounding::None)).zip(&truth)
    {
        assert_small(&port.name, error(found, truth, 0.0), 1e-5);
    }
}
