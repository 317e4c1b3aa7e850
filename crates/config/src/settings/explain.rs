//! What every setting means. The one source is the recipe that all others extend: its values and the comments beside them.

use anyhow::Result;

use super::{Settings, layers::known_keys};
use crate::recipes;

/// Tables whose keys are explained at another table.
const AS_IN: [(&str, &str); 2] = [("align.optimizer", "sft.optimizer"), ("sft.lora", "align.lora")];

/// A setting with its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Its key for `--set`.
    pub key: String,
    /// Its value in the recipe `tiny`; none if it isn't set there.
    pub value: Option<String>,
    /// Its meaning, one line.
    pub text: String,
}

/// All settings that take a value, in the order of the recipe, each with its meaning.
///
/// # Errors
/// A recipe that can't be read, which is a bug.
pub fn explanations() -> Result<Vec<Explained>> {
    let mut found = read(recipes::source(recipes::FIRST)?);
    let settings = Settings::resolve(recipes::FIRST, None, &[])?;
    let known = known_keys(&settings)?;
    let is_table = |key: &str| known.iter().any(|k| k.starts_with(&format!("{key}.")));
    // Those that are explained at another table.
    for key in known.iter().filter(|key| !is_table(key)) {
        if !found.iter().any(|e| e.key == *key) {
            found.push(Explained { key: key.clone(), value: None, text: String::new() });
        }
    }
    found.retain(|e| known.contains(&e.key) && !is_table(&e.key));
    let by_key: Vec<(String, String)> =
        found.iter().map(|e| (e.key.clone(), e.text.clone())).collect();
    for explained in found.iter_mut().filter(|e| e.text.is_empty()) {
        for (table, other) in AS_IN {
            let Some(name) = explained.key.strip_prefix(table) else { continue };
            let twin = by_key.iter().find(|(key, _)| *key == format!("{other}{name}"));
            explained.text = twin.map(|(_, text)| text.clone()).unwrap_or_default();
        }
    }
    Ok(found)
}

/// The lines `key = value # meaning` of a recipe; `# key = value # meaning` is a setting that isn't set.
fn read(recipe: &str) -> Vec<Explained> {
    let mut found: Vec<Explained> = Vec::new();
    let mut table = String::new();
    for line in recipe.lines() {
        let set = !line.starts_with('#');
        let bare = line.trim_start_matches("# ").trim_end();
        if let Some(name) = bare.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            table = name.to_owned();
        } else if let Some((name, rest)) = assignment(bare) {
            let (value, text) = split_comment(rest);
            let key = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
            let value = set.then(|| value.to_owned());
            found.push(Explained { key, value, text: text.to_owned() });
        } else if line.starts_with(' ')
            && let (Some(last), Some(more)) = (found.last_mut(), line.trim().strip_prefix("# "))
        {
            last.text = format!("{} {more}", last.text);
        }
    }
    found
}

/// `key = …`.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let (key, rest) = line.split_once(" = ")?;
    let is_key = key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    (is_key && !key.is_empty()).then_some((key, rest))
}

/// Value and comment; a `#` in quotes belongs to the value.
fn split_comment(rest: &str) -> (&str, &str) {
    let mut quoted = false;
    for (at, c) in rest.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => return (rest[..at].trim(), rest[at + 1..].trim()),
            _ => {}
        }
    }
    (rest.trim(), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oracle: the keys of the settings themselves.
    #[test]
    fn every_setting_is_explained() {
        let found = explanations().unwrap();
        let silent: Vec<&str> =
            found.iter().filter(|e| e.text.len() < 4).map(|e| e.key.as_str()).collect();
        assert!(silent.is_empty(), "recipes/tiny.toml doesn't explain {silent:?}");
        assert!(found.len() > 90, "{} settings", found.len());
    }

    #[test]
    fn lines_of_a_recipe() {
        let text = "seed = 0  # of all\n[a.b]\nx = \"#1\" # a sign\n          # that goes on\n# y = 2\n# [a.c]  # more\n# z = 1 # last\n";
        let found: Vec<(String, Option<String>, String)> =
            read(text).into_iter().map(|e| (e.key, e.value, e.text)).collect();
        let expected = [
            ("seed", Some("0"), "of all"),
            ("a.b.x", Some("\"#1\""), "a sign that goes on"),
            ("a.b.y", None, ""),
            ("a.c.z", None, "last"),
        ];
        let expected = expected.map(|(k, v, t)| (k.into(), v.map(str::to_owned), t.to_owned()));
        assert_eq!(found, expected);
    }
}
