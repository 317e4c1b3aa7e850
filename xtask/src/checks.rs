//! What CI runs, step by step.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::backend::{Target, no_llvm};
use crate::examples;
use crate::launch::{Error, cargo};

/// Tests that run the whole pipeline skip, and say so, where this variable is set.
const QUICK: (&str, &str) = ("FPO_TEST_QUICK", "1");
/// Names the device that the backend tests run on; without that device they fail.
const DEVICE: &str = "FPO_TEST_DEVICE";

/// The feature sets that the binary has to compile with. A check of types needs neither a kernel compiler nor the time of a build.
const FEATURE_SETS: [(&str, &[&str]); 3] = [
    ("check cpu", &[]),
    ("check cuda", &["--no-default-features", "--features", "cuda-nvrtc"]),
    ("check wgpu", &["--no-default-features", "--features", "wgpu"]),
];

struct Step {
    name: &'static str,
    work: Work,
    env: Vec<(&'static str, String)>,
}

enum Work {
    /// Cargo with these arguments.
    Cargo(Vec<&'static str>),
    /// All programs in `examples/` folders.
    Examples,
}

impl Step {
    fn cargo(name: &'static str, args: &[&'static str]) -> Self {
        Self { name, work: Work::Cargo(args.to_vec()), env: Vec::new() }
    }

    fn with(self, name: &'static str, value: &str) -> Self {
        Self { env: vec![(name, value.to_owned())], ..self }
    }

    /// What it does, as a person would type it.
    fn title(&self) -> String {
        match &self.work {
            Work::Cargo(args) => format!("cargo {}", args.join(" ")),
            Work::Examples => "every program in examples/".to_owned(),
        }
    }

    fn run(&self) -> Result<(), String> {
        match &self.work {
            Work::Cargo(args) => match cargo().args(args).envs(self.env.iter().cloned()).status() {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(format!("{} failed ({status})", self.name)),
                Err(error) => Err(format!("{}: could not run cargo: {error}", self.name)),
            },
            Work::Examples => {
                examples::run().map_err(|error| format!("{} failed: {error}", self.name))
            }
        }
    }
}

fn steps(quick: bool) -> Vec<Step> {
    let tests = Step::cargo("tests", &["test", "--workspace", "--release"]);
    let mut steps = vec![
        Step::cargo("format", &["fmt", "--all", "--check"]),
        Step::cargo(
            "lints",
            &["clippy", "--workspace", "--all-targets", "--release", "--", "-D", "warnings"],
        ),
        if quick { tests.with(QUICK.0, QUICK.1) } else { tests },
        Step { name: "examples", work: Work::Examples, env: Vec::new() },
        Step::cargo("docs", &["doc", "--workspace", "--no-deps", "--release"])
            .with("RUSTDOCFLAGS", "-D warnings"),
    ];
    if !quick {
        steps.extend(FEATURE_SETS.map(feature_check));
        let tests_on_cuda = ["check", "--release", "--package", "fpo-tests", "--test", "backends"];
        steps.push(Step {
            env: vec![no_llvm()],
            ..Step::cargo(
                "check cuda tests",
                &[&tests_on_cuda[..], &["--features", "cuda-nvrtc"]].concat(),
            )
        });
        // Compiles Burn a second time, with another backend.
        steps.push(Step::cargo("wgpu tests", &backend_tests("wgpu")));
    }
    steps
}

/// Checks the types of the binary with a set of features.
fn feature_check((name, features): (&'static str, &[&'static str])) -> Step {
    let check = ["check", "--release", "--package", "fpo-cli", "--bins"];
    let env = if features.contains(&"cuda-nvrtc") { vec![no_llvm()] } else { Vec::new() };
    Step { env, ..Step::cargo(name, &[&check[..], features].concat()) }
}

/// The arguments that run the tests of a backend.
fn backend_tests(feature: &'static str) -> Vec<&'static str> {
    let package = ["test", "--release", "--package", "fpo-tests", "--features", feature];
    [&package[..], &["--test", "backends"]].concat()
}

/// The tests of a backend on one of its devices, which must exist.
fn on_device(target: &Target) -> Result<Step, Error> {
    let backend = target.backend()?;
    let feature = backend.feature().ok_or(Error::NoBackend)?;
    let mut env = backend.environment();
    env.push((DEVICE, target.device.clone()));
    Ok(Step { env, ..Step::cargo("backends", &backend_tests(feature)) })
}

/// Runs what CI runs.
pub fn all(quick: bool) -> ExitCode {
    run(&steps(quick))
}

/// Runs the tests of a backend on one device.
pub fn of_backend(target: &Target) -> Result<ExitCode, Error> {
    Ok(run(&[on_device(target)?]))
}

/// Runs the steps in order up to the first that fails, and says how long each took.
fn run(steps: &[Step]) -> ExitCode {
    let mut durations = Vec::new();
    let mut outcome = Ok(());
    for step in steps {
        println!("\n== {}: {}", step.name, step.title());
        let start = Instant::now();
        outcome = step.run();
        durations.push((step.name, start.elapsed()));
        if outcome.is_err() {
            break;
        }
    }
    println!("\n{}", summary(&durations));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn summary(durations: &[(&str, Duration)]) -> String {
    let total = durations.iter().map(|(_, duration)| *duration).sum();
    let width = durations.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(8);
    let lines = durations.iter().copied().chain([("total", total)]);
    lines
        .map(|(name, duration)| format!("{name:<width$}{:>9.1} s", duration.as_secs_f64()))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(step: &Step) -> &[&'static str] {
        match &step.work {
            Work::Cargo(args) => args,
            Work::Examples => &[],
        }
    }

    #[test]
    fn only_the_tests_know_of_a_quick_run() {
        let told = |quick| {
            let quick_ones =
                steps(quick).into_iter().filter(|s| s.env.iter().any(|e| e.0 == QUICK.0));
            quick_ones.map(|s| s.name).collect::<Vec<_>>()
        };
        assert_eq!(told(true), ["tests"]);
        assert!(told(false).is_empty());
    }

    #[test]
    fn the_binary_is_checked_with_every_set_of_features() {
        let steps = steps(false);
        let of_binary: Vec<_> =
            steps.iter().filter(|step| args(step).contains(&"fpo-cli")).collect();
        assert_eq!(of_binary.len(), FEATURE_SETS.len());
        for (step, (_, features)) in of_binary.iter().zip(FEATURE_SETS) {
            assert!(args(step).starts_with(&["check"]) && args(step).ends_with(features));
            assert_eq!(step.env.contains(&no_llvm()), features.contains(&"cuda-nvrtc"));
        }
        assert!(steps.iter().any(|step| matches!(step.work, Work::Examples)));
    }

    #[test]
    fn the_tests_of_a_backend_run_on_the_named_device() {
        let target = |device: &str| Target { device: device.to_owned(), nvrtc: false };
        for (device, feature) in [("cuda:1", "cuda"), ("wgpu", "wgpu"), ("vulkan", "vulkan")] {
            let step = on_device(&target(device)).unwrap();
            assert!(args(&step).windows(2).any(|pair| pair == ["--features", feature]), "{device}");
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
