//! `fpo generate`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use fpo_data::Prompt;
use fpo_transformer::{GenerationOptions, generate};

use super::loaded::{DeviceArg, Loaded};

#[derive(Args)]
pub struct Generate {
    /// A model's folder in Hugging Face's layout, with its tokenizer.
    #[arg(long)]
    model: PathBuf,
    /// The prompt; a user's message if the tokenizer has a chat template.
    #[arg(long)]
    prompt: String,
    /// At most so many tokens.
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Seeds the sampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArg,
}

impl Generate {
    pub fn run(self) -> Result<()> {
        let loaded = Loaded::open(&self.model, &self.device.open()?)?;
        let tokens = loaded.preparer()?.tokenize_prompt(&Prompt::Text(self.prompt))?;
        let options = GenerationOptions {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            seed: self.seed,
            stop_tokens: loaded.tokenizer.stop_ids(),
            ..GenerationOptions::default()
        };
        let answers = generate(&loaded.model, &[tokens], &options)?;
        let answer = answers.first().context("one prompt has one answer")?;
        println!("{}", loaded.tokenizer.decode(&answer.tokens, true)?);
        Ok(())
    }
}
