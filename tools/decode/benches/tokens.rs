//! Tokens a second of the `bench` preset on the CPU: `cargo bench -p decode`. One sequence and eight, greedy and drawn, with
//! and without drafts; and how fast this machine reads as many bytes as a token reads weights.
//!
//! The weights are random, so nothing can be learned here of how often drafts are right; `generate --speculative on` on a
//! trained checkpoint tells.

use decode::{Generator, Rows, Sampling, Settings, Speculation, Statistics, key};
use model::decode::{Matrices, weight_types};
use model::{Config, Preset, initial_params};
use std::hint::black_box;
use std::time::{Duration, Instant};
use train::device::Device;

const PROMPT: usize = 64;
const NEW: usize = 128;
const ROUNDS: usize = 15;

fn main() {
    let config = Config::preset(Preset::Bench);
    let weights = weight_types(&config, Matrices::Panels);
    let second: usize = weights.second.as_ref().map_or(0, |second| second.proj.bytes() + second.head.bytes());
    // Of the embedding only the token's row is read, of the second head nothing without drafts.
    let read = weights.clone().into_flat().iter().map(|(_, ty)| ty.bytes()).sum::<usize>()
        - weights.embed.bytes()
        - second;
    println!("a token reads {:.1} MB of weights, a draft {:.1} MB more", mb(read), mb(second));
    for threads in [1, 2] {
        let rate = bandwidth(read, threads);
        println!(
            "{threads} thread(s) read them at {:.1} GB/s: at most {:.0} tokens/s",
            rate / 1e9,
            rate / read as f64
        );
    }
    let params = initial_params(&config, 1);
    let mut generator = Generator::new(Device::open("cpu", None).unwrap(), &config, &params).unwrap();
    let drawn = Sampling::Random { temperature: 0.7, top_k: 50, top_p: 0.9 };
    let nucleus = Sampling::Random { temperature: 0.8, top_k: 0, top_p: 0.95 };
    println!("\nrows  drawing        drafts  tokens/s (median, best)  with the prompt  ms for the prompt");
    for rows in [1, 8] {
        for (name, sampling) in
            [("greedy", Sampling::Greedy), ("top-k 50, p 0.9", drawn), ("p 0.95", nucleus)]
        {
            for speculation in [Speculation::Off, Speculation::On] {
                let mut runs: Vec<Statistics> =
                    (0..=ROUNDS).map(|_| run(&mut generator, rows, sampling, speculation)).collect();
                // The first one compiles and touches memory for the first time.
                runs.remove(0);
                let mut speeds: Vec<f64> = runs.iter().map(Statistics::tokens_per_second).collect();
                speeds.sort_by(f64::total_cmp);
                let mut whole: Vec<f64> = runs
                    .iter()
                    .map(|took| took.new_tokens as f64 / (took.prefill + took.decode).as_secs_f64())
                    .collect();
                whole.sort_by(f64::total_cmp);
                let prompt = runs.iter().map(|took| took.prefill).min().unwrap_or_default();
                println!(
                    "{rows:<5} {name:<16} {:<4} {:>10.0} {:>10.0} {:>16.0} {:>14.1}",
                    if speculation == Speculation::On { "on" } else { "off" },
                    speeds[ROUNDS / 2],
                    speeds[ROUNDS - 1],
                    whole[ROUNDS / 2],
                    prompt.as_secs_f64() * 1e3
                );
            }
        }
    }
}

fn mb(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Bytes a second at which threads together read `bytes` again and again, best of a few.
fn bandwidth(bytes: usize, threads: usize) -> f64 {
    let part = vec![1u64; bytes / 8 / threads];
    let rounds = 20;
    let once = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let own = part.clone();
                scope.spawn(move || {
                    for _ in 0..rounds {
                        // Sums side by side: one alone would wait for its own additions.
                        let mut sums = [0u64; 32];
                        for line in black_box(&own).chunks_exact(32) {
                            sums.iter_mut().zip(line).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
                        }
                        black_box(sums);
                    }
                });
            }
        });
        (rounds * bytes) as f64 / start.elapsed().as_secs_f64()
    };
    (0..10).map(|_| once()).fold(0.0, f64::max)
}

fn run(generator: &mut Generator, rows: usize, sampling: Sampling, speculation: Speculation) -> Statistics {
    let stops = vec![false; generator.config().vocab_size];
    let mut all = Rows::new(generator, rows, PROMPT + NEW, &stops, speculation).unwrap();
    for row in 0..rows as i32 {
        let prompt: Vec<i32> = (0..PROMPT as i32).map(|i| (i * 37 + row * 101) % 4000).collect();
        let settings =
            Settings { new_tokens: NEW, sampling, key: key(1, row as u32, 0), ..Settings::default() };
        all.admit(&prompt, settings).unwrap();
    }
    while all.prefill().unwrap().is_some() {}
    while !all.step(Duration::from_millis(100)).unwrap().is_empty() {}
    all.statistics()
}
