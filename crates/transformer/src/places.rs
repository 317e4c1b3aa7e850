//! The fields of PEFT's `adapter_config.json` that say where adapters are.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::{
    LanguageModel, LoraConfig, Projection,
    adapter::number,
    multimodal::{inside, spellings},
    targets::module_name,
    weights::parameters,
};

/// The fields for adapters of a base that is `multimodal` or not: those of the configuration, if PEFT chooses the same modules by
/// them. In a multimodal model a name such as `q_proj` is also that of a module of the vision tower, so every module is named whole;
/// and so it is where the configuration has the names of another base.
pub(crate) fn fields(
    model: &LanguageModel,
    config: &LoraConfig,
    multimodal: bool,
) -> [(&'static str, Value); 6] {
    let layers = 0..model.config().num_hidden_layers;
    let linears = || layers.clone().flat_map(|layer| Projection::ALL.map(|p| (layer, p)));
    let sizes = |layer, module: &String| config.sizes(layer, &spellings(module));
    let same = |(layer, projection)| {
        let module = module_name(layer, projection);
        config.sizes(layer, std::slice::from_ref(&module)) == sizes(layer, &module)
    };
    let whole = parameters(model).into_iter().filter(|tensor| config.saves(&tensor.name));
    let module = |tensor: String| tensor.rsplit_once('.').map(|(module, _)| module.to_owned());
    let whole: BTreeSet<String> = whole.filter_map(|tensor| module(tensor.name)).collect();
    if !multimodal && linears().all(same) && whole.iter().all(|name| config.saves_module(name)) {
        let layers = Some(&config.layers_to_transform).filter(|layers| !layers.is_empty());
        let modules = Some(&config.modules_to_save).filter(|modules| !modules.is_empty());
        return [
            ("target_modules", json!(config.target_modules)),
            ("exclude_modules", json!(config.exclude_modules)),
            ("layers_to_transform", json!(layers)),
            ("modules_to_save", json!(modules)),
            ("rank_pattern", json!(config.rank_pattern)),
            ("alpha_pattern", json!(config.alpha_pattern)),
        ];
    }

    let name = |module: &str| if multimodal { inside(module) } else { module.to_owned() };
    let (mut targets, mut ranks, mut alphas) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for (layer, projection) in linears() {
        let module = module_name(layer, projection);
        let Some((rank, alpha)) = sizes(layer, &module) else { continue };
        let module = name(&module);
        let pattern = regex::escape(&module);
        targets.push(module);
        if rank != config.rank {
            ranks.insert(pattern.clone(), rank);
        }
        if alpha != config.alpha {
            alphas.insert(pattern, number(alpha));
        }
    }
    let whole: Vec<String> = whole.iter().map(|module| name(module)).collect();
    [
        ("target_modules", json!(targets)),
        ("exclude_modules", Value::Null),
        ("layers_to_transform", Value::Null),
        ("modules_to_save", json!(Some(whole).filter(|names| !names.is_empty()))),
        ("rank_pattern", json!(ranks)),
        ("alpha_pattern", json!(alphas)),
    ]
}
