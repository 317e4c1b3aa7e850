//! The page on what alignment changed of each feature: a table that is sorted and complete without its script, which adds sorting by
//! other columns and a search.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::{
    format::{Unit, fixed_or_short},
    page::document_head,
    text::visible_inline,
};

const STYLE: &str = include_str!("drift/style.css");
const SCRIPT: &str = include_str!("drift/script.js");

/// Tokens named beside a feature, at most.
const TOKENS_NAMED: usize = 4;

/// Content of the page.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Title of the page and its heading.
    pub title: String,
    /// One line under the title.
    pub subtitle: String,
    /// Key facts as (name, value), shown as tiles.
    pub facts: Vec<(String, String)>,
    /// Names of the aligned models, in the order of [`Feature::after`].
    pub models: Vec<String>,
    /// The features shown, in the order in which they stand without the script.
    pub features: Vec<Feature>,
    /// Which features these are, out of how many.
    pub choice: String,
    /// Explanations at the end of the page.
    pub notes: Vec<String>,
}

/// A feature before alignment and in each aligned model.
#[derive(Clone, Debug, Default)]
pub struct Feature {
    /// Index in `0..d_sae`.
    pub index: usize,
    /// Before alignment.
    pub before: Level,
    /// In each aligned model.
    pub after: Vec<Change>,
}

/// How active a feature is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Level {
    /// Mean activation over all tokens.
    pub mean: f64,
    /// Share of tokens on which it is active, 0 to 1.
    pub firing: f64,
}

/// What an aligned model changed of a feature.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// In the aligned model.
    pub after: Level,
    /// How much the mean changed.
    pub change: f64,
    /// Standard error of the change; none where it can't be told.
    pub standard_error: Option<f64>,
    /// The tokens at which its activation changed most, largest change first.
    pub places: Vec<Place>,
}

/// A token at which a feature's activation changed.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The tokens before it.
    pub left: String,
    /// The token.
    pub token: String,
    /// The tokens after it.
    pub right: String,
    /// Activation before alignment.
    pub before: f32,
    /// Activation in the aligned model.
    pub after: f32,
}

impl Change {
    /// Whether chance alone may have made it: it is within two standard errors of none.
    pub fn is_uncertain(&self) -> bool {
        self.standard_error.is_none_or(|error| self.change.abs() <= 2.0 * error)
    }

    /// The change in standard errors, without its sign; 0 where that can't be told.
    fn certainty(&self) -> f64 {
        match self.standard_error {
            Some(error) if self.change != 0.0 => self.change.abs() / error.max(f64::MIN_POSITIVE),
            _ => 0.0,
        }
    }
}

/// Renders the page as one HTML document without external resources.
pub fn render(page: &Page) -> String {
    let largest = page.features.iter().flat_map(|feature| &feature.after);
    let largest = largest.map(|after| after.change.abs()).fold(0.0, f64::max);
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            (document_head(&page.title, STYLE, Some("drift")))
            body {
                a.skip href="#features" { "Skip to the features" }
                header {
                    h1 { (page.title) }
                    @if !page.subtitle.is_empty() { p.subtitle { (page.subtitle) } }
                    dl.facts { @for (name, value) in &page.facts { div { dt { (name) } dd { (value) } } } }
                }
                main {
                    section #features aria-labelledby="features-title" {
                        h2 #features-title { "Features" }
                        p.lead { (page.choice) }
                        (controls(&page.models))
                        (table(page, largest))
                        p #none hidden { "None of the features shown here matches." }
                    }
                    section #notes aria-labelledby="notes-title" {
                        h2 #notes-title { "How to read this" }
                        ul.notes { @for note in &page.notes { li { (note) } } }
                    }
                }
                script nonce="drift" { (PreEscaped(SCRIPT)) }
            }
        }
    };
    markup.into_string()
}

/// Search and order; the script shows them.
fn controls(models: &[String]) -> Markup {
    html! {
        div.controls #controls hidden {
            label {
                span { "Search by number or token" }
                input #search type="search" autocomplete="off" spellcheck="false";
            }
            label {
                span { "Sort by" }
                select #sort {
                    @if models.len() > 1 { option value="change:all" { "largest change of any model" } }
                    @for (number, model) in models.iter().enumerate() {
                        @let of = if models.len() > 1 { format!(", {model}") } else { String::new() };
                        option value={ "change:" (number) } { "largest change" (of) }
                        option value={ "rise:" (number) } { "largest rise" (of) }
                        option value={ "fall:" (number) } { "largest fall" (of) }
                        option value={ "certainty:" (number) } { "change in standard errors" (of) }
                        option value={ "firing:" (number + 1) } { "firing rate after" (of) }
                    }
                    option value="firing:0" { "firing rate before" }
                    option value="index" { "number" }
                }
            }
            p #count role="status" {}
        }
    }
}

/// One body per feature: a row of numbers, and a row with the tokens. Roles are given because narrow screens show it as cards.
fn table(page: &Page, largest: f64) -> Markup {
    let several = page.models.len() > 1;
    html! {
        table.drift role="table" aria-labelledby="features-title" {
            thead role="rowgroup" {
                tr role="row" {
                    th role="columnheader" scope="col" { "Feature" }
                    th.number role="columnheader" scope="col" { "Before" }
                    @for model in &page.models {
                        th role="columnheader" scope="col" { @if several { (model) } @else { "After" } }
                    }
                }
            }
            @for feature in &page.features { (row(page, feature, largest)) }
        }
    }
}

fn row(page: &Page, feature: &Feature, largest: f64) -> Markup {
    let keys = |key: &dyn Fn(&Change) -> f64| {
        let keys: Vec<String> = feature.after.iter().map(|a| format!("{:e}", key(a))).collect();
        keys.join(" ")
    };
    let firing = keys(&|after| after.after.firing);
    html! {
        tbody role="rowgroup" id={ "f" (feature.index) } data-index=(feature.index)
            data-change=(keys(&|after| after.change)) data-certainty=(keys(&Change::certainty))
            data-firing=(format!("{:e} {firing}", feature.before.firing)) {
            tr role="row" {
                th role="rowheader" scope="row" { a href={ "#f" (feature.index) } { (feature.index) } }
                td.number role="cell" data-label="Before" { (level(feature.before)) }
                @for (name, after) in page.models.iter().zip(&feature.after) {
                    @let label = if page.models.len() > 1 { name.as_str() } else { "After" };
                    td role="cell" data-label=(label) { (change(after, largest)) }
                }
            }
            tr.tokens role="row" {
                td role="cell" colspan=(2 + page.models.len()) { (places(&page.models, &feature.after)) }
            }
        }
    }
}

fn level(level: Level) -> Markup {
    html! {
        span.mean { (fixed_or_short(level.mean, 4)) }
        small { "fires on " (Unit::Percent.format(level.firing)) }
    }
}

fn change(after: &Change, largest: f64) -> Markup {
    let share = if largest > 0.0 { after.change / largest } else { 0.0 };
    let (left, width) = (50.0 + 50.0 * share.min(0.0), 50.0 * share.abs());
    html! {
        span.move.uncertain[after.is_uncertain()] {
            span.bar aria-hidden="true" {
                span.up[after.change > 0.0].down[after.change < 0.0] style=(format!("left:{left:.1}%;width:{width:.1}%")) {}
            }
            span.delta {
                (signed(after.change))
                @if let Some(error) = after.standard_error { span.unit { " ± " (fixed_or_short(error, 4)) } }
            }
        }
        span.level { (level(after.after)) }
    }
}

fn signed(change: f64) -> String {
    let sign = if change > 0.0 { "+" } else { "" };
    format!("{sign}{}", fixed_or_short(change, 4))
}

/// The tokens that changed most, and below them their texts.
fn places(models: &[String], after: &[Change]) -> Markup {
    let mut named: Vec<String> = Vec::new();
    // The strongest of each model first.
    let ranks = after.iter().map(|after| after.places.len()).max().unwrap_or(0);
    for place in (0..ranks).flat_map(|rank| after.iter().filter_map(move |a| a.places.get(rank))) {
        let token = shown(&place.token);
        if !named.contains(&token) && named.len() < TOKENS_NAMED {
            named.push(token);
        }
    }
    html! {
        @if named.is_empty() {
            p.empty { "no change at any token" }
        } @else {
            details {
                summary { @for token in &named { code { (token) } " " } }
                @for (name, after) in models.iter().zip(after) {
                    @if models.len() > 1 { h3 { (name) } }
                    @if after.places.is_empty() { p.empty { "no change" } }
                    @else { ol.contexts { @for place in &after.places { (context(place)) } } }
                }
            }
        }
    }
}

fn context(place: &Place) -> Markup {
    let number = |value: f32| fixed_or_short(f64::from(value), 3);
    let rises = place.after > place.before;
    html! {
        li {
            span.values { (number(place.before)) " → " (number(place.after)) }
            span.words dir="auto" {
                (visible_inline(&place.left))
                mark.rose[rises].fell[!rises] { (visible_inline(&place.token)) }
                (visible_inline(&place.right))
            }
        }
    }
}

/// A token on its own: spaces at its ends, which would not be seen, are marked.
fn shown(token: &str) -> String {
    let text = visible_inline(token);
    let inner = text.trim_matches(' ');
    let left = text.len() - text.trim_start_matches(' ').len();
    let right = text.len() - left - inner.len();
    match text.is_empty() {
        true => "(empty)".to_owned(),
        false => format!("{}{inner}{}", "␣".repeat(left), "␣".repeat(right)),
    }
}

#[cfg(test)]
mod tests;
