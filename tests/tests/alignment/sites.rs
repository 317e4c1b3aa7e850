//! The constraint over several sites at once: D is the sum of what each site has alone.

use burn::tensor::{DType, Device, Tensor};
use fpo_data::{Pooling, reference::StoredFeatures};
use fpo_interp::reader::FeatureReader;
use fpo_losses::{Method, Objective, PerResponse};
use fpo_ops::{Encoder, Normalization};
use fpo_sae::Sae;
use fpo_trainer::{aligner::Aligner, alignment_step::step_gradients, optim::StepGradients};
use fpo_transformer::Site;

use crate::{
    gradients::differ,
    world::{D_SAE, K, World, cast, constraint, numbers, trained},
};

/// Another autoencoder, with fewer features.
fn smaller(sae: &Sae) -> Sae {
    let e = &sae.encoder;
    Sae {
        encoder: Encoder {
            normalization: Normalization::None,
            w_enc: e.w_enc.clone().narrow(1, 3, D_SAE - 5),
            b_enc: e.b_enc.clone().narrow(0, 3, D_SAE - 5),
            activation: e.activation.map(|x| x.narrow(0, 3, D_SAE - 5)),
        },
        ..sae.clone()
    }
}

#[test]
fn distances_of_sites_add_up() {
    let world = World::new();
    let (first, second) = (Site { layer: 0, ..Site::resid_post(0) }, "mlp_out:1".parse().unwrap());
    let other = smaller(&world.sae);
    let reader = |sae: &Sae, site| FeatureReader::new(Pooling::Predicting, vec![]).with(sae, site);
    let alone = [reader(&world.sae, first), reader(&other, second)];
    let both = alone[0].clone().with(&other, second);
    assert_eq!((both.widths(), both.d_sae()), (vec![D_SAE, D_SAE - 5], 2 * D_SAE - 5));

    let objective = Objective { beta: 0.3, ..Objective::paper(Method::FPO) };
    let aligner = |reader: &FeatureReader| Aligner {
        cache: world.cache_of(reader, StoredFeatures::All),
        features: Some(constraint(reader.clone(), K)),
        ..world.aligner(objective, DType::F32)
    };
    let distances = |reader: &FeatureReader| -> Vec<f64> {
        let measured = aligner(reader).compare(&world.policy, &world.all()).unwrap();
        let PerResponse { chosen, rejected } = measured.quantities.distance.unwrap();
        [numbers(chosen), numbers(rejected)].concat()
    };
    let [a, b] = alone.each_ref().map(distances);
    for (sum, (a, b)) in distances(&both).iter().zip(a.iter().zip(&b)) {
        assert!((sum - (a + b)).abs() < 1e-6 * (1.0 + sum), "{sum} is not {a} + {b}");
    }
    assert!(a.iter().sum::<f64>() > 1e-3 && b.iter().sum::<f64>() > 1e-3);

    // Both sites pull: without one of them the gradient is another.
    let policy = trained(&cast(&world.policy, DType::F32));
    let batch = world.all();
    let gradients = |reader: &FeatureReader| {
        step_gradients(
            &aligner(reader),
            &policy,
            std::slice::from_ref(&batch),
            StepGradients::default(),
        )
        .unwrap()
        .0
    };
    let with_both = gradients(&both);
    for reader in &alone {
        assert!(differ(&gradients(reader), &with_both) > 1e-4);
    }
    let device = Device::flex();
    let weights = vec![Tensor::ones([D_SAE], &device), Tensor::zeros([D_SAE - 5], &device)];
    let mut first_only = aligner(&both);
    first_only.features.as_mut().unwrap().weights = Some(weights);
    let (found, _) = step_gradients(
        &first_only,
        &policy,
        std::slice::from_ref(&batch),
        StepGradients::default(),
    )
    .unwrap();
    assert!(differ(&found, &gradients(&alone[0])) < 1e-5);
}

#[test]
fn a_site_or_width_that_does_not_fit_is_refused() {
    let world = World::new();
    let config = world.policy.config();
    let reader = |site: &str| {
        FeatureReader::new(Pooling::Predicting, vec![]).with(&world.sae, site.parse().unwrap())
    };
    assert!(reader("resid_post:1").check(config).is_ok());
    let and = reader("resid_post:1").with(&world.sae, Site::resid_post(2));
    assert!(and.check(config).unwrap_err().to_string().contains("resid_post:2"));
    let message = reader("attn_z:0").check(config).unwrap_err().to_string();
    assert!(message.contains("width 12, those at attn_z:0 have width 8"), "{message}");
}
