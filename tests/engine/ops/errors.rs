//! What does not fit is refused at the author's line, with op, operand types and reason.

use engine::{
    Builder, DType, Direction, Host, Program, Reduction, Save, ScanOptions, Sharding, Tensor, Type, grad,
    grad_into,
};
use tests::kernel::{GatedUnit, GradientFrom};
use tests::panic_of;

/// Builds something wrong and checks the panic: its message contains each of `wanted`, its place is the line of the
/// caller or, where the formatter breaks the call, one of the next.
fn check(line: u32, wanted: &[&str], wrong: impl for<'f> FnOnce(&'f Builder<'f>)) {
    let panic = panic_of(|| drop(Program::build("wrong", wrong)));
    let panic = panic.unwrap_or_else(|| panic!("line {line}: {wanted:?} is accepted"));
    for part in wanted {
        assert!(panic.message.contains(part), "line {line}: `{}` does not say `{part}`", panic.message);
    }
    let here = (line..line + 12).any(|line| panic.at == format!("{}:{line}", file!()));
    assert!(here, "`{}` is reported at {}, not at {}:{line}", panic.message, panic.at, file!());
}

macro_rules! refused {
    ([$($wanted:expr),*], $wrong:expr) => {
        check(line!(), &[$($wanted),*], $wrong)
    };
}

fn f32s<'f>(f: &'f Builder<'f>, shape: &[usize]) -> Tensor<'f> {
    f.zeros(Type::f32(shape))
}

fn i32s<'f>(f: &'f Builder<'f>, shape: &[usize]) -> Tensor<'f> {
    f.zeros(Type::i32(shape))
}

fn bools<'f>(f: &'f Builder<'f>, shape: &[usize]) -> Tensor<'f> {
    f.zeros(Type::new(DType::Bool, shape))
}

#[test]
fn elementwise_ops_refuse() {
    refused!(["add(f32[2], f32[3]): ", "one type", "tests/engine/ops/errors.rs:"], |f| {
        let _ = f32s(f, &[2]) + f32s(f, &[3]);
    });
    refused!(["multiply(f32[2], i32[2]): ", "one type"], |f| drop(vec![f32s(f, &[2]) * i32s(f, &[2])]));
    refused!(["power(i32[2], i32[2]): ", "does not exist for i32"], |f| drop(vec![i32s(f, &[2]).pow(2)]));
    refused!(["and(f32[2], f32[2]): ", "does not exist for f32"], |f| drop(vec![
        f32s(f, &[2]) & f32s(f, &[2])
    ]));
    refused!(["exponential(i32[2]): ", "wants floats"], |f| drop(vec![i32s(f, &[2]).exp()]));
    refused!(["negate(u8[]): ", "signed"], |f| drop(vec![-f.zeros(Type::scalar(DType::U8))]));
    refused!(["not(f32[2]): ", "integers or bool"], |f| drop(vec![!f32s(f, &[2])]));
    refused!(["constant(i32[2])", "0.5"], |f| drop(vec![i32s(f, &[2]) * 0.5]));
    refused!(["constant(u8[2])", "-1"], |f| drop(vec![f.zeros(Type::new(DType::U8, [2])) + -1]));
    refused!(["compare(f32[2], f32[2,1]): ", "one type"], |f| drop(vec![f32s(f, &[2]).lt(f32s(f, &[2, 1]))]));
    refused!(["select(f32[2], f32[2], f32[2]): ", "bool predicate"], |f| {
        f32s(f, &[2]).select(f32s(f, &[2]), 0.0);
    });
    refused!(["select(bool[2], f32[2], f32[3]): ", "one type"], |f| {
        bools(f, &[2]).select(f32s(f, &[2]), f32s(f, &[3]));
    });
    refused!(["clamp(bool[2], bool[2], bool[2]): ", "does not exist for bool"], |f| {
        bools(f, &[2]).clamp(0, 1);
    });
    refused!(["bitcast_convert(f32[2]): ", "f32 and i64"], |f| drop(vec![
        f32s(f, &[2]).bitcast_convert(DType::I64)
    ]));
    refused!(["iota(): ", "axis 1 of f32[2] does not exist"], |f| drop(vec![f.iota(Type::f32([2]), 1)]));
    refused!(["iota(): ", "a bool cannot count"], |f| drop(vec![f.iota(Type::new(DType::Bool, [2]), 0)]));
}

#[test]
fn reductions_and_sorts_refuse() {
    refused!(["reduce(f32[2,3]): ", "axes [2] do not exist"], |f| drop(vec![f32s(f, &[2, 3]).sum(&[2])]));
    refused!(["reduce(f32[2,3]): ", "without repetition"], |f| drop(vec![f32s(f, &[2, 3]).sum(&[1, 1])]));
    refused!(["reduce(bool[2]): ", "convert them"], |f| drop(vec![bools(f, &[2]).prod(&[0])]));
    refused!(["reduce(f32[2,3]): ", "axes [2] do not exist"], |f| drop(vec![f32s(f, &[2, 3]).mean(&[2])]));
    refused!(["constant(i32[", "0.5"], |f| drop(vec![i32s(f, &[2, 3]).mean(&[0])]));
    refused!(["arg_reduce(f32[2,0]): ", "at least one element"], |f| drop(vec![f32s(f, &[2, 0]).argmax(1)]));
    refused!(["cumulative_sum(bool[2]): ", "convert them"], |f| {
        bools(f, &[2]).cumulative_sum(0, Direction::Forward);
    });
    refused!(["sort(f32[2], f32[3]): ", "one shape"], |f| {
        f32s(f, &[2]).sort(&[f32s(f, &[3])], 0, Direction::Forward);
    });
    refused!(["top_k(f32[2,3], 4): "], |f| drop(vec![f32s(f, &[2, 3]).top_k(4)]));
}

#[test]
fn shape_ops_refuse() {
    refused!(["broadcast_in_dim(f32[2]): ", "axis 0 of extent 2 does not fit axis 1 of [2, 3]"], |f| {
        f32s(f, &[2]).broadcast_in_dim([2, 3], &[1]);
    });
    refused!(["broadcast_in_dim(f32[2,2]): ", "ascending"], |f| {
        f32s(f, &[2, 2]).broadcast_in_dim([2, 2, 2], &[1, 0]);
    });
    refused!(["reshape(f32[2,3]): ", "6 elements do not fill f32[4]"], |f| drop(vec![
        f32s(f, &[2, 3]).reshape([4])
    ]));
    refused!(["transpose(f32[2,3]): ", "[1, 1] is not a permutation"], |f| {
        f32s(f, &[2, 3]).transpose(&[1, 1]);
    });
    refused!(["slice(f32[4]): ", "[1:5:1] does not fit axis 0"], |f| {
        f32s(f, &[4]).slice(&[1], &[5], &[1]);
    });
    refused!(["slice(f32[4]): ", "axis 1 does not exist"], |f| drop(vec![f32s(f, &[4]).slice_axis(1, 0, 2)]));
    refused!(["pad(f32[4], f32[]): ", "low, high and interior"], |f| {
        f32s(f, &[4]).pad(0.0, &[1, 1], &[1, 1]);
    });
    refused!(["pad(f32[4], i32[]): ", "a scalar of its type"], |f| {
        f32s(f, &[4]).pad_with(i32s(f, &[]), &[1], &[1], &[0]);
    });
    refused!(["concatenate(f32[2,3], f32[3,3]): ", "axis 1 only"], |f| {
        Tensor::concatenate(&[f32s(f, &[2, 3]), f32s(f, &[3, 3])], 1);
    });
    refused!(["reverse(f32[2]): ", "[1] do not exist"], |f| drop(vec![f32s(f, &[2]).reverse(&[1])]));
    refused!(["dynamic_slice(f32[4], i32[], i32[]): ", "each of the 1 axes"], |f| {
        f32s(f, &[4]).dynamic_slice(&[i32s(f, &[]), i32s(f, &[])], &[1]);
    });
    refused!(["dynamic_slice(f32[4], f32[]): ", "integer scalars"], |f| {
        f32s(f, &[4]).dynamic_slice(&[f32s(f, &[])], &[1]);
    });
    refused!(["dynamic_update_slice(f32[4], f32[5], i32[]): ", "does not fit"], |f| {
        f32s(f, &[4]).dynamic_update_slice(f32s(f, &[5]), &[i32s(f, &[])]);
    });
    refused!(["row(f32[]"], |f| drop(vec![f32s(f, &[]).row(i32s(f, &[]))]));
    refused!(["gather(f32[4], f32[2]): ", "integer indices"], |f| drop(vec![
        f32s(f, &[4]).gather(f32s(f, &[2]))
    ]));
    refused!(["scatter_add(f32[4,2], i32[3], f32[3]): ", "wants updates of f32[3,2]"], |f| {
        f32s(f, &[4, 2]).scatter_add(i32s(f, &[3]), f32s(f, &[3]));
    });
}

#[test]
fn products_refuse() {
    refused!(["dot_general(f32[2,3], f32[2,3]): ", "axis 1 of lhs (3) is not axis 0 of rhs (2)"], |f| {
        f32s(f, &[2, 3]).matmul(f32s(f, &[2, 3]));
    });
    refused!(["matmul(f32[], f32[2]): "], |f| drop(vec![f32s(f, &[]).matmul(f32s(f, &[2]))]));
    refused!(["dot_general(f32[2], i32[2]): ", "one element type"], |f| {
        f32s(f, &[2]).matmul(i32s(f, &[2]));
    });
    refused!(["dot_general(f32[2], f32[2]): ", "cannot give bf16 from f32"], |f| {
        f32s(f, &[2]).einsum_as("a,a->", f32s(f, &[2]), DType::Bf16);
    });
    for (letters, reason) in [
        ("ab,bc", "wants `ab,bc->ac`"),
        ("ab->a", "wants two operands"),
        ("abc,bc->a", "one letter for each axis"),
        ("ab,cd->cd", "neither in the second nor in the result"),
        ("ab,bc->a", "once"),
        ("ab,bc->ax", "in no operand"),
        ("aa,ab->b", "twice"),
    ] {
        refused!([&format!("einsum({letters}; f32[2,2], f32[2,2]): "), reason], |f| {
            f32s(f, &[2, 2]).einsum(letters, f32s(f, &[2, 2]));
        });
    }
}

#[test]
fn ops_with_bodies_refuse() {
    refused!(["scan: ", "3 slices", "f32[2]"], |f| {
        f.scan(ScanOptions::over(3), &[], &[f32s(f, &[2])], |_, _, x| (vec![], x.to_vec()));
    });
    refused!(["scan: 1 carries go in, 0 come back"], |f| {
        f.scan(ScanOptions::over(3), &[f32s(f, &[])], &[], |_, _, _| (vec![], vec![]));
    });
    refused!(["scan(f32[2]): ", "carry 0 starts as f32[2] and comes back as f32[]"], |f| {
        f.scan(ScanOptions::over(3), &[f32s(f, &[2])], &[], |_, c, _| (vec![c[0].sum_all()], vec![]));
    });
    refused!(["scan(f32[3]): ", "3 iterations cannot be unrolled by 2"], |f| {
        let options = ScanOptions { length: 3, unroll: 2, direction: Direction::Forward };
        f.scan(options, &[], &[f32s(f, &[3])], |_, _, x| (vec![], x.to_vec()));
    });
    refused!(["scan(): ", "at least one iteration"], |f| {
        f.scan(ScanOptions::over(0), &[], &[], |_, _, _| (vec![], vec![]));
    });
    refused!(["cond(f32[], f32[2]): ", "bool scalar"], |f| {
        f.cond(f32s(f, &[]), &[f32s(f, &[2])], |_, x| x.to_vec(), |_, x| x.to_vec());
    });
    refused!(["cond(bool[], f32[2]): ", "different types: (f32[2]) and (f32[])"], |f| {
        f.cond(bools(f, &[]), &[f32s(f, &[2])], |_, x| x.to_vec(), |_, x| vec![x[0].sum_all()]);
    });
    refused!(["cond: ", "pass outer values as operands"], |f| {
        let outer = f32s(f, &[2]);
        f.cond(bools(f, &[]), &[], |g, _| vec![g.capture(outer)], |g, _| vec![g.zeros(Type::f32([2]))]);
    });
    refused!(["while(i32[2]): ", "a condition that is a bool scalar"], |f| {
        f.while_loop(&[i32s(f, &[2])], |_, x| x[0].lt(1), |_, x| x.to_vec());
    });
    refused!(["while(i32[]): ", "the body returns (i32[], i32[]), the carry is (i32[])"], |f| {
        f.while_loop(&[i32s(f, &[])], |_, x| x[0].lt(1), |_, x| vec![x[0], x[0]]);
    });
    refused!(["optimization_barrier(): ", "at least one operand"], |_| {
        Tensor::optimization_barrier(&[]);
    });
    refused!(["the value belongs to no function that encloses this one", "f32[2]"], |f| {
        let mut kept = None;
        f.call("a", Save::Everything, &[f32s(f, &[2])], |g, x| {
            kept = Some(panic_of(|| drop(vec![f.capture(x[0])])));
            let _ = g;
            x.to_vec()
        });
        let panic = kept.flatten().expect("an inner value is no use outside");
        assert_eq!(panic.at.rsplit_once(':').unwrap().0, file!());
        panic!("{}", panic.message);
    });
}

#[test]
fn devices_kernels_and_ports_refuse() {
    refused!(["all_reduce(f32[2]): ", "groups of one size"], |f| {
        f32s(f, &[2]).all_reduce(Reduction::Sum, vec![vec![0], vec![1, 2]]);
    });
    refused!(["all_reduce(f32[2]): ", "products"], |f| {
        f32s(f, &[2]).all_reduce(Reduction::Prod, vec![vec![0]]);
    });
    refused!(["sharding_constraint(f32[2]): ", "3 parts do not fit 4 devices"], |f| {
        f32s(f, &[2]).with_sharding(Sharding { tiles: vec![3], devices: 4 });
    });
    refused!(["gated_unit_OwnRule(f32[2,65], f32[2,65]): ", "a row of 65 is longer than 64"], |f| {
        let x = f32s(f, &[2, 65]);
        f.kernel(GatedUnit { gradient: GradientFrom::OwnRule }, &[x, x]);
    });
    refused!(["input `x`", "another one of this name"], |f| {
        f.input("x", Type::f32([]));
        f.input("x", Type::f32([]));
    });
    refused!(["output `y`", "another one of this name"], |f| {
        f.output("y", f32s(f, &[]));
        f.output("y", f32s(f, &[]));
    });
    refused!(["output `y`", "f32[2]", "`x`", "the types differ"], |f| {
        let x = f.input("x", Type::f32([3]));
        f.output_over("y", f32s(f, &[2]), x);
    });
    refused!(["output `y`", "which is not an input"], |f| {
        f.output_over("y", f32s(f, &[2]), f32s(f, &[2]));
    });
    refused!(["output `z`", "another output is already"], |f| {
        let x = f.input("x", Type::f32([3]));
        f.output_over("y", x, x);
        f.output_over("z", x, x);
    });
    refused!(["input `x`", "does not fit f32[3]"], |f| {
        f.input_sharded("x", Type::f32([3]), Sharding { tiles: vec![1, 2], devices: 2 });
    });
    let panic =
        panic_of(|| drop(Program::build("empty", |f| drop(vec![f.input("x", Type::f32([]))])))).unwrap();
    assert_eq!(panic.message, "program empty: it has no output");
}

#[test]
fn gradients_refuse() {
    refused!(["grad: the loss must be a float scalar, it is f32[2]"], |f| {
        let x = f.input("x", Type::f32([2]));
        grad(x * x, &[x]);
    });
    refused!(["grad: the loss must be a float scalar, it is i32[]"], |f| {
        let x = f.input("x", Type::i32([]));
        grad(x, &[x]);
    });
    refused!(["grad: `count` (i32[]) is not a float"], |f| {
        let (x, count) = (f.input("x", Type::f32([])), f.input("count", Type::i32([])));
        grad(x * count.convert(DType::F32), &[x, count]);
    });
    refused!(["grad: `layers.gate` (f32[2]) gets no gradient", "take it out of the list"], |f| {
        let (x, gate) = (f.input("x", Type::f32([2])), f.input("layers.gate", Type::f32([2])));
        grad((x * gate.stop_gradient()).sum_all(), &[x, gate]);
    });
    refused!(["grad: the tanh of", "gets no gradient"], |f| {
        let x = f.input("x", Type::f32([2]));
        grad(x.sum_all(), &[x, x.tanh()]);
    });
    refused!(["grad: the loss depends on none of the 1 tensors"], |f| {
        let x = f.input("x", Type::f32([2]));
        grad(f.scalar(1f32), &[x]);
    });
    refused!(["while at tests/engine/ops/errors.rs:", "has no gradient", "use `scan`"], |f| {
        let x = f.input("x", Type::f32([]));
        let y = f.while_loop(&[x], |_, x| x[0].lt(9.0), |_, x| vec![x[0] * 2.0])[0];
        grad(y, &[x]);
    });
    refused!(["bitcast_convert at tests/engine/ops/errors.rs:", "bits have no derivative"], |f| {
        let x = f.input("x", Type::new(DType::F16, [2]));
        grad(x.bitcast_convert(DType::Bf16).sum_all(), &[x]);
    });
    refused!(["all_reduce at tests/engine/ops/errors.rs:", "only a sum over replicas"], |f| {
        let x = f.input("x", Type::f32([2]));
        grad(x.all_reduce(Reduction::Max, vec![vec![0]]).sum_all(), &[x]);
    });
    refused!(["grad_into: an accumulator for f32[2] has type f32[3]"], |f| {
        let x = f.input("x", Type::f32([2]));
        grad_into(x.sum_all(), &[x], &[Some(f32s(f, &[3]))]);
    });
    refused!(["grad_into: ", "one accumulator for each"], |f| {
        let x = f.input("x", Type::f32([2]));
        grad_into(x.sum_all(), &[x], &[]);
    });
    refused!(["grad_into: ", "`x` is given twice"], |f| {
        let x = f.input("x", Type::f32([2]));
        grad_into(x.sum_all(), &[x, x], &[Some(f32s(f, &[2])), Some(f32s(f, &[2]))]);
    });
    // Inside a body it is the message that names the author's line.
    Program::build("scan", |f| {
        let xs = f.input("x", Type::f32([3]));
        let (_, ys) = f.scan(ScanOptions::over(3), &[], &[xs], |g, _, x| {
            (vec![], g.while_loop(&[x[0]], |_, x| x[0].lt(9.0), |_, x| vec![x[0] * 2.0]))
        });
        let panic = panic_of(|| drop(grad(ys[0].sum_all(), &[xs]))).unwrap();
        assert!(panic.message.starts_with(&format!("while at {}:{}", file!(), line!() - 3)), "{panic:?}");
        f.output("y", ys[0]);
    });
}

#[test]
fn a_value_of_another_function_is_a_stranger() {
    // Returning the outer value or the sum does not even compile: `scan` wants values of the body's own lifetime.
    refused!(
        ["add: operand 1 (f32[2], made at tests/engine/ops/errors.rs:", "take it in with `capture`"],
        |f| {
            let x = f.constant(&Host::new([2], &[1f32, 2.0]));
            f.scan(ScanOptions::over(3), &[x], &[], |_, c, _| {
                let _ = c[0] + x;
                (c.to_vec(), vec![])
            });
        }
    );
}
