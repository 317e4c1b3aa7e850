//! `fpo sae encode`: features or reconstructions of the activations in a safetensors file.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Tensor, TensorData};
use clap::Args;
use fpo_data::atomic;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::loaded::DeviceArg;

/// Rows per batch.
const ROWS: usize = 4096;

/// Encodes activations from a file with an autoencoder
///
/// Reads float32 tensors [..., d_in] from a safetensors file, such as the one that `fpo activations` writes with
/// --tensor activations, and writes the features [..., d_sae] under the same names. With --reconstruct it writes
/// reconstructions [..., d_in] instead.
///
/// Example:
///   fpo sae encode --sae sae --input activations.safetensors --tensor activations --out features.safetensors
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Encode {
    /// The autoencoder: SAELens, Gemma Scope, Llama Scope, Qwen-Scope, sparsify or dictionary_learning.
    #[arg(long, value_name = "PATH")]
    sae: PathBuf,
    /// The safetensors file with activations.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The tensor to encode [default: all tensors in the file].
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// The safetensors file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Writes reconstructions of the activations instead of features.
    #[arg(long)]
    reconstruct: bool,
    #[command(flatten)]
    device: DeviceArg,
}

/// A float32 tensor of the output.
struct Encoded {
    name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Encode {
    pub fn run(self) -> Result<()> {
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
        for name in names {
            let view = file.tensor(name)?;
            let one = self
                .encode(&sae, name, &view, &device)
                .with_context(|| format!("{}: tensor `{name}`", self.input.display()))?;
            encoded.push(one);
        }
        write(&self.out, &encoded)?;
        for Encoded { name, shape, .. } in &encoded {
            println!("{name}  {shape:?}");
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
        if view.dtype() != Dtype::F32 {
            bail!("its type is {:?}, expected F32", view.dtype());
        }
        if shape.last() != Some(&d_in) {
            bail!(
                "its shape is {shape:?}, but the autoencoder expects activations of width {d_in}"
            );
        }
        let values: Vec<f32> =
            view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
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
        Ok(Encoded { name: name.to_owned(), shape, bytes })
    }
}

fn write(path: &Path, tensors: &[Encoded]) -> Result<()> {
    let mut views = Vec::with_capacity(tensors.len());
    for Encoded { name, shape, bytes } in tensors {
        views.push((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?));
    }
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>)?;
    atomic::write_file(path, |file| -> Result<()> {
        std::io::Write::write_all(file, &bytes)
            .with_context(|| format!("writing {}", path.display()))
    })
}
