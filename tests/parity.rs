//! The whole model against `golden/tiny_model`, which was computed in f64 by another implementation.

use engine::passes;
use engine::pjrt::Client;
use engine::plugin::Platform;
use engine::{DType, Host, KernelChoice, Program, Target, Type, grad};
use kernels::Gradients;
use model::loss::{Counts, losses};
use model::{Batch, Config, Params, Remat, specs, token_log_probs};
use safetensors::SafeTensors;
use std::path::PathBuf;

fn golden(file: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/tiny_model").join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn config() -> Config {
    Config::from_json(std::str::from_utf8(&golden("config.json")).unwrap()).unwrap()
}

/// Parameters of a golden file, stacked and transposed as the program wants them.
fn params(file: &str) -> Params<Host> {
    let bytes = golden(file);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    specs(&config()).map(|_, spec| {
        let mut values = Vec::new();
        for entry in spec.entries() {
            let view = tensors.tensor(&entry.name).unwrap();
            let found: Vec<f32> = match view.dtype() {
                safetensors::Dtype::F32 => bytemuck::allocation::pod_collect_to_vec::<u8, f32>(view.data()),
                other => panic!("{other:?}"),
            };
            assert_eq!(view.shape(), entry.ty.shape);
            match entry.layout {
                model::params::Layout::Same => values.extend(found),
                model::params::Layout::Transposed => {
                    let (rows, columns) = (entry.ty.shape[0], entry.ty.shape[1]);
                    values.extend((0..columns).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| found[r * columns + c]));
                }
            }
        }
        Host::new(spec.ty.shape.clone(), &values)
    })
}

#[test]
fn log_probabilities_losses_and_gradients() {
    let config = config();
    let expected: serde_json::Value = serde_json::from_slice(&golden("expected.json")).unwrap();
    println!("{:?}", expected.as_object().unwrap().keys().collect::<Vec<_>>());
    let ints = |v: &serde_json::Value| -> Vec<i32> {
        v.as_array().unwrap().iter().flat_map(|r| r.as_array().unwrap()).map(|x| x.as_i64().unwrap() as i32).collect()
    };
    let ids = Host::new([2, 64], &ints(&expected["ids"][0]));
    let seg = Host::new([2, 64], &ints(&expected["seg"][0]));
    let program = Program::build("parity", |f| {
        let p = specs(&config).map(|name, spec| f.input(name, spec.ty));
        let batch = Batch { ids: f.input("ids", Type::i32([2, 64])), segments: f.input("segments", Type::i32([2, 64])) };
        let (next, after) = token_log_probs(&config, &p, batch);
        let counts = Counts::of(batch.segments);
        let l = losses(&config, &p, batch, counts, None, Remat::Selective, Gradients::With);
        f.output("next", next);
        f.output("after", after.unwrap());
        f.output("total", l.total);
        f.output("main", l.main);
        f.output("mtp", l.mtp);
        let wrt: Vec<_> = p.iter().map(|(_, t)| *t).collect();
        for ((name, _), g) in p.iter().zip(grad(l.total, &wrt)) {
            f.output(&format!("d.{name}"), g);
        }
    });
    let (program, forms) = passes::lower(&program, Target::Cpu, KernelChoice::Auto);
    println!("{forms:?}");
    let client = Client::new(&Platform::Cpu.load().unwrap(), &[]).unwrap();
    let compiled = program.compile(&client).unwrap();
    let mut args: Vec<Host> = params("model.safetensors").into_flat().into_iter().map(|(_, h)| h).collect();
    args.extend([ids, seg]);
    let out = compiled.call(&args).unwrap();
    println!("loss {:?} {:?} {:?}", out[2], out[3], out[4]);
    for key in ["loss", "losses", "grad_norms", "grad_norm"] {
        println!("{key} {:?}", expected.get(key));
    }
    let flat = |v: &serde_json::Value| -> Vec<f64> {
        v.as_array().unwrap().iter().flat_map(|r| r.as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect()
    };
    for (k, v) in expected.as_object().unwrap() {
        if let Some(a) = v.as_array() && a[0].is_array() && a[0][0].is_f64() {
            let want = flat(v);
            for o in &out[..2] {
                if o.ty().elements() == want.len() {
                    let err = o.to_f64().iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    println!("{k} {err:e}");
                }
            }
        }
    }
    let want = params("gradients.safetensors");
    for ((name, w), g) in want.iter().zip(&out[5..]) {
        let top = w.to_f64().iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let err = w.to_f64().iter().zip(g.to_f64()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("{name} {:e} of {top:e}", err / top);
    }
    let _ = DType::F32;
}
