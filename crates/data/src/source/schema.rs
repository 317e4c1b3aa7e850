//! Schemas: from the cells of a row to prompts and responses.

use super::cells::{Cell, Row};
use super::dialogue;
use super::{Message, Prompt};

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowProblem {
    /// Columns are missing.
    #[error("needs {needed}; it has the columns [{found}]")]
    Columns {
        /// The columns needed.
        needed: &'static str,
        /// The row's columns.
        found: String,
    },
    /// A column of an unexpected type.
    #[error("column `{column}` must be {expected}, but is {found}")]
    Kind {
        /// The column.
        column: &'static str,
        /// The type expected.
        expected: &'static str,
        /// The type found.
        found: String,
    },
    /// An empty response.
    #[error(
        "column `{column}` contains an empty response; remove the row, or set data.on_empty to \"drop\" or \"keep\""
    )]
    Empty {
        /// The column.
        column: &'static str,
    },
    /// Two conversations with different prompts.
    #[error("`chosen` and `rejected` have different prompts")]
    PromptsDiffer,
    /// A conversation that doesn't end with an assistant message.
    #[error("column `{column}` must end with one assistant message")]
    NoResponse {
        /// The column.
        column: &'static str,
    },
    /// Bytes that aren't UTF-8.
    #[error("isn't UTF-8 text")]
    NotText,
    /// Texts that have no prompt and aren't dialogues.
    #[error(
        "without a `prompt` column, `chosen` and `rejected` must be dialogues (\\n\\nHuman: … \\n\\nAssistant: …) \
         that are equal up to an answer"
    )]
    NoDialogue,
}

const PAIR_COLUMNS: &str =
    "`chosen` and `rejected` (and `prompt`, unless they contain whole conversations)";
const SFT_COLUMNS: &str = "`messages`, or `prompt` with `response` or `completion`, or `chosen`";

type Parsed<T> = Result<T, RowProblem>;

/// A prompt with its chosen and rejected responses.
pub(super) fn pair(mut row: Row) -> Parsed<(Prompt, [String; 2])> {
    let (Some(chosen), Some(rejected)) = (row.cells.remove("chosen"), row.cells.remove("rejected"))
    else {
        return Err(missing(&row, PAIR_COLUMNS));
    };
    let prompt = row.cells.remove("prompt").map(prompt_cell).transpose()?;
    match (prompt, chosen, rejected) {
        (Some(prompt), Cell::Text(chosen), Cell::Text(rejected)) => {
            Ok((prompt, [chosen, rejected]))
        }
        (None, Cell::Text(chosen), Cell::Text(rejected)) => {
            let (messages, responses) =
                dialogue::split_pair(&chosen, &rejected).ok_or(RowProblem::NoDialogue)?;
            Ok((Prompt::Messages(messages), responses))
        }
        (prompt, Cell::Messages(chosen), Cell::Messages(rejected)) => {
            let (chosen_prompt, chosen) = conversation("chosen", prompt.as_ref(), chosen)?;
            let (rejected_prompt, rejected) = conversation("rejected", prompt.as_ref(), rejected)?;
            if chosen_prompt != rejected_prompt {
                return Err(RowProblem::PromptsDiffer);
            }
            Ok((chosen_prompt, [chosen, rejected]))
        }
        (_, chosen @ (Cell::Text(_) | Cell::Messages(_)), rejected) => {
            Err(kind("rejected", chosen.kind(), &rejected))
        }
        (_, chosen, _) => Err(kind("chosen", "a text or a list of messages", &chosen)),
    }
}

/// A prompt with one response.
pub(super) fn example(mut row: Row) -> Parsed<(Prompt, String)> {
    if let Some(messages) = row.cells.remove("messages") {
        let Cell::Messages(messages) = messages else {
            return Err(kind("messages", "a list of messages", &messages));
        };
        return conversation("messages", None, messages);
    }
    for column in ["response", "completion"] {
        let Some(response) = row.cells.remove(column) else { continue };
        let Some(prompt) = row.cells.remove("prompt") else {
            return Err(missing(&row, SFT_COLUMNS));
        };
        let prompt = prompt_cell(prompt)?;
        return match response {
            Cell::Text(response) => Ok((prompt, response)),
            Cell::Messages(messages) => conversation(column, Some(&prompt), messages),
            other => Err(kind(column, "a text or a list of messages", &other)),
        };
    }
    let Some(chosen) = row.cells.get("chosen") else { return Err(missing(&row, SFT_COLUMNS)) };
    let chosen = chosen.clone();
    row.cells.entry("rejected").or_insert(chosen);
    let (prompt, [response, _]) = pair(row)?;
    Ok((prompt, response))
}

/// Refuses a response that is empty or white space.
pub(super) fn refuse_empty(column: &'static str, response: &str) -> Parsed<()> {
    if response.trim().is_empty() { Err(RowProblem::Empty { column }) } else { Ok(()) }
}

pub(super) fn prompt_cell(cell: Cell) -> Parsed<Prompt> {
    match cell {
        Cell::Text(text) => Ok(Prompt::Text(text)),
        Cell::Messages(messages) if !messages.is_empty() => Ok(Prompt::Messages(messages)),
        Cell::Messages(_) => Err(RowProblem::Kind {
            column: "prompt",
            expected: "a text or a list of messages",
            found: "an empty list".to_owned(),
        }),
        other => Err(kind("prompt", "a text or a list of messages", &other)),
    }
}

/// Splits a conversation into the prompt and the last message, which must be the assistant's. If it is the only message, the prompt
/// is taken from the prompt column.
fn conversation(
    column: &'static str,
    prompt: Option<&Prompt>,
    mut messages: Vec<Message>,
) -> Parsed<(Prompt, String)> {
    let response = messages.pop().filter(|message| message.role == "assistant");
    let response = response.ok_or(RowProblem::NoResponse { column })?.content;
    match prompt {
        Some(prompt) if messages.is_empty() => Ok((prompt.clone(), response)),
        Some(Prompt::Messages(prompt)) if *prompt != messages => Err(RowProblem::PromptsDiffer),
        _ if messages.is_empty() => Err(RowProblem::NoResponse { column }),
        _ => Ok((Prompt::Messages(messages), response)),
    }
}

pub(super) fn missing(row: &Row, needed: &'static str) -> RowProblem {
    RowProblem::Columns { needed, found: row.columns.join(", ") }
}

pub(super) fn kind(column: &'static str, expected: &'static str, found: &Cell) -> RowProblem {
    let found = match found {
        Cell::Other(what) => what.clone(),
        other => other.kind().to_owned(),
    };
    RowProblem::Kind { column, expected, found }
}

impl Cell {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Messages(_) => "a list of messages",
            Self::Other(_) => "something else",
        }
    }
}
