//! AlpacaEval's annotations: read, so that statistics need no endpoint, and written, so that its package can check them.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use fpo_files::atomic::{self, AtomicError};
use serde_json::{Value, json};

use crate::Error;
use crate::answers::Pair;
use crate::rows;
use crate::stats::length_controlled::Judged;

/// One model's annotations against one baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotations {
    /// `generator_1`.
    pub baseline: String,
    /// `generator_2`.
    pub model: String,
    /// In the order of the file.
    pub rows: Vec<Judged>,
}

/// Reads annotations: an array (or lines) of `output_1`, `output_2`, `generator_1`, `generator_2`, `preference`. They are put
/// together by baseline and model, in the order in which these come first.
///
/// # Errors
/// A file that can't be read, or a row that isn't an annotation.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Annotations>, Error> {
    let mut found: Vec<Annotations> = Vec::new();
    let mut places: HashMap<[String; 2], (usize, PathBuf)> = HashMap::new();
    for path in paths {
        for row in rows::read(path)? {
            let text = |name: &str| {
                let lacks = || {
                    let problem = format!(
                        "has no `{name}`: annotations are AlpacaEval's {{output_1, output_2, generator_1, generator_2, preference}}"
                    );
                    Error::row(path, row.number, problem)
                };
                row.text(path, &[name])?.ok_or_else(lacks)
            };
            let names = [text("generator_1")?, text("generator_2")?];
            let new = (found.len(), path.clone());
            let (place, file) = places.entry(names.clone()).or_insert(new);
            if file != path {
                let [baseline, model] = names;
                let problem =
                    format!("compares {baseline} and {model}, as {} does already", file.display());
                return Err(Error::row(path, row.number, problem));
            }
            if *place == found.len() {
                let [baseline, model] = names;
                found.push(Annotations { baseline, model, rows: Vec::new() });
            }
            let preference = preference(path, &row)?;
            let position = found[*place].rows.len();
            let length = |name: &str| Ok::<usize, Error>(text(name)?.chars().count());
            let (baseline_length, model_length) = (length("output_1")?, length("output_2")?);
            found[*place].rows.push(Judged { position, preference, baseline_length, model_length });
        }
    }
    Ok(found)
}

/// 1 where the baseline is better, 2 where the model is, 1.5 or 0 for neither, or in between; null for no verdict.
fn preference(path: &Path, row: &rows::Row) -> Result<Option<f64>, Error> {
    let wrong = |problem: String| Error::row(path, row.number, problem);
    match row.fields.get("preference") {
        None => Err(wrong("has no `preference`".to_owned())),
        Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(0.0) => Ok(Some(0.5)),
            Some(preference) if (1.0..=2.0).contains(&preference) => Ok(Some(preference - 1.0)),
            _ => Err(wrong(format!("`preference` is {value}, neither 0 nor in 1 to 2"))),
        },
    }
}

/// Writes annotations that AlpacaEval's package reads.
///
/// # Errors
/// A file that can't be written.
pub fn write(
    path: &Path,
    pairs: &[Pair],
    rows: &[Judged],
    [baseline, model, judge]: [&str; 3],
) -> Result<(), AtomicError> {
    let row = |(pair, judged): (&Pair, &Judged)| {
        json!({
            "instruction": pair.turns.join("\n\n"),
            "output_1": pair.baseline.concat(),
            "generator_1": baseline,
            "output_2": pair.model.concat(),
            "generator_2": model,
            "annotator": judge,
            "preference": judged.preference.map(|preference| 1.0 + preference),
        })
    };
    let all: Vec<Value> = pairs.iter().zip(rows).map(row).collect();
    atomic::write_file(path, |file| {
        let text = format!("{:#}\n", Value::Array(all));
        atomic::context(path, "write", file.write_all(text.as_bytes()))
    })
}
