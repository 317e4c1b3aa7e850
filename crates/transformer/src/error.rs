//! What can go wrong between a checkpoint's folder and a model.

use std::path::PathBuf;

/// An error of this crate; every message says what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// `config.json` describes a model, or `adapter_config.json` an adapter, that isn't supported.
    #[error("{path}: {message}")]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A safetensors file is damaged or holds something unexpected.
    #[error("{path}: not a readable safetensors file: {message}")]
    Format {
        /// The weights file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The tensors of a checkpoint are not those that its configuration asks for.
    #[error("{path}: the weights do not fit config.json:\n  {}", problems.join("\n  "))]
    Weights {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Every missing, extra or mis-shaped tensor, one line each.
        problems: Vec<String>,
    },
    /// The tensors of an adapter are not those that its configuration and the model ask for.
    #[error("{path}: the adapter does not fit the model:\n  {}", problems.join("\n  "))]
    Adapter {
        /// The adapter's folder.
        path: PathBuf,
        /// Every missing, extra or mis-shaped tensor, one line each.
        problems: Vec<String>,
    },
    /// A parameter is larger than any tensor on the device.
    #[error(
        "`{name}` takes {bytes} bytes, and the device takes no tensor of more than {largest}{}: use another device, such as cpu",
        match parts { 1 => String::new(), parts => format!(" (and this one in at most {parts} parts)") }
    )]
    TooLarge {
        /// Its name in a checkpoint.
        name: String,
        /// Its size.
        bytes: usize,
        /// The device's limit, in bytes.
        largest: usize,
        /// How many tensors of that size it may be in.
        parts: usize,
    },
    /// No published model has this name.
    #[error("model `{name}` is not known: the known ones are {known}")]
    UnknownModel {
        /// The name that was asked for.
        name: String,
        /// The names that are known, separated by commas.
        known: String,
    },
    /// An activation site could not be understood, or the model lacks it.
    #[error("site `{0}`: {1}")]
    Site(String, String),
    /// Options by which nothing can be generated.
    #[error("generation: {0}")]
    Generation(String),
    /// A prompt does not fit the model.
    #[error("prompt {index}: {message}")]
    Prompt {
        /// Which of the prompts, 0-based.
        index: usize,
        /// What is wrong with it.
        message: String,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
