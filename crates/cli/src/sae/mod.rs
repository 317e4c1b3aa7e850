//! `fpo sae …`: sparse autoencoders by themselves.

mod convert;
mod dashboard;
mod encode;
mod evaluate;
mod info;
mod rows;
mod train;

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
    /// Measures an autoencoder on a model: sparsity, reconstruction, and the loss with it spliced in.
    Evaluate(evaluate::Evaluate),
    /// Writes a page of what features are about.
    Dashboard(dashboard::Dashboard),
    /// Trains autoencoders on a model's activations.
    Train(train::Train),
}

impl Sae {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Info(info) => info.run(),
            Self::Convert(convert) => convert.run(),
            Self::Encode(encode) => encode.run(),
            Self::Evaluate(evaluate) => evaluate.run(),
            Self::Dashboard(dashboard) => dashboard.run(),
            Self::Train(train) => train.run(),
        }
    }
}
