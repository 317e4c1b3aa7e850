//! Parquet tables, as on the Hugging Face hub.

use super::cells::{COLUMNS, Cell, Row};
use super::{Place, Sink, SourceError};
use crate::parquet_file;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ListLikeArray, StructArray};
use arrow_schema::{DataType, Fields};
use parquet::arrow::ProjectionMask;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::fs::File;
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
        let columns: Vec<_> =
            COLUMNS.iter().filter_map(|&name| Some((name, batch.column_by_name(name)?))).collect();
        for index in 0..batch.num_rows() {
            let cell = |column| value(column, index).map_or_else(Cell::Other, Cell::Json);
            let cells = columns.iter().map(|&(name, column)| (name, cell(column))).collect();
            let place = Place::Row(rows);
            sink(place, Row { cells, columns: names.clone() })
                .map_err(|problem| SourceError::Row { path: path.to_owned(), place, problem })?;
            rows += 1;
        }
    }
    Ok(())
}

/// The value in a row of a column. The error describes what has none.
fn value(array: &dyn Array, row: usize) -> Result<Value, String> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    if let Some(lists) = lists(array) {
        let values = lists.values();
        return lists.element_range(row).map(|index| value(values, index)).collect();
    }
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let key = value(dictionary.keys(), row)?.as_u64().ok_or("a damaged dictionary")?;
            return value(dictionary.values(), key as usize);
        }
        DataType::Struct(fields) => Value::Object(object(array.as_struct(), fields, row)?),
        other => return Err(format!("a column of type {other}")),
    })
}

/// A message's keys. Every row of a file has the same ones, so null stands for a key that a message doesn't have; `content` alone is
/// null in its own right, beside tool calls.
fn object(array: &StructArray, fields: &Fields, row: usize) -> Result<Map<String, Value>, String> {
    let mut keys = Map::new();
    for (field, column) in fields.iter().zip(array.columns()) {
        let value = value(column, row)?;
        if !value.is_null() || field.name() == "content" {
            keys.insert(field.name().clone(), value);
        }
    }
    Ok(keys)
}

fn lists(array: &dyn Array) -> Option<&dyn ListLikeArray> {
    match array.data_type() {
        DataType::List(_) => Some(array.as_list::<i32>()),
        DataType::LargeList(_) => Some(array.as_list::<i64>()),
        DataType::ListView(_) => Some(array.as_list_view::<i32>()),
        DataType::LargeListView(_) => Some(array.as_list_view::<i64>()),
        _ => None,
    }
}
