//! The arrays of an autoencoder as a file holds them: folded, checked, and turned into an [`Sae`].

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use fpo_ops::{Activation, Encoder};

use crate::{Error, Provenance, Sae, activation::Facts};

/// The arrays that every autoencoder has, under the names that every format's are mapped to.
const NAMES: [&str; 4] = ["W_enc", "b_enc", "W_dec", "b_dec"];
/// θ, of JumpReLU.
const THRESHOLD: &str = "threshold";

/// The activation function that a file names.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Stored {
    /// z · 1\[z > θ\]
    JumpRelu,
    /// max(z, 0)
    Relu,
}

/// An array, with its elements in C order.
pub(super) struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// The arrays of a file, by name.
#[derive(Default)]
pub(super) struct Arrays(pub BTreeMap<String, Array>);

impl Arrays {
    /// Adds an array. Gemma Scope 2's `w_enc` and `w_dec` become `W_enc` and `W_dec`.
    pub fn insert(&mut self, name: &str, array: Array) {
        let name = match name {
            "w_enc" => "W_enc",
            "w_dec" => "W_dec",
            name => name,
        };
        self.0.insert(name.to_owned(), array);
    }

    fn take(&mut self, path: &Path, name: &str) -> Result<Array, Error> {
        self.0.remove(name).ok_or_else(|| {
            let message = format!(
                "no `{name}`: expected {} and, for JumpReLU, {THRESHOLD}",
                NAMES.join(", ")
            );
            Error::format(path, message)
        })
    }

    /// Turns the `log_threshold` of older training checkpoints into `threshold`.
    pub fn exponentiate_thresholds(&mut self) {
        if let Some(mut array) = self.0.remove("log_threshold") {
            array.values.iter_mut().for_each(|x| *x = x.exp());
            self.0.insert(THRESHOLD.to_owned(), array);
        }
    }

    /// For an autoencoder trained on `scale · x`: W_enc ← scale · W_enc, W_dec ← W_dec / scale and b_dec ← b_dec / scale.
    pub fn fold_scale(&mut self, scale: f64) {
        for (name, factor) in [("W_enc", scale), ("W_dec", 1.0 / scale), ("b_dec", 1.0 / scale)] {
            if let Some(array) = self.0.get_mut(name) {
                array.values.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
            }
        }
    }

    /// For an autoencoder that encodes x − b_dec: b_enc ← b_enc − b_dec · W_enc, summed in float64.
    /// Shapes that don't fit are left alone: [`Self::assemble`] refuses them.
    pub fn fold_subtraction(&mut self) {
        let (Some(w_enc), Some(b_dec)) = (self.0.get("W_enc"), self.0.get("b_dec")) else { return };
        let &[d_in, d_sae] = w_enc.shape.as_slice() else { return };
        if b_dec.shape != [d_in] || d_sae == 0 {
            return;
        }
        let mut shift = vec![0f64; d_sae];
        for (row, &b) in w_enc.values.chunks_exact(d_sae).zip(&b_dec.values) {
            for (shift, &w) in shift.iter_mut().zip(row) {
                *shift += f64::from(b) * f64::from(w);
            }
        }
        if let Some(b_enc) = self.0.get_mut("b_enc") {
            for (b, shift) in b_enc.values.iter_mut().zip(shift) {
                *b = (f64::from(*b) - shift) as f32;
            }
        }
    }

    /// Checks names, shapes and values, and moves them to the device.
    pub fn assemble(
        mut self,
        stored: Stored,
        path: &Path,
        provenance: Provenance,
        device: &Device,
    ) -> Result<Sae, Error> {
        let wrong = |message: String| Error::format(path, message);
        let mut take = |name: &str| self.take(path, name);
        let [w_enc, b_enc, w_dec, b_dec] =
            [take("W_enc")?, take("b_enc")?, take("W_dec")?, take("b_dec")?];
        let &[d_in, d_sae] = w_enc.shape.as_slice() else {
            return Err(wrong(format!("W_enc is {:?}, not [d_in, d_sae]", w_enc.shape)));
        };
        if d_in == 0 || d_sae == 0 {
            return Err(wrong(format!("W_enc is {:?}, which is empty", w_enc.shape)));
        }
        let check = |name: &str, array: &Array, shape: &[usize]| {
            if array.shape != shape {
                return Err(wrong(format!(
                    "{name} is {:?}, W_enc makes it {shape:?}",
                    array.shape
                )));
            }
            match array.values.iter().position(|x| !x.is_finite()) {
                Some(i) => Err(wrong(format!("{name} holds {} at {i}", array.values[i]))),
                None => Ok(()),
            }
        };
        check("W_enc", &w_enc, &[d_in, d_sae])?;
        check("b_enc", &b_enc, &[d_sae])?;
        check("W_dec", &w_dec, &[d_sae, d_in])?;
        check("b_dec", &b_dec, &[d_in])?;
        let activation = match stored {
            Stored::JumpRelu => {
                let threshold = self.take(path, THRESHOLD)?;
                check(THRESHOLD, &threshold, &[d_sae])?;
                if let Some(i) = threshold.values.iter().position(|&x| x < 0.0) {
                    let value = threshold.values[i];
                    return Err(wrong(format!("threshold {i} is {value}, which is negative")));
                }
                Activation::JumpRelu { threshold: tensor(threshold, device) }
            }
            // A JumpReLU whose thresholds are 0, whatever the file has for them.
            Stored::Relu => {
                self.0.remove(THRESHOLD);
                let zeros = Array { shape: vec![d_sae], values: vec![0.0; d_sae] };
                Activation::JumpRelu { threshold: tensor(zeros, device) }
            }
        };
        if let Some(name) = self.0.keys().next() {
            let known = NAMES.join(", ");
            return Err(wrong(format!(
                "`{name}` is unknown: an autoencoder has {known} and, for JumpReLU, {THRESHOLD}"
            )));
        }
        Ok(Sae {
            encoder: Encoder {
                w_enc: tensor(w_enc, device),
                b_enc: tensor(b_enc, device),
                activation,
            },
            w_dec: tensor(w_dec, device),
            b_dec: tensor(b_dec, device),
            provenance,
        })
    }
}

fn tensor<const D: usize>(array: Array, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(array.values, array.shape), device)
}

/// The arrays of an autoencoder in float32, by name: those that every autoencoder has, then the activation function's.
pub(super) fn named(sae: &Sae) -> Vec<(&'static str, TensorData)> {
    let encoder = &sae.encoder;
    let weights = [
        encoder.w_enc.to_data(),
        encoder.b_enc.to_data(),
        sae.w_dec.to_data(),
        sae.b_dec.to_data(),
    ];
    let vectors = Facts::of(&encoder.activation).vectors;
    let vectors = vectors.into_iter().map(|(name, vector)| (name, vector.to_data()));
    let arrays = NAMES.into_iter().zip(weights).chain(vectors);
    arrays.map(|(name, data)| (name, data.convert::<f32>())).collect()
}
