//! A run that stops and goes on is the run that did not stop, bit by bit, through the program that people start.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};
use tests::close::{F32, error};
use tests::trainer::{Bench, files};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_trainer"))
}

#[test]
fn going_on_is_bit_exact_and_a_finished_run_stays() {
    let bench = bench();
    let args = ["--steps", "24", "--set", "checkpoint.every=7"];
    bench.succeed("whole", &args);
    let whole = bench.checkpoint("whole", 24);
    let epoch = |step| bench.state("whole", step)["data"]["epoch"].as_u64().unwrap();
    assert!(epoch(7) < epoch(24), "the test must cross the end of an epoch");
    // From within an epoch, in the stable phase and in the decay.
    for step in [7, 21] {
        let out = format!("from_{step}");
        let from = format!("whole/checkpoints/step_{step:08}");
        bench.succeed(&out, &[&args[..], &["--resume", &from]].concat());
        assert!(bench.checkpoint(&out, 24) == whole, "from step {step}");
        assert_eq!(bench.state(&out, 24), bench.state("whole", 24));
    }
    // In place: the newest checkpoints are lost, the same command goes on from the one before.
    for step in [21, 24] {
        fs::remove_dir_all(bench.path(&format!("whole/checkpoints/step_{step:08}"))).unwrap();
    }
    bench.succeed("whole", &args);
    assert!(bench.checkpoint("whole", 24) == whole);
    // Finished: nothing is trained, and no checkpoint changes.
    let before = files(&bench.path("whole/checkpoints"));
    bench.succeed("whole", &args);
    assert!(files(&bench.path("whole/checkpoints")) == before);
}

#[test]
fn a_signal_saves_and_the_same_command_goes_on() {
    let bench = bench();
    let args = ["--steps", "400", "--set", "checkpoint.every=1000", "--set", "validation.every=1000"];
    bench.succeed("whole", &args);
    let child = bench.command("stopped", &args).spawn().unwrap();
    let start = Instant::now();
    let trained =
        || fs::read_to_string(bench.path("stopped/metrics.jsonl")).unwrap_or_default().lines().count() > 3;
    while !trained() {
        assert!(start.elapsed() < Duration::from_secs(600), "no step was recorded");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains("the same command goes on from there"), "{said}");
    let said = bench.succeed("stopped", &args);
    assert!(said.contains("resume   "), "{said}");
    assert!(bench.checkpoint("stopped", 400) == bench.checkpoint("whole", 400));
}

/// Largest difference of two safetensors files' numbers, as a part of the largest number.
fn difference(a: &[u8], b: &[u8]) -> f64 {
    let numbers = |file: &[u8]| -> Vec<f64> {
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        file[8 + header..]
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()).into())
            .collect()
    };
    error(&numbers(a), &numbers(b))
}

/// Where a step ends an epoch and FIM draws anew, with other micro-batches of the same rows, and with the data elsewhere.
#[test]
fn every_boundary_can_be_gone_on_from() {
    let bench = bench();
    let args = ["--steps", "20", "--set", "checkpoint.every=4"];
    bench.succeed("whole", &args);
    let whole = bench.checkpoint("whole", 20);
    let ends: Vec<u64> = (1..20)
        .filter(|step| bench.path(&format!("whole/checkpoints/step_{step:08}")).exists())
        .filter(|step| bench.state("whole", *step)["keep"].get("epoch_end").is_some())
        .collect();
    println!("epochs end at {ends:?}");
    assert!(ends.len() >= 2, "{ends:?}");
    for end in &ends {
        let out = format!("epoch_{end}");
        let from = format!("whole/checkpoints/step_{end:08}");
        bench.succeed(&out, &[&args[..], &["--resume", &from]].concat());
        assert!(bench.checkpoint(&out, 20) == whole, "from the end of an epoch, step {end}");
        assert_eq!(bench.state(&out, 20), bench.state("whole", 20));
    }

    // Other micro-batches: the same rows, sums in another order. A weight of 1 is rounded in each of 12 steps, and what the
    // gradients' rounding changes of steps of 4e-3 is as much again.
    let from = ["--resume", "whole/checkpoints/step_00000008"];
    for (micro, accumulation) in [(4, 1), (1, 4)] {
        let out = format!("micro_{micro}");
        let split = [format!("batch.micro={micro}"), format!("batch.accumulation={accumulation}")];
        bench.succeed(&out, &[&args[..], &from, &["--set", &split[0], "--set", &split[1]]].concat());
        let difference = difference(&bench.checkpoint(&out, 20)[0], &whole[0]);
        println!(
            "{accumulation} x {micro} rows instead of 2 x 2 from step 8 on: weights differ by {difference:.1e}"
        );
        assert!(difference < 2.0 * 12.0 * F32, "{difference:e}");
        assert_eq!(bench.state(&out, 20)["data"], bench.state("whole", 20)["data"]);
    }

    fs::rename(bench.path("data"), bench.path("elsewhere")).unwrap();
    bench.succeed("moved", &[&args[..], &from, &["--data", "elsewhere"]].concat());
    assert!(bench.checkpoint("moved", 20) == whole, "with the data elsewhere");
}
