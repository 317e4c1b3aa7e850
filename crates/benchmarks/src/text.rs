//! Files of JSON objects: one a line, or an array of them.

use std::{io, path::Path};

use fpo_files::read_at_most;
use serde_json::{Map, Value};

use crate::Error;

/// An object with the place where it stands, such as `line 3`.
pub struct Row {
    pub place: String,
    pub object: Map<String, Value>,
}

/// The objects of a file.
pub struct Rows {
    pub rows: Vec<Row>,
    /// Whether an object at the end is cut off.
    pub cut: bool,
}

const MIB: u64 = 1 << 20;

/// Reads a file of at most `limit` MiB that should be one of `kind`. An object that is cut off at the end is left out.
pub fn read(path: &Path, limit: u64, kind: &'static str) -> Result<Rows, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let Some(bytes) = read_at_most(path, limit * MIB).map_err(failed)? else {
        return Err(Error::TooLong { path: path.to_owned(), limit, kind });
    };
    let (text, half) = match std::str::from_utf8(&bytes) {
        Ok(text) => (text, false),
        Err(error) if error.error_len().is_none() => {
            let whole = &bytes[..error.valid_up_to()];
            (std::str::from_utf8(whole).unwrap_or_default(), true)
        }
        Err(_) => {
            let why = "it isn't UTF-8 text; is it compressed?";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
    };
    let text = text.trim_start_matches('\u{FEFF}');
    let mut found = match text.trim_start().strip_prefix('[') {
        Some(array) => of_array(path, array),
        None => of_lines(path, text),
    }?;
    found.cut |= half;
    Ok(found)
}

fn of_lines(path: &Path, text: &str) -> Result<Rows, Error> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let lines: Vec<(usize, &str)> = lines.collect();
    let mut rows = Vec::with_capacity(lines.len());
    for (index, &(number, line)) in lines.iter().enumerate() {
        let place = format!("line {}", number + 1);
        match serde_json::from_str(line) {
            Ok(object) => rows.push(Row { place, object }),
            Err(error) if error.is_eof() && index + 1 == lines.len() => {
                return Ok(Rows { rows, cut: true });
            }
            Err(source) => return Err(Error::Json { path: path.to_owned(), place, source }),
        }
    }
    Ok(Rows { rows, cut: false })
}

/// What follows the bracket that opens an array.
fn of_array(path: &Path, mut rest: &str) -> Result<Rows, Error> {
    let mut rows = Vec::new();
    loop {
        rest = rest.trim_start().strip_prefix(',').filter(|_| !rows.is_empty()).unwrap_or(rest);
        rest = rest.trim_start();
        if rest.starts_with(']') || rest.is_empty() {
            return Ok(Rows { rows, cut: rest.is_empty() });
        }
        let place = format!("row {}", rows.len() + 1);
        let mut objects = serde_json::Deserializer::from_str(rest).into_iter();
        match objects.next() {
            Some(Ok(object)) => rows.push(Row { place, object }),
            Some(Err(source)) if !source.is_eof() => {
                return Err(Error::Json { path: path.to_owned(), place, source });
            }
            _ => return Ok(Rows { rows, cut: true }),
        }
        rest = &rest[objects.byte_offset()..];
    }
}
