//! The tokens that a feature promotes: its decoder direction times the unembedding.

use fpo_sae::Sae;
use fpo_transformer::{LanguageModel, Site, SiteKind};

use super::{Bar, TokenLogit, histogram};
use crate::reader::indices;

/// Features per block, which bounds the size of `[features, vocabulary]`.
const FEATURES: usize = 128;
/// Bars in the histogram of a feature's logits.
const BARS: usize = 50;

/// A feature's effect on the logits.
pub struct Effect {
    pub promoted: Vec<TokenLogit>,
    pub suppressed: Vec<TokenLogit>,
    pub bars: Vec<Bar>,
}

/// The direct effect of each feature: its decoder direction, times the gains of the norms in between, times the
/// unembedding. Leaves out the normalisation and the soft-cap, which depend on the token.
pub fn effects(
    sae: &Sae,
    model: &LanguageModel,
    site: Site,
    features: &[usize],
    count: usize,
) -> Vec<Effect> {
    let device = model.device();
    let unembedding = model.unembedding();
    let mut found = Vec::with_capacity(features.len());
    for features in features.chunks(FEATURES) {
        let rows = indices(features.iter().map(|&i| i as i32).collect(), &device);
        let mut directions = sae.w_dec.clone().select(0, rows);
        if site.kind == SiteKind::AttnZ
            && let Some(block) = model.model.layers.get(site.layer)
        {
            let output = block.self_attn.o_proj.weight.val().transpose();
            directions = directions.matmul(output);
            if let Some(norm) = block.after_attention() {
                directions = directions * norm.gain().unsqueeze();
            }
        }
        let directions = directions * model.model.norm.gain().unsqueeze();
        let logits = unembedding.columns(|rows| directions.clone().matmul(rows.transpose()));
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let vocabulary = logits.len() / features.len();
        found.extend(logits.chunks_exact(vocabulary).map(|logits| effect(logits, count)));
    }
    found
}

fn effect(logits: &[f32], count: usize) -> Effect {
    let count = count.min(logits.len());
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let named = |order: &[u32]| {
        let token = |&token: &u32| TokenLogit { token, logit: logits[token as usize] };
        order.iter().map(token).collect::<Vec<_>>()
    };
    if count < order.len() {
        order.select_nth_unstable_by(count, by_logit);
    }
    order[..count].sort_by(by_logit);
    let promoted = named(&order[..count]);
    let least = |a: &u32, b: &u32| by_logit(b, a);
    if count < order.len() {
        order.select_nth_unstable_by(count, least);
    }
    order[..count].sort_by(least);
    Effect { promoted, suppressed: named(&order[..count]), bars: histogram::bars(logits, BARS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promoted_and_suppressed_tokens_are_sorted() {
        let found = effect(&[0.5, -2.0, 3.0, 0.0, 3.0, -1.0], 2);
        let tokens = |list: &[TokenLogit]| list.iter().map(|t| t.token).collect::<Vec<_>>();
        assert_eq!(tokens(&found.promoted), [2, 4]);
        assert_eq!(tokens(&found.suppressed), [1, 5]);
        assert_eq!(effect(&[1.0, 2.0], 9).suppressed.len(), 2);
    }
}
