//! A small model with random weights, and texts for it.

use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_transformer::{LanguageModel, ModelConfig, Piece};
use serde_json::json;

/// Three layers, a window of four tokens, soft-caps that bend.
pub fn config() -> ModelConfig {
    let config = json!({
        "model_type": "gemma2", "vocab_size": 61, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "query_pre_attn_scalar": 6, "sliding_window": 4, "max_position_embeddings": 64,
        "attn_logit_softcapping": 4.0, "final_logit_softcapping": 8.0,
    });
    ModelConfig::from_json(&config.to_string()).unwrap()
}

/// A random model whose norms have random gains too, and whose blocks outweigh the embedding: else a
/// tied head only repeats the last token.
pub fn model(config: &ModelConfig) -> LanguageModel {
    let mut random = Random(42);
    LanguageModel::build(config, &Device::flex(), &mut |Piece { name, shape, .. }| {
        let (offset, scale) = match shape.len() {
            1 if *name == "model.norm.weight" => (4.0, 1.0),
            1 => (0.0, 0.5),
            _ if name.contains("embed") => (0.0, 0.2),
            _ => (0.0, 2.2 / (shape[1] as f32).sqrt()),
        };
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|_| offset + scale * random.signed()).collect();
        Ok(TensorData::new(values, shape.to_vec()))
    })
    .unwrap()
}

/// A beginning-of-sequence token and random ones after it.
pub fn text(seed: u64, length: usize) -> Vec<u32> {
    let mut random = Random(seed);
    let rest = std::iter::repeat_with(|| 3 + random.below(58) as u32);
    std::iter::once(2).chain(rest).take(length).collect()
}

pub fn tokens(rows: &[Vec<u32>]) -> Tensor<2, Int> {
    let shape = [rows.len(), rows[0].len()];
    let ids: Vec<i32> = rows.iter().flatten().map(|&id| id as i32).collect();
    Tensor::from_data(TensorData::new(ids, shape), &Device::flex())
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Between −1 and 1.
    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
