//! The language model inside a multimodal checkpoint.

use std::{collections::BTreeMap, path::Path};

use crate::{Error, Family, families};

/// What precedes the language model's own names, as published and as transformers 5 holds them in memory, and what it replaces.
const LANGUAGE_MODEL: [(&str, &str); 3] = [
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
];
/// What precedes the names of the parts that read images.
const VISION: [&str; 4] = [
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
];

/// The tensors of a checkpoint under the names that the language model alone gives them, without those that read images.
pub(crate) fn language_model<T>(
    family: Family,
    tensors: BTreeMap<String, T>,
) -> BTreeMap<String, T> {
    match family {
        Family::Gemma3 => tensors
            .into_iter()
            .filter(|(name, _)| !is_vision(name))
            .map(|(name, tensor)| (stripped(&name).unwrap_or(name), tensor))
            .collect(),
        Family::Gemma2 | Family::Llama | Family::Qwen2 | Family::Qwen3 => tensors,
    }
}

/// The names that a module or parameter of the language model may have: its own first, then those in a multimodal model.
pub(crate) fn spellings(name: &str) -> Vec<String> {
    // A module's name has no dot at its end.
    let dotted = format!("{name}.");
    let inside = LANGUAGE_MODEL.iter().filter_map(|(prefix, own)| {
        let rest = dotted.strip_prefix(own)?;
        Some(format!("{prefix}{rest}").trim_end_matches('.').to_owned())
    });
    std::iter::once(name.to_owned()).chain(inside).collect()
}

/// The name that a module or parameter of the language model has in transformers' multimodal model.
pub(crate) fn inside(name: &str) -> String {
    match name.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => name.to_owned(),
    }
}

/// Whether a checkpoint's folder holds a multimodal model.
pub(crate) fn is_multimodal(folder: &Path) -> Result<bool, Error> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let config: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Error::Config { path: path.clone(), message: e.to_string() })?;
    Ok(config["model_type"] == families::MULTIMODAL.0)
}

/// Whether a tensor belongs to a part that reads images.
pub(crate) fn is_vision(name: &str) -> bool {
    VISION.iter().any(|prefix| name.starts_with(prefix))
}

fn stripped(name: &str) -> Option<String> {
    LANGUAGE_MODEL
        .iter()
        .find_map(|(prefix, own)| name.strip_prefix(prefix).map(|rest| format!("{own}{rest}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_several_spellings() {
        for (name, expected) in [
            ("lm_head", vec!["lm_head", "language_model.lm_head"]),
            ("lm_head.weight", vec!["lm_head.weight", "language_model.lm_head.weight"]),
            (
                "model.layers.1.mlp",
                vec![
                    "model.layers.1.mlp",
                    "language_model.model.layers.1.mlp",
                    "model.language_model.layers.1.mlp",
                ],
            ),
        ] {
            assert_eq!(spellings(name), expected);
            assert!(expected.contains(&inside(name).as_str()));
        }
    }

    #[test]
    fn every_spelling_is_the_language_models() {
        for (stored, own) in [
            (
                "language_model.model.layers.0.mlp.up_proj.weight",
                Some("model.layers.0.mlp.up_proj.weight"),
            ),
            ("model.language_model.norm.weight", Some("model.norm.weight")),
            ("language_model.lm_head.weight", Some("lm_head.weight")),
            ("model.norm.weight", Some("model.norm.weight")),
            ("vision_tower.vision_model.post_layernorm.bias", None),
            ("model.multi_modal_projector.mm_soft_emb_norm.weight", None),
        ] {
            let tensors = BTreeMap::from([(stored.to_owned(), ())]);
            let found = language_model(Family::Gemma3, tensors.clone());
            assert_eq!(found.into_keys().next().as_deref(), own, "{stored}");
            assert_eq!(language_model(Family::Llama, tensors.clone()), tensors);
        }
    }
}
