//! The arrays of an autoencoder as a file holds them: folded, checked, and turned into an [`Sae`].

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use fpo_ops::{Activation, Encoder, Normalization};

use crate::{Error, Provenance, Sae, activation::Facts};

/// The arrays that every autoencoder has, under the names that every format's are mapped to.
const NAMES: [&str; 4] = ["W_enc", "b_enc", "W_dec", "b_dec"];
/// θ, of JumpReLU.
pub(super) const THRESHOLD: &str = "threshold";

/// The activation function that a file names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stored {
    /// z · 1\[z > θ\]
    JumpRelu,
    /// max(z, 0)
    Relu,
    /// max(z, 0) for the k largest z of a token.
    TopK { k: usize },
}

/// What a format says of an autoencoder beside its arrays.
pub(super) struct Layout {
    pub stored: Stored,
    pub normalization: Normalization,
    /// `[d_in, d_sae]`, as far as the configuration says.
    pub sizes: [Option<usize>; 2],
    pub provenance: Provenance,
}

impl Layout {
    /// A layout without normalisation and without sizes.
    pub fn plain(stored: Stored, provenance: Provenance) -> Self {
        Self { stored, normalization: Normalization::None, sizes: [None; 2], provenance }
    }
}

/// An array, with its elements in C order.
#[derive(Clone)]
pub(super) struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Array {
    /// A matrix with rows and columns exchanged; arrays of other dimensions are left as they are.
    pub fn transposed(self) -> Self {
        let &[rows, columns] = self.shape.as_slice() else { return self };
        let at = |i: usize| self.values[(i % rows) * columns + i / rows];
        Self { values: (0..rows * columns).map(at).collect(), shape: vec![columns, rows] }
    }
}

/// The arrays of a file, by name.
#[derive(Default)]
pub(super) struct Arrays(pub BTreeMap<String, Array>);

impl Arrays {
    /// Adds an array. Gemma Scope 2's `w_enc` and `w_dec` become `W_enc` and `W_dec`.
    ///
    /// # Errors
    /// The file has an array of this name already.
    pub fn insert(&mut self, path: &Path, name: &str, array: Array) -> Result<(), Error> {
        let known = match name {
            "w_enc" => "W_enc",
            "w_dec" => "W_dec",
            name => name,
        };
        match self.0.insert(known.to_owned(), array) {
            None => Ok(()),
            Some(_) => Err(Error::format(path, format!("holds {known} twice"))),
        }
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

    /// Gives arrays another name. One that the file lacks is left to [`Self::assemble`].
    pub fn rename(&mut self, path: &Path, names: &[(&str, &str)]) -> Result<(), Error> {
        for (old, new) in names {
            if let Some(array) = self.0.remove(*old) {
                self.insert(path, new, array)?;
            }
        }
        Ok(())
    }

    /// Transposes matrices that a format holds as PyTorch's linear layers do, `[outputs, inputs]`.
    pub fn transpose(&mut self, names: &[&str]) {
        for name in names {
            if let Some(array) = self.0.remove(*name) {
                self.0.insert((*name).to_owned(), array.transposed());
            }
        }
    }

    /// Turns the `log_threshold` of older training checkpoints into `threshold`.
    pub fn exponentiate_thresholds(&mut self, path: &Path) -> Result<(), Error> {
        let Some(mut array) = self.0.remove("log_threshold") else { return Ok(()) };
        array.values.iter_mut().for_each(|x| *x = x.exp());
        self.insert(path, THRESHOLD, array)
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

    /// ‖dᵢ‖ of every row of W_dec; None if it isn't there.
    pub fn decoder_norms(&self) -> Option<Vec<f64>> {
        let w_dec = self.0.get("W_dec")?;
        let &[_, d_in] = w_dec.shape.as_slice() else { return None };
        let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        Some(w_dec.values.chunks_exact(d_in.max(1)).map(norm).collect())
    }

    /// For an autoencoder whose pre-activations are multiplied by the norms of its decoder's rows, and its features divided by
    /// them again: W_enc ← W_enc · ‖dᵢ‖, b_enc ← b_enc · ‖dᵢ‖ and W_dec ← W_dec / ‖dᵢ‖.
    /// Shapes that don't fit are left alone: [`Self::assemble`] refuses them.
    pub fn fold_decoder_norms(&mut self) {
        let Some(norms) = self.decoder_norms() else { return };
        if norms.is_empty() {
            return;
        }
        for name in ["W_enc", "b_enc"] {
            let Some(array) = self.0.get_mut(name) else { continue };
            for (x, norm) in array.values.iter_mut().zip(norms.iter().cycle()) {
                *x = (f64::from(*x) * norm) as f32;
            }
        }
        if let Some(w_dec) = self.0.get_mut("W_dec") {
            let width = w_dec.values.len() / norms.len();
            for (row, norm) in w_dec.values.chunks_exact_mut(width.max(1)).zip(&norms) {
                row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
            }
        }
    }

    /// Checks names, shapes and values, and moves them to the device. A threshold without dimensions holds for all features, and
    /// one below 0 means 0, as in SAELens.
    ///
    /// # Errors
    /// Anything that the layout doesn't account for.
    pub fn assemble(mut self, layout: Layout, path: &Path, device: &Device) -> Result<Sae, Error> {
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
        let sizes = [("d_in", d_in), ("d_sae", d_sae)];
        for ((name, found), said) in sizes.into_iter().zip(layout.sizes) {
            if let Some(said) = said.filter(|said| *said != found) {
                let message = format!("W_enc has {name} {found}, the configuration says {said}");
                return Err(wrong(message));
            }
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
        let (kind, activation) = match layout.stored {
            Stored::JumpRelu => {
                let mut threshold = self.take(path, THRESHOLD)?;
                if let (true, &[value]) = (threshold.shape.is_empty(), &*threshold.values) {
                    threshold = Array { shape: vec![d_sae], values: vec![value; d_sae] };
                }
                check(THRESHOLD, &threshold, &[d_sae])?;
                threshold.values.iter_mut().for_each(|x| *x = x.max(0.0));
                ("JumpReLU", Activation::JumpRelu { threshold: tensor(threshold, device) })
            }
            Stored::Relu => ("ReLU", Activation::Relu),
            Stored::TopK { k } if (1..=d_sae).contains(&k) => ("TopK", Activation::TopK { k }),
            Stored::TopK { k } => {
                return Err(wrong(format!("k = {k}, which must be from 1 to d_sae = {d_sae}")));
            }
        };
        if let Some(name) = self.0.keys().next() {
            let known = NAMES.join(", ");
            return Err(wrong(format!(
                "holds `{name}`, which its configuration doesn't account for: a {kind} autoencoder has {known}{}",
                if kind == "JumpReLU" { " and threshold" } else { "" }
            )));
        }
        Ok(Sae {
            encoder: Encoder {
                normalization: layout.normalization,
                w_enc: tensor(w_enc, device),
                b_enc: tensor(b_enc, device),
                activation,
            },
            w_dec: tensor(w_dec, device),
            b_dec: tensor(b_dec, device),
            provenance: layout.provenance,
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
