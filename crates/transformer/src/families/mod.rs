//! Model families. A family is one file: how its `config.json` maps onto a [`ModelConfig`] and back, its constants, its
//! published sizes, and what it refuses.
//!
//! The decoder itself knows no family: it is built from a [`ModelConfig`]. Tensor names need no table, because the decoder's
//! fields bear those of the checkpoint.

mod gemma2;

use std::{fmt, str::FromStr};

use serde_json::Value;

use crate::{Error, ModelConfig};

/// A family of models, which shares an architecture and a form of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Gemma-2 (arXiv 2408.00118).
    Gemma2,
}

/// The sizes that tell the models of a family apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// d_model, the width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads per block.
    pub num_attention_heads: usize,
    /// Key and value heads per block.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Family {
    /// Every family, in the order in which messages list them.
    pub const ALL: [Self; 1] = [Self::Gemma2];

    /// The `model_type` of its `config.json`.
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Gemma2 => "gemma2",
        }
    }

    /// The one entry of `architectures` in its `config.json`.
    const fn architecture(self) -> &'static str {
        match self {
            Self::Gemma2 => "Gemma2ForCausalLM",
        }
    }

    /// A model of this family with these sizes, and the family's constants for everything else.
    ///
    /// # Errors
    /// Sizes that don't fit together; the error is a sentence.
    pub fn config(self, sizes: &Sizes) -> Result<ModelConfig, String> {
        let config = match self {
            Self::Gemma2 => gemma2::config(sizes),
        };
        config.check()?;
        Ok(config)
    }

    /// The family that a `config.json` belongs to, by its `model_type`; another architecture of it, such as a classifier, is
    /// refused.
    pub(crate) fn of(config: &Value) -> Result<Self, String> {
        let supported = Self::ALL.map(|family| format!("`{}`", family.model_type())).join(", ");
        let Some(model_type) = config.get("model_type").and_then(Value::as_str) else {
            return Err(format!("no `model_type`; expected {supported}"));
        };
        let Some(family) = Self::ALL.into_iter().find(|family| family.model_type() == model_type)
        else {
            return Err(format!("model_type `{model_type}` is not supported, only {supported} is"));
        };
        let expected = family.architecture();
        match config.get("architectures") {
            None | Some(Value::Null) => Ok(family),
            Some(Value::Array(names)) if names.iter().any(|name| name == expected) => Ok(family),
            Some(other) => {
                Err(format!("architectures {other} is not supported, only `{expected}` is"))
            }
        }
    }

    /// Maps the fields of a `config.json` of this family.
    pub(crate) fn read(self, config: Value) -> Result<ModelConfig, String> {
        match self {
            Self::Gemma2 => gemma2::read(config),
        }
    }

    /// The `config.json` of a model of this family; see [`ModelConfig::to_json`].
    pub(crate) fn write(self, config: &ModelConfig, dtype: &str) -> Value {
        match self {
            Self::Gemma2 => gemma2::write(config, dtype),
        }
    }
}

/// A published model: its configuration is known from its name alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PublishedModel(&'static Published);

/// A row of a family's table.
#[derive(Debug, PartialEq)]
struct Published {
    name: &'static str,
    family: Family,
    sizes: Sizes,
    query_pre_attn_scalar: f64,
}

impl PublishedModel {
    /// Every published model of every family.
    pub fn all() -> impl Iterator<Item = Self> {
        gemma2::PUBLISHED.iter().map(Self)
    }

    /// The model that a folder is named after, such as `gemma-2-9b-it`.
    pub fn of_folder(folder: &str) -> Option<Self> {
        let folder = folder.to_lowercase();
        Self::all().find(|model| folder.starts_with(model.name()))
    }

    /// Its name, such as `gemma-2-2b`.
    pub const fn name(self) -> &'static str {
        self.0.name
    }

    /// Its configuration.
    pub fn config(self) -> ModelConfig {
        let Published { family, sizes, query_pre_attn_scalar, .. } = *self.0;
        let config = match family {
            Family::Gemma2 => gemma2::config(&sizes),
        };
        ModelConfig { query_pre_attn_scalar, ..config }
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
        ) {
            for family in Family::ALL {
                let config = ModelConfig {
                    query_pre_attn_scalar: scalar,
                    attn_logit_softcapping: attention_cap,
                    final_logit_softcapping: logit_cap,
                    sliding_window: window,
                    eos_token_ids: eos.clone(),
                    ..family.config(&sizes).unwrap()
                };
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
            assert_eq!(model.config().family, model.0.family);
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
