//! What a decoder is built from.

use std::{ops::Deref, path::Path};

use fpo_ops::Gain;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Family, Rope, Sizes, generation_config};

/// More layers than any model has: keeps a damaged number from allocating without end.
pub(crate) const MOST_LAYERS: usize = 1 << 12;

/// How far back a layer's attention looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// The last `sliding_window` tokens.
    SlidingAttention,
    /// Every token before.
    FullAttention,
}

/// Where the norms of a block stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockNorms {
    /// Before attention and before the MLP.
    Before,
    /// Before and after both.
    BeforeAndAfter,
}

/// The function of the MLP's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpActivation {
    /// GELU in its tanh approximation.
    GeluTanh,
    /// SiLU, x · σ(x).
    Silu,
}

/// The sizes, parts and constants of a model, the former and the latter named as in Hugging Face's `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The form of its `config.json`; the decoder doesn't ask for it.
    pub family: Family,
    /// Its sizes, which are read as fields of its own.
    pub sizes: Sizes,
    /// Where the norms of a block stand.
    pub block_norms: BlockNorms,
    /// What the weights of norms say about their gains.
    pub gain: Gain,
    /// Queries and keys are normalised per head, before the rotary embedding.
    pub qk_norm: bool,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// The function of the MLP's gate.
    pub activation: MlpActivation,
    /// The unembedding is the embedding, not a parameter of its own.
    pub tie_word_embeddings: bool,
    /// Token embeddings are multiplied by this; the family's choice, not part of `config.json`.
    pub embedding_scale: f64,
    /// Attention scores are scaled by `query_pre_attn_scalar^-½`.
    pub query_pre_attn_scalar: f64,
    /// Attention scores pass through `cap · tanh(score / cap)`.
    pub attn_logit_softcapping: Option<f64>,
    /// Logits pass through `cap · tanh(logit / cap)`.
    pub final_logit_softcapping: Option<f64>,
    /// Tokens that a sliding layer sees, the current one included; `None` if there are no such layers.
    pub sliding_window: Option<usize>,
    /// One entry per block.
    pub layer_types: Vec<LayerType>,
    /// Rotary frequencies of the layers that see everything.
    pub rope: Rope,
    /// Rotary frequencies of the sliding layers.
    pub sliding_rope: Rope,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Padding token, if the model has one.
    pub pad_token_id: Option<u32>,
    /// Beginning of sequence, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
}

impl Deref for ModelConfig {
    type Target = Sizes;

    fn deref(&self) -> &Sizes {
        &self.sizes
    }
}

impl ModelConfig {
    /// Reads and checks `config.json` in a checkpoint's folder. Where `generation_config.json` names the tokens that end a
    /// generation, they are those.
    ///
    /// # Errors
    /// A file that can't be read, is malformed, or describes a model that isn't supported.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let config = Self::load_alone(folder)?;
        let eos_token_ids = generation_config::end_tokens(folder)?;
        Ok(Self { eos_token_ids: eos_token_ids.unwrap_or(config.eos_token_ids), ..config })
    }

    /// `config.json` without `generation_config.json`.
    pub(crate) fn load_alone(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        Self::from_json(&text).map_err(|message| Error::Config { path, message })
    }

    /// Parses the text of a `config.json`; the error is a sentence.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| format!("malformed JSON: {e}"))?;
        // Asked first, so that another architecture is refused by its name, not for a missing field.
        let config = Family::of(&value)?.read(value)?;
        config.check()?;
        Ok(config)
    }

    /// Checks that the sizes fit together; the error is a sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.num_hidden_layers > MOST_LAYERS {
            return Err(format!(
                "num_hidden_layers = {} is more than {MOST_LAYERS}",
                self.num_hidden_layers
            ));
        }
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 || value > 1 << 24 {
                return Err(format!("{name} = {value} is not a possible size"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(format!(
                "num_attention_heads = {} is not a multiple of num_key_value_heads = {}",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim = {} is odd", self.head_dim));
        }
        if self.layer_types.len() != self.num_hidden_layers {
            return Err(format!(
                "layer_types has {} entries for {} layers",
                self.layer_types.len(),
                self.num_hidden_layers
            ));
        }
        if self.sliding_window.is_none() && self.layer_types.contains(&LayerType::SlidingAttention)
        {
            return Err("layer_types has sliding layers, but there is no sliding_window".into());
        }
        if let Some(pad) = self.pad_token_id.filter(|&pad| pad as usize >= self.vocab_size) {
            return Err(format!("pad_token_id = {pad} is beyond vocab_size = {}", self.vocab_size));
        }
        for (name, value) in [
            ("embedding_scale", Some(self.embedding_scale)),
            ("query_pre_attn_scalar", Some(self.query_pre_attn_scalar)),
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
            ("rms_norm_eps", Some(self.rms_norm_eps)),
        ] {
            if let Some(value) = value.filter(|v| !(v.is_finite() && *v > 0.0)) {
                return Err(format!("{name} = {value} must be positive"));
            }
        }
        self.rope.check()?;
        self.sliding_rope.check()
    }

    /// The window of a layer in tokens, `None` if it sees everything.
    pub fn window(&self, layer: usize) -> Option<usize> {
        match self.layer_types[layer] {
            LayerType::SlidingAttention => self.sliding_window,
            LayerType::FullAttention => None,
        }
    }

    /// The `config.json` that transformers reads. `dtype` is Hugging Face's name of the stored type, such as `float32`.
    pub fn to_json(&self, dtype: &str) -> Value {
        self.family.write(self, dtype)
    }
}
