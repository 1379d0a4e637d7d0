//! The native forms, run by the tile interpreter, against the references: the numbers of the very programs that a TPU gets.

use engine::{
    Array, DType, Host, KernelChoice, Locations, Program, Rounding, ScanOptions, Target, Type, evaluate,
    grad, passes,
};
use kernels::{DiffAttention, HeadNorm, Keys, ROWS, SwiGlu, Tiling};

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

/// Arguments with documents that begin at the given positions of every sequence.
fn arguments(program: &Program, documents: &[usize], seed: u64) -> Vec<Array> {
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
                    let start =
                        |i: usize| documents.iter().rev().find(|&&d| d <= i % seq).copied().unwrap_or(0);
                    let numbers: Vec<f64> = (0..ty.elements()).map(|i| start(i) as f64).collect();
                    Array::from_host(&Host::from_f64(ty, &numbers))
                }
                "lambda" => Array::from_host(&Host::from_f64(ty, &[0.7])),
                _ => noise.array(ty, 1.0),
            }
        })
        .collect()
}

/// Largest error as a part of the largest element, or of `scale` if that is larger.
fn error(found: &Array, wanted: &Array, scale: f64) -> f64 {
    let top = wanted.floats().iter().fold(scale, |top: f64, x| top.max(x.abs()));
    let worst = |worst: f64, x: f64| if x > worst || x.is_nan() { x } else { worst };
    found.floats().iter().zip(wanted.floats()).map(|(a, b)| (a - b).abs()).fold(0.0, worst) / top
}

struct Case {
    kernel: DiffAttention,
    batch: usize,
    seq: usize,
    documents: Vec<usize>,
}

fn case(
    heads: usize,
    groups: usize,
    d: usize,
    cap: f64,
    tiling: Tiling,
    seq: usize,
    documents: &[usize],
) -> Case {
    let kernel = DiffAttention {
        heads,
        groups,
        head_dim: d,
        value_dim: 2 * d,
        keys: Keys::PerMap,
        norm: HeadNorm::Rms { eps: 1e-5 },
        cap,
        rows: ROWS,
        tiling: Some(tiling),
    };
    Case { kernel, batch: 2, seq, documents: documents.to_vec() }
}

fn check(case: &Case, dtype: DType, tolerance: f64) {
    let program = |dtype| program(&case.kernel, case.batch, case.seq, dtype);
    let given = program(dtype);
    let args = arguments(&given, &case.documents, 7);
    let truth = evaluate(&given, &args, Rounding::None);
    let (native, forms) = passes::lower(&given, Target::TpuV6e, KernelChoice::Native);
    assert!(forms.iter().all(|(_, form)| *form == passes::Form::Native), "{forms:?}");
    let found = evaluate(&native, &args, Rounding::None);
    // lambda's gradient is a sum over all elements whose terms cancel: its error is a part of theirs.
    let ct = args.last().expect("ct is the last input").floats();
    let terms: f64 = truth[0].floats().iter().zip(ct).map(|(y, ct)| (y * ct).abs()).sum();
    for ((port, found), truth) in given.outputs().iter().zip(&found).zip(&truth) {
        let error = error(found, truth, if port.name == "d_lambda" { terms.sqrt() } else { 0.0 });
        println!("{dtype} {} {error:.1e}", port.name);
        assert!(error < tolerance, "{}: {error:e}", port.name);
    }
}

#[test]
fn attention_is_its_reference() {
    let tiling = |block, groups, heads| Tiling { block, groups, heads };
    let cases = [
        case(1, 1, 8, 0.0, tiling(8, 1, 1), 8, &[]),
        case(2, 1, 8, 0.0, tiling(8, 1, 2), 24, &[]),
        case(6, 2, 8, 0.0, tiling(16, 2, 3), 64, &[]),
        case(6, 2, 8, 0.0, tiling(16, 2, 3), 64, &[5, 30, 48]),
        case(6, 2, 8, 0.0, tiling(16, 1, 1), 48, &[16, 31]),
        case(4, 2, 16, 3.0, tiling(8, 2, 2), 32, &[3, 4, 5, 20]),
        case(4, 4, 8, 0.0, tiling(8, 2, 1), 24, &[1]),
    ];
    for case in &cases {
        println!("{:?} seq {} documents {:?}", case.kernel, case.seq, case.documents);
        check(case, DType::F32, 1e-5);
    }
}

#[test]
fn attention_in_bf16_is_near_the_truth() {
    let tiling = |block, groups, heads| Tiling { block, groups, heads };
    let cases = [
        case(2, 1, 64, 0.0, tiling(32, 1, 2), 128, &[]),
        case(4, 2, 64, 0.0, tiling(32, 2, 2), 128, &[40, 90]),
        case(2, 2, 64, 20.0, tiling(64, 1, 1), 128, &[64]),
    ];
    for case in &cases {
        println!("{:?} seq {} documents {:?}", case.kernel, case.seq, case.documents);
        check(case, DType::Bf16, 2f64.powi(-7));
    }
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
            if rate > 0.0 {
                args.push(f.input("rows", Type::new(DType::U32, [n])));
                args.push(f.input("columns", Type::new(DType::U32, [i])));
            }
            for (name, x) in ["h", "g", "u"].into_iter().zip(f.kernel(SwiGlu { rate }, &args)) {
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
        let (native, forms) = passes::lower(&program, Target::TpuV6e, KernelChoice::Native);
        assert!(forms.iter().all(|(_, form)| *form == passes::Form::Native), "{forms:?}");
        for (found, truth) in evaluate(&native, &args, Rounding::None).iter().zip(&truth) {
            let error = error(found, truth, 0.0);
            println!("{dtype} rate {rate} {error:.1e}");
            assert!(error < tolerance, "{error:e}");
        }
    }
}

/// In a loop over layers, with two sequences a layer: rows of stacks are read and written where they lie, by forward and
/// backward kernel, also those that others read too.
#[test]
fn attention_works_in_stacks() {
    let (layers, batch, seq, heads, groups, d) = (3, 2, 32, 2, 2, 8);
    let tiling = Tiling { block: 8, groups: 2, heads: 1 };
    let kernel = case(heads, groups, d, 0.0, tiling, seq, &[]).kernel;
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
    let args = arguments(&program, &[11], 5);
    let truth = evaluate(&program, &args, Rounding::None);
    let (native, _) = passes::lower(&program, Target::TpuV6e, KernelChoice::Native);
    let text = native.text(Locations::Omit);
    assert_eq!(text.matches("@tpu_custom_call").count(), 2);
    // y, O2 and the statistics are written into stacks by the call, and qkv before it.
    assert_eq!(text.matches("@AllocateBuffer").count(), 4);
    for ((port, found), truth) in
        program.outputs().iter().zip(&evaluate(&native, &args, Rounding::None)).zip(&truth)
    {
        let error = error(found, truth, 0.0);
        println!("{} {error:.1e}", port.name);
        assert!(error < 1e-5, "{}: {error:e}", port.name);
    }
}
