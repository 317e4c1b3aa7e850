//! The objects of a file.

use std::{collections::BTreeMap, sync::Arc};

use crate::Tensor;

/// An object that was pickled.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Python's None.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text, and a dtype by its name, such as `torch.float32`.
    Text(Arc<str>),
    /// A list or a tuple.
    List(Vec<Value>),
    /// A dictionary, in its order. A later entry replaces an earlier one of the same key.
    Dict(Vec<(Value, Value)>),
    /// A tensor, whose elements are still in the file.
    Tensor(Tensor),
}

impl Value {
    /// The value of a dictionary under `key`.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Dict(entries) = self else { return None };
        let (_, value) = entries.iter().rev().find(|(name, _)| name.as_text() == Some(key))?;
        Some(value)
    }

    /// The text it is.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The tensor it is.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// Every tensor in it by its path: keys and positions joined by dots, as in `state_dict.encoder.weight`.
    pub fn tensors(&self) -> BTreeMap<String, &Tensor> {
        let mut found = BTreeMap::new();
        self.collect("", &mut found);
        found
    }

    fn collect<'a>(&'a self, path: &str, found: &mut BTreeMap<String, &'a Tensor>) {
        let under = |name: &str| match path {
            "" => name.to_owned(),
            _ => format!("{path}.{name}"),
        };
        match self {
            Self::Tensor(tensor) => {
                found.insert(path.to_owned(), tensor);
            }
            Self::List(values) => {
                for (i, value) in values.iter().enumerate() {
                    value.collect(&under(&i.to_string()), found);
                }
            }
            Self::Dict(entries) => {
                for (key, value) in entries {
                    match key {
                        Self::Text(key) => value.collect(&under(key), found),
                        Self::Int(key) => value.collect(&under(&key.to_string()), found),
                        _ => {}
                    }
                }
            }
            Self::None | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Text(_) => {}
        }
    }
}
