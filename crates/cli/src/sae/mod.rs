//! `fpo sae …`: sparse autoencoders.

mod convert;
pub mod dashboard;
mod encode;
mod evaluate;
mod info;
mod rows;
mod train;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Sae {
    Info(info::Info),
    Convert(convert::Convert),
    Encode(encode::Encode),
    Evaluate(evaluate::Evaluate),
    Dashboard(dashboard::Dashboard),
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
