//! Model families. A family is one file: how its `config.json` maps onto a [`ModelConfig`] and back, its constants, its
//! published sizes, and what it refuses.
//!
//! The decoder itself knows no family: it is built from a [`ModelConfig`]. Tensor names need no table, because the decoder's
//! fields bear those of the checkpoint.

pub(crate) mod fields;
mod gemma2;
mod gemma3;
mod llama;
mod qwen2;
mod qwen3;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    BlockNorms, Error, Gain, LayerType, MlpActivation, ModelConfig, Rope, config::MOST_LAYERS,
};

/// A family of models, which shares an architecture and a form of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Gemma-2 (arXiv 2408.00118).
    Gemma2,
    /// The language model of Gemma-3 (arXiv 2503.19786).
    Gemma3,
    /// Llama 3 (arXiv 2407.21783) and models of its architecture, such as SmolLM2.
    Llama,
    /// Qwen-2 and Qwen-2.5 (arXiv 2412.15115).
    Qwen2,
    /// Qwen-3 (arXiv 2505.09388), the dense models.
    Qwen3,
}

/// The sizes that tell the models of a family apart, named as in Hugging Face's `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Tokens in the vocabulary: rows of the embedding.
    pub vocab_size: usize,
    /// d_model, the width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads per block.
    pub num_attention_heads: usize,
    /// Key and value heads per block; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head, which need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
}

impl Sizes {
    /// From the vocabulary; d_model, the width of the MLP and the number of blocks; query heads, key and value heads and their
    /// width.
    pub const fn new(
        vocab_size: usize,
        [hidden_size, intermediate_size, num_hidden_layers]: [usize; 3],
        [num_attention_heads, num_key_value_heads, head_dim]: [usize; 3],
    ) -> Self {
        Self {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
        }
    }
}

/// `model_type` and architecture of the multimodal Gemma-3, whose language model is read and whose vision tower is left out.
pub(crate) const MULTIMODAL: (&str, &str) = ("gemma3", "Gemma3ForConditionalGeneration");

impl Family {
    /// Every family, in the order in which messages list them.
    pub const ALL: [Self; 5] = [Self::Gemma2, Self::Gemma3, Self::Llama, Self::Qwen2, Self::Qwen3];

    /// The `model_type` of its `config.json`.
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The one entry of `architectures` in its `config.json`.
    const fn architecture(self) -> &'static str {
        match self {
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// A model of this family with these sizes, and the family's constants for everything else.
    ///
    /// # Errors
    /// Sizes that don't fit together; the error is a sentence.
    pub fn config(self, sizes: &Sizes) -> Result<ModelConfig, String> {
        let config = match self {
            Self::Gemma2 => gemma2::config(sizes),
            Self::Gemma3 => gemma3::config(sizes),
            Self::Llama => llama::config(sizes),
            Self::Qwen2 => qwen2::config(sizes),
            Self::Qwen3 => qwen3::config(sizes),
        };
        config.check()?;
        Ok(config)
    }

    /// The family that a `config.json` belongs to, by its `model_type`; another architecture of it, such as a classifier, is
    /// refused.
    pub(crate) fn of(config: &Value) -> Result<Self, String> {
        let names = Self::ALL.iter().map(|family| family.model_type()).chain([MULTIMODAL.0]);
        let supported = names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let Some(model_type) = config.get("model_type").and_then(Value::as_str) else {
            return Err(format!("no `model_type`; expected {supported}"));
        };
        let family = Self::ALL.into_iter().find(|family| family.model_type() == model_type);
        let (family, expected) = match family {
            Some(family) => (family, family.architecture()),
            None if model_type == MULTIMODAL.0 => (Self::Gemma3, MULTIMODAL.1),
            None => {
                return Err(format!(
                    "model_type `{model_type}` is not supported, only {supported} are"
                ));
            }
        };
        let decoder = expected.replace("ForCausalLM", "Model");
        match config.get("architectures") {
            None | Some(Value::Null) => Ok(family),
            // Without its head it is the same decoder, whose head is the embedding.
            Some(Value::Array(names))
                if names.iter().any(|name| name == expected || name == &decoder) =>
            {
                Ok(family)
            }
            Some(other) => {
                Err(format!("architectures {other} is not supported, only `{expected}` is"))
            }
        }
    }

    /// Maps the fields of a `config.json` of this family.
    pub(crate) fn read(self, config: Value) -> Result<ModelConfig, String> {
        match self {
            Self::Gemma2 => gemma2::read(config),
            Self::Gemma3 => gemma3::read(config),
            Self::Llama => llama::read(config),
            Self::Qwen2 => qwen2::read(config),
            Self::Qwen3 => qwen3::read(config),
        }
    }

    /// The `config.json` of a model of this family; see [`ModelConfig::to_json`].
    pub(crate) fn write(self, config: &ModelConfig, dtype: &str) -> Value {
        match self {
            Self::Gemma2 => gemma2::write(config, dtype),
            Self::Gemma3 => gemma3::write(config, dtype),
            Self::Llama => llama::write(config, dtype),
            Self::Qwen2 => qwen2::write(config, dtype),
            Self::Qwen3 => qwen3::write(config, dtype),
        }
    }
}

/// A decoder with nothing but the usual parts, which every family builds on: a norm before both parts of a block, SwiGLU, rotary
/// frequencies to the base 10,000, a head of its own.
fn plain(family: Family, sizes: &Sizes) -> ModelConfig {
    let rope = Rope::plain(10_000.0);
    ModelConfig {
        family,
        sizes: *sizes,
        block_norms: BlockNorms::Before,
        gain: Gain::Weight,
        qk_norm: false,
        qkv_bias: false,
        activation: MlpActivation::Silu,
        tie_word_embeddings: false,
        embedding_scale: 1.0,
        query_pre_attn_scalar: sizes.head_dim as f64,
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
        sliding_window: None,
        layer_types: vec![LayerType::FullAttention; sizes.num_hidden_layers.min(MOST_LAYERS)],
        rope,
        sliding_rope: rope,
        rms_norm_eps: 1e-6,
        initializer_range: 0.02,
        max_position_embeddings: 32_768,
        pad_token_id: None,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

/// A published model: its configuration is known from its name alone.
#[derive(Clone, Copy, Debug)]
pub struct PublishedModel(&'static Published);

impl PartialEq for PublishedModel {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

/// A row of a family's table.
#[derive(Debug)]
struct Published {
    name: &'static str,
    config: fn() -> ModelConfig,
}

impl PublishedModel {
    /// Every published model of every family.
    pub fn all() -> impl Iterator<Item = Self> {
        let families = gemma2::PUBLISHED.iter().chain(&gemma3::PUBLISHED);
        let families = families.chain(&llama::PUBLISHED);
        families.chain(&qwen2::PUBLISHED).chain(&qwen3::PUBLISHED).map(Self)
    }

    /// The model that a folder is named after, such as `gemma-2-9b-it` or `Meta-Llama-3.1-8B`.
    pub fn of_folder(folder: &str) -> Option<Self> {
        let folder = folder.to_lowercase();
        let folder = folder.strip_prefix("meta-").unwrap_or(&folder);
        Self::all().find(|model| folder.starts_with(model.name()))
    }

    /// Its name, such as `gemma-2-2b`.
    pub const fn name(self) -> &'static str {
        self.0.name
    }

    /// Its configuration.
    pub fn config(self) -> ModelConfig {
        (self.0.config)()
    }
}

impl fmt::Display for PublishedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PublishedModel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::all().find(|model| model.name() == text).ok_or_else(|| {
            let known: Vec<_> = Self::all().map(Self::name).collect();
            Error::UnknownModel { name: text.to_owned(), known: known.join(", ") }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::RopeScaling;

    prop_compose! {
        fn sizes()(
            vocab_size in 1..1000_usize,
            hidden_size in 1..100_usize,
            intermediate_size in 1..100_usize,
            num_hidden_layers in 1..10_usize,
            num_key_value_heads in 1..5_usize,
            group in 1..5_usize,
            half in 1..20_usize,
        ) -> Sizes {
            Sizes {
                vocab_size,
                hidden_size,
                intermediate_size,
                num_hidden_layers,
                num_attention_heads: group * num_key_value_heads,
                num_key_value_heads,
                head_dim: 2 * half,
            }
        }
    }

    fn scaling() -> impl Strategy<Value = RopeScaling> {
        prop_oneof![
            Just(RopeScaling::None),
            (1.0..64.0).prop_map(|factor| RopeScaling::Linear { factor }),
            (1.0..64.0, 0.5..2.0, 2.5..8.0, 1..10_000_u32).prop_map(
                |(factor, low_freq_factor, high_freq_factor, positions)| RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_positions: f64::from(positions),
                }
            ),
        ]
    }

    proptest! {
        /// What a family writes it reads back, whatever the sizes and constants.
        #[test]
        fn a_written_config_is_read_back(
            sizes in sizes(),
            scalar in 0.1..500.0,
            attention_cap in prop::option::of(1.0..100.0),
            logit_cap in prop::option::of(1.0..100.0),
            window in 1..5000_usize,
            eos in prop::collection::vec(0..1000_u32, 1..4),
            theta in 100.0..1e7,
            scaling in scaling(),
            tied: bool,
        ) {
            for family in Family::ALL {
                let mut config = ModelConfig {
                    rope: Rope { theta, ..family.config(&sizes).unwrap().rope },
                    eos_token_ids: eos.clone(),
                    pad_token_id: Some(0),
                    ..family.config(&sizes).unwrap()
                };
                match family {
                    Family::Gemma2 => {
                        config.query_pre_attn_scalar = scalar;
                        config.attn_logit_softcapping = attention_cap;
                        config.final_logit_softcapping = logit_cap;
                        config.sliding_window = Some(window);
                        config.sliding_rope = config.rope;
                    }
                    Family::Gemma3 => {
                        config.tie_word_embeddings = tied;
                        config.query_pre_attn_scalar = scalar;
                        config.final_logit_softcapping = logit_cap;
                        config.sliding_window = Some(window);
                        config.rope.scaling = scaling;
                    }
                    Family::Llama | Family::Qwen2 | Family::Qwen3 => {
                        config.tie_word_embeddings = tied;
                        config.rope.scaling = scaling;
                        config.sliding_rope = config.rope;
                    }
                }
                let text = config.to_json("float32").to_string();
                prop_assert_eq!(ModelConfig::from_json(&text), Ok(config));
            }
        }
    }

    #[test]
    fn published_models_are_found_by_name() {
        for model in PublishedModel::all() {
            assert_eq!(model.name().parse::<PublishedModel>().unwrap(), model);
            assert_eq!(PublishedModel::of_folder(&format!("{model}-it")), Some(model));
            assert_eq!(model.config().check(), Ok(()), "{model}");
        }
        for (folder, name) in [
            ("Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
            ("SmolLM2-135M-Instruct", "smollm2-135m"),
            ("Qwen3-8B", "qwen3-8b"),
            ("Qwen2.5-32B", "qwen2.5-32b"),
            ("gemma-3-27b-it", "gemma-3-27b"),
        ] {
            assert_eq!(PublishedModel::of_folder(folder).map(PublishedModel::name), Some(name));
        }
        assert_eq!(PublishedModel::of_folder("gemma-7b"), None);
        let message = "gemma-2-3b".parse::<PublishedModel>().unwrap_err().to_string();
        assert!(message.contains("gemma-2-3b") && message.contains("gemma-2-27b"), "{message}");
    }

    #[test]
    fn another_architecture_is_refused_by_name() {
        let of = |architectures: Value| {
            Family::of(&serde_json::json!({"model_type": "gemma2", "architectures": architectures}))
        };
        assert_eq!(of(Value::Null), Ok(Family::Gemma2));
        assert_eq!(of(serde_json::json!(["Gemma2ForCausalLM"])), Ok(Family::Gemma2));
        for other in [serde_json::json!(["Gemma2ForSequenceClassification"]), serde_json::json!([])]
        {
            let message = of(other.clone()).unwrap_err();
            assert!(message.contains(&other.to_string()), "{message}");
        }
    }
}
