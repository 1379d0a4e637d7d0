//! Parquet files for tests.

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use parquet::arrow::ArrowWriter;
use std::sync::Arc;

/// A Parquet file of lists of numbers, by the names of its columns, in row groups of so many rows.
pub fn shard(columns: &[(&str, &[Vec<i32>])], group: usize) -> Vec<u8> {
    let column = |rows: &[Vec<i32>]| -> ArrayRef {
        let mut list = ListBuilder::new(Int32Builder::new());
        for row in rows {
            list.values().append_slice(row);
            list.append(true);
        }
        Arc::new(list.finish())
    };
    let batch = RecordBatch::try_from_iter(columns.iter().map(|(name, rows)| (*name, column(rows)))).unwrap();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), None).unwrap();
    for at in (0..batch.num_rows()).step_by(group) {
        writer.write(&batch.slice(at, group.min(batch.num_rows() - at))).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
    file
}
