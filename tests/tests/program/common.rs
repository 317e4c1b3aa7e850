//! Runs of the whole program as a user starts it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

/// How long a run may take to get somewhere: only one that hangs is as slow, whatever else the machine does.
pub const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// The program, with standard streams caught.
pub fn fpo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fpo-under-test"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Both streams as one text.
pub fn text(output: &Output) -> String {
    let read = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    read(&output.stdout) + &read(&output.stderr)
}

/// Runs to the end, which must be a good one, and returns what was printed.
pub fn succeed(args: &[&str]) -> String {
    let output = fpo(args).output().expect("the program starts");
    let printed = text(&output);
    assert!(output.status.success(), "{args:?} failed:\n{printed}");
    printed
}

/// Runs to the end, which must be one clear message and a non-zero status, and returns the message.
pub fn fail(args: &[&str]) -> String {
    let output = fpo(args).output().expect("the program starts");
    let printed = text(&output);
    assert!(!output.status.success(), "{args:?} succeeded:\n{printed}");
    assert!(!printed.contains("panicked"), "{args:?} panicked:\n{printed}");
    let errors: Vec<&str> = printed.lines().filter(|l| l.starts_with("error")).collect();
    assert_eq!(errors.len(), 1, "{args:?}: not one message:\n{printed}");
    printed
}

/// `FPO_TEST_QUICK=1` skips what runs the whole program.
pub fn skip_when_quick(test: &str) -> bool {
    let quick = std::env::var_os("FPO_TEST_QUICK").is_some();
    if quick {
        eprintln!("SKIPPED {test}: FPO_TEST_QUICK is set");
    }
    quick
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// Real preference pairs.
pub struct RealPairs {
    pub path: PathBuf,
    pub rows: usize,
    /// Rows with an empty response.
    pub empty: usize,
}

impl RealPairs {
    /// The repository's sample of HH-RLHF.
    const SAMPLE_ROWS: usize = 40;

    /// HH-RLHF's harmless-base test set where it lies beside the checkout, else the repository's sample of it.
    pub fn hh_rlhf() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let path = root.join("../shared/data/hh-rlhf/harmless-base-test.jsonl.gz");
        if path.is_file() {
            return Self { path, rows: 2312, empty: 4 };
        }
        let path = root.join("datasets/samples/hh-rlhf.jsonl");
        Self { path, rows: Self::SAMPLE_ROWS, empty: 1 }
    }

    pub fn is_sample(&self) -> bool {
        self.rows == Self::SAMPLE_ROWS
    }
}
