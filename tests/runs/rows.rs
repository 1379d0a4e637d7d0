//! What a run says of its rows: padding, epochs, and the rows themselves.

use serde_json::Value;
use std::fs;
use tests::shards::shard;
use tests::trainer::{Bench, files};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_trainer"))
}

/// Records of a run's `metrics.jsonl`.
fn trained(bench: &Bench, out: &str) -> Vec<Value> {
    let text = fs::read_to_string(bench.path(out).join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["kind"] == "train").collect()
}

/// 40 rows of 6 tokens in places for 32, as documents that stand as they are: 4 epochs are 40 steps of 4 rows, and each
/// predicts 5 tokens of a row.
#[test]
fn padding_is_no_token_and_epochs_count_rows() {
    let bench = bench();
    let folder = bench.path("short");
    fs::create_dir(&folder).unwrap();
    fs::copy(bench.path("data/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let documents: Vec<Vec<i32>> = (0..40).map(|row| vec![20 + row; 6]).collect();
    fs::write(folder.join("rows.parquet"), shard(&[("input_ids", &documents)], 40)).unwrap();
    let keys =
        ["data.packing=none", "data.epochs=4", "data.validation_fraction=0", "data.fim_rate=0", "steps=auto"];
    let mut args = vec!["--data", "short"];
    keys.iter().for_each(|key| args.extend(["--set", key]));

    let plan = bench.succeed("plan", &[&args[..], &["--plan", "--json"]].concat());
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(
        (&plan["steps"], &plan["epoch_rows"], &plan["epoch_tokens"]),
        (&40.into(), &40.into(), &240.into())
    );
    assert_eq!(plan["padding"], 1.0 - 6.0 / 32.0);
    let parameters = plan["parameters"]["total"].as_f64().unwrap();
    let seen = plan["tokens_per_parameter"].as_f64().unwrap() * parameters;
    assert!((seen - 4.0 * 240.0).abs() < 1e-6, "{seen}");

    let said = bench.succeed("run", &args);
    assert!(said.contains("tokens   960 in the whole run, 0."), "{said}");
    assert!(said.contains("40 documents, 240 tokens an epoch in 40 rows of 32, 81.2 % padding"), "{said}");
    assert!(said.contains("| 81 % padding"), "{said}");
    let records = trained(&bench, "run");
    let last = records.last().unwrap();
    assert_eq!((&last["step"], &last["tokens_seen"]), (&40.into(), &(4 * 40 * 5).into()));
    assert!(records.iter().all(|record| record["padding"] == 1.0 - 6.0 / 32.0), "{last}");
    assert_eq!(bench.state("run", 40)["data"]["epoch"], 4);
    assert_eq!(bench.state("run", 40)["tokens_seen"], 800);

    // Marks have room in such rows. Those that bring labels stand as they are, and that is said.
    let said = bench.succeed("fim", &[&args[..], &["--set", "data.fim_rate=1", "--show-rows", "4"]].concat());
    assert!(said.contains("fim      100.0 % of the pieces (100.0 % of the tokens) are rearranged"), "{said}");
    assert_eq!(said.matches("‹⟦<|fim_prefix|>⟧›").count(), 4, "{said}");
}

/// The first rows of the next step, of a new run and of one that goes on; nothing is written, and the rows are the run's.
#[test]
fn rows_of_the_next_step_are_shown_and_nothing_is_written() {
    let bench = bench();
    let args = ["--steps", "6", "--set", "checkpoint.every=3"];
    let show = |out: &str, rows: &str| bench.succeed(out, &[&args[..], &["--show-rows", rows]].concat());
    let first = show("run", "2");
    println!("{first}");
    assert!(!bench.path("run").exists());
    assert!(first.contains("rows     of step 1: 2 of 4, from epoch 0, window 0, block 0, row 0"), "{first}");
    assert!(first.contains("fim      ") && first.contains("each whole in one row"), "{first}");
    assert!(first.contains("⟦<|endoftext|>⟧"), "{first}");
    assert!(
        first.contains("\nrow 0: ") && first.contains("\nrow 1: ") && !first.contains("\nrow 2: "),
        "{first}"
    );
    assert!(!first.contains("device   "), "{first}");
    // What is said of the targets is what the step counts.
    let targets = |said: &str| -> u64 {
        let rows = said.lines().filter(|line| line.starts_with("row "));
        rows.map(|line| {
            line.split(" pieces, ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap()
        })
        .sum()
    };
    let whole = targets(&show("run", "9"));
    assert!(show("run", "9").contains("a step has no more rows"));
    bench.succeed("run", &args);
    assert_eq!(trained(&bench, "run")[0]["tokens_seen"], whole);

    // From a checkpoint: the rows of the step after it.
    let before = files(&bench.path("run"));
    fs::remove_dir_all(bench.path("run/checkpoints/step_00000006")).unwrap();
    let next = show("run", "9");
    assert!(next.contains("rows     of step 4: 4 of 4"), "{next}");
    let records = trained(&bench, "run");
    let seen = |at: usize| records[at]["tokens_seen"].as_u64().unwrap();
    assert_eq!(targets(&next), seen(3) - seen(2));
    let after = files(&bench.path("run"));
    assert!(after.iter().all(|(path, bytes)| before.get(path) == Some(bytes)));
}

/// Rows of so many tokens each, with the labels that other programs write.
fn write_rows(path: &std::path::Path, lengths: &[usize], columns: &[&str]) {
    let row = |(row, length): (usize, &usize)| -> Vec<i32> {
        (0..*length).map(|at| 20 + ((row * 7 + at) % 280) as i32).collect()
    };
    let ids: Vec<Vec<i32>> = lengths.iter().enumerate().map(row).collect();
    let labels: Vec<Vec<i32>> = ids.iter().map(|row| [&row[1..], &[-100]].concat()).collect();
    let mut all = vec![("input_ids", &ids[..]), ("labels", &labels)];
    all.retain(|(name, _)| columns.contains(name));
    fs::write(path, shard(&all, lengths.len())).unwrap();
}

/// A folder as other programs leave it trains by what the messages say to add, each pasted.
#[test]
fn a_folder_of_another_program_trains() {
    let bench = bench();
    for inner in ["train", "tokenizer"] {
        fs::create_dir_all(bench.path("preprocessed_data").join(inner)).unwrap();
    }
    fs::copy(bench.path("data/tokenizer.json"), bench.path("preprocessed_data/tokenizer/tokenizer.json"))
        .unwrap();
    // 20 rows fit; of 20 of 70 tokens each 38 are too many, in two more parts.
    let lengths: Vec<usize> = (0..40).map(|row| if row % 2 == 0 { 30 } else { 70 }).collect();
    for part in 0..2 {
        let path = bench.path(&format!("preprocessed_data/train/part-{part}.parquet"));
        write_rows(&path, &lengths[20 * part..][..20], &["input_ids", "labels"]);
    }
    let mut args = vec!["--data", "preprocessed_data", "--steps", "12", "--set", "checkpoint.every=4"];
    args.extend(["--set", "data.validation_fraction=0.05"]);
    let mut missing = Vec::new();
    for out in ["first", "second"] {
        let output = bench.run(
            out,
            &[&args[..], &missing.iter().map(|s: &String| s.as_str()).collect::<Vec<_>>()].concat(),
        );
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        let advice = message.split("add --set ").nth(1).unwrap().split([',', ' ']).next().unwrap();
        missing.extend(["--set".to_owned(), advice.to_owned()]);
    }
    assert_eq!(missing, ["--set", "data.packing=none", "--set", "data.long_rows=split"]);
    args.extend(["--set", "data.packing=none"]);
    let with = |rule: &'static str| [&args[..], &["--set", rule]].concat();

    let split = with("data.long_rows=split");
    let said = bench.succeed("whole", &split);
    // 38 rows are trained on, 19 of them long.
    for part in [
        "long     19 of 38 rows (50.0 %) are longer than 32 tokens and split into 57: no token is left out",
        "in 76 rows of 32",
        "tokenizer preprocessed_data/tokenizer/tokenizer.json",
        "fim      data.fim_rate = 0.5 does nothing",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let dry = bench.succeed("dry", &[&split[..], &["--dry-run"]].concat());
    assert!(dry.contains("fim      data.fim_rate = 0.5 does nothing"), "{dry}");
    let shown = bench.succeed("dry", &[&split[..], &["--show-rows", "4"]].concat());
    assert!(shown.contains("row 3: ") && shown.contains("32 tokens in 1 pieces, 31 targets"), "{shown}");

    // Killed, and gone on with from the folder of the shards.
    bench.succeed("killed", &split);
    for step in [8, 12] {
        fs::remove_dir_all(bench.path(&format!("killed/checkpoints/step_{step:08}"))).unwrap();
    }
    let mut inner = split.clone();
    inner[1] = "preprocessed_data/train";
    bench.succeed("killed", &inner);
    assert!(bench.checkpoint("killed", 12) == bench.checkpoint("whole", 12));

    // 24 steps of 4 rows are two epochs and more.
    let mut longer = with("data.long_rows=cut");
    longer[3] = "24";
    let said = bench.succeed("cut", &longer);
    let lost =
        "19 of 38 rows (50.0 %) are longer than 32 tokens and cut: 722 of 1,900 tokens (38.0 %) are left out";
    assert!(said.contains(&format!("long     {lost}")), "{said}");
    assert!(said.contains(&format!("long     in a whole epoch, {lost}")), "{said}");
    assert_eq!(bench.state("cut", 24)["data"]["rows"], 96);
    assert_eq!(bench.state("cut", 24)["data"]["epoch"], 2);

    // Another rule is another course, and begins the block again.
    let mut other = with("data.long_rows=cut");
    other[3] = "16";
    let message = bench.fail("whole", &other);
    assert!(message.contains("data.long_rows was \"split\", is \"cut\""), "{message}");
    let said = bench.paste(message.rsplit_once("such as ").unwrap().1);
    assert!(said.contains("are seen once more, none is left out"), "{said}");
}

/// What was refused and never met can be allowed: the same rows come, from the very same place.
#[test]
fn long_rows_can_be_allowed_when_a_run_goes_on() {
    let bench = bench();
    fs::create_dir(bench.path("short")).unwrap();
    fs::copy(bench.path("data/tokenizer.json"), bench.path("short/tokenizer.json")).unwrap();
    write_rows(&bench.path("short/a.parquet"), &[30; 60], &["input_ids", "labels"]);
    let mut args = vec!["--data", "short", "--set", "checkpoint.every=4", "--set", "data.packing=none"];
    args.extend(["--set", "schedule.kind=constant"]);
    bench.succeed("whole", &[&args[..], &["--steps", "8"]].concat());
    bench.succeed("run", &[&args[..], &["--steps", "4"]].concat());
    let said =
        bench.succeed("run", &[&args[..], &["--steps", "8", "--set", "data.long_rows=split"]].concat());
    assert!(said.contains("settings data.long_rows was auto, is \"split\"\n"), "{said}");
    assert!(!said.contains("once more"), "{said}");
    assert!(bench.checkpoint("run", 8) == bench.checkpoint("whole", 8));
}

/// Rows that are full have no room for the marks: FIM does nothing, and that is said.
#[test]
fn fim_that_finds_no_room_says_so() {
    let bench = bench();
    fs::create_dir(bench.path("full")).unwrap();
    fs::copy(bench.path("data/tokenizer.json"), bench.path("full/tokenizer.json")).unwrap();
    write_rows(&bench.path("full/a.parquet"), &[32; 40], &["input_ids"]);
    let mut args = vec!["--data", "full", "--steps", "2", "--set", "data.packing=none"];
    args.extend(["--set", "data.fim_rate=1", "--set", "data.validation_fraction=0"]);
    let said = bench.succeed("run", &args);
    let line = "fim      no piece is rearranged (data.fim_rate = 1; counted in the first 1280 tokens); ";
    assert!(said.contains(line), "{said}");
}
