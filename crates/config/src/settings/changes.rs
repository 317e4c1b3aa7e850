//! Two settings side by side.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Settings;

impl Settings {
    /// What differs from other settings, one line a key: `align.alpha is 1.0, was 0.5`.
    pub fn changes(&self, before: &Self) -> Vec<String> {
        let [now, then] = [self, before].map(|s| serde_json::to_value(s).unwrap_or_default());
        let mut changes = Vec::new();
        add(String::new(), &now, &then, &mut changes);
        changes
    }
}

fn add(key: String, now: &Value, then: &Value, changes: &mut Vec<String>) {
    if now == then {
        return;
    }
    // A table that isn't there has no values.
    let none = Map::new();
    let fields = |value: &Value| match value {
        Value::Object(fields) => Some(fields.clone()),
        Value::Null => Some(none.clone()),
        _ => None,
    };
    if let (Some(now), Some(then)) = (fields(now), fields(then))
        && !(now.is_empty() && then.is_empty())
    {
        let all: BTreeSet<&String> = now.keys().chain(then.keys()).collect();
        for name in all {
            let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            let of = |fields: &Map<String, Value>| fields.get(name).cloned().unwrap_or_default();
            add(path, &of(&now), &of(&then), changes);
        }
        return;
    }
    let shown = |value: &Value| match value {
        Value::Null => "not set".to_owned(),
        value => value.to_string(),
    };
    changes.push(format!("{key} is {}, was {}", shown(now), shown(then)));
}
