//! What a run needs of its device, before it is tried: memory, and types to compute in.
//!
//! # Invariants
//! * Opens no model and allocates nothing on a device: sizes come from settings, from `config.json` or from a model's name.
//! * Memory is counted, not estimated by a factor: everything that exists at a stage's worst moment. A test compares the count of a
//!   training step with measured peaks.

pub mod advice;
mod bytes;
mod cache;
mod evaluation;
mod fit;
mod precision;
mod step;

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use fpo_transformer::{Family, LoraConfig, ModelConfig, Precision, Projection, PublishedModel};

pub use bytes::parse_bytes;
pub use cache::Cache;
pub use evaluation::Evaluation;
pub use fit::{Change, Goal, Reach, fit};
pub use precision::check_precision;
pub use step::{Step, alignment, fine_tuning};

use fpo_config::{ModelSettings, Settings};

/// float32
const BYTES: u64 = 4;
/// Blocks of logits and of feature activations while they are worked on.
const BLOCKS: u64 = 128 << 20;

/// A stage whose memory is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Supervised fine-tuning.
    Sft,
    /// Preference alignment.
    Align,
    /// Measuring before and after.
    Evaluate,
}

impl Stage {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Sft, Self::Align, Self::Evaluate];

    /// Its name, and that of its settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Align => "align",
            Self::Evaluate => "evaluate",
        }
    }

    /// The stage of a name, where its memory is counted.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name)
    }

    /// What it needs at its worst moment; none where it does nothing.
    ///
    /// # Errors
    /// A model whose sizes can't be known.
    pub fn memory(self, settings: &Settings) -> Result<Option<Memory>> {
        Ok(match self {
            Self::Sft => fine_tuning(settings)?.map(|step| step.memory()),
            Self::Align => Some(alignment(settings)?.memory()),
            Self::Evaluate => Some(Evaluation::of(settings)?.memory()),
        })
    }
}

/// Bytes of everything that is there at a stage's worst moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Parameters, those of adapters and of a second model included.
    pub weights: u64,
    /// Gradients of what is trained.
    pub gradients: u64,
    /// The optimiser's moments.
    pub optimizer: u64,
    /// What the forward pass keeps for the backward pass; in an evaluation, what it works on, and the keys and values of answers.
    pub activations: u64,
    /// The autoencoder, and blocks of logits.
    pub rest: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.rest
    }
}

/// Numbers in one block's linear layers and norms.
fn block_parameters(c: &ModelConfig) -> u64 {
    let linear: usize = Projection::ALL.into_iter().map(|p| product(sizes(c, p))).sum();
    (linear + 4 * c.hidden_size) as u64
}

/// In and out.
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

/// Numbers in a model.
pub fn parameters(c: &ModelConfig) -> u64 {
    let embedding = c.vocab_size * c.hidden_size;
    (embedding + c.hidden_size) as u64 + c.num_hidden_layers as u64 * block_parameters(c)
}

/// Numbers in the adapters of a model.
fn adapters(c: &ModelConfig, lora: &LoraConfig) -> u64 {
    let targets = Projection::ALL.into_iter().filter(|p| lora.target_modules.contains(*p));
    let of_block: usize = targets.map(|p| sizes(c, p)).map(|[a, b]| lora.rank * (a + b)).sum();
    (of_block * c.num_hidden_layers) as u64
}

/// Bytes that a block keeps of one token: what enters and leaves the norms; queries, keys and values as they are attended with, what
/// attention gives, gate, up and their product.
fn kept_by_block(c: &ModelConfig, precision: Precision) -> u64 {
    let heads = (c.num_attention_heads + c.num_key_value_heads) * c.head_dim;
    let norms = 6 * c.hidden_size as u64;
    let factors = (2 * heads + 3 * c.intermediate_size) as u64;
    BYTES * norms + precision.factor_bytes() as u64 * factors
}

/// The width of the autoencoder to be trained; of one that is given, as its path says.
fn d_sae(settings: &Settings) -> usize {
    settings.sae.path.as_deref().map_or(settings.sae.training.d_sae, width)
}

/// The width of an autoencoder as a path says it in Gemma Scope's way, else 16k.
fn width(path: &Path) -> usize {
    let path = path.to_string_lossy();
    let mut widths =
        path.split(['/', '_']).filter_map(|part| part.strip_suffix('k')?.parse::<usize>().ok());
    widths.next_back().map_or(16_384, |thousands| thousands * 1024)
}

/// The configuration of the model: of its folder, of the published model that the folder is named after, or by the settings.
fn config(model: &ModelSettings) -> Result<ModelConfig> {
    let Some(path) = &model.path else {
        return Family::Gemma2
            .config(&model.sizes())
            .map_err(|message| anyhow!("the model's sizes: {message}"));
    };
    if path.join("config.json").exists() {
        return Ok(ModelConfig::load(path)?);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if let Some(model) = PublishedModel::of_folder(&name) {
        return Ok(model.config());
    }
    bail!("model.path: {} has no config.json to read the model's sizes from", path.display())
}

/// The most that any of these stages needs, in bytes.
///
/// # Errors
/// A model whose sizes can't be known.
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

    /// The sizes that the Gemma-2 report gives (table 2: with embedding, 2.6, 9.2 and 27.2 billion).
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

    /// Figure 4 of the paper: FPO as light as SimPO, TDPO-2 heavier by a model.
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
