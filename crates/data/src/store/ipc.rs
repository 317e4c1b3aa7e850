//! Arrow IPC files with a known schema: written as a stream, read through a checked memory mapping.
//!
//! Arrow's decoder trusts the offsets in a file and panics on wrong ones, so all of them are checked first.

use super::StoreError;
use crate::Fingerprint;
use crate::atomic::{self, AtomicError};
use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::writer::FileWriter;
use arrow_ipc::{self as ipc, Block, Footer, Message};
use arrow_schema::{ArrowError, DataType, Schema, SchemaRef};
use std::fs::File;
use std::path::Path;

const FINGERPRINT_KEY: &str = "fpo.fingerprint";
/// After the footer: its length (4 bytes) and `ARROW1`.
const TRAILER: usize = 10;
/// Before a message: a continuation marker and the message's length.
const MESSAGE_PREFIX: usize = 8;

pub(super) fn write(
    path: &Path,
    schema: &SchemaRef,
    fingerprint: &Fingerprint,
    blocks: impl Iterator<Item = Result<RecordBatch, StoreError>>,
) -> Result<(), StoreError> {
    let failed = |error: ArrowError| match error {
        ArrowError::IoError(_, source) => {
            AtomicError { path: path.to_owned(), action: "write", source }.into()
        }
        source => StoreError::Encode { path: path.to_owned(), source },
    };
    atomic::write_file(path, |file| {
        let mut writer = FileWriter::try_new(file, schema).map_err(failed)?;
        writer.write_metadata(FINGERPRINT_KEY, fingerprint.to_json());
        for block in blocks {
            writer.write(&block?).map_err(failed)?;
        }
        writer.finish().map_err(failed)
    })
}

/// Maps a file with exactly this schema; the batches borrow from the mapping.
pub(super) fn open(
    path: &Path,
    schema: &SchemaRef,
) -> Result<(Vec<RecordBatch>, Fingerprint), StoreError> {
    let io = |source| StoreError::Io { path: path.to_owned(), source };
    let damaged = |what: String| StoreError::Damaged { path: path.to_owned(), what };

    let file = File::open(path).map_err(io)?;
    // SAFETY: a mapping is sound as long as nobody changes the file. Stores are replaced by renaming, never written in place.
    let mapping = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
    let buffer = Buffer::from(bytes::Bytes::from_owner(mapping));

    let footer = footer(&buffer).map_err(damaged)?;
    let (expected, found) = (expected_columns(schema), found_columns(&footer));
    if expected != found {
        return Err(StoreError::Columns { path: path.to_owned(), expected, found });
    }
    let fingerprint =
        fingerprint(&footer).ok_or_else(|| damaged("it has no readable fingerprint".to_owned()))?;

    let decoder = FileDecoder::new(schema.clone(), footer.version()).with_require_alignment(true);
    let mut batches = Vec::new();
    for (index, block) in footer.recordBatches().iter().flatten().enumerate() {
        let batch = read_block(&decoder, &buffer, block)
            .map_err(|what| damaged(format!("block {index}: {what}")))?;
        batches.push(batch);
    }
    Ok((batches, fingerprint))
}

fn footer(buffer: &Buffer) -> Result<Footer<'_>, String> {
    let body = buffer.len().checked_sub(TRAILER).ok_or("it is too short")?;
    let trailer = buffer[body..].try_into().map_err(|_| "it has no trailer")?;
    let length = read_footer_length(trailer).map_err(|_| "its end is missing")?;
    let start = body.checked_sub(length).ok_or("its footer is longer than the file")?;
    ipc::root_as_footer(&buffer[start..body])
        .map_err(|error| format!("its footer is unreadable: {error}"))
}

fn read_block(
    decoder: &FileDecoder,
    buffer: &Buffer,
    block: &Block,
) -> Result<RecordBatch, String> {
    let outside = || "it lies outside the file".to_owned();
    let offset = usize::try_from(block.offset()).map_err(|_| outside())?;
    let head = usize::try_from(block.metaDataLength()).map_err(|_| outside())?;
    let body = usize::try_from(block.bodyLength()).map_err(|_| outside())?;
    let length = head.checked_add(body).filter(|_| head >= MESSAGE_PREFIX).ok_or_else(outside)?;
    if offset.checked_add(length).is_none_or(|end| end > buffer.len()) {
        return Err(outside());
    }
    let data = buffer.slice_with_length(offset, length);
    check_message(&data[..head], body)?;
    let batch = decoder.read_record_batch(block, &data).map_err(|error| error.to_string())?;
    batch.ok_or_else(|| "it is empty".to_owned())
}

/// Checks the message of a record batch against the size of its body.
fn check_message(head: &[u8], body: usize) -> Result<(), String> {
    if head[..4] != [0xff; 4] {
        return Err("its message doesn't start with the continuation marker".to_owned());
    }
    let message: Message<'_> =
        ipc::root_as_message(&head[MESSAGE_PREFIX..]).map_err(|error| error.to_string())?;
    let batch = message.header_as_record_batch().ok_or("it is not a record batch")?;
    if batch.compression().is_some() {
        return Err("it is compressed".to_owned());
    }
    let rows = usize::try_from(batch.length()).map_err(|_| "a negative number of rows")?;
    for node in batch.nodes().iter().flatten() {
        // No type here is smaller than four bytes, which limits the entries of a column.
        if node.null_count() != 0
            || usize::try_from(node.length()).is_ok_and(|length| length > body / 4)
            || node.length() < 0
        {
            return Err("a column's length or null count is wrong".to_owned());
        }
    }
    if rows > body / 8 {
        return Err("it has more rows than its body has room for".to_owned());
    }
    for part in batch.buffers().iter().flatten() {
        let end =
            part.offset().checked_add(part.length()).and_then(|end| usize::try_from(end).ok());
        if part.offset() < 0 || part.length() < 0 || end.is_none_or(|end| end > body) {
            return Err("a buffer lies outside its body".to_owned());
        }
    }
    Ok(())
}

fn expected_columns(schema: &Schema) -> String {
    let names = schema.fields().iter().map(|field| match field.data_type() {
        DataType::List(_) => format!("{}: List", field.name()),
        _ => format!("{}: Int", field.name()),
    });
    names.collect::<Vec<_>>().join(", ")
}

fn found_columns(footer: &Footer<'_>) -> String {
    let fields = footer.schema().and_then(|schema| schema.fields());
    let names = fields.iter().flatten().map(|field| {
        format!(
            "{}: {}",
            field.name().unwrap_or("?"),
            field.type_type().variant_name().unwrap_or("?")
        )
    });
    names.collect::<Vec<_>>().join(", ")
}

fn fingerprint(footer: &Footer<'_>) -> Option<Fingerprint> {
    let metadata = footer.custom_metadata()?;
    let entry = metadata.iter().find(|entry| entry.key() == Some(FINGERPRINT_KEY))?;
    serde_json::from_str(entry.value()?).ok()
}
