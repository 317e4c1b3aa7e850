//! The command line.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use fpo_data::{Preparer, Prompt, TemplateChoice, Tokenizer, Truncation};
use fpo_transformer::{GenerationOptions, generate, weights};

use crate::{
    compare, device, recipes,
    run::Run,
    settings::Settings,
    stages::{self, StageName},
};

/// Aligns language models with feature-level constrained preference optimization.
#[derive(Parser)]
#[command(name = "fpo", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the whole pipeline: prepare, sft, sae, reference, align, evaluate, report.
    Train {
        #[command(flatten)]
        run: RunArgs,
        /// Ends after this stage.
        #[arg(long, value_enum, default_value = "report")]
        until: StageName,
    },
    /// Aligns with every method from the same model and prints one table.
    Compare {
        #[command(flatten)]
        run: RunArgs,
    },
    /// Lists the recipes, or prints one with all its settings.
    Recipes {
        /// The recipe to print.
        name: Option<String>,
    },
    /// Lists the devices that this binary was compiled for.
    Devices,
    /// Answers a prompt.
    Generate {
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
        /// Where to compute.
        #[arg(long, default_value = "cpu")]
        device: String,
    },
}

#[derive(Args)]
struct RunArgs {
    /// The settings to start from; `fpo recipes` lists them.
    #[arg(long, default_value = "tiny")]
    recipe: String,
    /// A TOML file whose settings replace the recipe's.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Replaces one setting, such as align.method=dpo; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
    /// The run's folder [default: runs/RECIPE].
    #[arg(long = "run", value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Goes on from the last checkpoint of an interrupted stage.
    #[arg(long)]
    resume: bool,
    /// Where to compute: cpu, cuda, cuda:N, wgpu, vulkan or metal.
    #[arg(long, default_value = "cpu")]
    device: String,
}

impl RunArgs {
    fn open(self) -> Result<Run> {
        let device = device::parse(&self.device)?;
        let settings = Settings::resolve(&self.recipe, self.config.as_deref(), &self.assignments)?;
        let folder = self.folder.unwrap_or_else(|| PathBuf::from("runs").join(&self.recipe));
        Run::open(&folder, settings, device, self.resume)
    }
}

/// Parses the arguments, does what they say, and prints what went wrong: what it was, then what led
/// to it, without a backtrace.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Train { run, until } => stages::run(&run.open()?, until),
        Command::Compare { run } => compare::compare(&run.open()?),
        Command::Recipes { name: Some(name) } => {
            print!("{}", recipes::source(&name)?);
            Ok(())
        }
        Command::Recipes { name: None } => {
            for name in recipes::NAMES {
                let about = recipes::source(name)?.lines().next().unwrap_or_default();
                println!("{name:12} {}", about.trim_start_matches("# "));
            }
            Ok(())
        }
        Command::Devices => {
            println!("{}", device::compiled().join("\n"));
            Ok(())
        }
        Command::Generate { model, prompt, max_new_tokens, temperature, seed, device } => {
            let device = device::parse(&device)?;
            let tokenizer = Tokenizer::load(&model)?;
            let model = weights::load(&model, &device)?;
            let template = TemplateChoice::from(tokenizer.chat_template()?);
            let most = model.config().max_position_embeddings;
            let truncation = Truncation { max_length: most, max_prompt_length: None };
            let preparer = Preparer::new(&tokenizer, &template, truncation)?;
            let tokens = preparer.tokenize_prompt(&Prompt::Text(prompt))?;
            let options = GenerationOptions {
                max_new_tokens,
                temperature,
                seed,
                stop_tokens: tokenizer.stop_ids(),
                ..GenerationOptions::default()
            };
            let answers = generate(&model, &[tokens], &options)?;
            let answer = answers.first().context("one prompt has one answer")?;
            println!("{}", tokenizer.decode(&answer.tokens, true)?);
            Ok(())
        }
    }
}
