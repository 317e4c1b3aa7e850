//! Markdown in answers.

use serde_json::{Value, json};

/// Oracle: recorded values of Arena-Hard's own code.
#[test]
fn counts_are_arena_hards() {
    let recorded = include_str!("../../../tests/fixtures/benchmarks/markdown.json");
    let recorded: Vec<Value> = serde_json::from_str(recorded).unwrap();
    assert!(recorded.len() > 10);
    for (index, record) in recorded.iter().enumerate() {
        let found = fpo_benchmarks::counts(record["text"].as_str().unwrap(), 7);
        assert_eq!(found["token_len"], json!(7));
        for (name, counts) in record["counts"].as_object().unwrap() {
            assert_eq!(&found[name], counts, "text {index}: {name}");
        }
    }
}
