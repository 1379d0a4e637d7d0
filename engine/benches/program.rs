//! How long a program takes to be built, printed and passed over: a training step of a transformer with 24 layers,
//! scanned and unrolled. `cargo bench -p engine`

use divan::{Bencher, black_box};
use engine::{Builder, DType, Locations, Program, Save, ScanOptions, Target, Tensor, Type, grad, passes};

const LAYERS: usize = 24;
const BATCH: usize = 4;
const SEQUENCE: usize = 512;
const WIDTH: usize = 1024;
const HEADS: usize = 16;
const HEAD: usize = WIDTH / HEADS;
const HIDDEN: usize = 2816;
const VOCABULARY: usize = 32000;

/// Whether the layers are one scanned body or written out one after the other.
#[derive(Clone, Copy, Debug)]
enum Layers {
    Scanned,
    Unrolled,
}

const LAYOUTS: [Layers; 2] = [Layers::Scanned, Layers::Unrolled];

fn weights() -> [(&'static str, Vec<usize>); 9] {
    [
        ("norm1", vec![WIDTH]),
        ("q", vec![WIDTH, HEADS, HEAD]),
        ("k", vec![WIDTH, HEADS, HEAD]),
        ("v", vec![WIDTH, HEADS, HEAD]),
        ("o", vec![HEADS, HEAD, WIDTH]),
        ("norm2", vec![WIDTH]),
        ("gate", vec![WIDTH, HIDDEN]),
        ("up", vec![WIDTH, HIDDEN]),
        ("down", vec![HIDDEN, WIDTH]),
    ]
}

fn norm<'f>(x: Tensor<'f>, weight: Tensor<'f>) -> Tensor<'f> {
    let x = x.convert(DType::F32);
    let scale = ((x * x).mean(&[2]) + 1e-6).rsqrt(); // [b, s]
    (x * scale.along(x, &[0, 1]) * weight.along(x, &[2])).convert(DType::Bf16)
}

fn softmax(scores: Tensor<'_>) -> Tensor<'_> {
    let shifted = scores - scores.reduce_max(&[3]).stop_gradient().along(scores, &[0, 1, 2]);
    let e = shifted.exp();
    e / e.sum(&[3]).along(e, &[0, 1, 2])
}

fn rotated<'f>(x: Tensor<'f>) -> Tensor<'f> {
    let f = x.builder();
    let half = Type::f32([SEQUENCE, HEAD / 2]);
    let angle = f.iota(half.clone(), 0) * (f.iota(half, 1) * -0.28).exp(); // [s, d/2]
    let [a, b] = [x.slice_axis(3, 0, HEAD / 2), x.slice_axis(3, HEAD / 2, HEAD)];
    let [sin, cos] = [angle.sin(), angle.cos()].map(|t| t.convert(DType::Bf16).along(a, &[1, 3]));
    Tensor::concatenate(&[a * cos - b * sin, b * cos + a * sin], 3) // [b, s, h, d]
}

/// `p`: the weights in the order of [`weights`]; `x [b, s, w]` in bf16.
fn layer<'f>(x: Tensor<'f>, p: &[Tensor<'f>]) -> Tensor<'f> {
    let bf16 = |i: usize| p[i].convert(DType::Bf16);
    let y = norm(x, p[0]);
    let [q, k, v] = [1, 2, 3].map(|i| y.einsum("bsw,whd->bshd", bf16(i)));
    let scores = rotated(q).einsum_as("bshd,bthd->bhst", rotated(k), DType::F32) * 0.125;
    let mask = Tensor::lower_triangle(x.builder(), SEQUENCE, SEQUENCE, 0).along(scores, &[2, 3]);
    let weights = softmax(mask.select(scores, -1e30)).convert(DType::Bf16); // [b, h, s, t]
    let mixed = weights.einsum("bhst,bthd->bshd", v);
    let x = x + mixed.einsum("bshd,hdw->bsw", bf16(4));
    let y = norm(x, p[5]);
    let gate = y.matmul(bf16(6)); // [b, s, hidden]
    x + (gate * gate.logistic() * y.matmul(bf16(7))).named("h").matmul(bf16(8))
}

fn adamw<'f>(f: &'f Builder<'f>, name: &str, p: Tensor<'f>, ct: Tensor<'f>) {
    let [m, v] = ["m", "v"].map(|kind| f.input(&format!("{kind}.{name}"), p.ty()));
    let (next_m, next_v) = (m * 0.9 + ct * 0.1, v * 0.95 + ct * ct * 0.05);
    let step = next_m / (next_v.sqrt() + 1e-8) + p * 0.1;
    f.output_over(&format!("p.{name}"), p - step * 1e-3, p);
    f.output_over(&format!("m.{name}"), next_m, m);
    f.output_over(&format!("v.{name}"), next_v, v);
}

/// Loss, gradients and AdamW.
fn step(layout: Layers) -> Program {
    let save = Save::Only(vec!["h".to_owned()]);
    Program::build("step", |f| {
        let tokens = f.input("tokens", Type::i32([BATCH, SEQUENCE]));
        let labels = f.input("labels", Type::i32([BATCH, SEQUENCE]));
        let table = f.input("p.table", Type::f32([VOCABULARY, WIDTH]));
        let mut names = vec!["table".to_owned()];
        let mut params = vec![table];
        let x = table.convert(DType::Bf16).gather(tokens); // [b, s, w]
        let mut declare = |name: String, shape: Vec<usize>| {
            let tensor = f.input(&format!("p.{name}"), Type::f32(shape));
            names.push(name);
            params.push(tensor);
            tensor
        };
        let x = match layout {
            Layers::Scanned => {
                let stacks: Vec<Tensor<'_>> = (weights().into_iter())
                    .map(|(name, shape)| declare(name.to_owned(), [&[LAYERS], &shape[..]].concat()))
                    .collect();
                let (out, _) = f.scan(ScanOptions::over(LAYERS), &[x], &stacks, |g, carry, slices| {
                    let operands = [carry, slices].concat();
                    (g.call("layer", save.clone(), &operands, |_, v| vec![layer(v[0], &v[1..])]), vec![])
                });
                out[0]
            }
            Layers::Unrolled => (0..LAYERS).fold(x, |x, i| {
                let slices: Vec<Tensor<'_>> = weights()
                    .into_iter()
                    .map(|(name, shape)| declare(format!("{i}.{name}"), shape))
                    .collect();
                layer(x, &slices)
            }),
        };
        let logits = x.einsum_as("bsw,vw->bsv", table.convert(DType::Bf16), DType::F32);
        let max = logits.reduce_max(&[2]).stop_gradient(); // [b, s]
        let normaliser = (logits - max.along(logits, &[0, 1])).exp().sum(&[2]).log() + max;
        let hit = f.iota(logits.ty().with_dtype(DType::I32), 2).eq(labels.along(logits, &[0, 1]));
        let loss = (normaliser - hit.select(logits, 0.0).sum(&[2])).mean(&[0, 1]);
        f.output("loss", loss);
        let cts = grad(loss, &params);
        for ((name, param), ct) in names.iter().zip(&params).zip(cts) {
            adamw(f, name, *param, ct);
        }
    })
}

fn main() {
    for layout in LAYOUTS {
        let program = step(layout);
        let (nodes, text) = (program.main().nodes().len(), program.text(Locations::Omit).len());
        println!("{layout:?}: {nodes} nodes in main, {text} characters");
    }
    divan::main();
}

/// Graph, gradient and optimiser. Wanted: below 100 ms.
#[divan::bench(args = LAYOUTS)]
fn build(bencher: Bencher<'_, '_>, layout: Layers) {
    bencher.bench(|| step(black_box(layout)));
}

/// Wanted: below 50 ms.
#[divan::bench(args = LAYOUTS)]
fn print(bencher: Bencher<'_, '_>, layout: Layers) {
    let program = step(layout);
    bencher.bench(|| black_box(&program).text(Locations::Omit));
}

/// Kernel selection, folding and verification.
#[divan::bench(args = LAYOUTS)]
fn lower(bencher: Bencher<'_, '_>, layout: Layers) {
    let program = step(layout);
    bencher.bench(|| passes::lower(black_box(&program), Target::TpuV6e, None));
}
