//! Five steps of FPO from the crates alone, without the trainer: the reference once, then forward pass, D, loss, backward pass and
//! a plain gradient step on the policy.
//!
//! `cargo run --release -p fpo-tests --example fpo_step`

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Distribution, Gradients, Int, Tensor},
};
use fpo_data::{PairBatch, Pooling, TokenizedPair, TokenizedResponse};
use fpo_losses::{PerResponse, feature_distance, fpo, mean_loss};
use fpo_ops::{Activation, Encoder, Normalization, pooled_features};
use fpo_transformer::{Family, FlatRows, Input, LanguageModel, Site, Sizes, weights};

const SITE: Site = Site::resid_post(1);
const K: usize = 8;

/// Average log-probability per token `[2 · pairs]` and pooled features `[2 · pairs, d_sae]` of a batch, chosen rows first.
fn read(model: &LanguageModel, encoder: &Encoder, pairs: &PairBatch) -> (Tensor<1>, Tensor<2>) {
    let (batch, device) = (&pairs.batch, &model.device());
    let ints = |values: Vec<i32>| Tensor::<1, Int>::from_ints(values.as_slice(), device);
    let rows = FlatRows::new(&batch.places, device);
    let output = model.forward(Input::flat(ints(batch.tokens.clone()), rows), &[SITE]);
    let rows = |x: Tensor<3>, positions: Vec<i32>| x.flatten::<2>(0, 1).select(0, ints(positions));
    // Logits are never formed, and only the positions that predict a response reach the head.
    let hidden = rows(output.hidden_states, batch.predicting_positions());
    let log_probs = model.head().log_probs(hidden, ints(batch.targets()));
    let (mut averages, mut start) = (Vec::new(), 0);
    for count in batch.response_counts() {
        averages.push(log_probs.clone().slice(start..start + count).mean());
        start += count;
    }
    let pooled = batch.positions(Pooling::Predicting, &[]);
    let resid = rows(output.sites[0].clone(), pooled.flat.clone());
    (Tensor::cat(averages, 0), pooled_features(resid, encoder, &pooled.counts))
}

/// `w ← w − 0.5 · gradient` for every parameter.
struct Descend(Gradients);

impl ModuleMapper for Descend {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = param.val().grad_remove(&mut self.0) else { return param };
        param.map(|w| (w.without_autodiff() - gradient * 0.5).autodiff().require_grad())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex();
    device.seed(0);
    let sizes = Sizes {
        vocab_size: 64,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
    };
    let config = Family::Gemma2.config(&sizes)?;
    let reference = weights::random(&config, 0, &device)?;
    let mut policy = weights::random(&config, 0, &device.clone().autodiff())?;
    let encoder = Encoder {
        normalization: Normalization::None,
        w_enc: Tensor::random([32, 128], Distribution::Normal(0.0, 0.3), &device),
        b_enc: Tensor::zeros([128], &device),
        activation: Activation::JumpRelu { threshold: Tensor::full([128], 0.01, &device) },
    };
    let response = |tokens: &[u32]| TokenizedResponse { tokens: tokens.to_vec(), prompt_len: 3 };
    let pair = |id, chosen: &[u32], rejected: &[u32]| TokenizedPair {
        id,
        chosen: response(chosen),
        rejected: response(rejected),
    };
    let pairs = [
        pair(0, &[2, 9, 4, 11, 12, 1], &[2, 9, 4, 30, 1]),
        pair(1, &[2, 7, 7, 21, 1], &[2, 7, 7, 40, 41, 42, 1]),
    ];
    let views: Vec<_> = pairs.iter().map(TokenizedPair::view).collect();
    let batch = PairBatch::new(&views)?;

    // Offline: the reference is read once and never needed again.
    let (reference_log_probs, reference_features) = read(&reference, &encoder, &batch);
    let reference_log_probs = PerResponse::split(reference_log_probs);
    for step in 1..=5 {
        let (log_probs, features) = read(&policy, &encoder, &batch);
        let distance = feature_distance(features, reference_features.clone(), K, None);
        let (log_probs, distance) = (PerResponse::split(log_probs), PerResponse::split(distance));
        let losses = fpo(log_probs, reference_log_probs.clone(), distance.clone(), 0.1, 0.5, true);
        let (loss, margin) = (mean_loss(losses.clone()), losses.rewards.margin().mean());
        policy = policy.map(&mut Descend(loss.backward()));
        let [loss, margin, d] =
            [loss, margin, distance.chosen.mean()].map(|x| x.into_scalar::<f32>());
        println!("step {step}: loss {loss:.5}, reward margin {margin:.5}, D of chosen {d:.5}");
    }
    Ok(())
}
