//! The page of several runs side by side.

use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use crate::{
    StageCurves, Verdict,
    changes::{self, Change, Mark},
    charts,
    page::{Head, Section, shell},
    samples::{about, answer},
    tables::{MISSING, change_pill},
};

/// Content of the page of several runs. A run is known by its position in `runs`. Empty parts are left out of the page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunsReport {
    /// Title of the page and its main heading.
    pub title: String,
    /// One line under the title.
    pub subtitle: String,
    /// What has to be known before anything is compared, such as that metrics were measured on different data.
    pub warnings: Vec<String>,
    /// Names of the runs.
    pub runs: Vec<String>,
    /// What each run is.
    pub facts: SideBySide,
    /// Settings that differ.
    pub settings: SideBySide,
    /// Metrics after alignment, with differences.
    pub metrics: SideBySide,
    /// Training curves by stage, those of all runs in one chart: [`Stroke::Run`](crate::Stroke::Run).
    pub stages: Vec<StageCurves>,
    /// Which prompts `answers` are, out of how many.
    pub answers_choice: String,
    /// Answers to the same prompts.
    pub answers: Vec<SharedPrompt>,
    /// Features that alignment moved.
    pub features: SideBySide,
    /// Wall clock, tokens per second and memory.
    pub time: SideBySide,
}

/// A table with a column for each run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SideBySide {
    /// What it shows and how it is to be read.
    pub caption: String,
    /// Heading of the first column.
    pub heading: String,
    /// A column that concerns no run, between the names and the runs: its heading.
    pub before: Option<String>,
    /// The rows.
    pub rows: Vec<SideRow>,
}

/// A row of a [`SideBySide`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SideRow {
    /// Its heading.
    pub name: String,
    /// One sentence under it; may be empty.
    pub explanation: String,
    /// The cell of the column that concerns no run.
    pub before: SideCell,
    /// A cell for each run.
    pub cells: Vec<SideCell>,
}

/// A cell of a [`SideBySide`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SideCell {
    /// What it says; nothing is shown as a dash.
    pub text: String,
    /// A difference, and what to think of it.
    pub change: Option<(String, Verdict)>,
}

impl SideCell {
    /// A cell without a difference.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), change: None }
    }
}

/// A prompt that several runs answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SharedPrompt {
    /// Text of the prompt.
    pub prompt: String,
    /// A response to compare with, and what it is.
    pub other: Option<(String, String)>,
    /// The answer before alignment, where all runs begin with the same one; whether it is right.
    pub before: Option<(String, Option<bool>)>,
    /// An answer for each run; none where it has none.
    pub answers: Vec<Option<RunAnswer>>,
}

/// A run's answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunAnswer {
    /// Before alignment.
    pub before: String,
    /// After it.
    pub after: String,
    /// Whether `after` is right; `None` if not judged.
    pub right: Option<bool>,
    /// A note under it.
    pub note: Option<String>,
}

/// Renders the page of several runs as one HTML document without external resources.
pub fn render_runs(report: &RunsReport) -> String {
    let head = Head {
        title: &report.title,
        subtitle: &report.subtitle,
        warnings: &report.warnings,
        summary: &[],
    };
    shell(&head, sections(report)).into_string()
}

fn sections(report: &RunsReport) -> [Section; 7] {
    let table = |id, title, table: &SideBySide| Section {
        id,
        title,
        lead: "",
        present: !table.rows.is_empty(),
        body: side_by_side(title, table, &report.runs),
    };
    [
        table("runs", "The runs", &report.facts),
        table("settings", "Settings that differ", &report.settings),
        table("metrics", "Metrics", &report.metrics),
        Section {
            id: "curves",
            title: "Training curves",
            lead: "Each run has its colour and its dashes in every chart. Noisy curves are smoothed; rings are evaluations on \
                   held-out pairs. The number beside a name is the last value.",
            present: !report.stages.is_empty(),
            body: html! { @for stage in &report.stages { (charts::stage(stage)) } },
        },
        Section {
            id: "answers",
            title: "Answers",
            lead: "After alignment, to the same held-out prompts. Underlined words aren't in the run's answer before.",
            present: !report.answers_choice.is_empty(),
            body: html! {
                p.caption { (report.answers_choice) }
                @for prompt in &report.answers { (shared(prompt, &report.runs)) }
            },
        },
        table("features", "Changed features", &report.features),
        table("time", "Time and memory", &report.time),
    ]
}

fn side_by_side(title: &str, table: &SideBySide, runs: &[String]) -> Markup {
    let columns = runs.len() + usize::from(table.before.is_some());
    html! {
        div.scroll tabindex="0" role="region" aria-label=(title) {
            table.side style=(format!("min-width:{}rem", 15 + 9 * columns)) {
                caption { span { (table.caption) } }
                thead {
                    tr {
                        th scope="col" { (table.heading) }
                        @if let Some(before) = &table.before { th scope="col" { (before) } }
                        @for (at, run) in runs.iter().enumerate() {
                            th scope="col" { (charts::run_swatch(at)) " " (breakable(run)) }
                        }
                    }
                }
                tbody {
                    @for row in &table.rows {
                        tr {
                            th scope="row" {
                                (breakable(&row.name))
                                @if !row.explanation.is_empty() { small { (row.explanation) } }
                            }
                            @if table.before.is_some() { (cell(&row.before)) }
                            @for one in &row.cells { (cell(one)) }
                        }
                    }
                }
            }
        }
    }
}

/// A name that may be broken after its dots and underscores rather than within a word.
fn breakable(name: &str) -> Markup {
    html! {
        @for (at, part) in name.split_inclusive(['.', '_', '/']).enumerate() {
            @if at > 0 { wbr; }
            (part)
        }
    }
}

fn cell(cell: &SideCell) -> Markup {
    html! {
        td {
            @if cell.text.is_empty() { (MISSING) } @else { (cell.text) }
            @if let Some((text, verdict)) = &cell.change { " " (change_pill(text, *verdict)) }
        }
    }
}

fn shared(prompt: &SharedPrompt, runs: &[String]) -> Markup {
    let answers = || runs.iter().zip(&prompt.answers).enumerate();
    html! {
        article.sample {
            div.prompt {
                h3 { "Prompt" }
                (changes::plain(&prompt.prompt))
                @if let Some((name, other)) = &prompt.other {
                    h4 { (name) }
                    (changes::plain(other))
                }
            }
            div.answers.many {
                @if let Some((before, right)) = &prompt.before {
                    (answer(&html! { "Before" }, changes::plain(before), *right, None, ""))
                }
                @for (at, (run, given)) in answers() {
                    @let title = html! { (charts::run_swatch(at)) " " (run) };
                    @match given {
                        None => { (answer(&title, html! { p.empty { "no answer" } }, None, None, "")) }
                        Some(given) => { (one(&title, given, prompt.before.is_none())) }
                    }
                }
            }
        }
    }
}

/// A run's answer; with its own answer before, where the runs begin with different ones.
fn one(title: &Markup, given: &RunAnswer, own: bool) -> Markup {
    let RunAnswer { before, after, right, note } = given;
    let change = changes::compare(before, after);
    let text = match &change {
        Change::Marked { after, .. } => changes::pieces(after, Mark::New),
        _ => changes::plain(after),
    };
    let about = match &change {
        Change::Same => "as before",
        other => about(other),
    };
    let text = html! {
        (text)
        @if own { details.own { summary { "Before" } (changes::plain(before)) } }
    };
    answer(title, text, *right, note.as_deref(), about)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Chart, Series, Stroke};

    fn full() -> RunsReport {
        let cells = |texts: [&str; 2]| texts.map(SideCell::new).to_vec();
        let answer = |text: &str| {
            Some(RunAnswer { before: "a b".into(), after: text.into(), ..RunAnswer::default() })
        };
        let series = |at: usize| Series {
            name: format!("run {at}"),
            stroke: Stroke::Run(at),
            points: vec![(0.0, 1.0), (1.0, at as f64)],
        };
        let table = |name: &str, texts| SideBySide {
            caption: "caption".into(),
            heading: "Setting".into(),
            before: None,
            rows: vec![SideRow { name: name.into(), cells: cells(texts), ..SideRow::default() }],
        };
        let mut metrics = table("Accuracy", ["80.0%", "85.0%"]);
        metrics.before = Some("Before".into());
        metrics.rows[0].cells[1].change = Some(("+5.0 pp".into(), Verdict::Better));
        RunsReport {
            title: "Two runs".into(),
            subtitle: "fpo".into(),
            warnings: vec!["The data differ.".into()],
            runs: vec!["first".into(), "second".into()],
            facts: table("Method", ["dpo", "fpo"]),
            settings: table("align.beta", ["0.1", ""]),
            metrics,
            stages: vec![StageCurves {
                stage: "Align".into(),
                charts: vec![Chart {
                    title: "Loss".into(),
                    series: vec![series(0), series(1)],
                    ..Chart::default()
                }],
                ..StageCurves::default()
            }],
            answers_choice: "1 of 8".into(),
            answers: vec![SharedPrompt {
                prompt: "Which?".into(),
                before: Some(("a b".into(), None)),
                answers: vec![answer("a c"), None],
                ..SharedPrompt::default()
            }],
            features: table("7", ["+0.1", ""]),
            time: table("align", ["1 s", "2 s"]),
        }
    }

    #[test]
    fn runs_stand_side_by_side() {
        let page = render_runs(&full());
        for part in [
            "<li>The data differ.</li>",
            "<th scope=\"row\">align.<wbr>beta</th><td>0.1</td><td>–</td>",
            "<td>85.0% <span class=\"change better\">+5.0<span class=\"unit\"> pp</span>",
            "stroke-dasharray",
            "a <ins>c</ins>",
            "no answer",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert_eq!(page.matches("<section").count(), 7);
        // The one before is there once, not with every run.
        assert_eq!(page.matches("<summary>Before</summary>").count(), 0);
        let mut report = full();
        report.answers[0].before = None;
        assert_eq!(render_runs(&report).matches("<summary>Before</summary>").count(), 1);
    }

    #[test]
    fn text_is_escaped_and_nothing_is_loaded() {
        let attack = "</pre></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'>";
        let text = serde_json::to_string(&full()).unwrap();
        // Every text of the page, but for the names of variants.
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        fn attacked(value: &mut serde_json::Value, attack: &str) {
            match value {
                serde_json::Value::String(text) if text != "Better" => *text = attack.to_owned(),
                serde_json::Value::Array(all) => all.iter_mut().for_each(|v| attacked(v, attack)),
                serde_json::Value::Object(all) => {
                    all.values_mut().for_each(|v| attacked(v, attack));
                }
                _ => {}
            }
        }
        attacked(&mut value, attack);
        let page = render_runs(&serde_json::from_value(value).unwrap());
        assert!(!page.contains("<script") && !page.contains("<img"));
        assert!(page.matches("&lt;script&gt;").count() > 30);
        for outside in ["src=\"", "url(", "@import", "<iframe"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn empty_parts_are_left_out() {
        let page = render_runs(&RunsReport::default());
        assert!(page.contains("This report is empty.") && !page.contains("<section"));
    }
}
