//! The training loop that fine-tuning and alignment share: batches, steps, checkpoints, metrics, resuming.
//!
//! ```text
//! let mut training = Training::start(…)?;
//! while let Some(step) = training.next_step() {
//!     … loss and gradients of training.model() on the step's batch …
//!     training.apply(result)?;
//! }
//! let model = training.finish()?;
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fpo_config::OptimizerSettings;
use fpo_data::checkpoints::{Checkpoints, MetricsLog};
use fpo_device::{
    interrupt::{Interrupted, Listener, requested},
    progress::Progress,
};
use fpo_transformer::{LanguageModel, Placement};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    optim::{GradientMap, Optimizer},
    run::Workspace,
    trained::Trained,
};

/// How a training runs.
pub struct Frame<'a> {
    /// The stage's name, for progress and messages.
    pub stage: &'static str,
    /// Where checkpoints and metrics go.
    pub workspace: &'a Workspace,
    /// Steps in total.
    pub total_steps: usize,
    /// Steps between checkpoints.
    pub checkpoint_every: usize,
    /// How weights move.
    pub optimizer: &'a OptimizerSettings,
    /// Which weights move, and what a checkpoint holds.
    pub trained: &'a Trained,
    /// Where the model is trained.
    pub placement: &'a Placement,
    /// Seeds new adapters.
    pub seed: u64,
}

/// What one step found, before the weights move.
pub struct StepResult {
    /// What is minimised.
    pub loss: f64,
    /// Its gradients.
    pub gradients: GradientMap,
    /// Real tokens that went through the model.
    pub tokens: usize,
    /// Ids of the examples or pairs.
    pub ids: Vec<u64>,
    /// Whatever else is logged, by TRL's names where TRL has them.
    pub metrics: Map<String, Value>,
}

/// The part of a checkpoint that is not a tensor.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct State {
    /// Steps done.
    step: usize,
    /// Length of the metrics file, in bytes.
    metrics_bytes: u64,
    /// Tokens that have gone through the model.
    tokens: usize,
}

/// A training in progress. A step may depend on its number, the model and the settings alone, so that a resumed training repeats
/// an uninterrupted one.
pub struct Training<'a> {
    frame: Frame<'a>,
    /// Absent only while the weights move.
    model: Option<LanguageModel>,
    optimizer: Optimizer,
    checkpoints: Checkpoints,
    last_checkpoint: Option<PathBuf>,
    log: MetricsLog,
    state: State,
    last_loss: f64,
    progress: Progress,
    _listener: Listener,
}

impl<'a> Training<'a> {
    /// Starts, or resumes from the last checkpoint.
    ///
    /// # Errors
    /// A model or a checkpoint that can't be read, or the disk's.
    pub fn start(frame: Frame<'a>) -> Result<Self> {
        let Frame { workspace, trained, placement, .. } = frame;
        let checkpoints = Checkpoints::new(&workspace.checkpoints);
        let mut optimizer = Optimizer::new(frame.optimizer, frame.total_steps);
        let (model, state, last_checkpoint) = match checkpoints.latest::<State>()? {
            None => (trained.start(frame.seed, placement)?, State::default(), None),
            Some((folder, state)) => {
                let model = trained.load(&folder, placement)?;
                optimizer.restore(&optimizer_file(&folder), state.step, &model)?;
                let note = format!("resumes from step {}", state.step);
                workspace.reporter.note(frame.stage, note);
                (model, state, Some(folder))
            }
        };
        let log = checkpoints.open_log(state.metrics_bytes)?;
        let progress =
            workspace.reporter.begin(frame.stage, "steps", frame.total_steps, state.step);
        let (model, last_loss) = (Some(model), f64::NAN);
        Ok(Self {
            frame,
            model,
            optimizer,
            checkpoints,
            last_checkpoint,
            log,
            state,
            last_loss,
            progress,
            _listener: Listener::new(),
        })
    }

    /// The number of the next step, counted from 0; none at the end.
    pub fn next_step(&self) -> Option<usize> {
        let next = self.state.step;
        (next < self.frame.total_steps).then(|| {
            self.frame.workspace.at(format!("step {}", next + 1));
            next
        })
    }

    /// The model as it is before the step.
    pub fn model(&self) -> &LanguageModel {
        self.model.as_ref().expect("apply puts the moved model back")
    }

    /// Moves the weights by a step's gradients, logs it, and writes a checkpoint where one is due.
    ///
    /// # Errors
    /// A loss or a gradient that isn't finite, a device that failed, an interruption, or the disk's.
    pub fn apply(&mut self, result: StepResult) -> Result<()> {
        let StepResult { loss, gradients, tokens, ids, metrics } = result;
        let model = self.model.take().context("a training whose last step failed")?;
        let (model, info) = self.optimizer.step(model, gradients);
        self.model = Some(model);
        // A device's failure that surfaced on its own thread.
        fpo_device::check()?;
        let step = self.state.step + 1;
        if !(loss.is_finite() && info.grad_norm.is_finite()) {
            bail!(
                "loss {loss}, gradient norm {}; pair ids of the batch: {ids:?}; last good checkpoint: {}",
                info.grad_norm,
                self.last_checkpoint.as_deref().map_or("none yet".into(), Path::to_string_lossy),
            );
        }
        self.last_loss = loss;
        self.state.step = step;
        self.state.tokens += tokens;
        self.frame.workspace.count_tokens(tokens);
        let mut line = Map::from_iter([
            ("step".to_owned(), json!(step)),
            ("loss".to_owned(), json!(loss)),
            ("learning_rate".to_owned(), json!(info.learning_rate)),
            ("grad_norm".to_owned(), json!(info.grad_norm)),
            ("num_tokens".to_owned(), json!(self.state.tokens)),
        ]);
        line.extend(metrics);
        self.log.write(&Value::Object(line))?;
        self.progress.advance(1, &format!("loss {loss:.4}"));
        let interrupted = requested();
        let due = interrupted || step.is_multiple_of(self.frame.checkpoint_every);
        if due && step < self.frame.total_steps {
            self.state.metrics_bytes = self.log.saved_bytes()?;
            self.write_checkpoint()?;
            if interrupted {
                return Err(Interrupted.into());
            }
        }
        Ok(())
    }

    /// A folder in Hugging Face's layout or PEFT's, with the optimiser's moments.
    fn write_checkpoint(&mut self) -> Result<()> {
        let State { step, .. } = self.state;
        let folder = self.checkpoints.write(step, &self.state, |output| -> Result<()> {
            self.frame.trained.save(self.model(), output)?;
            self.optimizer.save(&optimizer_file(output))?;
            // A step whose failure surfaces only here leaves no checkpoint.
            fpo_device::check()
        })?;
        self.last_checkpoint = Some(folder);
        Ok(())
    }

    /// The trained model; its metrics go to the stage's folder.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(self) -> Result<LanguageModel> {
        self.progress.finish(&format!("loss {:.4}", self.last_loss));
        self.checkpoints.copy_log(&self.frame.workspace.output)?;
        self.model.context("a training whose last step failed")
    }
}

fn optimizer_file(checkpoint: &Path) -> PathBuf {
    checkpoint.join("optimizer.safetensors")
}
