//! Rows as JSON lines.

use std::io::{self, Write};

use serde::Serialize;

/// Writes one row per line as JSON.
///
/// # Errors
/// Errors of `writer`.
pub fn write_jsonl<T: Serialize, W: Write>(rows: &[T], mut writer: W) -> io::Result<()> {
    for row in rows {
        serde_json::to_writer(&mut writer, row)?;
        writer.write_all(b"\n")?;
    }
    writer.flush()
}
