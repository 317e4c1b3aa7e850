//! What is wrong between a model's configuration and its weights, in a few lines.

use std::collections::BTreeSet;

use crate::ModelConfig;

/// Names listed of each kind, at most.
const MOST_NAMES: usize = 6;

/// Tensors that don't fit.
#[derive(Debug, Default)]
pub(crate) struct Mismatch {
    /// Parameters that the files lack.
    pub missing: Vec<String>,
    /// Tensors that are no parameters.
    pub unknown: Vec<String>,
    /// Sentences about parameters of another shape or type.
    pub wrong: Vec<String>,
}

impl Mismatch {
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unknown.is_empty() && self.wrong.is_empty()
    }

    /// The cause, where it can be told from the names, and a few lines of each kind with a count of the others.
    pub fn lines(&self, config: &ModelConfig) -> Vec<String> {
        let mut lines: Vec<String> = self.cause(config).into_iter().collect();
        let kinds = [
            (&self.missing, " is missing", "missing"),
            (&self.unknown, " is not part of the model", "not part of the model"),
            (&self.wrong, "", "of the wrong shape or type"),
        ];
        for (names, says, others) in kinds {
            lines.extend(names.iter().take(MOST_NAMES).map(|name| format!("{name}{says}")));
            if names.len() > MOST_NAMES {
                lines.push(format!("and {} more are {others}", names.len() - MOST_NAMES));
            }
        }
        lines
    }

    fn cause(&self, config: &ModelConfig) -> Option<String> {
        let any = |part: &str| self.unknown.iter().any(|name| name.contains(part));
        if any(".lora_A.") {
            return Some(
                "these are adapters: give their base model, and merge them with `fpo merge`".into(),
            );
        }
        if [".qweight", ".weight_packed", ".absmax", ".weight_scale"].into_iter().any(any) {
            return Some(
                "the weights are quantised: use the checkpoint they were made from".into(),
            );
        }
        let layers = |names: &[String]| -> BTreeSet<usize> {
            let number = |name: &String| {
                let (_, rest) = name.split_once("layers.")?;
                rest.split('.').next()?.parse().ok()
            };
            names.iter().filter_map(number).collect()
        };
        let (missing, unknown) = (layers(&self.missing), layers(&self.unknown));
        let says = config.num_hidden_layers;
        // The files end earlier, or go on, and all else of the decoder is there.
        let lacks_only = missing.last() == Some(&(says - 1)) && unknown.is_empty();
        let first = missing.first().copied().unwrap_or(0);
        if lacks_only && first > 0 && missing.len() == says - first {
            return Some(format!(
                "config.json says num_hidden_layers = {says}, the files have {first}: an unfinished download, or another model's file"
            ));
        }
        match (unknown.first(), unknown.last()) {
            (Some(&first), Some(last)) if first == says && missing.is_empty() => Some(format!(
                "config.json says num_hidden_layers = {says}, the files have {}",
                last + 1
            )),
            _ if self.missing.len() > MOST_NAMES && self.unknown.len() > MOST_NAMES => Some(
                "the files hold a model of another architecture than config.json describes".into(),
            ),
            _ => None,
        }
    }
}
