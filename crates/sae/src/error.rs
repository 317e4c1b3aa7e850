//! What can go wrong with a sparse autoencoder.

use std::path::PathBuf;

/// An error of this crate; every message says what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file that isn't an autoencoder, is damaged, or holds a kind of autoencoder that isn't supported.
    #[error("{path}: {message}")]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what was expected.
        message: String,
    },
    /// A file of `torch.save` that can't be read.
    #[error(transparent)]
    Torch(#[from] fpo_torch_file::Error),
    /// Features that are compared with each other can't be multiplied by factors of their own.
    #[error(
        "decoder norms can't be folded into a TopK autoencoder: which features are active depends on their sizes, and folding changes these"
    )]
    Folding,
    /// An autoencoder for activations of another width.
    #[error(
        "the autoencoder takes activations of width {d_in}, those at {site} have width {width}: \
         use an autoencoder trained on this model at this site"
    )]
    Width {
        /// Where the activations come from.
        site: String,
        /// The width that the autoencoder takes.
        d_in: usize,
        /// The width of the activations.
        width: usize,
    },
    /// Settings or data that no autoencoder can be trained with.
    #[error("sparse autoencoder: {0}")]
    Training(String),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn format(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Format { path: path.into(), message: message.into() }
    }
}
