//! `cargo xtask bench`: runs `fpo bench` at the sizes of BENCHMARKS.md, each in its own process, and with `--peer` the same step in
//! PyTorch and TRL.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde_json::Value;

use crate::backend::{Backend, Target};
use crate::launch::{self, Error};

#[derive(clap::Args)]
pub struct Bench {
    #[command(subcommand)]
    what: Option<What>,
    /// Also run the same step in PyTorch (transformers) and TRL
    #[arg(long)]
    peer: bool,
    /// A Python with these packages installed [default: a virtual environment under target/, set up with pip]
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// CPU threads, the same for FPO and its peers
    #[arg(long, default_value_t = 2, global = true)]
    threads: usize,
}

#[derive(clap::Subcommand)]
enum What {
    /// Each operation beside its plain definition, and its share of the matrix rate
    Ops,
    /// Peak memory by tokens and vocabulary, with recomputed activations and with adapters
    Memory,
    /// Time and peak memory of each method of the paper
    Methods,
}

/// A step that FPO and its peers run at the same sizes and in the same precision.
struct Row {
    what: &'static str,
    precision: &'static str,
    sizes: &'static [&'static str],
    /// A file of pairs' lengths in the repository, for pairs that aren't all alike.
    lengths: Option<&'static str>,
}

impl Row {
    /// The arguments, the same for FPO and its peers.
    fn args(&self) -> Vec<String> {
        let file = self.lengths.map(|file| launch::root().join(file).display().to_string());
        let lengths = file.iter().flat_map(|file| ["--lengths", file]);
        let args = self.sizes.iter().copied().chain(lengths);
        args.chain(["--precision", self.precision]).map(str::to_owned).collect()
    }

    fn title(&self, place: &str) -> String {
        format!("one FPO step, {}, AdamW, {}, {place}", self.precision, self.what)
    }
}

const ROWS: [Row; 4] = [
    Row {
        what: "8 pairs × 128 tokens, vocabulary 4,096",
        precision: "float32",
        sizes: &["--vocab", "4096"],
        lengths: None,
    },
    Row {
        what: "8 pairs × 128 tokens, vocabulary 32,768",
        precision: "float32",
        sizes: &["--vocab", "32768"],
        lengths: None,
    },
    Row {
        what: "8 pairs × 128 tokens, SmolLM2-135M's shape, 3 steps",
        precision: "float32",
        sizes: &["--model", "smollm2-135m", "--steps", "3"],
        lengths: None,
    },
    Row {
        what: "8 pairs of alpaca-eval's lengths, SmolLM2-135M's shape, 8 steps on as many batches",
        precision: "float32",
        sizes: &["--model", "smollm2-135m", "--steps", "8"],
        lengths: Some("tests/peers/lengths/alpaca_eval.jsonl"),
    },
];
/// For GPUs: a model of a size that is trained there, with the settings of its recipe.
const GEMMA: Row = Row {
    what: "2 pairs × 512 tokens, Gemma-2-2B's shape, activations recomputed, 50 steps",
    precision: "bf16-mixed",
    sizes: &[
        "--model",
        "gemma-2-2b",
        "--pairs",
        "2",
        "--tokens",
        "512",
        "--steps",
        "50",
        "--checkpoint-activations",
    ],
    lengths: None,
};
const METHODS: [&str; 6] = ["dpo", "tdpo1", "tdpo2", "simpo", "simpo-kl", "fpo"];
const TOKENS: [&str; 3] = ["128", "512", "2048"];
const ACTIVATIONS: [(&str, &[&str]); 2] =
    [("kept", &[]), ("recomputed", &["--checkpoint-activations"])];
const VOCABULARIES: [&str; 3] = ["4096", "32768", "262144"];

/// The line of JSON that a measured process prints last.
struct Measured(Value);

impl Measured {
    fn number(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap_or(f64::NAN)
    }

    fn speed(&self) -> f64 {
        self.number("tokens_per_second")
    }

    /// In MiB: on a GPU what was reserved from its driver, else the peak of the process.
    fn memory(&self) -> f64 {
        self.0["device_reserved_mib"].as_f64().unwrap_or_else(|| self.number("peak_rss_mib"))
    }

    /// The share of the matrix rate, as `ours` measured it, that a step of the same work reaches.
    fn share_of(&self, ours: &Self) -> f64 {
        ours.number("model_flops") / self.number("step_seconds") / ours.number("matmul_flops")
    }

    /// Versions that the process reported, as in `torch 2.15.0, transformers 5.23.0`.
    fn versions(&self) -> String {
        let versions = self.0["versions"].as_object().into_iter().flatten();
        let named = versions.map(|(name, v)| format!("{name} {}", v.as_str().unwrap_or("?")));
        named.collect::<Vec<_>>().join(", ")
    }
}

pub fn run(bench: &Bench) -> Result<ExitCode, Error> {
    let (device, backend) = (&bench.target.device, bench.target.backend()?);
    if bench.peer && !matches!(backend, Backend::Cpu | Backend::Cuda | Backend::CudaNvrtc) {
        return Err(Error::NoPeer(device.clone()));
    }
    let program = launch::build(backend)?;
    let ours = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("bench").args(args).args(["--device", device]);
        command.env("RAYON_NUM_THREADS", bench.threads.to_string());
        command
    };
    let step = |args: &[&str]| measured(ours(&["step", "--json"]).args(args));
    // Freed memory is returned immediately, so that the peak is what the step needs.
    let needed = |args: &[&str]| {
        measured(
            ours(&["step", "--json", "--steps", "1"]).args(args).env("MIMALLOC_PURGE_DELAY", "0"),
        )
    };
    match bench.what {
        Some(What::Ops) => {
            let status = ours(&["ops"]).status().map_err(Error::Program)?;
            return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Some(What::Memory) => {
            println!("memory that one FPO step of one pair needs, MiB\n");
            println!("{}", row("tokens", VOCABULARIES.map(|v| format!("V = {v}"))));
            for tokens in TOKENS {
                let mut cells = Vec::new();
                for vocab in VOCABULARIES {
                    let sizes = ["--pairs", "1", "--tokens", tokens, "--vocab", vocab];
                    cells.push(format!("{:.0}", needed(&sizes)?.memory()));
                }
                println!("{}", row(tokens, cells));
            }
            println!(
                "\nthe same for 8 pairs × 512 tokens, by activations and trained parameters\n"
            );
            println!("{}", row("", ["all", "LoRA, rank 16"]));
            for (name, activations) in ACTIVATIONS {
                let mut cells = Vec::new();
                for trained in [&[][..], &["--lora-rank", "16"]] {
                    let found = needed(&[&["--tokens", "512"], activations, trained].concat())?;
                    cells.push(format!("{:.0}", found.memory()));
                }
                println!("{}", row(name, cells));
            }
        }
        Some(What::Methods) => {
            println!("{}", row("method", ["tokens/s", "step, ms", "needed, MiB"]));
            for method in METHODS {
                let found = step(&["--method", method])?;
                let memory = needed(&["--method", method])?.memory();
                let ms = found.number("step_seconds") * 1e3;
                let cells = [found.speed(), ms, memory].map(|x| format!("{x:.0}"));
                println!("{}", row(method, cells));
            }
        }
        None => {
            let python = match (&bench.python, bench.peer) {
                (Some(python), true) => Some(python.clone()),
                (None, true) => Some(environment()?),
                (_, false) => None,
            };
            let gemma = (backend != Backend::Cpu).then_some(GEMMA);
            for row in ROWS.into_iter().chain(gemma) {
                compare(&row, &step, python.as_deref(), bench)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints one table of steps: FPO, and with a Python its peers and the ratios.
fn compare(
    what: &Row,
    step: &dyn Fn(&[&str]) -> Result<Measured, Error>,
    python: Option<&Path>,
    bench: &Bench,
) -> Result<(), Error> {
    let device = bench.target.device.as_str();
    let place = match device {
        "cpu" => format!("{} threads", bench.threads),
        device => device.to_owned(),
    };
    println!("{}\n", what.title(&place));
    let header = ["tokens/s", "of matrix rate", "peak, MiB", "FPO faster by", "FPO memory"];
    println!("{}", row("", header));
    let args = what.args();
    let ours = step(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    let cells = |x: &Measured| {
        let share = format!("{:.1} %", 100.0 * x.share_of(&ours));
        [format!("{:.0}", x.speed()), share, format!("{:.0}", x.memory())]
    };
    println!("{}", row("fpo", cells(&ours)));
    let mut versions = Vec::new();
    for peer in ["torch", "trl"] {
        let Some(python) = python else { continue };
        let mut command = Command::new(python);
        command.arg(launch::root().join("tests/peers/bench_step.py"));
        command.args(["--peer", peer, "--threads", &bench.threads.to_string()]);
        command.args(&args).args(["--device", device]);
        command.env("OMP_NUM_THREADS", bench.threads.to_string());
        let theirs = measured(&mut command)?;
        let ratios = [
            format!("{:.2} ×", ours.speed() / theirs.speed()),
            format!("{:.2}", ours.memory() / theirs.memory()),
        ];
        println!("{}", row(peer, cells(&theirs).into_iter().chain(ratios)));
        versions.push(theirs.versions());
    }
    println!("{}\n", versions.pop().unwrap_or_default());
    Ok(())
}

/// A line of a table: a name and right-aligned cells.
fn row<C: AsRef<str>>(name: &str, cells: impl IntoIterator<Item = C>) -> String {
    let cells = cells.into_iter().map(|cell| format!("{:>16}", cell.as_ref()));
    format!("{name:<11}{}", cells.collect::<String>())
}

/// Runs a process whose last line on standard output is JSON.
fn measured(command: &mut Command) -> Result<Measured, Error> {
    let output = command.stderr(Stdio::piped()).output().map_err(Error::Program)?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let found = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok());
    match found {
        Some(found) if output.status.success() => Ok(Measured(found)),
        _ => Err(Error::Measured {
            command: format!("{command:?}"),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

/// The Python of a virtual environment with the peers, set up at the first call.
fn environment() -> Result<PathBuf, Error> {
    let folder = launch::root().join("target/peers");
    let python = folder.join("bin/python");
    if folder.join("complete").exists() {
        return Ok(python);
    }
    eprintln!("installing PyTorch, transformers and TRL into {}", folder.display());
    let requirements = launch::root().join("tests/peers/requirements.txt");
    let run = |command: &mut Command| match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            Err(Error::Measured { command: format!("{command:?}"), said: status.to_string() })
        }
        Err(error) => Err(Error::Program(error)),
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements))?;
    std::fs::write(folder.join("complete"), "").map_err(Error::Program)?;
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_measured_by_its_last_line() {
        let script =
            r#"echo hello; echo '{"tokens_per_second": 12.5, "versions": {"torch": "2"}}'"#;
        let found = measured(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(found.speed(), 12.5);
        assert_eq!(found.versions(), "torch 2");
        assert!(found.memory().is_nan());
    }

    #[test]
    fn memory_is_the_gpu_s_and_the_rate_is_ours() {
        let ours = Measured(serde_json::json!({
            "peak_rss_mib": 9.0, "device_reserved_mib": 40.0, "model_flops": 6e12, "matmul_flops": 3e13, "step_seconds": 0.5,
        }));
        let theirs = Measured(
            serde_json::json!({ "peak_rss_mib": 9.0, "device_reserved_mib": null, "step_seconds": 1.0 }),
        );
        assert_eq!((ours.memory(), theirs.memory()), (40.0, 9.0));
        assert_eq!((ours.share_of(&ours), theirs.share_of(&ours)), (0.4, 0.2));
    }

    #[test]
    fn a_title_says_in_which_types_all_sides_compute() {
        for row in ROWS.iter().chain([&GEMMA]) {
            assert!(row.title("cuda").contains(row.precision), "{}", row.what);
            let precision = ["--precision", row.precision].map(str::to_owned);
            assert!(row.args().ends_with(&precision), "{}", row.what);
            if let Some(file) = row.args().iter().skip_while(|arg| *arg != "--lengths").nth(1) {
                assert!(Path::new(file).is_absolute() && Path::new(file).is_file(), "{file}");
            }
        }
        assert!(ROWS[3].args().contains(&"--lengths".to_owned()));
        assert_eq!(
            GEMMA.title("cuda:1"),
            "one FPO step, bf16-mixed, AdamW, 2 pairs × 512 tokens, Gemma-2-2B's shape, activations recomputed, 50 steps, cuda:1"
        );
    }

    #[test]
    fn a_process_that_fails_is_quoted() {
        let error =
            measured(Command::new("sh").args(["-c", "echo '{}'; echo no torch >&2; exit 3"]));
        let message = error.err().unwrap().to_string();
        assert!(message.contains("no torch") && message.contains("exit 3"), "{message}");
    }
}
