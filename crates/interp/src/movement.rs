//! Which features a training moved most, and the tokens that activate them.

use anyhow::{Context, Result};
use burn::tensor::{Int, Tensor, TensorData};
use fpo_report::{FeatureMove, TokenContext};
use fpo_sae::Sae;
use fpo_transformer::{LanguageModel, Site};

/// Features shown.
const FEATURES_SHOWN: usize = 12;
/// Stretches of text shown per feature, and tokens on either side of the strongest.
const EXAMPLES_SHOWN: usize = 3;
const CONTEXT: usize = 8;

/// What features are looked up in.
pub struct Texts<'a> {
    /// The model after training.
    pub model: &'a LanguageModel,
    /// The autoencoder, and where it reads.
    pub sae: &'a Sae,
    /// Its site.
    pub site: Site,
    /// Token sequences to search for examples.
    pub sequences: Vec<&'a [u32]>,
    /// Tokens whose positions the autoencoder was not trained on.
    pub excluded: &'a [u32],
    /// The text of a token.
    pub decode: &'a dyn Fn(u32) -> Result<String>,
}

/// What was found of a feature.
#[derive(Clone, Default)]
struct Found {
    /// Positions at which it is active.
    active: usize,
    /// The strongest position of different texts, strongest first.
    examples: Vec<(f32, TokenContext)>,
}

impl Texts<'_> {
    /// The features whose mean pooled activation moved most from `before` to `after`, `[d_sae]` each.
    ///
    /// # Errors
    /// A token that can't be decoded.
    pub fn moved(&self, before: &[f64], after: &[f64]) -> Result<Vec<FeatureMove>> {
        let mut order: Vec<usize> = (0..self.sae.d_sae()).collect();
        let movement = |i: usize| (after[i] - before[i]).abs();
        order.sort_by(|&a, &b| movement(b).total_cmp(&movement(a)).then(a.cmp(&b)));
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

    /// Some features at every token, row by row.
    fn features(&self, tokens: &[u32], wanted: &[usize]) -> Result<Vec<f32>> {
        let device = self.model.device();
        let ids: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
        let input = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, tokens.len()]), &device);
        let columns: Vec<i32> = wanted.iter().map(|&i| i as i32).collect();
        let columns = TensorData::new(columns, [wanted.len()]);
        let columns = Tensor::<1, Int>::from_data(columns, &device);
        let activations = self.model.activations(input, &[self.site]).into_iter().next();
        let x = activations.context("a site gives one tensor")?;
        let [_, count, width] = x.dims();
        let features = self.sae.encode(x.reshape([count, width])).select(1, columns);
        Ok(features.into_data().iter::<f32>().collect())
    }

    /// Adds a text with a feature's activation on each of its tokens.
    fn add(&self, found: &mut Found, tokens: &[u32], values: Vec<f32>) -> Result<()> {
        found.active += values.iter().filter(|value| **value > 0.0).count();
        let strongest = values
            .iter()
            .enumerate()
            .fold((0, 0.0), |best, (t, &value)| if value > best.1 { (t, value) } else { best });
        if strongest.1 <= 0.0 {
            return Ok(());
        }
        let end = (strongest.0 + CONTEXT + 1).min(tokens.len());
        let range = strongest.0.saturating_sub(CONTEXT)..end;
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
