//! Files of any rows: texts, examples or pairs to compute activations of, and prompts to answer.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::cells::Row;
use super::{Pair, Place, Prompt, RowProblem, SftExample, SourceError, read_rows, schema};

const PROMPT_COLUMNS: &str = "`prompt`, `messages` or `text` (or `conversations` or `instruction`)";

/// Columns beside which `text` is something else: the rendered whole.
const CONVERSATIONS: [&str; 4] = ["prompt", "messages", "conversations", "instruction"];

/// A row of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A text without a prompt.
    Text(String),
    /// A prompt and its response.
    Example(SftExample),
    /// A prompt and two responses.
    Pair(Pair),
}

/// Reads texts, examples or pairs: the lines of a `.txt` file, or rows of other files (JSON lines, Parquet, a folder of them) with
/// `text`, with pairs, or with fine-tuning examples. Empty responses are kept.
///
/// # Errors
/// Any file that can't be read, and any row that isn't as expected: see [`SourceError`].
pub fn read_items(path: &Path) -> Result<Vec<Item>, SourceError> {
    if is_plain_text(path) {
        return Ok(lines(path)?.into_iter().map(Item::Text).collect());
    }
    read_rows(path, |id, mut row| {
        let has = |column| row.has(column);
        if has("chosen") && has("rejected") {
            let (prompt, [chosen, rejected]) = schema::pair(row)?;
            return Ok(Item::Pair(Pair { id, prompt, chosen, rejected }));
        }
        if has("text") && !CONVERSATIONS.into_iter().any(has) {
            return text(&mut row).map(Item::Text);
        }
        let (prompt, response) = schema::example(row)?;
        Ok(Item::Example(SftExample { id, prompt, response }))
    })
}

/// Reads prompts: the lines of a `.txt` file, or rows of other files with `prompt` (a text or messages), `messages` (a conversation
/// to continue) or `text`.
///
/// # Errors
/// Any file that can't be read, and any row that isn't as expected: see [`SourceError`].
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>, SourceError> {
    if is_plain_text(path) {
        return Ok(lines(path)?.into_iter().map(Prompt::Text).collect());
    }
    read_rows(path, |_, mut row| {
        if let Some(prompt) = schema::prompt(&mut row)? {
            return Ok(prompt);
        }
        match row.cells.contains_key("text") {
            true => text(&mut row).map(Prompt::Text),
            false => Err(schema::missing(&row, PROMPT_COLUMNS)),
        }
    })
}

fn text(row: &mut Row) -> Result<String, RowProblem> {
    schema::text("text", row.cells.remove("text").unwrap_or_default())
}

/// Whether a file consists of lines of text. Only its name can tell: a line of text may look like anything.
fn is_plain_text(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"))
}

/// The non-empty lines, without line ends.
fn lines(path: &Path) -> Result<Vec<String>, SourceError> {
    let file =
        File::open(path).map_err(|source| SourceError::Io { path: path.to_owned(), source })?;
    let mut reader = BufReader::new(file);
    let mut lines = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let limit = super::json::MAX_ROW;
        let read = reader.by_ref().take(limit as u64 + 1).read_until(b'\n', &mut bytes);
        let place = Place::Line(line);
        read.map_err(|source| SourceError::Broken { path: path.to_owned(), place, source })?;
        if bytes.is_empty() {
            break;
        }
        if bytes.len() > limit {
            return Err(SourceError::TooLong { path: path.to_owned(), place, limit });
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| SourceError::Row {
            path: path.to_owned(),
            place,
            problem: RowProblem::NotText,
        })?;
        let text = text.trim_end_matches(['\n', '\r']);
        if !text.is_empty() {
            lines.push(text.to_owned());
        }
    }
    if lines.is_empty() {
        return Err(SourceError::NoRows { path: path.to_owned() });
    }
    Ok(lines)
}
