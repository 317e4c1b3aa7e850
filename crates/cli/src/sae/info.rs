//! `fpo sae info`: what a file is.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use fpo_sae::{Description, Format, Range};
use serde_json::json;

#[derive(Args)]
pub struct Info {
    /// A SAELens folder, Gemma Scope's params.npz, or a Gemma Scope 2 folder.
    path: PathBuf,
    /// Prints JSON.
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
            println!("{value:#}");
            return Ok(());
        }
        let d = description;
        let unknown = || "not said".to_owned();
        let Description { activation, d_sae, d_in, .. } = &d;
        println!("{format}: {activation}, {d_sae} features of activations of width {d_in}");
        println!("model                   {}", d.model_name.unwrap_or_else(unknown));
        println!("site                    {}", d.hook_name.unwrap_or_else(unknown));
        for (name, values) in d.activation_parameters {
            println!("{name:<24}{}", range(values));
        }
        println!("encoder bias            {}", range(d.b_enc));
        println!("encoder norm            {}", range(d.encoder_norm));
        println!("decoder norm            {}", range(d.decoder_norm));
        println!("encoder–decoder cosine  {}", range(d.encoder_decoder_cosine));
        println!("decoder bias            norm {:.4}", d.b_dec_norm);
        Ok(())
    }
}

fn range(r: Range) -> String {
    format!("{:.4} to {:.4}, mean {:.4}", r.min, r.max, r.mean)
}
