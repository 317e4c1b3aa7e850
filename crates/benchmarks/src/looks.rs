//! What a row looks like that isn't what was expected.

use serde_json::{Map, Value};

use crate::Benchmark;

/// What can be told from a row's keys.
pub enum Looks {
    /// The questions of a benchmark.
    Questions(Benchmark),
    /// Something else that is known.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
}

impl Looks {
    /// From more keys to fewer, so that what has more to it is told from what it contains.
    pub fn of(row: &Map<String, Value>) -> Self {
        let has = |keys: &[&str]| keys.iter().all(|key| row.contains_key(*key));
        let turns_are_objects = || {
            let turns = row.get("turns").and_then(Value::as_array);
            turns.is_some_and(|turns| turns.first().is_some_and(Value::is_object))
        };
        match () {
            () if has(&["question_id", "choices"]) => Self::Other("answers to MT-Bench"),
            () if has(&["uid", "messages"]) => Self::Other("answers to Arena-Hard"),
            () if has(&["question_id", "turns"]) && turns_are_objects() => {
                Self::Questions(Benchmark::ArenaHard)
            }
            () if has(&["question_id", "turns"]) => Self::Questions(Benchmark::MtBench),
            () if has(&["uid", "prompt"]) => Self::Questions(Benchmark::ArenaHard),
            () if has(&["prompt", "instruction_id_list"]) => Self::Questions(Benchmark::IfEval),
            () if has(&["chosen", "rejected"]) => Self::Other("preference pairs"),
            () if has(&["output_1", "output_2"]) => Self::Other("AlpacaEval's annotations"),
            () if has(&["instruction"]) => Self::Questions(Benchmark::AlpacaEval),
            () if has(&["prompt", "response"]) => Self::Other("answers to IFEval"),
            () if has(&["messages"]) => Self::Other("conversations"),
            () if has(&["prompt"]) => Self::Other("prompts of no benchmark"),
            () => Self::Unknown,
        }
    }

    /// In words, with what to do.
    pub fn told(&self) -> (&'static str, String) {
        match self {
            Self::Questions(benchmark) => (
                match benchmark {
                    Benchmark::AlpacaEval => "those of AlpacaEval",
                    Benchmark::ArenaHard => "those of Arena-Hard",
                    Benchmark::MtBench => "those of MT-Bench",
                    Benchmark::IfEval => "those of IFEval",
                },
                format!("; use --for {benchmark}"),
            ),
            Self::Other(what @ "prompts of no benchmark") => {
                (what, "; leave --for out to answer them".into())
            }
            Self::Other(what) => (what, String::new()),
            Self::Unknown => ("nothing that is known", String::new()),
        }
    }
}
