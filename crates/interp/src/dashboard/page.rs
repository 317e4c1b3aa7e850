//! The dashboard's page: a table of all features and the details of one. The page embeds its data as JSON and one script; its
//! content security policy forbids everything else.

use std::collections::BTreeMap;

use fpo_report::{document_head, text::visible_inline};
use maud::{DOCTYPE, PreEscaped, html};
use serde_json::{Value, json};

use super::{Bar, Feature, TokenLogit};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Texts of the page around the features.
#[derive(Clone, Debug)]
pub struct Page {
    /// Title of the page and its heading.
    pub title: String,
    /// Key facts as (name, value), shown below the title.
    pub facts: Vec<(String, String)>,
    /// Explanations, shown in the footer.
    pub notes: Vec<String>,
}

/// Renders the page as HTML. `text` decodes a token.
pub fn render(page: &Page, features: &[Feature], text: impl Fn(u32) -> String) -> String {
    let mut tokens = Tokens::default();
    let features: Vec<Value> = features.iter().map(|f| compact(f, &mut tokens)).collect();
    let texts: Vec<String> = tokens.order.iter().map(|&id| visible_inline(&text(id))).collect();
    let data = json!({ "tokens": texts, "features": features });
    // Only `<` could end the script element.
    let data = data.to_string().replace('<', "\\u003c");
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            (document_head(&page.title, STYLE, Some("features")))
            body.dashboard {
                header {
                    h1 { (page.title) }
                    dl.facts { @for (name, value) in &page.facts { div { dt { (name) } dd { (value) } } } }
                }
                main {
                    section.list {
                        label for="search" { "Search features by number or token" }
                        input #search type="search" autocomplete="off" spellcheck="false";
                        p #count aria-live="polite" {}
                        div.scroll {
                            table {
                                thead { tr {
                                    th { button data-sort="0" { "Feature" } }
                                    th { button data-sort="1" { "Density" } }
                                    th { button data-sort="2" { "Max" } }
                                    th { button data-sort="3" { "Mean" } }
                                    th { "Promotes" }
                                } }
                                tbody #rows {}
                            }
                        }
                    }
                    section #feature aria-live="polite" {}
                    noscript { p { "The table needs JavaScript." } }
                }
                footer { @for note in &page.notes { p { (note) } } }
                script #data type="application/json" { (PreEscaped(data)) }
                script nonce="features" { (PreEscaped(SCRIPT)) }
            }
        }
    };
    markup.into_string()
}

/// The distinct tokens on the page, in order of first use.
#[derive(Default)]
struct Tokens {
    places: BTreeMap<u32, usize>,
    order: Vec<u32>,
}

impl Tokens {
    fn place(&mut self, token: u32) -> usize {
        *self.places.entry(token).or_insert_with(|| {
            self.order.push(token);
            self.order.len() - 1
        })
    }
}

/// A feature in the script's format: [index, density, max, mean, promoted, suppressed, histogram, examples]. Tokens are indices
/// into the table of tokens; an example is [tokens, [position, activation, …], strongest].
fn compact(feature: &Feature, tokens: &mut Tokens) -> Value {
    let mut logits = |list: &[TokenLogit]| -> Vec<Value> {
        list.iter().map(|t| json!([tokens.place(t.token), short(t.logit)])).collect()
    };
    let (promoted, suppressed) = (logits(&feature.promoted), logits(&feature.suppressed));
    let bar = |bar: Bar| json!([short(bar.middle), bar.count]);
    let bars: Vec<Value> = feature.activations.bars().into_iter().map(bar).collect();
    let mut examples = Vec::with_capacity(feature.examples.len());
    for example in &feature.examples {
        let places: Vec<usize> = example.tokens.iter().map(|&t| tokens.place(t)).collect();
        let mut active = Vec::new();
        for (position, &activation) in example.activations.iter().enumerate() {
            if activation > 0.0 {
                active.extend([json!(position), short(activation)]);
            }
        }
        examples.push(json!([places, active, example.strongest]));
    }
    json!([
        feature.index,
        (feature.density * 1e7).round() / 1e7,
        short(feature.max),
        short(feature.mean as f32),
        promoted,
        suppressed,
        bars,
        examples
    ])
}

/// A number rounded to four significant digits.
fn short(x: f32) -> Value {
    let text = format!("{x:.3e}");
    text.parse::<f64>().map_or(Value::Null, |x| json!(x))
}
