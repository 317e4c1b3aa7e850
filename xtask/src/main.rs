//! The launcher behind `cargo xtask`: parses, then runs cargo or the `fpo` binary.
//!
//! Invariants: it never depends on Burn or on another crate of the workspace, so that it builds in seconds and can say what is
//! wrong before a build of minutes starts.

mod bench;
mod checks;
mod launch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Builds, runs and checks FPO")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The arguments of `train` and `compare` belong to the binary, its help included: `cargo xtask train --help`.
#[derive(Subcommand)]
enum Command {
    /// Run the pipeline from data to report; arguments go to `fpo train`
    #[command(disable_help_flag = true)]
    Train(PassedOn),
    /// Train several objectives on the same data and put them side by side; arguments go to `fpo compare`
    #[command(disable_help_flag = true)]
    Compare(PassedOn),
    /// Run any subcommand of the binary: cargo xtask fpo -- SUBCOMMAND …
    #[command(disable_help_flag = true)]
    Fpo(PassedOn),
    /// Measure a training step, its memory and its operations, beside other people's software if asked
    Bench(bench::Bench),
    /// Run what CI runs: format, lints, tests, documentation, other backends
    Test {
        /// Leave out the end-to-end runs and the other backends
        #[arg(long)]
        quick: bool,
    },
}

#[derive(clap::Args)]
struct PassedOn {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<String>,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Train(passed) => launch::fpo(Some("train"), &passed.args),
        Command::Compare(passed) => launch::fpo(Some("compare"), &passed.args),
        Command::Fpo(passed) => launch::fpo(None, &passed.args),
        Command::Bench(bench) => bench::run(&bench),
        Command::Test { quick } => return checks::run(quick),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(line: &[&str]) -> (&'static str, Vec<String>) {
        let cli = Cli::try_parse_from([&["cargo xtask"], line].concat()).unwrap();
        match cli.command {
            Command::Train(passed) => ("train", passed.args),
            Command::Compare(passed) => ("compare", passed.args),
            Command::Fpo(passed) => ("fpo", passed.args),
            Command::Test { quick } => ("test", vec![quick.to_string()]),
            Command::Bench(_) => ("bench", Vec::new()),
        }
    }

    #[test]
    fn the_binary_gets_its_arguments_unchanged() {
        let cases: [(&[&str], &str, &[&str]); 7] = [
            (&["train"], "train", &[]),
            (&["train", "--help"], "train", &["--help"]),
            (&["train", "-h"], "train", &["-h"]),
            (
                &[
                    "train",
                    "--recipe",
                    "tiny",
                    "--device=cuda:1",
                    "--set",
                    "align.beta=-0.1",
                    "--resume",
                ],
                "train",
                &["--recipe", "tiny", "--device=cuda:1", "--set", "align.beta=-0.1", "--resume"],
            ),
            (&["compare", "--losses", "fpo,dpo"], "compare", &["--losses", "fpo,dpo"]),
            (&["fpo", "--", "recipes", "--list"], "fpo", &["recipes", "--list"]),
            (&["fpo", "recipes", "-V"], "fpo", &["recipes", "-V"]),
        ];
        for (line, command, args) in cases {
            assert_eq!(
                passed(line),
                (command, args.iter().map(|a| (*a).to_owned()).collect()),
                "{line:?}"
            );
        }
    }

    #[test]
    fn test_has_options_of_its_own() {
        assert_eq!(passed(&["test"]), ("test", vec!["false".to_owned()]));
        assert_eq!(passed(&["test", "--quick"]), ("test", vec!["true".to_owned()]));
        assert!(Cli::try_parse_from(["cargo xtask", "test", "--slow"]).is_err());
    }
}
