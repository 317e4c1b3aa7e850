//! A run's requirements on its device, before the run: memory and precision.
//!
//! # Invariants
//! * Loads no weights and allocates nothing on a device: sizes come from the settings, `config.json` or the model's name.
//! * Memory is a sum over all tensors alive at a stage's peak, not an empirical factor. A test compares the sum for a training step
//!   with measured peaks.

pub mod advice;
mod bytes;
mod cache;
mod disk;
mod evaluation;
mod fit;
mod precision;
mod step;
mod work;

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use fpo_config::{ModelSettings, Settings};
use fpo_transformer::{
    BlockNorms, Family, LoraConfig, ModelConfig, Precision, Projection, PublishedModel,
};

pub use bytes::parse_bytes;
pub use cache::Cache;
pub use disk::Disk;
pub use evaluation::Evaluation;
pub use fit::{Change, Goal, Reach, fit};
pub use precision::check_precision;
pub use step::{Step, alignment, fine_tuning};
pub use work::{Counts, work};

/// Bytes of a float32 element.
const BYTES: u64 = 4;
/// Bytes of the blocks in which logits and feature activations are computed.
const BLOCKS: u64 = 128 << 20;
/// Bytes of logits that the forward pass keeps for the backward pass at most, on the CPU: `KEPT` in fpo-ops.
const KEPT_LOGITS: u64 = 320 << 20;

/// A stage that [`Stage::memory`] covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Supervised fine-tuning.
    Sft,
    /// Preference alignment.
    Align,
    /// Evaluation of the reference model and the policy.
    Evaluate,
}

impl Stage {
    /// All stages, in the order of a run.
    pub const ALL: [Self; 3] = [Self::Sft, Self::Align, Self::Evaluate];

    /// The stage's name, which is also the table of its settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Align => "align",
            Self::Evaluate => "evaluate",
        }
    }

    /// The stage with a name; `None` for stages that aren't covered, such as `sae`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name)
    }

    /// Memory at the stage's peak; `None` if the settings skip the stage.
    ///
    /// # Errors
    /// The model's sizes can't be determined.
    pub fn memory(self, settings: &Settings) -> Result<Option<Memory>> {
        Ok(match self {
            Self::Sft => fine_tuning(settings)?.map(|step| step.memory()),
            Self::Align => Some(alignment(settings)?.memory()),
            Self::Evaluate => Some(Evaluation::of(settings)?.memory()),
        })
    }
}

/// Memory at a stage's peak, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Parameters, including adapters and a second model.
    pub weights: u64,
    /// Gradients of the trained parameters.
    pub gradients: u64,
    /// Moments of the optimiser.
    pub optimizer: u64,
    /// Training: activations saved for the backward pass. Evaluation: activations of one block, and the key-value cache.
    pub activations: u64,
    /// The autoencoder and blocks of logits.
    pub rest: u64,
}

impl Memory {
    /// The sum of all parts, in bytes.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.rest
    }
}

/// Parameters of one block: linear layers with their biases, and norms.
fn block_parameters(c: &ModelConfig) -> u64 {
    let linear: usize = Projection::ALL.into_iter().map(|p| product(sizes(c, p))).sum();
    let biased = [Projection::Q, Projection::K, Projection::V].into_iter().filter(|_| c.qkv_bias);
    let biases: usize = biased.map(|p| sizes(c, p)[1]).sum();
    let norms = match c.block_norms {
        BlockNorms::Before => 2 * c.hidden_size,
        BlockNorms::BeforeAndAfter => 4 * c.hidden_size,
    };
    let head_norms = if c.qk_norm { 2 * c.head_dim } else { 0 };
    (linear + biases + norms + head_norms) as u64
}

/// Input and output width of a projection.
pub fn sizes(c: &ModelConfig, projection: Projection) -> [usize; 2] {
    let (d, ffn) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    match projection {
        Projection::Q => [d, q],
        Projection::K | Projection::V => [d, kv],
        Projection::O => [q, d],
        Projection::Gate | Projection::Up => [d, ffn],
        Projection::Down => [ffn, d],
    }
}

fn product([a, b]: [usize; 2]) -> usize {
    a * b
}

/// Number of parameters of a model, tied embedding counted once.
pub fn parameters(c: &ModelConfig) -> u64 {
    let tables = if c.tie_word_embeddings { 1 } else { 2 };
    let outside = (tables * c.vocab_size + 1) * c.hidden_size;
    outside as u64 + c.num_hidden_layers as u64 * block_parameters(c)
}

/// Number of parameters of a model's LoRA adapters, and of what is trained whole beside them; norms are too small to count.
fn adapters(c: &ModelConfig, lora: &LoraConfig) -> u64 {
    let of_layer = |layer: usize, projection: Projection| {
        let [d_in, d_out] = sizes(c, projection);
        let magnitudes = if lora.use_dora { d_out } else { 0 };
        let whole = lora.saves(&format!("model.layers.{layer}.{}.weight", projection.path()));
        match lora.rank(layer, projection) {
            Some(rank) => (rank * (d_in + d_out) + magnitudes) as u64,
            None if whole => (d_in * d_out) as u64,
            None => 0,
        }
    };
    let tables = ["model.embed_tokens.weight", "lm_head.weight"];
    let tables = tables.into_iter().filter(|name| lora.saves(name)).count();
    let layers = 0..c.num_hidden_layers;
    let layers = layers.flat_map(|layer| Projection::ALL.map(|p| of_layer(layer, p)));
    layers.sum::<u64>() + (tables * c.vocab_size * c.hidden_size) as u64
}

/// Bytes per token of what a block computes: inputs of the norms, and outputs of those before its parts; rotated queries and keys,
/// values and the attention output; queries and keys before their norms; gate, up and their product.
fn computed_by_block(c: &ModelConfig, precision: Precision) -> u64 {
    let heads = (c.num_attention_heads + c.num_key_value_heads) * c.head_dim;
    let norms = match c.block_norms {
        BlockNorms::Before => 2 + 2,
        BlockNorms::BeforeAndAfter => 4 + 2,
    };
    let copies = if c.qk_norm { 3 } else { 2 };
    let factors = (copies * heads + 3 * c.intermediate_size) as u64;
    BYTES * norms * c.hidden_size as u64 + precision.factor_bytes() as u64 * factors
}

/// Bytes per token that the block of a layer keeps of that for the backward pass. Inputs of projections are computed again: outputs
/// of the norms, and the product of gate and up. Projections with adapters keep them; with dropout also the adapters' own inputs,
/// and which of them were dropped.
fn kept_by_block(
    c: &ModelConfig,
    precision: Precision,
    lora: Option<&LoraConfig>,
    layer: usize,
) -> u64 {
    let adapted = |p: Projection| lora.is_some_and(|lora| lora.rank(layer, p).is_some());
    let again = |projections: &[Projection], width: usize, bytes: u64| {
        if projections.iter().any(|&p| adapted(p)) { 0 } else { bytes * width as u64 }
    };
    let drops = lora.is_some_and(|lora| lora.dropout > 0.0);
    let dropping = Projection::ALL.into_iter().filter(|&p| drops && adapted(p));
    let dropped: usize = dropping.map(|projection| sizes(c, projection)[0]).sum();
    let factor = precision.factor_bytes() as u64;
    computed_by_block(c, precision) + factor * 2 * dropped as u64
        - again(&[Projection::Q, Projection::K, Projection::V], c.hidden_size, BYTES)
        - again(&[Projection::Gate, Projection::Up], c.hidden_size, BYTES)
        - again(&[Projection::Down], c.intermediate_size, factor)
}

/// Number of features: that of the autoencoder to train, or the one that the path of a given autoencoder names; 0 in a run that uses
/// no features.
fn d_sae(settings: &Settings) -> usize {
    if !settings.features() {
        return 0;
    }
    let path = settings.sae.path.as_deref();
    path.map_or(settings.sae.training.d_sae, |path| width(path, &settings.model))
}

/// Number of features that the path of a published autoencoder names: `width_65k` in Gemma Scope, `W64K` in Qwen-Scope, and as a
/// multiple of d_model `8x` in Llama Scope; defaults to 16k.
fn width(path: &Path, model: &ModelSettings) -> usize {
    let path = path.to_string_lossy().to_lowercase();
    let named = path.split(['/', '_', '-']).rev().find_map(|part| {
        let thousands = part.strip_suffix('k').map(|part| part.trim_start_matches('w'));
        match thousands.and_then(|number| number.parse::<usize>().ok()) {
            Some(thousands) => Some(thousands * 1024),
            None => {
                let times: usize = part.strip_suffix('x')?.parse().ok()?;
                Some(times * config(model).ok()?.hidden_size)
            }
        }
    });
    named.unwrap_or(16_384)
}

/// The model's configuration: from its folder's config.json, from the published model of the same name, or, without a folder, from
/// the sizes in the settings.
fn config(model: &ModelSettings) -> Result<ModelConfig> {
    let Some(path) = &model.path else {
        return Family::Gemma2
            .config(&model.sizes)
            .map_err(|message| anyhow!("the model's sizes: {message}"));
    };
    if path.join("config.json").exists() {
        return Ok(ModelConfig::load(path)?);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if let Some(model) = PublishedModel::of_folder(&name) {
        return Ok(model.config());
    }
    let known: Vec<_> = PublishedModel::all().map(PublishedModel::name).collect();
    bail!(
        "model.path: {} has no config.json to read the model's sizes from, and isn't named after a published model ({})",
        path.display(),
        known.join(", ")
    )
}

/// The largest peak of these stages, in bytes.
///
/// # Errors
/// The model's sizes can't be determined.
pub fn peak(settings: &Settings, stages: &[Stage]) -> Result<u64> {
    let needs = stages.iter().map(|stage| stage.memory(settings));
    let needs: Vec<_> = needs.collect::<Result<_>>()?;
    Ok(needs.into_iter().flatten().map(|memory| memory.total()).max().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(recipe: &str, set: &[&str]) -> Settings {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        Settings::resolve(recipe, None, &set).unwrap()
    }

    /// Oracle: the Gemma 2 report, table 2 (with embedding: 2.6, 9.2 and 27.2 billion).
    #[test]
    fn parameters_of_gemma_2() {
        for (path, billions) in
            [("gemma-2-2b", 2.61), ("gemma-2-9b-it", 9.24), ("gemma-2-27b", 27.23)]
        {
            let s = settings("gemma-2-2b-fpo", &[&format!("model.path={path}")]);
            let found = parameters(&config(&s.model).unwrap()) as f64 / 1e9;
            assert!((found - billions).abs() < 0.01, "{path}: {found}");
        }
    }

    /// Oracle: the number of parameters that the published files hold (`numel` of every tensor).
    #[test]
    fn parameters_of_published_models() {
        for (name, expected) in [
            ("llama-3.1-8b", 8_030_261_248),
            ("llama-3.2-1b", 1_235_814_400),
            ("smollm2-135m", 134_515_008),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen2.5-7b", 7_615_616_512),
            ("qwen3-0.6b", 596_049_920),
            ("qwen3-8b", 8_190_735_360),
            ("gemma-3-1b", 999_885_952),
        ] {
            let model: PublishedModel = name.parse().unwrap();
            assert_eq!(parameters(&model.config()), expected, "{name}");
        }
    }

    /// Oracle: the widths that the repositories of these autoencoders state.
    #[test]
    fn widths_of_published_autoencoders() {
        for (recipe, expected) in [
            ("gemma-2-2b-fpo", 16_384),
            ("gemma-3-4b-fpo", 16_384),
            ("llama-3.1-8b-fpo", 32_768),
            ("qwen3-8b-fpo", 65_536),
            ("smollm2-135m-fpo", 4608),
        ] {
            assert_eq!(d_sae(&settings(recipe, &[])), expected, "{recipe}");
        }
    }

    /// FPO paper, figure 4: FPO needs as much as SimPO; TDPO-2 needs a second model.
    #[test]
    fn methods_side_by_side() {
        let of = |method: &str| {
            let method = format!("align.method={method}");
            let s = settings("gemma-2-2b-fpo", &[&method, "model.precision=float32"]);
            alignment(&s).unwrap().memory().total() as f64
        };
        assert!(of("fpo") / of("simpo") < 1.01);
        assert!(of("tdpo2") / of("simpo") > 1.15);
    }
}
