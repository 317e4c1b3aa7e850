//! Arena-Hard's judgment files, with rows of our own making. Oracle: the games counted by hand, and that the score against a single
//! baseline predicts the share of games won.

use std::path::PathBuf;

use fpo_judge::judgments::read;
use fpo_judge::stats::Resampling;
use serde_json::{Value, json};
use tempfile::TempDir;

const RESAMPLING: Resampling = Resampling { rounds: 0, seed: 0 };

fn file(folder: &TempDir, name: &str, rows: &[Value]) -> PathBuf {
    let path = folder.path().join(name);
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

/// A row of version 2; a game without a score is null.
fn row(uid: usize, model: &str, games: [Option<&str>; 2]) -> Value {
    let games =
        games.map(|score| score.map(|score| json!({"score": score, "judgment": {"answer": "…"}})));
    json!({"uid": format!("u{uid}"), "category": "hard_prompt", "judge": "j", "model": model, "baseline": "base", "games": games})
}

#[test]
fn games_are_battles_and_clear_wins_count_three() {
    let folder = tempfile::tempdir().unwrap();
    // For the model: a loss and a win (A is the baseline, then the model), two clear wins, a tie and a clear loss.
    let good = [
        row(1, "good", [Some("A>B"), Some("A>B")]),
        row(2, "good", [Some("B>>A"), Some("A>>B")]),
        row(3, "good", [Some("A=B"), Some("B>>A")]),
        // A whole row goes where one of its games has no score.
        row(4, "good", [None, Some("A>>B")]),
    ];
    let other =
        [row(1, "other", [Some("A<B"), Some("B<A")]), row(2, "other", [Some("B=A"), Some("A<<B")])];
    let paths = [file(&folder, "good.jsonl", &good), file(&folder, "other.jsonl", &other)];
    let found = read(&paths).unwrap();
    let [judgments] = &found[..] else { panic!("{found:?}") };
    let scored = judgments.score(RESAMPLING);
    assert_eq!((&*scored.baseline, scored.rows, scored.without_score), ("base", 6, 1));
    let of = |model: &str| scored.scores.iter().find(|score| score.model == model).unwrap();
    // 1 + 6 of 12 games and half a tie; 2 + half of 6.
    for (model, battles, won) in [("good", 12, 7.5 / 12.0), ("other", 6, 2.5 / 6.0)] {
        let score = of(model);
        assert_eq!(score.battles, battles, "{model}");
        assert!((score.win_rate.unwrap() - 100.0 * won).abs() < 1e-6, "{model}: {score:?}");
        let odds = 1000.0 + 400.0 * (won / (1.0 - won)).log10();
        assert!((score.score.unwrap() - odds).abs() < 1e-4, "{model}: {score:?} and {odds}");
    }
    assert_eq!(of("base").score, Some(1000.0));
}

/// Version 0.1 names no baseline, and leaves out a game without a score rather than its row.
#[test]
fn version_0_1_has_a_baseline_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let row = |id: usize, games: Value| json!({"question_id": id, "model": "m", "judge": "j", "games": games});
    let rows = [
        row(1, json!([{"score": "A>B"}, {"score": null}])),
        row(2, json!([{"score": "B>A"}, {"score": "B>A"}])),
        row(3, json!([{"score": "A=B"}])),
    ];
    let scored = read(&[file(&folder, "m.jsonl", &rows)]).unwrap()[0].score(RESAMPLING);
    assert_eq!((&*scored.baseline, scored.without_score, scored.category), ("gpt-4-0314", 1, None));
    let score = scored.scores.iter().find(|score| score.model == "m").unwrap();
    assert!((score.win_rate.unwrap() - 37.5).abs() < 1e-6 && score.battles == 4, "{score:?}");
}

#[test]
fn categories_and_baselines_are_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut writing = row(2, "m", [Some("A=B"), Some("A=B")]);
    writing["category"] = json!("creative_writing");
    writing["baseline"] = json!("another");
    let rows = [row(1, "m", [Some("A>B"), Some("B>A")]), writing];
    let found = read(&[file(&folder, "m.jsonl", &rows)]).unwrap();
    let models: Vec<&[String]> = found.iter().map(|one| &one.models[..]).collect();
    assert_eq!(models, [["base", "m"], ["another", "m"]]);
    // A model that never won has no finite score.
    assert_eq!(found[0].score(RESAMPLING).scores[1].score, None);
    // Without a single game there are no scores.
    let none = read(&[file(&folder, "n.jsonl", &[row(1, "m", [None, None])])]).unwrap();
    assert!(none[0].score(RESAMPLING).scores.is_empty());
}

#[test]
fn what_is_no_judgment_is_refused_by_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let good = row(1, "m", [Some("A>B"), Some("A>B")]);
    let with = |name: &str, value: Value| {
        let mut row = row(2, "m", [Some("A>B"), Some("A>B")]);
        row[name] = value;
        row
    };
    for (bad, problem) in [
        (json!({"instruction": "i", "output": "o"}), "has no `uid`"),
        (with("baseline", Value::Null), "has no `baseline`"),
        (with("model", json!(3)), "`model` isn't a text"),
        (with("games", json!([])), "has 0 games"),
        (with("games", json!([1, 2])), "game 1 isn't an object"),
        (
            with("games", json!([{"score": "A>B"}, {"score": "[[A>B]]"}])),
            "the score of game 2 is \"[[A>B]]\"",
        ),
        (with("games", json!([{"score": 7}, {}])), "the score of game 1 is \"\""),
        (with("games", json!("A>B")), "has no list `games`"),
        (good.clone(), "judges m on question u1, as a row before does"),
    ] {
        let error =
            read(&[file(&folder, "bad.jsonl", &[good.clone(), bad])]).unwrap_err().to_string();
        assert!(error.contains("row 2") && error.contains(problem), "{error}");
    }
}
