//! The launcher behind `cargo xtask`: parses, then runs cargo or the `fpo` binary.
//!
//! Invariants: it depends neither on Burn nor on another crate of the workspace, so it builds in seconds and reports mistakes before
//! a build of several minutes starts.

mod backend;
mod bench;
mod checks;
mod examples;
mod launch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use backend::Target;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, runs and checks FPO",
    after_help = "train, compare, study and fpo build the binary for the --device in their arguments; --device cuda can be combined with --nvrtc."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// All arguments of `train`, `compare` and `study`, `--help` included, are passed on to the binary, except `--nvrtc`.
#[derive(Subcommand)]
enum Command {
    /// Run the pipeline from data to report; arguments are those of `fpo train`
    #[command(disable_help_flag = true)]
    Train(PassedOn),
    /// Align with several methods and print one table; arguments are those of `fpo compare`
    #[command(disable_help_flag = true)]
    Compare(PassedOn),
    /// Tune and measure methods over seeds; arguments are those of `fpo study`
    #[command(disable_help_flag = true)]
    Study(PassedOn),
    /// Run any subcommand of the binary: cargo xtask fpo -- SUBCOMMAND …
    #[command(disable_help_flag = true)]
    Fpo(PassedOn),
    /// Build the binary for a device and print its path
    Build(Target),
    /// Measure the time and memory of a training step and of single operations, with --peer beside PyTorch
    Bench(bench::Bench),
    /// Run what CI runs: format, lints, tests, examples, documentation, other backends; with --device only the tests of that backend
    Test(Test),
}

#[derive(clap::Args)]
struct Test {
    /// Skip the end-to-end runs and the other backends
    #[arg(long)]
    quick: bool,
    /// Run only the backend tests, on this device: cuda, cuda:N, wgpu, vulkan or metal; they fail if it is missing
    #[arg(long, conflicts_with = "quick")]
    device: Option<String>,
    /// With --device cuda: compile kernels with NVIDIA's NVRTC, so that the build downloads no LLVM
    #[arg(long, requires = "device")]
    nvrtc: bool,
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
        Command::Study(passed) => launch::fpo(Some("study"), &passed.args),
        Command::Fpo(passed) => launch::fpo(None, &passed.args),
        Command::Build(target) => build(&target),
        Command::Bench(bench) => bench::run(&bench),
        Command::Test(Test { quick, device: None, .. }) => Ok(checks::all(quick)),
        Command::Test(Test { device: Some(device), nvrtc, .. }) => {
            checks::of_backend(&Target { device, nvrtc })
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(2)
    })
}

fn build(target: &Target) -> Result<ExitCode, launch::Error> {
    println!("{}", launch::build(target.backend()?)?.display());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
#[path = "../../tests/tests/documentation/commands.rs"]
mod documented;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_command_is_understood() {
        let printed = documented::printed(&["cargo xtask "]);
        for documented::Printed { page, words } in &printed {
            let line = [&["cargo xtask".to_owned()], &words[2..]].concat();
            let outcome = Cli::try_parse_from(&line).map(|_| ()).map_err(|e| e.to_string());
            assert_eq!(outcome, Ok(()), "{}: {}", page.display(), words.join(" "));
        }
        assert!(printed.len() > 20, "only {} commands were found", printed.len());
    }

    fn passed(line: &[&str]) -> (&'static str, Vec<String>) {
        let cli = Cli::try_parse_from([&["cargo xtask"], line].concat()).unwrap();
        match cli.command {
            Command::Train(passed) => ("train", passed.args),
            Command::Compare(passed) => ("compare", passed.args),
            Command::Study(passed) => ("study", passed.args),
            Command::Fpo(passed) => ("fpo", passed.args),
            Command::Test(test) => ("test", vec![format!("{} {:?}", test.quick, test.device)]),
            Command::Build(target) => {
                ("build", vec![format!("{} {}", target.device, target.nvrtc)])
            }
            Command::Bench(_) => ("bench", Vec::new()),
        }
    }

    #[test]
    fn the_binary_gets_its_arguments_unchanged() {
        let cases: [(&[&str], &str, &[&str]); 8] = [
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
            (&["study", "--plan", "tiny", "--dry-run"], "study", &["--plan", "tiny", "--dry-run"]),
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
    fn test_has_its_own_options() {
        for (line, expected) in [
            (&["test"][..], "false None"),
            (&["test", "--quick"], "true None"),
            (&["test", "--device", "cuda:1", "--nvrtc"], "false Some(\"cuda:1\")"),
        ] {
            assert_eq!(passed(line), ("test", vec![expected.to_owned()]));
        }
        for line in [&["--slow"][..], &["--nvrtc"], &["--quick", "--device", "cuda"]] {
            let line = [&["cargo xtask", "test"], line].concat();
            assert!(Cli::try_parse_from(&line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn build_takes_a_device() {
        assert_eq!(passed(&["build"]).1, ["cpu false"]);
        assert_eq!(passed(&["build", "--nvrtc", "--device", "cuda"]).1, ["cuda true"]);
    }
}
