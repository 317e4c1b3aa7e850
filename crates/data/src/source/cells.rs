//! A row of any file as cells by column, before a schema interprets them.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The columns that schemas use.
pub(super) const COLUMNS: [&str; 15] = [
    "prompt",
    "chosen",
    "rejected",
    "messages",
    "conversations",
    "response",
    "completion",
    "output",
    "text",
    "instruction",
    "input",
    "system",
    "history",
    "tools",
    "chat_template_kwargs",
];

/// The content of a cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Json(Value),
    /// What JSON has no value for, described for error messages.
    Other(String),
}

/// The cells of a row in the columns [`COLUMNS`], and the names of all its columns.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub cells: BTreeMap<&'static str, Cell>,
    pub columns: Vec<String>,
}

impl Row {
    pub fn from_json(mut object: Map<String, Value>) -> Self {
        let columns = object.keys().cloned().collect();
        let cells = COLUMNS
            .iter()
            .filter_map(|&name| Some((name, Cell::Json(object.remove(name)?))))
            .collect();
        Self { cells, columns }
    }

    /// Whether the row has a value in this column; null is none.
    pub fn has(&self, column: &str) -> bool {
        self.cells.get(column).is_some_and(|cell| *cell != Cell::Json(Value::Null))
    }

    /// Removes a cell; `None` if the row has no such column, or null in it.
    pub fn take(&mut self, column: &'static str) -> Option<Cell> {
        self.cells.remove(column).filter(|cell| *cell != Cell::Json(Value::Null))
    }
}

impl Default for Cell {
    fn default() -> Self {
        Self::Json(Value::Null)
    }
}

impl Cell {
    /// What it holds, for error messages.
    pub fn kind(&self) -> String {
        match self {
            Self::Json(value) => kind(value).to_owned(),
            Self::Other(what) => what.clone(),
        }
    }
}

/// What a value is, for error messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(items) if items.is_empty() => "an empty list",
        Value::Array(_) => "a list of messages",
        Value::Object(_) => "an object",
    }
}
