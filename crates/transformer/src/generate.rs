//! Generation: continuations of a batch of prompts, with a key-value cache.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    Error, LanguageModel, ModelConfig,
    cache::LayerCache,
    sampling::{candidates, entropy, penalise, sample, softmax},
};

/// How to continue a prompt.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// The most tokens to generate, stop token included.
    pub max_new_tokens: usize,
    /// 0 is greedy; 1 samples from the model's own distribution.
    pub temperature: f64,
    /// Samples only from the `k` most likely tokens.
    pub top_k: Option<usize>,
    /// Samples only from the most likely tokens whose probabilities add up to `p`.
    pub top_p: Option<f64>,
    /// Divides the positive and multiplies the negative logits of tokens that already occurred in prompt or response; 1 is no
    /// penalty.
    pub repetition_penalty: f64,
    /// Same seed, prompts and options: same tokens.
    pub seed: u64,
    /// The first prompt's index in the whole list, when a long list is processed in parts: a response depends on the seed and
    /// its prompt's index, not on how the list was split.
    pub first_prompt: u64,
    /// Tokens that end a response; defaults to the configuration's `eos_token_id` if empty.
    pub stop_tokens: Vec<u32>,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            temperature: 1.0,
            top_k: None,
            top_p: None,
            repetition_penalty: 1.0,
            seed: 0,
            first_prompt: 0,
            stop_tokens: Vec::new(),
        }
    }
}

/// The continuation of one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// The response, without prompt and stop token.
    pub tokens: Vec<u32>,
    /// Entropy of the model's distribution (at temperature 1) at every sampled position, in nats. One more than `tokens` if a
    /// stop token was sampled.
    pub entropies: Vec<f32>,
    /// Whether it ended with a stop token rather than at `max_new_tokens`.
    pub stopped: bool,
}

/// Continues every prompt. Prompts of unequal length are padded on the left.
///
/// # Errors
/// A prompt that is empty, has a token beyond the vocabulary, or is too long for the model; invalid options.
pub fn generate(
    model: &LanguageModel,
    prompts: &[Vec<u32>],
    options: &GenerationOptions,
) -> Result<Vec<Generated>, Error> {
    generate_with(model, prompts, options, |_, _| {})
}

/// [`generate`], calling `on_token(prompt index, token)` for every token as it is sampled, stop tokens excepted.
///
/// # Errors
/// As [`generate`].
pub fn generate_with(
    model: &LanguageModel,
    prompts: &[Vec<u32>],
    options: &GenerationOptions,
    mut on_token: impl FnMut(usize, u32),
) -> Result<Vec<Generated>, Error> {
    options.check()?;
    check_prompts(model.config(), prompts, options.max_new_tokens)?;
    if prompts.is_empty() || options.max_new_tokens == 0 {
        return Ok(vec![Generated::default(); prompts.len()]);
    }
    let config = model.config();
    let (device, head) = (model.device(), model.head());
    let stop_tokens = match options.stop_tokens.as_slice() {
        [] => config.eos_token_ids.as_slice(),
        some => some,
    };
    let mut samplers: Vec<_> = (0..prompts.len())
        .map(|row| {
            // One stream per row, so that a response doesn't depend on its neighbours.
            let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
            rng.set_stream(options.first_prompt.wrapping_add(row as u64));
            rng
        })
        .collect();

    let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let padding: Vec<usize> = prompts.iter().map(|p| width - p.len()).collect();
    let mut caches: Vec<LayerCache> =
        (0..config.num_hidden_layers).map(|_| LayerCache::new(&padding)).collect();
    let mut results = vec![Generated::default(); prompts.len()];

    // Nothing attends to padding, so any token will do.
    let pad_token = config.pad_token_id.unwrap_or(0);
    let mut tokens: Vec<u32> = Vec::with_capacity(prompts.len() * width);
    for (prompt, &pad) in prompts.iter().zip(&padding) {
        tokens.extend(std::iter::repeat_n(pad_token, pad).chain(prompt.iter().copied()));
    }
    let mut positions: Vec<usize> =
        padding.iter().flat_map(|&pad| (0..width).map(move |t| t.saturating_sub(pad))).collect();
    for step in 0..options.max_new_tokens {
        let input = int_tensor(&tokens, [prompts.len(), tokens.len() / prompts.len()], &device);
        let hidden = model.forward_cached(input, &positions, &mut caches);
        let [rows, new, d_model] = hidden.dims();
        let last = hidden.slice([0..rows, new - 1..new, 0..d_model]).reshape([rows, d_model]);
        let mut logits = to_f32(head.logits(last));

        tokens.clear();
        positions.clear();
        for (row, logits) in logits.chunks_exact_mut(config.vocab_size).enumerate() {
            let result = &mut results[row];
            let mut next = pad_token;
            if !result.stopped {
                result.entropies.push(entropy(&softmax(logits, 1.0)));
                let seen = prompts[row].iter().chain(&result.tokens).copied();
                penalise(logits, seen, options.repetition_penalty);
                next = sample(&candidates(logits, options), &mut samplers[row]);
                if stop_tokens.contains(&next) {
                    result.stopped = true;
                } else {
                    result.tokens.push(next);
                    on_token(row, next);
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

/// Checks that a model can continue all of these prompts by `max_new_tokens`.
///
/// # Errors
/// [`Error::Prompt`] for the first prompt that it can't continue.
pub fn check_prompts(
    config: &ModelConfig,
    prompts: &[Vec<u32>],
    max_new_tokens: usize,
) -> Result<(), Error> {
    let mut numbered = prompts.iter().enumerate();
    numbered.try_for_each(|(index, prompt)| check_prompt(config, index, prompt, max_new_tokens))
}

fn check_prompt(
    config: &ModelConfig,
    index: usize,
    prompt: &[u32],
    new: usize,
) -> Result<(), Error> {
    let fail = |message| Err(Error::Prompt { index, message });
    if prompt.is_empty() {
        return fail("is empty".into());
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
            "{} tokens and {new} new ones exceed the model's {most} positions: shorten the prompt or generate fewer",
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
