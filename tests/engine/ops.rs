//! Every op: the evaluator against the CPU plugin, gradients against finite differences, and what is refused.

mod errors;
mod table;

use engine::ops::Op;
use engine::{Array, DType, Form, Func, Host, Program, Target, Type, grad, passes, threefry};
use std::cell::RefCell;
use std::collections::BTreeSet;
use table::{Gradient, Row, row_of, table, variants};
use tests::{Case, Sample, assert_agreement, evaluated, gradient_of, lowered, panic_of, property, seeds};

/// One program of several rows' cases.
fn program_of(rows: &[&Row], dtype: DType, seed: u64, gradient: bool) -> Sample {
    let args = RefCell::new(Vec::new());
    let program = Program::build("rows", |f| {
        for (row, place) in rows.iter().zip(0..) {
            let c = Case::new(f, row.name, dtype, seed + place);
            // Gradients of products grow with the number of elements, and with them the time to compile them.
            let c = if gradient { c.differentiable(2) } else { c };
            (row.build)(&c);
            if gradient {
                c.differentiate();
            }
            c.declare_outputs();
            args.borrow_mut().extend(c.args());
        }
    });
    Sample { program, args: args.into_inner() }
}

/// All rows that take a type, in one program; kernels are lowered, nothing else is changed.
fn check_on_cpu(dtype: DType) {
    let rows = table();
    let rows: Vec<&Row> = rows.iter().filter(|row| row.dtypes.contains(&dtype)).collect();
    let Sample { program, args } = program_of(&rows, dtype, 1000, false);
    assert_eq!(passes::verify(&program), Ok(()));
    let (printed, _) = passes::select(&program, Target::Cpu, None);
    assert_agreement(&printed, &program, &args);
}

macro_rules! on_cpu {
    ($($name:ident $dtype:ident),*) => { $(
        #[test]
        fn $name() {
            check_on_cpu(DType::$dtype);
        }
    )* };
}

on_cpu! {
    f64_ops_agree_with_the_cpu F64, f32_ops_agree_with_the_cpu F32, bf16_ops_agree_with_the_cpu Bf16,
    f16_ops_agree_with_the_cpu F16, i32_ops_agree_with_the_cpu I32, u32_ops_agree_with_the_cpu U32,
    i64_ops_agree_with_the_cpu I64, u8_ops_agree_with_the_cpu U8, bool_ops_agree_with_the_cpu Bool
}

#[test]
fn folded_programs_mean_the_same() {
    for dtype in DType::ALL {
        let rows = table();
        let rows: Vec<&Row> = rows.iter().filter(|row| row.dtypes.contains(&dtype)).collect();
        let Sample { program, args } = program_of(&rows, dtype, 77, false);
        let (before, after) = (evaluated(&program, &args), evaluated(&passes::simplify(&program), &args));
        for ((port, a), b) in program.outputs().iter().zip(&before).zip(&after) {
            assert_eq!(tests::difference(b, a), None, "{dtype} {}", port.name);
        }
    }
}

fn differentiable(row: &Row) -> bool {
    row.dtypes.contains(&DType::F64) && matches!(row.gradient, Gradient::Exact | Gradient::Zero)
}

#[test]
fn gradients_equal_finite_differences() {
    for row in table().iter().filter(|row| differentiable(row)) {
        property(32, &seeds(), |(seed, extent)| {
            let gradient = gradient_of(seed, extent, |c| (row.build)(c));
            let failure = panic_of(|| gradient.check(seed));
            assert!(failure.is_none(), "{}: {}", row.name, failure.unwrap().message);
        });
    }
}

#[test]
fn gradients_agree_with_the_cpu() {
    let rows = table();
    let rows: Vec<&Row> = rows.iter().filter(|row| differentiable(row)).collect();
    program_of(&rows, DType::F64, 5000, true).check_on_cpu();
}

/// What a base and an exponent of one number each give: the power and its two derivatives.
#[test]
fn powers_have_their_derivatives_at_zero_and_below() {
    const NAN: f64 = f64::NAN;
    let cases = [
        // base, exponent, power, by the base, by the exponent
        [0.0, 0.0, 1.0, 0.0, 0.0],
        [-0.0, 0.0, 1.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 1.0, 0.0],
        [0.0, 2.0, 0.0, 0.0, 0.0],
        [0.0, 0.5, 0.0, f64::INFINITY, 0.0],
        [2.0, 0.0, 1.0, 0.0, std::f64::consts::LN_2],
        [2.0, 3.0, 8.0, 12.0, 8.0 * std::f64::consts::LN_2],
        // Below 0 there are powers at integers only, so no slope between them.
        [-2.0, 0.0, 1.0, 0.0, NAN],
        [-2.0, 1.0, -2.0, 1.0, NAN],
        [-2.0, 3.0, -8.0, 12.0, NAN],
        [-2.0, -1.0, -0.5, -0.25, NAN],
        [-2.0, 0.5, NAN, NAN, NAN],
    ];
    let column = |i: usize| cases.map(|case| case[i]);
    let args = [0, 1].map(|i| Array::from_host(&Host::new([cases.len()], &column(i))));
    let built = |constant: bool| {
        Program::build("powers", |f| {
            let [a, b] = [0, 1].map(|i| match constant {
                true => f.constant(&args[i].to_host()),
                false => f.input(["base", "exponent"][i], args[i].ty.clone()),
            });
            let y = a.pow(b);
            f.output("power", y);
            for (name, slope) in ["by base", "by exponent"].into_iter().zip(grad(y.sum_all(), &[a, b])) {
                f.output(name, slope);
            }
        })
    };
    let (program, folded) = (built(false), passes::simplify(&built(true)));
    let of_nothing: [Array; 0] = [];
    for found in [
        evaluated(&program, &args),
        tests::run_on_cpu(&lowered(&program), &args),
        evaluated(&folded, &of_nothing),
    ] {
        for (i, found) in found.iter().enumerate() {
            let wanted = Array::from_host(&Host::new([cases.len()], &column(2 + i)));
            assert_eq!(tests::difference(found, &wanted), None, "output {i}");
        }
    }
}

/// `argmax`, the first of `top_k` and the last of an ascending sort agree on NaN of both signs, on both zeros and on ties.
#[test]
fn the_largest_is_the_same_for_all_who_ask() {
    let hard = [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1.0];
    let rows: Vec<f64> =
        (0..hard.len().pow(3)).flat_map(|i| [i % 7, i / 7 % 7, i / 49].map(|k| hard[k])).collect();
    for dtype in [DType::F64, DType::F32, DType::Bf16, DType::F16] {
        let arg = Array::from_host(&Host::from_f64(Type::new(dtype, [rows.len() / 3, 3]), &rows));
        let program = Program::build("largest", |f| {
            let x = f.input("x", arg.ty.clone());
            f.output("argmax", x.argmax(1));
            f.output("top_k", x.top_k(1).1.reshape([x.dim(0)]));
            // Stable: the last of the equal ones is the first of the reversed row.
            let places = f.iota(Type::i32(x.shape()), 1);
            let ascending = x.reverse(&[1]).sort(&[places.reverse(&[1])], 1, engine::Direction::Forward)[1];
            f.output("last", ascending.slice_axis(1, 2, 3).reshape([x.dim(0)]));
        });
        let args = [arg];
        for found in [evaluated(&program, &args), tests::run_on_cpu(&lowered(&program), &args)] {
            assert_eq!(found[1], found[0], "{dtype}");
            assert_eq!(found[2], found[0], "{dtype}");
        }
    }
}

#[test]
fn a_sum_with_zero_keeps_its_sign_of_zero() {
    let program = Program::build("zeros", |f| {
        let x = f.input("x", Type::f32([1]));
        for (i, sum) in [x + 0.0, 0.0 + x, x + -0.0, -0.0 + x, x - 0.0, x - -0.0].into_iter().enumerate() {
            f.output(&format!("y{i}"), sum);
        }
        let count = f.input("n", Type::i32([1]));
        f.output("n", count + 0);
    });
    let args = [Array::from_host(&Host::new([1], &[-0.0f32])), Array::from_host(&Host::new([1], &[7i32]))];
    let folded = passes::simplify(&program);
    let negative =
        |found: &[Array]| found[..6].iter().map(|y| y.floats()[0].is_sign_negative()).collect::<Vec<_>>();
    let wanted = [false, false, true, true, true, false];
    assert_eq!(negative(&evaluated(&program, &args)), wanted);
    assert_eq!(negative(&evaluated(&folded, &args)), wanted);
    // What changes nothing is gone.
    let sums = folded.main().nodes().iter().filter(|node| matches!(node.op, Op::Binary(_))).count();
    assert_eq!(sums, 3, "x + 0.0, 0.0 + x, x - -0.0");
}

/// An op that is piecewise constant leaves the gradient of the other terms as it is.
#[test]
fn gradients_of_steps_are_zero() {
    for row in table().iter().filter(|row| matches!(row.gradient, Gradient::Zero | Gradient::Stopped)) {
        if !row.dtypes.contains(&DType::F64) {
            continue;
        }
        Program::build("zero", |f| {
            let c = Case::new(f, "case", DType::F64, 3).differentiable(4);
            (row.build)(&c);
            let (loss, inputs) = (c.loss(), c.wanted());
            let message = panic_of(|| drop(grad(loss, &inputs))).expect("nothing flows").message;
            let nothing = message.contains("depends on none of") || message.contains("gets no gradient");
            assert!(nothing, "{}: {message}", row.name);
            c.declare_outputs();
            f.output("loss", loss);
        });
    }
}

#[test]
fn what_has_no_gradient_says_so() {
    for row in &table() {
        let Gradient::Refused(reason) = row.gradient else { continue };
        Program::build("refused", |f| {
            // of two bytes: bf16 is another float type of that size
            let c = Case::new(f, "case", DType::F16, 3).differentiable(4);
            (row.build)(&c);
            let loss = c.outputs().into_iter().map(|x| c.weighted(x)).reduce(|sum, x| sum + x).unwrap();
            let message = panic_of(|| drop(grad(loss, &c.wanted()))).expect("it has no gradient").message;
            let line = format!(" at {}", file!().replace(".rs", "/table.rs"));
            let said = message.starts_with(row.name) && message.contains(&line) && message.contains(reason);
            assert!(said, "{message}");
            f.output("loss", loss);
        });
    }
}

#[test]
fn host_numbers_are_rounded_once() {
    for (dtype, bits) in [(DType::Bf16, 8), (DType::F16, 11)] {
        let step = 2f64.powi(1 - bits);
        for (x, wanted) in [
            (1.0 + 0.5 * step, 1.0),
            (1.0 + 0.5 * step + 2f64.powi(-40), 1.0 + step),
            (1.0 + 1.5 * step - 2f64.powi(-40), 1.0 + step),
            (-1.0 - 0.5 * step - 2f64.powi(-50), -1.0 - step),
            (1e300, f64::INFINITY),
            (-1e-300, 0.0),
        ] {
            assert_eq!(Host::from_f64(Type::new(dtype, [1]), &[x]).to_f64(), [wanted], "{x:e} in {dtype}");
        }
    }
}

#[test]
fn threefry_gives_the_known_answers() {
    // Of the Random123 distribution; JAX reproduces them too.
    let program = Program::build("threefry", |f| {
        let word = |name| f.input(name, Type::new(DType::U32, [3]));
        let [a, b] = threefry([word("key0"), word("key1")], [word("counter0"), word("counter1")]);
        f.output("a", a);
        f.output("b", b);
    });
    let args = [[0, !0, 0x1319_8a2e], [0, !0, 0x0370_7344], [0, !0, 0x243f_6a88], [0, !0u32, 0x85a3_08d3]];
    let args = args.map(|words| Array::from_host(&Host::new([3], &words)));
    let wanted = [[0x6b20_0159, 0x1cb9_96fc, 0xc492_3a9cu32], [0x99ba_4efe, 0xbb00_2be7, 0x483d_f7a0]];
    let wanted = wanted.map(|words| Array::from_host(&Host::new([3], &words)));
    assert_eq!(evaluated(&program, &args), wanted);
    assert_eq!(tests::run_on_cpu(&lowered(&program), &args), wanted);
}

fn collect(func: &Func, found: &mut BTreeSet<&'static str>) {
    for node in func.nodes() {
        found.insert(row_of(&node.op));
        node.op.bodies().into_iter().for_each(|body| collect(body, found));
    }
}

/// Every variant of `Op` has a row, and every row builds its op. With `--nocapture` it prints the table of the docs.
#[test]
fn no_op_is_missing_from_the_table() {
    let rows = table();
    let mut met = BTreeSet::new();
    println!("| op | element types | infer | vjp | print | eval | tested |\n|---|---|---|---|---|---|---|");
    for row in &rows {
        let mut found = BTreeSet::new();
        for &dtype in row.dtypes {
            collect(program_of(&[row], dtype, 9, false).program.main(), &mut found);
        }
        assert!(
            found.contains(row.name) || row.name == "threefry",
            "the row of {} builds {found:?}",
            row.name
        );
        met.extend(found);
        let dtypes: Vec<&str> = row.dtypes.iter().map(|dtype| dtype.name()).collect();
        let (vjp, tested) = match row.gradient {
            Gradient::Exact => ("yes", "CPU plugin, finite differences"),
            Gradient::Zero => ("zero", "CPU plugin, finite differences"),
            Gradient::Stopped => ("stopped", "CPU plugin, refusal"),
            Gradient::Constant => ("no operands", "CPU plugin"),
            Gradient::Refused(_) => ("refused", "CPU plugin, refusal"),
        };
        println!("| {} | {} | yes | {vjp} | yes | yes | {tested} |", row.name, dtypes.join(" "));
    }
    // A custom call has no meaning outside its target: its text is what can be checked here.
    let kernel: Vec<&Row> = rows.iter().filter(|row| row.name == "kernel_call").collect();
    let program = program_of(&kernel, DType::F32, 9, false).program;
    let (native, _) = passes::lower(&program, Target::TpuV6e, Some(Form::Native));
    collect(native.main(), &mut met);
    println!("| custom_call | any | yes | refused | yes | refused | text |");

    let members = rows.iter().map(|row| row.name);
    let missing: Vec<&str> =
        variants().into_iter().chain(members).filter(|name| !met.contains(name)).collect();
    assert_eq!(
        missing,
        ["threefry"],
        "threefry is a composite, every other name is an op that some row builds"
    );
}

#[test]
fn a_gradient_rule_works_on_the_line_of_its_op() {
    let program = Program::build("lines", |f| {
        let x = f.input("x", Type::f32([3]));
        let y = x.tanh().sum_all();
        f.output("dx", grad(y, &[x])[0]);
    });
    let line = |node: &engine::Node| format!("{}:{}", node.at.file(), node.at.line());
    let forward = program.main().nodes().iter().find(|node| matches!(node.op, Op::Unary(_))).map(line);
    let backward =
        program.main().nodes().iter().rev().find(|node| matches!(node.op, Op::Binary(_))).map(line);
    assert!(forward.is_some() && forward == backward, "{forward:?} {backward:?}");
}
