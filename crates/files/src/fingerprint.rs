//! Fingerprints: what a file was made from.

use crate::hash::hash_bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

/// Separates an item from the name of its explanation.
const EXPLANATION: &str = " / ";

/// Named items that a file depends on (weights, tokenizer, template, settings), each a short text or a hash.
///
/// An item can be *explained* by others ([`Self::explained_by`]), which say how it came about. Explanations are stored, but ignored
/// by equality and by the hash, and a difference between them is reported only where the items they explain differ: two settings
/// that produce the same tokens are as good as one, and when the tokens differ, the settings say why.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub BTreeMap<String, String>);

/// An item that differs between two fingerprints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the item.
    pub item: String,
    /// The expected value; `None` if that fingerprint lacks the item.
    pub expected: Option<String>,
    /// The value found; `None` if that fingerprint lacks the item.
    pub found: Option<String>,
}

impl Fingerprint {
    /// Adds an item.
    #[must_use]
    pub fn with(mut self, item: &str, value: impl Display) -> Self {
        self.0.insert(item.to_owned(), value.to_string());
        self
    }

    /// Adds explanations of an item.
    #[must_use]
    pub fn explained_by(mut self, item: &str, explanation: &Self) -> Self {
        let explains = |(name, value): (&String, &String)| {
            (format!("{item}{EXPLANATION}{name}"), value.clone())
        };
        self.0.extend(explanation.0.iter().map(explains));
        self
    }

    /// Every item that differs, by name: empty if `found` is as expected. Explanations that differ are listed in place of their
    /// item.
    pub fn differences(&self, found: &Self) -> Vec<Difference> {
        let items: BTreeSet<&String> =
            self.items().chain(found.items()).map(|(item, _)| item).collect();
        let mut differences = Vec::new();
        for item in items.into_iter().filter(|item| self.0.get(*item) != found.0.get(*item)) {
            let explained = self.explanations(found, item);
            match explained.is_empty() {
                true => differences.push(self.difference(found, item, item)),
                false => differences.extend(explained),
            }
        }
        differences
    }

    /// Differences between the explanations that both fingerprints have of an item.
    fn explanations(&self, found: &Self, item: &str) -> Vec<Difference> {
        let prefix = format!("{item}{EXPLANATION}");
        let names = self.0.keys().filter_map(|key| Some((key, key.strip_prefix(&prefix)?)));
        names
            .filter(|(key, _)| found.0.get(*key).is_some_and(|value| *value != self.0[*key]))
            .map(|(key, name)| self.difference(found, key, name))
            .collect()
    }

    fn difference(&self, found: &Self, key: &str, name: &str) -> Difference {
        Difference {
            item: name.to_owned(),
            expected: self.0.get(key).cloned(),
            found: found.0.get(key).cloned(),
        }
    }

    /// The items without explanations.
    fn items(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter().filter(|(key, _)| !key.contains(EXPLANATION))
    }

    /// What changed since `then`, in words, setting by setting: items that are JSON objects are compared field by field, and a hash
    /// is only named. `align.alpha is 1.0, was 0.5, data`
    pub fn changes(&self, then: &Self) -> String {
        let value = |text: Option<String>| match text {
            None => Value::Null,
            Some(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        };
        let mut changes = Vec::new();
        for Difference { item, expected, found } in self.differences(then) {
            add_changes(item, &value(expected), &value(found), &mut changes);
        }
        changes.join(", ")
    }

    /// Content hash (hex), so that a fingerprint can be an item of another one.
    pub fn hash(&self) -> String {
        let mut bytes = Vec::new();
        for text in self.items().flat_map(|(item, value)| [item, value]) {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        hash_bytes(&bytes)
    }

    /// As a JSON object, for file metadata.
    pub fn to_json(&self) -> String {
        serde_json::Value::from_iter(self.0.clone()).to_string()
    }
}

fn add_changes(key: String, now: &Value, then: &Value, changes: &mut Vec<String>) {
    match (now, then) {
        (Value::Object(fields), Value::Object(others)) => {
            let all: BTreeSet<&String> = fields.keys().chain(others.keys()).collect();
            for field in all {
                let [now, then] = [fields, others].map(|f| f.get(field).unwrap_or(&Value::Null));
                if now != then {
                    add_changes(format!("{key}.{field}"), now, then, changes);
                }
            }
        }
        (Value::String(hash), _) if hash.len() > 40 => changes.push(key),
        _ => changes.push(format!("{key} is {now}, was {then}")),
    }
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.items().eq(other.items())
    }
}

impl Eq for Fingerprint {}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| {
            value.as_ref().map_or("nothing".to_owned(), |value| format!("`{value}`"))
        };
        write!(f, "{}: expected {}, found {}", self.item, show(&self.expected), show(&self.found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_every_item() {
        let ours = Fingerprint::default().with("a", 1).with("b", 2).with("c", 3);
        let theirs = Fingerprint::default().with("b", 5).with("c", 3).with("d", 4);
        let shown: Vec<String> =
            ours.differences(&theirs).iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "a: expected `1`, found nothing",
                "b: expected `2`, found `5`",
                "d: expected nothing, found `4`"
            ]
        );
        assert_eq!(ours.differences(&ours), []);
    }

    #[test]
    fn explanations_count_only_where_their_item_differs() {
        let tokens = |hash, template, length| {
            let how = Fingerprint::default().with("template", template).with("length", length);
            Fingerprint::default().with("tokens", hash).with("site", 1).explained_by("tokens", &how)
        };
        let (ours, alike) = (tokens("a", "x", 8), tokens("a", "y", 9));
        assert_eq!(ours, alike);
        assert_eq!((ours.hash(), ours.differences(&alike)), (alike.hash(), vec![]));
        let bare = Fingerprint::default().with("tokens", "b").with("site", 1);
        assert_eq!(bare.hash(), tokens("b", "x", 8).hash());
        let shown = |found: &Fingerprint| -> Vec<String> {
            ours.differences(found).iter().map(ToString::to_string).collect()
        };
        assert_eq!(shown(&tokens("b", "y", 8)), ["template: expected `x`, found `y`"]);
        // Nothing explains it, or nothing is known.
        for found in [tokens("b", "x", 8), bare] {
            assert_eq!(shown(&found), ["tokens: expected `a`, found `b`"]);
        }
        let read: Fingerprint = serde_json::from_str(&ours.to_json()).unwrap();
        assert_eq!(read.0, ours.0, "explanations are stored");
    }

    #[test]
    fn changes_are_told_setting_by_setting() {
        let of = |align: &str, data: char| {
            let hash = data.to_string().repeat(64);
            Fingerprint::default().with("align", align).with("data", hash).with("seed", 3)
        };
        let now = of(r#"{"alpha": 1.0, "k": 50, "lora": {"rank": 4}}"#, 'a');
        let then = of(r#"{"alpha": 0.5, "k": 50, "lora": {"rank": 8}}"#, 'b');
        let expected = "align.alpha is 1.0, was 0.5, align.lora.rank is 4, was 8, data";
        assert_eq!(now.changes(&then), expected);
        assert_eq!(now.changes(&now), "");
    }

    #[test]
    fn the_hash_tells_items_from_values() {
        let hashes = [("ab", "c"), ("a", "bc"), ("", "abc")]
            .map(|(item, value)| Fingerprint::default().with(item, value).hash());
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2]);
        let a = Fingerprint::default().with("x", 1).with("y", 2);
        assert_eq!(a.hash(), Fingerprint::default().with("y", 2).with("x", 1).hash());
        assert_eq!(serde_json::from_str::<Fingerprint>(&a.to_json()).unwrap(), a);
    }
}
