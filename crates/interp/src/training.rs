//! Training loop for one or more autoencoders, each at a site of its own, on one stream of activations. Resumes from checkpoints
//! bit for bit.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Tensor};
use fpo_data::checkpoints::{Checkpoints, read_log};
use fpo_device::{
    guard,
    interrupt::{Interrupted, Listener, requested},
};
use fpo_sae::{Provenance, Quality, QualityMeter, Sae, SaeTrainer, SaeTraining};
use fpo_track::{Tracker, Trackers};
use fpo_transformer::Site;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::activations::{ActivationStore, Block, Cursor};

/// Tokens per block when measuring, and tokens that estimate scale and mean of the inputs.
const TOKENS_AT_ONCE: usize = 4096;

/// What the training loop needs beside the activations.
pub struct SaeTrainingRun<'a> {
    /// Name of the stage, for progress and messages.
    pub stage: &'static str,
    /// Settings shared by all autoencoders.
    pub settings: &'a SaeTraining,
    /// The sites that the store reads; one autoencoder is trained per site.
    pub sites: &'a [Site],
    /// Seed of the initial weights.
    pub seed: u64,
    /// Name of the model, recorded in the autoencoders' provenance.
    pub model_name: String,
    /// Folder of checkpoints and metrics.
    pub checkpoints: &'a Checkpoints,
    /// Steps between checkpoints.
    pub checkpoint_every: usize,
    /// Formats in which the log is written too, and the folder for them.
    pub track: (&'a [Tracker], PathBuf),
}

/// The part of a checkpoint beside the tensors.
#[derive(Serialize, Deserialize)]
struct State {
    cursor: Cursor,
    /// Length of the metrics file at the checkpoint, in bytes.
    metrics_bytes: u64,
}

impl SaeTrainingRun<'_> {
    /// Trains from the start, or resumes from the last checkpoint if there is one. Appends a line per step to the metrics file in
    /// the folder of checkpoints. Returns one autoencoder per site.
    ///
    /// # Errors
    /// A device failure, a loss that isn't finite, unreadable activations, or files that can't be read or written.
    pub fn run(&self, store: &mut ActivationStore<'_>, device: &Device) -> Result<Vec<Sae>> {
        let (mut trainers, bytes) = match self.checkpoints.latest::<State>()? {
            Some((folder, state)) => {
                (self.restore(&folder, &state, store, device)?, state.metrics_bytes)
            }
            None => (self.begin(store, device)?, 0),
        };
        let mut log = self.checkpoints.open_log(bytes)?;
        let (kinds, folder) = &self.track;
        let lines = read_log(&self.checkpoints.metrics())?;
        let mut trackers = Trackers::open(kinds, folder, &lines)?;
        let first = trainers.first().map_or(0, SaeTrainer::steps_done);
        let reporter = store.source().reporter.clone();
        let mut progress = reporter.begin(self.stage, "steps", self.settings.steps, first);
        let _listener = Listener::new();
        for step in first..self.settings.steps {
            let (line, shown) = guard(|| {
                let batch = store.next_batch(self.settings.batch_tokens, device)?;
                self.step(step, &mut trainers, batch)
            })
            .with_context(|| format!("step {}", step + 1))?;
            trackers.write(&line)?;
            log.write(&Value::Object(line))?;
            progress.advance(1, &shown);
            let done = step + 1;
            let interrupted = requested();
            let due = interrupted || done.is_multiple_of(self.checkpoint_every);
            if due && done < self.settings.steps {
                let state = State { cursor: store.cursor(), metrics_bytes: log.saved_bytes()? };
                self.checkpoints.write(done, &state, |output| -> Result<()> {
                    for (index, trainer) in trainers.iter().enumerate() {
                        trainer.save(&file(output, index))?;
                    }
                    Ok(())
                })?;
                if interrupted {
                    return Err(Interrupted.into());
                }
            }
        }
        let tokens = (self.settings.steps - first) * self.settings.batch_tokens;
        let rate = tokens as f64 / progress.seconds().max(1e-9);
        progress.finish(&format!("{rate:.0} tokens/s"));
        let finished = trainers.into_iter().zip(self.sites).map(|(trainer, site)| {
            trainer.finish(Provenance {
                model_name: Some(self.model_name.clone()),
                hook_name: Some(site.hook_name()),
            })
        });
        Ok(finished.collect())
    }

    fn begin(&self, store: &mut ActivationStore<'_>, device: &Device) -> Result<Vec<SaeTrainer>> {
        let sample = store.next_batch(TOKENS_AT_ONCE, device)?;
        store.seek(Cursor::default());
        let start = |sample| Ok(SaeTrainer::new(self.settings, sample, self.seed, device)?);
        sample.into_iter().map(start).collect()
    }

    /// One step of every autoencoder. Returns the line of metrics and the progress message.
    fn step(
        &self,
        step: usize,
        trainers: &mut [SaeTrainer],
        batch: Vec<Tensor<2>>,
    ) -> Result<(Map<String, Value>, String)> {
        let mut line = Map::from_iter([("step".to_owned(), json!(step + 1))]);
        let mut shown = String::new();
        let one = trainers.len() == 1;
        for ((trainer, x), site) in trainers.iter_mut().zip(batch).zip(self.sites) {
            let report = trainer.step(x);
            if !report.loss.is_finite() {
                bail!("{site}: the loss is {}; a lower learning_rate may help", report.loss);
            }
            // With several sites, keys carry the site as a prefix.
            let key = |name: &str| if one { name.to_owned() } else { format!("{site}/{name}") };
            for (name, value) in [
                ("loss", report.loss),
                ("mse", report.mse),
                ("l0", report.l0),
                ("dead", report.dead),
                ("learning_rate", report.learning_rate),
            ] {
                line.insert(key(name), json!(value));
            }
            shown += &format!("loss {:.4}, L0 {:.1}  ", report.loss, report.l0);
        }
        Ok((line, shown))
    }

    fn restore(
        &self,
        folder: &Path,
        state: &State,
        store: &mut ActivationStore<'_>,
        device: &Device,
    ) -> Result<Vec<SaeTrainer>> {
        store.seek(state.cursor);
        let restore = |index| Ok(SaeTrainer::restore(self.settings, &file(folder, index), device)?);
        let trainers: Vec<SaeTrainer> =
            (0..self.sites.len()).map(restore).collect::<Result<_>>()?;
        let done = trainers.first().map_or(0, SaeTrainer::steps_done);
        store.source().reporter.note(self.stage, format!("resumes from step {done}"));
        Ok(trainers)
    }
}

fn file(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("sae-{index}.safetensors"))
}

/// Measures reconstruction and sparsity of an autoencoder on a block of activations.
///
/// # Errors
/// An empty block.
pub fn quality(sae: &Sae, block: &Block, device: &Device) -> Result<Quality> {
    let mut meter = QualityMeter::new(sae.d_in(), sae.d_sae());
    for start in (0..block.tokens()).step_by(TOKENS_AT_ONCE) {
        let end = (start + TOKENS_AT_ONCE).min(block.tokens());
        meter.add(sae, block.rows(start..end, device));
    }
    meter.quality().context("no activations to measure on")
}
