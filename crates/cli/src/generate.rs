//! `fpo generate`: responses to a prompt, a file of prompts or a benchmark's questions.

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use fpo_benchmarks::Benchmark;
use fpo_data::{
    Message, Prompt, Rendering, System, Tokenizer, binding::hash_prompts, read_prompts,
};
use fpo_transformer::{
    Generated, GenerationOptions, LanguageModel, generate,
    generate::{check_prompts, generate_with},
};
use serde::Serialize;

use crate::{
    answers::Job,
    kept::Kept,
    loaded::{ModelFolder, PlacementArgs},
    sampling::{Sampling, fingerprint},
    streams::{self, out},
    terminal::reporter,
};

/// Generates responses to a prompt, to a file of prompts, or to a benchmark's questions
///
/// With --prompt the response is printed while it is generated. With --prompts responses are JSON lines, in the
/// order of the file:
///   {"prompt": …, "response": "…", "tokens": …, "stopped": …}
/// `tokens` is the number of generated tokens; `stopped` is true if a stop token ended the response, false if
/// --max-new-tokens did. With --out, a call that was interrupted keeps what it has in OUT.part, and the same call goes on.
///
/// With --for, --prompts is the benchmark's own file of questions and --out the file of answers that the benchmark judges.
///
/// Examples:
///   fpo generate --model runs/mine/align --prompt "Name three birds." --max-new-tokens 128
///   fpo generate --model runs/mine/align --prompts prompts.jsonl --temperature 0.7 --out responses.jsonl
///   fpo generate --model runs/mine/align --for mt-bench --prompts question.jsonl --out mine.jsonl --model-id mine
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = AFTER_HELP)]
pub struct Generate {
    /// Folder of the model in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    #[command(flatten)]
    prompts: Prompts,
    /// Answers the questions of a benchmark: alpaca-eval, arena-hard, mt-bench or ifeval; see below.
    #[arg(
        long = "for",
        value_name = "BENCHMARK",
        requires_all = ["prompts", "out"],
        conflicts_with_all = ["rendering", "raw"]
    )]
    benchmark: Option<Benchmark>,
    /// With --for: the model name to write with the answers [default: the name of the model's folder, RUN-align for a run's].
    #[arg(long, value_name = "NAME", requires = "benchmark")]
    model_id: Option<String>,
    /// With --for mt-bench: answers to each question, each sampled on its own [default: 1].
    #[arg(long, value_name = "ANSWERS", requires = "benchmark")]
    choices: Option<NonZeroUsize>,
    /// The JSON lines file to write [default: standard output].
    #[arg(long, value_name = "FILE", requires = "prompts", value_parser = streams::output)]
    out: Option<PathBuf>,
    /// Prompts per generation batch.
    #[arg(long, default_value = "16", value_name = "PROMPTS")]
    batch_size: NonZeroUsize,
    /// Which text prompts go through the chat template: auto (those that haven't been through it yet, if the tokenizer has
    /// one), template (all) or none. Lists of messages always do.
    #[arg(long, default_value_t, value_name = "auto|template|none", conflicts_with = "raw")]
    rendering: Rendering,
    /// What becomes of a system message: keep (the chat template gets it, and may refuse it) or fold (it becomes the start of the
    /// first user turn).
    #[arg(long, default_value_t, value_name = "keep|fold")]
    system: System,
    /// The old name of --rendering none.
    #[arg(long, hide = true)]
    raw: bool,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    placement: PlacementArgs,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Prompts {
    /// The prompt; it becomes a user turn if the tokenizer has a chat template.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A file of prompts, or with --for of questions; see below.
    #[arg(long, visible_alias = "questions", value_name = "FILE", value_parser = streams::input)]
    prompts: Option<PathBuf>,
}

/// The most tokens of a response unless told otherwise.
const MAX_NEW_TOKENS: usize = 64;

const AFTER_HELP: &str = "\
A file of prompts is a .txt file with one prompt per line, or JSON lines (plain or gzip) or Parquet with
`prompt` (a text or a list of messages), `messages` or `text`.

A response ends at EOS, at the end-of-turn token, at an eos_token_id of generation_config.json (of config.json if that
has none), or at a --stop token.
Repetition penalty, temperature, top-k and top-p work as in Hugging Face transformers and are applied in this
order. A prompt that leaves too few positions for --max-new-tokens is refused.

With --for, each benchmark is read, answered and written as its own code does it:
  alpaca-eval  alpaca_eval.json: instruction, dataset      temperature 0.7, 2048 tokens
  arena-hard   question.jsonl: uid, prompt                 greedy, 4096 tokens
  mt-bench     question.jsonl: question_id, turns          temperature by category, 1024 tokens a turn
  ifeval       input_data.jsonl: key, prompt               greedy, 1280 tokens
Questions are user turns of the chat template; MT-Bench's second turn follows the answer to the first. White space around an
answer is removed. Answers are cut short where the model runs out of positions. token_len in Arena-Hard's file counts tokens
of the model's own tokenizer. An answer depends on the seed and the question, not on the batch or on earlier questions.
--out is written after each batch. If it was interrupted, the same call keeps the answers in it and adds the missing ones.
Answers of another model or other settings are refused; OUT.settings.json records both.";

/// A line of the output.
#[derive(Serialize)]
struct Line<'a> {
    prompt: PromptValue<'a>,
    response: String,
    tokens: usize,
    stopped: bool,
}

/// A prompt as given in the input.
#[derive(Serialize)]
#[serde(untagged)]
enum PromptValue<'a> {
    Text(&'a str),
    Messages(&'a [Message]),
}

impl Generate {
    pub fn run(self) -> Result<()> {
        if let (Some(out), Some(prompts)) = (&self.out, &self.prompts.prompts) {
            streams::keep_apart(out, &[prompts, &self.model])?;
            streams::check_file(out)?;
        }
        let folder = ModelFolder::open(&self.model)?.with_system(self.system);
        // clap leaves out what --out and --for require where --prompt stands in its place.
        ensure!(
            self.out.is_none() || self.prompts.prompts.is_some(),
            "--out is for the responses to --prompts; that to --prompt is printed"
        );
        if let Some(benchmark) = self.benchmark {
            let (Some(questions), Some(out)) = (&self.prompts.prompts, &self.out) else {
                bail!(
                    "--for needs the benchmark's questions (--prompts) and a file for the answers (--out)"
                );
            };
            ensure!(
                self.choices.is_none() || benchmark == Benchmark::MtBench,
                "--choices: {}'s answers have no choices; it is for mt-bench",
                benchmark.title()
            );
            let job = Job {
                benchmark,
                questions,
                out,
                model: &self.model,
                model_id: self.model_id,
                choices: self.choices.unwrap_or(NonZeroUsize::MIN),
                batch_size: self.batch_size,
                sampling: &self.sampling,
                placement: &self.placement,
            };
            return job.run(&folder);
        }
        let placement = self.placement.open()?;
        let options = self.sampling.options(&folder, MAX_NEW_TOKENS)?;
        let prompts = self.prompts.read()?;
        let tokens = self.tokenize(&folder, &prompts)?;
        check_prompts(&folder.config, &tokens, options.max_new_tokens)?;
        if self.prompts.prompt.is_some() {
            let model = folder.load(&placement)?;
            return stream(&model, &folder.tokenizer, &tokens, &options);
        }
        let kept = match &self.out {
            None => None,
            Some(out) => Some(Kept::open(out, "generate", prompts.len(), || {
                let settings = folder.fingerprint(self.placement.precision())?;
                Ok(fingerprint(settings, &options)
                    .with("temperature", options.temperature)
                    .with("prompts", hash_prompts(&tokens)))
            })?),
        };
        let model = folder.load(&placement)?;
        self.respond_to_all(&model, &folder.tokenizer, kept, &prompts, &tokens, &options)
    }

    fn tokenize(&self, folder: &ModelFolder, prompts: &[Prompt]) -> Result<Vec<Vec<u32>>> {
        let rendering = match self.raw {
            true => Rendering::None,
            false => self.rendering,
        };
        let preparer = folder.preparer(rendering)?;
        let tokens = prompts.iter().enumerate().map(|(index, prompt)| {
            preparer.tokenize_prompt(prompt).with_context(|| format!("prompt {index}"))
        });
        tokens.collect()
    }

    fn respond_to_all(
        &self,
        model: &LanguageModel,
        tokenizer: &Tokenizer,
        mut kept: Option<Kept>,
        prompts: &[Prompt],
        tokens: &[Vec<u32>],
        options: &GenerationOptions,
    ) -> Result<()> {
        let done = kept.as_ref().map_or(0, Kept::count);
        let mut progress = reporter().begin("generate", "prompts", prompts.len(), done);
        let size = self.batch_size.get();
        for (batch, (prompts, tokens)) in prompts.chunks(size).zip(tokens.chunks(size)).enumerate()
        {
            let first = batch * size;
            let is_kept = |kept: &Kept| (first..first + prompts.len()).all(|row| kept.has(row));
            if kept.as_ref().is_some_and(is_kept) {
                continue;
            }
            let options = GenerationOptions { first_prompt: first as u64, ..options.clone() };
            let answers = generate(model, tokens, &options)?;
            let lines = prompts.iter().zip(&answers);
            let lines = lines.map(|(prompt, answer)| line(tokenizer, prompt, answer));
            let lines: Vec<Line> = lines.collect::<Result<_>>()?;
            match &mut kept {
                Some(kept) => kept.add((first..).zip(lines))?,
                None => {
                    for line in lines {
                        out!("{}", serde_json::to_string(&line)?)?;
                    }
                }
            }
            progress.advance(prompts.len(), "");
        }
        progress.finish(&format!("{} prompts", prompts.len()));
        kept.map_or(Ok(()), Kept::finish)
    }
}

impl Prompts {
    fn read(&self) -> Result<Vec<Prompt>> {
        match (&self.prompt, &self.prompts) {
            (Some(text), _) => Ok(vec![Prompt::Text(text.clone())]),
            (None, Some(path)) => Ok(read_prompts(path)?),
            (None, None) => bail!("--prompt or --prompts is required"),
        }
    }
}

/// Prints the response to a single prompt while it is generated.
fn stream(
    model: &LanguageModel,
    tokenizer: &Tokenizer,
    tokens: &[Vec<u32>],
    options: &GenerationOptions,
) -> Result<()> {
    let mut text = tokenizer.text_stream();
    let mut outcome = Ok(());
    generate_with(model, tokens, options, |_, token| {
        if outcome.is_ok() {
            outcome = text
                .push(token)
                .map_err(Into::into)
                .and_then(|piece| streams::write(piece.as_bytes()));
        }
    })?;
    outcome?;
    streams::write((text.finish()? + "\n").as_bytes())
}

fn line<'a>(tokenizer: &Tokenizer, prompt: &'a Prompt, answer: &Generated) -> Result<Line<'a>> {
    Ok(Line {
        prompt: match prompt {
            Prompt::Text(text) => PromptValue::Text(text),
            Prompt::Messages(conversation) => PromptValue::Messages(&conversation.messages),
        },
        response: tokenizer.decode(&answer.tokens, true)?,
        tokens: answer.tokens.len(),
        stopped: answer.stopped,
    })
}
