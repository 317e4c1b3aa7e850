//! Rows to tokens, against TRL's own.

use super::*;
use crate::rendering::Rendering;
use crate::template::TemplateChoice;
use crate::tokenize::{Preparer, Truncation};
use crate::tokenizer::Tokenizer;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/rows").join(name)
}

/// Oracle: TRL's DPOTrainer with transformers' tokenizer and template, recorded (`tests/fixtures/rows`): tool calls in the history and
/// in an answer, content that is null, and conversations that part early.
#[test]
fn tool_calls_and_parting_conversations_are_tokenised_as_in_trl() {
    let tokenizer = Tokenizer::load(&fixture("model")).unwrap();
    let template = TemplateChoice::from(tokenizer.chat_template().unwrap());
    let room = Truncation { max_length: usize::MAX, max_prompt_length: None };
    let preparer = Preparer::new(&tokenizer, &template, Rendering::None, room).unwrap();
    let (pairs, _) = read_pairs(&fixture("pairs.jsonl"), OnEmpty::Refuse).unwrap();
    let expected = std::fs::read_to_string(fixture("tokens.jsonl")).unwrap();
    let expected: Vec<Value> =
        expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(pairs.len(), expected.len());
    for (pair, expected) in pairs.iter().zip(expected) {
        let found = preparer.tokenize_pair(pair).unwrap().unwrap();
        for (side, name) in [(&found.chosen, "chosen"), (&found.rejected, "rejected")] {
            assert_eq!(serde_json::json!(side.tokens), expected[name], "row {} {name}", pair.id);
            assert_eq!(serde_json::json!(side.prompt_len), expected["prompt"], "row {}", pair.id);
        }
    }
}

/// A call against the same answer without one, under a template that writes no calls: a pair of equals.
#[test]
fn responses_that_a_template_writes_alike_are_refused() {
    let tokenizer = Tokenizer::load(&fixture("model")).unwrap();
    let room = Truncation { max_length: usize::MAX, max_prompt_length: None };
    let template = TemplateChoice::Chat(crate::template::ChatTemplate::plain("<bos>").unwrap());
    let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, room).unwrap();
    let (pairs, _) = read_pairs(&fixture("pairs.jsonl"), OnEmpty::Refuse).unwrap();
    let error = chain(&preparer.tokenize_pair(&pairs[1]).unwrap_err());
    assert!(error.contains("row 1") && error.contains("leaves out `tool_calls`"), "{error}");
    assert!(
        preparer.tokenize_pair(&pairs[0]).is_ok(),
        "a call in the history alone is the template's matter"
    );
}

#[test]
fn what_a_text_cant_say_needs_a_template() {
    let tokenizer = Tokenizer::load(&fixture("model")).unwrap();
    let room = Truncation { max_length: usize::MAX, max_prompt_length: None };
    let template = TemplateChoice::None;
    let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, room).unwrap();
    let (pairs, _) = read_pairs(&fixture("pairs.jsonl"), OnEmpty::Refuse).unwrap();
    let error = chain(&preparer.tokenize_pair(&pairs[0]).unwrap_err());
    assert!(
        error.contains("row 0") && error.contains("`tool_calls`, which only a chat template"),
        "{error}"
    );
    let parting = preparer.tokenize_pair(&pairs[3]).unwrap().unwrap();
    let text = tokenizer.decode(&parting.chosen.tokens, true).unwrap();
    assert_eq!(text, "\n\nHuman: q\n\nAssistant: one\n\nHuman: next\n\nAssistant: two");
}
