//! The Gemma-2 models by name: their sizes, known without a file of theirs.

use anyhow::{Context, Result};
use fpo_transformer::ModelConfig;
use serde_json::json;

/// A published size (Gemma-2 report, table 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Gemma2Size {
    /// 2.6 billion parameters.
    #[value(name = "gemma-2-2b")]
    B2,
    /// 9.2 billion.
    #[value(name = "gemma-2-9b")]
    B9,
    /// 27.2 billion.
    #[value(name = "gemma-2-27b")]
    B27,
}

/// What a model's shape is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens that it knows.
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
}

impl Gemma2Size {
    const ALL: [Self; 3] = [Self::B2, Self::B9, Self::B27];

    /// The model that a folder is named after, such as `gemma-2-9b-it`.
    pub fn named(folder: &str) -> Option<Self> {
        let folder = folder.to_lowercase();
        Self::ALL.into_iter().find(|size| folder.starts_with(size.name()))
    }

    const fn name(self) -> &'static str {
        match self {
            Self::B2 => "gemma-2-2b",
            Self::B9 => "gemma-2-9b",
            Self::B27 => "gemma-2-27b",
        }
    }

    /// Its shape.
    pub const fn shape(self) -> Shape {
        let (hidden, mlp, layers, heads, kv_heads, head_dim) = match self {
            Self::B2 => (2304, 9216, 26, 8, 4, 256),
            Self::B9 => (3584, 14_336, 42, 16, 8, 256),
            Self::B27 => (4608, 36_864, 46, 32, 16, 128),
        };
        Shape {
            vocab_size: 256_000,
            hidden_size: hidden,
            intermediate_size: mlp,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
        }
    }
}

impl Shape {
    /// A Gemma-2 of this shape.
    ///
    /// # Errors
    /// Sizes that don't fit together.
    pub fn config(&self) -> Result<ModelConfig> {
        let config = json!({
            "model_type": "gemma2", "vocab_size": self.vocab_size, "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size, "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads, "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim, "query_pre_attn_scalar": self.head_dim,
        });
        let config = ModelConfig::from_json(&config.to_string());
        config.map_err(anyhow::Error::msg).context("the model's sizes")
    }
}
