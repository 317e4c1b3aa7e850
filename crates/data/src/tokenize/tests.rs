mod families;
mod turns;

use super::*;
use crate::source::{Message, OnEmpty, read_pairs};
use crate::template::ChatTemplate;
use crate::testing::cases;
use proptest::prelude::*;
use std::path::Path;
use std::sync::OnceLock;

static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();

/// Has the merge `ab`, so that a boundary can fall inside a token.
fn tokenizer() -> Tokenizer {
    Tokenizer::train_bpe(["ab ab ab ab ab ab", "user model user model"], 275).unwrap()
}

fn chat() -> TemplateChoice {
    TemplateChoice::Chat(ChatTemplate::plain("<bos>").unwrap())
}

const ROOM: Truncation = Truncation { max_length: 1000, max_prompt_length: None };

fn pair(prompt: &str, chosen: &str, rejected: &str) -> Pair {
    Pair {
        id: 4,
        prompt: Prompt::Text(prompt.into()),
        chosen: chosen.into(),
        rejected: rejected.into(),
    }
}

/// Prompt and response of a row, decoded.
fn halves(tokenizer: &Tokenizer, row: &TokenizedResponse) -> (String, String) {
    let (prompt, response) = row.tokens.split_at(row.prompt_len);
    (tokenizer.decode(prompt, false).unwrap(), tokenizer.decode(response, false).unwrap())
}

#[test]
fn a_token_across_the_boundary_belongs_to_the_response() {
    let tokenizer = tokenizer();
    let ab = tokenizer.encode("ab").unwrap();
    assert_eq!(ab.ids.len(), 1, "the test needs this merge");
    // (prompt, response, the prompt's tokens as text, the response's tokens as text)
    let cases = [
        ("xa", "b", "<bos>x", "ab<eos>"),
        ("xa", "c", "<bos>xa", "c<eos>"),
        ("x", "ab", "<bos>x", "ab<eos>"),
        ("x ", "ab", "<bos>x", " ab<eos>"),
        ("", "ab", "<bos>", "ab<eos>"),
        ("ä", "ß", "<bos>ä", "ß<eos>"),
        ("x", "y<eos>", "<bos>x", "y<eos>"),
        ("<bos>x", "y", "<bos>x", "y<eos>"),
        ("<bos><bos>x", "y", "<bos>x", "y<eos>"),
    ];
    let preparer = Preparer::new(&tokenizer, &TemplateChoice::None, Rendering::Auto, ROOM).unwrap();
    for (prompt, response, prompt_tokens, response_tokens) in cases {
        let pair = preparer.tokenize_pair(&pair(prompt, response, "z")).unwrap().unwrap();
        let expected = (prompt_tokens.to_owned(), response_tokens.to_owned());
        assert_eq!(halves(&tokenizer, &pair.chosen), expected, "{prompt:?} {response:?}");
        assert_eq!(pair.chosen.tokens.iter().filter(|&&token| token == 2).count(), 1, "BOS once");
    }
}

#[test]
fn the_responses_of_a_pair_share_one_prompt() {
    let tokenizer = tokenizer();
    let preparer = Preparer::new(&tokenizer, &TemplateChoice::None, Rendering::Auto, ROOM).unwrap();
    // (prompt, chosen, rejected, the prompt's tokens as text, the responses' tokens as text)
    let cases = [
        ("xa", "b", "c", "<bos>x", ["ab<eos>", "ac<eos>"]),
        ("xa", "c", "b", "<bos>x", ["ac<eos>", "ab<eos>"]),
        ("xa", "c", "d", "<bos>xa", ["c<eos>", "d<eos>"]),
        ("x ", "ab", "x", "<bos>x", [" ab<eos>", " x<eos>"]),
        ("ab", "ab", "", "<bos>ab", ["ab<eos>", "<eos>"]),
        ("a", "b", "b", "<bos>", ["ab<eos>", "ab<eos>"]),
    ];
    for (prompt, chosen, rejected, shared, responses) in cases {
        let pair = preparer.tokenize_pair(&pair(prompt, chosen, rejected)).unwrap().unwrap();
        for (row, response) in [&pair.chosen, &pair.rejected].into_iter().zip(responses) {
            let expected = (shared.to_owned(), response.to_owned());
            assert_eq!(halves(&tokenizer, row), expected, "{prompt:?} {chosen:?} {rejected:?}");
        }
    }
}

/// Oracle: the ids of TRL 1.16 (`tests/fixtures/trl/generate.py`).
#[test]
fn pairs_have_the_ids_of_trl() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/trl");
    let tokenizer = Tokenizer::load(&folder.join("model")).unwrap();
    let (pairs, _) = read_pairs(&folder.join("boundary.jsonl"), OnEmpty::Refuse).unwrap();
    let expected = std::fs::read_to_string(folder.join("boundary.trl.jsonl")).unwrap();
    let expected: Vec<serde_json::Value> =
        expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let preparer = Preparer::new(&tokenizer, &TemplateChoice::None, Rendering::Auto, ROOM).unwrap();
    let (ours, _) = preparer.prepare_pairs(&pairs).unwrap();
    assert_eq!(ours.len(), expected.len());
    for (ours, expected) in ours.iter().zip(&expected) {
        for (row, response) in [(&ours.chosen, "chosen_ids"), (&ours.rejected, "rejected_ids")] {
            let (prompt, tokens) = row.tokens.split_at(row.prompt_len);
            let ours = serde_json::json!([prompt, tokens]);
            let theirs = serde_json::json!([expected["prompt_ids"], expected[response]]);
            assert_eq!(ours, theirs, "{response}");
        }
    }
}

#[test]
fn with_a_template_the_response_ends_its_turn() {
    let tokenizer = tokenizer();
    let template = chat();
    let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, ROOM).unwrap();
    let pair = preparer.tokenize_pair(&pair("Hi", "Yes", "No\n")).unwrap().unwrap();
    let prompt = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n".to_owned();
    assert_eq!(halves(&tokenizer, &pair.chosen), (prompt.clone(), "Yes<end_of_turn>".to_owned()));
    assert_eq!(halves(&tokenizer, &pair.rejected), (prompt, "No<end_of_turn>".to_owned()));
    assert_eq!(pair.id, 4);
    assert_eq!(
        preparer.tokenize_prompt(&Prompt::Text("Hi".into())).unwrap(),
        pair.chosen.tokens[..pair.chosen.prompt_len]
    );
}

#[test]
fn a_template_without_bos_and_end_gets_both_once() {
    let tokenizer = tokenizer();
    let jinja = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let template = TemplateChoice::Chat(ChatTemplate::from_source(jinja, "", "").unwrap());
    let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, ROOM).unwrap();
    let pair = preparer.tokenize_pair(&pair("q", "r", "s")).unwrap().unwrap();
    assert_eq!(
        halves(&tokenizer, &pair.chosen),
        ("<bos>user: q\nassistant: ".to_owned(), "r<eos>".to_owned())
    );
}

#[test]
fn truncation() {
    let tokenizer = tokenizer();
    // Prompt `<bos>pqrst` is 6 tokens, the response `wxyz<eos>` 5.
    type Case = (usize, Option<usize>, Option<(&'static str, &'static str)>, (usize, usize));
    let cases: [Case; 8] = [
        (11, None, Some(("<bos>pqrst", "wxyz<eos>")), (0, 0)),
        (10, None, Some(("<bos>pqrst", "wxyz")), (0, 2)),
        (7, None, Some(("<bos>pqrst", "w")), (0, 2)),
        (6, None, None, (0, 0)),
        (2, None, None, (0, 0)),
        (11, Some(3), Some(("<bos>st", "wxyz<eos>")), (1, 0)),
        (6, Some(3), Some(("<bos>st", "wxy")), (1, 2)),
        (2, Some(1), Some(("<bos>", "w")), (1, 2)),
    ];
    for (max_length, max_prompt_length, expected, clipped) in cases {
        let truncation = Truncation { max_length, max_prompt_length };
        let preparer =
            Preparer::new(&tokenizer, &TemplateChoice::None, Rendering::Auto, truncation).unwrap();
        let (pairs, summary) = preparer.prepare_pairs(&[pair("pqrst", "wxyz", "wxyz")]).unwrap();
        let found = pairs.first().map(|pair| halves(&tokenizer, &pair.chosen));
        assert_eq!(
            found,
            expected.map(|(prompt, response)| (prompt.to_owned(), response.to_owned())),
            "{truncation:?}"
        );
        assert_eq!((summary.clipped_prompts, summary.clipped_responses), clipped, "{truncation:?}");
        assert_eq!(summary.clipped, usize::from(clipped != (0, 0)), "{truncation:?}");
        assert_eq!((summary.read, summary.kept), (1, usize::from(expected.is_some())));
        assert_eq!(summary.dropped_empty, 1 - summary.kept);
        assert!(summary.longest <= max_length);
    }
}

#[test]
fn many_pairs_keep_their_order_and_are_counted() {
    let tokenizer = tokenizer();
    let truncation = Truncation { max_length: 8, max_prompt_length: None };
    let preparer =
        Preparer::new(&tokenizer, &TemplateChoice::None, Rendering::Auto, truncation).unwrap();
    let pairs: Vec<Pair> = (0..500)
        .map(|id| Pair { id, ..pair(&"p".repeat(id as usize % 10), "wx", "wxyz") })
        .collect();
    let (kept, summary) = preparer.prepare_pairs(&pairs).unwrap();
    let one_by_one: Vec<_> =
        pairs.iter().filter_map(|pair| preparer.tokenize_pair(pair).unwrap()).collect();
    assert_eq!(kept, one_by_one);
    // Prompts of 7 to 9 tokens after BOS leave no room.
    assert_eq!((summary.read, summary.kept, summary.dropped_empty), (500, 350, 150));
    let rows = kept.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]);
    assert_eq!(summary.tokens, rows.clone().map(|row| row.tokens.len()).sum::<usize>());
    assert_eq!(
        summary.response_tokens,
        rows.map(|row| row.tokens.len() - row.prompt_len).sum::<usize>()
    );
    assert_eq!(summary.longest, 8);
    assert_eq!(preparer.prepare_pairs(&[]).unwrap().1, PrepareSummary::default());
}

#[test]
fn examples_are_prepared_like_pairs() {
    let tokenizer = tokenizer();
    let template = chat();
    let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, ROOM).unwrap();
    let example = SftExample { id: 9, prompt: Prompt::Text("Hi".into()), response: "Yes".into() };
    let pair = preparer.tokenize_pair(&pair("Hi", "Yes", "No")).unwrap().unwrap();
    let (examples, summary) = preparer.prepare_examples(std::slice::from_ref(&example)).unwrap();
    assert_eq!(examples[0], TokenizedExample { id: 9, response: pair.chosen, context: Vec::new() });
    assert_eq!(summary.tokens, examples[0].response.tokens.len());
    assert_eq!(preparer.tokenize_example(&example).unwrap().as_ref(), examples.first());
}

#[test]
fn errors_say_what_is_wrong() {
    let tokenizer = tokenizer();
    let template = chat();
    for (max_length, max_prompt_length) in [(1, None), (0, None), (5, Some(5)), (5, Some(0))] {
        let error = Preparer::new(
            &tokenizer,
            &template,
            Rendering::Auto,
            Truncation { max_length, max_prompt_length },
        )
        .unwrap_err();
        assert!(matches!(error, PrepareError::Limits { .. }), "{error}");
    }
    let json = serde_json::json!({"eos_token": null});
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), json.to_string()).unwrap();
    let endless = Tokenizer::load(folder.path()).unwrap();
    assert!(matches!(
        Preparer::new(&endless, &TemplateChoice::None, Rendering::Auto, ROOM),
        Err(PrepareError::NoEnd)
    ));

    // Of several rejected rows the first is named, whatever the number of threads.
    let strict = "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}{{ messages | map(attribute='content') | join }}";
    let template = TemplateChoice::Chat(ChatTemplate::from_source(strict, "", "").unwrap());
    let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, ROOM).unwrap();
    let bad = |id| Pair { id, ..pair(if id < 30 { "good" } else { "bad" }, "a", "b") };
    let error = preparer.prepare_pairs(&(0..100).map(bad).collect::<Vec<_>>()).unwrap_err();
    assert!(error.to_string().contains("row 30"), "{error}");

    let messages = vec![Message::new("user", "ok")];
    assert!(preparer.tokenize_prompt(&Prompt::Messages(messages.into())).is_ok());
}

/// Oracle: the tokenizer and chat template of transformers (see tests/fixtures/score).
#[test]
fn without_rendering_texts_stay_plain_and_messages_are_as_the_template_writes_them() {
    let (tokenizer, template) = (tokenizer(), chat());
    let preparer = Preparer::new(&tokenizer, &template, Rendering::None, ROOM).unwrap();
    let message = |role: &str| Message::new(role, "ab");
    let turn = "<bos><start_of_turn>user\nab<end_of_turn>\n<start_of_turn>model\n";
    let cases = [
        (Prompt::Text("x".into()), "<bos>x", "y<eos>"),
        (Prompt::Messages(vec![message("user")].into()), turn, "y<end_of_turn>\n"),
    ];
    for (prompt, before, response) in cases {
        let alone = preparer.tokenize_prompt(&prompt).unwrap();
        let pair = Pair { id: 0, prompt, chosen: "y".into(), rejected: "".into() };
        let pair = preparer.tokenize_pair(&pair).unwrap().unwrap();
        assert_eq!(halves(&tokenizer, &pair.chosen), (before.to_owned(), response.to_owned()));
        let empty = response.strip_prefix('y').unwrap();
        assert_eq!(halves(&tokenizer, &pair.rejected), (before.to_owned(), empty.to_owned()));
        assert_eq!(alone, pair.chosen.tokens[..pair.chosen.prompt_len]);
    }
    let text = preparer.tokenize_text("ab").unwrap();
    assert_eq!(tokenizer.decode(&text, false).unwrap(), "<bos>ab");
}

proptest! {
    #![proptest_config(cases(500))]
    /// Oracle: the text itself.
    #[test]
    fn a_row_is_its_text_between_bos_and_eos(prompt in "[ab x\\né🗼]{0,12}", response in "[ab x\\né🗼]{0,12}") {
        let tokenizer = TOKENIZER.get_or_init(tokenizer);
        let preparer = Preparer::new(tokenizer, &TemplateChoice::None, Rendering::None, ROOM).unwrap();
        let pair = preparer.tokenize_pair(&pair(&prompt, &response, "")).unwrap().unwrap();
        let whole = tokenizer.decode(&pair.chosen.tokens, false).unwrap();
        prop_assert_eq!(whole, format!("<bos>{prompt}{response}<eos>"));
        // A token that crosses the boundary belongs to the response, so the prompt's tokens may stop short of it.
        let before = tokenizer.decode(&pair.chosen.tokens[1..pair.chosen.prompt_len], false).unwrap();
        prop_assert!(prompt.starts_with(before.trim_end_matches('\u{FFFD}')), "{:?} of {:?}", before, prompt);
    }

    #[test]
    fn limits_are_kept(
        prompt in "(<bos>)?[ab x]{0,30}",
        response in "[ab x]{0,30}",
        max_length in 2usize..40,
        prompt_share in proptest::option::of(0.0..1.0f64),
        template in any::<bool>(),
        rendering in prop_oneof![Just(Rendering::Auto), Just(Rendering::None)],
    ) {
        let tokenizer = TOKENIZER.get_or_init(tokenizer);
        let template = if template { chat() } else { TemplateChoice::None };
        let max_prompt_length = prompt_share.map(|share| 1 + (share * (max_length - 1) as f64) as usize);
        let limits = Truncation { max_length, max_prompt_length };
        let preparer = Preparer::new(tokenizer, &template, rendering, limits).unwrap();
        let (pairs, summary) = preparer.prepare_pairs(&[pair(&prompt, &response, "b")]).unwrap();
        prop_assert_eq!(summary.kept + summary.dropped_empty, 1);
        let ways = summary.templated + summary.already_templated + summary.as_given;
        prop_assert_eq!(ways, 2 * summary.kept);
        for row in pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]) {
            prop_assert!(row.view().is_sound() && row.tokens.len() <= max_length);
            prop_assert!(max_prompt_length.is_none_or(|limit| row.prompt_len <= limit));
            prop_assert_eq!(row.tokens.iter().position(|&token| token == 2), Some(0));
            prop_assert_eq!(row.tokens.iter().filter(|&&token| token == 2).count(), 1);
        }
    }
}
