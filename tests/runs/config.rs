//! Configurations: what a person types, what the program answers, and the numbers of the presets.

use clap::Parser;
use model::{Config, Preset, Yarn};
use std::collections::BTreeSet;
use std::ops::Bound;
use std::path::Path;
use tests::golden;
use train::cli::{Cli, Resume};
use train::config::{KEYS, Kind, Override, Resolved, RunConfigError, Source, keys_as_markdown, resolve};
use train::data::Packing;

fn set(assignments: &[&str]) -> Result<Resolved, RunConfigError> {
    let overrides: Vec<_> = assignments.iter().map(|text| Override::parse(text).unwrap()).collect();
    resolve(Preset::Tiny, None, &overrides)
}

fn file(text: &str) -> Result<Resolved, RunConfigError> {
    resolve(Preset::Tiny, Some(("run.toml".as_ref(), text)), &[])
}

#[test]
fn mistakes_are_named_with_their_remedy() {
    let cases: &[(Result<Resolved, RunConfigError>, &str)] = &[
        (
            file("[optimizer]\nlearning_rte = 1.0"),
            "unknown key `optimizer.learning_rte` (run.toml); did you mean `optimizer.learning_rate`?",
        ),
        (
            set(&["learning_rate=1"]),
            "unknown key `learning_rate` (--set); did you mean `optimizer.learning_rate`?",
        ),
        (set(&["optimiser.beta1=0.5"]), "did you mean `optimizer.beta1`?"),
        (set(&["qwertyuiop=1"]), "the tables are model, data, batch"),
        (
            file("[batch]\nmicro = \"8\""),
            "`batch.micro` wants a whole number that is not negative, got \"8\" (run.toml)",
        ),
        (set(&["batch.micro=-1"]), "`batch.micro` wants a whole number that is not negative, got -1 (--set)"),
        (set(&["data.shuffle=yes"]), "`data.shuffle` wants true or false, got yes (--set)"),
        (
            set(&["data.packing=best"]),
            "`data.packing`: unknown variant `best`, expected one of `best-fit`, `sequential`, `none` (--set)",
        ),
        (
            set(&["kernels=wat"]),
            "`kernels`: unknown variant `wat`, expected one of `reference`, `portable`, `native`, `auto` (--set)",
        ),
        (set(&["model.rope_scaling.rope_type=yarn"]), "run configuration: missing field `factor`"),
        (set(&["data.fim_rate=1.5"]), "`data.fim_rate` is 1.5, but must be in [0, 1] (--set)"),
        (
            set(&["batch.seq=4096"]),
            "`batch.seq` is 4096, but must be at most model.max_position_embeddings (1024)",
        ),
        (set(&["model.head_dim=31"]), "`head_dim` is 31, but must be even"),
        (set(&["seed=auto"]), "`seed` wants a whole number"),
        (file("seed = "), "run.toml is not TOML"),
        (
            set(&["batch.micro=\"many\""]),
            "`batch.micro` wants a whole number that is not negative, got many (--set)",
        ),
        (file("preset = \"huge\""), "unknown preset `huge`"),
        (file("[optimiser]"), "unknown key `optimiser` (run.toml); the tables are"),
        (file("[data.path2]"), "unknown key `data.path2` (run.toml); did you mean `data.path`?"),
        (
            set(&["batch.micro=100000000000"]),
            "`batch.micro` is 100000000000, but must be from 1 to 1048576 (--set)",
        ),
        (
            set(&["batch.micro=1048576", "batch.accumulation=65536"]),
            "`batch.micro` is 1048576, but must be at most 255: with batch.accumulation 65536 and batch.seq 128",
        ),
        (
            set(&["checkpoint.every_minutes=1e30"]),
            "`checkpoint.every_minutes` is 1e30, but must be in (0, 1000000] (--set)",
        ),
        (set(&["optimizer.beta2=1"]), "`optimizer.beta2` is 1.0, but must be in [0, 1) (--set)"),
        (set(&["guard.spike_factor=nan"]), "`guard.spike_factor` is NaN, but must be in (1, 1e38] (--set)"),
        (set(&["steps=4294967296"]), "`steps` is 4294967296, but must be from 1 to 2147483647 (--set)"),
    ];
    for (result, message) in cases {
        let error = result.as_ref().unwrap_err().to_string();
        assert!(error.contains(message), "wanted: {message}\ngot:    {error}");
    }
    let unclosed = Override::parse("data.path=\"here").unwrap_err().to_string();
    assert!(
        unclosed.contains("--set data.path: \"here begins with a quote") && unclosed.contains("close"),
        "{unclosed}"
    );
    assert!(Override::parse("steps").unwrap_err().to_string().contains("--set steps: wants KEY=VALUE"));
}

/// A number out of range is refused by name, at both ends of every range. The ends themselves may break other rules, but cause
/// no panic.
#[test]
fn every_number_has_its_range() {
    let mut numbers = 0;
    for key in KEYS {
        let set = |value: String| set(&[&format!("{}={value}", key.path)]).map(drop);
        let (outside, ends) = match key.kind {
            Kind::Count(least, most) => {
                let below = least.checked_sub(1).map(|n| n.to_string());
                let above = (most < i64::MAX as u64).then(|| (most + 1).to_string());
                (
                    below.into_iter().chain(above).collect::<Vec<_>>(),
                    vec![least.to_string(), most.to_string()],
                )
            }
            Kind::Real(low, high) => {
                let outside = |end: Bound<f64>, beyond: fn(f64) -> f64| match end {
                    Bound::Included(end) => format!("{:e}", beyond(end)),
                    Bound::Excluded(end) => format!("{end:e}"),
                    Bound::Unbounded => panic!("{} has no end", key.path),
                };
                let out = vec![
                    outside(low, f64::next_down),
                    outside(high, f64::next_up),
                    "inf".into(),
                    "nan".into(),
                ];
                (out, vec![])
            }
            Kind::Switch | Kind::Text => continue,
        };
        numbers += 1;
        for value in outside {
            let error = set(value.clone()).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{}` is ", key.path)) && error.contains("must be"),
                "{value}: {error}"
            );
        }
        for value in ends {
            if let Err(error) = set(value) {
                let last = key.path.rsplit('.').next().unwrap();
                let error = error.to_string();
                let said = [last, "must", "missing field"].iter().any(|part| error.contains(part));
                assert!(said, "{error}");
            }
        }
    }
    assert!(numbers > 45, "{numbers}");
}

#[test]
fn later_layers_win_and_each_value_knows_its_origin() {
    let text = "preset = \"1b\"\nseed = 5\n[data]\npacking = \"none\"\n[optimizer]\nlearning_rate = 1\nbeta1 = 0.8\n";
    let overrides = [
        Override::parse("optimizer.beta1 = 0.7").unwrap(),
        Override { key: "steps".into(), value: "1_000".into(), source: Source::Flag("--steps") },
    ];
    let resolved = resolve(Preset::Tiny, Some(("my.toml".as_ref(), text)), &overrides).unwrap();
    let run = &resolved.run;
    assert_eq!(run.model, Config::preset(Preset::OneB));
    assert_eq!((run.seed, run.steps, run.data.packing), (5, Some(1000), Packing::None));
    assert_eq!((run.optimizer.learning_rate, run.optimizer.beta1), (Some(1.0), 0.7));
    let toml = resolved.to_toml();
    for line in [
        "seed = 5 # my.toml. Seed of initial values",
        "steps = 1000 # --steps. Optimiser steps",
        "beta1 = 0.7 # --set. Decay",
        "beta2 = 0.95 # preset 1b. Decay",
        "warmup_steps = \"auto\" # Steps of linear warmup",
    ] {
        assert!(toml.contains(line), "no `{line}` in\n{toml}");
    }
}

#[test]
fn a_value_in_the_quotes_of_toml_is_the_same_value() {
    let pairs = [
        ("data.packing=none", "data.packing=\"none\""),
        ("data.path=a folder", "data.path = 'a folder'"),
        ("data.path=a \"b\"", "data.path=\"a \\\"b\\\"\""),
        ("schedule.warmup_steps=auto", "schedule.warmup_steps=\"auto\""),
        ("batch.micro=4", "batch.micro=\"4\""),
    ];
    for (plain, quoted) in pairs {
        assert_eq!(set(&[quoted]).unwrap().run, set(&[plain]).unwrap().run, "{quoted}");
    }
}

#[test]
fn a_command_line_is_printed_so_that_it_reads_back() {
    let every = [
        "--preset",
        "bench",
        "--set",
        "data.packing=none",
        "--set",
        "data.path=it's a $HOME",
        "--data=-here",
        "--out",
        "a\"b",
        "--init",
        "`i`",
        "--resume",
        "./auto",
        "--branch-decay",
        "3",
        "--steps",
        "7",
        "--platform",
        "~cpu",
        "--replay",
        "2",
        "--plan",
        "--json",
        "--tokens",
        "5",
    ];
    let lines: [&[&str]; 3] =
        [&every, &[], &["--config", "a\\b", "--dry-run", "--resume", "never", "--data=--"]];
    for line in lines {
        let typed = Cli::try_parse_from(["train"].iter().chain(line)).unwrap();
        let printed = typed.command().replacen("cargo run -p train --", "train", 1);
        let print = format!("printf '%s\\0' {printed}");
        let words = std::process::Command::new("sh").args(["-c", &print]).output().unwrap().stdout;
        let words = String::from_utf8(words).unwrap();
        let read = Cli::try_parse_from(words.split_terminator('\0')).unwrap();
        assert_eq!(format!("{read:?}"), format!("{typed:?}"), "{printed}");
    }
}

#[test]
fn the_resolved_file_gives_the_same_run_again() {
    for preset in Preset::ALL {
        let mut resolved = resolve(preset, None, &[]).unwrap();
        resolved.run.model.rope_scaling = Some(Yarn::new(4.0, 2048));
        resolved.run.data.path = Some("a \"quoted\" folder".into());
        let text = resolved.to_toml();
        // Over another preset: every key is in the file.
        let again = resolve(Preset::Small, Some(("config.toml".as_ref(), &text)), &[]).unwrap();
        assert_eq!(again.run, resolved.run);
    }
}

#[test]
fn every_field_is_a_known_key_and_every_key_a_field() {
    let mut run = resolve(Preset::OneB, None, &[]).unwrap().run;
    run.steps = Some(1);
    run.model.rope_scaling = Some(Yarn { attention_factor: Some(1.0), ..Yarn::new(4.0, 2048) });
    run.data.path = Some("x".into());
    run.optimizer.learning_rate = Some(1.0);
    run.schedule.warmup_steps = Some(1);
    run.checkpoint.every_minutes = Some(1.0);
    run.checkpoint.keep_every = Some(1);
    run.data.long_rows = Some(train::data::LongRows::Cut);
    run.validation.patience = Some(1);
    let mut fields = BTreeSet::new();
    walk("", &serde_json::to_value(&run).unwrap(), &mut fields);
    let keys: BTreeSet<String> = KEYS.iter().map(|key| key.path.to_string()).collect();
    assert_eq!(fields, keys);
}

/// `BLESS=1` writes the table anew; then read what changed.
#[test]
fn the_documented_keys_are_all_keys() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../train/src/config/keys.md");
    let table = keys_as_markdown();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), table, "BLESS=1 writes the table anew");
    assert_eq!(table.lines().count(), KEYS.len() + 2);
}

fn walk(prefix: &str, value: &serde_json::Value, fields: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => {
            let dot = if prefix.is_empty() { "" } else { "." };
            map.iter().for_each(|(name, value)| walk(&format!("{prefix}{dot}{name}"), value, fields));
        }
        _ => drop(fields.insert(prefix.into())),
    }
}

#[test]
fn the_command_line_is_the_documented_one() {
    let cli = Cli::try_parse_from([
        "train",
        "--preset",
        "bench",
        "--set",
        "batch.micro=2",
        "--set",
        "batch.micro=4",
        "--data",
        "d",
        "--out",
        "o",
        "--init",
        "i",
        "--resume",
        "o/checkpoints/step_00000010",
        "--steps",
        "7",
        "--platform",
        "cuda",
        "--dry-run",
    ])
    .unwrap();
    let resolved = cli.resolve().unwrap();
    assert_eq!(resolved.run.batch.micro, 4);
    assert_eq!((resolved.run.steps, resolved.run.platform.as_str()), (Some(7), "cuda"));
    assert_eq!(resolved.source("data.path"), Source::Flag("--data"));
    assert_eq!(cli.resume, Resume::From("o/checkpoints/step_00000010".into()));
    assert!(cli.dry_run);
    let plain = Cli::try_parse_from(["train"]).unwrap();
    assert_eq!(plain.resolve().unwrap().run.model, Config::preset(Preset::Tiny));
    assert_eq!(plain.resume, Resume::Auto);
    let error = Cli::try_parse_from(["train", "--preset", "2b"]).unwrap_err().to_string();
    assert!(error.contains("there are tiny, bench, small, 1b"), "{error}");
    assert!(Cli::try_parse_from(["train", "--preset", "tiny", "--config", "x.toml"]).is_err());
    let missing = Cli::try_parse_from(["train", "--config", "nowhere.toml"]).unwrap().resolve().unwrap_err();
    assert!(missing.to_string().contains("reading the configuration nowhere.toml"), "{missing}");
}

#[test]
fn rope_and_yarn_are_the_goldens() {
    let text = std::fs::read_to_string(golden("yarn.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = |name: &str| -> Vec<f64> {
        golden[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let plain = Config::preset(Preset::OneB);
    let yarn = Config { rope_scaling: Some(Yarn::new(4.0, 2048)), ..plain.clone() };
    let cases =
        [(&plain, "inv_freq_plain", 1.0), (&yarn, "inv_freq_yarn", golden["mscale"].as_f64().unwrap())];
    for (config, name, scale) in cases {
        let (frequencies, found_scale) = model::rope::frequencies(config);
        assert!((found_scale - scale).abs() < 1e-15);
        let expected = numbers(name);
        assert_eq!(frequencies.len(), expected.len());
        for (i, (found, expected)) in frequencies.iter().zip(&expected).enumerate() {
            assert!((found / expected - 1.0).abs() < 1e-14, "{name}[{i}]: {found} {expected}");
        }
        let (cos, sin) = model::rope::rope_tables(config, 100);
        assert_eq!(cos.ty().shape, [100, 64]);
        let at = 99 * 64 + 20;
        let angle = 99.0 * expected[20];
        assert_eq!(cos.as_slice::<f32>()[at], (angle.cos() * scale) as f32);
        assert_eq!(sin.as_slice::<f32>()[at], (angle.sin() * scale) as f32);
        assert_eq!(cos.as_slice::<f32>()[0], scale as f32);
    }
}

#[test]
fn the_golden_config_is_read_with_defaults() {
    let text = std::fs::read_to_string(golden("tiny_model/config.json")).unwrap();
    let config = Config::from_json(&text).unwrap();
    assert_eq!((config.hidden_size, config.num_tokens, config.mtp_num_tokens), (64, 250, 1));
    assert_eq!((config.attention, config.dtype), (model::Attention::DiffV1, model::Compute::F32));
    assert_eq!((config.dropout, config.rope_scaling), (0.0, None));
}
