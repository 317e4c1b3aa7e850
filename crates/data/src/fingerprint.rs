//! What a file was made from.

use crate::hash::hash_bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

/// Named items that a file depends on (weights, tokenizer, template, settings), each as a short text or a hash.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub BTreeMap<String, String>);

/// An item in which two fingerprints differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the item.
    pub item: String,
    /// The value expected, if that fingerprint has the item.
    pub expected: Option<String>,
    /// The value found, if that fingerprint has the item.
    pub found: Option<String>,
}

impl Fingerprint {
    /// Adds an item; use it in a chain.
    #[must_use]
    pub fn with(mut self, item: &str, value: impl Display) -> Self {
        self.0.insert(item.to_owned(), value.to_string());
        self
    }

    /// Every item that differs, by name. Empty if `found` is the one expected.
    pub fn differences(&self, found: &Self) -> Vec<Difference> {
        let items: BTreeSet<&String> = self.0.keys().chain(found.0.keys()).collect();
        items
            .into_iter()
            .filter(|item| self.0.get(*item) != found.0.get(*item))
            .map(|item| Difference {
                item: item.clone(),
                expected: self.0.get(item).cloned(),
                found: found.0.get(item).cloned(),
            })
            .collect()
    }

    /// Content hash (hex): a fingerprint can itself be an item of another one.
    pub fn hash(&self) -> String {
        let mut bytes = Vec::new();
        for text in self.0.iter().flat_map(|(item, value)| [item, value]) {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        hash_bytes(&bytes)
    }

    /// As a JSON object, for file metadata.
    pub(crate) fn to_json(&self) -> String {
        serde_json::Value::from_iter(self.0.clone()).to_string()
    }
}

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
    fn the_hash_tells_items_from_values() {
        let hashes = [("ab", "c"), ("a", "bc"), ("", "abc")]
            .map(|(item, value)| Fingerprint::default().with(item, value).hash());
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2]);
        let a = Fingerprint::default().with("x", 1).with("y", 2);
        assert_eq!(a.hash(), Fingerprint::default().with("y", 2).with("x", 1).hash());
        assert_eq!(serde_json::from_str::<Fingerprint>(&a.to_json()).unwrap(), a);
    }
}
