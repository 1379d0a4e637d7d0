//! Writing one Parquet shard: documents in, the file's bytes out, the same bytes for the same documents.

use std::sync::Arc;

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::manifest::row_group_check;
use super::shard::row_group_range;

/// A row group is closed at this many tokens: 4 MiB of ids, the unit of reading, of shuffling and of damage.
pub(super) const ROW_GROUP_TOKENS: usize = 1 << 20;

/// A shard under construction. It is kept in memory, compressed, so that its file can be written at once.
pub(super) struct ShardWriter {
    schema: SchemaRef,
    parquet: ArrowWriter<Vec<u8>>,
    rows: ListBuilder<Int32Builder>,
    group_tokens: usize,
    pub(super) documents: u64,
    pub(super) tokens: u64,
    pub(super) bytes: u64,
}

/// A finished shard.
pub(super) struct ShardBytes {
    /// The whole file.
    pub(super) file: Vec<u8>,
    /// The check of each row group.
    pub(super) row_groups: Vec<String>,
}

impl ShardWriter {
    /// An empty shard.
    pub(super) fn new() -> Result<Self, ParquetError> {
        let item: FieldRef = Arc::new(Field::new_list_field(DataType::Int32, false));
        let rows = ListBuilder::new(Int32Builder::new()).with_field(item.clone());
        let schema = Arc::new(Schema::new(vec![Field::new("input_ids", DataType::List(item), false)]));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            .set_max_row_group_row_count(None)
            .build();
        let parquet = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))?;
        Ok(Self { schema, parquet, rows, group_tokens: 0, documents: 0, tokens: 0, bytes: 0 })
    }

    /// Adds a document whose text has `bytes` bytes.
    pub(super) fn push(&mut self, ids: &[i32], bytes: u64) -> Result<(), ParquetError> {
        self.rows.values().append_slice(ids);
        self.rows.append(true);
        self.group_tokens += ids.len();
        self.documents += 1;
        self.tokens += ids.len() as u64;
        self.bytes += bytes;
        if self.group_tokens >= ROW_GROUP_TOKENS { self.flush() } else { Ok(()) }
    }

    /// Closes the file.
    pub(super) fn finish(mut self) -> Result<ShardBytes, ParquetError> {
        self.flush()?;
        let metadata = self.parquet.finish()?;
        let file = std::mem::take(self.parquet.inner_mut());
        let row_groups = metadata
            .row_groups()
            .iter()
            .map(|group| row_group_check(&file[row_group_range(group)]))
            .collect();
        Ok(ShardBytes { file, row_groups })
    }

    fn flush(&mut self) -> Result<(), ParquetError> {
        self.group_tokens = 0;
        let column: ArrayRef = Arc::new(self.rows.finish());
        self.parquet.write(&RecordBatch::try_new(self.schema.clone(), vec![column])?)?;
        self.parquet.flush()
    }
}
