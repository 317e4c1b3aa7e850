//! What is shown where, in which order and how it is written. Oracle: the text itself.

use fpo_losses::{Method, Objective};
use fpo_metrics::{
    AnswerValues, Criterion, Evaluation, METRICS, Measured, PairValues, Sides, cells, cells_before,
    charts, columns, courses, held_out_log, log, logged_as, means, measure, table,
};
use fpo_report::{Better, Cell, Stroke, Unit};
use serde_json::{Map, Value, json};

fn pair() -> PairValues {
    PairValues {
        loss: 0.25,
        u: 1.25,
        rewards: Sides::new(1.0, -0.25),
        log_probs: Sides::new(f64::from(-4.1f32), -8.0),
        tokens: Sides::new(4.0, 5.0),
        kl: Some(Sides::new(0.5, 1.5)),
        distance: Some(Sides::new(0.125, 0.0)),
        entropy: Some(Sides::new(2.0, 7.0)),
        right_tokens: Some(Sides::new(3.0, 1.0)),
        method_margin: Some(0.0),
    }
}

/// A pair of a method without KL and D, whose policy prefers the rejected response.
fn bare_pair() -> PairValues {
    PairValues {
        loss: 0.75,
        rewards: Sides::new(-1.0, -1.0),
        log_probs: Sides::new(-8.0, -2.0),
        tokens: Sides::new(2.0, 1.0),
        ..PairValues::default()
    }
}

fn answers() -> [AnswerValues; 3] {
    [
        AnswerValues { entropies: vec![0.5, 1.5], tokens: 1, right: Some(true) },
        AnswerValues { entropies: vec![1.0], tokens: 1, right: None },
        AnswerValues { entropies: vec![0.0; 5], tokens: 4, right: Some(false) },
    ]
}

fn keys(map: &Map<String, Value>) -> Vec<&str> {
    let mut keys: Vec<&str> = map.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_step_logs_what_was_computed() {
    let (loss, rest) = log(&[pair(), bare_pair()]);
    assert_eq!(loss, 0.5);
    assert_eq!(rest["rewards/accuracies"], 0.5);
    let (_, rest) = log(&[bare_pair(), bare_pair()]);
    let always = [
        "accuracy",
        "logps/chosen",
        "logps/rejected",
        "rewards/accuracies",
        "rewards/chosen",
        "rewards/margins",
        "rewards/rejected",
        "tokens/chosen",
        "tokens/rejected",
        "u",
    ];
    assert_eq!(keys(&rest), always);
    // A tie of rewards isn't a preference.
    assert_eq!(rest["rewards/accuracies"], 0.0);
    let (_, rest) = log(&[pair()]);
    let where_computed = [
        "distance/chosen",
        "distance/margins",
        "distance/rejected",
        "entropy",
        "kl/chosen",
        "kl/margins",
        "kl/rejected",
        "mean_token_accuracy",
    ];
    let mut expected = [&always[..], &where_computed].concat();
    expected.sort_unstable();
    assert_eq!(keys(&rest), expected);
    assert_eq!(rest["entropy"], 1.0);
    assert_eq!(rest["mean_token_accuracy"], 0.75);
}

#[test]
fn an_evaluation_records_means_of_pairs_and_answers() {
    let measured = measure(&[pair()], &answers());
    let expected = json!({
        "loss": 0.25, "accuracy": 1.0, "reward_accuracy": 1.0, "reward_margin": 1.25,
        "chosen_log_prob": f64::from(-4.1f32), "rejected_log_prob": -8.0, "chosen_kl": 0.5, "rejected_kl": 1.5, "chosen_distance": 0.125, "rejected_distance": 0.0,
        "entropy": 0.375, "answer_tokens": 2.0, "right": 0.5,
    });
    // As text: the order counts too.
    assert_eq!(serde_json::to_string(&measured).unwrap(), expected.to_string());
    let read: Measured = serde_json::from_value(expected).unwrap();
    assert_eq!(read, measured);
}

#[test]
fn the_table_of_before_and_after() {
    let after = measure(&[pair()], &answers());
    let rows = table(&objective(Method::FPO), &Measured::default(), &after);
    let found: Vec<_> =
        rows.iter().map(|row| (row.metric.as_str(), row.after_text(), row.better)).collect();
    let expected = [
        ("Loss", "0.25", Better::Lower),
        ("Accuracy", "100.0%", Better::Higher),
        ("Reward accuracy", "100.0%", Better::Higher),
        ("Reward margin", "1.25", Better::Higher),
        ("KL, chosen", "0.500 nats", Better::Neither),
        ("KL, rejected", "1.500 nats", Better::Neither),
        ("D, chosen", "0.125", Better::Neither),
        ("D, rejected", "0", Better::Neither),
        ("Entropy", "0.375 nats", Better::Neither),
        ("Answer length", "2.0 tokens", Better::Neither),
        ("Right answers", "50.0%", Better::Higher),
    ]
    .map(|(title, value, better)| (title, value.to_owned(), better));
    assert_eq!(found, expected);
    assert!(rows.iter().all(|row| row.before.is_none() && row.explanation.ends_with('.')));

    // Answers that can't be checked have no row, in files that hold a null too.
    let unchecked: Measured = serde_json::from_value(json!({"loss": 0.5, "right": null})).unwrap();
    let rows = table(&objective(Method::FPO), &unchecked, &unchecked);
    assert_eq!(rows.iter().map(|row| row.metric.as_str()).collect::<Vec<_>>(), ["Loss"]);
}

fn objective(method: Method) -> Objective {
    Objective::paper(method)
}

/// A reward against the reference is zero of the reference itself, so nothing is told right by it; a reward without a reference is
/// one from the start.
#[test]
fn there_is_no_reward_before_alignment() {
    let measured: Measured =
        serde_json::from_value(json!({"reward_accuracy": 0.75, "reward_margin": 0.5})).unwrap();
    for (method, before) in [
        (Method::FPO, "–"),
        (Method::DPO, "–"),
        (Method::TDPO2, "–"),
        (Method::SIMPO, "75.0%"),
        (Method::SIMPO_KL, "75.0%"),
    ] {
        let rows = table(&objective(method), &measured, &measured);
        let found: Vec<_> =
            rows.iter().map(|row| (&*row.metric, row.before_text(), row.after_text())).collect();
        let text = str::to_owned;
        let expected = [
            ("Reward accuracy", text(before), text("75.0%")),
            ("Reward margin", text("0.5"), text("0.5")),
        ];
        assert_eq!(found, expected, "{method}");
    }
    // In a comparison of methods, the model before has no method's rewards.
    let place = columns().iter().position(|column| column.name == "Reward accuracy").unwrap();
    assert_eq!(cells(&measured)[place], Cell::Number(0.75));
    assert!(cells_before(&measured).iter().all(|cell| *cell == Cell::Missing));
}

#[test]
fn metrics_are_known_by_their_keys_in_logs() {
    for (key, name) in [
        ("loss", Some("loss")),
        ("eval_loss", Some("loss")),
        ("rewards/accuracies", Some("reward_accuracy")),
        ("eval_rewards/accuracies", Some("reward_accuracy")),
        ("entropy", Some("token_entropy")),
        ("eval_answer_entropy", Some("entropy")),
        ("eval_right", Some("right")),
        ("learning_rate", None),
    ] {
        assert_eq!(logged_as(key).map(|metric| metric.name), name, "{key}");
    }
}

#[test]
fn the_columns_of_a_comparison() {
    let found: Vec<_> = columns().into_iter().map(|c| (c.name, c.unit, c.better)).collect();
    let expected = [
        ("Accuracy", Unit::Percent, Better::Higher),
        ("Right answers", Unit::Percent, Better::Higher),
        ("Entropy", Unit::Nats, Better::Neither),
        ("KL, chosen", Unit::Nats, Better::Neither),
        ("KL, rejected", Unit::Nats, Better::Neither),
        ("D, chosen", Unit::Plain, Better::Neither),
        ("D, rejected", Unit::Plain, Better::Neither),
        ("Answer length", Unit::Tokens, Better::Neither),
        ("Reward accuracy", Unit::Percent, Better::Higher),
    ]
    .map(|(name, unit, better)| (name.to_owned(), unit, better));
    assert_eq!(found, expected);
    let values = [1.0, 0.5, 0.375, 0.5, 1.5, 0.125, 0.0, 2.0, 1.0].map(Cell::Number);
    assert_eq!(cells(&measure(&[pair()], &answers())), values);
    assert_eq!(cells(&Measured::default()), vec![Cell::Missing; 9]);
}

#[test]
fn charts_of_what_was_logged() {
    let line = |step: usize, pair: PairValues| {
        let (loss, rest) = log(&[pair]);
        let mut line = Map::from_iter([("step".into(), json!(step)), ("loss".into(), json!(loss))]);
        line.extend(rest);
        line
    };
    let found: Vec<_> = charts(&[line(1, pair()), line(2, pair())])
        .into_iter()
        .map(|chart| {
            assert!(chart.x_label == "step" && chart.series.iter().all(|s| s.points.len() == 2));
            let series: Vec<String> = chart.series.into_iter().map(|s| s.name).collect();
            (chart.title, chart.y_label, series.join(", "))
        })
        .collect();
    let expected = [
        ("Loss", "nats", "Loss"),
        ("Accuracy", "share", "length-normalised, reward"),
        ("Rewards", "", "chosen, rejected, margin"),
        ("Log-probability", "nats per response", "chosen, rejected"),
        ("Feature distance D", "", "chosen, rejected"),
        ("KL to the reference", "nats", "chosen, rejected"),
    ]
    .map(|(title, y_label, series)| (title.to_owned(), y_label.to_owned(), series.to_owned()));
    assert_eq!(found, expected);
    let bare = charts(&[line(1, bare_pair())]);
    assert_eq!(bare.len(), 4, "what wasn't logged has no chart");
    assert_eq!(bare[0].series[0].points, [(1.0, 0.75)]);
}

#[test]
fn a_line_per_pair() {
    let line = serde_json::to_string(&pair()).unwrap();
    let expected = r#"{"chosen_log_prob":-4.1,"rejected_log_prob":-8.0,"chosen_tokens":4,"rejected_tokens":5,"margin":0.0,"chosen_distance":0.125,"rejected_distance":0.0,"u":1.25,"loss":0.25,"chosen_kl":0.5,"rejected_kl":1.5}"#;
    assert_eq!(line, expected);
    let line = serde_json::to_string(&bare_pair()).unwrap();
    let expected = r#"{"chosen_log_prob":-8.0,"rejected_log_prob":-2.0,"chosen_tokens":2,"rejected_tokens":1,"u":0.0,"loss":0.75}"#;
    assert_eq!(line, expected);

    assert_eq!(pair().check(), Ok(()));
    let broken = PairValues { loss: f64::NAN, ..pair() };
    let message = broken.check().unwrap_err().to_string();
    assert_eq!(message, "loss is NaN; are the policy's weights sound?");
}

#[test]
fn means_over_pairs() {
    let other = PairValues { tokens: Sides::new(2.0, 5.0), ..pair() };
    let expected = [
        ("Loss", "0.25000"),
        ("Accuracy (higher average log-probability)", "50.0%"),
        ("Accuracy (higher reward)", "100.0%"),
        ("u", "1.25000"),
        ("Margin", "0.00000"),
        ("Log-probability, chosen", "-4.10000"),
        ("Log-probability, rejected", "-8.00000"),
        ("Tokens, chosen", "3.00000"),
        ("Tokens, rejected", "5.00000"),
        ("D, chosen", "0.12500"),
        ("D, rejected", "0.00000"),
        ("KL, chosen", "0.50000"),
        ("KL, rejected", "1.50000"),
    ]
    .map(|(title, value)| (title, value.to_owned()));
    assert_eq!(means(&[pair(), other]), expected);
    assert_eq!(means(&[bare_pair()]).len(), 8);
}

#[test]
fn every_metric_can_be_shown_where_it_says() {
    let unique = |mut names: Vec<&str>| {
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a name stands for two metrics: {names:?}");
    };
    unique(METRICS.iter().map(|m| m.name).collect());
    unique(METRICS.iter().filter_map(|m| m.places.log).collect());
    for metric in METRICS {
        let (name, places) = (metric.name, metric.places);
        assert!(!metric.title.is_empty() && metric.about.ends_with('.'), "{name}");
        assert!(places.curve.is_none() || places.log.is_some(), "{name}: a curve of no log");
        let measured = places.evaluation != Evaluation::Absent;
        assert!(places.column.is_none() || measured, "{name}: a column of nothing measured");
        let of_pairs = metric.of_pair(&pair()).is_some();
        let needs_pairs = places.log.is_some() || places.line.is_some() || places.mean.is_some();
        assert!(of_pairs || !needs_pairs, "{name}: sampled answers have no pairs");
    }
}

/// TRL's trainers put `eval_` before the names of a training step.
#[test]
fn an_evaluation_is_logged_by_trls_names() {
    let line = held_out_log(&[pair(), bare_pair()], &answers());
    let (loss, step) = log(&[pair(), bare_pair()]);
    assert_eq!(line["eval_loss"], loss);
    for (key, value) in &step {
        assert_eq!(line[&format!("eval_{key}")], *value, "{key}");
    }
    let more: Vec<&str> = keys(&line)
        .into_iter()
        .filter(|key| !step.contains_key(&key["eval_".len()..]) && *key != "eval_loss")
        .collect();
    assert_eq!(more, ["eval_answer_entropy", "eval_answer_tokens", "eval_right"]);
    assert!(!held_out_log(&[pair()], &[]).contains_key("eval_right"));
}

#[test]
fn every_criterion_is_told_by_its_name() {
    for criterion in Criterion::all() {
        let name = criterion.to_string();
        assert_eq!(name.parse(), Ok(criterion));
        assert_eq!(serde_json::to_value(criterion).unwrap(), json!(name));
        assert_ne!(criterion.metric().better, Better::Neither);
    }
    let all: Vec<String> = Criterion::all().map(|criterion| criterion.to_string()).collect();
    let expected = [
        "eval_loss",
        "eval_accuracy",
        "eval_rewards/accuracies",
        "eval_rewards/chosen",
        "eval_rewards/rejected",
        "eval_rewards/margins",
        "eval_u",
        "eval_mean_token_accuracy",
        "eval_right",
    ];
    assert_eq!(all, expected);
    let refused = |name: &str| name.parse::<Criterion>().unwrap_err().to_string();
    assert_eq!(refused("loss"), format!("no metric `loss`: there are {}", all.join(", ")));
    assert!(refused("eval_kl/chosen").contains("neither high nor low"));
}

#[test]
fn evaluations_are_rings_beside_their_lines() {
    /// Name, stroke and number of points.
    type Drawn = (String, Stroke, usize);
    let lines = [
        json!({ "step": 1, "loss": 0.7, "rewards/chosen": 0.0, "rewards/rejected": 0.0 }),
        json!({ "step": 2, "loss": 0.6, "rewards/chosen": 0.1, "rewards/rejected": -0.1 }),
        json!({ "step": 2, "eval_loss": 0.65, "eval_rewards/rejected": -0.2, "eval_kl/chosen": 0.5,
            "eval_samples": [{ "prompt": "p", "response": "one" }] }),
        json!({ "step": 4, "eval_loss": 0.5, "eval_samples": [{ "prompt": "p", "response": "two" }] }),
    ];
    let lines: Vec<Map<String, Value>> =
        lines.into_iter().map(|line| serde_json::from_value(line).unwrap()).collect();
    let found: Vec<(String, Vec<Drawn>)> = charts(&lines)
        .into_iter()
        .map(|chart| {
            let series = chart.series.into_iter();
            (chart.title, series.map(|s| (s.name, s.stroke, s.points.len())).collect())
        })
        .collect();
    let series = |name: &str, stroke, points| (name.to_owned(), stroke, points);
    assert_eq!(
        found[0],
        (
            "Loss".to_owned(),
            vec![series("Loss", Stroke::Line, 2), series("Loss, held-out", Stroke::Rings(0), 2)]
        )
    );
    let rewards = found.iter().find(|(title, _)| title.contains("ewards")).unwrap();
    assert_eq!(rewards.1[2..], [series("rejected, held-out", Stroke::Rings(1), 1)]);
    let kl = found.iter().find(|(title, _)| title.starts_with("KL")).unwrap();
    assert!(kl.1.contains(&series("chosen, held-out", Stroke::Rings(0), 1)));
    let courses = courses(&lines);
    assert_eq!(courses.len(), 1);
    assert_eq!(courses[0].answers, [(2, "one".to_owned()), (4, "two".to_owned())]);
}
