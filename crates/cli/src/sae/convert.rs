//! `fpo sae convert`: from any format that is read to one that is written.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use fpo_data::atomic;
use fpo_sae::{Compression, Format, save_npz, save_sae_lens};

#[derive(Args)]
pub struct Convert {
    /// What to read, in any format.
    input: PathBuf,
    /// What to write: an archive for Gemma Scope where the name ends in .npz, else a SAELens folder.
    output: PathBuf,
    /// Gives decoder directions unit norm; features are multiplied by what they had.
    #[arg(long)]
    fold_decoder_norms: bool,
    /// Deflates an archive.
    #[arg(long)]
    compress: bool,
    /// Replaces what is there.
    #[arg(long)]
    force: bool,
}

impl Convert {
    pub fn run(self) -> Result<()> {
        let output = &self.output;
        if output.exists() && !self.force {
            bail!("{} exists; --force replaces it", output.display());
        }
        let archive = output.extension().is_some_and(|e| e == "npz");
        if self.compress && !archive {
            bail!("--compress is for archives, whose name ends in .npz");
        }
        let mut sae = fpo_sae::load(&self.input, &fpo_device::host())?;
        if self.fold_decoder_norms {
            sae = sae.fold_decoder_norms();
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
                bail!("{} is not an autoencoder's folder, and is left alone", output.display());
            }
            atomic::replace_dir(output, |folder| -> Result<()> {
                Ok(save_sae_lens(&sae, folder)?)
            })?;
            Format::SaeLens
        };
        eprintln!(
            "{}: {written}, {} features of width {}",
            output.display(),
            sae.d_sae(),
            sae.d_in()
        );
        Ok(())
    }
}
