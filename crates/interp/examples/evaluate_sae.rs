//! Evaluates an autoencoder at a site of a small random model. Its features are the coordinates of the residual stream, split by
//! sign, above a threshold: the higher the threshold, the lower L0 and explained variance.
//!
//!     cargo run --release -p fpo-interp --example evaluate_sae

use std::num::NonZeroUsize;

use anyhow::{Error, Result};
use burn::tensor::{Device, Tensor};
use fpo_data::{Fingerprint, SequenceStore, TokenizedExample, TokenizedResponse};
use fpo_device::progress::Reporter;
use fpo_interp::{activations::Source, evaluation::evaluate, reader::check_fit};
use fpo_ops::{Activation, Encoder, Normalization};
use fpo_sae::{Provenance, Sae};
use fpo_transformer::{Family, Site, Sizes, weights};

const BOS: u32 = 2;

fn main() -> Result<()> {
    let (device, site, d) = (Device::flex(), Site::resid_post(1), 32);
    let sizes = Sizes {
        vocab_size: 64,
        hidden_size: d,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
    };
    let config = Family::Gemma2.config(&sizes).map_err(Error::msg)?;
    let model = weights::random(&config, 0, &device)?;

    // 64 rows of BOS and 19 other tokens.
    let rows = (0..64).map(|row: u32| {
        let token = |t: u32| if t == 0 { BOS } else { 3 + (row * row + 7 * t * t + row * t) % 61 };
        let tokens = (0..20).map(token).collect();
        TokenizedExample {
            id: row.into(),
            response: TokenizedResponse { tokens, prompt_len: 1 },
            context: Vec::new(),
        }
    });
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rows.arrow");
    SequenceStore::write(&path, &Fingerprint::default(), rows.collect::<Vec<_>>())?;
    let (data, excluded) = (SequenceStore::open(&path)?, vec![0, BOS]);
    let (sites, reporter) = (vec![site], Reporter::silent());
    let source = Source { model: &model, data: &data, excluded, sites, reporter };

    let coordinates = Tensor::<2>::eye(d, &device);
    let w_dec = Tensor::cat(vec![coordinates.clone(), -coordinates], 0);
    for threshold in [0.0, 0.5, 1.0] {
        let threshold = Tensor::full([2 * d], threshold, &device);
        let (w_enc, b_enc) = (w_dec.clone().transpose(), Tensor::zeros([2 * d], &device));
        let encoder = Encoder {
            normalization: Normalization::None,
            w_enc,
            b_enc,
            activation: Activation::JumpRelu { threshold },
        };
        check_fit(&encoder, site, &config)?;
        let (w_dec, b_dec) = (w_dec.clone(), Tensor::zeros([d], &device));
        let sae = Sae { encoder, w_dec, b_dec, provenance: Provenance::default() };
        let found = evaluate(&sae, &source, usize::MAX, NonZeroUsize::MIN)?;
        println!(
            "L0 {:4.1}, explained variance {:.3}, cross-entropy {:+.4} nats",
            found.quality.l0, found.quality.explained_variance, found.cross_entropy.delta
        );
    }
    Ok(())
}
