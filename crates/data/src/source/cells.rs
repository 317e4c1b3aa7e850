//! A row of any file as cells by column, before a schema interprets them.

use super::Message;
use serde_json::Value;
use std::collections::BTreeMap;

/// The columns that schemas use.
pub(super) const COLUMNS: [&str; 7] =
    ["prompt", "chosen", "rejected", "messages", "response", "completion", "text"];

/// The content of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    Text(String),
    Messages(Vec<Message>),
    /// Anything else, described for error messages.
    Other(String),
}

impl Default for Cell {
    fn default() -> Self {
        Self::Other("missing".to_owned())
    }
}

/// The cells of a row in the columns [`COLUMNS`], and the names of all its columns.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub cells: BTreeMap<&'static str, Cell>,
    pub columns: Vec<String>,
}

impl Row {
    pub fn from_json(mut object: serde_json::Map<String, Value>) -> Self {
        let columns = object.keys().cloned().collect();
        let cells = COLUMNS
            .iter()
            .filter_map(|&name| Some((name, Cell::from_json(object.remove(name)?))))
            .collect();
        Self { cells, columns }
    }
}

impl Cell {
    fn from_json(value: Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text),
            Value::Array(messages) => {
                let messages = messages.into_iter().enumerate().map(|(index, message)| {
                    serde_json::from_value(message)
                        .map_err(|error| format!("message {index}: {error}"))
                });
                messages.collect::<Result<_, _>>().map_or_else(Self::Other, Self::Messages)
            }
            Value::Null => Self::Other("null".to_owned()),
            Value::Bool(_) => Self::Other("a boolean".to_owned()),
            Value::Number(_) => Self::Other("a number".to_owned()),
            Value::Object(_) => Self::Other("an object".to_owned()),
        }
    }
}
