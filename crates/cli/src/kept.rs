//! The rows of an output, kept while they are made, so that a call that was cut off goes on.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fpo_data::{
    Fingerprint,
    journal::{Journal, Kind},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{interrupt, json_lines, streams, terminal::reporter};

const ROWS: Kind = Kind { name: "fpo_rows", version: 1, entries: "rows" };

/// Rows for a file of JSON lines, by their places in it. Until all are there, those that are made lie beside it, in `OUT.part`.
pub struct Kept {
    out: PathBuf,
    /// None for standard output and the like, which can't be completed later.
    journal: Option<Journal>,
    rows: BTreeMap<usize, Value>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    row: usize,
    value: Value,
}

impl Kept {
    /// What an earlier call of `command` with the same settings left, of so many rows. The settings are asked for where there is a
    /// file.
    ///
    /// # Errors
    /// Those of the settings, rows that were made with other settings, or a disk that takes none.
    pub fn open(
        out: &Path,
        command: &str,
        count: usize,
        settings: impl FnOnce() -> Result<Fingerprint>,
    ) -> Result<Self> {
        let (out, mut rows) = (out.to_owned(), BTreeMap::new());
        let is_file = fs::metadata(&out).map_or(true, |found| found.is_file());
        if streams::is_stdout(&out) || !is_file {
            return Ok(Self { out, journal: None, rows });
        }
        let settings = settings()?.with("command", command);
        let mut name = out.file_name().context("--out names no file")?.to_owned();
        name.push(".part");
        let (journal, kept) = Journal::open::<Row>(&out.with_file_name(name), ROWS, &settings)?;
        rows.extend(kept.into_iter().map(|Row { row, value }| (row, value)));
        rows.retain(|&row, _| row < count);
        if !rows.is_empty() {
            let text =
                format!("{}: {} rows of an earlier call are kept", out.display(), rows.len());
            reporter().note(command, text);
        }
        interrupt::continue_with_this_call();
        Ok(Self { out, journal: Some(journal), rows })
    }

    /// How many rows are there.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// Whether a row is there.
    pub fn has(&self, row: usize) -> bool {
        self.rows.contains_key(&row)
    }

    /// Adds rows with their places.
    ///
    /// # Errors
    /// A disk that doesn't take them.
    pub fn add(&mut self, rows: impl IntoIterator<Item = (usize, impl Serialize)>) -> Result<()> {
        let rows = rows.into_iter().filter(|(row, _)| !self.rows.contains_key(row));
        let rows = rows.map(|(row, value)| Ok(Row { row, value: serde_json::to_value(value)? }));
        let rows: Vec<Row> = rows.collect::<Result<_>>()?;
        if let Some(journal) = &mut self.journal {
            journal.add(&rows)?;
        }
        self.rows.extend(rows.into_iter().map(|Row { row, value }| (row, value)));
        Ok(())
    }

    /// Writes all rows in order, and removes what lay beside them.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(self) -> Result<()> {
        let rows: Vec<Value> = self.rows.into_values().collect();
        json_lines::write(&self.out, &rows)?;
        let Some(journal) = self.journal else { return Ok(()) };
        match fs::remove_file(journal.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", journal.path().display()))
            }
            _ => Ok(()),
        }
    }
}
