//! The training loop that SFT and alignment share: steps, checkpoints, metrics, resuming.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    mem::take,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use fpo_data::atomic;
use fpo_transformer::{LanguageModel, Placement};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use fpo_device::guard;
use crate::optim::{GradientMap, Optimizer};
use fpo_device::progress::Progress;
use crate::run::Workspace;
use fpo_config::OptimizerSettings;
use crate::trained::Trained;

/// One line for each step, in every training stage's folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// The frame of a training.
pub struct Training<'a> {
    /// The stage's name, for progress and messages.
    pub stage: &'static str,
    /// Where checkpoints and metrics go.
    pub workspace: &'a Workspace,
    /// Steps in all.
    pub total_steps: usize,
    /// A checkpoint after every so many of them.
    pub checkpoint_every: usize,
    /// How weights move.
    pub optimizer: &'a OptimizerSettings,
    /// Which weights move, and what a checkpoint holds.
    pub trained: &'a Trained,
}

/// What one step found, before the weights move.
pub struct StepResult {
    /// What is minimised.
    pub loss: f64,
    /// Its gradients.
    pub gradients: GradientMap,
    /// Real tokens that went through the model in this step.
    pub tokens: usize,
    /// Ids of the examples or pairs.
    pub ids: Vec<u64>,
    /// Whatever else is logged, by TRL's names where TRL has them.
    pub metrics: Map<String, Value>,
}

/// The part of a checkpoint that is no tensor.
#[derive(Serialize, Deserialize)]
struct State {
    /// Steps done.
    step: usize,
    /// Length of the metrics file at that moment, in bytes.
    metrics_bytes: u64,
    /// Tokens that had gone through the model.
    tokens: usize,
}

impl Training<'_> {
    /// Trains from `start`, or from the last checkpoint where there is one. `step` computes loss and
    /// gradients of a step, counted from 0; it must depend on nothing else, so that a resumed training
    /// repeats an uninterrupted one.
    pub fn run(
        &self,
        placement: &Placement,
        start: impl FnOnce() -> Result<LanguageModel>,
        mut step: impl FnMut(&LanguageModel, usize) -> Result<StepResult>,
    ) -> Result<LanguageModel> {
        let mut optimizer = Optimizer::new(self.optimizer, self.total_steps);
        let metrics_path = self.workspace.checkpoints.join(METRICS_FILE);
        let mut last_good = latest_checkpoint(&self.workspace.checkpoints)?;
        let (mut model, first, mut tokens) = match &last_good {
            None => (start()?, 0, 0),
            Some(folder) => {
                let state = read_state(folder)?;
                let model = self.trained.load(folder, placement)?;
                optimizer.restore(&folder.join("optimizer.safetensors"), state.step, &model)?;
                truncate(&metrics_path, state.metrics_bytes)?;
                eprintln!("{:>9}  goes on after step {}", self.stage, state.step);
                (model, state.step, state.tokens)
            }
        };
        if first == 0 {
            truncate(&metrics_path, 0)?;
        }
        let mut metrics = OpenOptions::new()
            .append(true)
            .open(&metrics_path)
            .with_context(|| format!("opening {}", metrics_path.display()))?;
        let mut progress = Progress::new(self.stage, "steps", self.total_steps, first);
        let mut last_loss = f64::NAN;
        for index in first..self.total_steps {
            let (result, info);
            (model, result, info) = guard(|| {
                let mut result = step(&model, index)?;
                let (moved, info) = optimizer.step(model, take(&mut result.gradients));
                Ok((moved, result, info))
            })
            .with_context(|| format!("step {}", index + 1))?;
            if !(result.loss.is_finite() && info.grad_norm.is_finite()) {
                bail!(
                    "step {}: loss {}, gradient norm {}; pair ids of the batch: {:?}; last good checkpoint: {}",
                    index + 1,
                    result.loss,
                    info.grad_norm,
                    result.ids,
                    last_good.as_deref().map_or("none yet".into(), Path::to_string_lossy),
                );
            }
            last_loss = result.loss;
            tokens += result.tokens;
            let mut line = Map::from_iter([
                ("step".to_owned(), json!(index + 1)),
                ("loss".to_owned(), json!(result.loss)),
                ("learning_rate".to_owned(), json!(info.learning_rate)),
                ("grad_norm".to_owned(), json!(info.grad_norm)),
                ("num_tokens".to_owned(), json!(tokens)),
            ]);
            line.extend(result.metrics);
            writeln!(metrics, "{}", Value::Object(line))
                .with_context(|| format!("writing {}", metrics_path.display()))?;
            progress.advance(1, &format!("loss {:.4}", result.loss));
            let done = index + 1;
            if done.is_multiple_of(self.checkpoint_every) && done < self.total_steps {
                let bytes = metrics.metadata().map(|m| m.len());
                let bytes = bytes.with_context(|| format!("reading {}", metrics_path.display()))?;
                let state = State { step: done, metrics_bytes: bytes, tokens };
                last_good = Some(self.checkpoint(&model, &optimizer, &state)?);
            }
        }
        progress.finish(&format!("loss {last_loss:.4}"));
        fs::copy(&metrics_path, self.workspace.output.join(METRICS_FILE))
            .with_context(|| format!("copying {}", metrics_path.display()))?;
        Ok(model)
    }

    /// Writes a checkpoint, itself a folder in Hugging Face's layout or PEFT's, then removes the ones
    /// before it.
    fn checkpoint(
        &self,
        model: &LanguageModel,
        optimizer: &Optimizer,
        state: &State,
    ) -> Result<PathBuf> {
        let folder = self.workspace.checkpoints.join(format!("step-{:08}", state.step));
        let before = checkpoints(&self.workspace.checkpoints)?;
        // A step whose failure shows as late as here leaves no checkpoint.
        let write = |output: &Path| {
            self.trained.save(model, output)?;
            optimizer.save(&output.join("optimizer.safetensors"))?;
            let path = output.join("state.json");
            fs::write(&path, serde_json::to_string(state)?)
                .with_context(|| format!("writing {}", path.display()))
        };
        atomic::replace_dir(&folder, |output| guard(|| write(output)))?;
        for old in before {
            fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))?;
        }
        Ok(folder)
    }
}

/// The checkpoints of a stage, oldest first.
pub(crate) fn checkpoints(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        let is_step = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"));
        if is_step {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn latest_checkpoint(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(checkpoints(folder)?.pop())
}

fn read_state(checkpoint: &Path) -> Result<State> {
    let path = checkpoint.join("state.json");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// Cuts a file to a length, creating it if need be.
pub(crate) fn truncate(path: &Path, bytes: u64) -> Result<()> {
    let file = OpenOptions::new().create(true).write(true).truncate(false).open(path);
    file.and_then(|file| file.set_len(bytes)).with_context(|| format!("writing {}", path.display()))
}
