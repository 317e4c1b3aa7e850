//! `fpo sae train`: an autoencoder for each of some sites of a model, from one pass over its activations.

use std::{fs, num::NonZeroUsize, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use fpo_data::{Fingerprint, Rendering, atomic};
use fpo_sae::save_sae_lens;
use fpo_transformer::Site;
use serde_json::json;

use super::rows::Rows;
use crate::loaded::{Loaded, PlacementArgs, SettingsArgs};
use fpo_config::SaeSettings;
use fpo_data::checkpoints::{Checkpoints, METRICS_FILE};
use fpo_interp::activations::{ActivationStore, StoreSettings, Stored};
use fpo_interp::training::{SaeTrainingRun, quality};
use fpo_trainer::stages::content;

/// Tokens kept for measuring, at most.
const HELD_OUT: usize = 100_000;
const MADE_FROM: &str = "made_from.json";

#[derive(Args)]
pub struct Train {
    /// A model's folder in Hugging Face's layout, with its tokenizer.
    #[arg(long)]
    model: PathBuf,
    /// Examples or pairs (JSON lines, Parquet), or prepared ones (sft.arrow of a run).
    #[arg(long)]
    data: PathBuf,
    /// Where activations are read, such as resid_post:25; again for an autoencoder for each of several.
    #[arg(long = "site", required = true)]
    sites: Vec<String>,
    /// The folder written: the autoencoder, or one folder for each of several.
    #[arg(long)]
    out: PathBuf,
    /// The sections sae, reference.batch_size and seed count.
    #[command(flatten)]
    settings: SettingsArgs,
    /// Tokens of a row, at most [default: the model's positions].
    #[arg(long)]
    max_length: Option<usize>,
    /// What goes through the model's chat template: auto, template or none, as in `fpo score`. Prepared data
    /// is past that.
    #[arg(long, default_value_t, value_name = "auto|template|none")]
    rendering: Rendering,
    /// Keeps activations in this folder, for other trainings on the same ones.
    #[arg(long)]
    shards: Option<PathBuf>,
    /// How activations are kept there.
    #[arg(long, default_value_t)]
    shards_precision: Stored,
    /// Goes on from the last checkpoint of an interrupted training.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    placement: PlacementArgs,
}

impl Train {
    pub fn run(self) -> Result<()> {
        let settings = self.settings.resolve()?;
        settings.sae.training.check()?;
        let loaded = Loaded::open(&self.model, &self.placement.open()?)?;
        let mut sites: Vec<Site> = Vec::with_capacity(self.sites.len());
        for site in &self.sites {
            let site: Site = site.parse()?;
            sites.push(site.check(loaded.model.config().num_hidden_layers)?);
        }
        let distinct: std::collections::BTreeSet<_> = sites.iter().collect();
        if distinct.len() < sites.len() {
            bail!("a --site is named twice");
        }
        let rows = Rows::open(&self.data, &loaded, self.rendering, self.max_length)?;
        let made_from = Fingerprint::default()
            .with("model", content(&self.model)?)
            .with("precision", self.placement.precision())
            .with("data", content(&self.data)?)
            .with("max_length", format!("{:?}", self.max_length));
        // A training begun before there was this flag had its default.
        let made_from = match self.rendering {
            Rendering::Auto => made_from,
            other => made_from.with("rendering", other),
        };
        let mut store = ActivationStore::new(
            rows.source(&loaded, sites.clone()),
            StoreSettings {
                tokens: settings.sae.tokens,
                held_out: HELD_OUT,
                buffer_tokens: settings.sae.buffer_tokens.get(),
                max_norm: settings.sae.max_norm,
                batch_size: settings.reference.batch_size,
                seed: settings.seed,
            },
        )?;
        if let Some(folder) = &self.shards {
            store = store.with_shards(folder, self.shards_precision, made_from.clone())?;
        }
        eprintln!(
            "{:>9}  {} tokens in {} buffers, {} steps of {}",
            "sae",
            store.training_tokens(),
            store.buffers(),
            settings.sae.training.steps,
            settings.sae.training.batch_tokens
        );
        let checkpoint_every = settings.sae.checkpoint_every;
        // How often it is kept has no say in what it becomes.
        let same = SaeSettings { checkpoint_every: NonZeroUsize::MIN, ..settings.sae.clone() };
        let made_from = made_from
            .with("sae", serde_json::to_string(&same)?)
            .with("seed", settings.seed)
            .with("batch_size", settings.reference.batch_size)
            .with("sites", format!("{sites:?}"));
        let folder = self.checkpoints(&made_from)?;
        let checkpoints = Checkpoints::new(&folder);
        let training = SaeTrainingRun {
            stage: "sae",
            settings: &settings.sae.training,
            sites: &sites,
            seed: settings.seed,
            model_name: self.model.to_string_lossy().into_owned(),
            checkpoints: &checkpoints,
            checkpoint_every: checkpoint_every.get(),
        };
        let device = loaded.model.device();
        let trained = training.run(&mut store, &device)?;
        let held_out = store.measuring_blocks()?;
        drop(store);
        atomic::replace_dir(&self.out, |output| -> Result<()> {
            for ((sae, block), site) in trained.iter().zip(&held_out).zip(&sites) {
                let folder = match sites.len() {
                    1 => output.to_owned(),
                    _ => output.join(site.to_string().replace(':', "_")),
                };
                fs::create_dir_all(&folder)
                    .with_context(|| format!("creating {}", folder.display()))?;
                save_sae_lens(sae, &folder)?;
                let quality = quality(sae, block, &device)?;
                let path = folder.join("quality.json");
                fs::write(&path, format!("{:#}\n", json!(quality)))
                    .with_context(|| format!("writing {}", path.display()))?;
                println!(
                    "{site}  L0 {:.1}, explained variance {:.4}, dead features {:.1} % of {} over {} tokens",
                    quality.l0,
                    quality.explained_variance,
                    100.0 * quality.dead_features,
                    sae.d_sae(),
                    quality.tokens
                );
            }
            fs::copy(checkpoints.metrics(), output.join(METRICS_FILE))
                .context("copying the metrics")?;
            Ok(())
        })?;
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))
    }

    /// The folder of the checkpoints, beside the output: kept if `--resume` asks for it, else empty.
    fn checkpoints(&self, made_from: &Fingerprint) -> Result<PathBuf> {
        let name = self.out.file_name().context("--out names no folder")?;
        let folder = self.out.with_file_name(format!("{}.checkpoints", name.to_string_lossy()));
        let path = folder.join(MADE_FROM);
        if self.resume && path.exists() {
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let found: Fingerprint = serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged", path.display()))?;
            let differences: Vec<String> =
                made_from.differences(&found).into_iter().map(|d| d.item).collect();
            if !differences.is_empty() {
                bail!(
                    "{} was made from another {}; without --resume the training starts anew",
                    folder.display(),
                    differences.join(", ")
                );
            }
            return Ok(folder);
        }
        if folder.exists() {
            if !path.exists() {
                bail!("{} is not a folder of checkpoints, and is left alone", folder.display());
            }
            fs::remove_dir_all(&folder)
                .with_context(|| format!("removing {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        fs::write(&path, serde_json::to_string(made_from)?)
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(folder)
    }
}
