//! How long initial weights take, up to those of the 1b model (4.3 GB). `cargo bench -p model`

use model::{Config, Preset, initial_params};

fn main() {
    divan::main();
}

#[divan::bench(args = [Preset::Tiny, Preset::Small, Preset::OneB], sample_count = 3, sample_size = 1)]
fn initial_weights(preset: &Preset) -> impl Sized {
    initial_params(&Config::preset(*preset), 1)
}
