//! Everything this crate has to know about each kind of activation function, in one match per question.

use burn::tensor::{Tensor, TensorData};
use fpo_ops::{Activation, Encoder, Normalization};
use serde_json::{Value, json};

use crate::Error;

/// An activation function, described for files, hashes and people.
pub(crate) struct Facts<'a> {
    /// For people: the function with its settings.
    pub title: String,
    /// Its part of a SAELens configuration: an object.
    pub sae_lens: Value,
    /// Per-feature parameters `[d_sae]`, by their names in files.
    pub vectors: Vec<(&'static str, &'a Tensor<1>)>,
    /// Kind and settings as they enter the hash of an encoder. None for JumpReLU, which came first: its hashes are kept. A ReLU is
    /// hashed as the JumpReLU with thresholds of 0 that it is.
    pub hashed: Option<String>,
}

impl<'a> Facts<'a> {
    pub fn of(activation: &'a Activation) -> Self {
        match activation {
            Activation::JumpRelu { threshold } => Self {
                title: "JumpReLU".to_owned(),
                sae_lens: json!({ "architecture": "jumprelu" }),
                vectors: vec![("threshold", threshold)],
                hashed: None,
            },
            Activation::Relu => Self {
                title: "ReLU".to_owned(),
                sae_lens: json!({ "architecture": "standard" }),
                vectors: vec![],
                hashed: None,
            },
            Activation::TopK { k } => Self {
                title: format!("TopK, k = {k}"),
                sae_lens: json!({
                    "architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": false,
                }),
                vectors: vec![],
                hashed: Some(format!("topk {k}")),
            },
        }
    }
}

/// The activation for pre-activations multiplied by `factors` `[d_sae]`, all positive, so that features are multiplied by them too.
///
/// # Errors
/// Features that are compared with each other.
pub(crate) fn scaled(activation: Activation, factors: Tensor<1>) -> Result<Activation, Error> {
    match activation {
        Activation::JumpRelu { threshold } => {
            Ok(Activation::JumpRelu { threshold: threshold * factors })
        }
        Activation::Relu => Ok(Activation::Relu),
        Activation::TopK { .. } => Err(Error::Folding),
    }
}

/// BLAKE3 hash (hex) of what defines an encoder's features: W_enc, b_enc, the activation function with its parameters, and what
/// happens to activations before. It is taken of the float32 values, so that it doesn't depend on the file format they were read
/// from.
pub fn hash_encoder(encoder: &Encoder) -> String {
    let Facts { vectors, hashed, .. } = Facts::of(&encoder.activation);
    let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    let hash_values = |data: TensorData| hash(data.convert::<f32>().as_bytes());
    let mut parts =
        vec![hash_values(encoder.w_enc.to_data()), hash_values(encoder.b_enc.to_data())];
    parts.extend(vectors.iter().map(|(_, vector)| hash_values(vector.to_data())));
    if matches!(encoder.activation, Activation::Relu) {
        parts.push(hash_values(encoder.b_enc.zeros_like().to_data()));
    }
    parts.extend(hashed);
    parts.extend(match encoder.normalization {
        Normalization::None => None,
        Normalization::LayerNorm => Some("layer norm".to_owned()),
        Normalization::ConstantNorm => Some("constant norm".to_owned()),
    });
    hash(parts.join(" ").as_bytes())
}
