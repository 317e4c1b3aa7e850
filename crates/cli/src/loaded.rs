//! Arguments that commands share: device and precision; and a model's folder as they load it.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
};

use anyhow::Result;
use burn::tensor::Device;
use clap::Args;
use fpo_data::{Fingerprint, Preparer, Rendering, System, TemplateChoice, Tokenizer, Truncation};
use fpo_interp::autoencoder;
use fpo_sae::Sae;
use fpo_transformer::{
    LanguageModel, ModelConfig, Placement, Precision, Site, hash_model, weights,
};

use crate::terminal::reporter;

#[derive(Args)]
pub struct DeviceArg {
    /// Device to compute on: cpu, cuda, wgpu, vulkan or metal, with an index if there are several, as in cuda:1; `fpo devices`
    /// lists them.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: String,
}

impl DeviceArg {
    pub fn name(&self) -> &str {
        &self.device
    }

    pub fn open(&self) -> Result<Device> {
        fpo_device::parse(&self.device)
    }
}

#[derive(Args)]
pub struct PlacementArgs {
    #[command(flatten)]
    device: DeviceArg,
    /// float32, or bf16-mixed: matrix products in bfloat16, the residual stream in float32.
    #[arg(long, default_value_t, value_name = "PRECISION")]
    precision: Precision,
}

impl PlacementArgs {
    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub fn open(&self) -> Result<Placement> {
        let device = self.device.open()?;
        fpo_plan::check_precision(&device, self.precision)?;
        Ok(Placement::new(device, self.precision))
    }
}

/// A model's folder without its weights, so that errors in the data are found before the weights are loaded.
pub struct ModelFolder {
    path: PathBuf,
    pub config: ModelConfig,
    pub tokenizer: Tokenizer,
    pub template: TemplateChoice,
}

impl ModelFolder {
    pub fn open(path: &Path) -> Result<Self> {
        let config = ModelConfig::load(path)?;
        let tokenizer = Tokenizer::load(path)?.for_table(config.vocab_size)?;
        let template = TemplateChoice::from(tokenizer.chat_template()?);
        Ok(Self { path: path.to_owned(), config, tokenizer, template })
    }

    /// What the outputs of the model depend on, in this precision.
    ///
    /// # Errors
    /// Weights that can't be read.
    pub fn fingerprint(&self, precision: Precision) -> Result<Fingerprint> {
        Ok(Fingerprint::default()
            .with("model weights", hash_model(&self.path)?)
            .with("tokenizer", self.tokenizer.hash())
            .with("chat template", self.template.hash())
            .with("precision", precision))
    }

    /// The same folder, with system messages treated like this.
    pub fn with_system(self, system: System) -> Self {
        Self { template: self.template.with_system(system), ..self }
    }

    /// Loads the weights.
    pub fn load(&self, placement: impl Into<Placement>) -> Result<LanguageModel> {
        note_left_out(&self.path)?;
        Ok(weights::load(&self.path, placement)?)
    }

    /// The folder with its weights.
    pub fn loaded(self, placement: impl Into<Placement>) -> Result<Loaded> {
        Ok(Loaded { model: self.load(placement)?, folder: self })
    }

    /// Loads an autoencoder, which must have the width of the site. If its file names another model or site, it warns.
    pub fn open_sae(&self, path: &Path, site: Site, device: &Device) -> Result<Sae> {
        autoencoder::open(path, site, &self.config, Some(&self.path), device, &reporter())
    }

    /// A preparer that doesn't truncate.
    pub fn preparer(&self, rendering: Rendering) -> Result<Preparer<'_>> {
        let truncation = Truncation { max_length: usize::MAX, max_prompt_length: None };
        Ok(Preparer::new(&self.tokenizer, &self.template, rendering, truncation)?)
    }
}

/// Says what of a model's folder isn't used.
pub fn note_left_out(folder: &Path) -> Result<()> {
    if let Some(warning) = weights::leftover(folder) {
        reporter().warn(warning);
    }
    let tensors = weights::left_out(folder)?;
    if tensors > 0 {
        let text = format!(
            "{}: only the language model is used; {tensors} tensors of the vision tower are left out",
            folder.display()
        );
        reporter().note("model", text);
    }
    Ok(())
}

/// A model's folder with its weights loaded.
pub struct Loaded {
    pub model: LanguageModel,
    folder: ModelFolder,
}

impl Deref for Loaded {
    type Target = ModelFolder;

    fn deref(&self) -> &ModelFolder {
        &self.folder
    }
}

impl Loaded {
    pub fn open(path: &Path, placement: impl Into<Placement>) -> Result<Self> {
        ModelFolder::open(path)?.loaded(placement)
    }

    /// [`ModelFolder::open_sae`] on the model's device.
    pub fn open_sae(&self, path: &Path, site: Site) -> Result<Sae> {
        self.folder.open_sae(path, site, &self.model.device())
    }
}
