//! Question files.

use std::{collections::BTreeMap, path::Path};

use fpo_files::hash::hash_bytes;
use serde_json::{Map, Value, json};

use crate::{
    Benchmark, Error,
    looks::Looks,
    text::{self, Row},
};

/// The largest file that is read, in MiB; the benchmarks' own are below one.
const MAX_FILE: u64 = 64;
/// MT-Bench has two.
const MAX_TURNS: usize = 16;

/// A question, in one turn or several.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// What the user says, turn by turn; at least one.
    pub turns: Vec<String>,
    /// The temperature that the benchmark answers it at.
    pub temperature: f64,
    pub(crate) key: Key,
}

/// What an answer file repeats of a question beside its turns.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Key {
    AlpacaEval { dataset: String },
    ArenaHard { uid: String },
    MtBench { question_id: Value },
    IfEval { key: Value },
}

impl Question {
    /// How messages name it: `question 81`.
    pub fn name(&self) -> String {
        match &self.key {
            Key::AlpacaEval { .. } => format!("instruction {:?}", self.opening()),
            Key::ArenaHard { uid } => format!("question {uid}"),
            Key::MtBench { question_id } => format!("question {question_id}"),
            Key::IfEval { key } => format!("prompt {key}"),
        }
    }

    /// The stream of random numbers that a turn of a choice is sampled from, beside the seed. Both are counted from 0.
    pub fn stream(&self, choice: usize, turn: usize) -> u64 {
        let bytes = json!([self.identity(), choice, turn]).to_string();
        let hash = hash_bytes(bytes.as_bytes());
        u64::from_str_radix(&hash[..16], 16).unwrap_or_default()
    }

    /// What is the same for the same question in any file of its benchmark.
    pub(crate) fn identity(&self) -> Value {
        match &self.key {
            Key::AlpacaEval { dataset } => json!(["alpaca-eval", dataset, self.turns[0]]),
            Key::ArenaHard { uid } => json!(["arena-hard", uid]),
            Key::MtBench { question_id } => json!(["mt-bench", question_id]),
            Key::IfEval { key } => json!(["ifeval", key]),
        }
    }

    fn opening(&self) -> String {
        let short: String = self.turns[0].chars().take(40).collect();
        match short.len() < self.turns[0].len() {
            true => short + "…",
            false => short,
        }
    }
}

/// Reads a benchmark's own question file: JSON lines or a JSON array.
///
/// * AlpacaEval: `instruction`, `dataset`; without one, the file's name stands for it. Arena-Hard: `uid`, `prompt`, or as in its
///   first release `question_id`, `turns: [{content}]`. MT-Bench: `question_id`, `category`, `turns`. IFEval: `key`, `prompt`,
///   `instruction_id_list`.
///
/// # Errors
/// A file that can't be read, that is another's ([`Error::Other`]), or a question that isn't one or stands there twice.
pub fn read_questions(path: &Path, benchmark: Benchmark) -> Result<Vec<Question>, Error> {
    let text::Rows { rows, cut } = text::read(path, MAX_FILE, "questions")?;
    let fail =
        |place: String, message: String| Err(Error::Row { path: path.to_owned(), place, message });
    if cut {
        let message = "the file ends in the middle of a question; copy it again".into();
        return fail(format!("row {}", rows.len() + 1), message);
    }
    let mut questions = Vec::with_capacity(rows.len());
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for Row { place, object } in rows {
        check_kind(path, &place, benchmark, &object)?;
        let question = match parse(path, benchmark, &object) {
            Ok(question) => question,
            Err(message) => return fail(place, message),
        };
        // AlpacaEval's questions have no number: what stands there twice is answered twice.
        if benchmark != Benchmark::AlpacaEval
            && let Some(before) = places.insert(question.identity().to_string(), place.clone())
        {
            return fail(place, format!("{} stands in {before} already", question.name()));
        }
        questions.push(question);
    }
    match questions.is_empty() {
        true => Err(Error::Empty { path: path.to_owned() }),
        false => Ok(questions),
    }
}

/// Refuses what is known to be something else, and what isn't known and isn't of this benchmark either.
fn check_kind(
    path: &Path,
    place: &str,
    wanted: Benchmark,
    row: &Map<String, Value>,
) -> Result<(), Error> {
    let looks = Looks::of(row);
    if let Looks::Questions(found) = looks
        && found == wanted
    {
        return Ok(());
    }
    let (looks, advice) = looks.told();
    Err(Error::Other { path: path.to_owned(), place: place.to_owned(), wanted, looks, advice })
}

fn parse(path: &Path, benchmark: Benchmark, row: &Map<String, Value>) -> Result<Question, String> {
    let key = match benchmark {
        Benchmark::AlpacaEval => {
            if row.get("input").and_then(Value::as_str).is_some_and(|input| !input.is_empty()) {
                return Err("it has an `input` beside its instruction, which AlpacaEval's questions don't; \
                            make it a part of the instruction"
                    .into());
            }
            let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let dataset =
                row.get("dataset").and_then(Value::as_str).map_or_else(stem, str::to_owned);
            Key::AlpacaEval { dataset }
        }
        Benchmark::ArenaHard => {
            let name = if row.contains_key("uid") { "uid" } else { "question_id" };
            Key::ArenaHard { uid: text(row, name)?.to_owned() }
        }
        Benchmark::MtBench => Key::MtBench { question_id: number_or_name(row, "question_id")? },
        Benchmark::IfEval => Key::IfEval { key: number_or_name(row, "key")? },
    };
    let turns = match benchmark {
        Benchmark::AlpacaEval => vec![text(row, "instruction")?.to_owned()],
        Benchmark::ArenaHard if !row.contains_key("prompt") => turns(row, true)?,
        Benchmark::ArenaHard | Benchmark::IfEval => vec![text(row, "prompt")?.to_owned()],
        Benchmark::MtBench => turns(row, false)?,
    };
    if benchmark == Benchmark::ArenaHard && turns.len() > 1 {
        return Err(format!("it has {} turns; Arena-Hard's answers have one", turns.len()));
    }
    let temperature = benchmark.temperature(row.get("category").and_then(Value::as_str));
    Ok(Question { turns, temperature, key })
}

fn text<'a>(row: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    let text =
        row.get(key).and_then(Value::as_str).ok_or_else(|| format!("`{key}` is not a text"))?;
    match text.trim().is_empty() {
        true => Err(format!("`{key}` is empty")),
        false => Ok(text),
    }
}

fn number_or_name(row: &Map<String, Value>, key: &str) -> Result<Value, String> {
    match row.get(key) {
        Some(value @ (Value::String(_) | Value::Number(_))) => Ok(value.clone()),
        _ => Err(format!("`{key}` is neither a number nor a text")),
    }
}

/// Texts, or objects with the text as `content`.
fn turns(row: &Map<String, Value>, objects: bool) -> Result<Vec<String>, String> {
    let turns = row.get("turns").and_then(Value::as_array).ok_or("`turns` is not a list")?;
    if !(1..=MAX_TURNS).contains(&turns.len()) {
        return Err(format!("it has {} turns; 1 to {MAX_TURNS} can be answered", turns.len()));
    }
    let read = |(index, turn): (usize, &Value)| {
        let turn = if objects { turn.get("content") } else { Some(turn) };
        let text = turn.and_then(Value::as_str).filter(|text| !text.trim().is_empty());
        text.map(str::to_owned).ok_or_else(|| format!("turn {} is not a text", index + 1))
    };
    turns.iter().enumerate().map(read).collect()
}
