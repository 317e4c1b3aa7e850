//! Builds the `fpo` binary for the device named in its arguments, and replaces this process with it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::{fmt, io};

use crate::backend::{self, Backend};

/// Why the launcher gave up.
#[derive(Debug)]
pub enum Error {
    /// No cargo feature belongs to the name given with `--device`.
    UnknownDevice(String),
    /// More than one device was named; a run uses one.
    SeveralDevices(String),
    /// `--nvrtc` with a device other than CUDA.
    NvrtcWithoutCuda(String),
    /// `--nvrtc` needs linker flags that only Linux has.
    NvrtcNeedsLinux,
    /// `cargo xtask test --device cpu`: the backend tests are for the other backends.
    NoBackend,
    /// PyTorch does not run on this device.
    NoPeer(String),
    /// Cargo itself could not be run.
    Cargo(io::Error),
    /// Cargo could not build what it was asked for.
    Build(ExitStatus),
    /// A program could not be run.
    Program(io::Error),
    /// Cargo left out an example although it needs no feature.
    ExampleNotBuilt { package: String, name: String },
    /// A program in an `examples/` folder failed.
    Example { package: String, name: String, status: ExitStatus },
    /// A measured program failed, or printed no measurement.
    Measured { command: String, said: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownDevice(name) => {
                let known = backend::devices();
                write!(
                    f,
                    "unknown device '{name}'; known devices: {known} (with a number for one of several, as in cuda:1)"
                )
            }
            Self::SeveralDevices(names) => {
                write!(
                    f,
                    "a run computes on one device, but several were named: {names}; choose one"
                )
            }
            Self::NvrtcWithoutCuda(device) => {
                write!(f, "--nvrtc is for --device cuda, not for {device}: leave it out")
            }
            Self::NvrtcNeedsLinux => {
                write!(f, "--nvrtc works on Linux only: leave it out, and the build downloads LLVM")
            }
            Self::NoBackend => {
                write!(
                    f,
                    "--device is for the other backends; without it the tests run on the CPU: leave it out"
                )
            }
            Self::NoPeer(device) => {
                write!(f, "PyTorch runs on cpu and cuda, not on {device}: leave out --peer")
            }
            Self::Cargo(error) => write!(f, "could not run cargo: {error}"),
            Self::Build(status) => write!(f, "the build failed ({status})"),
            Self::Program(error) => write!(f, "could not run a program: {error}"),
            Self::ExampleNotBuilt { package, name } => {
                write!(f, "cargo did not build the example {name} of {package}")
            }
            Self::Example { package, name, status } => {
                write!(f, "the example {name} of {package} failed ({status})")
            }
            Self::Measured { command, said } => {
                write!(f, "no measurement from\n{command}\nwhich printed:\n{said}")
            }
        }
    }
}

/// Runs `fpo [subcommand] args…`, built for the device in `args`. `--nvrtc` is for the build and not passed on. On Unix this
/// returns only on error.
pub fn fpo(subcommand: Option<&str>, args: &[String]) -> Result<ExitCode, Error> {
    let Passed { backend, args } = Passed::new(args)?;
    let mut command = cargo_fpo("run", backend);
    command.arg("--").args(subcommand).args(args);
    become_process(command).map_err(Error::Cargo)
}

/// Builds `fpo` and returns its path.
pub fn build(backend: Backend) -> Result<PathBuf, Error> {
    let status = cargo_fpo("build", backend).status().map_err(Error::Cargo)?;
    if !status.success() {
        return Err(Error::Build(status));
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release").join(format!("fpo{}", std::env::consts::EXE_SUFFIX)))
}

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

fn cargo_fpo(what: &str, backend: Backend) -> Command {
    let mut command = cargo();
    command.args([what, "--release", "--package", "fpo-cli", "--bin", "fpo"]);
    if let Some(feature) = backend.feature() {
        command.args(["--features", &format!("{feature},autotune")]);
    }
    command.envs(backend.environment());
    if let Some(commit) = commit() {
        command.env("FPO_COMMIT", commit);
    }
    command
}

/// The commit of the checkout, for `fpo --version`; none outside one.
fn commit() -> Option<String> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["describe", "--always", "--dirty", "--abbrev=12"]);
    let output = git.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The cargo that runs this launcher, so that a toolchain override also applies to what it starts.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Set for this launcher by cargo. A dependency of Burn's CUDA backend tracks it, and would be rebuilt with all its dependents.
    command.env_remove("CARGO_MANIFEST_DIR");
    command
}

/// The arguments passed on to the binary, and the backend to build it with.
struct Passed<'a> {
    backend: Backend,
    args: Vec<&'a str>,
}

impl<'a> Passed<'a> {
    /// Removes `--nvrtc`, and finds the backend that the device among the others needs.
    fn new(args: &'a [String]) -> Result<Self, Error> {
        let own = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
        let (own, rest) = args.split_at(own);
        let nvrtc = own.iter().any(|arg| arg == "--nvrtc");
        let own: Vec<&str> =
            own.iter().map(String::as_str).filter(|arg| *arg != "--nvrtc").collect();
        let backend = Backend::of(device(&own)?.unwrap_or("cpu"), nvrtc)?;
        let rest = rest.iter().map(String::as_str);
        Ok(Self { backend, args: own.into_iter().chain(rest).collect() })
    }
}

/// The value of `--device` in `args`, if it is there.
fn device<'a>(args: &[&'a str]) -> Result<Option<&'a str>, Error> {
    let mut found = Vec::new();
    let mut args = args.iter().copied();
    while let Some(arg) = args.next() {
        if arg == "--device" {
            // The binary reports a missing value.
            found.extend(args.next());
        } else if let Some(name) = arg.strip_prefix("--device=") {
            found.push(name);
        }
    }
    match found[..] {
        [] => Ok(None),
        [device] => Ok(Some(device)),
        _ => Err(Error::SeveralDevices(found.join(", "))),
    }
}

/// Replaces this process by cargo, which in turn replaces itself by the binary: signals and the exit status need no forwarding.
#[cfg(unix)]
fn become_process(mut command: Command) -> io::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    Err(command.exec())
}

#[cfg(not(unix))]
fn become_process(mut command: Command) -> io::Result<ExitCode> {
    let status = command.status()?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The backend for a command line, and the arguments that the binary receives.
    fn passed(line: &str) -> Result<(Backend, String), Error> {
        let args = line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        Passed::new(&args).map(|passed| (passed.backend, passed.args.join(" ")))
    }

    #[test]
    fn the_device_decides_the_backend() {
        for (line, expected) in [
            ("", Backend::Cpu),
            ("--recipe tiny --resume", Backend::Cpu),
            ("--device cpu", Backend::Cpu),
            ("--device cuda", Backend::Cuda),
            ("--device cuda:1", Backend::Cuda),
            ("--device=wgpu", Backend::Wgpu),
            ("train --set a=1 --device=vulkan:0 --resume", Backend::Vulkan),
            ("--device metal", Backend::Metal),
            ("devices --device cuda", Backend::Cuda),
            ("devices", Backend::Cpu),
            ("--device", Backend::Cpu),
            ("--set note=--device=cuda", Backend::Cpu),
            ("-- --device cuda --nvrtc", Backend::Cpu),
        ] {
            assert_eq!(passed(line).unwrap(), (expected, line.to_owned()), "{line}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn nvrtc_is_not_passed_on() {
        for (line, rest) in [
            ("--device cuda --nvrtc", "--device cuda"),
            ("train --nvrtc --device=cuda:1 --resume", "train --device=cuda:1 --resume"),
            ("--nvrtc --device cuda -- --nvrtc", "--device cuda -- --nvrtc"),
        ] {
            assert_eq!(passed(line).unwrap(), (Backend::CudaNvrtc, rest.to_owned()), "{line}");
        }
        assert!(passed("--nvrtc --recipe tiny").is_err());
    }

    #[test]
    fn two_devices_are_refused_before_anything_is_built() {
        for (line, names) in [
            ("--device cuda --device wgpu", "cuda, wgpu"),
            ("--device=cuda --recipe tiny --device=cuda", "cuda, cuda"),
            ("--device cuda,wgpu", "cuda,wgpu"),
        ] {
            let message = passed(line).unwrap_err().to_string();
            assert!(message.contains("one device"), "{message}");
            assert!(message.contains(names), "{message}");
        }
    }
}
