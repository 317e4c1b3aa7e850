//! The page: a table of all features, and one of them at a time. All data is in the page, as JSON that its own
//! script reads; the browser is told to run and fetch nothing else.

use std::collections::BTreeMap;

use maud::{DOCTYPE, PreEscaped, html};
use serde_json::{Value, json};

use super::{Bar, Feature, TokenLogit};
use fpo_report::{STYLE as SHARED_STYLE, text::visible_inline};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'nonce-features'";

/// What the page says above the features.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its title.
    pub title: String,
    /// Names and values.
    pub facts: Vec<(String, String)>,
    /// What the numbers mean.
    pub notes: Vec<String>,
}

/// The page as HTML. `text` is a token's text.
pub fn render(page: &Page, features: &[Feature], text: impl Fn(u32) -> String) -> String {
    let mut tokens = Tokens::default();
    let features: Vec<Value> = features.iter().map(|f| compact(f, &mut tokens)).collect();
    let texts: Vec<String> = tokens.order.iter().map(|&id| visible_inline(&text(id))).collect();
    let data = json!({ "tokens": texts, "features": features });
    // Within an element of script, only `<` could end it.
    let data = data.to_string().replace('<', "\\u003c");
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (page.title) }
                link rel="icon" href="data:,";
                style { (PreEscaped(SHARED_STYLE)) (PreEscaped(STYLE)) }
            }
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
                    noscript { p { "The table needs its script, which is part of this page." } }
                }
                footer { @for note in &page.notes { p { (note) } } }
                script #data type="application/json" { (PreEscaped(data)) }
                script nonce="features" { (PreEscaped(SCRIPT)) }
            }
        }
    };
    markup.into_string()
}

/// The tokens that the page shows, each once.
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

/// A feature as the script knows it: [index, density, max, mean, promoted, suppressed, histogram, examples], where
/// tokens are places in the table, and an example is [tokens, [position, activation, …], strongest].
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

/// Four significant digits.
fn short(x: f32) -> Value {
    let text = format!("{x:.3e}");
    text.parse::<f64>().map_or(Value::Null, |x| json!(x))
}
