//! Reading Parquet shards through a memory map, a range of rows at a time. Whatever the file holds, reading it ends in rows
//! or in an error: the decoder may panic on hostile input, and that is caught here.

use crate::mapped;
use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::file::metadata::RowGroupMetaData;

use super::error::{DataError, Result};
use super::manifest::{ShardInfo, row_group_check};

/// The columns that a row may have, in the order in which they are read.
const COLUMNS: [&str; 3] = ["input_ids", "segment_ids", "labels"];

/// No row group has more tokens; a footer that says so is damaged.
const MOST_TOKENS: u64 = 1 << 40;

/// An open shard.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    bytes: Bytes,
    metadata: ArrowReaderMetadata,
    /// Which of [`COLUMNS`] are there.
    present: [bool; 3],
    /// What each row group must hash to, where that is known.
    checks: Option<Vec<String>>,
}

/// Rows of a shard. The optional columns lie beside `ids` and are cut at the same places.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) ids: Vec<i32>,
    /// Where each row ends in `ids`.
    pub(super) ends: Vec<usize>,
    pub(super) segments: Option<Vec<i32>>,
    pub(super) labels: Option<Vec<i32>>,
}

impl Rows {
    /// Where row `index` lies in the flat columns.
    pub(super) fn range(&self, index: usize) -> Range<usize> {
        (if index == 0 { 0 } else { self.ends[index - 1] })..self.ends[index]
    }
}

/// Why rows could not be read.
pub(super) enum ReadError {
    /// The row group is damaged; others may be good.
    Damaged(String),
    /// The data do not fit the model; skipping would hide it.
    Wrong(DataError),
}

impl Shard {
    /// Opens and maps a shard and reads its footer. `info` is its entry in `dataset.json`, if there is one.
    pub(super) fn open(path: &Path, info: Option<&ShardInfo>) -> Result<Self> {
        let bytes = map(path)?;
        if let Some(info) = info
            && info.size != bytes.len() as u64
        {
            let (found, wanted) = (bytes.len() as u64, info.size);
            return Err(DataError::ShardSize { path: path.to_owned(), found, wanted });
        }
        let metadata =
            read_footer(&bytes).map_err(|reason| DataError::Footer { path: path.to_owned(), reason })?;
        let fields = metadata.schema().fields();
        let present = COLUMNS.map(|name| {
            fields.iter().any(|f| {
                f.name() == name
                    && matches!(f.data_type(), DataType::List(item) if is_integer(item.data_type()))
            })
        });
        if !present[0] {
            return Err(DataError::Column {
                path: path.to_owned(),
                wanted: COLUMNS[0].to_owned(),
                kind: "list<int32> or list<int64>",
                found: describe(&metadata),
                remedy: "text must be tokenised first: `cargo run -p prepare-data -- --out DIR --text-column NAME FILE`",
            });
        }
        let checks = info.map(|i| i.row_groups.clone());
        let shard = Self { path: path.to_owned(), bytes, metadata, present, checks };
        if let Some((rows, tokens)) =
            shard.row_groups().find(|&(rows, tokens)| rows > tokens || tokens > MOST_TOKENS)
        {
            let reason = format!("its footer says {rows} rows with {tokens} tokens in one row group");
            return Err(DataError::Footer { path: path.to_owned(), reason });
        }
        Ok(shard)
    }

    /// Whether rows are complete training rows rather than documents.
    pub(super) fn has_labels(&self) -> bool {
        self.present[2]
    }

    /// Whether rows say which document each token belongs to.
    pub(super) fn has_segments(&self) -> bool {
        self.present[1]
    }

    /// The size of the file.
    pub(super) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Rows and tokens of each row group as the footer states them. The count of tokens is exact unless rows are empty or
    /// null, which count as one.
    pub(super) fn row_groups(&self) -> impl Iterator<Item = (u64, u64)> {
        let leaf = self.leaf(COLUMNS[0]).expect("checked when the shard was opened");
        self.metadata
            .metadata()
            .row_groups()
            .iter()
            .map(move |group| (group.num_rows().max(0) as u64, group.column(leaf).num_values().max(0) as u64))
    }

    /// Reads a range of the rows of a row group; all ids are in `0..vocabulary`.
    pub(super) fn read(
        &self,
        group: usize,
        rows: Range<u64>,
        vocabulary: usize,
    ) -> std::result::Result<Rows, ReadError> {
        let work = || self.verify(group).and_then(|()| self.decode(group, &rows));
        let decoded = catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|_| Err("the Parquet decoder panicked".to_owned()))
            .map_err(ReadError::Damaged)?;
        if let Some(at) = decoded.ids.iter().position(|&id| id < 0 || id as usize >= vocabulary) {
            let row =
                self.rows_before(group) + rows.start + decoded.ends.partition_point(|&end| end <= at) as u64;
            let id = i64::from(decoded.ids[at]);
            return Err(ReadError::Wrong(DataError::IdOutOfRange {
                path: self.path.clone(),
                row,
                id,
                vocabulary,
            }));
        }
        Ok(decoded)
    }

    /// Compares the bytes of a row group with their hash, where that is known.
    fn verify(&self, group: usize) -> std::result::Result<(), String> {
        let Some(check) = self.checks.as_ref().and_then(|c| c.get(group)) else { return Ok(()) };
        let bytes = self.bytes.get(row_group_range(self.metadata.metadata().row_group(group)));
        if bytes.map(row_group_check).as_ref() == Some(check) {
            return Ok(());
        }
        Err("its bytes do not hash to what dataset.json says".to_owned())
    }

    fn rows_before(&self, group: usize) -> u64 {
        self.metadata.metadata().row_groups()[..group].iter().map(|g| g.num_rows().max(0) as u64).sum()
    }

    fn leaf(&self, column: &str) -> Option<usize> {
        let leaves = self.metadata.metadata().file_metadata().schema_descr().columns();
        leaves.iter().position(|leaf| leaf.path().parts()[0] == column)
    }

    fn decode(&self, group: usize, rows: &Range<u64>) -> std::result::Result<Rows, String> {
        let leaves = COLUMNS
            .iter()
            .zip(self.present)
            .filter(|(_, there)| *there)
            .filter_map(|(name, _)| self.leaf(name));
        let schema = self.metadata.metadata().file_metadata().schema_descr();
        let mut builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(self.bytes.clone(), self.metadata.clone())
                .with_projection(ProjectionMask::leaves(schema, leaves))
                .with_row_groups(vec![group])
                .with_batch_size(1024);
        let all = self.metadata.metadata().row_group(group).num_rows().max(0) as u64;
        if *rows != (0..all) {
            builder = builder.with_row_selection(RowSelection::from(vec![
                RowSelector::skip(rows.start as usize),
                RowSelector::select((rows.end - rows.start) as usize),
            ]));
        }
        let mut out = Rows {
            segments: self.present[1].then(Vec::new),
            labels: self.present[2].then(Vec::new),
            ..Rows::default()
        };
        for batch in builder.build().map_err(|e| e.to_string())? {
            let batch = batch.map_err(|e| e.to_string())?;
            let before = out.ids.len();
            let lengths = append(&batch, COLUMNS[0], &mut out.ids)?;
            for (name, column) in [(COLUMNS[1], out.segments.as_mut()), (COLUMNS[2], out.labels.as_mut())] {
                let Some(column) = column else { continue };
                if append(&batch, name, column)? != lengths {
                    return Err(format!("rows of `{name}` and `input_ids` differ in length"));
                }
            }
            out.ends.extend(lengths.iter().scan(before, |end, length| {
                *end += length;
                Some(*end)
            }));
        }
        if out.ends.len() as u64 != rows.end - rows.start {
            return Err(format!("it has {} rows, its footer says {}", out.ends.len(), rows.end - rows.start));
        }
        Ok(out)
    }
}

/// Where a row group's bytes lie in its file.
pub(super) fn row_group_range(group: &RowGroupMetaData) -> Range<usize> {
    let (mut start, mut end) = (u64::MAX, 0);
    for column in group.columns() {
        let (at, length) = column.byte_range();
        (start, end) = (start.min(at), end.max(at + length));
    }
    start as usize..end as usize
}

/// Maps a file into memory.
pub(super) fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => DataError::MissingShard(path.to_owned()),
        _ => DataError::io("open", path, e),
    })?;
    let map = mapped::map(&file).map_err(|e| DataError::io("map", path, e))?;
    Ok(Bytes::from_owner(map))
}

/// Reads the footer of a Parquet file.
pub(super) fn read_footer(bytes: &Bytes) -> std::result::Result<ArrowReaderMetadata, String> {
    // Without the writer's own Arrow schema every list is plainly a list, whatever wrote the file.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    catch_unwind(AssertUnwindSafe(|| ArrowReaderMetadata::load(bytes, options).map_err(|e| e.to_string())))
        .unwrap_or_else(|_| Err("the Parquet decoder panicked".to_owned()))
}

/// The columns of a file, for messages.
pub(super) fn describe(metadata: &ArrowReaderMetadata) -> String {
    let columns: Vec<_> =
        metadata.schema().fields().iter().map(|f| format!("`{}` {}", f.name(), f.data_type())).collect();
    if columns.is_empty() { "none".to_owned() } else { columns.join(", ") }
}

fn is_integer(ty: &DataType) -> bool {
    matches!(ty, DataType::Int32 | DataType::Int64)
}

/// Appends a list column to `out` and returns the lengths of its rows.
fn append(batch: &RecordBatch, name: &str, out: &mut Vec<i32>) -> std::result::Result<Vec<usize>, String> {
    let column = batch.column_by_name(name).ok_or_else(|| format!("`{name}` is missing"))?;
    let lists = column.as_list_opt::<i32>().ok_or_else(|| format!("`{name}` is not a list"))?;
    let mut lengths = Vec::with_capacity(lists.len());
    for row in 0..lists.len() {
        if lists.is_null(row) {
            lengths.push(0);
            continue;
        }
        let values = lists.value(row);
        if values.null_count() > 0 {
            return Err(format!("`{name}` has a row with a null in it"));
        }
        lengths.push(values.len());
        if let Some(values) = values.as_primitive_opt::<Int32Type>() {
            out.extend_from_slice(values.values());
        } else if let Some(values) = values.as_primitive_opt::<Int64Type>() {
            for &value in values.values() {
                out.push(
                    i32::try_from(value)
                        .map_err(|_| format!("`{name}` holds {value}, which is no token id"))?,
                );
            }
        } else {
            return Err(format!("`{name}` is a list of {}", values.data_type()));
        }
    }
    Ok(lengths)
}
