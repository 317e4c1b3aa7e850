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

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use burn::module::Module;
use fpo_config::OptimizerSettings;
use fpo_data::checkpoints::{Checkpoints, MetricsLog, Older, STATE_FILE, read_log};
use fpo_device::{
    interrupt::{Interrupted, Listener, requested},
    progress::Progress,
};
use fpo_pages::{KEPT_FILE, Kept};
use fpo_track::{Rules, Standing, Tracker, Trackers};
use fpo_transformer::{LanguageModel, Placement};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    optim::{Optimizer, StepGradients},
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
    /// Formats in which the log is written too, and the folder for them.
    pub track: (&'a [Tracker], PathBuf),
    /// What is measured on the way, where anything is.
    pub evaluation: Option<Evaluation<'a>>,
    /// Checkpoints that stay, if any do: they are part of the result.
    pub keep_last: Option<NonZeroUsize>,
}

/// Measuring the model while it is trained, which changes nothing of the training but when it ends.
pub struct Evaluation<'a> {
    /// Steps between evaluations; the last step is followed by one too.
    pub every: NonZeroUsize,
    /// What of the measurements decides.
    pub rules: Rules,
    /// Measures a model without autodiff.
    pub measure: Measure<'a>,
}

/// The line of an evaluation, without its step.
pub type Measure<'a> = Box<dyn Fn(&LanguageModel) -> Result<Map<String, Value>> + 'a>;

/// Checkpoints beside a result, as models.
const CHECKPOINTS_FOLDER: &str = "checkpoints";

/// What one step found beside the gradients.
pub struct StepResult {
    /// What is minimised.
    pub loss: f64,
    /// Real tokens that went through the model.
    pub tokens: usize,
    /// Ids of the examples or pairs.
    pub ids: Vec<u64>,
    /// Whatever else is logged, by TRL's names where TRL has them.
    pub metrics: Map<String, Value>,
}

/// A loss or a gradient that isn't finite.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Diverged(String);

/// The part of a checkpoint that is not a tensor.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct State {
    /// Steps done.
    step: usize,
    /// Length of the metrics file, in bytes.
    metrics_bytes: u64,
    /// Tokens that have gone through the model.
    tokens: usize,
    /// What the evaluations have come to.
    #[serde(default)]
    standing: Standing,
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
    trackers: Trackers,
    state: State,
    /// An evaluation has ended the training.
    stopped: bool,
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
            None => {
                let warmup = frame.optimizer.warmup(frame.total_steps);
                if warmup > frame.total_steps {
                    workspace.reporter.warn(format!(
                        "{}: a warm-up of {warmup} steps in a training of {}: the learning rate never reaches its peak",
                        frame.stage, frame.total_steps
                    ));
                }
                (trained.start(frame.seed, placement)?, State::default(), None)
            }
            Some((folder, state)) => {
                let model = trained.load(&folder, placement)?;
                optimizer.restore(&optimizer_file(&folder), state.step, &model)?;
                let note = format!("resumes from step {}", state.step);
                workspace.reporter.note(frame.stage, note);
                (model, state, Some(folder))
            }
        };
        let log = checkpoints.open_log(state.metrics_bytes)?;
        let (kinds, folder) = &frame.track;
        let trackers = Trackers::open(kinds, folder, &read_log(&checkpoints.metrics())?)?;
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
            trackers,
            state,
            stopped: false,
            last_loss,
            progress,
            _listener: Listener::new(),
        })
    }

    /// The number of the next step, counted from 0; none at the end.
    pub fn next_step(&self) -> Option<usize> {
        let next = self.state.step;
        (next < self.frame.total_steps && !self.stopped).then(|| {
            self.frame.workspace.at(format!("step {}", next + 1));
            next
        })
    }

    /// The model as it is before the step.
    pub fn model(&self) -> &LanguageModel {
        self.model.as_ref().expect("apply puts the moved model back")
    }

    /// Moves the weights by a step's gradients, logs it, evaluates the model and writes a checkpoint where that is due. `read` says
    /// what is logged, and is called once the weights' move is queued: what it reads from a GPU waits for the whole step, once.
    ///
    /// # Errors
    /// A loss or a gradient that isn't finite, a device that failed, an interruption, or those of evaluation and disk.
    pub fn apply(
        &mut self,
        gradients: StepGradients,
        read: impl FnOnce() -> StepResult,
    ) -> Result<()> {
        let model = self.model.take().context("a training whose last step failed")?;
        let (model, info) = self.optimizer.step(model, gradients);
        self.model = Some(model);
        let StepResult { loss, tokens, ids, metrics } = read();
        let grad_norm = info.grad_norm();
        // A device's failure that surfaced on its own thread.
        fpo_device::check()?;
        let step = self.state.step + 1;
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(Diverged(format!(
                "loss {loss}, gradient norm {grad_norm}; pair ids of the batch: {ids:?}; last good checkpoint: {}",
                self.last_checkpoint.as_deref().map_or("none yet".into(), Path::to_string_lossy),
            ))
            .into());
        }
        self.last_loss = loss;
        self.state.step = step;
        self.state.tokens += tokens;
        self.frame.workspace.count_tokens(tokens);
        let mut line = Map::from_iter([
            ("step".to_owned(), json!(step)),
            ("loss".to_owned(), json!(loss)),
            ("learning_rate".to_owned(), json!(info.learning_rate)),
            ("grad_norm".to_owned(), json!(grad_norm)),
            ("num_tokens".to_owned(), json!(self.state.tokens)),
        ]);
        line.extend(metrics);
        self.write_line(line)?;
        self.progress.advance(1, &format!("loss {loss:.4}"));
        let is_best = self.evaluate()?;
        let interrupted = requested();
        let due = interrupted || is_best || step.is_multiple_of(self.frame.checkpoint_every);
        if due && step < self.frame.total_steps && !self.stopped {
            self.state.metrics_bytes = self.log.saved_bytes()?;
            self.write_checkpoint()?;
            if interrupted {
                return Err(Interrupted.into());
            }
        }
        Ok(())
    }

    fn write_line(&mut self, line: Map<String, Value>) -> Result<()> {
        self.trackers.write(&line)?;
        Ok(self.log.write(&Value::Object(line))?)
    }

    /// Evaluates the model where that is due. Whether it is the best so far.
    fn evaluate(&mut self) -> Result<bool> {
        let State { step, .. } = self.state;
        let Some(evaluation) = &self.frame.evaluation else { return Ok(false) };
        if !step.is_multiple_of(evaluation.every.get()) && step < self.frame.total_steps {
            return Ok(false);
        }
        let model = self.model().valid();
        let mut line = Map::from_iter([("step".to_owned(), json!(step))]);
        line.extend((evaluation.measure)(&model).context("evaluating")?);
        fpo_device::check()?;
        let verdict = self.state.standing.judge(&evaluation.rules, step, &line)?;
        let shown = |key: &str| line.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let mut note = format!("step {step}: eval_loss {:.4}", shown("eval_loss"));
        if let (Some(rule), Some(best)) = (&evaluation.rules.keep_best, self.state.standing.best) {
            note += &match verdict.best {
                true => format!(", the best by {} ({:.4})", rule.key, best.value),
                false => format!(", the best by {} is that of step {}", rule.key, best.step),
            };
        }
        if verdict.stop && step < self.frame.total_steps {
            let waited = self.state.standing.waited;
            note += &format!("; stops, since {waited} evaluations in a row weren't better");
            self.stopped = true;
        }
        self.frame.workspace.reporter.note(self.frame.stage, note);
        self.write_line(line)?;
        Ok(verdict.best)
    }

    /// A folder in Hugging Face's layout or PEFT's, with the optimiser's moments.
    fn write_checkpoint(&mut self) -> Result<()> {
        let State { step, standing, .. } = self.state;
        let newest = self.frame.keep_last.map_or(0, |last| last.get() - 1);
        let stay = Older { newest, step: standing.best.map(|best| best.step) };
        let written =
            self.checkpoints.write_beside(step, &self.state, stay, |output| -> Result<()> {
                self.frame.trained.save(self.model(), output)?;
                self.optimizer.save(&optimizer_file(output))?;
                // A step whose failure surfaces only here leaves no checkpoint.
                fpo_device::check()
            });
        self.last_checkpoint = Some(written?);
        Ok(())
    }

    /// The trained model, which is that of the best evaluation where one is kept. Metrics and kept checkpoints go to the stage's
    /// folder.
    ///
    /// # Errors
    /// A checkpoint that can't be read, or the disk's.
    pub fn finish(self) -> Result<LanguageModel> {
        self.progress.finish(&format!("loss {:.4}", self.last_loss));
        let Frame { workspace, trained, placement, .. } = self.frame;
        self.checkpoints.copy_log(&workspace.output)?;
        if let Some(last) = self.frame.keep_last {
            let all = self.checkpoints.all()?;
            for checkpoint in &all[all.len().saturating_sub(last.get())..] {
                keep(checkpoint, &workspace.output.join(CHECKPOINTS_FOLDER))?;
            }
        }
        let rule = self.frame.evaluation.and_then(|evaluation| evaluation.rules.keep_best);
        if let (Some(rule), Some(best)) = (rule, self.state.standing.best) {
            let kept = Kept { metric: rule.key, value: best.value, step: best.step };
            let note =
                format!("keeps the model of step {}: {} {:.4}", kept.step, kept.metric, kept.value);
            workspace.reporter.note(self.frame.stage, note);
            let path = workspace.output.join(KEPT_FILE);
            fs::write(&path, serde_json::to_string_pretty(&kept)? + "\n")
                .with_context(|| format!("writing {}", path.display()))?;
            if kept.step < self.state.step {
                return trained.load(&self.checkpoints.at(kept.step), placement);
            }
        }
        self.model.context("a training whose last step failed")
    }
}

/// The checkpoints that a training kept in its result.
pub(crate) fn kept_checkpoints(output: &Path) -> Result<Vec<PathBuf>> {
    let folder = output.join(CHECKPOINTS_FOLDER);
    match folder.is_dir() {
        true => Ok(Checkpoints::new(folder).all()?),
        false => Ok(Vec::new()),
    }
}

/// Copies a checkpoint's model into a folder, without what only resuming needs.
fn keep(checkpoint: &Path, folder: &Path) -> Result<()> {
    let name = checkpoint.file_name().context("a checkpoint has a name")?;
    let target = folder.join(name);
    fs::create_dir_all(&target).with_context(|| format!("creating {}", target.display()))?;
    for entry in fs::read_dir(checkpoint)? {
        let path = entry?.path();
        let name = path.file_name().context("a file has a name")?;
        if path.is_file() && name != OPTIMIZER_FILE && name != STATE_FILE {
            fs::copy(&path, target.join(name))
                .with_context(|| format!("copying {} to {}", path.display(), target.display()))?;
        }
    }
    Ok(())
}

const OPTIMIZER_FILE: &str = "optimizer.safetensors";

fn optimizer_file(checkpoint: &Path) -> PathBuf {
    checkpoint.join(OPTIMIZER_FILE)
}
