//! Pooled features of responses, at one or several sites.

use anyhow::Result;
use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_data::{Pooling, TokenBatch};
use fpo_ops::{Encoder, pooled_features, profile, select_rows};
use fpo_sae::{Sae, check_width};
use fpo_transformer::{FlatRows, Input, ModelConfig, Site};

/// Encoders at their sites, and the positions over which their features are averaged. Shared by reference and policy.
#[derive(Clone)]
pub struct FeatureReader {
    encoders: Vec<(Encoder, Site)>,
    pooling: Pooling,
    excluded: Vec<u32>,
}

impl FeatureReader {
    /// A reader without sites; add them with [`Self::with`]. Positions of `excluded` tokens, which autoencoders aren't trained on,
    /// are left out of the averages: BOS, EOS and padding (fpo_data's `Tokenizer::special_ids`).
    pub fn new(pooling: Pooling, excluded: Vec<u32>) -> Self {
        Self { encoders: Vec::new(), pooling, excluded }
    }

    /// Adds an autoencoder at a site. Its features follow those of the sites before it.
    pub fn with(mut self, sae: &Sae, site: Site) -> Self {
        self.encoders.push((sae.encoder.clone(), site));
        self
    }

    /// The encoders, ordered as [`Self::sites`].
    pub fn encoders(&self) -> impl Iterator<Item = &Encoder> {
        self.encoders.iter().map(|(encoder, _)| encoder)
    }

    /// The sites whose activations [`Self::pool`] takes.
    pub fn sites(&self) -> Vec<Site> {
        self.encoders.iter().map(|(_, site)| *site).collect()
    }

    /// The positions over which features are averaged.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// `d_sae` of each site.
    pub fn widths(&self) -> Vec<usize> {
        self.encoders().map(|encoder| encoder.d_sae()).collect()
    }

    /// Total number of features over all sites.
    pub fn d_sae(&self) -> usize {
        self.widths().iter().sum()
    }

    /// Checks that every encoder fits its site; see [`check_fit`].
    ///
    /// # Errors
    /// A site that the model lacks, or an encoder of another width.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        for (encoder, site) in &self.encoders {
            check_fit(encoder, *site, config)?;
        }
        Ok(())
    }

    /// Mean features per row of a batch. `activations`: one tensor `[1, tokens, d_model]` per site. Returns `[rows, d_sae]` per site.
    pub fn pool(&self, batch: &TokenBatch, activations: Vec<Tensor<3>>) -> Vec<Tensor<2>> {
        let _autoencoder = profile::part("autoencoder");
        let positions = batch.positions(self.pooling, &self.excluded);
        let pool = |(x, encoder): (Tensor<3>, &Encoder)| {
            let [rows, tokens, width] = x.dims();
            let flat = indices(positions.flat.clone(), &x.device());
            let x = select_rows(x.reshape([rows * tokens, width]), flat);
            pooled_features(x, encoder, &positions.counts)
        };
        activations.into_iter().zip(self.encoders()).map(pool).collect()
    }
}

/// Checks that an encoder fits a site of a model.
///
/// # Errors
/// A site that the model lacks, or an encoder of another width.
pub fn check_fit(encoder: &Encoder, site: Site, config: &ModelConfig) -> Result<()> {
    site.check(config.num_hidden_layers)?;
    Ok(check_width(encoder, site, site.width(config))?)
}

/// A batch as the input of a model.
pub fn input(batch: &TokenBatch, device: &Device) -> Input {
    Input::flat(indices(batch.tokens.clone(), device), FlatRows::new(&batch.places, device))
}

/// Indices on a device, `[values.len()]`.
pub fn indices(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
