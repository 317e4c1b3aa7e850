//! JSON: one object per line, or an array of objects.

use super::cells::Row;
use super::{Place, Sink, SourceError};
use serde_json::{Map, Value};
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

/// Limit on the length of a row, in bytes. The longest examples of public sets are below 1 MiB.
pub(super) const MAX_ROW: usize = 64 << 20;

pub(super) fn read(path: &Path, reader: impl Read, sink: Sink<'_>) -> Result<(), SourceError> {
    let mut reader = BufReader::with_capacity(1 << 18, reader);
    let place = Place::Line(1);
    let broken = |source| SourceError::Broken { path: path.to_owned(), place, source };
    // Some editors put a byte order mark at the start of a file.
    if reader.fill_buf().map_err(broken)?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    let Some(blank) = skip_space(&mut reader).map_err(broken)? else {
        return Err(SourceError::TooLong { path: path.to_owned(), place, limit: MAX_ROW });
    };
    match reader.fill_buf().map_err(broken)?.first() {
        Some(b'[') => array(path, reader, sink),
        _ => lines(path, reader, blank + 1, sink),
    }
}

fn lines(
    path: &Path,
    mut reader: impl BufRead,
    first: usize,
    sink: Sink<'_>,
) -> Result<(), SourceError> {
    let mut bytes = Vec::new();
    for line in first.. {
        bytes.clear();
        let read = reader.by_ref().take(MAX_ROW as u64 + 1).read_until(b'\n', &mut bytes);
        let place = Place::Line(line);
        read.map_err(|source| SourceError::Broken { path: path.to_owned(), place, source })?;
        if bytes.is_empty() {
            break;
        }
        if bytes.len() > MAX_ROW {
            return Err(SourceError::TooLong { path: path.to_owned(), place, limit: MAX_ROW });
        }
        if !bytes.trim_ascii().is_empty() {
            row(path, place, &bytes, sink)?;
        }
    }
    Ok(())
}

/// The elements of an array, one at a time: such files may be larger than memory.
fn array(path: &Path, mut reader: impl BufRead, sink: Sink<'_>) -> Result<(), SourceError> {
    reader.consume(1);
    let mut bytes = Vec::new();
    let mut rows = 0;
    loop {
        let place = Place::Row(rows);
        let end = element(&mut reader, &mut bytes).map_err(|source| SourceError::Broken {
            path: path.to_owned(),
            place,
            source,
        })?;
        if bytes.len() > MAX_ROW {
            return Err(SourceError::TooLong { path: path.to_owned(), place, limit: MAX_ROW });
        }
        let empty_array = rows == 0 && end == b']' && bytes.trim_ascii().is_empty();
        if !empty_array {
            row(path, place, &bytes, sink)?;
            rows += 1;
        }
        if end == b']' {
            break;
        }
    }
    let place = Place::Row(rows);
    let broken = |source| SourceError::Broken { path: path.to_owned(), place, source };
    skip_space(&mut reader).map_err(broken)?;
    match reader.fill_buf().map_err(broken)?.is_empty() {
        true => Ok(()),
        false => Err(broken(io::Error::new(ErrorKind::InvalidData, "something follows the array"))),
    }
}

/// Reads an element of an array up to and without the comma or bracket that ends it, which is returned; stops after [`MAX_ROW`]
/// bytes.
fn element(reader: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<u8> {
    bytes.clear();
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        for (index, &byte) in chunk.iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'{' | b'[' => depth += 1,
                b',' | b']' if depth == 0 => {
                    bytes.extend_from_slice(&chunk[..index]);
                    reader.consume(index + 1);
                    return Ok(byte);
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        bytes.extend_from_slice(chunk);
        let read = chunk.len();
        reader.consume(read);
        if bytes.len() > MAX_ROW {
            return Ok(b',');
        }
    }
}

fn row(path: &Path, place: Place, bytes: &[u8], sink: Sink<'_>) -> Result<(), SourceError> {
    let path = || path.to_owned();
    let object =
        parse(bytes).map_err(|source| SourceError::Json { path: path(), place, source })?;
    sink(place, Row::from_json(object)).map_err(|problem| SourceError::Row {
        path: path(),
        place,
        problem,
    })
}

/// Parses an object. Like Python's `json`, which writes missing scores as `NaN`, it accepts `NaN` and infinities; they become null.
fn parse(bytes: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    serde_json::from_slice(bytes).or_else(|error| {
        let finite = without_nan(bytes).ok_or(error)?;
        serde_json::from_slice(&finite)
    })
}

/// The same JSON with null for every `NaN`, `Infinity` and `-Infinity` outside of strings; `None` if there are none.
fn without_nan(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut finite = Vec::with_capacity(bytes.len());
    let (mut in_string, mut escaped) = (false, false);
    let mut rest = bytes;
    while let [byte, after @ ..] = rest {
        let number = [&b"NaN"[..], b"Infinity", b"-Infinity"].into_iter();
        let number = number.filter(|_| !in_string).find_map(|number| rest.strip_prefix(number));
        if let Some(after) = number {
            finite.extend_from_slice(b"null");
            rest = after;
            continue;
        }
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ => {}
        }
        finite.push(*byte);
        rest = after;
    }
    (finite != bytes).then_some(finite)
}

/// Skips white space; returns how many lines ended in it, or `None` after [`MAX_ROW`] bytes of nothing else.
fn skip_space(reader: &mut impl BufRead) -> io::Result<Option<usize>> {
    let (mut lines, mut bytes) = (0, 0);
    while bytes <= MAX_ROW {
        let chunk = reader.fill_buf()?;
        let space = chunk.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let done = space < chunk.len() || chunk.is_empty();
        lines += chunk[..space].iter().filter(|&&byte| byte == b'\n').count();
        bytes += space;
        reader.consume(space);
        if done {
            return Ok(Some(lines));
        }
    }
    Ok(None)
}
