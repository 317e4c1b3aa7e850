//! Export to the files `batch-N.json` that SAEDashboard writes and Neuronpedia reads (`NeuronpediaDashboardBatch` of SAEDashboard
//! 0.8).

use serde_json::{Value, json};

use super::{Bar, Feature, TokenLogit};

/// Metadata of the exported files.
#[derive(Clone, Debug)]
pub struct Export {
    /// Name of the model.
    pub model_id: String,
    /// Layer of the site, from 0.
    pub layer: usize,
    /// Name of the autoencoder.
    pub sae_set: String,
    /// Name of the data.
    pub dataset: String,
    /// Number of rows read.
    pub prompts: usize,
    /// Tokens in the longest row.
    pub tokens_in_prompt: usize,
}

/// The contents of the files, with `size` features each. `text` decodes a token; `decoder` returns a feature's row of `W_dec`,
/// `[d_in]`.
pub fn batches(
    export: &Export,
    features: &[Feature],
    size: usize,
    text: impl Fn(u32) -> String,
    decoder: impl Fn(usize) -> Vec<f32>,
) -> Vec<Value> {
    let batch = |features: &[Feature]| {
        let features: Vec<Value> =
            features.iter().map(|f| feature(export, f, &text, &decoder(f.index))).collect();
        json!({
            "model_id": export.model_id,
            "layer": export.layer,
            "sae_set": export.sae_set,
            "sae_id_suffix": null,
            "features": features,
        })
    };
    features.chunks(size.max(1)).map(batch).collect()
}

fn feature(
    export: &Export,
    feature: &Feature,
    text: &impl Fn(u32) -> String,
    direction: &[f32],
) -> Value {
    let names = |list: &[TokenLogit]| list.iter().map(|t| text(t.token)).collect::<Vec<_>>();
    let values = |list: &[TokenLogit]| list.iter().map(|t| round(t.logit)).collect::<Vec<_>>();
    let middles = |bars: &[Bar]| bars.iter().map(|bar| round(bar.middle)).collect::<Vec<_>>();
    let counts = |bars: &[Bar]| bars.iter().map(|bar| bar.count).collect::<Vec<_>>();
    let activations = feature.activations.bars();
    let (neurons, weights, shares) = alignment(direction);
    let examples: Vec<Value> = feature
        .examples
        .iter()
        .map(|example| {
            json!({
                // SAEDashboard's marker for the top excerpts, which belong to no interval of activations.
                "bin_min": -1.0,
                "bin_max": round(feature.max),
                "bin_contains": -1.0,
                "tokens": example.tokens.iter().map(|&t| text(t)).collect::<Vec<_>>(),
                "values": example.activations.iter().map(|&a| round(a)).collect::<Vec<_>>(),
                "qualifying_token_index": example.strongest,
            })
        })
        .collect();
    json!({
        "feature_index": feature.index,
        "neuron_alignment_indices": neurons,
        "neuron_alignment_values": weights,
        "neuron_alignment_l1": shares,
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [],
        "correlated_features_l1": [],
        "correlated_features_pearson": [],
        "neg_str": names(&feature.suppressed),
        "neg_values": values(&feature.suppressed),
        "pos_str": names(&feature.promoted),
        "pos_values": values(&feature.promoted),
        "frac_nonzero": feature.density,
        "freq_hist_data_bar_values": middles(&activations),
        "freq_hist_data_bar_heights": counts(&activations),
        "logits_hist_data_bar_heights": counts(&feature.logits),
        "logits_hist_data_bar_values": middles(&feature.logits),
        "n_prompts_total": export.prompts,
        "n_tokens_in_prompt": export.tokens_in_prompt,
        "dataset": export.dataset,
        "decoder_weights_dist": [],
        "activations": examples,
        "vector": [],
    })
}

/// The three largest dimensions of a direction: indices, values, and shares of its L1 norm.
fn alignment(direction: &[f32]) -> (Vec<usize>, Vec<f64>, Vec<f64>) {
    let mut order: Vec<usize> = (0..direction.len()).collect();
    order.sort_by(|&a, &b| direction[b].abs().total_cmp(&direction[a].abs()).then(a.cmp(&b)));
    order.truncate(3);
    let total: f32 = direction.iter().map(|x| x.abs()).sum::<f32>().max(f32::MIN_POSITIVE);
    let weights = order.iter().map(|&i| round(direction[i])).collect();
    let shares = order.iter().map(|&i| round(direction[i].abs() / total)).collect();
    (order, weights, shares)
}

/// Rounds to three decimals, as SAEDashboard does.
fn round(x: f32) -> f64 {
    (f64::from(x) * 1e3).round() / 1e3
}
