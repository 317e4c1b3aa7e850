//! The settings of a run. They resolve as recipe < configuration file < `KEY=VALUE`, and every key is checked.

mod changes;
mod check;
mod explain;
mod layers;
mod suggest;
#[cfg(test)]
mod tests;
mod wording;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use fpo_data::{OnEmpty, OnError, Pooling, Rendering, RowPolicy, System, Turns};
use fpo_losses::{FeatureSelection, Method, Objective, Options};
use fpo_metrics::Criterion;
use fpo_sae::SaeTraining;
use fpo_track::{Patience, Rules, Tracker};
use fpo_transformer::{LoraConfig, Precision, Sizes, WeightType, weights::Origin};
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::recipes;
pub use explain::{Explained, explanations};
use layers::{known_keys, merge, parse_assignment};
use wording::readable;

/// Everything a run depends on. The recipe `tiny` lists every key with a comment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Seeds the built-in data, initial weights, batch order and sampling.
    pub seed: u64,
    /// Formats in which trainings write their measurements beside the log, in the run's folder `track`.
    #[serde(default)]
    pub track: Vec<Tracker>,
    /// Preference data and tokenisation.
    pub data: DataSettings,
    /// The language model: a checkpoint, or sizes for random weights.
    pub model: ModelSettings,
    /// Supervised fine-tuning. Its result is the reference model.
    pub sft: SftSettings,
    /// The sparse autoencoder: a file, or how to train one. Only for runs that use [features](Self::features).
    pub sae: SaeSettings,
    /// The cache of reference log-probabilities and features.
    pub reference: ReferenceSettings,
    /// Preference alignment: objective, batches, optimiser.
    pub align: AlignSettings,
    /// Evaluation before and after alignment.
    pub evaluate: EvaluateSettings,
}

/// Where preference pairs come from and how they become tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// A file or folder of preference pairs; the built-in dataset if not set.
    pub train: Option<PathBuf>,
    /// Held-out pairs, a file or folder; a share of `train` if not set.
    pub eval: Option<PathBuf>,
    /// Share of `train` held out if `eval` is not set, in [0, 1).
    pub hold_out: f64,
    /// Examples for supervised fine-tuning, a file or folder; the chosen responses of the pairs if not set.
    pub sft: Option<PathBuf>,
    /// Reads only this many pairs of `train`, the first ones; all if not set.
    pub limit: Option<usize>,
    /// What to do with rows that have an empty response.
    pub on_empty: OnEmpty,
    /// What to do with rows that can't be used.
    #[serde(default)]
    pub on_error: OnError,
    /// Which texts go through the chat template.
    #[serde(default)]
    pub rendering: Rendering,
    /// What becomes of a system message at the start of a conversation.
    #[serde(default)]
    pub system: System,
    /// Maximum number of tokens of prompt and response together.
    pub max_length: usize,
    /// Maximum number of tokens of the prompt; bounded by `max_length` alone if not set.
    pub max_prompt_length: Option<usize>,
    /// Size of the built-in dataset, which is used if `train` is not set.
    pub built_in: BuiltInSizes,
}

impl DataSettings {
    /// What to do with rows that aren't as they should be.
    pub fn rows(&self) -> RowPolicy {
        RowPolicy { on_empty: self.on_empty, on_error: self.on_error }
    }
}

/// How much of the built-in dataset is generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuiltInSizes {
    /// Examples for supervised fine-tuning.
    pub sft: usize,
    /// Training pairs.
    pub pairs: usize,
    /// Held-out pairs.
    pub held_out_pairs: usize,
    /// Held-out prompts, for which evaluation generates responses.
    pub held_out_prompts: usize,
}

/// The model: a checkpoint's folder, or sizes for random weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// A Gemma-2 checkpoint in Hugging Face's layout, with its tokenizer.
    pub path: Option<PathBuf>,
    /// A folder with `tokenizer.json`. If not set, the tokenizer in `path`, or a byte-level BPE trained on the data.
    pub tokenizer: Option<PathBuf>,
    /// Data types of parameters and matrix products, in every stage.
    pub precision: Precision,
    /// Type of the weights in the folders that a run writes; that of the weights in `path`, or float32 for random ones, if not
    /// set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save_dtype: Option<WeightType>,
    /// Sizes of a model of random weights; `vocab_size` is also that of a trained tokenizer.
    #[serde(flatten)]
    pub sizes: Sizes,
    /// Tokens in the sliding window of every other layer.
    pub sliding_window: usize,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
}

impl ModelSettings {
    /// What the models of a run that starts from `base` take over: its files, and those of `tokenizer`.
    pub fn origin(&self, base: Option<&Path>) -> Origin {
        let base = base.map(Path::to_owned);
        Origin { base, tokenizer: self.tokenizer.clone(), weight_type: self.save_dtype }
    }
}

/// How the learning rate changes after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays at its peak.
    Constant,
    /// Decays to 0 along half a cosine.
    Cosine,
    /// Decays to 0 linearly.
    Linear,
}

/// The update rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay; plain Adam if the decay is 0.
    Adamw,
    /// RMSprop as in PyTorch, with smoothing 0.99 and no momentum.
    Rmsprop,
}

/// The optimiser of fine-tuning or alignment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSettings {
    /// The update rule.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Warm-up as a share of all steps, in place of `warmup_steps`.
    #[serde(default)]
    pub warmup_ratio: Option<f64>,
    /// Learning rate after warm-up.
    pub schedule: Schedule,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global L2 norm if they exceed it; 0 leaves them as they are.
    pub max_grad_norm: f64,
    /// β₁ and β₂ of AdamW.
    #[serde(default = "adam_betas")]
    pub betas: [f64; 2],
}

const fn adam_betas() -> [f64; 2] {
    [0.9, 0.999]
}

impl OptimizerSettings {
    /// Steps of warm-up in a training of so many steps.
    pub fn warmup(&self, total_steps: usize) -> usize {
        match self.warmup_ratio {
            // As transformers rounds it.
            Some(ratio) => (ratio * total_steps as f64).ceil() as usize,
            None => self.warmup_steps,
        }
    }
}

/// How long a training is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Length {
    /// Epochs, also a fraction of one.
    pub epochs: f64,
    /// Steps, at most.
    pub max_steps: Option<NonZeroUsize>,
    /// Rows per step.
    pub batch_size: NonZeroUsize,
}

impl Length {
    /// Steps of a training on so many rows.
    pub fn steps(&self, rows: usize) -> usize {
        let per_epoch = rows.div_ceil(self.batch_size.get());
        let steps = (self.epochs * per_epoch as f64).round() as usize;
        let at_least = usize::from(self.epochs > 0.0 && rows > 0);
        steps.max(at_least).min(self.max_steps.map_or(usize::MAX, NonZeroUsize::get))
    }

    /// Epochs that are begun.
    pub fn begun(&self) -> usize {
        self.epochs.ceil() as usize
    }
}

/// A whole number is written as one, as it was when epochs were whole.
fn whole_if_it_is<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    match value.fract() == 0.0 && (0.0..1e9).contains(value) {
        true => serializer.serialize_u64(*value as u64),
        false => serializer.serialize_f64(*value),
    }
}

/// Supervised fine-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftSettings {
    /// Which of the assistant's turns in a conversation are learned; all where the chat template marks them, else the last, if not
    /// set.
    #[serde(default)]
    pub turns: Option<Turns>,
    /// Epochs over the examples; 0 skips fine-tuning and takes the model as it is.
    #[serde(serialize_with = "whole_if_it_is")]
    pub epochs: f64,
    /// Stops after so many steps, to which the schedule is stretched.
    #[serde(default)]
    pub max_steps: Option<NonZeroUsize>,
    /// Examples per step.
    pub batch_size: NonZeroUsize,
    /// Examples per forward pass; gradients accumulate over the micro-batches of a step.
    pub micro_batch_size: NonZeroUsize,
    /// Steps between checkpoints.
    pub checkpoint_every: NonZeroUsize,
    /// Recomputes each block in the backward pass instead of storing its activations.
    pub checkpoint_activations: bool,
    /// Updates each block as soon as the backward pass has its gradients, so that those of all don't exist together.
    #[serde(default)]
    pub optimizer_in_backward: bool,
    /// LoRA adapters to train instead of the full model; the full model if not set.
    pub lora: Option<LoraConfig>,
    /// Optimiser and learning-rate schedule.
    pub optimizer: OptimizerSettings,
}

/// The sparse autoencoder: a file, or how to train one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaeSettings {
    /// A SAELens folder or Gemma Scope's `params.npz`; trained by the run if not set.
    pub path: Option<PathBuf>,
    /// Site where it reads activations, such as `resid_post:25`.
    pub site: String,
    /// Number of tokens whose activations are used for training and measurement.
    pub tokens: usize,
    /// Minimum number of activations held in memory and shuffled together; defaults to 250,000.
    #[serde(default = "quarter_million")]
    pub buffer_tokens: NonZeroUsize,
    /// Skips tokens whose activation norm exceeds this multiple of the median; skips none if not set.
    pub max_norm: Option<f64>,
    /// Steps between checkpoints.
    #[serde(default = "thousand")]
    pub checkpoint_every: NonZeroUsize,
    /// Hyperparameters of training.
    pub training: SaeTraining,
}

const fn quarter_million() -> NonZeroUsize {
    NonZeroUsize::new(250_000).unwrap()
}

const fn thousand() -> NonZeroUsize {
    NonZeroUsize::new(1000).unwrap()
}

/// The cache of reference log-probabilities and features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceSettings {
    /// The cache of the training pairs, as written by `fpo reference`; computed by the run if not set.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Pairs per forward pass.
    pub batch_size: NonZeroUsize,
    /// Number of pooled activations stored per response, the largest ones; all nonzero ones if not set.
    pub top_n: Option<NonZeroUsize>,
}

/// An additional site of FPO's constraint (appendix D.2 of the paper) with a trained autoencoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoreSite {
    /// The site, such as `resid_post:7`.
    pub site: String,
    /// The autoencoder's file or folder.
    pub sae: PathBuf,
}

/// Preference alignment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignSettings {
    /// The objective, one of [`Method::all`].
    pub method: Method,
    /// β; [`Method::default_beta`] if not set.
    pub beta: Option<f64>,
    /// α, the weight of the constraint in fpo, tdpo2 and simpo-kl.
    pub alpha: f64,
    /// γ, the margin of simpo and simpo-kl.
    pub gamma: f64,
    /// Stops the gradient of the constraint's chosen side.
    pub stop_gradient: bool,
    /// Options that only some methods have; in TOML they are keys of this table.
    #[serde(flatten)]
    pub options: Options,
    /// Logs entropy and token accuracy of the policy, which costs one more pass over the logits.
    pub token_statistics: bool,
    /// k: features are compared over the union of the policy's and the reference's top k.
    pub k: usize,
    /// Weights of FPO's squared feature differences, a file from `fpo features find`; all 1 if not set.
    pub feature_weights: Option<PathBuf>,
    /// Whether only the features in that file count, or all others.
    #[serde(default)]
    pub feature_selection: FeatureSelection,
    /// Sites besides `sae.site` whose features are compared too; D is summed over all sites.
    #[serde(default)]
    pub more_sites: Vec<MoreSite>,
    /// Positions over which features are averaged.
    pub pooling: Pooling,
    /// Epochs over the pairs.
    #[serde(serialize_with = "whole_if_it_is")]
    pub epochs: f64,
    /// Stops after so many steps, to which the schedule is stretched.
    #[serde(default)]
    pub max_steps: Option<NonZeroUsize>,
    /// Pairs per step.
    pub batch_size: NonZeroUsize,
    /// Pairs per forward pass; gradients accumulate over the micro-batches of a step.
    pub micro_batch_size: NonZeroUsize,
    /// Steps between checkpoints.
    pub checkpoint_every: NonZeroUsize,
    /// The model of the evaluation that is best by this metric is the result; that of the last step if not set.
    #[serde(default)]
    pub keep_best: Option<Criterion>,
    /// Keeps so many of the newest checkpoints, in the end as models beside the result; none if not set.
    #[serde(default)]
    pub keep_last: Option<NonZeroUsize>,
    /// Stops where evaluations don't become better; at the last step if not set.
    #[serde(default)]
    pub early_stopping: Option<EarlyStopping>,
    /// Recomputes each block in the backward pass instead of storing its activations.
    pub checkpoint_activations: bool,
    /// Updates each block as soon as the backward pass has its gradients, so that those of all don't exist together.
    #[serde(default)]
    pub optimizer_in_backward: bool,
    /// LoRA adapters to train instead of the full model; the full model if not set.
    pub lora: Option<LoraConfig>,
    /// Optimiser and learning-rate schedule.
    pub optimizer: OptimizerSettings,
}

/// When alignment stops before its last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// What has to become better.
    pub metric: Criterion,
    /// Stops after so many evaluations in a row without a better value.
    pub patience: usize,
    /// A value is better only by more than this.
    #[serde(default)]
    pub threshold: f64,
}

impl SftSettings {
    /// How long fine-tuning is.
    pub fn length(&self) -> Length {
        let Self { epochs, max_steps, batch_size, .. } = *self;
        Length { epochs, max_steps, batch_size }
    }
}

impl AlignSettings {
    /// How long alignment is.
    pub fn length(&self) -> Length {
        let Self { epochs, max_steps, batch_size, .. } = *self;
        Length { epochs, max_steps, batch_size }
    }

    /// The objective with its constants; β is resolved to the method's default if not set.
    pub fn objective(&self) -> Objective {
        Objective {
            method: self.method,
            beta: self.beta.unwrap_or(self.method.default_beta()),
            alpha: self.alpha,
            gamma: self.gamma,
            stop_gradient: self.stop_gradient,
            options: self.options,
        }
    }

    /// What the evaluations of the training decide.
    pub fn rules(&self) -> Rules {
        Rules {
            keep_best: self.keep_best.map(Criterion::rule),
            early_stopping: self.early_stopping.map(|stop| Patience {
                rule: stop.metric.rule(),
                evaluations: stop.patience,
                threshold: stop.threshold,
            }),
        }
    }

    /// The same settings for another method; options it doesn't have are dropped.
    pub fn for_method(&self, method: Method) -> Self {
        Self {
            method,
            options: self.options.for_method(method),
            feature_weights: self.feature_weights.clone().filter(|_| method == Method::FPO),
            ..self.clone()
        }
    }
}

/// Evaluation before and after alignment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateSettings {
    /// Pairs per forward pass, and prompts per generation batch.
    pub batch_size: NonZeroUsize,
    /// Number of held-out prompts to generate responses for.
    pub prompts: usize,
    /// Maximum number of tokens per generated response.
    pub max_new_tokens: usize,
    /// Sampling temperature; 0 is greedy decoding.
    pub temperature: f64,
    /// Measures how far features moved, which takes an autoencoder, whatever the method; fpo always does.
    #[serde(default)]
    pub features: bool,
    /// Steps between evaluations while aligning; 0 measures before and after it alone.
    #[serde(default)]
    pub every: usize,
    /// Held-out pairs measured while aligning, drawn with the run's seed.
    #[serde(default = "subset")]
    pub subset: NonZeroUsize,
    /// Held-out prompts answered while aligning, the first ones.
    #[serde(default = "samples")]
    pub samples: usize,
}

const fn subset() -> NonZeroUsize {
    NonZeroUsize::new(256).unwrap()
}

const fn samples() -> usize {
    4
}

/// What settings start from.
#[derive(Clone, Copy, Debug)]
pub enum Base<'a> {
    /// A recipe, by its name.
    Recipe(&'a str),
    /// A file of resolved settings, as a run keeps them.
    Saved(&'a Path),
}

impl Settings {
    /// Whether anything asks for features, and so for an autoencoder: the method or a measurement.
    pub fn features(&self) -> bool {
        self.evaluate.features || self.align.objective().needs().features
    }

    /// Resolves recipe, configuration file and `KEY=VALUE` assignments; later ones win.
    ///
    /// # Errors
    /// A recipe that doesn't exist, a file that can't be read, an unknown key, or settings that can't work together.
    pub fn resolve(recipe: &str, config: Option<&Path>, assignments: &[String]) -> Result<Self> {
        Self::resolve_on(Base::Recipe(recipe), config, assignments)
    }

    /// The same, from any base. What a saved file lacks is as in the recipe that all others extend.
    ///
    /// # Errors
    /// Those of [`Self::resolve`].
    pub fn resolve_on(base: Base, config: Option<&Path>, assignments: &[String]) -> Result<Self> {
        let recipe = match base {
            Base::Recipe(name) => name,
            Base::Saved(_) => recipes::FIRST,
        };
        let mut table = recipes::table(recipe)?;
        let defaults: Self = parse(&table).with_context(|| format!("recipe `{recipe}`"))?;
        let known = known_keys(&defaults)?;
        let saved = match base {
            Base::Recipe(_) => None,
            Base::Saved(path) => Some(path),
        };
        for path in saved.into_iter().chain(config) {
            let mut layer = || -> Result<()> {
                let layer: Table = toml::from_str(&std::fs::read_to_string(path)?)?;
                merge(&mut table, layer, "", &known)?;
                parse(&table).map(drop)
            };
            layer().with_context(|| format!("configuration file {}", path.display()))?;
        }
        for assignment in assignments {
            let mut layer = || -> Result<()> {
                merge(&mut table, parse_assignment(assignment)?, "", &known)?;
                // A group of keys may only be whole after a later assignment.
                match parse(&table) {
                    Err(error) if !is_missing(&error) => Err(error),
                    _ => Ok(()),
                }
            };
            layer().with_context(|| format!("--set {assignment}"))?;
        }
        let settings = parse(&table).context("the settings have a missing or wrong value")?;
        settings.check()?;
        Ok(settings)
    }

    /// The resolved settings as TOML, as saved in a run's folder.
    ///
    /// # Errors
    /// A value that TOML can't represent.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }
}

fn parse(table: &Table) -> Result<Settings> {
    table.clone().try_into().map_err(|error: toml::de::Error| anyhow!(readable(&error.to_string())))
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.to_string().contains("missing field")
}
