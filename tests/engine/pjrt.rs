//! The PJRT runtime against the CPU plugin, and against libtpu without a TPU. Programs are literal StableHLO.

use engine::pjrt::{
    Arg, Buffer, Client, Code, CompileOptions, Error, ExecutableCache, Loaded, Lookup, Partitioner, Plugin,
    Topology, Value,
};
use engine::plugin::{Platform, Purpose, cache_folder};
use engine::{DType, Host, Type};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn client() -> Client {
    Client::new(&Plugin::of(&Platform::Cpu).unwrap(), &[]).unwrap()
}

fn compile(client: &Client, text: &str) -> Loaded {
    client.compile(text, &CompileOptions::single()).unwrap()
}

/// Runs on the first device with arguments that are kept.
fn run(client: &Client, program: &Loaded, args: &[Host]) -> Vec<Host> {
    let device = &program.devices()[0];
    let args: Vec<Buffer> = args.iter().map(|host| client.to_device(host, device).unwrap()).collect();
    let results = program.run(args.iter().map(Arg::Keep)).unwrap();
    results.iter().map(|buffer| buffer.to_host().unwrap()).collect()
}

/// Numbers that every type holds exactly.
fn sample(ty: Type) -> Host {
    let data: Vec<f64> = (0..ty.elements()).map(|i| (i * 37 % 11) as f64).collect();
    Host::from_f64(ty, &data)
}

const DOUBLE: &str = "func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %y = stablehlo.add %x, %x : tensor<4xf32>
  return %y : tensor<4xf32>
}";

/// The argument's memory may become the result's.
const DONATING: &str =
    "func.func @main(%x: tensor<1024xf32> {tf.aliasing_output = 0 : i32}) -> tensor<1024xf32> {
  %y = stablehlo.add %x, %x : tensor<1024xf32>
  return %y : tensor<1024xf32>
}";

#[test]
fn a_program_compiles_runs_and_tells_about_itself() {
    let client = client();
    let program = compile(&client, DOUBLE);
    let results = run(&client, &program, &[Host::new([4], &[1f32, -2.0, 0.5, 3.0])]);
    assert_eq!(results, [Host::new([4], &[2f32, -4.0, 1.0, 6.0])]);

    assert_eq!(program.output_types().unwrap(), [Type::f32([4])]);
    let memory = program.memory_use().unwrap();
    assert_eq!((memory.arguments, memory.outputs, memory.aliased), (16, 16, 0));
    assert!(matches!(program.cost().unwrap()["flops"], Value::Float(flops) if flops == 4.0));
    let optimized = program.optimized_program().unwrap();
    assert!(!optimized.code.is_empty() && optimized.format.starts_with("hlo"), "{}", optimized.format);
    assert!(program.code_size().is_ok());
    assert!(!program.name().unwrap().is_empty());

    assert_eq!(client.platform_name().unwrap(), "cpu");
    assert_eq!(client.devices().len(), 4);
    assert_eq!(client.devices()[3].id(), 3);
    assert_eq!(client.devices()[0].kind(), "cpu");
    assert_eq!(client.devices()[0].memory_stats().unwrap(), None);
    let attributes = client.plugin().attributes().unwrap();
    assert!(matches!(&attributes["stablehlo_current_version"], Value::Ints(version) if version.len() == 3));
    let two = Client::new(client.plugin(), &[("cpu_device_count", Value::Int(2))]).unwrap();
    assert_eq!(two.devices().len(), 2);
}

#[test]
fn every_type_goes_to_the_device_and_back() {
    let client = client();
    let device = &client.devices()[0];
    for dtype in DType::ALL {
        for shape in [vec![], vec![3], vec![2, 3, 5], vec![0, 4], vec![1000, 7]] {
            let host = sample(Type::new(dtype, shape));
            let copied = client.to_device(&host, device).unwrap();
            assert_eq!(copied.ty(), host.ty());
            assert_eq!(copied.to_host().unwrap(), host);
            let lent = client.lend_to_device(Arc::new(host.clone()), device).unwrap();
            assert_eq!(lent.to_host().unwrap(), host);

            let ty = host.ty().mlir();
            let text = format!("func.func @main(%x: {ty}) -> {ty} {{ return %x : {ty} }}");
            let program = compile(&client, &text);
            assert_eq!(program.output_types().unwrap(), [host.ty().clone()]);
            assert_eq!(run(&client, &program, std::slice::from_ref(&host)), [host]);
        }
    }
}

/// Until all lent memory is given back. The thread that ran a program does it, soon after the results are ready.
#[track_caller]
fn wait_for_lent_memory(client: &Client) {
    let start = Instant::now();
    while client.live().borrowed_hosts > 0 {
        assert!(start.elapsed() < Duration::from_secs(600), "lent memory is not given back");
        std::thread::yield_now();
    }
}

#[test]
fn lent_memory_is_read_in_place_and_let_go_after_use() {
    let client = client();
    let device = &client.devices()[0];
    let host = Arc::new(sample(Type::f32([1024])));
    let buffer = client.lend_to_device(host.clone(), device).unwrap();
    assert_eq!(buffer.address().unwrap(), host.bytes().as_ptr() as usize);
    assert_eq!(client.live().borrowed_hosts, 1);
    // Donating a lent buffer must not write into the lender's memory.
    let before = (*host).clone();
    let program = compile(&client, DONATING);
    let results = program.run([Arg::Donate(buffer)]).unwrap();
    let doubled: Vec<f32> = before.as_slice::<f32>().iter().map(|x| 2.0 * x).collect();
    assert_eq!(results[0].to_host().unwrap(), Host::new([1024], &doubled));
    assert_eq!(*host, before);
    drop(results);
    drop(program);
    wait_for_lent_memory(&client);
    assert_eq!(Arc::strong_count(&host), 1);
}

#[test]
fn a_copy_leaves_the_source_free() {
    let client = client();
    let mut host = sample(Type::f32([1024]));
    let buffer = client.to_device(&host, &client.devices()[0]).unwrap();
    let before = host.clone();
    host.as_mut_slice::<f32>().fill(7.0);
    assert_eq!(buffer.to_host().unwrap(), before);
}

#[test]
fn a_donated_argument_becomes_the_result() {
    let client = client();
    let device = &client.devices()[0];
    let program = compile(&client, DONATING);
    let memory = program.memory_use().unwrap();
    assert_eq!((memory.arguments, memory.outputs, memory.aliased), (4096, 4096, 4096));
    assert_eq!(memory.total(), 4096 + memory.temporaries);

    let host = sample(Type::f32([1024]));
    let doubled: Vec<f32> = host.as_slice::<f32>().iter().map(|x| 2.0 * x).collect();
    let doubled = Host::new([1024], &doubled);
    let argument = client.to_device(&host, device).unwrap();
    let address = argument.address().unwrap();
    let results = program.run([Arg::Donate(argument)]).unwrap();
    assert_eq!(results[0].address().unwrap(), address);
    assert_eq!(results[0].to_host().unwrap(), doubled);

    let argument = client.to_device(&host, device).unwrap();
    let results = program.run([Arg::Keep(&argument)]).unwrap();
    assert_ne!(results[0].address().unwrap(), argument.address().unwrap());
    assert_eq!(results[0].to_host().unwrap(), doubled);
    assert_eq!(argument.to_host().unwrap(), host);
}

#[test]
fn a_loop_updates_a_donated_stack_in_place() {
    let text = "func.func @main(%stack: tensor<64x1024xf32> {tf.aliasing_output = 0 : i32}, %x: tensor<1x1024xf32>) -> tensor<64x1024xf32> {
  %n = stablehlo.constant dense<64> : tensor<i32>
  %one = stablehlo.constant dense<1> : tensor<i32>
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %r:2 = stablehlo.while(%i = %zero, %s = %stack) : tensor<i32>, tensor<64x1024xf32>
    cond {
      %c = stablehlo.compare LT, %i, %n, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %c : tensor<i1>
    } do {
      %old = stablehlo.dynamic_slice %s, %i, %zero, sizes = [1, 1024] : (tensor<64x1024xf32>, tensor<i32>, tensor<i32>) -> tensor<1x1024xf32>
      %new = stablehlo.add %old, %x : tensor<1x1024xf32>
      %t = stablehlo.dynamic_update_slice %s, %new, %i, %zero : (tensor<64x1024xf32>, tensor<1x1024xf32>, tensor<i32>, tensor<i32>) -> tensor<64x1024xf32>
      %j = stablehlo.add %i, %one : tensor<i32>
      stablehlo.return %j, %t : tensor<i32>, tensor<64x1024xf32>
    }
  return %r#1 : tensor<64x1024xf32>
}";
    let memory = compile(&client(), text).memory_use().unwrap();
    assert_eq!(memory.aliased, 64 * 1024 * 4);
    assert!(memory.temporaries < 16 * 1024, "{memory}");
    let tpu = Topology::new(&Plugin::of(&Platform::Tpu).unwrap(), "v6e:1x1", &[]).unwrap();
    let memory = tpu.compile(text, &CompileOptions::single()).unwrap().memory_use().unwrap();
    assert_eq!(memory.aliased, 64 * 1024 * 4);
    assert!(memory.temporaries < 16 * 1024, "{memory}");
}

const ALL_REDUCE: &str = "func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %y = \"stablehlo.all_reduce\"(%x) <{replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %c = stablehlo.add %a, %b : tensor<f32>
    stablehlo.return %c : tensor<f32>
  }) : (tensor<4xf32>) -> tensor<4xf32>
  return %y : tensor<4xf32>
}";

#[test]
fn replicas_join_in_an_all_reduce() {
    let client = client();
    let program = client.compile(ALL_REDUCE, &CompileOptions::replicated(4)).unwrap();
    assert_eq!(program.devices(), client.devices());
    let buffers: Vec<Buffer> = (0..4)
        .map(|i| {
            client
                .to_device(&Host::new([4], &[i as f32, 1.0, 10.0 * i as f32, -1.0]), &client.devices()[i])
                .unwrap()
        })
        .collect();
    let results = program.run_on_all(buffers.iter().map(|buffer| vec![Arg::Keep(buffer)]).collect()).unwrap();
    for (device, list) in client.devices().iter().zip(&results) {
        assert_eq!(list[0].to_host().unwrap(), Host::new([4], &[6f32, 4.0, 60.0, -4.0]));
        assert_eq!(&list[0].device().unwrap(), device);
    }
}

const GSPMD: &str = r#"module @sharded {
func.func @main(%x: tensor<8x8xf32> {mhlo.sharding = "{devices=[4,1]<=[4]}"}, %w: tensor<8x8xf32> {mhlo.sharding = "{replicated}"})
    -> (tensor<8x8xf32> {mhlo.sharding = "{devices=[4,1]<=[4]}"}, tensor<8x8xf32> {mhlo.sharding = "{replicated}"}) {
  %y = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %s = stablehlo.custom_call @Sharding(%y) {mhlo.sharding = "{devices=[1,4]<=[4]}"} : (tensor<8x8xf32>) -> tensor<8x8xf32>
  return %s, %s : tensor<8x8xf32>, tensor<8x8xf32>
}
}"#;

const SHARDY: &str = r#"module @sharded {
sdy.mesh @mesh = <["x"=4]>
func.func @main(%x: tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}, {}]>}, %w: tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}, {}]>})
    -> (tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}, {}]>}, tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}, {}]>}) {
  %y = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %s = sdy.sharding_constraint %y <@mesh, [{}, {"x"}]> : tensor<8x8xf32>
  return %s, %s : tensor<8x8xf32>, tensor<8x8xf32>
}
}"#;

/// The part between the braces is written for one device.
const MANUAL: &str = r#"module @sharded {
sdy.mesh @mesh = <["x"=4]>
func.func @main(%x: tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}, {}]>}, %w: tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}, {}]>})
    -> (tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}, {}]>}, tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}, {}]>}) {
  %y = sdy.manual_computation(%x, %w) in_shardings=[<@mesh, [{"x"}, {}]>, <@mesh, [{}, {}]>] out_shardings=[<@mesh, [{"x"}, {}]>] manual_axes={"x"} (%a: tensor<2x8xf32>, %b: tensor<8x8xf32>) {
    %z = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0] : (tensor<2x8xf32>, tensor<8x8xf32>) -> tensor<2x8xf32>
    sdy.return %z : tensor<2x8xf32>
  } : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  return %y, %y : tensor<8x8xf32>, tensor<8x8xf32>
}
}"#;

/// Ways to write the same product over four devices.
const SHARDED: [(&str, Partitioner); 4] = [
    (GSPMD, Partitioner::Gspmd),
    (GSPMD, Partitioner::Shardy),
    (SHARDY, Partitioner::Shardy),
    (MANUAL, Partitioner::Shardy),
];

#[test]
fn a_sharded_product_equals_the_single_one() {
    let client = client();
    let (x, w) = (sample(Type::f32([8, 8])), sample(Type::f32([8, 8])));
    let single = "func.func @main(%x: tensor<8x8xf32>, %w: tensor<8x8xf32>) -> tensor<8x8xf32> {
  %y = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  return %y : tensor<8x8xf32>
}";
    let wanted = run(&client, &compile(&client, single), &[x.clone(), w.clone()]).remove(0);
    for (text, partitioner) in SHARDED {
        let program = client.compile(text, &CompileOptions::partitioned(4, partitioner)).unwrap();
        let rows: Vec<[Buffer; 2]> = (0..4)
            .map(|i| {
                let part = Host::new([2, 8], &x.as_slice::<f32>()[16 * i..16 * (i + 1)]);
                [&part, &w].map(|host| client.to_device(host, &client.devices()[i]).unwrap())
            })
            .collect();
        let results =
            program.run_on_all(rows.iter().map(|row| row.iter().map(Arg::Keep).collect()).collect()).unwrap();
        for (i, list) in results.iter().enumerate() {
            let part = Host::new([2, 8], &wanted.as_slice::<f32>()[16 * i..16 * (i + 1)]);
            assert_eq!(list[0].to_host().unwrap(), part, "{partitioner:?}, device {i}");
            assert_eq!(list[1].to_host().unwrap(), wanted, "{partitioner:?}, device {i}");
        }
    }
}

#[test]
fn transfers_and_results_can_be_waited_for_and_asked() {
    let client = client();
    let text = "func.func @main(%x: tensor<512x512xf32>) -> tensor<512x512xf32> {
  %y = stablehlo.dot_general %x, %x, contracting_dims = [1] x [0] : (tensor<512x512xf32>, tensor<512x512xf32>) -> tensor<512x512xf32>
  return %y : tensor<512x512xf32>
}";
    let program = compile(&client, text);
    let ones = Host::new([512, 512], &vec![1f32; 512 * 512]);
    let argument = client.to_device(&ones, &client.devices()[0]).unwrap();
    let result = program.run([Arg::Keep(&argument)]).unwrap().remove(0);
    let (transfer, dropped) = (result.to_host_async().unwrap(), result.to_host_async().unwrap());
    // Waits for the device to stop writing into the memory that it frees.
    drop(dropped);
    let ready = result.ready().unwrap();
    ready.wait().unwrap();
    assert!(ready.is_ready().unwrap());
    assert_eq!(transfer.wait().unwrap(), Host::new([512, 512], &vec![512f32; 512 * 512]));
}

#[test]
fn several_threads_share_a_client() {
    let client = client();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let client = &client;
            scope.spawn(move || {
                let program = compile(client, DOUBLE);
                for step in 0..50 {
                    let x = (thread * 100 + step) as f32;
                    let results = run(client, &program, &[Host::new([4], &[x, 1.0, 2.0, 3.0])]);
                    assert_eq!(results, [Host::new([4], &[2.0 * x, 2.0, 4.0, 6.0])]);
                }
            });
        }
    });
    assert_eq!((client.live().buffers, client.live().executables), (0, 0));
}

#[test]
fn an_executable_survives_as_bytes() {
    let client = client();
    let bytes = compile(&client, DONATING).serialize().unwrap();
    let program = client.deserialize(&bytes).unwrap();
    assert_eq!(program.memory_use().unwrap().aliased, 4096);
    assert_eq!(program.output_types().unwrap(), [Type::f32([1024])]);
    assert!(!program.fingerprint().unwrap().is_empty());
    let host = sample(Type::f32([1024]));
    let doubled: Vec<f32> = host.as_slice::<f32>().iter().map(|x| 2.0 * x).collect();
    assert_eq!(run(&client, &program, &[host]), [Host::new([1024], &doubled)]);
    assert!(matches!(client.deserialize(b"these are other bytes"), Err(Error::Call { .. })));
}

#[test]
fn the_executable_cache_hits_misses_and_heals() {
    let client = client();
    let folder = TempDir::new().unwrap();
    let cache = ExecutableCache::new(folder.path(), 1 << 30);
    let options = CompileOptions::single();
    let lookup = |text: &str| {
        let (program, lookup) = cache.compile(&client, text, &options).unwrap();
        let results = run(&client, &program, &[Host::new([4], &[1f32, 2.0, 3.0, 4.0])]);
        assert_eq!(results, [Host::new([4], &[2f32, 4.0, 6.0, 8.0])]);
        lookup
    };
    assert_eq!((lookup(DOUBLE), lookup(DOUBLE)), (Lookup::Miss, Lookup::Hit));
    let entries: Vec<PathBuf> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    for damage in 0..4 {
        for path in &entries {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            match damage {
                0 => bytes[middle] ^= 1,
                1 => bytes.truncate(middle),
                2 => bytes.clear(),
                _ => bytes[0] ^= 1,
            }
            fs::write(path, bytes).unwrap();
        }
        assert_eq!((lookup(DOUBLE), lookup(DOUBLE)), (Lookup::Damaged, Lookup::Hit), "damage {damage}");
    }

    assert_eq!(lookup(&DOUBLE.replace("%y", "%z")), Lookup::Miss);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    // Other options, another entry; a small limit keeps the newest only.
    let small = ExecutableCache::new(folder.path(), 1);
    let others = CompileOptions { devices: Some(vec![vec![1]]), ..CompileOptions::single() };
    assert_eq!(small.compile(&client, DOUBLE, &others).unwrap().1, Lookup::Miss);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // A folder that cannot be written is no reason to fail.
    let nowhere = ExecutableCache::new("/proc/nowhere", 1 << 30);
    assert_eq!(nowhere.compile(&client, DOUBLE, &options).unwrap().1, Lookup::Miss);
}

/// A second machine has an empty folder, and the same drive.
#[test]
fn a_folder_behind_the_cache_fills_that_of_another_machine() {
    let client = client();
    let folder = TempDir::new().unwrap();
    let drive = folder.path().join("drive");
    let lookup = |machine: &str| {
        let cache = ExecutableCache::new(folder.path().join(machine), 1 << 30).behind(&drive);
        cache.compile(&client, DOUBLE, &CompileOptions::single()).unwrap().1
    };
    let entries = |name: &str| -> Vec<(PathBuf, Vec<u8>)> {
        let paths =
            fs::read_dir(folder.path().join(name)).into_iter().flatten().map(|entry| entry.unwrap().path());
        let whole = paths.filter(|path| path.extension().is_some_and(|extension| extension == "exe"));
        whole.map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap())).collect()
    };
    // The drive is written by a thread.
    let wait_for = |wanted: &[(PathBuf, Vec<u8>)]| {
        let start = Instant::now();
        while entries("drive") != wanted {
            assert!(start.elapsed() < Duration::from_secs(60), "the drive has {:?}", entries("drive").len());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    assert_eq!(lookup("first"), Lookup::Miss);
    let made = entries("first");
    assert_eq!(made.len(), 1);
    wait_for(&made);
    assert_eq!(lookup("second"), Lookup::Hit);
    assert!(entries("second") == made);
    // Damage on the drive is met by a machine that has nothing, and mended; what one machine has comes to an empty drive.
    let (name, bytes) = &made[0];
    fs::write(drive.join(name), &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(lookup("third"), Lookup::Damaged);
    wait_for(&entries("third"));
    fs::remove_dir_all(&drive).unwrap();
    assert_eq!(lookup("first"), Lookup::Hit);
    wait_for(&made);
    // A drive that cannot be written is no reason to fail.
    let nowhere = ExecutableCache::new(folder.path().join("fourth"), 1 << 30).behind("/proc/nowhere");
    assert_eq!(nowhere.compile(&client, DOUBLE, &CompileOptions::single()).unwrap().1, Lookup::Miss);
}

/// A program for one device goes to the client's first one by its number.
#[test]
fn the_device_of_a_program_is_said() {
    let client = client();
    let options = engine::faithful(&client, &CompileOptions::single()).unwrap();
    assert_eq!(options.devices, Some(vec![vec![client.devices()[0].id()]]));
    let several = CompileOptions::replicated(2);
    assert_eq!(engine::faithful(&client, &several).unwrap().devices, several.devices);
}

/// A plugin of the same versions that was built again: the same library with one more byte after its end, which the loader
/// does not read.
#[test]
fn another_build_of_the_plugin_finds_no_executable_of_the_first() {
    let folder = TempDir::new().unwrap();
    let library = Platform::Cpu.library(Purpose::Compute).unwrap();
    let [copied, rebuilt] = ["copied.so", "rebuilt.so"].map(|name| folder.path().join(name));
    fs::copy(&library, &copied).unwrap();
    fs::copy(&library, &rebuilt).unwrap();
    OpenOptions::new().append(true).open(&rebuilt).unwrap().write_all(&[0]).unwrap();
    let cache = ExecutableCache::new(folder.path().join("executables"), 1 << 30);
    let lookup = |library: &Path| {
        let plugin = Plugin::load(library).unwrap();
        let start = Instant::now();
        plugin.build().unwrap();
        println!("{} hashed in {:?}", library.display(), start.elapsed());
        let client = Client::new(&plugin, &[]).unwrap();
        cache.compile(&client, DOUBLE, &CompileOptions::single()).unwrap().1
    };
    assert_eq!(lookup(&library), Lookup::Miss);
    assert_eq!(lookup(&copied), Lookup::Hit);
    assert_eq!(lookup(&rebuilt), Lookup::Miss);
}

#[test]
fn nothing_is_left_alive() {
    let client = client();
    let host = sample(Type::f32([1024]));
    {
        let program = compile(&client, DONATING);
        let mut buffer = client.to_device(&host, &client.devices()[0]).unwrap();
        for _ in 0..100 {
            buffer = program.run([Arg::Donate(buffer)]).unwrap().remove(0);
            assert_eq!((client.live().buffers, client.live().executables), (1, 1));
        }
        let kept = client.lend_to_device(Arc::new(host.clone()), &client.devices()[0]).unwrap();
        let results = program.run([Arg::Keep(&kept)]).unwrap();
        assert!(program.run([]).is_err());
        assert!(client.compile("nonsense", &CompileOptions::single()).is_err());
        assert_eq!((client.live().buffers, client.live().borrowed_hosts), (3, 1));
        results[0].ready().unwrap().wait().unwrap();
    }
    assert_eq!((client.live().buffers, client.live().executables), (0, 0));
    wait_for_lent_memory(&client);
}

#[test]
fn wrong_programs_options_and_arguments_are_errors_with_reasons() {
    let client = client();
    let error = client.compile("func.func @main( {", &CompileOptions::single()).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("PJRT_Client_Compile: "), "{text}");
    assert!(text.contains("xla_cpu_pjrt.so, PJRT API 0.81"), "{text}");

    let overrides = BTreeMap::from([("xla_no_such_option".to_string(), Value::Bool(true))]);
    let error =
        client.compile(DOUBLE, &CompileOptions { overrides, ..CompileOptions::single() }).unwrap_err();
    assert!(error.to_string().contains("xla_no_such_option"), "{error}");

    let error = client.compile(DOUBLE, &CompileOptions::replicated(64)).unwrap_err();
    assert!(error.code().is_some(), "{error}");

    let program = compile(&client, DOUBLE);
    let device = &client.devices()[0];
    let wrong = client.to_device(&sample(Type::f32([5])), device).unwrap();
    let error = program.run([Arg::Keep(&wrong)]).unwrap_err();
    assert_eq!(error.code(), Some(Code::InvalidArgument), "{error}");
    let right = client.to_device(&sample(Type::f32([4])), device).unwrap();
    let error = program.run([Arg::Keep(&right), Arg::Keep(&right)]).unwrap_err();
    assert_eq!(error.code(), Some(Code::InvalidArgument), "{error}");
    let error = program.run_on_all(vec![vec![Arg::Keep(&right)], vec![Arg::Keep(&right)]]).unwrap_err();
    assert!(error.to_string().contains("got arguments for 2 devices, wanted 1"), "{error}");
    let foreign = self::client();
    let error = foreign.to_device(&sample(Type::f32([4])), device).unwrap_err();
    assert!(error.to_string().contains("of another client"), "{error}");
    let foreign = foreign.to_device(&sample(Type::f32([4])), &foreign.devices()[0]).unwrap();
    let error = program.run([Arg::Keep(&foreign)]).unwrap_err();
    assert!(error.to_string().contains("belongs to another client"), "{error}");

    let reduce = client.compile(ALL_REDUCE, &CompileOptions::replicated(4)).unwrap();
    let mut lists: Vec<Vec<Arg>> = (0..3).map(|_| vec![Arg::Keep(&right)]).collect();
    lists.push(vec![Arg::Donate(client.to_device(&sample(Type::f32([4])), &client.devices()[3]).unwrap())]);
    let error = reduce.run_on_all(lists).unwrap_err();
    assert!(error.to_string().contains("device 3 donates other arguments than device 0"), "{error}");
}

#[test]
fn what_is_not_a_plugin_is_refused_with_a_reason() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let error = Plugin::load(&at("missing.so")).unwrap_err();
    assert!(matches!(error, Error::Open { .. }) && error.to_string().contains("missing.so"), "{error}");

    fs::write(at("text.so"), "this is a text, and longer than an ELF header").unwrap();
    let error = Plugin::load(&at("text.so")).unwrap_err();
    assert!(error.to_string().contains("not a shared library"), "{error}");

    let mut foreign = vec![0u8; 64];
    foreign[..4].copy_from_slice(b"\x7fELF");
    foreign[18..20].copy_from_slice(&8u16.to_le_bytes());
    fs::write(at("mips.so"), foreign).unwrap();
    let error = Plugin::load(&at("mips.so")).unwrap_err();
    assert!(matches!(error, Error::Architecture { .. }), "{error}");
    assert!(error.to_string().contains("ELF machine 8"), "{error}");

    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc =
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("libc"));
    let error = Plugin::load(Path::new(libc.unwrap())).unwrap_err();
    assert!(matches!(error, Error::NotAPlugin { .. }) && error.to_string().contains("GetPjrtApi"), "{error}");

    // A plugin that ends after PJRT_Plugin_Initialize, and one of a major version to come.
    let library = |name: &str, major: u32| {
        let source = format!(
            "#include <stddef.h>
static void *initialize(void *args) {{ return NULL; }}
static struct {{ size_t size; void *extension; struct {{ size_t size; void *extension; int major, minor; }} version; void *calls[4]; }}
    api = {{ sizeof api, NULL, {{ 24, NULL, {major}, 3 }}, {{ NULL, NULL, NULL, initialize }} }};
const void *GetPjrtApi(void) {{ return &api; }}"
        );
        fs::write(at("plugin.c"), source).unwrap();
        let cc = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(at(name))
            .arg(at("plugin.c"))
            .output()
            .unwrap();
        assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
        Plugin::load(&at(name))
    };
    let old = library("old.so", 0).unwrap();
    assert_eq!(old.version(), (0, 3));
    let error = Client::new(&old, &[]).unwrap_err();
    assert!(matches!(error, Error::Missing { function: "PJRT_Client_Create", .. }), "{error}");
    assert!(error.to_string().contains("old.so (PJRT API 0.3)"), "{error}");
    let error = library("new.so", 1).unwrap_err();
    assert!(matches!(error, Error::Version { found: (1, 3), .. }), "{error}");

    assert!(
        "gpu".parse::<Platform>().unwrap_err().to_string().contains("wanted cpu, cuda, tpu, or the path")
    );
    let output =
        fetch(folder.path(), false).env("PJRT_PLUGIN_PATH", "/somewhere/plugin.so").output().unwrap();
    assert_eq!(path_of(&output), Path::new("/somewhere/plugin.so"));
    assert_eq!("./a.so".parse::<Platform>().unwrap(), Platform::Path("./a.so".into()));
}

#[test]
fn programs_compile_for_v6e_without_a_tpu() {
    let plugin = Plugin::of(&Platform::Tpu).unwrap();
    let topology = Topology::new(&plugin, "v6e:1x1", &[]).unwrap();
    assert_eq!(topology.devices().unwrap()[0].kind, "TPU v6 lite");
    let program = topology.compile(DONATING, &CompileOptions::single()).unwrap();
    let memory = program.memory_use().unwrap();
    assert_eq!((memory.arguments, memory.aliased), (4096, 4096));
    assert!(memory.code > 0);
    assert!(matches!(program.cost().unwrap()["flops"], Value::Float(flops) if flops > 0.0));
    assert_eq!(program.output_types().unwrap(), [Type::f32([1024])]);
    assert!(!program.serialize().unwrap().is_empty());
    assert!(!program.fingerprint().unwrap().is_empty());
    assert_eq!(program.optimized_program().unwrap().format, "hlo_with_config");

    let overrides = BTreeMap::from([("xla_tpu_scoped_vmem_limit_kib".to_string(), "65536".into())]);
    let options = CompileOptions { overrides, ..CompileOptions::single() };
    topology.compile(DOUBLE, &options).unwrap();
    let overrides = BTreeMap::from([("xla_no_such_option".to_string(), Value::Bool(true))]);
    let error =
        topology.compile(DOUBLE, &CompileOptions { overrides, ..CompileOptions::single() }).unwrap_err();
    assert!(error.to_string().contains("No such compile option"), "{error}");

    let four = Topology::new(&plugin, "v6e:2x2", &[]).unwrap();
    assert_eq!(four.devices().unwrap().len(), 4);
    for (text, partitioner) in SHARDED {
        let options = CompileOptions::partitioned(4, partitioner);
        let program = four.compile(text, &options).unwrap();
        assert_eq!(program.output_types().unwrap(), [Type::f32([2, 8]), Type::f32([8, 8])]);
    }
    four.compile(ALL_REDUCE, &CompileOptions::replicated(4)).unwrap();
    drop(program);
    assert_eq!((topology.live().executables, four.live().executables), (0, 0));
    let error = Topology::new(&plugin, "v6e-1", &[]).err().unwrap();
    assert!(error.to_string().contains("v6e-1"), "{error}");
}

/// Asks for the CPU plugin in a process of its own; the wheel that is already here stands in for the
/// registry.
fn fetch(cache: &Path, network: bool) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fetch-plugin"));
    command.env("PYTHONLM_CACHE", cache).env_remove("PJRT_PLUGIN_PATH");
    if network {
        command.env("PIP_FIND_LINKS", cache_folder().unwrap().join("wheels"));
    } else {
        command.env("PIP_NO_INDEX", "1").env_remove("PIP_FIND_LINKS");
    }
    command
}

fn path_of(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout.clone()).unwrap().trim())
}

#[test]
fn the_plugin_cache_is_filled_once_and_heals() {
    let original = Platform::Cpu.library(Purpose::Compute).unwrap();
    let cache = TempDir::new().unwrap();
    // Files that bear the names of Python's and pip's modules lie where it is started.
    let decoys = tests::Decoys::new();
    let fetch = |cache: &Path, network: bool| {
        let mut command = fetch(cache, network);
        command.current_dir(decoys.folder());
        command
    };
    let output = fetch(cache.path(), false).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    // It need not be heard that it fetches.
    let (reader, unheard) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(fetch(cache.path(), false).stderr(unheard).status().unwrap().code(), Some(1));
    assert!(
        text.contains("xla_cpu_pjrt-0.0.1")
            && text.contains(&cache.path().join("wheels").display().to_string())
    );

    let pair: Vec<_> = (0..2)
        .map(|_| {
            fetch(cache.path(), true)
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
        })
        .collect();
    let pair: Vec<Output> =
        pair.into_iter().map(|child| child.unwrap().wait_with_output().unwrap()).collect();
    let library = path_of(&pair[0]);
    assert_eq!(library, path_of(&pair[1]));
    let fetched =
        pair.iter().filter(|output| String::from_utf8_lossy(&output.stderr).contains("fetching")).count();
    assert_eq!(fetched, 1);
    let size = fs::metadata(&original).unwrap().len();
    assert_eq!(fs::metadata(&library).unwrap().len(), size);

    // A damaged library comes back from the wheel, without a network; a damaged wheel is fetched again.
    OpenOptions::new().write(true).open(&library).unwrap().set_len(1000).unwrap();
    assert_eq!(path_of(&fetch(cache.path(), false).output().unwrap()), library);
    assert_eq!(fs::metadata(&library).unwrap().len(), size);
    let wheels = fs::read_dir(cache.path().join("wheels")).unwrap().map(|entry| entry.unwrap().path());
    let wheel = wheels.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "whl")).unwrap();
    OpenOptions::new().write(true).open(&wheel).unwrap().set_len(1000).unwrap();
    fs::remove_file(&library).unwrap();
    let output = fetch(cache.path(), true).output().unwrap();
    assert_eq!(path_of(&output), library);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is damaged, fetching it again"));
    assert_eq!(fs::metadata(&library).unwrap().len(), size);
    decoys.assert_untouched();
}
