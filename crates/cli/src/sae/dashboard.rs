//! `fpo sae dashboard`: a page of what features are about.

use std::{fs, num::NonZeroUsize, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use fpo_data::{Rendering, atomic};

use super::rows::Rows;
use crate::loaded::{Loaded, PlacementArgs};
use fpo_interp::autoencoder;
use fpo_interp::dashboard::{Export, Feature, Options, Page, batches, collect, render};
use fpo_trainer::stages::report::write_page;

/// Features in a file of the export.
const FEATURES_A_FILE: usize = 128;

#[derive(Args)]
pub struct Dashboard {
    /// The autoencoder, in any format.
    #[arg(long)]
    sae: PathBuf,
    /// A model's folder in Hugging Face's layout, with its tokenizer.
    #[arg(long)]
    model: PathBuf,
    /// Examples or pairs (JSON lines, Parquet), or prepared ones (sft.arrow of a run).
    #[arg(long)]
    data: PathBuf,
    /// Where the activations are, such as resid_post:25 [default: what the autoencoder's file names].
    #[arg(long)]
    site: Option<String>,
    /// The page.
    #[arg(long)]
    out: PathBuf,
    /// Writes the files batch-N.json of SAEDashboard into this folder, too.
    #[arg(long)]
    export: Option<PathBuf>,
    /// Which features, such as 3,17,200-299 [default: all].
    #[arg(long)]
    features: Option<String>,
    /// Tokens to read, at least, if the data has so many.
    #[arg(long, default_value_t = 100_000)]
    tokens: usize,
    /// Texts a feature.
    #[arg(long, default_value_t = 8)]
    examples: usize,
    /// Tokens shown on either side of the strongest.
    #[arg(long, default_value_t = 16)]
    context: usize,
    /// Rows a forward pass.
    #[arg(long, default_value = "32")]
    batch_size: NonZeroUsize,
    /// Tokens of a row, at most [default: the model's positions].
    #[arg(long)]
    max_length: Option<usize>,
    /// What goes through the model's chat template: auto, template or none, as in `fpo score`. Prepared data
    /// is past that.
    #[arg(long, default_value_t, value_name = "auto|template|none")]
    rendering: Rendering,
    #[command(flatten)]
    placement: PlacementArgs,
}

impl Dashboard {
    pub fn run(self) -> Result<()> {
        let site = autoencoder::site(self.site.as_deref(), &self.sae)?;
        let options = Options {
            features: self.features.as_deref().map(parse).transpose()?,
            tokens: self.tokens,
            batch_size: self.batch_size,
            examples: self.examples,
            context: self.context,
            logits: 10,
        };
        let loaded = Loaded::open(&self.model, &self.placement.open()?)?;
        let sae = loaded.open_sae(&self.sae, site)?;
        let rows = Rows::open(&self.data, &loaded, self.rendering, self.max_length)?;
        let source = rows.source(&loaded, vec![site]);
        let (features, tokens) = collect(&sae, &source, &options)?;
        // A token that is part of a character alone decodes to a replacement sign.
        let text = |token: u32| loaded.tokenizer.decode(&[token], false).unwrap_or_default();

        let page = self.page(&features, sae.d_sae(), tokens, &site.to_string());
        write_page(&self.out, &render(&page, &features, text))?;
        println!("{}", self.out.display());
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
            let files = batches(&export, &features, FEATURES_A_FILE, text, direction);
            self.write(folder, &files)?;
            println!("{} with {} files", folder.display(), files.len());
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
                "Density is the share of tokens on which a feature is active; BOS, EOS and padding are left out. Mean is over those tokens.".into(),
                "Promoted and suppressed tokens: the decoder direction times the gains of the norms on its way times the unembedding.".into(),
            ],
        }
    }

    fn write(&self, folder: &PathBuf, files: &[serde_json::Value]) -> Result<()> {
        let foreign = folder.exists()
            && fs::read_dir(folder)
                .with_context(|| format!("listing {}", folder.display()))?
                .flatten()
                .any(|entry| !entry.file_name().to_string_lossy().starts_with("batch-"));
        if foreign {
            bail!("{} holds other files, and is left alone", folder.display());
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

/// The last part of a path.
fn name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// `3,17,200-299` as numbers, each once and in order.
fn parse(list: &str) -> Result<Vec<usize>> {
    let mut features = std::collections::BTreeSet::new();
    for part in list.split(',') {
        let wrong =
            || format!("--features {list}: `{part}` is no number and no range such as 200-299");
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
        assert_eq!(parse("5,3,7-9, 3").unwrap(), [3, 5, 7, 8, 9]);
        for wrong in ["", "x", "3-", "9-7", "1,,2", "0-99999999999"] {
            assert!(parse(wrong).is_err(), "{wrong:?} was accepted");
        }
    }
}
