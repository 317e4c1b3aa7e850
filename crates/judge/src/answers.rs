//! Answer files of benchmarks, and which answers belong to the same question.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Error;
use crate::rows::{self, Row};

/// What a model answered to one question, turn by turn.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    row: usize,
    id: Option<String>,
    /// What the user said; benchmarks with question files of their own leave it out.
    turns: Option<Vec<String>>,
    outputs: Vec<String>,
}

/// A model's answers.
#[derive(Clone, Debug)]
pub struct Answers {
    path: PathBuf,
    /// The model that gave them.
    pub generator: String,
    rows: Vec<Answer>,
}

/// A benchmark's questions, by identity.
#[derive(Clone, Debug)]
pub struct Questions {
    path: PathBuf,
    turns: HashMap<String, Vec<String>>,
}

/// Two answers to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Number of the question in the baseline's file, from 0.
    pub position: usize,
    /// The question's name in the verdict file.
    pub question: String,
    /// What the user said, turn by turn.
    pub turns: Vec<String>,
    /// The baseline's answers, turn by turn.
    pub baseline: Vec<String>,
    /// The model's answers, turn by turn.
    pub model: Vec<String>,
}

impl Pair {
    /// A hash of the question and both answers.
    pub fn hash(&self) -> String {
        let texts = serde_json::json!([self.turns, self.baseline, self.model]).to_string();
        fpo_files::hash::hash_bytes(texts.as_bytes())[..16].to_owned()
    }
}

/// What to do with questions that only one file answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// An error that counts them.
    Refuse,
    /// They are left out.
    LeaveOut,
}

const INSTRUCTION: [&str; 3] = ["instruction", "prompt", "question"];
const OUTPUT: [&str; 3] = ["output", "response", "answer"];
const FORMATS: &str = "answers are AlpacaEval's {instruction, output, generator}, Arena-Hard's {uid, model, messages}, \
                       MT-Bench's {question_id, model_id, choices}, or lines of {prompt, response}";

impl Answers {
    /// Reads answers in AlpacaEval's, Arena-Hard's or MT-Bench's format, or as JSON lines of `instruction` (or `prompt`,
    /// `question`) and `output` (or `response`, `answer`). The model's name comes from the file, or is its stem.
    ///
    /// # Errors
    /// A file that can't be read, or a row that holds no answer.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let (mut generator, mut rows) = (None, Vec::new());
        for row in rows::read(path)? {
            let name = row.text(path, &["generator", "model", "model_id"])?;
            if let (Some(first), Some(name)) = (&generator, &name)
                && first != name
            {
                let problem = format!("is an answer of {name}, and the rows before are {first}'s");
                return Err(Error::row(path, row.number, problem));
            }
            generator = generator.or(name);
            rows.push(Answer::read(path, &row)?);
        }
        let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { path: path.to_owned(), generator: generator.unwrap_or_else(stem), rows })
    }

    /// Statistics know models by their names: two of one name, such as two checkpoints, get those of their files too.
    pub fn tell_apart(&mut self, other: &mut Self) {
        if self.generator != other.generator {
            return;
        }
        let stem = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let same = stem(&self.path) == stem(&other.path);
        for answers in [self, other] {
            let whole = || answers.path.display().to_string();
            let file = stem(&answers.path).filter(|_| !same).unwrap_or_else(whole);
            answers.generator = format!("{} ({file})", answers.generator);
        }
    }
}

impl Answer {
    fn read(path: &Path, row: &Row) -> Result<Self, Error> {
        let wrong = |problem: &str| Error::row(path, row.number, format!("{problem}; {FORMATS}"));
        let instruction = row.text(path, &INSTRUCTION)?;
        let (turns, outputs) = if let Some(choices) = row.first(&["choices"]) {
            let turns =
                choices.get(0).and_then(|choice| choice.get("turns")).and_then(Value::as_array);
            let outputs =
                turns.and_then(|turns| turns.iter().map(content).collect::<Option<Vec<_>>>());
            let outputs = outputs.ok_or_else(|| wrong("`choices` has no `turns` of text"))?;
            (instruction.map(|text| vec![text]), outputs)
        } else if let Some(messages) = row.first(&["messages"]) {
            let (turns, outputs) = conversation(messages).map_err(wrong)?;
            (Some(turns), outputs)
        } else if let Some(output) = row.text(path, &OUTPUT)? {
            (instruction.map(|text| vec![text]), vec![output])
        } else {
            let is_question = row.first(&["turns"]).is_some() || instruction.is_some();
            return Err(wrong(match is_question {
                true => {
                    "is a question without an answer: a benchmark's questions go to --questions"
                }
                false => "has no answer",
            }));
        };
        match outputs.is_empty() {
            true => Err(wrong("has no answer")),
            false => Ok(Self { row: row.number, id: row.id(), turns, outputs }),
        }
    }
}

/// The text of a turn: Arena-Hard wraps it in an object.
fn content(turn: &Value) -> Option<String> {
    let text = match turn {
        Value::Object(fields) => fields.get("answer").or_else(|| fields.get("content"))?,
        _ => turn,
    };
    text.as_str().map(str::to_owned)
}

/// What the user said and what was answered. A system message stands before what the user says.
fn conversation(messages: &Value) -> Result<(Vec<String>, Vec<String>), &'static str> {
    let (mut system, mut turns, mut outputs) = (None, Vec::new(), Vec::new());
    for message in messages.as_array().ok_or("`messages` isn't a list")? {
        let text = message.get("content").and_then(content).ok_or("a message has no text")?;
        match message.get("role").and_then(Value::as_str) {
            Some("system") if turns.is_empty() && system.is_none() => system = Some(text),
            Some("user") if turns.len() == outputs.len() => turns.push(match system.take() {
                Some(system) => format!("{system}\n\n{text}"),
                None => text,
            }),
            Some("assistant") if turns.len() == outputs.len() + 1 => outputs.push(text),
            _ => return Err("`messages` aren't a user's and an assistant's in turn"),
        }
    }
    match turns.len() == outputs.len() {
        true => Ok((turns, outputs)),
        false => Err("`messages` end without an answer"),
    }
}

impl Questions {
    /// Reads the question file of Arena-Hard (`uid`, `prompt`) or MT-Bench (`question_id`, `turns`).
    ///
    /// # Errors
    /// A file that can't be read, or a row without identity or text.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut turns = HashMap::new();
        for row in rows::read(path)? {
            let wrong = |problem: &str| Error::row(path, row.number, problem);
            let id = row.id().ok_or_else(|| wrong("has neither `uid` nor `question_id`"))?;
            let said = match row.first(&["turns"]) {
                Some(Value::Array(said)) => said.iter().map(content).collect::<Option<Vec<_>>>(),
                Some(_) => None,
                None => row.text(path, &INSTRUCTION)?.map(|text| vec![text]),
            };
            let said = said.ok_or_else(|| wrong("has no `turns` or `prompt` of text"))?;
            if turns.insert(id, said).is_some() {
                return Err(wrong("has the identity of a row before"));
            }
        }
        Ok(Self { path: path.to_owned(), turns })
    }
}

/// Answers by what they answer: the question's identity, or its text and how often that came before.
fn keyed(answers: &Answers, by_id: bool) -> Result<Vec<(String, &Answer)>, Error> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut keys = HashSet::new();
    let keyed = answers.rows.iter().map(|answer| {
        let key = match (&answer.id, &answer.turns) {
            (Some(id), _) if by_id => id.clone(),
            (_, Some(turns)) => {
                let text = turns.join("\n\u{0}\n");
                let times = seen.entry(text.clone()).or_default();
                *times += 1;
                format!("{text}\u{0}{times}")
            }
            _ => {
                let problem =
                    "has neither the question's text nor an identity that both files have";
                return Err(Error::row(&answers.path, answer.row, problem));
            }
        };
        match keys.insert(key.clone()) {
            true => Ok((key, answer)),
            false => {
                Err(Error::row(&answers.path, answer.row, format!("answers question {key} again")))
            }
        }
    });
    keyed.collect()
}

/// Puts the answers to the same question together, in the baseline's order.
///
/// # Errors
/// Files without a question in common, with different ones unless those are left out, or with different texts for one question.
pub fn pairs(
    baseline: &Answers,
    model: &Answers,
    questions: Option<&Questions>,
    missing: Missing,
) -> Result<Vec<Pair>, Error> {
    let mismatch = |problem: String| Err(Error::Mismatch { problem });
    let (base_file, model_file) = (baseline.path.display(), model.path.display());
    let has_ids = |answers: &Answers| answers.rows.iter().all(|row| row.id.is_some());
    let by_id = has_ids(baseline) && has_ids(model);
    let ours = keyed(baseline, by_id)?;
    let mut theirs: HashMap<String, &Answer> = keyed(model, by_id)?.into_iter().collect();
    let total = theirs.len();
    let mut pairs = Vec::new();
    for (position, (key, base)) in ours.iter().enumerate() {
        let Some(other) = theirs.remove(key) else { continue };
        let question = if by_id { key.clone() } else { position.to_string() };
        let asked = questions.and_then(|questions| questions.turns.get(key));
        let turns = match (asked, &base.turns, &other.turns) {
            (_, Some(a), Some(b)) if a != b => {
                return mismatch(format!(
                    "question {question} is another text in {base_file} (row {}) than in {model_file} (row {}): \
                     these aren't answers to one benchmark",
                    base.row, other.row
                ));
            }
            (Some(turns), ..) | (None, Some(turns), _) | (None, None, Some(turns)) => turns.clone(),
            (None, None, None) => {
                return mismatch(match questions {
                    None => format!(
                        "{base_file} holds answers without their questions: name the benchmark's question file with --questions"
                    ),
                    Some(questions) => format!(
                        "{} has no question {question}, which {base_file} answers: it is the question file of another benchmark, \
                         or of another version",
                        questions.path.display()
                    ),
                });
            }
        };
        for (answer, file) in [(base, &baseline.path), (&other, &model.path)] {
            if answer.outputs.len() != turns.len() {
                let problem = format!(
                    "answers {} turns of question {question}, which has {}",
                    answer.outputs.len(),
                    turns.len()
                );
                return Err(Error::row(file, answer.row, problem));
            }
        }
        let (baseline, model) = (base.outputs.clone(), other.outputs.clone());
        pairs.push(Pair { position, question, turns, baseline, model });
    }
    let (without_model, without_base) = (ours.len() - pairs.len(), theirs.len());
    if pairs.is_empty() {
        return mismatch(format!(
            "{base_file} and {model_file} have no question in common: they answer different benchmarks"
        ));
    }
    if missing == Missing::Refuse && without_model + without_base > 0 {
        return mismatch(format!(
            "{model_file} lacks {without_model} of the {} questions that {base_file} answers, and {base_file} lacks \
             {without_base} of the other's {total}: finish the answers, or judge those in common with --common",
            ours.len()
        ));
    }
    Ok(pairs)
}
