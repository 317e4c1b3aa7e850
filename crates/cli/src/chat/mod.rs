//! `fpo chat`: a conversation in the terminal with a model, or with two that answer the same.

mod columns;
mod input;
mod side;

use std::{collections::BTreeSet, io::Write, path::PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use fpo_data::{System, atomic};
use fpo_transformer::Generation;
use serde_json::json;

use crate::{
    answers::name_of,
    interrupt::Answering,
    loaded::PlacementArgs,
    sampling::Sampling,
    streams::{self, message, say},
};
use columns::Columns;
use input::{Input, Line};
use side::Side;

/// Talks with a model in the terminal, or with two models: before and after
///
/// Each line is a message; the answer is printed while it is generated. With a second --model both answer, side by side where the
/// terminal is wide enough, else one under the other, and each continues its own conversation.
///
/// Examples:
///   fpo chat --model runs/mine/align
///   fpo chat --model runs/mine/sft --model runs/mine/align --temperature 0.7
///   printf 'Hello.\nAnd again?\n' | fpo chat --model runs/mine/align
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = AFTER_HELP)]
pub struct Chat {
    /// Folder of a model in Hugging Face's layout, with its tokenizer; once or twice.
    #[arg(long, value_name = "FOLDER", required = true)]
    model: Vec<PathBuf>,
    /// What becomes of a system message: keep (the chat template gets it, and may refuse it) or fold (it becomes the start of the
    /// first user turn).
    #[arg(long, default_value_t, value_name = "keep|fold")]
    system: System,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    placement: PlacementArgs,
}

/// The most tokens of an answer unless told otherwise.
const MAX_NEW_TOKENS: usize = 512;

macro_rules! commands {
    () => {
        "  /system TEXT  sets the system message; without a text there is none
  /reset        forgets the conversation, but not the system message
  /save FILE    writes the conversation as JSON lines, one per model: {\"model\": …, \"messages\": […]}
  /help         lists these commands
  /quit         ends, as Ctrl-D does
Ctrl-C stops an answer; what was said of it stays. A message that begins with / is written with //."
    };
}

const COMMANDS: &str = commands!();

const AFTER_HELP: &str = concat!(
    "Commands of a conversation:\n",
    commands!(),
    "

The whole conversation is the prompt of each answer, through the model's chat template; a model without one gets
\\n\\nHuman: … \\n\\nAssistant: …. Where it no longer fits into the model's positions, the oldest turns are dropped, never the
system message. The same messages, seed and options give the same answers.
`rlwrap fpo chat …` adds a history and the editing of lines. What isn't typed is read as one message a line; the first that
can't be answered then ends the program."
);

/// The conversation.
struct Talk {
    sides: Vec<Side>,
    system: Option<String>,
    /// Messages so far, also those that were forgotten: each is answered from random numbers of its own.
    asked: u64,
    /// Files that this conversation was written to, which it may write again.
    saved: BTreeSet<PathBuf>,
}

impl Chat {
    pub fn run(self) -> Result<()> {
        ensure!(self.model.len() <= 2, "--model: {} models; one or two can talk", self.model.len());
        let placement = self.placement.open()?;
        let mut names = self.model.iter().map(|path| name_of(path)).collect::<Result<Vec<_>>>()?;
        if names.len() == 2 && names[0] == names[1] {
            names = self.model.iter().map(|path| path.display().to_string()).collect();
        }
        let sides = self.model.iter().zip(names).map(|(path, name)| {
            Side::open(path, name, &placement, self.system, &self.sampling, MAX_NEW_TOKENS)
        });
        let sides = sides.collect::<Result<Vec<_>>>()?;
        let mut talk = Talk { sides, system: None, asked: 0, saved: BTreeSet::new() };
        let input = Input::open();
        if input.is_typed() {
            let names: Vec<&str> = talk.sides.iter().map(|side| side.name.as_str()).collect();
            say!("{}; /help lists the commands, Ctrl-D ends", names.join(" and "));
        }
        while let Some(line) = input.next()? {
            match talk.hear(line, input) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if input.is_typed() && !streams::is_closed_pipe(&error) => {
                    say!("{}", message(&error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Talk {
    /// Does what a line says; whether the conversation goes on.
    fn hear(&mut self, line: Line, input: Input) -> Result<bool> {
        match line {
            Line::Message(text) => self.answer(&text, input)?,
            Line::Reset => self.sides.iter_mut().for_each(Side::reset),
            Line::System(text) => self.system = (!text.is_empty()).then_some(text),
            Line::Save(path) => self.save(path)?,
            Line::Help => say!("{COMMANDS}"),
            Line::Unknown(word) => {
                ensure!(
                    input.is_typed(),
                    "there is no command {word}; a message that begins with / is written with //"
                );
                say!("there is no command {word}; these are there:\n{COMMANDS}");
            }
            Line::Quit => return Ok(false),
        }
        Ok(true)
    }

    /// What all models answer to a message.
    fn answer(&mut self, text: &str, input: Input) -> Result<()> {
        self.asked += 1;
        let (system, stream) = (self.system.as_deref(), self.asked - 1);
        let mut requests = Vec::with_capacity(self.sides.len());
        for side in &mut self.sides {
            requests.push(side.ask(text, system, stream));
        }
        if requests.iter().any(Result::is_err) {
            self.sides.iter_mut().for_each(Side::take_back);
            return requests.into_iter().collect::<Result<Vec<_>>>().map(drop);
        }
        let requests = requests.into_iter().collect::<Result<Vec<_>>>()?;
        let answering = Answering::begin();
        let said = match (&self.sides[..], input.columns().and_then(Columns::fit)) {
            ([left, right], Some(columns)) => beside([left, right], requests, columns, &answering),
            (sides, _) => under(sides, requests, &answering),
        };
        match said {
            Ok(said) => {
                let mut heard = self.sides.iter_mut().zip(said);
                heard.try_for_each(|(side, said)| side.hear_itself(&said))
            }
            Err(error) => {
                self.sides.iter_mut().for_each(Side::take_back);
                Err(error)
            }
        }
    }

    fn save(&mut self, path: PathBuf) -> Result<()> {
        ensure!(
            !path.exists() || self.saved.contains(&path),
            "{} exists already; choose another name",
            path.display()
        );
        atomic::write_file(&path, |file| -> Result<()> {
            for side in &self.sides {
                let messages = side.messages(self.system.as_deref());
                writeln!(file, "{}", json!({ "model": side.name, "messages": messages }))?;
            }
            Ok(())
        })?;
        say!("saved to {}", path.display());
        self.saved.insert(path);
        Ok(())
    }
}

/// Answers one after the other, each as it comes.
fn under(
    sides: &[Side],
    requests: Vec<fpo_transformer::Request>,
    answering: &Answering,
) -> Result<Vec<Vec<u32>>> {
    let mut said = Vec::with_capacity(sides.len());
    for (side, request) in sides.iter().zip(requests) {
        if sides.len() > 1 {
            streams::write(format!("{}:\n", side.name).as_bytes())?;
        }
        let mut generation = Generation::new(side.model(), vec![request], &side.options)?;
        let mut text = side.text_stream();
        while !answering.is_stopped()
            && let Some(tokens) = generation.step()?
        {
            for (_, token) in tokens {
                streams::write(columns::printable(&text.push(token)?).as_bytes())?;
            }
        }
        streams::write((columns::printable(&text.finish()?) + "\n").as_bytes())?;
        if sides.len() > 1 {
            streams::write(b"\n")?;
        }
        said.push(generation.finish().pop().unwrap_or_default().tokens);
    }
    Ok(said)
}

/// Both answers at the same time, in two columns.
fn beside(
    sides: [&Side; 2],
    requests: Vec<fpo_transformer::Request>,
    mut columns: Columns,
    answering: &Answering,
) -> Result<Vec<Vec<u32>>> {
    let mut generations = Vec::with_capacity(2);
    for (side, request) in sides.into_iter().zip(requests) {
        generations.push(Generation::new(side.model(), vec![request], &side.options)?);
    }
    let mut texts = sides.map(|side| Some(side.text_stream()));
    streams::write(columns.heading(sides.map(|side| side.name.as_str())).as_bytes())?;
    while !columns.is_done() {
        for (index, generation) in generations.iter_mut().enumerate() {
            let Some(text) = &mut texts[index] else { continue };
            let next = if answering.is_stopped() { None } else { generation.step()? };
            match next {
                Some(tokens) => {
                    for (_, token) in tokens {
                        columns.push(index, &text.push(token)?);
                    }
                }
                None => {
                    let rest =
                        texts[index].take().map_or(Ok(String::new()), |text| text.finish())?;
                    columns.push(index, &rest);
                    columns.end(index);
                }
            }
        }
        streams::write(columns.rows().as_bytes())?;
    }
    let said = generations.into_iter().map(|generation| generation.finish().pop());
    Ok(said.map(|answer| answer.unwrap_or_default().tokens).collect())
}
