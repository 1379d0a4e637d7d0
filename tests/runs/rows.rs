//! What a run says of its rows: padding, epochs, and the rows themselves.

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use parquet::arrow::ArrowWriter;
use serde_json::Value;
use std::fs;
use std::sync::Arc;
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
    let mut list = ListBuilder::new(Int32Builder::new());
    for row in 0..40 {
        list.values().append_slice(&[20 + row; 6]);
        list.append(true);
    }
    let batch = RecordBatch::try_from_iter([("input_ids", Arc::new(list.finish()) as ArrayRef)]).unwrap();
    let file = fs::File::create(folder.join("rows.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
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

    let said = bench.succeed("run", &args);
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
