//! Qwen-3 (arXiv 2505.09388), the dense models: Llama's blocks with queries and keys normalised per head, and heads whose width is
//! not d_model divided by their number.

use serde_json::{Value, json};

use super::{
    Family, Published, Sizes,
    fields::{Absent, Fields},
    plain, qwen2,
};
use crate::{ModelConfig, Rope};

const VOCABULARY: usize = 151_936;

/// Table 1 of the report and the published files. Those up to 4B have a tied head.
pub(super) static PUBLISHED: [Published; 6] = [
    Published { name: "qwen3-0.6b", config: || published(true, [1024, 3072, 28], [16, 8, 128]) },
    Published { name: "qwen3-1.7b", config: || published(true, [2048, 6144, 28], [16, 8, 128]) },
    Published { name: "qwen3-4b", config: || published(true, [2560, 9728, 36], [32, 8, 128]) },
    Published { name: "qwen3-8b", config: || published(false, [4096, 12_288, 36], [32, 8, 128]) },
    Published { name: "qwen3-14b", config: || published(false, [5120, 17_408, 40], [40, 8, 128]) },
    Published { name: "qwen3-32b", config: || published(false, [5120, 25_600, 64], [64, 8, 128]) },
];

fn published(tied: bool, widths: [usize; 3], heads: [usize; 3]) -> ModelConfig {
    ModelConfig {
        tie_word_embeddings: tied,
        rope: Rope::plain(1e6),
        sliding_rope: Rope::plain(1e6),
        max_position_embeddings: 40_960,
        bos_token_id: Some(151_643),
        eos_token_ids: vec![151_645],
        ..config(&Sizes::new(VOCABULARY, widths, heads))
    }
}

/// Qwen-3 of these sizes with transformers' defaults, unchecked.
pub(super) fn config(sizes: &Sizes) -> ModelConfig {
    ModelConfig { qk_norm: true, ..plain(Family::Qwen3, sizes) }
}

/// Maps a `config.json`; what is absent has the value that transformers gives it.
pub(super) fn read(config_json: Value) -> Result<ModelConfig, String> {
    let mut fields = Fields::of(config_json)?;
    let sizes = fields.sizes(&Absent { kv_heads: None, head_dim: Some(128) })?;
    qwen2::read_rest(fields, config(&sizes))
}

/// The `config.json` that transformers reads.
pub(super) fn write(config: &ModelConfig, dtype: &str) -> Value {
    let mut value = qwen2::write(config, dtype);
    value["attention_bias"] = json!(false);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published file of Qwen3-8B.
    #[test]
    fn the_published_file_is_the_published_model() {
        let text = r#"{"architectures":["Qwen3ForCausalLM"],"attention_bias":false,
            "attention_dropout":0.0,"bos_token_id":151643,"eos_token_id":151645,"head_dim":128,
            "hidden_act":"silu","hidden_size":4096,"initializer_range":0.02,
            "intermediate_size":12288,"max_position_embeddings":40960,"max_window_layers":36,
            "model_type":"qwen3","num_attention_heads":32,"num_hidden_layers":36,
            "num_key_value_heads":8,"rms_norm_eps":1e-06,"rope_scaling":null,"rope_theta":1000000,
            "sliding_window":null,"tie_word_embeddings":false,"torch_dtype":"bfloat16",
            "transformers_version":"4.51.0","use_cache":true,"use_sliding_window":false,
            "vocab_size":151936}"#;
        assert_eq!(ModelConfig::from_json(text).unwrap(), (PUBLISHED[3].config)());
        for (from, to, says) in [
            ("\"attention_bias\":false", "\"attention_bias\":true", "attention_bias = true"),
            ("\"use_sliding_window\":false", "\"use_sliding_window\":true", "use_sliding_window"),
            ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen3MoeForCausalLM"),
        ] {
            let message = ModelConfig::from_json(&text.replacen(from, to, 1)).unwrap_err();
            assert!(message.contains(says), "{message:?} does not name {says:?}");
        }
    }
}
