//! Answer files: whole at any time, completed where a call was cut off.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use fpo_files::{Fingerprint, atomic};
use serde_json::{Map, Value};

use crate::{
    Benchmark, Error, Question,
    rows::{self, Answer},
    text::{self, Row},
};

/// The largest answer file that is completed, in MiB.
const MAX_FILE: u64 = 1024;
/// The largest description of settings, in bytes.
const MAX_SETTINGS: u64 = 1 << 20;

/// Who answers, and how.
#[derive(Debug, Clone, Default)]
pub struct Maker {
    /// The name that the answers bear.
    pub model: String,
    /// Everything that the answers depend on beside the questions: weights, template, sampling.
    pub settings: Fingerprint,
}

/// A model's answers to a benchmark's questions, in the file's own format and in the order of the questions.
///
/// The file stays as the benchmark has it, so what its answers depend on lies beside it, in `FILE.settings.json`.
#[derive(Debug)]
pub struct AnswerFile {
    path: PathBuf,
    benchmark: Benchmark,
    questions: Vec<Question>,
    maker: Maker,
    /// One per question, once it is answered.
    rows: Vec<Option<Map<String, Value>>>,
    cut: bool,
}

impl AnswerFile {
    /// Begins a file of answers, or continues one: answers in it are kept as they are, and one that is cut off at its end is
    /// dropped.
    ///
    /// # Errors
    /// Answers that are of another model, made under other settings ([`Error::Changed`]) or to other questions: they are left
    /// alone.
    pub fn open(
        path: &Path,
        benchmark: Benchmark,
        questions: Vec<Question>,
        maker: Maker,
    ) -> Result<Self, Error> {
        let rows = vec![None; questions.len()];
        let path = path.to_owned();
        let mut file = Self { path, benchmark, questions, maker, rows, cut: false };
        let found = match file.path.exists() {
            true => text::read(&file.path, MAX_FILE, "answers")?,
            false => text::Rows { rows: Vec::new(), cut: false },
        };
        file.cut = found.cut;
        if !found.rows.is_empty() {
            file.check_settings()?;
        }
        for Row { place, object } in found.rows {
            if let Err(message) = file.keep(object) {
                return Err(Error::Row { path: file.path, place, message });
            }
        }
        Ok(file)
    }

    /// Indexes of the questions without an answer, in order.
    pub fn open_questions(&self) -> Vec<usize> {
        (0..self.rows.len()).filter(|&index| self.rows[index].is_none()).collect()
    }

    /// Questions with an answer.
    pub fn answered(&self) -> usize {
        self.rows.iter().flatten().count()
    }

    /// Whether an answer at the end of the file was cut off, and dropped.
    pub fn was_cut(&self) -> bool {
        self.cut
    }

    /// The questions.
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// Adds the answer to a question. `time` is in seconds since 1970.
    ///
    /// # Panics
    /// If there is no question of this index.
    pub fn add(&mut self, index: usize, answer: &Answer, time: f64) {
        let Maker { model, settings } = &self.maker;
        let row = rows::row(&self.questions[index], answer, model, &settings.hash(), time);
        self.rows[index] = Some(row);
    }

    /// Writes all answers so far, and before the first of them what they depend on.
    ///
    /// # Errors
    /// I/O errors; the file is then as it was.
    pub fn write(&self) -> Result<(), Error> {
        let settings =
            serde_json::to_string_pretty(&self.maker.settings.0).unwrap_or_default() + "\n";
        let beside = settings_of(&self.path);
        if fs::read_to_string(&beside).ok().as_ref() != Some(&settings) {
            let write = |file: &mut io::BufWriter<fs::File>| -> Result<(), Error> {
                atomic::context(&beside, "write", file.write_all(settings.as_bytes()))?;
                Ok(())
            };
            atomic::write_file(&beside, write)?;
        }
        let [before, between, after] = match self.benchmark {
            Benchmark::AlpacaEval => ["[\n", ",\n", "\n]\n"],
            Benchmark::ArenaHard | Benchmark::MtBench | Benchmark::IfEval => ["", "\n", "\n"],
        };
        let rows: Vec<String> =
            self.rows.iter().flatten().map(|row| Value::from(row.clone()).to_string()).collect();
        atomic::write_file(&self.path, |file| -> Result<(), Error> {
            let text = [before, &rows.join(between), after].concat();
            atomic::context(&self.path, "write", file.write_all(text.as_bytes()))?;
            Ok(())
        })
    }

    fn check_settings(&self) -> Result<(), Error> {
        let (path, settings) = (self.path.clone(), settings_of(&self.path));
        if !settings.exists() {
            return Err(Error::NoSettings { path, settings });
        }
        let then = read_settings(&settings)?;
        match self.maker.settings.changes(&then) {
            changes if changes.is_empty() => Ok(()),
            changes => Err(Error::Changed { path, changes }),
        }
    }

    /// Takes over a row of the file; the message says why it can't be.
    fn keep(&mut self, row: Map<String, Value>) -> Result<(), String> {
        let title = self.benchmark.title();
        if let Some(key) = rows::keys(self.benchmark).iter().find(|key| !row.contains_key(**key)) {
            return Err(format!(
                "this is no answer to {title}: it has no `{key}`; choose another --out"
            ));
        }
        let model = rows::model(self.benchmark, &row);
        if model.is_some_and(|model| model != self.maker.model) {
            return Err(format!(
                "this is an answer of {}, not of {}; choose another --out or --model-id",
                model.unwrap_or_default(),
                self.maker.model
            ));
        }
        // Questions without a number may stand there twice: the first that is still open.
        let mut asked = self.questions.iter().zip(&self.rows).enumerate();
        let Some((index, (question, _))) =
            asked.find(|(_, (question, row_of))| row_of.is_none() && rows::answers(&row, question))
        else {
            return Err("no question, or one that is answered already, belongs to this answer; \
                        is it to another file of questions? Choose another --out"
                .into());
        };
        let expected = rows::answer_id(question, &self.maker.settings.hash());
        if rows::id(&row).is_some_and(|id| id != expected) {
            return Err(format!(
                "this answers {} as it was asked before, or under other settings; choose another --out",
                question.name()
            ));
        }
        self.rows[index] = Some(row);
        Ok(())
    }
}

fn settings_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".settings.json");
    path.with_file_name(name)
}

fn read_settings(path: &Path) -> Result<Fingerprint, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(MAX_SETTINGS).read_to_end(&mut text).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: path.to_owned(),
        place: "the settings of its answers".into(),
        source,
    })
}
