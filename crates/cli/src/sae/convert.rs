//! `fpo sae convert`: from any supported format to a SAELens folder or a Gemma Scope archive.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use fpo_data::atomic;
use fpo_sae::{Compression, Format, save_npz, save_sae_lens};

use crate::{streams, terminal::reporter};

/// Converts an autoencoder to another format
///
/// Writes a Gemma Scope archive (float32) if the output's name ends in .npz, otherwise a SAELens folder.
///
/// Examples:
///   fpo sae convert gemma-scope-2b-pt-res/layer_25/width_16k/average_l0_116 sae
///   fpo sae convert sae params.npz --compress
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Convert {
    /// The autoencoder to read: SAELens, Gemma Scope, Llama Scope, Qwen-Scope, sparsify or dictionary_learning.
    input: PathBuf,
    /// The archive (.npz) or folder to write.
    #[arg(value_parser = streams::output)]
    output: PathBuf,
    /// Rescales decoder directions to unit norm; feature activations are multiplied by the old norms.
    #[arg(long)]
    fold_decoder_norms: bool,
    /// Compresses the archive with deflate.
    #[arg(long)]
    compress: bool,
    /// Replaces an existing output.
    #[arg(long)]
    force: bool,
}

impl Convert {
    pub fn run(self) -> Result<()> {
        let output = &self.output;
        streams::keep_apart(output, &[&self.input])?;
        if output.exists() && !self.force {
            bail!("{} already exists; replace it with --force", output.display());
        }
        let archive = output.extension().is_some_and(|e| e == "npz");
        if self.compress && !archive {
            bail!("--compress works only for archives; the output's name must end in .npz");
        }
        let mut sae = fpo_sae::load(&self.input, &fpo_device::host())?;
        if self.fold_decoder_norms {
            sae = sae.fold_decoder_norms()?;
        }
        let written = if archive {
            let compression = match self.compress {
                true => Compression::Deflated,
                false => Compression::Stored,
            };
            atomic::write_file(output, |file| -> Result<()> {
                Ok(save_npz(&sae, file, compression)?)
            })?;
            Format::GemmaScope
        } else {
            if output.exists() && !matches!(Format::detect(output), Ok((Format::SaeLens, _))) {
                bail!("{} is not an autoencoder's folder, so it was left alone", output.display());
            }
            atomic::replace_dir(output, |folder| -> Result<()> {
                Ok(save_sae_lens(&sae, folder)?)
            })?;
            Format::SaeLens
        };
        let note = format!(
            "{}: {written}, {} features, activations of width {}",
            output.display(),
            sae.d_sae(),
            sae.d_in()
        );
        reporter().note("converted", note);
        Ok(())
    }
}
