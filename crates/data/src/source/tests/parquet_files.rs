//! Reading Parquet files, written here with Arrow.

use super::*;
use ::parquet::arrow::ArrowWriter;
use arrow_array::builder::{ListBuilder, StringBuilder, StructBuilder};
use arrow_array::{
    ArrayRef, Float64Array, LargeStringArray, RecordBatch, StringArray, StringViewArray,
};
use arrow_schema::{DataType, Field, Fields};
use std::sync::Arc;

fn fields() -> Fields {
    // Files on the hub have the fields in this order.
    Fields::from(vec![
        Field::new("content", DataType::Utf8, true),
        Field::new("role", DataType::Utf8, true),
    ])
}

/// A column of message lists; `None` is a null list.
fn lists(rows: &[Option<&[(&str, &str)]>]) -> ArrayRef {
    let mut builder = ListBuilder::new(StructBuilder::from_fields(fields(), 0));
    for row in rows {
        for (role, content) in row.unwrap_or_default() {
            let message = builder.values();
            message.field_builder::<StringBuilder>(0).unwrap().append_value(content);
            message.field_builder::<StringBuilder>(1).unwrap().append_value(role);
            message.append(true);
        }
        builder.append(row.is_some());
    }
    Arc::new(builder.finish())
}

fn texts(rows: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(rows.to_vec()))
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    );
    let batch = batch.unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// Two rows with the schema of ultrafeedback_binarized.
fn ultrafeedback() -> Vec<u8> {
    let chosen = lists(&[
        Some(&[("user", "q0"), ("assistant", "a0")]),
        Some(&[("user", "q1"), ("assistant", "ä1")]),
    ]);
    let rejected = lists(&[
        Some(&[("user", "q0"), ("assistant", "b0")]),
        Some(&[("user", "q1"), ("assistant", "b1")]),
    ]);
    parquet(vec![
        ("prompt", texts(&[Some("q0"), Some("q1")])),
        ("prompt_id", texts(&[Some("x"), Some("y")])),
        ("messages", chosen.clone()),
        ("chosen", chosen),
        ("rejected", rejected),
        ("score_chosen", Arc::new(Float64Array::from(vec![8.0, 7.0]))),
    ])
}

#[test]
fn ultrafeedback_binarized() {
    let (_folder, path) = file("train_prefs-00000-of-00001.parquet", ultrafeedback());
    let (pairs, summary) = read_pairs(&path, OnEmpty::Refuse).unwrap();
    assert_eq!(summary, summary_of(1, 2, 0));
    assert_eq!(
        pairs[1],
        Pair {
            id: 1,
            prompt: Prompt::Messages(messages(&[("user", "q1")]).into()),
            chosen: "ä1".into(),
            rejected: "b1".into()
        }
    );
    let (examples, _) = read_sft(&path, OnEmpty::Refuse).unwrap();
    assert_eq!(
        (examples[0].prompt.to_text(), &examples[0].response),
        (pairs[0].prompt.to_text(), &"a0".into())
    );
}

#[test]
fn kinds_of_text_columns() {
    let columns: [ArrayRef; 4] = [
        texts(&[Some("a")]),
        Arc::new(LargeStringArray::from(vec!["a"])),
        Arc::new(StringViewArray::from(vec!["a"])),
        Arc::new(
            [Some("a")]
                .into_iter()
                .collect::<arrow_array::DictionaryArray<arrow_array::types::Int32Type>>(),
        ),
    ];
    for column in columns {
        let kind = column.data_type().clone();
        let bytes = parquet(vec![
            ("prompt", column.clone()),
            ("chosen", column.clone()),
            ("rejected", column),
        ]);
        let (_folder, path) = file("a.parquet", bytes);
        let (pairs, _) = read_pairs(&path, OnEmpty::Refuse).unwrap();
        assert_eq!(
            (pairs[0].prompt.clone(), &pairs[0].chosen),
            (Prompt::Text("a".into()), &"a".into()),
            "{kind}"
        );
    }
}

/// Oracle: the rows that pyarrow wrote. In a table every message has every key; those that the row doesn't have are null there.
#[test]
fn nested_keys_and_codecs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/rows");
    let (mut expected, _) = read_pairs(&folder.join("pairs.jsonl"), OnEmpty::Refuse).unwrap();
    expected.truncate(3);
    for codec in ["brotli", "lz4"] {
        let (pairs, _) =
            read_pairs(&folder.join(format!("{codec}.parquet")), OnEmpty::Refuse).unwrap();
        assert_eq!(pairs, expected, "{codec}");
    }
    let [first, ..] = &expected[..] else { panic!() };
    assert_eq!(
        first.prompt.to_messages()[1].get("tool_calls").map(|calls| calls[0]["type"].clone()),
        Some("function".into())
    );
}

#[test]
fn more_rows_than_a_batch() {
    let numbers: Vec<String> = (0..3000).map(|row| format!("r{row}")).collect();
    let column = texts(&numbers.iter().map(|number| Some(number.as_str())).collect::<Vec<_>>());
    let (_folder, path) =
        file("a.parquet", parquet(vec![("prompt", column.clone()), ("response", column)]));
    let (examples, summary) = read_sft(&path, OnEmpty::Refuse).unwrap();
    assert_eq!(summary.rows, 3000);
    assert!(examples.iter().enumerate().all(|(row, example)| {
        example.id == row as u64 && example.response == format!("r{row}").into()
    }));
}

#[test]
fn errors_say_what_is_wrong() {
    let whole = ultrafeedback();
    let two = || texts(&[Some("a"), Some("b")]);
    let numbers = || -> ArrayRef { Arc::new(Float64Array::from(vec![1.0, 2.0])) };
    let conversation: &[(&str, &str)] = &[("user", "q"), ("assistant", "a")];
    #[rustfmt::skip]
    let cases: [(Vec<u8>, &str); 8] = [
        (whole[..whole.len() / 2].to_vec(), "is not a complete Parquet file"),
        (b"PAR1".to_vec(), "is not a complete Parquet file"),
        (parquet(vec![("question", two()), ("answer", two())]), "row 0 (counted from 0): needs `chosen` and `rejected`"),
        (parquet(vec![("question", two()), ("answer", two())]), "[question, answer]"),
        (parquet(vec![("prompt", two()), ("chosen", numbers()), ("rejected", two())]), "column `chosen` must be a text or a list of messages, but is a number"),
        (parquet(vec![("prompt", two()), ("chosen", texts(&[Some("a"), None])), ("rejected", two())]), "row 1 (counted from 0): column `chosen` must be a text or a list of messages, but is null"),
        (parquet(vec![("prompt", two()), ("chosen", lists(&[Some(conversation), None])), ("rejected", lists(&[Some(conversation), Some(conversation)]))]), "row 1 (counted from 0): column `chosen`"),
        (parquet(vec![("prompt", texts(&[])), ("chosen", texts(&[])), ("rejected", texts(&[]))]), "contains no rows"),
    ];
    for (bytes, expected) in cases {
        let (_folder, path) = file("data.parquet", bytes);
        let error = read_pairs(&path, OnEmpty::Refuse).unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains("data.parquet"),
            "{error}\nlacks {expected}"
        );
    }
}

proptest! {
    #![proptest_config(cases(1500))]
    #[test]
    fn damaged_bytes_never_panic(bytes in damaged(ultrafeedback(), 1500)) {
        let (_folder, path) = file("a.parquet", bytes);
        let _ = read_pairs(&path, OnEmpty::Drop);
    }
}
