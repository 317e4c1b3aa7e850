//! `fpo data …`: the built-in dataset as files.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use fpo_data::atomic;
use fpo_datasets::{PreferencePair, SftExample, Sizes, generate, write_jsonl};
use serde_json::{Value, json};

use crate::{settings::SettingsArgs, streams::out};

#[derive(Subcommand)]
pub enum Data {
    Export(Export),
}

impl Data {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Export(export) => export.run(),
        }
    }
}

/// Writes the built-in dataset as JSON lines
///
/// The folder gets
///   pairs.jsonl      training pairs: prompt, chosen, rejected
///   held_out.jsonl   held-out pairs
///   examples.jsonl   examples for fine-tuning: prompt, response
/// with the sizes of data.built_in and the seed of the settings. A run on these files trains on the same rows as
/// one on the built-in data, and shows the form that your own data may have.
///
/// Example:
///   fpo data export --out data --set data.built_in.pairs=1000
///   fpo train --set data.train=data/pairs.jsonl --set data.eval=data/held_out.jsonl \
///       --set data.sft=data/examples.jsonl --run runs/mine
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Export {
    /// The folder to write; files of the same names in it are replaced.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl Export {
    pub fn run(self) -> Result<()> {
        let settings = self.settings.resolve()?;
        if self.out.is_file() {
            bail!("--out {} is a file; name a folder", self.out.display());
        }
        let sizes = &settings.data.built_in;
        let data = generate(
            settings.seed,
            &Sizes {
                sft: sizes.sft,
                pairs: sizes.pairs,
                held_out_pairs: sizes.held_out_pairs,
                held_out_prompts: sizes.held_out_prompts,
            },
        );
        let pair = |pair: PreferencePair| {
            let PreferencePair { prompt, chosen, rejected, .. } = pair;
            json!({ "prompt": prompt, "chosen": chosen, "rejected": rejected })
        };
        self.write("pairs.jsonl", data.pairs.into_iter().map(pair))?;
        self.write("held_out.jsonl", data.held_out_pairs.into_iter().map(pair))?;
        let example =
            |SftExample { prompt, response, .. }| json!({ "prompt": prompt, "response": response });
        self.write("examples.jsonl", data.sft.into_iter().map(example))
    }

    fn write(&self, name: &str, rows: impl Iterator<Item = Value>) -> Result<()> {
        let path = self.out.join(name);
        let rows: Vec<Value> = rows.collect();
        atomic::write_file(&path, |file| -> Result<()> {
            write_jsonl(&rows, file).with_context(|| format!("writing {}", path.display()))
        })?;
        out!("{}  {} rows", path.display(), rows.len())
    }
}
