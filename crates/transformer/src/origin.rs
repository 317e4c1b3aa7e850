//! Where a model's weights come from.

use std::path::{Path, PathBuf};

use crate::{Error, LanguageModel, ModelConfig, Placement, WeightType, weights};

/// The model that a training starts from.
#[derive(Clone, Debug)]
pub enum Initial {
    /// A checkpoint in Hugging Face's layout.
    Folder(PathBuf),
    /// Random weights.
    Random {
        /// Sizes and constants.
        config: Box<ModelConfig>,
        /// Seeds the weights.
        seed: u64,
    },
}

impl Initial {
    /// Loads or draws the weights.
    ///
    /// # Errors
    /// A checkpoint that can't be read.
    pub fn load(&self, placement: &Placement) -> Result<LanguageModel, Error> {
        match self {
            Self::Folder(path) => weights::load(path, placement),
            Self::Random { config, seed } => weights::random(config, *seed, placement),
        }
    }

    /// The checkpoint's folder.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(path) => Some(path),
            Self::Random { .. } => None,
        }
    }
}

/// What a model was made from, and so what a folder of it takes over.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The checkpoint whose weights were trained, or to which adapters were added.
    pub base: Option<PathBuf>,
    /// The folder of its tokenizer, if not `base`.
    pub tokenizer: Option<PathBuf>,
    /// The type of the weights; defaults to that of each tensor of `base`, or to float32 without a base.
    pub weight_type: Option<WeightType>,
}

impl Origin {
    /// A checkpoint with its own tokenizer, in its own types.
    pub fn base(folder: &Path) -> Self {
        Self { base: Some(folder.to_owned()), ..Self::default() }
    }
}
