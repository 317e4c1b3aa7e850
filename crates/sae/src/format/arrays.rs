//! The five arrays of an autoencoder as a file holds them, checked and folded.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use fpo_ops::Encoder;

use crate::{Error, Provenance, Sae};

/// The names by which everything is known here, whatever the file calls it.
pub(super) const NAMES: [&str; 5] = ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"];

/// An array in C order.
pub(super) struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// What a file holds, by name.
#[derive(Default)]
pub(super) struct Arrays(pub BTreeMap<String, Array>);

impl Arrays {
    /// Adds an array; Gemma Scope's `w_enc` is `W_enc`.
    pub fn insert(&mut self, name: &str, array: Array) {
        let name = match name {
            "w_enc" => "W_enc",
            "w_dec" => "W_dec",
            name => name,
        };
        self.0.insert(name.to_owned(), array);
    }

    pub fn take(&mut self, path: &Path, name: &str) -> Result<Array, Error> {
        self.0.remove(name).ok_or_else(|| {
            Error::format(path, format!("no `{name}`: expected {}", NAMES.join(", ")))
        })
    }

    /// Turns `log_threshold` of older training checkpoints into `threshold`.
    pub fn exponentiate_thresholds(&mut self) {
        if let Some(mut array) = self.0.remove("log_threshold") {
            array.values.iter_mut().for_each(|x| *x = x.exp());
            self.0.insert("threshold".to_owned(), array);
        }
    }

    /// For a plain ReLU, which is a JumpReLU with thresholds of zero.
    pub fn zero_thresholds(&mut self) {
        if let Some(b_enc) = self.0.get("b_enc") {
            let (shape, values) = (b_enc.shape.clone(), vec![0.0; b_enc.values.len()]);
            self.0.insert("threshold".to_owned(), Array { shape, values });
        }
    }

    /// For an autoencoder that saw `scale · x`: W_enc ← scale · W_enc, and the reconstruction divided.
    pub fn fold_scale(&mut self, scale: f64) {
        for (name, factor) in [("W_enc", scale), ("W_dec", 1.0 / scale), ("b_dec", 1.0 / scale)] {
            if let Some(array) = self.0.get_mut(name) {
                array.values.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
            }
        }
    }

    /// For an autoencoder that encodes x − b_dec: b_enc ← b_enc − b_dec · W_enc, summed in float64.
    /// Shapes that don't fit are left for [`Self::assemble`] to refuse.
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
        path: &Path,
        provenance: Provenance,
        device: &Device,
    ) -> Result<Sae, Error> {
        let mut take = |name: &str| self.take(path, name);
        let [w_enc, b_enc, w_dec, b_dec, threshold] =
            [take("W_enc")?, take("b_enc")?, take("W_dec")?, take("b_dec")?, take("threshold")?];
        if let Some(name) = self.0.keys().next() {
            let message = format!(
                "`{name}` is no part of a JumpReLU autoencoder, which has {}",
                NAMES.join(", ")
            );
            return Err(Error::format(path, message));
        }
        let &[d_in, d_sae] = w_enc.shape.as_slice() else {
            return Err(Error::format(
                path,
                format!("W_enc is {:?}, not [d_in, d_sae]", w_enc.shape),
            ));
        };
        if d_in == 0 || d_sae == 0 {
            return Err(Error::format(path, format!("W_enc is {:?}, which is empty", w_enc.shape)));
        }
        for (name, array, shape) in [
            ("b_enc", &b_enc, vec![d_sae]),
            ("W_dec", &w_dec, vec![d_sae, d_in]),
            ("b_dec", &b_dec, vec![d_in]),
            ("threshold", &threshold, vec![d_sae]),
        ] {
            if array.shape != shape {
                let message = format!("{name} is {:?}, W_enc makes it {shape:?}", array.shape);
                return Err(Error::format(path, message));
            }
        }
        for (name, array) in NAMES.iter().zip([&w_enc, &b_enc, &w_dec, &b_dec, &threshold]) {
            if let Some(i) = array.values.iter().position(|x| !x.is_finite()) {
                return Err(Error::format(
                    path,
                    format!("{name} holds {} at {i}", array.values[i]),
                ));
            }
        }
        if let Some(i) = threshold.values.iter().position(|&x| x < 0.0) {
            let message = format!("threshold {i} is {}, which is negative", threshold.values[i]);
            return Err(Error::format(path, message));
        }
        fn tensor<const D: usize>(array: Array, device: &Device) -> Tensor<D> {
            Tensor::from_data(TensorData::new(array.values, array.shape), device)
        }
        Ok(Sae {
            encoder: Encoder {
                w_enc: tensor(w_enc, device),
                b_enc: tensor(b_enc, device),
                threshold: tensor(threshold, device),
            },
            w_dec: tensor(w_dec, device),
            b_dec: tensor(b_dec, device),
            provenance,
        })
    }
}

/// The arrays of an autoencoder, in float32, in the order of [`NAMES`].
pub(super) fn named(sae: &Sae) -> [(&'static str, TensorData); 5] {
    let encoder = &sae.encoder;
    let data = [
        encoder.w_enc.to_data(),
        encoder.b_enc.to_data(),
        sae.w_dec.to_data(),
        sae.b_dec.to_data(),
        encoder.threshold.to_data(),
    ];
    let mut names = NAMES.into_iter();
    data.map(|data| (names.next().unwrap_or_default(), data.convert::<f32>()))
}
