//! Which linear layers get an adapter, and with what rank: PEFT's names, full names and regular expressions.

use std::{collections::BTreeSet, fmt};

use regex::Regex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Projection, multimodal::spellings};

/// PEFT's word for all linear layers of the blocks.
const ALL_LINEAR: &str = "all-linear";

/// A linear layer of a model, named as in PEFT: `model.layers.0.self_attn.q_proj`.
pub(crate) fn module_name(layer: usize, projection: Projection) -> String {
    format!("model.layers.{layer}.{}", projection.path())
}

/// A set of linear layers: all of them, a list of names, or a regular expression that their full names match as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Targets(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    All,
    /// Names such as `q_proj`, `self_attn.q_proj` or `model.layers.3.self_attn.q_proj`.
    Names(BTreeSet<String>),
    Pattern(Pattern),
}

/// As PEFT writes them.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    One(String),
    Several(Vec<String>),
}

impl Targets {
    /// PEFT's "all-linear".
    pub fn all() -> Self {
        Self(Kind::All)
    }

    /// Of these names.
    pub(crate) fn names(names: impl IntoIterator<Item = String>) -> Self {
        let names: BTreeSet<String> = names.into_iter().collect();
        let all = Projection::ALL.map(|projection| projection.name().to_owned());
        match names == BTreeSet::from(all) {
            true => Self::all(),
            false => Self(Kind::Names(names)),
        }
    }

    /// Whether a layer is one of them, by any of the names that it may have.
    pub(crate) fn contains(&self, names: &[String]) -> bool {
        let is_one = |module: &String| match &self.0 {
            Kind::All => true,
            Kind::Names(names) => names.iter().any(|name| is_name_of(name, module)),
            Kind::Pattern(pattern) => pattern.regex.is_match(module),
        };
        names.iter().any(is_one)
    }

    /// Whether it is a regular expression.
    pub(crate) fn is_pattern(&self) -> bool {
        matches!(self.0, Kind::Pattern(_))
    }

    /// Checks that every name is that of a linear layer of a block, or one that `also` knows; the error is a sentence.
    pub(crate) fn check(&self, also: fn(&str) -> bool) -> Result<(), String> {
        let Kind::Names(names) = &self.0 else { return Ok(()) };
        if names.is_empty() {
            return Err("no target modules".into());
        }
        match names.iter().find(|name| !is_of_a_block(name) && !also(name)) {
            None => Ok(()),
            Some(name) => Err(format!(
                "target module `{name}`: adapters fit {}, also with a part of their paths before, as in \
                 model.layers.0.self_attn.q_proj, or \"{ALL_LINEAR}\"",
                Projection::ALL.map(Projection::name).join(", ")
            )),
        }
    }
}

/// In the order of a block's layers.
fn ordered(names: &BTreeSet<String>) -> Vec<&str> {
    let place = |name: &str| Projection::ALL.iter().position(|p| p.name() == name);
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.sort_by_key(|name| place(name).unwrap_or(usize::MAX));
    names
}

/// Whether PEFT takes `name` for `module`: it is the whole name or its last parts.
fn is_name_of(name: &str, module: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Whether a name is that of a linear layer in some block.
pub(crate) fn is_of_a_block(name: &str) -> bool {
    let mut parts = name.split('.');
    let layer = parts.find_map(|part| part.parse().ok()).unwrap_or(0);
    let modules = Projection::ALL.into_iter().map(|projection| module_name(layer, projection));
    modules.flat_map(|module| spellings(&module)).any(|module| is_name_of(name, &module))
}

/// Whether a name is that of the embedding or the unembedding.
pub(crate) fn is_of_tokens(name: &str) -> bool {
    let modules = ["lm_head", "model.embed_tokens"].into_iter().flat_map(spellings);
    modules.into_iter().any(|module| is_name_of(name, &module))
}

impl TryFrom<Written> for Targets {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::One(text) if text.eq_ignore_ascii_case(ALL_LINEAR) => Ok(Self::all()),
            Written::One(text) => {
                let pattern = Pattern::new(&text, format!("^(?:{text})$"));
                // A word alone is a list of one that lost its brackets, or a misspelt "all-linear".
                let is_name = text.chars().all(|c| c.is_alphanumeric() || "_-".contains(c));
                match is_name {
                    true => Err(format!(
                        "target modules \"{text}\": expected \"{ALL_LINEAR}\", a list of names or a regular expression"
                    )),
                    false => pattern.map(Kind::Pattern).map(Self),
                }
            }
            Written::Several(names) => Ok(Self::names(names)),
        }
    }
}

impl From<Targets> for Written {
    fn from(targets: Targets) -> Self {
        match targets.0 {
            Kind::All => Self::Several(Projection::ALL.map(|p| p.name().to_owned()).to_vec()),
            Kind::Names(names) => {
                Self::Several(ordered(&names).into_iter().map(str::to_owned).collect())
            }
            Kind::Pattern(pattern) => Self::One(pattern.text),
        }
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::All => f.write_str(&Projection::ALL.map(Projection::name).join(", ")),
            Kind::Pattern(pattern) => f.write_str(&pattern.text),
            Kind::Names(names) => f.write_str(&ordered(names).join(", ")),
        }
    }
}

/// A regular expression for modules' names.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Pattern {
    /// `text` as the user wrote it, and what is matched.
    fn new(text: &str, regex: String) -> Result<Self, String> {
        let regex = Regex::new(&regex);
        let regex = regex.map_err(|e| format!("the regular expression `{text}`: {e}"))?;
        Ok(Self { text: text.to_owned(), regex })
    }
}

/// Values for the modules whose names match a pattern, in PEFT's sense: `(.*\.)?(PATTERN)$`. Of several that match, the first in
/// alphabetical order counts, because PEFT sorts them when it saves.
#[derive(Clone, Debug, PartialEq)]
pub struct Patterns<T>(Vec<(Pattern, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy> Patterns<T> {
    /// The value for a module that has these names.
    pub(crate) fn value(&self, names: &[String]) -> Option<T> {
        let is_one = |pattern: &Pattern| names.iter().any(|name| pattern.regex.is_match(name));
        self.0.iter().find(|(pattern, _)| is_one(pattern)).map(|(_, value)| *value)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All values.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&str, T)> {
        self.0.iter().map(|(pattern, value)| (pattern.text.as_str(), *value))
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (&pattern.text, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Entries<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("modules' names or patterns with a number each")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut patterns: Vec<(Pattern, T)> = Vec::new();
                while let Some((text, value)) = map.next_entry::<String, T>()? {
                    let pattern = Pattern::new(&text, format!("^(.*\\.)?({text})$"));
                    patterns.push((pattern.map_err(de::Error::custom)?, value));
                }
                patterns.sort_by(|(a, _), (b, _)| a.text.cmp(&b.text));
                Ok(Patterns(patterns))
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}
