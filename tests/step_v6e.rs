//! The whole training step compiles for one TPU v6e chip that is not there: state donated, gradients accumulated in
//! place. The 1b step itself takes minutes: `cargo run -p tests --bin step-v6e -- --dump FOLDER`.

use engine::Type;
use engine::pjrt::{CompileOptions, MemoryUse};
use model::{Config, Preset, specs};
use tests::{step_v6e, tpu};
use train::config::BatchShape;

/// 1b with two layers and few tokens; heads and blocks of attention as they are.
fn small() -> Config {
    Config { num_hidden_layers: 2, vocab_size: 8192, num_tokens: 8192, ..Config::preset(Preset::OneB) }
}

fn memory(accumulation: usize) -> MemoryUse {
    let shape = BatchShape { micro: 1, accumulation, seq: 512 };
    let program = step_v6e(&small(), shape);
    program.compile_for(&tpu("v6e:1x1"), &CompileOptions::single()).unwrap().memory_use().unwrap()
}

#[test]
fn the_step_writes_over_its_state_and_accumulates_in_place() {
    let params: usize = specs(&small()).iter().map(|(_, spec)| spec.ty.bytes()).sum();
    let (once, twice) = (memory(1), memory(2));
    println!("one micro-batch: {once}; two: {twice}; parameters {params}");
    // Weights, both moments and the number of updates.
    let state = 3 * params + Type::i32([]).bytes();
    // libtpu may pad small vectors to its tiles.
    let donated = |memory: MemoryUse| (state as i64..=state as i64 + (1 << 20)).contains(&memory.aliased);
    assert!(
        donated(once) && donated(twice),
        "{state} bytes of state, aliased {} and {}",
        once.aliased,
        twice.aliased
    );
    // Both hold one set of gradients; a second set would be `params` more.
    let more = twice.temporaries - once.temporaries;
    assert!(more < params as i64 / 2, "{more} more bytes for two micro-batches, parameters have {params}");
}
