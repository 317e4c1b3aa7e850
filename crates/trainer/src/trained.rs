//! What of a model is trained: all of it, or adapters beside it. This decides what a checkpoint holds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fpo_transformer::{LanguageModel, LoraConfig, ModelConfig, Placement, adapter, weights};

/// Where a result holds its adapters, beside the merged model.
pub(crate) const ADAPTER_FOLDER: &str = "adapter";

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
    pub fn load(&self, placement: &Placement) -> Result<LanguageModel> {
        Ok(match self {
            Self::Folder(path) => weights::load(path, placement)?,
            Self::Random { config, seed } => weights::random(config, *seed, placement)?,
        })
    }
}

/// What of a model is trained.
pub struct Trained {
    initial: Initial,
    /// Adapters alone, where there are any.
    adapters: Option<Adapters>,
}

struct Adapters {
    config: LoraConfig,
    /// The frozen model, whose tensors the trained one shares.
    base: LanguageModel,
}

impl Trained {
    /// All parameters; or adapters, beside a frozen model that is loaded to `frozen`.
    ///
    /// # Errors
    /// A model that can't be loaded.
    pub fn new(initial: Initial, lora: Option<&LoraConfig>, frozen: &Placement) -> Result<Self> {
        let adapters = match lora {
            None => None,
            Some(config) => Some(Adapters { config: config.clone(), base: initial.load(frozen)? }),
        };
        Ok(Self { initial, adapters })
    }

    /// The frozen model, where adapters are trained.
    pub fn base(&self) -> Option<&LanguageModel> {
        self.adapters.as_ref().map(|adapters| &adapters.base)
    }

    /// The model at the first step.
    ///
    /// # Errors
    /// A model that can't be loaded, or an adapter that doesn't fit it.
    pub fn start(&self, seed: u64, placement: &Placement) -> Result<LanguageModel> {
        match &self.adapters {
            None => self.initial.load(placement),
            Some(Adapters { config, base }) => {
                Ok(base.with_new_lora(config, seed, &placement.device)?)
            }
        }
    }

    /// Writes what training has changed into a checkpoint.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, model: &LanguageModel, folder: &Path) -> Result<()> {
        match self.adapters {
            None => weights::save(model, folder)?,
            Some(_) => adapter::save(model, folder)?,
        }
        Ok(())
    }

    /// The model of a checkpoint.
    ///
    /// # Errors
    /// A checkpoint that can't be read.
    pub fn load(&self, folder: &Path, placement: &Placement) -> Result<LanguageModel> {
        match &self.adapters {
            None => Ok(weights::load(folder, placement)?),
            Some(adapters) => Ok(adapter::load(&adapters.base, folder, &placement.device)?),
        }
    }

    /// Writes the result: the model in Hugging Face's layout, and its adapters in PEFT's beside it.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(&self, model: &LanguageModel, folder: &Path) -> Result<()> {
        match (&self.adapters, &self.initial) {
            (Some(_), Initial::Folder(base)) => weights::save_merged(model, base, folder)?,
            _ => weights::save(model, folder)?,
        }
        if model.lora().is_some() {
            let folder = folder.join(ADAPTER_FOLDER);
            fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
            adapter::save(model, &folder)?;
        }
        Ok(())
    }
}

/// The model that [`Trained::finish`] wrote. Where it is adapters of `base`, it shares that model's tensors.
///
/// # Errors
/// A result that can't be read.
pub fn load_result(
    folder: &Path,
    base: &LanguageModel,
    placement: &Placement,
) -> Result<LanguageModel> {
    let adapter = folder.join(ADAPTER_FOLDER);
    match adapter.is_dir() {
        true => Ok(adapter::load(base, &adapter, &placement.device)?),
        false => Ok(weights::load(folder, placement)?),
    }
}
