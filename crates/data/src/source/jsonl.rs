//! JSON lines: one object per line.

use super::cells::Row;
use super::{Place, Sink, SourceError};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Limit on the length of a line, in bytes. The longest examples of public sets are below 1 MiB.
pub(super) const MAX_LINE: usize = 64 << 20;

pub(super) fn read(path: &Path, reader: impl Read, sink: Sink<'_>) -> Result<(), SourceError> {
    let mut reader = BufReader::with_capacity(1 << 18, reader);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let read = reader.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut bytes);
        let place = Place::Line(line);
        read.map_err(|source| SourceError::Broken { path: path.to_owned(), place, source })?;
        if bytes.is_empty() {
            break;
        }
        if bytes.len() > MAX_LINE {
            return Err(SourceError::LineTooLong { path: path.to_owned(), line, limit: MAX_LINE });
        }
        // Some editors put a byte order mark at the start of a file.
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").filter(|_| line == 1).unwrap_or(&bytes);
        if text.trim_ascii().is_empty() {
            continue;
        }
        let object = serde_json::from_slice(text);
        let object =
            object.map_err(|source| SourceError::Json { path: path.to_owned(), line, source })?;
        sink(Row::from_json(object)).map_err(|problem| SourceError::Row {
            path: path.to_owned(),
            place,
            problem,
        })?;
    }
    Ok(())
}
