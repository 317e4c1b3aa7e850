//! `generation_config.json`: of its settings, the tokens that end a generation.

use std::{fs, io, path::Path};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Error, ModelConfig};

pub(crate) const FILE: &str = "generation_config.json";

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// The tokens that end a generation, if the folder's file names any. They take precedence over those in `config.json`.
pub(crate) fn end_tokens(folder: &Path) -> Result<Option<Vec<u32>>, Error> {
    let path = folder.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path)(e)),
    };
    let fail = |e: serde_json::Error| Error::Config { path: path.clone(), message: e.to_string() };
    let fields: Map<String, Value> = serde_json::from_str(&text).map_err(fail)?;
    let Some(eos) = fields.get("eos_token_id").filter(|eos| !eos.is_null()) else {
        return Ok(None);
    };
    let eos = serde_json::from_value(eos.clone()).map_err(|_| Error::Config {
        path: path.clone(),
        message: format!("eos_token_id = {eos}: expected a token's id, or a list of them"),
    })?;
    Ok(match eos {
        OneOrMany::One(id) => Some(vec![id]),
        OneOrMany::Many(ids) => Some(ids).filter(|ids| !ids.is_empty()),
    })
}

/// The file of a model that comes from no other.
pub(crate) fn of(config: &ModelConfig) -> Value {
    json!({
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids,
        "pad_token_id": config.pad_token_id,
    })
}
