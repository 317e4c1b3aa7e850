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

/// A prompt to continue, with what is its own among the prompts of a batch.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Beside the seed, what its tokens are sampled from; usually its index in a list.
    pub stream: u64,
    /// The most tokens to generate, stop token included.
    pub max_new_tokens: usize,
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
    let request = |(prompt, stream): (&Vec<u32>, u64)| Request {
        prompt: prompt.clone(),
        stream,
        max_new_tokens: options.max_new_tokens,
    };
    let streams = (0..).map(|row| options.first_prompt.wrapping_add(row));
    let requests = prompts.iter().zip(streams).map(request).collect();
    let mut generation = Generation::new(model, requests, options)?;
    while let Some(tokens) = generation.step()? {
        tokens.into_iter().for_each(|(row, token)| on_token(row, token));
    }
    Ok(generation.finish())
}

/// Prompts being continued, token by token: [`Self::step`] until it returns `None`, or for as long as it is wanted.
pub struct Generation<'a> {
    model: &'a LanguageModel,
    options: &'a GenerationOptions,
    stop_tokens: &'a [u32],
    rows: Vec<Row>,
    caches: Vec<LayerCache>,
    /// Tokens of each row that no key has been computed of yet, and their positions.
    tokens: Vec<u32>,
    positions: Vec<usize>,
    /// Length of the longest prompt, and steps since.
    width: usize,
    steps: usize,
}

struct Row {
    request: Request,
    padding: usize,
    /// One stream per row, so that a response doesn't depend on its neighbours.
    rng: ChaCha8Rng,
    result: Generated,
}

impl Row {
    fn is_done(&self) -> bool {
        self.result.stopped || self.result.tokens.len() >= self.request.max_new_tokens
    }
}

impl<'a> Generation<'a> {
    /// Starts to continue every prompt. Of the options, `max_new_tokens` and `first_prompt` are the requests' own.
    ///
    /// # Errors
    /// As [`generate`].
    pub fn new(
        model: &'a LanguageModel,
        requests: Vec<Request>,
        options: &'a GenerationOptions,
    ) -> Result<Self, Error> {
        options.check()?;
        let config = model.config();
        for (index, request) in requests.iter().enumerate() {
            check_prompt(config, index, &request.prompt, request.max_new_tokens)?;
        }
        let width = requests.iter().map(|request| request.prompt.len()).max().unwrap_or(0);
        let row = |request: Request| {
            let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
            rng.set_stream(request.stream);
            let padding = width - request.prompt.len();
            Row { request, padding, rng, result: Generated::default() }
        };
        let rows: Vec<Row> = requests.into_iter().map(row).collect();
        let padding: Vec<usize> = rows.iter().map(|row| row.padding).collect();
        // Nothing attends to padding, so any token will do.
        let pad_token = config.pad_token_id.unwrap_or(0);
        let mut tokens: Vec<u32> = Vec::with_capacity(rows.len() * width);
        for row in &rows {
            tokens.extend(
                std::iter::repeat_n(pad_token, row.padding)
                    .chain(row.request.prompt.iter().copied()),
            );
        }
        let positions = padding
            .iter()
            .flat_map(|&pad| (0..width).map(move |t| t.saturating_sub(pad)))
            .collect();
        let caches = (0..config.num_hidden_layers).map(|_| LayerCache::new(&padding)).collect();
        let stop_tokens = match options.stop_tokens.as_slice() {
            [] => config.eos_token_ids.as_slice(),
            some => some,
        };
        Ok(Self { model, options, stop_tokens, rows, caches, tokens, positions, width, steps: 0 })
    }

    /// Samples one token for every prompt that hasn't ended, and returns those that aren't stop tokens, with their prompts'
    /// indexes; `None` once all have ended.
    ///
    /// # Errors
    /// Logits that are no numbers.
    pub fn step(&mut self) -> Result<Option<Vec<(usize, u32)>>, Error> {
        if self.rows.iter().all(Row::is_done) {
            return Ok(None);
        }
        let config = self.model.config();
        let pad_token = config.pad_token_id.unwrap_or(0);
        let shape = [self.rows.len(), self.tokens.len() / self.rows.len()];
        let input = int_tensor(&self.tokens, shape, &self.model.device());
        let hidden = self.model.forward_cached(input, &self.positions, &mut self.caches);
        let [rows, new, d_model] = hidden.dims();
        let last = hidden.slice([0..rows, new - 1..new, 0..d_model]).reshape([rows, d_model]);
        let mut logits = to_f32(self.model.head().logits(last));

        self.tokens.clear();
        self.positions.clear();
        let mut sampled = Vec::with_capacity(rows);
        let per_row = logits.chunks_exact_mut(config.vocab_size).zip(&mut self.rows);
        for (index, (logits, row)) in per_row.enumerate() {
            let mut next = pad_token;
            if !row.is_done() {
                if logits.iter().any(|&logit| logit.is_nan() || logit == f32::INFINITY) {
                    let message =
                        "the logits aren't finite; check the model's weights for NaN or infinity";
                    return Err(Error::Prompt { index, message: message.into() });
                }
                let result = &mut row.result;
                result.entropies.push(entropy(&softmax(logits, 1.0)));
                let seen = row.request.prompt.iter().chain(&result.tokens).copied();
                penalise(logits, seen, self.options.repetition_penalty);
                next = sample(&candidates(logits, self.options), &mut row.rng);
                if self.stop_tokens.contains(&next) {
                    result.stopped = true;
                } else {
                    result.tokens.push(next);
                    sampled.push((index, next));
                }
            }
            self.tokens.push(next);
            self.positions.push(self.width + self.steps - row.padding);
        }
        self.steps += 1;
        Ok(Some(sampled))
    }

    /// The continuations so far.
    pub fn finish(self) -> Vec<Generated> {
        self.rows.into_iter().map(|row| row.result).collect()
    }
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
