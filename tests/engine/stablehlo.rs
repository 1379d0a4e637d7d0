//! Golden StableHLO. `BLESS=1 cargo test -p tests --test engine stablehlo` rewrites the files in `tests/golden/stablehlo`.

mod located;

use engine::{
    Array, DType, Direction, Host, Kernel, Locations, Program, Rounding, Save, ScanOptions, Sharding, Type,
    evaluate, grad, grad_into, passes,
};
use engine::{Backward, CustomCall, Form, Func, ShapeError, Target, Tensor};
use half::{bf16, f16};
use std::path::Path;
use std::{env, fs, thread};
use tests::close::F32;
use tests::{Mlp, cpu, mlp_step, numbers, residual_mlp};

/// Compares with the file, or rewrites it.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/stablehlo").join(format!("{name}.mlir"));
    if env::var_os("BLESS").is_some_and(|bless| bless == "1") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    let mut lines = wanted.lines().zip(text.lines()).enumerate();
    let differs = lines.find(|(_, (wanted, found))| wanted != found);
    let shorter = wanted.lines().count().min(text.lines().count());
    let (line, (wanted_line, found)) = differs.unwrap_or((
        shorter,
        (
            wanted.lines().nth(shorter).unwrap_or("the end of the text"),
            text.lines().nth(shorter).unwrap_or("the end of the text"),
        ),
    ));
    assert!(
        wanted == text,
        "{name}.mlir, line {}:\n  wanted {wanted_line}\n  found  {found}\nIf the new text is right, `BLESS=1 cargo test -p tests --test engine stablehlo` rewrites the files; read their difference.",
        line + 1
    );
}

/// Compares with the file; the CPU plugin must read the text, and compute what the program means, lowered or not.
fn golden_program(name: &str, program: &Program) {
    passes::verify(program).unwrap();
    golden(name, &program.text(Locations::Omit));
    let client = cpu();
    let hosts: Vec<Host> =
        (1..).zip(program.inputs()).map(|(seed, port)| numbers(port.ty.clone(), seed)).collect();
    let arrays: Vec<Array> = hosts.iter().map(Array::from_host).collect();
    let wanted = evaluate(program, &arrays, Rounding::EachOp);
    let (lowered, _) = passes::lower(program, Target::Cpu, None);
    for program in [program, &lowered] {
        let found = program.compile(client).unwrap().call(&hosts).unwrap();
        for ((found, wanted), port) in found.iter().zip(&wanted).zip(program.outputs()) {
            for (found, wanted) in found.to_f64().into_iter().zip(wanted.to_host().to_f64()) {
                // Sums of tens of terms, and functions that XLA approximates, through a few layers and back, where they cancel:
                // 643 roundings for a gradient of the scanned ones.
                let close = (found - wanted).abs() <= 1024.0 * F32 * (1.0 + wanted.abs());
                let same = found == wanted || found.is_nan() && wanted.is_nan();
                assert!(close || same, "{name}, {}: {found}, wanted {wanted}", port.name);
            }
        }
    }
}

fn scalar() -> Program {
    Program::build("scalar", |g| {
        let x = g.input("x", Type::f32([]));
        g.output("y", x * x.sin() + 2.0);
    })
}

fn scanned(layers: usize) -> Program {
    let mlp = Mlp { layers, batch: 4, width: 8, hidden: 16 };
    Program::build("scanned", |g| {
        let x = g.input("x", Type::f32([mlp.batch, mlp.width]));
        let [gate, up, down] = mlp.weights();
        let weights = [g.input("gate", gate), g.input("up", up), g.input("down", down)];
        let loss = residual_mlp(x, &weights, &Save::Only(vec!["h".to_owned()]));
        g.output("loss", loss);
        for (name, grad) in ["d_gate", "d_up", "d_down"].iter().zip(grad(loss, &weights)) {
            g.output(name, grad);
        }
    })
}

fn control() -> Program {
    Program::build("control", |g| {
        let x = g.input("x", Type::f32([3]));
        let limit = g.input("limit", Type::i32([]));
        let count = g.scalar(0i32);
        let [count, doubled] = g.while_loop(
            &[count, x],
            |g, carry| carry[0].lt(g.capture(limit)),
            |g, carry| vec![carry[0] + 1, carry[1] * 2.0 + g.capture(x)],
        )[..] else {
            unreachable!("two values are carried")
        };
        let chosen = g.cond(count.gt(3), &[doubled, x], |_, v| vec![v[0] - v[1]], |_, v| vec![v[1].exp()]);
        let called = g.call("square", Save::Everything, &[chosen[0]], |_, v| vec![v[0] * v[0]]);
        let again = g.call("square", Save::Everything, &[called[0]], |_, v| vec![v[0] * v[0]]);
        let (last, sums) = g.scan(
            ScanOptions { length: 3, unroll: 3, direction: Direction::Reverse },
            &[g.zeros(Type::f32([]))],
            &[again[0]],
            |_, carry, slices| (vec![carry[0] + slices[0]], vec![carry[0]]),
        );
        let tied = Tensor::optimization_barrier(&[last[0], sums[0]]);
        g.output("count", count);
        g.output("last", tied[0]);
        g.output("sums", tied[1].stop_gradient());
    })
}

fn indexing() -> Program {
    Program::build("indexing", |g| {
        let x = g.input("x", Type::f32([4, 6]));
        let rows = g.input("rows", Type::i32([5]));
        let row = g.input("row", Type::i32([]));
        let (largest, places) = x.top_k(2);
        g.output("largest", largest);
        g.output("places", places);
        g.output("argmax", x.argmax(1));
        g.output("running", x.cumulative_sum(1, Direction::Forward));
        let taken = x.gather(rows); // [5, 6]
        g.output("taken", taken);
        g.output("added", x.scatter_add(rows, taken * 2.0));
        g.output("replaced", x.with_row(row, x.row(row) + 1.0));
        g.output("shifted", x.slice_axis(1, 1, 6).pad(0.0, &[0, 1], &[0, 0]).reverse(&[0]));
        let mask = Tensor::lower_triangle(g, 4, 6, 0);
        g.output("masked", mask.select(x, f64::NEG_INFINITY).transpose(&[1, 0]));
        let loss = taken.sum_all() + x.reduce_max(&[1]).sum_all();
        g.output("d_x", grad(loss, &[x])[0]);
    })
}

fn constants() -> Program {
    Program::build("constants", |g| {
        for dtype in DType::ALL {
            let ty = Type::new(dtype, [2, 2]);
            let dense = Host::from_f64(ty.clone(), &[0.0, 1.0, 2.5, 100.0]);
            g.output(&format!("{dtype}.dense"), g.constant(&dense));
            let splat = match dtype {
                DType::Bool => 1.0,
                dtype if dtype.is_float() => 3.25,
                _ => 3.0,
            };
            g.output(&format!("{dtype}.splat"), g.full(ty, splat));
            g.output(&format!("{dtype}.scalar"), g.full(Type::scalar(dtype), 1.0));
            g.output(&format!("{dtype}.empty"), g.zeros(Type::new(dtype, [0, 2])));
        }
        g.output("special", g.constant(&Host::new([4], &[f32::NAN, f32::INFINITY, -0.0, f32::MIN_POSITIVE])));
        g.output("extremes.i64", g.constant(&Host::new([2], &[i64::MIN, i64::MAX])));
        g.output("least.i64", g.scalar(i64::MIN));
        g.output("least.i32", g.scalar(i32::MIN));
        g.output("most.u32", g.scalar(u32::MAX));
        g.output("least.bf16", g.scalar(bf16::NEG_INFINITY));
        g.output("most.f16", g.scalar(f16::MAX));
    })
}

fn sharded() -> Program {
    Program::build("sharded", |g| {
        let rows = Sharding { tiles: vec![4, 1], devices: 4 };
        let columns = Sharding { tiles: vec![1, 2], devices: 4 };
        let x = g.input_sharded("x", Type::f32([8, 8]), rows.clone());
        let w = g.input_sharded("w", Type::f32([8, 8]), columns.clone());
        let scale = g.input("scale", Type::f32([]));
        let y = (x.matmul(w) * scale).with_sharding(rows.clone());
        g.output_sharded("y", y, rows);
        g.output_over("w", w - y, w);
        g.output("sum", y.sum_all());
    })
}

/// Adds one to a stack in place; a stand-in for a kernel of the target's own.
#[derive(Debug)]
struct InPlace;

impl Kernel for InPlace {
    fn name(&self) -> String {
        "in_place".to_owned()
    }
    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        Ok(args.to_vec())
    }
    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        vec![args[0] + 1.0, args[1]]
    }
    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("a test")
    }
    fn differentiable(&self) -> usize {
        1
    }
    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }
    fn lower(&self, args: &[Type], _: Target, choice: Option<Form>) -> Option<(Form, Func)> {
        match choice {
            Some(Form::Native) | None => Some((
                Form::Native,
                CustomCall {
                    target: "tpu_custom_call".to_owned(),
                    backend_config: "{\"custom_call_config\": {\n\"body\": \"\\\\\"}}".to_owned(),
                    kernel_name: self.name(),
                    results: args.to_vec(),
                    aliases: vec![(0, 0), (1, 1)],
                    interpreter: None,
                    in_place: None,
                }
                .alone(args),
            )),
            Some(Form::Portable) | Some(Form::Reference) => None,
        }
    }
}

fn custom_call() -> Program {
    Program::build("custom_call", |g| {
        let stack = g.input("stack", Type::f32([4, 8]));
        let layer = g.input("layer", Type::i32([]));
        let results = g.kernel(InPlace, &[stack, layer]);
        let [over] = Tensor::materialized([results[0]]);
        g.output_over("stack", over, stack);
        g.output("layer", results[1]);
    })
}

/// Gradients of weights, added to what is there inside the loop.
fn accumulating() -> Program {
    let mlp = Mlp { layers: 3, batch: 4, width: 8, hidden: 16 };
    Program::build("accumulating", |g| {
        let x = g.input("x", Type::f32([mlp.batch, mlp.width]));
        let names = ["gate", "up", "down"];
        let weights: Vec<_> = names.iter().zip(mlp.weights()).map(|(name, ty)| g.input(name, ty)).collect();
        let totals: Vec<_> =
            names.iter().zip(mlp.weights()).map(|(name, ty)| g.input(&format!("total.{name}"), ty)).collect();
        let loss = residual_mlp(x, &weights, &Save::Everything);
        g.output("loss", loss);
        for ((name, sum), total) in names
            .iter()
            .zip(grad_into(loss, &weights, &totals.iter().copied().map(Some).collect::<Vec<_>>()))
            .zip(&totals)
        {
            g.output_over(name, sum, *total);
        }
    })
}

#[test]
fn a_scalar_program() {
    golden_program("scalar", &scalar());
}

#[test]
fn a_training_step_donates_its_state() {
    golden_program("mlp_step", &mlp_step());
}

#[test]
fn a_scanned_model_and_its_gradient() {
    golden_program("scanned", &scanned(3));
    golden_program("accumulating", &accumulating());
}

#[test]
fn loops_branches_and_calls() {
    golden_program("control", &control());
}

#[test]
fn sorting_and_indexing() {
    golden_program("indexing", &indexing());
}

#[test]
fn constants_of_every_element_type() {
    let program = constants();
    golden_program("constants", &program);
    // The text says the bits that were meant.
    let found = program.compile(cpu()).unwrap().call(&[]).unwrap();
    let wanted = evaluate(&program, &[], Rounding::EachOp);
    for ((found, wanted), port) in found.iter().zip(&wanted).zip(program.outputs()) {
        assert_eq!(*found, wanted.to_host(), "{}", port.name);
    }
}

#[test]
fn shardings() {
    golden_program("sharded", &sharded());
}

#[test]
fn custom_calls_with_aliases() {
    let (program, _) = passes::lower(&custom_call(), Target::TpuV6e, None);
    golden("custom_call", &program.text(Locations::Omit));
    // A kernel that is not lowered prints as its reference.
    golden_program("kernel_reference", &passes::select(&custom_call(), Target::Cpu, Some(Form::Reference)).0);
}

#[test]
fn locations_of_the_author() {
    let program = located::program();
    golden("located", &program.text(Locations::Print));
    let options = engine::pjrt::CompileOptions::single();
    cpu().compile(&program.text(Locations::Print), &options).unwrap();
    assert!(!program.text(Locations::Omit).contains("loc("));
}

#[test]
fn equal_programs_print_equal_text() {
    let all: [fn() -> Program; 7] =
        [scalar, mlp_step, || scanned(3), control, indexing, constants, custom_call];
    let print = move || all.map(|build| build().text(Locations::Print));
    let wanted = print();
    let threads: Vec<_> = (0..4).map(|_| thread::spawn(print)).collect();
    for found in threads.into_iter().map(|thread| thread.join().unwrap()).chain([print()]) {
        assert!(found == wanted);
    }
    // Where they were written does not matter, unless it is asked for.
    assert_eq!(located::program().text(Locations::Omit), located::same_program().text(Locations::Omit));
    assert_ne!(located::program().text(Locations::Print), located::same_program().text(Locations::Print));
}

#[test]
fn text_does_not_grow_with_the_number_of_layers() {
    let [two, many] = [2, 24].map(|layers| scanned(layers).text(Locations::Omit).len());
    assert!(many as f64 <= 1.3 * two as f64, "{two} characters for 2 layers, {many} for 24");
}
