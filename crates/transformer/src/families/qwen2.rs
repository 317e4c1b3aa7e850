//! Qwen-2 and Qwen-2.5 (arXiv 2412.15115): Llama's blocks with biases on queries, keys and values.

use serde_json::{Value, json};

use super::{
    Family, Published, Sizes,
    fields::{Absent, Fields, written},
    llama, plain,
};
use crate::{LayerType, ModelConfig, Rope};

/// Vocabulary of the models up to 3B; larger ones have more rows.
const SMALL: usize = 151_936;
/// Vocabulary of the models from 7B on.
const LARGE: usize = 152_064;

/// The published files.
pub(super) static PUBLISHED: [Published; 6] = [
    Published { name: "qwen2.5-0.5b", config: || published(SMALL, [896, 4864, 24], [14, 2, 64]) },
    Published { name: "qwen2.5-1.5b", config: || published(SMALL, [1536, 8960, 28], [12, 2, 128]) },
    Published { name: "qwen2.5-3b", config: || published(SMALL, [2048, 11_008, 36], [16, 2, 128]) },
    Published { name: "qwen2.5-7b", config: || published(LARGE, [3584, 18_944, 28], [28, 4, 128]) },
    Published {
        name: "qwen2.5-14b",
        config: || published(LARGE, [5120, 13_824, 48], [40, 8, 128]),
    },
    Published {
        name: "qwen2.5-32b",
        config: || published(LARGE, [5120, 27_648, 64], [40, 8, 128]),
    },
];

fn published(vocabulary: usize, widths: [usize; 3], heads: [usize; 3]) -> ModelConfig {
    ModelConfig {
        tie_word_embeddings: vocabulary == SMALL,
        rope: Rope::plain(1e6),
        sliding_rope: Rope::plain(1e6),
        bos_token_id: Some(151_643),
        eos_token_ids: vec![151_643],
        ..config(&Sizes::new(vocabulary, widths, heads))
    }
}

/// Qwen-2 of these sizes with transformers' defaults, unchecked.
pub(super) fn config(sizes: &Sizes) -> ModelConfig {
    ModelConfig { qkv_bias: true, ..plain(Family::Qwen2, sizes) }
}

/// Maps a `config.json`; what is absent has the value that transformers gives it.
pub(super) fn read(config_json: Value) -> Result<ModelConfig, String> {
    let mut fields = Fields::of(config_json)?;
    let sizes = fields.sizes(&Absent { kv_heads: None, head_dim: None })?;
    read_rest(fields, config(&sizes))
}

/// What Qwen-2 and Qwen-3 share beside their sizes.
pub(super) fn read_rest(mut fields: Fields, absent: ModelConfig) -> Result<ModelConfig, String> {
    fields.only("hidden_act", llama::ACTIVATION)?;
    let base = fields.common(absent)?;
    let rope = fields.rope(base.rope.theta)?;
    if fields.or("use_sliding_window", false)? {
        return Err("use_sliding_window = true is not supported".into());
    }
    // Without use_sliding_window it has no effect.
    fields.ignore("sliding_window");
    let layer_types = fields.or("layer_types", base.layer_types.clone())?;
    if layer_types.contains(&LayerType::SlidingAttention) {
        return Err("layer_types: sliding_attention is not supported".into());
    }
    fields.finish()?;
    Ok(ModelConfig { rope, sliding_rope: rope, layer_types, ..base })
}

/// The `config.json` that transformers reads.
pub(super) fn write(config: &ModelConfig, dtype: &str) -> Value {
    let mut fields = written(config, dtype);
    fields.extend([
        ("hidden_act".into(), json!(llama::ACTIVATION)),
        ("use_sliding_window".into(), json!(false)),
        ("layer_types".into(), json!(config.layer_types)),
    ]);
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published file of Qwen2.5-0.5B.
    #[test]
    fn the_published_file_is_the_published_model() {
        let text = r#"{"architectures":["Qwen2ForCausalLM"],"attention_dropout":0.0,
            "bos_token_id":151643,"eos_token_id":151643,"hidden_act":"silu","hidden_size":896,
            "initializer_range":0.02,"intermediate_size":4864,"max_position_embeddings":32768,
            "max_window_layers":24,"model_type":"qwen2","num_attention_heads":14,
            "num_hidden_layers":24,"num_key_value_heads":2,"rms_norm_eps":1e-06,
            "rope_theta":1000000.0,"sliding_window":32768,"tie_word_embeddings":true,
            "torch_dtype":"bfloat16","transformers_version":"4.40.1","use_cache":true,
            "use_mrope":false,"use_sliding_window":false,"vocab_size":151936}"#;
        assert_eq!(ModelConfig::from_json(text).unwrap(), (PUBLISHED[0].config)());
        for (from, to, says) in [
            (
                "\"use_sliding_window\":false",
                "\"use_sliding_window\":true",
                "use_sliding_window = true",
            ),
            ("\"use_mrope\":false", "\"use_mrope\":true", "use_mrope = true"),
            ("\"hidden_size\":896", "\"hidden_size\":897", "hidden_size = 897"),
            ("\"num_key_value_heads\":2", "\"num_key_value_heads\":4", "not a multiple"),
        ] {
            let message = ModelConfig::from_json(&text.replacen(from, to, 1)).unwrap_err();
            assert!(message.contains(says), "{message:?} does not name {says:?}");
        }
    }
}
