//! What alignment logs: TRL's names where TRL has them, and numbers that agree with each other.

use std::fs;

use crate::common::{arg, fail, skip_when_quick, succeed};
use serde_json::Value;

/// What TRL 1.16's DPO trainer logs that is not about logits themselves.
const TRL: [&str; 13] = [
    "loss",
    "learning_rate",
    "grad_norm",
    "num_tokens",
    "entropy",
    "mean_token_accuracy",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "step",
];

#[test]
fn metrics_bear_the_names_of_trl() {
    if skip_when_quick("metrics_bear_the_names_of_trl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let train =
        ["train", "--recipe", "smoke", "--until", "align", "--overwrite", "--run", arg(&run)];
    let lines = |method: &str, more: &[&str]| -> Vec<Value> {
        let method = format!("align.method={method}");
        succeed(&[&train[..], &["--set", &method], more].concat());
        let text = fs::read_to_string(run.join("align/metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let number = |line: &Value, key: &str| {
        line[key].as_f64().unwrap_or_else(|| panic!("no {key} in {line}"))
    };

    let asked = lines("simpo", &["--set", "align.token_statistics=true"]);
    let mut tokens = 0.0;
    for line in &asked {
        TRL.iter().for_each(|key| assert!(number(line, key).is_finite()));
        let margin = number(line, "rewards/chosen") - number(line, "rewards/rejected");
        assert!((number(line, "rewards/margins") - margin).abs() < 1e-9);
        // SimPO's u is its margin less γ, and its loss is of u.
        assert!((number(line, "u") - (margin - 0.5)).abs() < 1e-6, "{line}");
        assert!(number(line, "num_tokens") > tokens, "not cumulative: {line}");
        tokens = number(line, "num_tokens");
        assert!((0.0..=1.0).contains(&number(line, "pairs/clipped")));
        for key in ["kl/margins", "distance/margins"] {
            assert!(line.get(key).is_none(), "{key} costs what SimPO does not need");
        }
    }
    let not_asked = lines("tdpo2", &[]);
    for line in &not_asked {
        assert!(line.get("entropy").is_none() && line.get("mean_token_accuracy").is_none());
        let margin = number(line, "kl/chosen") - number(line, "kl/rejected");
        assert!((number(line, "kl/margins") - margin).abs() < 1e-9);
    }
    // Losses of the whole step, over two micro-batches.
    for method in ["aot_unpaired", "bco_pair"] {
        let line = &lines(method, &[])[0];
        assert!(number(line, "loss").is_finite() && number(line, "grad_norm") > 0.0);
    }
    let refused = [&train[..], &["--set", "align.ld_alpha=0.5"]].concat();
    assert!(fail(&refused).contains("fpo has no ld_alpha"));
}
