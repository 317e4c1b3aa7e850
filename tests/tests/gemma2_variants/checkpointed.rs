//! With recomputed activations: the gradients of the plain pass.

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_transformer::{ForwardOutput, LanguageModel, Site, SiteKind};

use crate::common::{
    CASES, Named, all_sites, assert_equal_gradients, load, noise, padded, text, values,
};

/// Which outputs a loss depends on.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Hidden,
    Sites,
    Both,
}

/// Oracle: the plain pass, whose graph holds everything, to the bit.
#[test]
fn gradients_equal_the_plain_ones() {
    let device = Device::flex().autodiff();
    let rows = [text(1, 17), text(2, 9), text(3, 1)];
    for case in CASES {
        let model = load(case, &device);
        for loss in [Loss::Hidden, Loss::Sites, Loss::Both] {
            let sites = match loss {
                Loss::Hidden => vec![],
                _ => all_sites(&model),
            };
            check(&format!("{case}, {loss:?}"), &model, &rows, &sites, loss);
        }
    }
}

/// A loss on early sites alone leaves the layers after them, and the norm, without gradients.
#[test]
fn only_what_the_loss_depends_on_has_gradients() {
    let model = load("one_kv_head", &Device::flex().autodiff());
    for kind in [SiteKind::ResidPre, SiteKind::ResidPost, SiteKind::MlpOut, SiteKind::AttnZ] {
        let site = Site { kind, layer: 1 };
        let twice = [site, Site::resid_post(0), site];
        let found = check(&site.to_string(), &model, &[text(4, 12)], &twice, Loss::Sites);
        let later = |name: &&String| name.contains("layers.2.") || name.contains("layers.3.");
        assert_eq!(found.keys().find(later), None);
        assert!(!found.contains_key("model.norm.weight"));
        assert!(found.contains_key("model.embed_tokens.weight"));
    }
}

fn check(
    what: &str,
    model: &LanguageModel,
    rows: &[Vec<u32>],
    sites: &[Site],
    loss: Loss,
) -> BTreeMap<String, Vec<f32>> {
    let tokens = padded(rows, &model.device());
    let mut expected = BTreeMap::new();
    let plain = model.forward(tokens.clone(), sites);
    let plain_loss = loss_of(model, &plain, rows, loss);
    let plain_values = values(plain_loss.clone());
    Named::add(model, &plain_loss.backward(), &mut expected);

    let mut found = BTreeMap::new();
    let (output, tape) = model.forward_checkpointed(tokens, sites);
    let loss = loss_of(model, &output, rows, loss);
    assert_eq!(values(loss.clone()), plain_values, "{what}");
    let mut gradients = loss.backward();
    Named::add(model, &gradients, &mut found);
    Named::add_of_tape(tape, model, &mut gradients, &mut found);
    assert_equal_gradients(what, &found, &expected, 0.0);
    found
}

/// Log-probabilities through the tied head, and sites in random proportions, at real positions.
fn loss_of(
    model: &LanguageModel,
    output: &ForwardOutput,
    rows: &[Vec<u32>],
    loss: Loss,
) -> Tensor<1> {
    let device = model.device();
    let [_, width, d_model] = output.hidden_states.dims();
    let real =
        rows.iter().enumerate().flat_map(|(row, text)| row * width..row * width + text.len());
    let real: Vec<i32> = real.map(|at| at as i32).collect();
    let count = real.len();
    let int = |ids: Vec<i32>| Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &device);
    let targets = int(rows.iter().flatten().rev().map(|&id| id as i32).collect());
    let real = int(real);

    let hidden = output.hidden_states.clone().reshape([rows.len() * width, d_model]);
    let hidden = hidden.select(0, real.clone());
    let cap = model.config().final_logit_softcapping;
    let log_probs = fpo_ops::linear_log_probs(hidden, model.unembedding(), targets, cap);
    let sites = output.sites.iter().zip(7..).map(|(site, seed)| {
        let size = site.dims()[2];
        let site = site.clone().reshape([rows.len() * width, size]).select(0, real.clone());
        (site * noise([count, size], seed, &device)).sum()
    });
    match loss {
        Loss::Hidden => -log_probs.mean(),
        Loss::Sites => sites.reduce(|a, b| a + b).unwrap(),
        Loss::Both => sites.fold(-log_probs.mean(), |a, b| a + b),
    }
}
