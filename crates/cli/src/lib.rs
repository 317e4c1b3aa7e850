//! The command-line program `fpo`: parses arguments, calls the libraries, prints.
//!
//! # Invariants
//! * A command is one file and one variant of `Command`.
//! * It decides nothing that a library could. What commands share is in a library, or in `loaded` and `tokens`.
//! * It is the only crate that prints, and the only one that enables a backend by default.

mod activations;
mod bench;
mod evaluate;
mod features;
mod generate;
mod json_lines;
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
use fpo_config::recipes;
use fpo_device as device;
use fpo_losses::Method;
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
    Train(train::Train),
    /// Aligns with several methods from the same reference model and prints one table.
    ///
    /// The stages up to the reference cache run once. Aligned models and their metrics on held-out data are written to
    /// compare/METHOD in the run's folder, and the table to compare.html.
    ///
    /// Example: fpo compare --recipe tiny --methods dpo,simpo,fpo
    Compare {
        #[command(flatten)]
        run: train::RunArgs,
        /// Methods, separated by commas [default: those of the FPO paper: dpo,tdpo1,tdpo2,simpo,simpo-kl,fpo].
        #[arg(long, value_delimiter = ',', value_name = "METHODS")]
        methods: Vec<Method>,
    },
    /// Lists the recipes, or prints one as TOML, followed by the recipes it extends.
    ///
    /// A recipe holds the settings of a run for --recipe. `fpo recipes tiny` explains every setting.
    Recipes {
        /// Name of the recipe to print.
        name: Option<String>,
    },
    /// Lists the devices that this binary can use.
    ///
    /// One line per device: its name for --device, its driver, its memory if the driver reports it, the largest tensor that it
    /// can hold, and whether it computes in bfloat16. Only backends compiled into the binary are listed; `cargo xtask fpo --
    /// devices --device cuda` builds a binary with CUDA first.
    Devices {
        /// Lists only the devices of this backend, or only this device, such as cuda or cuda:1.
        #[arg(long, value_name = "NAME")]
        device: Option<String>,
    },
    /// Searches the features of a sparse autoencoder.
    #[command(subcommand)]
    Features(features::Features),
    Generate(generate::Generate),
    Merge(merge::Merge),
    /// Benchmarks a training step or single operations on random data.
    #[command(subcommand)]
    Bench(bench::Bench),
    Score(score::Score),
    Plan(plan::Plan),
    Activations(activations::Activations),
    Reference(reference::Reference),
    Evaluate(evaluate::Evaluate),
    /// Inspects, converts, evaluates and trains sparse autoencoders.
    #[command(subcommand)]
    Sae(sae::Sae),
}

/// Runs the command in the arguments. On error it prints the message with its causes, without a backtrace, and for a failing
/// device also what to do. Panics are bugs.
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
