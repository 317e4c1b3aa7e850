//! Settings as TOML layers: known keys, merging, and `KEY=VALUE` assignments.

use anyhow::{Result, anyhow, bail};
use fpo_transformer::LoraConfig;
use toml::{Table, Value};

use super::{Settings, suggest};

/// All dotted keys, of values and of tables.
pub(super) fn known_keys(settings: &Settings) -> Result<Vec<String>> {
    // Optional tables count even if the recipe doesn't set them.
    let mut settings = settings.clone();
    settings.sft.lora.get_or_insert_default();
    settings.align.lora.get_or_insert_default();
    settings.align.early_stopping.get_or_insert_default();
    // JSON rather than TOML, which omits options that are None.
    fn walk(value: &serde_json::Value, prefix: &str, keys: &mut Vec<String>) {
        let Some(object) = value.as_object() else { return };
        for (name, value) in object {
            let key = match prefix {
                "" => name.clone(),
                _ => format!("{prefix}.{name}"),
            };
            walk(value, &key, keys);
            keys.push(key);
        }
    }
    let mut keys = Vec::new();
    walk(&serde_json::to_value(&settings)?, "", &mut keys);
    // What is left out where it has no value.
    let tables = ["sft.lora", "align.lora"].into_iter();
    let optional =
        tables.flat_map(|table| LoraConfig::OPTIONAL.map(|name| format!("{table}.{name}")));
    for key in optional.chain(["model.save_dtype".to_owned()]) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// Merges `layer` into `table`, overriding its values. An unknown key is an error that names the nearest known one.
pub(super) fn merge(table: &mut Table, layer: Table, prefix: &str, known: &[String]) -> Result<()> {
    for (name, value) in layer {
        let key = match prefix {
            "" => name.clone(),
            _ => format!("{prefix}.{name}"),
        };
        if !known.contains(&key) {
            let leaf = first_leaf(&key, &value);
            bail!("no setting `{leaf}`{}", suggest::suffix(&leaf, known));
        }
        if names_modules(&key) {
            table.insert(name, value);
            continue;
        }
        match (table.get_mut(&name), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above, &key, known)?,
            (Some(Value::Table(_)), _) => {
                bail!("`{key}` is a table of settings and can't be set to a value")
            }
            // The keys of a new table are checked too.
            (None, Value::Table(above)) => {
                let mut below = Table::new();
                merge(&mut below, above, &key, known)?;
                table.insert(name, Value::Table(below));
            }
            (_, value) => {
                table.insert(name, value);
            }
        }
    }
    Ok(())
}

/// Whether the keys of a table are names of a model's modules.
fn names_modules(key: &str) -> bool {
    ["lora.rank_pattern", "lora.alpha_pattern"].iter().any(|table| key.ends_with(table))
}

/// The full dotted name of the first leaf in `value`, which is at `key`.
fn first_leaf(key: &str, value: &Value) -> String {
    match value.as_table().and_then(|table| table.iter().next()) {
        Some((name, value)) => first_leaf(&format!("{key}.{name}"), value),
        None => key.to_owned(),
    }
}

/// `a.b=value` as nested tables; a value that isn't valid TOML is taken as a string.
pub(super) fn parse_assignment(text: &str) -> Result<Table> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| anyhow!("expected KEY=VALUE, such as align.method=dpo"))?;
    let parsed: Result<Table, _> = toml::from_str(&format!("value = {value}"));
    let mut value = match parsed {
        Ok(mut table) if table.len() == 1 => {
            table.remove("value").unwrap_or(Value::String(value.to_owned()))
        }
        _ => Value::String(value.to_owned()),
    };
    for part in key.trim().rsplit('.') {
        value = Value::Table(Table::from_iter([(part.to_owned(), value)]));
    }
    match value {
        Value::Table(table) => Ok(table),
        _ => bail!("the key is missing"),
    }
}
