//! Programs compile for TPU v6e on a machine without one.

use engine::passes;
use engine::pjrt::CompileOptions;
use engine::{
    Backward, CustomCall, DType, Form, Func, Kernel, Program, Save, ShapeError, Sharding, Target, Tensor,
    Type, grad,
};
use kernels::{BLOCK_ROWS, CachedAttention, DiffAttention, HeadNorm, Keys, SwiGlu};
use model::decode::{Drafts, Matrices, Shape, TopTokens, cache_types, tokens_program};
use model::{Config, Preset};
use tests::examples::{Of, backward, forward};
use tests::{Mlp, mlp_step, residual_mlp, tpu};

fn scanned(mlp: Mlp) -> Program {
    Program::build("scanned", |g| {
        let x = g.input("x", Type::f32([mlp.batch, mlp.width]));
        let [gate, up, down] = mlp.weights();
        let weights = [g.input("gate", gate), g.input("up", up), g.input("down", down)];
        let loss = residual_mlp(x, &weights, &Save::Only(vec![]));
        g.output("loss", loss);
        for ((weight, grad), name) in weights.iter().zip(grad(loss, &weights)).zip(["gate", "up", "down"]) {
            g.output_over(name, *weight - grad * 0.01, *weight);
        }
    })
}

#[test]
fn a_training_step_compiles_for_one_chip() {
    let program = mlp_step();
    let memory = program.compile_for(&tpu("v6e:1x1"), &program.options()).unwrap().memory_use().unwrap();
    println!("mlp_step on v6e:1x1: {memory}");
    assert!(memory.arguments > 0 && memory.aliased > 0 && memory.code > 0, "{memory}");
}

#[test]
fn a_scanned_model_compiles_for_one_chip() {
    let mlp = Mlp { layers: 12, batch: 2048, width: 512, hidden: 2048 };
    let memory =
        scanned(mlp).compile_for(&tpu("v6e:1x1"), &CompileOptions::single()).unwrap().memory_use().unwrap();
    println!("{mlp:?} on v6e:1x1: {memory}");
    let weights: usize = mlp.weights().iter().map(Type::bytes).sum();
    assert_eq!(memory.aliased, weights as i64);
    // Each layer keeps what enters it; beside these, the weights' gradients, and the values of one layer.
    let kept = (mlp.layers * mlp.batch * mlp.width * 4 + weights) as i64;
    let working = memory.temporaries - kept;
    assert!((0..8 * mlp.hidden_bytes() as i64).contains(&working), "{memory}, of these kept: {kept}");
}

#[test]
fn a_sharded_program_compiles_for_four_chips() {
    let cut = |tiles: [usize; 2]| Sharding { tiles: tiles.to_vec(), devices: 4 };
    let program = Program::build("sharded", |g| {
        let x = g.input_sharded("x", Type::f32([4096, 1024]), cut([4, 1]));
        let w = g.input("w", Type::f32([1024, 1024]));
        let y = x.matmul(w).tanh();
        let loss = (y * y).mean(&[0, 1]);
        g.output("loss", loss);
        g.output_over("w", w - grad(loss, &[w])[0] * 0.1, w);
        g.output_sharded("y", y, cut([4, 1]));
    });
    let four = program.compile_for(&tpu("v6e:2x2"), &program.options()).unwrap();
    let memory = four.memory_use().unwrap();
    println!("sharded on v6e:2x2, each chip: {memory}");
    // A chip holds a quarter of x and y, and all of w.
    assert_eq!(four.output_types().unwrap()[2], Type::f32([1024, 1024]));
    let (rows, w) = (1024 * 1024 * 4, 1024 * 1024 * 4);
    assert_eq!((memory.arguments, memory.aliased), (rows + w, w));

    let replicas = Program::build("replicas", |g| {
        let x = g.input("x", Type::f32([256, 256]));
        g.output("sum", x.all_reduce_sum(vec![vec![0, 1, 2, 3]]));
    });
    replicas.compile_for(&tpu("v6e:2x2"), &CompileOptions::replicated(4)).unwrap();
}

/// `x + x` of one tile, written for the TPU as a kernel that overwrites its operand.
#[derive(Debug)]
struct Twice;

/// The kernel in Mosaic; one load, one addition, one store.
const MOSAIC: &str = r#"func.func @main(%x: memref<8x128xf32, #tpu.memory_space<vmem>>, %o: memref<8x128xf32, #tpu.memory_space<vmem>>) attributes {tpu.core_type = #tpu.core_type<tc>} {
  %c = arith.constant 0 : index
  %v = vector.load %x[%c, %c] : memref<8x128xf32, #tpu.memory_space<vmem>>, vector<8x128xf32>
  %s = arith.addf %v, %v : vector<8x128xf32>
  vector.store %s, %o[%c, %c] : memref<8x128xf32, #tpu.memory_space<vmem>>, vector<8x128xf32>
  return
}
"#;

impl Kernel for Twice {
    fn name(&self) -> String {
        "twice".to_owned()
    }
    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        if args == [Type::f32([8, 128])] {
            Ok(args.to_vec())
        } else {
            Err(ShapeError("wants one tile".to_owned()))
        }
    }
    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        vec![args[0] + args[0]]
    }
    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], cts: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::Grads(vec![Some(cts[0].builder().kernel(Twice, cts)[0])])
    }
    fn differentiable(&self) -> usize {
        1
    }
    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }
    fn lower(&self, args: &[Type], target: Target, choice: Option<Form>) -> Option<(Form, Func)> {
        if target != Target::TpuV6e || choice == Some(Form::Portable) {
            return None;
        }
        let body = base64(MOSAIC.as_bytes());
        Some((
            Form::Native,
            CustomCall {
                target: "tpu_custom_call".to_owned(),
                backend_config: format!(
                    r#"{{"custom_call_config":{{"body":"{body}","needs_layout_passes":true}}}}"#
                ),
                kernel_name: self.name(),
                results: args.to_vec(),
                aliases: vec![(0, 0)],
                interpreter: None,
                in_place: None,
            }
            .alone(args),
        ))
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(three.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i)) as usize % 64] as char;
            text.push(if i <= three.len() { letter } else { '=' });
        }
    }
    text
}

#[test]
fn a_native_kernel_compiles_in_place_with_its_gradient() {
    let program = Program::build("native", |g| {
        let x = g.input("x", Type::f32([8, 128]));
        let [y] = Tensor::materialized([g.kernel(Twice, &[x])[0]]);
        let loss = (y * y).mean(&[0, 1]);
        g.output_over("x", x - grad(loss, &[x])[0], x);
        g.output("loss", loss);
    });
    let (native, forms) = passes::lower(&program, Target::TpuV6e, None);
    assert_eq!(forms, [("twice".to_owned(), Form::Native)]);
    let executable = native.compile_for(&tpu("v6e:1x1"), &native.options()).unwrap();
    let memory = executable.memory_use().unwrap();
    println!("native kernel on v6e:1x1: {memory}");
    assert_eq!(memory.aliased, 8 * 128 * 4);
    // The compiler kept the kernels: their name is in what it made.
    let optimized = executable.optimized_program().unwrap().code;
    let calls = optimized.windows(15).filter(|window| window == b"tpu_custom_call").count();
    assert!(calls >= 2, "{calls} calls of the forward and the backward kernel");
}

/// Attention of a layer and micro-batch of `1b` with its gradient, and SwiGLU, whose gradient has no native form there.
#[test]
fn the_kernels_compile_at_the_shapes_of_1b() {
    let bf16 = |shape: Vec<usize>| Type::new(DType::Bf16, shape);
    let (batch, d) = (8, 128);
    for seq in [2048, 8192] {
        let program = Program::build("attention", |f| {
            let kernel = DiffAttention {
                heads: 6,
                groups: 2,
                head_dim: d,
                value_dim: 2 * d,
                keys: Keys::PerMap,
                norm: HeadNorm::Rms { eps: 1e-5 },
                cap: 0.0,
                rows: BLOCK_ROWS,
                tiling: None,
            };
            let qkv = f.input("qkv", bf16(vec![batch, seq, 2560]));
            let table = |name: &str| f.input(name, Type::f32([seq, d / 2]));
            let lambda = f.input("lambda", Type::scalar(DType::F32));
            let starts = f.input("starts", Type::i32([batch, seq]));
            let y = f.kernel(kernel, &[qkv, table("cos"), table("sin"), lambda, starts])[0];
            let loss = (y.convert(DType::F32) * f.input("ct", y.ty()).convert(DType::F32)).sum_all();
            f.output("d_qkv", grad(loss, &[qkv])[0]);
        });
        let forms = compiled_natively(&program);
        let native = forms.iter().filter(|(_, form)| *form == Form::Native).count();
        assert_eq!(native, 2, "forward and backward: {forms:?}");
    }
    let (n, m, i) = (batch * 2048, 1536, 4096);
    for rate in [0.0, 0.1] {
        let program = Program::build("swiglu", |f| {
            let mut args = vec![f.input("x", bf16(vec![n, m])), f.input("scale", Type::f32([n]))];
            args.extend(["gate", "up"].map(|name| f.input(name, bf16(vec![m, i]))));
            args.push(f.input("down", bf16(vec![i, m])));
            if rate > 0.0 {
                let words = [("rows", n), ("columns", i)];
                args.extend(words.map(|(name, count)| f.input(name, Type::new(DType::U32, [count]))));
            }
            for (name, result) in ["y", "g", "u"].into_iter().zip(f.kernel(SwiGlu { rate }, &args)) {
                f.output(name, result);
            }
        });
        let forms = compiled_natively(&program);
        assert!(forms.iter().all(|(_, form)| *form == Form::Native), "{forms:?}");
    }
}

/// Compiles for v6e what asks for native forms; which kernels have them.
fn compiled_natively(program: &Program) -> Vec<(String, Form)> {
    let (native, forms) = passes::lower(program, Target::TpuV6e, Some(Form::Native));
    let executable = native.compile_for(&tpu("v6e:1x1"), &CompileOptions::single()).unwrap();
    println!("{}: {}", program.name(), executable.memory_use().unwrap());
    forms
}

/// Every native form of the list of kernels, and its gradient.
#[test]
fn native_kernels_compile() {
    for example in kernels::all().iter().filter(|example| example.native.contains(&Target::TpuV6e)) {
        let forms = compiled_natively(&forward(example));
        assert!(
            forms.iter().any(|(name, form)| *form == Form::Native && *name == example.kernel.name()),
            "{forms:?}"
        );
        if !example.wrt.is_empty() {
            compiled_natively(&backward(example, Of::Kernel));
        }
    }
}

/// A layer of `1b`, in both forms of attention: queries of so many new tokens against a cache.
fn cached_attention(key_maps: usize, tokens: usize, slots: usize) -> Program {
    let (b, h, d) = (8, 12 / key_maps, 128);
    let (groups, e) = (4 / key_maps, key_maps * d);
    let bf16 = |shape: [usize; 3]| Type::new(DType::Bf16, shape);
    Program::build("cached", |f| {
        let q = f.input("q", Type::new(DType::Bf16, [b, tokens, h, 2, d]));
        let keys = f.input("keys", bf16([b * groups * key_maps, d, slots]));
        let values = f.input("values", bf16([b * groups * 2, slots, e / 2]));
        let slot = f.input("slot", Type::i32([b]));
        let (norm, of_tokens) = match key_maps {
            1 => (HeadNorm::None, vec![b, tokens, h]),
            _ => (HeadNorm::Rms { eps: 1e-5 }, vec![]),
        };
        let lambda = f.input("lambda", Type::f32(of_tokens));
        let kernel = CachedAttention { norm, cap: 0.0, block: None };
        f.output("y", f.kernel(kernel, &[q, keys, values, slot, lambda])[0]);
    })
}

#[test]
fn attention_to_a_cache_compiles() {
    let form = |program: &Program, choice| passes::lower(program, Target::TpuV6e, choice).1[0].1;
    for (tokens, slots) in [(1, 2048), (2, 2048), (1, 8192), (2, 8192), (1, 256), (2, 1280)] {
        for key_maps in [2, 1] {
            let program = cached_attention(key_maps, tokens, slots);
            assert_eq!(form(&program, None), Form::Native);
            let (native, _) = passes::lower(&program, Target::TpuV6e, None);
            native.compile_for(&tpu("v6e:1x1"), &CompileOptions::single()).unwrap();
        }
    }
    let program = cached_attention(2, 1, 2048);
    assert_eq!(form(&program, Some(Form::Portable)), Form::Reference);
    assert_eq!(form(&program, Some(Form::Reference)), Form::Reference);
    // A chunk of a prompt, and a cache that is not made of blocks.
    assert_eq!(form(&cached_attention(2, 64, 2048), None), Form::Reference);
    assert_eq!(form(&cached_attention(2, 1, 2000), None), Form::Reference);
}

/// Decoding reads the cache through the kernel and writes it in place: nothing of its size is copied.
#[test]
fn decoding_compiles_with_its_cache_in_place() {
    let config =
        Config { num_hidden_layers: 2, vocab_size: 4096, num_tokens: 4096, ..Config::preset(Preset::OneB) };
    let shape = Shape { rows: 8, slots: 2048, matrices: Matrices::RowMajor };
    let program = tokens_program(&config, shape, Drafts::SecondHead, TopTokens::Off);
    let (program, forms) = passes::lower(&program, Target::TpuV6e, None);
    let native: Vec<_> = forms.iter().filter(|(_, form)| *form == Form::Native).collect();
    assert!(native.len() == 1 && native[0].0.starts_with("cached_attention("), "{forms:?}");
    let executable = program.compile_for(&tpu("v6e:1x1"), &program.options()).unwrap();
    let memory = executable.memory_use().unwrap();
    println!("decoding on v6e:1x1: {memory}");
    let (mut whole, mut largest) = (0, 0);
    cache_types(&config, shape).map(|_, ty| {
        whole += ty.bytes() as i64;
        largest = largest.max(ty.bytes() as i64);
    });
    assert!(memory.aliased >= whole, "{memory}");
    assert!(memory.temporaries < largest, "{memory}");
}
