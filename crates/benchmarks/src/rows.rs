//! The rows of answer files, benchmark by benchmark.

use fpo_files::hash::hash_bytes;
use serde_json::{Map, Value, json};

use crate::{Benchmark, Question, markdown, questions::Key};

/// A model's answer to a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The answers, turn by turn; several only where MT-Bench is asked for several choices.
    pub choices: Vec<Vec<String>>,
    /// Tokens of the last turn.
    pub tokens: usize,
}

/// A question's row with its answer, keys in the order in which the benchmark's own code writes them. `maker` is the hash of the
/// settings that it was made under, from which its identifier follows.
pub fn row(
    question: &Question,
    answer: &Answer,
    model: &str,
    maker: &str,
    time: f64,
) -> Map<String, Value> {
    let text = || answer.choices.first().and_then(|turns| turns.last()).map_or("", String::as_str);
    let asked = || question.turns[0].as_str();
    let row = match &question.key {
        Key::AlpacaEval { dataset } => json!({
            "dataset": dataset,
            "instruction": asked(),
            "output": text(),
            "generator": model,
        }),
        Key::ArenaHard { uid } => json!({
            "uid": uid,
            "ans_id": answer_id(question, maker),
            "model": model,
            "messages": [
                { "role": "user", "content": asked() },
                { "role": "assistant", "content": { "answer": text() } },
            ],
            "tstamp": time,
            "metadata": markdown::counts(text(), answer.tokens),
        }),
        Key::MtBench { question_id } => {
            let choices = answer.choices.iter().enumerate();
            let choices: Vec<Value> =
                choices.map(|(index, turns)| json!({ "index": index, "turns": turns })).collect();
            json!({
                "question_id": question_id,
                "answer_id": answer_id(question, maker),
                "model_id": model,
                "choices": choices,
                "tstamp": time,
            })
        }
        Key::IfEval { .. } => json!({ "prompt": asked(), "response": text() }),
    };
    match row {
        Value::Object(row) => row,
        _ => Map::new(),
    }
}

/// The keys of a row without which it isn't an answer.
pub fn keys(benchmark: Benchmark) -> &'static [&'static str] {
    match benchmark {
        Benchmark::AlpacaEval => &["instruction", "output", "generator"],
        Benchmark::ArenaHard => &["uid", "ans_id", "model", "messages", "metadata"],
        Benchmark::MtBench => &["question_id", "answer_id", "model_id", "choices"],
        Benchmark::IfEval => &["prompt", "response"],
    }
}

/// The model that a row names; `None` where the benchmark's rows name none.
pub fn model(benchmark: Benchmark, row: &Map<String, Value>) -> Option<&str> {
    let key = match benchmark {
        Benchmark::AlpacaEval => "generator",
        Benchmark::ArenaHard => "model",
        Benchmark::MtBench => "model_id",
        Benchmark::IfEval => return None,
    };
    row.get(key)?.as_str()
}

/// Whether a row answers this question.
pub fn answers(row: &Map<String, Value>, question: &Question) -> bool {
    let asked = Value::String(question.turns[0].clone());
    match &question.key {
        Key::AlpacaEval { dataset } => {
            let same =
                row.get("dataset").and_then(Value::as_str).is_none_or(|name| name == dataset);
            same && row.get("instruction") == Some(&asked)
        }
        Key::ArenaHard { uid } => row.get("uid").and_then(Value::as_str) == Some(uid),
        Key::MtBench { question_id } => row.get("question_id") == Some(question_id),
        Key::IfEval { .. } => row.get("prompt") == Some(&asked),
    }
}

/// The identifier that a row has, where the benchmark's rows have one.
pub fn id(row: &Map<String, Value>) -> Option<&str> {
    row.get("ans_id").or_else(|| row.get("answer_id"))?.as_str()
}

/// Letters and figures that are hard to mistake for one another, as in the identifiers of the Python package `shortuuid`.
const ALPHABET: &[u8; 57] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// 22 letters and figures, as the benchmarks' own code has them, but the same for the same question and settings.
pub fn answer_id(question: &Question, maker: &str) -> String {
    let bytes = json!([maker, question.identity(), question.turns]).to_string();
    let mut number =
        u128::from_str_radix(&hash_bytes(bytes.as_bytes())[..32], 16).unwrap_or_default();
    let mut letters = [b'2'; 22];
    for letter in letters.iter_mut().rev() {
        *letter = ALPHABET[(number % 57) as usize];
        number /= 57;
    }
    letters.into_iter().map(char::from).collect()
}
