//! Files: SAELens 6 folders read and written, Gemma Scope's `params.npz` read.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::BufReader,
    path::Path,
};

use burn::tensor::{Device, Tensor, TensorData};
use fpo_ops::Encoder;
use npyz::npz::NpzArchive;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

use crate::{Error, JumpReluSae, Provenance};

const CONFIG: &str = "cfg.json";
const WEIGHTS: &str = "sae_weights.safetensors";
/// Files larger than this are refused before they are read: a 1M-feature autoencoder of a 27B model
/// is 37 GB.
const LARGEST: u64 = 64 << 30;
const NAMES: [&str; 5] = ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"];

/// A tensor as a file holds it.
type Array = (Vec<usize>, Vec<f32>);

/// Reads an autoencoder: a folder of SAELens 6 (`cfg.json`, `sae_weights.safetensors`), or
/// Gemma Scope's `params.npz`, named itself or by its folder.
pub fn load(path: &Path, device: &Device) -> Result<JumpReluSae, Error> {
    let npz = path.join("params.npz");
    if path.is_dir() && path.join(CONFIG).exists() {
        load_sae_lens(path, device)
    } else if path.is_dir() && npz.exists() {
        load_npz(&npz, device)
    } else if path.extension().is_some_and(|e| e == "npz") {
        load_npz(path, device)
    } else {
        let message = format!(
            "no sparse autoencoder: expected a folder with {CONFIG} and {WEIGHTS} (SAELens), or params.npz (Gemma Scope)"
        );
        Err(Error::format(path, message))
    }
}

fn load_sae_lens(folder: &Path, device: &Device) -> Result<JumpReluSae, Error> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let config: Value =
        serde_json::from_str(&text).map_err(|e| Error::format(&path, e.to_string()))?;
    let expect = |key: &str, wanted: &[Value]| match config.get(key) {
        None => Ok(()),
        Some(value) if wanted.contains(value) => Ok(()),
        Some(value) => Err(Error::format(
            &path,
            format!("{key} = {value} is not supported yet, only {}", wanted[0]),
        )),
    };
    expect("architecture", &[json!("jumprelu")])?;
    expect("apply_b_dec_to_input", &[json!(false)])?;
    expect("normalize_activations", &[json!("none"), Value::Null])?;
    let text_of = |key: &str| {
        let metadata = config.get("metadata").and_then(|m| m.get(key));
        metadata.or(config.get(key)).and_then(Value::as_str).map(str::to_owned)
    };
    let provenance =
        Provenance { model_name: text_of("model_name"), hook_name: text_of("hook_name") };

    let path = folder.join(WEIGHTS);
    bounded(&path)?;
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::format(&path, e.to_string()))?;
    let mut arrays = BTreeMap::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(Error::format(&path, format!("`{name}` is {:?}, not F32", view.dtype())));
        }
        let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        arrays.insert(name, (view.shape().to_vec(), values));
    }
    assemble(&path, arrays, provenance, device)
}

fn load_npz(path: &Path, device: &Device) -> Result<JumpReluSae, Error> {
    bounded(path)?;
    let file = File::open(path).map_err(Error::io(path))?;
    let mut archive = NpzArchive::new(BufReader::new(file)).map_err(Error::io(path))?;
    let mut arrays = BTreeMap::new();
    for name in NAMES {
        let fail = |e: std::io::Error| Error::format(path, format!("`{name}`: {e}"));
        let Some(array) = archive.by_name(name).map_err(fail)? else { continue };
        let shape: Vec<usize> = array.shape().iter().map(|&n| n as usize).collect();
        if shape.iter().try_fold(4u64, |n, &m| n.checked_mul(m as u64)).is_none_or(|n| n > LARGEST)
        {
            return Err(Error::format(path, format!("`{name}` claims the shape {shape:?}")));
        }
        if array.order() != npyz::Order::C {
            return Err(Error::format(path, format!("`{name}` is in Fortran order")));
        }
        let values = array
            .data::<f32>()
            .map_err(|e| Error::format(path, format!("`{name}` is no float32 array: {e}")))?
            .collect::<Result<Vec<f32>, _>>()
            .map_err(fail)?;
        arrays.insert(name.to_owned(), (shape, values));
    }
    assemble(path, arrays, Provenance::default(), device)
}

fn bounded(path: &Path) -> Result<(), Error> {
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    match size > LARGEST {
        true => Err(Error::format(path, format!("{size} bytes are more than the {LARGEST} read"))),
        false => Ok(()),
    }
}

/// Checks names, shapes and values, and moves them to the device.
fn assemble(
    path: &Path,
    mut arrays: BTreeMap<String, Array>,
    provenance: Provenance,
    device: &Device,
) -> Result<JumpReluSae, Error> {
    let mut take = |name: &str| {
        arrays.remove(name).ok_or_else(|| {
            Error::format(path, format!("no `{name}`: expected {}", NAMES.join(", ")))
        })
    };
    let [w_enc, b_enc, w_dec, b_dec, threshold] =
        [take("W_enc")?, take("b_enc")?, take("W_dec")?, take("b_dec")?, take("threshold")?];
    let &[d_in, d_sae] = w_enc.0.as_slice() else {
        return Err(Error::format(path, format!("W_enc is {:?}, not [d_in, d_sae]", w_enc.0)));
    };
    for (name, array, shape) in [
        ("b_enc", &b_enc, vec![d_sae]),
        ("W_dec", &w_dec, vec![d_sae, d_in]),
        ("b_dec", &b_dec, vec![d_in]),
        ("threshold", &threshold, vec![d_sae]),
    ] {
        if array.0 != shape {
            let message = format!("{name} is {:?}, W_enc makes it {shape:?}", array.0);
            return Err(Error::format(path, message));
        }
    }
    for (name, array) in NAMES.iter().zip([&w_enc, &b_enc, &w_dec, &b_dec, &threshold]) {
        if let Some(i) = array.1.iter().position(|x| !x.is_finite()) {
            return Err(Error::format(path, format!("{name} holds {} at {i}", array.1[i])));
        }
    }
    if let Some(i) = threshold.1.iter().position(|&x| x < 0.0) {
        let message = format!("threshold {i} is {}, which is negative", threshold.1[i]);
        return Err(Error::format(path, message));
    }
    fn tensor<const D: usize>((shape, values): Array, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), device)
    }
    Ok(JumpReluSae {
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

/// Writes a folder that `sae_lens.SAE.load_from_disk` opens. The folder must exist.
pub fn save_sae_lens(sae: &JumpReluSae, folder: &Path) -> Result<(), Error> {
    let config = json!({
        "architecture": "jumprelu",
        "d_in": sae.d_in(),
        "d_sae": sae.d_sae(),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": false,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": sae.provenance.model_name,
            "hook_name": sae.provenance.hook_name,
        },
    });
    let path = folder.join(CONFIG);
    std::fs::write(&path, format!("{config:#}\n")).map_err(Error::io(&path))?;

    let path = folder.join(WEIGHTS);
    let fail = |e: safetensors::SafeTensorError| Error::format(&path, e.to_string());
    let encoder = &sae.encoder;
    let arrays = [
        ("W_enc", encoder.w_enc.to_data()),
        ("b_enc", encoder.b_enc.to_data()),
        ("W_dec", sae.w_dec.to_data()),
        ("b_dec", sae.b_dec.to_data()),
        ("threshold", encoder.threshold.to_data()),
    ];
    let mut views = Vec::with_capacity(arrays.len());
    for (name, data) in &arrays {
        let view = TensorView::new(Dtype::F32, data.shape().to_vec(), data.as_bytes());
        views.push((*name, view.map_err(fail)?));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &path).map_err(fail)
}
