//! Which rows a run sees: FIM whole in its row, and what is left of small, uneven and damaged data.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use tempfile::TempDir;
use tests::property;
use tests::shards::shard;
use tests::sources::{go, jsonl, preparation, program};
use train::data::{
    Batch, DataError, Dataset, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, Loader, Order, PADDING, Packing, Position,
    PrepareProgress, RowOptions, prepare,
};

/// 60 programs in one shard, short and long, with characters of one to four bytes: text in the order of the rows.
struct Prepared {
    _folder: TempDir,
    dataset: Arc<Dataset>,
    texts: Vec<String>,
    longest: usize,
}

static PREPARED: LazyLock<Prepared> = LazyLock::new(|| {
    let folder = TempDir::new().expect("folder");
    let input: PathBuf = folder.path().join("programs.jsonl");
    let texts: Vec<String> = (0..60)
        .map(|i| {
            let many = if i % 9 == 0 { 12 } else { 1 + i % 2 };
            (0..many).map(|part| program(100 * i + part) + "# 漢字 🦀 é\n").collect()
        })
        .collect();
    let line = |text: &String| serde_json::json!({ "text": text }).to_string() + "\n";
    std::fs::write(&input, texts.iter().map(line).collect::<String>()).expect("write");
    let mut options = preparation(input, folder.path().join("out"));
    options.validation_fraction = 0.0;
    options.shard_tokens = 1 << 24;
    prepare(&options, &mut go).expect("prepare");
    let dataset = Arc::new(Dataset::open(&options.out, 320, 0.0).expect("open"));
    let tokenizer = dataset.tokenizer().expect("prepared");
    let longest = texts.iter().map(|text| tokenizer.encode(text).expect("encode").len()).max().expect("some");
    Prepared { dataset, texts, longest, _folder: folder }
});

/// What a piece of a row holds, in the order of the document.
struct Piece {
    bytes: Vec<u8>,
    rearranged: bool,
    ended: bool,
}

/// Reads a piece; marks must be whole or absent.
fn piece(ids: &[i32], dataset: &Dataset) -> Piece {
    let tokenizer = dataset.tokenizer().expect("prepared");
    let bytes = |ids: &[i32]| tokenizer.decode_bytes(ids).expect("no marks within a part");
    let ended = ids.last() == Some(&dataset.end_of_text());
    let body = if ended { &ids[..ids.len() - 1] } else { ids };
    let [prefix, middle, suffix] =
        [FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX].map(|mark| tokenizer.find_special(mark).expect("a mark"));
    if !body.iter().any(|id| [prefix, middle, suffix].contains(id)) {
        return Piece { bytes: bytes(body), rearranged: false, ended };
    }
    assert!(ended, "a rearranged piece is ended: {ids:?}");
    let at = |mark| body.iter().position(|id| *id == mark).expect("every mark is in the same row");
    let [begin, hole, after] = [prefix, middle, suffix].map(at);
    assert!(begin == 0 && begin < after && after < hole, "{ids:?}");
    let (first, second, third) = (&body[1..after], &body[after + 1..hole], &body[hole + 1..]);
    // PSM, or SPM with nothing between its first marks: the same, if the prefix is empty.
    Piece { bytes: [first, third, second].map(bytes).concat(), rearranged: true, ended }
}

/// The rows of a first epoch.
fn epoch(options: &RowOptions) -> Vec<Batch> {
    let dataset = &PREPARED.dataset;
    let mut loader = Loader::start(dataset.clone(), options.clone(), Position::default()).expect("start");
    let mut rows = Vec::new();
    while loader.position().epoch == 0 {
        rows.push(loader.next_batch(1, 1).expect("row"));
    }
    rows
}

fn pieces(row: &Batch) -> Vec<Piece> {
    let mut at = 0;
    row.segments
        .chunk_by(|a, b| a == b)
        .filter_map(|segment| {
            let ids = &row.ids[at..at + segment.len()];
            at += segment.len();
            (segment[0] != PADDING).then(|| piece(ids, &PREPARED.dataset))
        })
        .collect()
}

/// Whatever the packing, every rearranged piece is whole in its row, nothing is lost, and rows are full.
#[test]
fn rearranged_pieces_are_whole_in_their_row() {
    let values = (
        prop::sample::select(vec![Packing::BestFit, Packing::Sequential, Packing::None]),
        any::<bool>().prop_map(Order::from),
        2..300usize,
        prop::sample::select(vec![0.0, 0.1, 0.5, 0.9, 1.0]),
        prop::sample::select(vec![0.0, 0.1, 1.0]),
        0..1000u64,
    );
    property(200, &values, |(packing, order, seq, fim_rate, fim_spm_rate, seed)| {
        // Rows that stand as they are must hold the longest document.
        let seq = if packing == Packing::None { seq + PREPARED.longest + 1 } else { seq };
        let options = RowOptions {
            seq,
            packing,
            long_rows: packing.long_rows(),
            order,
            fim_rate,
            fim_spm_rate,
            seed,
            max_bad_row_groups: 0,
            window_tokens: 1 << 20,
        };
        let rows = epoch(&options);
        let all: Vec<Piece> = rows.iter().flat_map(pieces).collect();
        let text: usize = PREPARED.texts.iter().map(String::len).sum();
        assert_eq!(all.iter().map(|piece| piece.bytes.len()).sum::<usize>(), text);
        if packing != Packing::None {
            assert!(all.iter().filter(|piece| piece.ended).count() >= PREPARED.texts.len());
        }
        if packing == Packing::Sequential && order == Order::Files {
            let found: Vec<u8> = all.iter().flat_map(|piece| piece.bytes.clone()).collect();
            assert!(found == PREPARED.texts.concat().into_bytes());
        }
        // A cut near the end of a piece makes it shorter than its room by a few tokens, as does a character that does not fit
        // whole. The last row of a block, which may be short, is anywhere among them.
        let most = if fim_rate > 0.0 { 15 } else { 0 };
        let padding = |row: &Batch| row.segments.iter().filter(|segment| **segment == PADDING).count();
        let short = rows.iter().filter(|row| packing != Packing::None && padding(row) > most).count();
        let blocks = rows.iter().map(|row| row.position.block).collect::<BTreeSet<_>>().len();
        assert!(short <= blocks, "{short} rows of {blocks} blocks are padded");
        let rearranged = all.iter().filter(|piece| piece.rearranged).count() as f64 / all.len() as f64;
        // Five standard deviations of as many draws as there are documents at least.
        let most = fim_rate + 5.0 * (fim_rate * (1.0 - fim_rate) / 60.0).sqrt();
        assert!(rearranged <= most, "{rearranged} of {fim_rate}");
        if seq > 100 {
            // Some pieces are too small for marks and text, or begin within a character.
            let least = 0.7 * fim_rate - 5.0 * (fim_rate * (1.0 - fim_rate) / 60.0).sqrt();
            assert!(rearranged >= least, "{rearranged} of {fim_rate}");
        }
    });
}

// Small, uneven and damaged folders.

/// Qwen's end of text: what a folder without a tokenizer means.
const EOS: i32 = 151_643;

/// Writes documents as a Parquet file of one row group.
fn write(path: &Path, documents: &[Vec<i32>]) {
    fs::write(path, shard(&[("input_ids", documents)], documents.len().max(1))).expect("write");
}

/// Documents of ten tokens each, all of one value: 1000 and the document's number.
fn numbered(range: std::ops::Range<i32>) -> Vec<Vec<i32>> {
    range.map(|number| vec![1000 + number; 10]).collect()
}

fn small(packing: Packing, seed: u64) -> RowOptions {
    RowOptions {
        seq: 16,
        packing,
        long_rows: packing.long_rows(),
        order: Order::Shuffled,
        fim_rate: 0.0,
        fim_spm_rate: 0.0,
        seed,
        max_bad_row_groups: 0,
        window_tokens: 1 << 20,
    }
}

fn open(folder: &Path, fraction: f64) -> Result<Arc<Dataset>, DataError> {
    Dataset::open(folder, 1 << 20, fraction).map(Arc::new)
}

/// The numbers of the documents in some rows.
fn documents(batches: &[Batch]) -> BTreeSet<i32> {
    let trained = |batch: &Batch| -> Vec<i32> {
        let places = batch.ids.iter().zip(&batch.segments);
        places.filter(|(id, segment)| **segment >= 0 && **id != EOS).map(|(id, _)| id - 1000).collect()
    };
    batches.iter().flat_map(trained).collect()
}

/// All documents of an epoch, each met in full.
fn seen(dataset: &Arc<Dataset>, packing: Packing) -> BTreeSet<i32> {
    let mut loader = Loader::start(dataset.clone(), small(packing, 1), Position::default()).expect("start");
    let mut rows = Vec::new();
    while loader.position().epoch == 0 {
        rows.push(loader.next_batch(1, 1).expect("row"));
    }
    let tokens: usize =
        rows.iter().map(|row| row.ids.iter().filter(|id| (1000..EOS).contains(*id)).count()).sum();
    let found = documents(&rows);
    assert_eq!(tokens, 10 * found.len());
    found
}

#[test]
fn validation_is_a_sample_of_the_whole_split_and_of_the_data_alone() {
    let dir = TempDir::new().expect("folder");
    let (here, there) = (dir.path().join("here"), dir.path().join("there"));
    for folder in [&here, &there] {
        fs::create_dir(folder).expect("folder");
        write(&folder.join("train.parquet"), &numbered(0..10));
        for part in 0..8 {
            write(
                &folder.join(format!("validation-{part}.parquet")),
                &numbered(100 * part..100 * (part + 1)),
            );
        }
    }
    for packing in [Packing::BestFit, Packing::None] {
        let sample = |folder: &Path, seed| {
            open(folder, 0.0).expect("open").validation(&small(packing, seed), 1, 8, 10).expect("rows")
        };
        let first = sample(&here, 1);
        assert_eq!(first.len(), 10);
        assert!(first == sample(&there, 2), "by the data, not by the run's seed or the folder's place");
        let drawn = documents(&first);
        assert!((70..=130).contains(&drawn.len()), "{}", drawn.len());
        // About ten from each of the eight files; the chance of fewer than two is 1e-3 a file, and the draws are fixed.
        for part in 0..8 {
            let of = drawn.range(100 * part..100 * (part + 1)).count();
            assert!(of >= 2, "{of} of file {part}: {drawn:?}");
        }
        let mean = drawn.iter().sum::<i32>() as f64 / drawn.len() as f64;
        // Five standard deviations of a mean of 80 uniform draws.
        assert!((mean - 400.0).abs() < 5.0 * 800.0 / (12.0_f64 * 80.0).sqrt(), "{mean}");
    }
    let said = open(&here, 0.3).expect("open").held_out();
    assert_eq!(
        said,
        "800 documents held out by files of its own; data.validation_fraction = 0.3 does nothing here"
    );
    let said = PREPARED.dataset.held_out();
    assert_eq!(said, "nothing of 60 documents (data.validation_fraction = 0)");
}

#[test]
fn a_validation_split_smaller_than_a_batch_is_padded_and_one_without_targets_is_none() {
    let dir = TempDir::new().expect("folder");
    write(&dir.path().join("train.parquet"), &numbered(0..10));
    write(&dir.path().join("validation.parquet"), &numbered(0..3));
    let rows =
        open(dir.path(), 0.0).expect("open").validation(&small(Packing::BestFit, 1), 1, 8, 5).expect("rows");
    assert_eq!(rows.len(), 1);
    // 33 tokens with their ends, cut at 16 and 32: five pieces, one of them a lone end.
    assert_eq!((rows[0].ids.len(), rows[0].padding()), (8 * 16, 8 * 16 - 33));
    assert_eq!(rows[0].targets(), 33 - 5);
    assert_eq!(documents(&rows), BTreeSet::from([0, 1, 2]));

    write(&dir.path().join("validation.parquet"), &[vec![], vec![]]);
    let dataset = open(dir.path(), 0.0).expect("open");
    for packing in [Packing::BestFit, Packing::None] {
        assert_eq!(dataset.validation(&small(packing, 1), 1, 8, 5).expect("no rows"), []);
    }
}

#[test]
fn a_corpus_shorter_than_a_row_is_a_padded_row_an_epoch() {
    let dir = TempDir::new().expect("folder");
    write(&dir.path().join("one.parquet"), &[vec![7, 8, 9]]);
    let dataset = open(dir.path(), 0.1).expect("open");
    assert!(!dataset.has_validation(), "the only document is trained on");
    for packing in [Packing::BestFit, Packing::Sequential, Packing::None] {
        let options = small(packing, 1);
        let size = dataset.epoch_size(&options).expect("rows");
        assert_eq!(size.rows, 1, "{packing:?}");
        let mut loader = Loader::start(dataset.clone(), options, Position::default()).expect("start");
        // A step of three rows sees the corpus three times.
        let batch = loader.next_batch(1, 3).expect("batch");
        assert_eq!(batch.position_after.epoch, 3);
        let ended = u64::from(packing != Packing::None);
        assert_eq!((batch.targets(), batch.padding()), (3 * (2 + ended), 3 * (13 - ended)));
    }
}

#[test]
fn shards_of_unequal_size_are_seen_whole_and_an_empty_one_is_none() {
    let dir = TempDir::new().expect("folder");
    let at = |name: &str| dir.path().join(name);
    write(&at("a.parquet"), &numbered(0..1));
    write(&at("b.parquet"), &numbered(1..500));
    write(&at("c.parquet"), &[]);
    write(&at("d.parquet"), &numbered(500..507));
    let dataset = open(dir.path(), 0.0).expect("open");
    for packing in [Packing::BestFit, Packing::Sequential, Packing::None] {
        assert_eq!(seen(&dataset, packing), (0..507).collect(), "{packing:?}");
    }
    // One shard alone, whose end is held out.
    for name in ["a.parquet", "c.parquet", "d.parquet"] {
        fs::remove_file(at(name)).expect("remove");
    }
    let dataset = open(dir.path(), 0.1).expect("open");
    let held = dataset.validation(&small(Packing::None, 1), 1, 1, 1000).expect("rows");
    assert_eq!(documents(&held), (450..500).collect());
    assert_eq!(seen(&dataset, Packing::BestFit), (1..450).collect());
    // A file of no bytes is no Parquet.
    fs::write(at("e.parquet"), "").expect("write");
    let message = open(dir.path(), 0.0).err().expect("refused").to_string();
    assert!(message.contains("e.parquet") && message.contains("truncated or damaged"), "{message}");
    // Nothing but a file of no rows.
    fs::remove_file(at("e.parquet")).expect("remove");
    write(&at("b.parquet"), &[]);
    let message = open(dir.path(), 0.0).err().expect("refused").to_string();
    assert!(message.contains("holds no training rows") && message.contains("prepare-data"), "{message}");
}

#[test]
fn a_token_id_beyond_the_vocabulary_is_named_in_either_split() {
    let dir = TempDir::new().expect("folder");
    let bad = [vec![5; 3], vec![5, 1 << 20]];
    write(&dir.path().join("train.parquet"), &bad);
    write(&dir.path().join("validation.parquet"), &bad);
    let dataset = open(dir.path(), 0.0).expect("open");
    for packing in [Packing::BestFit, Packing::None] {
        let options = small(packing, 1);
        let held = dataset.validation(&options, 1, 1, 1).expect_err("refused").to_string();
        assert!(held.contains("validation.parquet, row 1: token id 1048576"), "{held}");
        let loader = Loader::start(dataset.clone(), options, Position::default());
        let trained = loader.and_then(|mut loader| loader.next_batch(1, 1)).expect_err("refused").to_string();
        assert!(trained.contains("train.parquet, row 1: token id 1048576"), "{trained}");
    }
}

/// A preparation that was killed after its first shard was written and before that was noted.
#[test]
fn a_half_written_folder_is_never_taken_for_a_whole_one() {
    let dir = TempDir::new().expect("folder");
    let mut options = preparation(jsonl(dir.path(), 2500), dir.path().join("out"));
    options.shard_tokens = 2000;
    let mut looked = 0;
    let result = prepare(&options, &mut |state| {
        // Before any of this, the folder has at most a tokenizer.
        if matches!(state, PrepareProgress::Tokenised { .. }) {
            looked += 1;
            let message = open(&options.out, 0.0).err().expect("refused").to_string();
            assert!(message.contains("run the same prepare-data command again"), "{message}");
            // As killed between a shard and the list of shards.
            fs::remove_file(options.out.join("progress.json")).expect("it is there from the beginning");
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    assert!(matches!(result, Err(DataError::Interrupted)) && looked == 1);

    // Begun and nothing made: what is wrong with the options can be mended in the same folder.
    let out = dir.path().join("again");
    let mut wrong = preparation(dir.path().join("programs.jsonl"), out.clone());
    wrong.max_file_bytes = 1;
    let message = prepare(&wrong, &mut go).expect_err("nothing is left").to_string();
    assert!(message.contains("too large"), "{message}");
    let message = open(&out, 0.0).err().expect("refused").to_string();
    assert!(message.contains("not finished") || message.contains("holds no training rows"), "{message}");
    prepare(&preparation(dir.path().join("programs.jsonl"), out.clone()), &mut go).expect("other options");
    open(&out, 0.0).expect("whole");
}
