//! Reads the pooled features of texts, at one site or several.

use anyhow::Result;
use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_data::{Pooling, TokenBatch};
use fpo_ops::{Encoder, pooled_features};
use fpo_sae::{Sae, check_width};
use fpo_transformer::{ModelConfig, Site};

/// Autoencoders at their sites, and the positions over which their features are averaged. Reference and policy share one.
#[derive(Clone)]
pub struct FeatureReader {
    encoders: Vec<(Encoder, Site)>,
    pooling: Pooling,
    /// Tokens whose positions the autoencoders were not trained on.
    excluded: Vec<u32>,
}

impl FeatureReader {
    /// Reads no site yet; see [`Self::with`]. Positions that hold one of `excluded` stay out of the averages.
    pub fn new(pooling: Pooling, excluded: Vec<u32>) -> Self {
        Self { encoders: Vec::new(), pooling, excluded }
    }

    /// Reads an autoencoder's features at a site, after those of earlier sites.
    pub fn with(mut self, sae: &Sae, site: Site) -> Self {
        self.encoders.push((sae.encoder.clone(), site));
        self
    }

    /// The encoders, in the order of the sites.
    pub fn encoders(&self) -> impl Iterator<Item = &Encoder> {
        self.encoders.iter().map(|(encoder, _)| encoder)
    }

    /// Where the model's activations are read.
    pub fn sites(&self) -> Vec<Site> {
        self.encoders.iter().map(|(_, site)| *site).collect()
    }

    /// Number of features of each site.
    pub fn widths(&self) -> Vec<usize> {
        self.encoders().map(|encoder| encoder.d_sae()).collect()
    }

    /// Number of features of all sites together.
    pub fn d_sae(&self) -> usize {
        self.widths().iter().sum()
    }

    /// Refuses a site that the model lacks, and an autoencoder for another width.
    ///
    /// # Errors
    /// Which autoencoder doesn't fit where.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        for (encoder, site) in &self.encoders {
            check_fit(encoder, *site, config)?;
        }
        Ok(())
    }

    /// Pooled features of a model's activations `[rows, tokens, width]`, one tensor `[rows, d_sae]` per site.
    pub fn pool(&self, batch: &TokenBatch, activations: Vec<Tensor<3>>) -> Vec<Tensor<2>> {
        let positions = batch.positions(self.pooling, &self.excluded);
        let pool = |(x, encoder): (Tensor<3>, &Encoder)| {
            let [rows, tokens, width] = x.dims();
            let flat = indices(&positions.flat, &x.device());
            let x = x.reshape([rows * tokens, width]).select(0, flat);
            pooled_features(x, encoder, &positions.counts)
        };
        activations.into_iter().zip(self.encoders()).map(pool).collect()
    }
}

/// The one check that an encoder fits at a site of a model.
///
/// # Errors
/// A site that the model lacks, or another width.
pub fn check_fit(encoder: &Encoder, site: Site, config: &ModelConfig) -> Result<()> {
    site.check(config.num_hidden_layers)?;
    Ok(check_width(encoder, site, site.width(config))?)
}

fn indices(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}
