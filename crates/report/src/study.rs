//! The page of a study: charts with intervals, and tables.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::{Cell, Column, ComparisonTable, frontier::Frontier, page::document_head};

/// Saves a chart as PNG; everything else works without it.
const SCRIPT: &str = include_str!("study/png.js");

/// Content of the page.
#[derive(Clone, Debug, Default)]
pub struct StudyPage {
    /// Title and heading.
    pub title: String,
    /// One line under it.
    pub subtitle: String,
    /// Key facts as (name, value).
    pub facts: Vec<(String, String)>,
    /// The sections, in their order.
    pub sections: Vec<StudySection>,
    /// The plan, as TOML.
    pub plan: String,
}

/// A part of the page.
#[derive(Clone, Debug, Default)]
pub struct StudySection {
    /// Heading.
    pub title: String,
    /// What it shows, and of what.
    pub lead: String,
    /// Charts.
    pub charts: Vec<Frontier>,
    /// Tables.
    pub tables: Vec<StudyTable>,
}

/// A table of texts, formatted already.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StudyTable {
    /// Name of its file, without an ending.
    pub name: String,
    /// Heading; may be empty.
    pub title: String,
    /// Headings of the columns, first that of the rows' names.
    pub head: Vec<String>,
    /// The rows, each beginning with its name.
    pub rows: Vec<Vec<String>>,
}

impl StudyTable {
    /// For a terminal.
    pub fn terminal(&self) -> String {
        let column = |name: &String| Column { name: name.clone(), ..Column::default() };
        let row = |row: &Vec<String>| {
            let cells = row.iter().skip(1).cloned().map(Cell::Text).collect();
            (row.first().cloned().unwrap_or_default(), cells)
        };
        let columns = self.head.iter().skip(1).map(column).collect();
        ComparisonTable { columns, rows: self.rows.iter().map(row).collect() }.terminal()
    }

    fn html(&self) -> Markup {
        html! {
            @if !self.title.is_empty() { h3 { (self.title) } }
            div.scroll tabindex="0" role="region" aria-label={ "Table: " (self.title) } {
                table {
                    thead {
                        tr {
                            @for (at, name) in self.head.iter().enumerate() { th.number[at > 0] scope="col" { (name) } }
                        }
                    }
                    tbody {
                        @for row in &self.rows {
                            tr {
                                @for (at, text) in row.iter().enumerate() {
                                    @if at == 0 { th scope="row" { (text) } } @else { td.number { (text) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Renders the page as one HTML document without external resources.
pub fn render_study(page: &StudyPage) -> String {
    let sections = || page.sections.iter().enumerate();
    html! {
        (DOCTYPE)
        html lang="en" {
            (document_head(&page.title, "", Some("png")))
            body {
                a.skip href="#content" { "Skip to the content" }
                header {
                    h1 { (page.title) }
                    p.subtitle { (page.subtitle) }
                    dl.facts { @for (name, value) in &page.facts { div { dt { (name) } dd { (value) } } } }
                    nav aria-label="Sections" {
                        ul {
                            @for (at, section) in sections() { li { a href={ "#s" (at) } { (section.title) } } }
                            li { a href="#plan" { "Plan" } }
                        }
                    }
                }
                main #content {
                    @for (at, section) in sections() { (part(at, section)) }
                    section #plan aria-labelledby="plan-title" {
                        h2 id="plan-title" { "Plan" }
                        details { summary { "Show the plan" } pre tabindex="0" { code { (page.plan) } } }
                    }
                }
                script nonce="png" { (PreEscaped(SCRIPT)) }
            }
        }
    }
    .into_string()
}

fn part(at: usize, section: &StudySection) -> Markup {
    html! {
        section id={ "s" (at) } aria-labelledby={ "s" (at) "-title" } {
            h2 id={ "s" (at) "-title" } { (section.title) }
            p.lead { (section.lead) }
            @if !section.charts.is_empty() {
                div.charts style="grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr))" {
                    @for chart in &section.charts { (chart.figure(to_take_away(chart))) }
                }
            }
            @for table in &section.tables { (table.html()) }
        }
    }
}

/// The chart as a file; the script shows the button.
fn to_take_away(chart: &Frontier) -> Markup {
    html! {
        // One that can't be drawn says so in its place.
        @if let Ok(Some(svg)) = chart.svg() {
            p.take {
                a download={ (chart.name) ".svg" } href={ "data:image/svg+xml," (escaped(&svg)) }
                    aria-label={ (chart.title) " as SVG" } { "SVG" }
                button type="button" hidden aria-label={ (chart.title) " as PNG" } { "PNG" }
            }
        }
    }
}

/// Percent-encodes what would end or change a URL (RFC 3986).
fn escaped(svg: &str) -> String {
    svg.chars().fold(String::with_capacity(svg.len()), |mut url, c| {
        match c {
            '%' | '#' | '\n' | '\r' | '\t' => url.push_str(&format!("%{:02X}", c as u32)),
            c => url.push(c),
        }
        url
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontier::{Estimate, Spot, Trace};

    #[test]
    fn a_page_that_escapes_all_text() {
        let evil = "</script><script>alert(1)</script>\"'>%3Cscript%3E";
        let text = || vec![evil.to_owned(); 2];
        let (name, title) = (evil.into(), evil.into());
        let table = StudyTable { name, title, head: text(), rows: vec![text()] };
        let section = StudySection {
            title: evil.into(),
            lead: evil.into(),
            charts: vec![Frontier::default(), charted(evil)],
            tables: vec![table],
        };
        let page = render_study(&StudyPage {
            title: evil.into(),
            subtitle: evil.into(),
            facts: vec![(evil.into(), evil.into())],
            sections: vec![section],
            plan: evil.into(),
        });
        assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (1, 1));
        assert!(page.contains("<script nonce=\"png\">") && page.contains("%253Cscript"), "{page}");
        assert!(page.contains("default-src 'none'") && page.contains("href=\"#s0\""));
    }

    fn charted(text: &str) -> Frontier {
        let estimate = |value| Estimate { value, range: None };
        let spots = vec![Spot { x: estimate(1.0), y: estimate(2.0) }];
        let trace = Trace { name: text.into(), spots, ..Trace::default() };
        Frontier {
            name: "a".into(),
            title: text.into(),
            traces: vec![trace],
            ..Frontier::default()
        }
    }

    #[test]
    fn a_chart_is_taken_away_as_the_file_that_it_is() {
        let chart = charted("50 % & #1\n");
        let taken = to_take_away(&chart).into_string();
        let (_, url) = taken.split_once("data:image/svg+xml,").unwrap();
        let (url, _) = url.split_once('"').unwrap();
        assert!(!url.contains(['#', '\n']), "{url}");
        let unescaped = [("%23", "#"), ("%0A", "\n"), ("%25", "%")];
        let unescaped =
            unescaped.iter().fold(url.to_owned(), |url, (from, to)| url.replace(from, to));
        let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&amp;", "&")];
        let svg = entities.iter().fold(unescaped, |svg, (from, to)| svg.replace(from, to));
        assert_eq!(svg, chart.svg().unwrap().unwrap());
        assert_eq!(to_take_away(&Frontier::default()).into_string(), "");
    }
}
