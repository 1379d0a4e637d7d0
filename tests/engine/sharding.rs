//! Programs on four devices give what one device gives.

use engine::pjrt::{Arg, CompileOptions, Error};
use engine::{Builder, DType, Host, Program, Sharding, Tensor, Type, grad};
use tests::close::{F32, assert_close};
use tests::{cpu, message_of, numbers};

fn rows() -> Sharding {
    Sharding { tiles: vec![4, 1], devices: 4 }
}

/// Up to four sums of 16 terms, one after the other, of which each may be added up in another order: one rounding for half
/// of the terms' root.
#[track_caller]
fn close(found: &Host, wanted: &Host) {
    assert_eq!(found.ty(), wanted.ty());
    assert_close("sharded", &found.to_f64(), &wanted.to_f64(), 4.0 * 2.0 * F32);
}

/// Which of the program's tensors are cut.
#[derive(Clone, Copy, PartialEq)]
enum Cut {
    No,
    Yes,
}

/// Products with operands and results cut along every axis, and in two along one with copies.
fn products(cut: Cut) -> Program {
    let shapes: [(&str, Vec<usize>); 3] =
        [("rows", vec![4, 1]), ("columns", vec![1, 2]), ("blocks", vec![2, 2])];
    Program::build("products", |g| {
        let ty = Type::f32([16, 16]);
        let inputs = shapes.clone().map(|(name, tiles)| match cut {
            Cut::Yes => g.input_sharded(name, ty.clone(), Sharding { tiles, devices: 4 }),
            Cut::No => g.input(name, ty.clone()),
        });
        let product = inputs[0].matmul(inputs[1]);
        let product = match cut {
            Cut::Yes => product.with_sharding(Sharding { tiles: vec![1, 4], devices: 4 }),
            Cut::No => product,
        };
        let product = product.matmul(inputs[2]);
        match cut {
            Cut::Yes => g.output_sharded("product", product, Sharding { tiles: vec![2, 2], devices: 4 }),
            Cut::No => g.output("product", product),
        }
        g.output("whole", product * 2.0);
        g.output_over("rows", product.transpose(&[1, 0]), inputs[0]);
        for (i, grad) in grad((product * product).sum_all(), &inputs).into_iter().enumerate() {
            g.output(&format!("grad.{i}"), grad);
        }
    })
}

#[test]
fn a_sharded_program_equals_the_single_one() {
    let client = cpu();
    let args: Vec<Host> = (0..3).map(|seed| numbers(Type::f32([16, 16]), seed)).collect();
    let [cut, whole] = [products(Cut::Yes), products(Cut::No)];
    assert_eq!((cut.partitions(), whole.partitions()), (4, 1));
    let compiled = cut.compile(client).unwrap();
    assert_eq!(compiled.loaded().devices().len(), 4);
    assert_eq!(compiled.inputs()[0].local(), Type::f32([4, 16]));
    let found = compiled.call(&args).unwrap();
    let wanted = whole.compile(client).unwrap().call(&args).unwrap();
    assert_eq!(found.len(), 6);
    for (found, wanted) in found.iter().zip(&wanted) {
        close(found, wanted);
    }
}

/// Loss of a linear model on some rows: the sum over its rows of the squared error, over `count` rows.
fn loss<'f>(g: &'f Builder<'f>, rows: usize, count: usize) -> (Tensor<'f>, Tensor<'f>) {
    let x = g.input("x", Type::f32([rows, 8]));
    let y = g.input("y", Type::f32([rows, 2]));
    let w = g.input("w", Type::f32([8, 2]));
    let error = x.matmul(w).tanh() - y;
    ((error * error).sum_all() * (1.0 / count as f64), w)
}

#[test]
fn replicas_with_a_reduced_gradient_equal_one_device_with_all_rows() {
    let client = cpu();
    let single = Program::build("single", |g| {
        let (loss, w) = loss(g, 16, 16);
        g.output_over("w", w - grad(loss, &[w])[0] * 0.5, w);
        g.output("loss", loss);
    });
    let parallel = Program::build("parallel", |g| {
        let (loss, w) = loss(g, 4, 16);
        let everyone = vec![vec![0, 1, 2, 3]];
        let gradient = grad(loss, &[w])[0].all_reduce_sum(everyone.clone());
        g.output_over("w", w - gradient * 0.5, w);
        g.output("loss", loss.all_reduce_sum(everyone));
    });
    let (x, y) = (numbers(Type::f32([16, 8]), 1), numbers(Type::f32([16, 2]), 2));
    let mut w = numbers(Type::f32([8, 2]), 3);
    let single = single.compile(client).unwrap();
    let parallel = parallel.compile_with(client, &CompileOptions::replicated(4)).unwrap();
    let mut copies: Vec<_> =
        client.devices().iter().map(|device| client.to_device(&w, device).unwrap()).collect();
    for _ in 0..3 {
        let wanted = single.call(&[x.clone(), y.clone(), w]).unwrap();
        let args = copies.into_iter().enumerate().map(|(i, w)| {
            let part = |host: &Host, columns: usize| {
                let numbers = &host.as_slice::<f32>()[4 * i * columns..4 * (i + 1) * columns];
                client.to_device(&Host::new([4, columns], numbers), &client.devices()[i]).unwrap()
            };
            vec![Arg::Donate(part(&x, 8)), Arg::Donate(part(&y, 2)), Arg::Donate(w)]
        });
        let results = parallel.run_on_all(args.collect()).unwrap();
        for list in &results {
            close(&list[0].to_host().unwrap(), &wanted[0]);
            close(&list[1].to_host().unwrap(), &wanted[1]);
        }
        copies = results.into_iter().map(|mut list| list.remove(0)).collect();
        w = wanted.into_iter().next().unwrap();
    }
    let error = parallel.call(&[x, y, w]).unwrap_err();
    assert!(matches!(&error, Error::Arguments(_)) && error.to_string().contains("run_on_all"), "{error}");
}

#[test]
fn every_element_type_and_rank_is_cut_and_joined() {
    let client = cpu();
    for dtype in DType::ALL {
        for (shape, tiles) in [(vec![8], vec![4]), (vec![2, 6, 4], vec![1, 2, 2]), (vec![3, 4], vec![1, 2])] {
            let program = Program::build("same", |g| {
                let sharding = Sharding { tiles, devices: 4 };
                let x = g.input_sharded("x", Type::new(dtype, shape), sharding.clone());
                g.output_sharded("x", x, sharding);
            });
            let host = numbers(program.inputs()[0].ty.clone(), 5);
            let found = program.compile(client).unwrap().call(std::slice::from_ref(&host)).unwrap();
            assert_eq!(found, [host]);
        }
    }
}

#[test]
fn shardings_that_do_not_fit_are_refused_where_they_are_written() {
    let uneven = message_of(|| {
        Program::build("p", |g| {
            g.input_sharded("x", Type::f32([6, 2]), rows());
        });
    });
    assert_eq!(uneven, "input `x`: f32[6,2] cannot be cut into equal parts, [4, 1] of its axes");
    let rank = message_of(|| {
        Program::build("p", |g| {
            g.input_sharded("x", Type::f32([8]), rows());
        });
    });
    assert_eq!(rank, "input `x`: a sharding of 2 axes does not fit f32[8]");
    let output = message_of(|| {
        Program::build("p", |g| {
            let x = g.input("x", Type::f32([4, 2]));
            g.output_sharded("x", x, Sharding { tiles: vec![3, 1], devices: 4 });
        });
    });
    assert_eq!(output, "output `x`: 3 parts do not fit 4 devices");
    let inside = message_of(|| {
        Program::build("p", |g| {
            let x = g.input("x", Type::f32([2]));
            g.output("x", x.with_sharding(rows()));
        });
    });
    assert!(
        inside.contains("a sharding of 2 axes does not fit f32[2]") && inside.contains("sharding.rs:"),
        "{inside}"
    );
    let counts = message_of(|| {
        Program::build("p", |g| {
            let x = g.input_sharded("x", Type::f32([4, 2]), rows());
            g.output("x", x.with_sharding(Sharding::replicated(2, 2)));
        });
    });
    assert_eq!(counts, "program p: its shardings are for {2, 4} devices; they must agree");
}
