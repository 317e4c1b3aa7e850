//! `fpo sae encode`: features or reconstructions of the activations in a safetensors file.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Tensor, TensorData};
use clap::Args;
use fpo_data::atomic;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{loaded::DeviceArg, streams};

/// Rows per batch.
const ROWS: usize = 4096;

/// Encodes activations from a file with an autoencoder
///
/// Reads the tensors [..., d_in] of a safetensors file, in float32, float16 or bfloat16, and writes the features
/// [..., d_sae] under the same names, in float32. With --reconstruct it writes reconstructions [..., d_in] instead.
///
/// It takes what `fpo activations` writes: the columns beside the activations (tokens, sequence, position, special,
/// response) have another shape or type, and are copied as they are.
///
/// Example:
///   fpo sae encode --sae sae --input activations.safetensors --out features.safetensors
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Encode {
    /// The autoencoder: SAELens, Gemma Scope, Llama Scope, Qwen-Scope, sparsify or dictionary_learning.
    #[arg(long, value_name = "PATH")]
    sae: PathBuf,
    /// The safetensors file with activations.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    input: PathBuf,
    /// The tensor to encode, alone [default: all of floating-point numbers whose last dimension is d_in; the others are copied].
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// The safetensors file to write.
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    out: PathBuf,
    /// Writes reconstructions of the activations instead of features.
    #[arg(long)]
    reconstruct: bool,
    #[command(flatten)]
    device: DeviceArg,
}

/// A tensor of the output.
struct Encoded {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Encode {
    pub fn run(self) -> Result<()> {
        streams::keep_apart(&self.out, &[&self.input, &self.sae])?;
        let device = self.device.open()?;
        let sae = fpo_sae::load(&self.sae, &device)?;
        let bytes = std::fs::read(&self.input)
            .with_context(|| format!("reading {}", self.input.display()))?;
        let file = SafeTensors::deserialize(&bytes)
            .with_context(|| format!("{} is not a valid safetensors file", self.input.display()))?;
        let mut names: Vec<&str> = file.names();
        names.sort_unstable();
        if let Some(wanted) = &self.tensor {
            names.retain(|name| name == wanted);
        }
        if names.is_empty() {
            let wanted = self.tensor.as_deref().unwrap_or("any");
            bail!("{}: no tensor `{wanted}`; it has {:?}", self.input.display(), file.names());
        }
        let mut encoded = Vec::with_capacity(names.len());
        let fits =
            |view: &TensorView| is_float(view.dtype()) && view.shape().last() == Some(&sae.d_in());
        if self.tensor.is_none() {
            let views: Vec<TensorView> =
                names.iter().map(|name| file.tensor(name)).collect::<Result<_, _>>()?;
            if !views.iter().any(fits) {
                let found = names.iter().zip(&views);
                let found: Vec<String> = found
                    .map(|(name, view)| format!("{name} {:?} {:?}", view.dtype(), view.shape()))
                    .collect();
                bail!(
                    "{}: no tensor of floating-point numbers has the autoencoder's width {} as its last dimension; it has {}",
                    self.input.display(),
                    sae.d_in(),
                    found.join(", ")
                );
            }
        }
        for name in names {
            let view = file.tensor(name)?;
            if self.tensor.is_none() && !fits(&view) {
                let (name, bytes) = (name.to_owned(), view.data().to_vec());
                let (dtype, shape) = (view.dtype(), view.shape().to_vec());
                encoded.push(Encoded { name, dtype, shape, bytes });
                continue;
            }
            let one = self
                .encode(&sae, name, &view, &device)
                .with_context(|| format!("{}: tensor `{name}`", self.input.display()))?;
            encoded.push(one);
        }
        write(&self.out, &encoded)?;
        for Encoded { name, shape, .. } in &encoded {
            streams::report(&self.out, &format!("{name}  {shape:?}"))?;
        }
        Ok(())
    }

    fn encode(
        &self,
        sae: &fpo_sae::Sae,
        name: &str,
        view: &TensorView<'_>,
        device: &Device,
    ) -> Result<Encoded> {
        let (d_in, mut shape) = (sae.d_in(), view.shape().to_vec());
        if !is_float(view.dtype()) {
            bail!("its type is {:?}, expected F32, F16 or BF16", view.dtype());
        }
        if shape.last() != Some(&d_in) {
            bail!(
                "its shape is {shape:?}, but the autoencoder expects activations of width {d_in}"
            );
        }
        let values = floats(view);
        let mut bytes = Vec::new();
        for rows in values.chunks(ROWS * d_in) {
            let data = TensorData::new(rows.to_vec(), [rows.len() / d_in, d_in]);
            let x = Tensor::<2>::from_data(data, device);
            let output = if self.reconstruct { sae.reconstruct(x) } else { sae.encode(x) };
            bytes.extend(output.into_data().iter::<f32>().flat_map(f32::to_le_bytes));
        }
        if !self.reconstruct
            && let Some(width) = shape.last_mut()
        {
            *width = sae.d_sae();
        }
        Ok(Encoded { name: name.to_owned(), dtype: Dtype::F32, shape, bytes })
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The values of a tensor for which [`is_float`] holds.
fn floats(view: &TensorView) -> Vec<f32> {
    let pairs = || view.data().as_chunks().0.iter();
    match view.dtype() {
        Dtype::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

fn write(path: &Path, tensors: &[Encoded]) -> Result<()> {
    let mut views = Vec::with_capacity(tensors.len());
    for Encoded { name, dtype, shape, bytes } in tensors {
        views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?));
    }
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>)?;
    atomic::write_file(path, |file| -> Result<()> {
        std::io::Write::write_all(file, &bytes)
            .with_context(|| format!("writing {}", path.display()))
    })
}
