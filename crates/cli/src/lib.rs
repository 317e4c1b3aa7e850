//! The command-line program `fpo`: parses arguments, calls the libraries, prints.
//!
//! # Invariants
//! * A command is one file and one variant of `Command`.
//! * It decides nothing that a library could. What commands share is in a library, or in `loaded` and `tokens`.
//! * It is the only crate that prints, and the only one that enables a backend by default.

mod activations;
mod answers;
mod bench;
mod chat;
mod data;
mod dry_run;
mod evaluate;
mod features;
mod generate;
mod interrupt;
mod json_lines;
#[cfg(feature = "judge")]
mod judge;
mod kept;
mod loaded;
mod merge;
mod plan;
mod reference;
mod report;
mod sae;
mod sampling;
mod score;
mod settings;
mod streams;
mod study;
mod terminal;
mod tokens;
mod train;
mod version;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use fpo_config::recipes;
use fpo_device as device;
use fpo_losses::Method;
use fpo_trainer::compare;

use streams::{out, say};
use terminal::Verbosity;

/// Aligns language models with feature-level constrained preference optimization.
#[derive(Parser)]
#[command(name = "fpo", version = version::SHORT, long_version = version::long())]
struct Cli {
    /// Reports nothing but warnings and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Prints progress as a line every few seconds, names the device, and lists each cause of an error on its own line.
    #[arg(short, long, global = true)]
    verbose: bool,
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
    /// A recipe holds the settings of a run for --recipe. `fpo recipes tiny` explains every setting, as does
    /// `fpo train --help-settings`.
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
    /// The built-in dataset as files.
    #[command(subcommand)]
    Data(data::Data),
    /// Prints a shell's completions of commands and options.
    ///
    /// Example for bash: fpo completions bash > ~/.local/share/bash-completion/completions/fpo
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Searches the features of a sparse autoencoder, and shows how alignment changed them.
    #[command(subcommand)]
    Features(features::Features),
    Generate(generate::Generate),
    #[cfg(feature = "judge")]
    Judge(judge::Judge),
    Chat(chat::Chat),
    Merge(merge::Merge),
    /// Benchmarks a training step or single operations on random data.
    #[command(subcommand)]
    Bench(bench::Bench),
    Score(score::Score),
    Plan(plan::Plan),
    Activations(activations::Activations),
    Reference(reference::Reference),
    Report(report::Report),
    Evaluate(evaluate::Evaluate),
    /// Inspects, converts, evaluates and trains sparse autoencoders.
    #[command(subcommand)]
    Sae(sae::Sae),
    Study(study::Study),
    Watch(watch::Watch),
}

/// Runs the command in the arguments. On error it prints the message with its causes, without a backtrace, and for a failing
/// device also what to do. Panics are bugs.
pub fn main() -> ExitCode {
    device::silence();
    interrupt::listen();
    let code = match device::guard(run) {
        Ok(code) => code,
        Err(error) => failed(&error),
    };
    streams::clean();
    code
}

fn failed(error: &anyhow::Error) -> ExitCode {
    if streams::is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    if error.is::<device::interrupt::Interrupted>() {
        say!("{}", interrupt::advice());
        return ExitCode::from(interrupt::EXIT_CODE);
    }
    match terminal::verbosity() {
        Verbosity::Verbose => {
            say!("error: {error}");
            error.chain().skip(1).for_each(|cause| say!("  because: {cause}"));
        }
        _ => say!("error: {}", streams::message(error)),
    }
    if let Some(failure) = error.downcast_ref::<device::DeviceFailure>() {
        say!("  {}", failure.what_to_do());
    }
    ExitCode::FAILURE
}

fn run() -> Result<ExitCode> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are output like any other; clap itself ignores that it can't be written.
        Err(message) if !message.use_stderr() => {
            message
                .print()
                .map_err(|error| anyhow::Error::from(error).context("standard output"))?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(message) => {
            let _ = message.print();
            return Ok(ExitCode::from(2));
        }
    };
    terminal::set_verbosity(match (cli.quiet, cli.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    });
    if cli.verbose {
        say!("{}", version::long());
    }
    cli.command.run().map(|()| ExitCode::SUCCESS)
}

impl Command {
    fn run(self) -> Result<()> {
        match self {
            Self::Train(train) => train.run(),
            Self::Compare { run, methods } => {
                let methods = if methods.is_empty() { &Method::PAPER[..] } else { &methods };
                let names: Vec<String> = methods.iter().map(Method::to_string).collect();
                let more = format!(" --methods {}", names.join(","));
                let (table, page) = compare::compare(&run.open("compare", &more)?, methods)?;
                out!("{}\npage  {}", table.terminal(), page.display())
            }
            Self::Recipes { name: Some(name) } => {
                streams::write(recipes::chain(&name)?.join("\n").as_bytes())
            }
            Self::Recipes { name: None } => {
                for name in recipes::names() {
                    let about = recipes::source(name)?.lines().next().unwrap_or_default();
                    out!("{name:20} {}", about.trim_start_matches("# "))?;
                }
                out!("\n`fpo recipes tiny` and `fpo train --help-settings` explain every setting.")
            }
            Self::Devices { device } => {
                let listed = match device {
                    None => device::list(),
                    Some(name) => device::list_named(&name)?,
                };
                for device::Listed { name, about } in listed {
                    out!("{name:<10}{about}")?;
                }
                Ok(())
            }
            Self::Data(data) => data.run(),
            Self::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "fpo", &mut script);
                streams::write(&script)
            }
            Self::Features(features) => features.run(),
            Self::Generate(generate) => generate.run(),
            #[cfg(feature = "judge")]
            Self::Judge(judge) => judge.run(),
            Self::Chat(chat) => chat.run(),
            Self::Merge(merge) => merge.run(),
            Self::Bench(bench) => bench.run(),
            Self::Score(score) => score.run(),
            Self::Plan(plan) => plan.run(),
            Self::Activations(activations) => activations.run(),
            Self::Reference(reference) => reference.run(),
            Self::Report(report) => report.run(),
            Self::Evaluate(evaluate) => evaluate.run(),
            Self::Sae(sae) => sae.run(),
            Self::Study(study) => study.run(),
            Self::Watch(watch) => watch.run(),
        }
    }
}
