//! What commands on a model have in common: where they compute, and a model with its tokenizer.

use std::path::Path;

use anyhow::Result;
use burn::tensor::Device;
use clap::Args;
use fpo_data::{Preparer, TemplateChoice, Tokenizer, Truncation};
use fpo_transformer::{Gemma2, weights};

#[derive(Args)]
pub struct DeviceArg {
    /// Where to compute: cpu, cuda, cuda:N, wgpu, vulkan or metal.
    #[arg(long, default_value = "cpu")]
    device: String,
}

impl DeviceArg {
    pub fn open(&self) -> Result<Device> {
        crate::device::parse(&self.device)
    }
}

/// A model's folder: weights, tokenizer, chat template.
pub struct Loaded {
    pub model: Gemma2,
    pub tokenizer: Tokenizer,
    pub template: TemplateChoice,
}

impl Loaded {
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let tokenizer = Tokenizer::load(folder)?;
        let model = weights::load(folder, device)?;
        let template = TemplateChoice::from(tokenizer.chat_template()?);
        Ok(Self { model, tokenizer, template })
    }

    /// Texts to tokens, as long as the model has positions.
    pub fn preparer(&self) -> Result<Preparer<'_>> {
        let max_length = self.model.config().max_position_embeddings;
        let truncation = Truncation { max_length, max_prompt_length: None };
        Ok(Preparer::new(&self.tokenizer, &self.template, truncation)?)
    }
}
