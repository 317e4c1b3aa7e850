//! AlpacaEval's `df_gamed.csv`: how difficult its instructions are, and how answers were judged that are long or short on purpose.

use std::path::Path;

use super::logistic::Row;
use crate::Error;

/// What [`Formula::V1`](super::length_controlled::Formula::V1) needs besides the annotations.
#[derive(Clone, Debug, PartialEq)]
pub struct Gamed {
    /// tanh of the standardised length, difficulty, and whether it is an ordinary answer.
    pub(super) rows: Vec<Row<3>>,
    /// By instruction.
    pub(super) difficulties: Vec<f64>,
}

/// Weight of answers that are long or short on purpose, shared by the two models that give them.
const WEIGHT: f64 = 0.2 / 2.0;
const COLUMNS: [&str; 5] =
    ["preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"];

impl Gamed {
    /// Reads columns `preference` (0 to 1), `index`, `std_delta_len`, `instruction_difficulty`, `not_gamed_baseline`.
    ///
    /// # Errors
    /// A file that can't be read, lacks a column, or has a value that isn't a number.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut lines = text.trim_start_matches('\u{feff}').lines();
        let header = fields(lines.next().unwrap_or_default());
        let mut columns = [0; COLUMNS.len()];
        for (column, name) in columns.iter_mut().zip(COLUMNS) {
            let place = header.iter().position(|field| field == name);
            let lacks = || format!("has no column `{name}`; it isn't AlpacaEval's df_gamed.csv");
            *column = place.ok_or_else(|| Error::file(path, lacks()))?;
        }
        let (mut rows, mut difficulties) = (Vec::new(), Vec::new());
        for (number, line) in (1..).zip(lines.filter(|line| !line.is_empty())) {
            let wrong = |problem: String| Error::row(path, number, problem);
            let fields = fields(line);
            if fields.len() != header.len() {
                return Err(wrong(format!(
                    "has {} fields, and the header {}",
                    fields.len(),
                    header.len()
                )));
            }
            let value = |i: usize| {
                let text = &fields[columns[i]];
                let value = text.parse::<f64>().ok().filter(|value| value.is_finite());
                value.ok_or_else(|| wrong(format!("`{}` is {text:?}, not a number", COLUMNS[i])))
            };
            let (y, index, delta, difficulty) = (value(0)?, value(1)?, value(2)?, value(3)?);
            if !(0.0..=1.0).contains(&y) {
                return Err(wrong(format!("`preference` is {y}, not in 0 to 1")));
            }
            // The package takes the first row of each instruction, by its place in the file.
            if index == difficulties.len() as f64 {
                difficulties.push(difficulty);
            } else if !(0.0..difficulties.len() as f64).contains(&index) {
                return Err(wrong(format!("is of instruction {index}; they have to be in order")));
            }
            let is_ordinary = match fields[columns[4]].to_ascii_lowercase().as_str() {
                "true" => true,
                "false" => false,
                other => {
                    return Err(wrong(format!(
                        "`{}` is {other:?}, neither True nor False",
                        COLUMNS[4]
                    )));
                }
            };
            let (weight, ordinary) = if is_ordinary { (1.0, 1.0) } else { (WEIGHT, 0.0) };
            rows.push(Row { x: [delta.tanh(), difficulty, ordinary], y, weight });
        }
        match rows.is_empty() {
            true => Err(Error::file(path, "has no rows")),
            false => Ok(Self { rows, difficulties }),
        }
    }
}

/// The fields of a line of CSV. Quoted ones may hold commas, and quotes that are doubled.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut is_quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if is_quoted && characters.peek() == Some(&'"') => {
                characters.next();
                fields.last_mut().expect("there is one").push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            _ => fields.last_mut().expect("there is one").push(character),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By RFC 4180.
    #[test]
    fn quoted_fields_hold_commas_and_quotes() {
        for (line, expected) in [
            ("a,b", &["a", "b"][..]),
            ("\"a, b\",\"say \"\"hi\"\"\",", &["a, b", "say \"hi\"", ""]),
            ("", &[""]),
        ] {
            assert_eq!(fields(line), expected, "{line}");
        }
    }
}
