//! Gemma-3's language model (arXiv 2503.19786): Gemma-2's blocks with queries and keys normalised in place of soft-caps, windows in
//! five of six layers, and other rotary frequencies in those than in the sixth.

use serde_json::{Map, Value, json};

use super::{
    Family, Published, Sizes,
    fields::{Absent, Fields, whole, written},
    gemma2,
};
use crate::{LayerType, ModelConfig, Rope, RopeScaling, config::MOST_LAYERS};

/// Bases of the rotary frequencies of full and of sliding layers.
const THETAS: [f64; 2] = [1_000_000.0, 10_000.0];
/// One layer in so many sees everything.
const PATTERN: usize = 6;
/// What the published multimodal files leave to transformers' defaults.
const VOCABULARY: usize = 262_208;

/// Table 1 of the report and the published files.
pub(super) static PUBLISHED: [Published; 4] = [
    Published {
        name: "gemma-3-1b",
        config: || {
            let sizes = Sizes::new(262_144, [1152, 6912, 26], [4, 1, 256]);
            let config = published(&sizes, 512, RopeScaling::None);
            ModelConfig { max_position_embeddings: 32_768, ..config }
        },
    },
    Published {
        name: "gemma-3-4b",
        config: || published(&Sizes::new(VOCABULARY, [2560, 10_240, 34], [8, 4, 256]), 1024, LONG),
    },
    Published {
        name: "gemma-3-12b",
        config: || published(&Sizes::new(VOCABULARY, [3840, 15_360, 48], [16, 8, 256]), 1024, LONG),
    },
    Published {
        name: "gemma-3-27b",
        config: || {
            let sizes = Sizes::new(VOCABULARY, [5376, 21_504, 62], [32, 16, 128]);
            ModelConfig { query_pre_attn_scalar: 168.0, ..published(&sizes, 1024, LONG) }
        },
    },
];

/// What carries the larger models to 131,072 tokens.
const LONG: RopeScaling = RopeScaling::Linear { factor: 8.0 };

fn published(sizes: &Sizes, window: usize, scaling: RopeScaling) -> ModelConfig {
    ModelConfig {
        sliding_window: Some(window),
        rope: Rope { theta: THETAS[0], scaling },
        eos_token_ids: vec![1, 106],
        ..config(sizes)
    }
}

/// Gemma-3 of these sizes, unchecked. Attention is scaled by `head_dim^-½`.
pub(super) fn config(sizes: &Sizes) -> ModelConfig {
    ModelConfig {
        family: Family::Gemma3,
        qk_norm: true,
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
        layer_types: every(PATTERN, sizes.num_hidden_layers.min(MOST_LAYERS)),
        rope: Rope::plain(THETAS[0]),
        sliding_rope: Rope::plain(THETAS[1]),
        max_position_embeddings: 131_072,
        ..gemma2::config(sizes)
    }
}

/// Every `pattern`-th layer sees everything, the others slide.
fn every(pattern: usize, layers: usize) -> Vec<LayerType> {
    let of = |layer: usize| match (layer + 1).is_multiple_of(pattern) {
        true => LayerType::FullAttention,
        false => LayerType::SlidingAttention,
    };
    (0..layers).map(of).collect()
}

/// Maps a `config.json` of the language model alone, or of the multimodal model, whose `text_config` describes it; what is absent
/// has the value that transformers gives it.
pub(super) fn read(config_json: Value) -> Result<ModelConfig, String> {
    let mut fields = Fields::of(text(config_json)?)?;
    gemma2::activation(&mut fields)?;
    for (name, absent) in
        [("vocab_size", VOCABULARY), ("num_attention_heads", 8), ("num_key_value_heads", 4)]
    {
        fields.fill(name, absent);
    }
    let sizes = fields.sizes(&Absent { kv_heads: None, head_dim: Some(256) })?;
    let base = fields.common(config(&sizes))?;
    let pattern = fields.or("sliding_window_pattern", PATTERN)?;
    let layer_types = every(pattern, base.layer_types.len());
    let [rope, sliding_rope] = fields.ropes(THETAS)?;
    let read = ModelConfig {
        query_pre_attn_scalar: fields.or("query_pre_attn_scalar", 256.0)?,
        final_logit_softcapping: fields.nullable("final_logit_softcapping", None)?,
        sliding_window: fields.optional("sliding_window")?.or(base.sliding_window),
        layer_types: fields.or("layer_types", layer_types)?,
        rope,
        sliding_rope,
        ..base
    };
    fields.finish()?;
    Ok(read)
}

/// The language model's part of a configuration. Tokens that the multimodal model's own level names apply to it.
fn text(config: Value) -> Result<Value, String> {
    if config["model_type"] != "gemma3" {
        return Ok(config);
    }
    let Some(Value::Object(text)) = config.get("text_config") else {
        return Err("no `text_config`, which describes the language model of a `gemma3`".into());
    };
    let mut text = text.clone();
    for name in ["pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"] {
        let outer = config.get(name).filter(|value| !value.is_null());
        if let (Some(value), None | Some(Value::Null)) = (outer, text.get(name)) {
            text.insert(name.into(), value.clone());
        }
    }
    if let Some(quantized) = config.get("quantization_config") {
        text.insert("quantization_config".into(), quantized.clone());
    }
    Ok(Value::Object(text))
}

/// The language model's `config.json` that transformers reads.
pub(super) fn write(config: &ModelConfig, dtype: &str) -> Value {
    let mut fields: Map<String, Value> = written(config, dtype);
    fields.extend([
        ("query_pre_attn_scalar".into(), whole(config.query_pre_attn_scalar)),
        ("final_logit_softcapping".into(), json!(config.final_logit_softcapping)),
        ("sliding_window".into(), json!(config.sliding_window)),
        ("layer_types".into(), json!(config.layer_types)),
        ("rope_local_base_freq".into(), json!(config.sliding_rope.theta)),
        ("hidden_activation".into(), json!(gemma2::ACTIVATION)),
        ("attention_bias".into(), json!(false)),
    ]);
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published file of Gemma-3-4B, without its vision tower: it leaves most sizes to the defaults.
    #[test]
    fn the_multimodal_file_describes_the_published_model() {
        let text = r#"{"architectures":["Gemma3ForConditionalGeneration"],"model_type":"gemma3",
            "boi_token_index":255999,"eoi_token_index":256000,"image_token_index":262144,
            "mm_tokens_per_image":256,"eos_token_id":[1,106],"initializer_range":0.02,
            "torch_dtype":"bfloat16","transformers_version":"4.50.0.dev0","vision_config":{"hidden_size":1152},
            "text_config":{"hidden_size":2560,"intermediate_size":10240,"model_type":"gemma3_text",
            "num_hidden_layers":34,"rope_scaling":{"factor":8.0,"rope_type":"linear"},"sliding_window":1024}}"#;
        let read = ModelConfig::from_json(text).unwrap();
        assert_eq!(read, (PUBLISHED[1].config)());
        assert_eq!(
            [0, 4, 5, 6].map(|l| read.window(l)),
            [Some(1024), Some(1024), None, Some(1024)]
        );
        // The same in transformers 5's spelling.
        let flat = r#""rope_scaling":{"factor":8.0,"rope_type":"linear"}"#;
        let nested = r#""rope_parameters":{"full_attention":{"rope_type":"linear","factor":8.0,"rope_theta":1e6},
            "sliding_attention":{"rope_type":"default","rope_theta":10000.0}}"#;
        assert_eq!(ModelConfig::from_json(&text.replace(flat, nested)).unwrap(), read);
        for (from, to, says) in [
            ("\"text_config\"", "\"text\"", "text_config"),
            ("ForConditionalGeneration", "ForSequenceClassification", "ForSequenceClassification"),
            (
                "\"sliding_window\"",
                "\"attn_logit_softcapping\":50.0,\"sliding_window\"",
                "attn_logit",
            ),
            ("\"linear\"", "\"yarn\"", "yarn"),
            ("\"factor\":8.0", "\"factor\":-8.0", "factor = -8 must be positive"),
        ] {
            let message = ModelConfig::from_json(&text.replacen(from, to, 1)).unwrap_err();
            assert!(message.contains(says), "{message:?} does not name {says:?}");
        }
    }
}
