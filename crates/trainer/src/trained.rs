//! What of a model is trained: all of it, or adapters beside it. It decides what a checkpoint holds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fpo_transformer::{LanguageModel, LoraConfig, Placement, adapter, weights};

/// Where a result holds its adapters, beside the merged model.
const ADAPTER_FOLDER: &str = "adapter";

/// What of a model is trained.
pub enum Trained {
    /// Every parameter.
    Everything,
    /// Low-rank adapters of this model, which stays as it is.
    Adapters {
        /// Its tensors are shared with the model that is trained.
        base: Box<LanguageModel>,
        /// The folder that it was read from.
        folder: Option<PathBuf>,
        /// Their shape.
        config: LoraConfig,
    },
}

impl Trained {
    /// Everything, or adapters where the settings ask for them; `load` gives the model of `folder`, if it is not a random one, where
    /// it is told to, here without autodiff.
    pub fn new(
        lora: Option<&LoraConfig>,
        placement: &Placement,
        folder: Option<&Path>,
        load: impl FnOnce(&Placement) -> Result<LanguageModel>,
    ) -> Result<Self> {
        let Some(config) = lora else { return Ok(Self::Everything) };
        let base = Box::new(load(placement)?);
        Ok(Self::Adapters { base, folder: folder.map(Path::to_owned), config: config.clone() })
    }

    /// The frozen model, where there is one.
    pub fn base(&self) -> Option<&LanguageModel> {
        match self {
            Self::Everything => None,
            Self::Adapters { base, .. } => Some(base),
        }
    }

    /// The model that a training begins with, on a device with autodiff.
    pub fn start(
        &self,
        seed: u64,
        placement: &Placement,
        load: impl FnOnce(&Placement) -> Result<LanguageModel>,
    ) -> Result<LanguageModel> {
        match self {
            Self::Everything => load(placement),
            Self::Adapters { base, config, .. } => {
                Ok(base.with_new_lora(config, seed, &placement.device)?)
            }
        }
    }

    /// Writes what has changed since the start into a checkpoint.
    pub fn save(&self, model: &LanguageModel, folder: &Path) -> Result<()> {
        match self {
            Self::Everything => weights::save(model, folder)?,
            Self::Adapters { .. } => adapter::save(model, folder)?,
        }
        Ok(())
    }

    /// The model of a checkpoint, to be trained on.
    pub fn load(&self, folder: &Path, placement: &Placement) -> Result<LanguageModel> {
        match self {
            Self::Everything => Ok(weights::load(folder, placement)?),
            Self::Adapters { base, .. } => Ok(adapter::load(base, folder, &placement.device)?),
        }
    }

    /// Writes a result: the model in Hugging Face's layout, and adapters in PEFT's beside it.
    pub fn finish(&self, model: &LanguageModel, folder: &Path) -> Result<()> {
        match self {
            Self::Adapters { folder: Some(base), .. } => weights::save_merged(model, base, folder)?,
            Self::Adapters { folder: None, .. } | Self::Everything => weights::save(model, folder)?,
        }
        if model.lora().is_some() {
            let folder = folder.join(ADAPTER_FOLDER);
            fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
            adapter::save(model, &folder)?;
        }
        Ok(())
    }
}

/// The model that [`Trained::finish`] wrote into `folder`, beside `base` where it is adapters of that: no second model then.
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
