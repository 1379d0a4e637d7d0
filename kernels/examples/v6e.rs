//! Compiles one kernel call for a TPU v6e that need not be there.
use engine::pjrt::{CompileOptions, Topology};
use engine::plugin::Platform;
use engine::{DType, KernelChoice, Program, Target, Type, grad, passes};
use kernels::{DiffAttention, HeadNorm, Keys, ROWS, Tiling};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let n = |i: usize| args[i].parse::<usize>().unwrap();
    let backward = args[1] == "backward";
    let (batch, seq) = (n(2), n(3));
    let tiling = Some(Tiling { block: n(4), groups: n(5), heads: n(6) });
    let kernel = DiffAttention {
        heads: 6,
        groups: 2,
        head_dim: 128,
        value_dim: 256,
        keys: Keys::PerMap,
        norm: HeadNorm::Rms { eps: 1e-5 },
        cap: 0.0,
        rows: ROWS,
        tiling,
    };
    let program = Program::build("attention", |f| {
        let qkv = f.input("qkv", Type::new(DType::Bf16, [batch, seq, 2560]));
        let cos = f.input("cos", Type::f32([seq, 64]));
        let sin = f.input("sin", Type::f32([seq, 64]));
        let lambda = f.input("lambda", Type::scalar(DType::F32));
        let starts = f.input("starts", Type::i32([batch, seq]));
        let out = f.kernel(kernel.clone(), &[qkv, cos, sin, lambda, starts]);
        if backward {
            let ct = f.input("ct", out[0].ty());
            let loss = (out[0].convert(DType::F32) * ct.convert(DType::F32)).sum_all();
            for (name, g) in ["dqkv", "dlambda"].into_iter().zip(grad(loss, &[qkv, lambda])) {
                f.output(name, g);
            }
        } else {
            for (name, x) in ["y", "o2", "stats"].into_iter().zip(out) {
                f.output(name, x);
            }
        }
    });
    let (program, forms) = passes::lower(&program, Target::TpuV6e, KernelChoice::Auto);
    println!("{forms:?}");
    let topology = Topology::new(&Platform::Tpu.load().unwrap(), "v6e:1x1", &[]).unwrap();
    let start = std::time::Instant::now();
    match program.compile_for(&topology, &CompileOptions::single()) {
        Ok(executable) => {
            println!("{:.1} s {}", start.elapsed().as_secs_f64(), executable.memory_use().unwrap())
        }
        Err(e) => println!("{}", e.to_string().chars().take(3000).collect::<String>()),
    }
}
