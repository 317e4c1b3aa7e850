//! `fpo features …`: features that separate two sets of texts, and what alignment changed of features.

mod drift;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use fpo_data::{Preparer, Rendering, TemplateChoice, Truncation};
use fpo_interp::{
    autoencoder,
    features::{FeatureFile, FindOptions, Found, TextFeatures, find},
};
use fpo_transformer::Site;

use crate::{
    loaded::{Loaded, PlacementArgs},
    streams,
    terminal::reporter,
};

/// Maximum size of a text file in bytes; larger ones are refused before they are read.
const LARGEST_FILE: u64 = 1 << 30;

#[derive(Subcommand)]
pub enum Features {
    Find(Find),
    Drift(drift::Drift),
}

impl Features {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Find(find) => find.run(),
            Self::Drift(drift) => drift.run(),
        }
    }
}

/// Finds the features that separate two sets of texts
///
/// Ranks features by how much more active they are on the positive texts than on the negative ones: the
/// difference of mean activations, relative to its standard deviation. The best are judged on held-out texts and
/// written to a TOML file for align.feature_weights; the table printed has one row per feature:
///   Positive texts, Negative texts   mean activation per text, on the texts used for ranking
///   Effect                           the score that ranks
///   Held-out AUROC, accuracy         how well the feature alone separates the held-out texts
///
/// Texts are tokenised without the chat template.
///
/// Example:
///   fpo features find --model gemma-2-2b --sae sae --site resid_post:25 --positive polite.txt \
///       --negative rude.txt --out features.toml
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Find {
    /// Folder of the model in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// The autoencoder: SAELens, Gemma Scope, Llama Scope, Qwen-Scope, sparsify or dictionary_learning.
    #[arg(long, value_name = "PATH")]
    sae: PathBuf,
    /// Site where it reads activations, such as resid_post:25 [default: the one in its file].
    #[arg(long, value_name = "SITE")]
    site: Option<Site>,
    /// Texts with the property to look for, one per line.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    positive: PathBuf,
    /// Texts without it, one per line.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    negative: PathBuf,
    /// The feature file to write.
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    out: PathBuf,
    /// Maximum number of features.
    #[arg(long, default_value_t = 20, value_name = "FEATURES")]
    top: usize,
    /// Share of each set that is held out to judge the features, between 0 and 1.
    #[arg(long, default_value_t = 0.5, value_name = "SHARE")]
    hold_out: f64,
    /// Seed of the split.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Maximum tokens per text; longer texts are cut at the end.
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    max_length: usize,
    /// Texts per forward pass.
    #[arg(long, default_value_t = 16, value_name = "TEXTS", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    #[command(flatten)]
    placement: PlacementArgs,
}

impl Find {
    pub fn run(self) -> Result<()> {
        if !(self.hold_out > 0.0 && self.hold_out < 1.0) {
            bail!("--hold-out {} must be between 0 and 1", self.hold_out);
        }
        streams::keep_apart(&self.out, &[&self.positive, &self.negative, &self.sae, &self.model])?;
        streams::check_file(&self.out)?;
        let reporter = reporter();
        let placement = self.placement.open()?;
        let loaded = Loaded::open(&self.model, &placement)?;
        let site = autoencoder::site(self.site, &self.sae)?;
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
        let line = format!("{}\nfeatures  {}", table(&found), self.out.display());
        streams::report(&self.out, &line)
    }

    /// The lines of a file as token ids, with BOS prepended; lines without text are skipped.
    fn texts(&self, loaded: &Loaded, reader: &TextFeatures, path: &Path) -> Result<Vec<Vec<u32>>> {
        let place = || format!("texts {}", path.display());
        let size = fs::metadata(path).with_context(place)?.len();
        if size > LARGEST_FILE {
            bail!("{}: {size} bytes exceed the limit of {LARGEST_FILE}; split the file", place());
        }
        let text = fs::read_to_string(path).with_context(place)?;
        let most = self.max_length.min(loaded.model.config().max_position_embeddings);
        // Without the chat template, which would add the same tokens to every text.
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
            let note = format!("{}: {empty} lines without text were skipped", path.display());
            reporter().note("features", note);
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
