//! The model card: `README.md` in a saved model's folder, as Hugging Face's hub shows it.

use std::fmt::Write;

use crate::{
    TableRow,
    text::{visible, visible_inline},
};

/// What a model is and where it comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelCard {
    /// Heading.
    pub title: String,
    /// The library that loads the folder: `transformers` or `peft`.
    pub library: String,
    /// The model that it was made from; none for random weights.
    pub base_model: Option<String>,
    /// Tags of the hub, such as the method.
    pub tags: Vec<String>,
    /// One or two sentences.
    pub about: String,
    /// Facts as (name, value).
    pub facts: Vec<(String, String)>,
    /// Metrics before and after; empty if they aren't measured yet.
    pub metrics: Vec<TableRow>,
    /// The resolved settings.
    pub settings_toml: String,
}

impl ModelCard {
    /// The card as Markdown, under a YAML head.
    pub fn markdown(&self) -> String {
        let mut text = format!("---\nlibrary_name: {}\n", yaml(&self.library));
        if let Some(base) = &self.base_model {
            text += &format!("base_model: {}\n", yaml(base));
        }
        if !self.tags.is_empty() {
            let tags: Vec<String> = self.tags.iter().map(|tag| yaml(tag)).collect();
            text += &format!("tags: [{}]\n", tags.join(", "));
        }
        text += &format!("---\n\n# {}\n\n{}\n", cell(&self.title), visible(&self.about));
        if !self.facts.is_empty() {
            text += "\n| | |\n|---|---|\n";
            for (name, value) in &self.facts {
                text += &format!("| {} | {} |\n", cell(name), cell(value));
            }
        }
        if !self.metrics.is_empty() {
            text += "\n## Metrics\n\nOn held-out data, before and after.\n\n| Metric | Before | After |\n|---|---:|---:|\n";
            for row in &self.metrics {
                let (name, before) = (cell(&row.metric), row.before_text());
                let _ = writeln!(text, "| {name} | {before} | {} |", row.after_text());
            }
        }
        if !self.settings_toml.is_empty() {
            let fence = fence(&self.settings_toml);
            text += &format!(
                "\n## Settings\n\n{fence}toml\n{}\n{fence}\n",
                self.settings_toml.trim_end()
            );
        }
        text
    }
}

/// A double-quoted YAML string.
fn yaml(text: &str) -> String {
    let escaped = visible_inline(text).replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}

/// Text that stays in its cell and is no markup.
fn cell(text: &str) -> String {
    let text = visible_inline(text).replace('\\', "\\\\");
    text.replace('|', "\\|").replace('<', "&lt;").replace('`', "\\`").replace('[', "\\[")
}

/// A fence that the text doesn't hold.
fn fence(text: &str) -> String {
    let mut fence = "```".to_owned();
    while text.contains(&fence) {
        fence.push('`');
    }
    fence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_a_yaml_head_and_tables() {
        let card = ModelCard {
            title: "fpo on a.jsonl".into(),
            library: "transformers".into(),
            base_model: Some("a \"b\"".into()),
            tags: vec!["fpo".into()],
            about: "Made.".into(),
            facts: vec![("Data".into(), "x|y\n<b>".into())],
            metrics: vec![TableRow {
                metric: "Loss".into(),
                before: Some(1.0),
                ..TableRow::default()
            }],
            settings_toml: "a = \"```\"\n".into(),
        };
        let text = card.markdown();
        for part in [
            "---\nlibrary_name: \"transformers\"\nbase_model: \"a \\\"b\\\"\"\ntags: [\"fpo\"]\n---\n",
            "\n# fpo on a.jsonl\n",
            "| Data | x\\|y↵&lt;b> |\n",
            "| Loss | 1 | – |\n",
            "\n````toml\na = \"```\"\n````\n",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        let bare = ModelCard { title: "x".into(), ..ModelCard::default() }.markdown();
        assert!(!bare.contains("Metrics") && !bare.contains("base_model"), "{bare}");
    }
}
