//! FLOPs of a training step, and what a device reaches in products and in memory.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::{DType, Device, Distribution, Tensor};
use fpo_device::sync;
use fpo_plan as plan;
use fpo_transformer::{LoraConfig, ModelConfig, Precision, Projection};

use crate::{
    lengths::{self, PairLengths},
    median,
};

/// The sizes that determine the matrix products of a step.
#[derive(Clone, Debug)]
pub(crate) struct Products<'a> {
    pub config: &'a ModelConfig,
    /// Pairs in the step; log-probabilities are those of the response tokens.
    pub pairs: &'a [PairLengths],
    /// Only these adapters are trained, if set.
    pub lora: Option<&'a LoraConfig>,
    /// A reference model is run beside the policy, for the token-level KL.
    pub second_model: bool,
    /// Features of the autoencoder that encodes the response positions, if any.
    pub d_sae: Option<usize>,
}

impl Products<'_> {
    /// FLOPs of one step; a multiply-add counts as two.
    ///
    /// Forward pass: linear layers at all tokens, and attention scores and weighted sums for each visible query-key pair, both of a
    /// prompt once; the head and the autoencoder's encoder at response positions. Backward pass: twice the forward product if both
    /// operands need a gradient, once if one of them is frozen. Recomputation and elementwise operations don't count.
    pub(crate) fn flops(&self) -> f64 {
        let c = self.config;
        let layers = c.num_hidden_layers as f64;
        let tokens = lengths::sum(self.pairs, PairLengths::computed) as f64;
        let response = lengths::sum(self.pairs, PairLengths::responses) as f64;
        let weights = |p| plan::sizes(c, p).into_iter().product::<usize>();
        let linear =
            layers * tokens * Projection::ALL.into_iter().map(weights).sum::<usize>() as f64;
        let adapters = self.lora.map_or(0.0, |lora| {
            let weights = |layer, p| {
                lora.rank(layer, p).unwrap_or(0) * plan::sizes(c, p).into_iter().sum::<usize>()
            };
            let layers = 0..c.num_hidden_layers;
            let weights = layers.flat_map(|layer| Projection::ALL.map(|p| weights(layer, p)));
            tokens * weights.sum::<usize>() as f64
        });
        let width = (c.num_attention_heads * c.head_dim) as f64;
        let attention = 2.0 * self.visible_pairs() * width;
        let head = response * (c.hidden_size * c.vocab_size) as f64;
        let encoder = self.d_sae.map_or(0.0, |d_sae| response * (c.hidden_size * d_sae) as f64);

        let frozen = if self.lora.is_some() { 2.0 } else { 3.0 };
        let policy = frozen * (linear + head) + 3.0 * (attention + adapters) + 2.0 * encoder;
        let second = if self.second_model { linear + attention + head } else { 0.0 };
        2.0 * (policy + second)
    }

    /// Number of query-key pairs inside the causal window, over all layers; queries of a prompt count once.
    fn visible_pairs(&self) -> f64 {
        let of_layer = |layer| {
            let window = self.config.window(layer).unwrap_or(usize::MAX);
            // The first `window` queries see 1, 2, … keys.
            let of_first = |queries: usize| {
                let window = window.min(queries);
                window * (window + 1) / 2 + (queries - window) * window
            };
            let of_pair = |&PairLengths { prompt, chosen, rejected }: &PairLengths| {
                of_first(prompt + chosen) + of_first(prompt + rejected) - of_first(prompt)
            };
            self.pairs.iter().map(|pair| of_pair(pair) as f64).sum::<f64>()
        };
        (0..self.config.num_hidden_layers).map(of_layer).sum()
    }
}

/// The matmul rate of a device in FLOP/s: the best over square matrices, in the data type that `precision` uses for products.
///
/// Sizes start at 1024 and double until one product takes at least 5 ms, so that launch overhead doesn't count.
///
/// # Errors
/// A device failure, such as too little memory.
pub fn matmul_rate(device: &Device, precision: Precision) -> Result<f64> {
    const LONG_ENOUGH: f64 = 5e-3;
    const LARGEST: usize = 8192;
    const RUNS: usize = 5;
    // By the step's own strategy.
    let (dtype, product): (_, fn(Tensor<2>, Tensor<2>) -> Tensor<2>) = match precision {
        Precision::Float32 => (DType::F32, fpo_ops::linear),
        Precision::Bf16Mixed => (DType::BF16, fpo_ops::linear_bf16),
    };
    let mut best = 0.0f64;
    let mut size = 1024;
    loop {
        let random = || {
            Tensor::<2>::random([size, size], Distribution::Normal(0.0, 1.0), device).cast(dtype)
        };
        let (a, b) = (random(), random());
        let mut times = Vec::with_capacity(RUNS);
        for run in 0..=RUNS {
            sync(device)?;
            let begun = Instant::now();
            drop(product(a.clone(), b.clone()));
            sync(device)?;
            if run > 0 {
                times.push(begun.elapsed().as_secs_f64());
            }
        }
        let seconds = median(times);
        best = best.max(2.0 * (size as f64).powi(3) / seconds);
        if seconds > LONG_ENOUGH || size == LARGEST {
            return Ok(best);
        }
        size *= 2;
    }
}

/// The memory rate of a device in bytes/s: the best of two passes over arrays that no cache holds, one by Burn that reads one array
/// and writes another, and AdamW's, which reads four and writes three.
///
/// # Errors
/// A device failure, such as too little memory.
pub fn memory_rate(device: &Device) -> Result<f64> {
    const LONG_ENOUGH: f64 = 5e-3;
    const ELEMENTS: [usize; 3] = [1 << 24, 1 << 25, 1 << 26];
    const RUNS: usize = 5;
    let by = fpo_ops::AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_scale: 1.0,
    };
    let mut best = 0.0f64;
    for elements in ELEMENTS {
        let array = || Tensor::<1>::ones([elements], device);
        let (gradient, mut state) = (array(), (array(), array(), array()));
        let mut times: [Vec<f64>; 2] = Default::default();
        for run in 0..=RUNS {
            sync(device)?;
            let begun = Instant::now();
            let scaled = gradient.clone() * 1.5;
            sync(device)?;
            let scaling = begun.elapsed().as_secs_f64();
            drop(scaled);
            let begun = Instant::now();
            let (p, m, v) = state;
            state = fpo_ops::adamw_step(p, gradient.clone(), m, v, run + 1, &by);
            sync(device)?;
            let moving = begun.elapsed().as_secs_f64();
            if run > 0 {
                times[0].push(scaling);
                times[1].push(moving);
            }
        }
        let times = times.map(median);
        for (seconds, accesses) in times.iter().zip([2.0, 7.0]) {
            best = best.max(accesses * (elements * size_of::<f32>()) as f64 / seconds);
        }
        if times.iter().all(|&seconds| seconds > LONG_ENOUGH) {
            break;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fpo_transformer::{Family, PublishedModel, Sizes};

    fn config(sliding_window: usize) -> ModelConfig {
        let sizes = Sizes {
            vocab_size: 50,
            hidden_size: 12,
            intermediate_size: 20,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 6,
        };
        ModelConfig {
            sliding_window: Some(sliding_window),
            ..Family::Gemma2.config(&sizes).unwrap()
        }
    }

    /// Counts product by product and position by position.
    fn brute_force(p: &Products) -> f64 {
        let c = p.config;
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let (d, ffn) = (c.hidden_size, c.intermediate_size);
        let (mut trained, mut frozen, mut second) = (0, 0, 0);
        let sequences = p.pairs.iter().flat_map(|pair| {
            [(pair.prompt, pair.chosen, true), (pair.prompt, pair.rejected, false)]
        });
        for (prompt, response, is_first) in sequences {
            for layer in 0..c.num_hidden_layers {
                for position in 0..prompt + response {
                    // The prompt of every second sequence is that of the one before.
                    let is_computed = is_first || position >= prompt;
                    let linear: [[usize; 2]; 7] =
                        [[d, q], [d, kv], [d, kv], [q, d], [d, ffn], [d, ffn], [ffn, d]];
                    for [inner, columns] in linear.into_iter().filter(|_| is_computed) {
                        let product = 2 * inner * columns;
                        second += product;
                        match p.lora {
                            None => trained += product,
                            Some(lora) => {
                                frozen += product;
                                trained += 2 * inner * lora.rank + 2 * lora.rank * columns;
                            }
                        }
                    }
                    for key in (0..=position).filter(|_| is_computed) {
                        if c.window(layer).is_none_or(|window| position - key < window) {
                            // A score and a weighted value per head.
                            trained += c.num_attention_heads * (2 * c.head_dim + 2 * c.head_dim);
                            second += c.num_attention_heads * (2 * c.head_dim + 2 * c.head_dim);
                        }
                    }
                }
            }
            for _position in 0..response {
                let head = 2 * d * c.vocab_size;
                second += head;
                if p.lora.is_some() {
                    frozen += head
                } else {
                    trained += head
                }
                frozen += p.d_sae.map_or(0, |d_sae| 2 * d * d_sae);
            }
        }
        (3 * trained + 2 * frozen + if p.second_model { second } else { 0 }) as f64
    }

    #[test]
    fn flops_match_a_brute_force_count() {
        let lora = LoraConfig { rank: 3, ..LoraConfig::default() };
        let pair = |prompt, chosen, rejected| PairLengths { prompt, chosen, rejected };
        let batches = [vec![pair(2, 5, 5); 3], vec![pair(2, 5, 1), pair(6, 1, 9), pair(1, 1, 1)]];
        for window in [1, 4, 7, 8, 4096] {
            let config = config(window);
            for lora in [None, Some(&lora)] {
                for (second_model, d_sae) in [(false, Some(30)), (true, None)] {
                    for pairs in &batches {
                        let products =
                            Products { config: &config, pairs, lora, second_model, d_sae };
                        assert_eq!(products.flops(), brute_force(&products), "{products:?}");
                    }
                }
            }
        }
    }

    /// The usual estimate, 6 · parameters · tokens, holds for short sequences in which every token belongs to the response.
    #[test]
    fn flops_are_about_six_times_parameters_times_tokens() {
        let config = "gemma-2-2b".parse::<PublishedModel>().unwrap().config();
        let products = Products {
            config: &config,
            pairs: &[PairLengths { prompt: 0, chosen: 64, rejected: 64 }; 2],
            lora: None,
            second_model: false,
            d_sae: None,
        };
        let estimate = 6.0 * plan::parameters(&config) as f64 * 4.0 * 64.0;
        assert!(
            (products.flops() / estimate - 1.0).abs() < 0.01,
            "{}",
            products.flops() / estimate
        );
    }
}
