//! `fpo sae train`: autoencoders for one or more sites of a model, trained in one pass over its activations.

use std::{
    collections::BTreeSet,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use fpo_config::SaeSettings;
use fpo_data::{
    Fingerprint, atomic,
    checkpoints::{Checkpoints, METRICS_FILE},
};
use fpo_interp::{
    activations::{ActivationStore, StoreSettings, Stored},
    training::{SaeTrainingRun, quality},
};
use fpo_sae::save_sae_lens;
use fpo_trainer::stages::content;
use fpo_transformer::Site;
use serde_json::json;

use super::rows::{RowArgs, Rows};
use crate::{
    loaded::{Loaded, PlacementArgs},
    settings::SettingsArgs,
    streams::{self, out},
    terminal::reporter,
};

/// Maximum number of held-out tokens for measuring quality.
const HELD_OUT: usize = 100_000;
const MADE_FROM: &str = "made_from.json";
/// What a training leaves: in its folder, or for several sites in a folder of each.
const OWN_FILES: [&str; 4] = ["cfg.json", "sae_weights.safetensors", "quality.json", METRICS_FILE];

/// Trains autoencoders on a model's activations, one per site, in one pass over the data
///
/// Writes a SAELens folder with quality.json (metrics on held-out tokens) and metrics.jsonl (training curves). With
/// several sites, each autoencoder gets a subfolder such as resid_post_25. Checkpoints are kept beside the output
/// until training is finished.
///
/// Of the settings, only the section sae, reference.batch_size (rows per forward pass) and seed have an effect;
/// `fpo recipes tiny` explains them.
///
/// Example:
///   fpo sae train --model gemma-2-2b --data examples.jsonl --site resid_post:12 --site resid_post:25 --out saes \
///       --set sae.tokens=10000000 --set sae.training.d_sae=16384
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Train {
    /// Folder of the model in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Examples or pairs (JSON lines, Parquet), or sft.arrow or train.arrow of a run. Of pairs, the chosen responses are read.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    data: PathBuf,
    /// Site to train an autoencoder for, such as resid_post:25; can be repeated.
    #[arg(long = "site", required = true, value_name = "SITE")]
    sites: Vec<String>,
    /// The folder to write.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    rows: RowArgs,
    /// Stores the activations in this folder, so that later trainings on the same ones don't run the model.
    #[arg(long, value_name = "FOLDER")]
    shards: Option<PathBuf>,
    /// Data type of the stored activations: float32, or float16 for values up to 65,504.
    #[arg(long, default_value_t, value_name = "TYPE")]
    shards_precision: Stored,
    /// Discards the checkpoints of an interrupted training with other settings or data. Without it such a call is refused.
    #[arg(long)]
    overwrite: bool,
    /// Has no effect: an interrupted training always continues.
    #[arg(long, hide = true)]
    resume: bool,
    #[command(flatten)]
    placement: PlacementArgs,
}

impl Train {
    pub fn run(self) -> Result<()> {
        streams::keep_apart(&self.out, &[&self.data, &self.model])?;
        self.check_out()?;
        let settings = self.settings.resolve()?;
        settings.sae.training.check()?;
        let loaded = Loaded::open(&self.model, &self.placement.open()?)?;
        let mut sites: Vec<Site> = Vec::with_capacity(self.sites.len());
        for site in &self.sites {
            let site: Site = site.parse()?;
            sites.push(site.check(loaded.model.config().num_hidden_layers)?);
        }
        let distinct: BTreeSet<_> = sites.iter().collect();
        if distinct.len() < sites.len() {
            bail!("the same --site is named twice");
        }
        let rows = Rows::open(&self.data, &loaded, &self.rows)?;
        let made_from = Fingerprint::default()
            .with("model", content(&self.model)?)
            .with("precision", self.placement.precision())
            .with("data", content(&self.data)?)
            .with("max_length", format!("{:?}", self.rows.max_length));
        let made_from = self.rows.add_to(made_from);
        let store = StoreSettings {
            tokens: settings.sae.tokens,
            held_out: HELD_OUT,
            buffer_tokens: settings.sae.buffer_tokens.get(),
            max_norm: settings.sae.max_norm,
            batch_size: settings.reference.batch_size,
            seed: settings.seed,
        };
        store.check_rows(&rows.store, &loaded.tokenizer.special_ids()).with_context(|| {
            format!(
                "{}; give more data or raise sae.tokens = {}",
                self.data.display(),
                store.tokens
            )
        })?;
        let mut store = ActivationStore::new(rows.source(&loaded, sites.clone()), store)?;
        if let Some(folder) = &self.shards {
            store = store.with_shards(folder, self.shards_precision, made_from.clone())?;
        }
        let note = format!(
            "{} tokens in {} buffers, {} steps of {}",
            store.training_tokens(),
            store.buffers(),
            settings.sae.training.steps,
            settings.sae.training.batch_tokens
        );
        reporter().note("sae", note);
        let checkpoint_every = settings.sae.checkpoint_every;
        // How often checkpoints are written doesn't affect the result.
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
            // Its name, not its place: equal trainings on different machines write equal files.
            model_name: self.model_name(),
            checkpoints: &checkpoints,
            checkpoint_every: checkpoint_every.get(),
            track: (&[], PathBuf::new()),
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
                out!(
                    "{site}  L0 {:.1}, explained variance {:.4}, dead features {:.1} % of {} over {} tokens",
                    quality.l0,
                    quality.explained_variance,
                    100.0 * quality.dead_features,
                    sae.d_sae(),
                    quality.tokens
                )?;
            }
            Ok(checkpoints.copy_log(output)?)
        })?;
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))
    }

    fn model_name(&self) -> String {
        let path = fs::canonicalize(&self.model).unwrap_or_else(|_| self.model.clone());
        path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
    }

    /// Refuses to replace a folder that isn't the result of a training.
    fn check_out(&self) -> Result<()> {
        let is_own = |path: &Path| OWN_FILES.iter().any(|name| path.ends_with(name));
        let is_result = has_only(&self.out, |path| is_own(path) || has_only(path, is_own));
        if self.out.exists() && !is_result {
            bail!("{} is not the result of a training, so it was left alone", self.out.display());
        }
        Ok(())
    }

    /// The checkpoint folder, beside the output. Continued if it was made from the same settings and data.
    fn checkpoints(&self, made_from: &Fingerprint) -> Result<PathBuf> {
        let name = self.out.file_name().context("--out has no folder name")?;
        let folder = self.out.with_file_name(format!("{}.checkpoints", name.to_string_lossy()));
        let path = folder.join(MADE_FROM);
        if path.exists() {
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let found: Fingerprint = serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged", path.display()))?;
            let differences: Vec<String> =
                made_from.differences(&found).into_iter().map(|d| d.item).collect();
            if differences.is_empty() {
                return Ok(folder);
            }
            if !self.overwrite {
                bail!(
                    "the checkpoints in {} were made with different settings or data ({}); continue with those, choose another --out, or add \
                     --overwrite to start over",
                    folder.display(),
                    differences.join(", ")
                );
            }
        }
        if folder.exists() {
            if !path.exists() {
                bail!("{} is not a checkpoint folder, so it was left alone", folder.display());
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

/// Whether a folder has nothing but such files; of what can't be read, no.
fn has_only(folder: &Path, known: impl Fn(&Path) -> bool) -> bool {
    let known = |entry: std::io::Result<fs::DirEntry>| entry.is_ok_and(|e| known(&e.path()));
    fs::read_dir(folder).is_ok_and(|mut entries| entries.all(known))
}
