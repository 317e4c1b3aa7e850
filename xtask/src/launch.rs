//! Builds the `fpo` binary for the device that its arguments ask for, and becomes it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::{fmt, io};

use crate::backend::{self, Backend};

/// Why the binary could not be started.
#[derive(Debug)]
pub enum Error {
    /// `--device` names something that no feature stands for.
    UnknownDevice(String),
    /// Several devices, of which a run uses one.
    SeveralDevices(String),
    /// NVRTC compiles for CUDA, and this device is another.
    NvrtcWithoutCuda(String),
    /// What `--nvrtc` asks of the linker is Linux's.
    NvrtcNeedsLinux,
    /// The tests of a backend are of another than the CPU's.
    NoBackend,
    /// PyTorch does not run there.
    NoPeer(String),
    /// Cargo itself could not be run.
    Cargo(io::Error),
    /// The binary could not be built.
    Build(ExitStatus),
    /// A program could not be run.
    Program(io::Error),
    /// A program that was measured failed, or printed no measurement.
    Measured { command: String, said: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownDevice(name) => {
                let known = backend::devices();
                write!(
                    f,
                    "unknown device '{name}'; known devices: {known} (a number picks one of several, as in cuda:1)"
                )
            }
            Self::SeveralDevices(names) => {
                write!(
                    f,
                    "a run computes on one device, and these were asked for: {names}; choose one of them"
                )
            }
            Self::NvrtcWithoutCuda(device) => {
                write!(f, "--nvrtc is for --device cuda, not for {device}: leave it out")
            }
            Self::NvrtcNeedsLinux => {
                write!(f, "--nvrtc builds on Linux only: leave it out, and LLVM is downloaded")
            }
            Self::NoBackend => {
                write!(f, "the tests run on the CPU without --device: leave it out")
            }
            Self::NoPeer(device) => {
                write!(f, "PyTorch runs on cpu and on cuda, not on {device}: leave out --peer")
            }
            Self::Cargo(error) => write!(f, "could not run cargo: {error}"),
            Self::Build(status) => write!(f, "building fpo failed ({status})"),
            Self::Program(error) => write!(f, "could not run a program: {error}"),
            Self::Measured { command, said } => {
                write!(f, "no measurement came from\n{command}\nwhich said:\n{said}")
            }
        }
    }
}

/// Runs `fpo [subcommand] args…`, built for the device in `args`; `--nvrtc` among them is ours. On Unix it returns only if that
/// fails.
pub fn fpo(subcommand: Option<&str>, args: &[String]) -> Result<ExitCode, Error> {
    let Passed { backend, args } = Passed::new(args)?;
    let mut command = cargo_fpo("run", backend);
    command.arg("--").args(subcommand).args(args);
    become_process(command).map_err(Error::Cargo)
}

/// Builds `fpo` and says where it is.
pub fn build(backend: Backend) -> Result<PathBuf, Error> {
    let status = cargo_fpo("build", backend).status().map_err(Error::Cargo)?;
    if !status.success() {
        return Err(Error::Build(status));
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release").join(format!("fpo{}", std::env::consts::EXE_SUFFIX)))
}

/// The workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

fn cargo_fpo(what: &str, backend: Backend) -> Command {
    let mut command = cargo();
    command.args([what, "--release", "--package", "fpo-trainer", "--bin", "fpo"]);
    if let Some(feature) = backend.feature() {
        command.args(["--features", &format!("{feature},autotune")]);
    }
    command.envs(backend.environment());
    command
}

/// The cargo that runs this launcher, so that a toolchain override holds for what it starts.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // This launcher's own; a dependency of Burn's CUDA backend, and all that depends on it, is built again where it changes.
    command.env_remove("CARGO_MANIFEST_DIR");
    command
}

/// Arguments for the binary.
struct Passed<'a> {
    backend: Backend,
    args: Vec<&'a str>,
}

impl<'a> Passed<'a> {
    /// Takes out `--nvrtc`, and reads which backend the others need.
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

/// The `--device` in `args`: there may be one.
fn device<'a>(args: &[&'a str]) -> Result<Option<&'a str>, Error> {
    let mut found = Vec::new();
    let mut args = args.iter().copied();
    while let Some(arg) = args.next() {
        if arg == "--device" {
            // A missing name is left for the binary to complain about.
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

/// Replaces this process; cargo then does the same with the binary. Signals and the exit status need no forwarding.
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

    /// The backend for a command line, and what the binary gets of it.
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
    fn nvrtc_is_kept_from_the_binary() {
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
    fn two_devices_at_once_are_refused_before_anything_is_built() {
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
