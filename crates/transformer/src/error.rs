//! Errors of loading, saving and generating.

use std::path::PathBuf;

/// Every message says what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// `config.json` describes a model, or `adapter_config.json` an adapter, that isn't supported.
    #[error("{path}: {message}")]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong and what is expected.
        message: String,
    },
    /// A safetensors file is damaged or has unexpected contents.
    #[error("{path}: not a readable safetensors file: {message}")]
    Format {
        /// The weights file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A file of PyTorch, such as `pytorch_model.bin`, can't be read.
    #[error(transparent)]
    Torch(#[from] fpo_torch_file::Error),
    /// The tensors of a checkpoint don't match its configuration.
    #[error("{path}: the weights don't match config.json:\n  {}", problems.join("\n  "))]
    Weights {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Every missing, extra or mis-shaped tensor, one line each.
        problems: Vec<String>,
    },
    /// The tensors of an adapter don't match its configuration and the model.
    #[error("{path}: the adapter doesn't match the model:\n  {}", problems.join("\n  "))]
    Adapter {
        /// The adapter's folder.
        path: PathBuf,
        /// Every missing, extra or mis-shaped tensor, one line each.
        problems: Vec<String>,
    },
    /// Settings of adapters that don't fit the model.
    #[error("adapters: {0}")]
    Adapters(String),
    /// A parameter is larger than the largest tensor that the device can hold.
    #[error(
        "`{name}` takes {bytes} bytes, but the device's largest tensor has {largest}{}: use another device, such as cpu",
        match parts { 1 => String::new(), parts => format!(" (and it can be split into at most {parts} parts)") }
    )]
    TooLarge {
        /// The parameter's name in a checkpoint.
        name: String,
        /// The parameter's size in bytes.
        bytes: usize,
        /// The device's limit for one tensor, in bytes.
        largest: usize,
        /// The most tensors that the parameter may be split into.
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
    /// An activation site is malformed, or the model lacks it.
    #[error("site `{0}`: {1}")]
    Site(String, String),
    /// Invalid generation options.
    #[error("generation: {0}")]
    Generation(String),
    /// A prompt doesn't fit the model.
    #[error("prompt {index}: {message}")]
    Prompt {
        /// The prompt's index, from 0.
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
