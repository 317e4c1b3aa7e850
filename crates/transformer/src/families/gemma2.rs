//! Gemma-2 (arXiv 2408.00118): a norm before and after both parts of a block, soft-capped scores and logits, embeddings scaled
//! by √d_model, a tied head, and windows in every other layer.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Family, Published, Sizes};
use crate::{LayerType, ModelConfig, config::MOST_LAYERS};

/// The one activation of its MLP, as Hugging Face names it.
const ACTIVATION: &str = "gelu_pytorch_tanh";

/// Table 1 of the report, and `query_pre_attn_scalar` from the published files.
pub(super) static PUBLISHED: [Published; 3] = [
    published("gemma-2-2b", [2304, 9216, 26, 8, 4, 256], 256.0),
    published("gemma-2-9b", [3584, 14_336, 42, 16, 8, 256], 256.0),
    published("gemma-2-27b", [4608, 36_864, 46, 32, 16, 128], 144.0),
];

const fn published(
    name: &'static str,
    [hidden_size, intermediate_size, num_hidden_layers, heads, kv_heads, head_dim]: [usize; 6],
    query_pre_attn_scalar: f64,
) -> Published {
    let sizes = Sizes {
        vocab_size: 256_000,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
    };
    Published { name, family: Family::Gemma2, sizes, query_pre_attn_scalar }
}

/// Gemma-2 of these sizes, unchecked. Attention is scaled by `head_dim^-½`.
pub(super) fn config(sizes: &Sizes) -> ModelConfig {
    ModelConfig {
        family: Family::Gemma2,
        vocab_size: sizes.vocab_size,
        hidden_size: sizes.hidden_size,
        intermediate_size: sizes.intermediate_size,
        num_hidden_layers: sizes.num_hidden_layers,
        num_attention_heads: sizes.num_attention_heads,
        num_key_value_heads: sizes.num_key_value_heads,
        head_dim: sizes.head_dim,
        embedding_scale: (sizes.hidden_size as f64).sqrt(),
        query_pre_attn_scalar: sizes.head_dim as f64,
        attn_logit_softcapping: default_attn_softcapping(),
        final_logit_softcapping: default_final_softcapping(),
        sliding_window: 4096,
        layer_types: alternating(sizes.num_hidden_layers.min(MOST_LAYERS)),
        rope_theta: 10_000.0,
        rms_norm_eps: default_eps(),
        initializer_range: default_std(),
        max_position_embeddings: default_positions(),
        pad_token_id: 0,
        bos_token_id: 2,
        eos_token_ids: vec![1],
    }
}

/// Even layers slide and odd ones see everything.
fn alternating(layers: usize) -> Vec<LayerType> {
    let pair = [LayerType::SlidingAttention, LayerType::FullAttention];
    pair.into_iter().cycle().take(layers).collect()
}

/// The file as it stands on disk: what may be absent is optional.
#[derive(Deserialize)]
struct Raw {
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
    pad_token_id: Option<u32>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    hidden_activation: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    use_bidirectional_attention: Option<bool>,
    #[serde(default = "default_true")]
    tie_word_embeddings: bool,
    quantization_config: Option<Value>,
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

/// Maps a `config.json`; what is absent has the value that transformers gives it.
pub(super) fn read(config_json: Value) -> Result<ModelConfig, String> {
    let raw: Raw = serde_json::from_value(config_json).map_err(|e| e.to_string())?;
    refuse_unsupported(&raw)?;
    let base = config(&Sizes {
        vocab_size: raw.vocab_size,
        hidden_size: raw.hidden_size,
        intermediate_size: raw.intermediate_size,
        num_hidden_layers: raw.num_hidden_layers,
        num_attention_heads: raw.num_attention_heads,
        num_key_value_heads: raw.num_key_value_heads,
        head_dim: raw.head_dim,
    });
    let rope_parameters = raw.rope_parameters.unwrap_or_default();
    let rope_theta = rope_parameters.get("rope_theta").and_then(Value::as_f64);
    Ok(ModelConfig {
        query_pre_attn_scalar: raw.query_pre_attn_scalar.unwrap_or(256.0),
        attn_logit_softcapping: raw.attn_logit_softcapping,
        final_logit_softcapping: raw.final_logit_softcapping,
        sliding_window: raw.sliding_window.unwrap_or(base.sliding_window),
        layer_types: raw.layer_types.unwrap_or(base.layer_types),
        rope_theta: raw.rope_theta.or(rope_theta).unwrap_or(base.rope_theta),
        rms_norm_eps: raw.rms_norm_eps,
        initializer_range: raw.initializer_range,
        max_position_embeddings: raw.max_position_embeddings,
        pad_token_id: raw.pad_token_id.unwrap_or(base.pad_token_id),
        bos_token_id: raw.bos_token_id.unwrap_or(base.bos_token_id),
        eos_token_ids: match raw.eos_token_id {
            Some(OneOrMany::One(id)) => vec![id],
            Some(OneOrMany::Many(ids)) => ids,
            None => base.eos_token_ids,
        },
        ..base
    })
}

/// Refuses by name what changes the mathematics and isn't implemented.
fn refuse_unsupported(raw: &Raw) -> Result<(), String> {
    if let Some(activation) = &raw.hidden_activation
        && activation != ACTIVATION
    {
        return Err(format!(
            "hidden_activation `{activation}` is not supported, only `{ACTIVATION}` is"
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
    if raw.rope_scaling.as_ref().is_some_and(|value| !value.is_null()) {
        return Err("rope_scaling is not supported".into());
    }
    if raw.quantization_config.as_ref().is_some_and(|value| !value.is_null()) {
        return Err("quantization_config is not supported: use the unquantized checkpoint".into());
    }
    for (name, value) in raw.rope_parameters.iter().flatten() {
        match (name.as_str(), value.as_str()) {
            ("rope_theta", _) | ("rope_type", Some("default")) => {}
            _ if value.is_null() => {}
            _ => return Err(format!("rope_parameters: {name} = {value} is not supported")),
        }
    }
    Ok(())
}

/// The `config.json` that transformers reads.
pub(super) fn write(config: &ModelConfig, dtype: &str) -> Value {
    let eos = match config.eos_token_ids.as_slice() {
        [one] => json!(one),
        many => json!(many),
    };
    // transformers 5 refuses a float here, even 256.0.
    let query_pre_attn_scalar = match config.query_pre_attn_scalar {
        whole if whole.fract() == 0.0 && whole < 1e15 => json!(whole as u64),
        other => json!(other),
    };
    json!({
        "architectures": [config.family.architecture()],
        "model_type": config.family.model_type(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": query_pre_attn_scalar,
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "sliding_window": config.sliding_window,
        "layer_types": config.layer_types,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "initializer_range": config.initializer_range,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_activation": ACTIVATION,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "tie_word_embeddings": true,
        "use_cache": true,
        "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "torch_dtype": dtype,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"model_type":"gemma2","vocab_size":64,"hidden_size":16,
        "intermediate_size":32,"num_hidden_layers":3,"num_attention_heads":4,
        "num_key_value_heads":2,"head_dim":8,"eos_token_id":[1,107],"query_pre_attn_scalar":8,
        "attn_logit_softcapping":50.0,"final_logit_softcapping":null,"sliding_window":4}"#;

    #[test]
    fn absent_fields_get_their_defaults() {
        let config = ModelConfig::from_json(SMALL).unwrap();
        assert_eq!(config.eos_token_ids, [1, 107]);
        assert_eq!(config.final_logit_softcapping, None);
        assert_eq!(config.attn_logit_softcapping, Some(50.0));
        assert_eq!([0, 1, 2].map(|layer| config.window(layer)), [Some(4), None, Some(4)]);
        assert_eq!((config.rope_theta, config.embedding_scale), (10_000.0, 4.0));
        let without = SMALL.replace("\"final_logit_softcapping\":null,", "");
        let config_without = ModelConfig::from_json(&without).unwrap();
        assert_eq!(config_without.final_logit_softcapping, Some(30.0));
        let written = config.to_json("float32");
        assert!(written["query_pre_attn_scalar"].is_u64());
        assert_eq!(ModelConfig::from_json(&written.to_string()).unwrap(), config);
    }

    /// A file that says nothing but the sizes and the scale is the family's configuration of these sizes.
    #[test]
    fn sizes_alone_are_a_configuration() {
        let sizes = Sizes {
            vocab_size: 64,
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
        };
        let text = r#"{"model_type":"gemma2","vocab_size":64,"hidden_size":16,
            "intermediate_size":32,"num_hidden_layers":3,"num_attention_heads":4,
            "num_key_value_heads":2,"head_dim":8,"query_pre_attn_scalar":8}"#;
        assert_eq!(Family::Gemma2.config(&sizes), ModelConfig::from_json(text));
        let odd = Sizes { head_dim: 7, ..sizes };
        assert!(Family::Gemma2.config(&odd).unwrap_err().contains("head_dim = 7"));
    }

    #[test]
    fn refuses_by_name() {
        for (from, to, says) in [
            ("gemma2", "llama", "model_type `llama`"),
            ("\"num_key_value_heads\":2", "\"num_key_value_heads\":3", "not a multiple"),
            ("\"vocab_size\":64", "\"vocab_size\":0", "vocab_size = 0"),
            ("\"vocab_size\":64,", "", "vocab_size"),
            ("\"head_dim\":8", "\"head_dim\":7", "odd"),
            ("\"head_dim\":8", "\"head_dim\":8,\"attention_bias\":true", "attention_bias"),
            ("\"head_dim\":8", "\"head_dim\":8,\"rope_scaling\":{\"factor\":2}", "rope_scaling"),
            ("\"head_dim\":8", "\"head_dim\":8,\"layer_types\":[\"full_attention\"]", "1 entries"),
            ("\"head_dim\":8", "\"head_dim\":8,\"quantization_config\":{}", "quantization_config"),
            (
                "\"head_dim\":8",
                "\"head_dim\":8,\"rope_parameters\":{\"rope_type\":\"yarn\"}",
                "rope_type = \"yarn\"",
            ),
            ("\"head_dim\":8", "\"head_dim\":8,\"rope_parameters\":{\"factor\":2.0}", "factor"),
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
