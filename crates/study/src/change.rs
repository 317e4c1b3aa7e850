//! What distinguishes a run from that of its method's best trial.

use std::fmt;

use fpo_losses::{FeatureSelection, Method};
use toml::Value;

use crate::{plan::shown, trial::has};

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A key of the section `align` with another value.
    Align(String, Value),
    /// An autoencoder at another site.
    Site(String),
    /// Autoencoders at these sites besides that of `sae.site`.
    MoreSites(Vec<String>),
    /// Only the features of a kind of prompts count, or all but them.
    Features {
        /// The kind.
        kind: String,
        /// Features of the kind, at most.
        features: usize,
        /// Which of them count.
        selection: FeatureSelection,
    },
}

impl Change {
    /// The changes of a line of the plan's section `ablate`.
    ///
    /// # Errors
    /// What the line must be.
    pub fn read(method: Method, key: &str, values: &Value) -> Result<Vec<Self>, String> {
        let values = match values {
            Value::Array(values) if !values.is_empty() => values,
            _ => return Err("must be a list of values".into()),
        };
        let name = |value: &Value| value.as_str().map(str::to_owned);
        let one = |value: &Value| match key {
            "site" => Ok(Self::Site(
                name(value).ok_or("must be a list of sites, such as [\"resid_post:1\"]")?,
            )),
            "more_sites" => {
                let sites = value.as_array().filter(|sites| !sites.is_empty());
                let sites: Option<Vec<String>> = sites.and_then(|s| s.iter().map(name).collect());
                let must = "must be a list of lists of sites, such as [[\"resid_post:1\"]]";
                Ok(Self::MoreSites(sites.ok_or(must)?))
            }
            _ if !has(method, key) => Err(format!("changes nothing of {method}")),
            _ if value.is_table() || value.is_array() => {
                Err("must be a list of numbers, words or true and false".into())
            }
            _ => Ok(Self::Align(key.to_owned(), value.clone())),
        };
        values.iter().map(one).collect()
    }

    /// As for `--set`. What only the study's folder can say is added later: the paths of further autoencoders, for which a word stands
    /// here, and the files of features.
    pub fn assignments(&self) -> Vec<String> {
        match self {
            Self::Align(key, value) => vec![format!("align.{key}={value}")],
            Self::Site(site) => vec![format!("sae.site={site:?}")],
            Self::MoreSites(sites) => {
                let one = |site: &String| format!("{{ site = {site:?}, sae = \"later\" }}");
                let all: Vec<String> = sites.iter().map(one).collect();
                vec![format!("align.more_sites=[{}]", all.join(", "))]
            }
            Self::Features { .. } => Vec::new(),
        }
    }

    /// The key and the value, as a table of ablations shows them.
    pub fn parts(&self) -> (String, String) {
        match self {
            Self::Align(key, value) => (key.clone(), shown(value)),
            Self::Site(site) => ("site".into(), site.clone()),
            Self::MoreSites(sites) => ("more_sites".into(), sites.join("+")),
            Self::Features { kind, features, selection } => {
                let key = match selection {
                    FeatureSelection::Only => "only",
                    FeatureSelection::Except => "except",
                };
                (key.into(), format!("{kind}-{features}"))
            }
        }
    }

    /// The name of its folder.
    pub fn folder(&self) -> String {
        let (key, value) = self.parts();
        let plain = |c: char| if c.is_alphanumeric() || "=.,_+-".contains(c) { c } else { '-' };
        format!("{key}={value}").chars().map(plain).collect()
    }
}

/// For a person: `alpha 1.0`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, value) = self.parts();
        write!(f, "{} {value}", key.replace('_', " "))
    }
}
