//! The files of AlpacaEval, Arena-Hard, MT-Bench and IFEval: their questions in, a model's answers to them out.
//!
//! # Invariants
//! * A question file of another benchmark is refused by naming what it looks like ([`read_questions`]).
//! * An answer file has exactly the keys that its benchmark's own code writes and reads; it is whole at any time, and what is in it
//!   is kept ([`AnswerFile`]).
//! * What a question's answer is sampled from follows from the question alone ([`Question::stream`]), never from its neighbours.
//! * Knows no model and no tensor. Files are untrusted and bounded.
//!
//! ```
//! use fpo_benchmarks::{AnswerFile, Answer, Benchmark, Maker, read_questions};
//!
//! let folder = tempfile::tempdir()?;
//! let (asked, out) = (folder.path().join("question.jsonl"), folder.path().join("mine.jsonl"));
//! std::fs::write(&asked, r#"{"question_id": 1, "category": "math", "turns": ["Add 2 and 3.", "Double it."]}"#)?;
//! let questions = read_questions(&asked, Benchmark::MtBench)?;
//! let maker = Maker { model: "mine".into(), ..Maker::default() };
//! let mut answers = AnswerFile::open(&out, Benchmark::MtBench, questions, maker)?;
//! for index in answers.open_questions() {
//!     let turns = vec!["5".to_owned(), "10".to_owned()];
//!     answers.add(index, &Answer { choices: vec![turns], tokens: 1 }, 1_700_000_000.0);
//! }
//! answers.write()?;
//! assert!(std::fs::read_to_string(&out)?.starts_with(r#"{"question_id":1,"answer_id":""#));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod answers;
mod benchmark;
mod error;
mod looks;
mod markdown;
mod questions;
mod rows;
mod text;

pub use answers::{AnswerFile, Maker};
pub use benchmark::Benchmark;
pub use error::Error;
pub use markdown::counts;
pub use questions::{Question, read_questions};
pub use rows::Answer;
