//! Autoencoders as plain vectors, from proptest or from a seed.

use std::cell::RefCell;

use burn::tensor::{Device, Tensor, TensorData};
use fpo_ops::{Activation, Encoder, Normalization};
use fpo_sae::{Provenance, Sae};
use proptest::{collection::vec, prelude::*};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Uniform in −1..1.
pub fn uniform(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| 2.0 * rng.random::<f32>() - 1.0).collect()
}

pub fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
}

pub fn to_vec<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// The per-feature parameters of the activation function: θ, for JumpReLU.
pub fn threshold(sae: &Sae) -> Vec<f32> {
    let found = RefCell::new(Vec::new());
    sae.encoder.activation.map(|x| {
        found.borrow_mut().extend(to_vec(x.clone()));
        x
    });
    found.into_inner()
}

/// The parameters of a JumpReLU autoencoder.
#[derive(Clone, Debug)]
pub struct Plain {
    pub d_in: usize,
    pub d_sae: usize,
    pub w_enc: Vec<f32>,
    pub b_enc: Vec<f32>,
    pub w_dec: Vec<f32>,
    pub b_dec: Vec<f32>,
    pub threshold: Vec<f32>,
}

impl Plain {
    /// Elements uniform in −1..1, thresholds in 0..1.
    pub fn random(seed: u64, d_in: usize, d_sae: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            d_in,
            d_sae,
            w_enc: uniform(&mut rng, d_in * d_sae),
            b_enc: uniform(&mut rng, d_sae),
            w_dec: uniform(&mut rng, d_sae * d_in),
            b_dec: uniform(&mut rng, d_in),
            threshold: uniform(&mut rng, d_sae).iter().map(|x| x.abs()).collect(),
        }
    }

    /// Any small sizes; elements from `element`, thresholds without its signs.
    pub fn any(element: impl Strategy<Value = f32> + Clone) -> impl Strategy<Value = Self> {
        (1..8usize, 1..12usize).prop_flat_map(move |(d_in, d_sae)| {
            let values = |count| vec(element.clone(), count);
            let matrices = (values(d_in * d_sae), values(d_sae * d_in));
            let vectors = (values(d_sae), values(d_in), values(d_sae));
            (matrices, vectors).prop_map(move |((w_enc, w_dec), (b_enc, b_dec, threshold))| {
                let threshold = threshold.into_iter().map(f32::abs).collect();
                Self { d_in, d_sae, w_enc, b_enc, w_dec, b_dec, threshold }
            })
        })
    }

    pub fn sae(&self) -> Sae {
        let Self { d_in, d_sae, .. } = *self;
        Sae {
            encoder: Encoder {
                normalization: Normalization::None,
                w_enc: tensor(&self.w_enc, [d_in, d_sae]),
                b_enc: tensor(&self.b_enc, [d_sae]),
                activation: Activation::JumpRelu { threshold: tensor(&self.threshold, [d_sae]) },
            },
            w_dec: tensor(&self.w_dec, [d_sae, d_in]),
            b_dec: tensor(&self.b_dec, [d_in]),
            provenance: Provenance {
                model_name: Some("a model".into()),
                hook_name: Some("blocks.3.hook_resid_post".into()),
            },
        }
    }
}

/// Runs `test` on values of a strategy.
pub fn check<S: Strategy>(cases: u32, values: S, test: impl Fn(S::Value)) {
    let config = ProptestConfig { cases, failure_persistence: None, ..Default::default() };
    let test = |value| {
        test(value);
        Ok(())
    };
    if let Err(error) = proptest::test_runner::TestRunner::new(config).run(&values, test) {
        panic!("{error}");
    }
}
