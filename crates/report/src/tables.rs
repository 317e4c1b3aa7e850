//! Tables of results, for the terminal and the page.

use comfy_table::{CellAlignment, Table, presets};
use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use crate::format::{Better, Unit, Verdict, number};

/// Placeholder for a missing value.
pub(super) const MISSING: &str = "–";
/// Columns of a terminal.
const TERMINAL: usize = 80;

/// One metric, before and after alignment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TableRow {
    /// Name of the metric.
    pub metric: String,
    /// One sentence on what it measures, shown on the page only; may be empty.
    pub explanation: String,
    /// Value before alignment, if measured.
    pub before: Option<f64>,
    /// Value after alignment, if measured.
    pub after: Option<f64>,
    /// Unit of both values.
    pub unit: Unit,
    /// Which direction is an improvement.
    pub better: Better,
}

impl TableRow {
    /// `before` with its unit, or a dash.
    pub fn before_text(&self) -> String {
        value_text(self.before, self.unit)
    }

    /// `after` with its unit, or a dash.
    pub fn after_text(&self) -> String {
        value_text(self.after, self.unit)
    }

    /// The change as text and its verdict; `None` unless both values are measured.
    pub fn change(&self) -> Option<(String, Verdict)> {
        let (before, after) = (self.before?, self.after?);
        Some((self.unit.format_change(after - before), self.better.judge(before, after, self.unit)))
    }
}

/// A table of methods (rows) and metrics (columns).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ComparisonTable {
    /// One column per metric.
    pub columns: Vec<Column>,
    /// The method's name and one cell per column; absent cells count as [`Cell::Missing`].
    pub rows: Vec<(String, Vec<Cell>)>,
}

/// One metric of a [`ComparisonTable`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Name of the metric.
    pub name: String,
    /// Unit of the column's numbers.
    pub unit: Unit,
    /// Which direction is an improvement, and so which value is marked as best.
    pub better: Better,
}

/// One cell of a [`ComparisonTable`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// No value; shown as a dash.
    #[default]
    Missing,
    /// A number in the column's unit.
    Number(f64),
    /// Text, shown as is.
    Text(String),
}

impl ComparisonTable {
    /// The table for a terminal of 80 columns, in several parts if it is wider, without a trailing newline. What the stars mark is
    /// said below.
    pub fn terminal(&self) -> String {
        let mut parts = Vec::new();
        let mut first = 0;
        while first < self.columns.len() || parts.is_empty() {
            let mut end = (first + 1).min(self.columns.len());
            let mut part = self.part(first..end);
            while end < self.columns.len() {
                let wider = self.part(first..end + 1);
                if widest(&wider) > TERMINAL {
                    break;
                }
                (part, end) = (wider, end + 1);
            }
            parts.push(part);
            first = end.max(first + 1);
        }
        let legend = self.legend("*");
        parts
            .into_iter()
            .chain((!legend.is_empty()).then_some(legend))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Some of the columns.
    fn part(&self, columns: std::ops::Range<usize>) -> String {
        let names = self.columns[columns.clone()].iter().map(|column| column.name.clone());
        let mut table = plain_table(std::iter::once("Method".to_owned()).chain(names));
        for (name, cells) in &self.rows {
            let texts = columns.clone().map(|index| {
                let (text, best) = self.cell(index, cells);
                if best { format!("* {text}") } else { text }
            });
            table.add_row(std::iter::once(name.clone()).chain(texts));
        }
        table.to_string()
    }

    /// Which columns have a star, and for what; empty where none has.
    fn legend(&self, star: &str) -> String {
        let starred: Vec<String> = (0..self.columns.len())
            .filter(|&index| self.best(index).is_some())
            .map(|index| {
                let Column { name, better, .. } = &self.columns[index];
                let which = if *better == Better::Lower { "lowest" } else { "highest" };
                format!("{which} {name}")
            })
            .collect();
        match starred.is_empty() {
            true => String::new(),
            false => format!("{star} best: {}", starred.join(", ")),
        }
    }

    pub(super) fn html(&self) -> Markup {
        html! {
            div.scroll tabindex="0" role="region" aria-label="Comparison of methods" {
                table {
                    caption { "One row per method. " (self.legend("★")) }
                    thead {
                        tr { th scope="col" { "Method" } @for column in &self.columns { th.number scope="col" { (column.name) } } }
                    }
                    tbody {
                        @for (name, cells) in &self.rows {
                            tr {
                                th scope="row" { (name) }
                                @for index in 0..self.columns.len() {
                                    @let (text, best) = self.cell(index, cells);
                                    td.number.best[best] { @if best { span.star title="best" { "★ " } } (text) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// A cell's text, and whether it is the best of its column.
    fn cell(&self, index: usize, cells: &[Cell]) -> (String, bool) {
        let column = &self.columns[index];
        match cells.get(index) {
            None | Some(Cell::Missing) => (MISSING.to_owned(), false),
            Some(Cell::Text(text)) => (text.clone(), false),
            // Values that are equal after rounding are tied: two methods at 61.2% are both best.
            Some(&Cell::Number(value)) => {
                let text = column.unit.format(value);
                let best = self.best(index).is_some_and(|best| column.unit.format(best) == text);
                (text, best)
            }
        }
    }

    /// The best number of a column; `None` without a better direction with fewer than two numbers, or where all rows look the same.
    fn best(&self, index: usize) -> Option<f64> {
        let numbers: Vec<f64> = self
            .rows
            .iter()
            .filter_map(|(_, cells)| match cells.get(index) {
                Some(&Cell::Number(value)) if value.is_finite() => Some(value),
                _ => None,
            })
            .collect();
        let unit = self.columns[index].unit;
        let same = numbers.iter().all(|number| unit.format(*number) == unit.format(numbers[0]));
        // Where all rows say the same, none is the best.
        if numbers.len() < 2 || same && numbers.len() == self.rows.len() {
            return None;
        }
        match self.columns[index].better {
            Better::Higher => numbers.into_iter().max_by(f64::total_cmp),
            Better::Lower => numbers.into_iter().min_by(f64::total_cmp),
            Better::Neither => None,
        }
    }
}

fn widest(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// Formats rows as a table for a terminal, without a trailing newline.
pub fn terminal_table(rows: &[TableRow]) -> String {
    let mut table = plain_table(["Metric", "Before", "After", "Change", ""].map(str::to_owned));
    for row in rows {
        let (change, verdict) = row.change().unwrap_or((MISSING.to_owned(), Verdict::Neutral));
        table.add_row([
            row.metric.clone(),
            row.before_text(),
            row.after_text(),
            change,
            word(verdict).to_owned(),
        ]);
    }
    if let Some(column) = table.column_mut(4) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    table.to_string()
}

pub(super) fn before_and_after(rows: &[TableRow]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Metrics before and after alignment" {
            table.metrics {
                caption { "Metrics on the same held-out prompts before and after alignment." }
                thead {
                    tr {
                        th scope="col" { "Metric" }
                        @for name in ["Before", "After", "Change"] { th.number scope="col" { (name) } }
                    }
                }
                tbody {
                    @for row in rows {
                        tr {
                            th scope="row" {
                                (row.metric)
                                @if !row.explanation.is_empty() { small { (row.explanation) } }
                            }
                            td.number { (with_small_unit(&row.before_text())) }
                            td.number { (with_small_unit(&row.after_text())) }
                            td.number { (change(row)) }
                        }
                    }
                }
            }
        }
    }
}

/// The change of a row as a coloured pill, with the verdict in words for screen readers.
fn change(row: &TableRow) -> Markup {
    html! {
        @match row.change() {
            None => { (MISSING) }
            Some((text, verdict)) => { (change_pill(&text, verdict)) }
        }
    }
}

/// A change and what to think of it.
pub(super) fn change_pill(text: &str, verdict: Verdict) -> Markup {
    html! {
        span class={ "change " (word(verdict)) } {
            (with_small_unit(text))
            @if verdict != Verdict::Neutral { span.hidden { " (" (word(verdict)) ")" } }
        }
    }
}

/// Sets the unit after a number in small type.
fn with_small_unit(text: &str) -> Markup {
    html! {
        @match text.split_once(' ') {
            Some((number, unit)) => { (number) span.unit { " " (unit) } }
            None => { (text) }
        }
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::Neutral => "",
    }
}

fn value_text(value: Option<f64>, unit: Unit) -> String {
    match value {
        None => MISSING.to_owned(),
        Some(value) if !value.is_finite() => number(value),
        Some(value) => unit.format(value),
    }
}

/// An empty table with these headings; all columns but the first are right-aligned.
fn plain_table(header: impl IntoIterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header.into_iter().collect::<Vec<_>>());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(
        metric: &str,
        before: Option<f64>,
        after: Option<f64>,
        unit: Unit,
        better: Better,
    ) -> TableRow {
        TableRow { metric: metric.into(), before, after, unit, better, ..TableRow::default() }
    }

    #[test]
    fn the_terminal_shows_values_changes_and_verdicts() {
        let rows = [
            row("exact match", Some(0.2), Some(0.612), Unit::Percent, Better::Higher),
            row("KL", Some(0.0), Some(0.25), Unit::Nats, Better::Lower),
            row("length", Some(18.0), Some(f64::NAN), Unit::Tokens, Better::Neither),
            row("margin", None, Some(1.5), Unit::Plain, Better::Higher),
        ];
        let expected = "\
┌─────────────┬─────────────┬────────────┬─────────────┬────────┐
│ Metric      ┆      Before ┆      After ┆      Change ┆        │
╞═════════════╪═════════════╪════════════╪═════════════╪════════╡
│ exact match ┆       20.0% ┆      61.2% ┆    +41.2 pp ┆ better │
│ KL          ┆  0.000 nats ┆ 0.250 nats ┆ +0.250 nats ┆ worse  │
│ length      ┆ 18.0 tokens ┆        n/a ┆         n/a ┆        │
│ margin      ┆           – ┆        1.5 ┆           – ┆        │
└─────────────┴─────────────┴────────────┴─────────────┴────────┘";
        assert_eq!(terminal_table(&rows), expected);
    }

    #[test]
    fn a_comparison_marks_the_best_of_each_column() {
        let column = |name: &str, unit, better| Column { name: name.into(), unit, better };
        let table = ComparisonTable {
            columns: vec![
                column("win rate", Unit::Percent, Better::Higher),
                column("KL", Unit::Nats, Better::Lower),
                column("β", Unit::Plain, Better::Neither),
            ],
            rows: vec![
                ("DPO".into(), vec![Cell::Number(0.6121), Cell::Number(0.3), Cell::Number(0.1)]),
                (
                    "FPO".into(),
                    vec![Cell::Number(0.6119), Cell::Number(0.2), Cell::Text("none".into())],
                ),
                ("SimPO".into(), vec![Cell::Number(f64::NAN), Cell::Missing]),
            ],
        };
        let expected = "\
┌────────┬──────────┬──────────────┬──────┐
│ Method ┆ win rate ┆           KL ┆    β │
╞════════╪══════════╪══════════════╪══════╡
│ DPO    ┆  * 61.2% ┆   0.300 nats ┆  0.1 │
│ FPO    ┆  * 61.2% ┆ * 0.200 nats ┆ none │
│ SimPO  ┆      n/a ┆            – ┆    – │
└────────┴──────────┴──────────────┴──────┘
* best: highest win rate, lowest KL";
        assert_eq!(table.terminal(), expected);
        // Three values and the caption.
        assert_eq!(table.html().into_string().matches('★').count(), 4);
    }

    #[test]
    fn a_wide_comparison_is_cut_into_parts() {
        let columns: Vec<Column> = (0..9)
            .map(|i| Column {
                name: format!("metric number {i}"),
                unit: Unit::Plain,
                better: Better::Higher,
            })
            .collect();
        let cells = |value: f64| vec![Cell::Number(value); 9];
        let rows = vec![("dpo".to_owned(), cells(0.5)), ("simpo-kl".to_owned(), cells(0.25))];
        let text = ComparisonTable { columns: columns.clone(), rows }.terminal();
        assert!(widest(text.rsplit_once('\n').unwrap().0) <= 80, "{text}");
        for column in &columns {
            assert_eq!(text.matches(&format!(" {} ", column.name)).count(), 1, "{text}");
        }
        let parts = text.matches("Method").count();
        assert!(parts > 1 && text.matches("simpo-kl").count() == parts, "{text}");
        assert_eq!(text.matches("* 0.5").count(), 9, "{text}");
        // Nothing is better than anything else.
        let rows = vec![("dpo".to_owned(), cells(0.5)), ("fpo".to_owned(), cells(0.5))];
        assert!(!ComparisonTable { columns, rows }.terminal().contains('*'));
    }

    #[test]
    fn tables_without_rows_have_a_heading() {
        assert_eq!(terminal_table(&[]).lines().count(), 4);
        assert!(ComparisonTable::default().terminal().contains("Method"));
    }
}
