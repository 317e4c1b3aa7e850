//! A log as one table: a row for each line, a column for each key. A cell that a line lacks is empty.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use fpo_files::atomic;
use serde_json::{Map, Value};

use crate::{TrackError, in_path, numbers, step};

/// The table's name in its folder.
const FILE: &str = "metrics.csv";

/// The open table. It holds nothing that the log doesn't, so that equal logs have equal tables.
#[derive(Debug)]
pub(crate) struct CsvFile {
    path: PathBuf,
    columns: Vec<String>,
    file: File,
}

impl CsvFile {
    /// Writes the table of `lines`, to which lines are added.
    pub(crate) fn open(folder: &Path, lines: &[Map<String, Value>]) -> Result<Self, TrackError> {
        let path = folder.join(FILE);
        let mut columns = vec!["step".to_owned()];
        for line in lines {
            widen(&mut columns, line);
        }
        let rows = lines.iter().map(|line| row(&columns, line));
        let file = replace(&path, &(header(&columns) + &rows.collect::<String>()))?;
        Ok(Self { path, columns, file })
    }

    /// Adds a row. A key that is new becomes a column, which is empty in the rows before.
    pub(crate) fn write(&mut self, line: &Map<String, Value>) -> Result<(), TrackError> {
        let before = self.columns.len();
        widen(&mut self.columns, line);
        let more = self.columns.len() - before;
        if more > 0 {
            let text = fs::read_to_string(&self.path).map_err(in_path(&self.path))?;
            let commas = ",".repeat(more);
            let rows = text.lines().skip(1).map(|row| format!("{row}{commas}\n"));
            self.file = replace(&self.path, &(header(&self.columns) + &rows.collect::<String>()))?;
        }
        let row = row(&self.columns, line);
        self.file.write_all(row.as_bytes()).map_err(in_path(&self.path))
    }
}

/// Puts a table in its place and opens it to add rows.
fn replace(path: &Path, text: &str) -> Result<File, TrackError> {
    atomic::write_file(path, |file| -> Result<(), TrackError> {
        file.write_all(text.as_bytes()).map_err(in_path(path))
    })?;
    OpenOptions::new().append(true).open(path).map_err(in_path(path))
}

/// Adds the keys of a line that have no column yet.
fn widen(columns: &mut Vec<String>, line: &Map<String, Value>) {
    for (key, _) in numbers(line) {
        if !columns.iter().any(|column| column == key) {
            columns.push(key.to_owned());
        }
    }
}

fn header(columns: &[String]) -> String {
    let quoted = |name: &String| match name.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", name.replace('"', "\"\"")),
        false => name.clone(),
    };
    columns.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

fn row(columns: &[String], line: &Map<String, Value>) -> String {
    let cell = |key: &String| match line.get(key) {
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let cells = columns[1..].iter().map(cell);
    std::iter::once(step(line).to_string()).chain(cells).collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::line;

    fn lines() -> Vec<Map<String, Value>> {
        [
            json!({ "step": 1, "loss": 0.5, "rewards/chosen": null }),
            json!({ "step": 2, "loss": 0.25, "rewards/chosen": -1e-9 }),
            json!({ "step": 2, "eval_loss": 0.75, "eval_samples": [{ "prompt": "a,b" }] }),
            json!({ "step": 3, "loss": 1.0, "a \"b\", c": 7 }),
        ]
        .map(line)
        .to_vec()
    }

    const TABLE: &str = "step,loss,rewards/chosen,eval_loss,\"a \"\"b\"\", c\"\n1,0.5,,,\n2,0.25,-1e-9,,\n2,,,0.75,\n3,1.0,,,7\n";

    /// Oracle: the text, however much of it was there when the table was opened.
    #[test]
    fn a_table_grows_by_rows_and_columns() {
        for already in 0..=lines().len() {
            let folder = tempfile::tempdir().unwrap();
            let mut file = CsvFile::open(folder.path(), &lines()[..already]).unwrap();
            for line in &lines()[already..] {
                file.write(line).unwrap();
            }
            let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
            assert_eq!(text, TABLE, "{already}");
        }
    }
}
