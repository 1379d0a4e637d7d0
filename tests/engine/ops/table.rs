//! One row an op: how to build a small random program of it, which element types it takes, and what its gradient is.
//! A new `Op` does not compile until [`variants`] names it, and fails a test until a row builds it.

use engine::ops::{Binary, Compare, Op, Unary};
use engine::{
    Array, CallFrame, DType, Direction, Element, Host, HostCall, HostFunction, Reduction, Save, ScanOptions,
    Sharding, Tensor, Type, View, ViewMut, threefry,
};
use std::ops::Neg;
use tests::Case;
use tests::kernel::{GatedUnit, GradientFrom};

pub(crate) const FLOATS: &[DType] = &[DType::F64, DType::F32, DType::Bf16, DType::F16];
const INTEGERS: &[DType] = &[DType::I32, DType::U32, DType::I64, DType::U8];
const SIGNED: &[DType] = &[DType::F64, DType::F32, DType::Bf16, DType::F16, DType::I32, DType::I64];
const NUMBERS: &[DType] =
    &[DType::F64, DType::F32, DType::Bf16, DType::F16, DType::I32, DType::U32, DType::I64, DType::U8];
const BITS: &[DType] = &[DType::I32, DType::U32, DType::I64, DType::U8, DType::Bool];
const ALL: &[DType] = &DType::ALL;

/// What is expected of an op's gradient.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gradient {
    /// It equals finite differences.
    Exact,
    /// It is zero wherever it exists.
    Zero,
    /// It is zero because the author said so, whatever the derivative.
    Stopped,
    /// It depends on nothing differentiable.
    Constant,
    /// Asking for it is a build error that says this.
    Refused(&'static str),
}

type Build = dyn for<'f> Fn(&Case<'f>) + Send + Sync;

pub(crate) struct Row {
    /// The op's name, as [`row_of`] gives it.
    pub(crate) name: &'static str,
    pub(crate) dtypes: &'static [DType],
    pub(crate) gradient: Gradient,
    pub(crate) build: Box<Build>,
}

macro_rules! variants {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// Every variant but those whose members have rows of their own.
        pub(crate) fn variants() -> Vec<&'static str> {
            vec![$($name),*]
        }

        /// The row that an op is tested by.
        pub(crate) fn row_of(op: &Op) -> &'static str {
            match op {
                Op::Unary(op) => op.name(),
                Op::Binary(op) => op.name(),
                Op::Compare(op) => direction(*op),
                $(Op::$variant(_) => $name,)*
            }
        }
    };
}

variants! {
    Parameter "parameter", Constant "constant", Iota "iota",
    Select "select", Clamp "clamp", Convert "convert", BitcastConvert "bitcast_convert",
    Reduce "reduce", ArgReduce "arg_reduce", CumulativeSum "cumulative_sum", Sort "sort",
    BroadcastInDim "broadcast_in_dim", Reshape "reshape", Transpose "transpose", Slice "slice", Pad "pad",
    Concatenate "concatenate", Reverse "reverse",
    DynamicSlice "dynamic_slice", DynamicUpdateSlice "dynamic_update_slice", Gather "gather", ScatterAdd "scatter_add",
    DotGeneral "dot_general",
    OptimizationBarrier "optimization_barrier", StopGradient "stop_gradient", Named "named",
    AllReduce "all_reduce", ShardingConstraint "sharding_constraint", LayoutConstraint "layout_constraint",
    KernelCall "kernel_call", CustomCall "custom_call", HostCall "host_call",
    Scan "scan", While "while", Cond "cond", Call "call",
}

/// `-x` of every operand.
struct Negated;

impl HostFunction for Negated {
    const NAME: &'static str = "test_negated";

    fn call(frame: CallFrame<'_>) {
        fn negate<E: Element + Neg<Output = E>>(x: View<'_>, y: ViewMut<'_>) {
            y.into_slice::<E>().iter_mut().zip(x.as_slice::<E>()).for_each(|(y, &x)| *y = -x);
        }
        assert_eq!(frame.attributes, [3, -1]);
        for (&x, y) in frame.operands.iter().zip(frame.results) {
            match x.dtype() {
                DType::F64 => negate::<f64>(x, y),
                DType::F32 => negate::<f32>(x, y),
                DType::Bf16 => negate::<half::bf16>(x, y),
                DType::F16 => negate::<half::f16>(x, y),
                other => panic!("{other} is no float"),
            }
        }
    }
}

pub(crate) fn direction(op: Compare) -> &'static str {
    match op {
        Compare::Eq => "compare EQ",
        Compare::Ne => "compare NE",
        Compare::Lt => "compare LT",
        Compare::Le => "compare LE",
        Compare::Gt => "compare GT",
        Compare::Ge => "compare GE",
    }
}

fn row(
    name: &'static str,
    dtypes: &'static [DType],
    gradient: Gradient,
    build: impl for<'f> Fn(&Case<'f>) + Send + Sync + 'static,
) -> Row {
    Row { name, dtypes, gradient, build: Box::new(build) }
}

/// Numbers at which implementations like to differ.
const SPECIAL: [f64; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.5,
    -3.5,
    300.0,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
    -f64::NAN,
    1e-3,
    2.0,
    3.0,
    -2.0,
];

/// Every pair of special numbers of the case's type; NaN and infinity stand for 0 and an extreme among integers.
fn special_pairs<'f>(c: &Case<'f>) -> [Tensor<'f>; 2] {
    let pairs: Vec<(f64, f64)> = SPECIAL.iter().flat_map(|&a| SPECIAL.iter().map(move |&b| (a, b))).collect();
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
    [c.numbers(&a), c.numbers(&b)]
}

fn apply<'f>(op: Unary, x: Tensor<'f>) -> Tensor<'f> {
    match op {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign => x.sign(),
        Unary::Exp => x.exp(),
        Unary::Expm1 => x.expm1(),
        Unary::Log => x.log(),
        Unary::Log1p => x.log1p(),
        Unary::Tanh => x.tanh(),
        Unary::Logistic => x.logistic(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => x.rsqrt(),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round(),
        Unary::Not => !x,
    }
}

fn unary(op: Unary) -> Row {
    let (dtypes, gradient) = match op {
        Unary::Not => (BITS, Gradient::Zero),
        Unary::Neg | Unary::Abs => (SIGNED, Gradient::Exact),
        Unary::Sign => (SIGNED, Gradient::Zero),
        Unary::Floor | Unary::Ceil | Unary::Round => (FLOATS, Gradient::Zero),
        _ => (FLOATS, Gradient::Exact),
    };
    row(op.name(), dtypes, gradient, move |c| {
        let positive = matches!(op, Unary::Log | Unary::Log1p | Unary::Sqrt | Unary::Rsqrt);
        let shape = c.dims::<2>();
        c.out(apply(op, if positive { c.positive(shape) } else { c.x(shape) }));
        if !c.gradient {
            c.out(apply(op, c.numbers(&SPECIAL)));
        }
    })
}

fn combine<'f>(op: Binary, a: Tensor<'f>, b: Tensor<'f>) -> Tensor<'f> {
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Rem => a % b,
        Binary::Max => a.max(b),
        Binary::Min => a.min(b),
        Binary::Pow => a.pow(b),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::ShiftLeft => a.shift_left(b),
        Binary::ShiftRightLogical => a.shift_right_logical(b),
        Binary::ShiftRightArithmetic => a.shift_right_arithmetic(b),
    }
}

fn binary(op: Binary) -> Row {
    let (dtypes, gradient) = match op {
        Binary::And | Binary::Or | Binary::Xor => (BITS, Gradient::Zero),
        Binary::ShiftLeft | Binary::ShiftRightLogical | Binary::ShiftRightArithmetic => {
            (INTEGERS, Gradient::Zero)
        }
        Binary::Pow => (FLOATS, Gradient::Exact),
        Binary::Max | Binary::Min => (ALL, Gradient::Exact),
        Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Rem => (NUMBERS, Gradient::Exact),
    };
    row(op.name(), dtypes, gradient, move |c| {
        let shape = c.dims::<2>();
        let a = if op == Binary::Pow { c.positive(shape) } else { c.x(shape) };
        let b = if matches!(op, Binary::Div | Binary::Rem) { c.positive(shape) } else { c.x(shape) };
        c.out(combine(op, a, b));
        c.out(combine(op, a, a));
        let scalar = c.positive([]);
        c.out(combine(op, scalar, b));
        c.out(combine(op, a, scalar));
        if !c.gradient {
            let [a, b] = special_pairs(c);
            c.out(combine(op, a, b));
        }
    })
}

fn holds<'f>(op: Compare, a: Tensor<'f>, b: Tensor<'f>) -> Tensor<'f> {
    match op {
        Compare::Eq => a.eq(b),
        Compare::Ne => a.ne(b),
        Compare::Lt => a.lt(b),
        Compare::Le => a.le(b),
        Compare::Gt => a.gt(b),
        Compare::Ge => a.ge(b),
    }
}

fn compare(op: Compare) -> Row {
    row(direction(op), ALL, Gradient::Zero, move |c| {
        let shape = c.dims::<2>();
        c.out(holds(op, c.x(shape), c.x(shape)).convert(DType::F64));
        if !c.gradient {
            let [a, b] = special_pairs(c);
            c.out(holds(op, a, b));
        }
    })
}

/// The rows, in the order of `Op`.
pub(crate) fn table() -> Vec<Row> {
    let mut rows = vec![
        row("parameter", ALL, Gradient::Exact, |c| c.out(c.x(c.dims::<2>()))),
        row("constant", ALL, Gradient::Constant, |c| {
            let ty = Type::new(c.dtype, [2, 8]);
            c.out(c.f.constant(&Host::from_f64(ty.clone(), &SPECIAL)));
            c.out(c.f.constant(&Host::from_f64(ty.with_shape([]), &[-0.0])));
            c.out(c.f.constant(&Host::from_f64(ty.with_shape([0, 3]), &[])));
            for value in [0.0, 1.0, -3.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                c.out(c.f.constant(&Host::from_f64(ty.clone(), &[value; 16])));
            }
            c.out(c.f.full(ty, 1.0));
        }),
        row("iota", NUMBERS, Gradient::Constant, |c| {
            let ty = Type::new(c.dtype, c.dims::<3>());
            (0..3).for_each(|axis| c.out(c.f.iota(ty.clone(), axis)));
        }),
    ];
    rows.extend(Unary::ALL.map(unary));
    rows.extend(Binary::ALL.map(binary));
    rows.extend(Compare::ALL.map(compare));
    rows.extend([
        row("select", ALL, Gradient::Exact, |c| {
            let shape = c.dims::<2>();
            let (p, a, b) = (c.bools(shape), c.x(shape), c.x(shape));
            c.out(p.select(a, b));
            c.out(c.bools([]).select(b, a));
            c.out(p.select(a, c.x([])));
            c.out(p.select(c.x([]), a));
            c.out(p.select(c.x([]), c.x([])));
            c.out(c.bools([]).select(a, c.x([])));
        }),
        row("clamp", NUMBERS, Gradient::Exact, |c| {
            let shape = c.dims::<2>();
            c.out(c.x(shape).clamp(c.x(shape), c.x(shape)));
            c.out(c.x(shape).clamp(c.x([]), c.x([])));
            c.out(c.x(shape).clamp(1.0, 3.0));
            c.out(c.x([]).clamp(c.x(shape), c.x([])));
            if !c.gradient {
                let [a, b] = special_pairs(c);
                c.out(a.clamp(b, 2.0));
                c.out(a.clamp(0.0, b));
            }
        }),
        row("convert", ALL, Gradient::Exact, |c| {
            let x = c.x(c.dims::<2>());
            for dtype in DType::ALL {
                c.out(x.convert(dtype));
                if !c.gradient {
                    c.out(c.numbers(&SPECIAL).convert(dtype));
                }
            }
        }),
        row(
            "bitcast_convert",
            &[DType::F64, DType::F32, DType::Bf16, DType::F16, DType::I32, DType::U32, DType::I64],
            Gradient::Refused("bits have no derivative; use `convert`, or `stop_gradient` before it"),
            |c| {
                let x = c.x(c.dims::<2>());
                for dtype in DType::ALL.into_iter().filter(|&to| to != DType::Bool) {
                    if dtype.size() == c.dtype.size() && dtype != c.dtype {
                        c.out(x.bitcast_convert(dtype));
                    }
                }
            },
        ),
        row("reduce", ALL, Gradient::Exact, |c| {
            let x = c.x(c.dims::<3>());
            for axes in [&[0][..], &[1], &[2, 0], &[0, 1, 2]] {
                c.out(x.reduce_max(axes));
                c.out(x.reduce_min(axes));
                if c.dtype != DType::Bool {
                    c.out(x.sum(axes));
                    c.out(x.prod(axes));
                }
            }
            if c.dtype.is_float() {
                c.out(x.mean(&[1]));
            }
            if !c.gradient {
                c.out(c.x([3, 0]).reduce_max(&[1]));
                c.out(c.x([3, 0]).reduce_min(&[1]));
                c.out(c.numbers(&SPECIAL).reduce_max(&[0]));
                c.out(c.numbers(&SPECIAL).reduce_min(&[0]));
            }
        }),
        row("arg_reduce", NUMBERS, Gradient::Zero, |c| {
            let x = c.x(c.dims::<3>());
            (0..3).for_each(|axis| c.out(x.argmax(axis)));
            if !c.gradient {
                c.out(c.numbers(&SPECIAL).argmax(0));
                c.out(c.numbers(&[1.0, 3.0, 3.0, 2.0, 3.0]).argmax(0));
                c.out(c.numbers(&[f64::NEG_INFINITY; 3]).argmax(0));
            }
        }),
        row("cumulative_sum", NUMBERS, Gradient::Exact, |c| {
            let x = c.x(c.dims::<3>());
            for axis in 0..3 {
                c.out(x.cumulative_sum(axis, Direction::Forward));
                c.out(x.cumulative_sum(axis, Direction::Reverse));
            }
        }),
        row("sort", ALL, Gradient::Exact, |c| {
            let shape = c.dims::<2>();
            let (key, carried) = (c.x(shape), c.x(shape));
            for (axis, direction) in [(0, Direction::Forward), (1, Direction::Reverse)] {
                let ids = c.f.iota(key.ty().with_dtype(DType::I32), axis);
                key.sort(&[carried, ids], axis, direction).into_iter().for_each(|x| c.out(x));
            }
            let (largest, places) = key.top_k(c.below(shape[1]) + 1);
            c.out(largest);
            c.out(places);
            if !c.gradient {
                for direction in [Direction::Forward, Direction::Reverse] {
                    let x = c.numbers(&SPECIAL);
                    let places = c.f.iota(Type::i32([SPECIAL.len()]), 0);
                    x.sort(&[places], 0, direction).into_iter().for_each(|x| c.out(x));
                }
                c.out(c.numbers(&[1.0, 3.0, 3.0, 2.0, 3.0]).top_k(4).1);
            }
        }),
        row("broadcast_in_dim", ALL, Gradient::Exact, |c| {
            let [a, b, n] = c.dims();
            let x = c.x([a, b]);
            for (shape, axes) in [([n, a, b], [1, 2]), ([a, n, b], [0, 2]), ([a, b, n], [0, 1])] {
                c.out(x.broadcast_in_dim(shape, &axes));
            }
            c.out(c.x([]).broadcast_in_dim([a, n], &[]));
            c.out(c.x([b]).along(x, &[1]));
        }),
        row("reshape", ALL, Gradient::Exact, |c| {
            let [a, b, n] = c.dims();
            c.out(c.x([a, b, n]).reshape([n * a, 1, b]));
            c.out(c.x([1, 1]).reshape([]));
            c.out(c.x([]).reshape([1, 1]));
        }),
        row("transpose", ALL, Gradient::Exact, |c| {
            let x = c.x(c.dims::<3>());
            for axes in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                c.out(x.transpose(&axes));
            }
        }),
        row("slice", ALL, Gradient::Exact, |c| {
            let [a, b] = [c.dim() + 3, c.dim() + 2];
            let x = c.x([a, b]);
            let (start, stride) = ([c.below(2), c.below(2)], [c.below(3) + 1, c.below(2) + 1]);
            c.out(x.slice(&start, &[a - c.below(2), b], &stride));
            c.out(x.slice_axis(1, 1, b - 1));
            c.out(x.slice(&[1, 1], &[1, 2], &[1, 1]));
            c.out(c.x([]).slice(&[], &[], &[]));
        }),
        row("pad", ALL, Gradient::Exact, |c| {
            let x = c.x(c.dims::<2>());
            let sizes = || [c.below(3), c.below(3)];
            c.out(x.pad_with(c.x([]), &sizes(), &sizes(), &sizes()));
            c.out(x.pad(1.0, &sizes(), &sizes()));
            c.out(c.x([0, 2]).pad_with(c.x([]), &[1, 0], &[1, 2], &[2, 1]));
        }),
        row("concatenate", ALL, Gradient::Exact, |c| {
            let [a, b, n] = c.dims();
            let (x, y) = (c.x([a, b]), c.x([a, n]));
            c.out(Tensor::concatenate(&[x, y, x], 1));
            c.out(Tensor::concatenate(&[c.x([n, b]), x], 0));
        }),
        row("reverse", ALL, Gradient::Exact, |c| {
            let x = c.x(c.dims::<3>());
            [&[0][..], &[2], &[0, 1]].into_iter().for_each(|axes| c.out(x.reverse(axes)));
        }),
        row("dynamic_slice", ALL, Gradient::Exact, |c| {
            let [a, b] = [c.dim() + 1, c.dim() + 1];
            let x = c.x([a, b]);
            for dtype in [DType::I32, DType::I64, DType::U32, DType::U8] {
                let starts = [c.indices(dtype, 2, []), c.indices(dtype, 2, [])];
                c.out(x.dynamic_slice(&starts, &[a - 1, b - 1]));
            }
            c.out(x.row(c.indices(DType::I32, a, [])));
            if !c.gradient {
                let outside = [c.f.scalar(-5i32), c.f.scalar(100i32)];
                c.out(x.dynamic_slice(&outside, &[a - 1, b - 1]));
            }
        }),
        row("dynamic_update_slice", ALL, Gradient::Exact, |c| {
            let [a, b] = [c.dim() + 1, c.dim() + 1];
            let (x, update) = (c.x([a, b]), c.x([a - 1, b - 1]));
            for dtype in [DType::I32, DType::I64, DType::U32, DType::U8] {
                let starts = [c.indices(dtype, 2, []), c.indices(dtype, 2, [])];
                c.out(x.dynamic_update_slice(update, &starts));
            }
            c.out(x.with_row(c.indices(DType::I32, a, []), c.x([b])));
            if !c.gradient {
                let outside = [c.f.scalar(-5i32), c.f.scalar(100i32)];
                c.out(x.dynamic_update_slice(update, &outside));
            }
        }),
        row("gather", ALL, Gradient::Exact, |c| {
            let [rows, width, n] = c.dims();
            let x = c.x([rows, width]);
            for dtype in [DType::I32, DType::I64, DType::U32, DType::U8] {
                c.out(x.gather(c.indices(dtype, rows, [n, 2])));
            }
            c.out(x.gather(c.indices(DType::I32, rows, [])));
            c.out(c.x([rows]).gather(c.indices(DType::I32, rows, [n])));
            if !c.gradient {
                c.out(x.gather(c.f.constant(&Host::new([3], &[-1i32, 0, 100]))));
            }
        }),
        row("scatter_add", NUMBERS, Gradient::Exact, |c| {
            let [rows, width, n] = c.dims();
            let x = c.x([rows, width]);
            for dtype in [DType::I32, DType::I64, DType::U32, DType::U8] {
                c.out(x.scatter_add(c.indices(dtype, rows, [n, 2]), c.x([n, 2, width])));
            }
            c.out(x.scatter_add(c.indices(DType::I32, rows, []), c.x([width])));
            if !c.gradient {
                c.out(x.scatter_add(c.f.constant(&Host::new([3], &[-1i32, 0, 100])), c.x([3, width])));
            }
        }),
        row("dot_general", NUMBERS, Gradient::Exact, |c| {
            let [b, d, m, n, k, j] = c.dims();
            c.out(c.x([m, k]).matmul(c.x([k, n])));
            c.out(c.x([b, m, k]).matmul(c.x([k])));
            let extent = |letter| match letter {
                'b' => b,
                'd' => d,
                'm' => m,
                'n' => n,
                'k' => k,
                _ => j,
            };
            for letters in [
                "mk,kn->mn",
                "km,kn->mn",
                "mk,nk->nm",
                "km,nk->mn",
                "bmk,bkn->bmn",
                "mbk,nkb->mnb",
                "kmb,bnk->nbm",
                "bdmkj,jbnkd->bdmn",
                "kbjdm,dnbjk->mndb",
                "m,n->mn",
                "k,k->",
                "b,b->b",
                "bm,bn->bnm",
                ",->",
                "mkj,jk->m",
            ] {
                let (operands, _) = letters.split_once("->").unwrap();
                let (lhs, rhs) = operands.split_once(',').unwrap();
                let operand = |letters: &str| c.x(letters.chars().map(extent).collect::<Vec<_>>());
                let (lhs, rhs) = (operand(lhs), operand(rhs));
                c.out(lhs.einsum(letters, rhs));
                if matches!(c.dtype, DType::Bf16 | DType::F16) && letters.len() > 10 {
                    c.out(lhs.einsum_as(letters, rhs, DType::F32));
                }
            }
        }),
    ]);
    rows.extend(control());
    rows
}

/// Ops that hold bodies, cross devices, or only mark values.
fn control() -> Vec<Row> {
    vec![
        row("optimization_barrier", ALL, Gradient::Exact, |c| {
            let (x, y) = (c.x(c.dims::<2>()), c.x([]));
            Tensor::optimization_barrier(&[x, y]).into_iter().for_each(|x| c.out(x));
            Tensor::optimization_barrier(&[x]).into_iter().for_each(|x| c.out(x));
        }),
        row("stop_gradient", ALL, Gradient::Stopped, |c| c.out(c.x(c.dims::<2>()).stop_gradient())),
        row("named", ALL, Gradient::Exact, |c| c.out(c.x(c.dims::<2>()).named("x"))),
        row("all_reduce", NUMBERS, Gradient::Exact, |c| {
            let x = c.x(c.dims::<2>());
            c.out(x.all_reduce(Reduction::Sum, vec![vec![0]]));
            if !c.gradient {
                c.out(x.all_reduce(Reduction::Max, vec![vec![0]]));
                c.out(x.all_reduce(Reduction::Min, vec![vec![0]]));
                let large = Host::new([2], &[i64::MAX - 1, i64::MIN + 1]);
                c.out(c.f.constant(&large).all_reduce(Reduction::Sum, vec![vec![0]]));
            }
        }),
        row("sharding_constraint", ALL, Gradient::Exact, |c| {
            c.out(c.x(c.dims::<2>()).with_sharding(Sharding::replicated(2, 1)));
        }),
        row("layout_constraint", ALL, Gradient::Exact, |c| {
            let [a, b] = Tensor::materialized([c.x(c.dims::<2>()), c.x(c.dims::<3>())]);
            c.out(a.row_major());
            c.out(b);
        }),
        row("kernel_call", FLOATS, Gradient::Exact, |c| {
            let shape = c.dims::<2>();
            for gradient in GradientFrom::ALL {
                c.f.kernel(GatedUnit { gradient }, &[c.x(shape), c.x(shape)])
                    .into_iter()
                    .for_each(|y| c.out(y));
            }
        }),
        row(
            "host_call",
            FLOATS,
            Gradient::Refused(
                "a function of the host has no formula; make its call the lowering of a kernel",
            ),
            |c| {
                let (x, y) = (c.x(c.dims::<2>()), c.x(c.dims::<1>()));
                let call = HostCall::new::<Negated>(vec![3, -1], vec![x.ty(), y.ty()]);
                c.f.host_call(call, &[x, y]).into_iter().for_each(|x| c.out(x));
            },
        ),
        row("scan", ALL, Gradient::Exact, |c| {
            let [length, n] = [2 * c.dim(), c.dim()];
            let (start, xs, w) = (c.x([n]), c.x([length, n]), c.x([n]));
            for direction in [Direction::Forward, Direction::Reverse] {
                for unroll in if direction == Direction::Forward { [1, length] } else { [2, 1] } {
                    let options = ScanOptions { length, unroll, direction };
                    let count = c.f.full(Type::scalar(DType::I32), 0.0);
                    let (carries, outputs) = c.f.scan(options, &[start, count], &[xs], |g, carry, x| {
                        let next = carry[0].max(x[0]).min(g.capture(w));
                        (vec![next, carry[1] + 1], vec![next, carry[1], x[0]])
                    });
                    carries.into_iter().chain(outputs).for_each(|x| c.out(x));
                }
            }
        }),
        row(
            "while",
            NUMBERS,
            Gradient::Refused(
                "the number of iterations is unknown; use `scan`, or `stop_gradient` on what enters the loop",
            ),
            |c| {
                let (x, step, limit) = (c.x([3]), c.positive([3]), c.f.scalar(5i32));
                let count = c.f.scalar(0i32);
                let results = c.f.while_loop(
                    &[count, x],
                    |g, carry| carry[0].lt(g.capture(limit)),
                    |g, carry| vec![carry[0] + 1, carry[1] + g.capture(step)],
                );
                results.into_iter().for_each(|x| c.out(x));
                c.f.while_loop(&[count], |_, n| n[0].lt(7), |_, n| vec![n[0] + 3])
                    .into_iter()
                    .for_each(|x| c.out(x));
            },
        ),
        row("cond", ALL, Gradient::Exact, |c| {
            let shape = c.dims::<2>();
            let (x, y) = (c.x(shape), c.x(shape));
            for predicate in
                [c.bools([]), c.f.zeros(Type::scalar(DType::Bool)), c.f.full(Type::scalar(DType::Bool), 1.0)]
            {
                let results = c.f.cond(
                    predicate,
                    &[x, y],
                    |_, x| vec![x[0].max(x[1]), x[0]],
                    |_, x| vec![x[1], x[0].min(x[1])],
                );
                results.into_iter().for_each(|x| c.out(x));
            }
        }),
        row("call", ALL, Gradient::Exact, |c| {
            let shape = c.dims::<2>();
            let (x, y) = (c.x(shape), c.x(shape));
            for save in [Save::Everything, Save::Only(vec![])] {
                let results = c.f.call("twice", save, &[x], |g, x| {
                    let first = x[0].max(g.capture(y));
                    let again = g.call("inner", Save::Everything, &[first], |_, x| vec![x[0].min(x[0])]);
                    vec![first, again[0]]
                });
                results.into_iter().for_each(|x| c.out(x));
            }
        }),
        row("threefry", &[DType::U32], Gradient::Constant, |c| {
            // The known answers of the Random123 distribution.
            let word = |words: [u32; 3]| c.given(Array::from_host(&Host::new([3], &words)), false);
            let key = [word([0, !0, 0x1319_8a2e]), word([0, !0, 0x0370_7344])];
            let counter = [word([0, !0, 0x243f_6a88]), word([0, !0, 0x85a3_08d3])];
            let found = threefry(key, counter);
            let wanted =
                [[0x6b20_0159, 0x1cb9_96fc, 0xc492_3a9c], [0x99ba_4efeu32, 0xbb00_2be7, 0x483d_f7a0]];
            for (found, wanted) in found.into_iter().zip(wanted) {
                c.out(found - c.f.constant(&Host::new([3], &wanted)));
            }
        }),
    ]
}
