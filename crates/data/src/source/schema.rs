//! Schemas: from the cells of a row to prompts and responses.

use super::cells::{Cell, Row};
use super::turns::{Beside, Turns};
use super::{Message, Prompt, Response, RowProblem, dialogue};
use serde_json::Value;

const PAIR_COLUMNS: &str = "`chosen` and `rejected` (with `prompt` or `instruction`, unless they contain whole conversations)";
const SFT_COLUMNS: &str = "`messages` or `conversations`, or `prompt` with `response` or `completion`, or `instruction` with `output`, \
                           or `chosen`";

type Parsed<T> = Result<T, RowProblem>;

/// A prompt with its chosen and rejected responses.
pub(super) fn pair(mut row: Row) -> Parsed<(Prompt, [Response; 2])> {
    let beside = Beside::take(&mut row)?;
    pair_beside(row, beside)
}

fn pair_beside(mut row: Row, beside: Beside) -> Parsed<(Prompt, [Response; 2])> {
    let (Some(chosen), Some(rejected)) = (row.cells.remove("chosen"), row.cells.remove("rejected"))
    else {
        return Err(missing(&row, PAIR_COLUMNS));
    };
    let prompt = prompt_of(&mut row, &beside)?;
    let chosen = Turns::read("chosen", chosen)?;
    let rejected = Turns::read("rejected", rejected).map_err(|problem| match problem {
        RowProblem::Kind { column, found, .. } => {
            RowProblem::Kind { column, expected: chosen.kind(), found }
        }
        other => other,
    })?;
    let (prompt, responses) = match (prompt, (chosen, rejected)) {
        (Some(prompt), (Turns::Text(chosen), Turns::Text(rejected))) => {
            (prompt, [Response::Text(chosen), Response::Text(rejected)])
        }
        (None, (Turns::Text(chosen), Turns::Text(rejected))) => {
            match dialogue::split_pair(&chosen, &rejected) {
                Some((messages, responses)) => {
                    (Turns::Messages(messages), responses.map(Response::Text))
                }
                None => common_beginning(&chosen, &rejected)?,
            }
        }
        (prompt, (Turns::Messages(chosen), Turns::Messages(rejected))) => {
            ends_with_answer("chosen", &chosen)?;
            ends_with_answer("rejected", &rejected)?;
            let own = |messages| own_messages(prompt.as_ref(), messages);
            match (own(&chosen), own(&rejected), prompt) {
                (Some(chosen), Some(rejected), Some(prompt)) => (prompt, [chosen, rejected]),
                (None, None, None | Some(Turns::Text(_))) => part(&chosen, &rejected)?,
                _ => return Err(RowProblem::PromptsDiffer),
            }
        }
        (_, (chosen, rejected)) => {
            return Err(RowProblem::Kind {
                column: "rejected",
                expected: chosen.kind(),
                found: rejected.kind().to_owned(),
            });
        }
    };
    Ok((beside.prompt(prompt)?, responses))
}

/// A prompt with one response.
pub(super) fn example(mut row: Row) -> Parsed<(Prompt, Response)> {
    let beside = Beside::take(&mut row)?;
    for column in ["messages", "conversations"] {
        let Some(cell) = row.take(column) else { continue };
        let messages = with_system(&mut row, messages(column, cell)?)?;
        let (prompt, response) = last_answer(column, messages)?;
        return Ok((beside.prompt(Turns::Messages(prompt))?, response));
    }
    for column in ["response", "completion", "output"] {
        let Some(response) = row.cells.remove(column) else { continue };
        let Some(prompt) = prompt_of(&mut row, &beside)? else {
            return Err(missing(&row, SFT_COLUMNS));
        };
        let (prompt, response) = match Turns::read(column, response)? {
            Turns::Text(response) => (prompt, Response::Text(response)),
            Turns::Messages(messages) => {
                ends_with_answer(column, &messages)?;
                let response = own_messages(Some(&prompt), &messages);
                (prompt, response.ok_or(RowProblem::PromptsDiffer)?)
            }
        };
        return Ok((beside.prompt(prompt)?, response));
    }
    let Some(Cell::Json(chosen)) = row.cells.get("chosen") else {
        return Err(missing(&row, SFT_COLUMNS));
    };
    if !row.has("rejected") {
        let chosen = Cell::Json(chosen.clone());
        row.cells.insert("rejected", chosen);
    }
    let (prompt, [response, _]) = pair_beside(row, beside)?;
    Ok((prompt, response))
}

/// A prompt alone: `prompt`, a conversation to continue, or an instruction. `None` if the row has none of them.
pub(super) fn prompt(row: &mut Row) -> Parsed<Option<Prompt>> {
    let beside = Beside::take(row)?;
    let conversation = ["messages", "conversations"].into_iter().find(|column| row.has(column));
    let turns = match (row.cells.contains_key("prompt"), conversation) {
        (false, Some(column)) => {
            let cell = row.take(column).unwrap_or_default();
            Some(Turns::Messages(with_system(row, messages(column, cell)?)?))
        }
        _ => prompt_of(row, &beside)?,
    };
    turns.map(|turns| beside.prompt(turns)).transpose()
}

/// Refuses a response that says nothing.
pub(super) fn refuse_empty(column: &'static str, response: &Response) -> Parsed<()> {
    if response.is_empty() { Err(RowProblem::Empty { column }) } else { Ok(()) }
}

pub(super) fn missing(row: &Row, needed: &'static str) -> RowProblem {
    RowProblem::Columns { needed, found: row.columns.join(", ") }
}

/// The prompt in a column of its own: `prompt`, ShareGPT's `conversations` beside two answers, or Alpaca's `instruction` and `input`.
fn prompt_of(row: &mut Row, beside: &Beside) -> Parsed<Option<Turns>> {
    if let Some(cell) = row.cells.remove("prompt") {
        return match Turns::read("prompt", cell)? {
            Turns::Messages(messages) if messages.is_empty() => Err(RowProblem::Kind {
                column: "prompt",
                expected: "a text or a list of messages",
                found: "an empty list".to_owned(),
            }),
            prompt => Ok(Some(prompt)),
        };
    }
    if let Some(cell) = row.take("conversations") {
        let messages = messages("conversations", cell)?;
        return Ok(Some(Turns::Messages(with_system(row, messages)?)));
    }
    let Some(instruction) = row.take("instruction") else { return Ok(None) };
    let mut instruction = text("instruction", instruction)?;
    if let Some(input) = row.take("input") {
        let input = text("input", input)?;
        if !input.is_empty() {
            instruction = instruction + "\n" + &input;
        }
    }
    let history = history(row)?;
    let system = row.has("system");
    if history.is_empty() && !system && !beside.has_tools() {
        return Ok(Some(Turns::Text(instruction)));
    }
    let messages = [history, vec![Message::new("user", instruction)]].concat();
    Ok(Some(Turns::Messages(with_system(row, messages)?)))
}

/// Alpaca's `history`: earlier instructions with their answers.
fn history(row: &mut Row) -> Parsed<Vec<Message>> {
    let expected = "a list of [instruction, answer]";
    let Some(cell) = row.take("history") else { return Ok(Vec::new()) };
    let problem = |found: String| RowProblem::Kind { column: "history", expected, found };
    let Cell::Json(Value::Array(turns)) = &cell else { return Err(problem(cell.kind())) };
    let mut messages = Vec::new();
    for turn in turns {
        let turn: Vec<&str> =
            turn.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let [instruction, answer] = turn[..] else {
            return Err(problem("a list of something else".to_owned()));
        };
        messages.extend([Message::new("user", instruction), Message::new("assistant", answer)]);
    }
    Ok(messages)
}

/// The messages after the row's `system` text, if it has one and they don't begin with a system message.
fn with_system(row: &mut Row, messages: Vec<Message>) -> Parsed<Vec<Message>> {
    let Some(system) = row.take("system") else { return Ok(messages) };
    let system = text("system", system)?;
    if system.trim().is_empty() || messages.first().is_some_and(|first| first.role() == "system") {
        return Ok(messages);
    }
    Ok([vec![Message::new("system", system)], messages].concat())
}

/// What responds to the prompt in a list of messages: the list itself, or what follows if it begins with the prompt. `None` if the
/// list has a prompt of its own, because it begins with someone else's turn.
fn own_messages(prompt: Option<&Turns>, messages: &[Message]) -> Option<Response> {
    let answers = match prompt? {
        Turns::Messages(prompt) => messages.strip_prefix(&prompt[..]).unwrap_or(messages),
        Turns::Text(_) => messages,
    };
    let own = answers.first().is_some_and(|first| !matches!(first.role(), "user" | "system"));
    own.then(|| Response::from_messages(answers.to_vec()))
}

/// Two conversations, split where they part as in TRL's `extract_prompt`; where one is the beginning of the other, before the last
/// answer of the shorter one.
fn part(chosen: &[Message], rejected: &[Message]) -> Parsed<(Turns, [Response; 2])> {
    let shared = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
    let shared = shared.min(chosen.len() - 1).min(rejected.len() - 1);
    if !chosen[..shared].iter().any(|message| message.role() == "user") {
        return Err(RowProblem::PromptsDiffer);
    }
    let responses = [chosen, rejected].map(|all| Response::from_messages(all[shared..].to_vec()));
    Ok((Turns::Messages(chosen[..shared].to_vec()), responses))
}

/// Two texts without a prompt, split after their common beginning as in TRL's `extract_prompt`: a space before the first difference
/// belongs to the responses.
fn common_beginning(chosen: &str, rejected: &str) -> Parsed<(Turns, [Response; 2])> {
    let shared = chosen.chars().zip(rejected.chars()).take_while(|(a, b)| a == b);
    let shared: usize = shared.map(|(char, _)| char.len_utf8()).sum();
    let prompt = &chosen[..shared];
    let prompt = prompt.strip_suffix(' ').unwrap_or(prompt);
    let responses = [&chosen[prompt.len()..], &rejected[prompt.len()..]];
    if prompt.trim().is_empty() || responses.iter().any(|response| response.is_empty()) {
        return Err(RowProblem::NoDialogue);
    }
    Ok((Turns::Text(prompt.to_owned()), responses.map(Response::from)))
}

/// Splits a conversation into the prompt and the last message, which must be the assistant's.
fn last_answer(
    column: &'static str,
    mut messages: Vec<Message>,
) -> Parsed<(Vec<Message>, Response)> {
    ends_with_answer(column, &messages)?;
    let response = messages.split_off(messages.len() - 1);
    if messages.is_empty() {
        return Err(RowProblem::NoResponse { column });
    }
    Ok((messages, Response::from_messages(response)))
}

fn ends_with_answer(column: &'static str, messages: &[Message]) -> Parsed<()> {
    match messages.last() {
        Some(last) if last.role() == "assistant" => Ok(()),
        _ => Err(RowProblem::NoResponse { column }),
    }
}

fn messages(column: &'static str, cell: Cell) -> Parsed<Vec<Message>> {
    match Turns::read(column, cell)? {
        Turns::Messages(messages) => Ok(messages),
        Turns::Text(_) => Err(RowProblem::Kind {
            column,
            expected: "a list of messages",
            found: "a text".to_owned(),
        }),
    }
}

pub(super) fn text(column: &'static str, cell: Cell) -> Parsed<String> {
    match cell {
        Cell::Json(Value::String(text)) => Ok(text),
        other => Err(RowProblem::Kind { column, expected: "a text", found: other.kind() }),
    }
}
