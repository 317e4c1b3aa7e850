//! Reading Parquet files that may be damaged.
//!
//! The decoder trusts some of a file's offsets and sizes and panics on wrong ones. Those in the footer are checked here first; the
//! few inside the pages can't be, so a panic there is caught and returned as an error.

use crate::caught::caught;
use arrow_array::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::ColumnChunkMetaData;
use std::fs::File;

/// Reads and checks a file's footer. The error says what is wrong with it.
pub(crate) fn open(file: File) -> Result<ParquetRecordBatchReaderBuilder<File>, String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| error.to_string())?;
    for (index, group) in builder.metadata().row_groups().iter().enumerate() {
        if group.num_rows() < 0 {
            return Err(format!("row group {index} has a negative number of rows"));
        }
        if let Some(column) = group.columns().iter().find(|column| !lies_within(column, length)) {
            return Err(format!(
                "row group {index}: column `{}` lies outside the file",
                column.column_path()
            ));
        }
    }
    Ok(builder)
}

fn lies_within(column: &ColumnChunkMetaData, length: u64) -> bool {
    let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    let end = u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok());
    column.num_values() >= 0
        && end.and_then(|(start, size)| start.checked_add(size)).is_some_and(|end| end <= length)
}

/// Decodes a file checked by [`open`] in batches of `rows`; stops after the first error.
pub(crate) fn batches(
    builder: ParquetRecordBatchReaderBuilder<File>,
    rows: usize,
) -> impl Iterator<Item = Result<RecordBatch, String>> {
    let mut reader = Some(builder.with_batch_size(rows).build().map_err(|error| error.to_string()));
    std::iter::from_fn(move || {
        let mut decoder = match reader.take()? {
            Ok(decoder) => decoder,
            Err(error) => return Some(Err(error)),
        };
        // A decoder that panicked is dropped, so its broken state is never used.
        match caught(|| decoder.next()) {
            Ok(batch) => {
                let batch = batch?.map_err(|error| error.to_string());
                reader = batch.is_ok().then_some(Ok(decoder));
                Some(batch)
            }
            Err(_) => Some(Err("its pages can't be decoded".to_owned())),
        }
    })
}
