//! `fpo sae …`: sparse autoencoders by themselves.

mod convert;
mod encode;
mod info;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Sae {
    /// Says what an autoencoder's file is.
    Info(info::Info),
    /// Writes an autoencoder in another format.
    Convert(convert::Convert),
    /// Features, or reconstructions, of activations in a file.
    Encode(encode::Encode),
}

impl Sae {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Info(info) => info.run(),
            Self::Convert(convert) => convert.run(),
            Self::Encode(encode) => encode.run(),
        }
    }
}
