//! What commands on a model have in common: where they compute, and a model with its tokenizer.

use std::path::Path;

use anyhow::Result;
use burn::tensor::Device;
use clap::Args;
use fpo_data::{Preparer, Rendering, TemplateChoice, Tokenizer, Truncation};
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

    /// Tokens that no sparse autoencoder is trained on: BOS, EOS, padding.
    pub fn special_tokens(&self) -> Vec<u32> {
        let tokenizer = &self.tokenizer;
        let named = [tokenizer.bos_id(), tokenizer.eos_id()].into_iter().flatten();
        named.chain([tokenizer.pad_id()]).collect()
    }

    /// Texts to tokens, none of them cut.
    pub fn preparer(&self, rendering: Rendering) -> Result<Preparer<'_>> {
        let truncation = Truncation { max_length: usize::MAX, max_prompt_length: None };
        let preparer = Preparer::new(&self.tokenizer, &self.template, truncation)?;
        Ok(match rendering {
            Rendering::Conversations => preparer,
            Rendering::AsGiven => preparer.as_given()?,
        })
    }
}
