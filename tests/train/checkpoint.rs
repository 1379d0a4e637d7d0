//! Checkpoints: nothing is lost when any single operation fails, damage is found and named, goldens come through bit
//! for bit.

use engine::{Host, Type};
use model::{Config, Preset, initial_params};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tests::faults::{Fault, FaultyDisk};
use tests::golden;
use train::atomic::{Disk, RealDisk, write_file};
use train::checkpoint::{
    CheckpointError, FORMAT, Keep, Progress, Retention, Saver, Snapshot, State, Store, TensorFile, files,
    latest_good, load, load_params, read_params, sound, verify, write_params,
};
use train::data::Position;
use train::schedule::Phase;

/// A model small enough to write a thousand times.
fn config() -> Config {
    Config {
        hidden_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        head_dim: 2,
        intermediate_size: 8,
        vocab_size: 16,
        num_tokens: 16,
        ..Config::preset(Preset::Tiny)
    }
}

/// A snapshot whose every tensor depends on the step.
pub(super) fn snapshot(step: u64) -> Snapshot {
    let config = config();
    let params = initial_params(&config, step);
    let moment = |prefix: &str, seed: u64| {
        let moments = initial_params(&config, seed).into_flat().into_iter();
        moments.map(|(name, host)| (format!("{prefix}.{name}"), host)).collect::<Vec<_>>()
    };
    let progress = Progress {
        step,
        tokens_seen: 100 * step,
        data: Position { row: step, ..Position::default() },
        ..Progress::default()
    };
    let state = State {
        format: FORMAT,
        run: None,
        progress,
        seed: 3,
        init: None,
        phase: Phase::Stable,
        keep: Keep::Rolling,
        settings: Vec::new(),
        hashes: BTreeMap::new(),
        written_by: "test".into(),
    };
    let optimizer = [moment("m", 1000 + step), moment("v", 2000 + step)].concat();
    Snapshot { params, optimizer, state, config, tokenizer: Some(Arc::from(*b"{}")) }
}

pub(super) fn assert_loads_as(root: &Path, step: u64) {
    let good = latest_good(root).unwrap().good.expect("a good checkpoint");
    let loaded = load(&good, &config()).unwrap();
    let mut expected = snapshot(step);
    expected.optimizer.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(loaded.state, expected.state);
    assert_eq!(loaded.params, expected.params);
    assert_eq!(loaded.optimizer, expected.optimizer);
}

pub(super) fn store(disk: impl Disk + 'static, root: &Path) -> Result<Store, CheckpointError> {
    Store::open(Arc::new(disk), root)
}

/// Saves step 2 beside a durable step 1 (or over itself) with one fault, then looks as a new process would.
fn with_fault(fault: Fault, over: u64) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    store(RealDisk, root).unwrap().save(&snapshot(over)).unwrap();
    let disk = FaultyDisk::new(fault);
    let failed = store(disk, root).and_then(|store| store.save(&snapshot(2)).map(drop)).is_err();
    // A new process clears up and must find the old checkpoint or the new one, whole.
    let reopened = store(RealDisk, root).unwrap();
    let found = latest_good(root).unwrap();
    assert!(found.refused.is_empty(), "{fault:?}: {:?}", found.refused);
    let step = if root.join("step_00000002").exists() { 2 } else { over };
    assert_loads_as(root, step);
    assert!(failed || step == 2, "{fault:?}: reported as written, but not there");
    let litter: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(litter.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{fault:?}: {litter:?}");
    // The run goes on as if nothing had happened.
    reopened.save(&snapshot(3)).unwrap();
    assert_loads_as(root, 3);
    failed
}

/// Operations that one clean save takes.
fn clean_save() -> usize {
    let folder = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Fault::None);
    store(disk.clone(), folder.path()).unwrap().save(&snapshot(2)).unwrap();
    disk.operations()
}

#[test]
fn every_operation_may_fail_and_nothing_is_lost() {
    let operations = clean_save();
    assert!(operations > 20, "{operations}");
    let mut injected = 0;
    // Replacing a checkpoint of the same step differs at the end only, where it takes two operations more.
    for (over, first, end) in [(1, 0, operations), (2, operations - 8, operations + 2)] {
        for k in first..end {
            injected += usize::from(with_fault(Fault::Once(k), over));
            injected += usize::from(with_fault(Fault::Crash(k), over));
            injected += usize::from(with_fault(Fault::FullFrom(k), over));
        }
    }
    println!("{injected} faults over {operations} operations, nothing lost");
    // A full disk does not hurt what comes after the last write: three syncs and a rename.
    assert!(injected >= 3 * operations - 4, "{injected} of {operations}");
}

#[test]
fn a_replaced_file_is_the_old_one_or_the_new_one() {
    let write = |disk: &dyn Disk, path: &Path, text: &str| {
        write_file(disk, path, |out| text.as_bytes().chunks(3).try_for_each(|part| out.write_all(part)))
    };
    let folder = tempfile::tempdir().unwrap();
    let counting = FaultyDisk::new(Fault::None);
    write(&counting, &folder.path().join("count"), "0123456789").unwrap();
    let mut injected = 0;
    for k in 0..counting.operations() {
        for fault in [Fault::Once(k), Fault::Crash(k), Fault::FullFrom(k)] {
            let path = folder.path().join(format!("{k}{fault:?}"));
            write(&RealDisk, &path, "old").unwrap();
            let failed = write(&FaultyDisk::new(fault), &path, "0123456789").is_err();
            injected += usize::from(failed);
            let found = fs::read_to_string(&path).unwrap();
            assert!(found == "0123456789" || failed && found == "old", "{fault:?}: {found}");
            write(&RealDisk, &path, "again").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "again");
        }
    }
    assert!(injected >= 3 * counting.operations() - 4, "{injected}");
}

#[test]
fn room_is_asked_for_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(FaultyDisk::new(Fault::Room(10_000)), folder.path()).unwrap();
    let error = store.save(&snapshot(1)).unwrap_err().to_string();
    assert!(error.contains("no room for a checkpoint") && error.contains("keep_last"), "{error}");
    assert!(store.check_room(8_000).is_ok() && store.check_room(9_000).is_err(), "a fifth more is wanted");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the lock");
    // At the start, for all that a run will keep: six of 1 600 bytes and a fifth of one are 9 920.
    assert!(store.check_room_for_all(6, 1600).is_ok() && store.check_room_for_all(7, 1600).is_err());
    let error = store.check_room_for_all(7, 1600).unwrap_err().to_string();
    assert!(error.contains("up to 7 of 1 MiB at once") && error.contains("keep_epochs"), "{error}");
}

#[test]
fn every_kind_of_damage_is_named_and_the_older_one_offered() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let store = store(RealDisk, root).unwrap();
    let (old, new) = (store.save(&snapshot(1)).unwrap().path, store.save(&snapshot(2)).unwrap().path);
    let names =
        [files::MODEL, files::OPTIMIZER, files::STATE, files::CONFIG, files::TOKENIZER, files::MANIFEST];
    let mut flips = 0;
    for name in names {
        let path = new.join(name);
        let good = fs::read(&path).unwrap();
        let swapped = fs::read(old.join(name)).unwrap();
        let mut damages: Vec<(String, Option<Vec<u8>>)> = vec![
            ("truncated".into(), Some(good[..good.len() / 2].to_vec())),
            ("emptied".into(), Some(Vec::new())),
            ("missing".into(), None),
        ];
        if swapped != good {
            damages.push(("swapped".into(), Some(swapped)));
        }
        for at in (0..good.len()).step_by(good.len().div_ceil(40)) {
            let mut flipped = good.clone();
            flipped[at] ^= 1 << (at % 8);
            damages.push((format!("flipped at {at}"), Some(flipped)));
            flips += 1;
        }
        for (damage, content) in damages {
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let found = latest_good(root).unwrap();
            assert_eq!(found.good.expect("the older one").path(), old, "{name} {damage}");
            let (refused, error) = &found.refused[0];
            assert_eq!(*refused, new);
            // A manifest of another step accuses the first file that it does not fit.
            if !(name == files::MANIFEST && damage == "swapped") {
                assert!(error.to_string().contains(name), "{name} {damage}: {error}");
            }
        }
        fs::write(&path, good).unwrap();
        verify(&new).unwrap();
    }
    println!("{flips} bit flips, all found");
}

#[test]
fn the_golden_model_comes_through_bit_for_bit() {
    let path = golden("tiny_model/model.safetensors");
    let (config, params) = load_params(&path).unwrap();
    assert_eq!((config.num_hidden_layers, config.mtp_num_tokens), (2, 1));
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("model.safetensors");
    let mut bytes = Vec::new();
    write_params(&mut bytes, &config, &params).unwrap();
    fs::write(&copy, bytes).unwrap();
    let (ours, theirs) = (TensorFile::open(&copy).unwrap(), TensorFile::open(&path).unwrap());
    assert_eq!(ours.names(), theirs.names());
    for name in ours.names() {
        assert_eq!(ours.tensor(&name).unwrap(), theirs.tensor(&name).unwrap(), "{name}");
    }
    assert_eq!(read_params(&copy, &config).unwrap(), params);
    // The program's matrices are the checkpoint's transposed: [in, out] against [out, in].
    let theirs = theirs.tensor("model.layers.1.mlp.up_proj.weight").unwrap().unwrap();
    let (ours, theirs) = (params.layers.up.as_slice::<f32>(), theirs.as_slice::<f32>());
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    assert_eq!(ours[width * inner + 5 * inner + 7], theirs[7 * width + 5]);
}

#[test]
fn half_precision_weights_are_widened() {
    let config = config();
    let (_, spec) = model::specs(&config).into_flat().swap_remove(0);
    assert_eq!(spec.checkpoint, "model.embed_tokens.weight");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.safetensors");
    let ty = Type::new(engine::DType::Bf16, [16, 8]);
    let entries: Vec<_> =
        model::specs(&config).into_flat().into_iter().flat_map(|(_, spec)| spec.entries()).collect();
    let types: Vec<_> =
        entries.iter().map(|e| (e.name.clone(), e.ty.with_dtype(engine::DType::Bf16))).collect();
    let mut bytes = Vec::new();
    train::checkpoint::write_tensors(&mut bytes, &[], &types, |i| {
        [0x80, 0x3f].repeat(types[i].1.elements()).into()
    })
    .unwrap();
    fs::write(&path, bytes).unwrap();
    let params = read_params(&path, &config).unwrap();
    assert_eq!(params.embed, Host::from_f64(ty.with_dtype(engine::DType::F32), &[1.0; 128]));
}

/// In each type and layout the message names the first place, in the file's own shape, and how many there are.
#[test]
fn weights_that_are_no_numbers_are_named() {
    let config = config();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let entries: Vec<_> =
        model::specs(&config).into_flat().into_iter().flat_map(|(_, spec)| spec.entries()).collect();
    let up = entries.iter().find(|entry| entry.name == "model.layers.0.mlp.up_proj.weight").unwrap();
    let norm = entries.iter().find(|entry| entry.name == "model.norm.weight").unwrap();
    assert_eq!((&up.ty.shape[..], &norm.ty.shape[..]), (&[8, 8][..], &[8][..]));
    let read = |dtype: engine::DType, bad: &str, places: &[usize], value: f64| {
        let types: Vec<_> = entries.iter().map(|e| (e.name.clone(), e.ty.with_dtype(dtype))).collect();
        let mut bytes = Vec::new();
        train::checkpoint::write_tensors(&mut bytes, &[], &types, |i| {
            let mut numbers = vec![1.0; types[i].1.elements()];
            if types[i].0 == bad {
                places.iter().for_each(|&place| numbers[place] = value);
            }
            Host::from_f64(types[i].1.clone(), &numbers).bytes().to_vec().into()
        })
        .unwrap();
        fs::write(&path, bytes).unwrap();
        read_params(&path, &config).map_err(|error| error.to_string())
    };
    for dtype in [engine::DType::F32, engine::DType::Bf16, engine::DType::F16] {
        read(dtype, &up.name, &[], f64::NAN).unwrap();
        let error = read(dtype, &up.name, &[13, 14, 63], f64::NAN).unwrap_err();
        let wanted = "`model.layers.0.mlp.up_proj.weight` holds NaN (first at [1, 5], 3 in all)";
        assert!(error.contains(wanted) && error.contains("weights.safetensors"), "{error}");
        let error = read(dtype, &norm.name, &[7], f64::NEG_INFINITY).unwrap_err();
        assert!(error.contains("`model.norm.weight` holds -inf (first at [7], 1 in all)"), "{error}");
    }
}

/// A tensor as a file holds it.
type Tensor = (String, Type, Vec<u8>);

fn write_shard(path: &Path, tensors: &[Tensor]) {
    let types: Vec<_> = tensors.iter().map(|(name, ty, _)| (name.clone(), ty.clone())).collect();
    let mut bytes = Vec::new();
    train::checkpoint::write_tensors(&mut bytes, &[], &types, |i| tensors[i].2.clone().into()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A folder as others publish it: `config.json` and the files that `write` puts there.
fn published(root: &Path, name: &str, write: impl FnOnce(&Path)) -> std::path::PathBuf {
    let folder = root.join(name);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(files::CONFIG), config().to_json()).unwrap();
    write(&folder);
    folder
}

/// The tensors of the weights of a seed, and the weights.
fn weights(root: &Path) -> (Vec<Tensor>, model::Params<Host>) {
    let params = initial_params(&config(), 7);
    let path = root.join("whole.safetensors");
    let mut bytes = Vec::new();
    write_params(&mut bytes, &config(), &params).unwrap();
    fs::write(&path, bytes).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let tensor = |name: String| {
        let tensor = file.tensor(&name).unwrap().unwrap();
        (name, tensor.ty().clone(), tensor.bytes().to_vec())
    };
    (file.names().into_iter().map(tensor).collect(), params)
}

fn index(pairs: &[(&str, &str)]) -> String {
    let map: BTreeMap<_, _> = pairs.iter().copied().collect();
    serde_json::json!({ "metadata": {}, "weight_map": map }).to_string()
}

#[test]
fn weights_are_read_in_every_shape_in_which_they_are_published() {
    let folder = tempfile::tempdir().unwrap();
    let (tensors, params) = weights(folder.path());
    let one = |tensors: Vec<Tensor>| move |folder: &Path| write_shard(&folder.join(files::MODEL), &tensors);
    let renamed = |prefix: &str| -> Vec<Tensor> {
        tensors
            .iter()
            .map(|(name, ty, bytes)| (format!("{prefix}{name}"), ty.clone(), bytes.clone()))
            .collect()
    };
    let wide: Vec<Tensor> = tensors
        .iter()
        .map(|(name, ty, bytes)| {
            let numbers = Host::from_bytes(ty.clone(), bytes).to_f64();
            let bytes = numbers.iter().flat_map(|x: &f64| x.to_le_bytes()).collect();
            (name.clone(), ty.with_dtype(engine::DType::F64), bytes)
        })
        .collect();
    let buffer = |layer: usize| {
        let ty = Type::f32([1]);
        (format!("model.layers.{layer}.self_attn.rotary_emb.inv_freq"), ty, 1_f32.to_le_bytes().to_vec())
    };
    let embedding = tensors.iter().find(|(name, ..)| name == "model.embed_tokens.weight").unwrap();
    let head = ("lm_head.weight".to_owned(), embedding.1.clone(), embedding.2.clone());
    let mut shapes: Vec<(&str, Vec<Tensor>)> = ["", "_orig_mod.", "module.", "module._orig_mod."]
        .map(|prefix| (if prefix.is_empty() { "plain" } else { prefix }, renamed(prefix)))
        .into();
    shapes.push(("f64", wide));
    shapes.push(("buffers", [tensors.clone(), vec![buffer(0), buffer(1)]].concat()));
    shapes.push(("tied", [tensors.clone(), vec![head.clone()]].concat()));
    for (name, tensors) in shapes {
        let path = published(folder.path(), name, one(tensors));
        assert_eq!(load_params(&path).unwrap(), (config(), params.clone()), "{name}");
    }

    let (first, second) = tensors.split_at(tensors.len() / 2);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let place = |shard: &'static str| move |(name, ..): &Tensor| (name.clone(), shard);
    let map: Vec<(String, &str)> =
        first.iter().map(place(names[0])).chain(second.iter().map(place(names[1]))).collect();
    let map: Vec<(&str, &str)> = map.iter().map(|(name, shard)| (name.as_str(), *shard)).collect();
    let sharded = published(folder.path(), "sharded", |folder| {
        write_shard(&folder.join(names[0]), first);
        write_shard(&folder.join(names[1]), second);
        fs::write(folder.join(files::INDEX), index(&map)).unwrap();
    });
    assert_eq!(load_params(&sharded).unwrap().1, params);
    assert_eq!(load_params(&sharded.join(files::INDEX)).unwrap().1, params);

    // What is wrong is named.
    let refused = |path: &Path| load_params(path).unwrap_err().to_string();
    let mut other = head;
    other.2[0] ^= 1;
    let untied = published(folder.path(), "untied", one([tensors.clone(), vec![other]].concat()));
    assert!(
        refused(&untied).contains("`lm_head.weight` is not `model.embed_tokens.weight`"),
        "{}",
        refused(&untied)
    );
    fs::remove_file(sharded.join(names[1])).unwrap();
    assert!(refused(&sharded).contains(&format!("names {}, not there", names[1])), "{}", refused(&sharded));
    for outside in ["../whole.safetensors", "/etc/passwd", "a/b", "..", ""] {
        fs::write(sharded.join(files::INDEX), index(&[("model.norm.weight", outside)])).unwrap();
        let message = refused(&sharded);
        assert!(
            message.contains(&format!("`{outside}`")) && message.contains("beside their index"),
            "{message}"
        );
    }
    let swapped: Vec<(&str, &str)> = map.iter().map(|(name, _)| (*name, names[0])).collect();
    fs::write(sharded.join(files::INDEX), index(&swapped)).unwrap();
    write_shard(&sharded.join(names[0]), &tensors[..1]);
    let message = refused(&sharded);
    assert!(message.contains("it says that `") && message.contains("no such tensor"), "{message}");
}

/// A replaced file is called changed, not damaged; whatever may be damage is called damaged.
#[test]
fn a_file_that_was_replaced_is_changed_and_not_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let store = store(RealDisk, root).unwrap();
    let path = store.save(&snapshot(1)).unwrap().path;
    let model = path.join(files::MODEL);
    let written = fs::read(&model).unwrap();
    let file = TensorFile::open(&model).unwrap();
    let narrow = |name: String| {
        let tensor = file.tensor(&name).unwrap().unwrap();
        let numbers = tensor.to_f64();
        let bytes = numbers.iter().flat_map(|x: &f64| half::f16::from_f64(*x).to_le_bytes()).collect();
        (name, tensor.ty().with_dtype(engine::DType::F16), bytes)
    };
    let tensors: Vec<Tensor> = file.names().into_iter().map(narrow).collect();
    drop(file);
    fs::remove_file(&model).unwrap();
    write_shard(&model, &tensors);
    let error = verify(&path).unwrap_err();
    assert!(matches!(error, CheckpointError::Changed { .. }), "{error}");
    let message = error.to_string();
    for part in ["model.safetensors", "was changed after it was written", "--init"] {
        assert!(message.contains(part), "{message}");
    }
    // A run does not go on from it, but its weights can be taken: the new ones.
    assert!(latest_good(root).unwrap().good.is_none());
    let (_, params) = load_params(&path).unwrap();
    let close = |a: &Host, b: &Host| {
        // f16 rounds to 11 bits, of numbers below 2^-14 to multiples of 2^-24.
        let rounding = |x: f64| x.abs() * 2f64.powi(-11) + 2f64.powi(-25);
        a.to_f64().iter().zip(b.to_f64()).all(|(a, b)| (a - b).abs() <= rounding(b))
    };
    assert!(close(&params.embed, &snapshot(1).params.embed));

    // Another file may be damaged beside it.
    let tokenizer = path.join(files::TOKENIZER);
    fs::write(&tokenizer, "[]").unwrap();
    let message = load_params(&path).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json is damaged"), "{message}");
    fs::write(&tokenizer, "{}").unwrap();

    // Of the same length, one that is cut, and one that is longer but no file of its kind.
    let mut flipped = written.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for bytes in [flipped, written[..written.len() - 4].to_vec(), [&written[..], &[0; 4]].concat()] {
        fs::write(&model, bytes).unwrap();
        let message = load_params(&path).unwrap_err().to_string();
        assert!(message.contains("model.safetensors is damaged"), "{message}");
    }
}

#[test]
fn another_config_is_refused_by_field() {
    let folder = tempfile::tempdir().unwrap();
    store(RealDisk, folder.path()).unwrap().save(&snapshot(1)).unwrap();
    let good = latest_good(folder.path()).unwrap().good.unwrap();
    let other = Config { intermediate_size: 16, dropout: 0.5, ..config() };
    let error = load(&good, &other).unwrap_err().to_string();
    assert!(
        error.contains("intermediate_size is 16 here and 8 there") && !error.contains("dropout"),
        "{error}"
    );
    // Fields of a run may change.
    load(&good, &Config { dropout: 0.5, max_position_embeddings: 9, ..config() }).unwrap();
    let model = good.path().join(files::MODEL);
    let error = read_params(&model, &other).unwrap_err().to_string();
    assert!(error.contains("mlp.gate_proj.weight` is f32[8,8], but this model wants f32[16,8]"), "{error}");
    let error = read_params(&model, &Config { num_hidden_layers: 2, ..config() }).unwrap_err().to_string();
    assert!(error.contains("has no tensor `model.layers.1.input_layernorm.weight`"), "{error}");
    let error = read_params(&model, &Config { mtp_num_tokens: 0, ..config() }).unwrap_err().to_string();
    assert!(error.contains("tensors that this model does not: mtp.lm_head.weight"), "{error}");
}

#[test]
fn retention_keeps_the_newest_the_multiples_and_the_newest_ends_of_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let retention = Retention { keep_last: 2, keep_epochs: 2, keep_best: 0, keep_every: Some(4) };
    let mut saver = Saver::new(store(RealDisk, root).unwrap(), retention, None);
    for step in 1..=9 {
        let mut snapshot = snapshot(step);
        if [1, 2, 3, 6].contains(&step) {
            snapshot.state.keep = Keep::EpochEnd(step as u32);
        }
        let before = saver.save(snapshot).unwrap();
        assert_eq!(before.map(|saved| saved.step), (step > 1).then(|| step - 1));
    }
    let last = saver.finish().unwrap().unwrap();
    assert_eq!(last.removed, [root.join("step_00000007")]);
    let mut names: Vec<_> =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let kept = [3, 4, 6, 8, 9].map(|step| format!("step_{step:08}"));
    assert_eq!(names, [&[".lock".to_owned()][..], &kept].concat());
}

/// Longer training goes on from there: weights whose rate has decayed are no beginning for it.
#[test]
fn the_newest_one_before_the_decay_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(RealDisk, folder.path()).unwrap();
    for step in 1..=8 {
        let mut snapshot = snapshot(step);
        if step > 4 {
            snapshot.state.phase = Phase::Decay;
        }
        store.save(&snapshot).unwrap();
        store.prune(Retention { keep_last: 2, keep_epochs: 2, keep_best: 0, keep_every: None }, &[]).unwrap();
    }
    let kept: Vec<u64> =
        train::checkpoint::steps(folder.path()).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(kept, [4, 7, 8]);
    let stable = train::checkpoint::newest_stable(folder.path()).unwrap().unwrap();
    assert_eq!(stable.state().progress.step, 4);
}

#[test]
fn a_damaged_newest_one_does_not_cost_the_older_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let store = store(RealDisk, root).unwrap();
    store.save(&snapshot(1)).unwrap();
    fs::remove_file(store.save(&snapshot(2)).unwrap().path.join(files::MODEL)).unwrap();
    assert_eq!(
        store.prune(Retention { keep_last: 1, keep_epochs: 2, keep_best: 0, keep_every: None }, &[]).unwrap(),
        Vec::<std::path::PathBuf>::new()
    );
    assert_loads_as(root, 1);
}

#[test]
fn a_failed_background_write_is_heard_at_the_next_call() {
    let folder = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Fault::Once(10));
    let retention = Retention { keep_last: 2, keep_epochs: 2, keep_best: 0, keep_every: None };
    let mut saver = Saver::new(store(disk, folder.path()).unwrap(), retention, None);
    assert_eq!(saver.save(snapshot(1)).unwrap(), None);
    let error = saver.save(snapshot(2)).unwrap_err().to_string();
    assert!(
        error.contains("injected input/output error") && error.contains("previous checkpoint"),
        "{error}"
    );
    // The caller goes on, and the next one works.
    saver.save(snapshot(3)).unwrap();
    assert_eq!(saver.finish().unwrap().unwrap().step, 3);
    assert_loads_as(folder.path(), 3);
}

#[test]
fn a_whole_checkpoint_under_another_steps_name_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let store = store(RealDisk, root).unwrap();
    let old = store.save(&snapshot(1)).unwrap().path;
    let new = store.save(&snapshot(2)).unwrap().path;
    fs::remove_dir_all(&new).unwrap();
    fs::create_dir(&new).unwrap();
    for entry in fs::read_dir(&old).unwrap() {
        let name = entry.unwrap().file_name();
        fs::copy(old.join(&name), new.join(&name)).unwrap();
    }
    let found = latest_good(root).unwrap();
    assert_eq!(found.good.unwrap().path(), old);
    let error = found.refused[0].1.to_string();
    assert!(error.contains("state.json") && error.contains("it is of step 1"), "{error}");
}

#[test]
fn going_back_passes_over_damage_and_bad_steps_and_sets_newer_ones_aside() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let store = store(RealDisk, root).unwrap();
    for step in 1..=4 {
        let mut snapshot = snapshot(step);
        if step == 4 {
            snapshot.state.progress.watch.thrown_away();
        }
        store.save(&snapshot).unwrap();
    }
    fs::write(root.join("step_00000003").join(files::MODEL), "damaged").unwrap();
    // One that was taken among bad steps does not push a sound one out.
    assert_eq!(
        store
            .prune(Retention { keep_last: 2, keep_epochs: 2, keep_best: 0, keep_every: None }, &[])
            .unwrap()
            .len(),
        0
    );
    let now = Progress { step: 9, ..Progress::default() };
    let sound = |before| sound(root, before, &now).unwrap().map(|good| good.state().progress.step);
    assert_eq!(sound(u64::MAX), Some(2));
    store.set_aside(2).unwrap();
    assert!(root.join("step_00000003.set-aside").exists() && root.join("step_00000004.set-aside").exists());
    assert_loads_as(root, 2);
    assert_eq!((sound(2), sound(1)), (Some(1), None));
    store.set_aside(1).unwrap();
    assert_loads_as(root, 1);
}

/// Where a run was stopped decides neither what is kept nor where it goes back to.
#[test]
fn one_that_was_written_for_a_stop_takes_no_other_ones_place() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(RealDisk, folder.path()).unwrap();
    let kept = || -> Vec<u64> {
        train::checkpoint::steps(folder.path()).unwrap().into_iter().map(|(step, _)| step).collect()
    };
    let save = |step, keep| {
        let mut snapshot = snapshot(step);
        snapshot.state.keep = keep;
        store.save(&snapshot).unwrap();
        store.prune(Retention { keep_last: 2, keep_epochs: 2, keep_best: 0, keep_every: None }, &[]).unwrap();
    };
    let now = Progress { step: 99, ..Progress::default() };
    let newest = || sound(folder.path(), u64::MAX, &now).unwrap().unwrap().state().progress.step;
    save(2, Keep::Stop);
    assert_eq!(newest(), 2, "better than none");
    for (step, keep) in [(4, Keep::Rolling), (8, Keep::Rolling), (9, Keep::Stop), (10, Keep::Stop)] {
        save(step, keep);
    }
    assert_eq!(kept(), [4, 8, 10]);
    assert_eq!(newest(), 8);
    save(12, Keep::Rolling);
    assert_eq!(kept(), [8, 12]);
}

/// A mirror still holds checkpoints that the run left when it went back. They count as older than those since, and are removed.
#[test]
fn what_a_run_turned_back_from_is_older_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(RealDisk, folder.path()).unwrap();
    let save = |step: u64, turns: &[u64]| {
        let mut snapshot = snapshot(step);
        snapshot.state.progress.turns = turns.to_vec();
        store.save(&snapshot).unwrap();
    };
    for (step, turns) in [(1, &[][..]), (2, &[]), (3, &[]), (4, &[]), (2, &[2])] {
        save(step, turns);
    }
    assert_eq!(latest_good(folder.path()).unwrap().good.unwrap().state().progress.step, 2);
    let removed =
        store.prune(Retention { keep_last: 9, keep_epochs: 2, keep_best: 0, keep_every: None }, &[]).unwrap();
    assert_eq!(removed, [3, 4].map(|step| folder.path().join(format!("step_{step:08}"))));
    // If the run later goes back further, the checkpoints between are no part of it either.
    save(3, &[2]);
    save(1, &[2, 1]);
    let removed =
        store.prune(Retention { keep_last: 9, keep_epochs: 2, keep_best: 0, keep_every: None }, &[]).unwrap();
    assert_eq!(removed, [2, 3].map(|step| folder.path().join(format!("step_{step:08}"))));
}

/// Checkpoints of the first version are read; they do not say which run they belong to.
#[test]
fn the_first_format_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(RealDisk, folder.path()).unwrap().save(&snapshot(3)).unwrap().path;
    let edit = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let file = path.join(files::STATE);
        let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(state.as_object_mut().unwrap());
        let text = serde_json::to_vec(&state).unwrap();
        fs::write(&file, &text).unwrap();
        let mut manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(path.join(files::MANIFEST)).unwrap()).unwrap();
        let mut records: BTreeMap<String, train::checkpoint::FileRecord> =
            serde_json::from_value(manifest["files"].take()).unwrap();
        let blake3 = blake3::hash(&text).to_hex().to_string();
        records
            .insert(files::STATE.into(), train::checkpoint::FileRecord { bytes: text.len() as u64, blake3 });
        let mut manifest = train::checkpoint::Manifest::new(records);
        manifest.format = state["format"].as_u64().unwrap() as u32;
        fs::write(path.join(files::MANIFEST), manifest.to_json()).unwrap();
    };
    edit(&|state| {
        for new in ["run", "settings", "turns", "returned", "failed_at", "rollbacks"] {
            state.remove(new).unwrap_or_else(|| panic!("no {new}"));
        }
        state.insert("format".into(), 1.into());
        state.insert("init".into(), "weights".into());
    });
    let good = latest_good(folder.path()).unwrap().good.unwrap();
    let mut wanted = snapshot(3).state;
    (wanted.format, wanted.init) = (1, Some("weights".into()));
    assert_eq!(load(&good, &config()).unwrap().state, wanted);
    edit(&|state| drop(state.insert("format".into(), 3.into())));
    let error = verify(&path).unwrap_err().to_string();
    assert!(error.contains("format 3, this program reads 1 to 2"), "{error}");
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(RealDisk, folder.path()).unwrap();
    let error = store(RealDisk, folder.path()).map(drop).unwrap_err().to_string();
    assert!(error.contains(&format!("is in use by process {}, for ", std::process::id())), "{error}");
    drop(first);
    store(RealDisk, folder.path()).unwrap();
}
