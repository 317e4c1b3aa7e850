//! The TOML file of a feature set.
//!
//! ```toml
//! sae = "…"               # hash of the encoder
//! d_sae = 16384           # number of its features
//! site = "resid_post:25"  # the site that it reads
//!
//! [[features]]
//! index = 4211            # below d_sae, unique
//! weight = 1.0            # w_i of the feature distance D, at least 0
//! # Optional results of `fpo features find`, which alignment ignores:
//! positive_mean = 0.81
//! negative_mean = 0.02
//! effect = 1.9
//! auroc = 0.97
//! accuracy = 0.93
//! ```

use std::{collections::BTreeSet, fs, io::Write, path::Path};

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Tensor};
use fpo_data::atomic;
use fpo_losses::FeatureSelection;
use fpo_ops::Encoder;
use fpo_sae::hash_encoder;
use fpo_transformer::Site;
use serde::{Deserialize, Serialize};

use super::Found;

/// Most bytes of a file; a million features take 200 MB.
const LARGEST: u64 = 256 << 20;

/// One feature of a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Index in `0..d_sae`.
    pub index: usize,
    /// Weight w_i in the feature distance, at least 0.
    pub weight: f64,
    /// Mean activation over the positive texts; see [`Found`] for this and the following results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positive_mean: Option<f64>,
    /// Mean activation over the negative texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_mean: Option<f64>,
    /// Standardised difference of these means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<f64>,
    /// AUROC on held-out texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auroc: Option<f64>,
    /// Balanced accuracy on held-out texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// A set of features of one autoencoder at one site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureFile {
    /// Hash of the encoder ([`hash_encoder`]).
    pub sae: String,
    /// Number of features of the encoder.
    pub d_sae: usize,
    /// The encoder's site, such as `resid_post:25`.
    pub site: String,
    /// The features of the set, each with a unique index.
    pub features: Vec<Feature>,
}

impl FeatureFile {
    /// The result of a search, with weight 1 for every feature.
    pub fn of(found: &[Found], encoder: &Encoder, site: Site) -> Self {
        let features = found.iter().map(|f| Feature {
            index: f.index,
            weight: 1.0,
            positive_mean: Some(f.positive_mean),
            negative_mean: Some(f.negative_mean),
            effect: Some(f.effect),
            auroc: Some(f.auroc),
            accuracy: Some(f.accuracy),
        });
        Self {
            sae: hash_encoder(encoder),
            d_sae: encoder.d_sae(),
            site: site.to_string(),
            features: features.collect(),
        }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// An unreadable file, invalid TOML, an index out of range or repeated, a negative weight, or no weight above 0.
    pub fn load(path: &Path) -> Result<Self> {
        let place = || format!("feature file {}", path.display());
        let size = fs::metadata(path).with_context(place)?.len();
        if size > LARGEST {
            bail!("{}: {size} bytes exceed the limit of {LARGEST}", place());
        }
        let text = fs::read_to_string(path).with_context(place)?;
        let file: Self = toml::from_str(&text).with_context(place)?;
        file.check().with_context(place)?;
        Ok(file)
    }

    fn check(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        for Feature { index, weight, .. } in &self.features {
            if *index >= self.d_sae {
                bail!("feature {index} is not below d_sae = {}", self.d_sae);
            }
            if !(weight.is_finite() && *weight >= 0.0) {
                bail!("feature {index}: weight {weight} must be at least 0");
            }
            if !seen.insert(index) {
                bail!("feature {index} is listed twice");
            }
        }
        if !self.features.iter().any(|f| f.weight > 0.0) {
            bail!("no feature has a weight above 0");
        }
        Ok(())
    }

    /// Writes the file atomically.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = format!(
            "# Features that separate two sets of texts; align.feature_weights uses index and weight.\n{}",
            toml::to_string_pretty(self)?
        );
        atomic::write_file(path, |file| -> Result<()> { Ok(file.write_all(text.as_bytes())?) })
    }

    /// The weight of every feature of the encoder, `[d_sae]`.
    ///
    /// # Errors
    /// The set belongs to another autoencoder or site.
    pub fn weights(
        &self,
        encoder: &Encoder,
        site: &str,
        selection: FeatureSelection,
        device: &Device,
    ) -> Result<Tensor<1>> {
        let d_sae = encoder.d_sae();
        if self.d_sae != d_sae {
            bail!(
                "the feature set is for {} features, but the autoencoder has {d_sae}",
                self.d_sae
            );
        }
        if self.site != site {
            bail!("the feature set is for {}, but sae.site is {site}", self.site);
        }
        let (expected, found) = (hash_encoder(encoder), &self.sae);
        if *found != expected {
            bail!(
                "the feature set is for the autoencoder {found}, but the run uses {expected}; find the features again"
            );
        }
        let features = self.features.iter().map(|f| (f.index, f.weight));
        Ok(selection.weights(features, d_sae, device))
    }
}

#[cfg(test)]
mod tests {
    use fpo_ops::{Activation, Normalization};

    use super::*;

    fn encoder(scale: f32) -> Encoder {
        let device = Device::flex();
        Encoder {
            normalization: Normalization::None,
            w_enc: Tensor::from_floats([[scale, 0.0, 1.0, 2.0], [0.5, 1.0, 0.0, 1.0]], &device),
            b_enc: Tensor::zeros([4], &device),
            activation: Activation::JumpRelu { threshold: Tensor::ones([4], &device) },
        }
    }

    fn file() -> FeatureFile {
        let found = Found {
            index: 2,
            positive_mean: 0.8,
            negative_mean: 0.1,
            effect: 2.0,
            auroc: 0.9,
            accuracy: 0.8,
        };
        FeatureFile::of(&[found], &encoder(1.0), Site::resid_post(1))
    }

    #[test]
    fn a_file_comes_back_and_gives_weights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features.toml");
        let mut written = file();
        written.features.push(Feature {
            weight: 0.5,
            index: 0,
            positive_mean: None,
            negative_mean: None,
            effect: None,
            auroc: None,
            accuracy: None,
        });
        written.save(&path).unwrap();
        let read = FeatureFile::load(&path).unwrap();
        assert_eq!(read, written);
        let weights = |selection| -> Vec<f32> {
            let device = Device::flex();
            let weights = read.weights(&encoder(1.0), "resid_post:1", selection, &device);
            weights.unwrap().into_data().iter::<f32>().collect()
        };
        assert_eq!(weights(FeatureSelection::Only), [0.5, 0.0, 1.0, 0.0]);
        assert_eq!(weights(FeatureSelection::Except), [0.0, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn invalid_sets_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features.toml");
        let features =
            |features: &str| format!("sae = \"x\"\nd_sae = 4\nsite = \"resid_post:1\"\n{features}");
        let feature = |index: i64, weight: &str| {
            format!("[[features]]\nindex = {index}\nweight = {weight}\n")
        };
        for (text, says) in [
            (features(&feature(4, "1.0")), "feature 4 is not below d_sae = 4"),
            (features(&feature(1, "-0.5")), "feature 1: weight -0.5 must be at least 0"),
            (features(&feature(1, "nan")), "must be at least 0"),
            (features(&(feature(1, "1.0") + &feature(1, "2.0"))), "feature 1 is listed twice"),
            (features(&feature(1, "0.0")), "no feature has a weight above 0"),
            (features("features = []"), "no feature has a weight above 0"),
            (features(&feature(-1, "1.0")), "index"),
            (features(&(feature(1, "1.0") + "wieght = 1.0\n")), "wieght"),
            ("nonsense".to_owned(), "features.toml"),
        ] {
            fs::write(&path, &text).unwrap();
            let message = format!("{:#}", FeatureFile::load(&path).unwrap_err());
            assert!(message.contains(says), "{text}: {message:?} does not say {says:?}");
        }
        assert!(FeatureFile::load(&folder.path().join("absent.toml")).is_err());

        let weights = |encoder: &Encoder, site| {
            let device = Device::flex();
            let weights = file().weights(encoder, site, FeatureSelection::Only, &device);
            format!("{:#}", weights.unwrap_err())
        };
        assert!(weights(&encoder(1.5), "resid_post:1").contains("find the features again"));
        assert!(weights(&encoder(1.0), "resid_post:0").contains("sae.site is resid_post:0"));
    }
}
