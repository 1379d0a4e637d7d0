//! Rows that are longer than the training rows, and folders as other programs lay them out.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use tests::golden;
use tests::shards::shard;
use train::data::{
    Batch, DataError, Dataset, Loader, LongRows, Order, PADDING, Packing, Position, RowOptions,
};

const EOS: i32 = 7;
const SEQ: usize = 16;

/// Writes columns of rows as a Parquet file of row groups of ten rows.
fn write(path: &Path, columns: &[(&str, &[Vec<i32>])]) {
    fs::write(path, shard(columns, 10)).unwrap();
}

/// Rows of 1 to 60 tokens, all different: 100 and what number they have among all.
fn documents(count: usize) -> Vec<Vec<i32>> {
    let mut next = 100;
    let mut document = |number: usize| -> Vec<i32> {
        let length = 1 + (number * 17 % 60) as i32;
        next += length;
        (next - length..next).collect()
    };
    (0..count).map(&mut document).collect()
}

/// The labels that other programs write: the ids one place earlier, without those of the last few places.
fn labels(ids: &[i32], masked: usize) -> Vec<i32> {
    let moved = ids[1..].iter().copied().chain([-100]);
    moved.enumerate().map(|(at, label)| if at + masked + 1 < ids.len() { label } else { -100 }).collect()
}

fn options(packing: Packing, long_rows: LongRows, order: Order) -> RowOptions {
    RowOptions {
        seq: SEQ,
        packing,
        long_rows,
        order,
        fim_rate: 0.0,
        fim_spm_rate: 0.0,
        seed: 5,
        max_bad_row_groups: 0,
        window_tokens: 900,
    }
}

fn open(folder: &Path) -> Arc<Dataset> {
    Arc::new(Dataset::open_ended_by(Some("7"), folder, 1 << 20, 0.0).unwrap())
}

fn start(dataset: &Arc<Dataset>, options: &RowOptions, position: Position) -> Result<Loader, DataError> {
    Loader::start(dataset.clone(), options.clone(), position)
}

/// The rows of a first epoch, one by one.
fn epoch(dataset: &Arc<Dataset>, options: &RowOptions) -> Vec<Batch> {
    let mut loader = start(dataset, options, Position::default()).unwrap();
    let mut rows = Vec::new();
    while loader.position().epoch == 0 {
        rows.push(loader.next_batch(1, 1).unwrap());
    }
    rows
}

/// The tokens of some rows, in alphabetical order, without ends of documents.
fn tokens(rows: &[Batch]) -> Vec<i32> {
    let of = |row: &Batch| -> Vec<i32> {
        let places = row.ids.iter().zip(&row.segments);
        places.filter(|(id, segment)| **segment >= 0 && **id != EOS).map(|(id, _)| *id).collect()
    };
    let mut all: Vec<i32> = rows.iter().flat_map(of).collect();
    all.sort_unstable();
    all
}

const ORDERS: [Order; 2] = [Order::Files, Order::Shuffled];
const PACKINGS: [Packing; 3] = [Packing::BestFit, Packing::Sequential, Packing::None];

#[test]
fn what_is_split_is_all_there_and_what_is_cut_is_counted() {
    let dir = TempDir::new().unwrap();
    let documents = documents(120);
    write(&dir.path().join("rows.parquet"), &[("input_ids", &documents)]);
    let dataset = open(dir.path());
    for (packing, order) in PACKINGS.into_iter().flat_map(|p| ORDERS.map(|o| (p, o))) {
        // A document that is packed has its end.
        let end = usize::from(packing != Packing::None);
        let cut = |document: &Vec<i32>| document[..document.len().min(SEQ)].to_vec();
        let begins: Vec<i32> = documents.iter().flat_map(cut).collect();
        let long = documents.iter().filter(|d| d.len() + end > SEQ).count() as u64;
        assert!(long > 50);

        let rule = options(packing, LongRows::Cut, order);
        let rows = epoch(&dataset, &rule);
        assert_eq!(tokens(&rows), begins, "{packing:?}");
        let size = dataset.epoch_size(&rule).unwrap();
        let counted = size.lengths.unwrap();
        let lost: usize = documents.iter().map(|d| (d.len() + end).saturating_sub(SEQ)).sum();
        assert_eq!((counted.rows, counted.long, counted.lost), (120, long, lost as u64));
        let held: usize = rows.iter().map(|row| row.ids.len() - row.padding() as usize).sum();
        assert_eq!(size.tokens, held as u64, "{packing:?}");
        let ended = rows.iter().flat_map(|row| &row.ids).filter(|id| **id == EOS).count();
        let whole = documents.iter().filter(|d| d.len() + end <= SEQ).count();
        let padding: usize = rows.iter().map(|row| row.padding() as usize).sum();
        assert_eq!(ended, end * whole + padding, "what is cut does not end; the end is the padding too");

        let rule = options(packing, LongRows::Split, order);
        let rows = epoch(&dataset, &rule);
        let size = dataset.epoch_size(&rule).unwrap();
        if packing == Packing::None {
            // A last token alone predicts nothing.
            let part = |part: &[i32]| (part.len() > 1).then(|| part.to_vec());
            let of = |d: &Vec<i32>| match d.len() > SEQ {
                true => d.chunks(SEQ).filter_map(part).collect::<Vec<_>>(),
                false => vec![d.clone()],
            };
            let wanted: Vec<Vec<i32>> = documents.iter().flat_map(of).collect();
            assert_eq!(tokens(&rows), wanted.concat());
            assert_eq!((rows.len(), size.rows), (wanted.len(), wanted.len() as u64));
            let alone = documents.iter().filter(|d| d.len() > SEQ && d.len() % SEQ == 1).count();
            assert!(alone > 0 && size.lengths.unwrap().lost == alone as u64);
            let said = size.lengths.unwrap().said(&rule);
            assert!(said.contains("rows (") && said.contains("split into"), "{said}");
        } else {
            assert_eq!(tokens(&rows), documents.concat());
            assert_eq!(size.lengths, None, "packing splits documents anyhow");
        }

        let rule = options(packing, LongRows::Refuse, order);
        let refused = start(&dataset, &rule, Position::default()).and_then(|mut l| l.next_batch(1, 200));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("--set data.long_rows=split"), "{refused}");
    }
}

/// Rows with labels: what they mask at the end is in no part, and segments are counted from 0 in each row.
#[test]
fn parts_of_rows_with_labels_keep_their_segments() {
    let dir = TempDir::new().unwrap();
    let mut ids: Vec<i32> = (100..140).collect();
    ids[4] = EOS;
    ids[20] = EOS;
    let labels = [labels(&ids, 6), labels(&ids[..16], 0), labels(&ids, 22)];
    let rows = [ids.clone(), ids[..16].to_vec(), ids.clone()];
    write(&dir.path().join("rows.parquet"), &[("input_ids", &rows), ("labels", &labels)]);
    let dataset = open(dir.path());
    let rule = options(Packing::None, LongRows::Split, Order::Files);
    let found = epoch(&dataset, &rule);
    let segments: Vec<Vec<i32>> = found.iter().map(|row| row.segments.clone()).collect();
    let run = |parts: &[(i32, usize)]| parts.iter().flat_map(|(s, n)| vec![*s; *n]).collect::<Vec<i32>>();
    // Of 40 places the last six labels are masked: 34 are predicted or predict, and two of them lie in the third part.
    let (first, second) = (run(&[(0, 5), (1, 11)]), run(&[(0, 5), (1, 11)]));
    let wanted =
        [&first, &second, &run(&[(0, 2), (PADDING, 14)]), &first, &first, &run(&[(0, 2), (PADDING, 14)])];
    assert_eq!(segments, wanted.map(Clone::clone));
    assert_eq!(found[0].ids, ids[..16]);
}

#[test]
fn long_rows_go_on_from_every_position() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("rows.parquet"), &[("input_ids", &documents(120))]);
    write(&dir.path().join("validation.parquet"), &[("input_ids", &documents(40))]);
    let dataset = open(dir.path());
    let mut marks = std::collections::BTreeSet::new();
    for packing in PACKINGS {
        for (long_rows, order) in
            [LongRows::Split, LongRows::Cut].into_iter().flat_map(|r| ORDERS.map(|o| (r, o)))
        {
            let rule = options(packing, long_rows, order);
            let mut loader = start(&dataset, &rule, Position::default()).unwrap();
            let mut batches: Vec<Batch> = Vec::new();
            while loader.position().epoch < 2 {
                batches.push(loader.next_batch(1, 3).unwrap());
            }
            assert!(batches.iter().any(|b| b.position.window > 1 && b.position.row > 0));
            marks.insert(batches[0].position_after.mark);
            for stop in (0..batches.len() - 1).step_by(3) {
                let mut resumed = start(&dataset, &rule, batches[stop].position_after).unwrap();
                assert_eq!(resumed.next_batch(1, 3).unwrap(), batches[stop + 1], "{rule:?}");
            }
            let last = batches.last().unwrap();
            assert_eq!(last.position_after.rows, 3 * batches.len() as u64);
            // Held-out rows are treated alike, and are the same at every call.
            let held = dataset.validation(&rule, 1, 2, 9).unwrap();
            assert!(!held.is_empty() && held == dataset.validation(&rule, 1, 2, 9).unwrap());
        }
    }
    assert_eq!(marks.len(), 12, "other rows are other positions");
}

/// A run that met a long row, which was refused, goes on at the very row once it may be split; after that, another rule
/// begins the block again.
#[test]
fn a_refused_row_can_be_allowed_and_no_row_is_lost() {
    let dir = TempDir::new().unwrap();
    let mut rows: Vec<Vec<i32>> = (0..200).map(|i| vec![100 + i; 9]).collect();
    rows[190] = vec![900; 40];
    write(&dir.path().join("rows.parquet"), &[("input_ids", &rows)]);
    let dataset = open(dir.path());
    let [refuse, split, cut] = [LongRows::Refuse, LongRows::Split, LongRows::Cut]
        .map(|rule| options(Packing::None, rule, Order::Files));
    let mut loader = start(&dataset, &refuse, Position::default()).unwrap();
    let position = loader.next_batch(1, 101).unwrap().position_after;
    assert!(position.row > 0);
    assert!(start(&dataset, &split, position).is_err(), "not without a word");
    let (moved, again) = dataset.in_other_rows(position, &refuse, &split).unwrap();
    assert_eq!((moved.row, moved.rows, again), (position.row, 101, 0));
    let mut whole = start(&dataset, &split, Position::default()).unwrap();
    whole.next_batch(1, 101).unwrap();
    let mut resumed = start(&dataset, &split, moved).unwrap();
    assert_eq!(resumed.next_batch(1, 150).unwrap(), whole.next_batch(1, 150).unwrap());

    let (moved, again) = dataset.in_other_rows(position_of(&dataset, &split, 101), &split, &cut).unwrap();
    assert!(again > 0 && moved.row == 0 && moved.rows == 101 - again);
    let rest = start(&dataset, &cut, moved).unwrap().next_batch(1, 1).unwrap();
    assert_eq!(rest.ids[0], 100 + (101 - again) as i32);
    assert_eq!(dataset.in_other_rows(position, &refuse, &refuse), None);
}

fn position_of(dataset: &Arc<Dataset>, options: &RowOptions, rows: usize) -> Position {
    start(dataset, options, Position::default()).unwrap().next_batch(1, rows).unwrap().position_after
}

/// `data/train/*.parquet` with a tokenizer and held-out rows beside it: the folder and its `train/` are the same data.
#[test]
fn folders_of_other_programs_are_found_as_they_lie() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("preprocessed_data");
    for inner in ["train", "tokenizer"] {
        fs::create_dir_all(folder.join(inner)).unwrap();
    }
    let open = |path: &Path| Dataset::open_ended_by(Some("7"), path, 1 << 20, 0.1);
    let nothing = open(&folder).err().unwrap().to_string();
    assert!(nothing.contains("no tokenizer.json") || nothing.contains("holds no training rows"), "{nothing}");
    for part in 0..3 {
        write(&folder.join(format!("train/{part:05}.parquet")), &[("input_ids", &documents(20))]);
    }
    // A folder of a tokenizer that is not understood is not passed over.
    fs::write(folder.join("tokenizer/vocab.json"), "{}").unwrap();
    for path in [folder.clone(), folder.join("train")] {
        let error = open(&path).err().unwrap().to_string();
        assert!(error.contains("holds no tokenizer.json") && error.contains("save_pretrained"), "{error}");
    }
    fs::copy(golden("cases/tokenizer_other_eos/llama3.json"), folder.join("tokenizer/tokenizer.json"))
        .unwrap();
    let mark = |path: &Path| {
        let dataset = Arc::new(open(path).unwrap());
        let rule = options(Packing::None, LongRows::Split, Order::Shuffled);
        let position = position_of(&dataset, &rule, 1);
        assert!(dataset.tokenizer().unwrap().path().ends_with("tokenizer/tokenizer.json"));
        (position.mark, dataset.held_out())
    };
    let inside = mark(&folder.join("train"));
    assert_eq!(mark(&folder), inside);
    assert_eq!(inside.1, "the last 6 of 60 documents (data.validation_fraction = 0.1)");
    for held in ["val", "validation"] {
        fs::create_dir(folder.join(held)).unwrap();
        write(&folder.join(held).join("a.parquet"), &[("input_ids", &documents(5 + held.len()))]);
        let inside = mark(&folder.join("train"));
        assert_eq!(mark(&folder), inside);
        let said = format!("{} documents held out by files of its own", 5 + held.len());
        assert!(inside.1.starts_with(&said), "{}", inside.1);
    }
}
