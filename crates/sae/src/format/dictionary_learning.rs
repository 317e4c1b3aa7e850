//! dictionary_learning: `config.json` and `ae.pt`, with a class for each kind of autoencoder.

use std::path::Path;

use burn::tensor::Device;
use fpo_ops::Normalization;
use serde_json::Value;

use super::{
    arrays::{Layout, Stored},
    number_of, read_config, resid_post, text_of, torch,
};
use crate::{Error, Provenance, Sae};

const CONFIG: &str = "config.json";
pub(super) const WEIGHTS: &str = "ae.pt";

pub(super) fn load(folder: &Path, device: &Device) -> Result<Sae, Error> {
    let path = folder.join(CONFIG);
    let config = read_config(&path)?;
    let wrong = |message: String| Error::format(&path, message);
    let trainer = config.get("trainer").unwrap_or(&Value::Null);
    let class = text_of(trainer, "dict_class");
    let class = class.ok_or_else(|| wrong("no `trainer.dict_class`".into()))?;
    // Whether the class encodes x − b_dec.
    let (stored, subtracts) = match class.as_str() {
        "AutoEncoder" => (Stored::Relu, true),
        "AutoEncoderTopK" => {
            let k = number_of(trainer, "k");
            let k = k.ok_or_else(|| wrong("no whole number `trainer.k`".into()))?;
            (Stored::TopK { k }, true)
        }
        "BatchTopKSAE" | "MatryoshkaBatchTopKSAE" => (Stored::JumpRelu, true),
        "JumpReluAutoEncoder" => (Stored::JumpRelu, false),
        other => {
            return Err(wrong(format!(
                "dict_class `{other}` is not supported, only AutoEncoder, AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE and JumpReluAutoEncoder"
            )));
        }
    };

    let path = folder.join(WEIGHTS);
    // What training keeps beside the weights: k and the sizes of groups, and a threshold that a TopK doesn't encode with.
    let left_out: &[&str] = match stored {
        Stored::TopK { .. } => &["k", "threshold"],
        Stored::Relu | Stored::JumpRelu => &["k", "group_sizes"],
    };
    let mut arrays = torch::read(&path, left_out)?;
    // `nn.Linear`s hold [outputs, inputs], plain matrices [inputs, outputs].
    arrays.transpose(&["encoder.weight", "decoder.weight"]);
    let names = [
        ("encoder.weight", "W_enc"),
        ("encoder.bias", "b_enc"),
        ("decoder.weight", "W_dec"),
        ("bias", "b_dec"),
    ];
    arrays.rename(&path, &names)?;
    if subtracts {
        arrays.fold_subtraction();
    }
    let site = number_of(trainer, "layer").zip(text_of(trainer, "submodule_name"));
    let layout = Layout {
        stored,
        normalization: Normalization::None,
        sizes: [number_of(trainer, "activation_dim"), number_of(trainer, "dict_size")],
        provenance: Provenance {
            model_name: text_of(trainer, "lm_name"),
            hook_name: site
                .filter(|(_, module)| module.starts_with("resid_post"))
                .map(|(layer, _)| resid_post(layer)),
        },
    };
    arrays.assemble(layout, &path, device)
}
