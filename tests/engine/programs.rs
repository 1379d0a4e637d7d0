//! Programs as a whole: ports and donation, compiled arguments, the executable cache, passes, and where errors point.

use engine::passes;
use engine::pjrt::{Arg, CompileOptions, ExecutableCache, Lookup};
use engine::{
    Array, Backward, Builder, CustomCall, DType, Form, Func, Host, Kernel, Locations, Program, Rounding,
    Save, ScanOptions, ShapeError, Target, Tensor, Type, evaluate, grad, grad_into,
};
use tempfile::TempDir;
use tests::close::{F32, assert_close};
use tests::{cpu, message_of, mlp_step, numbers, tpu};

/// The panic of building a program from a body.
fn refused(body: impl for<'f> FnOnce(&'f Builder<'f>) + std::panic::UnwindSafe) -> String {
    message_of(|| drop(Program::build("p", body)))
}

fn args(program: &Program) -> Vec<Host> {
    (0..).zip(program.inputs()).map(|(seed, port)| numbers(port.ty.clone(), seed)).collect()
}

#[test]
fn a_donated_input_becomes_the_output() {
    let client = cpu();
    let program = mlp_step();
    let compiled = program.compile(client).unwrap();
    let weights = (4 * 16 + 16 * 2) * 4;
    assert_eq!(compiled.loaded().memory_use().unwrap().aliased, weights);
    let tpu = program.compile_for(&tpu("v6e:1x1"), &program.options()).unwrap().memory_use().unwrap();
    assert!(tpu.aliased >= weights, "{tpu}");

    let hosts = args(&program);
    let device = &client.devices()[0];
    let buffer = |i: usize| client.to_device(&hosts[i], device).unwrap();
    let [x, y, w1, w2] = [0, 1, 2, 3].map(buffer);
    let places = [w1.address().unwrap(), w2.address().unwrap()];
    let args = [Arg::Keep(&x), Arg::Keep(&y), Arg::Donate(w1), Arg::Donate(w2)];
    let results = compiled.run(args).unwrap();
    assert_eq!([results[1].address().unwrap(), results[2].address().unwrap()], places);

    let arrays: Vec<Array> = hosts.iter().map(Array::from_host).collect();
    let wanted = evaluate(&program, &arrays, Rounding::EachOp);
    for (found, wanted) in results.iter().zip(&wanted) {
        let (found, wanted) = (found.to_host().unwrap().to_f64(), wanted.to_host().to_f64());
        // Two products, forward and backward: sums of 16 terms, four in a row.
        assert_close("in place", &found, &wanted, 4.0 * 4.0 * F32);
    }
}

#[test]
fn donations_that_cannot_be_used_do_not_build() {
    let wrong_type = refused(|g| {
        let x = g.input("x", Type::f32([2]));
        g.output_over("y", x.sum_all(), x);
    });
    assert_eq!(wrong_type, "output `y` (f32[]) cannot be written over input `x` (f32[2]): the types differ");
    let twice = refused(|g| {
        let x = g.input("x", Type::f32([2]));
        g.output_over("y", x + 1.0, x);
        g.output_over("z", x + 2.0, x);
    });
    assert_eq!(twice, "output `z` cannot be written over input `x`: another output is already");
    let no_input = refused(|g| {
        let x = g.input("x", Type::f32([2]));
        g.output_over("y", x + 1.0, x.exp());
    });
    assert_eq!(
        no_input,
        "output `y`: it cannot be written over the result of exponential, which is not an input of this program"
    );
    let body = refused(|g| {
        let x = g.input("x", Type::f32([2]));
        g.call("f", Save::Everything, &[x], |f, v| {
            f.output_over("y", v[0] + 1.0, v[0]);
            vec![v[0]]
        });
    });
    assert!(body.contains("cannot be written over parameter 0 of a body"), "{body}");
}

#[test]
fn ports_belong_to_programs_and_have_names_of_their_own() {
    let inputs = refused(|g| {
        g.input("x", Type::f32([2]));
        g.input("x", Type::f32([2]));
    });
    assert_eq!(inputs, "input `x`: there is another one of this name");
    let outputs = refused(|g| {
        let x = g.input("x", Type::f32([2]));
        g.output("y", x);
        g.output("y", x);
    });
    assert_eq!(outputs, "output `y`: there is another one of this name");
    let nothing = refused(|g| {
        g.input("x", Type::f32([]));
    });
    assert_eq!(nothing, "program p: it has no output");
    let input_in_body = refused(|g| {
        let x = g.input("x", Type::f32([2]));
        g.call("f", Save::Everything, &[x], |f, v| vec![v[0] + f.input("hidden", Type::f32([2]))]);
    });
    assert!(input_in_body.starts_with("input `hidden`: a body has no inputs"), "{input_in_body}");
    let output_in_body = refused(|g| {
        let x = g.input("x", Type::f32([2, 3]));
        g.scan(ScanOptions::over(2), &[], &[x], |f, _, row| {
            f.output("lost", row[0]);
            (vec![], vec![row[0]])
        });
    });
    assert!(output_in_body.starts_with("output `lost`: a body has no outputs"), "{output_in_body}");
}

#[test]
fn arguments_are_checked_against_the_ports() {
    let client = cpu();
    let program = mlp_step();
    let compiled = program.compile(client).unwrap();
    let hosts = args(&program);
    let device = &client.devices()[0];
    let buffers: Vec<_> = hosts.iter().map(|host| client.to_device(host, device).unwrap()).collect();
    let error = compiled.run(buffers.iter().map(Arg::Keep)).unwrap_err();
    assert_eq!(error.to_string(), "running mlp_step: input `params.w1` is written over: donate its buffer");
    let error = compiled.run(buffers.iter().take(3).map(Arg::Keep)).unwrap_err();
    assert_eq!(error.to_string(), "running mlp_step: got 3 arguments, wanted 4");
    let error = compiled.run([0, 0, 2, 3].map(|i| Arg::Keep(&buffers[i]))).unwrap_err();
    assert_eq!(error.to_string(), "running mlp_step: input `y` is f32[8,2], got f32[8,4]");
    // A refused run takes nothing away.
    assert_eq!(buffers[2].to_host().unwrap(), hosts[2]);
    let error = compiled.call(&hosts[..2]).unwrap_err();
    assert_eq!(error.to_string(), "running mlp_step: got 2 arguments, wanted 4");
    let mut swapped = hosts.clone();
    swapped.swap(0, 1);
    let error = compiled.call(&swapped).unwrap_err();
    assert_eq!(error.to_string(), "running mlp_step: input `x` is f32[8,4], got f32[8,2]");
    assert_eq!(compiled.call(&hosts).unwrap().len(), 3);
}

#[test]
fn equal_programs_share_an_executable_on_disk() {
    let client = cpu();
    let folder = TempDir::new().unwrap();
    let cache = ExecutableCache::new(folder.path(), 1 << 30);
    let compile = |program: &Program, options: &CompileOptions| {
        let (compiled, lookup) = program.compile_cached(client, options, &cache).unwrap();
        (compiled.call(&args(program)).unwrap(), lookup)
    };
    let single = CompileOptions::single();
    let (first, miss) = compile(&mlp_step(), &single);
    let (second, hit) = compile(&mlp_step(), &single);
    assert_eq!((miss, hit), (Lookup::Miss, Lookup::Hit));
    assert_eq!(first, second);
    let elsewhere = CompileOptions { devices: Some(vec![vec![1]]), ..CompileOptions::single() };
    assert_eq!(compile(&mlp_step(), &elsewhere).1, Lookup::Miss);
    // One constant more is another program.
    let other = Program::build("mlp_step", |g| {
        let x = g.input("x", Type::f32([2]));
        g.output("y", x + 1.0);
    });
    assert_eq!(compile(&other, &single).1, Lookup::Miss);
}

/// `x * 2`, in every form.
#[derive(Debug)]
struct Double {
    tile: usize,
}

impl Kernel for Double {
    fn name(&self) -> String {
        format!("double_{}", self.tile)
    }
    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        match args {
            [x] if x.rank() == 1 && x.shape[0].is_multiple_of(self.tile) => Ok(vec![x.clone()]),
            [x] => Err(ShapeError(format!("{x} is not a multiple of {}", self.tile))),
            _ => Err(ShapeError("wants one operand".to_owned())),
        }
    }
    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        vec![args[0] * 2.0]
    }
    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], cts: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        // Its own backward: the same kernel.
        Backward::Grads(vec![Some(cts[0].builder().kernel(Double { tile: self.tile }, cts)[0])])
    }
    fn differentiable(&self) -> usize {
        1
    }
    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }
    fn lower(&self, args: &[Type], target: Target, choice: Option<Form>) -> Option<(Form, Func)> {
        match (target, choice) {
            (_, Some(Form::Reference)) => None,
            (Target::TpuV6e, None | Some(Form::Native)) => Some((
                Form::Native,
                CustomCall {
                    target: "tpu_custom_call".to_owned(),
                    backend_config: String::new(),
                    kernel_name: self.name(),
                    results: args.to_vec(),
                    aliases: vec![],
                    interpreter: None,
                    in_place: None,
                }
                .alone(args),
            )),
            _ => Some((Form::Portable, Func::build(args, |_, x| vec![x[0] + x[0]]))),
        }
    }
}

fn with_kernels() -> Program {
    Program::build("kernels", |g| {
        let x = g.input("x", Type::f32([8]));
        let y = g.kernel(Double { tile: 4 }, &[x])[0];
        let (rows, _) = g.scan(ScanOptions::over(3), &[y], &[], |g, carry, _| {
            (vec![g.kernel(Double { tile: 8 }, carry)[0] * 0.25], vec![])
        });
        let loss = rows[0].sum_all();
        g.output("loss", loss);
        g.output("d_x", grad(loss, &[x])[0]);
    })
}

#[test]
fn kernels_take_the_form_that_fits_the_target() {
    let forms = |target, choice| passes::lower(&with_kernels(), target, choice).1;
    let both = |form| vec![("double_4".to_owned(), form), ("double_8".to_owned(), form)];
    for target in [Target::Cpu, Target::Cuda] {
        assert_eq!(forms(target, None), both(Form::Portable));
    }
    assert_eq!(forms(Target::TpuV6e, None), both(Form::Native));
    assert_eq!(forms(Target::TpuV6e, Some(Form::Portable)), both(Form::Portable));
    assert_eq!(forms(Target::TpuV6e, Some(Form::Reference)), both(Form::Reference));

    let native = passes::lower(&with_kernels(), Target::TpuV6e, None).0.text(Locations::Omit);
    // Four calls of two functions, each of which calls the target's kernel.
    assert_eq!(native.matches("func.call @double_").count(), 4, "{native}");
    assert_eq!(native.matches("custom_call @tpu_custom_call").count(), 2, "{native}");
    let client = cpu();
    for choice in [None, Some(Form::Reference)] {
        let (program, _) = passes::lower(&with_kernels(), Target::Cpu, choice);
        let found = program.compile(client).unwrap().call(&[Host::new([8], &[1f32; 8])]).unwrap();
        // 2 (2/4)^3 each
        assert_eq!(found, [Host::scalar(2f32), Host::new([8], &[0.25f32; 8])]);
    }
    let tile = refused(|g| {
        let x = g.input("x", Type::f32([6]));
        g.output("y", g.kernel(Double { tile: 4 }, &[x])[0]);
    });
    assert!(tile.starts_with("double_4(f32[6]): f32[6] is not a multiple of 4 (at "), "{tile}");
}

#[test]
fn folding_leaves_what_constants_do_not_decide() {
    let program = Program::build("folded", |g| {
        let x = g.input("x", Type::f32([3]));
        let two = g.scalar(1f32) + 1.0;
        let ramp = g.constant(&Host::new([3], &[0f32, 1.0, 2.0])) * two;
        g.output("same", (x + -0.0) * 1.0 / 1.0 - 0.0);
        g.output("six", x + ramp * 3.0);
        let (carry, _) = g.scan(ScanOptions::over(2), &[x], &[], |g, carry, _| {
            (vec![carry[0] * (g.scalar(2f32) * 2.0)], vec![])
        });
        g.output("scanned", carry[0]);
        let ones = g.full(Type::f32([2000, 3]), 1.0);
        g.output("large", ones.transpose(&[1, 0]));
        g.output("kept", ones.named("ones") * 3.0);
    });
    let folded = passes::simplify(&program);
    passes::verify(&folded).unwrap();
    let host = Host::new([3], &[1f32, -2.0, 0.5]);
    let client = cpu();
    let run = |program: &Program| program.compile(client).unwrap().call(std::slice::from_ref(&host)).unwrap();
    assert_eq!(run(&folded), run(&program));
    assert_eq!(run(&folded)[0], host);
    let count = |program: &Program, op: &str| program.text(Locations::Omit).matches(op).count();
    for (op, before, after) in
        [("stablehlo.divide", 1, 0), ("stablehlo.subtract", 1, 0), ("stablehlo.transpose", 1, 0)]
    {
        assert_eq!((count(&program, op), count(&folded, op)), (before, after), "{op}");
    }
    // x + ramp, the loop's product and its count, and the product with the named value.
    assert_eq!((count(&folded, "stablehlo.multiply"), count(&folded, "stablehlo.add ")), (2, 2));
    assert_eq!(passes::simplify(&folded), folded);
    // A division that is not exact must stay as the device would do it.
    let zero = Program::build("zero", |g| {
        let x = g.input("x", Type::f32([]));
        g.output("y", x * (g.scalar(1f32) / 3.0));
    });
    assert!(passes::simplify(&zero).text(Locations::Omit).contains("dense<0x3EAAAAAB>"));
}

#[test]
fn what_has_no_native_form_is_named() {
    let program = with_kernels();
    assert_eq!(passes::require_native(&program, Target::TpuV6e), Ok(()));
    for target in [Target::Cpu, Target::Cuda, Target::OtherTpu] {
        let message = passes::require_native(&program, target).unwrap_err();
        let first = format!("the kernels program has no native form for {target} of\n  double_");
        assert!(message.starts_with(&first) && message.contains(" of (f32[8])"), "{message}");
    }
}

/// Kernels that are made for a v6e take no native form on another TPU.
#[test]
fn another_tpu_gets_portable_forms() {
    for choice in [None, Some(Form::Native)] {
        let (_, forms) = passes::lower(&with_kernels(), Target::OtherTpu, choice);
        assert!(forms.iter().all(|(_, form)| *form == Form::Portable), "{forms:?}");
    }
}

#[test]
fn verify_passes_what_is_built_and_lowered() {
    for program in [mlp_step(), with_kernels()] {
        passes::verify(&program).unwrap();
        for target in [Target::Cpu, Target::Cuda, Target::TpuV6e, Target::OtherTpu] {
            passes::verify(&passes::lower(&program, target, None).0).unwrap();
        }
    }
}

/// A kernel whose portable form has another type than it says.
#[derive(Debug)]
struct Liar;

impl Kernel for Liar {
    fn name(&self) -> String {
        "liar".to_owned()
    }
    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        Ok(args.to_vec())
    }
    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        args.to_vec()
    }
    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::Grads(vec![])
    }
    fn differentiable(&self) -> usize {
        1
    }
    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }
    fn lower(&self, args: &[Type], _: Target, _: Option<Form>) -> Option<(Form, Func)> {
        Some((Form::Portable, Func::build(args, |_, x| vec![x[0].sum_all()])))
    }
}

#[test]
fn kernels_that_break_their_word_are_found() {
    let program = |gradient: bool| {
        Program::build("liar", |g| {
            let x = g.input("x", Type::f32([2]));
            let y = g.kernel(Liar, &[x])[0];
            g.output("y", if gradient { grad(y.sum_all(), &[x])[0] } else { y });
        })
    };
    let form = message_of(|| drop(passes::lower(&program(false), Target::Cpu, None)));
    assert!(form.contains("kernel liar: its Portable form gives"), "{form}");
    let gradients = message_of(|| drop(program(true)));
    assert_eq!(gradients, "kernel liar gives 0 gradients for 1 arguments");
}

/// The message must name a line of this file.
#[track_caller]
fn points_here(message: &str, line: u32) {
    assert!(message.contains(&format!("programs.rs:{line}:")), "wanted line {line} in: {message}");
}

#[test]
fn errors_point_to_the_line_of_the_author() {
    let line = line!();
    let shapes = refused(|g| {
        let x = g.input("x", Type::f32([2, 3]));
        let y = g.input("y", Type::f32([3]));
        g.output("z", x + y);
    });
    assert!(shapes.starts_with("add(f32[2,3], f32[3]): wants two operands of one type"), "{shapes}");
    points_here(&shapes, line + 4);

    let line = line!();
    let dtypes = refused(|g| {
        let x = g.input("x", Type::i32([2]));
        g.output("z", x.matmul(x.reshape([2, 1])).tanh());
    });
    assert!(dtypes.starts_with("tanh(i32[1]): wants floats"), "{dtypes}");
    points_here(&dtypes, line + 3);

    let line = line!();
    let foreign = refused(|g| {
        let x = g.input("x", Type::f32([2]));
        g.call("f", Save::Everything, &[x], |_, v| {
            let _ = v[0] + x;
            vec![v[0]]
        });
    });
    assert!(foreign.contains("operand 1 (f32[2], made at") && foreign.contains("`capture`"), "{foreign}");
    points_here(&foreign, line + 2);
    points_here(&foreign, line + 4);

    let line = line!();
    let no_gradient = refused(|g| {
        let x = g.input("x", Type::f32([]));
        let y = g.while_loop(&[x], |_, c| c[0].lt(10.0), |_, c| vec![c[0] * 2.0]);
        g.output("d_x", grad(y[0], &[x])[0]);
    });
    assert!(no_gradient.starts_with("while at ") && no_gradient.contains("has no gradient"), "{no_gradient}");
    points_here(&no_gradient, line + 3);
}

#[test]
fn gradients_that_make_no_sense_are_refused() {
    let unused = refused(|g| {
        let [x, y] = ["x", "y"].map(|name| g.input(name, Type::f32([2])));
        g.output("d", grad(x.sum_all(), &[x, y])[1]);
    });
    assert_eq!(
        unused,
        "grad: `y` (f32[2]) gets no gradient from the loss; take it out of the list if it is a constant"
    );
    let loss = refused(|g| {
        let x = g.input("x", Type::f32([2]));
        g.output("d", grad(x, &[x])[0]);
    });
    assert_eq!(loss, "grad: the loss must be a float scalar, it is f32[2]");
    let types = refused(|g| {
        let x = g.input("x", Type::f32([2]));
        let total = g.input("total", Type::new(DType::Bf16, [2]));
        g.output("d", grad_into(x.sum_all(), &[x], &[Some(total)])[0]);
    });
    let wanted = "wanted its shape and a type that holds its numbers";
    assert_eq!(types, format!("grad_into: an accumulator for f32[2] has type bf16[2], {wanted}"));
    let outer = refused(|g| {
        let x = g.input("x", Type::f32([]));
        g.call("f", Save::Everything, &[x], |_, v| {
            let _ = grad(v[0] * v[0], &[x]);
            vec![v[0]]
        });
    });
    assert!(outer.contains("belongs to another function than the loss"), "{outer}");
}
