//! `fpo sae evaluate`: what an autoencoder keeps of a model.

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::Result;
use clap::Args;
use fpo_data::Rendering;

use super::rows::Rows;
use crate::loaded::{Loaded, PlacementArgs};
use fpo_interp::autoencoder;
use fpo_interp::evaluation::{SaeEvaluation, evaluate};

#[derive(Args)]
pub struct Evaluate {
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
    /// Tokens to measure on, at least, if the data has so many.
    #[arg(long, default_value_t = 100_000)]
    tokens: usize,
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
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    placement: PlacementArgs,
}

impl Evaluate {
    pub fn run(self) -> Result<()> {
        let site = autoencoder::site(self.site.as_deref(), &self.sae)?;
        let loaded = Loaded::open(&self.model, &self.placement.open()?)?;
        let sae = loaded.open_sae(&self.sae, site)?;
        let rows = Rows::open(&self.data, &loaded, self.rendering, self.max_length)?;
        let source = rows.source(&loaded, vec![site]);
        let found = evaluate(&sae, &source, self.tokens, self.batch_size)?;
        match self.json {
            true => println!("{:#}", serde_json::to_value(&found)?),
            false => print(&found, sae.d_sae()),
        }
        Ok(())
    }
}

fn print(found: &SaeEvaluation, d_sae: usize) {
    let (q, ce, kl) = (&found.quality, &found.cross_entropy, &found.kl);
    println!(
        "over {} tokens; BOS, EOS and padding are left out of the splice and of every mean",
        q.tokens
    );
    println!("L0                   {:.2} of {d_sae} features", q.l0);
    println!("L1                   {:.4}", q.l1);
    println!("explained variance   {:.4}   1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²)", q.explained_variance);
    println!("MSE                  {:.4}   E‖x − x̂‖², summed over dimensions", q.mse);
    println!("cosine               {:.4}", q.cosine);
    println!(
        "norms                {:.4} in, {:.4} out, ratio {:.4}",
        q.l2_norm_in, q.l2_norm_out, q.l2_ratio
    );
    println!("reconstruction bias  {:.4}   E‖x̂‖² / E x·x̂", q.relative_reconstruction_bias);
    println!(
        "cross-entropy        {:.4} original, {:.4} spliced, {:.4} zeros",
        ce.original, ce.spliced, ce.zero_ablation
    );
    println!("  delta              {:+.4} nats   spliced − original", ce.delta);
    println!("  score              {:.4}   (zeros − spliced) / (zeros − original)", ce.score);
    println!(
        "KL                   {:.4} spliced, {:.4} zeros, score {:.4}",
        kl.spliced, kl.zero_ablation, kl.score
    );
    println!(
        "dead features        {:.2} %   active on none of these tokens",
        100.0 * q.dead_features
    );
    println!("density, log10");
    let most = found.density_histogram.iter().map(|bar| bar.features).max().unwrap_or(1);
    for bar in &found.density_histogram {
        let length = (40 * bar.features).div_ceil(most.max(1));
        println!(
            "  {:>4.1} to {:>4.1}  {:>6}  {}",
            bar.from,
            bar.to,
            bar.features,
            "█".repeat(length)
        );
    }
}
