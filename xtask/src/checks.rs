//! What CI runs, step by step.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::backend::{Target, no_llvm};
use crate::launch::{Error, cargo};

/// Tests that run the whole pipeline look for this variable, and say that they skip.
const QUICK: (&str, &str) = ("FPO_TEST_QUICK", "1");
/// The device that the tests of a backend run on; they fail where it is not there.
const DEVICE: &str = "FPO_TEST_DEVICE";

struct Step {
    name: &'static str,
    args: Vec<&'static str>,
    env: Vec<(&'static str, String)>,
}

impl Step {
    fn new<const N: usize>(name: &'static str, args: [&'static str; N]) -> Self {
        Self { name, args: args.into(), env: Vec::new() }
    }

    fn with(self, name: &'static str, value: &str) -> Self {
        Self { env: vec![(name, value.to_owned())], ..self }
    }
}

fn steps(quick: bool) -> Vec<Step> {
    let tests = Step::new("tests", ["test", "--workspace", "--release"]);
    let mut steps = vec![
        Step::new("format", ["fmt", "--all", "--check"]),
        Step::new(
            "lints",
            ["clippy", "--workspace", "--all-targets", "--release", "--", "-D", "warnings"],
        ),
        if quick { tests.with(QUICK.0, QUICK.1) } else { tests },
        Step::new("docs", ["doc", "--workspace", "--no-deps", "--release"])
            .with("RUSTDOCFLAGS", "-D warnings"),
    ];
    if !quick {
        // Builds Burn a second and a third time, with other backends.
        steps.push(Step { name: "wgpu", args: backend_tests("wgpu"), env: Vec::new() });
        let cuda = Step::new(
            "cuda",
            [
                "check",
                "--release",
                "--package",
                "fpo-trainer",
                "--package",
                "fpo-tests",
                "--features",
                "fpo-tests/cuda-nvrtc",
                "--bins",
                "--test",
                "backends",
            ],
        );
        // Checking types takes no compiler of kernels.
        steps.push(Step { env: vec![no_llvm()], ..cuda });
    }
    steps
}

/// The arguments that run the tests of a backend.
fn backend_tests(feature: &'static str) -> Vec<&'static str> {
    let package = ["test", "--release", "--package", "fpo-tests", "--features", feature];
    [&package[..], &["--test", "backends"]].concat()
}

/// The tests of a backend on one device of it, which must be there.
fn on_device(target: &Target) -> Result<Step, Error> {
    let backend = target.backend()?;
    let feature = backend.feature().ok_or(Error::NoBackend)?;
    let mut env = backend.environment();
    env.push((DEVICE, target.device.clone()));
    Ok(Step { name: "backends", args: backend_tests(feature), env })
}

/// What CI runs.
pub fn all(quick: bool) -> ExitCode {
    run(&steps(quick))
}

/// The tests of a backend, on a device that is there.
pub fn of_backend(target: &Target) -> Result<ExitCode, Error> {
    Ok(run(&[on_device(target)?]))
}

/// Runs the steps in order up to the first that fails, and says how long each took.
fn run(steps: &[Step]) -> ExitCode {
    let mut durations = Vec::new();
    let mut failed = None;
    for step in steps {
        println!("\n== {}: cargo {}", step.name, step.args.join(" "));
        let start = Instant::now();
        let status = cargo().args(&step.args).envs(step.env.iter().cloned()).status();
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
            let quick_ones =
                steps(quick).into_iter().filter(|s| s.env.iter().any(|e| e.0 == QUICK.0));
            quick_ones.map(|s| s.name).collect::<Vec<_>>()
        };
        assert_eq!(told(true), ["tests"]);
        assert!(told(false).is_empty());
    }

    #[test]
    fn the_tests_of_a_backend_run_where_they_are_told_to() {
        let target = |device: &str| Target { device: device.to_owned(), nvrtc: false };
        for (device, feature) in [("cuda:1", "cuda"), ("wgpu", "wgpu"), ("vulkan", "vulkan")] {
            let step = on_device(&target(device)).unwrap();
            assert!(step.args.windows(2).any(|pair| pair == ["--features", feature]), "{device}");
            assert_eq!(step.env, [(DEVICE, device.to_owned())]);
        }
        assert!(on_device(&target("cpu")).is_err_and(|e| e.to_string().contains("leave it out")));
        assert!(on_device(&target("tpu")).is_err());
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
