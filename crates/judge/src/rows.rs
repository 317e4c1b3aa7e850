//! Objects out of a JSON array or JSON lines, whichever a file has.

use std::path::Path;

use fpo_files::read_at_most;
use serde_json::{Map, Value};

use crate::Error;

/// The largest file that is read: answers of a benchmark have a few megabytes.
const LARGEST: u64 = 1 << 30;

/// A row with its number, from 1.
pub struct Row {
    /// Its number in the file: element of the array, or line.
    pub number: usize,
    /// What it says.
    pub fields: Map<String, Value>,
}

/// All rows of a file.
///
/// # Errors
/// A file that can't be read, is too large, isn't JSON, or holds something else than objects.
pub fn read(path: &Path) -> Result<Vec<Row>, Error> {
    let Some(bytes) = read_at_most(path, LARGEST).map_err(Error::io(path))? else {
        return Err(Error::file(path, format!("is larger than {LARGEST} bytes")));
    };
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let object = |number: usize, value: Value| match value {
        Value::Object(fields) => Ok(Row { number, fields }),
        _ => Err(Error::row(path, number, "isn't an object")),
    };
    let rows: Vec<Row> = if text.trim_ascii_start().starts_with(b"[") {
        let values: Vec<Value> = serde_json::from_slice(text).map_err(|error| {
            Error::file(path, format!("isn't whole JSON ({error}); was it written to its end?"))
        })?;
        values
            .into_iter()
            .enumerate()
            .map(|(i, value)| object(i + 1, value))
            .collect::<Result<_, _>>()?
    } else {
        let lines = text.split(|byte| *byte == b'\n').enumerate();
        let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
        lines
            .map(|(i, line)| {
                let value = serde_json::from_slice(line).map_err(|error| {
                    Error::row(
                        path,
                        i + 1,
                        format!("isn't whole JSON ({error}); was the file written to its end?"),
                    )
                })?;
                object(i + 1, value)
            })
            .collect::<Result<_, _>>()?
    };
    match rows.is_empty() {
        true => Err(Error::file(path, "is empty")),
        false => Ok(rows),
    }
}

impl Row {
    /// The first of these fields that is there and isn't null.
    pub fn first(&self, names: &[&str]) -> Option<&Value> {
        names.iter().find_map(|name| self.fields.get(*name)).filter(|value| !value.is_null())
    }

    /// The first of these fields that is there, which has to be a text.
    pub fn text(&self, path: &Path, names: &[&str]) -> Result<Option<String>, Error> {
        match names.iter().find_map(|name| Some((name, self.fields.get(*name)?))) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text.clone())),
            Some((name, Value::Null)) => {
                Err(Error::row(path, self.number, format!("`{name}` is null")))
            }
            Some((name, _)) => Err(Error::row(path, self.number, format!("`{name}` isn't a text"))),
        }
    }

    /// The identity that a benchmark gives its questions: `uid` or `question_id`.
    pub fn id(&self) -> Option<String> {
        match self.first(&["uid", "question_id"])? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }
}
