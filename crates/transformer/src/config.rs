//! `config.json` of a Gemma-2 checkpoint.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::Error;

/// More layers than any model has: keeps a damaged number from allocating without end.
const MOST_LAYERS: usize = 1 << 12;

/// How far back a layer's attention looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// The last `sliding_window` tokens.
    SlidingAttention,
    /// Everything before.
    FullAttention,
}

/// The sizes and constants of a Gemma-2 model, named as in Hugging Face's `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Tokens in the vocabulary: rows of the (tied) embedding.
    pub vocab_size: usize,
    /// d_model, the width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads per block.
    pub num_attention_heads: usize,
    /// Key and value heads per block; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head, which need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Attention scores are scaled by `query_pre_attn_scalar^-½`.
    pub query_pre_attn_scalar: f64,
    /// Attention scores pass through `cap · tanh(score / cap)`.
    pub attn_logit_softcapping: Option<f64>,
    /// Logits pass through `cap · tanh(logit / cap)`.
    pub final_logit_softcapping: Option<f64>,
    /// Tokens that a sliding layer sees, the present one included.
    pub sliding_window: usize,
    /// One entry a block.
    pub layer_types: Vec<LayerType>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Padding token.
    pub pad_token_id: u32,
    /// Beginning of sequence.
    pub bos_token_id: u32,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
}

/// The file as it stands on disk: what may be absent is optional.
#[derive(Deserialize)]
struct Raw {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    #[serde(default = "default_head_dim")]
    head_dim: usize,
    query_pre_attn_scalar: Option<f64>,
    // Absent is transformers' default, `null` is none.
    #[serde(default = "default_attn_softcapping")]
    attn_logit_softcapping: Option<f64>,
    #[serde(default = "default_final_softcapping")]
    final_logit_softcapping: Option<f64>,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<LayerType>>,
    rope_theta: Option<f64>,
    rope_parameters: Option<Map<String, Value>>,
    rope_scaling: Option<Value>,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_std")]
    initializer_range: f64,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default)]
    pad_token_id: Option<u32>,
    #[serde(default)]
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    hidden_activation: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    use_bidirectional_attention: Option<bool>,
    #[serde(default = "default_true")]
    tie_word_embeddings: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

fn default_head_dim() -> usize {
    256
}
fn default_attn_softcapping() -> Option<f64> {
    Some(50.0)
}
fn default_final_softcapping() -> Option<f64> {
    Some(30.0)
}
fn default_eps() -> f64 {
    1e-6
}
fn default_std() -> f64 {
    0.02
}
fn default_positions() -> usize {
    8192
}
fn default_true() -> bool {
    true
}

/// Without `layer_types`, even layers slide and odd ones see everything.
pub fn alternating_layer_types(layers: usize) -> Vec<LayerType> {
    (0..layers)
        .map(|layer| match layer % 2 {
            0 => LayerType::SlidingAttention,
            _ => LayerType::FullAttention,
        })
        .collect()
}

impl ModelConfig {
    /// Reads and checks `config.json` in a checkpoint's folder.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        Self::from_json(&text).map_err(|message| Error::Config { path, message })
    }

    /// Parses the text of a `config.json`; the error is a sentence.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| format!("malformed JSON: {e}"))?;
        // Asked first, so that another architecture is refused by its name, not for a missing field.
        match value.get("model_type").and_then(Value::as_str) {
            Some("gemma2") => {}
            Some(other) => {
                return Err(format!("model_type `{other}` is not supported, only `gemma2` is"));
            }
            None => return Err("no `model_type`; expected `gemma2`".into()),
        }
        let raw: Raw = serde_json::from_value(value).map_err(|e| e.to_string())?;
        debug_assert_eq!(raw.model_type, "gemma2");
        if let Some(activation) = &raw.hidden_activation
            && activation != "gelu_pytorch_tanh"
        {
            return Err(format!(
                "hidden_activation `{activation}` is not supported, only `gelu_pytorch_tanh` is"
            ));
        }
        if raw.attention_bias {
            return Err("attention_bias = true is not supported".into());
        }
        if raw.use_bidirectional_attention == Some(true) {
            return Err("use_bidirectional_attention = true is not supported".into());
        }
        if !raw.tie_word_embeddings {
            return Err("tie_word_embeddings = false is not supported".into());
        }
        if raw.rope_scaling.is_some_and(|v| !v.is_null()) {
            return Err("rope_scaling is not supported".into());
        }
        let mut rope_theta = raw.rope_theta;
        if let Some(parameters) = &raw.rope_parameters {
            match parameters.get("rope_type").and_then(Value::as_str) {
                None | Some("default") => {}
                Some(other) => return Err(format!("rope_type `{other}` is not supported")),
            }
            rope_theta = rope_theta.or(parameters.get("rope_theta").and_then(Value::as_f64));
        }
        let config = Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads,
            head_dim: raw.head_dim,
            query_pre_attn_scalar: raw.query_pre_attn_scalar.unwrap_or(256.0),
            attn_logit_softcapping: raw.attn_logit_softcapping,
            final_logit_softcapping: raw.final_logit_softcapping,
            sliding_window: raw.sliding_window.unwrap_or(4096),
            layer_types: raw
                .layer_types
                .unwrap_or_else(|| alternating_layer_types(raw.num_hidden_layers.min(MOST_LAYERS))),
            rope_theta: rope_theta.unwrap_or(10_000.0),
            rms_norm_eps: raw.rms_norm_eps,
            initializer_range: raw.initializer_range,
            max_position_embeddings: raw.max_position_embeddings,
            pad_token_id: raw.pad_token_id.unwrap_or(0),
            bos_token_id: raw.bos_token_id.unwrap_or(2),
            eos_token_ids: match raw.eos_token_id {
                Some(OneOrMany::One(id)) => vec![id],
                Some(OneOrMany::Many(ids)) => ids,
                None => vec![1],
            },
        };
        config.check()?;
        Ok(config)
    }

    /// The sizes make sense together; the error is a sentence.
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
            ("sliding_window", self.sliding_window),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 || value > 1 << 24 {
                return Err(format!("{name} = {value} is not a possible size"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(format!(
                "num_attention_heads = {} is no multiple of num_key_value_heads = {}",
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
        if self.pad_token_id as usize >= self.vocab_size {
            return Err(format!(
                "pad_token_id = {} is beyond vocab_size = {}",
                self.pad_token_id, self.vocab_size
            ));
        }
        for (name, value) in [
            ("query_pre_attn_scalar", Some(self.query_pre_attn_scalar)),
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
            ("rope_theta", Some(self.rope_theta)),
            ("rms_norm_eps", Some(self.rms_norm_eps)),
        ] {
            if value.is_some_and(|v| !(v.is_finite() && v > 0.0)) {
                return Err(format!("{name} = {value:?} must be positive"));
            }
        }
        Ok(())
    }

    /// The window of a layer, `None` where it sees everything.
    pub fn window(&self, layer: usize) -> Option<usize> {
        match self.layer_types[layer] {
            LayerType::SlidingAttention => Some(self.sliding_window),
            LayerType::FullAttention => None,
        }
    }

    /// The `config.json` that transformers reads. `dtype` is Hugging Face's name of the stored type.
    pub fn to_json(&self, dtype: &str) -> Value {
        let eos = match self.eos_token_ids.as_slice() {
            [one] => json!(one),
            many => json!(many),
        };
        // transformers 5 refuses a float here, even 256.0.
        let query_pre_attn_scalar = match self.query_pre_attn_scalar {
            whole if whole.fract() == 0.0 && whole < 1e15 => json!(whole as u64),
            other => json!(other),
        };
        json!({
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "query_pre_attn_scalar": query_pre_attn_scalar,
            "attn_logit_softcapping": self.attn_logit_softcapping,
            "final_logit_softcapping": self.final_logit_softcapping,
            "sliding_window": self.sliding_window,
            "layer_types": self.layer_types,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "initializer_range": self.initializer_range,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": false,
            "attention_dropout": 0.0,
            "tie_word_embeddings": true,
            "use_cache": true,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "torch_dtype": dtype,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"model_type":"gemma2","vocab_size":64,"hidden_size":16,
        "intermediate_size":32,"num_hidden_layers":3,"num_attention_heads":4,
        "num_key_value_heads":2,"head_dim":8,"eos_token_id":[1,107],"query_pre_attn_scalar":8,
        "attn_logit_softcapping":50.0,"final_logit_softcapping":null,"sliding_window":4}"#;

    #[test]
    fn reads_what_is_there_and_fills_in_what_is_not() {
        let config = ModelConfig::from_json(SMALL).unwrap();
        assert_eq!(config.eos_token_ids, [1, 107]);
        assert_eq!(config.final_logit_softcapping, None);
        assert_eq!(config.attn_logit_softcapping, Some(50.0));
        assert_eq!([0, 1, 2].map(|layer| config.window(layer)), [Some(4), None, Some(4)]);
        assert_eq!(config.rope_theta, 10_000.0);
        let without = SMALL.replace("\"final_logit_softcapping\":null,", "");
        let config_without = ModelConfig::from_json(&without).unwrap();
        assert_eq!(config_without.final_logit_softcapping, Some(30.0));
        let written = config.to_json("float32");
        assert!(written["query_pre_attn_scalar"].is_u64());
        assert_eq!(ModelConfig::from_json(&written.to_string()).unwrap(), config);
    }

    #[test]
    fn refuses_by_name() {
        for (from, to, says) in [
            ("gemma2", "llama", "model_type `llama`"),
            ("\"num_key_value_heads\":2", "\"num_key_value_heads\":3", "no multiple"),
            ("\"vocab_size\":64", "\"vocab_size\":0", "vocab_size = 0"),
            ("\"vocab_size\":64,", "", "vocab_size"),
            ("\"head_dim\":8", "\"head_dim\":7", "odd"),
            ("\"head_dim\":8", "\"head_dim\":8,\"attention_bias\":true", "attention_bias"),
            ("\"head_dim\":8", "\"head_dim\":8,\"rope_scaling\":{\"factor\":2}", "rope_scaling"),
            ("\"head_dim\":8", "\"head_dim\":8,\"layer_types\":[\"full_attention\"]", "1 entries"),
            ("50.0", "-1.0", "must be positive"),
            ("\"num_hidden_layers\":3", "\"num_hidden_layers\":99999999999", "more than 4096"),
            ("\"head_dim\":8", "\"head_dim\":8,\"pad_token_id\":64", "pad_token_id = 64"),
            (
                "\"head_dim\":8",
                "\"head_dim\":8,\"use_bidirectional_attention\":true",
                "use_bidirectional_attention",
            ),
        ] {
            let text = SMALL.replacen(from, to, 1);
            let message = ModelConfig::from_json(&text).unwrap_err();
            assert!(message.contains(says), "{message:?} does not name {says:?}");
        }
    }
}
