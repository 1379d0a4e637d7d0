//! Composites: gradients against finite differences and against the CPU plugin, rematerialisation bit for bit,
//! accumulators, several gradients in one program.

use engine::{
    Array, Backward, Builder, DType, Direction, Form, Func, Host, Kernel, Locations, Node, Program, Rounding,
    Save, ScanOptions, ShapeError, Target, Tensor, Type, evaluate, grad, grad_into, passes,
};
use kernels::{
    BLOCK_ROWS, DiffAttention, Gradients, HeadNorm, Keys, LinearCrossEntropy, RmsNormLinear, SwiGlu,
};
use std::cell::Cell;
use tests::close::assert_close;
use tests::kernel::{GatedUnit, GradientFrom};
use tests::{
    Case, Random, evaluated, gradient_of, lowered, message_of, panic_of, property, run_on_cpu, sample, seeds,
};

/// Random shapes and values against finite differences; the first ones on the CPU plugin too, which compiles slowly.
fn check(build: impl for<'f> Fn(&Case<'f>)) {
    let compiled = Cell::new(0);
    property(24, &seeds(), |(seed, extent)| {
        let gradient = gradient_of(seed, extent, &build);
        gradient.check(seed);
        if compiled.replace(compiled.get() + 1) < 2 {
            gradient.sample.check_on_cpu();
        }
    });
}

fn softmax<'f>(x: Tensor<'f>) -> Tensor<'f> {
    let last = x.rank() - 1;
    let kept: Vec<usize> = (0..last).collect();
    let e = (x - x.reduce_max(&[last]).stop_gradient().along(x, &kept)).exp();
    e / e.sum(&[last]).along(e, &kept)
}

fn layer_norm<'f>(x: Tensor<'f>, gain: Tensor<'f>) -> Tensor<'f> {
    let centred = x - x.mean(&[1]).along(x, &[0]);
    let scale = ((centred * centred).mean(&[1]) + 1e-3).rsqrt();
    centred * scale.along(x, &[0]) * gain.along(x, &[1])
}

#[test]
fn a_perceptron() {
    check(|c| {
        let [n, d, h] = c.dims();
        let (x, w, b, v) = (c.x([n, d]), c.x([d, h]), c.x([h]), c.x([h]));
        let hidden = x.matmul(w); // [n, h]
        c.out((hidden + b.along(hidden, &[1])).tanh().matmul(v)); // [n]
    });
}

#[test]
fn softmax_and_cross_entropy() {
    check(|c| {
        let [n, vocabulary] = c.dims();
        let x = c.x([n, vocabulary]);
        c.out(softmax(x));
        let labels = c.indices(DType::I32, vocabulary, [n]);
        let top = x.reduce_max(&[1]).stop_gradient();
        let total = (x - top.along(x, &[0])).exp().sum(&[1]).log() + top;
        let ids = c.f.iota(x.ty().with_dtype(DType::I32), 1);
        let chosen = ids.eq(labels.along(ids, &[0])).select(x, 0.0).sum(&[1]);
        c.out((total - chosen).mean(&[0]));
    });
}

#[test]
fn layer_norms() {
    check(|c| {
        let [n, d] = [c.dim(), c.dim() + 1];
        c.out(layer_norm(c.x([n, d]), c.x([d])));
    });
}

#[test]
fn attention() {
    check(|c| {
        let [b, h, s, d] = c.dims();
        let (q, k, v) = (c.x([b, s, h, d]), c.x([b, s, h, d]), c.x([b, s, h, d]));
        let scores = q.einsum("bqhd,bkhd->bhqk", k) * 0.5;
        let mask = Tensor::lower_triangle(c.f, s, s, 0).along(scores, &[2, 3]);
        let weights = softmax(mask.select(scores, -1e9));
        c.out(weights.einsum("bhqk,bkhd->bqhd", v));
    });
}

#[test]
fn values_used_several_times_and_through_broadcasts() {
    check(|c| {
        let [n, d] = c.dims();
        let (x, scale) = (c.x([n, d]), c.x([]));
        let y = x * x + x.sin() * scale;
        c.out(y * y + y.exp() * scale + x);
        c.out(x.einsum("nd,md->nm", x));
        c.out(scale.broadcast_in_dim([n, d], &[]) * scale * x.sum_all());
        c.out(Tensor::concatenate(&[x, x, y], 0).reshape([3 * n * d]));
        c.out(
            x.gather(c.indices(DType::I32, n, [3]))
                * x.slice_axis(0, 0, 1).reshape([d]).broadcast_in_dim([3, d], &[1]),
        );
    });
}

/// A recurrence with everything a scan can have.
fn everything<'f>(c: &Case<'f>, direction: Direction, unroll: usize) {
    let [half, n] = c.dims();
    let length = 2 * half;
    let (start, xs, ys) = (c.x([n]), c.x([length, n]), c.x([length]));
    let (w, unused) = (c.x([n, n]), c.x([length, n]));
    let zero = c.f.zeros(Type::new(DType::F64, [n]));
    let count = c.f.zeros(Type::scalar(DType::I32));
    let options = ScanOptions { length, unroll, direction };
    let (carries, outputs) = c.f.scan(options, &[start, zero, count], &[xs, ys, unused], |g, carry, x| {
        let (w, again) = (g.capture(w), g.capture(w));
        let state = (w.matmul(carry[0]) * 0.3 + x[0] * x[1]).tanh();
        // starts as a constant, becomes a function of everything
        let sum = carry[1] + again.matmul(state) * carry[2].convert(DType::F64);
        (vec![state, sum, carry[2] + 1], vec![state * sum, carry[2], x[0], state.exp()])
    });
    c.out(carries[1]);
    c.out(outputs[0]);
    c.out(outputs[2]);
    // a stack that is scanned, and used beside the scan
    c.out(xs * xs);
}

#[test]
fn scans() {
    check(|c| everything(c, Direction::Forward, 1));
}

#[test]
fn scans_in_reverse() {
    check(|c| everything(c, Direction::Reverse, 1));
}

#[test]
fn unrolled_scans() {
    check(|c| everything(c, Direction::Forward, 2));
    check(|c| everything(c, Direction::Reverse, 2));
}

#[test]
fn a_stack_that_is_also_captured_and_carried() {
    check(|c| {
        let n = c.dim();
        let (x, start) = (c.x([3, n]), c.x([n]));
        let (carries, outputs) = c.f.scan(ScanOptions::over(3), &[x, start], &[x, x], |g, carry, s| {
            let all = g.capture(x);
            let next = carry[0] * all + s[0].along(all, &[1]);
            (vec![next, carry[1] * s[1]], vec![all.sum(&[0]) * s[1], carry[1]])
        });
        carries.into_iter().chain(outputs).for_each(|y| c.out(y));
    });
}

#[test]
fn nested_scans() {
    check(|c| {
        let [outer, inner, n] = c.dims();
        let (xs, w, start) = (c.x([outer, inner, n]), c.x([inner, n]), c.x([n]));
        let (carries, outputs) = c.f.scan(ScanOptions::over(outer), &[start], &[xs], |g, carry, x| {
            let w = g.capture(w);
            let (carries, sums) = g.scan(ScanOptions::over(inner), carry, &[x[0], w], |h, carry, x| {
                let state = (carry[0] * x[1] + x[0]).sin() + h.capture(w).sum(&[0]);
                (vec![state], vec![state * x[0]])
            });
            (carries, vec![sums[0].sum(&[0])])
        });
        carries.into_iter().chain(outputs).for_each(|y| c.out(y));
    });
}

#[test]
fn conditionals() {
    check(|c| {
        let n = c.dim();
        let (x, w, b) = (c.x([n, n]), c.x([n]), c.x([n]));
        for predicate in [c.bools([]), c.bools([])] {
            let results = c.f.cond(
                predicate,
                &[x, w, b],
                |g, x| {
                    let call = g.call("in_branch", Save::Only(vec![]), &[x[0], x[1]], |_, x| {
                        vec![x[0].matmul(x[1]).tanh()]
                    });
                    vec![call[0], x[1] * x[1]]
                },
                // the first operand has no part in this branch
                |_, x| vec![x[1] * x[2], x[2].sin()],
            );
            results.into_iter().for_each(|y| c.out(y));
        }
    });
}

fn policies() -> [Save; 3] {
    [Save::Everything, Save::Only(vec!["hidden".to_owned()]), Save::Only(vec![])]
}

/// Layers with a residual, each a call with a policy, scanned; a nested scan and a nested call inside.
fn layers<'f>(c: &Case<'f>, save: &Save) -> Tensor<'f> {
    let [length, n, d] = c.dims();
    let (x, w, v, gain) = (c.x([n, d]), c.x([length, d, d]), c.x([length, d, d]), c.x([d]));
    let (y, _) = c.f.scan(ScanOptions::over(length), &[x], &[w, v], |g, carry, layer| {
        let gain = g.capture(gain);
        let y = g.call("layer", save.clone(), &[carry[0], layer[0], layer[1]], |h, x| {
            let hidden = x[0].matmul(x[1]).tanh().named("hidden"); // [n, d]
            let gain = h.capture(gain);
            let gated = h.call("gate", save.clone(), &[hidden], |k, x| {
                vec![x[0] * k.capture(gain).along(x[0], &[1]).logistic()]
            });
            let (sum, _) =
                h.scan(ScanOptions::over(2), &[gated[0]], &[], |_, x, _| (vec![x[0].sin() + x[0]], vec![]));
            vec![x[0] + sum[0].matmul(x[2])]
        });
        (y, vec![])
    });
    y[0]
}

#[test]
fn rematerialised_layers() {
    for save in policies() {
        check(|c| c.out(layers(c, &save)));
    }
}

/// The policy changes what is kept, not one bit of what is computed.
#[test]
fn rematerialisation_changes_no_bit() {
    let run = Cell::new(0);
    property(6, &seeds(), |(seed, extent)| {
        let samples = policies().map(|save| gradient_of(seed, extent, |c| c.out(layers(c, &save))).sample);
        let wanted = evaluated(&samples[0].program, &samples[0].args);
        let on_cpu = run.replace(run.get() + 1) < 2;
        let reference = on_cpu.then(|| run_on_cpu(&lowered(&samples[0].program), &samples[0].args));
        for other in &samples[1..] {
            assert!(evaluated(&other.program, &other.args) == wanted);
            if let Some(reference) = &reference {
                assert!(run_on_cpu(&lowered(&other.program), &other.args) == *reference);
            }
        }
    });
}

/// A block that names a value: flat, or with the value in a call in a call, both of which keep everything.
fn naming<'f>(c: &Case<'f>, save: &Save, nested: bool) -> Tensor<'f> {
    fn hidden<'g>(x: &[Tensor<'g>]) -> Vec<Tensor<'g>> {
        vec![x[0].matmul(x[1]).tanh().named("hidden")] // [n, d]
    }
    let [n, d] = c.dims();
    let (x, w, v) = (c.x([n, d]), c.x([d, d]), c.x([d, d]));
    let block = c.f.call("block", save.clone(), &[x, w, v], |g, x| {
        let hidden = match nested {
            false => hidden(&x[..2])[0],
            true => g.call("outer", Save::Everything, &x[..2], |h, x| {
                h.call("inner", Save::Everything, x, |_, x| hidden(x))
            })[0],
        };
        vec![x[0] + (hidden * 0.5).sin().matmul(x[2])]
    });
    block[0]
}

/// How often an op stands in a function and its bodies.
fn count(func: &Func, op: &str) -> usize {
    let of = |node: &Node| {
        let within: usize = node.op.bodies().into_iter().map(|body| count(body, op)).sum();
        within + usize::from(node.op.name() == op)
    };
    func.nodes().iter().map(of).sum()
}

/// A name in a nested call keeps its value as it does outside: nothing but what the policy asks for is computed again.
#[test]
fn names_in_nested_calls_are_kept() {
    // Two products and their four gradients; tanh, whose gradient wants its result; sin, whose result the gradient of the
    // second product wants.
    let wanted = [[6, 1, 1], [6, 1, 2], [7, 2, 2]];
    for (save, wanted) in policies().into_iter().zip(wanted) {
        check(|c| c.out(naming(c, &save, true)));
        let [flat, nested] =
            [false, true].map(|nested| gradient_of(5, 3, |c| c.out(naming(c, &save, nested))).sample);
        for sample in [&flat, &nested] {
            let found = ["dot_general", "tanh", "sine"].map(|op| count(sample.program.main(), op));
            assert_eq!(found, wanted, "{save:?}");
        }
        assert!(evaluated(&nested.program, &nested.args) == evaluated(&flat.program, &flat.args));
    }
}

/// In a loop, a branch, or a call with its own policy, a named value is out of reach: that is said, at the line of the call.
#[test]
fn names_that_cannot_be_kept_are_refused() {
    type Body = for<'g> fn(&'g Builder<'g>, Tensor<'g>) -> Tensor<'g>;
    let bodies: [(&str, Body); 4] = [
        ("scan", |g, x| {
            g.scan(ScanOptions::over(2), &[x], &[], |_, x, _| (vec![x[0].sin().named("h")], vec![])).0[0]
        }),
        ("cond", |g, x| {
            let positive = x.sum_all().gt(g.zeros(Type::scalar(DType::F32)));
            g.cond(positive, &[x], |_, x| vec![x[0].sin().named("h")], |_, x| vec![x[0]])[0]
        }),
        ("while", |g, x| {
            let zero = g.zeros(Type::scalar(DType::F32));
            g.while_loop(&[x], |g, x| x[0].sum_all().lt(g.capture(zero)), |_, x| vec![x[0].exp().named("h")])
                [0]
        }),
        ("call", |g, x| g.call("own", Save::Only(vec![]), &[x], |_, x| vec![x[0].sin().named("h")])[0]),
    ];
    for (region, body) in bodies {
        let build = |kept: &str| {
            Program::build("named", |f| {
                let x = f.input("x", Type::f32([2]));
                let kept = Save::Only(vec![kept.to_owned()]);
                let y = f.call("block", kept, &[x], |g, x| {
                    g.call("plain", Save::Everything, x, |h, x| vec![body(h, x[0])])
                });
                f.output("y", y[0]);
            })
        };
        build("another");
        let panic = panic_of(|| drop(build("h"))).expect("it should have panicked");
        let wanted = format!(
            "call block: it cannot keep `h`, which stands in the {region} of tests/engine/gradients.rs"
        );
        assert!(panic.message.contains(&wanted), "{}", panic.message);
        assert!(panic.at.contains("tests/engine/gradients.rs"), "{}", panic.at);
    }
}

#[test]
fn kernels() {
    for gradient in GradientFrom::ALL {
        check(|c| {
            let [n, d, length] = c.dims();
            let (x, w, xs) = (c.x([n, d]), c.x([n, d]), c.x([length, n, d]));
            let y = c.f.kernel(GatedUnit { gradient }, &[x * x, w])[0];
            let (last, _) = c.f.scan(ScanOptions::over(length), &[y], &[xs], |g, carry, s| {
                let y = g.call("unit", Save::Only(vec![]), &[carry[0], s[0]], |h, x| {
                    h.kernel(GatedUnit { gradient }, x)
                });
                (y, vec![])
            });
            c.out(last[0]);
        });
    }
}

/// `x y`, whose gradient leaves out the one by y.
#[derive(Debug)]
struct Forgetful;

impl Kernel for Forgetful {
    fn name(&self) -> String {
        "forgetful".to_owned()
    }
    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        Ok(vec![args[0].clone()])
    }
    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        vec![args[0] * args[1]]
    }
    fn vjp<'f>(&self, args: &[Tensor<'f>], _: &[Tensor<'f>], cts: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::Grads(vec![Some(cts[0] * args[1]), None])
    }
    fn differentiable(&self) -> usize {
        1
    }
    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }
    fn lower(&self, _: &[Type], _: Target, _: Option<Form>) -> Option<(Form, Func)> {
        None
    }
}

#[test]
fn a_gradient_that_a_kernel_leaves_out_is_missed() {
    let build = |stopped: bool| {
        Program::build("forgetful", |f| {
            let (x, y) = (f.input("x", Type::f32([2])), f.input("y", Type::f32([2])));
            let second = if stopped { y.stop_gradient() } else { y };
            let loss = (f.kernel(Forgetful, &[x, second])[0] + y).sum_all();
            grad(loss, &[x, y]).into_iter().zip(["dx", "dy"]).for_each(|(g, name)| f.output(name, g));
        })
    };
    build(true);
    let message = message_of(|| drop(build(false)));
    assert!(
        message.contains("forgetful gives no gradient for argument 1 (f32[2]), which wants one"),
        "{message}"
    );
}

#[test]
fn attention_by_its_rotation() {
    for (keys, value_dim, groups) in [(Keys::PerMap, 8, 1), (Keys::Shared, 4, 2)] {
        check(|c| {
            let (heads, head_dim, s) = (2, 4, 3);
            let kernel = DiffAttention {
                heads,
                groups,
                head_dim,
                value_dim,
                keys,
                norm: HeadNorm::Rms { eps: 1e-3 },
                cap: 0.0,
                rows: BLOCK_ROWS,
                tiling: None,
            };
            let maps = if keys == Keys::PerMap { 2 } else { 1 };
            let width = 2 * head_dim * heads + maps * head_dim * groups + value_dim * groups;
            let (qkv, lambda) = (c.x([1, s, width]), c.x([]));
            let (cos, sin) = (c.x([s, head_dim / 2]), c.x([s, head_dim / 2]));
            let starts = c.f.zeros(Type::i32([1, s]));
            c.out(c.f.kernel(kernel, &[qkv, cos, sin, lambda, starts])[0]);
        });
    }
}

/// The gradients of linear cross-entropy, which are made with the loss, are results that nothing can be trained through;
/// and a matrix whose gradient goes into a sum has it besides, unless it is stopped.
#[test]
fn cross_entropy_beside_its_own_gradients() {
    let kernel = |gradients| LinearCrossEntropy { cap: 5.0, columns: 5, z_loss: 0.1, gradients };
    for (gradients, others) in [(Gradients::With, [1, 2]), (Gradients::Into, [1, 2])] {
        for through in others {
            let message = message_of(|| {
                drop(Program::build("through", |f| {
                    let (h, w) = (f.input("h", Type::f32([3, 4])), f.input("w", Type::f32([6, 4])));
                    let mut args = vec![h, w, f.zeros(Type::i32([3])), f.full(Type::f32([3]), 1.0)];
                    args.extend((gradients == Gradients::Into).then(|| w.zeros_like()));
                    let results = f.kernel(kernel(gradients), &args);
                    f.output("dh", grad(results[0] + results[through].sum_all(), &[h])[0]);
                }))
            });
            assert!(message.contains("there for the backward pass alone"), "{message}");
        }
    }
    check(|c| {
        let n = c.dim();
        let (h, w, sum) = (c.x([n, 4]), c.x([6, 4]), c.f.zeros(Type::new(DType::F64, [6, 4])));
        let (targets, weights) = (c.indices(DType::I32, 5, [n]), c.x([n]));
        let results = c.f.kernel(kernel(Gradients::Into), &[h, w, targets, weights, sum]);
        c.out(results[0]);
    });
}

/// Where the scale of a row is 0, or every other one is.
#[test]
fn scaled_rows_at_scale_zero() {
    for zeros in [false, true] {
        check(|c| {
            let [n, m, i] = c.dims();
            let scale = (0..n).map(|row| if zeros || row % 2 == 0 { 0.0 } else { 1.5 }).collect::<Vec<f64>>();
            let scale = Array::from_host(&Host::from_f64(Type::new(DType::F64, [n]), &scale));
            let (x, scale, w) = (c.x([n, m]), c.given(scale, true), c.x([m, i]));
            c.out(c.f.kernel(RmsNormLinear, &[x, scale, w])[0]);
            let (gate, up, down) = (c.x([m, i]), c.x([m, i]), c.x([i, m]));
            c.out(c.f.kernel(SwiGlu { rate: 0.0 }, &[x, scale, gate, up, down])[0]);
        });
    }
}

/// Accumulators of every type that holds the tensor's numbers, with the gradient coming out of a product, a gather, a slice
/// and loops; and those that do not hold them are refused.
#[test]
fn accumulators_of_every_wider_type() {
    let floats = [DType::F64, DType::F32, DType::Bf16, DType::F16];
    for (of, into) in floats.into_iter().flat_map(|of| floats.map(|into| (of, into))) {
        let build = || {
            Program::build("into", |f| {
                let x = |name: &str, shape: &[usize]| f.input(name, Type::new(of, shape));
                let wrt = [x("w", &[4, 4]), x("stack", &[3, 4, 4]), x("table", &[5, 4]), x("plain", &[4])];
                let [w, stack, table, plain] = wrt;
                let ids = f.constant(&Host::new([2], &[1i32, 1]));
                let (y, _) = f.scan(ScanOptions::over(3), &[table.gather(ids)], &[stack], |g, y, layer| {
                    (vec![y[0].matmul(layer[0]) + y[0].matmul(g.capture(w))], vec![])
                });
                let row = table.row(f.scalar(2i32));
                let loss = (y[0].sum(&[0]) * plain + row).convert(DType::F32).sum_all();
                let sums: Vec<_> = wrt.iter().map(|t| Some(f.full(t.ty().with_dtype(into), 1.0))).collect();
                for (sum, name) in grad_into(loss, &wrt, &sums).into_iter().zip(["dw", "ds", "dt", "dp"]) {
                    assert_eq!(sum.dtype(), into);
                    f.output(name, sum);
                }
                grad(loss, &wrt)
                    .into_iter()
                    .zip(["w1", "s1", "t1", "p1"])
                    .for_each(|(g, name)| f.output(name, g));
            })
        };
        if !into.holds(of) {
            let message = message_of(|| drop(build()));
            assert!(
                message.contains(&format!("an accumulator for {of}[4,4] has type {into}[4,4]")),
                "{message}"
            );
            continue;
        }
        let program = build();
        let mut random = Random::new(8);
        let args: Vec<Array> =
            program.inputs().iter().map(|port| random.array(port.ty.clone(), -0.5, 0.5)).collect();
        let found = evaluate(&program, &args, Rounding::None);
        for (sum, plain) in found[..4].iter().zip(&found[4..]) {
            let wanted: Vec<f64> = plain.floats().iter().map(|g| g + 1.0).collect();
            // f64 arithmetic in another order.
            assert!(sum.floats().iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-12), "{into} of {of}");
        }
        run_on_cpu(&lowered(&program), &args);
    }
}

#[test]
fn a_kernel_has_a_form_for_each_target() {
    let unit = GatedUnit { gradient: GradientFrom::OwnKernel };
    let program = Program::build("unit", |f| {
        let (x, w) = (f.input("x", Type::f32([2, 3])), f.input("w", Type::f32([2, 3])));
        let y = f.kernel(unit, &[x, w])[0];
        f.output("y", y);
        f.output("dx", grad(y.sum_all(), &[x])[0]);
    });
    let forms = |target, choice| {
        let (lowered, forms) = passes::lower(&program, target, choice);
        let forms: Vec<String> = forms.into_iter().map(|(name, form)| format!("{name} {form:?}")).collect();
        (lowered.text(Locations::Omit), forms.join(", "))
    };
    let (native, chosen) = forms(Target::TpuV6e, None);
    assert_eq!(chosen, "gated_unit_OwnKernel Native, gated_unit_backward Reference");
    for part in [
        "stablehlo.custom_call @gated_unit(%arg0, %arg1)",
        "backend_config = \"{\\22rows\\22: \\22all\\22}\"",
        "kernel_name = \"gated_unit_OwnKernel\"",
        "operand_layouts = [dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>]",
        "output_operand_aliases = [#stablehlo.output_operand_alias<output_tuple_indices = [], operand_index = 0",
    ] {
        assert!(native.contains(part), "no `{part}` in\n{native}");
    }
    let (portable, chosen) = forms(Target::Cpu, None);
    assert_eq!(chosen, "gated_unit_OwnKernel Portable, gated_unit_backward Reference");
    assert!(portable.contains("stablehlo.exponential") && !portable.contains("custom_call"), "{portable}");
    let (reference, chosen) = forms(Target::TpuV6e, Some(Form::Reference));
    assert_eq!(chosen, "gated_unit_OwnKernel Reference, gated_unit_backward Reference");
    assert!(reference.contains("stablehlo.logistic") && !reference.contains("custom_call"), "{reference}");
}

/// `grad_into` gives the sum of accumulator and gradient.
#[test]
fn accumulators_hold_gradients_and_what_was_there() {
    property(8, &seeds(), |(seed, extent)| {
        let both = sample(seed, extent, |c| {
            let [length, rows, d] = c.dims();
            let (table, w, x) = (c.x([rows, d]), c.x([length, d, d]), c.x([d]));
            let ids = c.indices(DType::I32, rows, [5]);
            let (y, _) = c.f.scan(ScanOptions::over(length), &[x], &[w], |_, y, w| {
                (vec![w[0].matmul(y[0]).tanh()], vec![])
            });
            let loss =
                c.weighted(table.gather(ids)) + c.weighted(table.row(c.indices(DType::I32, rows, [])) * y[0]);
            // `y` stands between: what its accumulator holds is no part of the gradient of `w`
            let wrt = [table, w, x, y[0]];
            let accumulators: Vec<_> = wrt.iter().map(|t| Some(c.x(t.shape()))).collect();
            let plain = grad(loss, &wrt);
            plain.iter().zip(&accumulators).for_each(|(&g, a)| c.out(a.unwrap() + g));
            grad_into(loss, &wrt, &accumulators).into_iter().for_each(|sum| c.out(sum));
        });
        let found = evaluate(&both.program, &both.args, Rounding::None);
        let (plain, into) = found.split_at(4);
        for (plain, into) in plain.iter().zip(into) {
            assert_eq!(tests::difference(into, plain), None);
        }
    });
}

/// Micro-batches around layers: the accumulator is carried through both loops and written slice by slice; no second
/// stack of gradients exists, and the sum is the gradient of the summed losses.
#[test]
fn accumulators_are_written_in_place_through_nested_loops() {
    const LAYERS: usize = 3;
    fn loss<'g>(g: &'g Builder<'g>, x: Tensor<'g>, w: Tensor<'g>) -> Tensor<'g> {
        let (y, _) =
            g.scan(ScanOptions::over(LAYERS), &[x], &[w], |_, y, w| (vec![y[0].matmul(w[0]).tanh()], vec![]));
        (y[0] * y[0]).sum_all()
    }
    let build = |accumulate: bool| {
        sample(11, 4, |c| {
            let (w, xs) = (c.x([LAYERS, 5, 5]), c.x([4, 2, 5]));
            let start = w.zeros_like();
            let options = ScanOptions::over(4);
            if accumulate {
                let (sum, _) = c.f.scan(options, &[start], &[xs], |g, sum, x| {
                    let w = g.capture(w);
                    (grad_into(loss(g, x[0], w), &[w], &[Some(sum[0])]), vec![])
                });
                c.out(sum[0]);
            } else {
                let (sum, _) =
                    c.f.scan(options, &[c.f.zeros(Type::scalar(DType::F64))], &[xs], |g, sum, x| {
                        (vec![sum[0] + loss(g, x[0], g.capture(w))], vec![])
                    });
                c.out(grad(sum[0], &[w])[0]);
            }
        })
    };
    let (inside, outside) = (build(true), build(false));
    let (a, b) = (evaluated(&inside.program, &inside.args), evaluated(&outside.program, &outside.args));
    assert_eq!(tests::difference(&a[0], &b[0]), None);
    inside.check_on_cpu();
    outside.check_on_cpu();
    let text = lowered(&inside.program).text(Locations::Omit);
    let sums: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("stablehlo.add") && line.contains("tensor<3x5x5xf64>"))
        .collect();
    assert!(sums.is_empty(), "whole stacks are added: {sums:?}");
}

#[test]
fn several_gradients_in_one_program() {
    property(6, &seeds(), |(seed, extent)| {
        let build = |both: bool| {
            sample(seed, extent, |c| {
                let [length, n] = c.dims();
                let (x, w, u) = (c.x([n]), c.x([length, n]), c.x([n]));
                let f = c.f;
                let (carry, outputs) = f.scan(ScanOptions::over(length), &[x], &[w], |g, y, w| {
                    let y = g.call("step", Save::Only(vec![]), &[y[0], w[0]], |h, x| {
                        vec![(x[0] * x[1] + h.capture(g.capture(u))).sin()]
                    });
                    (y.clone(), vec![y[0] * w[0]])
                });
                let (first, second) = (c.weighted(carry[0]), c.weighted(outputs[0]));
                // The loops are extended for the first gradient, and again for the second.
                let a = grad(first, &[x, w, u]);
                let b = if both { grad(second, &[w, x]) } else { Vec::new() };
                // What was made before is used after.
                let third = c.weighted(carry[0] * carry[0]);
                a.into_iter().for_each(|g| c.out(g));
                c.out(grad(third, &[u])[0]);
                c.out(outputs[0]);
                b.into_iter().for_each(|g| c.out(g));
            })
        };
        let (both, one) = (build(true), build(false));
        let found = evaluated(&both.program, &both.args);
        assert_eq!(passes::verify(&both.program), Ok(()));
        assert!(found[..5] == evaluated(&one.program, &one.args)[..]);
        if extent == 2 {
            both.check_on_cpu();
        }
    });
    // The second gradient is right too.
    check(|c| {
        let [length, n] = c.dims();
        let (x, w) = (c.x([n]), c.x([length, n]));
        let (carry, outputs) = c.f.scan(ScanOptions::over(length), &[x], &[w], |_, y, w| {
            let y = (y[0] * w[0]).sin();
            (vec![y], vec![y * w[0]])
        });
        // It extends the loop, whatever becomes of it.
        let _ = grad(c.weighted(carry[0]), &[w]);
        c.out(outputs[0]);
        c.out(carry[0]);
    });
}

#[test]
fn a_stopped_value_is_a_constant() {
    let program = Program::build("stop", |f| {
        let x = f.input("x", Type::new(DType::F64, [2]));
        let (y, _) =
            f.scan(ScanOptions::over(2), &[x], &[], |_, y, _| (vec![y[0] * y[0].stop_gradient()], vec![]));
        f.output("dx", grad((x.stop_gradient() * x + y[0]).sum_all(), &[x])[0]);
    });
    // d x·[x] = x; two steps of y·[y]: x · x²
    let x = [3.0, -0.5];
    let found = evaluated(&program, &[Array::from_host(&Host::new([2], &x))]);
    assert_eq!(found[0].floats(), x.map(|x| x + x * x * x));
}

/// The gradient of a `bf16` matrix that is added to an `f32` sum is not rounded on the way, in loops and outside.
#[test]
fn narrow_weights_have_wide_sums() {
    let (rows, m, layers) = (16, 8, 3);
    let program = Program::build("wide", |f| {
        let narrow = |name: &str, shape: &[usize]| f.input(name, Type::new(DType::Bf16, shape));
        let (x, w, stack) = (narrow("x", &[rows, m]), narrow("w", &[m, m]), narrow("stack", &[layers, m, m]));
        let sums = [f.input("sum", Type::f32([m, m])), f.input("sums", Type::f32([layers, m, m]))];
        let (y, _) = f.scan(ScanOptions::over(layers), &[x.matmul(w)], &[stack], |_, y, w| {
            (vec![y[0].matmul(w[0]) + y[0]], vec![])
        });
        let loss = y[0].convert(DType::F32).sum_all();
        for (name, sum) in ["dw", "d_stack"].into_iter().zip(grad_into(loss, &[w, stack], &sums.map(Some))) {
            assert_eq!(sum.dtype(), DType::F32);
            f.output(name, sum);
        }
    });
    let mut random = Random::new(4);
    // The sums begin at 0: what they are in the end is the gradient.
    let mut arg = |ty: &Type| match ty.dtype {
        DType::Bf16 => random.array(ty.clone(), -1.0, 1.0),
        _ => Array::from_host(&Host::zeros(ty.clone())),
    };
    let args: Vec<Array> = program.inputs().iter().map(|port| arg(&port.ty)).collect();
    let found = evaluate(&program, &args, Rounding::EachOp);
    let narrow = |x: &f64| Host::from_f64(Type::new(DType::Bf16, []), &[*x]).to_f64()[0];
    for (sums, count) in found.iter().zip([m * m, layers * m * m]) {
        let wide = sums.floats().iter().filter(|sum| narrow(sum) != **sum).count();
        assert!(wide > count / 2, "{wide} of {count} are sums that bf16 cannot hold");
    }
    let exact = evaluate(&program, &args, Rounding::None);
    for (found, exact) in found.iter().zip(&exact) {
        // y and its cotangent are rounded to bf16 in each layer: six times in a row, by 2^-9 on average.
        assert_close("wide sum", found.floats(), exact.floats(), 6.0 * 2f64.powi(-9));
    }
}
