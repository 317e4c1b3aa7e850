//! `fpo score`.

use std::{
    io::Write,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use clap::Args;
use fpo_data::{Batches, PairBatch, PairView, atomic};
use fpo_transformer::LanguageModel;
use serde::Serialize;

use super::{
    loaded::{ModelFolder, PlacementArgs},
    tokens::TokenArgs,
};
use crate::terminal::reporter;
use fpo_trainer::forward::{DeviceBatch, Forward};

/// How texts become tokens, said once for all commands that read pairs.
pub const TOKENS_HELP: &str = "\
How a pair becomes tokens (`fpo train` has the same rules, in data.rendering):
  * With --rendering auto, a text prompt becomes a user turn and its response the assistant's, written by
    the model's chat template; a prompt that already holds the template's turn markers, or begins with
    BOS, is left as it is. Without a chat template, and with --rendering none, prompt and response are
    joined as they are and ended by the end-of-sequence token, as in TRL.
  * Lists of messages are written out by the chat template (whole dialogues, as in HH-RLHF, count as
    messages; without a template they stay \\n\\nHuman: … \\n\\nAssistant: …). With --rendering none they
    stand exactly as transformers writes them; otherwise white space behind the last turn is left out.
  * Prompt and response are tokenised together. A token that reaches across their boundary belongs to
    the response. BOS stands in front once, also where the template writes it.
  * Every pair of the file counts: one that cannot be read is an error that names its row.
Data: JSON lines (plain or gzip), Parquet, or a folder of them, with `prompt`, `chosen`, `rejected` as
texts or lists of messages.";

/// Log-probabilities of chosen and rejected responses under a model.
///
/// Writes one JSON object a line for every pair, in the file's order:
///   {"chosen_log_prob": …, "chosen_tokens": …, "rejected_log_prob": …, "rejected_tokens": …}
/// A log-probability is the sum over the response's tokens, in nats; `tokens` is their number.
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = TOKENS_HELP)]
pub struct Score {
    /// A model's folder in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Preference pairs.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The JSON lines to be written.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Pairs a forward pass.
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
        let placement = self.placement.open()?;
        let folder = ModelFolder::open(&self.model)?;
        let pairs = self.tokens.read_pairs(&folder, &self.data)?;
        let model = folder.load(&placement)?;
        let lines = score(&model, folder.tokenizer.pad_id(), &pairs.views(), self.batch_size)?;
        write_lines(&self.out, &lines)
    }
}

fn score(
    model: &LanguageModel,
    pad: u32,
    pairs: &[PairView],
    size: NonZeroUsize,
) -> Result<Vec<Line>> {
    let lengths: Vec<usize> = pairs.iter().map(PairView::longest).collect();
    let mut lines: Vec<Option<Line>> = vec![None; pairs.len()];
    let mut progress = reporter().begin("score", "pairs", pairs.len(), 0);
    for indices in Batches::by_length(&lengths, size).iter() {
        let batch: Vec<PairView> = indices.iter().map(|&i| pairs[i]).collect();
        for (&index, line) in indices.iter().zip(score_batch(model, &PairBatch::new(&batch, pad)?)?)
        {
            lines[index] = Some(line);
        }
        progress.advance(indices.len(), "");
    }
    progress.finish(&format!("{} pairs", pairs.len()));
    Ok(lines.into_iter().flatten().collect())
}

fn score_batch(model: &LanguageModel, PairBatch { ids, batch }: &PairBatch) -> Result<Vec<Line>> {
    let device_batch = DeviceBatch::new(batch, &model.device());
    let forward = Forward::new(model, batch, &device_batch, None);
    let tokens = forward.token_log_probs().into_data();
    let mut tokens = tokens.iter::<f64>();
    let counts = &device_batch.counts;
    // Summed in float64: the sum over a long response keeps the digits that its tokens have.
    let log_probs: Vec<f64> = counts.iter().map(|&n| tokens.by_ref().take(n).sum()).collect();
    let lines = ids.iter().enumerate().map(|(i, id)| {
        let (chosen, rejected) = (i, ids.len() + i);
        let finite = log_probs[chosen].is_finite() && log_probs[rejected].is_finite();
        ensure!(
            finite,
            "row {id} (counted from 0): its log-probabilities are {} and {}; are the weights sound?",
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

/// Writes values as JSON lines, all of them or none.
pub fn write_lines(path: &Path, lines: &[impl Serialize]) -> Result<()> {
    atomic::write_file(path, |file| -> Result<()> {
        for line in lines {
            serde_json::to_writer(&mut *file, line)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })
}
