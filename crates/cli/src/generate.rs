//! `fpo generate`: responses to a prompt or a file of prompts.

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use fpo_data::{Message, Prompt, Rendering, System, Tokenizer, read_prompts};
use fpo_transformer::{
    Generated, GenerationOptions, LanguageModel, generate,
    generate::{check_prompts, generate_with},
};
use serde::Serialize;

use crate::{
    json_lines,
    loaded::{ModelFolder, PlacementArgs},
    streams::{self, out},
    terminal::reporter,
};

/// Generates responses to a prompt or to a file of prompts
///
/// With --prompt the response is printed while it is generated. With --prompts responses are JSON lines, in the
/// order of the file:
///   {"prompt": …, "response": "…", "tokens": …, "stopped": …}
/// `tokens` is the number of generated tokens; `stopped` is true if a stop token ended the response, false if
/// --max-new-tokens did.
///
/// Examples:
///   fpo generate --model runs/mine/align --prompt "Name three birds." --max-new-tokens 128
///   fpo generate --model runs/mine/align --prompts prompts.jsonl --temperature 0.7 --out responses.jsonl
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = AFTER_HELP)]
pub struct Generate {
    /// Folder of the model in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    #[command(flatten)]
    prompts: Prompts,
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
    /// A file of prompts; see below.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    prompts: Option<PathBuf>,
}

#[derive(Args)]
struct Sampling {
    /// Maximum number of tokens per response.
    #[arg(long, default_value_t = 64, value_name = "TOKENS")]
    max_new_tokens: usize,
    /// Sampling temperature; 0 is greedy decoding, 1 samples from the model's own distribution.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f64,
    /// Samples from the K most likely tokens only.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Samples from the smallest set of most likely tokens whose probabilities add up to P; applied after --top-k.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Divides positive logits of tokens that occur in the prompt or in the response so far by FACTOR, and multiplies negative
    /// ones; 1 turns it off.
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    repetition_penalty: f64,
    /// Seed of the sampling; the same seed, prompts and options give the same responses.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// An additional stop token, as written in the vocabulary; can be repeated.
    #[arg(long, value_name = "TOKEN")]
    stop: Vec<String>,
}

const AFTER_HELP: &str = "\
A file of prompts is a .txt file with one prompt per line, or JSON lines (plain or gzip) or Parquet with
`prompt` (a text or a list of messages), `messages` or `text`.

A response ends at EOS, at the end-of-turn token, at any eos_token_id in config.json, or at a --stop token.
Repetition penalty, temperature, top-k and top-p work as in Hugging Face transformers and are applied in this
order. A prompt that leaves too few positions for --max-new-tokens is refused.";

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
        }
        let placement = self.placement.open()?;
        let folder = ModelFolder::open(&self.model)?.with_system(self.system);
        let options = self.sampling.options(&folder)?;
        let prompts = self.prompts.read()?;
        let tokens = self.tokenize(&folder, &prompts)?;
        check_prompts(&folder.config, &tokens, options.max_new_tokens)?;
        let model = folder.load(&placement)?;
        let tokenizer = &folder.tokenizer;
        match &self.prompts.prompt {
            Some(_) => stream(&model, tokenizer, &tokens, &options),
            None => self.respond_to_all(&model, tokenizer, &prompts, &tokens, &options),
        }
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
        prompts: &[Prompt],
        tokens: &[Vec<u32>],
        options: &GenerationOptions,
    ) -> Result<()> {
        let mut progress = reporter().begin("generate", "prompts", prompts.len(), 0);
        let mut lines = Vec::with_capacity(prompts.len());
        let size = self.batch_size.get();
        for (batch, (prompts, tokens)) in prompts.chunks(size).zip(tokens.chunks(size)).enumerate()
        {
            let first_prompt = (batch * size) as u64;
            let options = GenerationOptions { first_prompt, ..options.clone() };
            for (prompt, answer) in prompts.iter().zip(generate(model, tokens, &options)?) {
                let line = line(tokenizer, prompt, &answer)?;
                match &self.out {
                    Some(_) => lines.push(line),
                    None => out!("{}", serde_json::to_string(&line)?)?,
                }
            }
            progress.advance(prompts.len(), "");
        }
        progress.finish(&format!("{} prompts", prompts.len()));
        match &self.out {
            Some(path) => json_lines::write(path, &lines),
            None => Ok(()),
        }
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

impl Sampling {
    fn options(&self, folder: &ModelFolder) -> Result<GenerationOptions> {
        let mut stop_tokens = folder.tokenizer.stop_ids();
        stop_tokens.extend(&folder.config.eos_token_ids);
        for token in &self.stop {
            let id = folder.tokenizer.token_id(token).with_context(|| {
                format!("--stop {token}: not in the vocabulary; a stop must be a single token")
            })?;
            stop_tokens.push(id);
        }
        let options = GenerationOptions {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            first_prompt: 0,
            stop_tokens,
        };
        options.check()?;
        Ok(options)
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
