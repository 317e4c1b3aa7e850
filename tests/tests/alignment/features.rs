//! Sets of features: found where they were planted, and what they do to the constraint.

use burn::tensor::{DType, Device, Int, Tensor};
use fpo_device::progress::Reporter;
use fpo_interp::features::{FindOptions, TextFeatures, find};
use fpo_losses::{Method, Objective, PerResponse};
use fpo_trainer::{aligner::Aligner, alignment_step::step_gradients, optim::StepGradients};
use fpo_transformer::Site;

use crate::{
    gradients::differ,
    world::{D_SAE, K, Random, World, numbers, trained},
};

const TOKEN: u32 = 17;
const PLANTED: usize = 7;
const BOS: u32 = 1;

/// Texts of random tokens, among which `TOKEN` stands or doesn't.
fn texts(seed: u64, with_token: bool) -> Vec<Vec<u32>> {
    let mut random = Random(seed);
    let text = |i: usize| -> Vec<u32> {
        let others = (0..6 + i % 5).map(|_| 2 + ((random.signed() + 1.0) * 7.0) as u32);
        let mut text: Vec<u32> = std::iter::once(BOS).chain(others).collect();
        if with_token {
            let place = 1 + i % (text.len() - 1);
            text[place] = TOKEN;
        }
        text
    };
    (0..24).map(text).collect()
}

/// A feature whose direction is the residual stream at one token is found in texts that hold it.
#[test]
fn a_planted_feature_comes_first() {
    let world = World::new();
    let site = Site::resid_post(0);
    let at = |text: &[u32]| -> Tensor<2> {
        let ids: Vec<i32> = text.iter().map(|&t| t as i32).collect();
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &Device::flex());
        world.policy.activations(ids.unsqueeze(), &[site])[0].clone().squeeze_dim(0)
    };
    // The mean state at the token less the mean state elsewhere.
    let mean = |texts: &[Vec<u32>], token: Option<u32>| -> Tensor<1> {
        let states = texts.iter().flat_map(|text| {
            let states = at(text);
            let kept =
                (1..text.len()).filter(move |&t| token.is_none_or(|wanted| text[t] == wanted));
            kept.map(move |t| states.clone().narrow(0, t, 1)).collect::<Vec<_>>()
        });
        Tensor::cat(states.collect(), 0).mean_dim(0).squeeze_dim(0)
    };
    let (positive, negative) = (texts(1, true), texts(2, false));
    let (there, elsewhere) = (mean(&positive, Some(TOKEN)), mean(&negative, None));
    let direction = there.clone() - elsewhere.clone();
    let middle = numbers(((there + elsewhere) * 0.5 * direction.clone()).sum())[0];

    let mut encoder = world.sae.encoder.clone();
    let column = direction.unsqueeze_dim::<2>(1);
    encoder.w_enc = encoder.w_enc.slice_assign([0..12, PLANTED..PLANTED + 1], column);
    let bias = Tensor::<1>::from_floats([-middle as f32], &Device::flex());
    encoder.b_enc = encoder.b_enc.slice_assign(PLANTED..PLANTED + 1, bias);
    let reader = TextFeatures {
        model: &world.policy,
        encoder: &encoder,
        site,
        excluded: &[BOS],
        texts_at_once: 5,
        reporter: &Reporter::silent(),
    };
    let options = FindOptions { top: 3, hold_out: 0.5, seed: 0 };
    let found = find(&reader, &positive, &negative, &options).unwrap();
    assert_eq!(found[0].index, PLANTED, "{found:?}");
    assert!(found[0].auroc > 0.9 && found[0].accuracy > 0.7, "{:?}", found[0]);
    assert!(found[0].positive_mean > found[0].negative_mean);
    assert!(found.len() <= 3 && found.windows(2).all(|w| w[0].effect >= w[1].effect));

    // The same whichever texts pass together; the same sets compared with themselves tell nothing apart.
    let one_by_one = TextFeatures { texts_at_once: 1, ..reader };
    let again = find(&one_by_one, &positive, &negative, &options).unwrap();
    assert_eq!(again[0].index, PLANTED);
    assert!((again[0].effect - found[0].effect).abs() < 1e-4 * found[0].effect);
    assert_eq!(find(&one_by_one, &positive, &positive, &options).unwrap(), []);

    let few = |n: usize| find(&one_by_one, &positive[..n], &negative, &options);
    assert!(few(3).unwrap_err().to_string().contains("3 positive texts"));
    assert!(few(4).is_ok());
    let special = vec![vec![BOS]; 4];
    assert!(!one_by_one.can_read(&special[0]));
    assert!(find(&one_by_one, &special, &negative, &options).is_err());
}

/// D with weights, by sums over the features of the unweighted problem; and its gradients.
#[test]
fn weights_choose_what_is_held_in_place() {
    let world = World::new();
    let objective = Objective { beta: 0.3, alpha: 2.0, ..Objective::paper(Method::FPO) };
    let with = |weights: Option<[f32; D_SAE]>| -> Aligner {
        let weights = weights.map(|w| vec![Tensor::<1>::from_floats(w, &Device::flex())]);
        let mut aligner = world.aligner(objective, DType::F32);
        aligner.features.as_mut().unwrap().weights = weights;
        aligner
    };
    let distances = |aligner: &Aligner| -> Vec<f64> {
        let measured = aligner.compare(&world.policy, &world.all()).unwrap();
        let PerResponse { chosen, rejected } = measured.quantities.distance.unwrap();
        [numbers(chosen), numbers(rejected)].concat()
    };
    let set: [f32; D_SAE] = std::array::from_fn(|i| f32::from(u8::from(i % 3 == 0)));
    let (only, except) = (with(Some(set)), with(Some(set.map(|w| 1.0 - w))));
    let all = distances(&with(None));
    assert_eq!(all, distances(&with(Some([1.0; D_SAE]))));
    let (of_set, of_rest) = (distances(&only), distances(&except));
    assert!(of_set.iter().sum::<f64>() > 1e-3 && of_rest.iter().sum::<f64>() > 1e-3, "dull: k {K}");
    for ((all, of_set), of_rest) in all.iter().zip(&of_set).zip(&of_rest) {
        assert!((all - of_set - of_rest).abs() < 1e-5 * (1.0 + all));
    }

    let policy = trained(&world.policy);
    let batch = world.all();
    let gradients = |aligner: &Aligner| {
        step_gradients(aligner, &policy, std::slice::from_ref(&batch), StepGradients::default())
            .unwrap()
            .0
    };
    let all = gradients(&with(None));
    assert!(differ(&gradients(&with(Some([1.0; D_SAE]))), &all) < 1e-6);
    assert!(differ(&gradients(&only), &all) > 1e-4);
    let nothing = world.aligner(Objective { alpha: 0.0, ..objective }, DType::F32);
    assert!(differ(&gradients(&with(Some([0.0; D_SAE]))), &gradients(&nothing)) < 1e-6);
}
