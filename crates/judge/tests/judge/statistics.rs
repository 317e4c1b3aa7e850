//! Statistics against values of other software, recorded by `tests/fixtures/judge/generate.py`.

use std::path::PathBuf;

use fpo_judge::annotations;
use fpo_judge::stats::Resampling;
use fpo_judge::stats::bradley_terry::{Battle, Outcome, fit, scores};
use fpo_judge::{Gamed, Summary};
use serde_json::Value;

const RESAMPLING: Resampling = Resampling { rounds: 50, seed: 0 };

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/judge").join(name)
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture("expected.json")).unwrap()).unwrap()
}

#[track_caller]
fn close(found: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= tolerance, "{found} and {expected}");
}

/// The package's numbers to 0.003 percentage points, which is how far liblinear's early stop is off; the package with its
/// tolerance lowered to 10⁻⁶ of a point.
#[test]
fn win_rates_are_alpaca_evals() {
    let expected = expected();
    let gamed = Gamed::read(&fixture("df_gamed.csv")).unwrap();
    for case in ["soft", "hard", "missing", "one_sided"] {
        let found = annotations::read(&[fixture(&format!("{case}.json"))]).unwrap();
        let [comparison] = &found[..] else { panic!("{case}: one comparison") };
        for (name, gamed) in
            [("length_controlled_minimal", None), ("length_controlled_v1", Some(&gamed))]
        {
            let summary = Summary::new(comparison, None, gamed, RESAMPLING);
            let (raw, ours) = (summary.raw.unwrap(), summary.length_controlled.unwrap());
            for (how, tolerance, weights) in [("package", 0.003, 2e-3), ("tight", 1e-6, 1e-7)] {
                let theirs = &expected[case][name][how];
                close(raw.win_rate, &theirs["win_rate"], 1e-9);
                close(raw.standard_error.unwrap(), &theirs["standard_error"], 1e-9);
                close(raw.discrete_win_rate, &theirs["discrete_win_rate"], 1e-9);
                for (count, name) in
                    [(raw.wins, "n_wins"), (raw.losses, "n_wins_base"), (raw.draws, "n_draws")]
                {
                    close(count as f64, &theirs[name], 0.0);
                }
                close(ours.win_rate, &theirs["length_controlled_winrate"], tolerance);
                close(ours.standard_error, &theirs["lc_standard_error"], tolerance);
                close(ours.c, &theirs["c"], 1e-9);
                let coefficients = theirs["coefficients"].as_array().unwrap();
                close(ours.length, &coefficients[0], weights);
                close(ours.constant, coefficients.last().unwrap(), weights);
                if let Some(difficulty) = ours.difficulty {
                    close(difficulty, &coefficients[1], weights);
                }
            }
            let [low, high] = ours.interval.map(Option::unwrap);
            assert!(low < ours.win_rate && ours.win_rate < high, "{case} {name}: {low} {high}");
        }
    }
}

/// scikit-learn's fit as in Arena-Hard, and scipy's of the likelihood written down: to 10⁻⁵ of a point. Intervals come from other
/// random numbers: their ends agree to 6 % of their width, three standard deviations of such an end.
#[test]
fn bradley_terry_scores_are_arena_hards() {
    let expected = expected();
    for (case, theirs) in expected["bradley_terry"].as_object().unwrap() {
        let mut models = vec!["base".to_owned()];
        let battles: Vec<Battle> = theirs["battles"]
            .as_array()
            .unwrap()
            .iter()
            .map(|battle| {
                let [first, second] = [0, 1].map(|side| {
                    let name = battle[side].as_str().unwrap();
                    models.iter().position(|known| known == name).unwrap_or_else(|| {
                        models.push(name.to_owned());
                        models.len() - 1
                    })
                });
                let outcome = match battle[2].as_str().unwrap() {
                    "model_a" => Outcome::First,
                    "model_b" => Outcome::Second,
                    _ => Outcome::Tie,
                };
                Battle { first, second, outcome }
            })
            .collect();
        let found = fit(models.len(), battles.iter());
        for (model, found) in models.iter().zip(found) {
            close(found.unwrap(), &theirs["sklearn"][model], 1e-3);
            close(found.unwrap(), &theirs["scipy"][model], 1e-5);
        }
        for row in scores(&models, &battles, Resampling { rounds: 1500, seed: 5 }) {
            let [low, high] =
                [0, 1].map(|end| theirs["bootstrap"][&row.model][end].as_f64().unwrap());
            let [ours_low, ours_high] = row.interval.map(Option::unwrap);
            let slack = 0.06 * (high - low);
            assert!((ours_low - low).abs() <= slack, "{case} {}: {ours_low} {low}", row.model);
            assert!((ours_high - high).abs() <= slack, "{case} {}: {ours_high} {high}", row.model);
        }
    }
}

#[test]
fn what_isnt_defined_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("annotations.json");
    let row = |preference: &str, output: &str| {
        format!(
            r#"{{"output_1": "xx", "output_2": "{output}", "generator_1": "b", "generator_2": "m", "preference": {preference}}}"#
        )
    };
    let summary = |rows: &[String]| {
        std::fs::write(&path, rows.join("\n")).unwrap();
        let found = annotations::read(std::slice::from_ref(&path))?;
        Ok::<_, fpo_judge::Error>(Summary::new(&found[0], None, None, RESAMPLING))
    };
    let same = summary(&vec![row("2", "yy"); 8]).unwrap();
    assert_eq!(same.raw.unwrap().win_rate, 100.0);
    assert!(same.length_controlled_is_missing.unwrap().contains("whose lengths differ"));
    let few = summary(&[row("1.2", "y"), row("null", "yyy"), row("0", "y")]).unwrap();
    assert_eq!((few.questions, few.judged), (3, 2));
    assert!(
        few.length_controlled_is_missing
            .unwrap()
            .contains("needs verdicts on 5 questions, and there are 2")
    );
    for (preference, part) in
        [("3", "is 3"), ("\"a\"", "is \"a\""), ("-1", "is -1"), ("0.5", "is 0.5")]
    {
        let error = summary(&[row("1", "y"), row(preference, "y")]).unwrap_err().to_string();
        assert!(error.contains("row 2") && error.contains(part), "{error}");
    }
    let gamed = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Gamed::read(&path).unwrap_err().to_string()
    };
    let head = "preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n";
    for (text, part) in [
        ("a,b\n1,2\n".to_owned(), "no column `preference`"),
        (head.to_owned(), "no rows"),
        (format!("{head}1.5,0,0,0,False\n"), "not in 0 to 1"),
        (format!("{head}1,1,0,0,False\n"), "in order"),
        (format!("{head}1,0,nan,0,False\n"), "row 1: `std_delta_len` is \"nan\", not a number"),
        (
            format!("{head}1,0,0,0,False\n1,0,0,0,maybe\n"),
            "row 2: `not_gamed_baseline` is \"maybe\"",
        ),
        (format!("{head}1,0\n"), "row 1: has 2 fields, and the header 5"),
    ] {
        let error = gamed(&text);
        assert!(error.contains(part), "{error}");
    }
}
