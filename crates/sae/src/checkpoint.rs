//! Checkpoints of training: a trainer that resumes from one takes the same steps, bit for bit.

use std::{collections::HashMap, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{Error, Parameters, SaeTrainer, SaeTraining};

/// Names of the parameters, and of Adam's second moments for them.
const PARTS: [&str; 5] = ["w_enc", "b_enc", "w_dec", "b_dec", "threshold"];
const SILENT: &str = "silent";
const STEP: &str = "step";
const SCALE: &str = "scale";

impl SaeTrainer {
    /// Writes everything that the next step depends on except the settings.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let fail = |e: safetensors::SafeTensorError| Error::format(path, e.to_string());
        let mut tensors: Vec<(String, TensorData)> = Vec::new();
        for (prefix, p) in [("parameter", &self.parameters), ("moment", &self.moments)] {
            let data = [
                p.w_enc.to_data(),
                p.b_enc.to_data(),
                p.w_dec.to_data(),
                p.b_dec.to_data(),
                p.threshold.to_data(),
            ];
            tensors.extend(PARTS.iter().map(|part| format!("{prefix}.{part}")).zip(data));
        }
        tensors.push((SILENT.to_owned(), self.silent.to_data()));
        let mut views = Vec::with_capacity(tensors.len());
        for (name, data) in &tensors {
            let view = TensorView::new(Dtype::F32, data.shape().to_vec(), data.as_bytes());
            views.push((name.as_str(), view.map_err(fail)?));
        }
        let metadata = HashMap::from([
            (STEP.to_owned(), self.step.to_string()),
            // Debug prints enough digits to parse back to the same value.
            (SCALE.to_owned(), format!("{:?}", self.scale)),
        ]);
        safetensors::serialize_to_file(views, Some(metadata), path).map_err(fail)
    }

    /// Resumes from what [`Self::save`] wrote.
    ///
    /// # Errors
    /// Settings out of range, a damaged file, or a checkpoint with another number of features.
    pub fn restore(settings: &SaeTraining, path: &Path, device: &Device) -> Result<Self, Error> {
        settings.check()?;
        let damaged =
            |what: String| Error::format(path, format!("not a readable checkpoint: {what}"));
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
        let text = |key: &str| {
            let value = header.metadata().as_ref().and_then(|m| m.get(key));
            value.ok_or_else(|| damaged(format!("no `{key}`")))
        };
        let step = text(STEP)?.parse().map_err(|_| damaged("`step` is not a number".into()))?;
        let scale: f64 =
            text(SCALE)?.parse().map_err(|_| damaged("`scale` is not a number".into()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
        let device = device.clone().without_autodiff();
        let reader = Reader { file, path, device };
        let silent = reader.vector(SILENT)?;
        if silent.dims() != [settings.d_sae] {
            let message =
                format!("{} features, the settings say {}", silent.dims()[0], settings.d_sae);
            return Err(damaged(message));
        }
        Ok(Self {
            settings: settings.clone(),
            parameters: reader.parameters("parameter")?,
            moments: reader.parameters("moment")?,
            silent,
            scale,
            step,
        })
    }
}

struct Reader<'a> {
    file: SafeTensors<'a>,
    path: &'a Path,
    device: Device,
}

impl Reader<'_> {
    fn parameters(&self, prefix: &str) -> Result<Parameters, Error> {
        let [w_enc, b_enc, w_dec, b_dec, threshold] = PARTS.map(|part| format!("{prefix}.{part}"));
        Ok(Parameters {
            w_enc: self.tensor(&w_enc)?,
            b_enc: self.vector(&b_enc)?,
            w_dec: self.tensor(&w_dec)?,
            b_dec: self.vector(&b_dec)?,
            threshold: self.vector(&threshold)?,
        })
    }

    fn vector(&self, name: &str) -> Result<Tensor<1>, Error> {
        self.tensor(name)
    }

    fn tensor<const D: usize>(&self, name: &str) -> Result<Tensor<D>, Error> {
        let view = self.file.tensor(name).map_err(|e| Error::format(self.path, e.to_string()))?;
        if view.dtype() != Dtype::F32 || view.shape().len() != D {
            let (dtype, shape) = (view.dtype(), view.shape());
            let message =
                format!("`{name}` is {dtype:?} {shape:?}, expected F32 of {D} dimensions");
            return Err(Error::format(self.path, message));
        }
        let values: Vec<f32> =
            view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok(Tensor::from_data(TensorData::new(values, view.shape().to_vec()), &self.device))
    }
}
