//! Llama 3 (arXiv 2407.21783) and what shares its architecture, such as SmolLM2: a norm before both parts of a block, SwiGLU, no
//! biases, no windows, and a head that may be a parameter of its own.

use serde_json::{Value, json};

use super::{
    Family, Published, Sizes,
    fields::{Absent, Fields, written},
    plain,
};
use crate::{ModelConfig, Rope, RopeScaling};

/// The one activation of its MLP, as Hugging Face names it.
pub(super) const ACTIVATION: &str = "silu";

/// The published files.
pub(super) static PUBLISHED: [Published; 8] = [
    Published {
        name: "llama-3-8b",
        config: || ModelConfig {
            rope: Rope::plain(500_000.0),
            sliding_rope: Rope::plain(500_000.0),
            max_position_embeddings: 8192,
            ..llama_3([4096, 14_336, 32], [32, 8, 128], 8.0)
        },
    },
    Published { name: "llama-3.1-8b", config: || llama_3([4096, 14_336, 32], [32, 8, 128], 8.0) },
    Published { name: "llama-3.1-70b", config: || llama_3([8192, 28_672, 80], [64, 8, 128], 8.0) },
    Published {
        name: "llama-3.2-1b",
        config: || tied(llama_3([2048, 8192, 16], [32, 8, 64], 32.0)),
    },
    Published {
        name: "llama-3.2-3b",
        config: || tied(llama_3([3072, 8192, 28], [24, 8, 128], 32.0)),
    },
    Published { name: "smollm2-135m", config: || smollm2([576, 1536, 30], [9, 3, 64], 1e5) },
    Published { name: "smollm2-360m", config: || smollm2([960, 2560, 32], [15, 5, 64], 1e5) },
    Published { name: "smollm2-1.7b", config: || smollm2([2048, 8192, 24], [32, 32, 64], 1.3e5) },
];

fn tied(config: ModelConfig) -> ModelConfig {
    ModelConfig { tie_word_embeddings: true, ..config }
}

fn llama_3(widths: [usize; 3], heads: [usize; 3], factor: f64) -> ModelConfig {
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_positions: 8192.0,
    };
    let rope = Rope { theta: 500_000.0, scaling };
    ModelConfig {
        rope,
        sliding_rope: rope,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 131_072,
        bos_token_id: Some(128_000),
        eos_token_ids: vec![128_001],
        ..config(&Sizes::new(128_256, widths, heads))
    }
}

fn smollm2(widths: [usize; 3], heads: [usize; 3], theta: f64) -> ModelConfig {
    ModelConfig {
        rope: Rope::plain(theta),
        sliding_rope: Rope::plain(theta),
        rms_norm_eps: 1e-5,
        max_position_embeddings: 8192,
        bos_token_id: Some(0),
        eos_token_ids: vec![0],
        ..tied(config(&Sizes::new(49_152, widths, heads)))
    }
}

/// Llama of these sizes with transformers' defaults, unchecked.
pub(super) fn config(sizes: &Sizes) -> ModelConfig {
    ModelConfig {
        max_position_embeddings: 2048,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        ..plain(Family::Llama, sizes)
    }
}

/// Maps a `config.json`; what is absent has the value that transformers gives it.
pub(super) fn read(config_json: Value) -> Result<ModelConfig, String> {
    let mut fields = Fields::of(config_json)?;
    fields.only("hidden_act", ACTIVATION)?;
    let heads = fields.peek("num_attention_heads");
    let sizes = fields.sizes(&Absent { kv_heads: heads, head_dim: None })?;
    let base = fields.common(config(&sizes))?;
    let rope = fields.rope(base.rope.theta)?;
    fields.finish()?;
    Ok(ModelConfig { rope, sliding_rope: rope, ..base })
}

/// The `config.json` that transformers reads.
pub(super) fn write(config: &ModelConfig, dtype: &str) -> Value {
    let mut fields = written(config, dtype);
    fields.extend([
        ("hidden_act".into(), json!(ACTIVATION)),
        ("attention_bias".into(), json!(false)),
        ("mlp_bias".into(), json!(false)),
    ]);
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published file of Llama-3.1-8B.
    const PUBLISHED_8B: &str = r#"{"architectures":["LlamaForCausalLM"],"attention_bias":false,
        "attention_dropout":0.0,"bos_token_id":128000,"eos_token_id":128001,"hidden_act":"silu",
        "hidden_size":4096,"initializer_range":0.02,"intermediate_size":14336,
        "max_position_embeddings":131072,"mlp_bias":false,"model_type":"llama",
        "num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"pretraining_tp":1,
        "rms_norm_eps":1e-05,"rope_scaling":{"factor":8.0,"low_freq_factor":1.0,
        "high_freq_factor":4.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},
        "rope_theta":500000.0,"tie_word_embeddings":false,"torch_dtype":"bfloat16",
        "transformers_version":"4.43.0.dev0","use_cache":true,"vocab_size":128256}"#;

    #[test]
    fn the_published_file_is_the_published_model() {
        let read = ModelConfig::from_json(PUBLISHED_8B).unwrap();
        assert_eq!(read, (PUBLISHED[1].config)());
        // transformers 5's spelling, with everything in one object.
        let new = PUBLISHED_8B
            .replace("\"rope_theta\":500000.0,", "")
            .replace("\"rope_scaling\":{", "\"rope_parameters\":{\"rope_theta\":500000.0,");
        assert_eq!(ModelConfig::from_json(&new).unwrap(), read);
    }

    #[test]
    fn refuses_by_name() {
        for (from, to, says) in [
            ("\"attention_bias\":false", "\"attention_bias\":true", "attention_bias = true"),
            ("\"mlp_bias\":false", "\"mlp_bias\":true", "mlp_bias = true"),
            ("\"silu\"", "\"relu\"", "hidden_act `relu`"),
            ("\"llama3\"", "\"dynamic\"", "rope_type = \"dynamic\""),
            ("\"low_freq_factor\":1.0,", "", "rope_scaling: `low_freq_factor` is missing"),
            ("\"low_freq_factor\":1.0", "\"low_freq_factor\":4.0", "must be positive"),
            ("\"factor\":8.0", "\"factor\":8.0,\"beta_fast\":32", "beta_fast = 32"),
            ("\"num_attention_heads\":32", "\"num_attention_heads\":24", "hidden_size = 4096"),
            ("\"num_attention_heads\":32", "\"num_attention_heads\":0", "num_attention_heads = 0"),
            ("\"num_key_value_heads\":8", "\"num_key_value_heads\":5", "not a multiple"),
            ("\"pretraining_tp\":1", "\"residual_multiplier\":0.2", "residual_multiplier = 0.2"),
            ("\"pretraining_tp\":1", "\"sliding_window\":4096", "sliding_window = 4096"),
            (
                "\"pretraining_tp\":1",
                "\"rope_parameters\":{\"rope_type\":\"default\"}",
                "rope_scaling and rope_parameters differ",
            ),
        ] {
            let message = ModelConfig::from_json(&PUBLISHED_8B.replacen(from, to, 1)).unwrap_err();
            assert!(message.contains(says), "{message:?} does not name {says:?}");
        }
    }
}
