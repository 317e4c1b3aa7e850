//! What CI runs, step by step.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::launch::cargo;

/// Tests that run the whole pipeline look for this variable, and say that they skip.
const QUICK: (&str, &str) = ("FPO_TEST_QUICK", "1");

struct Step {
    name: &'static str,
    args: &'static [&'static str],
    env: Option<(&'static str, &'static str)>,
}

fn steps(quick: bool) -> Vec<Step> {
    let mut steps = vec![
        Step { name: "format", args: &["fmt", "--all", "--check"], env: None },
        Step {
            name: "lints",
            args: &["clippy", "--workspace", "--all-targets", "--release", "--", "-D", "warnings"],
            env: None,
        },
        Step {
            name: "tests",
            args: &["test", "--workspace", "--release"],
            env: quick.then_some(QUICK),
        },
        Step {
            name: "docs",
            args: &["doc", "--workspace", "--no-deps", "--release"],
            env: Some(("RUSTDOCFLAGS", "-D warnings")),
        },
    ];
    if !quick {
        // Builds Burn a second and a third time, with other backends.
        steps.push(Step {
            name: "wgpu",
            args: &[
                "test",
                "--release",
                "--package",
                "fpo-tests",
                "--features",
                "wgpu",
                "--test",
                "backends",
            ],
            env: None,
        });
        steps.push(Step {
            name: "cuda",
            args: &["check", "--release", "--package", "fpo-trainer", "--features", "cuda-nvrtc"],
            // Two build scripts then leave out the compiler that they would download; it takes no part in checking types.
            env: Some(("DOCS_RS", "1")),
        });
    }
    steps
}

/// Runs the steps in order up to the first that fails, and says how long each took.
pub fn run(quick: bool) -> ExitCode {
    let steps = steps(quick);
    let mut durations = Vec::new();
    let mut failed = None;
    for step in &steps {
        println!("\n== {}: cargo {}", step.name, step.args.join(" "));
        let start = Instant::now();
        let status = cargo().args(step.args).envs(step.env).status();
        durations.push((step.name, start.elapsed()));
        failed = match status {
            Ok(status) if status.success() => continue,
            Ok(status) => Some(format!("{} failed ({status})", step.name)),
            Err(error) => Some(format!("{}: could not run cargo: {error}", step.name)),
        };
        break;
    }
    println!("\n{}", summary(&durations));
    match failed {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn summary(durations: &[(&str, Duration)]) -> String {
    let total = durations.iter().map(|(_, duration)| *duration).sum();
    let lines = durations.iter().copied().chain([("total", total)]);
    lines
        .map(|(name, duration)| format!("{name:<8}{:>9.1} s", duration.as_secs_f64()))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tests_of_a_quick_run_are_told() {
        let told = |quick| {
            steps(quick).iter().filter(|s| s.env == Some(QUICK)).map(|s| s.name).collect::<Vec<_>>()
        };
        assert_eq!(told(true), ["tests"]);
        assert!(told(false).is_empty());
    }

    #[test]
    fn the_summary_adds_up() {
        let durations =
            [("format", Duration::from_millis(400)), ("lints", Duration::from_secs(125))];
        assert_eq!(
            summary(&durations),
            "format        0.4 s\nlints       125.0 s\ntotal       125.4 s"
        );
    }
}
