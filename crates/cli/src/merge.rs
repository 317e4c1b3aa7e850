//! `fpo merge`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use fpo_data::atomic;
use fpo_report::ModelCard;
use fpo_trainer::stages::report::write_page;
use fpo_transformer::{
    Placement, Precision, WeightType, adapter,
    weights::{self, Origin},
};

use crate::{loaded::note_left_out, streams::out};

/// Merges a LoRA adapter into its base model
///
/// Writes a model's folder in Hugging Face's layout. Weights have the base model's types, and every file of the base
/// model that isn't about its weights goes along: tokenizer, chat template, generation_config.json and so on.
///
/// Example:
///   fpo merge --model gemma-2-2b --adapter runs/mine/align/adapter --out merged
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Merge {
    /// Folder of the base model in Hugging Face's layout.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Folder of the adapter in PEFT's format.
    #[arg(long, value_name = "FOLDER")]
    adapter: PathBuf,
    /// Folder to create for the merged model.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Type of the weights: float32, bfloat16 or float16 [default: the base model's].
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightType>,
}

impl Merge {
    pub fn run(self) -> Result<()> {
        if self.out.exists() {
            bail!("{} already exists; choose a new folder for --out", self.out.display());
        }
        let device = fpo_device::host();
        // The base weights in memory are only a frame for the adapters; what is saved is read from the base model's files again.
        // So the smallest precision does.
        let frame = Placement::new(device.clone(), Precision::Bf16Mixed);
        note_left_out(&self.model)?;
        let base = weights::load(&self.model, frame)?;
        let adapted = adapter::load(&base, &self.adapter, &device)?;
        let origin = Origin { weight_type: self.dtype, ..Origin::base(&self.model) };
        atomic::replace_dir(&self.out, |folder| -> Result<()> {
            weights::save_from(&adapted, &origin, folder)?;
            write_page(&folder.join("README.md"), &self.card().markdown())
        })?;
        out!("merged  {}", self.out.display())
    }

    fn card(&self) -> ModelCard {
        let name = |path: &Path| {
            path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
        };
        let (base, adapter) = (name(&self.model), name(&self.adapter));
        ModelCard {
            title: format!("{base} with {adapter}"),
            library: "transformers".into(),
            base_model: Some(base),
            tags: vec!["fpo".into(), "merge".into()],
            about: format!("A model into which the adapter `{adapter}` was merged by `fpo merge`."),
            ..ModelCard::default()
        }
    }
}
