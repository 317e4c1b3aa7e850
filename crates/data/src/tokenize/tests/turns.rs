//! Turns of conversations, against transformers' masks.

use super::*;
use crate::source::{Conversation, Message, Response};
use std::collections::BTreeMap;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// A recorded conversation.
#[derive(serde::Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    tokens: Vec<u32>,
    mask: Vec<u32>,
}

impl Case {
    fn example(&self) -> SftExample {
        let (last, before) = self.messages.split_last().unwrap();
        let prompt = Prompt::Messages(Conversation::from(before.to_vec()));
        SftExample { id: 0, prompt, response: Response::Messages(vec![last.clone()]) }
    }
}

fn recorded() -> (Tokenizer, BTreeMap<String, String>, Vec<Case>) {
    let text = |name: &str| std::fs::read_to_string(fixture("turns").join(name)).unwrap();
    let cases = text("masks.jsonl");
    let mut cases: Vec<Case> =
        cases.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // A row begins with BOS, also where the template doesn't write it.
    for case in cases.iter_mut().filter(|case| case.tokens[0] != 2) {
        case.tokens.insert(0, 2);
        case.mask.insert(0, 0);
    }
    let templates = serde_json::from_str(&text("templates.json")).unwrap();
    (Tokenizer::load(&fixture("rows/model")).unwrap(), templates, cases)
}

fn choice(jinja: &str) -> TemplateChoice {
    TemplateChoice::Chat(ChatTemplate::from_source(jinja, "<bos>", "<eos>").unwrap())
}

/// 1 where a token is learned.
fn mask(example: &TokenizedExample) -> Vec<u32> {
    let first = example.response.prompt_len as u32;
    let learned = |t: &u32| *t >= first && !example.context.contains(t);
    (0..example.response.tokens.len() as u32).map(|t| learned(&t).into()).collect()
}

/// Oracle: `return_assistant_tokens_mask` of transformers, recorded (`tests/fixtures/turns`).
#[test]
fn marked_turns_are_those_of_transformers() {
    let (tokenizer, templates, cases) = recorded();
    for rendering in [Rendering::Auto, Rendering::Template, Rendering::None] {
        for case in &cases {
            let template = choice(&templates[&case.template]);
            let preparer = Preparer::new(&tokenizer, &template, rendering, ROOM).unwrap();
            let preparer = preparer.teaching(None);
            assert_eq!(preparer.turns(), Turns::All, "the default where a template marks them");
            let found = preparer.tokenize_example(&case.example()).unwrap().unwrap();
            let place = format!("{} {:?}", case.template, case.messages);
            assert_eq!(found.response.tokens, case.tokens, "{place}");
            assert_eq!(mask(&found), case.mask, "{place}");
            assert!(found.view().is_sound(), "{place}");

            // Cut anywhere, the mask is what is left of it.
            for max_length in (2..case.tokens.len()).step_by(9) {
                let cut = Truncation { max_length, max_prompt_length: None };
                let preparer = Preparer::new(&tokenizer, &template, rendering, cut).unwrap();
                let found = preparer.teaching(None).tokenize_example(&case.example()).unwrap();
                let expected = &case.mask[..max_length];
                match found {
                    Some(found) => assert_eq!(mask(&found), expected, "{place}"),
                    None => assert!(expected.iter().all(|&learned| learned == 0), "{place}"),
                }
            }
        }
    }
}

/// Oracle: the same masks, of the same template with marks. White space after the end of the last turn is no part of the row.
#[test]
fn turns_of_a_template_without_marks_are_found() {
    let (tokenizer, templates, cases) = recorded();
    let unmarked = |name: &str| {
        let jinja = templates[name].replace("{% generation %}", "");
        choice(&jinja.replace("{% endgeneration %}", ""))
    };
    let mut tried = 0;
    for case in cases.iter().filter(|case| case.template == "turn") {
        let template = unmarked("turn");
        let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, ROOM).unwrap();
        assert_eq!(preparer.clone().teaching(None).turns(), Turns::Last, "the default");
        let found = preparer.teaching(Some(Turns::All)).tokenize_example(&case.example());
        let found = found.unwrap().unwrap();
        let mut expected = case.mask.clone();
        assert_eq!(case.tokens.last(), tokenizer.encode("\n").unwrap().ids.last());
        expected.pop();
        if case.messages[0].role() == "assistant" {
            // A greeting that nothing precedes.
            let second = case.tokens.iter().position(|&token| token == 5).unwrap();
            expected[..=second].fill(0);
        }
        assert_eq!(found.response.tokens, case.tokens[..expected.len()], "{:?}", case.messages);
        assert_eq!(mask(&found), expected, "{:?}", case.messages);
        tried += 1;
    }
    assert_eq!(tried, 8);

    // One answer: as with the last turn alone, also without any template.
    for template in [unmarked("turn"), TemplateChoice::None] {
        let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, ROOM).unwrap();
        let [all, last] = [Turns::All, Turns::Last].map(|turns| {
            let preparer = preparer.clone().teaching(Some(turns));
            preparer.tokenize_example(&cases[0].example()).unwrap().unwrap()
        });
        assert_eq!(all, last);
        assert!(all.context.is_empty());
    }
    let preparer = Preparer::new(&tokenizer, &TemplateChoice::None, Rendering::Auto, ROOM).unwrap();
    let found = preparer.teaching(Some(Turns::All)).tokenize_example(&cases[1].example());
    let found = found.unwrap().unwrap();
    let learned = found.response.tokens.iter().zip(mask(&found)).filter(|(_, mask)| *mask == 1);
    let learned: Vec<u32> = learned.map(|(&token, _)| token).collect();
    assert_eq!(tokenizer.decode(&learned, false).unwrap(), "fineit is the<eos>");
}

#[test]
fn turns_that_cant_be_told_apart_are_refused_by_name() {
    let (tokenizer, _, cases) = recorded();
    let thinking = "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' and not loop.last %}past {% endif %}\
                    {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let trimmed = "{% set text %}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}\
                   {% endset %}{{ text | length }}";
    let refused = [
        (
            thinking,
            "writes turn 2 differently once later turns follow (they differ after \"w are you\\nassistant:\"",
        ),
        (trimmed, "changes the text between {% generation %} and {% endgeneration %}"),
    ];
    for (jinja, expected) in refused {
        let template = choice(jinja);
        let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, ROOM).unwrap();
        let preparer = preparer.teaching(Some(Turns::All));
        let error = preparer.tokenize_example(&cases[1].example()).unwrap_err();
        let PrepareError::Template { id: 0, source } = error else { panic!("{error}") };
        assert!(source.to_string().contains(expected), "{source}");
        assert!(source.to_string().contains("sft.turns = \"last\""), "{source}");
    }
}

/// Plain texts are as before, whatever the template marks; and context counts as no response.
#[test]
fn texts_have_one_turn() {
    let (tokenizer, templates, cases) = recorded();
    let template = choice(&templates["turn"]);
    let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, ROOM).unwrap();
    let text = SftExample { id: 0, prompt: Prompt::Text("a".into()), response: "b".into() };
    let taught = preparer.clone().teaching(Some(Turns::All));
    assert_eq!(taught.tokenize_example(&text).unwrap(), preparer.tokenize_example(&text).unwrap());
    let (rows, summary) = taught.prepare_examples(&[cases[1].example(), text]).unwrap();
    let learned: u32 = rows.iter().flat_map(mask).sum();
    assert_eq!(summary.response_tokens, learned as usize);
    let views: Vec<_> = rows.iter().map(TokenizedExample::view).collect();
    assert_eq!(views.iter().map(|view| view.learned()).sum::<usize>(), learned as usize);

    let batch = crate::SequenceBatch::new(&views).unwrap().batch;
    let expected = rows.iter().flat_map(|row| {
        let tokens = row.response.tokens.iter().zip(mask(row));
        tokens.filter(|(_, mask)| *mask == 1).map(|(&token, _)| token as i32).collect::<Vec<_>>()
    });
    assert_eq!(batch.targets(), expected.collect::<Vec<_>>());
    assert_eq!(batch.response_tokens(), learned as usize);
    let predicting = batch.predicting_positions();
    let next: Vec<i32> = predicting.iter().map(|&at| batch.tokens[at as usize + 1]).collect();
    assert_eq!(next, batch.targets());
    assert_eq!(batch.row_of_position().iter().filter(|&&row| row == 1).count(), views[1].learned());
}
