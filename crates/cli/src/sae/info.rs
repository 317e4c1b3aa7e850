//! `fpo sae info`: format, sizes and weight statistics of an autoencoder's file.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use fpo_sae::{Description, Format, Range};
use serde_json::json;

use crate::streams::out;

/// Describes an autoencoder's file
///
/// Prints the format, the architecture, d_sae and d_in, the model and site if the file names them, and minimum,
/// maximum and mean of thresholds, encoder biases, encoder and decoder norms, and encoder–decoder cosines.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Info {
    /// The folder or file: SAELens, Gemma Scope, Llama Scope, Qwen-Scope, sparsify or dictionary_learning.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Prints JSON instead of text.
    #[arg(long)]
    json: bool,
}

impl Info {
    pub fn run(self) -> Result<()> {
        let (format, _) = Format::detect(&self.path)?;
        let description = Description::of(&fpo_sae::load(&self.path, &fpo_device::host())?);
        if self.json {
            let mut value = serde_json::to_value(&description)?;
            value["format"] = json!(format);
            return out!("{value:#}");
        }
        let d = description;
        let unknown = || "unknown".to_owned();
        let Description { activation, d_sae, d_in, .. } = &d;
        out!("{format}: {activation}, {d_sae} features, activations of width {d_in}")?;
        out!("model                   {}", d.model_name.unwrap_or_else(unknown))?;
        out!("site                    {}", d.hook_name.unwrap_or_else(unknown))?;
        for (name, values) in d.activation_parameters {
            out!("{name:<24}{}", range(values))?;
        }
        out!("encoder bias            {}", range(d.b_enc))?;
        out!("encoder norm            {}", range(d.encoder_norm))?;
        out!("decoder norm            {}", range(d.decoder_norm))?;
        out!("encoder–decoder cosine  {}", range(d.encoder_decoder_cosine))?;
        out!("decoder bias            norm {:.4}", d.b_dec_norm)
    }
}

fn range(r: Range) -> String {
    format!("{:.4} to {:.4}, mean {:.4}", r.min, r.max, r.mean)
}
