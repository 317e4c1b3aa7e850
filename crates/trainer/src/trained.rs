//! What of a model is trained: all of it, or adapters beside it. This decides what a checkpoint holds.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use fpo_config::ModelSettings;
pub use fpo_transformer::weights::Initial;
use fpo_transformer::{
    LanguageModel, LoraConfig, Placement, WeightType, adapter,
    weights::{self, Origin},
};

/// Where a result holds its adapters, beside the merged model.
pub(crate) const ADAPTER_FOLDER: &str = "adapter";

/// Of a change that is written down to this share or more, nothing is said.
const MOSTLY_KEPT: f64 = 0.9;

/// What of a model is trained.
pub struct Trained {
    initial: Initial,
    origin: Origin,
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
    pub fn new(
        settings: &ModelSettings,
        initial: Initial,
        lora: Option<&LoraConfig>,
        frozen: &Placement,
    ) -> Result<Self> {
        let origin = settings.origin(initial.folder());
        let adapters = match lora {
            None => None,
            Some(config) => Some(Adapters { config: config.clone(), base: initial.load(frozen)? }),
        };
        Ok(Self { initial, origin, adapters })
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
            None => Ok(self.initial.load(placement)?),
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
            Some(_) => adapter::save(model, folder, None)?,
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

    /// Writes the result: the model in Hugging Face's layout with all that its base has beside weights, and its adapters in
    /// PEFT's format. Notes it if the weights' type loses a good part of what was trained.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(
        &self,
        model: &LanguageModel,
        folder: &Path,
        note: impl FnOnce(String),
    ) -> Result<()> {
        weights::save_from(model, &self.origin, folder)?;
        // Which keeps all, in the type in which it is trained.
        let is_rounded = self.origin.weight_type != Some(WeightType::Float32);
        if is_rounded
            && let Some(kept) = weights::kept_change(model, &self.origin)?
            && kept < MOSTLY_KEPT
        {
            note(format!(
                "the type in which the weights are saved keeps {:.0} % of what training changed: many moved by less than half a step of \
                 it; model.save_dtype=float32 keeps all",
                100.0 * kept.max(0.0)
            ));
        }
        if model.lora().is_some() {
            let folder = folder.join(ADAPTER_FOLDER);
            fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
            adapter::save(model, &folder, self.origin.base.as_deref())?;
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
