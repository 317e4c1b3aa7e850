//! `fpo sae evaluate`: sparsity, reconstruction and spliced loss of an autoencoder.

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::Result;
use clap::Args;
use fpo_interp::{
    autoencoder,
    evaluation::{SaeEvaluation, evaluate},
};
use fpo_transformer::Site;

use super::rows::{RowArgs, Rows};
use crate::{
    loaded::{Loaded, PlacementArgs},
    streams::{self, out},
};

/// Evaluates an autoencoder on a model: sparsity, reconstruction, and the loss with it spliced in
///
/// Prints L0, L1, explained variance, MSE, cosine similarity and norms; cross-entropy (nats per token) and KL of
/// the model with the activations replaced by reconstructions and by zeros; the share of dead features; and a
/// histogram of feature densities. Special tokens such as BOS and EOS are left unchanged and don't count.
///
/// Example:
///   fpo sae evaluate --sae sae --model gemma-2-2b --data examples.jsonl --site resid_post:25
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Evaluate {
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
    /// Stops after the batch that reaches this many tokens.
    #[arg(long, default_value_t = 100_000, value_name = "TOKENS")]
    tokens: usize,
    /// Rows per forward pass.
    #[arg(long, default_value = "32", value_name = "ROWS")]
    batch_size: NonZeroUsize,
    #[command(flatten)]
    rows: RowArgs,
    /// Prints JSON instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    placement: PlacementArgs,
}

impl Evaluate {
    pub fn run(self) -> Result<()> {
        let site = autoencoder::site(self.site, &self.sae)?;
        let loaded = Loaded::open(&self.model, &self.placement.open()?)?;
        let sae = loaded.open_sae(&self.sae, site)?;
        let rows = Rows::open(&self.data, &loaded, &self.rows)?;
        let source = rows.source(&loaded, vec![site]);
        let found = evaluate(&sae, &source, self.tokens, self.batch_size)?;
        match self.json {
            true => out!("{:#}", serde_json::to_value(&found)?),
            false => print(&found, sae.d_sae()),
        }
    }
}

fn print(found: &SaeEvaluation, d_sae: usize) -> Result<()> {
    let (q, ce, kl) = (&found.quality, &found.cross_entropy, &found.kl);
    out!("over {} tokens; BOS, EOS and padding are neither spliced nor counted", q.tokens)?;
    out!("L0                   {:.2} of {d_sae} features", q.l0)?;
    out!("L1                   {:.4}", q.l1)?;
    out!("explained variance   {:.4}   1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²)", q.explained_variance)?;
    out!("MSE                  {:.4}   E‖x − x̂‖², summed over dimensions", q.mse)?;
    out!("cosine               {:.4}", q.cosine)?;
    out!(
        "norms                {:.4} in, {:.4} out, ratio {:.4}",
        q.l2_norm_in,
        q.l2_norm_out,
        q.l2_ratio
    )?;
    out!("reconstruction bias  {:.4}   E‖x̂‖² / E x·x̂", q.relative_reconstruction_bias)?;
    out!(
        "cross-entropy        {:.4} original, {:.4} spliced, {:.4} zeros",
        ce.original,
        ce.spliced,
        ce.zero_ablation
    )?;
    out!("  delta              {:+.4} nats   spliced − original", ce.delta)?;
    out!("  score              {:.4}   (zeros − spliced) / (zeros − original)", ce.score)?;
    out!(
        "KL                   {:.4} spliced, {:.4} zeros, score {:.4}",
        kl.spliced,
        kl.zero_ablation,
        kl.score
    )?;
    out!("dead features        {:.2} %   active on none of these tokens", 100.0 * q.dead_features)?;
    out!("density, log10")?;
    let most = found.density_histogram.iter().map(|bar| bar.features).max().unwrap_or(1);
    for bar in &found.density_histogram {
        let length = (40 * bar.features).div_ceil(most.max(1));
        out!(
            "  {:>4.1} to {:>4.1}  {:>6}  {}",
            bar.from,
            bar.to,
            bar.features,
            "█".repeat(length)
        )?;
    }
    Ok(())
}
