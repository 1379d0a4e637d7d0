//! Which rows a run sees: FIM whole in its row, and what is left of small, uneven and damaged data.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use tempfile::TempDir;
use tests::property;
use tests::sources::{go, preparation, program};
use train::data::{
    Batch, Dataset, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, Loader, Order, PADDING, Packing, Position,
    RowOptions, prepare,
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
