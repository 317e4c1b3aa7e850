//! From logits to a token: repetition penalty, temperature, top-k, top-p.
//!
//! Defined and ordered like Hugging Face's logits processors.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::{Error, GenerationOptions};

impl GenerationOptions {
    /// Refuses invalid options.
    ///
    /// # Errors
    /// [`Error::Generation`], which names the option.
    pub fn check(&self) -> Result<(), Error> {
        let fail = |message: String| Err(Error::Generation(message));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return fail(format!("temperature = {} must not be negative", self.temperature));
        }
        if self.top_k == Some(0) {
            return fail("top_k = 0 leaves no token to choose from".into());
        }
        if let Some(p) = self.top_p
            && !(p > 0.0 && p <= 1.0)
        {
            return fail(format!("top_p = {p} must be above 0 and at most 1"));
        }
        let penalty = self.repetition_penalty;
        if !(penalty.is_finite() && penalty > 0.0) {
            return fail(format!("repetition_penalty = {penalty} must be positive; 1 is none"));
        }
        Ok(())
    }
}

/// Divides the positive logits of the tokens in `seen` by `penalty` and multiplies the negative ones, once per token however
/// often it occurred (Keskar et al. 2019, arXiv 1909.05858; negative logits as in Hugging Face).
pub fn penalise(logits: &mut [f32], seen: impl IntoIterator<Item = u32>, penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let mut seen: Vec<u32> = seen.into_iter().collect();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        let logit = &mut logits[token as usize];
        let value = f64::from(*logit);
        *logit = if value < 0.0 { value * penalty } else { value / penalty } as f32;
    }
}

/// The tokens that may be sampled and their probabilities, which sum to 1: the distribution of `logits / temperature`, reduced to
/// the `top_k` most likely tokens, then to the fewest of them whose probabilities reach `top_p`. At temperature 0 only the most
/// likely token; the first on ties.
pub fn candidates(logits: &[f32], options: &GenerationOptions) -> Vec<(u32, f64)> {
    if options.temperature <= 0.0 {
        return vec![(most_likely(logits), 1.0)];
    }
    let probabilities = softmax(logits, options.temperature).into_iter().enumerate();
    let mut candidates: Vec<(u32, f64)> = probabilities.map(|(t, p)| (t as u32, p)).collect();
    if options.top_k.is_some() || options.top_p.is_some() {
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    if let Some(&(token, _)) = options.top_k.and_then(|k| candidates.get(k.max(1) - 1)) {
        // Ties with the k-th stay.
        let smallest = logits[token as usize];
        candidates.retain(|(token, _)| logits[*token as usize] >= smallest);
        normalise(&mut candidates);
    }
    if let Some(p) = options.top_p {
        let mut before = 0.0;
        let reached = candidates.iter().take_while(|(_, probability)| {
            let within = before < p;
            before += probability;
            within
        });
        let kept = reached.count().max(1);
        candidates.truncate(kept);
        normalise(&mut candidates);
    }
    candidates
}

fn normalise(candidates: &mut [(u32, f64)]) {
    let sum: f64 = candidates.iter().map(|(_, p)| p).sum();
    candidates.iter_mut().for_each(|(_, p)| *p /= sum);
}

/// Samples one of the candidates.
pub(crate) fn sample(candidates: &[(u32, f64)], rng: &mut ChaCha8Rng) -> u32 {
    if let [(token, _)] = candidates {
        return *token;
    }
    let mut point = rng.random::<f64>();
    for &(token, probability) in candidates {
        point -= probability;
        if point < 0.0 {
            return token;
        }
    }
    // Rounding can leave the probabilities a little short of 1.
    candidates.iter().rev().find(|(_, p)| *p > 0.0).map_or(0, |(token, _)| *token)
}

/// The first on ties, like argmax elsewhere.
fn most_likely(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, &l)| if l > best.1 { (i, l) } else { best });
    best.0 as u32
}

/// Softmax of `logits / temperature`.
pub(crate) fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights: Vec<f64> =
        logits.iter().map(|&l| (f64::from(l - max) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= sum);
    weights
}

/// Shannon entropy in nats.
pub(crate) fn entropy(probabilities: &[f64]) -> f32 {
    let terms = probabilities.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln());
    terms.sum::<f64>() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oracle: arithmetic by hand.
    #[test]
    fn a_penalty_applies_once_and_lowers_either_sign() {
        let mut logits = [2.0, -2.0, 0.5, -0.5];
        penalise(&mut logits, [0, 1, 1, 0, 2], 2.0);
        assert_eq!(logits, [1.0, -4.0, 0.25, -0.5]);
    }

    #[test]
    fn invalid_options_are_refused() {
        let good = GenerationOptions::default();
        good.check().unwrap();
        for (bad, says) in [
            (GenerationOptions { temperature: -1.0, ..good.clone() }, "temperature"),
            (GenerationOptions { temperature: f64::NAN, ..good.clone() }, "temperature"),
            (GenerationOptions { top_k: Some(0), ..good.clone() }, "top_k"),
            (GenerationOptions { top_p: Some(0.0), ..good.clone() }, "top_p"),
            (GenerationOptions { top_p: Some(1.5), ..good.clone() }, "top_p"),
            (GenerationOptions { repetition_penalty: 0.0, ..good.clone() }, "repetition_penalty"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }
}
