//! `fpo score`: log-probabilities of responses under a model.

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use fpo_data::{Batches, PairBatch, PairView, binding::hash_pairs};
use fpo_trainer::forward::{DeviceBatch, Forward};
use fpo_transformer::LanguageModel;
use serde::Serialize;

use crate::{
    kept::Kept,
    loaded::{ModelFolder, PlacementArgs},
    streams,
    terminal::reporter,
    tokens::{TOKENS_HELP, TokenArgs},
};

/// Computes log-probabilities of chosen and rejected responses under a model
///
/// Writes JSON lines, one object per pair in the order of the data:
///   {"chosen_log_prob": …, "chosen_tokens": …, "rejected_log_prob": …, "rejected_tokens": …}
/// Log-probabilities are in nats, summed over the tokens of the response; `tokens` is the number of those tokens. A call that was
/// interrupted keeps what it has in OUT.part, and the same call goes on.
///
/// Example:
///   fpo score --model gemma-2-2b --data pairs.jsonl --out scores.jsonl
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = TOKENS_HELP)]
pub struct Score {
    /// Folder of the model in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Preference pairs; see below.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    data: PathBuf,
    /// The JSON lines file to write.
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    out: PathBuf,
    /// Pairs per forward pass.
    #[arg(long, default_value = "8", value_name = "PAIRS")]
    batch_size: NonZeroUsize,
    #[command(flatten)]
    tokens: TokenArgs,
    #[command(flatten)]
    placement: PlacementArgs,
}

/// A line of the output.
#[derive(Clone, Serialize)]
struct Line {
    chosen_log_prob: f64,
    chosen_tokens: usize,
    rejected_log_prob: f64,
    rejected_tokens: usize,
}

impl Score {
    pub fn run(self) -> Result<()> {
        streams::keep_apart(&self.out, &[&self.data, &self.model])?;
        streams::check_file(&self.out)?;
        let placement = self.placement.open()?;
        let folder = ModelFolder::open(&self.model)?.with_system(self.tokens.system);
        let pairs = self.tokens.read_pairs(&folder, &self.data)?;
        let views = pairs.views();
        let kept = Kept::open(&self.out, "score", views.len(), || {
            let settings = folder.fingerprint(self.placement.precision())?;
            Ok(settings.with("pairs", hash_pairs(views.iter().copied())))
        })?;
        let model = folder.load(&placement)?;
        score(&model, &views, self.batch_size, kept)
    }
}

/// Scores the pairs that aren't kept, in the batches of an undisturbed call.
fn score(
    model: &LanguageModel,
    pairs: &[PairView],
    size: NonZeroUsize,
    mut kept: Kept,
) -> Result<()> {
    let lengths: Vec<usize> = pairs.iter().map(PairView::longest).collect();
    let mut progress = reporter().begin("score", "pairs", pairs.len(), kept.count());
    for indices in Batches::by_length(&lengths, size).iter() {
        if indices.iter().all(|&index| kept.has(index)) {
            continue;
        }
        let batch: Vec<PairView> = indices.iter().map(|&i| pairs[i]).collect();
        let lines = score_batch(model, &PairBatch::new(&batch)?)?;
        kept.add(indices.iter().copied().zip(lines))?;
        progress.advance(indices.len(), "");
    }
    progress.finish(&format!("{} pairs", pairs.len()));
    kept.finish()
}

fn score_batch(model: &LanguageModel, PairBatch { ids, batch }: &PairBatch) -> Result<Vec<Line>> {
    let device_batch = DeviceBatch::new(batch, &model.device());
    let forward = Forward::new(model, batch, &device_batch, None);
    let tokens = forward.token_log_probs().into_data();
    let mut tokens = tokens.iter::<f64>();
    let counts = &device_batch.counts;
    // Summed in float64, so that sums over long responses lose no precision.
    let log_probs: Vec<f64> = counts.iter().map(|&n| tokens.by_ref().take(n).sum()).collect();
    let lines = ids.iter().enumerate().map(|(i, id)| {
        let (chosen, rejected) = (i, ids.len() + i);
        let finite = log_probs[chosen].is_finite() && log_probs[rejected].is_finite();
        ensure!(
            finite,
            "row {id} (counted from 0): its log-probabilities are {} and {}; check the model's weights for NaN or infinity",
            log_probs[chosen],
            log_probs[rejected]
        );
        Ok(Line {
            chosen_log_prob: log_probs[chosen],
            chosen_tokens: counts[chosen],
            rejected_log_prob: log_probs[rejected],
            rejected_tokens: counts[rejected],
        })
    });
    lines.collect()
}
