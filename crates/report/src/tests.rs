//! Tests of whole pages, including hostile and empty reports.

use super::*;

#[test]
fn generated_text_is_escaped() {
    let attack = "</pre></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'>";
    let text = || attack.to_owned();
    let sample = Sample {
        prompt: text(),
        other: Some((text(), text())),
        before: text(),
        after: text(),
        note_before: Some(text()),
        note_after: Some(text()),
        ..Sample::default()
    };
    let context = TokenContext { tokens: vec![text()], activations: vec![1.0] };
    let chart = Chart {
        title: text(),
        x_label: text(),
        y_label: text(),
        series: vec![Series {
            name: text(),
            points: vec![(0.0, 0.0), (1.0, 1.0)],
            ..Series::default()
        }],
    };
    let column = Column { name: text(), ..Column::default() };
    let page = render(&Report {
        title: text(),
        subtitle: text(),
        warnings: vec![text()],
        summary: vec![(text(), text())],
        table: vec![TableRow { metric: text(), explanation: text(), ..TableRow::default() }],
        comparison: Some(ComparisonTable {
            columns: vec![column],
            rows: vec![(text(), vec![Cell::Text(text())])],
        }),
        stages: vec![StageCurves {
            stage: text(),
            caption: text(),
            charts: vec![chart],
            answers: vec![AnswerCourse { prompt: text(), answers: vec![(1, text())] }],
        }],
        samples: vec![SampleGroup { title: text(), choice: text(), samples: vec![sample] }],
        features: vec![FeatureMove { examples: vec![context], ..FeatureMove::default() }],
        settings_toml: text(),
        notes: vec![text()],
    });
    assert!(!page.contains("<script") && !page.contains("<img"));
    // Once per field; the title is both in the head and in the heading, and the chart's texts are also in its description.
    assert!(
        page.matches("&lt;script&gt;").count() >= 29,
        "{}",
        page.matches("&lt;script&gt;").count()
    );
}

#[test]
fn the_page_needs_no_network() {
    let page = render(&full());
    for outside in ["src=", "url(", "@import", "<script", "<iframe"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let links: Vec<_> =
        page.match_indices("href=\"").map(|(at, _)| &page[at + 6..at + 7]).collect();
    assert!(links.iter().all(|&first| first == "#" || first == "d"), "{links:?}");
}

#[test]
fn an_empty_report_is_still_a_page() {
    let page = render(&Report::default());
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
    assert!(page.contains("This report is empty."));
    assert!(!page.contains("<section") && !page.contains("<nav"));
}

#[test]
fn empty_parts_are_left_out() {
    let page = render(&Report { notes: vec!["one seed".into()], ..Report::default() });
    assert!(page.contains("id=\"notes\"") && page.contains("one seed"));
    assert_eq!(page.matches("<section").count(), 1);
}

#[test]
fn tokens_have_their_activation() {
    let context = TokenContext {
        tokens: [" the", "\n", "cat", " sat"].map(str::to_owned).to_vec(),
        activations: vec![2.0, f32::NAN, 0.5],
    };
    let page = render(&Report {
        features: vec![FeatureMove { index: 7, examples: vec![context], ..FeatureMove::default() }],
        ..Report::default()
    });
    for expected in [
        "<mark style=\"--heat:1.00\" title=\"2\"> the</mark>",
        "<span title=\"n/a\">↵</span>",
        "<mark style=\"--heat:0.25\" title=\"0.5\">cat</mark>",
        "<span title=\"0\"> sat</span>",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
}

#[test]
fn samples_can_be_filtered_by_outcome() {
    let sample =
        |before_right, after_right| Sample { before_right, after_right, ..Sample::default() };
    let filter = |samples| {
        let groups = vec![SampleGroup { samples, ..SampleGroup::default() }];
        let page = render(&Report { samples: groups, ..Report::default() });
        page.match_indices("type=\"radio\" name=\"show\" value=\"")
            .map(|(at, pattern)| page[at + pattern.len()..].split('"').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let (right, wrong) = (Some(true), Some(false));
    assert_eq!(
        filter(vec![sample(wrong, right), sample(right, wrong), sample(wrong, right)]),
        ["all", "fixed", "broken"]
    );
    assert_eq!(
        filter(vec![sample(right, right), sample(None, right)]),
        ["all", "right", "unjudged"]
    );
    assert!(filter(vec![sample(wrong, wrong)]).is_empty(), "a single kind needs no filter");
}

#[test]
fn a_diverged_run_round_trips_through_json() {
    let mut report = full();
    report.stages[0].charts[0].series[0].points = vec![(0.0, 1.0), (1.0, f64::NAN)];
    report.features[0].after = f64::INFINITY;
    report.table[0].after = Some(f64::NAN);
    let read: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    let points = &read.stages[0].charts[0].series[0].points;
    assert!(points[0] == (0.0, 1.0) && points[1].0 == 1.0 && points[1].1.is_nan());
    assert!(read.features[0].after.is_nan());
    assert_eq!(read.table[0].after, None);
    assert!(render(&read).contains("<svg"));
}

#[test]
fn a_complete_report_round_trips_through_json() {
    let report = full();
    assert_eq!(
        serde_json::from_str::<Report>(&serde_json::to_string(&report).unwrap()).unwrap(),
        report
    );
}

/// A report with every part.
fn full() -> Report {
    let series =
        Series { name: "train".into(), points: vec![(0.0, 2.0), (1.0, 1.0)], ..Series::default() };
    let chart = Chart {
        title: "loss".into(),
        x_label: "step".into(),
        y_label: "nats".into(),
        series: vec![series],
    };
    Report {
        title: "A run".into(),
        subtitle: "a line".into(),
        warnings: vec!["unfinished".into()],
        summary: vec![("Model".into(), "tiny".into())],
        table: vec![TableRow {
            metric: "accuracy".into(),
            before: Some(0.2),
            after: Some(0.4),
            ..TableRow::default()
        }],
        comparison: Some(ComparisonTable {
            columns: vec![Column {
                name: "accuracy".into(),
                unit: Unit::Percent,
                better: Better::Higher,
            }],
            rows: vec![("FPO".into(), vec![Cell::Number(0.5)])],
        }),
        stages: vec![StageCurves {
            stage: "align".into(),
            charts: vec![chart],
            ..StageCurves::default()
        }],
        samples: vec![SampleGroup {
            title: "At random".into(),
            choice: "1 of 8 prompts".into(),
            samples: vec![Sample {
                prompt: "2 + 2?".into(),
                before: "5".into(),
                after: "4".into(),
                ..Sample::default()
            }],
        }],
        features: vec![FeatureMove {
            index: 1,
            before: 0.5,
            after: 0.25,
            density: Some(0.01),
            examples: Vec::new(),
        }],
        settings_toml: "[align]\nbeta = 0.1\n".into(),
        notes: vec!["one seed".into()],
    }
}

#[test]
fn samples_say_how_they_were_chosen() {
    let page = render(&full());
    assert!(page.contains("<h3>At random</h3>") && page.contains("1 of 8 prompts"), "{page}");
    let other = Some(("Chosen response".to_owned(), "4".to_owned()));
    let samples = vec![Sample { other, ..Sample::default() }];
    let groups = vec![SampleGroup { samples, ..SampleGroup::default() }];
    let page = render(&Report { samples: groups, ..Report::default() });
    assert!(page.contains("<h4>Chosen response</h4>") && !page.contains("Expected"));
}
