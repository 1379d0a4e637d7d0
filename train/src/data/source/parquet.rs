//! Text in a column of a Parquet file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};

use super::{BytesRead, Item, Items};
use crate::data::bad::{Bad, Place};
use crate::data::error::DataError;
use crate::data::shard;

/// The documents of a file.
pub(super) fn items(path: &Path, column: &str, read: &BytesRead) -> Items {
    match Table::open(path, column) {
        Err((reason, documents)) => {
            let bad = Bad { path: path.to_owned(), place: Place::Whole, reason, documents: documents.max(1) };
            Box::new(std::iter::once(Item::Bad(bad)))
        }
        Ok(table) => {
            let read = read.clone();
            let groups = 0..table.metadata.metadata().num_row_groups();
            Box::new(groups.flat_map(move |group| {
                let bytes = table.metadata.metadata().row_group(group).compressed_size();
                read.fetch_add(bytes.max(0) as u64, Ordering::Relaxed);
                Group::new(&table, group)
            }))
        }
    }
}

/// An open file.
struct Table {
    path: PathBuf,
    column: String,
    bytes: Bytes,
    metadata: ArrowReaderMetadata,
    mask: ProjectionMask,
}

impl Table {
    /// Opens a file, or says why not and how many rows are known to be in it.
    fn open(path: &Path, column: &str) -> Result<Self, (String, u64)> {
        let bytes = shard::map(path).map_err(|e| match e {
            DataError::Io { error, .. } => (format!("cannot be read: {error}"), 0),
            other => (other.to_string(), 0),
        })?;
        let metadata = shard::read_footer(&bytes)
            .map_err(|e| (format!("not a Parquet file, or truncated or damaged ({e})"), 0))?;
        let fields = metadata.schema().fields();
        if !fields.iter().any(|f| f.name() == column && is_text(f.data_type())) {
            let remedy = if fields.iter().any(|f| f.name() == "input_ids") {
                "it is tokenised already: train on its folder with --data (and data.packing = \"none\" if rows are complete)"
            } else {
                "name the column with the text with --text-column"
            };
            let found = shard::describe(&metadata);
            let rows = metadata.metadata().file_metadata().num_rows().max(0) as u64;
            return Err((format!("no column `{column}` of text (found: {found}); {remedy}"), rows));
        }
        let schema = metadata.metadata().file_metadata().schema_descr();
        let leaf = schema.columns().iter().position(|leaf| leaf.path().parts()[0] == column);
        let mask = ProjectionMask::leaves(schema, leaf);
        Ok(Self { path: path.to_owned(), column: column.to_owned(), bytes, metadata, mask })
    }
}

/// The rows of one row group. Damage to it spoils no other.
struct Group {
    path: PathBuf,
    column: String,
    batches: Result<ParquetRecordBatchReader, String>,
    /// Read, and still to be handed out.
    ready: std::vec::IntoIter<Option<Vec<u8>>>,
    /// Rows of the file handed out or left out before, and where this row group ends.
    row: u64,
    end: u64,
}

impl Group {
    fn new(table: &Table, group: usize) -> Self {
        let rows = |group: usize| table.metadata.metadata().row_group(group).num_rows().max(0) as u64;
        let row: u64 = (0..group).map(rows).sum();
        let build = || {
            ParquetRecordBatchReaderBuilder::new_with_metadata(table.bytes.clone(), table.metadata.clone())
                .with_projection(table.mask.clone())
                .with_row_groups(vec![group])
                .with_batch_size(64)
                .build()
        };
        Self {
            path: table.path.clone(),
            column: table.column.clone(),
            batches: caught(|| build().map_err(|e| e.to_string())),
            ready: Vec::new().into_iter(),
            row,
            end: row + rows(group),
        }
    }

    /// The next rows; none at the end.
    fn read(&mut self) -> Result<Vec<Option<Vec<u8>>>, String> {
        let batches = self.batches.as_mut().map_err(std::mem::take)?;
        let batch = caught(|| batches.next().transpose().map_err(|e| e.to_string()))?;
        Ok(batch.map_or_else(Vec::new, |batch| texts(batch.column(0))))
    }
}

impl Iterator for Group {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.row == self.end {
            return None;
        }
        if self.ready.len() == 0 {
            let rows = self.read();
            let reason = match rows {
                Ok(rows) if !rows.is_empty() => {
                    self.ready = rows.into_iter();
                    None
                }
                Ok(_) => Some("it has fewer rows than its footer says".to_owned()),
                Err(reason) => Some(reason),
            };
            if let Some(reason) = reason {
                let (place, documents) = (Place::Row(self.row + 1), self.end - self.row);
                self.row = self.end;
                let reason = format!("{reason}: {documents} rows to the end of the row group are lost");
                return Some(Item::Bad(Bad { path: self.path.clone(), place, reason, documents }));
            }
        }
        self.row += 1;
        Some(match self.ready.next().flatten() {
            Some(text) => Item::Bytes(text),
            None => {
                let (place, reason) = (Place::Row(self.row), format!("`{}` is null", self.column));
                Item::Bad(Bad { path: self.path.clone(), place, reason, documents: 1 })
            }
        })
    }
}

/// Calls the decoder, which panics at some files.
fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the Parquet decoder panicked".to_owned()))
}

fn is_text(ty: &DataType) -> bool {
    use DataType::{Binary, BinaryView, LargeBinary, LargeUtf8, Utf8, Utf8View};
    matches!(ty, Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView)
}

/// The values of a text column.
fn texts(column: &ArrayRef) -> Vec<Option<Vec<u8>>> {
    fn owned<'a>(values: impl Iterator<Item = Option<&'a [u8]>>) -> Vec<Option<Vec<u8>>> {
        values.map(|v| v.map(<[u8]>::to_vec)).collect()
    }
    match column.data_type() {
        DataType::Utf8 => owned(column.as_string::<i32>().iter().map(|v| v.map(str::as_bytes))),
        DataType::LargeUtf8 => owned(column.as_string::<i64>().iter().map(|v| v.map(str::as_bytes))),
        DataType::Utf8View => owned(column.as_string_view().iter().map(|v| v.map(str::as_bytes))),
        DataType::LargeBinary => owned(column.as_binary::<i64>().iter()),
        DataType::BinaryView => owned(column.as_binary_view().iter()),
        _ => owned(column.as_binary::<i32>().iter()),
    }
}
