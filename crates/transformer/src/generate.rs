//! Sampling continuations of a batch of prompts with a key-value cache.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Gemma2, cache::LayerCache};

/// How to continue a prompt.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// At most so many tokens, the stop token included.
    pub max_new_tokens: usize,
    /// 0 takes the most likely token, 1 samples from the model's own distribution.
    pub temperature: f64,
    /// Samples among the `k` most likely tokens alone.
    pub top_k: Option<usize>,
    /// Samples among the most likely tokens whose probabilities first add up to `p`.
    pub top_p: Option<f64>,
    /// The same seed, prompts and options give the same tokens.
    pub seed: u64,
    /// Tokens that end an answer; the configuration's `eos_token_id` where empty.
    pub stop_tokens: Vec<u32>,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            temperature: 1.0,
            top_k: None,
            top_p: None,
            seed: 0,
            stop_tokens: Vec::new(),
        }
    }
}

/// One continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// Without the prompt, without the stop token.
    pub tokens: Vec<u32>,
    /// Entropy of the model's distribution (at temperature 1) at every sampled position, in nats;
    /// one more than `tokens` where a stop token was sampled.
    pub entropies: Vec<f32>,
    /// Whether a stop token ended it, rather than `max_new_tokens`.
    pub stopped: bool,
}

/// Continues every prompt; rows of unequal length are padded on the left inside.
///
/// # Errors
/// A prompt is empty, holds a token beyond the vocabulary, or is too long for the model's positions.
pub fn generate(
    model: &Gemma2,
    prompts: &[Vec<u32>],
    options: &GenerationOptions,
) -> Result<Vec<Generated>, Error> {
    for (index, prompt) in prompts.iter().enumerate() {
        check_prompt(model, index, prompt, options.max_new_tokens)?;
    }
    if prompts.is_empty() || options.max_new_tokens == 0 {
        return Ok(vec![Generated::default(); prompts.len()]);
    }
    let config = model.config();
    let device = model.device();
    let stop_tokens = match options.stop_tokens.as_slice() {
        [] => config.eos_token_ids.as_slice(),
        some => some,
    };
    let mut samplers: Vec<_> = (0..prompts.len())
        .map(|row| {
            // A stream for each row, so that an answer doesn't depend on its neighbours.
            let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
            rng.set_stream(row as u64);
            rng
        })
        .collect();

    let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let padding: Vec<usize> = prompts.iter().map(|p| width - p.len()).collect();
    let mut caches: Vec<LayerCache> =
        (0..config.num_hidden_layers).map(|_| LayerCache::new(&padding)).collect();
    let mut results = vec![Generated::default(); prompts.len()];

    let mut tokens: Vec<u32> = Vec::with_capacity(prompts.len() * width);
    for (prompt, &pad) in prompts.iter().zip(&padding) {
        tokens.extend(std::iter::repeat_n(config.pad_token_id, pad).chain(prompt.iter().copied()));
    }
    let mut positions: Vec<usize> =
        padding.iter().flat_map(|&pad| (0..width).map(move |t| t.saturating_sub(pad))).collect();
    for step in 0..options.max_new_tokens {
        let input = int_tensor(&tokens, [prompts.len(), tokens.len() / prompts.len()], &device);
        let hidden = model.forward_cached(input, &positions, &mut caches);
        let [rows, new, d_model] = hidden.dims();
        let last = hidden.slice([0..rows, new - 1..new, 0..d_model]).reshape([rows, d_model]);
        let logits = to_f32(model.logits(last));

        tokens.clear();
        positions.clear();
        for (row, logits) in logits.chunks_exact(config.vocab_size).enumerate() {
            let result = &mut results[row];
            let mut next = config.pad_token_id;
            if !result.stopped {
                let probabilities = softmax(logits, 1.0);
                result.entropies.push(entropy(&probabilities));
                next = choose(logits, options, &mut samplers[row]);
                if stop_tokens.contains(&next) {
                    result.stopped = true;
                } else {
                    result.tokens.push(next);
                }
            }
            tokens.push(next);
            positions.push(width + step - padding[row]);
        }
        if step + 1 == options.max_new_tokens || results.iter().all(|r| r.stopped) {
            break;
        }
    }
    Ok(results)
}

fn check_prompt(model: &Gemma2, index: usize, prompt: &[u32], new: usize) -> Result<(), Error> {
    let config = model.config();
    let fail = |message| Err(Error::Prompt { index, message });
    if prompt.is_empty() {
        return fail("has no tokens".into());
    }
    if let Some(id) = prompt.iter().find(|&&id| id as usize >= config.vocab_size) {
        return fail(format!(
            "token {id} is beyond the model's vocabulary of {}",
            config.vocab_size
        ));
    }
    let (length, most) = (prompt.len() + new, config.max_position_embeddings);
    if length > most {
        return fail(format!(
            "{} tokens and {new} new ones are more than the model's {most} positions",
            prompt.len()
        ));
    }
    Ok(())
}

fn int_tensor(tokens: &[u32], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    let values: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn to_f32(x: Tensor<2>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// Softmax of `logits / temperature`.
fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights: Vec<f64> =
        logits.iter().map(|&l| (f64::from(l - max) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= sum);
    weights
}

fn entropy(probabilities: &[f64]) -> f32 {
    let terms = probabilities.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln());
    terms.sum::<f64>() as f32
}

fn choose(logits: &[f32], options: &GenerationOptions, rng: &mut ChaCha8Rng) -> u32 {
    if options.temperature <= 0.0 {
        // The first of equals, as argmax does elsewhere.
        let best = logits
            .iter()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (i, &l)| if l > best.1 { (i, l) } else { best });
        return best.0 as u32;
    }
    let mut candidates: Vec<(usize, f64)> =
        softmax(logits, options.temperature).into_iter().enumerate().collect();
    if options.top_k.is_some() || options.top_p.is_some() {
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        candidates.truncate(options.top_k.unwrap_or(usize::MAX).max(1));
        if let Some(p) = options.top_p {
            let mut sum = 0.0;
            let within = candidates.iter().take_while(|(_, w)| {
                let before = sum;
                sum += w;
                before < p
            });
            let keep = within.count().max(1);
            candidates.truncate(keep);
        }
    }
    let total: f64 = candidates.iter().map(|(_, w)| w).sum();
    let mut point = rng.random::<f64>() * total;
    for &(token, weight) in &candidates {
        point -= weight;
        if point < 0.0 {
            return token as u32;
        }
    }
    // Rounding can leave a sliver past the last one.
    candidates.iter().rev().find(|(_, w)| *w > 0.0).map_or(0, |(token, _)| *token as u32)
}
