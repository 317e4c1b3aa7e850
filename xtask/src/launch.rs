//! Builds the `fpo` binary for the device that its arguments ask for, and becomes it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::{fmt, io};

/// Names of devices and the cargo features that each needs beyond the default one.
const DEVICES: [(&str, Option<&str>); 5] = [
    ("cpu", None),
    ("cuda", Some("cuda,autotune")),
    ("wgpu", Some("wgpu,autotune")),
    ("vulkan", Some("vulkan,autotune")),
    ("metal", Some("metal,autotune")),
];

/// Why the binary could not be started.
#[derive(Debug)]
pub enum Error {
    /// `--device` names something that no feature stands for.
    UnknownDevice(String),
    /// Several devices, of which a run uses one.
    SeveralDevices(String),
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
                let known = DEVICES.map(|(device, _)| device).join(", ");
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

/// Runs `fpo [subcommand] args…`, built with the feature of the device in `args`. On Unix it returns only if that fails.
pub fn fpo(subcommand: Option<&str>, args: &[String]) -> Result<ExitCode, Error> {
    let feature = device(args)?.map(feature).transpose()?.flatten();
    let mut command = cargo_fpo("run", feature);
    command.arg("--").args(subcommand).args(args);
    become_process(command).map_err(Error::Cargo)
}

/// Builds `fpo` for a device and says where it is.
pub fn build(device: &str) -> Result<PathBuf, Error> {
    let status = cargo_fpo("build", feature(device)?).status().map_err(Error::Cargo)?;
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

fn cargo_fpo(what: &str, feature: Option<&str>) -> Command {
    let mut command = cargo();
    command.args([what, "--release", "--package", "fpo-trainer", "--bin", "fpo"]);
    if let Some(feature) = feature {
        command.args(["--features", feature]);
    }
    command
}

/// The cargo that runs this launcher, so that a toolchain override holds for what it starts.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The features for a device; for the CPU the default features are enough.
fn feature(device: &str) -> Result<Option<&'static str>, Error> {
    if device.contains([',', '+', ' ']) {
        return Err(Error::SeveralDevices(device.to_owned()));
    }
    let kind = device.split(':').next().unwrap_or(device);
    match DEVICES.iter().find(|(name, _)| *name == kind) {
        Some((_, feature)) => Ok(*feature),
        None => Err(Error::UnknownDevice(device.to_owned())),
    }
}

/// The `--device` in `args`: there may be one.
fn device(args: &[String]) -> Result<Option<&str>, Error> {
    let mut found = Vec::new();
    let mut args = args.iter().map(String::as_str).take_while(|arg| *arg != "--");
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

    fn feature_of(line: &str) -> Result<Option<&'static str>, Error> {
        let args = line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        device(&args)?.map(feature).transpose().map(Option::flatten)
    }

    #[test]
    fn the_device_decides_the_feature() {
        let cases = [
            ("", None),
            ("--recipe tiny --resume", None),
            ("--device cpu", None),
            ("--device cuda", Some("cuda,autotune")),
            ("--device cuda:1", Some("cuda,autotune")),
            ("--device=wgpu", Some("wgpu,autotune")),
            ("train --set a=1 --device=vulkan:0 --resume", Some("vulkan,autotune")),
            ("--device metal", Some("metal,autotune")),
            ("devices --device cuda", Some("cuda,autotune")),
            ("devices", None),
            ("--device", None),
            ("--set note=--device=cuda", None),
            ("-- --device cuda", None),
        ];
        for (line, expected) in cases {
            assert_eq!(feature_of(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn two_devices_at_once_are_refused_before_anything_is_built() {
        for (line, names) in [
            ("--device cuda --device wgpu", "cuda, wgpu"),
            ("--device=cuda --recipe tiny --device=cuda", "cuda, cuda"),
            ("--device cuda,wgpu", "cuda,wgpu"),
        ] {
            let message = feature_of(line).unwrap_err().to_string();
            assert!(message.contains("one device"), "{message}");
            assert!(message.contains(names), "{message}");
        }
    }

    #[test]
    fn an_unknown_device_is_named_with_the_known_ones() {
        for (line, name) in
            [("--device tpu", "tpu"), ("--device=CUDA:0", "CUDA:0"), ("--device=", "")]
        {
            let message = feature_of(line).unwrap_err().to_string();
            assert!(message.contains(&format!("'{name}'")), "{message}");
            assert!(message.contains("cpu, cuda, wgpu, vulkan, metal"), "{message}");
        }
    }
}
