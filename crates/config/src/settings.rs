//! The settings of a run: recipe < configuration file < `--set`, checked key by key.

mod check;
mod layers;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fpo_data::{OnEmpty, Pooling, Rendering};
use fpo_losses::{FeatureSelection, Method, Objective, Options};
use fpo_sae::SaeTraining;
use fpo_transformer::{LoraConfig, Precision, Sizes};
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::recipes;
use layers::{known_keys, merge, parse_assignment};

/// Everything a run depends on. Every key is in the recipe's TOML, with its meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Seeds the data, the initial weights, the order of batches and sampling.
    pub seed: u64,
    /// Preference data and tokenisation.
    pub data: DataSettings,
    /// The language model.
    pub model: ModelSettings,
    /// Supervised fine-tuning, which makes the reference model.
    pub sft: SftSettings,
    /// The sparse autoencoder.
    pub sae: SaeSettings,
    /// The offline reference.
    pub reference: ReferenceSettings,
    /// Preference alignment.
    pub align: AlignSettings,
    /// Measuring before and after.
    pub evaluate: EvaluateSettings,
}

/// Where preference pairs come from and how they become tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// A file or folder of preference pairs; the built-in dataset where absent.
    pub train: Option<PathBuf>,
    /// Held-out pairs; a share of the training file where absent.
    pub eval: Option<PathBuf>,
    /// That share, 0 to 1.
    pub hold_out: f64,
    /// Examples for supervised fine-tuning; the chosen responses of the pairs where absent.
    pub sft: Option<PathBuf>,
    /// Reads at most so many pairs.
    pub limit: Option<usize>,
    /// What to do with a row whose response is empty.
    pub on_empty: OnEmpty,
    /// What goes through the chat template.
    #[serde(default)]
    pub rendering: Rendering,
    /// Tokens of prompt and response together, at most.
    pub max_length: usize,
    /// Tokens of the prompt, at most.
    pub max_prompt_length: Option<usize>,
    /// Sizes of the built-in dataset.
    pub built_in: BuiltInSizes,
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
    /// Held-out prompts to answer.
    pub held_out_prompts: usize,
}

/// The model: a checkpoint's folder, or sizes for random weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// A Gemma-2 checkpoint in Hugging Face's layout, with its tokenizer.
    pub path: Option<PathBuf>,
    /// A folder with `tokenizer.json`; that of `path`, or a trained one, where absent.
    pub tokenizer: Option<PathBuf>,
    /// In which types it is held and computed, in every stage.
    pub precision: Precision,
    /// Vocabulary of a trained tokenizer.
    pub vocab_size: usize,
    /// d_model.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Window of every other layer.
    pub sliding_window: usize,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
}

impl ModelSettings {
    /// The sizes for random weights.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
    }
}

/// How a learning rate moves after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls to zero along half a cosine.
    Cosine,
    /// Falls to zero in a line.
    Linear,
}

/// The optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay; plain Adam where the decay is 0.
    Adamw,
    /// RMSprop as in PyTorch: smoothing 0.99, no momentum.
    Rmsprop,
}

/// What SFT and alignment share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSettings {
    /// Which one.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// After the warm-up.
    pub schedule: Schedule,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients of a larger global norm are scaled down to it.
    pub max_grad_norm: f64,
}

/// Supervised fine-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftSettings {
    /// Passes over the examples; 0 takes the model as it is.
    pub epochs: usize,
    /// Examples a step.
    pub batch_size: NonZeroUsize,
    /// Examples a forward pass; the gradients of a step's passes add up.
    pub micro_batch_size: NonZeroUsize,
    /// A checkpoint after every so many steps.
    pub checkpoint_every: NonZeroUsize,
    /// Computes each block a second time in the backward pass rather than keep all its activations.
    pub checkpoint_activations: bool,
    /// Trains adapters of this shape rather than the model itself, where present.
    pub lora: Option<LoraConfig>,
    /// How weights move.
    pub optimizer: OptimizerSettings,
}

/// The sparse autoencoder: a file, or a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaeSettings {
    /// A SAELens folder or Gemma Scope's `params.npz`; trained where absent.
    pub path: Option<PathBuf>,
    /// Where its activations are read, such as `resid_post:25`.
    pub site: String,
    /// Tokens whose activations it is trained on and measured on.
    pub tokens: usize,
    /// Activations held in memory and shuffled together, at least.
    #[serde(default = "quarter_million")]
    pub buffer_tokens: NonZeroUsize,
    /// Leaves out tokens whose activation is longer than so many times the median.
    pub max_norm: Option<f64>,
    /// A checkpoint after every so many steps.
    #[serde(default = "thousand")]
    pub checkpoint_every: NonZeroUsize,
    /// The training.
    pub training: SaeTraining,
}

const fn quarter_million() -> NonZeroUsize {
    NonZeroUsize::new(250_000).unwrap()
}

const fn thousand() -> NonZeroUsize {
    NonZeroUsize::new(1000).unwrap()
}

/// The offline reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceSettings {
    /// The training pairs' cache, as `fpo reference` wrote it; computed by the run if absent.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Pairs per forward pass.
    pub batch_size: NonZeroUsize,
    /// Keeps the n largest pooled activations of a response; all that are not zero where absent.
    pub top_n: Option<NonZeroUsize>,
}

/// A further site of FPO's constraint (appendix D.2), with an autoencoder that exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoreSite {
    /// Such as `resid_post:7`.
    pub site: String,
    /// A sparse autoencoder's file or folder.
    pub sae: PathBuf,
}

/// Preference alignment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignSettings {
    /// One of [`Method::all`].
    pub method: Method,
    /// β; the paper's for the method where absent.
    pub beta: Option<f64>,
    /// α, the weight of the constraint.
    pub alpha: f64,
    /// γ, SimPO's margin.
    pub gamma: f64,
    /// FPO's stop-gradient on the chosen side.
    pub stop_gradient: bool,
    /// The options that only some methods have, as keys of this table.
    #[serde(flatten)]
    pub options: Options,
    /// Logs entropy and token accuracy of the policy: one more pass over the logits.
    pub token_statistics: bool,
    /// k: features compared are the k strongest of policy and reference.
    pub k: usize,
    /// A file of features whose squares FPO weighs, as `fpo features find` writes it; all weigh 1 where absent.
    pub feature_weights: Option<PathBuf>,
    /// Whether only these features count, or all but them.
    #[serde(default)]
    pub feature_selection: FeatureSelection,
    /// Sites beside `sae.site` whose features are compared too; D is summed over all.
    #[serde(default)]
    pub more_sites: Vec<MoreSite>,
    /// Positions whose features are averaged.
    pub pooling: Pooling,
    /// Passes over the pairs.
    pub epochs: usize,
    /// Pairs a step.
    pub batch_size: NonZeroUsize,
    /// Pairs a forward pass; the gradients of a step's passes add up.
    pub micro_batch_size: NonZeroUsize,
    /// A checkpoint after every so many steps.
    pub checkpoint_every: NonZeroUsize,
    /// Computes each block a second time in the backward pass rather than keep all its activations.
    pub checkpoint_activations: bool,
    /// Trains adapters of this shape rather than the model itself, where present.
    pub lora: Option<LoraConfig>,
    /// How weights move.
    pub optimizer: OptimizerSettings,
}

impl AlignSettings {
    /// The objective with its constants.
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

    /// The same settings for another method, without the options that it lacks.
    pub fn for_method(&self, method: Method) -> Self {
        Self {
            method,
            options: self.options.for_method(method),
            feature_weights: self.feature_weights.clone().filter(|_| method == Method::FPO),
            ..self.clone()
        }
    }
}

/// Measuring before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateSettings {
    /// Pairs a forward pass, and prompts answered at once.
    pub batch_size: NonZeroUsize,
    /// Held-out prompts that are answered.
    pub prompts: usize,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
}

impl Settings {
    /// Resolves recipe, configuration file and `KEY=VALUE` assignments, the later ones winning.
    pub fn resolve(recipe: &str, config: Option<&Path>, assignments: &[String]) -> Result<Self> {
        let mut table = recipes::table(recipe)?;
        let defaults: Self =
            table.clone().try_into().with_context(|| format!("recipe `{recipe}`"))?;
        let known = known_keys(&defaults)?;
        if let Some(path) = config {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("configuration file {}", path.display()))?;
            let layer: Table = toml::from_str(&text)
                .with_context(|| format!("configuration file {}", path.display()))?;
            merge(&mut table, layer, "", &known)
                .with_context(|| format!("configuration file {}", path.display()))?;
        }
        for assignment in assignments {
            let layer = parse_assignment(assignment)?;
            merge(&mut table, layer, "", &known).with_context(|| format!("--set {assignment}"))?;
        }
        let settings: Self = table.try_into().context("the settings don't fit together")?;
        settings.check()?;
        Ok(settings)
    }

    /// The resolved settings as TOML.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(assignments: &[&str]) -> Result<Settings> {
        let assignments: Vec<String> = assignments.iter().map(|s| s.to_string()).collect();
        Settings::resolve("tiny", None, &assignments)
    }

    #[test]
    fn later_layers_win() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("mine.toml");
        std::fs::write(&config, "seed = 7\n[align]\nmethod = \"dpo\"\nalpha = 0.25\n").unwrap();
        let set = ["align.alpha=2".to_owned(), "data.train=x y.jsonl".to_owned()];
        let settings = Settings::resolve("tiny", Some(&config), &set).unwrap();
        assert_eq!(settings.seed, 7);
        assert_eq!(settings.align.method, Method::DPO);
        assert_eq!(settings.align.alpha, 2.0);
        assert_eq!(settings.data.train.as_deref(), Some(Path::new("x y.jsonl")));
        let again: Settings = toml::from_str(&settings.to_toml().unwrap()).unwrap();
        assert_eq!(again, settings);
    }

    #[test]
    fn an_absent_table_begins_with_its_first_key() {
        assert_eq!(resolve(&[]).unwrap().align.lora, None);
        let set = ["align.lora.rank=4", "align.lora.target_modules=[\"q_proj\", \"v_proj\"]"];
        let settings = resolve(&set).unwrap();
        let lora = settings.align.lora.clone().unwrap();
        assert_eq!((lora.rank, lora.alpha), (4, 32.0));
        assert_eq!(lora.target_modules.to_string(), "q_proj, v_proj");
        let again: Settings = toml::from_str(&settings.to_toml().unwrap()).unwrap();
        assert_eq!(again, settings);
        let all = resolve(&["sft.lora.target_modules=all-linear"]).unwrap().sft.lora.unwrap();
        assert_eq!(all, LoraConfig::default());
    }

    #[test]
    fn methods_may_be_named_as_in_trl() {
        let settings = resolve(&["align.method=sigmoid_norm"]).unwrap();
        assert_eq!(settings.align.method.name(), "sigmoid-norm");
        let cdpo = resolve(&["align.method=cdpo", "align.label_smoothing=0.2"]).unwrap().align;
        let robust = cdpo.for_method("robust".parse().unwrap());
        assert_eq!(robust.options.label_smoothing, Some(0.2));
        assert_eq!(cdpo.for_method(Method::DPO).options.label_smoothing, None);
        for method in Method::all() {
            cdpo.for_method(method).objective().check().unwrap();
        }
    }

    /// Fingerprints of runs hash these keys in this order, null for an option that isn't set.
    #[test]
    fn options_are_keys_of_the_alignment() {
        let align = serde_json::to_value(resolve(&[]).unwrap().align).unwrap();
        let keys: Vec<&str> = align.as_object().unwrap().keys().map(String::as_str).collect();
        let options = [
            "label_smoothing",
            "discopop_tau",
            "nll_weight",
            "reward_shift",
            "ada_rho",
            "ada_tau",
            "ld_alpha",
            "use_weighting",
        ];
        assert_eq!(keys[..5], ["method", "beta", "alpha", "gamma", "stop_gradient"]);
        assert_eq!(keys[5..13], options);
        assert_eq!(keys[13..15], ["token_statistics", "k"]);
        assert!(options.iter().all(|key| align[key].is_null()));
    }

    /// A saved `run.toml` is read without layers.
    #[test]
    fn an_unknown_key_of_a_whole_file_is_refused() {
        let text = resolve(&["align.method=cdpo", "align.label_smoothing=0.2"]).unwrap();
        let text = text.to_toml().unwrap();
        assert!(toml::from_str::<Settings>(&text).is_ok());
        let text = text.replace("label_smoothing", "label_smothing");
        let error = toml::from_str::<Settings>(&text).unwrap_err();
        assert!(error.to_string().contains("label_smothing"), "{error}");
    }

    #[test]
    fn every_recipe_resolves() {
        for name in recipes::names() {
            Settings::resolve(name, None, &[]).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        }
    }

    #[test]
    fn refusals_name_what_to_do() {
        for (method, set, says) in [
            ("cdpo", "align.label_smoothing=0.6", "label_smoothing = 0.6 must be from 0 to ½"),
            ("robust", "align.label_smoothing=0.5", "below ½"),
            ("exo-pair", "align.label_smoothing=0", "above 0"),
            ("discopop", "align.discopop_tau=2", "at most 1"),
            ("cpo", "align.nll_weight=-1", "at least 0"),
            ("ada-dpo", "align.ada_rho=0.7", "below log 2"),
            ("ada-dpo", "align.ada_tau=[2.0, 1.0]", "ascending"),
            ("dpo", "align.ld_alpha=1.5", "from 0 to 1"),
            ("dpo", "align.ld_alpha=nan", "from 0 to 1"),
            ("dpo", "align.feature_weights=x.toml", "dpo has none"),
            ("aot", "align.use_weighting=true", "aot has no use_weighting"),
        ] {
            let method = format!("align.method={method}");
            let message = format!("{:#}", resolve(&[&method, set]).unwrap_err());
            assert!(message.contains(says), "{set}: {message:?} does not say {says:?}");
        }
        for (set, says) in [
            ("align.metod=dpo", "align.method"),
            ("algin.method=dpo", "align.method"),
            ("align=3", "is a table"),
            ("align.method=ppo", "ppo"),
            ("align.beta=-1", "beta = -1"),
            ("align.beta=nan", "beta = NaN"),
            ("align.label_smoothing=0.1", "fpo has no label_smoothing"),
            ("align.label_smoothing=much", "label_smoothing: invalid type"),
            ("align.ld_alpha=0.5", "choose one of dpo, cdpo"),
            ("align.discopop_tau=0.05", "choose one of discopop"),
            ("align.feature_selection=none", "except"),
            ("align.more_sites=[{ site = \"resid_post:2\", sae = \"x\" }]", "is sae.site"),
            ("align.more_sites=[{ site = \"resid_post:9\", sae = \"x\" }]", "resid_post:9"),
            ("align.more_sites=[{ sight = \"resid_post:1\", sae = \"x\" }]", "sight"),
            ("align.k=0", "align.k"),
            ("align.k=100000", "align.k = 100000"),
            ("data.hold_out=1.5", "share"),
            ("data.max_length=64", "after data.max_prompt_length = 64"),
            ("data.max_prompt_length=0", "1 ≤ data.max_prompt_length"),
            ("sae.site=resid_post:9", "resid_post:9"),
            ("sae.training.target_l0=-3", "target_l0"),
            ("sft.optimizer.learning_rate=0", "learning_rate"),
            ("align.lora.rnk=4", "align.lora.rank"),
            ("align.lora.rank=0", "align.lora: rank = 0"),
            ("sft.lora.alpha=-1", "sft.lora: alpha = -1"),
            ("align.lora.target_modules=[\"q\"]", "`q`"),
            ("align.lora.target_modules=.*proj", "all-linear"),
            ("nonsense", "KEY=VALUE"),
        ] {
            let message = format!("{:#}", resolve(&[set]).unwrap_err());
            assert!(message.contains(says), "{set}: {message:?} does not say {says:?}");
        }
    }
}
