//! The files that a model's folder holds besides its weights, and that a model made from it takes along.

use std::{fs, path::Path};

use crate::Error;

/// Endings of files with weights, or with what a training resumes from.
const WEIGHTS: [&str; 15] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "pkl",
    "gguf",
    "ggml",
    "onnx",
    "h5",
    "msgpack",
    "ot",
    "npz",
    "npy",
    "tflite",
];
/// Files about these weights alone, or about how they were trained.
const OWN: [&str; 5] = [
    "adapter_config.json",
    "metrics.jsonl",
    "stage.json",
    "trainer_state.json",
    "training_args.json",
];
/// Files that make up a tokenizer.
const TOKENIZER: [&str; 13] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];
/// The one folder of a tokenizer.
const TEMPLATES: &str = "additional_chat_templates";

/// Copies what `base` has besides weights, and `to` has not: its own tokenizer unless that of another folder is given, and
/// everything else that lies in the folder itself. Hidden files and folders stay behind.
pub(crate) fn carry(base: Option<&Path>, tokenizer: Option<&Path>, to: &Path) -> Result<(), Error> {
    if let Some(from) = tokenizer.or(base) {
        copy(from, to, |name| TOKENIZER.contains(&name))?;
        let (from, to) = (from.join(TEMPLATES), to.join(TEMPLATES));
        if from.is_dir() && !to.exists() {
            fs::create_dir(&to).map_err(Error::io(&to))?;
            copy(&from, &to, |name| name.ends_with(".jinja"))?;
        }
    }
    match base {
        Some(base) => copy(base, to, |name| !TOKENIZER.contains(&name)),
        None => Ok(()),
    }
}

fn copy(from: &Path, to: &Path, takes: impl Fn(&str) -> bool) -> Result<(), Error> {
    for entry in fs::read_dir(from).map_err(Error::io(from))? {
        let path = entry.map_err(Error::io(from))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let weights = WEIGHTS.contains(&ending.to_ascii_lowercase().as_str())
            || WEIGHTS.iter().any(|ending| name.ends_with(&format!(".{ending}.index.json")));
        // Through links, as hubs' caches have them.
        let stays = name.starts_with('.') || weights || OWN.contains(&name) || !path.is_file();
        let target = to.join(name);
        if stays || !takes(name) || target.exists() {
            continue;
        }
        // Content without permissions: a base that can't be written to must not make the copy so.
        let content = fs::read(&path).map_err(Error::io(&path))?;
        fs::write(&target, content).map_err(Error::io(&target))?;
    }
    Ok(())
}
