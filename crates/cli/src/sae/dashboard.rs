//! `fpo sae dashboard`: an HTML page with the top activating texts and logits of features.

use std::{
    collections::BTreeSet,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use fpo_data::atomic;
use fpo_interp::{
    autoencoder,
    dashboard::{Export, Feature, Options, Page, batches, collect, render},
};
use fpo_trainer::stages::report::write_page;
use fpo_transformer::Site;

use super::rows::{RowArgs, Rows};
use crate::{
    loaded::{Loaded, PlacementArgs},
    streams::{self, out},
};

/// Features per file of the export.
const FEATURES_PER_FILE: usize = 128;

/// Writes an HTML page that shows what features respond to
///
/// For every feature the page has its density, the texts with the strongest activations, and the tokens that its
/// decoder direction promotes and suppresses. It is a single file that needs no network. With --export the same
/// data are also written in the JSON format of SAEDashboard.
///
/// Example:
///   fpo sae dashboard --sae sae --model gemma-2-2b --data examples.jsonl --site resid_post:25 --features 0-99 \
///       --out features.html
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Dashboard {
    /// The autoencoder: SAELens, Gemma Scope, Llama Scope, Qwen-Scope, sparsify or dictionary_learning.
    #[arg(long, value_name = "PATH")]
    sae: PathBuf,
    /// Folder of the model in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Examples or pairs (JSON lines, Parquet), or sft.arrow or train.arrow of a run. Of pairs, the chosen responses are read.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    data: PathBuf,
    /// Site where the autoencoder reads activations, such as resid_post:25 [default: the one in the autoencoder's file].
    #[arg(long, value_name = "SITE")]
    site: Option<Site>,
    /// The HTML file to write.
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    out: PathBuf,
    /// Folder for SAEDashboard's batch-N.json files.
    #[arg(long, value_name = "FOLDER")]
    export: Option<PathBuf>,
    /// Features to show, such as 3,17,200-299 [default: all].
    #[arg(long, value_name = "LIST")]
    features: Option<String>,
    /// Stops after the batch that reaches this many tokens.
    #[arg(long, default_value_t = 100_000, value_name = "TOKENS")]
    tokens: usize,
    /// Texts per feature.
    #[arg(long, default_value_t = 8, value_name = "TEXTS")]
    examples: usize,
    /// Tokens shown on either side of the strongest activation.
    #[arg(long, default_value_t = 16, value_name = "TOKENS")]
    context: usize,
    /// Rows per forward pass.
    #[arg(long, default_value = "32", value_name = "ROWS")]
    batch_size: NonZeroUsize,
    #[command(flatten)]
    rows: RowArgs,
    #[command(flatten)]
    placement: PlacementArgs,
}

impl Dashboard {
    pub fn run(self) -> Result<()> {
        streams::keep_apart(&self.out, &[&self.data, &self.sae, &self.model])?;
        if let Some(folder) = &self.export {
            streams::keep_apart(folder, &[&self.data, &self.sae, &self.model])?;
        }
        let site = autoencoder::site(self.site, &self.sae)?;
        let options = Options {
            features: self.features.as_deref().map(indices).transpose()?,
            tokens: self.tokens,
            batch_size: self.batch_size,
            examples: self.examples,
            context: self.context,
            logits: 10,
        };
        let loaded = Loaded::open(&self.model, &self.placement.open()?)?;
        let sae = loaded.open_sae(&self.sae, site)?;
        let rows = Rows::open(&self.data, &loaded, &self.rows)?;
        let source = rows.source(&loaded, vec![site]);
        let (features, tokens) = collect(&sae, &source, &options)?;
        let text = |token: u32| loaded.tokenizer.show(token);

        let page = self.page(&features, sae.d_sae(), tokens, &site.to_string());
        write_page(&self.out, &render(&page, &features, text))?;
        streams::report(&self.out, &self.out.display().to_string())?;
        if let Some(folder) = &self.export {
            let lengths = rows.store.lengths();
            let export = Export {
                model_id: name(&self.model),
                layer: site.layer,
                sae_set: name(&self.sae),
                dataset: name(&self.data),
                prompts: lengths.len(),
                tokens_in_prompt: lengths.into_iter().max().unwrap_or(0),
            };
            let decoder: Vec<f32> = sae.w_dec.to_data().iter::<f32>().collect();
            let direction = |i: usize| decoder[i * sae.d_in()..][..sae.d_in()].to_vec();
            let files = batches(&export, &features, FEATURES_PER_FILE, text, direction);
            self.write(folder, &files)?;
            out!("{} with {} files", folder.display(), files.len())?;
        }
        Ok(())
    }

    fn page(&self, features: &[Feature], d_sae: usize, tokens: usize, site: &str) -> Page {
        let dead = features.iter().filter(|f| f.density == 0.0).count();
        let facts = [
            ("Model", name(&self.model)),
            ("Site", site.to_owned()),
            ("Features", format!("{} of {d_sae}", features.len())),
            ("Never active", dead.to_string()),
            ("Tokens", tokens.to_string()),
            ("Data", name(&self.data)),
        ];
        Page {
            title: format!("Features of {}", name(&self.sae)),
            facts: facts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            notes: vec![
                "Density is the share of tokens on which a feature is active, and the mean is taken over these; BOS, EOS and padding don't count.".into(),
                "Promoted and suppressed tokens have the largest and smallest logits of the decoder direction, scaled by the gains of the norms after the site and multiplied by the unembedding.".into(),
            ],
        }
    }

    fn write(&self, folder: &Path, files: &[serde_json::Value]) -> Result<()> {
        let foreign = folder.exists()
            && fs::read_dir(folder)
                .with_context(|| format!("listing {}", folder.display()))?
                .flatten()
                .any(|entry| !entry.file_name().to_string_lossy().starts_with("batch-"));
        if foreign {
            bail!("{} contains other files, so it was left alone", folder.display());
        }
        atomic::replace_dir(folder, |output| -> Result<()> {
            for (index, file) in files.iter().enumerate() {
                let path = output.join(format!("batch-{index}.json"));
                fs::write(&path, file.to_string())
                    .with_context(|| format!("writing {}", path.display()))?;
            }
            Ok(())
        })
    }
}

/// The last component of a path.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The indices of features in a list such as `3,17,200-299`, sorted and without duplicates.
pub fn indices(list: &str) -> Result<Vec<usize>> {
    let mut features = BTreeSet::new();
    for part in list.split(',') {
        let wrong = || {
            format!("--features {list}: `{part}` is neither an index nor a range such as 200-299")
        };
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().with_context(wrong)?;
        let last: usize = last.trim().parse().with_context(wrong)?;
        if last < first || last - first > 1 << 24 {
            bail!(wrong());
        }
        features.extend(first..=last);
    }
    Ok(features.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_features() {
        assert_eq!(indices("5,3,7-9, 3").unwrap(), [3, 5, 7, 8, 9]);
        for wrong in ["", "x", "3-", "9-7", "1,,2", "0-99999999999"] {
            assert!(indices(wrong).is_err(), "{wrong:?} was accepted");
        }
    }
}
