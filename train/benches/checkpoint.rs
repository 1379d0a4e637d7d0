//! How fast a checkpoint of the `small` model (1.5 GB) is written, verified and read. `cargo bench -p train`

use divan::{Bencher, counter::BytesCount};
use engine::Host;
use model::{Config, Params, Preset, initial_params};
use std::path::Path;
use std::sync::Arc;
use train::atomic::RealDisk;
use train::checkpoint::{FORMAT, Keep, Progress, Snapshot, State, Store, latest_good, load, verify};
use train::schedule::Phase;

fn main() {
    divan::main();
}

fn config() -> Config {
    Config::preset(Preset::Small)
}

fn snapshot() -> Snapshot {
    let params = initial_params(&config(), 1);
    let named = |part: &str, params: &Params<Host>| -> Vec<(String, Host)> {
        params.iter().map(|(name, host)| (format!("{part}.{name}"), host.clone())).collect()
    };
    let optimizer = [named("m", &params), named("v", &params)].concat();
    let state = State {
        format: FORMAT,
        run: None,
        progress: Progress { step: 1, ..Progress::default() },
        seed: 0,
        init: None,
        phase: Phase::Stable,
        keep: Keep::Rolling,
        settings: Vec::new(),
        hashes: Default::default(),
        written_by: "bench".to_owned(),
    };
    Snapshot { params, optimizer, state, config: config(), tokenizer: None }
}

fn saved(root: &Path) -> u64 {
    let store = Store::open(Arc::new(RealDisk), root).expect("a folder of our own");
    store.save(&snapshot()).expect("room for 1.5 GB").bytes
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn write(bencher: Bencher) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(Arc::new(RealDisk), folder.path()).expect("a folder of our own");
    let snapshot = snapshot();
    let bytes = store.save(&snapshot).expect("room for 1.5 GB").bytes;
    bencher.counter(BytesCount::new(bytes)).bench_local(|| store.save(&snapshot).expect("room for 1.5 GB"));
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn verified(bencher: Bencher) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bytes = saved(folder.path());
    let good = latest_good(folder.path()).expect("readable").good.expect("just written");
    bencher.counter(BytesCount::new(bytes)).bench_local(|| verify(good.path()).expect("just written"));
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn read(bencher: Bencher) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bytes = saved(folder.path());
    let good = latest_good(folder.path()).expect("readable").good.expect("just written");
    bencher.counter(BytesCount::new(bytes)).bench_local(|| load(&good, &config()).expect("just written"));
}
