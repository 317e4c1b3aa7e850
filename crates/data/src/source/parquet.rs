//! Parquet tables, as on the Hugging Face hub.

use super::cells::{COLUMNS, Cell, Row};
use super::{Message, Place, Sink, SourceError};
use crate::parquet_file;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, ListLikeArray, RecordBatch, StringViewArray};
use arrow_schema::{ArrowError, DataType};
use arrow_select::take::take;
use parquet::arrow::ProjectionMask;
use std::fmt::Display;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

/// Rows decoded at a time.
const BATCH: usize = 1024;

pub(super) fn read(path: &Path, file: File, sink: Sink<'_>) -> Result<(), SourceError> {
    let broken =
        |what: &dyn Display| SourceError::Parquet { path: path.to_owned(), what: what.to_string() };
    let builder = parquet_file::open(file).map_err(|error| broken(&error))?;
    let names: Vec<String> =
        builder.schema().fields().iter().map(|field| field.name().clone()).collect();
    let wanted = (0..names.len()).filter(|&column| COLUMNS.contains(&names[column].as_str()));
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);

    let mut rows = 0;
    for batch in parquet_file::batches(builder.with_projection(mask), BATCH) {
        let batch = batch.map_err(|error| broken(&error))?;
        let columns = columns(&batch).map_err(|error| broken(&error))?;
        for index in 0..batch.num_rows() {
            let cells = columns.iter().map(|(name, column)| (*name, column.cell(index))).collect();
            let place = Place::Row(rows);
            sink(Row { cells, columns: names.clone() }).map_err(|problem| SourceError::Row {
                path: path.to_owned(),
                place,
                problem,
            })?;
            rows += 1;
        }
    }
    Ok(())
}

/// A column of one batch.
enum Column {
    Text(StringViewArray),
    Messages(Box<MessageLists>),
    Other(String),
}

/// Lists of messages, one list per row.
struct MessageLists {
    /// Where each row's messages are in `roles` and `contents`; `None` for a null list.
    rows: Vec<Option<Range<usize>>>,
    roles: StringViewArray,
    contents: StringViewArray,
}

fn columns(batch: &RecordBatch) -> Result<Vec<(&'static str, Column)>, ArrowError> {
    let mut columns = Vec::new();
    for name in COLUMNS {
        if let Some(array) = batch.column_by_name(name) {
            columns.push((name, Column::new(array)?));
        }
    }
    Ok(columns)
}

impl Column {
    fn new(array: &ArrayRef) -> Result<Self, ArrowError> {
        if is_text(array.data_type()) {
            return Ok(Self::Text(text(array)?));
        }
        let other = || Ok(Self::Other(format!("a column of type {}", array.data_type())));
        let Some(lists) = lists(array) else { return other() };
        let Some(messages) = lists.values().as_struct_opt() else { return other() };
        match (messages.column_by_name("role"), messages.column_by_name("content")) {
            (Some(roles), Some(contents))
                if is_text(roles.data_type()) && is_text(contents.data_type()) =>
            {
                let row = |row| (!lists.is_null(row)).then(|| lists.element_range(row));
                Ok(Self::Messages(Box::new(MessageLists {
                    rows: (0..lists.len()).map(row).collect(),
                    roles: text(roles)?,
                    contents: text(contents)?,
                })))
            }
            _ => other(),
        }
    }

    fn cell(&self, row: usize) -> Cell {
        let null = || Cell::Other("null".to_owned());
        match self {
            Self::Text(texts) if texts.is_null(row) => null(),
            Self::Text(texts) => Cell::Text(texts.value(row).to_owned()),
            Self::Messages(messages) => messages.cell(row).unwrap_or_else(null),
            Self::Other(what) => Cell::Other(what.clone()),
        }
    }
}

impl MessageLists {
    /// The messages of a row; `None` if its list is null.
    fn cell(&self, row: usize) -> Option<Cell> {
        let Self { rows, roles, contents } = self;
        let range = rows[row].clone()?;
        if range.clone().any(|message| roles.is_null(message) || contents.is_null(message)) {
            return Some(Cell::Other(
                "a list with a message whose role or content is null".to_owned(),
            ));
        }
        let message = |index| Message {
            role: roles.value(index).to_owned(),
            content: contents.value(index).to_owned(),
        };
        Some(Cell::Messages(range.map(message).collect()))
    }
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// One kind of text instead of four, by hand: Arrow's `cast` would compile conversions between all types.
fn text(array: &ArrayRef) -> Result<StringViewArray, ArrowError> {
    Ok(match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().into(),
        DataType::LargeUtf8 => array.as_string::<i64>().into(),
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            text(&take(dictionary.values(), dictionary.keys(), None)?)?
        }
        _ => array.as_string_view().clone(),
    })
}

fn lists(array: &ArrayRef) -> Option<&dyn ListLikeArray> {
    match array.data_type() {
        DataType::List(_) => Some(array.as_list::<i32>()),
        DataType::LargeList(_) => Some(array.as_list::<i64>()),
        DataType::ListView(_) => Some(array.as_list_view::<i32>()),
        DataType::LargeListView(_) => Some(array.as_list_view::<i64>()),
        _ => None,
    }
}
