//! The page: head, sections and their order.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::{Report, charts, features, samples, tables};

/// The style sheet shared by reports and dashboards: light and dark colours, tables, charts.
pub(super) const STYLE: &str = include_str!("style.css");

/// Forbids external resources and all scripts but a page's own, in case generated text breaks out of its element.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// The head of a page.
pub(super) struct Head<'a> {
    pub(super) title: &'a str,
    pub(super) subtitle: &'a str,
    /// What has to be known before anything is read.
    pub(super) warnings: &'a [String],
    /// Key facts, as tiles.
    pub(super) summary: &'a [(String, String)],
}

/// The page of one run.
pub(super) fn document(report: &Report) -> Markup {
    let head = Head {
        title: &report.title,
        subtitle: &report.subtitle,
        warnings: &report.warnings,
        summary: &report.summary,
    };
    shell(&head, sections(report))
}

/// The element `head` of a page without external resources: with the style sheet of all pages and one of its own. Its
/// script, if it has one, carries the nonce.
pub fn document_head(title: &str, style: &str, nonce: Option<&str>) -> Markup {
    let script = nonce.map(|nonce| format!("; script-src 'nonce-{nonce}'"));
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            meta http-equiv="Content-Security-Policy" content={ (POLICY) (script.unwrap_or_default()) };
            title { (title) }
            link rel="icon" href="data:,";
            style { (PreEscaped(STYLE)) (PreEscaped(style)) }
        }
    }
}

/// A page of sections; those that aren't present are left out.
pub(super) fn shell(head: &Head, sections: impl IntoIterator<Item = Section>) -> Markup {
    let sections: Vec<Section> = sections.into_iter().filter(|section| section.present).collect();
    html! {
        (DOCTYPE)
        html lang="en" {
            (document_head(head.title, "", None))
            body {
                a.skip href="#content" { "Skip to the content" }
                header {
                    h1 { (head.title) }
                    @if !head.subtitle.is_empty() { p.subtitle { (head.subtitle) } }
                    @if !head.warnings.is_empty() {
                        div.warnings role="note" aria-label="Before you read on" {
                            ul { @for warning in head.warnings { li { (warning) } } }
                        }
                    }
                    @if !head.summary.is_empty() {
                        dl.facts { @for (name, value) in head.summary { div { dt { (name) } dd { (value) } } } }
                    }
                    @if sections.len() > 1 {
                        nav aria-label="Sections" { ul { @for s in &sections { li { a href={ "#" (s.id) } { (s.title) } } } } }
                    }
                }
                main #content tabindex="-1" {
                    @for section in &sections {
                        section #(section.id) aria-labelledby={ (section.id) "-title" } {
                            h2 id={ (section.id) "-title" } { (section.title) }
                            @if !section.lead.is_empty() { p.lead { (section.lead) } }
                            (section.body)
                        }
                    }
                    @if sections.is_empty() { p.empty { "This report is empty." } }
                }
            }
        }
    }
}

/// A section of a page.
pub(super) struct Section {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) lead: &'static str,
    pub(super) present: bool,
    pub(super) body: Markup,
}

fn sections(report: &Report) -> [Section; 7] {
    [
        Section {
            id: "results",
            title: "Before and after",
            lead: "",
            present: !report.table.is_empty(),
            body: tables::before_and_after(&report.table),
        },
        Section {
            id: "comparison",
            title: "Comparison of methods",
            lead: "",
            present: report.comparison.is_some(),
            body: html! { @if let Some(table) = &report.comparison { (table.html()) } },
        },
        Section {
            id: "notes",
            title: "Notes",
            lead: "",
            present: !report.notes.is_empty(),
            body: html! { ul.notes { @for note in &report.notes { li { (note) } } } },
        },
        Section {
            id: "curves",
            title: "Training curves",
            lead: "Noisy curves have a faint line with the logged values and a bold smoothed one. \
                   The number beside a name is the last value.",
            present: !report.stages.is_empty(),
            body: html! { @for stage in &report.stages { (charts::stage(stage)) } },
        },
        Section {
            id: "samples",
            title: "Samples",
            lead: "Responses to the same held-out prompts before and after alignment. Words that are gone are struck out, new ones \
                   underlined.",
            present: !report.samples.is_empty(),
            body: samples::section(&report.samples),
        },
        Section {
            id: "features",
            title: "Changed features",
            lead: "Features of the sparse autoencoder whose mean activation changed most, with texts in which they are active. \
                   A stronger colour is a stronger activation; hover over a token to see its value.",
            present: !report.features.is_empty(),
            body: features::section(&report.features),
        },
        Section {
            id: "settings",
            title: "Settings",
            lead: "The resolved settings of the run. Save them as a file to repeat it with --config.",
            present: !report.settings_toml.is_empty(),
            body: settings(&report.settings_toml),
        },
    ]
}

/// TOML with highlighted table headings and comments.
fn settings(toml: &str) -> Markup {
    html! {
        details {
            summary { "Show the settings" }
            pre tabindex="0" {
                code {
                    @for line in toml.lines() {
                        @match line.trim_start().chars().next() {
                            Some('[') => { strong { (line) } }
                            Some('#') => { span.unit { (line) } }
                            _ => { (line) }
                        }
                        "\n"
                    }
                }
            }
        }
    }
}
