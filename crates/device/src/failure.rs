//! Device failures, recognised by their messages.
//!
//! Burn's operations return no `Result`: a device failure is a panic, either on the thread that reads data or on the device's own
//! thread. Its message comes from CubeCL (`ServerError`, `IoError`, `LaunchError` of cubecl-runtime 0.11), wgpu or cudarc. A panic
//! carries no error type, so failures are matched by the text.

use std::fmt;

/// A failure of a device or its driver, as opposed to a bug, which stays a panic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceFailure {
    /// No memory for an allocation; its size in bytes, if the message gives it.
    OutOfMemory(Option<u64>),
    /// A buffer exceeds the device's limit for a single buffer; its size in bytes, if the message gives it.
    BufferTooLarge(Option<u64>),
    /// The device is unusable for the rest of this process; the reason.
    Lost(String),
    /// A driver library is missing or too old; the reason.
    Driver(String),
    /// The device or its compiler rejected a kernel; the reason.
    Kernel(String),
}

/// Phrases that identify a failure. The first match wins, so root causes come before their consequences.
const KNOWN: [(Kind, &[&str]); 6] = [
    (
        Kind::Driver,
        &[
            "Unable to dynamically load the",
            "Missing symbol cu",
            "Missing symbol nvrtc",
            "CUDA_ERROR_NO_DEVICE",
            "CUDA_ERROR_NOT_INITIALIZED",
            "CUDA_ERROR_STUB_LIBRARY",
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            "CUDA_ERROR_SYSTEM_NOT_READY",
            "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            "CUDA_ERROR_INVALID_DEVICE",
            "CUDA installation not found",
            "cannot open source file",
            "Unable to acquire wgpu device",
            "Unable to initialize wgpu runtime",
        ],
    ),
    (
        Kind::BufferTooLarge,
        &[
            "can't allocate buffer of size: ",
            "is greater than the maximum buffer size",
            "buffer_binding_size` limit",
        ],
    ),
    (
        Kind::OutOfMemory,
        &[
            "out of device memory allocating ",
            "couldn't map storage for a deferred allocation of ",
            "every page size the memory tracks still holds live allocations",
            "An out-of-memory error happened during launch",
            "CUDA_ERROR_OUT_OF_MEMORY",
            "Not enough memory left",
            "wgpu error: Out of Memory",
        ],
    ),
    (
        Kind::Lost,
        &[
            "The device is poisoned",
            "The device was poisoned",
            "Parent device is lost",
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "CUDA_ERROR_LAUNCH_FAILED",
            "CUDA_ERROR_LAUNCH_TIMEOUT",
            "CUDA_ERROR_ECC_UNCORRECTABLE",
            "CUDA_ERROR_DEVICE_UNAVAILABLE",
            "CUDA_ERROR_UNKNOWN",
        ],
    ),
    (
        Kind::Kernel,
        &[
            "caused the compilation to fail",
            "Too many resources were requested during launch",
            "Unable to load the PTX",
        ],
    ),
    (Kind::Kernel, &["wgpu error: "]),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    OutOfMemory,
    BufferTooLarge,
    Lost,
    Driver,
    Kernel,
}

impl DeviceFailure {
    /// The failure that a panic or error message describes; `None` if it isn't a device failure.
    pub fn of(message: &str) -> Option<Self> {
        // Some messages are formatted with `Debug`, which escapes newlines.
        let message = &message.replace("\\n", "\n");
        let found = KNOWN.iter().find_map(|(kind, words)| {
            let at = words.iter().find_map(|words| Some(message.find(words)? + words.len()))?;
            Some((*kind, at))
        });
        let (kind, after) = found?;
        let reason = || reason(message);
        Some(match kind {
            Kind::OutOfMemory => Self::OutOfMemory(number(&message[after..])),
            Kind::BufferTooLarge => Self::BufferTooLarge(size_of_buffer(message)),
            Kind::Lost => Self::Lost(reason()),
            Kind::Driver => Self::Driver(reason()),
            Kind::Kernel => Self::Kernel(reason()),
        })
    }
}

/// The number that a text begins with.
fn number(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..digits].parse().ok()
}

/// `can't allocate buffer of size: 40`, `Buffer size 40 is greater than …`, `Buffer binding 0 range 40 exceeds …`.
fn size_of_buffer(message: &str) -> Option<u64> {
    ["buffer of size: ", "Buffer size ", " range "]
        .into_iter()
        .find_map(|words| number(&message[message.find(words)? + words.len()..]))
}

/// The root cause in a chain of causes: one line, no backtrace, at most `LONGEST` characters.
fn reason(message: &str) -> String {
    const LONGEST: usize = 300;
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let known = |line: &str| KNOWN.iter().any(|(_, all)| all.iter().any(|w| line.contains(w)));
    let mut at = lines.iter().position(|line| known(line)).unwrap_or_default();
    while lines.get(at + 1).is_some_and(|next| *next == "Caused by:") && at + 2 < lines.len() {
        at += 2;
    }
    // NVRTC and wgpu print a heading above the actual error.
    let heads = |line: &str| line == "[Compilation Error]" || line.starts_with("In Device::");
    while lines.get(at).is_some_and(|line| heads(line)) && at + 1 < lines.len() {
        at += 1;
    }
    let line = lines.get(at).copied().unwrap_or_default();
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

impl fmt::Display for DeviceFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory(Some(bytes)) => {
                write!(f, "out of device memory: no room for another {}", size(*bytes))
            }
            Self::OutOfMemory(None) => write!(f, "out of device memory"),
            Self::BufferTooLarge(Some(bytes)) => {
                write!(f, "a tensor of {} exceeds the device's largest buffer", size(*bytes))
            }
            Self::BufferTooLarge(None) => {
                write!(f, "a tensor exceeds the device's largest buffer")
            }
            Self::Lost(reason) => write!(f, "the device was lost: {reason}"),
            Self::Driver(reason) => write!(f, "device driver: {reason}"),
            Self::Kernel(reason) => write!(f, "the device rejected a kernel: {reason}"),
        }
    }
}

impl std::error::Error for DeviceFailure {}

impl DeviceFailure {
    /// General advice for the user. Where the stage and its settings are known, `fpo_plan::advice` gives a more specific one.
    pub const fn what_to_do(&self) -> &'static str {
        match self {
            Self::OutOfMemory(_) | Self::BufferTooLarge(_) => {
                "use smaller batches or shorter texts; `fpo plan` estimates the memory that training needs, and other programs may \
                 be using the same device"
            }
            Self::Lost(_) => {
                "files written before are intact: run the same command again, and a training continues from its last checkpoint; if it happens again, \
                 look for the driver's messages in the system log (dmesg)"
            }
            Self::Driver(_) => {
                "`cargo xtask fpo -- devices --device cuda` (or another device) shows what is available; install or update the \
                 driver, or use `--device cpu`"
            }
            Self::Kernel(_) => "try a newer driver, another backend, or `--device cpu`",
        }
    }
}

/// A number of bytes in decimal units: `2.36 GB`, `134.2 MB`, `512 bytes`.
pub fn size(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.2} GB", bytes as f64 / 1e9),
        1_000_000.. => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as CubeCL 0.11 and Burn 0.22 compose it, without a backtrace.
    fn unwritten(root: &str) -> String {
        format!(
            "Error while reading data: use `try_into_data` instead to catch the error at runtime: An error happened during execution\n\
             Caused by:\n  Several failures at once\nCaused by:\n  The bytes were never written (failure #3, still claiming 2 \
             buffer(s))\n  skipped: matmul\nCaused by:\n  {root}\nAsked at:\nNo backtrace available"
        )
    }

    #[test]
    fn messages_of_drivers_and_burn() {
        use DeviceFailure::*;
        let io = |text: &str| {
            unwritten(&format!(
                "An IO error happened\nCaused by:\n  {text}\nNo backtrace available"
            ))
        };
        let driver = |text: &str| format!("called `Result::unwrap()` on an `Err` value: {text}");
        for (text, expected) in [
            (io("out of device memory allocating 2359296000 bytes"), OutOfMemory(Some(2_359_296_000))),
            (
                io("couldn't map storage for a deferred allocation of 64 bytes\nCaused by:\n  full"),
                OutOfMemory(Some(64)),
            ),
            (
                unwritten(
                    "A launch error happened\nCaused by:\n  An out-of-memory error happened during launch\nCaused by:\n  it",
                ),
                OutOfMemory(None),
            ),
            (
                driver("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
                OutOfMemory(None),
            ),
            ("wgpu error: Out of Memory\n\nCaused by:\n  In Device::create_buffer\n".into(), OutOfMemory(None)),
            (io("can't allocate buffer of size: 4294967296"), BufferTooLarge(Some(4_294_967_296))),
            (
                "wgpu error: Validation Error\n\nCaused by:\n  In Device::create_buffer\n    Buffer size 4294967296 is \
                 greater than the maximum buffer size (2147483648)\n"
                    .into(),
                BufferTooLarge(Some(4_294_967_296)),
            ),
            (
                "wgpu error: Validation Error\n\nCaused by:\n  In Device::create_bind_group\n    Buffer binding 0 range \
                 4294967296 exceeds `max_*_buffer_binding_size` limit 2147483647\n"
                    .into(),
                BufferTooLarge(Some(4_294_967_296)),
            ),
            (
                "wgpu error: Validation Error\n\nCaused by:\n  In Device::create_shader_module\n    it is wrong\n".into(),
                Kernel("it is wrong".into()),
            ),
            (
                unwritten("The device is poisoned\nCaused by:\n  Unknown: the GPU fell off the bus\nBacktrace:\nno"),
                Lost("Unknown: the GPU fell off the bus".into()),
            ),
            (
                "Unable to dynamically load the \"nvrtc\" shared library - searched for library names: [\"libnvrtc.so\"]."
                    .into(),
                Driver(
                    "Unable to dynamically load the \"nvrtc\" shared library - searched for library names: [\"libnvrtc.so\"]."
                        .into(),
                ),
            ),
            (
                unwritten(
                    "A launch error happened\nCaused by:\n  An error caused the compilation to fail\nCaused by:\n  Unable to \
                     load the PTX: DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, \"the provided PTX was compiled with an \
                     unsupported toolchain.\")\nBacktrace:\nno",
                ),
                Driver(
                    "Unable to load the PTX: DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, \"the provided PTX was compiled \
                     with an unsupported toolchain.\")"
                        .into(),
                ),
            ),
            (
                unwritten(
                    "A launch error happened\nCaused by:\n  Too many resources were requested during launch\nToo much shared \
                     memory requested.\nRequested 200 bytes, maximum 100 bytes available.",
                ),
                Kernel("Too many resources were requested during launch".into()),
            ),
            (
                unwritten(
                    "A launch error happened\nCaused by:\n  An error caused the compilation to fail\nCaused by:\n  \
                     [Compilation Error] \n    default_program(7): error: identifier \"x\" is undefined\nBacktrace:\nno",
                ),
                Kernel("default_program(7): error: identifier \"x\" is undefined".into()),
            ),
        ] {
            assert_eq!(DeviceFailure::of(&text), Some(expected), "{text}");
        }
    }

    #[test]
    fn bugs_are_not_device_failures() {
        for text in [
            "index out of bounds: the len is 3 but the index is 7",
            "=== Tensor Operation Error ===\n  Operation: 'Matmul'",
            "called `Option::unwrap()` on a `None` value",
            "Error while reading data: use `try_into_data` instead to catch the error at runtime: wrong type",
            "",
        ] {
            assert_eq!(DeviceFailure::of(text), None, "{text}");
        }
    }

    #[test]
    fn reasons_are_short() {
        let long = format!("Parent device is lost {}", "ä".repeat(1000));
        let Some(DeviceFailure::Lost(reason)) = DeviceFailure::of(&long) else { panic!() };
        assert_eq!(reason.chars().count(), 301);
        assert_eq!(
            [size(512), size(134_217_728), size(2_359_296_000)],
            ["512 bytes", "134.2 MB", "2.36 GB"]
        );
    }
}
