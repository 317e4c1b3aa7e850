//! `fpo generate --for BENCHMARK`: a model's answers to a benchmark's questions, in the benchmark's own file.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use fpo_benchmarks::{Answer, AnswerFile, Benchmark, Maker, Question, read_questions};
use fpo_data::{Fingerprint, Message, Preparer, Prompt, Rendering};
use fpo_transformer::{Generation, GenerationOptions, LanguageModel, Precision, Request};

use crate::{
    interrupt,
    loaded::{ModelFolder, PlacementArgs},
    sampling::{Sampling, fingerprint},
    streams::{self, out},
    terminal::reporter,
};

/// A call of the command.
pub struct Job<'a> {
    pub benchmark: Benchmark,
    pub questions: &'a Path,
    pub out: &'a Path,
    pub model: &'a Path,
    pub model_id: Option<String>,
    pub choices: NonZeroUsize,
    pub batch_size: NonZeroUsize,
    pub sampling: &'a Sampling,
    pub placement: &'a PlacementArgs,
}

impl Job<'_> {
    pub fn run(self, folder: &ModelFolder) -> Result<()> {
        let Self { benchmark, out, .. } = self;
        ensure!(
            !streams::is_stdout(out),
            "answers are completed where a call was cut off, so --out has to be a file"
        );
        let placement = self.placement.open()?;
        let options = self.sampling.options(folder, benchmark.max_new_tokens())?;
        let questions = read_questions(self.questions, benchmark)?;
        let model_id = match &self.model_id {
            Some(name) => name.clone(),
            None => name_of(self.model)?,
        };
        let settings = self.settings(folder, &options)?;
        let maker = Maker { model: model_id.clone(), settings };
        let mut file = AnswerFile::open(out, benchmark, questions, maker)?;
        let note = |text: String| reporter().note("answers", text);
        if file.was_cut() {
            note(format!("{}: its last answer was cut off, and is made again", out.display()));
        }
        if file.answered() > 0 {
            note(format!("{}: {} answers in it are kept", out.display(), file.answered()));
        }
        let answering = Answering {
            preparer: folder.preparer(Rendering::Auto)?,
            folder,
            options,
            batch_size: self.batch_size.get(),
            choices: self.choices.get(),
        };
        let conversations = answering
            .conversations(&file, self.sampling.temperature)
            .with_context(|| self.questions.display().to_string())?;
        if !conversations.is_empty() {
            interrupt::continue_with_this_call();
            answering.answer(&folder.load(&placement)?, conversations, &mut file)?;
        }
        file.write()?;
        out!(
            "{} answers of {model_id} to {}: {}",
            file.answered(),
            benchmark.title(),
            out.display()
        )
    }

    /// Everything that an answer depends on beside its question.
    fn settings(&self, folder: &ModelFolder, options: &GenerationOptions) -> Result<Fingerprint> {
        let Self { benchmark, sampling, .. } = self;
        let temperature = match sampling.temperature {
            Some(temperature) => temperature.to_string(),
            None => format!("{}'s", benchmark.title()),
        };
        let precision: Precision = self.placement.precision();
        let settings = folder
            .fingerprint(precision)?
            .with("benchmark", benchmark)
            .with("choices", self.choices)
            .with("temperature", temperature);
        Ok(fingerprint(settings, options))
    }
}

/// The name of a model's folder; of a run's `align/` and `sft/` with the run's before it, because all runs have those.
pub fn name_of(model: &Path) -> Result<String> {
    let whole: PathBuf = model.canonicalize().with_context(|| model.display().to_string())?;
    let name = whole.file_name().with_context(|| {
        format!("{} has no name; give the model one with --model-id", model.display())
    })?;
    let name = name.to_string_lossy();
    let run = whole.parent().filter(|_| ["align", "sft"].contains(&&*name));
    Ok(match run.and_then(Path::file_name) {
        Some(run) => format!("{}-{name}", run.to_string_lossy()),
        None => name.into_owned(),
    })
}

/// One answer to a question, turn by turn.
struct Conversation {
    /// Index of the question.
    question: usize,
    choice: usize,
    temperature: f64,
    /// The most tokens of a turn.
    max_new_tokens: usize,
    messages: Vec<Message>,
    said: Vec<String>,
    /// Tokens of the last answer.
    tokens: usize,
}

/// What answers have in common.
struct Answering<'a> {
    preparer: Preparer<'a>,
    folder: &'a ModelFolder,
    options: GenerationOptions,
    batch_size: usize,
    choices: usize,
}

impl Answering<'_> {
    /// The conversations to be had, none of which the model lacks room for.
    fn conversations(
        &self,
        file: &AnswerFile,
        temperature: Option<f64>,
    ) -> Result<Vec<Conversation>> {
        let (mut conversations, mut shorter) = (Vec::new(), 0);
        let open = file.open_questions();
        for &index in &open {
            let question = &file.questions()[index];
            let max_new_tokens = self.room(question).with_context(|| question.name())?;
            shorter += usize::from(max_new_tokens < self.options.max_new_tokens);
            conversations.extend((0..self.choices).map(|choice| Conversation {
                question: index,
                choice,
                temperature: temperature.unwrap_or(question.temperature),
                max_new_tokens,
                messages: Vec::new(),
                said: Vec::new(),
                tokens: 0,
            }));
        }
        if shorter > 0 {
            let text = format!(
                "the model's {} positions leave an answer fewer than {} tokens in {shorter} of {} questions",
                self.folder.config.max_position_embeddings,
                self.options.max_new_tokens,
                open.len()
            );
            reporter().note("answers", text);
        }
        Ok(conversations)
    }

    /// The most tokens of each answer to a question, so that the model has room for all of its turns.
    fn room(&self, question: &Question) -> Result<usize> {
        let mut asked = 0;
        for turn in &question.turns {
            let prompt = Prompt::Messages(vec![Message::new("user", turn)].into());
            asked += self.preparer.tokenize_prompt(&prompt)?.len();
        }
        let positions = self.folder.config.max_position_embeddings;
        let room = positions.saturating_sub(asked) / question.turns.len();
        ensure!(
            room > 0,
            "its {asked} tokens leave no room for an answer in the model's {positions} positions; leave it out"
        );
        Ok(room.min(self.options.max_new_tokens))
    }

    /// Has all conversations, and writes the file after each batch.
    fn answer(
        &self,
        model: &LanguageModel,
        mut conversations: Vec<Conversation>,
        file: &mut AnswerFile,
    ) -> Result<()> {
        let total = file.questions().len() * self.choices;
        let done = total - conversations.len();
        let mut progress = reporter().begin("answers", "answers", total, done);
        let mut unfinished: BTreeMap<usize, Vec<Vec<String>>> = BTreeMap::new();
        // A batch has one temperature.
        for same in conversations.chunk_by_mut(|a, b| a.temperature == b.temperature) {
            for batch in same.chunks_mut(self.batch_size) {
                self.answer_batch(model, file.questions(), batch)?;
                for conversation in &mut *batch {
                    let question = conversation.question;
                    let choices = unfinished.entry(question).or_default();
                    choices.push(std::mem::take(&mut conversation.said));
                    if choices.len() == self.choices {
                        let choices = unfinished.remove(&question).unwrap_or_default();
                        file.add(question, &Answer { choices, tokens: conversation.tokens }, now());
                    }
                }
                file.write()?;
                progress.advance(batch.len(), "");
            }
        }
        progress.finish(&format!("{total} answers"));
        Ok(())
    }

    /// Asks turn by turn: what was answered becomes a part of the next turn's prompt.
    fn answer_batch(
        &self,
        model: &LanguageModel,
        questions: &[Question],
        batch: &mut [Conversation],
    ) -> Result<()> {
        let temperature = batch.first().map_or(0.0, |conversation| conversation.temperature);
        let options = GenerationOptions { temperature, ..self.options.clone() };
        for turn in 0.. {
            let has_turn = |c: &&mut Conversation| turn < questions[c.question].turns.len();
            let mut asked: Vec<&mut Conversation> = batch.iter_mut().filter(has_turn).collect();
            if asked.is_empty() {
                break;
            }
            let mut requests = Vec::with_capacity(asked.len());
            for conversation in &mut asked {
                let question = &questions[conversation.question];
                conversation.messages.push(Message::new("user", &question.turns[turn]));
                requests.push(self.request(conversation, question, turn)?);
            }
            // Without room there is nothing to ask for: an empty answer, of which the user is told.
            let wanted: Vec<bool> = requests.iter().map(Option::is_some).collect();
            let requests = requests.into_iter().flatten().collect();
            let mut generation = Generation::new(model, requests, &options)?;
            while generation.step()?.is_some() {}
            let mut answers = generation.finish().into_iter();
            for (conversation, wanted) in asked.into_iter().zip(wanted) {
                let answer = if wanted { answers.next() } else { None }.unwrap_or_default();
                let text = self.folder.tokenizer.decode(&answer.tokens, true)?.trim().to_owned();
                conversation.messages.push(Message::new("assistant", &text));
                conversation.said.push(text);
                conversation.tokens = answer.tokens.len();
            }
        }
        Ok(())
    }

    /// What the model is asked in a turn; nothing where the answers before it left no room.
    fn request(
        &self,
        conversation: &Conversation,
        question: &Question,
        turn: usize,
    ) -> Result<Option<Request>> {
        let messages = Prompt::Messages(conversation.messages.clone().into());
        let prompt = self.preparer.tokenize_prompt(&messages).with_context(|| question.name())?;
        let positions = self.folder.config.max_position_embeddings;
        // An answer may be more tokens as a part of a prompt than it was when it was sampled.
        let max_new_tokens =
            conversation.max_new_tokens.min(positions.saturating_sub(prompt.len()));
        if max_new_tokens == 0 {
            reporter().warn(format!(
                "{}: its turn {} has no room in the model's {positions} positions, and gets an empty answer",
                question.name(),
                turn + 1
            ));
            return Ok(None);
        }
        let stream = question.stream(conversation.choice, turn);
        Ok(Some(Request { prompt, stream, max_new_tokens }))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}
