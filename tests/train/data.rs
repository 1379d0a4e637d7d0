//! Data from source text to batches: what is promised about bytes on disk, about order, and about bad input.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;
use tempfile::TempDir;
use tests::sources::{go, jsonl, preparation as options, program};
use tests::{golden, property};
use train::data::{
    BadLines, Batch, DataError, Dataset, Loader, Order, PADDING, Packing, Position, PrepareProgress,
    RowOptions, TokenizerSource, prepare, prepare_standard_library,
};

/// Qwen's end of text: what a folder without a tokenizer means.
const EOS: i32 = 151_643;
const VOCABULARY: usize = 1 << 24;

// Folders to work on.

/// Names and bytes of all files of a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("list").map(|e| e.expect("entry"));
    entries.map(|e| (e.file_name().into_string().expect("name"), fs::read(e.path()).expect("read"))).collect()
}

/// Columns of one row group: rows of ids for each named column.
type Group = Vec<(&'static str, Vec<Vec<i32>>)>;

fn write_parquet(path: &Path, groups: &[Group]) {
    let column = |rows: &Vec<Vec<i32>>| -> ArrayRef {
        let mut list = ListBuilder::new(Int32Builder::new());
        for row in rows {
            list.values().append_slice(row);
            list.append(true);
        }
        Arc::new(list.finish())
    };
    let batch = |group: &Group| {
        RecordBatch::try_from_iter(group.iter().map(|(n, rows)| (*n, column(rows)))).expect("batch")
    };
    let schema = batch(&groups[0]).schema();
    let mut writer =
        ArrowWriter::try_new(fs::File::create(path).expect("create"), schema, None).expect("writer");
    for group in groups {
        writer.write(&batch(group)).expect("write");
        writer.flush().expect("flush");
    }
    writer.close().expect("close");
}

/// A foreign folder of documents whose ids are all different: two files of five row groups of 40 documents.
fn unique_documents(folder: &Path) -> Vec<Vec<i32>> {
    let mut next = 200_000;
    let mut all = Vec::new();
    for file in 0..2 {
        let groups: Vec<Group> = (0..5)
            .map(|group| {
                let mut document = |i: i32| -> Vec<i32> {
                    let length = 1 + (i * 7 + group * 3) % 43;
                    next += length;
                    (next - length..next).collect()
                };
                let rows: Vec<Vec<i32>> = (0..40).map(&mut document).collect();
                all.extend(rows.clone());
                vec![("input_ids", rows)]
            })
            .collect();
        write_parquet(&folder.join(format!("part-{file}.parquet")), &groups);
    }
    all
}

/// Small windows and blocks, so that there are several of each.
fn rows(packing: Packing, order: Order, fim_rate: f64) -> RowOptions {
    RowOptions {
        seq: 16,
        packing,
        long_rows: packing.long_rows(),
        order,
        fim_rate,
        fim_spm_rate: 0.1,
        seed: 5,
        max_bad_row_groups: 0,
        window_tokens: 2500,
    }
}

fn open(folder: &Path) -> Arc<Dataset> {
    Arc::new(Dataset::open(folder, VOCABULARY, 0.0).expect("open"))
}

/// The rows of a first epoch with their segments.
fn epoch(dataset: &Arc<Dataset>, options: &RowOptions) -> Vec<(Vec<i32>, Vec<i32>)> {
    let mut loader = Loader::start(dataset.clone(), options.clone(), Position::default()).expect("start");
    let mut rows = Vec::new();
    while loader.position().epoch == 0 {
        let batch = loader.next_batch(1, 1).expect("row");
        rows.push((batch.ids, batch.segments));
    }
    rows
}

fn message<T>(result: Result<T, DataError>) -> String {
    result.err().expect("an error").to_string()
}

// Preparation.

#[test]
fn same_input_same_bytes_with_any_number_of_threads() {
    let dir = TempDir::new().expect("folder");
    let input = jsonl(dir.path(), 1500);
    let mut one = options(input.clone(), dir.path().join("one"));
    one.threads = 1;
    let two = options(input, dir.path().join("two"));
    let summary = prepare(&one, &mut go).expect("prepare");
    prepare(&two, &mut go).expect("prepare");
    assert!(summary.info.train.shards.len() > 1, "several shards");
    assert!(summary.info.validation.documents > 50);
    let (one, two) = (files(&one.out), files(&two.out));
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    assert!(one == two, "same bytes");
}

#[test]
fn an_interrupted_preparation_goes_on_to_the_same_bytes() {
    let dir = TempDir::new().expect("folder");
    let input = jsonl(dir.path(), 2500);
    let whole = options(input.clone(), dir.path().join("whole"));
    prepare(&whole, &mut go).expect("prepare");
    let parts = options(input, dir.path().join("parts"));
    for stop_after in 1..=2 {
        let mut batches = 0;
        let result = prepare(&parts, &mut |state| {
            batches += usize::from(matches!(state, PrepareProgress::Tokenised { .. }));
            if batches == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(result, Err(DataError::Interrupted)));
        assert!(
            message(Dataset::open(&parts.out, VOCABULARY, 0.0))
                .contains("run the same prepare-data command again")
        );
    }
    let summary = prepare(&parts, &mut go).expect("prepare");
    assert!(summary.kept_shards > 0);
    assert!(files(&whole.out) == files(&parts.out), "same bytes");
    let again = prepare(&parts, &mut go).expect("nothing to do");
    assert_eq!(again.info, summary.info);
}

#[test]
fn changed_inputs_and_options_are_refused() {
    let dir = TempDir::new().expect("folder");
    let input = jsonl(dir.path(), 300);
    let mut options = options(input.clone(), dir.path().join("out"));
    prepare(&options, &mut go).expect("prepare");
    let text = fs::read_to_string(&input).expect("read");
    fs::write(&input, text.replace("total += x * 7 ", "total += x * 8 ")).expect("write");
    assert!(message(prepare(&options, &mut go)).contains("inputs changed"));
    fs::write(&input, text.clone() + "{\"text\": \"print(1)\"}\n").expect("write");
    assert!(message(prepare(&options, &mut go)).contains("inputs changed"));
    fs::write(&input, text).expect("write");
    prepare(&options, &mut go).expect("as before");
    options.shard_tokens = 999;
    assert!(message(prepare(&options, &mut go)).contains("choose another --out"));
}

#[test]
fn folders_are_searched_and_what_is_left_out_is_counted() {
    let dir = TempDir::new().expect("folder");
    let source = dir.path().join("source");
    for folder in ["a/b", "tests", ".hidden"] {
        fs::create_dir_all(source.join(folder)).expect("folder");
    }
    for (name, text) in [
        ("z.py", program(1).into_bytes()),
        ("a/b/copy.py", program(1).into_bytes()),
        ("a/other.py", program(2).into_bytes()),
        ("a/latin.py", b"# caf\xe9\n".to_vec()),
        ("a/empty.py", b" \n".to_vec()),
        ("a/large.py", vec![b'#'; 5000]),
        ("a/not_python.txt", b"text".to_vec()),
        ("tests/test.py", program(3).into_bytes()),
        (".hidden/hidden.py", program(4).into_bytes()),
    ] {
        fs::write(source.join(name), text).expect("write");
    }
    let mut options = options(source, dir.path().join("out"));
    options.max_file_bytes = 4000;
    options.validation_fraction = 0.0;
    options.exclude = vec!["tests".to_owned()];
    let info = prepare(&options, &mut go).expect("prepare").info;
    assert_eq!(info.train.documents, 2);
    let skipped = info.skipped;
    assert_eq!((skipped.duplicates, skipped.not_utf8, skipped.empty, skipped.too_large), (1, 1, 1, 1));
}

#[test]
fn parquet_text_is_read_like_jsonl() {
    let dir = TempDir::new().expect("folder");
    let lines = jsonl(dir.path(), 50);
    let table = dir.path().join("programs.parquet");
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..50).map(program)));
    let batch = RecordBatch::try_from_iter([("text", texts)]).expect("batch");
    let mut writer = ArrowWriter::try_new(fs::File::create(&table).expect("create"), batch.schema(), None)
        .expect("writer");
    writer.write(&batch).expect("write");
    writer.close().expect("close");
    let (a, b) = (options(lines, dir.path().join("a")), options(table.clone(), dir.path().join("b")));
    prepare(&a, &mut go).expect("prepare");
    prepare(&b, &mut go).expect("prepare");
    let shards = |folder: &Path| {
        let mut files = files(folder);
        // It names the inputs.
        files.remove("dataset.json");
        files
    };
    assert!(shards(&a.out) == shards(&b.out));
    let mut other = options(table, dir.path().join("c"));
    other.text_column = "content".to_owned();
    let message = message(prepare(&other, &mut go));
    assert!(
        message.contains("`content`") && message.contains("`text`") && message.contains("--text-column"),
        "{message}"
    );
}

#[test]
fn the_standard_library_is_prepared_once() {
    let cache = TempDir::new().expect("folder");
    let absent = message(prepare_standard_library("no-such-python", cache.path(), &mut go));
    assert!(absent.contains("no-such-python") && absent.contains("--data DIR"), "{absent}");
    let (out, summary) = prepare_standard_library("python3", cache.path(), &mut go).expect("prepare");
    let info = summary.expect("the first time").info;
    assert!(
        info.train.documents > 200 && info.train.tokens > 1_000_000 && info.validation.tokens > 50_000,
        "{info:?}"
    );
    assert_eq!(info.vocab_size, 4096);
    assert!(Dataset::open(&out, 4096, 0.0).expect("open").has_validation());
    let (again, summary) = prepare_standard_library("python3", cache.path(), &mut go).expect("prepare");
    assert!(again == out && summary.is_none());
}

#[test]
fn bad_inputs_to_preparation_are_named() {
    let dir = TempDir::new().expect("folder");
    let at = |name: &str| dir.path().join(name);
    let out = at("out");
    assert!(message(prepare(&options(at("absent"), out.clone()), &mut go)).contains("absent"));
    fs::create_dir(at("nothing")).expect("folder");
    assert!(
        message(prepare(&options(at("nothing"), out.clone()), &mut go))
            .contains("nothing to read in this folder")
    );
    fs::write(at("bad.jsonl"), "{\"text\": \"x = 1\"}\n{\"code\": \"x\"}\n").expect("write");
    let mut strict = options(at("bad.jsonl"), out.clone());
    strict.bad_lines = BadLines::Stop;
    let lines = message(prepare(&strict, &mut go));
    assert!(lines.contains("line 2") && lines.contains("code"), "{lines}");
    fs::write(at("bad.parquet"), "PAR1 not really").expect("write");
    assert!(message(prepare(&options(at("bad.parquet"), out.clone()), &mut go)).contains("bad.parquet"));
    fs::write(at("tokenizer.json"), "{}").expect("write");
    let mut with_tokenizer = options(jsonl(dir.path(), 5), out);
    with_tokenizer.tokenizer = TokenizerSource::File(at("tokenizer.json"));
    assert!(message(prepare(&with_tokenizer, &mut go)).contains("cannot read tokenizer"));
}

// Order and position.

#[test]
fn a_run_goes_on_from_every_position_as_if_it_had_not_stopped() {
    let foreign = TempDir::new().expect("folder");
    unique_documents(foreign.path());
    let prepared = TempDir::new().expect("folder");
    let mut preparation = options(jsonl(prepared.path(), 300), prepared.path().join("out"));
    preparation.shard_tokens = 4000;
    prepare(&preparation, &mut go).expect("prepare");
    for (dataset, fim_rate) in [(open(foreign.path()), 0.0), (open(&preparation.out), 0.6)] {
        for packing in [Packing::BestFit, Packing::Sequential] {
            for order in [Order::Shuffled, Order::Files] {
                let options = rows(packing, order, fim_rate);
                let start =
                    |position| Loader::start(dataset.clone(), options.clone(), position).expect("start");
                let mut loader = start(Position::default());
                let mut batches: Vec<Batch> = Vec::new();
                while loader.position().epoch < 2 {
                    batches.push(loader.next_batch(2, 3).expect("batch"));
                }
                assert!(
                    batches.iter().any(|b| b.position.window > 1 && b.position.block > 0),
                    "several windows and blocks"
                );
                let stride = (batches.len() / 40).max(1);
                for stop in (0..batches.len() - 1).step_by(stride) {
                    let saved = serde_json::to_string(&batches[stop].position_after).expect("save");
                    let mut resumed = start(serde_json::from_str(&saved).expect("restore"));
                    assert_eq!(resumed.next_batch(2, 3).expect("batch"), batches[stop + 1]);
                }
                assert_eq!(batches.last().expect("some").position_after.rows, 6 * batches.len() as u64);
                let (mut other, first) = (start(Position::default()), &batches[0]);
                let joined: Vec<i32> =
                    (0..3).flat_map(|_| other.next_batch(1, 2).expect("batch").ids).collect();
                assert_eq!(joined, first.ids, "micro-batches do not change the rows");
                assert_eq!(other.position(), first.position_after);
            }
        }
    }
}

#[test]
fn a_wait_for_rows_can_be_given_up_and_changes_nothing() {
    let dir = TempDir::new().expect("folder");
    unique_documents(dir.path());
    let dataset = open(dir.path());
    let start = || {
        let options = rows(Packing::BestFit, Order::Shuffled, 0.0);
        Loader::start(dataset.clone(), options, Position::default()).expect("start")
    };
    let (mut waiting, mut straight) = (start(), start());
    for _ in 0..100 {
        let before = waiting.position();
        assert!(!waiting.ready(1_000_000, Duration::ZERO).expect("rows"), "so many are not made in no time");
        assert_eq!(waiting.position(), before);
        assert!(waiting.ready(21, Duration::from_secs(60)).expect("rows"));
        assert_eq!(waiting.position(), before);
        assert_eq!(waiting.next_batch(3, 7).expect("batch"), straight.next_batch(3, 7).expect("batch"));
    }
}

#[test]
fn every_document_is_seen_once_an_epoch() {
    let dir = TempDir::new().expect("folder");
    let documents = unique_documents(dir.path());
    let dataset = open(dir.path());
    let mut wanted: Vec<i32> = documents.concat();
    wanted.sort_unstable();
    for packing in [Packing::BestFit, Packing::Sequential] {
        for order in [Order::Shuffled, Order::Files] {
            let options = rows(packing, order, 0.0);
            let rows = epoch(&dataset, &options);
            let mut found = Vec::new();
            let mut ends = 0;
            for (ids, segments) in &rows {
                for (at, (&id, &segment)) in ids.iter().zip(segments).enumerate() {
                    match (segment, id) {
                        (PADDING, _) => continue,
                        (_, EOS) => ends += 1,
                        _ => found.push(id),
                    }
                    if at > 0 && segments[at - 1] == segment {
                        assert!(id == EOS || id == ids[at - 1] + 1, "a segment is a piece of one document");
                    }
                }
            }
            found.sort_unstable();
            assert_eq!(found, wanted);
            assert_eq!(ends, documents.len(), "every document is ended once");
            let size = dataset.epoch_size(&options).expect("rows");
            assert_eq!((size.documents, size.tokens), (Some(400), (wanted.len() + ends) as u64));
            assert!(
                (rows.len() as u64..rows.len() as u64 + 20).contains(&size.rows),
                "{} {}",
                rows.len(),
                size.rows
            );
        }
    }
}

#[test]
fn whole_rows_come_in_file_order_or_in_a_permutation_that_changes_with_the_epoch() {
    let dir = TempDir::new().expect("folder");
    let training_row = |i: i32| (i * 16..(i + 1) * 16).collect::<Vec<i32>>();
    let groups: Vec<Group> =
        (0..30).map(|g| vec![("input_ids", (g * 10..g * 10 + 10).map(training_row).collect())]).collect();
    write_parquet(&dir.path().join("rows.parquet"), &groups);
    let dataset = open(dir.path());
    let read = |order: Order| -> Vec<i32> {
        let options = rows(Packing::None, order, 0.0);
        let mut loader = Loader::start(dataset.clone(), options, Position::default()).expect("start");
        (0..600).map(|_| loader.next_batch(1, 1).expect("row").ids[0] / 16).collect()
    };
    let in_order: Vec<i32> = (0..300).collect();
    assert_eq!(read(Order::Files), [in_order.clone(), in_order.clone()].concat());
    let shuffled = read(Order::Shuffled);
    let (first, second) = shuffled.split_at(300);
    assert_ne!(first, second);
    let far = first.iter().zip(&in_order).filter(|(a, b)| a.abs_diff(**b) > 30).count();
    assert!(far > 150, "rows move far: {far}");
    for epoch in [first, second] {
        let mut sorted = epoch.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, in_order);
    }
}

#[test]
fn a_large_row_group_is_read_in_parts() {
    let dir = TempDir::new().expect("folder");
    let rows_of = |i: i32| vec![i; 1000];
    write_parquet(&dir.path().join("rows.parquet"), &[vec![("input_ids", (0..9000).map(rows_of).collect())]]);
    let options =
        RowOptions { seq: 1000, window_tokens: 1 << 22, ..rows(Packing::None, Order::Shuffled, 0.0) };
    let mut loader = Loader::start(open(dir.path()), options, Position::default()).expect("start");
    let batch = loader.next_batch(1, 9000).expect("batch");
    assert_eq!((batch.position_after.epoch, batch.position_after.window), (1, 0));
    let mut found: Vec<i32> = batch.ids.chunks(1000).map(|row| row[0]).collect();
    assert!(batch.ids.chunks(1000).all(|row| row.iter().all(|id| *id == row[0])));
    found.sort_unstable();
    assert_eq!(found, (0..9000).collect::<Vec<_>>());
}

#[test]
fn a_position_belongs_to_its_data_but_not_to_their_place() {
    let dir = TempDir::new().expect("folder");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::create_dir(&a).expect("folder");
    fs::create_dir(&b).expect("folder");
    unique_documents(&a);
    for (name, bytes) in files(&a) {
        fs::write(b.join(name), bytes).expect("copy");
    }
    let options = rows(Packing::BestFit, Order::Shuffled, 0.0);
    let mut here = Loader::start(open(&a), options.clone(), Position::default()).expect("start");
    let position = here.next_batch(1, 5).expect("batch").position_after;
    let mut there = Loader::start(open(&b), options.clone(), position).expect("start");
    assert_eq!(there.next_batch(1, 5).expect("batch"), here.next_batch(1, 5).expect("batch"));
    let other = RowOptions { seed: 6, ..options };
    assert!(message(Loader::start(open(&a), other, position)).contains("data.* keys"));
}

#[test]
fn rows_with_labels_are_training_rows() {
    let dir = TempDir::new().expect("folder");
    let ids = vec![vec![1, 2, EOS, 4, 5], vec![1, 2, 3, 4]];
    let labels = vec![vec![1, 2, EOS, 4, -100], vec![1, 2, 3, 4]];
    write_parquet(&dir.path().join("rows.parquet"), &[vec![("input_ids", ids), ("labels", labels)]]);
    let dataset = open(dir.path());
    let packed =
        Loader::start(dataset.clone(), rows(Packing::BestFit, Order::Files, 0.0), Position::default());
    assert!(message(packed).contains("data.packing = \"none\""));
    let options = RowOptions { seq: 5, ..rows(Packing::None, Order::Files, 0.5) };
    let batch =
        Loader::start(dataset.clone(), options, Position::default()).and_then(|mut l| l.next_batch(1, 2));
    let batch = batch.expect("batch");
    assert_eq!(batch.ids, [1, 2, EOS, 4, 5, 1, 2, 3, 4, 151_662]);
    assert_eq!(batch.segments, [0, 0, 0, 1, PADDING, 0, 0, 0, 0, PADDING]);
    let short = RowOptions { seq: 4, ..rows(Packing::None, Order::Files, 0.0) };
    let row = Loader::start(dataset, short, Position::default()).and_then(|mut l| l.next_batch(1, 1));
    assert!(message(row).contains("--set batch.seq=5"));
}

// Validation.

#[test]
fn validation_is_the_same_at_every_call_and_counting_pairs_gives_a_bar() {
    let dir = TempDir::new().expect("folder");
    let preparation = options(jsonl(dir.path(), 600), dir.path().join("out"));
    prepare(&preparation, &mut go).expect("prepare");
    let dataset = Arc::new(Dataset::open(&preparation.out, 320, 0.0).expect("open"));
    let options = rows(Packing::BestFit, Order::Shuffled, 0.5);
    let first = dataset.validation(&options, 2, 3, 4).expect("rows");
    assert_eq!(first, dataset.validation(&options, 2, 3, 4).expect("rows"));
    assert_eq!(first.iter().map(|b| b.ids.len()).sum::<usize>(), 4 * 6 * 16);
    let all = dataset.validation(&options, 1, 7, 100_000).expect("rows");
    let trained = all.iter().flat_map(|b| &b.segments).filter(|&&s| s != PADDING).count() as u64;
    let split = &dataset.info().expect("prepared").validation;
    assert_eq!(trained, split.tokens + split.documents);
    let bigram = dataset.bigram(&all, u64::MAX).expect("count");
    assert!(bigram.loss > 0.2 && bigram.loss < 3.0, "{bigram:?}");
    assert!(dataset.bigram(&all, 1).expect("count").loss >= bigram.loss, "more tokens, a better model");
}

#[test]
fn the_last_rows_are_held_out_where_there_is_no_validation_split() {
    let dir = TempDir::new().expect("folder");
    let documents = unique_documents(dir.path());
    let dataset = Arc::new(Dataset::open(dir.path(), VOCABULARY, 0.05).expect("open"));
    let options = rows(Packing::Sequential, Order::Files, 0.0);
    assert_eq!(dataset.epoch_size(&options).expect("rows").documents, Some(380));
    let held = dataset.validation(&options, 1, 1, 1000).expect("rows");
    let mut found: Vec<i32> = held
        .iter()
        .flat_map(|row| row.ids.iter().zip(&row.segments))
        .filter(|(id, segment)| **segment != PADDING && **id != EOS)
        .map(|(id, _)| *id)
        .collect();
    found.sort_unstable();
    assert_eq!(found, documents[380..].concat());
    let said = dataset.held_out();
    assert_eq!(said, "the last 20 of 400 documents (data.validation_fraction = 0.05)");
}

// Bad input.

/// Rows that another program made say nothing of the token that ends a document.
#[test]
fn the_end_of_documents_can_be_named() {
    let dir = TempDir::new().expect("folder");
    write_parquet(&dir.path().join("x.parquet"), &[vec![("input_ids", vec![vec![5, 6, 7]; 50])]]);
    let open = |token| Dataset::open_ended_by(token, dir.path(), 600, 0.0);
    let end = |token| open(Some(token)).map(|dataset| dataset.end_of_text());
    // Without a tokenizer, by its id.
    assert_eq!(end("7").expect("open"), 7);
    assert!(message(end("600")).contains("data.end_of_text = 600"));
    let unknown = message(end("</s>"));
    assert!(unknown.contains("`</s>`") && unknown.contains("data.end_of_text to its id"), "{unknown}");
    let llama = golden("cases/tokenizer_other_eos/llama3.json");
    fs::copy(llama, dir.path().join("tokenizer.json")).expect("copy");
    let (end_of_text, eot) = (end("<|end_of_text|>").expect("open"), end("<|eot_id|>").expect("open"));
    assert!(end_of_text != eot && end("7").expect("open") == 7);
    let unsaid = message(open(None).map(drop));
    assert!(
        unsaid.contains("`<|end_of_text|>`") && unsaid.contains("--set data.end_of_text=TOKEN"),
        "{unsaid}"
    );
    // Rows with another end are other rows.
    let rows = rows(Packing::BestFit, Order::Files, 0.0);
    let mark = |token| {
        let dataset = Arc::new(open(Some(token)).expect("open"));
        let mut loader = Loader::start(dataset, rows.clone(), Position::default()).expect("start");
        loader.next_batch(1, 1).expect("rows").position_after.mark
    };
    assert_ne!(mark("<|end_of_text|>"), mark("<|eot_id|>"));

    // A prepared folder says it itself.
    let preparation = options(jsonl(dir.path(), 20), dir.path().join("a folder"));
    prepare(&preparation, &mut go).expect("prepare");
    let open =
        |token| Dataset::open_ended_by(Some(token), &preparation.out, 320, 0.0).map(|d| d.end_of_text());
    assert!(open("<|endoftext|>").is_ok());
    let other = message(open("<|fim_pad|>"));
    assert!(other.contains("`<|endoftext|>`") && other.contains("`<|fim_pad|>`"), "{other}");
}

#[test]
fn bad_folders_are_named_with_their_remedy() {
    let dir = TempDir::new().expect("folder");
    let fails = |folder: &Path| message(Dataset::open(folder, VOCABULARY, 0.0));
    let absent = fails(&dir.path().join("absent"));
    assert!(absent.contains("does not exist") && absent.contains("prepare-data"), "{absent}");
    let spaced = fails(&dir.path().join("my data"));
    assert!(spaced.contains(&format!("--out '{}/my data' --train", dir.path().display())), "{spaced}");
    assert!(fails(dir.path()).contains("holds no training rows"));

    let file = dir.path().join("x.parquet");
    write_parquet(&file, &[vec![("tokens", vec![vec![1]])]]);
    let column = fails(dir.path());
    assert!(
        column.contains("x.parquet") && column.contains("`input_ids`") && column.contains("`tokens`"),
        "{column}"
    );
    write_parquet(&file, &[vec![("input_ids", vec![vec![1, 2, 3]; 50])]]);
    assert!(message(Dataset::open(dir.path(), 100, 0.0)).contains("<|endoftext|>"));
    let bytes = fs::read(&file).expect("read");
    fs::write(&file, &bytes[..bytes.len() - 9]).expect("write");
    assert!(fails(dir.path()).contains("truncated or damaged"));

    write_parquet(&file, &[vec![("input_ids", vec![vec![1], vec![1, VOCABULARY as i32]])]]);
    let options = rows(Packing::Sequential, Order::Files, 0.0);
    let row =
        Loader::start(open(dir.path()), options, Position::default()).and_then(|mut l| l.next_batch(1, 1));
    let row = message(row);
    assert!(row.contains("row 1") && row.contains("16777216") && row.contains("model.vocab_size"), "{row}");
    let fim = rows(Packing::Sequential, Order::Files, 0.5);
    assert!(message(Loader::start(open(dir.path()), fim, Position::default())).contains("data.fim_rate = 0"));
}

#[test]
fn a_prepared_folder_is_checked_against_its_description() {
    let dir = TempDir::new().expect("folder");
    let preparation = options(jsonl(dir.path(), 300), dir.path().join("out"));
    let info = prepare(&preparation, &mut go).expect("prepare").info;
    let out = &preparation.out;
    assert!(message(Dataset::open(out, 100, 0.0)).contains("model.vocab_size"));

    let tokenizer = fs::read(out.join("tokenizer.json")).expect("read");
    fs::write(out.join("tokenizer.json"), [tokenizer.as_slice(), b"\n"].concat()).expect("write");
    assert!(message(Dataset::open(out, VOCABULARY, 0.0)).contains("put the original tokenizer.json back"));
    fs::write(out.join("tokenizer.json"), tokenizer).expect("write");

    let shard = out.join(&info.train.shards[0].file);
    let bytes = fs::read(&shard).expect("read");
    fs::write(&shard, &bytes[..bytes.len() / 2]).expect("write");
    let truncated = message(Dataset::open(out, VOCABULARY, 0.0));
    assert!(truncated.contains("truncated") && truncated.contains("train-00000.parquet"), "{truncated}");
    fs::remove_file(&shard).expect("remove");
    assert!(message(Dataset::open(out, VOCABULARY, 0.0)).contains("is not there"));
    let mut flipped = bytes;
    flipped[100] ^= 4;
    fs::write(&shard, flipped).expect("write");
    let options = rows(Packing::Sequential, Order::Files, 0.0);
    let batch =
        |options| Loader::start(open(out), options, Position::default()).and_then(|mut l| l.next_batch(1, 1));
    let damaged = message(batch(options));
    assert!(damaged.contains("row group 0") && damaged.contains("data.max_bad_row_groups = 1"), "{damaged}");
}

#[test]
fn a_damaged_row_group_is_left_out_and_moves_no_other() {
    let dir = TempDir::new().expect("folder");
    unique_documents(dir.path());
    let options = RowOptions { max_bad_row_groups: 1, ..rows(Packing::Sequential, Order::Shuffled, 0.0) };
    let good = epoch(&open(dir.path()), &options);
    let windows = |dataset: &Arc<Dataset>| {
        let mut loader = Loader::start(dataset.clone(), options.clone(), Position::default()).expect("start");
        let mut windows: BTreeMap<u64, Vec<(u64, u64, Vec<i32>)>> = BTreeMap::new();
        while loader.position().epoch == 0 {
            let Batch { ids, position, .. } = loader.next_batch(1, 1).expect("row");
            windows.entry(position.window).or_default().push((position.block, position.row, ids));
        }
        windows
    };
    let before = windows(&open(dir.path()));
    let file = dir.path().join("part-1.parquet");
    let mut bytes = fs::read(&file).expect("read");
    bytes[4..60].fill(0xff);
    fs::write(&file, bytes).expect("write");
    let dataset = open(dir.path());
    let mut loader = Loader::start(dataset.clone(), options.clone(), Position::default()).expect("start");
    let mut first_rows = Vec::new();
    while loader.position().epoch < 2 {
        first_rows.push(loader.next_batch(1, 1).expect("row"));
    }
    assert_eq!(loader.bad_row_groups(), 1, "counted once");
    let untouched =
        first_rows.iter().filter(|b| good.iter().any(|g| g.0 == b.ids && b.position.epoch == 0)).count();
    assert!(
        untouched > good.len() / 3,
        "windows without the damage are as before: {untouched} of {}",
        good.len()
    );
    let after = windows(&dataset);
    assert!(before.len() > 3 && before.keys().eq(after.keys()));
    let changed = before.iter().filter(|(window, rows)| after[window] != **rows).count();
    assert_eq!(changed, 1, "every row of every other window is at its place");
    let said: Vec<String> = loader.notes().collect();
    assert!(said.len() == 1 && said[0].contains("part-1.parquet, row group 0"), "{said:?}");
    let strict = RowOptions { max_bad_row_groups: 0, ..options.clone() };
    let mut loader = Loader::start(dataset, strict, Position::default()).expect("start");
    let error = (0..good.len()).find_map(|_| loader.next_batch(1, 1).err()).expect("an error").to_string();
    assert!(error.contains("part-1.parquet, row group 0"), "{error}");
}

/// Whatever bytes a file holds, reading it ends in rows or in an error.
#[test]
fn damaged_files_never_bring_the_loader_down() {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
    let cut = prop::option::weighted(0.1, any::<prop::sample::Index>());
    property(300, &(changes, cut), |(changes, cut)| {
        let dir = TempDir::new().expect("folder");
        let file = dir.path().join("x.parquet");
        let group = |g: i32| vec![("input_ids", (0..20).map(|i| (0..i).map(|p| g + p).collect()).collect())];
        write_parquet(&file, &[group(0), group(50)]);
        let mut bytes = fs::read(&file).expect("read");
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&file, bytes).expect("write");
        if let Ok(dataset) = Dataset::open(dir.path(), VOCABULARY, 0.0) {
            let options =
                RowOptions { max_bad_row_groups: 2, ..rows(Packing::BestFit, Order::Shuffled, 0.0) };
            let batch = Loader::start(Arc::new(dataset), options, Position::default())
                .and_then(|mut l| l.next_batch(1, 4));
            assert!(!matches!(batch, Err(DataError::ThreadGone)));
        }
    });
}
