//! The program `fpo`: parses its arguments, calls the libraries, prints.
//!
//! # Invariants
//! * A command is one file, and its line in [`main`]'s list of commands.
//! * Decides nothing that a library could: what two commands share is in a library, or in `loaded` and `tokens`.
//! * The only crate that prints, and the only one that turns a backend on.

mod activations;
mod bench;
mod evaluate;
mod features;
mod generate;
mod loaded;
mod merge;
mod plan;
mod reference;
mod sae;
mod score;
mod terminal;
mod tokens;
mod train;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use fpo_losses::Method;

use fpo_config::recipes;
use fpo_device as device;
use fpo_trainer::compare;

/// Aligns language models with feature-level constrained preference optimization.
#[derive(Parser)]
#[command(name = "fpo", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the whole pipeline: prepare, sft, sae, reference, align, evaluate, report.
    Train(train::Train),
    /// Aligns with several methods from the same model and prints one table.
    Compare {
        #[command(flatten)]
        run: train::RunArgs,
        /// The methods, separated by commas [default: those of the FPO paper].
        #[arg(long, value_delimiter = ',')]
        methods: Vec<Method>,
    },
    /// Lists the recipes, or prints one, followed by those that it extends.
    Recipes {
        /// The recipe to print.
        name: Option<String>,
    },
    /// Lists the devices that are there, of the kinds that this binary was compiled for: what `--device` calls each, its driver,
    /// its memory where the driver tells, the largest tensor that it holds, and whether it computes in bfloat16.
    ///
    /// `cargo xtask fpo -- devices --device cuda` compiles the kind in first.
    Devices {
        /// Lists those of this kind alone, or the one of this number, such as cuda or cuda:1.
        #[arg(long, value_name = "NAME")]
        device: Option<String>,
    },
    /// Features of an autoencoder by what they say.
    #[command(subcommand)]
    Features(features::Features),
    Generate(generate::Generate),
    /// Makes an adapter part of its model's weights.
    Merge(merge::Merge),
    /// Measures time and memory.
    #[command(subcommand)]
    Bench(bench::Bench),
    Score(score::Score),
    Plan(plan::Plan),
    Activations(activations::Activations),
    Reference(reference::Reference),
    Evaluate(evaluate::Evaluate),
    /// Sparse autoencoders: looks at files, converts, encodes, trains, measures.
    #[command(subcommand)]
    Sae(sae::Sae),
}

/// Parses the arguments, does what they say, and prints what went wrong: what it was, then what led
/// to it, without a backtrace. So it does where a device fails; bugs panic.
pub fn main() -> ExitCode {
    device::silence();
    match device::guard(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(failure) = error.downcast_ref::<device::DeviceFailure>() {
                eprintln!("  {}", failure.what_to_do());
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Train(train) => train.run(),
        Command::Compare { run, methods } => {
            let methods = if methods.is_empty() { &Method::PAPER[..] } else { &methods };
            let (table, page) = compare::compare(&run.open()?, methods)?;
            println!("{}\npage  {}", table.terminal(), page.display());
            Ok(())
        }
        Command::Recipes { name: Some(name) } => {
            print!("{}", recipes::chain(&name)?.join("\n"));
            Ok(())
        }
        Command::Recipes { name: None } => {
            for name in recipes::names() {
                let about = recipes::source(name)?.lines().next().unwrap_or_default();
                println!("{name:20} {}", about.trim_start_matches("# "));
            }
            Ok(())
        }
        Command::Devices { device } => {
            let listed = match device {
                None => device::list(),
                Some(name) => device::list_named(&name)?,
            };
            for device::Listed { name, about } in listed {
                println!("{name:<10}{about}");
            }
            Ok(())
        }
        Command::Features(features) => features.run(),
        Command::Generate(generate) => generate.run(),
        Command::Merge(merge) => merge.run(),
        Command::Bench(bench) => bench.run(),
        Command::Score(score) => score.run(),
        Command::Plan(plan) => plan.run(),
        Command::Activations(activations) => activations.run(),
        Command::Reference(reference) => reference.run(),
        Command::Evaluate(evaluate) => evaluate.run(),
        Command::Sae(sae) => sae.run(),
    }
}
