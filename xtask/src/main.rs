//! The launcher behind `cargo xtask`: parses, then runs cargo or the `fpo` binary.
//!
//! Invariants: it never depends on Burn or on another crate of the workspace, so that it builds in seconds and can say what is
//! wrong before a build of minutes starts.

mod backend;
mod bench;
mod checks;
mod launch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use backend::Target;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, runs and checks FPO",
    after_help = "train, compare and fpo build for the --device among their arguments, and take --nvrtc beside --device cuda."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The arguments of `train` and `compare` belong to the binary, its help included: `cargo xtask train --help`. Ours among them is
/// `--nvrtc`.
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
    /// Build the binary for a device, and say where it is
    Build(Target),
    /// Measure a training step, its memory and its operations, beside other people's software if asked
    Bench(bench::Bench),
    /// Run what CI runs: format, lints, tests, documentation, other backends; with --device only the tests of that backend
    Test(Test),
}

#[derive(clap::Args)]
struct Test {
    /// Leave out the end-to-end runs and the other backends
    #[arg(long)]
    quick: bool,
    /// Run the tests of a backend alone, on this device, which must be there: cuda, cuda:N, wgpu, vulkan or metal
    #[arg(long, conflicts_with = "quick")]
    device: Option<String>,
    /// Lets NVIDIA's NVRTC compile the kernels of --device cuda, so that no LLVM is downloaded while building
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
mod tests {
    use super::*;

    fn passed(line: &[&str]) -> (&'static str, Vec<String>) {
        let cli = Cli::try_parse_from([&["cargo xtask"], line].concat()).unwrap();
        match cli.command {
            Command::Train(passed) => ("train", passed.args),
            Command::Compare(passed) => ("compare", passed.args),
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
    fn a_build_has_a_device() {
        assert_eq!(passed(&["build"]).1, ["cpu false"]);
        assert_eq!(passed(&["build", "--nvrtc", "--device", "cuda"]).1, ["cuda true"]);
    }
}
