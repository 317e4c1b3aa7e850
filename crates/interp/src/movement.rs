//! The features whose mean activation training changed most, with the tokens that activate them.

use anyhow::{Context, Result};
use burn::tensor::{Int, Tensor, TensorData};
use fpo_report::{FeatureMove, TokenContext};
use fpo_sae::Sae;
use fpo_transformer::{LanguageModel, Site};

use crate::{
    drift::{by_change, excerpt},
    reader::indices,
};

/// Features reported.
const FEATURES_SHOWN: usize = 12;
/// Text excerpts per feature.
const EXAMPLES_SHOWN: usize = 3;
/// Tokens of an excerpt on either side of the strongest one.
const CONTEXT: usize = 8;

/// Texts in which to look for examples of features.
pub struct Texts<'a> {
    /// The model after training.
    pub model: &'a LanguageModel,
    /// The autoencoder for `site`.
    pub sae: &'a Sae,
    /// Where the model's activations are read.
    pub site: Site,
    /// Token sequences to search for examples.
    pub sequences: Vec<&'a [u32]>,
    /// Tokens whose positions are left out: BOS, EOS and padding (fpo_data's `Tokenizer::special_ids`).
    pub excluded: &'a [u32],
    /// Decodes a single token.
    pub decode: &'a dyn Fn(u32) -> Result<String>,
}

/// Statistics and examples of a feature.
#[derive(Clone, Default)]
struct Found {
    /// Number of positions at which it is active.
    active: usize,
    /// Excerpts around its strongest position in a text, with the activation there; strongest first.
    examples: Vec<(f32, TokenContext)>,
}

impl Texts<'_> {
    /// The features whose mean pooled activation changed most from `before` to `after` (one value per feature), largest change
    /// first.
    ///
    /// # Errors
    /// A token can't be decoded.
    pub fn moved(&self, before: &[f64], after: &[f64]) -> Result<Vec<FeatureMove>> {
        let mut order = by_change(self.sae.d_sae(), |i| after[i] - before[i]);
        order.truncate(FEATURES_SHOWN);
        let mut found = vec![Found::default(); order.len()];
        let mut seen = 0;
        for tokens in &self.sequences {
            let kept: Vec<bool> = tokens.iter().map(|t| !self.excluded.contains(t)).collect();
            seen += kept.iter().filter(|kept| **kept).count();
            let features = self.features(tokens, &order)?;
            for (slot, found) in found.iter_mut().enumerate() {
                let value = |t: usize| if kept[t] { features[t * order.len() + slot] } else { 0.0 };
                self.add(found, tokens, (0..tokens.len()).map(value).collect())?;
            }
        }
        let moves = order.iter().zip(found).map(|(&index, found)| FeatureMove {
            index,
            before: before[index],
            after: after[index],
            density: Some(found.active as f64 / seen.max(1) as f64),
            examples: found.examples.into_iter().map(|(_, context)| context).collect(),
        });
        Ok(moves.collect())
    }

    /// The `wanted` features at every token, `[tokens, wanted]` flattened.
    fn features(&self, tokens: &[u32], wanted: &[usize]) -> Result<Vec<f32>> {
        let device = self.model.device();
        let ids: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
        let input = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, tokens.len()]), &device);
        let columns = indices(wanted.iter().map(|&i| i as i32).collect(), &device);
        let activations = self.model.activations(input, &[self.site]).into_iter().next();
        let x = activations.context("a site gives one tensor")?;
        let [_, count, width] = x.dims();
        let features = self.sae.encode(x.reshape([count, width])).select(1, columns);
        Ok(features.into_data().iter::<f32>().collect())
    }

    /// Adds a text, given a feature's activation at each token.
    fn add(&self, found: &mut Found, tokens: &[u32], values: Vec<f32>) -> Result<()> {
        found.active += values.iter().filter(|value| **value > 0.0).count();
        let strongest = values
            .iter()
            .enumerate()
            .fold((0, 0.0), |best, (t, &value)| if value > best.1 { (t, value) } else { best });
        if strongest.1 <= 0.0 {
            return Ok(());
        }
        let range = excerpt(strongest.0, CONTEXT, tokens.len());
        let texts = tokens[range.clone()].iter().map(|&token| (self.decode)(token));
        let context = TokenContext {
            tokens: texts.collect::<Result<_>>()?,
            activations: values[range].to_vec(),
        };
        found.examples.push((strongest.1, context));
        found.examples.sort_by(|a, b| b.0.total_cmp(&a.0));
        found.examples.dedup_by(|a, b| a.1.tokens == b.1.tokens);
        found.examples.truncate(EXAMPLES_SHOWN);
        Ok(())
    }
}
