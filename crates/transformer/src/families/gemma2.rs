//! Gemma-2 (arXiv 2408.00118): a norm before and after both parts of a block, soft-capped scores and logits, embeddings scaled
//! by √d_model, a tied head, and windows in every other layer.

use serde_json::{Value, json};

use super::{
    Family, Published, Sizes,
    fields::{Absent, Fields, whole, written},
    plain,
};
use crate::{BlockNorms, Gain, LayerType, MlpActivation, ModelConfig, config::MOST_LAYERS};

/// The one activation of its MLP, as Hugging Face names it.
pub(super) const ACTIVATION: &str = "gelu_pytorch_tanh";

/// Table 1 of the report, and `query_pre_attn_scalar` from the published files.
pub(super) static PUBLISHED: [Published; 3] = [
    Published {
        name: "gemma-2-2b",
        config: || config(&Sizes::new(256_000, [2304, 9216, 26], [8, 4, 256])),
    },
    Published {
        name: "gemma-2-9b",
        config: || config(&Sizes::new(256_000, [3584, 14_336, 42], [16, 8, 256])),
    },
    Published {
        name: "gemma-2-27b",
        config: || {
            let sizes = Sizes::new(256_000, [4608, 36_864, 46], [32, 16, 128]);
            ModelConfig { query_pre_attn_scalar: 144.0, ..config(&sizes) }
        },
    },
];

/// Gemma-2 of these sizes, unchecked. Attention is scaled by `head_dim^-½`.
pub(super) fn config(sizes: &Sizes) -> ModelConfig {
    ModelConfig {
        block_norms: BlockNorms::BeforeAndAfter,
        gain: Gain::OnePlusWeight,
        activation: MlpActivation::GeluTanh,
        tie_word_embeddings: true,
        embedding_scale: (sizes.hidden_size as f64).sqrt(),
        attn_logit_softcapping: Some(50.0),
        final_logit_softcapping: Some(30.0),
        sliding_window: Some(4096),
        layer_types: alternating(sizes.num_hidden_layers.min(MOST_LAYERS)),
        max_position_embeddings: 8192,
        pad_token_id: Some(0),
        bos_token_id: Some(2),
        eos_token_ids: vec![1],
        ..plain(Family::Gemma2, sizes)
    }
}

/// Even layers slide and odd ones see everything.
fn alternating(layers: usize) -> Vec<LayerType> {
    let pair = [LayerType::SlidingAttention, LayerType::FullAttention];
    pair.into_iter().cycle().take(layers).collect()
}

/// Maps a `config.json`; what is absent has the value that transformers gives it.
pub(super) fn read(config_json: Value) -> Result<ModelConfig, String> {
    let mut fields = Fields::of(config_json)?;
    activation(&mut fields)?;
    let sizes = fields.sizes(&Absent { kv_heads: None, head_dim: Some(256) })?;
    let base = fields.common(config(&sizes))?;
    let rope = fields.rope(base.rope.theta)?;
    let read = ModelConfig {
        query_pre_attn_scalar: fields.or("query_pre_attn_scalar", 256.0)?,
        attn_logit_softcapping: fields
            .nullable("attn_logit_softcapping", base.attn_logit_softcapping)?,
        final_logit_softcapping: fields
            .nullable("final_logit_softcapping", base.final_logit_softcapping)?,
        sliding_window: fields.optional("sliding_window")?.or(base.sliding_window),
        layer_types: fields.or("layer_types", base.layer_types.clone())?,
        rope,
        sliding_rope: rope,
        ..base
    };
    fields.finish()?;
    Ok(read)
}

/// Takes both names of the activation; published files hold both, and transformers reads `hidden_activation`.
pub(super) fn activation(fields: &mut Fields) -> Result<(), String> {
    fields.only("hidden_activation", ACTIVATION)?;
    fields.only("hidden_act", ACTIVATION)
}

/// The `config.json` that transformers reads.
pub(super) fn write(config: &ModelConfig, dtype: &str) -> Value {
    let mut fields = written(config, dtype);
    fields.extend([
        ("query_pre_attn_scalar".into(), whole(config.query_pre_attn_scalar)),
        ("attn_logit_softcapping".into(), json!(config.attn_logit_softcapping)),
        ("final_logit_softcapping".into(), json!(config.final_logit_softcapping)),
        ("sliding_window".into(), json!(config.sliding_window)),
        ("layer_types".into(), json!(config.layer_types)),
        ("hidden_activation".into(), json!(ACTIVATION)),
        ("attention_bias".into(), json!(false)),
    ]);
    Value::Object(fields)
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
        assert_eq!((config.rope.theta, config.embedding_scale), (10_000.0, 4.0));
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
        let sizes = Sizes::new(64, [16, 32, 3], [4, 2, 8]);
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
            ("gemma2", "mamba", "model_type `mamba`"),
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
            ("\"head_dim\":8", "\"head_dim\":8,\"attn_sharpness\":2.0", "attn_sharpness = 2.0"),
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
