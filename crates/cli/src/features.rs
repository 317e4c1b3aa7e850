//! `fpo features …`: sets of features by what they say.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use fpo_data::{Preparer, Rendering, TemplateChoice, Truncation};
use fpo_transformer::Site;

use super::loaded::{Loaded, PlacementArgs};
use fpo_interp::features::{FeatureFile, FindOptions, Found, TextFeatures, find};

/// A file of texts larger than this is refused before it is read.
const LARGEST_FILE: u64 = 1 << 30;

#[derive(Subcommand)]
pub enum Features {
    /// Ranks the features that separate two sets of texts, and writes them to a file.
    Find(Find),
}

impl Features {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Find(find) => find.run(),
        }
    }
}

#[derive(Args)]
pub struct Find {
    /// A model's folder in Hugging Face's layout, with its tokenizer.
    #[arg(long)]
    model: PathBuf,
    /// A sparse autoencoder.
    #[arg(long)]
    sae: PathBuf,
    /// Where it reads, such as resid_post:25.
    #[arg(long)]
    site: Site,
    /// Texts that show what is looked for, one on each line.
    #[arg(long)]
    positive: PathBuf,
    /// Texts that don't, one on each line.
    #[arg(long)]
    negative: PathBuf,
    /// The feature file that is written, for align.feature_weights.
    #[arg(long)]
    out: PathBuf,
    /// At most so many features.
    #[arg(long, default_value_t = 20)]
    top: usize,
    /// The share of each set by which the found features are judged.
    #[arg(long, default_value_t = 0.5)]
    hold_out: f64,
    /// Seeds the choice of that share.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tokens of a text, at most.
    #[arg(long, default_value_t = 512)]
    max_length: usize,
    /// Texts a forward pass.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    #[command(flatten)]
    placement: PlacementArgs,
}

impl Find {
    pub fn run(self) -> Result<()> {
        if !(self.hold_out > 0.0 && self.hold_out < 1.0) {
            bail!("--hold-out {} is a share between 0 and 1", self.hold_out);
        }
        let reporter = crate::terminal::reporter();
        let placement = self.placement.open()?;
        let loaded = Loaded::open(&self.model, &placement)?;
        let site = self.site;
        let sae = loaded.open_sae(&self.sae, site)?;
        let excluded = loaded.tokenizer.special_ids();
        let reader = TextFeatures {
            model: &loaded.model,
            encoder: &sae.encoder,
            site,
            excluded: &excluded,
            texts_at_once: self.batch_size as usize,
            reporter: &reporter,
        };
        let positive = self.texts(&loaded, &reader, &self.positive)?;
        let negative = self.texts(&loaded, &reader, &self.negative)?;
        let options = FindOptions { top: self.top, hold_out: self.hold_out, seed: self.seed };
        let found = find(&reader, &positive, &negative, &options)?;
        if found.is_empty() {
            bail!("no feature is more active on {}", self.positive.display());
        }
        FeatureFile::of(&found, &sae.encoder, site).save(&self.out)?;
        println!("{}", table(&found));
        println!("features  {}", self.out.display());
        Ok(())
    }

    /// The lines of a file as tokens, BOS first; lines without text are left out.
    fn texts(&self, loaded: &Loaded, reader: &TextFeatures, path: &Path) -> Result<Vec<Vec<u32>>> {
        let place = || format!("texts {}", path.display());
        let size = fs::metadata(path).with_context(place)?.len();
        if size > LARGEST_FILE {
            bail!("{}: {size} bytes are more than the {LARGEST_FILE} read", place());
        }
        let text = fs::read_to_string(path).with_context(place)?;
        let most = self.max_length.min(loaded.model.config().max_position_embeddings);
        // Texts as they are: a chat template would put the same turns around all of them.
        let truncation = Truncation { max_length: most.max(2), max_prompt_length: None };
        let template = TemplateChoice::None;
        let preparer = Preparer::new(&loaded.tokenizer, &template, Rendering::None, truncation)?;
        let mut texts = Vec::new();
        let mut empty = 0;
        for line in text.lines() {
            let mut tokens = preparer.tokenize_text(line)?;
            tokens.truncate(most);
            match reader.can_read(&tokens) {
                true => texts.push(tokens),
                false => empty += 1,
            }
        }
        if empty > 0 {
            eprintln!("{}: {empty} lines without text are left out", path.display());
        }
        Ok(texts)
    }
}

fn table(found: &[Found]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "Feature",
        "Positive texts",
        "Negative texts",
        "Effect",
        "Held-out AUROC",
        "Held-out accuracy",
    ]);
    for f in found {
        table.add_row([
            f.index.to_string(),
            format!("{:.4}", f.positive_mean),
            format!("{:.4}", f.negative_mean),
            format!("{:.2}", f.effect),
            format!("{:.3}", f.auroc),
            format!("{:.1} %", 100.0 * f.accuracy),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
